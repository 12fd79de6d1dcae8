"""The trust-region step: its direction, its length, and that a step not taken leaves nothing behind."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_trpo import TRPO
from sb3_trpo.guards.process import unvalidated_distributions
from sb3_trpo.objective import kl_old_new
from sb3_trpo.trust_region import TrustRegionStep, backtrack, conjugate_gradient, flatten, trust_region_step
from sb3_trpo.trust_region.conjugate_gradient import ConjugateGradientResult
from tests.cases import ACTION_SPACES, PolicyCase, QuadraticProblem, make_case, normal, shake, spd_matrix
from tests.oracles import dense_fisher, relative_error

MAX_KL = 0.01
DAMPINGS = [0.0, 0.1, 10.0]


def quadratic(*, gradient_scale: float = 1.0, bend: float = 0.0) -> QuadraticProblem:
    fisher = spd_matrix(th.logspace(-1, 1, 9, dtype=th.float64), seed=0)
    return QuadraticProblem(fisher, gradient_scale * normal(9, seed=1), bend=bend, surrogate_origin=0.7 * gradient_scale)


def take_step(problem: Any, *, max_kl: float = MAX_KL, damping: float | th.Tensor = 0.1, **kwargs: Any) -> TrustRegionStep:
    exact = {"cg_max_iterations": 200, "cg_relative_tolerance": 1e-12}
    return trust_region_step(problem, max_kl=max_kl, damping=damping, **(exact | kwargs))


def snapshot(problem: Any) -> list[th.Tensor]:
    return [parameter.detach().clone() for parameter in problem.parameters]


def unchanged(problem: Any, before: list[th.Tensor]) -> bool:
    return all(th.equal(parameter, start) for parameter, start in zip(problem.parameters, before, strict=True))


# Direction and length, where both models are exact


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("max_kl", [1e-4, 0.01, 1.0])
def test_step_length_is_that_of_the_undamped_fisher(damping: float, max_kl: float) -> None:
    """The first candidate is sqrt(2δ/sᵀFs)·s with (F + damping I)s = g: damping turns it and does not shorten it."""
    problem = quadratic()
    take_step(problem, max_kl=max_kl, damping=damping)
    full_step = problem.visited[0]
    s = th.linalg.solve(problem.fisher + damping * th.eye(9, dtype=th.float64), problem.gradient)
    assert relative_error(full_step, th.sqrt(2 * max_kl / (s @ problem.fisher @ s)) * s) < 1e-8
    assert 0.5 * float(full_step @ problem.fisher @ full_step) == pytest.approx(max_kl, rel=1e-12)


def test_step_may_damp_each_variable_on_its_own() -> None:
    """A damping of shape (n_params,) is a diagonal matrix; the length is that of the undamped one still."""
    problem, damping = quadratic(), th.logspace(-2, 2, 9, dtype=th.float64)
    take_step(problem, damping=damping)
    s = th.linalg.solve(problem.fisher + damping.diag(), problem.gradient)
    assert relative_error(problem.visited[0], th.sqrt(2 * MAX_KL / (s @ problem.fisher @ s)) * s) < 1e-8


def test_step_without_damping_is_the_theory_s() -> None:
    """Without damping the length is the theory's sqrt(2δ / gᵀF⁻¹g): no other step inside the limit gains more."""
    problem = quadratic()
    step = take_step(problem, damping=0.0)
    s = th.linalg.solve(problem.fisher, problem.gradient)
    assert relative_error(problem.visited[0], math.sqrt(2 * MAX_KL / float(problem.gradient @ s)) * s) < 1e-8
    for seed in range(20):
        other = normal(9, seed=seed)
        other *= math.sqrt(2 * MAX_KL / float(other @ problem.fisher @ other))
        assert float(problem.gradient @ other) < step.full_step_gain


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_step_backtracks_along_one_line(damping: float) -> None:
    """Every candidate is α^j times the full step, from the old parameters and not from the candidate before."""
    problem = quadratic(bend=20.0)
    step = take_step(problem, damping=damping, shrinking_factor=0.5)
    assert step.accepted and len(problem.visited) > 2
    for j, visited in enumerate(problem.visited):
        assert relative_error(visited, 0.5**j * problem.visited[0]) < 1e-12
    assert step.step_fraction == 0.5 ** (len(problem.visited) - 1)


