"""Trust Region Policy Optimization for Stable-Baselines3, with a trust region that is kept."""

from sb3_trpo.metrics import UpdateReport
from sb3_trpo.objective import kl_old_new
from sb3_trpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.trpo import TRPO

__version__ = "0.1.0"

__all__ = ["TRPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy", "UpdateReport", "__version__", "kl_old_new"]
