"""Conjugate gradients: the solution, how the solve ended, and nothing else touched."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_trpo.trust_region import ConjugateGradientResult, conjugate_gradient
from tests.cases import normal, spd_matrix
from tests.oracles import relative_error


def solve(
    matrix: th.Tensor, rhs: th.Tensor, *, max_iterations: int = 100, tolerance: float = 1e-10
) -> ConjugateGradientResult:
    return conjugate_gradient(lambda vector: matrix @ vector, rhs, max_iterations=max_iterations, relative_tolerance=tolerance)


def recording(matrix: th.Tensor, seen: list[th.Tensor]) -> Callable[[th.Tensor], th.Tensor]:
    def product(vector: th.Tensor) -> th.Tensor:
        seen.append(vector.clone())
        return matrix @ vector

    return product


def log_spaced(n: int, condition: float) -> th.Tensor:
    return th.logspace(0, math.log10(condition), n, dtype=th.float64)


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3, 1e5])
def test_conjugate_gradient_solves(condition: float) -> None:
    """The solution is that of a dense solve, to within what the residual and the condition number allow."""
    matrix, rhs = spd_matrix(log_spaced(12, condition), seed=0), normal(12, seed=1)
    result = solve(matrix, rhs)
    assert result.stopped_by == "converged"
    assert relative_error(result.solution, th.linalg.solve(matrix, rhs)) <= 1e-10 * condition + 1e-12


@pytest.mark.parametrize("n_distinct", [1, 2, 3, 5])
def test_conjugate_gradient_needs_one_iteration_for_each_distinct_eigenvalue(n_distinct: int) -> None:
    """A matrix with k distinct eigenvalues is solved in k iterations, whatever its size, and not in fewer."""
    eigenvalues = th.arange(1, n_distinct + 1, dtype=th.float64).repeat_interleave(4)
    result = solve(spd_matrix(eigenvalues, seed=0), normal(len(eigenvalues), seed=1))
    assert (result.stopped_by, result.n_iterations) == ("converged", n_distinct)


def test_conjugate_gradient_of_zero_is_zero() -> None:
    """A right-hand side of zeros is answered with zeros, without a product."""

    def no_product(vector: th.Tensor) -> th.Tensor:
        raise AssertionError("there is nothing to solve")

    result = conjugate_gradient(no_product, th.zeros(5, dtype=th.float64))
    assert th.equal(result.solution, th.zeros(5, dtype=th.float64))
    assert (result.n_iterations, result.residual_norms, result.stopped_by) == (0, (0.0,), "zero_rhs")


def test_conjugate_gradient_stops_at_negative_curvature() -> None:
    """An indefinite matrix stops the solve, which returns the last iterate before the bad curvature."""
    matrix = th.diag(th.tensor([4.0, 3.0, 2.0, -0.1], dtype=th.float64))
    rhs = th.tensor([1.0, 1.0, 1.0, 0.1], dtype=th.float64)
    result = solve(matrix, rhs)
    assert result.stopped_by == "curvature"
    assert result.n_iterations >= 1
    assert len(result.residual_norms) == result.n_iterations + 1
    assert th.equal(result.solution, solve(matrix, rhs, max_iterations=result.n_iterations).solution)
    # It is better than nothing: b·x - ½xᵀAx grows as long as the curvature is positive
    assert rhs @ result.solution - result.solution @ matrix @ result.solution / 2 > 0


@pytest.mark.parametrize("eigenvalue", [-1.0, 0.0])
def test_conjugate_gradient_without_any_good_iterate_is_zero(eigenvalue: float) -> None:
    """Where the very first curvature is not positive the answer is zero, and says so."""
    result = solve(eigenvalue * th.eye(3, dtype=th.float64), normal(3, seed=0))
    assert th.equal(result.solution, th.zeros(3, dtype=th.float64))
    assert (result.n_iterations, result.residual_norms, result.stopped_by) == (0, (1.0,), "curvature")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n_good", [0, 2])
def test_conjugate_gradient_survives_a_product_that_is_not_finite(bad: float, n_good: int) -> None:
    """A product with NaN or infinity in it stops the solve, and does not get into the solution."""
    matrix, rhs = spd_matrix(log_spaced(6, 100.0), seed=0), normal(6, seed=1)
    n_calls = 0

    def product(vector: th.Tensor) -> th.Tensor:
        nonlocal n_calls
        n_calls += 1
        return matrix @ vector if n_calls <= n_good else th.full_like(vector, bad)

    result = conjugate_gradient(product, rhs)
    assert (result.stopped_by, result.n_iterations) == ("curvature", n_good)
    assert th.equal(result.solution, solve(matrix, rhs, max_iterations=n_good).solution)


@pytest.mark.parametrize("scale", [1e-7, 1e7, 2.0**-40])
def test_conjugate_gradient_is_linear_in_the_right_hand_side(scale: float) -> None:
    """The right-hand side times a number takes the same iterations to the solution times that number."""
    matrix, rhs = spd_matrix(log_spaced(12, 30.0), seed=0), normal(12, seed=1)
    plain, scaled = solve(matrix, rhs, tolerance=1e-5), solve(matrix, scale * rhs, tolerance=1e-5)
    assert (scaled.n_iterations, scaled.stopped_by) == (plain.n_iterations, plain.stopped_by)
    assert relative_error(scaled.solution, scale * plain.solution) < 1e-9
    if math.frexp(scale)[0] == 0.5:  # a power of two rounds nothing
        assert th.equal(scaled.solution, scale * plain.solution)


def test_conjugate_gradient_draws_no_random_number() -> None:
    """The global random generator is where it was, and two solves agree bit for bit."""
    matrix, rhs = spd_matrix(log_spaced(12, 1e3), seed=0), normal(12, seed=1)
    before = th.get_rng_state()
    first = solve(matrix, rhs)
    assert th.equal(th.get_rng_state(), before)
    assert th.equal(solve(matrix, rhs).solution, first.solution)


def test_conjugate_gradient_starts_from_zero() -> None:
    """The first product is with the right-hand side itself: the residual of x = 0."""
    matrix, rhs = spd_matrix(log_spaced(6, 10.0), seed=0), normal(6, seed=1)
    seen: list[th.Tensor] = []
    conjugate_gradient(recording(matrix, seen), rhs)
    assert th.equal(seen[0], rhs)


def test_conjugate_gradient_leaves_the_right_hand_side_alone() -> None:
    """The caller's tensor is bit for bit what it was."""
    matrix, rhs = spd_matrix(log_spaced(6, 10.0), seed=0), normal(6, seed=1)
    solve(matrix, rhs)
    assert th.equal(rhs, normal(6, seed=1))