@pytest.mark.parametrize("scale", [1e-100, 1e-7, 1e7, 1e100])
def test_step_forgets_the_length_of_the_gradient(scale: float) -> None:
    """The surrogate times any positive number gives the same step."""
    plain, scaled = quadratic(), quadratic(gradient_scale=scale)
    one, other = take_step(plain), take_step(scaled)
    assert one.accepted and other.accepted
    assert relative_error(scaled.visited[0], plain.visited[0]) < 1e-9


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_step_in_single_precision_survives_the_length_of_the_gradient(scale: float) -> None:
    """Where the square of the gradient has no place in float32 the step is the same too, with the default tolerances."""

    class Single(QuadraticProblem):
        def surrogate_gradient(self) -> tuple[float, th.Tensor]:
            surrogate, gradient = super().surrogate_gradient()
            return surrogate, gradient.float()

        def fisher_vector_product(self) -> Callable[[th.Tensor], th.Tensor]:
            return lambda vector: self.fisher.float() @ vector

    plain, reference = quadratic(gradient_scale=scale), quadratic()
    problem = Single(plain.fisher, plain.gradient, surrogate_origin=plain.surrogate_origin)
    assert not 0.0 < float(problem.gradient.float().square().sum()) < math.inf
    assert trust_region_step(problem, max_kl=MAX_KL, damping=0.1).accepted
    take_step(reference)
    assert relative_error(problem.visited[0], reference.visited[0]) < 1e-3


@pytest.mark.parametrize("bend", [0.0, 20.0])
@pytest.mark.parametrize("damping", DAMPINGS)
def test_step_reports_what_was_measured(bend: float, damping: float) -> None:
    """Every number of an accepted step is the one that is measured at the parameters afterwards."""
    problem = quadratic(bend=bend)
    step = take_step(problem, damping=damping)
    assert step.accepted and step.status == "accepted"
    surrogate, mean_kl = problem.measure()
    moved = problem.displacement()
    assert step.surrogate == pytest.approx(surrogate, rel=1e-12)
    assert step.surrogate_gain == pytest.approx(surrogate - problem.surrogate_origin, rel=1e-9)
    assert step.mean_kl == mean_kl <= MAX_KL
    assert step.expected_gain == pytest.approx(float(problem.gradient @ moved), rel=1e-9)
    assert step.expected_kl == pytest.approx(0.5 * float(moved @ problem.fisher @ moved), rel=1e-9)
    assert step.step_norm == pytest.approx(float(moved.norm()), rel=1e-9)
    assert step.gradient_norm == pytest.approx(float(problem.gradient.norm()), rel=1e-12)
    assert step.full_step_gain == pytest.approx(float(problem.gradient @ problem.visited[0]), rel=1e-9)
    assert len(step.candidates) == len(problem.visited)
    kept = step.candidates[-1]
    assert (kept.step_fraction, kept.surrogate_gain, kept.mean_kl) == (step.step_fraction, step.surrogate_gain, step.mean_kl)
    assert step.conjugate_gradient is not None and step.conjugate_gradient.stopped_by == "converged"


def test_step_names_its_phases() -> None:
    """Whoever measures the phases hears of each once, in their order."""
    names: list[str] = []
    take_step(quadratic(), phase=names.append)
    assert names == ["gradient", "direction", "line_search"]


def test_step_draws_no_random_number() -> None:
    """The global random generator is where it was."""
    before = th.get_rng_state()
    assert take_step(quadratic()).accepted
    assert th.equal(th.get_rng_state(), before)


@given(
    n=st.integers(3, 10),
    log_condition=st.floats(0, 4),
    log_damping=st.floats(-4, 2),
    log_max_kl=st.floats(-5, 0),
    bend=st.floats(0, 100),
    seed=st.integers(0, 2**31),
)
def test_step_keeps_the_limit_or_moves_nothing(
    n: int, log_condition: float, log_damping: float, log_max_kl: float, bend: float, seed: int
) -> None:
    """Whatever the problem, afterwards the KL is within the limit and the surrogate higher, or nothing has moved."""
    fisher = spd_matrix(th.logspace(0, log_condition, n, dtype=th.float64), seed=seed)
    problem = QuadraticProblem(fisher, normal(n, seed=seed + 1), bend=bend)
    before, max_kl = snapshot(problem), 10**log_max_kl
    step = take_step(problem, max_kl=max_kl, damping=10**log_damping)
    surrogate, mean_kl = problem.measure()
    if step.accepted:
        assert mean_kl <= max_kl and surrogate > problem.surrogate_origin
        assert mean_kl == step.mean_kl
        assert all(c.mean_kl > max_kl or c.surrogate_gain <= 0 for c in step.candidates[:-1])
    else:
        assert unchanged(problem, before)


