"""Trust Region Policy Optimization for Stable-Baselines3, with a trust region that is kept."""

from typing import TYPE_CHECKING, Any

from sb3_trpo.about import __version__, system_info
from sb3_trpo.metrics import UpdateReport
from sb3_trpo.objective import kl_old_new
from sb3_trpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.trpo import TRPO

if TYPE_CHECKING:
    from sb3_trpo.maskable import MaskableTRPO
    from sb3_trpo.recurrent import RecurrentTRPO

__all__ = [
    "TRPO",
    "CnnPolicy",
    "MaskableTRPO",
    "MlpPolicy",
    "MultiInputPolicy",
    "RecurrentTRPO",
    "UpdateReport",
    "__version__",
    "kl_old_new",
    "system_info",
]


def __getattr__(name: str) -> Any:
    """Hand out the variants, which need sb3-contrib, when they are asked for."""
    if name == "MaskableTRPO":
        from sb3_trpo.maskable import MaskableTRPO

        return MaskableTRPO
    if name == "RecurrentTRPO":
        from sb3_trpo.recurrent import RecurrentTRPO

        return RecurrentTRPO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
