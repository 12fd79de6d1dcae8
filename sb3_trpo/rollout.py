"""
Lean experience collection into SB3's rollout buffer.

The same experience as ``OnPolicyAlgorithm.collect_rollouts`` with less work at every step: only the action is computed while
the environment waits; values and time-limit bootstraps follow once, in batches over the whole rollout.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import explained_variance, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.guards.passed_on import PassedOn

Observations = np.ndarray | dict[str, np.ndarray]


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

    def log_probs(self) -> np.ndarray:
        """Return the log-probabilities of all actions so far, each under the policy that took it, shape (n_steps, n_envs)."""


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


# What a buffer holds one number of for each transition that an update needs
SCALARS = ("log_probs", "advantages", "returns")

# Observations evaluated at a time, in numbers: as many as give full speed within a few hundred megabytes
EVALUATION_BLOCK = 2**23


# Buffers whose arrays may be read and written directly; a variant adds its own
KNOWN_BUFFERS: set[type[RolloutBuffer]] = {RolloutBuffer, DictRolloutBuffer}


def is_sb3s_own(rollout_buffer: RolloutBuffer) -> bool:
    """Whether a buffer is one of SB3's or sb3-contrib's, with nothing of the user's own about it."""
    wrapped = vars(rollout_buffer).keys() & {"add", "get", "reset", "compute_returns_and_advantage"}
    return type(rollout_buffer) in KNOWN_BUFFERS and not wrapped


def _environment_actions(model: OnPolicyAlgorithm, actions: np.ndarray) -> np.ndarray:
    """Return what the environment is given, as SB3 does."""
    if not isinstance(model.action_space, spaces.Box):
        return actions
    if model.policy.squash_output:
        return model.policy.unscale_action(actions)
    return np.clip(actions, model.action_space.low, model.action_space.high)


def _store_observations(rollout_buffer: RolloutBuffer, at: int, observations: Observations) -> None:
    """Put observations at a position of the buffer."""
    stored: Any = rollout_buffer.observations
    if isinstance(observations, dict):
        for key, target in stored.items():
            target[at] = observations[key].reshape(target.shape[1:])
    else:
        stored[at] = observations.reshape(stored.shape[1:])


@th.no_grad()
def _reset_noise(policy: ActorCriticPolicy, n_envs: int) -> None:
    """Draw the noise of gSDE anew; without a graph, which would keep a callback from copying the policy."""
    policy.reset_noise(n_envs)


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
    ``obs_tensor`` is ``None``, and ``values`` and ``log_probs`` may be. What they may replace is read when it is used.

    :param model: the algorithm, whose policy, last observation and counters are read and moved on
    :param actor: maps the observations of one step to what the policy of the moment does
    :param env: the training environment
    :param callback: called at each step, and at the beginning and end of the rollout
    :param rollout_buffer: buffer to fill
    :param n_rollout_steps: number of steps to collect per environment
    :return: False if the callback ended the rollout before its time
    """
    model.policy.set_training_mode(False)
    n_steps = 0
    n_without_values = 0  # steps whose values are computed at the end
    rollout_buffer.reset()
    if model.use_sde:
        _reset_noise(model.policy, env.num_envs)
    time_limits: list[tuple[int, int, Any]] = []  # step, environment, last observation of the episode

    callback.on_rollout_start()
    while n_steps < n_rollout_steps:
        if model.use_sde and model.sde_sample_freq > 0 and n_steps % model.sde_sample_freq == 0:
            _reset_noise(model.policy, env.num_envs)
        last_obs, episode_starts = model._last_obs, model._last_episode_starts
        assert last_obs is not None, "No previous observation was provided"
        # Before the step: an environment may use the memory of its observations again
        at = rollout_buffer.pos
        _store_observations(rollout_buffer, at, last_obs)
        values: Any
        actions, log_probs, values = actor(last_obs)
        clipped_actions = _environment_actions(model, actions)
        new_obs, rewards, dones, infos = env.step(clipped_actions)
        model.num_timesteps += env.num_envs

        # What a rollout before left there is not of this step
        variables = locals()
        variables |= {"self": model, "obs_tensor": None}
        callback.update_locals(variables)
        if not callback.on_step():
            return False
        model._update_info_buffer(infos, dones)

        for index in np.flatnonzero(dones).tolist():
            info = infos[index]
            if info.get("terminal_observation") is not None and info.get("TimeLimit.truncated", False):
                # A copy, for the same reason
                time_limits.append((n_steps, index, copy.deepcopy(info["terminal_observation"])))
        rollout_buffer.actions[at] = actions.reshape(env.num_envs, -1)
        rollout_buffer.rewards[at] = rewards
        rollout_buffer.episode_starts[at] = episode_starts
        n_steps += 1
        if values is None:
            n_without_values = n_steps
        else:
            rollout_buffer.values[n_steps - 1] = values
        rollout_buffer.pos += 1
        model._last_obs = new_obs  # type: ignore[assignment]
        model._last_episode_starts = dones
    rollout_buffer.full = rollout_buffer.pos == rollout_buffer.buffer_size

    rollout_buffer.log_probs[:n_steps] = actor.log_probs()
    with th.no_grad():
        _evaluate(model, rollout_buffer, n_without_values)
        _bootstrap(model, rollout_buffer, time_limits)
        values = model.policy.predict_values(obs_as_tensor(new_obs, model.device))  # type: ignore[arg-type]
    compute_returns_and_advantage(rollout_buffer, values.flatten().cpu().numpy(), dones)

    callback.update_locals({**locals(), "self": model})
    callback.on_rollout_end()
    return True


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
        data: Any = next(rollout_buffer.get(batch_size=None))
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
    scalars = (np.asarray(getattr(rollout_buffer, name)).astype(np.float32, copy=False) for name in SCALARS)
    masks = getattr(rollout_buffer, "action_masks", None)
    possible = None if masks is None else flat(masks.astype(bool), masks.shape[-1:])
    return WholeRollout(observations, flat(actions, (rollout_buffer.action_dim,)), *map(flat, scalars), possible)


def _in_one_order(rollout_buffer: RolloutBuffer, array: np.ndarray) -> np.ndarray:
    """Return an array of the buffer in the order of the others: once ``get`` has been called it has turned them round."""
    as_collected = array.shape[:2] == (rollout_buffer.buffer_size, rollout_buffer.n_envs)
    turned = rollout_buffer.generator_ready and rollout_buffer.n_envs > 1
    return rollout_buffer.swap_and_flatten(array) if turned and as_collected else array


def explained_by_values(rollout_buffer: RolloutBuffer) -> float:
    """Return the share of the returns' variance that the values explain; NaN where it has no meaning."""
    values, returns = (
        _in_one_order(rollout_buffer, getattr(rollout_buffer, name)).flatten().astype(np.float64)
        for name in ("values", "returns")
    )
    with np.errstate(invalid="ignore"):
        return float(explained_variance(values, returns))


