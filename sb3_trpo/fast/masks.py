"""
What fast paths know of policies, their distributions and masks. A variant notes its own here.

The plain twin of masked logits is what sb3-contrib's distributions make of them.
"""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_trpo.guards.overridden import known_kind

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

# The logit of what is impossible, as sb3-contrib has it: its probability is exactly zero
IMPOSSIBLE = -1e8


def kind_of(policy: Any) -> type:
    """Return which of SB3's distributions a policy acts by, masks or not; of the user's own the class."""
    kind = known_kind(policy.action_dist, (*CLOSED_FORM, *MASKED_KINDS)) or type(policy.action_dist)
    return MASKED_KINDS.get(kind, kind)


def masked(logits: th.Tensor, action_masks: th.Tensor | None) -> th.Tensor:
    """Return logits with those of impossible actions put out, of the same shape; ``None`` is no mask."""
    return logits if action_masks is None else logits.masked_fill(~action_masks, IMPOSSIBLE)


def masked_array(logits: np.ndarray, action_masks: np.ndarray | None) -> np.ndarray:
    """Do in an array what :func:`masked` does."""
    return logits if action_masks is None else np.where(action_masks, logits, np.float32(IMPOSSIBLE))
