"""
Lean experience collection into SB3's rollout buffer.

The same experience as ``OnPolicyAlgorithm.collect_rollouts`` with less work at every step: only the action is computed while
the environment waits; values and time-limit bootstraps follow once, in blocks over the whole rollout.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import compress, repeat
from operator import contains
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.guards.environments import spends_steps_on_resets
from sb3_trpo.guards.overridden import is_as_written, known_kind
from sb3_trpo.guards.passed_on import PassedOn, is_of_users_own, runs_user_code, steps_through_user_code
from sb3_trpo.policies import rows_of

Observations = np.ndarray | dict[str, np.ndarray]
# Completes a sum over a part
Total = Callable[[th.Tensor], th.Tensor]


# Maps n observations to their values, shape (n,)
Critic = Callable[[Observations], np.ndarray]


class Acted(NamedTuple):
    """
    What an actor did at one step.

    :param actions: sampled actions, shape (n_envs, *action_shape)
    :param log_probs: their log-probabilities, shape (n_envs,), where they are known at once
    :param values: the values of the observations, shape (n_envs,), where they are known at once
    """

    actions: np.ndarray
    log_probs: np.ndarray | None
    values: np.ndarray | None


class Actor(Protocol):
    """Acts as the policy of the moment, step after step."""

    def __call__(self, observations: Observations) -> Acted:
        """Act on the observations of one step."""

    def go_on(self, observations: Observations) -> Acted:
        """Act on those of the next step, where nobody can have replaced anything in the policy since."""

    def reset_noise(self) -> None:
        """Draw the noise of gSDE anew."""

    def log_probs(self) -> np.ndarray:
        """Return the log-probabilities of all actions so far, each under the policy that took it, shape (n_steps, n_envs)."""

    def critic(self, observations: Observations) -> Critic:
        """Return what gives values, of the policy of now; some of the observations that it will be given are looked at."""


class WholeRollout(NamedTuple):
    """
    Everything in a buffer, in one order.

    :param observations: tensor of shape (n, *obs_shape), or a dict of such tensors
    :param actions: shape (n, action_dim)
    :param old_log_prob: shape (n,)
    :param advantages: shape (n,)
    :param returns: shape (n,)
    :param action_masks: which actions were possible, booleans of shape (n, n_masks), if the buffer knows
    """

    observations: Any
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    action_masks: th.Tensor | None


# Observations evaluated at a time, in numbers and in rows: what they come to stays in the cache
EVALUATION_BLOCK = 2**23
EVALUATION_ROWS = 2**9
# Environments up to which returns are summed up in Python
FEW_ENVS = 4


# Buffers whose arrays may be read and written directly; a variant adds its own
KNOWN_BUFFERS: set[type[RolloutBuffer]] = {RolloutBuffer, DictRolloutBuffer}


def is_sb3s_own(rollout_buffer: RolloutBuffer) -> bool:
    """Whether a buffer does as one of SB3's or sb3-contrib's: nothing of it is overridden."""
    kind = known_kind(rollout_buffer, KNOWN_BUFFERS)
    return kind is not None and is_as_written(kind, "add", "get", "_get_samples", "reset", "compute_returns_and_advantage")


def _environment_actions(model: OnPolicyAlgorithm, actions: np.ndarray) -> np.ndarray:
    """Return what the environment is given, as SB3 does."""
    space = model.action_space
    if not isinstance(space, spaces.Box):
        return actions
    if model.policy.squash_output:
        return model.policy.unscale_action(actions)
    return np.minimum(np.maximum(actions, space.low), space.high)  # np.clip takes three times as long


def _store_observations(rollout_buffer: RolloutBuffer, at: int, observations: Observations) -> None:
    """Put observations at a position of the buffer."""
    stored: Any = rollout_buffer.observations
    if isinstance(observations, dict):
        for key, target in stored.items():
            target[at] = observations[key].reshape(target.shape[1:])
    else:
        stored[at] = observations.reshape(stored.shape[1:])


def keeps_numbers(rollout_buffer: RolloutBuffer, observations: Any) -> bool:
    """Whether a buffer keeps observations as they are: one of integers rounds what a wrapper has made floats of."""
    stored: Any = rollout_buffer.observations
    if isinstance(observations, dict):
        return all(np.can_cast(observations[key].dtype, stored[key].dtype, "same_kind") for key in stored)
    return observations is None or np.can_cast(observations.dtype, stored.dtype, "same_kind")


def _note_episodes(
    model: OnPolicyAlgorithm, infos: Sequence[dict[str, Any]], dones: np.ndarray, ended: list[int], *, wants_all: bool
) -> None:
    """
    Add what infos say of whole episodes to the model's statistics, as SB3 does with every info.

    :param model: the algorithm
    :param infos: of all environments. A sequence that makes them when they are asked for is asked for those that ended
    :param dones: whether an episode ended, shape (n_envs,)
    :param ended: the numbers of those environments
    :param wants_all: whether the model's class looks at every info in a way of its own
    """
    told = ended
    if wants_all or "_update_info_buffer" in vars(model):
        model._update_info_buffer(list(infos), dones)
        return
    if isinstance(infos, (list, tuple)):
        # An environment may tell of an episode that ended inside of it
        inside = list(compress(range(len(infos)), map(contains, infos, repeat("episode"))))
        told = ended if inside == ended else sorted({*ended, *inside})
    if told:
        model._update_info_buffer([infos[index] for index in told], dones[told])


class _Cut(NamedTuple):
    """
    An episode that its time limit cut.

    :param step: of the rollout
    :param env: number of the environment
    :param observation: the last one, a copy, as a tensor of shape (1, *obs_shape), or a dict of such tensors
    """

    step: int
    env: int
    observation: Any


def _cut_episodes(model: OnPolicyAlgorithm, infos: Sequence[dict[str, Any]], ended: list[int], step: int) -> list[_Cut]:
    """List the episodes that their time limit cut, with copies: an environment may use its memory again."""
    told = [(index, infos[index]) for index in ended]
    return [
        # An info may have it in another layout than the space's: the policy reads it, as in SB3
        _Cut(step, index, model.policy.obs_to_tensor(copy.deepcopy(info["terminal_observation"]))[0])
        for index, info in told
        if info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None
    ]


def collect_rollouts(
    model: OnPolicyAlgorithm,
    actor: Actor,
    env: VecEnv,
    callback: Any,
    rollout_buffer: RolloutBuffer,
    n_rollout_steps: int,
) -> bool:
    """
    Fill a rollout buffer as ``OnPolicyAlgorithm.collect_rollouts`` does.

    Callbacks are called in the same order and find the same in their ``locals``, but for what is not known yet at a step:
    ``obs_tensor`` and ``terminal_value`` are ``None``, and ``values`` and ``log_probs`` may be. The buffer has NaN for these
    until the rollout ends; what a callback has put there stays. What callbacks may replace is read when it is used.

    :param model: the algorithm, whose policy, last observation and counters are read and moved on
    :param actor: maps the observations of one step to what the policy of the moment does
    :param env: the training environment
    :param callback: called at each step, and at the beginning and end of the rollout
    :param rollout_buffer: buffer to fill
    :param n_rollout_steps: number of steps to collect per environment
    :return: False if the callback ended the rollout before its time
    """
    model.policy.set_training_mode(False)
    rollout_buffer.reset()
    rollout_buffer.values.fill(np.nan)
    rollout_buffer.log_probs.fill(np.nan)
    n_steps, n_envs = 0, env.num_envs
    if model.use_sde:
        actor.reset_noise()
    cut: list[_Cut] = []
    # What a callback finds in its variables, as SB3's loop has it
    variables: dict[str, Any] = {"self": model, "env": env, "callback": callback, "rollout_buffer": rollout_buffer}
    variables |= {"n_rollout_steps": n_rollout_steps, "obs_tensor": None}

    callback.on_rollout_start()
    act = actor if runs_user_code(callback) or steps_through_user_code(env) else actor.go_on
    n_attributes, is_own = len(vars(rollout_buffer)), is_sb3s_own(rollout_buffer)
    wants_all = is_of_users_own(model, "_update_info_buffer")
    while n_steps < n_rollout_steps:
        if model.use_sde and model.sde_sample_freq > 0 and n_steps % model.sde_sample_freq == 0:
            actor.reset_noise()
        last_obs, episode_starts = model._last_obs, model._last_episode_starts
        assert last_obs is not None, "No previous observation was provided"
        at = rollout_buffer.pos
        if is_own:
            # Before the step: an environment may use the memory of its observations again
            _store_observations(rollout_buffer, at, last_obs)
        actions, log_probs, values = act(last_obs) if is_own else _everything(actor, last_obs, act(last_obs))
        clipped_actions = _environment_actions(model, actions)
        new_obs, rewards, dones, infos = env.step(clipped_actions)
        model.num_timesteps += n_envs

        variables["n_steps"] = n_steps
        variables["actions"], variables["clipped_actions"] = actions, clipped_actions
        variables["values"] = None if values is None else th.as_tensor(values)[:, None]
        variables["log_probs"] = None if log_probs is None else th.as_tensor(log_probs)
        variables["new_obs"], variables["rewards"], variables["dones"], variables["infos"] = new_obs, rewards, dones, infos
        callback.update_locals(variables)
        if not callback.on_step():
            _complete(model, actor, rollout_buffer, cut, n_steps)
            return False
        if len(vars(rollout_buffer)) != n_attributes:  # the callback has wrapped one of its methods
            # Once it is told of a step, it is told of all: its arrays do not have the observations of this one
            n_attributes, is_own = len(vars(rollout_buffer)), is_own and is_sb3s_own(rollout_buffer)
        ended = dones.nonzero()[0].tolist()
        _note_episodes(model, infos, dones, ended, wants_all=wants_all)

        now = _cut_episodes(model, infos, ended, n_steps) if ended else []
        if now:
            variables["terminal_obs"], variables["terminal_value"] = now[-1].observation, None
        if is_own:
            cut += now
            _store_rest(rollout_buffer, at, actions, rewards, episode_starts, values)
        else:
            _add(model, actor, rollout_buffer, last_obs, Acted(actions, log_probs, values), rewards, episode_starts, now)
        n_steps += 1
        variables["idx"], variables["done"] = n_envs - 1, dones[-1]
        model._last_obs = new_obs  # type: ignore[assignment]
        model._last_episode_starts = dones
    rollout_buffer.full = rollout_buffer.pos == rollout_buffer.buffer_size

    after = _complete(model, actor, rollout_buffer, cut, n_steps)(new_obs)  # type: ignore[arg-type]
    last_values = th.as_tensor(after, device=model.device)[:, None]
    if is_sb3s_own(rollout_buffer):
        compute_returns_and_advantage(rollout_buffer, after, dones)
    else:
        rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)

    callback.update_locals(variables | {"n_steps": n_steps, "values": last_values})
    callback.on_rollout_end()
    return True


def _store_rest(
    rollout_buffer: RolloutBuffer, at: int, actions: np.ndarray, rewards: np.ndarray, episode_starts: Any, values: Any
) -> None:
    """Put the rest of a step where its observations are."""
    rollout_buffer.actions[at] = actions.reshape(len(rewards), -1)
    rollout_buffer.rewards[at] = rewards
    rollout_buffer.episode_starts[at] = episode_starts
    if values is not None:
        rollout_buffer.values[at] = values
    rollout_buffer.pos += 1


def _everything(actor: Actor, observations: Observations, acted: Acted) -> Acted:
    """Return what an actor did with its log-probabilities and values, for a buffer that wants to be told at once."""
    log_probs = actor.log_probs()[-1] if acted.log_probs is None else acted.log_probs
    return Acted(acted.actions, log_probs, actor.critic(observations)(observations) if acted.values is None else acted.values)


def _add(
    model: OnPolicyAlgorithm,
    actor: Actor,
    rollout_buffer: RolloutBuffer,
    last_obs: Any,
    acted: Acted,
    rewards: np.ndarray,
    episode_starts: Any,
    cut: list[_Cut],
) -> None:
    """Tell a buffer of a step, as SB3 does."""
    if cut:
        _bootstrap(model, actor.critic(last_obs), rewards, cut)
    actions, log_probs, values = _everything(actor, last_obs, acted)
    shaped = actions.reshape(-1, 1) if isinstance(model.action_space, spaces.Discrete) else actions
    # Where masks are, those of this step have been put in place
    masks = getattr(rollout_buffer, "action_masks", None)
    more = {} if masks is None else {"action_masks": masks[rollout_buffer.pos].copy()}
    rollout_buffer.add(last_obs, shaped, rewards, episode_starts, th.as_tensor(values), th.as_tensor(log_probs), **more)


def _complete(model: OnPolicyAlgorithm, actor: Actor, rollout_buffer: RolloutBuffer, cut: list[_Cut], n_steps: int) -> Critic:
    """Put in place what was not computed while the environment waited, for the first steps of a rollout; return the critic."""
    critic = actor.critic(_stored(rollout_buffer, max(1, n_steps)))
    for array in (rollout_buffer.log_probs, rollout_buffer.values):
        unknown = np.isnan(array[:n_steps])
        if unknown.any():
            is_value = array is rollout_buffer.values
            found = _values(model, critic, rollout_buffer, n_steps) if is_value else actor.log_probs()[:n_steps]
            np.copyto(array[:n_steps], found, where=unknown)
    _bootstrap(model, critic, rollout_buffer.rewards, cut)
    return critic


def check_full(rollout_buffer: RolloutBuffer) -> None:
    """Refuse to learn from a buffer that is not full: a callback may have emptied it."""
    if not rollout_buffer.full:
        raise ValueError(
            f"rollout_buffer must be full to be learned from, got {rollout_buffer.pos} of {rollout_buffer.buffer_size} steps. "
            "Was it reset or replaced by a callback?"
        )


def whole_rollout(rollout_buffer: RolloutBuffer) -> WholeRollout:
    """
    Return everything in a full buffer, in any order; of SB3's own buffers views instead of copies, where the device allows.

    :param rollout_buffer: buffer that a rollout has filled
    :return: what ``rollout_buffer.get(None)`` yields, in another order
    :raises ValueError: if the buffer is not full
    """
    check_full(rollout_buffer)
    if not is_sb3s_own(rollout_buffer):
        data: Any = _joined(list(rollout_buffer.get(batch_size=None)))
        masks = getattr(data, "action_masks", None)
        fields = (data.observations, data.actions, data.old_log_prob, data.advantages, data.returns)
        return WholeRollout(*fields, None if masks is None else masks.bool())

    def flat(array: np.ndarray, shape: tuple[int, ...] = ()) -> th.Tensor:
        return rollout_buffer.to_torch(_in_one_order(rollout_buffer, array).reshape(-1, *shape), copy=False)

    stored: Any = rollout_buffer.observations
    shapes: Any = rollout_buffer.obs_shape
    observations: Any = (
        {key: flat(stored[key], shapes[key]) for key in stored} if isinstance(stored, dict) else flat(stored, shapes)
    )
    actions = rollout_buffer.actions.astype(np.float32, copy=False)
    # A callback may have put other floats in place
    log_probs, advantages, returns = (
        flat(np.asarray(getattr(rollout_buffer, name)).astype(np.float32, copy=False))
        for name in ("log_probs", "advantages", "returns")
    )
    masks = getattr(rollout_buffer, "action_masks", None)
    possible = None if masks is None else flat(masks.astype(bool), masks.shape[-1:])
    flat_actions = flat(actions, (rollout_buffer.action_dim,))
    return WholeRollout(observations, flat_actions, log_probs, advantages, returns, possible)


def _joined(parts: list[RolloutBufferSamples]) -> RolloutBufferSamples:
    """Join what a buffer of the user's own yields, which may be several batches."""

    def join(values: tuple[Any, ...]) -> Any:
        if isinstance(values[0], dict):
            return {key: th.cat([value[key] for value in values]) for key in values[0]}
        return th.cat(values)

    return parts[0] if len(parts) == 1 else type(parts[0])(*map(join, zip(*parts, strict=True)))


