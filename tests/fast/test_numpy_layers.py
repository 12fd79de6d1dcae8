"""Layers in NumPy beside torch's own, forward and back."""

from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_trpo.fast.numpy_layers import forward, pull_back
from tests.cases import normal, shake


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 4), lambda: nn.LayerNorm(5, eps=1e-2)], ids=["linear", "layer norm"])
def test_layer_and_its_gradients_are_those_of_torch(make: Any, n: int) -> None:
    """By autograd, in float64."""
    layer = make().double()
    shake(list(layer.parameters()), scale=0.5, seed=1)
    inputs = normal(n, 5, seed=2).double().requires_grad_()
    expected = layer(inputs)
    cotangent = normal(*expected.shape, seed=3).double()
    gradients = th.autograd.grad(expected, [inputs, layer.weight, layer.bias], cotangent)
    weight, bias = (parameter.detach().numpy() for parameter in (layer.weight, layer.bias))
    given = inputs.detach().numpy().copy()
    np.testing.assert_allclose(forward(layer, given, weight, bias), expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    of_parameters = np.empty_like(weight), np.empty_like(bias)
    of_inputs = pull_back(layer, given, cotangent.numpy(), weight, of_parameters, to_inputs=True)
    for ours, theirs in zip((of_inputs, *of_parameters), gradients, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(given, inputs.detach().numpy())
