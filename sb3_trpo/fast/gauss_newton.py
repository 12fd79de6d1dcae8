r"""
Fisher products without differentiating twice: :math:`F v = E[J^T M J v]`.

J is the Jacobian of the distribution's parameters (mean or logits) with respect to θ, M the Fisher matrix of the distribution
in these parameters, known in closed form. At θ_old this Gauss-Newton matrix is the Fisher matrix (Martens 2020, *New Insights
and Perspectives on the Natural Gradient Method*, section 9). The tangent J v is pushed forward through the layers and pulled
back again, both written out.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_trpo.distributions import factors_of
from sb3_trpo.fast.elementwise import apply, keeps_input, times_slope
from sb3_trpo.fast.masks import kind_of, masked
from sb3_trpo.fast.network import Stage, as_given, is_as_read, network_input, read_actor, run
from sb3_trpo.objective import Batch
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters, flatten, unflatten

# Activations up to this size are kept from product to product; beyond it each product makes them anew
KEPT_BYTES = 128 * 2**20

# Distributions whose Fisher matrix is written out below
CLOSED_FORM = (
    DiagGaussianDistribution,
    CategoricalDistribution,
    MultiCategoricalDistribution,
    BernoulliDistribution,
    StateDependentNoiseDistribution,
)

# Transitions on which what is read of a network is compared with what the algorithm gets from it
N_COMPARED = 16

# Below this many outputs MKL multiplies twice as fast the other way round
NARROW = 16

# Maps u to M u, both of shape (n, n_outputs)
OutputFisher = Callable[[th.Tensor], th.Tensor]
Affine = nn.Linear | nn.Conv2d | nn.LayerNorm


class _Tape(NamedTuple):
    """
    What a forward pass over a chunk leaves.

    :param hidden: every stage's output but the last's
    :param kept: for each of them what the derivative of its elementwise function is made from
    :param output_fisher: the Fisher matrix of the last one's
    :param log_std_fisher: that of the log standard deviations, for the weights of the chunk
    """

    hidden: list[th.Tensor]
    kept: list[th.Tensor]
    output_fisher: OutputFisher
    log_std_fisher: Callable[[th.Tensor, th.Tensor], th.Tensor]


def _softmax_fisher(logits: th.Tensor) -> OutputFisher:
    """M u = p ∘ u - p (p·u) for logits of one categorical variable."""
    p = logits.softmax(dim=1)
    return lambda u: p * (u - (p * u).sum(dim=1, keepdim=True))


def is_plain_gsde(policy: ActorCriticPolicy) -> bool:
    """Whether noise that depends on the state has the variance that is written out here, which does not move the features."""
    distribution = policy.action_dist
    assert isinstance(distribution, StateDependentNoiseDistribution)
    return not distribution.use_expln and not distribution.learn_features


def _gsde_variance(policy: ActorCriticPolicy, latent: th.Tensor) -> th.Tensor:
    """
    Return the variances of actions whose noise depends on the state, shape (n, n_actions).

    Raffin et al. 2021, *Smooth Exploration for Robotic Reinforcement Learning*, equation 7: the noise is linear in the last
    hidden layer, with a deviation of its own for each weight.

    :param policy: the policy
    :param latent: its last hidden layer, shape (n, n_latent)
    """
    distribution: Any = policy.action_dist
    std = policy.log_std.detach().exp()
    return latent**2 @ (std**2).expand(-1, distribution.action_dim) + distribution.epsilon


def _gsde_log_std_fisher(policy: ActorCriticPolicy, latent: th.Tensor) -> Callable[[th.Tensor, th.Tensor], th.Tensor]:
    """Return the Fisher matrix of its log deviations: 1 / 2v² about each variance v, pulled back to them."""
    variance = _gsde_variance(policy, latent)
    slope = 2.0 * (2.0 * policy.log_std.detach()).exp()  # of a squared deviation in its logarithm

    def fisher(tangent: th.Tensor, weights: th.Tensor) -> th.Tensor:
        of_variance = latent**2 @ (slope * tangent).expand(-1, variance.shape[1])
        cotangent = (latent**2).t() @ (of_variance * weights[:, None] / (2.0 * variance**2))
        return (slope * cotangent).sum_to_size(tangent.shape)

    return fisher


def _output_fisher(
    policy: ActorCriticPolicy, latent: th.Tensor, output: th.Tensor, action_masks: th.Tensor | None
) -> OutputFisher:
    """Return u -> M u for the network's output z, both of shape (n, n_outputs); logits that are masked get zero."""
    distribution: Any = policy.action_dist
    if isinstance(distribution, StateDependentNoiseDistribution):
        variance = _gsde_variance(policy, latent)
        return lambda u: u / variance
    if isinstance(distribution, DiagGaussianDistribution):
        inverse_variance = (-2.0 * policy.log_std.detach()).exp()
        return lambda u: u * inverse_variance
    if isinstance(distribution, BernoulliDistribution):
        p = output.sigmoid()
        return lambda u: p * (1.0 - p) * u
    output = masked(output, action_masks)
    if issubclass(kind_of(policy), MultiCategoricalDistribution):
        sizes = [int(size) for size in distribution.action_dims]
        fishers = [_softmax_fisher(logits) for logits in output.split(sizes, dim=1)]
        return lambda u: th.cat([fisher(part) for fisher, part in zip(fishers, u.split(sizes, dim=1), strict=True)], dim=1)
    return _softmax_fisher(output)


