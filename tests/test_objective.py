"""Surrogate, KL and advantages: the quantities of the theory, in its units and directions."""

import copy
import math
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch import nn

import sb3_trpo
from sb3_trpo.objective import WRITTEN_OUT, Batch, PolicyProblem, kl_old_new, log_ratio, normalize_advantages, weighted_mean
from sb3_trpo.trust_region import flat_gradient, flatten
from sb3_trpo.trust_region.fisher import MatrixVectorProduct
from tests.cases import DoubleExtractor, PolicyCase, make_case, normal, sample_actions, seeded, shake
from tests.oracles import log_density, normal_kl, policy_gradient, relative_error
from tests.small_models import small_model


def categorical(*probabilities: float) -> CategoricalDistribution:
    logits = th.tensor([probabilities], dtype=th.float64).log()
    return CategoricalDistribution(len(probabilities)).proba_distribution(logits)


def n_params(case: PolicyCase) -> int:
    return sum(parameter.numel() for parameter in case.parameters)


# KL(old ‖ new)


@pytest.mark.parametrize(("new", "nats"), [((0.6, 0.4), "0.3348"), ((0.25, 0.75), "0.0070")])
def test_kl_old_new_gives_the_worked_examples(new: tuple[float, float], nats: str) -> None:
    """From [0.2, 0.8] the public function gives the two numbers that the theory works out by hand."""
    kl = sb3_trpo.kl_old_new(categorical(0.2, 0.8), categorical(*new))
    assert kl.shape == (1,)
    assert f"{float(kl):.4f}" == nats
    by_hand = sum(p * math.log(p / q) for p, q in zip((0.2, 0.8), new, strict=True))
    assert float(kl) == pytest.approx(by_hand, rel=1e-12)


def test_kl_old_new_sums_gaussian_dimensions() -> None:
    """The KL of a Gaussian is the sum, not the mean, of those of its dimensions, each integrated from the definition."""
    old_mean, old_std, new_mean, new_std = [0.3, -1.0, 2.0], [0.5, 1.0, 2.0], [0.1, -0.5, 2.5], [0.6, 0.8, 2.0]
    old, new = (
        DiagGaussianDistribution(3).proba_distribution(th.tensor([mean]).double(), th.tensor(std).double().log())
        for mean, std in ((old_mean, old_std), (new_mean, new_std))
    )
    expected = sum(map(normal_kl, old_mean, old_std, new_mean, new_std))
    assert kl_old_new(old, new).tolist() == [pytest.approx(expected, rel=1e-6)]


def test_kl_old_new_sums_gsde_dimensions() -> None:
    """The same for state-dependent noise, where each state has standard deviations of its own."""
    latents = normal(5, 4, seed=0)
    old, new = (
        StateDependentNoiseDistribution(2, use_expln=False) for _ in range(2)
    )  # the two must be objects of their own: SB3 hands out `self`
    old.proba_distribution(normal(5, 2, seed=1), normal(4, 2, seed=2), latents)
    new.proba_distribution(normal(5, 2, seed=3), normal(4, 2, seed=4), latents)
    kl = kl_old_new(old, new)
    assert kl.shape == (5,)
    o, n = old.distribution, new.distribution
    for row in range(5):
        terms = [[float(value[row, d]) for value in (o.mean, o.stddev, n.mean, n.stddev)] for d in range(2)]
        assert float(kl[row]) == pytest.approx(sum(normal_kl(*term) for term in terms), rel=1e-6)


def test_kl_old_new_sums_binary_dimensions() -> None:
    """The KL of several binary actions is the sum of those of each, written out."""
    old, new = (BernoulliDistribution(3).proba_distribution(normal(4, 3, seed=seed)) for seed in (0, 1))
    p, q = old.distribution.probs, new.distribution.probs
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(dim=1)
    assert th.allclose(kl_old_new(old, new), expected, rtol=1e-10, atol=0)


