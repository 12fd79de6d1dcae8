"""What an environment or a policy may not hand on: numbers that are not finite."""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_wrapper

from sb3_trpo.guards.parameters import check_parameters
from sb3_trpo.guards.process import unvalidated_distributions

# Causes before their consequences: the first that is not finite names the update
ROLLOUT = {
    "observations": "observations_not_finite",
    "actions": "actions_not_finite",
    "log_probs": "log_probabilities_not_finite",
    "values": "values_not_finite",
    "rewards": "rewards_not_finite",
    "advantages": "advantages_not_finite",
    "returns": "returns_not_finite",
}


def is_finite(values: Any) -> bool:
    """Whether there is no NaN or infinity in an array, or in any of a dict of arrays."""
    if isinstance(values, dict):
        return all(map(is_finite, values.values()))
    if values.dtype.kind != "f":
        return True
    # Sums are quicker than looking at each number, which is done only where they overflow
    total = sum(values.ravel().tolist()) if values.size < 16 else np.vdot(values, values)
    return math.isfinite(total) or bool(np.isfinite(values).all())


def unusable_rollout(rollout_buffer: RolloutBuffer) -> str | None:
    """Name what of a full buffer is not finite: the status of the update, ``None`` if everything is."""
    return next((status for name, status in ROLLOUT.items() if not is_finite(getattr(rollout_buffer, name))), None)


def first_cause(statuses: Iterable[str | None]) -> str | None:
    """Return which of the statuses of several parts of a rollout names the update: causes before their consequences."""
    return min(filter(None, statuses), key=[*ROLLOUT.values()].index, default=None)


class NonFiniteError(ValueError):
    """An environment gave a number that is not finite, or the policy did."""


def refuse_nonfinite(what: str, values: Any, *, step: int | None = None) -> None:
    """
    Raise if anything is not finite.

    :param what: that it is said to be
    :param values: by environment, or by step and environment if no step is given; an array or a dict of arrays
    :param step: of the rollout
    """
    for key, part in values.items() if isinstance(values, dict) else [("", values)]:
        if not is_finite(part):
            index, *_ = np.argwhere(~np.isfinite(part)).tolist()
            at_step, env, *place = index if step is None else (step - 1, *index)
            where = f"{key}{place or ''} = " if key or place else ""
            raise NonFiniteError(
                f"{what} environment {env} at step {at_step + 1} of the rollout must be finite, got "
                f"{where}{part[tuple(index)]}. Nothing was updated; "
                "error_if_nonfinite=False lets training go on, without updates from such rollouts"
            )


def check_policy_is_finite(policy: BasePolicy) -> None:
    """
    Refuse to act with a policy that cannot.

    :param policy: the policy
    :raises ValueError: naming the parameter that is not finite
    """
    state = {"policy": policy.state_dict()}
    check_parameters(state, state, policy)


class FinitePart(NamedTuple):
    """
    What of a rollout must be finite while it is made.

    :param policy: whether the policy's parameters, as it starts
    :param observations: whether each observation
    """

    policy: bool
    observations: bool


@contextmanager
def finite_rollout(
    model: BaseAlgorithm, env: VecEnv, rollout_buffer: RolloutBuffer, *, required: bool
) -> Iterator[FinitePart]:
    """
    Collect a rollout, unless something in it is not finite. A ``VecCheckNan`` among the wrappers does that in its own way.

    :param model: the algorithm that collects
    :param env: the training environment
    :param rollout_buffer: where the rollout goes
    :param required: whether what is not finite is an error; else it is let through
    :return: what is to be looked at while it is collected
    :raises NonFiniteError: naming what it is, the environment and the step
    """
    if not required:
        with unvalidated_distributions():
            yield FinitePart(policy=False, observations=False)
        return
    # Before the first random number too: SB3 draws the noise of gSDE before a callback may do anything
    check_policy_is_finite(model.policy)
    observations_too = unwrap_vec_wrapper(env, VecCheckNan) is None
    with nullcontext() if observations_too else unvalidated_distributions():
        yield FinitePart(policy=True, observations=observations_too)
    if observations_too and rollout_buffer.full:
        refuse_nonfinite("the policy's action for", rollout_buffer.actions)
        refuse_nonfinite("the reward (at a time limit with the last observation's value) of", rollout_buffer.rewards)


def normalizers_of(env: Any) -> list[VecNormalize]:
    """Return each ``VecNormalize`` among the layers of an environment, of which there may be several, the outermost first."""
    layers = []
    while isinstance(env, VecEnvWrapper):
        layers.append(env)
        env = env.venv
    return [layer for layer in layers if isinstance(layer, VecNormalize)]


def running_statistics(normalizer: VecNormalize) -> list[Any]:
    """Return the running statistics that an environment's numbers are normalised with."""
    observations = normalizer.obs_rms if normalizer.norm_obs else {}
    of_observations = observations.values() if isinstance(observations, dict) else [observations]
    return [*of_observations, normalizer.ret_rms]


def _shapes(observations: Any) -> Any:
    is_dict = isinstance(observations, dict)
    return {key: np.shape(part) for key, part in observations.items()} if is_dict else np.shape(observations)


@contextmanager
def finite_statistics(model: BaseAlgorithm) -> Iterator[None]:
    """
    Take back what made the running statistics of any ``VecNormalize`` NaN or infinite: there would be no way back for them.

    :param model: the algorithm that collects a rollout
    """
    normalizers = normalizers_of(model.env)
    before = [
        (statistics, copy.deepcopy(vars(statistics)))
        for normalizer in normalizers
        for statistics in running_statistics(normalizer)
    ]
    try:
        yield
    finally:
        for statistics, old in before:
            if not (np.isfinite(statistics.mean).all() and np.isfinite(statistics.var).all()):
                vars(statistics).update(old)
        for normalizer in normalizers:
            normalizer.returns[~np.isfinite(normalizer.returns)] = 0.0
        # The last observation was made with the statistics of before
        if normalizers and model._last_obs is not None and not is_finite(model._last_obs):
            _normalize_last_anew(model, normalizers)


def _normalize_last_anew(model: BaseAlgorithm, normalizers: list[VecNormalize]) -> None:
    anew: Any = None
    for normalizer in reversed(normalizers):
        original = normalizer.get_original_obs()
        # It came from the normalizer inside of this one
        if _shapes(anew) == _shapes(original) and not is_finite(original):
            original = anew
        anew = normalizer.normalize_obs(original)
    if _shapes(anew) == _shapes(model._last_obs):
        model._last_obs = anew
