"""
One layer of an LSTM in NumPy: a step, whole sequences, and their derivative forward and back, written out.

Hochreiter & Schmidhuber 1997, *Long Short-Term Memory*, with the forget gate of Gers et al. 2000, as torch has it: the gates
i, f, g, o are σ, σ, tanh, σ of W x + b + U h + d; then c' = f c + i g and h' = o tanh c'. Everything that needs no recurrence
is done for all steps in one product.

The plain twin is ``torch.nn.LSTM``, differentiated by autograd.
"""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn

# A weight of the inputs (4 hidden, n_inputs), one of the state (4 hidden, hidden), and the biases of both, (4 hidden,)
Weights = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
# Hidden and cell state, shape (n, hidden)
State = tuple[np.ndarray, np.ndarray]


def is_covered(lstm: Any) -> bool:
    """Whether a module is what is written out here: torch's LSTM of one layer, with biases, in one direction, as it is."""
    return (
        type(lstm) is nn.LSTM
        and lstm.num_layers == 1
        and lstm.bias
        and not lstm.bidirectional
        and not lstm.proj_size
        and not lstm.batch_first
        and len(list(lstm.parameters())) == 4  # a parametrisation has others
        and all(p.device.type == "cpu" and p.dtype in (th.float32, th.float64) for p in lstm.parameters())
    )


