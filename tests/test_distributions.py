"""Every torch distribution moves, at any depth: copies, float64, KL and Fisher matrix of what users build policies of."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from torch import distributions as td
from torch import nn
from torch.distributions import kl as registry
from torch.distributions.utils import lazy_property

from sb3_trpo import TRPO, kl_old_new
from sb3_trpo.distributions import copied, detached, factors_of, frozen, in_double, named, selected
from sb3_trpo.inspect import inspect_model
from sb3_trpo.inspect.probe import action_distribution
from sb3_trpo.objective import log_ratio
from tests.cases import normal, shake
from tests.oracles import gradient_row, relative_error
from tests.own_policies import Build, Built, OwnPolicy, halves, leaves, own_case, positive
from tests.small_models import changed, make_env, policy_state, small_model
from tests.trust_region.test_fisher import matrix_of

TWO = spaces.Box(-1.0, 1.0, (2,))


def beta(z: th.Tensor) -> Any:
    a, b = halves(z)
    return td.Beta(1.0 + positive(a), 1.0 + positive(b))


def two(kind: Callable[..., Any], z: th.Tensor) -> Any:
    """Make something of two positive arguments."""
    a, b = halves(z)
    return kind(positive(a), positive(b))


def gaussian(z: th.Tensor) -> Any:
    mean, std = halves(z)
    return td.Normal(mean, positive(std))


def laplace(z: th.Tensor) -> Any:
    mean, std = halves(z)
    return td.Laplace(mean, positive(std))


def multivariate(z: th.Tensor) -> Any:
    mean, std = halves(z)
    return td.MultivariateNormal(mean, scale_tril=th.diag_embed(positive(std)) + th.tril(0.3 * th.ones(2, 2), -1).to(z))


def low_rank(z: th.Tensor) -> Any:
    mean, std = halves(z)
    return td.LowRankMultivariateNormal(mean, 0.5 * th.sin(std)[..., None], positive(std))


def squashed(z: th.Tensor) -> Any:
    return td.TransformedDistribution(gaussian(z), [td.TanhTransform(cache_size=1)])


def deep(z: th.Tensor) -> Any:
    """Three levels, with transforms at two of them."""
    inner = td.TransformedDistribution(gaussian(z), [td.TanhTransform(cache_size=1), td.AffineTransform(0.5, 2.0)])
    outer = td.ComposeTransform([td.ExpTransform(), td.AffineTransform(1.0, 3.0)])
    return td.Independent(td.TransformedDistribution(inner, [outer]), 1)


def mixture(z: th.Tensor) -> Any:
    weights, mean = halves(z)
    means = th.stack([mean - 1.0, mean + 1.0], dim=1)
    return td.MixtureSameFamily(td.Categorical(logits=weights), td.Independent(td.Normal(means, 1.0), 1))


MOVING: dict[str, Build] = {
    "beta": beta,
    "gamma": lambda z: two(td.Gamma, z),
    "dirichlet": lambda z: td.Dirichlet(1.0 + positive(z[:, :2])),
    "laplace": laplace,
    "gumbel": lambda z: td.Gumbel(halves(z)[0], positive(halves(z)[1])),
    "log normal": lambda z: td.LogNormal(halves(z)[0], positive(halves(z)[1])),
    "independent": lambda z: td.Independent(beta(z), 1),
    "independent of independent": lambda z: td.Independent(td.Independent(gaussian(z[:, None]), 1), 1),
    "squashed": squashed,
    "inverse of a transform": lambda z: td.TransformedDistribution(beta(z), [td.SigmoidTransform(cache_size=1).inv]),
    "multivariate": multivariate,
    "low rank": low_rank,
    "deep": deep,
    "list": lambda z: [td.Independent(beta(z[:, :2]), 1), gaussian(z[:, 2:])],
    "nested lists": lambda z: [[two(td.Beta, z[:, :2])], ({"b": td.Independent(gaussian(z[:, 2:]), 1)},)],
    "matrix": lambda z: td.Normal(z[:, :2, None], positive(z[:, 2:, None])),
    "dict": lambda z: {"a": squashed(z[:, :2]), "b": laplace(z[:, 2:])},
}


def own_model(build: Build, **arguments: Any) -> TRPO:
    env = make_env(action_space=TWO)
    return small_model(policy=OwnPolicy, env=env, policy_kwargs={"build": build}, **arguments)


def step_of(model: TRPO) -> Any:
    assert model.last_update is not None
    return model.last_update.step


@pytest.mark.parametrize("name", MOVING)
def test_policy_of_a_torch_distribution_moves_inside_the_limit(name: str) -> None:
    """Whatever it is built of, and as far as its quadratic model says: F is not zero, nor something else."""
    model = own_model(MOVING[name], target_kl=0.005)
    before = policy_state(model)
    model.learn(64)
    assert step_of(model).status == "accepted"
    assert {"action_net.weight", "mlp_extractor.policy_net.0.weight"} <= changed(before, policy_state(model))
    # KL and quadratic model are of one scale: with a matrix that is not F they would not be
    assert 0.2 * step_of(model).expected_kl < step_of(model).mean_kl <= 0.005
    batch = model._full_batch()
    with th.no_grad():
        new = copied(model._distribution(batch))
        model.policy.load_state_dict(before)
        old = model._distribution(batch)
    assert float(kl_old_new(old, new).mean()) == pytest.approx(step_of(model).mean_kl, rel=1e-2)


def points(low: float, high: float, n: int, *, dims: int = 1) -> tuple[th.Tensor, float]:
    """Return the midpoints of a grid, shape (n ** dims, dims), and the volume around each."""
    width = (high - low) / n
    axis = low + width * (th.arange(n, dtype=th.float64) + 0.5)
    return th.cartesian_prod(*[axis] * dims).reshape(-1, dims), width**dims


Density = Callable[[th.Tensor, th.Tensor], th.Tensor]


def fisher_of_outputs(density: Density, z: th.Tensor, x: th.Tensor, volume: float) -> th.Tensor:
    """∫ p ∇_z log p ∇_z log pᵀ dx on a grid, from the density alone."""
    each = z.detach().expand(len(x), -1).clone().requires_grad_()
    log_p = density(each, x)
    (scores,) = th.autograd.grad(log_p.sum(), each)
    return scores.T @ (log_p.detach().exp()[:, None] * volume * scores)


def correlated(z: th.Tensor) -> Any:
    return td.MultivariateNormal(z, covariance_matrix=th.tensor([[1.0, 0.6], [0.6, 0.8]]).to(z))


def of_one(kind: Callable[..., td.Distribution], *, shift: float = 0.0, loc: bool = False) -> Callable[[th.Tensor], Any]:
    """Return a distribution of one dimension whose two arguments are outputs of the network."""

    def build(z: th.Tensor) -> Any:
        return kind(z[:, :1] if loc else shift + positive(z[:, :1]), shift + positive(z[:, 1:]))

    return build


def flat(build: Build) -> Density:
    return lambda z, x: build(z).log_prob(x)[:, 0]


# What is built, its density before it is squashed, a grid, and the tolerance
QUADRATURE: dict[str, tuple[Build, Density, tuple[th.Tensor, float], float]] = {
    "beta": (of_one(td.Beta, shift=2.0), flat(of_one(td.Beta, shift=2.0)), points(0, 1, 20_000), 1e-5),
    "independent gamma": (
        lambda z: td.Independent(of_one(td.Gamma, shift=2.0)(z), 1),
        flat(of_one(td.Gamma, shift=2.0)),
        points(0, 60, 60_000),
        1e-5,
    ),
    # The KL of torch has |x| in it, whose second derivative autograd takes for zero
    "laplace": (of_one(td.Laplace, loc=True), flat(of_one(td.Laplace, loc=True)), points(-30, 30, 200_000), 1e-3),
    "squashed": (
        lambda z: td.TransformedDistribution(of_one(td.Normal, loc=True)(z), [td.TanhTransform(cache_size=1)]),
        flat(of_one(td.Normal, loc=True)),
        points(-15, 15, 20_000),
        1e-5,
    ),
    "multivariate": (correlated, lambda z, x: correlated(z).log_prob(x), points(-12, 12, 300, dims=2), 1e-5),
}


@pytest.mark.parametrize("name", QUADRATURE)
def test_fisher_product_of_a_torch_distribution_is_that_of_its_scores(name: str) -> None:
    """The expected outer product of the score, integrated over the actions, of one state after the other."""
    build, density, (x, volume), tolerance = QUADRATURE[name]
    case = own_case(build, n=3, n_outputs=2)
    assert isinstance(case.batch.observations, th.Tensor)
    expected = th.zeros(())
    for observation, weight in zip(case.batch.observations, case.batch.weights, strict=True):
        z = case.policy.action_net(case.policy.mlp_extractor.forward_actor(observation[None]))[0]
        jacobian = th.stack([gradient_row(output, case.parameters) for output in z])
        expected = expected + float(weight) * (jacobian.T @ fisher_of_outputs(density, z, x, volume) @ jacobian)
    problem = case.problem()
    computed = matrix_of(problem.fisher_vector_product(), len(expected))
    assert relative_error(computed, expected) < tolerance
    assert problem.fisher_path == ("finite differences" if name == "laplace" else "plain")


class Tagged(td.Normal):
    """A class of the user's own with values of its own, one of them made when it is asked for."""

    def __init__(self, loc: th.Tensor, scale: th.Tensor):
        super().__init__(loc, scale)
        self.notes = {"seen": [loc * 2.0, (scale, "text")], "count": 3}

    @lazy_property
    def precision(self) -> th.Tensor:
        return self.scale**-2


