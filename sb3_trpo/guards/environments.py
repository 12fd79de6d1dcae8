"""What an environment may be: one that SB3 takes, with spaces that its policies have networks and distributions for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_trpo.guards.arguments import UnsupportedError
from sb3_trpo.guards.observations import check_structure
from sb3_trpo.vec_env import as_vec_env

# What the constructor, `load` and `set_env` take, beside what SB3 makes of things of other kinds
AnyEnv = gym.Env | VecEnv | gym.vector.VectorEnv | EnvSpec | str


def spends_steps_on_resets(env: Any) -> Any:
    """
    Return what of a vector environment, it or one inside of it, spends a step on each reset; ``None`` where nothing does.

    A wrapper is not asked, which may not answer for what is inside.
    """
    while env is not None and not getattr(env, "__dict__", {}).get("wastes_steps", False):
        env = getattr(env, "__dict__", {}).get("venv")
    return env


def check_kind_of_actions(action_space: spaces.Space, kinds: tuple[type[spaces.Space], ...] | None, *, of: str) -> None:
    """
    Refuse actions of a kind that an algorithm is not for.

    :param action_space: that of the environment
    :param kinds: what it is for, ``None`` for everything that SB3 knows
    :param of: name of the algorithm
    :raises UnsupportedError: naming the space
    """
    if kinds is not None and not isinstance(action_space, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise UnsupportedError(f"The algorithm only supports {names} as action spaces but {action_space} was provided to {of}")


def check_action_space(action_space: spaces.Space) -> None:
    """
    Refuse action spaces for which there is no action distribution.

    :param action_space: that of the environment
    :raises UnsupportedError: naming the space
    """
    if isinstance(action_space, spaces.Box):
        finite = bool(np.isfinite([action_space.low, action_space.high]).all())
        # SB3's buffer would round the actions, and their probabilities with them
        supported = finite and np.issubdtype(action_space.dtype, np.floating) and bool(np.prod(action_space.shape))
    elif isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete):
        # SB3's categorical distributions count from zero
        supported = len(action_space.shape or ()) <= 1 and not np.any(action_space.start)
    else:
        # MultiBinary([4]) has the same shape as MultiBinary(4), and SB3 takes only the latter
        supported = isinstance(action_space, spaces.MultiBinary) and isinstance(action_space.n, Integral)
    if not supported:
        raise UnsupportedError(
            "env.action_space must be a Box of one float or more with finite bounds, a Discrete or one-dimensional "
            f"MultiDiscrete that starts at 0, or a MultiBinary(n) with an integer n, got {action_space}: "
            "gymnasium.wrappers.TransformAction makes such a space of another one, by a function that shifts, scales or rounds"
        )


def made_env(env: Any, verbose: int = 0) -> Any:
    """
    Make the environment that an id or a specification names.

    :param env: whatever the user gave for an environment
    :param verbose: whether to say so when one is made from its id
    :return: the environment made, and of anything else what was given
    """
    if not isinstance(env, EnvSpec):
        return maybe_make_env(env, verbose)
    if "render_mode" in env.kwargs:
        return gym.make(env)
    try:
        # As SB3 does with an id: videos can be recorded
        return gym.make(env, render_mode="rgb_array")
    except TypeError:
        return gym.make(env)


@contextmanager
def closed_if_refused(made: Any, given: Any) -> Iterator[None]:
    """
    Close an environment that we made, if what follows refuses it: nobody else could.

    :param made: what :func:`made_env` returned
    :param given: what it was given
    """
    try:
        yield
    except BaseException:
        if made is not given:
            made.close()
        raise


def as_env(env: Any) -> gym.Env | VecEnv:
    """
    Return an environment of a kind that SB3 takes, converted as it does: that of an old Gym through Shimmy.

    A vector environment of Gymnasium or EnvPool becomes a ``VecEnv``.

    :param env: an environment, made already
    :raises TypeError: if it is none of those
    :raises ImportError: SB3's, if it needs Shimmy and that is not installed
    """
    if isinstance(env, gym.vector.VectorEnv):
        env = as_vec_env(env)
    if isinstance(env, VecEnv):
        return env
    try:
        return _patch_env(env)
    except ValueError as error:
        raise TypeError(
            f"env must be a Gymnasium environment, its id or EnvSpec, one of the old Gym, or a VecEnv, got {env!r}"
        ) from error


def wrapped_env(env: Any, wrap: Callable[[Any], VecEnv]) -> VecEnv:
    """
    Return an environment that can be learned from, vectorised. It is looked at once SB3 has converted it.

    :param env: an environment, made already
    :param wrap: SB3's ``_wrap_env``
    :raises TypeError: if it is no environment
    :raises ValueError: if there is no action distribution for its actions, or no network for its observations
    """
    converted = as_env(env)
    # Before the wrapping, which stumbles over some of them
    check_structure(converted.observation_space)
    vectorised = wrap(converted)
    check_action_space(vectorised.action_space)
    return vectorised
