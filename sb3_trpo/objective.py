"""The bridge between reinforcement learning and the trust-region step: surrogate and KL of SB3's action distributions."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_trpo.distributions import copied, detached, factors_of, frozen, in_double, moved, named, per_state
from sb3_trpo.guards.random_network import SameNoise
from sb3_trpo.policies import rows_of
from sb3_trpo.trust_region import CentralDifferences, first_that_works, fisher_vector_product, flat_gradient, reached_by
from sb3_trpo.trust_region.fallbacks import somewhere_else
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters

SelfBatch = TypeVar("SelfBatch", bound="Batch")

# Makes the product v -> F v from the pieces of a batch and the variables, or ``None`` where it does not cover the policy
FisherBuilder = Callable[[Sequence["Batch"], Parameters], MatrixVectorProduct | None]
# The same for every policy whose network has a forward mode, given what maps a batch to its action distribution
ForwardBuilder = Callable[[Sequence["Batch"], Parameters, Callable[["Batch"], Distribution]], MatrixVectorProduct]

# The ways to a Fisher product, as they are asked: the quickest first, the one that always works last
WRITTEN_OUT, TWICE, FORWARD_MODE, DIFFERENCES = "Gauss-Newton", "plain", "Gauss-Newton by autograd", "finite differences"

# Transitions on which the ways are tried
N_TRIED = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """
    Transitions of one rollout, in any order.

    :param observations: tensor of shape (n, *obs_shape), or a dict of such tensors
    :param actions: shape (n, *action_shape); (n,) and integer for Discrete
    :param old_log_prob: log-probability of the actions under the policy that took them, shape (n,)
    :param advantages: shape (n,)
    :param returns: what the values are fitted to, shape (n,)
    :param weights: what each transition counts in a mean, shape (n,), zero for padding; they sum to one over everything
        that the mean runs over, so that the mean over a chunk, a sequence with padding or a process is a plain sum
    :param action_masks: which actions were possible, booleans of shape (n, n_masks), if the environment says so
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    weights: th.Tensor
    action_masks: th.Tensor | None = None

    def _replace(self: SelfBatch, **changes: Any) -> SelfBatch:
        """Return the same with other fields, as named tuples do."""
        return replace(self, **changes)

    def select(self: SelfBatch, rows: slice | th.Tensor) -> SelfBatch:
        """Return some of the transitions; their weights no longer sum to one."""
        return type(self)(**{field.name: rows_of(getattr(self, field.name), rows) for field in fields(self)})

    def few(self: SelfBatch, n: int) -> SelfBatch:
        """Return the first n of the transitions that count, or all of them, for a look at them."""
        return self.select(self.weights.nonzero().squeeze(1)[:n])

    def thinned(self: SelfBatch, factor: int, permutation: Callable[[int], np.ndarray] = np.random.permutation) -> SelfBatch:
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

    def split(self: SelfBatch, size: int | None) -> list[SelfBatch]:
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


def _of_everything(part: th.Tensor) -> th.Tensor:
    """Return what a part comes to where there is no other part."""
    return part


def normalize_advantages(
    advantages: th.Tensor,
    weights: th.Tensor,
    *,
    total: Callable[[th.Tensor], th.Tensor] = _of_everything,
    largest: Callable[[th.Tensor], th.Tensor] = _of_everything,
) -> th.Tensor:
    """
    Shift advantages to mean zero and scale them to standard deviation one (with Bessel's correction, as SB3 does).

    Advantages that differ by no more than their own rounding carry no signal and become zeros: dividing them by their
    standard deviation would turn the rounding into the largest possible step.

    :param advantages: shape (n,)
    :param weights: shape (n,), see :class:`Batch`
    :param total: completes sums where these advantages are a part of more, as in :class:`PolicyProblem`
    :param largest: the same for the largest of them
    :return: shape (n,)
    """
    # In units of the largest one nothing over- or underflows on the way, and in float64 sums have no rounding of their own
    precision = advantages.dtype
    advantages, weights = advantages.double(), weights.double()
    unit = largest(without_padding(advantages, weights).abs().max())
    advantages = advantages / th.where(unit > 0, unit, th.ones_like(unit))
    sums = (weighted_mean(advantages, weights), weighted_mean(advantages.abs(), weights), (weights != 0).sum().to(advantages))
    mean, mean_size, n = total(th.stack(sums))
    centred = advantages - mean
    std = (total(weighted_mean(centred**2, weights)) * n / (n - 1).clamp(min=1)).sqrt()
    rounding = 3 * th.finfo(precision).eps * mean_size
    return th.where(std <= rounding, th.zeros_like(centred), centred / std).to(precision)


class NoKLError(NotImplementedError, ValueError):
    """Nobody has told torch what the KL between two distributions is."""


