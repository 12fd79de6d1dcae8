"""Random numbers of a model's own, so that models which learn side by side in threads do not draw from one another."""

import copy
from typing import Any

import numpy as np
import torch as th


class RandomNumbers:
    """
    What a model draws its exploration, its minibatches and its thinned states from.

    A model with a seed has a generator of its own. One without draws from the generators of the process, as SB3 does, so that
    they can be seeded from outside.

    :param seed: the model's
    """

    def __init__(self, seed: int | None):
        self.seed = seed
        self.own = None if seed is None else np.random.default_rng(seed)
        self._orders: Any = self.own

    def permutation(self, n: int) -> np.ndarray:
        """Return the numbers from 0 to n - 1 in random order. Of the process it is NumPy's generator, as in SB3's buffers."""
        return (self._orders or np.random).permutation(n)

    def for_actions(self) -> np.random.Generator:
        """Return the generator of a rollout's actions; of the process' generators torch's seeds it, as SB3 draws from that."""
        return self.own or np.random.default_rng(int(th.randint(2**63 - 1, (), device="cpu")))

    def of_process(self, rank: int) -> "RandomNumbers":
        """Return numbers of another process, which have nothing in common with these (those of rank 0)."""
        other = copy.deepcopy(self)
        if self.own is not None:
            bits: Any = self.own.bit_generator
            other.own = other._orders = np.random.Generator(bits.jumped(rank))
        return other

    def twin(self) -> "RandomNumbers":
        """Return one that draws the same numbers as this one would, and leaves them to it."""
        twin = copy.deepcopy(self)
        if self.own is None:
            twin._orders = np.random.RandomState()
            twin._orders.set_state(np.random.get_state())
        return twin
