"""What fast paths know of masks: which policies have them, and what they do to logits. A variant notes its own here."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

# Kinds of policies that compute as their class says, where none of its methods is overridden
KNOWN_POLICIES: list[type[BasePolicy]] = [ActorCriticPolicy]
# Kinds of masked distributions -> those of SB3 that they are once masked
MASKED_KINDS: dict[type, type[Distribution]] = {}

# The logit of what is impossible, as sb3-contrib has it: its probability is exactly zero
IMPOSSIBLE = -1e8


def kind_of(policy: Any) -> type:
    """Return which of SB3's distributions a policy acts by, masks or not."""
    kind = type(policy.action_dist)
    return MASKED_KINDS.get(kind, kind)


def masked(logits: th.Tensor, action_masks: th.Tensor | None) -> th.Tensor:
    """Return logits with those of impossible actions put out, of the same shape; ``None`` is no mask."""
    return logits if action_masks is None else logits.masked_fill(~action_masks, IMPOSSIBLE)


def masked_array(logits: np.ndarray, action_masks: np.ndarray | None) -> np.ndarray:
    """Do in an array what :func:`masked` does."""
    return logits if action_masks is None else np.where(action_masks, logits, np.float32(IMPOSSIBLE))
