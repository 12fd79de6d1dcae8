"""
TRPO for environments in which some actions are impossible at times: ``MaskableTRPO``.

Huang & Ontañón 2022, *A Closer Look at Invalid Action Masking in Policy Gradient Algorithms*, https://arxiv.org/abs/2006.14171.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_trpo.fast.actors import lean_actor
from sb3_trpo.fast.kinds import KNOWN_POLICIES, MASKED_KINDS
from sb3_trpo.guards.overridden import known_kind
from sb3_trpo.guards.passed_on import AsGiven
from sb3_trpo.objective import Batch
from sb3_trpo.policies import CountsFromZero, SeparateExtractors, n_observations
from sb3_trpo.rollout import KNOWN_BUFFERS, collect_rollouts
from sb3_trpo.trpo import TRPO

try:
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
    from sb3_contrib.common.maskable.distributions import (
        MaskableBernoulliDistribution,
        MaskableCategoricalDistribution,
        MaskableMultiCategoricalDistribution,
    )
    from sb3_contrib.common.maskable.policies import (
        MaskableActorCriticCnnPolicy,
        MaskableActorCriticPolicy,
        MaskableMultiInputActorCriticPolicy,
    )
    from sb3_contrib.common.maskable.utils import EXPECTED_METHOD_NAME, is_masking_supported
except ImportError as error:
    raise ImportError(f"MaskableTRPO needs sb3-contrib: pip install 'sb3_trpo[contrib]' ({error})") from error

SelfMaskable = TypeVar("SelfMaskable", bound="Masking")

KNOWN_BUFFERS.update((MaskableRolloutBuffer, MaskableDictRolloutBuffer))
KNOWN_POLICIES.append(MaskableActorCriticPolicy)
MASKED_KINDS.update(
    {
        MaskableCategoricalDistribution: CategoricalDistribution,
        MaskableMultiCategoricalDistribution: MultiCategoricalDistribution,
        MaskableBernoulliDistribution: MultiCategoricalDistribution,
    }
)


class MaskableMlpPolicy(MaskableActorCriticPolicy, CountsFromZero):
    """sb3-contrib's ``MaskableActorCriticPolicy``, saved with all of its arguments (see there for them)."""

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"share_features_extractor": self.share_features_extractor}


class MaskableCnnPolicy(SeparateExtractors, MaskableMlpPolicy, MaskableActorCriticCnnPolicy):
    """sb3-contrib's ``MaskableActorCriticCnnPolicy``; ``share_features_extractor`` is ``False`` by default."""


class MaskableMultiInputPolicy(SeparateExtractors, MaskableMlpPolicy, MaskableMultiInputActorCriticPolicy):
    """sb3-contrib's ``MaskableMultiInputActorCriticPolicy``; ``share_features_extractor`` is ``False`` by default."""


def mask_sizes(action_space: spaces.Space) -> list[int]:
    """Return how many choices each of an action's variables has: those of a binary one are no and yes, in this order."""
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    if isinstance(action_space, spaces.MultiDiscrete):
        return [int(n) for n in action_space.nvec]
    assert isinstance(action_space, spaces.MultiBinary) and isinstance(action_space.n, int)
    return [2] * action_space.n


def _as_array(mask: Any) -> np.ndarray | None:
    """Return a mask as an array, ``None`` if its parts make none."""
    try:
        return np.asarray(mask)
    except ValueError:
        return None


def _all_in_one(masks: list[Any], sizes: list[int]) -> np.ndarray | None:
    """Return masks of the right sizes, each of which leaves something, as booleans; ``None`` if there is anything to say."""
    arrays = [_as_array(mask) for mask in masks]
    if len({None if array is None else array.shape for array in arrays}) != 1 or arrays[0] is None:
        return None
    rows = np.asarray(arrays).astype(bool).reshape(len(masks), -1)
    if rows.shape[1] != sum(sizes):
        return None
    possible = rows if len(sizes) == 1 else np.logical_or.reduceat(rows, np.cumsum([0, *sizes[:-1]]), axis=1)
    leaves_something = possible.any(axis=1).all() if len(sizes) == 1 else possible.all()
    return rows if leaves_something else None