def test_kl_old_new_sums_discrete_dimensions() -> None:
    """The KL of several discrete actions is that of their joint probabilities."""
    old, new = (MultiCategoricalDistribution([2, 3]).proba_distribution(normal(4, 5, seed=seed)) for seed in (0, 1))
    p, q = ((d.distribution[0].probs[:, :, None] * d.distribution[1].probs[:, None, :]).flatten(1) for d in (old, new))
    assert th.allclose(kl_old_new(old, new), (p * (p / q).log()).sum(dim=1), rtol=1e-10, atol=0)


def repeated(case: PolicyCase, row: int, n: int) -> Batch:
    """One state of the batch n times."""
    assert isinstance(case.batch.observations, th.Tensor)
    observations = case.batch.observations[row].expand(n, -1)
    return case.batch._replace(observations=observations)


def check_that_kl_is_an_expectation(case: PolicyCase) -> None:
    n = 100_000
    batch = repeated(case, 0, n)
    with th.no_grad():
        old = copy.copy(case.distribution_of(batch))
        shake(case.parameters, scale=0.4, seed=7)
        new = case.distribution_of(batch)
        with seeded(8):
            actions = sample_actions(old)
        differences = old.log_prob(actions) - new.log_prob(actions)
        estimate, error = float(differences.mean()), float(differences.std()) / math.sqrt(n)
        kl, reversed_kl = float(kl_old_new(old, new)[0]), float(kl_old_new(new, old)[0])
    assert abs(kl - estimate) < 4 * error
    assert abs(reversed_kl - estimate) > 6 * error, "this draw does not tell the two directions apart"


def test_kl_old_new_is_an_expectation_under_the_old_policy(case: PolicyCase) -> None:
    """It is E_old[log π_old - log π_new], by Monte Carlo; the KL the other way round is not."""
    check_that_kl_is_an_expectation(case)


def test_kl_old_new_is_not_changed_by_squashing() -> None:
    """Where gSDE's actions pass through a tanh the expectation is still the same KL."""
    check_that_kl_is_an_expectation(make_case("gsde", squash_output=True))


def test_kl_old_new_is_zero_between_equals_and_positive_elsewhere(case: PolicyCase) -> None:
    """There is one value for each state, zero for equal policies and larger for others."""
    old = case.frozen_distribution()
    assert kl_old_new(old, case.frozen_distribution()).abs().max() < 1e-14
    shake(case.parameters, scale=0.1, seed=7)
    kl = kl_old_new(old, case.frozen_distribution())
    assert kl.shape == (7,) and bool((kl > 0).all())


def test_kl_old_new_refuses_two_types() -> None:
    """Distributions of two types have no KL, and the error names both."""
    gaussian = DiagGaussianDistribution(2).proba_distribution(normal(1, 2, seed=0), normal(2, seed=1))
    with pytest.raises(ValueError, match=r"CategoricalDistribution.*DiagGaussianDistribution"):
        kl_old_new(categorical(0.5, 0.5), gaussian)


# The problem at θ_old


def test_problem_starts_from_zero(case: PolicyCase) -> None:
    """At θ_old the surrogate is the mean advantage, its gain is zero and so is the KL."""
    problem = case.problem()
    surrogate, _ = problem.surrogate_gradient()
    measured, mean_kl = problem.evaluate()
    assert measured == pytest.approx(surrogate, rel=1e-13)
    assert surrogate == pytest.approx(float((case.batch.weights * case.batch.advantages).sum()), rel=1e-12)
    assert abs(mean_kl) < 1e-14


