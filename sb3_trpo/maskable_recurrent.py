"""TRPO for policies with a memory, in environments where some actions are impossible at times: ``MaskableRecurrentTRPO``."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.guards.passed_on import AsGiven, StandIn
from sb3_trpo.maskable import Masking, mask_sizes, masks_into, without_masks
from sb3_trpo.recurrent import (
    KNOWN_LSTM_POLICIES,
    CnnLstmPolicy,
    MlpLstmPolicy,
    MultiInputLstmPolicy,
    Padded,
    RecurrentTRPO,
)

try:
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
    from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback as ContribEvalCallback
    from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
    from sb3_contrib.common.maskable.evaluation import evaluate_policy as contrib_evaluate_policy
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.type_aliases import RNNStates
except ImportError as error:
    raise ImportError(f"MaskableRecurrentTRPO needs sb3-contrib: pip install 'sb3_trpo[contrib]' ({error})") from error

SelfBoth = TypeVar("SelfBoth", bound="MaskableRecurrentTRPO")

# What is possible, for a call of a policy further down: each thread has its own
_MASKS: ContextVar[Any] = ContextVar("action_masks", default=None)


@contextmanager
def _masked(action_masks: Any) -> Iterator[None]:
    """Let policies act by masks, ``None`` for no masks, until the end of the block."""
    token = _MASKS.set(action_masks)
    try:
        yield
    finally:
        _MASKS.reset(token)


class MaskableMlpLstmPolicy(MlpLstmPolicy):
    """
    sb3-contrib's ``RecurrentActorCriticPolicy`` with the masked distributions of its ``MaskableActorCriticPolicy``.

    The arguments are those of the former. Each method that makes a distribution takes ``action_masks`` last: booleans, a row
    of ``n_masks`` for each observation, or ``None`` where everything is possible.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        # SB3 builds no network for a masked distribution: that of categoricals of the same sizes is the same
        self.action_dist = MultiCategoricalDistribution(mask_sizes(self.action_space))
        super()._build(lr_schedule)
        self.action_dist = make_masked_proba_distribution(self.action_space)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        distribution: Any = self.action_dist
        distribution = distribution.proba_distribution(action_logits=self.action_net(latent_pi))
        distribution.apply_masking(_MASKS.get())
        return distribution

    def forward(  # type: ignore[override]
        self, obs: Any, lstm_states: Any, episode_starts: th.Tensor, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, RNNStates]:
        """Return actions, values, log-probabilities and the states after the step."""
        with _masked(action_masks):
            return super().forward(obs, lstm_states, episode_starts, deterministic)

    def get_distribution(  # type: ignore[override]
        self, obs: Any, lstm_states: Any, episode_starts: th.Tensor, action_masks: Any = None
    ) -> tuple[Distribution, tuple[th.Tensor, ...]]:
        """Return the action distribution and the actor's states after the step."""
        with _masked(_MASKS.get() if action_masks is None else action_masks):
            return super().get_distribution(obs, lstm_states, episode_starts)

    def evaluate_actions(  # type: ignore[override]
        self, obs: Any, actions: th.Tensor, lstm_states: Any, episode_starts: th.Tensor, action_masks: Any = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Return values, log-probabilities of the actions, and entropies."""
        with _masked(action_masks):
            return super().evaluate_actions(obs, actions, lstm_states, episode_starts)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Return the policy's actions and the state after them.

        :param observation: one observation or a row for each environment
        :param state: what this returned for the step before, ``None`` at the first step of all environments
        :param episode_start: where an episode starts, and the state with it
        :param deterministic: whether to take the most probable action
        :param action_masks: which actions are possible, all of them if not given; a row for each observation
        :raises ValueError: if an episode goes on and there is no state: whoever calls has lost it
        """
        if state is None and episode_start is not None and not np.all(episode_start):
            raise ValueError(
                "state must be what predict returned for the step before where episode_start says that an episode goes on, "
                "got None. sb3-contrib's evaluate_policy and MaskableEvalCallback for masks lose it: those of "
                "sb3_trpo.maskable_recurrent keep it"
            )
        with _masked(action_masks):
            return super().predict(observation, state, episode_start, deterministic)


KNOWN_LSTM_POLICIES.insert(0, MaskableMlpLstmPolicy)


class MaskableCnnLstmPolicy(MaskableMlpLstmPolicy, CnnLstmPolicy):
    """The same for images; extractors are separate unless the LSTM is shared."""


class MaskableMultiInputLstmPolicy(MaskableMlpLstmPolicy, MultiInputLstmPolicy):
    """The same for Dict observations; extractors are separate unless the LSTM is shared."""


class MaskableRecurrentRolloutBufferSamples(NamedTuple):
    """What sb3-contrib's recurrent buffers yield, and the masks; all of them are possible in padding."""

    observations: Any
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    lstm_states: RNNStates
    episode_starts: th.Tensor
    mask: th.Tensor
    action_masks: th.Tensor


class _WithMasks(RolloutBuffer):
    """What a recurrent buffer needs to yield the masks that a maskable one holds."""

    action_masks: np.ndarray
    mask_dims: int

    def get(self, batch_size: int | None = None) -> Any:
        assert self.full, "Rollout buffer must be full before sampling from it"
        if not self.generator_ready:
            self.action_masks = self.swap_and_flatten(self.action_masks)
        yield from super().get(batch_size)

    def _get_samples(self, batch_inds: np.ndarray, *args: Any) -> Any:
        data: Any = super()._get_samples(batch_inds, *args)
        pad: Any = self.pad  # type: ignore[attr-defined]
        masks = pad(self.action_masks[batch_inds], 1.0).reshape(-1, self.mask_dims)
        return MaskableRecurrentRolloutBufferSamples(**data._asdict(), action_masks=masks)


class MaskableRecurrentRolloutBuffer(_WithMasks, RecurrentRolloutBuffer, MaskableRolloutBuffer):  # type: ignore[misc]
    """sb3-contrib's recurrent buffer and its maskable one (see there for the parameters)."""


class MaskableRecurrentDictRolloutBuffer(_WithMasks, RecurrentDictRolloutBuffer, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """The same for Dict observations."""


class _PolicyByMasks(StandIn):
    """A policy, or its quick twin, that asks the environment what is possible before it acts."""

    def __call__(self, *args: Any) -> Any:
        return self.thing(*args, action_masks=self.masks_now())


class _ModelByMasks(StandIn):
    """A model whose policy of the moment acts by masks: sb3-contrib's loop for policies with a memory takes it for its own."""

    @property
    def policy(self) -> Any:
        """Return the policy of the moment."""
        return _PolicyByMasks(self.thing.policy, masks_now=self.masks_now)


class MaskableRecurrentTRPO(Masking, RecurrentTRPO):
    """
    TRPO for policies with an LSTM that never take, and never learn from, actions that the environment says are impossible.

    It takes the arguments of :class:`sb3_trpo.TRPO`, for Discrete, MultiDiscrete and MultiBinary actions. Policies are
    ``MlpLstmPolicy``, ``CnnLstmPolicy`` and ``MultiInputLstmPolicy``, with the ``policy_kwargs`` of
    :class:`sb3_trpo.RecurrentTRPO`; masks are those of :class:`sb3_trpo.MaskableTRPO`. ``predict`` takes both ``state`` and
    ``action_masks``.

    :raises ImportError: without sb3-contrib
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MaskableMlpLstmPolicy,
        "CnnLstmPolicy": MaskableCnnLstmPolicy,
        "MultiInputLstmPolicy": MaskableMultiInputLstmPolicy,
    }
    saved_by: ClassVar[str] = "sb3_trpo.MaskableRecurrentTRPO"
    kind: ClassVar[str] = "MaskableRecurrentTRPO"
    policy_base: ClassVar[type[BasePolicy]] = MaskableMlpLstmPolicy
    buffers: ClassVar[tuple[type, type]] = (MaskableRecurrentRolloutBuffer, MaskableRecurrentDictRolloutBuffer)

    def learn(  # type: ignore[override]
        self: SelfBoth,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MaskableRecurrentTRPO",
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> SelfBoth:
        """Train for at least a number of environment steps (see ``MaskableTRPO.learn`` for the parameters)."""
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, use_masking, progress_bar
        )

    def _collect_as(self, model: Any, env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        told = {"use_masking": self._use_masking, "action_masks": None}
        if self._use_masking:
            model = _ModelByMasks(model, masks_now=masks_into(rollout_buffer, env, told))
        return super()._collect_as(model, env, AsGiven(callback, told), rollout_buffer, n_rollout_steps)

    def _distribution_of(self, padded: Padded, states: tuple[th.Tensor, ...]) -> Distribution:
        policy: Any = self.policy
        distribution, _ = policy.get_distribution(
            padded.observations, states, padded.episode_starts, action_masks=padded.action_masks
        )
        return without_masks(distribution)


class _KeepsState(StandIn):
    """A model whose ``predict`` keeps the state itself: sb3-contrib's evaluation for masks loses it."""

    def predict(self, observation: Any, state: Any = None, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        """Return actions and state (see the model's own ``predict``)."""
        actions, vars(self)["state"] = self.thing.predict(observation, self.state, *args, **kwargs)
        return actions, self.state


def evaluate_policy(model: Any, env: gym.Env | VecEnv, *args: Any, **kwargs: Any) -> Any:
    """
    Evaluate a model, keeping the state of its LSTM and the masks.

    Arguments and result are those of ``sb3_contrib.common.maskable.evaluation.evaluate_policy``, which loses the state.

    :param model: of :class:`MaskableRecurrentTRPO` or :class:`sb3_trpo.MaskableTRPO`
    :param env: says what is possible, unless ``use_masking=False``
    :param args: the other arguments there
    :param kwargs: the other arguments there, by name
    """
    kept: Any = _KeepsState(model, state=None)
    return contrib_evaluate_policy(kept, env, *args, **kwargs)


class MaskableEvalCallback(ContribEvalCallback):
    """
    Evaluate a model as it learns, keeping the state of its LSTM and the masks.

    sb3-contrib's ``MaskableEvalCallback`` (see there for the parameters), which loses the state.
    """

    def _on_step(self) -> bool:
        model = self.model
        self.model = _KeepsState(model, state=None)  # type: ignore[assignment]
        try:
            return super()._on_step()
        finally:
            self.model = model