def kl_old_new(old: Distribution, new: Distribution) -> th.Tensor:
    r"""
    Compute :math:`D_{KL}(\pi_{old}(\cdot|s) \,\|\, \pi_{new}(\cdot|s))` for each state, summed over action dimensions.

    A squashing function (gSDE with ``squash_output``) maps both policies alike and leaves the KL as it is.

    :param old: SB3 action distribution of the old policy, for n states
    :param new: that of the new policy, of the same type and for the same states
    :return: in nats, shape (n,)
    :raises ValueError: if the types differ, if torch knows no KL between the two, or if both are one object:
        ``policy.get_distribution`` hands out the same each time, so take a ``copy.copy`` of the old one
    """
    if old is new:
        raise ValueError(
            "old and new are one object, which SB3's get_distribution overwrites: keep a copy.copy of the old one"
        )
    if type(old) is not type(new):
        raise ValueError(f"old and new must be distributions of one type, got {type(old).__name__} and {type(new).__name__}")
    olds, news = list(factors_of(old)), list(factors_of(new))
    keeps_graph = th.is_grad_enabled()
    try:
        with th.enable_grad():  # those of an exponential family are derivatives, as is its entropy
            per_factor = [per_state(th.distributions.kl_divergence(p, q)) for p, q in zip(olds, news, strict=True)]
    except NotImplementedError as error:
        transformed = any(isinstance(factor, th.distributions.TransformedDistribution) for factor in olds)
        way_out = "Derive a class of your own from TransformedDistribution, and register" if transformed else "Register"
        raise NoKLError(
            f"the step of TRPO is limited by the KL between the old policy and the new one, and torch knows none for "
            f"{named(old)}: {str(error) or 'it takes the transforms of the two for different ones'}. {way_out} one with "
            "torch.distributions.register_kl, or take a distribution that has one"
        ) from error
    kl = th.stack(per_factor).sum(dim=0)
    return kl if keeps_graph else kl.detach()


class NotFrozenError(ValueError):
    """A copy of a policy's distribution changes when the policy does."""


@th.no_grad()
def check_kl(distribution: Distribution, actions: th.Tensor, parameters: Parameters) -> None:
    """
    Fail unless a KL is known between a policy's distribution and what it becomes when the policy moves.

    :param distribution: with a graph to the parameters, for a few states
    :param actions: taken there
    :param parameters: those that move; they are moved, and given back bit for bit
    :raises NoKLError: naming the distribution
    :raises NotFrozenError: naming it, if the copy that stands for the old policy would move too
    :raises ValueError: if its log-probabilities depend on parameters that the KL does not depend on
    """
    try:
        # Transforms that depend on the policy differ from then on, and torch knows no KL across them
        old, new = detached(distribution), moved(distribution)
        before, again = (_of_old(old, new, actions) for _ in range(2))
        with th.enable_grad():
            unseen = set(parameters) - {*reached_by(kl_old_new(old, distribution), parameters)}
    except NoKLError:
        raise
    except Exception:
        return  # numbers that are not those of a policy may be refused: that does not count here
    if not _is_same(before, again):
        return  # drawn at random
    try:
        with somewhere_else(parameters, th.Generator("cpu").manual_seed(0)):
            stays = _is_same(before, _of_old(old, new, actions))
    except Exception:
        stays = False
    if not stays:
        raise NotFrozenError(
            f"the KL is measured from the old policy, and {named(distribution)} of the old policy changes when the parameters "
            "do: it holds them where no copy can reach, in a function or a method. Give it tensors, or a torch.nn.Module"
        )
    if unseen:
        raise ValueError(
            f"the KL of {named(distribution)} is that of the torch distribution in it, and its log_prob depends on parameters "
            f"that this does not depend on, of shapes {sorted(tuple(p.shape) for p in unseen)}: the limit would not hold for "
            "them. Put them into the torch distribution, or detach them"
        )


def _of_old(old: Distribution, new: Distribution, actions: th.Tensor) -> th.Tensor:
    """Return numbers that an old policy gives: log-probabilities too, since a KL does not see a transform that changes."""
    return th.cat([kl_old_new(old, new), old.log_prob(actions).flatten()])


def _is_same(one: th.Tensor, other: th.Tensor) -> bool:
    return bool(th.isclose(one, other, rtol=0.0, atol=0.0, equal_nan=True).all())


def log_ratio(distribution: Distribution, batch: Batch) -> th.Tensor:
    """Return log π(a|s) - log π_old(a|s) of a batch's actions, shape (n,)."""
    log_prob = distribution.log_prob(batch.actions)
    if log_prob.shape != batch.old_log_prob.shape:
        # Torch would make a table of all pairs of two such shapes
        raise ValueError(
            f"log_prob of {named(distribution)} must have one number for each state, shape {tuple(batch.old_log_prob.shape)}, "
            f"got {tuple(log_prob.shape)}"
        )
    return log_prob - batch.old_log_prob