def _in_one_order(rollout_buffer: RolloutBuffer, array: np.ndarray) -> np.ndarray:
    """Return an array of the buffer in the order of the others: once ``get`` has been called it has turned them round."""
    as_collected = array.shape[:2] == (rollout_buffer.buffer_size, rollout_buffer.n_envs)
    turned = rollout_buffer.generator_ready and rollout_buffer.n_envs > 1
    return rollout_buffer.swap_and_flatten(array) if turned and as_collected else array


def check_wasted_steps(env: Any, rollout_buffer: RolloutBuffer) -> None:
    """
    Refuse an environment that spends a step on each reset with a buffer of which nobody knows in what order it yields them.

    :param env: the training environment
    :param rollout_buffer: where its steps go
    :raises ValueError: with the way out
    """
    if spends_steps_on_resets(env) is not None and not is_sb3s_own(rollout_buffer):
        raise ValueError(
            f"rollout_buffer_class must be SB3's own with an environment that spends a step on each reset, got "
            f"{type(rollout_buffer).__name__}. Or make the environment with autoreset_mode=AutoresetMode.SAME_STEP of "
            "gymnasium.vector"
        )


def step_weights(
    rollout_buffer: RolloutBuffer, wasted: np.ndarray | None, like: th.Tensor, total: Total = lambda part: part
) -> th.Tensor:
    """
    Return the weight of each transition, in the order of :func:`whole_rollout`, shape (n,): they sum to one, if any counts.

    :param rollout_buffer: a full buffer
    :param wasted: steps that were none, which weigh zero, shape (n_steps, n_envs); ``None`` where there are none
    :param like: a tensor of as many numbers, of the type and on the device to return
    :param total: completes a sum where the rollout is a part of a larger one; the weights sum to one over all of it
    """
    if wasted is None:
        return th.full_like(like, 1.0 / float(total(th.tensor(len(like), dtype=th.float64, device="cpu"))))
    counts = th.as_tensor(~_in_one_order(rollout_buffer, wasted).reshape(-1)).to(like)
    # Every one of a short rollout may be none
    return counts / max(1.0, float(total(counts.sum(dtype=th.float64).cpu())))


