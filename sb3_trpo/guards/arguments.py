"""What each argument may be. A value that cannot work is refused before anything is built or changed."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from os import PathLike
from types import UnionType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_trpo.guards.overridden import is_of_known_package


class Rule(NamedTuple):
    """
    What an argument must be.

    :param kind: the type
    :param holds: whether a value of that type can work
    :param expected: the same in words
    :param optional: whether it may also be ``None``
    :param schedule: whether it may also be a function of the progress remaining, from 1 to 0
    :param flag: whether it may also be True or False
    """

    kind: type | UnionType
    holds: Callable[[Any], bool]
    expected: str
    optional: bool = False
    schedule: bool = False
    flag: bool = False


Rules = Mapping[str, Rule]

COUNT = Rule(Integral, lambda value: 1 <= value < 2**31, "an integer in [1, 2**31)")
UNIT_INTERVAL = Rule(Real, lambda value: 0 <= value <= 1, "a number in [0, 1]")
FLAG = Rule(bool | np.bool_, lambda value: True, "True or False", flag=True)
_DICTIONARY = Rule(Mapping, lambda value: True, "a dictionary or None", optional=True)


def _is_device(name: str | th.device) -> bool:
    try:
        return name == "auto" or bool(th.device(name))
    except RuntimeError:
        return False


# What the constructor and the methods of SB3's on-policy algorithms take
RULES: dict[str, Rule] = {
    "learning_rate": Rule(Real, lambda value: 0 <= value < math.inf, "a finite number >= 0 or a schedule", schedule=True),
    "n_steps": COUNT,
    "gamma": UNIT_INTERVAL,
    "gae_lambda": UNIT_INTERVAL,
    "use_sde": FLAG,
    "sde_sample_freq": Rule(Integral, lambda value: value == -1 or value >= 1, "-1 or an integer >= 1"),
    "normalize_advantage": FLAG,
    "stats_window_size": COUNT,
    # Verbosity counts, but many pipelines say verbose=True
    "verbose": Rule(Integral | np.bool_, lambda value: value >= 0, "an integer >= 0", flag=True),
    "seed": Rule(Integral, lambda value: 0 <= value < 2**32, "an integer in [0, 2**32) or None", optional=True),
    "error_if_nonfinite": FLAG,
    "policy_kwargs": _DICTIONARY,
    "rollout_buffer_class": Rule(
        type, lambda value: issubclass(value, RolloutBuffer), "a subclass of RolloutBuffer or None", optional=True
    ),
    "rollout_buffer_kwargs": _DICTIONARY,
    "device": Rule(str | th.device, _is_device, "'auto' or a device of torch"),
    "custom_objects": _DICTIONARY,
    "print_system_info": FLAG,
    "force_reset": FLAG,
    "_init_setup_model": FLAG,
    "tensorboard_log": Rule(str | PathLike, lambda value: True, "a path or None", optional=True),
}


def _is_callback(callback: Any) -> bool:
    return not isinstance(callback, list) or all(isinstance(each, BaseCallback) for each in callback)


# What ``learn`` takes; SB3 means something by a number of steps below zero, and by infinitely many
OF_LEARN: dict[str, Rule] = {
    "total_timesteps": Rule(Real, lambda value: not math.isnan(value), "a number of environment steps"),
    "callback": Rule(
        BaseCallback | list | Callable, _is_callback, "a callback, a list of callbacks, a function or None", optional=True
    ),
    "log_interval": Rule(Integral, lambda value: value != 0, "an integer other than 0, or None", optional=True),
}


def check_arguments(rules: Rules, arguments: Mapping[str, Any], *, ask_schedules: bool = True) -> None:
    """
    Refuse arguments that cannot work. It takes microseconds, so that it can be done again at each rollout.

    :param rules: what each argument must be
    :param arguments: values by name; names without a rule are passed over
    :param ask_schedules: whether a schedule is asked for its first value
    :raises TypeError: naming the argument and the value, if it is not of the right type
    :raises ValueError: naming the argument and the value, if it is out of range or not a number
    """
    for name, rule in rules.items():
        if name not in arguments:
            continue
        value = arguments[name]
        if rule.optional and value is None:
            continue
        if rule.schedule and callable(value):
            if ask_schedules:
                value_at(name, value, progress_remaining=1.0)
            continue
        if not isinstance(value, rule.kind) or (isinstance(value, bool | np.bool_) and not rule.flag):
            raise TypeError(f"{name} must be {rule.expected}, got {value!r}")
        if not rule.holds(value):
            raise ValueError(f"{name} must be {rule.expected}, got {value!r}")


class PolicyKindError(TypeError, ValueError):
    """A policy class acts on other things than the algorithm gives it: sb3-contrib says ``ValueError`` to that."""


# The policies with a memory, which people name to algorithms that have none
WITH_MEMORY = ("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy")
# What a policy may be handed beside the observations
HANDED = ("lstm_states", "episode_starts", "action_masks")


def _is_handed(policy: type, base: type) -> set[str]:
    """
    Return what a class of policies takes to act beside the observations; what it passes on by ``**kwargs`` counts.

    :param policy: the class
    :param base: what the class is to be derived from; what that is not handed may have a default, and be left out
    """
    found: set[str] = set()
    for parent in policy.__mro__:
        if "forward" in vars(parent):
            parameters = inspect.signature(vars(parent)["forward"]).parameters
            can_do_without = issubclass(parent, base) and not is_of_known_package(parent)
            found |= {name for name, p in parameters.items() if not can_do_without or p.default is p.empty}
    return found & {*HANDED}


def check_policy(
    policy: Any, aliases: Mapping[str, type[BasePolicy]], base: type[BasePolicy] = ActorCriticPolicy, *, of: str = ""
) -> None:
    """
    Refuse policies that are neither a known name nor a class of the right kind.

    :param policy: what was given
    :param aliases: classes by name
    :param base: what such classes are derived from
    :param of: name of the algorithm
    :raises TypeError: if it is neither a name nor such a class
    :raises PolicyKindError: if it takes other things to act than the algorithm gives it
    :raises ValueError: if it is an unknown name
    """
    message = f"policy must be one of {sorted(aliases)} or a subclass of {base.__name__}, got {policy!r}"
    if isinstance(policy, str):
        if policy not in aliases:
            raise ValueError(message + (": RecurrentTRPO has policies of this name" if policy in WITH_MEMORY else ""))
        return
    if not isinstance(policy, type):
        raise TypeError(message)
    taken, given = _is_handed(policy, base), _is_handed(base, base)
    if issubclass(policy, BasePolicy) and taken != given:
        takes = [" and ".join(name for name in HANDED if name in names) or "observations alone" for names in (taken, given)]
        raise PolicyKindError(f"{message}: it acts on {takes[0]}, and a policy of {of or 'this algorithm'} acts on {takes[1]}")
    if not issubclass(policy, (base, *aliases.values())):
        raise TypeError(message)


class UnsupportedError(ValueError, AssertionError):
    """What SB3 asserts: with ``python -O`` it is an error all the same."""


# What cannot work shows itself in many ways; an exception of the user's own class says what it has to say
_UNNAMED = {TypeError, ValueError, AssertionError, RuntimeError, AttributeError, KeyError, IndexError}


@contextmanager
def naming(made_of: Callable[[], tuple[type | None, Mapping[str, Any]]]) -> Iterator[None]:
    """
    Name in an error what could not be built, and from what: torch and SB3 say what went wrong inside.

    :param made_of: tells what is being built, if anything is: its class, and the arguments that are the user's by name
    """
    try:
        yield
    except Exception as error:
        part, arguments = made_of()
        if part is None or type(error) not in _UNNAMED:
            raise
        given = " and ".join(f"{name}={value!r:.500}" for name, value in arguments.items())
        kind = UnsupportedError if isinstance(error, AssertionError) else type(error)
        raise kind(f"{part.__name__} cannot be built with {given}: {error}") from error


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