def check_masks(masks: list[Any], action_space: spaces.Space, *, step: int | None = None) -> np.ndarray:
    """
    Return what environments say is possible as booleans, shape (n_envs, n_masks).

    :param masks: what ``action_masks()`` of each environment returned
    :param action_space: that of the environment
    :param step: of the rollout, for the error; ``None`` outside of one
    :raises ValueError: naming environment and step, if a mask is of another size or leaves no action
    """
    sizes = mask_sizes(action_space)
    quick = _all_in_one(masks, sizes)
    if quick is not None:
        return quick
    rows = []
    at_step = "" if step is None else f" at step {step} of the rollout"
    for index, mask in enumerate(masks):
        array = _as_array(mask)
        if array is None:
            raise ValueError(
                f"action_masks() of environment {index} must return {sum(sizes)} booleans for {action_space}, got what "
                f"makes no array, {mask}{at_step}"
            )
        row = array.astype(bool).reshape(-1)
        if len(row) != sum(sizes):
            raise ValueError(
                f"action_masks() of environment {index} must return {sum(sizes)} booleans for {action_space}, got {len(row)}"
                f"{at_step}"
            )
        for variable, part in enumerate(np.split(row, np.cumsum(sizes)[:-1])):
            if not part.any():
                of_variable = f" of variable {variable}" if len(sizes) > 1 else ""
                raise ValueError(
                    f"action_masks() of environment {index} must leave at least one action{of_variable}, got none{at_step}. "
                    "An episode must end before a state in which nothing is possible"
                )
        rows.append(row)
    return np.stack(rows)


