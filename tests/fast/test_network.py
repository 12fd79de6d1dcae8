"""What is read as a chain of layers, and what is not."""

import pytest
import torch as th
from torch import nn

from sb3_trpo.fast.network import is_quicker_on_gpu, read_actor
from tests.fast.not_covered import NOT_COVERED


@pytest.mark.parametrize("name", ["extractor", "hook on a layer", "weight norm", "container", "activation at the end"])
def test_what_is_no_chain_is_not_read_as_one(name: str) -> None:
    """Else the lean collection would act on another network than the policy's."""
    assert read_actor(NOT_COVERED[name]().policy) is None


@pytest.mark.parametrize(("device", "n", "expected"), [("cpu", 2**24, False), ("meta", 2**13, False), ("meta", 2**14, True)])
def test_large_network_is_left_where_it_is_unless_that_is_the_cpu(device: str, n: int, expected: bool) -> None:
    """A thousand weights at n inputs at a time."""
    parameters = [nn.Parameter(th.empty(size, device=device)) for size in (1000, 24)]
    assert is_quicker_on_gpu(parameters, n) == expected
