"""
Moving from sb3-contrib: what its numbers are here, and its zip files.

``sb3_contrib.TRPO`` averages the KL over the dimensions of an action; here it is summed, as the KL of the whole action is.
Its limit and damping times the number of dimensions that it averages over are ours.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import Schedule

from sb3_trpo import hyperparameters
from sb3_trpo.guards.arguments import check_arguments
from sb3_trpo.guards.environments import check_action_space
from sb3_trpo.hyperparameters import PER_DIMENSION, TRPO_RULES, as_read, default_of


class ScaledSchedule:
    """
    A schedule times a factor; unlike a lambda it pickles by name.

    :param schedule: function of the progress remaining, from 1 to 0
    :param factor: what its values are multiplied with
    """

    def __init__(self, schedule: Schedule, factor: float):
        self.schedule = schedule
        self.factor = factor

    def __call__(self, progress_remaining: float) -> float:
        """Return the schedule's value times the factor."""
        return float(self.factor * self.schedule(progress_remaining))

    def __repr__(self) -> str:
        return f"ScaledSchedule({self.schedule!r}, {self.factor!r})"


def n_averaged_dimensions(action_space: spaces.Space) -> int:
    """
    Return over how many action dimensions sb3-contrib averages the KL.

    :param action_space: that of the environment
    :return: the number of dimensions for Box, with gSDE or without, and MultiBinary; 1 for Discrete and MultiDiscrete, whose
        KL it sums
    :raises ValueError: if no TRPO has such actions
    """
    check_action_space(action_space)
    return hyperparameters.n_averaged_dimensions(action_space)


def _scaled(arguments: Mapping[str, Any], factor: float, defaults: Mapping[str, float]) -> dict[str, Any]:
    check_arguments(TRPO_RULES, arguments)
    scaled = {**arguments}
    for name, default in defaults.items():
        value = arguments.get(name)
        if value is None:
            scaled[name] = default
        else:
            scaled[name] = ScaledSchedule(value, factor) if callable(value) else as_read(factor * value)
    return scaled


def from_contrib(arguments: Mapping[str, Any], action_space: spaces.Space) -> dict[str, Any]:
    """
    Return arguments of ``sb3_contrib.TRPO`` in the units of :class:`sb3_trpo.TRPO`.

    :param arguments: keyword arguments; ``target_kl`` and ``cg_damping``, floats or schedules, are converted, or their
        defaults if they are not among them
    :param action_space: that of the environment
    :return: a new dictionary, with both converted and the rest as it was. With a ``cg_damping``, which is among them, standard
        deviations are damped as sb3-contrib damps them
    :raises TypeError: naming the argument, if one is not of the right type
    :raises ValueError: naming the argument, if one cannot work, or if no TRPO has such actions
    """
    factor = n_averaged_dimensions(action_space)
    return _scaled(arguments, factor, {name: default_of(name, action_space) for name in PER_DIMENSION})


def to_contrib(arguments: Mapping[str, Any], action_space: spaces.Space) -> dict[str, Any]:
    """Return arguments of :class:`sb3_trpo.TRPO` in the units of ``sb3_contrib.TRPO``: see :func:`from_contrib`."""
    return _scaled(arguments, 1.0 / n_averaged_dimensions(action_space), PER_DIMENSION)


def is_saved_by_contrib(names: Collection[str]) -> bool:
    """Return whether the attributes of a saved TRPO, by name, are those of ``sb3_contrib.TRPO``: it knows no ``fast``."""
    return "fast" not in names


def convert_loaded(model: BaseAlgorithm, given: Collection[str]) -> None:
    """
    Put a model that sb3-contrib saved into our units, and warn of it if that changes a number.

    :param model: has the attributes of the zip
    :param given: names of the attributes that are not from the zip, and in our units already
    """
    # Numbers: sb3-contrib knows no schedule of either
    before = {name: getattr(model, name) for name in PER_DIMENSION if name not in given}
    factor = n_averaged_dimensions(model.action_space)
    if factor == 1 or not before:
        return
    after = from_contrib(before, model.action_space)
    for name in before:
        setattr(model, name, after[name])
    changes = ", ".join(f"{name}={before[name]:g} is {after[name]:g} here" for name in before)
    warnings.warn(
        f"This model was saved by sb3_contrib.TRPO, which averages the KL over the {factor} action dimensions instead of "
        f"summing it: {changes}. Once saved again it is a model of sb3_trpo.",
        stacklevel=4,
    )
