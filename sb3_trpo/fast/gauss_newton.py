r"""
Fisher products without differentiating twice: :math:`F v = E[J^T M J v]`.

J is the Jacobian of the distribution's parameters (mean or logits) with respect to θ, M the Fisher matrix of the distribution
in these parameters, known in closed form. At θ_old this Gauss-Newton matrix is the Fisher matrix (Martens 2020, *New Insights
and Perspectives on the Natural Gradient Method*, section 9). The tangent J v is pushed forward through the layers and pulled
back again, both written out.

The plain twin is ``trust_region.fisher_vector_product``, which differentiates the KL twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
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
from sb3_trpo.fast.kinds import CLOSED_FORM, kind_of
from sb3_trpo.fast.masks import masked
from sb3_trpo.fast.network import Network, Stage, as_given, inputs_of, is_as_read, network_input, read_actor, through
from sb3_trpo.objective import Batch
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters, flatten, unflatten

# Activations up to this size are kept from product to product; beyond it each product makes them anew
KEPT_BYTES = 128 * 2**20

# Transitions on which what is read of a network is compared with what the algorithm gets from it
N_COMPARED = 16

# Below this many outputs MKL multiplies twice as fast the other way round
NARROW = 16

# Maps u to M u, both of shape (n, n_outputs)
OutputFisher = Callable[[th.Tensor], th.Tensor]
Affine = nn.Linear | nn.Conv2d | nn.LayerNorm


class _ChainTape(NamedTuple):
    """
    What a forward pass through a chain leaves.

    :param outputs: every stage's
    :param kept: for each of them what the derivative of its elementwise function is made from
    """

    outputs: list[th.Tensor]
    kept: list[th.Tensor]


class _Tape(NamedTuple):
    """
    What a forward pass over a chunk leaves.

    :param branches: of each branch by its key
    :param joint: what the branches give, joined; ``None`` where there are none
    :param trunk: of the stages that give the outputs
    :param output_fisher: the Fisher matrix of the outputs
    :param log_std_fisher: that of the log standard deviations, for the weights of the chunk
    """

    branches: dict[str, _ChainTape]
    joint: th.Tensor | None
    trunk: _ChainTape
    output_fisher: OutputFisher
    log_std_fisher: Callable[[th.Tensor, th.Tensor], th.Tensor]

    def nbytes(self) -> int:
        """Return what it takes in memory."""
        tensors = [*self.trunk.outputs[:-1], *self.trunk.kept[:-1]]
        tensors += [values for chain in self.branches.values() for values in (*chain.outputs, *chain.kept)]
        tensors += [] if self.joint is None else [self.joint]
        return sum({id(values): values.nbytes for values in tensors}.values())


def _softmax_fisher(logits: th.Tensor) -> OutputFisher:
    """M u = p ∘ u - p (p·u) for logits of one categorical variable."""
    p = logits.softmax(dim=1)
    return lambda u: p * (u - (p * u).sum(dim=1, keepdim=True))


def learns_features(policy: ActorCriticPolicy) -> bool:
    """Whether noise that depends on the state moves the features that it depends on, which is not written out here."""
    distribution = policy.action_dist
    assert isinstance(distribution, StateDependentNoiseDistribution)
    return distribution.learn_features


def _gsde_std(policy: ActorCriticPolicy) -> tuple[th.Tensor, th.Tensor]:
    """Return the deviation of each weight's noise, and its slope in the parameter: the exponential, or SB3's ``expln``."""
    distribution: Any = policy.action_dist
    log_std = policy.log_std.detach()
    std = log_std.exp()
    if not distribution.use_expln:
        return std, std
    above = 1.0 + log_std.clamp(min=0.0) + distribution.epsilon
    return th.where(log_std > 0.0, above.log() + 1.0, std), th.where(log_std > 0.0, 1.0 / above, std)


def _gsde_variance(policy: ActorCriticPolicy, latent: th.Tensor) -> th.Tensor:
    """
    Return the variances of actions whose noise depends on the state, shape (n, n_actions).

    Raffin et al. 2021, *Smooth Exploration for Robotic Reinforcement Learning*, equation 7: the noise is linear in the last
    hidden layer, with a deviation of its own for each weight.

    :param policy: the policy
    :param latent: its last hidden layer, shape (n, n_latent)
    """
    distribution: Any = policy.action_dist
    std, _ = _gsde_std(policy)
    return latent**2 @ (std**2).expand(-1, distribution.action_dim) + distribution.epsilon


def _gsde_log_std_fisher(policy: ActorCriticPolicy, latent: th.Tensor) -> Callable[[th.Tensor, th.Tensor], th.Tensor]:
    """Return the Fisher matrix of its log deviations: 1 / 2v² about each variance v, pulled back to them."""
    variance = _gsde_variance(policy, latent)
    std, of_std = _gsde_std(policy)
    slope = 2.0 * std * of_std  # of a squared deviation in the parameter

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


class _Chain:
    """
    Stages one after the other, through which tangents are pushed and cotangents pulled back.

    :param stages: the stages
    :param position: of each variable among the variables
    """

    def __init__(self, stages: list[Stage], position: dict[nn.Parameter, int]):
        self.stages = stages
        self.position = position
        trainable = [stage.weight in position or stage.bias in position for stage in stages]
        # Nothing before the first trainable stage has a tangent of its own
        self.first_trainable = trainable.index(True) if any(trainable) else len(stages)

    def is_trainable(self) -> bool:
        """Whether any stage is."""
        return self.first_trainable < len(self.stages)

    def _given(self, i: int, inputs: th.Tensor, tape: _ChainTape) -> th.Tensor:
        return as_given(self.stages[i], inputs if i == 0 else tape.outputs[i - 1])

    def run(self, inputs: th.Tensor) -> _ChainTape:
        """Return what the stages make of inputs."""
        tape = _ChainTape([], [])
        for i, stage in enumerate(self.stages):
            values: th.Tensor = stage.affine(self._given(i, inputs, tape))
            tape.outputs.append(apply(stage.activation, values))
            tape.kept.append(values if keeps_input(stage.activation) else tape.outputs[-1])
        return tape

    def push_forward(
        self, inputs: th.Tensor, tape: _ChainTape, tangents: list[th.Tensor], tangent: th.Tensor | None
    ) -> th.Tensor | None:
        """Return the tangent of the outputs for one of the inputs, which may have none, and those of the variables."""
        start = self.first_trainable if tangent is None else 0
        for i in range(start, len(self.stages)):
            affine, weight, bias, activation = self.stages[i]
            given = self._given(i, inputs, tape)
            own = [tangents[self.position[p]] if p in self.position else th.zeros_like(p) for p in (weight, bias)]
            moved = _apply(affine, given, *own)
            if tangent is not None:
                moved = _add_pushed(moved, affine, given, tangent.reshape(given.shape), weight)
            tangent = times_slope(activation, moved, tape.kept[i])
        return tangent

    def pull_back(
        self, inputs: th.Tensor, tape: _ChainTape, cotangent: th.Tensor, result: list[th.Tensor], *, to_inputs: bool
    ) -> th.Tensor | None:
        """Add to the result what a cotangent of the outputs makes of the variables; return that of the inputs, if asked to."""
        last = 0 if to_inputs else self.first_trainable
        for i in reversed(range(last, len(self.stages))):
            affine, weight, bias, activation = self.stages[i]
            cotangent = times_slope(activation, cotangent.reshape(tape.outputs[i].shape), tape.kept[i])
            of_inputs, of_weight = _pull_back_affine(
                affine,
                self._given(i, inputs, tape),
                cotangent,
                to_inputs=to_inputs or i > last,
                to_weight=weight in self.position,
            )
            if of_weight is not None:
                result[self.position[weight]] += of_weight
            if bias in self.position:
                result[self.position[bias]] += cotangent.sum(dim=[d for d in range(cotangent.dim()) if d != 1])
            if of_inputs is not None:
                cotangent = of_inputs
        return cotangent if to_inputs else None


class GaussNewtonFisher:
    """
    Fisher products of a policy whose actor is made of chains; see :func:`gauss_newton_fisher`.

    :param policy: the policy, with the parameters θ_old for as long as products are made
    :param network: its actor
    :param chunks: the transitions, in pieces that fit in memory
    :param parameters: the actor's trainable parameters: the variables, in the order of the vectors
    """

    def __init__(self, policy: ActorCriticPolicy, network: Network, chunks: Sequence[Batch], parameters: Parameters):
        self.policy = policy
        self.network = network
        self.chunks = chunks
        self.parameters = parameters
        self.position = {parameter: i for i, parameter in enumerate(parameters)}
        self.trunk = _Chain(network.stages, self.position)
        # Where all that is done before the joint is to flatten, what is joined is made anew like any observation
        branches = network.branches if network.learns_before_joint() else {}
        self.branches = {key: _Chain(stages, self.position) for key, stages in branches.items()}
        self.is_joint_moving = any(branch.is_trainable() for branch in self.branches.values())
        self.kept: dict[int, _Tape] = {}
        self.bytes_left = KEPT_BYTES

    def _given(self, chunk: Batch) -> dict[str, th.Tensor]:
        """Return what the branches are given, or the trunk. Made anew each time: floats of images are larger than the rest."""
        if self.branches:
            return inputs_of(self.policy, self.network, chunk.observations)
        return {"": network_input(self.policy, self.network, chunk.observations)}

    def _run(self, given: dict[str, th.Tensor], action_masks: th.Tensor | None) -> _Tape:
        branches = {key: branch.run(given[key]) for key, branch in self.branches.items()}
        joint = None
        if branches:
            joint = th.cat([(tape.outputs or [given[key]])[-1].flatten(1) for key, tape in branches.items()], dim=1)
        inputs = given[""] if joint is None else joint
        trunk = self.trunk.run(inputs)
        latent = as_given(self.network.stages[-1], trunk.outputs[-2] if len(trunk.outputs) > 1 else inputs)
        output_fisher = _output_fisher(self.policy, latent, trunk.outputs[-1], action_masks)
        return _Tape(branches, joint, trunk, output_fisher, _log_std_fisher(self.policy, latent))

    def _tape(self, index: int, given: dict[str, th.Tensor]) -> _Tape:
        if index in self.kept:
            return self.kept[index]
        tape = self._run(given, self.chunks[index].action_masks)
        size = tape.nbytes()
        if size <= self.bytes_left:
            self.bytes_left -= size
            self.kept[index] = tape
        return tape

    def _push_forward(self, given: dict[str, th.Tensor], tape: _Tape, tangents: list[th.Tensor]) -> th.Tensor:
        """Return J v for the outputs of a chunk, shape (n, n_outputs)."""
        joint = None
        if self.is_joint_moving:
            parts = []
            for key, branch in self.branches.items():
                outputs = (tape.branches[key].outputs or [given[key]])[-1]
                moved = branch.push_forward(given[key], tape.branches[key], tangents, None)
                parts.append((th.zeros_like(outputs) if moved is None else moved).flatten(1))
            joint = th.cat(parts, dim=1)
        tangent = self.trunk.push_forward(given[""] if tape.joint is None else tape.joint, tape.trunk, tangents, joint)
        assert tangent is not None
        return tangent

    def _pull_back(self, given: dict[str, th.Tensor], tape: _Tape, cotangent: th.Tensor, result: list[th.Tensor]) -> None:
        """Add Jᵀ u to the result, for a cotangent u of the outputs of a chunk."""
        inputs = given[""] if tape.joint is None else tape.joint
        of_joint = self.trunk.pull_back(inputs, tape.trunk, cotangent, result, to_inputs=self.is_joint_moving)
        if of_joint is None:
            return
        sizes = [(chain.outputs or [given[key]])[-1].flatten(1).shape[1] for key, chain in tape.branches.items()]
        for (key, branch), part in zip(self.branches.items(), of_joint.split(sizes, dim=1), strict=True):
            if branch.is_trainable():
                branch.pull_back(given[key], tape.branches[key], part, result, to_inputs=False)

    @th.no_grad()
    def product(self, vector: th.Tensor) -> th.Tensor:
        """Return F v, shape (n_params,)."""
        tangents = unflatten(vector, self.parameters)
        result = [th.zeros_like(parameter) for parameter in self.parameters]
        of_std = self.position.get(getattr(self.policy, "log_std", None))  # type: ignore[arg-type]
        for index, chunk in enumerate(self.chunks):
            with np.errstate(all="ignore"):  # what NumPy has a part in, as torch does
                given = self._given(chunk)
                tape = self._tape(index, given)
                outputs = self._push_forward(given, tape, tangents)
                self._pull_back(given, tape, tape.output_fisher(outputs) * chunk.weights[:, None], result)
            if of_std is not None:
                result[of_std] += tape.log_std_fisher(tangents[of_std], chunk.weights)
        return flatten(result)


@th.no_grad()
def agrees(
    policy: ActorCriticPolicy,
    network: Network,
    observations: PyTorchObs,
    distribution: Distribution,
    action_masks: th.Tensor | None = None,
) -> bool:
    """
    Whether a distribution is the policy's own, made of what the network gives for the observations, up to rounding.

    :param policy: the policy
    :param network: its actor
    :param observations: of a few states
    :param distribution: there
    :param action_masks: which actions it was told to be possible
    """
    return is_made_of(policy, network, network_input(policy, network, observations), distribution, action_masks)


@th.no_grad()
def is_made_of(
    policy: ActorCriticPolicy,
    network: Network,
    inputs: th.Tensor,
    distribution: Distribution,
    action_masks: th.Tensor | None,
) -> bool:
    """
    Whether a distribution is the policy's own, made of what the stages give for what the first of them is given.

    :param policy: the policy
    :param network: its actor, or the end of it
    :param inputs: of the first stage, for a few states
    :param distribution: there
    :param action_masks: which actions it was told to be possible
    """
    output = through(network.stages, inputs)
    if type(distribution) not in (type(policy.action_dist), kind_of(policy)):
        return False
    inner: Any = getattr(distribution, "distribution", None)
    if isinstance(distribution, StateDependentNoiseDistribution):
        latent = through(network.stages[:-1], inputs).flatten(1)
        as_written = learns_features(policy) or is_as_read(inner.variance, _gsde_variance(policy, latent))
        return is_as_read(inner.mean, output) and as_written
    if isinstance(distribution, DiagGaussianDistribution):
        return is_as_read(inner.mean, output) and is_as_read(inner.stddev, policy.log_std.exp().expand_as(output))
    if isinstance(distribution, BernoulliDistribution):
        return is_as_read(inner.logits, output)
    factors: list[Any] = list(factors_of(distribution))
    output = masked(output, action_masks)
    parts = output.split([factor.logits.shape[1] for factor in factors], dim=1)
    return all(is_as_read(factor.logits, part.log_softmax(dim=1)) for factor, part in zip(factors, parts, strict=True))


def actor_of(policy: ActorCriticPolicy, batch: Batch, distribution_of: Callable[[Batch], Distribution]) -> Network | None:
    """
    Read the actor, if chains are all it is and what the algorithm takes for the policy's distribution is what they give.

    :param policy: the policy
    :param batch: transitions, a few of which are looked at
    :param distribution_of: maps a batch to the action distribution that the algorithm uses
    """
    network = read_actor(policy)
    if network is None or kind_of(policy) not in CLOSED_FORM:
        return None
    few = batch.few(N_COMPARED)
    # With a graph, which is looked at too
    return network if agrees(policy, network, few.observations, distribution_of(few), few.action_masks) else None


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
        learns its features
    """
    network = actor_of(policy, chunks[0], distribution_of)
    if network is None:
        return None
    return GaussNewtonFisher(policy, network, chunks, parameters).product if covers(policy, network, parameters) else None


def covers(policy: ActorCriticPolicy, network: Network, parameters: Parameters, more: Sequence[nn.Parameter] = ()) -> bool:
    """
    Whether the Fisher matrix in some parameters is written out here.

    :param policy: the policy
    :param network: its actor, or the end of it
    :param parameters: the variables
    :param more: parameters beside those of the network whose derivative is written out
    """
    log_std = getattr(policy, "log_std", None)
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):
        if learns_features(policy):
            return False
    elif log_std is not None and log_std.shape != network.stages[-1].bias.shape:
        return False  # one deviation of several actions
    everything = (network.stages, *network.branches.values())
    covered = {parameter for stages in everything for stage in stages for parameter in (stage.weight, stage.bias)}
    covered.update(more)
    if len({parameter.dtype for parameter in parameters}) > 1:
        return False
    return not covered.isdisjoint(parameters) and set(parameters) <= covered | {log_std}
