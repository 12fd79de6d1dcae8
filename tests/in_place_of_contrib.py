"""
A pytest plugin that puts our variants in the place of sb3-contrib's PPOs, for sb3-contrib's own tests of them.

PPO's own arguments are left out: there is nothing like them in TRPO.
"""

from typing import Any

import sb3_contrib

from sb3_trpo import MaskableTRPO, RecurrentTRPO

PPOS_OWN = {"n_epochs", "clip_range", "clip_range_vf", "ent_coef", "vf_coef", "max_grad_norm"}


def without_ppos_own(cls: type) -> Any:
    """Return a subclass that leaves out what only PPO has."""

    class InPlace(cls):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{name: value for name, value in kwargs.items() if name not in PPOS_OWN})

    return InPlace


contrib: Any = sb3_contrib
contrib.RecurrentPPO = without_ppos_own(RecurrentTRPO)
contrib.MaskablePPO = without_ppos_own(MaskableTRPO)