def surrogate_term(distribution: Distribution, batch: Batch) -> th.Tensor:
    """Return a batch's share of the surrogate, the mean of π(a|s) / π_old(a|s) A(s, a), shape ()."""
    # Before the product and the exponential: a gradient of zero times an infinite slope is not a number
    ratio = without_padding(log_ratio(distribution, batch), batch.weights).exp()
    return weighted_mean(ratio * without_padding(batch.advantages, batch.weights), batch.weights)


def kl_term(old: Distribution, new: Distribution, batch: Batch) -> th.Tensor:
    """Return a batch's share of the mean KL(old || new), shape ()."""
    return weighted_mean(kl_old_new(old, new), batch.weights)


def entropy_term(distribution: Distribution, batch: Batch) -> float | None:
    """Return a batch's share of the mean entropy in nats, ``None`` where the entropy has no closed form."""
    try:
        with th.enable_grad():
            entropy = distribution.entropy()
    except NotImplementedError:
        return None  # what torch says where it knows none
    return None if entropy is None else float(weighted_mean(per_state(entropy.detach()), batch.weights))


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
        policy; then, and by default, the product is made by differentiating the KL twice, or as it can be made
    :param forward_fisher: what makes products without a second derivative of the network, if that has a forward mode
    :param fisher_path: the way to make the product where the fast one does not cover the policy, if it is known; else it is
        found by trying
    :param is_random: whether the distribution is another one each time it is asked for
    :param total: completes a sum over the batch, of any shape, where the batch is a part of a larger one; the weights then sum
        to one over all parts
    :param largest: the same for the largest of the parts' numbers
    """

    def __init__(
        self,
        distribution_of: Callable[[Batch], Distribution],
        batch: Batch,
        parameters: Parameters,
        *,
        fisher_batch: Batch | None = None,
        chunk_size: int | None = None,
        fast_fisher: FisherBuilder | None = None,
        forward_fisher: ForwardBuilder | None = None,
        fisher_path: str = "",
        is_random: bool = False,
        total: Callable[[th.Tensor], th.Tensor] = _of_everything,
        largest: Callable[[th.Tensor], th.Tensor] = _of_everything,
    ):
        self.distribution_of = distribution_of
        self.parameters = parameters
        self.chunks = batch.split(chunk_size)
        self.fisher_chunks = self.chunks if fisher_batch is None or fisher_batch is batch else fisher_batch.split(chunk_size)
        self.fast_fisher = fast_fisher
        self.forward_fisher = forward_fisher
        self.known_path = fisher_path
        self.is_random = is_random
        self.total = total
        self.largest = largest
        self.fisher_path = ""
        # A single chunk's graph serves the gradient too; those of several would not fit in memory together
        self.graph = copied(distribution_of(self.chunks[0])) if len(self.chunks) == 1 else None
        self.old_distributions = [self.frozen_distribution(chunk) for chunk in self.chunks if self.graph is None]
        if self.graph is not None:
            self.old_distributions.append(frozen(self.graph))
        self.new_distributions = self.old_distributions

    @th.no_grad()
    def frozen_distribution(self, batch: Batch) -> Distribution:
        """Return the present policy's distribution without a graph, as a copy: SB3 hands out the same object each time."""
        return frozen(self.distribution_of(batch))

    def surrogate_gradient(self) -> tuple[float, th.Tensor]:
        """Return L(θ_old) and its gradient, shape (n_params,)."""
        surrogate, gradient = 0.0, th.zeros((), device="cpu")
        for chunk, old in zip(self.chunks, self.old_distributions, strict=True):
            term = surrogate_term(self.graph or self.distribution_of(chunk), chunk)
            gradient = flat_gradient(term, self.parameters).add_(gradient.to(term))
            surrogate += float(surrogate_term(old, chunk))
        self.graph = None
        (surrogate,) = self._completed(surrogate)
        return surrogate, self.total(gradient)

    def _completed(self, *sums: float) -> list[float]:
        return self.total(th.tensor(sums, dtype=th.float64, device="cpu")).tolist()

    def fisher_vector_product(self) -> MatrixVectorProduct:
        """
        Return v -> F v at θ_old, both of shape (n_params,); ``fisher_path`` then says how it is made.

        The way was chosen on a few states. Where the first product over all of them fails, or is not finite, the next way is
        taken.
        """
        written_out = self.fast_fisher and self.fast_fisher(self.fisher_chunks, self.parameters)
        # Of other networks the generators of the process are left alone
        self.noise: AbstractContextManager[None] = SameNoise(self.parameters[0].device) if self.is_random else nullcontext()
        ways = [WRITTEN_OUT, *self._ways()]
        own = WRITTEN_OUT if written_out else self.known_path or self._path_that_works()
        self.fisher_path = ways[self._latest(ways.index(own))]
        if self.fisher_path == WRITTEN_OUT:
            assert written_out
            return lambda vector: self.total(written_out(vector))
        self.known_path = self.fisher_path
        return self._first_that_is_finite()

    def _latest(self, choice: int) -> int:
        """Return the last of the choices that any process has made."""
        return int(self.largest(th.tensor(float(choice), device="cpu")))

    def _first_that_is_finite(self) -> MatrixVectorProduct:
        """Return the product made in the way that was found, or in the first one after it that stands up to all states."""
        untried = self._ways()[self._ways().index(self.fisher_path) + 1 :]
        product: MatrixVectorProduct | None = None

        def here(vector: th.Tensor) -> th.Tensor:
            nonlocal product
            product = product or self._fisher_by(self.fisher_path, self.fisher_chunks)
            return product(vector)

        def completed(vector: th.Tensor) -> th.Tensor:
            nonlocal product
            while untried:
                try:
                    part = here(vector)
                except th.OutOfMemoryError:
                    raise
                except Exception:
                    part = th.full_like(vector, th.nan)  # an error of the user's own is raised in the last way too
                result = self.total(part)
                if result.isfinite().all():
                    untried.clear()
                    return result
                product, self.known_path = None, untried.pop(0)
                self.fisher_path = self.known_path
            return self.total(here(vector))

        return completed

    def _ways(self) -> list[str]:
        """Name the ways to make a product of any network, in the order in which they are tried; the last one always works."""
        return [TWICE, FORWARD_MODE, DIFFERENCES] if self.forward_fisher else [TWICE, DIFFERENCES]

    def _path_that_works(self) -> str:
        """Try the ways to a Fisher product on a few states, and measure there whether what they give is right."""
        few = [self.fisher_chunks[0].few(N_TRIED)]
        found = first_that_works(
            [(name, partial(self._fisher_by, name, few)) for name in self._ways()[:-1]],
            partial(self._central_differences, few),
            self.parameters,
        )
        return found or DIFFERENCES

    def _fisher_by(self, path: str, chunks: Sequence[Batch]) -> MatrixVectorProduct:
        if path == TWICE:
            return fisher_vector_product([partial(self._kl_to_here, chunk) for chunk in chunks], self.parameters)
        if path == FORWARD_MODE and self.forward_fisher:
            return self.forward_fisher(chunks, self.parameters, self._same_draw)
        return self._central_differences(chunks)

    def _central_differences(self, chunks: Sequence[Batch], shorten: float = 1.0) -> CentralDifferences:
        self.graph = None  # the parameters will be moved
        with th.no_grad():
            kl_terms = [partial(self._kl_from, frozen(self._same_draw(chunk)), chunk) for chunk in chunks]
        return CentralDifferences(kl_terms, self.parameters, shorten=shorten)

    def _same_draw(self, chunk: Batch) -> Distribution:
        """Return the policy's distribution; if the network is random, with the same noise each time, else F is no matrix."""
        with self.noise:
            return self.distribution_of(chunk)

    def _kl_from(self, old: Distribution, chunk: Batch) -> th.Tensor:
        """Return a chunk's share of the mean KL from a policy to the present one, with a graph."""
        return kl_term(old, in_double(self._same_draw(chunk)), chunk)

    def _kl_to_here(self, chunk: Batch) -> th.Tensor:
        """Return a chunk's share of the mean KL from the present policy, held fixed, to itself: 0, with a graph of its own."""
        distribution = self._same_draw(chunk)
        return kl_term(detached(distribution), distribution, chunk)

    @th.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Return (L(θ), mean KL(old || θ)) at the parameters' present values."""
        self.new_distributions = [self.frozen_distribution(chunk) for chunk in self.chunks]
        surrogate, mean_kl = 0.0, 0.0
        for chunk, old, new in zip(self.chunks, self.old_distributions, self.new_distributions, strict=True):
            surrogate += float(surrogate_term(new, chunk))
            mean_kl += float(kl_term(old, new, chunk))
        surrogate, mean_kl = self._completed(surrogate, mean_kl)
        return surrogate, mean_kl

    def entropy(self, *, of_new: bool) -> float | None:
        """
        Return the mean entropy of a policy in nats.

        :param of_new: whether of the policy that was evaluated last, or of the old one
        :return: ``None`` where the entropy has no closed form
        """
        total = 0.0
        for chunk, distribution in zip(self.chunks, self.new_distributions if of_new else self.old_distributions, strict=True):
            term = entropy_term(distribution, chunk)
            if term is None:
                return None
            total += term
        (total,) = self._completed(total)
        return total
