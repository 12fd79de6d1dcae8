"""The bridge between reinforcement learning and the trust-region step: surrogate and KL of SB3's action distributions."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_trpo.trust_region import fisher_vector_product, flat_gradient
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters


class Batch(NamedTuple):
    """
    Transitions of one rollout, in any order.

    :param observations: tensor of shape (n, *obs_shape), or a dict of such tensors
    :param actions: shape (n, *action_shape); (n,) and integer for Discrete
    :param old_log_prob: log-probability of the actions under the policy that took them, shape (n,)
    :param advantages: shape (n,)
    :param returns: what the values are fitted to, shape (n,)
    :param weights: what each transition counts in a mean, shape (n,), zero for padding; they sum to one over everything
        that the mean runs over, so that the mean over a chunk, a sequence with padding or a process is a plain sum
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    weights: th.Tensor

    def select(self, rows: slice | th.Tensor) -> "Batch":
        """Return some of the transitions; their weights no longer sum to one."""
        observations = self.observations
        if isinstance(observations, dict):
            picked: PyTorchObs = {key: value[rows] for key, value in observations.items()}
        else:
            picked = observations[rows]
        return Batch(picked, *(field[rows] for field in self[1:]))

    def thinned(self, factor: int, permutation: Callable[[int], np.ndarray] = np.random.permutation) -> "Batch":
        """
        Return one in ``factor`` of the transitions that count, drawn at random, with the same sum of weights.

        :param factor: at least 1
        :param permutation: maps n to the numbers from 0 to n - 1 in random order
        """
        if factor == 1:
            return self
        rows = self.weights.nonzero().squeeze(1)
        drawn = permutation(len(rows))[: math.ceil(len(rows) / factor)]
        thin = self.select(rows[th.as_tensor(drawn, device=rows.device)])
        return thin._replace(weights=thin.weights * (self.weights.sum() / thin.weights.sum()))

    def split(self, size: int | None) -> list["Batch"]:
        """Cut into pieces of at most ``size`` transitions; their weights sum to one over all of them."""
        n = len(self.weights)
        if size is None or size >= n:
            return [self]
        return [self.select(slice(start, start + size)) for start in range(0, n, size)]


