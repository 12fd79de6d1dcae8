"""
Masks on logits.

The plain twin is what sb3-contrib's distributions make of them.
"""

import numpy as np
import torch as th

# The logit of what is impossible, as sb3-contrib has it: its probability is exactly zero
IMPOSSIBLE = -1e8


def masked(logits: th.Tensor, action_masks: th.Tensor | None) -> th.Tensor:
    """Return logits with those of impossible actions put out, of the same shape; ``None`` is no mask."""
    return logits if action_masks is None else logits.masked_fill(~action_masks, IMPOSSIBLE)


def masked_array(logits: np.ndarray, action_masks: np.ndarray | None) -> np.ndarray:
    """Do in an array what :func:`masked` does."""
    return logits if action_masks is None else np.where(action_masks, logits, np.float32(IMPOSSIBLE))
