"""Gymnasium's vector environments, EnvPool's among them, as an honest SB3 VecEnv."""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_trpo.vec_env.backends import NEXT_STEP, SAME_STEP, Backend, Observations, as_array, backend_of, put_rows, rows_of
from sb3_trpo.vec_env.infos import Info, LazyInfos, info_of


class GymnasiumVecEnv(VecEnv):
    """
    A ``gymnasium.vector.VectorEnv`` as SB3's ``VecEnv``: bit for bit what ``DummyVecEnv`` and ``Monitor`` give.

    Episodes are counted here, so that ``env_is_wrapped(Monitor)`` is true of every environment. Where each environment inside
    has a ``Monitor``, it is that which counts them, under the wrappers around it. Infos are made when they are asked for;
    each is the same dict from then on.

    How an ended episode gives way to the next one is asked of ``env.metadata["autoreset_mode"]``:

    - SAME_STEP: the last observation and info come from ``final_obs`` and ``final_info``.
    - DISABLED: those that ended are reset with ``reset_mask``.
    - NEXT_STEP of Gymnasium's ``SyncVectorEnv`` and ``AsyncVectorEnv`` and of EnvPool, without a vector wrapper: the same.
    - NEXT_STEP of others: their next step is none, they reset in it. ``wastes_steps`` is true, and in the step after an
      episode's end ``wasted_steps`` is true of that environment and its info has ``"wasted_step": True``. Its action had no
      effect, its reward is zero, its observation is the first of the new episode, and it is not counted in the episode.
      The observation of the step before is the last one of the old episode, for want of the first of the new one.

    A reset with a mask hands ``options={}`` to environments that ``DummyVecEnv`` hands none.

    :param env: the vector environment; closed with this one
    :raises ValueError: if it does not say when it resets, or in a way that cannot be made exact
    """

    def __init__(self, env: VectorEnv):
        if not isinstance(env, VectorEnv):
            raise ValueError(f"env must be a gymnasium.vector.VectorEnv, got {type(env).__name__}")
        self.vector_env = env
        self.backend: Backend = backend_of(env)
        check_for_nested_spaces(env.single_observation_space)
        super().__init__(self.backend.n_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata
        self.wastes_steps = self.backend.mode == NEXT_STEP and not self.backend.resets_masked
        self.wasted_steps = np.zeros(self.num_envs, bool)
        self._ended_before = np.zeros(self.num_envs, bool)
        self._counts_episodes = not self.backend.has("get_episode_rewards")
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, int)
        self._t_start = time.time()
        self._actions: Any = None
        self._is_closed = False

    @property
    def resets_next(self) -> np.ndarray:
        """Which environments will do nothing but reset in the next step, shape (n_envs,), where steps are wasted."""
        return self._ended_before

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Set the seeds of the next reset; EnvPool has had its own, and a warning says so.

        :param seed: of the first environment, the others count on from it
        :return: the seeds
        """
        if seed is not None:
            self.backend.check_seed(seed)
        return super().seed(seed)

    def reset(self) -> VecEnvObs:
        """Reset every environment and its statistics (see base class)."""
        options = self._options[0]
        if any(other is not options and other != options for other in self._options):
            raise ValueError(f"options must be the same for every environment of a VectorEnv, got {self._options}")
        observations, infos = self.backend.reset(self._seeds[0], options or None)
        infos = self._checked(infos)
        self.reset_infos = [info_of(infos, index, self.num_envs) for index in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        for numbers in (self._returns, self._lengths, self._ended_before):
            numbers[:] = 0
        self.wasted_steps = np.zeros(self.num_envs, bool)
        return self._observed(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for ``step_wait`` (see base class)."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every environment, and go on with the next episode where one ended (see base class)."""
        rows, *numbers, infos = self.vector_env.step(self._actions)
        rewards, terminated, truncated = map(self._one_each, ("rewards", "terminations", "truncations"), numbers)
        observations = self._observed(rows)
        infos = self._checked(infos)
        dones = np.logical_or(terminated, truncated)
        self._lengths += 1
        if self.wastes_steps:
            self.wasted_steps, self._ended_before = self._ended_before, dones.copy()
            self._lengths[self.wasted_steps] = 0
            # A wrapper may have made something of the zero
            rewards = np.where(self.wasted_steps, 0.0, rewards)
        # Monitor adds in float64
        self._returns += rewards
        ended: dict[int, Info] = {}
        if dones.any():
            ended = self._end_episodes(observations, infos, dones)
        lazy: Any = LazyInfos(
            self.num_envs,
            infos,
            ended=ended,
            truncated=np.logical_and(truncated, np.logical_not(terminated)),
            marks={"wasted_step": self.wasted_steps} if self.wastes_steps else None,
        )
        return observations, np.array(rewards, np.float32), dones, lazy

    def _checked(self, infos: Any) -> Info:
        """Return infos as Gymnasium has them, in memory that nobody writes to again."""
        if not isinstance(infos, dict):
            raise ValueError(
                f"infos of {self.vector_env} must be a dict of arrays as Gymnasium's vector environments give it, got a "
                f"{type(infos).__name__}: leave out what makes a list of it, such as the wrapper DictInfoToList"
            )
        return self.backend.own(infos)

    def _one_each(self, what: str, values: Any) -> np.ndarray:
        """Return numbers of a step as an array with one for each environment."""
        array = as_array(values)
        if array.shape != (self.num_envs,):
            raise ValueError(f"{what} of {self.vector_env} must be of shape ({self.num_envs},), got {array.shape}")
        return array

    def _observed(self, observations: Observations) -> Observations:
        """Return observations as SB3 has them: of the space's keys and types, in memory that nobody writes to again."""

        def rows(space: spaces.Space, values: Any) -> np.ndarray:
            return np.asarray(values, dtype=space.dtype)

        owned, space = self.backend.own(observations), self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: rows(part, owned[key]) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(rows(part, values) for part, values in zip(space.spaces, owned, strict=True))
        return rows(space, owned)

    def _end_episodes(self, observations: Observations, infos: Info, dones: np.ndarray) -> dict[int, Info]:
        """
        Collect what is said of episodes that ended, and put the first observations of the next ones in place.

        :param observations: of the step; some are overwritten
        :param infos: of the step
        :param dones: whose episode ended, shape (n_envs,)
        :return: by environment its info
        """
        indices = np.flatnonzero(dones)
        if self.backend.mode == SAME_STEP:
            last, infos = self._same_step(infos, indices)
        else:
            stacked = rows_of(observations, indices)
            last = [rows_of(stacked, row) for row in range(len(indices))]
            if not self.wastes_steps:
                first, reset_infos = self.backend.restart(dones)
                put_rows(observations, indices, first)
                self._restarted(indices, reset_infos)
        elapsed = round(time.time() - self._t_start, 6)
        returns, lengths = self._returns[indices].tolist(), self._lengths[indices].tolist()
        self._returns[indices], self._lengths[indices] = 0.0, 0
        ended = {}
        for row, index in enumerate(indices.tolist()):
            ended[index] = info_of(infos, index, self.num_envs)
            ended[index]["terminal_observation"] = last[row]
            if self._counts_episodes:
                ended[index]["episode"] = {"r": round(returns[row], 6), "l": lengths[row], "t": elapsed}
        return ended

    def _same_step(self, infos: Info, indices: np.ndarray) -> tuple[list[Observations], Info]:
        """Take the last observations and infos from where the mode SAME_STEP has them; the rest are those of resets."""
        last = infos.get("final_obs")
        if last is None:
            raise ValueError(f"{self.vector_env} must give infos['final_obs'] in mode SAME_STEP when an episode ends")
        of_the_last = ("final_obs", "final_info", "_final_obs", "_final_info")
        own = {key: value for key, value in infos.items() if key not in of_the_last}
        self._restarted(indices, [info_of(own, index, self.num_envs) for index in indices.tolist()])
        rows = [rows_of(last, index) for index in indices]
        if isinstance(rows[0], np.ndarray) and rows[0].dtype == object:
            # NumPy has looked into the observations where every episode ended
            rows = [row.astype(self.observation_space.dtype) for row in rows]
        return rows, infos.get("final_info", own)

    def _restarted(self, indices: np.ndarray, infos: list[Info]) -> None:
        for index, info in zip(indices.tolist(), infos, strict=True):
            self.reset_infos[index] = info

    def close(self) -> None:
        """Close the vector environment."""
        if not self._is_closed:
            self.vector_env.close()
        self._is_closed = True

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return a picture of each environment (see base class)."""
        return self.backend.render()

    def render(self, mode: str | None = None) -> np.ndarray | None:
        """
        Render as SB3 does, pictures side by side.

        :param mode: ``"human"`` or ``"rgb_array"``
        :return: the picture in mode ``"rgb_array"``
        """
        if self.render_mode == "human" and mode in (None, "human"):
            self.vector_env.render()
            return None
        return super().render(mode)

    def has_attr(self, attr_name: str) -> bool:
        """
        Tell whether every environment has an attribute.

        :param attr_name: its name
        """
        return self.backend.has(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Read an attribute of environments.

        :param attr_name: its name
        :param indices: of the environments; all if there are none
        :return: a value for each
        """
        return self.backend.get(attr_name, self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of environments.

        :param attr_name: its name
        :param value: the same for each
        :param indices: of the environments; all if there are none
        """
        self.backend.set(attr_name, value, self._indices(indices))

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of environments.

        :param method_name: its name
        :param method_args: arguments by position
        :param indices: of the environments; all if there are none
        :param method_kwargs: arguments by name
        :return: what each returned. Of ``action_masks`` everything is possible where the next step will only reset
        """
        chosen = self._indices(indices)
        returned = self.backend.call(method_name, chosen, method_args, method_kwargs)
        if method_name == "action_masks" and self.wastes_steps:
            return [np.ones_like(mask) if self.resets_next[i] else mask for i, mask in zip(chosen, returned, strict=True)]
        return returned

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        Tell whether environments are in a wrapper; of ``Monitor``, whose work is done here, they are.

        :param wrapper_class: its class
        :param indices: of the environments; all if there are none
        :return: an answer for each
        """
        chosen = self._indices(indices)
        return [True] * len(chosen) if wrapper_class is Monitor else self.backend.is_wrapped(wrapper_class, chosen)

    def _indices(self, indices: VecEnvIndices) -> list[int]:
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]


def as_vec_env(env: Any) -> Any:
    """
    Make a vector environment of Gymnasium or EnvPool one that SB3 takes, and leave everything else as it is.

    EnvPool's objects are a ``VectorEnv`` and a ``gymnasium.Env`` at once: ask this before SB3 is asked.

    :param env: what a user gives as environment: a ``VectorEnv``, ``VecEnv``, ``Env``, an id, or nothing
    :return: a ``GymnasiumVecEnv`` around a ``VectorEnv``; anything else unchanged
    """
    return GymnasiumVecEnv(env) if isinstance(env, VectorEnv) else env