def _convolve(affine: nn.Conv2d, inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    return F.conv2d(inputs, weight, bias, affine.stride, affine.padding, affine.dilation, affine.groups)


def _normalized(norm: nn.LayerNorm, inputs: th.Tensor) -> th.Tensor:
    """Return what a layer norm multiplies with its weight."""
    return F.layer_norm(inputs, norm.normalized_shape, eps=norm.eps)


def _of_normalized(norm: nn.LayerNorm, inputs: th.Tensor, values: th.Tensor) -> th.Tensor:
    """Multiply by the derivative of :func:`_normalized`, which is symmetric: tangents and cotangents alike."""
    normalized = _normalized(norm, inputs)
    inverse_std = (inputs.var(dim=-1, correction=0, keepdim=True) + norm.eps).rsqrt()
    along = (normalized * values).mean(dim=-1, keepdim=True)
    return (values - values.mean(dim=-1, keepdim=True) - normalized * along) * inverse_std


def _apply(affine: Affine, inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    if isinstance(affine, nn.Conv2d):
        return _convolve(affine, inputs, weight, bias)
    if isinstance(affine, nn.LayerNorm):
        return th.addcmul(bias, _normalized(affine, inputs), weight)
    if len(weight) < NARROW:
        return th.addmm(bias[:, None], weight, inputs.t()).t()
    return F.linear(inputs, weight, bias)


def _add_pushed(total: th.Tensor, affine: Affine, inputs: th.Tensor, tangent: th.Tensor, weight: th.Tensor) -> th.Tensor:
    """Add to what is there what the map makes of a tangent of its inputs."""
    if isinstance(affine, nn.Conv2d):
        return total.add_(_convolve(affine, tangent, weight))
    if isinstance(affine, nn.LayerNorm):
        return total.add_(_of_normalized(affine, inputs, tangent) * weight)
    return total.addmm_(tangent, weight.t())


def _pull_back_affine(
    affine: Affine, inputs: th.Tensor, cotangent: th.Tensor, *, to_inputs: bool, to_weight: bool
) -> tuple[th.Tensor | None, th.Tensor | None]:
    """Return the cotangents of an affine map's inputs and of its weight."""
    if isinstance(affine, nn.Linear):
        return cotangent @ affine.weight if to_inputs else None, cotangent.t() @ inputs if to_weight else None
    if isinstance(affine, nn.LayerNorm):
        to_weights = (cotangent * _normalized(affine, inputs)).sum(dim=0) if to_weight else None
        return _of_normalized(affine, inputs, cotangent * affine.weight) if to_inputs else None, to_weights
    inputs_cotangent, weight_cotangent, _ = th.ops.aten.convolution_backward(
        cotangent,
        inputs,
        affine.weight,
        None,
        affine.stride,
        affine.padding,
        affine.dilation,
        False,
        [0, 0],
        affine.groups,
        [to_inputs, to_weight, False],
    )
    return inputs_cotangent, weight_cotangent


def _log_std_fisher(policy: ActorCriticPolicy, latent: th.Tensor) -> Callable[[th.Tensor, th.Tensor], th.Tensor]:
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):
        return _gsde_log_std_fisher(policy, latent)
    # A Gaussian has Fisher information 2 about each log standard deviation, whatever the state
    return lambda tangent, weights: 2.0 * weights.sum() * tangent


class GaussNewtonFisher:
    """
    Fisher products of a policy whose actor is a chain of stages; see :func:`gauss_newton_fisher`.

    :param policy: the policy, with the parameters θ_old for as long as products are made
    :param stages: its actor
    :param chunks: the transitions, in pieces that fit in memory
    :param parameters: the actor's trainable parameters: the variables, in the order of the vectors
    """

    def __init__(self, policy: ActorCriticPolicy, stages: list[Stage], chunks: Sequence[Batch], parameters: Parameters):
        self.policy = policy
        self.stages = stages
        self.chunks = chunks
        self.parameters = parameters
        self.position = {parameter: i for i, parameter in enumerate(parameters)}
        moved = (i for i, stage in enumerate(stages) if stage.weight in self.position or stage.bias in self.position)
        # Nothing before the first trainable stage has a tangent, or needs a cotangent
        self.first_trainable = next(moved, len(stages))
        # Whether there is something before the first stage that needs a cotangent
        self.reaches_below = False
        self.kept: dict[int, _Tape] = {}
        self.bytes_left = KEPT_BYTES

    def _input(self, chunk: Batch, hidden: list[th.Tensor], i: int) -> th.Tensor:
        """Return what stage i is given. The first one's is made anew each time: floats of images are larger than the rest."""
        return as_given(self.stages[i], network_input(self.policy, chunk.observations) if i == 0 else hidden[i - 1])

    def _run(self, chunk: Batch) -> _Tape:
        hidden: list[th.Tensor] = []
        kept: list[th.Tensor] = []
        for i, stage in enumerate(self.stages):
            values: th.Tensor = stage.affine(self._input(chunk, hidden, i))
            hidden.append(apply(stage.activation, values))
            kept.append(values if keeps_input(stage.activation) else hidden[-1])
        output = hidden.pop()
        latent = self._input(chunk, hidden, len(hidden))
        output_fisher = _output_fisher(self.policy, latent, output, chunk.action_masks)
        return _Tape(hidden, kept[:-1], output_fisher, _log_std_fisher(self.policy, latent))

    def _tape(self, index: int) -> _Tape:
        if index in self.kept:
            return self.kept[index]
        tape = self._run(self.chunks[index])
        size = sum({id(values): values.nbytes for values in (*tape.hidden, *tape.kept)}.values())
        if size <= self.bytes_left:
            self.bytes_left -= size
            self.kept[index] = tape
        return tape

    def _push_forward(
        self, chunk: Batch, tape: _Tape, tangents: list[th.Tensor], tangent: th.Tensor | None = None
    ) -> th.Tensor:
        """Return J v for the outputs of a chunk, shape (n, n_outputs), given the tangent of the first stage's inputs."""
        for i in range(self.first_trainable, len(self.stages)):
            affine, weight, bias, activation = self.stages[i]
            inputs = self._input(chunk, tape.hidden, i)
            own = [tangents[self.position[p]] if p in self.position else th.zeros_like(p) for p in (weight, bias)]
            moved = _apply(affine, inputs, *own)
            if tangent is not None:
                moved = _add_pushed(moved, affine, inputs, tangent.view_as(inputs), weight)
            tangent = moved if i == len(tape.hidden) else times_slope(activation, moved, tape.kept[i])
        assert tangent is not None
        return tangent

    def _pull_back(self, chunk: Batch, tape: _Tape, cotangent: th.Tensor, result: list[th.Tensor]) -> th.Tensor:
        """Add Jᵀ u to the result, for a cotangent u of the outputs of a chunk; return that of the last inputs reached."""
        for i in reversed(range(self.first_trainable, len(self.stages))):
            affine, weight, bias, activation = self.stages[i]
            if i < len(tape.hidden):
                cotangent = times_slope(activation, cotangent.view_as(tape.hidden[i]), tape.kept[i])
            to_inputs, to_weight = _pull_back_affine(
                affine,
                self._input(chunk, tape.hidden, i),
                cotangent,
                to_inputs=i > self.first_trainable or self.reaches_below,
                to_weight=weight in self.position,
            )
            if to_weight is not None:
                result[self.position[weight]] += to_weight
            if bias in self.position:
                result[self.position[bias]] += cotangent.sum(dim=[d for d in range(cotangent.dim()) if d != 1])
            if to_inputs is not None:
                cotangent = to_inputs
        return cotangent

    @th.no_grad()
    def product(self, vector: th.Tensor) -> th.Tensor:
        """Return F v, shape (n_params,)."""
        tangents = unflatten(vector, self.parameters)
        result = [th.zeros_like(parameter) for parameter in self.parameters]
        of_std = self.position.get(getattr(self.policy, "log_std", None))  # type: ignore[arg-type]
        for index, chunk in enumerate(self.chunks):
            tape = self._tape(index)
            outputs = self._push_forward(chunk, tape, tangents)
            self._pull_back(chunk, tape, tape.output_fisher(outputs) * chunk.weights[:, None], result)
            if of_std is not None:
                result[of_std] += tape.log_std_fisher(tangents[of_std], chunk.weights)
        return flatten(result)


def agrees(
    policy: ActorCriticPolicy,
    stages: list[Stage],
    observations: PyTorchObs,
    distribution: Distribution,
    action_masks: th.Tensor | None = None,
) -> bool:
    """
    Whether a distribution is the policy's own, made of what the chain gives for the observations, up to rounding.

    :param policy: the policy
    :param stages: the chain
    :param observations: of a few states
    :param distribution: there
    :param action_masks: which actions it was told to be possible
    """
    latent = run(policy, stages[:-1], observations).flatten(1)
    return is_made_of(policy, latent, run(policy, stages, observations), distribution, action_masks)


@th.no_grad()
def is_made_of(
    policy: ActorCriticPolicy,
    latent: th.Tensor,
    output: th.Tensor,
    distribution: Distribution,
    action_masks: th.Tensor | None,
) -> bool:
    """
    Whether a distribution is the policy's own for these outputs of its network, up to rounding.

    :param policy: the policy
    :param latent: what its last layer is given, shape (n, n_latent)
    :param output: what that gives, shape (n, n_outputs)
    :param distribution: for the same states
    :param action_masks: which actions it was told to be possible
    """
    if type(distribution) not in (type(policy.action_dist), kind_of(policy)):
        return False
    inner: Any = getattr(distribution, "distribution", None)
    if isinstance(distribution, StateDependentNoiseDistribution):
        as_written = not is_plain_gsde(policy) or is_as_read(inner.variance, _gsde_variance(policy, latent))
        return is_as_read(inner.mean, output) and as_written
    if isinstance(distribution, DiagGaussianDistribution):
        return is_as_read(inner.mean, output) and is_as_read(inner.stddev, policy.log_std.exp().expand_as(output))
    if isinstance(distribution, BernoulliDistribution):
        return is_as_read(inner.logits, output)
    factors: list[Any] = list(factors_of(distribution))
    output = masked(output, action_masks)
    parts = output.split([factor.logits.shape[1] for factor in factors], dim=1)
    return all(is_as_read(factor.logits, part.log_softmax(dim=1)) for factor, part in zip(factors, parts, strict=True))


@th.no_grad()
def actor_of(policy: ActorCriticPolicy, batch: Batch, distribution_of: Callable[[Batch], Distribution]) -> list[Stage] | None:
    """
    Read the actor, if it is a chain and what the algorithm takes for the policy's distribution is what the chain gives.

    :param policy: the policy
    :param batch: transitions, a few of which are looked at
    :param distribution_of: maps a batch to the action distribution that the algorithm uses
    """
    stages = read_actor(policy)
    if stages is None or kind_of(policy) not in CLOSED_FORM:
        return None
    few = batch.few(N_COMPARED)
    return stages if agrees(policy, stages, few.observations, distribution_of(few), few.action_masks) else None


def gauss_newton_fisher(
    policy: ActorCriticPolicy,
    chunks: Sequence[Batch],
    parameters: Parameters,
    distribution_of: Callable[[Batch], Distribution],
) -> MatrixVectorProduct | None:
    """
    Build the product v -> F v, if the policy's actor is a chain and its distribution has the closed forms.

    :param policy: the policy, with the parameters θ_old for as long as the product is used
    :param chunks: the transitions whose states make the Fisher matrix, in pieces
    :param parameters: the actor's trainable parameters, in the order of the vectors
    :param distribution_of: maps a batch to the action distribution that the algorithm uses
    :return: the product, ``None`` for what is not covered: other networks, distributions of the user's own, and gSDE that
        learns its features or has ``use_expln``
    """
    stages = actor_of(policy, chunks[0], distribution_of)
    if stages is None:
        return None
    covered = {parameter for stage in stages for parameter in (stage.weight, stage.bias)}
    if not covers(policy, stages, parameters, covered):
        return None
    return GaussNewtonFisher(policy, stages, chunks, parameters).product


def covers(policy: ActorCriticPolicy, stages: list[Stage], parameters: Parameters, covered: set[nn.Parameter]) -> bool:
    """
    Whether the Fisher matrix in some parameters is written out here.

    :param policy: the policy
    :param stages: what its outputs are made by in the end
    :param parameters: the variables
    :param covered: parameters of the network whose derivative is written out
    """
    log_std = getattr(policy, "log_std", None)
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):
        if not is_plain_gsde(policy):
            return False
    elif log_std is not None and log_std.shape != stages[-1].bias.shape:
        return False  # one deviation of several actions
    return not covered.isdisjoint(parameters) and set(parameters) <= covered | {log_std}
