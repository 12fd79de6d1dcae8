"""Trust Region Policy Optimization for Stable-Baselines3, with a trust region that is kept."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sb3_trpo.about import __version__, system_info
from sb3_trpo.metrics import UpdateReport
from sb3_trpo.objective import kl_old_new
from sb3_trpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.trpo import TRPO

if TYPE_CHECKING:
    from sb3_trpo.maskable import MaskableTRPO
    from sb3_trpo.maskable_recurrent import MaskableRecurrentTRPO
    from sb3_trpo.recurrent import RecurrentTRPO

__all__ = [
    "TRPO",
    "CnnPolicy",
    "MaskableRecurrentTRPO",
    "MaskableTRPO",
    "MlpPolicy",
    "MultiInputPolicy",
    "RecurrentTRPO",
    "UpdateReport",
    "__version__",
    "kl_old_new",
    "system_info",
]


# Where the variants are, which need sb3-contrib
_VARIANTS = {
    "MaskableRecurrentTRPO": "sb3_trpo.maskable_recurrent",
    "MaskableTRPO": "sb3_trpo.maskable",
    "RecurrentTRPO": "sb3_trpo.recurrent",
}
if find_spec("sb3_contrib") is None:
    # ``from sb3_trpo import *`` asks for everything
    __all__ = [name for name in __all__ if name not in _VARIANTS]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Hand out the variants when they are asked for."""
    if name in _VARIANTS:
        return getattr(import_module(_VARIANTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