def observation_spread(rollout_buffer: RolloutBuffer) -> float | None:
    """Return how far apart the scales of the observations are: see :class:`sb3_trpo.metrics.UpdateReport`."""
    observations = rollout_buffer.observations
    shape = rollout_buffer.obs_shape
    if not isinstance(observations, np.ndarray) or observations.dtype.kind != "f" or len(shape) != 1:
        return None
    squares = np.einsum("ij,ij->j", *[observations.reshape(-1, *shape)] * 2, dtype=np.float64) / (observations.size / shape[0])
    scales = np.sqrt(squares[squares > 0.0])
    return float(scales.max() / scales.min()) if len(scales) and np.isfinite(scales).all() else None


def _blocks(space: spaces.Space, n: int) -> Iterator[slice]:
    """Cut n observations into blocks that are evaluated together."""
    size = max(1, EVALUATION_BLOCK // spaces.flatdim(space))
    return (slice(start, start + size) for start in range(0, n, size))


def _evaluate(model: OnPolicyAlgorithm, rollout_buffer: RolloutBuffer, n_steps: int) -> None:
    """Put the values of the first steps of a rollout in place."""

    def flat(array: np.ndarray) -> np.ndarray:
        return array[:n_steps].reshape(-1, *array.shape[2:])

    values = flat(rollout_buffer.values)
    stored: Any = rollout_buffer.observations
    for block in _blocks(model.observation_space, len(values)):
        rows = {key: flat(array)[block] for key, array in stored.items()} if isinstance(stored, dict) else flat(stored)[block]
        observations: Any = obs_as_tensor(rows, model.device)
        values[block] = model.policy.predict_values(observations).flatten().cpu().numpy()


def _bootstrap(model: OnPolicyAlgorithm, rollout_buffer: RolloutBuffer, time_limits: list[tuple[int, int, Any]]) -> None:
    """Add the value of the last observation to the reward where an episode was cut by its time limit (SB3 issue 633)."""
    for block in _blocks(model.observation_space, len(time_limits)):
        steps, indices, last = zip(*time_limits[block], strict=True)
        stacked: Any = (
            {key: np.stack([o[key] for o in last]) for key in last[0]} if isinstance(last[0], dict) else np.stack(last)
        )
        values = model.policy.predict_values(model.policy.obs_to_tensor(stacked)[0]).flatten().cpu().numpy()
        rollout_buffer.rewards[list(steps), list(indices)] += model.gamma * values


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
    for step in reversed(range(len(terms) - 1)):
        terms[step] += decay[step] * terms[step + 1]
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

    def on_rollout_end(self) -> None:
        """Replace the returns, and pass the end on."""
        relabel_returns(self.rollout_buffer, self.gae_lambda)
        super().on_rollout_end()
