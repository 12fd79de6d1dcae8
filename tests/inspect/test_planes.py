"""What is measured on a plane is what there is to measure, and the parameters are given back."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch as th

from sb3_trpo.inspect import slice_of
from sb3_trpo.inspect.planes import slice_with_step
from sb3_trpo.trust_region import trust_region_step
from tests.cases import QuadraticProblem, normal, spd_matrix


@pytest.fixture(params=["gradient", "random"])
def quadratic(request: pytest.FixtureRequest) -> Iterator[tuple[QuadraticProblem, str]]:
    """A problem whose models are exact; with the identity for Fisher matrix the gradient is the natural gradient."""
    eigenvalues = th.ones(12, dtype=th.float64) if request.param == "random" else th.logspace(-1, 1, 12, dtype=th.float64)
    yield QuadraticProblem(spd_matrix(eigenvalues, seed=1), normal(12, seed=2)), request.param


def test_slice_of_a_quadratic_problem_is_the_unit_circle(quadratic: tuple[QuadraticProblem, str]) -> None:
    """Where the quadratic model is exact, KL is δ (x² + y²), the gain rises along x, and the gradient lies in the plane."""
    problem, second_direction = quadratic
    before = [parameter.detach().clone() for parameter in problem.parameters]
    step = trust_region_step(problem, max_kl=0.02, damping=0.0, cg_max_iterations=50, cg_relative_tolerance=1e-12)
    for parameter, start in zip(problem.parameters, before, strict=True):
        parameter.data.copy_(start)
    plane = slice_of(problem, step, max_kl=0.02, n_updates=3, n_points=7)
    assert plane is not None and plane.second_direction == second_direction
    x, y = np.meshgrid(plane.fractions, plane.fractions)
    np.testing.assert_allclose(plane.kl, 0.02 * (x**2 + y**2), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(plane.gain, step.full_step_gain * x, rtol=1e-6, atol=1e-12)
    assert all(th.equal(parameter, start) for parameter, start in zip(problem.parameters, before, strict=True))
    # The plain gradient, scaled to the length of the full step, by a definition of its own
    full_step = th.linalg.solve(problem.fisher, problem.gradient)
    full_step *= math.sqrt(0.04 / float(full_step @ problem.fisher @ full_step))
    plain = problem.gradient * (full_step.norm() / problem.gradient.norm())
    assert plane.gradient_step_kl == pytest.approx(0.5 * float(plain @ problem.fisher @ plain), rel=1e-6)
    assert 0.02 * float(np.square(plane.gradient_step).sum()) == pytest.approx(plane.gradient_step_kl, rel=1e-6)


def test_slice_needs_a_direction() -> None:
    """Where no direction was found, or there is no second one, there is no plane to draw."""
    flat = QuadraticProblem(spd_matrix(th.ones(3, dtype=th.float64), seed=1), th.zeros(3, dtype=th.float64))
    assert slice_of(flat, trust_region_step(flat, max_kl=0.01, damping=0.1), max_kl=0.01, n_updates=1) is None

    class Line(QuadraticProblem):
        def __init__(self) -> None:
            super().__init__(th.eye(1, dtype=th.float64), th.ones(1, dtype=th.float64))

    line = Line()
    assert slice_of(line, trust_region_step(line, max_kl=0.01, damping=0.1), max_kl=0.01, n_updates=1) is None


def test_step_taken_lies_in_the_plane_where_it_ended(quadratic: tuple[QuadraticProblem, str]) -> None:
    """Whatever the step: at its place KL and gain are its own, and the natural step of δ is at one."""
    problem, _ = quadratic
    before = [parameter.detach().clone() for parameter in problem.parameters]
    taken = 0.2 * normal(12, seed=5)
    plane = slice_with_step(problem, taken, max_kl=0.02, damping=0.0, n_updates=3, n_points=7, algorithm="PPO")
    assert plane is not None and plane.second_direction == "step" and plane.algorithm == "PPO"
    kl, gain = 0.5 * float(taken @ problem.fisher @ taken), float(problem.gradient @ taken)
    assert plane.step_kl == pytest.approx(kl, rel=1e-6) and plane.step_gain == pytest.approx(gain, rel=1e-6)
    x, y = plane.step
    assert 0.02 * (x**2 + y**2) == pytest.approx(kl, rel=1e-6) and y > 0
    natural = th.linalg.solve(problem.fisher, problem.gradient)
    natural *= math.sqrt(0.04 / float(natural @ problem.fisher @ natural))
    assert plane.natural_kl == pytest.approx(0.02, rel=1e-6)
    assert plane.natural_gain == pytest.approx(float(problem.gradient @ natural), rel=1e-4)
    # No step of this KL gains more, and the picture reaches as far as the step
    assert plane.natural_gain * math.hypot(x, y) >= plane.step_gain and plane.fractions[-1] >= max(abs(x), y)
    across, up = np.meshgrid(plane.fractions, plane.fractions)
    np.testing.assert_allclose(plane.kl, 0.02 * (across**2 + up**2), rtol=1e-6, atol=1e-12)
    assert all(th.equal(parameter, start) for parameter, start in zip(problem.parameters, before, strict=True))


def test_natural_step_that_was_taken_has_another_direction_beside_it(quadratic: tuple[QuadraticProblem, str]) -> None:
    """There is one plane with it for each second direction: the plain gradient, or any."""
    problem, second_direction = quadratic
    natural = th.linalg.solve(problem.fisher, problem.gradient)
    taken = natural * math.sqrt(0.01 / float(natural @ problem.fisher @ natural))
    plane = slice_with_step(problem, taken, max_kl=0.02, damping=0.0, n_updates=3, n_points=7)
    assert plane is not None and plane.second_direction == second_direction
    assert plane.step == pytest.approx((0.5, 0.0), abs=1e-3) and plane.step_kl == pytest.approx(0.005, rel=1e-3)


def test_plane_of_no_step_is_none() -> None:
    """Nor is there one without a gradient, or where δ is zero."""
    problem = QuadraticProblem(spd_matrix(th.ones(3, dtype=th.float64), seed=1), normal(3, seed=2))
    step = normal(3, seed=3)
    assert slice_with_step(problem, 0.0 * step, max_kl=0.01, damping=0.1, n_updates=1) is None
    assert slice_with_step(problem, step, max_kl=0.0, damping=0.1, n_updates=1) is None
    flat = QuadraticProblem(problem.fisher, th.zeros(3, dtype=th.float64))
    assert slice_with_step(flat, step, max_kl=0.01, damping=0.1, n_updates=1) is None


def test_plane_of_a_step_without_a_length_is_none() -> None:
    """A matrix that gives what is beside the natural step a square below zero says nothing of where the step lies."""
    fisher = th.diag(th.tensor([1.0, 2.0, -0.5], dtype=th.float64))
    problem = QuadraticProblem(fisher, th.tensor([1.0, 1.0, 0.0], dtype=th.float64))
    there, beside = th.tensor([0.2, 0.1, 0.3], dtype=th.float64), th.tensor([0.2, -0.1, 0.0], dtype=th.float64)
    assert slice_with_step(problem, there, max_kl=0.02, damping=0.0, n_updates=1, n_points=3) is None
    plane = slice_with_step(problem, beside, max_kl=0.02, damping=0.0, n_updates=1, n_points=3)
    assert plane is not None and plane.second_direction == "step"
