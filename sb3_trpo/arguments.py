"""What each argument may be. A value that cannot work is refused before anything is built or changed."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from os import PathLike
from types import UnionType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv


class Rule(NamedTuple):
    """
    What an argument must be.

    :param kind: the type
    :param holds: whether a value of that type can work
    :param expected: the same in words
    """

    kind: type | UnionType
    holds: Callable[[Any], bool]
    expected: str


_COUNT = Rule(Integral, lambda value: 1 <= value < 2**31, "an integer in [1, 2**31)")
_UNIT_INTERVAL = Rule(Real, lambda value: 0 <= value <= 1, "a number in [0, 1]")

_FLAG = Rule(bool | np.bool_, lambda value: True, "True or False")


def _is_device(name: str | th.device) -> bool:
    try:
        return name == "auto" or bool(th.device(name))
    except RuntimeError:
        return False


RULES: dict[str, Rule] = {
    "learning_rate": Rule(Real, lambda value: 0 <= value < math.inf, "a finite number >= 0 or a schedule"),
    "n_steps": _COUNT,
    "batch_size": _COUNT,
    "gamma": _UNIT_INTERVAL,
    "cg_max_steps": _COUNT,
    "cg_damping": Rule(Real, lambda value: 0 <= value < math.inf, "a finite number >= 0 or a schedule"),
    "line_search_shrinking_factor": Rule(Real, lambda value: 0 < value < 1, "a number in (0, 1)"),
    "line_search_max_iter": _COUNT,
    "n_critic_updates": Rule(Integral, lambda value: 0 <= value < 2**31, "an integer in [0, 2**31)"),
    "gae_lambda": _UNIT_INTERVAL,
    "use_sde": _FLAG,
    "sde_sample_freq": Rule(Integral, lambda value: value == -1 or value >= 1, "-1 or an integer >= 1"),
    "normalize_advantage": _FLAG,
    "target_kl": Rule(Real, lambda value: 0 < value < math.inf, "a finite number > 0 or a schedule"),
    "sub_sampling_factor": _COUNT,
    "stats_window_size": _COUNT,
    "verbose": Rule(Integral | np.bool_, lambda value: value >= 0, "an integer >= 0"),
    "seed": Rule(Integral, lambda value: 0 <= value < 2**32, "an integer in [0, 2**32) or None"),
    "fast": _FLAG,
    "error_if_nonfinite": _FLAG,
    "std_damping": Rule(Real, lambda value: 0 <= value < math.inf, "a finite number >= 0 or None"),
    "critic_gae_lambda": Rule(Real, _UNIT_INTERVAL.holds, "a number in [0, 1] or None"),
    "policy_kwargs": Rule(dict, lambda value: True, "a dictionary or None"),
    "rollout_buffer_class": Rule(type, lambda value: issubclass(value, RolloutBuffer), "a subclass of RolloutBuffer or None"),
    "rollout_buffer_kwargs": Rule(dict, lambda value: True, "a dictionary or None"),
    "device": Rule(str | th.device, _is_device, "'auto' or a device of torch"),
    "custom_objects": Rule(dict, lambda value: True, "a dictionary or None"),
    "print_system_info": _FLAG,
    "force_reset": _FLAG,
    "_init_setup_model": _FLAG,
    "tensorboard_log": Rule(str | PathLike, lambda value: True, "a path or None"),
}

# These may be True or False; verbosity counts, but many pipelines say verbose=True
FLAGS = {name for name, rule in RULES.items() if rule is _FLAG} | {"verbose"}
# These may also be a function of the progress remaining, from 1 to 0
SCHEDULES = ("learning_rate", "target_kl", "cg_damping")
# and these left out
OPTIONAL = {
    "seed",
    "std_damping",
    "critic_gae_lambda",
    "policy_kwargs",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
    "tensorboard_log",
    "custom_objects",
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """
    Refuse arguments that cannot work.

    :param arguments: values by name; names without a rule are passed over
    :raises TypeError: naming the argument and the value, if it is not of the right type
    :raises ValueError: naming the argument and the value, if it is out of range or not a number
    """
    for name, rule in RULES.items():
        value = arguments.get(name)
        if name not in arguments or (name in OPTIONAL and value is None):
            continue
        if name in SCHEDULES and callable(value):
            value_at(name, value, progress_remaining=1.0)
            continue
        message = f"{name} must be {rule.expected}, got {value!r}"
        if not isinstance(value, rule.kind) or (isinstance(value, bool | np.bool_) and name not in FLAGS):
            raise TypeError(message)
        if not rule.holds(value):
            raise ValueError(message)


def check_policy(policy: Any, aliases: Mapping[str, type[BasePolicy]]) -> None:
    """
    Refuse policies that are neither a known name nor a class of the right kind.

    :param policy: what was given
    :param aliases: classes by name
    :raises TypeError: if it is neither a name nor such a class
    :raises ValueError: if it is an unknown name
    """
    message = f"policy must be one of {sorted(aliases)} or a subclass of ActorCriticPolicy, got {policy!r}"
    if isinstance(policy, str):
        if policy not in aliases:
            raise ValueError(message)
    elif not (isinstance(policy, type) and issubclass(policy, (ActorCriticPolicy, *aliases.values()))):
        raise TypeError(message)


def check_policy_fits(policy_class: type, observation_space: spaces.Space, policy_kwargs: Mapping[str, Any]) -> None:
    """
    Refuse a policy for Dict observations where there are none; SB3 itself refuses the other ways round.

    :param policy_class: the policy's
    :param observation_space: that of the environment
    :param policy_kwargs: a feature extractor among them may take whatever it likes
    :raises ValueError: naming policy and space
    """
    for_dicts = issubclass(policy_class, MultiInputActorCriticPolicy) and "features_extractor_class" not in policy_kwargs
    if for_dicts and not isinstance(observation_space, spaces.Dict):
        raise ValueError(
            f"{policy_class.__name__} is for Dict observations, got {observation_space}: take MlpPolicy or CnnPolicy"
        )


def value_at(name: str, value: float | Schedule, *, progress_remaining: float) -> float:
    """
    Return what an argument that may be a schedule is at a point of the training.

    :param name: the argument's
    :param value: a number, or a function of the progress remaining
    :param progress_remaining: from 1 at the beginning of the training to 0 at its end
    :return: finite and >= 0. Schedules end at zero, where a constant could not work: a learning rate or a limit of zero
        moves nothing any more
    :raises TypeError: naming the argument and what the schedule returned, if that is no number
    :raises ValueError: the same, if it cannot work
    """
    try:
        given = value(progress_remaining) if callable(value) else value
    except Exception as error:
        raise TypeError(f"{name} must be a function of the progress remaining, got {value!r}: {error}") from error
    message = f"{name} must be a finite number >= 0, got {given!r} at progress_remaining={progress_remaining}"
    try:
        now = float(given)
    except (TypeError, ValueError):
        raise TypeError(message) from None
    if not 0.0 <= now < math.inf:
        raise ValueError(message)
    return now


def check_action_space(action_space: spaces.Space) -> None:
    """
    Refuse action spaces for which there is no action distribution.

    :param action_space: that of the environment
    :raises ValueError: naming the space
    """
    if isinstance(action_space, spaces.Box):
        finite = bool(np.isfinite([action_space.low, action_space.high]).all())
        # SB3's buffer would round the actions, and their probabilities with them
        supported = finite and np.issubdtype(action_space.dtype, np.floating)
    elif isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete):
        # SB3's categorical distributions count from zero
        supported = len(action_space.shape or ()) <= 1 and not np.any(action_space.start)
    else:
        # MultiBinary([4]) has the same shape as MultiBinary(4), and SB3 takes only the latter
        supported = isinstance(action_space, spaces.MultiBinary) and isinstance(action_space.n, Integral)
    if not supported:
        raise ValueError(
            "env.action_space must be a Box of floats with finite bounds, a Discrete or one-dimensional MultiDiscrete "
            f"that starts at 0, or a MultiBinary(n) with an integer n, got {action_space}"
        )


def checked_env(env: Any, verbose: int = 0) -> gym.Env | VecEnv:
    """
    Return an environment that can be learned from.

    :param env: a Gymnasium environment, its id or a vectorised environment
    :param verbose: whether to say so when one is made from its id
    :raises TypeError: if it is anything else
    :raises ValueError: if there is no action distribution for its actions
    """
    made = maybe_make_env(env, verbose)
    if not isinstance(made, gym.Env | VecEnv):
        raise TypeError(f"env must be a Gymnasium environment, its id or a VecEnv, got {env!r}")
    check_action_space(made.action_space)
    return made


def check_parameters(
    given: Mapping[str, Any], own: Mapping[str, Any], policy: BasePolicy, *, exact_match: bool = True
) -> None:
    """
    Refuse parameters that do not fit a model or that no training could start from.

    :param given: state dictionaries by object name (``"policy"``, ``"policy.optimizer"``), as a model's ``get_parameters``
    :param own: those of the model that they are for
    :param policy: the model's
    :param exact_match: whether a tensor that the model does not have is refused, or passed over as SB3 does
    :raises TypeError: if an entry is not a dictionary
    :raises ValueError: naming the object or tensor, if it is unknown, of another shape, or a parameter that is not finite
    """
    for name, state in given.items():
        if name not in own:
            raise ValueError(f"{name!r} is not an object with parameters, expected one of {sorted(own)}")
        if not isinstance(state, Mapping):
            raise TypeError(f"the parameters of {name!r} must be a dictionary, got {state!r}")
    trained = {name for name, _ in policy.named_parameters()}
    for key, value in given.get("policy", {}).items():
        if key not in own["policy"]:
            if exact_match:
                raise ValueError(f"policy parameter {key!r} is not one of this model's")
        elif isinstance(own["policy"][key], th.Tensor):
            # A buffer may hold infinities: masks do
            _check_tensor(f"policy parameter {key!r}", value, own["policy"][key].shape, finite=key in trained)
    if "policy.optimizer" in given:
        _check_optimizer(given["policy.optimizer"], policy.optimizer)


def _check_optimizer(state: Mapping[str, Any], optimizer: th.optim.Optimizer) -> None:
    if not {"param_groups", "state"} <= state.keys():
        raise ValueError(f"policy.optimizer must have the keys 'param_groups' and 'state', got {sorted(state)}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, memory in state["state"].items():
        if not (isinstance(index, int) and 0 <= index < len(parameters)):
            raise ValueError(f"policy.optimizer's state is of {len(parameters)} parameters, got one of parameter {index!r}")
        missing = {"step", "exp_avg", "exp_avg_sq"} - memory.keys() if isinstance(optimizer, th.optim.Adam) else set()
        if missing:
            raise ValueError(
                f"policy.optimizer's state of parameter {index} must have {sorted(missing)}, got {sorted(memory)}"
            )
        for key, value in memory.items():
            if isinstance(value, th.Tensor):
                shape = parameters[index].shape if key.startswith("exp_avg") else value.shape
                _check_tensor(f"policy.optimizer's {key!r} of parameter {index}", value, shape, finite=True)


def _check_tensor(name: str, tensor: Any, shape: th.Size, *, finite: bool) -> None:
    if not isinstance(tensor, th.Tensor):
        raise TypeError(f"{name} must be a tensor, got {tensor!r}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if finite and not bool(th.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got {tensor}")
