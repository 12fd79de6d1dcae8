"""An LSTM in NumPy beside torch's, and its derivative beside autograd's, in float64."""

from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_trpo.fast import lstm

N_INPUTS, HIDDEN = 3, 5


def example(
    length: int = 7, n: int = 4, dtype: th.dtype = th.float64
) -> tuple[nn.LSTM, th.Tensor, tuple[th.Tensor, th.Tensor]]:
    random = th.Generator().manual_seed(0)
    module = nn.LSTM(N_INPUTS, HIDDEN).to(dtype)
    with th.no_grad():
        for parameter in module.parameters():
            parameter.copy_(th.randn(parameter.shape, generator=random))
    shapes = ((length, n, N_INPUTS), (1, n, HIDDEN), (1, n, HIDDEN))
    inputs, hidden, cell = (th.randn(shape, generator=random).to(dtype) for shape in shapes)
    return module, inputs, (hidden, cell)


def as_run(module: nn.LSTM, inputs: th.Tensor, state: tuple[th.Tensor, th.Tensor]) -> lstm.Sequences:
    return lstm.run(lstm.weights_of(module), inputs.numpy(), (state[0][0].numpy(), state[1][0].numpy()))


@pytest.mark.parametrize("length, n", [(1, 1), (7, 4)])
def test_run_is_torchs(length: int, n: int) -> None:
    """Hidden and cell states, of whole sequences and step by step."""
    module, inputs, state = example(length, n)
    outputs, (hidden, cell) = module(inputs, state)
    sequences = as_run(module, inputs, state)
    np.testing.assert_allclose(sequences.hidden[1:], outputs.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(sequences.cell[-1], cell[0].detach().numpy(), rtol=1e-12, atol=1e-14)
    one = state[0][0].numpy(), state[1][0].numpy()
    for row in inputs.numpy():
        one = lstm.step(lstm.weights_of(module), row, one)
    np.testing.assert_allclose(one[0], hidden[0].detach().numpy(), rtol=1e-12, atol=1e-14)


def test_large_numbers_overflow_nowhere() -> None:
    """Gates are open or shut, and nothing warns."""
    module, inputs, state = example(dtype=th.float32)
    sequences = as_run(module, 1e6 * inputs, state)
    assert np.isfinite(sequences.hidden).all() and np.isfinite(sequences.cell).all()


def test_derivative_is_autograds() -> None:
    """Forward by differences between two runs, back by autograd."""
    module, inputs, state = example()
    parameters = lstm.parameters_of(module)
    derivative = lstm.Derivative(lstm.weights_of(module), as_run(module, inputs, state))
    random = th.Generator().manual_seed(1)
    cotangents = th.randn((*inputs.shape[:2], HIDDEN), generator=random, dtype=th.float64)
    expected = th.autograd.grad(module(inputs, state)[0], parameters, cotangents)
    for ours, theirs in zip(derivative.pull_back(cotangents.numpy()), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-10, atol=1e-12)
    tangents: Any = [th.randn(p.shape, generator=random, dtype=th.float64) for p in parameters]
    ends = []
    with th.no_grad():
        for sign in (1.0, -2.0, 1.0):
            for parameter, tangent in zip(parameters, tangents, strict=True):
                parameter.add_(1e-6 * sign * tangent)
            ends.append(module(inputs, state)[0])
    moved = derivative.push_forward(tuple(tangent.numpy() for tangent in tangents))
    np.testing.assert_allclose(moved, ((ends[0] - ends[1]) / 2e-6).numpy(), rtol=1e-6, atol=1e-8)


def test_covers_exactly_what_it_is() -> None:
    """One layer, with biases, in one direction, of torch's own class."""

    class Own(nn.LSTM):
        pass

    others = [
        nn.LSTM(3, 5, num_layers=2),
        nn.LSTM(3, 5, bias=False),
        nn.LSTM(3, 5, bidirectional=True),
        nn.LSTM(3, 5, proj_size=2),
        nn.LSTM(3, 5, batch_first=True),
        nn.GRU(3, 5),
        Own(3, 5),
        nn.LSTM(3, 5, dtype=th.bfloat16),
    ]
    assert lstm.is_covered(nn.LSTM(3, 5)) and not any(map(lstm.is_covered, others))