def test_problem_is_flat_in_kl_at_the_start(case: PolicyCase) -> None:
    """At θ_old the gradient of the mean KL is zero; a step away from it, it is not."""
    old, weights = case.frozen_distribution(), case.batch.weights
    gradient = flat_gradient(weighted_mean(kl_old_new(old, case.distribution_of(case.batch)), weights), case.parameters)
    assert float(gradient.norm()) < 1e-12
    shake(case.parameters, scale=0.1, seed=7)
    gradient = flat_gradient(weighted_mean(kl_old_new(old, case.distribution_of(case.batch)), weights), case.parameters)
    assert float(gradient.norm()) > 1e-3


def test_problem_gradient_is_the_policy_gradient(case: PolicyCase) -> None:
    """At θ_old the gradient of the surrogate is the mean of advantage times ∇log π, from log-probabilities alone."""
    batch = case.batch
    assert isinstance(batch.observations, th.Tensor)
    _, gradient = case.problem().surrogate_gradient()
    expected = policy_gradient(
        case.policy, batch.observations, batch.actions, batch.advantages, batch.weights, case.parameters
    )
    assert relative_error(gradient, expected) < 1e-10


def test_problem_evaluates_ratio_and_kl_elsewhere(case: PolicyCase) -> None:
    """Away from θ_old it measures E[π/π_old A] and the mean KL, each written out state by state."""
    problem, batch, old = case.problem(), case.batch, case.frozen_distribution()
    assert isinstance(batch.observations, th.Tensor)
    shake(case.parameters, scale=0.1, seed=7)
    surrogate, mean_kl = problem.evaluate()
    expected = 0.0
    for row in range(7):
        log_prob = float(log_density(case.policy, batch.observations[row], batch.actions[row]).detach())
        ratio = math.exp(log_prob - float(batch.old_log_prob[row]))
        expected += float(batch.weights[row]) * ratio * float(batch.advantages[row])
    assert surrogate == pytest.approx(expected, rel=1e-10)
    kl = kl_old_new(old, case.frozen_distribution())
    assert mean_kl == pytest.approx(sum(float(w) * float(k) for w, k in zip(batch.weights, kl, strict=True)), rel=1e-12)
    assert mean_kl > 1e-4


def test_problem_gradient_matches_finite_differences(case: PolicyCase) -> None:
    """The gradient predicts what `evaluate` measures a small step away, in a random direction."""
    problem = case.problem()
    _, gradient = problem.surrogate_gradient()
    epsilon, last = 1e-5, case.parameters
    if case.name == "gsde":
        # SB3 hides from the gradient that the features move the standard deviation too: only what follows them is exact
        last = [parameter for parameter in last if parameter is case.policy.log_std]
        last += list(case.policy.action_net.parameters())
    shake(last, scale=epsilon, seed=7)
    moved = flatten([parameter.detach().clone() for parameter in case.parameters])
    ahead, _ = problem.evaluate()
    shake(last, scale=-2 * epsilon, seed=7)
    behind, _ = problem.evaluate()
    step = moved - flatten([parameter.detach() for parameter in case.parameters])
    assert ahead - behind == pytest.approx(float(gradient @ step), rel=1e-6)


def test_problem_freezes_the_old_policy(case: PolicyCase) -> None:
    """The KL is measured from the policy at construction, also after SB3's one distribution object has moved on."""
    problem = case.problem()
    shake(case.parameters, scale=0.1, seed=7)
    _, first = problem.evaluate()
    shake(case.parameters, scale=0.1, seed=8)
    problem.evaluate()
    shake(case.parameters, scale=-0.1, seed=8)
    assert problem.evaluate()[1] == pytest.approx(first, rel=1e-9) and first > 0


def test_problem_entropy_is_that_of_the_policy_asked_for() -> None:
    """The reported entropy is a weighted mean in nats; a squashed Gaussian has none in closed form."""
    case = make_case("categorical")
    inner = case.frozen_distribution().distribution
    assert isinstance(inner, th.distributions.Categorical)
    probabilities = inner.probs
    entropies = -(probabilities * probabilities.log()).sum(dim=1)
    problem = case.problem()
    shake(case.parameters, scale=0.5, seed=7)
    assert problem.entropy(of_new=False) == pytest.approx(float((case.batch.weights * entropies).sum()), rel=1e-10)
    assert make_case("gsde", squash_output=True).problem().entropy(of_new=False) is None


