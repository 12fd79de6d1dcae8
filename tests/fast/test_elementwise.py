"""The table of elementwise functions: what torch's modules compute, and its derivatives."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_trpo.fast.elementwise import apply, in_place, keeps_input, times_slope, times_slope_in_place
from tests.fast.covered import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_function_and_slope_are_those_of_torch(name: str) -> None:
    """By autograd in float64, far out and near zero; in NumPy the same, in place."""
    module: Any = ACTIVATIONS[name]()
    x = th.linspace(-40.0, 40.0, 802, dtype=th.float64, requires_grad=True)
    values = th.linspace(-2.0, 3.0, 802, dtype=th.float64)
    expected = module(x.clone())
    (slopes,) = th.autograd.grad(expected, x, values)
    result = apply(module, x.detach())
    kept = x.detach() if keeps_input(module) else result
    th.testing.assert_close(result, expected.detach(), rtol=1e-12, atol=1e-12)
    th.testing.assert_close(times_slope(module, values, kept), slopes, rtol=1e-12, atol=1e-12)
    array, cotangent = x.detach().numpy().copy(), values.numpy().copy()
    in_place(module)(array)
    times_slope_in_place(module, cotangent, kept.numpy())
    np.testing.assert_allclose(array, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(cotangent, slopes.numpy(), rtol=1e-12, atol=1e-12)


def test_no_function_is_the_identity() -> None:
    values = th.arange(3.0)
    assert apply(None, values) is values and times_slope(None, values, values) is values and not keeps_input(None)