# A step that is not taken


class Altered(QuadraticProblem):
    """A problem of which one answer is another."""

    def __init__(
        self,
        *,
        gradient: th.Tensor | None = None,
        fisher: th.Tensor | None = None,
        surrogate: float | None = None,
        measured: Callable[[float, float], tuple[float, float]] | None = None,
    ):
        plain = quadratic()
        super().__init__(plain.fisher if fisher is None else fisher, plain.gradient if gradient is None else gradient)
        self.altered_surrogate = surrogate
        self.measured = measured

    def surrogate_gradient(self) -> tuple[float, th.Tensor]:
        surrogate, gradient = super().surrogate_gradient()
        return (surrogate if self.altered_surrogate is None else self.altered_surrogate), gradient

    def evaluate(self) -> tuple[float, float]:
        surrogate, mean_kl = super().evaluate()
        return (surrogate, mean_kl) if self.measured is None else self.measured(surrogate, mean_kl)


def with_entry(value: float) -> th.Tensor:
    gradient = normal(9, seed=1)
    gradient[4] = value
    return gradient


ZEROS = th.zeros(9, dtype=th.float64)
FLAT = th.diag(th.tensor([0.0] * 5 + [1.0] * 4, dtype=th.float64))
REFUSED = {
    "no candidate within the limit": (lambda: Altered(measured=lambda s, kl: (s, 1.0)), "line_search_failed"),
    "no candidate improves": (lambda: Altered(measured=lambda s, kl: (0.0, kl)), "line_search_failed"),
    "no candidate changes anything": (lambda: Altered(measured=lambda s, kl: (0.7, kl)), "line_search_failed"),
    "KL is NaN": (lambda: Altered(measured=lambda s, kl: (s, math.nan)), "line_search_failed"),
    "surrogate is NaN": (lambda: Altered(measured=lambda s, kl: (math.nan, kl)), "line_search_failed"),
    "surrogate is infinite": (lambda: Altered(measured=lambda s, kl: (math.inf, kl)), "line_search_failed"),
    "gradient is zero": (lambda: Altered(gradient=ZEROS), "gradient_zero"),
    "gradient has a NaN": (lambda: Altered(gradient=with_entry(math.nan)), "gradient_not_finite"),
    "gradient has an infinity": (lambda: Altered(gradient=with_entry(math.inf)), "gradient_not_finite"),
    "old surrogate is NaN": (lambda: Altered(surrogate=math.nan), "gradient_not_finite"),
    "no curvature at all": (lambda: Altered(fisher=th.diag(ZEROS)), "curvature_not_positive"),
    "negative curvature": (lambda: Altered(fisher=-quadratic().fisher), "curvature_not_positive"),
    "no curvature along the gradient": (
        lambda: Altered(fisher=FLAT, gradient=th.eye(9, dtype=th.float64)[2]),
        "curvature_not_positive",
    ),
    "curvature is NaN": (lambda: Altered(fisher=math.nan * quadratic().fisher), "curvature_not_positive"),
}


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("reason", list(REFUSED))
def test_step_refused_leaves_every_parameter(reason: str, damping: float) -> None:
    """A step that cannot be taken says why, reports zeros for what was kept, and moves nothing by a single bit."""
    make, status = REFUSED[reason]
    problem = make()
    before = snapshot(problem)
    step = take_step(problem, damping=damping)
    assert (step.status, step.accepted) == (status, False)
    assert unchanged(problem, before)
    kept = (step.surrogate_gain, step.expected_gain, step.mean_kl, step.expected_kl, step.step_fraction, step.step_norm)
    assert kept == (0.0,) * 6
    if not math.isnan(problem.altered_surrogate or 0.0):
        assert step.surrogate == problem.surrogate_origin
    assert step.gradient_norm == pytest.approx(float(problem.gradient.norm()), nan_ok=True)
    searched = status == "line_search_failed"
    assert len(step.candidates) == len(problem.visited) == (10 if searched else 0)
    assert math.isnan(step.full_step_gain) != searched
    assert (step.conjugate_gradient is None) == status.startswith("gradient")


