"""Vector environments of this package for RL Zoo, which makes its own from a list of functions."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.vec_env import LeanVecEnv, PoolVecEnv, make_vector_env

# What every environment is in: EnvPool and our adapter do the same
OF_EVERY_ENV = (Monitor, TimeLimit, OrderEnforcing, PassiveEnvChecker)


def envpool_of(env_fns: Sequence[Callable[[], gym.Env]], **kwargs: Any) -> VecEnv:
    """
    Make EnvPool's environments of the task that functions would make.

    :param env_fns: functions that make one environment each, of the same task, as RL Zoo gives them to a ``VecEnv``
    :param kwargs: arguments of EnvPool, such as ``num_threads``
    :return: as many, with the seed of the first one's action space, where RL Zoo has put it
    :raises ValueError: if they are wrapped, or made with arguments, of which EnvPool knows nothing
    """
    example = env_fns[0]()
    generator: Any = example.action_space.np_random.bit_generator
    spec, seed = example.spec, int(generator.seed_seq.entropy) % (2**31 - len(env_fns))
    wrappers, inner = [], example
    while isinstance(inner, gym.Wrapper):
        wrappers.append(type(inner))
        inner = inner.env
    example.close()
    own = [wrapper.__name__ for wrapper in wrappers if wrapper not in OF_EVERY_ENV]
    known = gym.registry.get(spec.id) if spec is not None else None
    arguments = {} if spec is None else {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    if own or known is None or arguments != known.kwargs:
        raise ValueError(
            f"--vector-env must be lean or pool with an environment in wrappers or with arguments of its own, got envpool for "
            f"{spec} in {own}"
        )
    return make_vector_env(known.id, len(env_fns), seed=seed, backend="envpool", vector_kwargs=kwargs or None)


QUICK_ENVS: dict[str, Callable[..., VecEnv]] = {"lean": LeanVecEnv, "pool": PoolVecEnv, "envpool": envpool_of}
"""What ``python -m sb3_trpo.zoo train --vector-env`` may be."""