def test_problem_entropy_before_an_evaluation_is_that_of_the_old_policy() -> None:
    problem = make_case("categorical").problem()
    assert problem.entropy(of_new=True) == problem.entropy(of_new=False)


def test_problem_entropy_of_the_new_policy_is_that_of_the_last_evaluation() -> None:
    """In chunks as in one piece: the policy evaluated last is the new one, the one of the beginning the old one."""
    for chunk_size in (None, 3):
        case = make_case("bernoulli")
        problem = case.problem(chunk_size=chunk_size)
        expected = {}
        for of_new in (False, True):
            entropy = case.frozen_distribution().entropy()
            assert entropy is not None
            expected[of_new] = float((case.batch.weights * entropy).sum())
            shake(case.parameters, scale=0.0 if of_new else 0.5, seed=7)
            problem.evaluate()
        assert expected[True] != pytest.approx(expected[False], rel=1e-3)
        for of_new in (False, True):
            assert problem.entropy(of_new=of_new) == pytest.approx(expected[of_new], rel=1e-10)


def test_problem_in_chunks_sums_surrogate_and_gradient(case: PolicyCase) -> None:
    """Seven transitions three at a time: the same surrogate and gradient as at once, and asked for twice the same again."""
    whole, chunked = case.problem(), case.problem(chunk_size=3)
    surrogate, gradient = whole.surrogate_gradient()
    for problem in (chunked, chunked, whole):
        again, same = problem.surrogate_gradient()
        assert again == pytest.approx(surrogate, rel=1e-10) and relative_error(same, gradient) < 1e-10


def test_problem_thins_the_fisher_matrix_only(case: PolicyCase) -> None:
    """With fewer states for the Fisher matrix, surrogate, gradient and KL still see every transition."""
    plain, thinned = case.problem(), case.problem(fisher_batch=case.batch.thinned(2))
    (surrogate, gradient), (other_surrogate, other_gradient) = plain.surrogate_gradient(), thinned.surrogate_gradient()
    assert other_surrogate == surrogate and th.equal(other_gradient, gradient)
    vector = normal(n_params(case), seed=7)
    assert relative_error(thinned.fisher_vector_product()(vector), plain.fisher_vector_product()(vector)) > 1e-3
    shake(case.parameters, scale=0.1, seed=7)
    assert thinned.evaluate() == plain.evaluate()
    few = case.problem(fisher_batch=case.batch.thinned(2), chunk_size=3)
    few.fisher_vector_product()
    assert few._central_differences(few.fisher_chunks, 0.5).shorten == 0.5
    assert max(len(chunk.weights) for chunk in few.fisher_chunks) <= 3 < len(case.batch.thinned(2).weights)


def test_log_ratio_is_zero_for_the_policy_that_acted(case: PolicyCase) -> None:
    """The ratio starts at one for every transition."""
    assert float(log_ratio(case.distribution_of(case.batch), case.batch).detach().abs().max()) < 1e-13


