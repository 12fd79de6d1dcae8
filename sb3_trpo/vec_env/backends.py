"""What each kind of vector environment can be asked, in one form: Gymnasium's two, EnvPool, and every other."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from stable_baselines3.common.env_util import is_wrapped

from sb3_trpo.vec_env.infos import Info, info_of

NEXT_STEP, SAME_STEP, DISABLED = "NextStep", "SameStep", "Disabled"
# What the environments have in common with the vector environment around them
COMMON = ("metadata", "render_mode", "spec")

Observations = Any


def rows_of(observations: Observations, index: Any) -> Observations:
    """
    Pick rows of batched observations.

    :param observations: an array, or a dict or tuple of such at any depth; lists and arrays of other libraries will do
    :param index: of a row, or of several
    :return: views or copies, as NumPy gives them
    """
    if isinstance(observations, dict):
        return {key: rows_of(rows, index) for key, rows in observations.items()}
    if isinstance(observations, tuple):
        return tuple(rows_of(rows, index) for rows in observations)
    return np.asarray(observations)[index]


def put_rows(observations: Observations, index: np.ndarray, rows: Observations) -> None:
    """
    Overwrite rows of batched observations.

    :param observations: an array, or a dict or tuple of arrays
    :param index: of the rows, shape (k,)
    :param rows: k of them
    """
    if isinstance(observations, np.ndarray):
        observations[index] = rows
        return
    for key in observations if isinstance(observations, dict) else range(len(observations)):
        observations[key][index] = rows[key]


def as_array(values: Any) -> np.ndarray:
    """Return numbers as an array of NumPy's: tensors of torch too, wherever they are."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


class Backend:
    """
    A vector environment of any kind: its autoreset mode and spaces are known, and nothing of the environments inside.

    :param env: the vector environment
    :raises ValueError: if it does not say when it resets, or in a way that cannot be made exact
    """

    name = "vector"
    # Whether arrays that it returned are written to again: assumed of whatever is not known
    reuses_memory = True

    def __init__(self, env: VectorEnv):
        self.env = env
        self.n_envs = int(env.num_envs)
        mode = env.metadata.get("autoreset_mode")
        self.mode = getattr(mode, "value", mode)
        if self.mode not in (NEXT_STEP, SAME_STEP, DISABLED):
            raise ValueError(
                f"env.metadata['autoreset_mode'] must say when {env} resets, as gymnasium.vector.AutoresetMode, got {mode!r}. "
                f"Gymnasium 1.1 and later do (this is {gym.__version__}); an environment of your own must"
            )
        for what in ("single_observation_space", "single_action_space"):
            if not isinstance(getattr(env, what), spaces.Space):
                raise ValueError(f"env.{what} must be a Gymnasium space, got {getattr(env, what)!r}")

    @property
    def resets_masked(self) -> bool:
        """Whether ``reset(options={"reset_mask": ...})`` resets those environments, and at once, whatever the mode."""
        return self.mode == DISABLED

    def own(self, values: Any) -> Any:
        """
        Copy what would change later.

        :param values: an array, or dicts and tuples of arrays; or anything else
        :return: the same, with arrays that nobody else writes to
        """
        if isinstance(values, dict):
            return {key: self.own(value) for key, value in values.items()}
        if isinstance(values, tuple):
            return tuple(map(self.own, values))
        if hasattr(values, "detach"):
            values = as_array(values)
        if not isinstance(values, np.ndarray) or values.dtype == object:
            return copy.deepcopy(values)
        return values.copy() if self.reuses_memory else values

    def check_seed(self, seed: int) -> None:
        """
        Warn if a seed will have no effect.

        :param seed: of the first environment
        """

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Observations, Info]:
        """
        Reset every environment.

        :param seed: of the first environment, from which Gymnasium's own count on as SB3 does; others have one generator
        :param options: for all of them
        :return: observations and infos, as Gymnasium has them
        """
        return self.env.reset(seed=seed, options=options)

    def restart(self, dones: np.ndarray) -> tuple[Observations, list[Info]]:
        """
        Reset the environments whose episode ended.

        :param dones: who they are, shape (n_envs,)
        :return: their k observations and infos
        """
        observations, infos = self.env.reset(options={"reset_mask": dones.copy()})
        return rows_of(observations, dones), [info_of(infos, index, self.n_envs) for index in np.flatnonzero(dones).tolist()]

    def _no_environments(self, what: str) -> ValueError:
        return ValueError(
            f"{what} needs environments of their own, and {type(self.env.unwrapped).__name__} steps all of them as one; use "
            'backend="sync" or ask the vector environment itself'
        )

    def has(self, name: str) -> bool:
        """
        Tell whether every environment has an attribute.

        :param name: of the attribute
        """
        return name in COMMON

    def get(self, name: str, indices: list[int]) -> list[Any]:
        """
        Read an attribute of some environments.

        :param name: of the attribute
        :param indices: of the environments
        :return: a value for each
        """
        if name in COMMON:
            return [getattr(self.env, name)] * len(indices)
        raise self._no_environments(f"get_attr({name!r})")

    def set(self, name: str, value: Any, indices: list[int]) -> None:
        """
        Set an attribute of some environments, where it is already or else on the outermost wrapper.

        :param name: of the attribute
        :param value: the same for each of them
        :param indices: of the environments
        """
        raise self._no_environments(f"set_attr({name!r})")

    def call(self, name: str, indices: list[int], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Any]:
        """
        Call a method of some environments.

        :param name: of the method
        :param indices: of the environments
        :param arguments: by position
        :param keywords: by name
        :return: what each returned
        """
        raise self._no_environments(f"env_method({name!r})")

    def is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: list[int]) -> list[bool]:
        """
        Tell whether some environments are inside a wrapper.

        :param wrapper_class: its class
        :param indices: of the environments
        """
        return [False] * len(indices)

    def render(self) -> Sequence[np.ndarray | None]:
        """Return a picture of each environment."""
        frames: Any = self.env.render()
        if frames is None or len(frames) != self.n_envs:
            raise ValueError(f"{self.env} must render one picture for each of its {self.n_envs} environments to be shown here")
        return list(frames)


