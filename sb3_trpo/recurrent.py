"""
TRPO for policies with a memory: ``RecurrentTRPO``.

Surrogate and KL are those of whole sequences: each is run from its first step, so that they are the policy's own. What stays
approximate is the state at the beginning of a rollout, in the middle of an episode: earlier parameters made it, and it is held
fixed.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.distributions import selected
from sb3_trpo.fast.lstm_actor import QuickModel
from sb3_trpo.fast.lstm_fisher import lstm_fisher
from sb3_trpo.fast.network import is_as
from sb3_trpo.guards.environments import spends_steps_on_resets
from sb3_trpo.guards.passed_on import PassedOn
from sb3_trpo.objective import Batch
from sb3_trpo.policies import CountsFromZero, SeparateExtractors, rows_of
from sb3_trpo.rollout import check_full, step_weights
from sb3_trpo.trpo import TRPO
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters

try:
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.policies import (
        RecurrentActorCriticCnnPolicy,
        RecurrentActorCriticPolicy,
        RecurrentMultiInputActorCriticPolicy,
    )
    from sb3_contrib.common.recurrent.type_aliases import RNNStates
except ImportError as error:
    raise ImportError(f"RecurrentTRPO needs sb3-contrib: pip install 'sb3_trpo[contrib]' ({error})") from error

SelfRecurrent = TypeVar("SelfRecurrent", bound="RecurrentTRPO")

# Kinds of policies that compute as their class says, where none of its methods is overridden; a variant puts its own in front
KNOWN_LSTM_POLICIES: list[type[BasePolicy]] = [RecurrentActorCriticPolicy]
# A piece is as long as its longest sequence; one shorter than this share of it begins a new piece
LEAST_SHARE = 0.6
# Numbers that a graph of LSTMs may hold
GRAPH_NUMBERS = 2**25


class MlpLstmPolicy(RecurrentActorCriticPolicy, CountsFromZero):
    """sb3-contrib's ``RecurrentActorCriticPolicy``, saved with all of its arguments (see there for them)."""

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Return the extractor; torch's LSTM takes no NumPy number for its size."""
        extractor = super().make_features_extractor()
        if isinstance(getattr(extractor, "_features_dim", None), np.integer):
            extractor._features_dim = int(extractor._features_dim)
        return extractor

    def _predict(  # type: ignore[override]
        self,
        observation: Any,
        lstm_states: tuple[th.Tensor, th.Tensor],
        episode_starts: th.Tensor,
        deterministic: bool = False,
    ) -> tuple[th.Tensor, tuple[th.Tensor, ...]]:
        # Single precision is what sb3-contrib's predict makes of any state, and zero times NaN is no beginning
        begins, dtype = episode_starts.bool()[None, :, None], next(self.lstm_actor.parameters()).dtype
        hidden, cell = (part.masked_fill(begins & ~part.isfinite(), 0.0).to(dtype) for part in lstm_states)
        return super()._predict(observation, (hidden, cell), episode_starts, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "share_features_extractor": self.share_features_extractor,
            "lstm_hidden_size": self.lstm_actor.hidden_size,
            "n_lstm_layers": self.lstm_actor.num_layers,
            "shared_lstm": self.shared_lstm,
            "enable_critic_lstm": self.enable_critic_lstm,
            "lstm_kwargs": self.lstm_kwargs,
        }


class CnnLstmPolicy(SeparateExtractors, MlpLstmPolicy, RecurrentActorCriticCnnPolicy):
    """sb3-contrib's ``RecurrentActorCriticCnnPolicy``; extractors are separate unless the LSTM is shared."""


