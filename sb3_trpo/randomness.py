"""Random numbers of a model's own, so that models which learn side by side in threads do not draw from one another."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th

from sb3_trpo.guards.process import TorchGenerators


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
        # Where torch's generators stand when they draw for this model, by the type of the device
        self._in_torch: dict[str, list[np.ndarray]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Zips of before know nothing of torch's generators
        vars(self).update({"_in_torch": {}} | state)

    def permutation(self, n: int) -> np.ndarray:
        """Return the numbers from 0 to n - 1 in random order. Of the process it is NumPy's generator, as in SB3's buffers."""
        return (self._orders or np.random).permutation(n)

    def for_actions(self) -> np.random.Generator:
        """Return the generator of a rollout's actions; of the process' generators torch's seeds it, as SB3 draws from that."""
        return self.own or np.random.default_rng(int(th.randint(2**63 - 1, (), device="cpu")))

    def of_process(self, rank: int) -> "RandomNumbers":
        """
        Return numbers of another process, which have nothing in common with these: those of rank 0.

        :param rank: number of the process, from 1
        """
        if self.own is None:
            return self
        bits: Any = self.own.bit_generator
        own = np.random.Generator(bits.jumped(rank))
        other = RandomNumbers(int(own.integers(2**32)))
        other.own = other._orders = own
        return other

    def go_on_from_process(self, device: th.device) -> None:
        """Draw in torch what the process would draw next, as a model of SB3 does once it is seeded and built."""
        if self.seed is not None:
            self._in_torch[device.type] = TorchGenerators(device).states()

    @contextmanager
    def in_torch(self, device: th.device) -> Iterator[None]:
        """
        Have torch draw numbers of the model's own inside, where code draws from torch's generators of the process.

        :param device: where the numbers are drawn
        """
        if self.seed is None:
            yield
            return
        generators = TorchGenerators(device)
        with generators.borrowed():
            if device.type in self._in_torch:
                generators.put(self._in_torch[device.type])
            else:
                th.manual_seed(self.seed)
            try:
                yield
            finally:
                self._in_torch[device.type] = generators.states()

    def twin(self) -> "RandomNumbers":
        """Return one that draws the same numbers as this one would, and leaves them to it."""
        twin = copy.deepcopy(self)
        if self.own is None:
            twin._orders = np.random.RandomState()
            twin._orders.set_state(np.random.get_state())
        return twin