def explained_by_values(
    rollout_buffer: RolloutBuffer, wasted: np.ndarray | None = None, total: Total = lambda part: part
) -> float:
    """
    Return the share of the returns' variance that the values explain; NaN where it has no meaning.

    :param rollout_buffer: a full buffer
    :param wasted: as for :func:`step_weights`
    :param total: as for :func:`step_weights`
    """
    values, returns = (
        _in_one_order(rollout_buffer, getattr(rollout_buffer, name)).flatten().astype(np.float64)
        for name in ("values", "returns")
    )
    if wasted is not None:
        counted = ~_in_one_order(rollout_buffer, wasted).flatten()
        values, returns = values[counted], returns[counted]
    with np.errstate(invalid="ignore"):
        both = np.stack([returns, returns - values])
        n, *sums = total(th.tensor([both.shape[1], *both.sum(axis=1)], dtype=th.float64, device="cpu")).tolist()
        squares = ((both - np.array(sums)[:, None] / max(1.0, n)) ** 2).sum(axis=1)
    of_returns, of_errors = total(th.tensor(squares, device="cpu")).tolist()
    return math.nan if of_returns == 0.0 else 1.0 - of_errors / of_returns


def observation_spread(rollout_buffer: RolloutBuffer, normalized: Collection[str] = ()) -> float | None:
    """
    Return how far apart the scales of the observations are: see :class:`sb3_trpo.metrics.UpdateReport`.

    :param rollout_buffer: a full buffer
    :param normalized: the keys of a Dict that are on the scale of 1, each number of them
    """
    space: Any = rollout_buffer.observation_space
    stored: Any = rollout_buffer.observations
    if isinstance(stored, dict):
        parts = [(space[key], array) for key, array in stored.items() if key not in normalized]
    else:
        parts = [(space, stored)]
    found = [_mean_squares(array, part.shape) for part, array in parts if _is_of_numbers(part)]
    squares = np.concatenate([*found, [1.0] if normalized else []])
    scales = np.sqrt(squares[squares > 0.0])
    return float(scales.max() / scales.min()) if len(scales) and np.isfinite(squares).all() else None