def test_step_refused_keeps_the_parameters_own_storage() -> None:
    """The parameters are the same objects with the same memory afterwards, whether the step was taken or not."""
    for problem in (quadratic(), Altered(measured=lambda s, kl: (s, 1.0))):
        places = [(id(parameter), parameter.data_ptr()) for parameter in problem.parameters]
        take_step(problem)
        assert [(id(parameter), parameter.data_ptr()) for parameter in problem.parameters] == places
        assert all(parameter.requires_grad and parameter.grad is None for parameter in problem.parameters)


@pytest.mark.parametrize("n_before", [0, 3])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_step_interrupted_leaves_every_parameter(error: type[BaseException], n_before: int) -> None:
    """What is raised in the middle of the line search passes through, and leaves the parameters bit for bit."""

    def measured(surrogate: float, mean_kl: float) -> tuple[float, float]:
        if len(problem.visited) > n_before:
            raise error("now")
        return surrogate, 1.0

    problem = Altered(measured=measured)
    before = snapshot(problem)
    with pytest.raises(error, match="now"):
        take_step(problem)
    assert len(problem.visited) == n_before + 1 and bool((problem.visited[-1] != 0).any())
    assert unchanged(problem, before)


# The same on policies


@pytest.mark.untraced
@pytest.mark.parametrize("damping", DAMPINGS)
def test_step_of_a_policy_is_the_dense_one(case: PolicyCase, damping: float) -> None:
    """The first candidate is what a dense solve with the Fisher matrix by definition gives."""
    batch, start = case.batch, flatten([parameter.detach().clone() for parameter in case.parameters])
    assert isinstance(batch.observations, th.Tensor)
    fisher = dense_fisher(case.policy, batch.observations, batch.weights, case.parameters)
    _, gradient = case.problem().surrogate_gradient()
    # Fewer states than parameters: F has no inverse, its pseudo-inverse is what conjugate gradients find
    damped = fisher + damping * th.eye(len(start), dtype=th.float64)
    s = th.linalg.pinv(damped, rtol=1e-10, hermitian=True) @ gradient
    full_step = th.sqrt(2 * 1e-8 / (s @ fisher @ s)) * s
    # So small a step that no candidate is refused
    step = take_step(case.problem(), max_kl=1e-8, damping=damping)
    assert step.accepted
    moved = flatten([parameter.detach() for parameter in case.parameters]) - start
    tolerance = 1e-4 if damping == 0.0 else 1e-7
    assert relative_error(moved, step.step_fraction * full_step) < tolerance


@pytest.mark.untraced
@pytest.mark.parametrize("max_kl", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_step_of_a_policy_keeps_the_limit(case: PolicyCase, max_kl: float, damping: float) -> None:
    """The KL from the old policy, measured from outside, is what is reported and within the limit; the critic stays."""
    others = [p for p in case.policy.parameters() if id(p) not in set(map(id, case.parameters))]
    others_before = [parameter.detach().clone() for parameter in others]
    old, problem = case.frozen_distribution(), case.problem()
    before = snapshot(problem)
    step = take_step(problem, max_kl=max_kl, damping=damping)
    assert step.accepted and not unchanged(problem, before)
    with th.no_grad():
        kl = kl_old_new(old, case.distribution_of(case.batch))
        ratio = (case.distribution_of(case.batch).log_prob(case.batch.actions) - case.batch.old_log_prob).exp()
    weights, advantages = case.batch.weights, case.batch.advantages
    assert step.mean_kl == pytest.approx(float((weights * kl).sum()), rel=1e-9) and step.mean_kl <= max_kl
    assert step.surrogate_gain == pytest.approx(float((weights * (ratio - 1) * advantages).sum()), rel=1e-7)
    assert step.surrogate_gain > 0
    assert all(th.equal(parameter, start) for parameter, start in zip(others, others_before, strict=True))


# SB3 hides from gSDE's gradient that the features move the standard deviation too: its models are not exact
@pytest.mark.parametrize("name", sorted(set(ACTION_SPACES) - {"gsde"}))
def test_step_of_a_policy_spends_the_budget(name: str) -> None:
    """Where the quadratic model holds, the measured KL is what the model expects: the radius is not cut by damping."""
    case = make_case(name)
    step = take_step(case.problem(), max_kl=1e-7, damping=1.0)
    assert step.accepted
    assert step.mean_kl == pytest.approx(step.step_fraction**2 * 1e-7, rel=1e-2)
    assert step.surrogate_gain == pytest.approx(step.expected_gain, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-7, 1e7])