class MultiInputLstmPolicy(SeparateExtractors, MlpLstmPolicy, RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's ``RecurrentMultiInputActorCriticPolicy``; extractors are separate unless the LSTM is shared."""


class Rows:
    """
    Rows of a tensor, copied when they are asked for: the pieces of a rollout share its memory. ``[:]`` is all of them.

    :param values: the tensor
    :param rows: which of its rows these are, in their order
    """

    def __init__(self, values: th.Tensor, rows: th.Tensor):
        self.values = values
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> th.Tensor:
        return self.values[self.rows][rows] if isinstance(rows, tuple) else self.values[self.rows[rows]]


def only(observations: Any, rows: th.Tensor) -> Any:
    """Return some rows of a tensor or of :class:`Rows`, or of each in a dict, without a copy."""
    if isinstance(observations, dict):
        return {key: only(part, rows) for key, part in observations.items()}
    return Rows(observations.values, observations.rows[rows]) if isinstance(observations, Rows) else Rows(observations, rows)


class Padded(NamedTuple):
    """
    Sequences of one length, one after the other, as sb3-contrib's policies take them: the last step of each is repeated.

    :param observations: of n_sequences * length rows
    :param episode_starts: zeros, shape (n_sequences * length,): a sequence begins with the state that goes with it
    :param rows: where among these rows the transitions are, shape (n,)
    :param action_masks: which actions were possible, if the environment says so
    """

    observations: Any
    episode_starts: th.Tensor
    rows: th.Tensor
    action_masks: th.Tensor | None


@dataclass(frozen=True, eq=False)
class SequenceBatch(Batch):
    """
    Transitions in sequences, one after the other and each in the order of time. The unit of everything is the sequence.

    :param observations: a tensor or :class:`Rows` of one, or a dict of such, like all of these up to ``action_masks``
    :param actions: shape (n, *action_shape)
    :param old_log_prob: shape (n,)
    :param advantages: shape (n,)
    :param returns: shape (n,)
    :param weights: shape (n,)
    :param action_masks: shape (n, n_masks)
    :param lengths: number of steps of each sequence, shape (n_sequences,)
    :param states: of the LSTMs before the first step of each, of shape (n_layers, n_sequences, hidden_size)
    """

    lengths: th.Tensor = field(kw_only=True)
    states: RNNStates = field(kw_only=True)

    def select(self, rows: slice | th.Tensor) -> "SequenceBatch":
        """Return some of the sequences; their weights no longer sum to one."""
        return self._beginnings(th.arange(len(self.lengths), device=self.lengths.device)[rows], self.lengths)

    def _beginnings(self, chosen: th.Tensor, lengths: th.Tensor) -> "SequenceBatch":
        """Return so many steps of each sequence, of those that are chosen."""
        starts = self.lengths.cumsum(0) - self.lengths
        parts = [th.arange(int(starts[i]), int(starts[i] + lengths[i]), device=starts.device) for i in chosen.tolist()]
        states = RNNStates(*(tuple(part[:, chosen].contiguous() for part in pair) for pair in self.states))
        return self.of(th.cat(parts), lengths[chosen], states)

    def of(self, rows: th.Tensor, lengths: th.Tensor, states: RNNStates) -> "SequenceBatch":
        """
        Return sequences of some of the transitions.

        :param rows: numbers of the transitions, those of each sequence in the order of time, shape (n,)
        :param lengths: number of steps of each sequence
        :param states: before the first step of each
        """
        names = ("actions", "old_log_prob", "advantages", "returns", "weights", "action_masks")
        fields = {name: rows_of(getattr(self, name), rows) for name in names}
        return SequenceBatch(only(self.observations, rows), **fields, lengths=lengths, states=states)

    def few(self, n: int) -> "SequenceBatch":
        """Return about n transitions for a look at them: the beginnings of the first sequences."""
        lengths = self.lengths.clamp(max=n)
        n_sequences = int((lengths.cumsum(0) < n).sum()) + 1
        return self._beginnings(th.arange(len(lengths), device=lengths.device)[:n_sequences], lengths)

    def thinned(self, factor: int, permutation: Callable[[int], np.ndarray] = np.random.permutation) -> "SequenceBatch":
        """Return one in ``factor`` of the sequences, drawn at random, with the same sum of weights."""
        if factor == 1:
            return self
        n = len(self.lengths)
        thin = self.select(th.as_tensor(permutation(n)[: -(-n // factor)], device=self.lengths.device))
        return thin._replace(weights=thin.weights * (self.weights.sum() / thin.weights.sum()))

    def split(self, size: int | None) -> list["SequenceBatch"]:
        """Cut into pieces of sequences of about one length, of at most ``size`` transitions or one sequence."""
        order = self.lengths.argsort(descending=True, stable=True).tolist()
        lengths = self.lengths.tolist()
        pieces: list[list[int]] = []
        for i in order:
            longest = lengths[pieces[-1][0]] if pieces else 0
            is_full = bool(pieces) and size is not None and (len(pieces[-1]) + 1) * longest > size
            if not pieces or is_full or lengths[i] < LEAST_SHARE * longest:
                pieces.append([])
            pieces[-1].append(i)
        if len(pieces) == 1:
            return [self]
        return [self.select(th.as_tensor(sorted(piece), device=self.lengths.device)) for piece in pieces]

    def padded(self) -> Padded:
        """Return the sequences in the form in which sb3-contrib's policies take them."""
        length = int(self.lengths.max())
        starts = self.lengths.cumsum(0) - self.lengths
        step = th.arange(length, device=starts.device)
        index = (starts[:, None] + th.minimum(step, self.lengths[:, None] - 1)).flatten()
        rows = (step < self.lengths[:, None]).flatten().nonzero().squeeze(1)
        zeros = th.zeros(len(index), dtype=th.float32, device=starts.device)
        return Padded(rows_of(self.observations, index), zeros, rows, rows_of(self.action_masks, index))


def torchs_own_lstm(device: th.device) -> AbstractContextManager[None]:
    """
    Have LSTMs run without cuDNN inside: its own has no backward pass in eval mode, and no second one in any.

    :param device: of the LSTMs; on the CPU there is nothing to do
    """
    return th.backends.cudnn.flags(enabled=False) if device.type == "cuda" else nullcontext()


class ForgetsNonFinite(PassedOn):
    """Lets nothing that is not finite stay in the memory of an episode that has ended: zero times NaN is NaN, for ever."""

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Put zeros there before the user's callback sees it."""
        ended = np.flatnonzero(locals_["dones"])
        if len(ended):
            for part in chain(*locals_["lstm_states"]):
                of_ended = part[:, ended]
                part[:, ended] = th.where(of_ended.isfinite(), of_ended, th.zeros_like(of_ended))
        super().update_locals(locals_)


class RecurrentTRPO(TRPO):
    """
    TRPO for policies with an LSTM, sb3-contrib's.

    It takes the arguments of :class:`sb3_trpo.TRPO`, and ``MlpLstmPolicy``, ``CnnLstmPolicy`` or ``MultiInputLstmPolicy`` with
    sb3-contrib's ``policy_kwargs``: ``lstm_hidden_size``, ``n_lstm_layers``, ``shared_lstm``, ``enable_critic_lstm`` and
    ``lstm_kwargs``. ``predict`` takes and returns the state of the LSTM, as that of ``RecurrentPPO``.

    :raises ImportError: without sb3-contrib
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MlpLstmPolicy,
        "CnnLstmPolicy": CnnLstmPolicy,
        "MultiInputLstmPolicy": MultiInputLstmPolicy,
    }
    saved_by: ClassVar[str] = "sb3_trpo.RecurrentTRPO"
    kind: ClassVar[str] = "RecurrentTRPO"
    policy_base: ClassVar[type[BasePolicy]] = RecurrentActorCriticPolicy
    # Of vectors and images, and of dicts
    buffers: ClassVar[tuple[type, type]] = (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer)

    _last_lstm_states: Any = None

    def _build(self) -> None:
        self._check_lstm_kwargs()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self._made_policy(use_sde=self.use_sde)
        if self.policy.squash_output and not np.all([-self.action_space.low == 1, self.action_space.high == 1]):  # type: ignore
            raise ValueError(
                f"squash_output needs actions from -1 to 1, got {self.action_space}: sb3-contrib collects with them as they "
                "are, gymnasium.wrappers.RescaleAction makes them so"
            )
        of_dicts = isinstance(self.observation_space, spaces.Dict)
        buffer: Any = self.rollout_buffer_class or self.buffers[of_dicts]
        if not issubclass(buffer, self.buffers):
            names = " or ".join(kind.__name__ for kind in self.buffers)
            raise TypeError(f"rollout_buffer_class must derive from {names}, got {buffer!r}")
        known = next(kind for kind in self.buffers if issubclass(buffer, kind))
        if any(getattr(buffer, name) is not getattr(known, name) for name in ("get", "_get_samples")):
            raise TypeError(
                f"rollout_buffer_class must leave get and _get_samples as they are in {known.__name__}, got {buffer!r}: an "
                "update reads whole sequences from the arrays of the buffer. A callback may change these as a rollout ends; "
                "_full_batch and _value_epochs say what an update learns from"
            )
        self.rollout_buffer_class = buffer
        lstm: Any = self.policy.lstm_actor
        self.rollout_buffer = self._made_buffer((self.n_steps, lstm.num_layers, self.n_envs, lstm.hidden_size))
        self._forget()

    def _check_lstm_kwargs(self) -> None:
        """Refuse LSTMs of another layout than sb3-contrib's policies run them in: some would run, over the wrong axis."""
        policy: Any = self.policy_class
        lstm_kwargs = self.policy_kwargs.get("lstm_kwargs") or {}
        if not isinstance(lstm_kwargs, Mapping):
            raise TypeError(f"policy_kwargs['lstm_kwargs'] must be a dict of arguments of torch.nn.LSTM, got {lstm_kwargs!r}")
        given = {name: value for name, value in lstm_kwargs.items() if value}
        refused = {name: given[name] for name in ("batch_first", "bidirectional", "proj_size") if name in given}
        if refused and policy._process_sequence is RecurrentActorCriticPolicy._process_sequence:
            raise ValueError(
                f"policy_kwargs['lstm_kwargs'] must leave out batch_first, bidirectional and proj_size, got {refused}: "
                "sb3-contrib's policies run an LSTM over (length, n_envs, n_inputs), with states of lstm_hidden_size"
            )

    def _forget(self) -> None:
        """Put zeros in the memory of every environment."""
        lstm: Any = self.policy.lstm_actor
        shape = (lstm.num_layers, self.n_envs, lstm.hidden_size)
        pi, vf = (tuple(self._as_state(np.zeros(shape)) for _ in range(2)) for _ in range(2))
        self._last_lstm_states = RNNStates(pi, vf)

    def learn(
        self: SelfRecurrent,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "RecurrentTRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRecurrent:
        """Train for at least a number of environment steps (see SB3's ``BaseAlgorithm.learn`` for the parameters)."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _check_before_learning(self, *, begins: bool) -> None:
        if spends_steps_on_resets(self.env) is not None:
            raise ValueError(
                f"env must not spend a step on each reset where the policy has a memory, got {self.env!r}: make it with "
                "autoreset_mode=AutoresetMode.SAME_STEP of gymnasium.vector"
            )
        super()._check_before_learning(begins=begins)

    def _setup_learn(
        self, total_timesteps: int, callback: Any = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        begins = reset_num_timesteps or self._last_obs is None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        if begins:
            self._forget()
        return result

    def _finish_load(self, saved: Collection[str], given: Collection[str]) -> None:
        if self._last_obs is not None:
            # The memory is not in the file: the observation that is goes with none
            self._last_episode_starts = np.ones(self.n_envs, dtype=bool)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_last_lstm_states"]

    def _lean_collection(self, env: VecEnv, rollout_buffer: RolloutBuffer) -> Callable[..., bool] | None:
        # sb3-contrib's loop too: what takes the time in it is the policy
        quick = QuickModel(self, env.num_envs, self._acts_as_known)

        def collect(env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
            quick.knows(callback, env)
            return self._collect_as(quick, env, callback, rollout_buffer, n_rollout_steps)

        return collect if quick.is_covered() else None

    def _plain_collection(self, env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        return self._collect_as(self._drawing_own_numbers(), env, callback, rollout_buffer, n_rollout_steps)

    def _collect_as(self, model: Any, env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        """Collect by sb3-contrib's loop, with a model that is this one or stands in its place."""
        forgets: Any = ForgetsNonFinite(callback)
        return RecurrentPPO.collect_rollouts(model, env, forgets, rollout_buffer, n_rollout_steps)

    def _acts_as_known(self, *methods: str) -> bool:
        """Whether methods of the policy are those of the class that is known here, and what it makes distributions by."""
        made_by = ("get_distribution", "_get_action_dist_from_latent", "_process_sequence", "extract_features")
        known = next((kind for kind in KNOWN_LSTM_POLICIES if isinstance(self.policy, kind)), None)
        return known is not None and is_as(self.policy, known, *made_by, *methods)

    def _by_environment(self, array: np.ndarray, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return an array of the buffer environment by environment, whether ``get`` has turned it round yet or not."""
        if array.shape[:2] == (self.n_steps, self.n_envs):
            array = self.rollout_buffer.swap_and_flatten(array)
        return array.reshape(-1, *shape)

    def _stored_states(self, kind: str, rows: np.ndarray) -> list[np.ndarray]:
        """Return hidden and cell states before these steps, shape (n, n_layers, hidden_size)."""
        stored = [getattr(self.rollout_buffer, f"{name}_states_{kind}") for name in ("hidden", "cell")]
        env, step = np.divmod(rows, self.n_steps)
        # (n_steps, n_layers, n_envs, hidden_size) until `get` is called. All of them would be copied for each minibatch
        return [states[step, :, env] if states.ndim == 4 else states[rows] for states in stored]

    def _starts(self) -> np.ndarray:
        """Return where an episode starts, environment by environment, shape (n,)."""
        return self._by_environment(self.rollout_buffer.episode_starts) > 0.5

    def _states_at(self, rows: np.ndarray) -> RNNStates:
        """Return the states before these steps; what is stored where an episode starts is of the one before."""
        goes_on = (~self._starts()[rows]).astype(np.float32)[None, :, None]
        pairs = (
            tuple(self._as_state(states.swapaxes(0, 1) * goes_on) for states in self._stored_states(kind, rows))
            for kind in ("pi", "vf")
        )
        return RNNStates(*pairs)

    def _as_state(self, array: np.ndarray) -> th.Tensor:
        """Return a state in the precision in which the policy has them; the buffer's is single."""
        lstm: Any = self.policy.lstm_actor
        return self._to_torch(array).to(next(lstm.parameters()).dtype)

    def _observations(self, array: np.ndarray, shape: tuple[int, ...]) -> "th.Tensor | Rows":
        """Return observations of the buffer environment by environment, in the memory where they are."""
        values = self._to_torch(array.reshape(-1, *shape))
        if array.shape[:2] != (self.n_steps, self.n_envs):
            return values
        in_time = np.arange(len(values)).reshape(self.n_steps, self.n_envs)
        return Rows(values, self._to_torch(self._by_environment(in_time)))

    def _to_torch(self, array: np.ndarray) -> th.Tensor:
        return th.as_tensor(np.ascontiguousarray(array), device=self.device)

    def _full_batch(self) -> SequenceBatch:
        buffer: Any = self.rollout_buffer
        check_full(buffer)
        stored, shapes = buffer.observations, buffer.obs_shape
        observations: Any = (
            {key: self._observations(stored[key], shapes[key]) for key in stored}
            if isinstance(stored, dict)
            else self._observations(stored, shapes)
        )
        actions = self._to_torch(self._by_environment(buffer.actions, (buffer.action_dim,)).astype(np.float32))
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        old_log_prob, advantages, returns = (
            self._to_torch(self._by_environment(np.asarray(array)).astype(np.float32))
            for array in (buffer.log_probs, buffer.advantages, buffer.returns)
        )
        weights = step_weights(buffer, None, advantages, self._peers.total)  # no step is wasted: see _check_before_learning
        advantages = self._normalized(advantages, weights)
        begins = self._starts().copy()
        begins[:: self.n_steps] = True
        first = np.flatnonzero(begins)
        lengths = np.diff([*first, len(begins)])
        masks = getattr(buffer, "action_masks", None)
        return SequenceBatch(
            observations,
            actions,
            old_log_prob,
            advantages,
            returns,
            weights,
            None if masks is None else self._to_torch(self._by_environment(masks, masks.shape[-1:]).astype(bool)),
            lengths=self._to_torch(lengths),
            states=self._states_at(first),
        )

    def _chosen_states(self, states: Any) -> SequenceBatch:
        # At the beginning of an episode, unless a state comes with them
        observations, state = states if isinstance(states, tuple) else (states, None)
        batch = super()._chosen_states(observations)
        lstm: Any = self.policy.lstm_actor
        n = len(batch.weights)
        shape = (lstm.num_layers, n, lstm.hidden_size)
        pair = tuple(self._as_state(np.asarray(part)) for part in state or [np.zeros(shape)] * 2)
        for part in pair:
            if part.shape != shape:
                raise ValueError(f"states must come with hidden and cell state of shape {shape}, got {tuple(part.shape)}")
        fields = vars(batch) | {"lengths": th.ones(n, dtype=th.long, device=self.device), "states": RNNStates(pair, pair)}
        return SequenceBatch(**fields)

    def _distribution(self, batch: Batch) -> Distribution:
        assert isinstance(batch, SequenceBatch)
        padded = batch.padded()
        with torchs_own_lstm(self.device):
            distribution = self._distribution_of(padded, batch.states.pi)
        n_rows = len(padded.episode_starts)
        return distribution if len(padded.rows) == n_rows else selected(distribution, padded.rows, n_rows)

    def _distribution_of(self, padded: Padded, states: tuple[th.Tensor, ...]) -> Distribution:
        """Return the action distribution of the policy for every row of padded sequences, one of SB3's."""
        policy: Any = self.policy
        distribution, _ = policy.get_distribution(padded.observations, states, padded.episode_starts)
        return distribution

    def _values(self, batch: Any) -> th.Tensor:
        padded = batch.padded()
        policy: Any = self.policy
        with torchs_own_lstm(self.device):
            values = policy.predict_values(padded.observations, batch.states.vf, padded.episode_starts)
        return values.flatten()[padded.rows]

    def _fast_fisher(self, chunks: Sequence[Batch], parameters: Parameters) -> MatrixVectorProduct | None:
        is_known = self._acts_as_known() and self._adds_nothing("_distribution", chunks)
        return lstm_fisher(self.policy, chunks, parameters, self._distribution) if is_known else None

    def _value_epochs(self, batch: Batch) -> Iterator[Iterable[Any]]:
        assert isinstance(batch, SequenceBatch)
        n = len(batch.returns)
        for _ in range(self.n_critic_updates):
            # sb3-contrib's pieces: consecutive steps from a random one on, the states before them those of the rollout
            order = np.roll(np.arange(n), -int(self._random.permutation(n)[0]))
            yield (self._piece(batch, order[at : at + self.batch_size]) for at in range(0, n, self.batch_size))

    def _piece(self, batch: SequenceBatch, rows: np.ndarray) -> SequenceBatch:
        begins = self._starts()[rows] | (rows % self.n_steps == 0)
        begins[0] = True
        first = np.flatnonzero(begins)
        lengths = self._to_torch(np.diff([*first, len(rows)]))
        return batch.of(self._to_torch(rows), lengths, self._states_at(rows[first]))

    def _chunk_size(self) -> int:
        lstm: Any = self.policy.lstm_actor
        return min(super()._chunk_size(), max(128, GRAPH_NUMBERS // (16 * lstm.num_layers * lstm.hidden_size)))
