"""Vector environments by name."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import RecordEpisodeStatistics
from stable_baselines3.common.monitor import Monitor

from sb3_trpo.vec_env.adapter import GymnasiumVecEnv

BACKENDS = ("auto", "sync", "async", "vector", "envpool")


def make_vector_env(
    id: str,
    n_envs: int,
    *,
    seed: int | None = None,
    backend: str = "auto",
    wrappers: Sequence[Callable[[gym.Env], gym.Env]] = (),
    env_kwargs: dict[str, Any] | None = None,
    vector_kwargs: dict[str, Any] | None = None,
) -> GymnasiumVecEnv:
    """
    Make several environments of one task, to train or evaluate with as with SB3's ``make_vec_env``.

    - ``"sync"``: Gymnasium's ``SyncVectorEnv``: the numbers of ``make_vec_env``, bit for bit
    - ``"async"``: Gymnasium's ``AsyncVectorEnv``, a process for each environment: the same numbers
    - ``"vector"``: the task's own vectorised implementation where Gymnasium has one; random numbers and end of episodes are
      its own, see ``GymnasiumVecEnv``
    - ``"envpool"``: EnvPool, where it has a task of this name; its implementation in C++ is close to Gymnasium's, but the
      numbers are not the same. EnvPool's Atari tasks are not SB3's ``AtariWrapper``: other options, other scores
    - ``"auto"``: EnvPool if it is installed, it and Gymnasium both know the name, and neither wrappers nor arguments are asked
      for; ``"sync"`` otherwise. The backend is ``env.backend.name``

    :param id: of the task
    :param n_envs: number of environments
    :param seed: of the first environment; None for a random one
    :param backend: one of those above
    :param wrappers: put around each environment and its ``Monitor``, in this order; one that counts episodes itself takes the
        place of that; ``"sync"`` and ``"async"`` only
    :param env_kwargs: arguments of the environment
    :param vector_kwargs: arguments of the vector environment, such as ``num_threads`` of EnvPool
    :return: the environments, seeded
    :raises ValueError: if the backend is none of those, or cannot do what is asked for
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if not n_envs >= 1:
        raise ValueError(f"n_envs must be at least 1, got {n_envs}")
    asks_for_more = bool(wrappers or env_kwargs or vector_kwargs)
    if backend == "auto":
        backend = "envpool" if not asks_for_more and _both_know(id) else "sync"
    if wrappers and backend not in ("sync", "async"):
        raise ValueError(f"wrappers must be empty with backend {backend!r}, got {wrappers}: it has no environments to wrap")
    if backend == "envpool":
        return _make_envpool(id, n_envs, seed, (env_kwargs or {}) | (vector_kwargs or {}))
    mode, kwargs = ("vector_entry_point" if backend == "vector" else backend), dict(vector_kwargs or {})
    if backend != "vector":
        # The one mode in which nothing is reset by this package
        kwargs = {"autoreset_mode": "SameStep"} | kwargs
    # As in `make_vec_env`: episodes are those of the task, whatever a wrapper makes of rewards and ends
    counting = any(getattr(each, "func", each) in (Monitor, RecordEpisodeStatistics) for each in wrappers)
    around: Any = [Monitor, *wrappers] if wrappers and not counting else wrappers
    env = gym.make_vec(id, n_envs, mode, vector_kwargs=kwargs, wrappers=around, **(env_kwargs or {}))
    made = GymnasiumVecEnv(env)
    made.seed(seed)
    return made


def _both_know(id: str) -> bool:
    """Tell whether EnvPool is installed and has a task of a name that is Gymnasium's too."""
    try:
        envpool: Any = importlib.import_module("envpool")
    except ImportError:
        return False
    return id in gym.registry and id in envpool.list_all_envs()


def _make_envpool(id: str, n_envs: int, seed: int | None, kwargs: dict[str, Any]) -> GymnasiumVecEnv:
    try:
        envpool: Any = importlib.import_module("envpool")
    except ImportError as error:
        raise ImportError(f"backend 'envpool' needs EnvPool: pip install 'sb3_trpo[envpool]' ({error})") from error
    if id not in envpool.list_all_envs():
        raise ValueError(f"id must be a task of EnvPool with backend 'envpool', got {id!r}; use backend 'sync'")
    if seed is None:
        # SB3 draws one too
        seed = int(gym.utils.seeding.np_random()[0].integers(2**31 - n_envs))
    return GymnasiumVecEnv(envpool.make(id, env_type="gymnasium", num_envs=n_envs, seed=seed, **kwargs))