def parameters_of(lstm: nn.LSTM) -> list[nn.Parameter]:
    """List the parameters in the order of ``Weights``."""
    return [getattr(lstm, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]


def weights_of(lstm: nn.LSTM) -> Weights:
    """Return the parameters as arrays, in their own memory."""
    w, u, b, d = (parameter.detach().numpy() for parameter in parameters_of(lstm))
    return w, u, b, d


def _sigmoid(values: np.ndarray) -> np.ndarray:
    """Compute in place; by tanh, which does not overflow."""
    values *= 0.5
    np.tanh(values, out=values)
    values *= 0.5
    values += 0.5
    return values


def step(weights: Weights, inputs: np.ndarray, state: State) -> State:
    """Return the state after one step; inputs of shape (n, n_inputs)."""
    w, u, b, d = weights
    hidden, cell = state
    gates = inputs.dot(w.T)
    gates += hidden.dot(u.T)
    gates += b
    gates += d
    return _after(gates, cell)


def _after(gates: np.ndarray, cell: np.ndarray) -> State:
    """Return the state after a step, whose gates are made of what is given, in place."""
    n = cell.shape[1]
    _sigmoid(gates[:, : 2 * n])
    np.tanh(gates[:, 2 * n : 3 * n], out=gates[:, 2 * n : 3 * n])
    _sigmoid(gates[:, 3 * n :])
    after = gates[:, n : 2 * n] * cell
    after += gates[:, :n] * gates[:, 2 * n : 3 * n]
    return gates[:, 3 * n :] * np.tanh(after), after


class Sequences(NamedTuple):
    """
    What a run over sequences leaves; all of shape (length, n_sequences, ...).

    :param inputs: what was given
    :param gates: i, f, g and o, shape (length, n_sequences, 4 hidden)
    :param hidden: states, that before the first step too, shape (length + 1, n_sequences, hidden)
    :param cell: the same
    """

    inputs: np.ndarray
    gates: np.ndarray
    hidden: np.ndarray
    cell: np.ndarray

    @property
    def nbytes(self) -> int:
        """How much memory it takes, with what the derivative is made from."""
        return 3 * (self.gates.nbytes + self.hidden.nbytes)


def run(weights: Weights, inputs: np.ndarray, state: State) -> Sequences:
    """
    Run over sequences.

    :param weights: of the layer
    :param inputs: shape (length, n_sequences, n_inputs)
    :param state: before the first step
    """
    w, u, b, d = weights
    length, n, n_inputs = inputs.shape
    with np.errstate(all="ignore"):  # as torch does, whatever the process has set
        gates = np.dot(inputs.reshape(-1, n_inputs), w.T).reshape(length, n, -1)
        gates += b
        gates += d
        hidden = np.empty((length + 1, n, u.shape[1]), gates.dtype)
        cell = np.empty_like(hidden)
        hidden[0], cell[0] = state
        of_state = np.empty(gates.shape[1:], gates.dtype)
        for t in range(length):
            np.dot(hidden[t], u.T, out=of_state)
            gates[t] += of_state
            hidden[t + 1], cell[t + 1] = _after(gates[t], cell[t])
    return Sequences(inputs, gates, hidden, cell)


class Derivative:
    """
    The derivative of a run in the layer's parameters; the state before the first step is held fixed.

    :param weights: of the layer
    :param sequences: what the run left
    """

    def __init__(self, weights: Weights, sequences: Sequences):
        self.u = weights[1]
        self.inputs = sequences.inputs
        self.before = sequences.hidden[:-1]
        length, n, size = self.before.shape
        i, f, g, o = np.moveaxis(sequences.gates.reshape(length, n, 4, size), 2, 0)
        tanh_cell = np.tanh(sequences.cell[1:])
        # Of the cell in the gates i, f and g before their functions, of the hidden state in the gate o and in the cell
        self.cell_in_gates = np.stack([i * (1 - i) * g, f * (1 - f) * sequences.cell[:-1], i * (1 - g * g)], axis=2)
        self.hidden_in_o = o * (1 - o) * tanh_cell
        self.hidden_in_cell = o * (1 - tanh_cell * tanh_cell)
        self.forget = np.ascontiguousarray(f)

    def push_forward(self, tangents: Weights) -> np.ndarray:
        """Return the tangent of the hidden states after each step, shape (length, n_sequences, hidden)."""
        w, u, b, d = tangents
        length, n, size = self.before.shape
        moved = np.dot(self.inputs.reshape(length * n, -1), w.T)
        moved += np.dot(self.before.reshape(length * n, size), u.T)
        moved += b + d
        moved = moved.reshape(length, n, 4 * size)
        result = np.empty_like(self.before)
        hidden, cell = np.zeros((n, size), moved.dtype), np.zeros((n, size), moved.dtype)
        of_state = np.empty((n, 4 * size), moved.dtype)
        gates = of_state.reshape(n, 4, size)
        to_state = self.u.T
        for t in range(length):
            np.dot(hidden, to_state, out=of_state)
            of_state += moved[t]
            cell *= self.forget[t]
            cell += np.einsum("nks,nks->ns", self.cell_in_gates[t], gates[:, :3])
            hidden = result[t]
            np.multiply(self.hidden_in_cell[t], cell, out=hidden)
            hidden += self.hidden_in_o[t] * gates[:, 3]
        return result

    def pull_back(self, cotangents: np.ndarray) -> Weights:
        """Return those of the parameters for cotangents of the hidden states, shape (length, n_sequences, hidden)."""
        length, n, size = self.before.shape
        of_gates = np.empty((length, n, 4, size), cotangents.dtype)
        flat = of_gates.reshape(length, n, 4 * size)
        cell, hidden = np.zeros((n, size), cotangents.dtype), np.zeros((n, size), cotangents.dtype)
        for t in reversed(range(length)):
            hidden += cotangents[t]
            cell += self.hidden_in_cell[t] * hidden
            np.multiply(self.cell_in_gates[t], cell[:, None], out=of_gates[t, :, :3])
            np.multiply(self.hidden_in_o[t], hidden, out=of_gates[t, :, 3])
            cell *= self.forget[t]
            np.dot(flat[t], self.u, out=hidden)
        rows = flat.reshape(length * n, 4 * size)
        bias = rows.sum(axis=0)
        return (
            np.dot(rows.T, self.inputs.reshape(length * n, -1)),
            np.dot(rows.T, self.before.reshape(length * n, size)),
            bias,
            bias,
        )
