"""Environments in which some actions are impossible, and that stop whoever takes one."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from tests.small_models import DISCRETE, VECTOR, RandomEnv


class MaskedEnv(RandomEnv):
    """
    The random environment, where each choice is possible every other time.

    :param probability: of each choice to be possible; one of each variable always is
    """

    def __init__(self, *args: Any, probability: float = 0.5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        space: Any = self.action_space
        self.sizes = (
            [int(space.n)]
            if isinstance(space, spaces.Discrete)
            else [int(n) for n in space.nvec]
            if isinstance(space, spaces.MultiDiscrete)
            else [2] * int(space.n)
        )
        self.probability = probability
        self.mask: list[np.ndarray] = []

    def _draw(self) -> None:
        self.mask = []
        for size in self.sizes:
            possible = self.np_random.random(size) < self.probability
            possible[self.np_random.integers(size)] = True
            self.mask.append(possible)

    def action_masks(self) -> np.ndarray:
        return np.concatenate(self.mask)

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        self._draw()
        return result

    def step(self, action: Any) -> Any:
        for choice, possible in zip(np.atleast_1d(action).astype(int), self.mask, strict=True):
            assert possible[choice], f"{action} is impossible: {self.mask}"
        result = super().step(action)
        self._draw()
        return result


def masked_env(
    observation_space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, n_envs: int = 1, **kwargs: Any
) -> VecEnv:
    """Return copies of it."""
    return DummyVecEnv([lambda: MaskedEnv(observation_space, action_space, **kwargs)] * n_envs)
