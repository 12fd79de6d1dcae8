"""
Fisher products of a policy with an LSTM without differentiating twice: :mod:`sb3_trpo.fast.gauss_newton` through time.

The tangent is pushed forward through every step of a sequence and the cotangent pulled back. The plain twin is
``trust_region.fisher_vector_product``, which differentiates the KL twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_trpo.fast import lstm
from sb3_trpo.fast.gauss_newton import N_COMPARED, GaussNewtonFisher, covers, is_made_of
from sb3_trpo.fast.kinds import CLOSED_FORM, kind_of
from sb3_trpo.fast.network import OF_ACTOR, Network, network_input, read_network
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters


class _Through(NamedTuple):
    """
    What a run of the LSTM over a chunk leaves.

    :param derivative: of the run
    :param rows: where among the rows of the padded sequences the transitions are
    :param outputs: of the LSTM for each transition, shape (n, hidden)
    """

    derivative: lstm.Derivative
    rows: np.ndarray
    outputs: th.Tensor


def read_around(policy: Any) -> Network | None:
    """Read what is before and after the actor's LSTM, if nothing is learned before it, and it is covered."""
    if not lstm.is_covered(policy.lstm_actor) or any(True for _ in policy.pi_features_extractor.parameters()):
        return None
    return read_network(policy, *OF_ACTOR)


def sequences_of(policy: Any, network: Network, chunk: Any) -> tuple[lstm.Sequences, np.ndarray]:
    """
    Run the actor's LSTM over sequences.

    :param policy: the policy
    :param network: what is around it
    :param chunk: a batch of sequences
    :return: what the run leaves, and where among the rows of the padded sequences the transitions are
    """
    weights = lstm.weights_of(policy.lstm_actor)
    padded = chunk.padded()
    features = network_input(policy, network, padded.observations).flatten(1).numpy().astype(weights[0].dtype, copy=False)
    inputs = features.reshape(len(chunk.lengths), -1, features.shape[1]).swapaxes(0, 1)
    hidden, cell = (part[0].numpy().astype(weights[0].dtype) for part in chunk.states.pi)
    return lstm.run(weights, np.ascontiguousarray(inputs), (hidden, cell)), padded.rows.numpy()


def outputs_of(sequences: lstm.Sequences, rows: np.ndarray) -> th.Tensor:
    """Return what the LSTM gives for each transition, shape (n, hidden)."""
    by_sequence = sequences.hidden[1:].swapaxes(0, 1)
    return th.from_numpy(by_sequence.reshape(-1, by_sequence.shape[2])[rows])


class LstmFisher(GaussNewtonFisher):
    """
    Fisher products of a policy whose actor is an LSTM and stages after it; see :func:`lstm_fisher`.

    :param policy: the policy, with the parameters θ_old for as long as products are made
    :param network: what is around the LSTM
    :param chunks: batches of sequences
    :param parameters: the actor's trainable parameters: the variables, in the order of the vectors
    """

    def __init__(self, policy: Any, network: Network, chunks: Sequence[Any], parameters: Parameters):
        super().__init__(policy, network, chunks, parameters)
        self.weights = lstm.weights_of(policy.lstm_actor)
        self.of_lstm = lstm.parameters_of(policy.lstm_actor)
        self.is_lstm_moving = any(parameter in self.position for parameter in self.of_lstm)
        self.runs: dict[int, _Through] = {}
        self.now: _Through | None = None

    def _through(self, chunk: Any) -> _Through:
        """Return what a run over a chunk leaves, from memory where it fits in there."""
        if id(chunk) in self.runs:
            return self.runs[id(chunk)]
        sequences, rows = sequences_of(self.policy, self.network, chunk)
        run = _Through(lstm.Derivative(self.weights, sequences), rows, outputs_of(sequences, rows))
        if sequences.nbytes <= self.bytes_left:
            self.bytes_left -= sequences.nbytes
            self.runs[id(chunk)] = run
        return run

    def _given(self, chunk: Any) -> dict[str, th.Tensor]:
        self.now = self._through(chunk)
        return {"": self.now.outputs}

    def _push_forward(self, given: dict[str, th.Tensor], tape: Any, tangents: list[th.Tensor]) -> th.Tensor:
        assert self.now is not None
        moved: th.Tensor | None = None
        if self.is_lstm_moving:
            own = [tangents[self.position[p]] if p in self.position else th.zeros_like(p) for p in self.of_lstm]
            w, u, b, d = (part.contiguous().numpy() for part in own)
            hidden = self.now.derivative.push_forward((w, u, b, d)).swapaxes(0, 1)
            moved = th.from_numpy(hidden.reshape(-1, hidden.shape[2])[self.now.rows])
        tangent = self.trunk.push_forward(given[""], tape.trunk, tangents, moved)
        assert tangent is not None
        return tangent

    def _pull_back(self, given: dict[str, th.Tensor], tape: Any, cotangent: th.Tensor, result: list[th.Tensor]) -> None:
        assert self.now is not None
        of_outputs = self.trunk.pull_back(given[""], tape.trunk, cotangent, result, to_inputs=self.is_lstm_moving)
        if of_outputs is None:
            return
        length, n, size = self.now.derivative.before.shape
        padded = np.zeros((n * length, size), self.weights[0].dtype)
        padded[self.now.rows] = of_outputs.numpy()
        parts = self.now.derivative.pull_back(np.ascontiguousarray(padded.reshape(n, length, size).swapaxes(0, 1)))
        for parameter, part in zip(self.of_lstm, parts, strict=True):
            if parameter in self.position:
                result[self.position[parameter]] += th.from_numpy(part)


@th.no_grad()
def lstm_fisher(
    policy: Any, chunks: Sequence[Any], parameters: Parameters, distribution_of: Callable[[Any], Distribution]
) -> MatrixVectorProduct | None:
    """
    Build the product v -> F v, if the policy's actor is an LSTM of one layer and a chain, on the CPU.

    Whether its methods are sb3-contrib's is for the caller to know.

    :param policy: the policy, with the parameters θ_old for as long as the product is used
    :param chunks: the sequences whose states make the Fisher matrix, in pieces
    :param parameters: the actor's trainable parameters, in the order of the vectors
    :param distribution_of: maps a batch of sequences to the action distribution that the algorithm uses
    :return: the product, ``None`` for what is not covered: several layers, projections, both directions, features that are
        learned, other networks after the LSTM, distributions of the user's own
    """
    network = read_around(policy)
    if network is None or kind_of(policy) not in CLOSED_FORM:
        return None
    if not covers(policy, network, parameters, lstm.parameters_of(policy.lstm_actor)):
        return None
    few = chunks[0].few(N_COMPARED)
    outputs = outputs_of(*sequences_of(policy, network, few))
    if not is_made_of(policy, network, outputs, distribution_of(few), few.action_masks):
        return None
    return LstmFisher(policy, network, chunks, parameters).product
