"""What each hyperparameter of TRPO may be, beside those of every on-policy algorithm, and the defaults of three."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_trpo.distributed import Processes
from sb3_trpo.guards.arguments import COUNT, FLAG, RULES, UNIT_INTERVAL, Rule, Rules

# Every TRPO has these, sb3-contrib's too, and no other algorithm of SB3 or sb3-contrib
OF_EVERY_TRPO = {"cg_max_steps", "cg_damping", "line_search_shrinking_factor", "line_search_max_iter"}

TRPO_RULES: Rules = {
    **RULES,
    "batch_size": COUNT,
    "cg_max_steps": COUNT,
    "cg_damping": Rule(
        Real, lambda value: 0 <= value < math.inf, "a finite number >= 0, a schedule or None", optional=True, schedule=True
    ),
    "line_search_shrinking_factor": Rule(Real, lambda value: 0 < value < 1, "a number in (0, 1)"),
    "line_search_max_iter": COUNT,
    "n_critic_updates": Rule(Integral, lambda value: 0 <= value < 2**31, "an integer in [0, 2**31)"),
    "target_kl": Rule(
        Real, lambda value: 0 < value < math.inf, "a finite number > 0, a schedule or None", optional=True, schedule=True
    ),
    "sub_sampling_factor": COUNT,
    "fast": FLAG,
    "processes": Rule(Processes, lambda value: True, "what sb3_trpo.distributed.join() returns, or None", optional=True),
    "std_damping": Rule(Real, lambda value: 0 <= value < math.inf, "a finite number >= 0 or None", optional=True),
    "critic_gae_lambda": Rule(Real, UNIT_INTERVAL.holds, "a number in [0, 1] or None", optional=True),
}

# These may be a function of the progress remaining, from 1 to 0
SCHEDULES = [name for name, rule in TRPO_RULES.items() if rule.schedule]

# In nats for each of the dimensions that sb3-contrib averages the KL over: there the numbers are the defaults as they stand
PER_DIMENSION = {"target_kl": 0.01, "cg_damping": 0.1}


def n_averaged_dimensions(action_space: spaces.Space) -> int:
    """
    Return over how many action dimensions sb3-contrib averages the KL.

    :param action_space: that of the environment
    :return: the number of dimensions for Box, with gSDE or without, and MultiBinary; 1 for Discrete and MultiDiscrete, whose
        KL it sums
    """
    return int(np.prod(action_space.shape)) if isinstance(action_space, spaces.Box | spaces.MultiBinary) else 1


def has_own_std(policy: BasePolicy) -> bool:
    """
    Return whether the standard deviation of the actions is a parameter by itself, the same in every state.

    :param policy: whichever
    """
    log_std = getattr(policy, "log_std", None)
    return isinstance(getattr(policy, "action_dist", None), DiagGaussianDistribution) and isinstance(log_std, nn.Parameter)


def default_of(name: str, action_space: spaces.Space) -> float:
    """
    Return what ``target_kl`` or ``cg_damping`` is where it is left out: sb3-contrib's default in our unit.

    :param name: the argument's
    :param action_space: that of the environment
    :return: in nats for the whole action
    """
    return as_read(PER_DIMENSION[name] * n_averaged_dimensions(action_space))


def as_read(value: float) -> float:
    """Return a number without the rounding of a product: six times 0.1 shall be 0.6, as one reads it."""
    return float(f"{value:.12g}")


def defaults_by_model(given: Mapping[str, Any], action_space: spaces.Space, policy: BasePolicy) -> dict[str, float]:
    """
    Return what stands for the arguments that are left out and have a default by the model.

    :param given: arguments by name; one that is not there, or ``None``, is left out
    :param action_space: that of the environment
    :param policy: that of the model
    :return: by name. ``std_damping`` is among them if there is no ``cg_damping`` either, which else damps everything
    """
    defaults = {name: default_of(name, action_space) for name in PER_DIMENSION if given.get(name) is None}
    if "cg_damping" in defaults and given.get("std_damping") is None and has_own_std(policy):
        # Fisher information about the logarithm of a standard deviation is 2 whatever the rollout: nothing to make steadier
        defaults["std_damping"] = 0.0
    return defaults
