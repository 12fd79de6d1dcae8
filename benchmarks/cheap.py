"""Environments that cost nothing, so that what stands around them is all that is measured."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv


class Cheap(VecEnv):
    """Environments that cost nothing: every step is the same noise, and one of twenty ends."""

    def __init__(self, n_envs: int, action_space: spaces.Space | None = None):
        self.rows = np.random.default_rng(0).normal(size=(n_envs, 17)).astype(np.float32)
        self.dones = np.arange(n_envs) % 20 == 0
        super().__init__(n_envs, spaces.Box(-np.inf, np.inf, (17,)), action_space or spaces.Discrete(2))

    def reset(self) -> Any:
        return self.rows.copy()

    def step_async(self, actions: np.ndarray) -> None:
        pass

    def step_wait(self) -> Any:
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(self.dones):
            infos[index]["terminal_observation"] = self.rows[index]
        return self.rows.copy(), self.rows[:, 0].copy(), self.dones.copy(), infos

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    set_attr = env_method = env_is_wrapped = close = lambda self, *args, **kwargs: []  # type: ignore[assignment]