def test_step_of_a_policy_forgets_the_scale_of_the_advantages(case: PolicyCase, scale: float) -> None:
    """The same advantages times a number give the same step."""
    start = snapshot(case.problem())
    ends = []
    for factor in (1.0, scale):
        with th.no_grad():
            for parameter, value in zip(case.parameters, start, strict=True):
                parameter.copy_(value)
        batch = case.batch._replace(advantages=factor * case.batch.advantages)
        # The default solve: what a user gets
        assert trust_region_step(case._replace(batch=batch).problem(), max_kl=MAX_KL, damping=0.1).accepted
        ends.append(flatten([parameter.detach().clone() for parameter in case.parameters]))
    assert relative_error(ends[1] - flatten(start), ends[0] - flatten(start)) < 1e-7


@pytest.mark.parametrize("advantage", [0.0, math.nan, math.inf])
def test_step_of_a_policy_without_a_signal_moves_nothing(case: PolicyCase, advantage: float) -> None:
    """Advantages that are zero or not finite leave the policy bit for bit."""
    advantages = th.full_like(case.batch.advantages, advantage)
    problem = case._replace(batch=case.batch._replace(advantages=advantages)).problem()
    before = snapshot(problem)
    step = take_step(problem)
    assert step.status == ("gradient_zero" if advantage == 0.0 else "gradient_not_finite")
    assert unchanged(problem, before)


def test_step_of_a_policy_that_has_become_nan_moves_nothing(case: PolicyCase) -> None:
    """Where a candidate's distribution is NaN it is refused, not raised, and the old policy comes back bit for bit."""

    class Poisoned:
        def __init__(self) -> None:
            self.inner = case.problem()
            self.parameters = self.inner.parameters
            self.surrogate_gradient = self.inner.surrogate_gradient
            self.fisher_vector_product = self.inner.fisher_vector_product

        def evaluate(self) -> tuple[float, float]:
            with th.no_grad():
                self.parameters[-1].fill_(math.nan)
            return self.inner.evaluate()

    problem = Poisoned()
    before = snapshot(problem)
    with unvalidated_distributions():
        step = take_step(problem)
    assert step.status == "line_search_failed"
    assert {candidate.refused_by for candidate in step.candidates} == {"not_finite"}
    assert unchanged(problem, before)


def test_step_of_a_policy_repeats_itself(case: PolicyCase) -> None:
    """Two steps from the same parameters end at the same ones, bit for bit."""
    start = snapshot(case.problem())
    ends = []
    for _ in range(2):
        with th.no_grad():
            for parameter, value in zip(case.parameters, start, strict=True):
                parameter.copy_(value)
        take_step(case.problem())
        ends.append(snapshot(case.problem()))
        shake(list(case.policy.parameters()), scale=0.0, seed=0)
    assert all(th.equal(one, other) for one, other in zip(*ends, strict=True))


# What float32 and hostile matrices can do


def test_step_from_parameters_that_are_not_finite_moves_nothing() -> None:
    """There is no way back from NaN: the step says so before it asks for anything."""
    problem = quadratic()
    with th.no_grad():
        problem.parameters[1][2] = math.nan
    before = snapshot(problem)
    step = take_step(problem)
    assert (step.status, step.candidates, step.conjugate_gradient) == ("parameters_not_finite", (), None)
    assert math.isnan(step.surrogate) and math.isnan(step.gradient_norm) and math.isnan(step.full_step_gain)
    assert all(th.equal(p.nan_to_num(7.0), start.nan_to_num(7.0)) for p, start in zip(problem.parameters, before, strict=True))