class NoisyExtractor(DoubleExtractor):
    """Dropout and batch statistics in front of the policy."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space)
        self.layers = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(super().forward(observations))


def test_problem_with_dropout_and_batch_statistics_repeats_itself(case: PolicyCase) -> None:
    """In evaluation mode the ratio starts at 1, one evaluation equals the next bit for bit, and no buffer moves."""
    noisy = make_case(case.name, features_extractor_class=NoisyExtractor)
    noisy.policy.set_training_mode(False)
    with th.no_grad():
        old_log_prob = noisy.distribution_of(noisy.batch).log_prob(noisy.batch.actions)
    noisy = noisy._replace(batch=noisy.batch._replace(old_log_prob=old_log_prob))
    buffers = [buffer.clone() for buffer in noisy.policy.buffers()]
    problem = noisy.problem()
    surrogate, _ = problem.surrogate_gradient()
    measured, mean_kl = problem.evaluate()
    assert measured == pytest.approx(surrogate, rel=1e-13) and abs(mean_kl) < 1e-14
    shake(noisy.parameters, scale=0.1, seed=7)
    assert problem.evaluate() == problem.evaluate()
    assert all(th.equal(before, after) for before, after in zip(buffers, noisy.policy.buffers(), strict=True))


# Means over samples


def test_weighted_mean_is_a_weighted_sum() -> None:
    """Weights that sum to one make a mean: equal ones the plain mean, others a weighted one."""
    values, weights = normal(5, seed=0), th.tensor([0.1, 0.2, 0.3, 0.4, 0.0], dtype=th.float64)
    assert float(weighted_mean(values, th.full_like(values, 0.2))) == pytest.approx(float(values.mean()), rel=1e-12)
    expected = sum(float(w) * float(v) for w, v in zip(weights, values, strict=True))
    assert float(weighted_mean(values, weights)) == pytest.approx(expected, rel=1e-12)
    chunks = [float(weighted_mean(values[rows], weights[rows])) for rows in (slice(0, 2), slice(2, 5))]
    assert sum(chunks) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e300])
def test_weighted_mean_leaves_out_what_has_no_weight(garbage: float) -> None:
    """A value of weight zero does not reach the mean or its gradient, and gets none; with weight, NaN does."""
    values = th.tensor([1.0, garbage, 3.0], dtype=th.float64, requires_grad=True)
    mean = weighted_mean(values, th.tensor([0.5, 0.0, 0.5], dtype=th.float64))
    assert float(mean.detach()) == 2.0
    mean.backward()
    assert values.grad is not None and values.grad.tolist() == [0.5, 0.0, 0.5]
    assert not math.isclose(float(weighted_mean(values.detach(), th.full((3,), 1 / 3).double())), 2.0)


def padded(batch: Batch, *, advantage: float, old_log_prob: float) -> Batch:
    """Put rows of weight zero between the transitions: another state, another action, garbage for the rest."""
    n = len(batch.weights)
    assert isinstance(batch.observations, th.Tensor)
    order = th.arange(2 * n).reshape(2, n).T.flatten()

    def interleave(field: th.Tensor, filler: th.Tensor) -> th.Tensor:
        return th.cat([field, filler])[order]

    return Batch(
        interleave(batch.observations, 5 * normal(*batch.observations.shape, seed=20)),
        interleave(batch.actions, batch.actions.flip(0)),
        interleave(batch.old_log_prob, th.full((n,), old_log_prob, dtype=th.float64)),
        interleave(batch.advantages, th.full((n,), advantage, dtype=th.float64)),
        interleave(batch.returns, th.full((n,), advantage, dtype=th.float64)),
        interleave(batch.weights, th.zeros_like(batch.weights)),
    )


def check_that_padding_is_not_seen(case: PolicyCase, **garbage: float) -> None:
    plain = case.problem()
    with_padding = case._replace(batch=padded(case.batch, **garbage)).problem()
    (surrogate, gradient), (padded_surrogate, padded_gradient) = plain.surrogate_gradient(), with_padding.surrogate_gradient()
    assert padded_surrogate == pytest.approx(surrogate, rel=1e-12)
    assert relative_error(padded_gradient, gradient) < 1e-12
    vector = normal(n_params(case), seed=7)
    assert relative_error(with_padding.fisher_vector_product()(vector), plain.fisher_vector_product()(vector)) < 1e-12
    shake(case.parameters, scale=0.1, seed=7)
    assert with_padding.evaluate() == pytest.approx(plain.evaluate(), rel=1e-12)


def test_problem_does_not_see_padding(case: PolicyCase) -> None:
    """Rows of weight zero change neither surrogate, gradient, KL nor Fisher product."""
    check_that_padding_is_not_seen(case, advantage=1e6, old_log_prob=0.0)


@pytest.mark.untraced
@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param({"advantage": math.nan, "old_log_prob": 0.0}, id="nan advantage"),
        pytest.param({"advantage": 1.0, "old_log_prob": math.nan}, id="nan log prob"),
        pytest.param({"advantage": 1.0, "old_log_prob": -1e6}, id="overflowing ratio"),
    ],
)
def test_problem_does_not_see_padding_that_is_not_finite(case: PolicyCase, garbage: dict[str, float]) -> None:
    """The same where advantage or ratio of such a row are not finite."""
    check_that_padding_is_not_seen(case, **garbage)


def test_batch_thinned_draws_one_in_n_transitions() -> None:
    """Thinning keeps whole rows that count, each at most once, and the sum of the weights, so that a mean stays a mean."""
    batch = make_case("multi_categorical", n=10).batch
    batch = batch._replace(weights=th.where(th.arange(10) < 2, 0.0, batch.weights / batch.weights[2:].sum()))
    thin = batch.thinned(3)
    rows = [int((batch.old_log_prob == value).nonzero()) for value in thin.old_log_prob]
    assert len(set(rows)) == len(rows) == 3 and min(rows) >= 2
    for name in ("observations", "actions", "old_log_prob", "advantages"):
        field, kept = getattr(batch, name), getattr(thin, name)
        assert isinstance(field, th.Tensor) and isinstance(kept, th.Tensor)
        assert th.equal(kept, field[rows])
    assert float(thin.weights.sum()) == pytest.approx(1.0, rel=1e-12)
    assert th.allclose(thin.weights / thin.weights[0], batch.weights[rows] / batch.weights[rows[0]], rtol=1e-12, atol=0)
    assert batch.thinned(1) is batch


def test_batch_thinned_never_takes_everything_away() -> None:
    """A factor larger than the batch leaves one transition with all of the weight."""
    thin = make_case("categorical").batch.thinned(100)
    assert thin.weights.tolist() == [pytest.approx(1.0)]


def test_batch_selects_from_dict_observations() -> None:
    """Dict observations are cut by row within each key, not by key."""
    batch = make_case("categorical").batch
    observations = {"a": normal(7, 2, seed=0), "b": normal(7, 3, 3, seed=1)}
    chosen = batch._replace(observations=observations).select(slice(1, 3))
    assert isinstance(chosen.observations, dict)
    assert {key: value.shape for key, value in chosen.observations.items()} == {"a": (2, 2), "b": (2, 3, 3)}
    assert th.equal(chosen.observations["b"], observations["b"][1:3]) and th.equal(chosen.actions, batch.actions[1:3])


# Advantages


def uniform(n: int) -> th.Tensor:
    return th.full((n,), 1 / n, dtype=th.float64)


def test_normalize_advantages_has_mean_zero_and_deviation_one() -> None:
    """The result has mean zero and, with Bessel's correction, standard deviation one."""
    normalized = normalize_advantages(3 * normal(50, seed=0) + 7, uniform(50))
    assert abs(float(normalized.mean())) < 1e-14
    assert float(normalized.std(correction=1)) == pytest.approx(1.0, rel=1e-12)


