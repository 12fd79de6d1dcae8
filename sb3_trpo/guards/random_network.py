"""Networks that are random whatever their mode: how they are noticed, and how they are asked with the same noise twice."""

from collections.abc import Callable
from typing import Any

import torch as th

from sb3_trpo.guards.process import TorchGenerators

# What a random network is told about: of so many states
N_ASKED = 16

# How often it is asked once more before something else is blamed: it may be random now and then
N_DOUBTS = 5
# What differs
OF_ACTOR, OF_VALUES = "another action distribution", "other values"


def is_same_answer(first: th.Tensor, second: th.Tensor) -> bool:
    """Whether two answers are the same up to rounding; a GPU adds in any order."""
    rounding = 1e-4 if first.device.type == "cuda" else 1e-6
    return first.shape == second.shape and th.allclose(first, second, rtol=rounding, atol=0.1 * rounding, equal_nan=True)


@th.no_grad()
def is_random(ask: Callable[[], th.Tensor]) -> bool:
    """Whether a question is answered in another way the second time."""
    return not is_same_answer(ask(), ask())


class SameNoise:
    """
    A context in which torch's generators start from where they were when this was made, each time; afterwards they go on.

    :param device: where the network is
    """

    def __init__(self, device: th.device):
        self.generators = TorchGenerators(device)
        self.states = self.generators.states()

    def __enter__(self) -> None:
        self.borrowed = self.generators.borrowed()
        self.borrowed.__enter__()
        self.generators.put(self.states)

    def __exit__(self, *error: Any) -> None:
        self.borrowed.__exit__(*error)