class CheckedMasks(VecEnvWrapper):
    """
    An environment whose masks are looked at before anything acts by them.

    :param venv: says what is possible
    """

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        self.n_steps = 0

    def reset(self) -> VecEnvObs:
        """Reset."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for a step, and count it."""
        self.n_steps += 1
        return self.venv.step_wait()

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of each environment (see SB3's ``VecEnv``); masks are checked."""
        returned = self.venv.env_method(method_name, *args, indices=indices, **kwargs)
        if method_name != EXPECTED_METHOD_NAME:
            return returned
        return list(check_masks(returned, self.action_space, step=self.n_steps + 1))


def masks_into(rollout_buffer: Any, env: VecEnv, told: dict[str, Any]) -> Callable[[], np.ndarray]:
    """
    Return what asks an environment for its masks, checks them and puts them where the next step goes.

    :param rollout_buffer: has ``action_masks``
    :param env: says what is possible
    :param told: what a callback finds in its ``locals`` beside what the loop has there: ``action_masks`` is put in it
    :return: a function that returns booleans, shape (n_envs, n_masks)
    """

    def ask() -> np.ndarray:
        given = env.env_method(EXPECTED_METHOD_NAME)
        masks = told["action_masks"] = check_masks(given, env.action_space, step=rollout_buffer.pos + 1)
        rollout_buffer.action_masks[rollout_buffer.pos] = masks
        return masks

    return ask


def without_masks(distribution: Any) -> Distribution:
    """
    Return a masked distribution of sb3-contrib as one of SB3's, with the same graph: what is impossible has probability zero.

    :param distribution: the policy's; one of the user's own is returned as it is
    """
    kind = known_kind(distribution, (MaskableMultiCategoricalDistribution, MaskableCategoricalDistribution))
    if kind is MaskableMultiCategoricalDistribution:
        categoricals = MultiCategoricalDistribution(distribution.action_dims)
        categoricals.distribution = [th.distributions.Categorical(logits=one.logits) for one in distribution.distributions]
        return categoricals
    if kind is MaskableCategoricalDistribution:
        categorical = CategoricalDistribution(distribution.action_dim)
        categorical.distribution = th.distributions.Categorical(logits=distribution.distribution.logits)
        return categorical
    return distribution


class Masking(TRPO):
    """What ``learn`` and ``predict`` of every TRPO with masks have more than those of :class:`sb3_trpo.TRPO`."""

    supported_action_spaces = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

    _use_masking = True

    def learn(  # type: ignore[override]
        self: SelfMaskable,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MaskableTRPO",
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> SelfMaskable:
        """
        Train for at least a number of environment steps.

        :param total_timesteps: number of environment steps to train for, at least
        :param callback: called at every step, as SB3's ``BaseAlgorithm.learn`` does
        :param log_interval: number of rollouts between two rows of the log
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: whether to count steps from zero, and begin with a reset
        :param use_masking: whether to ask the environment which actions are possible
        :param progress_bar: whether to show one
        :return: the model
        :raises ValueError: if the environment does not say
        """
        self._use_masking = use_masking
        try:
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        finally:
            self._use_masking = True

    def collect_rollouts(
        self, env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int, use_masking: bool = True
    ) -> bool:
        """
        Collect experience with the current policy, as sb3-contrib's ``MaskablePPO`` does.

        :param env: the training environment
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: number of steps to collect per environment
        :param use_masking: whether to ask the environment which actions are possible; not where ``learn`` was told not to
        """
        of_learn = self._use_masking
        self._use_masking = of_learn and use_masking
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            self._use_masking = of_learn

    def _says_what_is_possible(self, *, begins: bool) -> bool:
        """Whether the environment has masks; it may have them once it has been reset, which it is if a run begins."""
        assert self.env is not None
        if not is_masking_supported(self.env) and begins:
            self.env.reset()
            self._last_obs = None  # of before
        return is_masking_supported(self.env)

    def _check_before_learning(self, *, begins: bool) -> None:
        super()._check_before_learning(begins=begins)
        if self._use_masking and not self._says_what_is_possible(begins=begins):
            env: Any = self.env
            raise ValueError(
                f"env must have a method {EXPECTED_METHOD_NAME}() that says which actions are possible, got "
                f"{env.unwrapped} which does not support action masking: wrap it in sb3_contrib's ActionMasker, or call "
                "learn with use_masking=False"
            )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Return the policy's actions, and the state after them; a policy without one hands back what it was given.

        :param observation: one observation or a row for each environment
        :param state: what this returned for the step before
        :param episode_start: where an episode starts, and the state of a policy that has one
        :param deterministic: whether to take the most probable action
        :param action_masks: which actions are possible, all of them if not given; a row for each observation
        :raises ValueError: if a row leaves no action, or is of another size
        """
        if action_masks is not None:
            n_masks, n_rows = sum(mask_sizes(self.action_space)), self._n_observations(observation)
            rows = _as_array(action_masks)
            is_turned = rows is not None and rows.ndim > 1 and n_rows > 1 and len(rows) != n_rows
            if rows is None or rows.size != n_masks * n_rows or is_turned:
                raise ValueError(
                    f"action_masks must hold {n_masks} booleans for each observation, of {n_rows}, got "
                    f"{action_masks if rows is None else f'shape {rows.shape}'}"
                )
            action_masks = check_masks(list(rows.reshape(-1, n_masks)), self.action_space)
        policy: Any = self.policy
        return policy.predict(observation, state, episode_start, deterministic, action_masks=action_masks)

    def _n_observations(self, observation: Any) -> int:
        """Return how many observations these are."""
        is_dict = isinstance(observation, dict)
        arrays = {key: np.asarray(part) for key, part in observation.items()} if is_dict else np.asarray(observation)
        return n_observations(arrays) if self.policy.is_vectorized_observation(arrays) else 1

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_use_masking"]


class MaskableTRPO(Masking):
    """
    TRPO that never takes, and never learns from, actions that the environment says are impossible.

    It takes the arguments of :class:`sb3_trpo.TRPO`, for Discrete, MultiDiscrete and MultiBinary actions. The environment has
    a method ``action_masks()`` that returns booleans, one for each action (sb3-contrib's ``ActionMasker`` adds one): ``n`` for
    Discrete, the sum of ``nvec`` for MultiDiscrete, and for MultiBinary two for each variable, that for 0 first.

    Surrogate, KL, entropy and Fisher matrix are those of the possible actions alone. ``target_kl`` limits the KL between the
    masked policies.

    :raises ImportError: without sb3-contrib
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MaskableMlpPolicy,
        "CnnPolicy": MaskableCnnPolicy,
        "MultiInputPolicy": MaskableMultiInputPolicy,
    }
    saved_by: ClassVar[str] = "sb3_trpo.MaskableTRPO"
    kind: ClassVar[str] = "MaskableTRPO"
    policy_base: ClassVar[type[BasePolicy]] = MaskableActorCriticPolicy

    def _build(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self._made_policy()  # no gSDE, which these policies know nothing of
        if self.rollout_buffer_class is None:
            of_dicts = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = MaskableDictRolloutBuffer if of_dicts else MaskableRolloutBuffer
        buffer: Any = self.rollout_buffer_class
        if not issubclass(buffer, MaskableRolloutBuffer | MaskableDictRolloutBuffer):
            raise TypeError(
                f"rollout_buffer_class must derive from MaskableRolloutBuffer or MaskableDictRolloutBuffer, got {buffer!r}"
            )
        self.rollout_buffer = self._made_buffer()

    def _lean_collection(self, env: VecEnv, rollout_buffer: RolloutBuffer) -> Callable[..., bool] | None:
        told = {"use_masking": self._use_masking, "action_masks": None}
        masks_now = masks_into(rollout_buffer, env, told) if self._use_masking else None
        actor = lean_actor(self, rollout_buffer, env.num_envs, masks_now)
        if actor is None:
            return None
        return lambda env, callback, *rest: collect_rollouts(self, actor, env, AsGiven(callback, told), *rest)

    def _plain_collection(self, env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        own = self._drawing_own_numbers()  # the loop asks its model for nothing that we have not
        watched: Any = AsGiven(callback, {"env": env})
        return MaskablePPO.collect_rollouts(
            own, CheckedMasks(env), watched, rollout_buffer, n_rollout_steps, self._use_masking
        )

    def _distribution(self, batch: Batch) -> Distribution:
        policy: Any = self.policy
        return without_masks(policy.get_distribution(batch.observations, action_masks=batch.action_masks))