def test_normalize_advantages_matches_sb3() -> None:
    """Up to the 1e-8 that SB3 adds to the deviation it is SB3's formula."""
    advantages = 3 * normal(50, seed=0) + 7
    expected = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    assert th.allclose(normalize_advantages(advantages, uniform(50)), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e-7, 1e7, 1e200])
def test_normalize_advantages_forgets_the_scale(scale: float) -> None:
    """Advantages times any positive number are the same advantages, however small the number."""
    advantages = 3 * normal(50, seed=0) + 7
    plain = normalize_advantages(advantages, uniform(50))
    assert th.allclose(normalize_advantages(scale * advantages, uniform(50)), plain, rtol=1e-9, atol=1e-12)
    assert th.allclose(normalize_advantages(-scale * advantages, uniform(50)), -plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6 / 3, 1e-30])
@pytest.mark.parametrize("n", [2, 7, 2048])
def test_normalize_advantages_of_a_constant_are_zero(constant: float, n: int, dtype: th.dtype) -> None:
    """Where no action is better than another there is no signal, and rounding does not become one."""
    advantages = th.full((n,), constant, dtype=dtype)
    assert th.equal(normalize_advantages(advantages, th.full((n,), 1 / n, dtype=dtype)), th.zeros(n, dtype=dtype))