@pytest.mark.parametrize("build", [*MOVING.values(), lambda z: Tagged(halves(z)[0], positive(halves(z)[1]))])
def test_frozen_distribution_has_no_graph_and_stays_what_it_is(build: Build) -> None:
    """Whatever the policy does afterwards, at every depth."""
    case = own_case(build)
    for freeze in (detached, frozen):
        distribution = copied(case.distribution_of(case.batch))
        for factor in leaves(distribution.distribution):
            getattr(factor, "precision", None)  # kept from now on
        old = freeze(distribution)
        log_prob = old.log_prob(case.batch.actions)
        assert not log_prob.requires_grad
        assert th.allclose(log_prob, case.batch.old_log_prob, rtol=1e-6)
        shake(case.parameters, scale=0.5, seed=8)
        case.distribution_of(case.batch)
        assert th.equal(old.log_prob(case.batch.actions), log_prob)
        shake(case.parameters, scale=-0.5, seed=8)
        assert distribution.log_prob(case.batch.actions).requires_grad, "the original keeps its graph"
    copy.deepcopy(frozen(distribution).distribution)


def test_frozen_distribution_does_not_share_the_memory_of_a_parameter() -> None:
    """A scale that is a parameter, expanded, changes in place when the policy moves; so does one made without gradients."""
    scale = nn.Parameter(th.ones(2, dtype=th.float64))

    def build(z: th.Tensor) -> Any:
        return td.Independent(td.Normal(z[:, :2], scale.expand(len(z), 2)), 1)

    case = own_case(build)
    for enabled in (True, False):
        with th.set_grad_enabled(enabled):
            distribution = case.distribution_of(case.batch)
        old = frozen(distribution)
        with th.no_grad():
            scale.mul_(3.0)
        kl = kl_old_new(old, frozen(case.distribution_of(case.batch)))
        assert kl.tolist() == pytest.approx([2 * (math.log(3.0) + 1 / 18 - 0.5)] * 5)
        with th.no_grad():
            scale.div_(3.0)


