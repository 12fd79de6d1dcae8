"""Trust Region Policy Optimization for Stable-Baselines3, with a trust region that is kept."""

from importlib.metadata import version

from sb3_trpo.objective import kl_old_new
from sb3_trpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.report import UpdateReport
from sb3_trpo.trpo import TRPO

__version__ = version("sb3_trpo")

__all__ = ["TRPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy", "UpdateReport", "__version__", "kl_old_new"]