@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-5])
def test_conjugate_gradient_stops_at_the_first_residual_within_the_tolerance(tolerance: float) -> None:
    """The last residual is within the relative tolerance and none before it is."""
    result = solve(spd_matrix(log_spaced(12, 1e3), seed=0), 1e-3 * normal(12, seed=1), tolerance=tolerance)
    assert result.stopped_by == "converged"
    assert result.residual_norms[-1] <= tolerance
    assert min(result.residual_norms[:-1]) > tolerance


def test_conjugate_gradient_stops_at_the_tolerance_itself() -> None:
    """A residual of exactly the tolerance is within it."""
    matrix, rhs = spd_matrix(log_spaced(12, 1e3), seed=0), normal(12, seed=1)
    residuals = solve(matrix, rhs, max_iterations=4).residual_norms
    result = solve(matrix, rhs, tolerance=min(residuals))
    assert result.stopped_by == "converged" and result.residual_norms[-1] == min(residuals)


def test_conjugate_gradient_reports_the_true_residuals() -> None:
    """Each residual norm is ‖b - Ax‖ / ‖b‖ of the iterate that it belongs to."""
    matrix, rhs = spd_matrix(log_spaced(12, 1e3), seed=0), normal(12, seed=1)
    result = solve(matrix, rhs, max_iterations=10)
    assert len(result.residual_norms) == result.n_iterations + 1 == 11
    for n_iterations, reported in enumerate(result.residual_norms):
        iterate = solve(matrix, rhs, max_iterations=n_iterations).solution
        assert reported == pytest.approx(float((rhs - matrix @ iterate).norm() / rhs.norm()), rel=1e-8)


