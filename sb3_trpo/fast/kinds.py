"""
What fast paths know of policies and their distributions. A variant notes its own here.

The plain twin of all that is known is to ask: a policy by its own methods, a distribution for its samples and probabilities.
"""

from typing import Any

from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_trpo.guards.overridden import is_as_written, known_kind

# Kinds of policies that compute as their class says, where none of its methods is overridden
KNOWN_POLICIES: list[type[BasePolicy]] = [ActorCriticPolicy]
# Distributions whose samples, log-probabilities and Fisher matrix are written out in this room
CLOSED_FORM = (
    DiagGaussianDistribution,
    CategoricalDistribution,
    MultiCategoricalDistribution,
    BernoulliDistribution,
    StateDependentNoiseDistribution,
)
# Kinds of masked distributions -> those of SB3 that they are once masked
MASKED_KINDS: dict[type, type[Distribution]] = {}
# What samples actions and makes distributions, as SB3 and sb3-contrib have it
_METHODS = ("proba_distribution", "get_actions", "sample", "log_prob", "apply_masking")


def is_patched(distribution: Any) -> bool:
    """Whether a distribution does anything in another way than its class was written, on the object or on the class."""
    kind = known_kind(distribution, (*CLOSED_FORM, *MASKED_KINDS))
    return kind is None or not is_as_written(kind, *_METHODS)


def kind_of(policy: Any) -> type:
    """Return which of SB3's distributions a policy acts by, masks or not; of the user's own the class."""
    kind = known_kind(policy.action_dist, (*CLOSED_FORM, *MASKED_KINDS)) or type(policy.action_dist)
    return MASKED_KINDS.get(kind, kind)
