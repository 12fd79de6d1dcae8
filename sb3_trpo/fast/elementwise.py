"""
Elementwise functions that networks are made of, each with its derivative: the one table of them.

The plain twin of each is torch's module, differentiated by autograd.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

aten = th.ops.aten


class Elementwise(NamedTuple):
    """
    A function of every number by itself.

    :param function: gives f(x) for a module and x
    :param times_slope: gives f'(x) times values, for a module, the values, and x or f(x)
    :param of_input: whether the derivative is made from x, or from f(x)
    """

    function: Callable[[Any, th.Tensor], th.Tensor]
    times_slope: Callable[[Any, th.Tensor, th.Tensor], th.Tensor]
    of_input: bool = True


TABLE: dict[type[nn.Module], Elementwise] = {
    nn.Tanh: Elementwise(lambda module, x: x.tanh(), lambda module, values, y: aten.tanh_backward(values, y), of_input=False),
    nn.Sigmoid: Elementwise(
        lambda module, x: x.sigmoid(), lambda module, values, y: aten.sigmoid_backward(values, y), of_input=False
    ),
    nn.ReLU: Elementwise(
        lambda module, x: x.relu(), lambda module, values, y: aten.threshold_backward(values, y, 0), of_input=False
    ),
    nn.Identity: Elementwise(lambda module, x: x, lambda module, values, y: values, of_input=False),
    nn.ELU: Elementwise(
        lambda module, x: F.elu(x, module.alpha),
        lambda module, values, x: aten.elu_backward(values, module.alpha, 1.0, 1.0, False, x),
    ),
    nn.SiLU: Elementwise(lambda module, x: F.silu(x), lambda module, values, x: aten.silu_backward(values, x)),
    nn.GELU: Elementwise(
        lambda module, x: F.gelu(x, approximate=module.approximate),
        lambda module, values, x: aten.gelu_backward(values, x, approximate=module.approximate),
    ),
    nn.LeakyReLU: Elementwise(
        lambda module, x: F.leaky_relu(x, module.negative_slope),
        lambda module, values, x: aten.leaky_relu_backward(values, x, module.negative_slope, False),
    ),
    nn.Softplus: Elementwise(
        lambda module, x: F.softplus(x, module.beta, module.threshold),
        lambda module, values, x: aten.softplus_backward(values, x, module.beta, module.threshold),
    ),
}


def keeps_input(module: nn.Module | None) -> bool:
    """Whether the derivative is made from what the function was given, and not from what it gave."""
    return module is not None and TABLE[type(module)].of_input


def apply(module: nn.Module | None, values: th.Tensor) -> th.Tensor:
    """Return what a function gives; ``None`` is the identity."""
    return values if module is None else TABLE[type(module)].function(module, values)


def times_slope(module: nn.Module | None, values: th.Tensor, kept: th.Tensor) -> th.Tensor:
    """
    Multiply by the derivative: what carries tangents forward and cotangents back.

    :param module: the function, ``None`` for the identity
    :param values: tangents or cotangents
    :param kept: what the function was given or what it gave, as :func:`keeps_input` says; of the same shape
    """
    return values if module is None else TABLE[type(module)].times_slope(module, values, kept)


def in_place(module: nn.Module | None) -> Callable[[np.ndarray], object]:
    """Return what applies a function to an array in place."""
    # NumPy's own where it has one: a few microseconds less for small arrays
    if type(module) is nn.Tanh:
        return lambda values: np.tanh(values, out=values)
    if type(module) is nn.ReLU:
        return lambda values: np.maximum(values, 0.0, out=values)
    if module is None:
        return lambda values: values
    return lambda values: np.copyto(values, apply(module, th.from_numpy(values)).numpy())


def times_slope_in_place(module: nn.Module | None, values: np.ndarray, kept: np.ndarray) -> None:
    """Do in an array what :func:`times_slope` does."""
    if type(module) is nn.Tanh:
        slope = np.multiply(kept, kept)
        np.subtract(1.0, slope, out=slope)
        values *= slope
    elif type(module) is nn.ReLU:
        values *= kept > 0.0
    elif module is not None:
        values[:] = times_slope(module, th.from_numpy(values), th.from_numpy(kept)).numpy()