def test_conjugate_gradient_counts_its_products() -> None:
    """It stops at the largest number of products, says so, and makes no more of them."""
    matrix, rhs = spd_matrix(log_spaced(12, 1e5), seed=0), normal(12, seed=1)
    seen: list[th.Tensor] = []
    result = conjugate_gradient(recording(matrix, seen), rhs, max_iterations=4)
    assert (result.n_iterations, result.stopped_by, len(seen)) == (4, "max_iterations", 4)


@given(n=st.integers(1, 12), log_condition=st.floats(0, 4), log_scale=st.floats(-8, 8), seed=st.integers(0, 2**31))
def test_conjugate_gradient_converges_on_every_positive_definite_matrix(
    n: int, log_condition: float, log_scale: float, seed: int
) -> None:
    """Whatever the size, the condition number and the scales, the promised residual is reached by the solution itself."""
    eigenvalues = 10**log_scale * log_spaced(n, 10**log_condition)
    matrix, rhs = spd_matrix(eigenvalues, seed=seed), normal(n, seed=seed + 1)
    result = solve(matrix, rhs, max_iterations=20 * n, tolerance=1e-8)
    assert result.stopped_by == "converged"
    assert float((rhs - matrix @ result.solution).norm()) <= 2e-8 * float(rhs.norm())


@given(n=st.integers(2, 12), log_condition=st.floats(0, 4), seed=st.integers(0, 2**31))
def test_conjugate_gradient_gains_with_every_iteration(n: int, log_condition: float, seed: int) -> None:
    """The error in the norm of A never grows, so that a solve cut short is still a direction of ascent."""
    matrix, rhs = spd_matrix(log_spaced(n, 10**log_condition), seed=seed), normal(n, seed=seed + 1)
    exact = th.linalg.solve(matrix, rhs)
    scale = float(exact @ matrix @ exact)
    errors = []
    for n_iterations in range(n + 1):
        solution = solve(matrix, rhs, max_iterations=n_iterations, tolerance=1e-6).solution
        errors.append(float((solution - exact) @ matrix @ (solution - exact)) / scale)
        assert n_iterations == 0 or rhs @ solution > 0
    assert all(later <= earlier * (1 + 1e-9) + 1e-15 for earlier, later in pairwise(errors))


def test_conjugate_gradient_stops_where_the_iterate_stands_still() -> None:
    """An iteration that is lost in rounding ends the solve and is not counted: more of them would change nothing."""
    rhs = th.full((3,), 1e-20)
    result = conjugate_gradient(lambda vector: 1e38 * vector, rhs)
    assert (result.stopped_by, result.n_iterations, result.residual_norms) == ("stagnated", 0, (1.0,))
    assert th.equal(result.solution, th.zeros(3))


def test_conjugate_gradient_asked_for_more_than_rounding_allows_stagnates_at_the_solution() -> None:
    """With a tolerance of zero it does not go on for ever, and does not lose what it had."""
    matrix, rhs = spd_matrix(log_spaced(12, 1e3), seed=0), normal(12, seed=1)
    result = solve(matrix, rhs, max_iterations=10_000, tolerance=0.0)
    assert result.stopped_by == "stagnated" and result.n_iterations < 200
    assert relative_error(result.solution, th.linalg.solve(matrix, rhs)) < 1e-12