class SyncBackend(Backend):
    """Gymnasium's ``SyncVectorEnv``."""

    name = "sync"

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        # A vector wrapper may have memory of its own, and may not know of masks
        is_bare = env is env.unwrapped
        self.reuses_memory = not (is_bare and self.inside.copy)
        self._knows_masks = is_bare and type(env).reset in (SyncVectorEnv.reset, AsyncVectorEnv.reset)

    @property
    def inside(self) -> Any:
        """The environment in its wrappers."""
        return self.env.unwrapped

    @property
    def resets_masked(self) -> bool:
        """Whether masked resets are exact in this mode."""
        return self._knows_masks or super().resets_masked

    def has(self, name: str) -> bool:
        """Tell whether every environment has an attribute."""
        return all(env.has_wrapper_attr(name) for env in self.inside.envs)

    def get(self, name: str, indices: list[int]) -> list[Any]:
        """Read an attribute of some environments."""
        return [self.inside.envs[index].get_wrapper_attr(name) for index in indices]

    def set(self, name: str, value: Any, indices: list[int]) -> None:
        """Set an attribute of some environments."""
        for index in indices:
            self.inside.envs[index].set_wrapper_attr(name, value)

    def call(self, name: str, indices: list[int], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Any]:
        """Call a method of some environments."""
        return [method(*arguments, **keywords) for method in self.get(name, indices)]

    def is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: list[int]) -> list[bool]:
        """Tell whether some environments are inside a wrapper."""
        return [is_wrapped(self.inside.envs[index], wrapper_class) for index in indices]


