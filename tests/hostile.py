"""Values that nothing can work with, and an environment that hands them out."""

import math
from typing import Any

import numpy as np

from tests.small_models import RandomEnv

N_STEPS = 16
VALUES = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e30": 1e30,
    "1e-30": 1e-30,
    "zeros": 0.0,
    "constant": 3.0,
}


class Fault:
    """
    A value, and where it goes: into one number of an array, or into all of it where it is only strange as a whole.

    :param name: of the value
    :param seed: draws the number that it goes into; every second one is everywhere
    """

    def __init__(self, name: str, seed: int):
        self.value = VALUES[name]
        self.random = np.random.default_rng(seed)
        self.everywhere = name in ("zeros", "constant") or seed % 2 == 0

    def put(self, array: np.ndarray) -> None:
        """Write it, in place."""
        if self.everywhere:
            array[...] = self.value
        else:
            array.reshape(-1)[self.random.integers(array.size)] = self.value


class HostileEnv(RandomEnv):
    """An environment of which the observations or the rewards are spoilt as long as there is a fault."""

    fault: Fault | None = None
    place = ""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        # Not with the first step, and not at the end of an episode, where it would be reset away
        if self.fault is not None and (self.fault.everywhere or self.n_steps == 5):
            if self.place == "observation":
                self.fault.put(observation)
            elif self.place == "reward":
                reward = self.fault.value
        return observation, reward, terminated, truncated, info