def tensors(value: Any, seen: set[int] | None = None) -> Iterator[th.Tensor]:
    """Yield the floats among everything that an object holds."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, th.Tensor):
        if value.is_floating_point():
            yield value
        return
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    if isinstance(value, td.Distribution):
        inside = vars(value).values()
    for part in list(inside):
        yield from tensors(part, seen)


@pytest.mark.parametrize("name", MOVING)
def test_frozen_distribution_computes_in_double_at_every_depth(name: str) -> None:
    """And its KL is that of distributions that were built in float64, from the same float32 outputs."""
    outputs = [normal(6, 4, seed=seed).float() for seed in (0, 1)]
    singles = [Built(MOVING[name], 4).proba_distribution(z) for z in outputs]
    for single in singles:
        for factor in leaves(single.distribution):
            # What is computed in float32 once is kept by torch
            for lazy in ("probs", "logits", "scale_tril", "covariance_matrix", "precision_matrix"):
                getattr(factor, lazy, None)
    doubles = [frozen(single) for single in singles]
    assert {t.dtype for double in doubles for t in tensors(double.distribution)} == {th.float64}
    assert {t.dtype for single in singles for t in tensors(single.distribution)} == {th.float32}, "the original is left alone"
    kl = kl_old_new(*doubles)
    assert kl.dtype == th.float64 and kl.shape == (6,)
    expected = kl_old_new(*(Built(MOVING[name], 4).proba_distribution(z.double()) for z in outputs))
    assert th.allclose(kl, expected, rtol=1e-4, atol=1e-6)
    assert in_double(singles[0]).log_prob(singles[0].sample()).dtype == th.float64


@pytest.mark.parametrize("wrap", ["independent", "one hot", "list", "from probabilities"])
def test_categorical_at_any_depth_is_normalised_in_double(wrap: str) -> None:
    """A normalised logit of ten thousand is rounded to a thousandth in float32, and the KL of two such is no zero."""
    logits = (1e4 + normal(4, 3, seed=0)).float()
    build: Build = {
        "independent": lambda z: td.Independent(td.Categorical(logits=z[:, None]), 1),
        "one hot": lambda z: [td.OneHotCategorical(logits=z)],
        "list": lambda z: [td.Categorical(logits=z)],
        "from probabilities": lambda z: td.Categorical(probs=z.softmax(-1)),
    }[wrap]
    exact = Built(build, 3).proba_distribution(logits.double())
    single = Built(build, 3).proba_distribution(logits)
    for factor in leaves(single.distribution):
        getattr(factor, "probs", None)
    double = frozen(single)
    for factor in leaves(double.distribution):
        inner: Any = getattr(factor, "base_dist", factor)
        assert float((inner.logits.logsumexp(-1)).abs().max()) < 1e-12
        assert float((inner.probs.sum(-1) - 1).abs().max()) < 1e-12
    if wrap != "from probabilities":
        assert float(kl_old_new(exact, double).abs().max()) < 1e-12
        assert float(kl_old_new(frozen(single), double).abs().max()) == 0.0


def test_classes_of_the_users_own_are_left_in_their_precision() -> None:
    """Of them there is more to compute than is known here; what torch's own hold of them too."""
    single = Built(lambda z: td.Independent(Tagged(halves(z)[0], positive(halves(z)[1])), 1), 4)
    inner: Any = frozen(single.proba_distribution(normal(3, 4, seed=0).float())).distribution
    assert type(inner.base_dist) is Tagged and inner.base_dist.loc.dtype == th.float32
    notes: Any = inner.base_dist.notes
    assert notes["count"] == 3 and notes["seen"][1][1] == "text"
    assert notes["seen"][1][0] is inner.base_dist.scale, "what is one tensor stays one"