@pytest.mark.parametrize("n", [5000, 7200, 20_000, 160_000])
@pytest.mark.parametrize("constant", [1.0, 0.1, 1e6 / 3])
def test_normalize_advantages_of_a_constant_are_zero_however_many_there_are(n: int, constant: float) -> None:
    """Nor does the rounding of 1 / n, or of a sum, become a signal."""
    assert not normalize_advantages(th.full((n,), constant), th.full((n,), 1 / n)).any()


def test_normalize_advantages_keeps_a_signal_on_top_of_a_large_constant() -> None:
    """Numbers that are ten units of the last place apart say which action is better."""
    advantages = th.tensor([450_000.0, 450_001.0] * 32)
    assert th.equal(normalize_advantages(advantages, th.full((64,), 1 / 64)).sign(), th.tensor([-1.0, 1.0] * 32))


@pytest.mark.parametrize("n", [0, 1])
def test_normalize_advantages_of_too_few_are_zero(n: int) -> None:
    """Of a rollout in which nothing, or next to nothing, counts."""
    weights = th.zeros(5)
    weights[:n] = 1.0
    assert th.equal(normalize_advantages(normal(5, seed=0).float(), weights), th.zeros(5))


@pytest.mark.parametrize("garbage", [0.0, 1e6, math.nan, math.inf])
def test_normalize_advantages_does_not_see_padding(garbage: float) -> None:
    """Rows of weight zero count neither for the mean, nor the deviation, nor the number of samples."""
    advantages = 3 * normal(20, seed=0) + 7
    with_padding = th.cat([advantages, th.full((9,), garbage, dtype=th.float64)])
    weights = th.cat([uniform(20), th.zeros(9, dtype=th.float64)])
    assert th.allclose(
        normalize_advantages(with_padding, weights)[:20], normalize_advantages(advantages, uniform(20)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("scale", [1e4, 1e6])
def test_problem_measures_a_nearly_deterministic_policy_without_rounding(scale: float) -> None:
    """Logits of 10⁴ and more, single precision as in training: KL and gain are those of the logits, computed in float64."""
    logits = nn.Parameter(scale * normal(64, 4, seed=0).float())
    with th.no_grad():
        # Half of the states hesitate between two actions, far from zero
        logits[:32, 1] = logits[:32, 0] + normal(32, seed=1).float()
    actions = logits.detach().argmax(dim=1)

    def distribution_of(batch: Batch) -> CategoricalDistribution:
        assert isinstance(batch.observations, th.Tensor)
        return CategoricalDistribution(4).proba_distribution(logits[batch.observations.long()])

    weights = th.full((64,), 1 / 64)
    old_log_prob = distribution_of(Batch(th.arange(64), actions, *4 * [weights])).log_prob(actions).detach()
    batch = Batch(th.arange(64), actions, old_log_prob.float(), normal(64, seed=2).float(), weights, weights)
    problem = PolicyProblem(distribution_of, batch, [logits])
    old = logits.detach().double().log_softmax(1)
    surrogate, _ = problem.surrogate_gradient()
    assert problem.evaluate() == (surrogate, 0.0)
    with th.no_grad():
        logits.add_(0.1 * scale**0.25 * normal(64, 4, seed=3).float())
    new = logits.detach().double().log_softmax(1)
    new_surrogate, mean_kl = problem.evaluate()
    assert mean_kl == pytest.approx(float((old.exp() * (old - new)).sum(1).mean()), rel=1e-3)
    rows = th.arange(64)
    gain = (new.exp() - old.exp())[rows, actions] / batch.old_log_prob.double().exp() * batch.advantages.double()
    assert new_surrogate - surrogate == pytest.approx(float(gain.mean()), rel=0.05, abs=1e-9)


def test_normalize_advantages_keeps_a_signal_that_is_rare() -> None:
    """One transition in twenty thousand that is better than the others is no rounding."""
    advantages = th.zeros(20_000)
    advantages[77] = 1e-3
    normalized = normalize_advantages(advantages, th.full((20_000,), 1 / 20_000))
    assert float(normalized[77]) == pytest.approx(math.sqrt(20_000), rel=1e-3)


def test_kl_of_one_object_with_itself_is_refused() -> None:
    """SB3 hands out the same object each time: what looks like the old distribution would be the new one."""
    policy = small_model().policy
    observations = normal(3, *policy.observation_space.shape, seed=0).float()  # type: ignore[misc]
    old = policy.get_distribution(observations)
    shake(list(policy.parameters()), scale=0.1, seed=1)
    with pytest.raises(ValueError, match=r"one object.*copy\.copy"):
        kl_old_new(old, policy.get_distribution(observations))
    kept = copy.copy(policy.get_distribution(observations))
    shake(list(policy.parameters()), scale=0.1, seed=2)
    assert (kl_old_new(kept, policy.get_distribution(observations)) > 0).all()


def test_problem_takes_the_fisher_product_it_is_offered() -> None:
    """For the states and the parameters of the problem; ``None`` stands for the plain one."""
    case = make_case("categorical", n=6)
    asked: list[tuple[object, object]] = []

    def offer(chunks: object, parameters: object) -> MatrixVectorProduct:
        asked.append((chunks, parameters))
        return th.neg

    problem = case.problem(chunk_size=4, fast_fisher=offer)
    vector = normal(n_params(case), seed=1)
    assert th.equal(problem.fisher_vector_product()(vector), -vector)
    assert problem.fisher_path == WRITTEN_OUT
    assert len(asked) == 1 and asked[0][0] is problem.fisher_chunks and asked[0][1] is problem.parameters
    declined = case.problem(chunk_size=4, fast_fisher=lambda chunks, parameters: None).fisher_vector_product()
    assert th.equal(declined(vector), case.problem(chunk_size=4).fisher_vector_product()(vector))


def test_parts_of_a_batch_are_completed_to_the_whole(case: PolicyCase) -> None:
    """A problem of a part whose sums are completed by those of the other part is the problem of everything."""
    n = len(case.batch.weights) // 2
    vector = normal(sum(parameter.numel() for parameter in case.parameters), seed=4)

    def answers(batch: Batch, **completion: Any) -> list[th.Tensor]:
        problem = PolicyProblem(case.distribution_of, batch, case.parameters, **completion)
        surrogate, gradient = problem.surrogate_gradient()
        product = problem.fisher_vector_product()(vector)
        return [gradient, product, *(th.tensor(v, dtype=th.float64) for v in (surrogate, *problem.evaluate()))]

    gradient, product, surrogate, *evaluation = answers(case.batch.select(slice(n, None)))
    # Surrogate and KL are completed together
    of_the_other = iter([surrogate[None], gradient, product, th.stack(evaluation)])
    completed = answers(case.batch.select(slice(None, n)), total=lambda value: value + next(of_the_other))
    for found, expected in zip(completed, answers(case.batch), strict=True):
        assert th.allclose(found.double(), expected.double(), rtol=1e-9, atol=1e-12)