def test_conjugate_gradient_leaves_out_an_iterate_that_is_not_finite() -> None:
    """Where the curvature is so small that the iterate overflows, the one before it is returned."""
    tiny = conjugate_gradient(lambda vector: 1e-320 * vector, th.ones(3, dtype=th.float64))
    assert (tiny.stopped_by, tiny.n_iterations, tiny.residual_norms) == ("not_finite", 0, (1.0,))
    assert th.equal(tiny.solution, th.zeros(3, dtype=th.float64))
    matrix, rhs = th.diag(log_spaced(6, 100.0)), normal(6, seed=1)
    rhs[5] = 0.0
    n_calls = 0

    def product(vector: th.Tensor) -> th.Tensor:
        nonlocal n_calls
        n_calls += 1
        result = matrix @ vector
        if n_calls == 3:
            # Across the direction, where the curvature does not see it
            result[5] = 1e200
        return result

    result = conjugate_gradient(product, rhs)
    assert (result.stopped_by, result.n_iterations, len(result.residual_norms)) == ("not_finite", 2, 3)
    assert th.equal(result.solution, solve(matrix, rhs, max_iterations=2).solution)


scaled = st.floats(-30, 30).map(lambda exponent: 10.0**exponent)


@given(
    eigenvalues=st.lists(st.one_of(st.just(0.0), scaled, scaled.map(lambda value: -value)), min_size=1, max_size=10),
    log_scale=st.floats(-40, 40),
    dtype=st.sampled_from([th.float32, th.float64]),
    seed=st.integers(0, 2**31),
)
def test_conjugate_gradient_ends_well_on_every_symmetric_matrix(
    eigenvalues: list[float], log_scale: float, dtype: th.dtype, seed: int
) -> None:
    """Indefinite, singular, of any scale: it never raises, and what it returns is finite and the better for b·x - ½xᵀAx."""
    matrix = spd_matrix(th.tensor(eigenvalues, dtype=th.float64), seed=seed).to(dtype)
    rhs = (10**log_scale * normal(len(eigenvalues), seed=seed + 1)).to(dtype)
    result = conjugate_gradient(lambda vector: matrix @ vector, rhs, max_iterations=30)
    assert bool(result.solution.isfinite().all())
    assert all(map(math.isfinite, result.residual_norms)) or not math.isfinite(float(rhs @ rhs))
    assert len(result.residual_norms) == result.n_iterations + 1 <= 31
    assert (result.stopped_by == "zero_rhs") == (float(rhs @ rhs) == 0.0)
    if result.n_iterations == 0:
        assert not result.solution.any()
    elif min(eigenvalues) >= 0.0:
        x, a, b = result.solution.double(), matrix.double(), rhs.double()
        assert float(b @ x) > 0.0
        assert float(b @ x - x @ a @ x / 2) >= -1e-3 * float((b * x).abs().sum())


def test_agreed_numbers_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose inner products differ in their last bits goes the same way, bit for bit, by the numbers of another."""
    matrix, rhs = spd_matrix(th.logspace(-2, 2, 12, dtype=th.float64), seed=1), normal(12, seed=2)
    told: list[th.Tensor] = []

    def tell(facts: th.Tensor) -> th.Tensor:
        told.append(facts.clone())
        return facts

    def told_by_the_first(facts: th.Tensor) -> th.Tensor:
        return next(numbers)

    def product(vector: th.Tensor) -> th.Tensor:
        return th.mv(matrix, vector)

    first = conjugate_gradient(product, rhs, max_iterations=8, agree=tell)
    assert len(told) == first.n_iterations == 8
    alone = conjugate_gradient(product, rhs, max_iterations=8)
    assert th.equal(first.solution, alone.solution) and first[1:] == alone[1:]
    monkeypatch.setattr(th.Tensor, "__matmul__", lambda one, other: th.dot(one, other) * (1.0 + 1e-13))
    numbers = iter(told)
    second = conjugate_gradient(product, rhs, max_iterations=8, agree=told_by_the_first)
    assert th.equal(second.solution, first.solution) and second[1:] == first[1:]
    assert not th.equal(conjugate_gradient(product, rhs, max_iterations=8).solution, first.solution)