class Shift(td.Transform):
    """A transform that torch can tell from no other one: equal is what is one object."""

    domain = codomain = td.constraints.real
    bijective = True

    def __init__(self, by: Any):
        super().__init__(cache_size=1)
        self.by = by

    def _call(self, x: th.Tensor) -> th.Tensor:
        return x + self.by

    def _inverse(self, y: th.Tensor) -> th.Tensor:
        return y - self.by

    def log_abs_det_jacobian(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        return th.zeros_like(x)


def test_transform_that_cannot_be_trained_stays_one_object() -> None:
    """Torch takes two transforms without a comparison for the same if they are one: a copy would have no KL."""
    shift = Shift(th.tensor([0.5, 1.0]))
    model = own_model(lambda z: td.TransformedDistribution(gaussian(z), [shift])).learn(64)
    assert step_of(model).accepted
    assert shift._cached_x_y[0] is None or not shift._cached_x_y[0].requires_grad


def of_two(module: nn.Module) -> Build:
    return lambda z: td.TransformedDistribution(gaussian(z), [Shift(module.weight)])


# Of which torch knows no KL, and what the error must name
REFUSED: dict[str, tuple[Build, tuple[str, ...]]] = {
    "mixture": (mixture, ("MixtureSameFamily", "Categorical", "Normal")),
    "mixture in a list": (lambda z: [[mixture(z)]], ("MixtureSameFamily",)),
    "von mises": (lambda z: td.Independent(two(td.VonMises, z), 1), ("Independent", "VonMises")),
    "scale from the network": (
        lambda z: td.TransformedDistribution(td.Normal(th.zeros(2), 1.0), [two(td.AffineTransform, z)]),
        ("TransformedDistribution", "Normal", "AffineTransform"),
    ),
    "student": (lambda z: td.StudentT(3.0, halves(z)[0], positive(halves(z)[1])), ("StudentT",)),
}


@pytest.mark.untraced
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_distribution_without_a_kl_is_refused_before_anything_moves(
    name: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an error that names it, and says what to do."""
    build, names = REFUSED[name]
    monkeypatch.setattr(TRPO, "_policy_problem", None)  # nor is anything begun
    model = own_model(build, fast=fast)
    before = policy_state(model)
    with pytest.raises(NotImplementedError, match=r"torch\.distributions\.register_kl") as refusal:
        model.learn(64)
    assert isinstance(refusal.value, ValueError)
    assert all(each in str(refusal.value) for each in ("Built", *names)), str(refusal.value)
    assert ("class of your own" in str(refusal.value)) == ("TransformedDistribution" in names)
    assert not changed(before, policy_state(model)) and model.last_update is None
    copy.deepcopy(model.policy)


def test_transform_that_is_trained_is_refused_though_it_is_one_object() -> None:
    """Else its KL would be that of what it is applied to, whatever the step makes of it."""
    module = nn.Linear(2, 1)
    shift = Shift(module.weight)

    class Flowing(OwnPolicy):
        def _build(self, lr_schedule: Any) -> None:
            self.flow = module
            super()._build(lr_schedule)

    env = make_env(action_space=TWO)
    build: Build = lambda z: td.TransformedDistribution(gaussian(z), [shift])  # noqa: E731
    model = small_model(policy=Flowing, env=env, policy_kwargs={"build": build})
    with pytest.raises(NotImplementedError, match=r"TransformedDistribution\(Normal, Shift\).*class of your own"):
        model.learn(64)


@pytest.fixture
def _kl_of_mixtures() -> Iterator[None]:
    """A bound from above: KL of the weights, and the weighted KL of the parts."""

    @td.register_kl(td.MixtureSameFamily, td.MixtureSameFamily)  # type: ignore[untyped-decorator]
    def kl(p: Any, q: Any) -> th.Tensor:
        parts = td.kl_divergence(p.component_distribution, q.component_distribution)
        return td.kl_divergence(p.mixture_distribution, q.mixture_distribution) + (p.mixture_distribution.probs * parts).sum(
            -1
        )

    yield
    del registry._KL_REGISTRY[td.MixtureSameFamily, td.MixtureSameFamily]
    registry._KL_MEMOIZE.clear()


@pytest.mark.usefixtures("_kl_of_mixtures")
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: [d]])
def test_kl_that_a_user_registers_is_used(wrap: Callable[[Any], Any]) -> None:
    """With it the policy moves; its entropy, which torch does not know, is left out."""
    model = own_model(lambda z: wrap(mixture(z))).learn(64)
    assert step_of(model).accepted and step_of(model).mean_kl > 0.002
    assert model.last_update is not None and model.last_update.entropy is None


def test_entropy_that_torch_does_not_know_is_none() -> None:
    """Of a squashed Gaussian there is none; of a Beta there is, and it is the mean over states of a sum over dimensions."""
    assert own_model(squashed).learn(64).last_update.entropy is None  # type: ignore[union-attr]
    case = own_case(beta)
    problem = case.problem()
    inner: Any = case.distribution_of(case.batch).distribution
    entropies = inner.entropy().sum(dim=1)
    assert problem.entropy(of_new=False) == pytest.approx(float((case.batch.weights * entropies).sum().detach()))


@pytest.mark.parametrize("name", MOVING)
def test_kl_old_new_is_an_expectation_for_every_torch_distribution(name: str) -> None:
    """E_old[log π_old - log π_new] of one state, by Monte Carlo, summed over the dimensions and the factors."""
    n = 20_000
    z = normal(1, 4, seed=0)
    old, new = (Built(MOVING[name], 4).proba_distribution((z + d).expand(n, -1)) for d in (0.0, 0.3 * normal(1, 4, seed=1)))
    with th.random.fork_rng():
        th.manual_seed(2)
        parts = [factor.sample().flatten(1) for factor in leaves(old.distribution)]
    actions = th.cat(parts, dim=1)
    difference = old.log_prob(actions) - new.log_prob(actions)
    error = float(difference.std()) / math.sqrt(n)
    kl = kl_old_new(old, new)
    assert kl.shape == (n,) and float(kl.std()) < 1e-9
    assert abs(float(kl[0]) - float(difference.mean())) < 5 * error + 1e-6


def test_log_prob_of_another_shape_is_refused() -> None:
    """Of (n, 2) and (n,) torch would make a table of all pairs, and of that a surrogate."""

    class Unsummed(Built):
        def log_prob(self, actions: th.Tensor) -> th.Tensor:
            inner: Any = self.distribution
            return inner.log_prob(actions)

    case = own_case(beta)
    distribution = Unsummed(beta, 4).proba_distribution(normal(5, 4, seed=0))
    with pytest.raises(ValueError, match=r"log_prob of Unsummed of Beta\(Dirichlet\).*shape \(5,\), got \(5, 2\)"):
        log_ratio(distribution, case.batch)


def test_named_says_what_a_distribution_is_made_of() -> None:
    distribution = Built(MOVING["nested lists"], 4).proba_distribution(normal(2, 4, seed=0))
    assert named(distribution) == "Built of [[Beta(Dirichlet)], [[Independent(Normal)]]]"
    assert named(deep(normal(2, 4, seed=0))).startswith("Independent(TransformedDistribution(Transformed")


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("name", ["beta", "deep", "multivariate", "nested lists", "dirichlet"])
def test_inspect_shows_a_policy_of_any_distribution(name: str) -> None:
    """In one state by means and standard deviations, one for each dimension of the action."""
    distribution = Built(MOVING[name], 4).proba_distribution(normal(3, 4, seed=0))
    shown = action_distribution(distribution, 1)
    assert len(shown.mean) == len(shown.std) == 2 and not shown.probabilities
    assert all(math.isfinite(number) for number in (*shown.mean, *shown.std))
    if name == "beta":
        assert shown.mean == pytest.approx(tuple(beta(normal(3, 4, seed=0)).mean[1].tolist()))
    run = inspect_model(own_model(MOVING[name]))
    assert run.updates[0].status == "accepted"


def test_distribution_that_keeps_its_parts_elsewhere_is_refused_by_name() -> None:
    """Where SB3's have torch's distribution there must be one."""

    class Elsewhere(DiagGaussianDistribution):
        def proba_distribution(self, *args: Any) -> Any:
            super().proba_distribution(*args)
            self.gaussian = vars(self).pop("distribution")
            return self

    with pytest.raises(TypeError, match=r"Elsewhere must have its torch.* `distribution`.*got \[.*'gaussian'"):
        list(factors_of(Elsewhere(2).proba_distribution(th.zeros(3, 2), th.zeros(2))))


def test_some_states_of_a_distribution_are_of_one_shape_at_every_depth() -> None:
    """One that checks what it is given would take the actions of those states for the wrong ones."""
    normal = td.Normal(th.zeros(6, 2), th.ones(6, 2), validate_args=True)
    inner = td.Independent(td.Independent(normal, 0), 1, validate_args=True)
    distribution = DiagGaussianDistribution(2)
    distribution.distribution = inner  # type: ignore[assignment]
    some: Any = selected(distribution, th.tensor([4, 0]), 6)
    assert some.distribution.log_prob(th.zeros(2, 2)).shape == (2,)
    assert inner.log_prob(th.zeros(6, 2)).shape == (6,)