def _is_of_numbers(space: spaces.Space) -> bool:
    """Whether a network gets the numbers of an observation as they are: images are scaled, and choices are no numbers."""
    return isinstance(space, spaces.Box) and not is_image_space(space, normalized_image=True)


def _mean_squares(observations: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mean square of each number of n observations, shape (n_dims,)."""
    numbers = observations.reshape(-1, math.prod(shape))
    if numbers.dtype.kind != "f":
        numbers = numbers.astype(np.float64)
    return np.einsum("ij,ij->j", numbers, numbers, dtype=np.float64) / max(1, len(numbers))


def _blocks(space: spaces.Space, n: int) -> Iterator[slice]:
    """Cut n observations into blocks that are evaluated together."""
    size = max(1, min(EVALUATION_ROWS, EVALUATION_BLOCK // spaces.flatdim(space)))
    return (slice(start, start + size) for start in range(0, n, size))


def _stored(rollout_buffer: RolloutBuffer, n_steps: int) -> Any:
    """Return the observations of the first steps of a rollout, of all environments in one row."""

    def flat(array: np.ndarray) -> np.ndarray:
        return array[:n_steps].reshape(-1, *array.shape[2:])

    stored: Any = rollout_buffer.observations
    return {key: flat(array) for key, array in stored.items()} if isinstance(stored, dict) else flat(stored)


def _values(model: OnPolicyAlgorithm, critic: Critic, rollout_buffer: RolloutBuffer, n_steps: int) -> np.ndarray:
    """Return the values of the first steps of a rollout, shape (n_steps, n_envs)."""
    everything = _stored(rollout_buffer, n_steps)
    values = np.empty(n_steps * rollout_buffer.n_envs, np.float32)
    for block in _blocks(model.observation_space, len(values)):
        values[block] = critic(rows_of(everything, block))
    return values.reshape(n_steps, rollout_buffer.n_envs)


def _bootstrap(model: OnPolicyAlgorithm, critic: Critic, rewards: np.ndarray, cut: list[_Cut]) -> None:
    """
    Add the value of the last observation to the reward where an episode was cut by its time limit (SB3 issue 633).

    :param model: the algorithm
    :param critic: what gives values
    :param rewards: of the rollout, shape (n_steps, n_envs), or those of the one step that all of these are of, shape (n_envs,)
    :param cut: the episodes
    """
    for block in _blocks(model.observation_space, len(cut)):
        steps, indices, last = map(list, zip(*cut[block], strict=True))
        is_dict = isinstance(last[0], dict)
        joined: Any = {key: _in_one_array([o[key] for o in last]) for key in last[0]} if is_dict else _in_one_array(last)
        where = indices if rewards.ndim == 1 else (steps, indices)
        rewards[where] += model.gamma * critic(joined)


def _in_one_array(tensors: Sequence[th.Tensor]) -> np.ndarray:
    return th.cat(tuple(tensors)).cpu().numpy()


def compute_returns_and_advantage(rollout_buffer: RolloutBuffer, last_values: np.ndarray, dones: np.ndarray) -> None:
    r"""
    Put advantages and returns in place, as the buffer's own method does step by step.

    Schulman et al. 2016, *High-Dimensional Continuous Control Using Generalized Advantage Estimation*, equation 16:
    :math:`\hat A_t = \delta_t + \gamma \lambda \hat A_{t+1}`, with every :math:`\delta_t` computed at once.

    :param rollout_buffer: buffer with rewards, values and episode starts
    :param last_values: values after the last step, shape (n_envs,)
    :param dones: whether an episode ended with the last step, shape (n_envs,)
    """
    values = np.concatenate([rollout_buffer.values, last_values[None]])
    goes_on = 1.0 - np.concatenate([rollout_buffer.episode_starts[1:], dones[None].astype(np.float32)])
    errors = rollout_buffer.rewards + rollout_buffer.gamma * values[1:] * goes_on - values[:-1]
    decay = rollout_buffer.gamma * rollout_buffer.gae_lambda * goes_on[:-1]
    rollout_buffer.advantages = _decayed_sums(errors, decay)
    rollout_buffer.returns = rollout_buffer.advantages + rollout_buffer.values


def check_critic_lambda(gae_lambda: float | None, rollout_buffer: RolloutBuffer) -> None:
    """
    Refuse a λ of the critic's own with a buffer that computes its returns in another way: they would be replaced.

    :param gae_lambda: λ of the returns, ``None`` where they stay as they are
    :param rollout_buffer: where a rollout goes
    :raises ValueError: naming the buffer
    """
    name = "compute_returns_and_advantage"
    is_own = name in vars(rollout_buffer) or getattr(type(rollout_buffer), name) is not getattr(RolloutBuffer, name)
    if gae_lambda is not None and is_own:
        raise ValueError(
            f"critic_gae_lambda must be None with a rollout_buffer_class that has a {name} of its own, got {gae_lambda} and "
            f"{type(rollout_buffer).__name__}, whose returns it would replace"
        )


def relabel_returns(rollout_buffer: RolloutBuffer, gae_lambda: float) -> None:
    """
    Replace the returns in a buffer by those of a λ of their own; the advantages stay.

    :param rollout_buffer: buffer with values, episode starts, and advantages of its own λ
    :param gae_lambda: λ of the returns
    """
    advantages = rollout_buffer.advantages
    decay = rollout_buffer.gamma * (1.0 - rollout_buffer.episode_starts[1:])
    errors = advantages.copy()
    errors[:-1] -= rollout_buffer.gae_lambda * decay * advantages[1:]
    rollout_buffer.returns = _decayed_sums(errors, gae_lambda * decay) + rollout_buffer.values


def _decayed_sums(terms: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """Add to each step's terms, in place, what the next step comes to times the decay in between."""
    if terms.shape[1] > FEW_ENVS:
        for step in reversed(range(len(terms) - 1)):
            terms[step] += decay[step] * terms[step + 1]
        return terms
    # One number after the other is quicker than as many small arrays
    for column, factors in zip(terms.T, decay.T.tolist(), strict=True):
        sums = column.tolist()
        for step in reversed(range(len(factors))):
            sums[step] += factors[step] * sums[step + 1]
        column[:] = sums
    return terms


class RelabelledReturns(PassedOn):
    """
    Give a rollout returns of another λ before the user's callback sees its end: what the callback changes then stays.

    :param callback: the user's, or what stands before it
    :param rollout_buffer: where the rollout goes
    :param gae_lambda: λ of the returns
    """

    def __init__(self, callback: Any, rollout_buffer: RolloutBuffer, gae_lambda: float):
        super().__init__(callback)
        self.rollout_buffer = rollout_buffer
        self.gae_lambda = gae_lambda
        # Nothing to do at a step
        self.update_locals, self.on_step = callback.update_locals, callback.on_step  # type: ignore[method-assign]

    def on_rollout_end(self) -> None:
        """Replace the returns, and pass the end on."""
        relabel_returns(self.rollout_buffer, self.gae_lambda)
        super().on_rollout_end()