def test_step_refuses_a_candidate_whose_parameters_overflow() -> None:
    """A policy may be finite where its parameters are not: the candidate is refused without being asked."""
    problem = quadratic()
    largest = th.finfo(th.float64).max
    with th.no_grad():
        problem.parameters[0].fill_(largest)
        problem.parameters[1].fill_(-largest)

    class Blind:
        parameters = problem.parameters
        n_evaluations = 0

        def surrogate_gradient(self) -> tuple[float, th.Tensor]:
            return 0.0, problem.gradient

        def fisher_vector_product(self) -> Any:
            return lambda vector: 1e-300 * vector

        def evaluate(self) -> tuple[float, float]:
            self.n_evaluations += 1
            assert all(bool(parameter.isfinite().all()) for parameter in self.parameters)
            return 1.0, 1e-3

    blind = Blind()
    step = take_step(blind, max_kl=1e307, damping=0.0, shrinking_factor=1e-200)
    assert [candidate.refused_by for candidate in step.candidates] == ["not_finite", ""]
    assert step.accepted and blind.n_evaluations == 1
    assert all(bool(parameter.isfinite().all()) for parameter in blind.parameters)


def test_step_whose_curvature_overflows_is_refused() -> None:
    """The curvature along the whole direction is measured anew: infinite, it would make a step of length zero."""
    plain = quadratic()

    class Growing(QuadraticProblem):
        n_products = 0

        def fisher_vector_product(self) -> Any:
            def product(vector: th.Tensor) -> th.Tensor:
                self.n_products += 1
                return vector if self.n_products == 1 else math.inf * vector

            return product

    problem = Growing(plain.fisher, plain.gradient)
    before = snapshot(problem)
    step = take_step(problem, damping=0.0)
    assert step.conjugate_gradient is not None and step.conjugate_gradient.stopped_by == "converged"
    assert step.status == "curvature_not_positive" and unchanged(problem, before)


def test_defaults_are_those_of_trpo() -> None:
    """Whoever calls the numerics alone gets as many iterations and candidates, and as close together, as TRPO gives."""
    of_trpo = {name: parameter.default for name, parameter in inspect.signature(TRPO.__init__).parameters.items()}
    matrix = spd_matrix(th.logspace(0, 8, 40, dtype=th.float64), seed=0)
    assert conjugate_gradient(lambda v: matrix @ v, normal(40, seed=1)).n_iterations == of_trpo["cg_max_steps"]
    assert 0.0 < conjugate_gradient(lambda v: v, normal(40, seed=1), relative_tolerance=0.0).n_iterations < 3
    easy = spd_matrix(th.linspace(1, 2, 40, dtype=th.float64), seed=0)
    residuals = conjugate_gradient(lambda v: easy @ v, normal(40, seed=1)).residual_norms
    assert residuals[-1] <= 1e-5 < min(residuals[:-1])
    factor, n_candidates = of_trpo["line_search_shrinking_factor"], of_trpo["line_search_max_iter"]
    fractions = [candidate.step_fraction for candidate in backtrack(lambda fraction: (-1.0, 0.0), max_kl=1.0).candidates]
    assert fractions == [factor**j for j in range(n_candidates)]
    problem = QuadraticProblem(matrix, normal(40, seed=1))
    solve = trust_region_step(problem, max_kl=1e-2, damping=0.0).conjugate_gradient
    assert solve is not None and solve.n_iterations == of_trpo["cg_max_steps"]


def test_step_tries_no_more_candidates_than_it_may() -> None:
    """The number of candidates and the factor between them are the caller's."""
    step = take_step(Altered(measured=lambda s, kl: (s, 1.0)), max_candidates=3, shrinking_factor=0.25)
    assert [candidate.step_fraction for candidate in step.candidates] == [1.0, 0.25, 0.0625]


def matrix_problem(matrix: th.Tensor, seed: int) -> QuadraticProblem:
    return QuadraticProblem(matrix, normal(len(matrix), seed=seed))


def test_step_along_a_direction_that_does_not_ascend_is_refused() -> None:
    """Products that are those of no symmetric matrix can lead conjugate gradients anywhere; only upwards is followed."""
    statuses = set()
    for seed in range(100):
        problem = matrix_problem(normal(6, 6, seed=seed) + 2.0 * th.eye(6, dtype=th.float64), seed + 1)
        before = snapshot(problem)
        step = take_step(problem, damping=0.0, cg_max_iterations=6)
        statuses.add(step.status)
        assert unchanged(problem, before) != step.accepted
        assert step.status != "direction_not_ascent" or (not problem.visited and step.conjugate_gradient is not None)
        assert not step.candidates or step.full_step_gain > 0.0
    assert {"accepted", "direction_not_ascent"} <= statuses


