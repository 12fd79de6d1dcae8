"""What an update did to a policy, measured from outside on the states of its rollout."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_trpo.distributions import frozen, has_noise_by_state, mean_stds
from sb3_trpo.guards.process import full_precision, unvalidated_distributions
from sb3_trpo.inspect.run_files import QUANTILES
from sb3_trpo.objective import Batch, entropy_term, kl_old_new, log_ratio, surrogate_term, weighted_mean
from sb3_trpo.trpo import TRPO
from sb3_trpo.trust_region import flat_gradient, flatten, reached_by


class Spread(NamedTuple):
    """
    How differently an update changed the policy from state to state.

    :param reverse_kl: mean KL(new ‖ old), in nats
    :param largest_kl: the largest KL(old ‖ new) of a state
    :param kl_quantiles: of KL(old ‖ new) over the states, at ``QUANTILES``
    :param ratio_quantiles: of π_new(a|s) / π_old(a|s) over the actions taken
    :param outside_clip: share of the actions whose ratio is outside 1 ± ε
    :param clip_range: ε
    :param n_states: number of states
    """

    reverse_kl: float
    largest_kl: float
    kl_quantiles: tuple[float, ...]
    ratio_quantiles: tuple[float, ...]
    outside_clip: float
    clip_range: float
    n_states: int


def kl_of_probabilities(old: Sequence[float], new: Sequence[float]) -> float:
    """Return KL(old ‖ new) of two distributions over the same choices, in nats."""
    return sum(p * math.log(p / q) if q > 0.0 else math.inf for p, q in zip(old, new, strict=True) if p > 0.0)


def _quantiles(values: th.Tensor) -> tuple[float, ...]:
    # torch.quantile takes no more than 16 million numbers
    ordered = values.sort().values.cpu()
    places = [share * (len(ordered) - 1) for share in QUANTILES]
    return tuple(float(ordered[int(at)].lerp(ordered[math.ceil(at)], at - int(at))) for at in places)


class SpreadOfChunks:
    """
    Adds up how an update's change of the policy is spread over states and actions, chunk by chunk.

    :param clip_range: ε of the clip whose bounds to count by
    """

    def __init__(self, clip_range: float):
        self.clip_range = clip_range
        self.reverse_kl = self.outside = 0.0
        self.kls: list[th.Tensor] = []
        self.ratios: list[th.Tensor] = []

    def add(self, batch: Batch, old: Distribution, new: Distribution) -> th.Tensor:
        """
        Take one more chunk into account.

        :param batch: with weights that sum to one over all chunks
        :param old: the old policy there, without a graph
        :param new: the new one
        :return: KL(old ‖ new) in each state, shape (n,)
        """
        kl = kl_old_new(old, new)
        ratio = (log_ratio(new, batch) - log_ratio(old, batch)).exp()
        is_outside = ((ratio - 1.0).abs() > self.clip_range).to(batch.weights)
        self.outside += float(weighted_mean(is_outside, batch.weights))
        self.reverse_kl += float(weighted_mean(kl_old_new(new, old), batch.weights))
        counts = batch.weights > 0
        self.kls.append(kl[counts])
        self.ratios.append(ratio[counts])
        return kl

    def spread(self) -> Spread:
        """Return what all chunks add up to."""
        kl, ratio = th.cat(self.kls), th.cat(self.ratios)
        if not len(kl):
            # Each step of the rollout was spent on a reset
            return Spread(math.nan, math.nan, (), (), math.nan, self.clip_range, 0)
        of_kl, of_ratio = _quantiles(kl), _quantiles(ratio)
        return Spread(self.reverse_kl, float(kl.max()), of_kl, of_ratio, self.outside, self.clip_range, len(kl))


@contextmanager
def as_updates_are_measured() -> Iterator[None]:
    """Measure in the precision of the parameters, and let what is not finite come out as that."""
    with full_precision(), unvalidated_distributions():
        yield


class Means(NamedTuple):
    """
    What an update did on the mean, as ``TrustRegionStep`` tells it of ours.

    :param mean_kl: KL(old ‖ new), in nats
    :param surrogate_gain: measured gain of the surrogate
    :param expected_gain: that of its linear model, g · step
    :param gradient_norm: ||g||
    :param step_norm: length of the step in the space of the parameters that the distribution depends on
    :param entropy: of the new policy, in nats; NaN where it has no closed form
    :param std: mean standard deviation of the new policy; NaN where it has none
    """

    mean_kl: float
    surrogate_gain: float
    expected_gain: float
    gradient_norm: float
    step_norm: float
    entropy: float
    std: float


def actor_parameters(model: TRPO, batch: Batch) -> list[th.nn.Parameter]:
    """Return the parameters that a model's action distribution depends on."""
    probe = batch.few(model._chunk_size())
    return reached_by(model._distribution(probe).log_prob(probe.actions), list(model.policy.parameters()))


def step_between(before: TRPO, after: TRPO, parameters: list[th.nn.Parameter]) -> th.Tensor:
    """Return how far some parameters of the policy before are from where they are in the policy after, shape (n_params,)."""
    chosen = {id(parameter) for parameter in parameters}
    pairs = zip(before.policy.parameters(), after.policy.parameters(), strict=True)
    return flatten([new.detach() - old.detach() for old, new in pairs if id(old) in chosen])


def measure(before: TRPO, after: TRPO, batch: Batch, clip_range: float) -> tuple[Means, Spread]:
    """
    Measure an update from the two policies; of a graph there is never more than that of one chunk.

    :param before: with the old policy, see ``seen_as_ours``
    :param after: with the new one
    :param batch: the rollout of the update
    :param clip_range: ε of the clip whose bounds to count by
    """
    with as_updates_are_measured():
        parameters = actor_parameters(before, batch)
        spread = SpreadOfChunks(clip_range)
        gradient, step = th.zeros((), device="cpu"), step_between(before, after, parameters)
        mean_kl = gain = entropy = 0.0
        log_std = getattr(after.policy, "log_std", None)
        is_gsde = has_noise_by_state(after.policy)
        std = math.nan if log_std is None else 0.0 if is_gsde else float(log_std.detach().exp().mean())
        for chunk in batch.split(before._chunk_size()):
            graph = before._distribution(chunk)
            old = frozen(graph)
            gradient = flat_gradient(surrogate_term(graph, chunk), parameters).add_(gradient.to(step))
            with th.no_grad():
                new = frozen(after._distribution(chunk))
                mean_kl += float(weighted_mean(spread.add(chunk, old, new), chunk.weights))
                gain += float(surrogate_term(new, chunk)) - float(surrogate_term(old, chunk))
                term = entropy_term(new, chunk)
                entropy += math.nan if term is None else term
                std += float(chunk.weights.sum()) * float(mean_stds([new]).mean()) if is_gsde else 0.0
    expected = float(gradient.double() @ step.double())
    means = Means(mean_kl, gain, expected, float(gradient.double().norm()), float(step.double().norm()), entropy, std)
    return means, spread.spread()