class AsyncBackend(SyncBackend):
    """
    Gymnasium's ``AsyncVectorEnv``.

    A worker whose environment raises is gone, for good: nothing is asked of one that it does not have.
    """

    name = "async"

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        if self.mode == NEXT_STEP and not self.inside.shared_memory:
            raise ValueError(
                "AsyncVectorEnv must have shared_memory=True in mode NEXT_STEP, got False: its workers would reset twice, and "
                "whole episodes would be lost. autoreset_mode=AutoresetMode.SAME_STEP works with either"
            )
        self._knows_masks = self._knows_masks and self.inside.worker is None

    def has(self, name: str) -> bool:
        """Tell whether every environment has an attribute."""
        return all(self.inside.call("has_wrapper_attr", name))

    def _check(self, name: str) -> None:
        if not self.has(name):
            raise AttributeError(f"the environments have no attribute {name!r}")

    def get(self, name: str, indices: list[int]) -> list[Any]:
        """Read an attribute of some environments."""
        self._check(name)
        values = self.inside.call("get_wrapper_attr", name)
        return [values[index] for index in indices]

    def set(self, name: str, value: Any, indices: list[int]) -> None:
        """Set an attribute of every environment."""
        self._for_all(f"set_attr({name!r})", indices)
        self.inside.set_attr(name, [value] * self.n_envs)

    def call(self, name: str, indices: list[int], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Any]:
        """Call a method of every environment."""
        self._for_all(f"env_method({name!r})", indices)
        self._check(name)
        results = self.inside.call(name, *arguments, **keywords)
        return [results[index] for index in indices]

    def _for_all(self, what: str, indices: list[int]) -> None:
        if sorted(indices) != list(range(self.n_envs)):
            raise ValueError(f"indices must be those of all environments in {what} of an AsyncVectorEnv, got {indices}")

    def is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: list[int]) -> list[bool]:
        """Refuse: the wrappers are in other processes, which cannot be asked for them."""
        raise ValueError(f"an AsyncVectorEnv cannot tell whether its environments are wrapped in a {wrapper_class.__name__}")


class EnvPoolBackend(Backend):
    """EnvPool's environments with ``env_type="gymnasium"``."""

    name = "envpool"
    reuses_memory = False

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        config: dict[str, Any] = env.config  # type: ignore[attr-defined]
        if config["batch_size"] not in (0, self.n_envs):
            raise ValueError(f"batch_size must be num_envs={self.n_envs}, got {config['batch_size']}: SB3 steps all at once")
        if config["max_num_players"] != 1:
            raise ValueError(f"max_num_players must be 1, got {config['max_num_players']}")
        self._seeds = list(config["env_seed"]) or [config["seed"] + index for index in range(self.n_envs)]
        self._was_reset = False

    @property
    def resets_masked(self) -> bool:
        """Whether masked resets are exact in this mode: always."""
        return True

    def own(self, values: Any) -> Any:
        """Return what EnvPool gave: it is made anew for each step, dicts and arrays."""
        return values

    def check_seed(self, seed: int) -> None:
        """Warn if a seed will have no effect."""
        if self._was_reset or self._seeds != [seed + index for index in range(self.n_envs)]:
            so_far = " and were reset already" if self._was_reset else ""
            warnings.warn(
                f"seed({seed}) has no effect: EnvPool takes its seed when it is made, envpool.make(..., seed={seed}). These "
                f"environments were made with seed {self._seeds[0]}{so_far}, and go on as they are",
                stacklevel=3,
            )

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Observations, Info]:
        """Reset every environment; the seed has no effect."""
        self._was_reset = True
        return self.env.reset(options=options)

    def restart(self, dones: np.ndarray) -> tuple[Observations, list[Info]]:
        """Reset the environments whose episode ended; EnvPool returns no row of the others."""
        observations, infos = self.env.reset(options={"reset_mask": dones})
        n_ended = int(dones.sum())
        return observations, [info_of(infos, row, n_ended) for row in range(n_ended)]

    def render(self) -> Sequence[np.ndarray | None]:
        """Return a picture of each environment."""
        pool: Any = self.env
        return list(pool.render(env_ids=np.arange(self.n_envs)))


def backend_of(env: VectorEnv) -> Backend:
    """
    Tell what kind of vector environment it is, by its class and never by a trial.

    :param env: the vector environment
    :return: what can be asked of it
    """
    inside = env.unwrapped
    if isinstance(inside, AsyncVectorEnv):
        return AsyncBackend(env)
    if isinstance(inside, SyncVectorEnv):
        return SyncBackend(env)
    # EnvPool makes a class for each task; a wrapper around one may not know of masks
    if any(cls.__module__.partition(".")[0] == "envpool" for cls in type(env).__mro__):
        return EnvPoolBackend(env)
    return Backend(env)
