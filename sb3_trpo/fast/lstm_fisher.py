"""
Fisher products of a policy with an LSTM without differentiating twice: :mod:`sb3_trpo.fast.gauss_newton` through time.

The tangent is pushed forward through every step of a sequence and the cotangent pulled back. The plain twin differentiates the
KL twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor

from sb3_trpo.fast import lstm
from sb3_trpo.fast.elementwise import apply
from sb3_trpo.fast.gauss_newton import CLOSED_FORM, N_COMPARED, GaussNewtonFisher, covers, is_made_of
from sb3_trpo.fast.masks import kind_of
from sb3_trpo.fast.network import Stage, layers_of, network_input, only_joins, read_stages
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


def read_head(policy: Any) -> list[Stage] | None:
    """Read what follows the LSTM of the actor, if it is a chain and the LSTM is covered; ``None`` otherwise."""
    extractor = policy.pi_features_extractor
    if (
        not lstm.is_covered(policy.lstm_actor)
        or not (type(extractor) is FlattenExtractor or only_joins(extractor))
        or type(policy.mlp_extractor) is not MlpExtractor
    ):
        return None
    return read_stages([*layers_of(policy.mlp_extractor.policy_net), policy.action_net])


def sequences_of(policy: Any, chunk: Any) -> tuple[lstm.Sequences, np.ndarray]:
    """
    Run the actor's LSTM over sequences.

    :param policy: the policy
    :param chunk: a batch of sequences
    :return: what the run leaves, and where among the rows of the padded sequences the transitions are
    """
    weights = lstm.weights_of(policy.lstm_actor)
    padded = chunk.padded()
    features = network_input(policy, padded.observations).flatten(1).numpy().astype(weights[0].dtype, copy=False)
    inputs = features.reshape(len(chunk.lengths), -1, features.shape[1]).swapaxes(0, 1)
    hidden, cell = (part[0].numpy().astype(weights[0].dtype) for part in chunk.states.pi)
    return lstm.run(weights, np.ascontiguousarray(inputs), (hidden, cell)), padded.rows.numpy()


def outputs_of(sequences: lstm.Sequences, rows: np.ndarray) -> th.Tensor:
    """Return what the LSTM gives for each transition, shape (n, hidden)."""
    by_sequence = sequences.hidden[1:].swapaxes(0, 1)
    return th.from_numpy(by_sequence.reshape(-1, by_sequence.shape[2])[rows])


class LstmFisher(GaussNewtonFisher):
    """
    Fisher products of a policy whose actor is an LSTM and a chain of stages after it; see :func:`lstm_fisher`.

    :param policy: the policy, with the parameters θ_old for as long as products are made
    :param stages: what follows the LSTM
    :param chunks: batches of sequences
    :param parameters: the actor's trainable parameters: the variables, in the order of the vectors
    """

    def __init__(self, policy: Any, stages: list[Stage], chunks: Sequence[Any], parameters: Parameters):
        super().__init__(policy, stages, chunks, parameters)
        self.weights = lstm.weights_of(policy.lstm_actor)
        self.of_lstm = lstm.parameters_of(policy.lstm_actor)
        self.reaches_below = any(parameter in self.position for parameter in self.of_lstm)
        if self.reaches_below:
            self.first_trainable = 0
        self.through: dict[int, _Through] = {}
        self.latest: tuple[Any, _Through] | None = None

    def _through(self, chunk: Any) -> _Through:
        """Return what a run over a chunk leaves, from memory where it fits in there."""
        if id(chunk) in self.through:
            return self.through[id(chunk)]
        if self.latest is None or self.latest[0] is not chunk:
            sequences, rows = sequences_of(self.policy, chunk)
            outputs = outputs_of(sequences, rows)
            through = _Through(lstm.Derivative(self.weights, sequences), rows, outputs)
            self.latest = (chunk, through)
            if sequences.nbytes <= self.bytes_left:
                self.bytes_left -= sequences.nbytes
                self.through[id(chunk)] = through
        return self.latest[1]

    def _input(self, chunk: Any, hidden: list[th.Tensor], i: int) -> th.Tensor:
        return self._through(chunk).outputs if i == 0 else super()._input(chunk, hidden, i)

    def _push_forward(self, chunk: Any, tape: Any, tangents: list[th.Tensor], tangent: th.Tensor | None = None) -> th.Tensor:
        if self.reaches_below:
            through = self._through(chunk)
            own = [tangents[self.position[p]] if p in self.position else th.zeros_like(p) for p in self.of_lstm]
            w, u, b, d = (part.contiguous().numpy() for part in own)
            moved = through.derivative.push_forward((w, u, b, d)).swapaxes(0, 1)
            tangent = th.from_numpy(moved.reshape(-1, moved.shape[2])[through.rows])
        return super()._push_forward(chunk, tape, tangents, tangent)

    def _pull_back(self, chunk: Any, tape: Any, cotangent: th.Tensor, result: list[th.Tensor]) -> th.Tensor:
        cotangent = super()._pull_back(chunk, tape, cotangent, result)
        if self.reaches_below:
            through = self._through(chunk)
            length, n, size = through.derivative.before.shape
            padded = np.zeros((n * length, size), self.weights[0].dtype)
            padded[through.rows] = cotangent.numpy()
            parts = through.derivative.pull_back(np.ascontiguousarray(padded.reshape(n, length, size).swapaxes(0, 1)))
            for parameter, part in zip(self.of_lstm, parts, strict=True):
                if parameter in self.position:
                    result[self.position[parameter]] += th.from_numpy(part)
        return cotangent


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
    stages = read_head(policy)
    if stages is None or kind_of(policy) not in CLOSED_FORM:
        return None
    of_lstm = lstm.parameters_of(policy.lstm_actor)
    covered = {parameter for stage in stages for parameter in (stage.weight, stage.bias)}.union(of_lstm)
    few = chunks[0].few(N_COMPARED)
    latent, output = outputs_of(*sequences_of(policy, few)), th.empty(0)
    for i, stage in enumerate(stages):
        output = apply(stage.activation, stage.affine(latent))
        latent = latent if i == len(stages) - 1 else output
    if not covers(policy, stages, parameters, covered):
        return None
    if not is_made_of(policy, latent, output, distribution_of(few), few.action_masks):
        return None
    return LstmFisher(policy, stages, chunks, parameters).product
