"""Vector environments at their own speed: adapters and wrappers that are honest SB3 VecEnvs, for any SB3 algorithm."""

from sb3_trpo.vec_env.adapter import GymnasiumVecEnv, as_vec_env
from sb3_trpo.vec_env.factory import make_vector_env
from sb3_trpo.vec_env.lean import LeanVecEnv
from sb3_trpo.vec_env.normalize import FastVecNormalize
from sb3_trpo.vec_env.pool import PoolVecEnv

__all__ = ["FastVecNormalize", "GymnasiumVecEnv", "LeanVecEnv", "PoolVecEnv", "as_vec_env", "make_vector_env"]