def without_padding(values: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """Return values, shape (n,), with zero in place of those of weight zero, whatever they are, and no gradient to them."""
    return th.where(weights > 0, values, th.zeros_like(values))


def weighted_mean(values: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    Average over samples: the one seam through which every such mean passes.

    Values of weight zero are left out whatever they are, NaN included.

    :param values: shape (n,)
    :param weights: shape (n,), see :class:`Batch`
    :return: the sum of ``weights * values``, shape ()
    """
    return (weights * without_padding(values, weights)).sum()


def normalize_advantages(advantages: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    Shift advantages to mean zero and scale them to standard deviation one (with Bessel's correction, as SB3 does).

    Advantages that differ by no more than their own rounding carry no signal and become zeros: dividing them by their
    standard deviation would turn the rounding into the largest possible step.

    :param advantages: shape (n,)
    :param weights: shape (n,), see :class:`Batch`
    :return: shape (n,)
    """
    n = th.count_nonzero(weights)
    # In units of the largest one nothing over- or underflows on the way
    largest = without_padding(advantages, weights).abs().max()
    advantages = advantages / th.where(largest > 0, largest, th.ones_like(largest))
    centred = advantages - weighted_mean(advantages, weights)
    std = (weighted_mean(centred**2, weights) * n / (n - 1)).sqrt()
    rounding = 10 * th.finfo(advantages.dtype).eps * weighted_mean(advantages.abs(), weights)
    return th.where(std <= rounding, th.zeros_like(centred), centred / std)


def _changed(
    distribution: Distribution, change: Callable[[th.distributions.Distribution], th.distributions.Distribution]
) -> Distribution:
    """Return a copy of an SB3 action distribution with every factor of it changed."""
    inner = distribution.distribution
    distribution = copy.copy(distribution)
    if isinstance(inner, th.distributions.Distribution):
        distribution.distribution = change(inner)
    else:
        distribution.distribution = [change(factor) for factor in inner]
    return distribution


def detached(distribution: Distribution) -> Distribution:
    """Return a copy of an SB3 action distribution that has no graph and stays what it is when the policy changes."""

    def without_graph(factor: th.distributions.Distribution) -> th.distributions.Distribution:
        factor = copy.copy(factor)
        vars(factor).update({k: v.detach() for k, v in vars(factor).items() if isinstance(v, th.Tensor)})
        return factor

    return _changed(distribution, without_graph)


def kl_old_new(old: Distribution, new: Distribution) -> th.Tensor:
    r"""
    Compute :math:`D_{KL}(\pi_{old}(\cdot|s) \,\|\, \pi_{new}(\cdot|s))` for each state, summed over action dimensions.

    A squashing function (gSDE with ``squash_output``) maps both policies alike and leaves the KL as it is.

    :param old: SB3 action distribution of the old policy, for n states
    :param new: that of the new policy, of the same type and for the same states
    :return: in nats, shape (n,)
    :raises ValueError: if the types differ, or if both are one object: ``policy.get_distribution`` hands out the same each
        time, so take a ``copy.copy`` of the old one
    """
    if old is new:
        raise ValueError(
            "old and new are one object, which SB3's get_distribution overwrites: keep a copy.copy of the old one"
        )
    if type(old) is not type(new):
        raise ValueError(f"old and new must be distributions of one type, got {type(old).__name__} and {type(new).__name__}")
    olds, news = ([d] if isinstance(d, th.distributions.Distribution) else d for d in (old.distribution, new.distribution))
    per_factor = [th.distributions.kl_divergence(p, q) for p, q in zip(olds, news, strict=True)]
    # (n, action_dim) for independent dimensions, (n,) for a single categorical
    return th.stack([kl if kl.dim() == 1 else kl.sum(dim=1) for kl in per_factor]).sum(dim=0)


def log_ratio(distribution: Distribution, batch: Batch) -> th.Tensor:
    """Return log π(a|s) - log π_old(a|s) of a batch's actions, shape (n,)."""
    return distribution.log_prob(batch.actions) - batch.old_log_prob


def surrogate_term(distribution: Distribution, batch: Batch) -> th.Tensor:
    """Return a batch's share of the surrogate, the mean of π(a|s) / π_old(a|s) A(s, a), shape ()."""
    # Before the product and the exponential: a gradient of zero times an infinite slope is not a number
    ratio = without_padding(log_ratio(distribution, batch), batch.weights).exp()
    return weighted_mean(ratio * without_padding(batch.advantages, batch.weights), batch.weights)


def in_double(distribution: Distribution) -> Distribution:
    """
    Return a copy of an SB3 action distribution that computes in float64; what is built of the user's own factors as it is.

    A normalised logit of ten thousand is rounded to a thousandth in float32, and so would be the KL.
    """

    def doubled(factor: th.distributions.Distribution) -> th.distributions.Distribution:
        # Exact types: of a class of the user's own there is more to copy than is known here
        kind: Any = type(factor)
        if kind in (th.distributions.Categorical, th.distributions.Bernoulli):
            return kind(logits=cast(Any, factor).logits.double())
        if kind is th.distributions.Normal:
            return kind(factor.mean.double(), factor.stddev.double())
        return factor

    return _changed(distribution, doubled)


def kl_term(old: Distribution, new: Distribution, batch: Batch) -> th.Tensor:
    """Return a batch's share of the mean KL(old || new), shape ()."""
    return weighted_mean(kl_old_new(old, new), batch.weights)


class PolicyProblem:
    r"""
    The trust-region problem of one batch: surrogate, mean KL and Fisher matrix of a policy, around its present parameters.

    .. math::
        L(\theta) = E\left[\frac{\pi_\theta(a|s)}{\pi_{old}(a|s)} A(s, a)\right], \qquad
        \bar D_{KL}(\theta) = E\left[D_{KL}(\pi_{old}(\cdot|s) \,\|\, \pi_\theta(\cdot|s))\right]

    Schulman et al., *Trust Region Policy Optimization*, equations 12 to 14. The old policy is frozen here, at construction.
    Every mean is a sum over chunks, so that memory is that of one chunk.

    :param distribution_of: maps a batch to the policy's action distribution there, with a graph to the parameters
    :param batch: transitions, with the advantages to use as they stand
    :param parameters: the parameters θ that the distribution depends on
    :param fisher_batch: transitions whose states make the Fisher matrix, by default all; gradient, surrogate and mean KL
        always see the whole batch
    :param chunk_size: largest number of transitions to hold a graph of, by default all of them
    :param fast_fisher: maps chunks and parameters to the product v -> F v, or to ``None`` where it does not cover the
        policy; then, and by default, the product is made by differentiating the KL twice
    """

    def __init__(
        self,
        distribution_of: Callable[[Batch], Distribution],
        batch: Batch,
        parameters: Parameters,
        *,
        fisher_batch: Batch | None = None,
        chunk_size: int | None = None,
        fast_fisher: Callable[[Sequence[Batch], Parameters], MatrixVectorProduct | None] | None = None,
    ):
        self.distribution_of = distribution_of
        self.parameters = parameters
        self.chunks = batch.split(chunk_size)
        self.fisher_chunks = self.chunks if fisher_batch is None or fisher_batch is batch else fisher_batch.split(chunk_size)
        self.fast_fisher = fast_fisher
        # A single chunk's graph serves the gradient too; those of several would not fit in memory together
        self.graph = copy.copy(distribution_of(batch)) if len(self.chunks) == 1 else None
        self.old_distributions = [self.frozen_distribution(chunk) for chunk in self.chunks if self.graph is None]
        if self.graph is not None:
            self.old_distributions.append(in_double(detached(self.graph)))
        self.new_distributions = self.old_distributions

    @th.no_grad()
    def frozen_distribution(self, batch: Batch) -> Distribution:
        """Return the present policy's distribution without a graph, as a copy: SB3 hands out the same object each time."""
        return in_double(self.distribution_of(batch))

    def surrogate_gradient(self) -> tuple[float, th.Tensor]:
        """Return L(θ_old) and its gradient, shape (n_params,)."""
        surrogate, gradient = 0.0, th.zeros(())
        for chunk, old in zip(self.chunks, self.old_distributions, strict=True):
            term = surrogate_term(self.graph or self.distribution_of(chunk), chunk)
            gradient = flat_gradient(term, self.parameters).add_(gradient.to(term))
            surrogate += float(surrogate_term(old, chunk))
        self.graph = None
        return surrogate, gradient

    def fisher_vector_product(self) -> MatrixVectorProduct:
        """Return v -> F v at θ_old, both of shape (n_params,)."""
        product = self.fast_fisher and self.fast_fisher(self.fisher_chunks, self.parameters)
        return product or fisher_vector_product(
            [partial(self._kl_to_here, chunk) for chunk in self.fisher_chunks], self.parameters
        )

    def _kl_to_here(self, chunk: Batch) -> th.Tensor:
        """Return a chunk's share of the mean KL from the present policy, held fixed, to itself: 0, with a graph of its own."""
        distribution = self.distribution_of(chunk)
        return kl_term(detached(distribution), distribution, chunk)

    @th.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Return (L(θ), mean KL(old || θ)) at the parameters' present values."""
        self.new_distributions = [self.frozen_distribution(chunk) for chunk in self.chunks]
        surrogate, mean_kl = 0.0, 0.0
        for chunk, old, new in zip(self.chunks, self.old_distributions, self.new_distributions, strict=True):
            surrogate += float(surrogate_term(new, chunk))
            mean_kl += float(kl_term(old, new, chunk))
        return surrogate, mean_kl

    def entropy(self, *, of_new: bool) -> float | None:
        """
        Return the mean entropy of a policy in nats.

        :param of_new: whether of the policy that was evaluated last, or of the old one
        :return: ``None`` where the entropy has no closed form
        """
        total = 0.0
        for chunk, distribution in zip(self.chunks, self.new_distributions if of_new else self.old_distributions, strict=True):
            entropy = distribution.entropy()
            if entropy is None:
                return None
            total += float(weighted_mean(entropy, chunk.weights))
        return total
