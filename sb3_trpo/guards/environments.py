"""What an environment may be: one that SB3 takes, with spaces that its policies have networks and distributions for."""

from numbers import Integral
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.vec_env import VecEnv


def check_action_space(action_space: spaces.Space) -> None:
    """
    Refuse action spaces for which there is no action distribution.

    :param action_space: that of the environment
    :raises ValueError: naming the space
    """
    if isinstance(action_space, spaces.Box):
        finite = bool(np.isfinite([action_space.low, action_space.high]).all())
        # SB3's buffer would round the actions, and their probabilities with them
        supported = finite and np.issubdtype(action_space.dtype, np.floating)
    elif isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete):
        # SB3's categorical distributions count from zero
        supported = len(action_space.shape or ()) <= 1 and not np.any(action_space.start)
    else:
        # MultiBinary([4]) has the same shape as MultiBinary(4), and SB3 takes only the latter
        supported = isinstance(action_space, spaces.MultiBinary) and isinstance(action_space.n, Integral)
    if not supported:
        raise ValueError(
            "env.action_space must be a Box of floats with finite bounds, a Discrete or one-dimensional MultiDiscrete "
            f"that starts at 0, or a MultiBinary(n) with an integer n, got {action_space}"
        )


def checked_env(env: Any, verbose: int = 0) -> gym.Env | VecEnv:
    """
    Return an environment that can be learned from.

    :param env: a Gymnasium environment, its id or a vectorised environment
    :param verbose: whether to say so when one is made from its id
    :raises TypeError: if it is anything else
    :raises ValueError: if there is no action distribution for its actions
    """
    made = maybe_make_env(env, verbose)
    if not isinstance(made, gym.Env | VecEnv):
        raise TypeError(f"env must be a Gymnasium environment, its id or a VecEnv, got {env!r}")
    check_action_space(made.action_space)
    return made