entries = st.one_of(
    st.just(0.0),
    st.floats(-30, 30).map(lambda exponent: 10.0**exponent),
    st.floats(-30, 30).map(lambda exponent: -(10.0**exponent)),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)


def test_step_with_a_limit_of_zero_is_refused_by_name() -> None:
    problem = quadratic()
    before = snapshot(problem)
    assert take_step(problem, max_kl=0.0).status == "limit_zero"
    assert unchanged(problem, before) and not problem.visited


def test_step_along_a_level_direction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ascent at all is not ascent."""
    problem = QuadraticProblem(th.eye(2, dtype=th.float64), th.tensor([1.0, 0.0], dtype=th.float64))
    level = th.tensor([0.0, 1.0], dtype=th.float64)
    answer = ConjugateGradientResult(level, 1, (1.0, 0.0), "converged")
    monkeypatch.setattr("sb3_trpo.trust_region.step.conjugate_gradient", lambda *args, **kwargs: answer)
    assert take_step(problem).status == "direction_not_ascent" and not problem.visited


@given(
    eigenvalues=st.lists(entries, min_size=3, max_size=8),
    log_gradient=st.floats(-45, 38),
    log_damping=st.one_of(st.none(), st.floats(-30, 30)),
    log_max_kl=st.floats(-12, 3),
    single=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_step_keeps_its_promise_whatever_the_matrix(
    eigenvalues: list[float], log_gradient: float, log_damping: float | None, log_max_kl: float, single: bool, seed: int
) -> None:
    """Definite, singular, indefinite or not a number, in float32 too: improved inside the limit, or bit for bit untouched."""
    dtype = th.float32 if single else th.float64
    matrix = spd_matrix(th.tensor(eigenvalues, dtype=th.float64), seed=seed).to(dtype)
    n = len(eigenvalues)

    class Hostile(QuadraticProblem):
        def fisher_vector_product(self) -> Any:
            return lambda vector: matrix @ vector

    problem = Hostile(matrix.double(), 10**log_gradient * normal(n, seed=seed + 1), surrogate_origin=0.0)
    problem.gradient = problem.gradient.to(dtype).double()
    gradient = problem.gradient.to(dtype)
    problem.surrogate_gradient = lambda: (0.0, gradient.clone())  # type: ignore[method-assign]
    before = snapshot(problem)
    damping = 0.0 if log_damping is None else 10**log_damping
    step = trust_region_step(problem, max_kl=10**log_max_kl, damping=damping)
    if step.accepted:
        surrogate, mean_kl = problem.measure()
        assert surrogate > 0.0 and abs(mean_kl) <= 10**log_max_kl
        assert all(bool(parameter.isfinite().all()) for parameter in problem.parameters)
    else:
        assert unchanged(problem, before)


def test_step_is_the_same_on_processes_that_round_differently() -> None:
    """Length of the gradient, when to stop, direction and curvature: what one of them says is what all take, bit for bit."""
    said: list[th.Tensor] = []

    def tell(value: th.Tensor) -> th.Tensor:
        said.append(value.clone())
        return value

    one, other = quadratic(), quadratic()
    # Left to itself it would have found its direction after one iteration
    other.gradient, other.fisher_vector_product = (1.0 + 1e-4) * other.gradient, lambda: th.clone  # type: ignore[method-assign]
    first = trust_region_step(one, max_kl=MAX_KL, damping=0.1, agree=tell)
    words = iter(said)
    second = trust_region_step(other, max_kl=MAX_KL, damping=0.1, agree=lambda value: next(words))
    assert first.accepted and second.accepted and not list(words)
    assert th.equal(one.displacement(), other.displacement())
    assert (first.gradient_norm, first.step_norm) == (second.gradient_norm, second.step_norm)
    assert first.conjugate_gradient is not None and second.conjugate_gradient is not None
    assert first.conjugate_gradient.n_iterations == second.conjugate_gradient.n_iterations
