"""Planes through the old policy in parameter space, with KL and surrogate measured policy by policy."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch as th

from sb3_trpo.guards.process import unvalidated_distributions
from sb3_trpo.inspect.run_files import SliceRecord
from sb3_trpo.trust_region import TrustRegionProblem, TrustRegionStep, conjugate_gradient, flatten, unflatten
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, copies_of, put

# How far a slice reaches, in full steps, and how many policies are measured along each side of it
SLICE_REACH = 1.5
SLICE_POINTS = 25
# What lies further out than so many full steps is beside the picture
MOST_REACH = 6.0
# A direction of which no more than this share is left beside another one is the same: the rest is rounding
PARALLEL = 1e-6

# Maps a place in the plane to the gain of the surrogate and the mean KL there
Measure = Callable[[float, float], tuple[float, float]]


class NoMeasureError(ArithmeticError):
    """The product with the Fisher matrix gives a square of a length that is below zero: it is none, or made of rounding."""


@contextmanager
def as_they_were(parameters: Sequence[th.nn.Parameter]) -> Iterator[None]:
    """Give parameters back bit for bit."""
    origin = copies_of(parameters)
    try:
        yield
    finally:
        put(parameters, origin)


def _beside(
    direction: th.Tensor, full_step: th.Tensor, fisher_product: MatrixVectorProduct, max_kl: float
) -> tuple[th.Tensor, float, float] | None:
    """
    Split a direction into a part along the full step and one that is orthogonal to it in the Fisher inner product.

    :return: the second part, in a length for which the quadratic model expects δ, and how much of both the direction is made
        of; ``None`` where it is parallel to the full step
    :raises NoMeasureError: if the second part has a curvature below zero
    """
    product = fisher_product(full_step)
    along = float(direction @ product) / float(full_step @ product)
    rest = direction - along * full_step
    curvature, least = float(rest @ fisher_product(rest)), PARALLEL * float(direction @ fisher_product(direction))
    if not abs(curvature) > least:
        return None
    if not curvature > 0.0:
        raise NoMeasureError
    beside = math.sqrt(curvature / (2.0 * max_kl))
    return rest / beside, along, beside


def _natural_step(direction: th.Tensor, fisher_product: MatrixVectorProduct, max_kl: float) -> th.Tensor | None:
    """Return a direction in the length for which the quadratic model expects δ, ``None`` where it has no curvature."""
    curvature = float(direction @ fisher_product(direction))
    return math.sqrt(2.0 * max_kl / curvature) * direction if 0.0 < curvature < math.inf else None


def _second_step(
    full_step: th.Tensor, gradient: th.Tensor, fisher_product: MatrixVectorProduct, max_kl: float
) -> tuple[str, th.Tensor] | None:
    """Return a step that is orthogonal to the full step in the Fisher inner product, with KL δ by the quadratic model."""
    drawn = th.randn(len(gradient), generator=th.Generator("cpu").manual_seed(0), device="cpu").to(gradient)
    for name, direction in (("gradient", gradient), ("random", drawn)):
        with suppress(NoMeasureError):
            found = _beside(direction / direction.norm(), full_step, fisher_product, max_kl)
            if found is not None:
                return name, found[0]
    return None


def _measure_of(
    measured: TrustRegionProblem, parameters: Sequence[th.nn.Parameter], first: th.Tensor, second: th.Tensor
) -> Measure:
    """Return what measures gain and KL at x first + y second from the present parameters, which are moved by it."""
    origin = flatten([parameter.detach() for parameter in parameters]).clone()

    @th.no_grad()
    def evaluate(x: float, y: float) -> tuple[float, float]:
        put(parameters, unflatten(origin + x * first + y * second, parameters))
        return measured.evaluate()

    surrogate, _ = evaluate(0.0, 0.0)

    def gain_and_kl(x: float, y: float) -> tuple[float, float]:
        there, kl = evaluate(x, y)
        return there - surrogate, kl

    return gain_and_kl


def _surface(measure: Measure, reach: float, n_points: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coordinates of a grid, and KL and gain on it."""
    fractions = np.linspace(-reach, reach, n_points or SLICE_POINTS)
    surface = np.array([[measure(x, y) for x in fractions] for y in fractions])
    return fractions, surface[..., 1], surface[..., 0]


def slice_of(
    problem: TrustRegionProblem,
    step: TrustRegionStep,
    *,
    max_kl: float,
    n_updates: int,
    measured: TrustRegionProblem | None = None,
    n_states: int = 0,
    n_points: int | None = None,
) -> SliceRecord | None:
    """
    Measure surrogate and KL on a plane through the old policy, spanned by the natural step and the plain gradient.

    :param problem: around the old policy, whose parameters are given back bit for bit
    :param step: what the trust-region step did on it
    :param max_kl: the limit δ of that step, in nats
    :param n_updates: number of the update
    :param measured: the problem to measure on, by default the same; with fewer states it is quicker
    :param n_states: number of states that it has
    :param n_points: how many policies to measure along each side, ``SLICE_POINTS`` by default
    :return: ``None`` if there was no direction, there is no second one, or the limit is zero
    """
    if step.conjugate_gradient is None or math.isnan(step.full_step_gain) or not max_kl > 0.0:
        return None
    parameters = problem.parameters
    with as_they_were(parameters), unvalidated_distributions():
        fisher_product = problem.fisher_vector_product()
        full_step = _natural_step(step.conjugate_gradient.solution, fisher_product, max_kl)
        _, gradient = problem.surrogate_gradient()
        found = None if full_step is None else _second_step(full_step, gradient, fisher_product, max_kl)
        if full_step is None or found is None:
            return None
        second_direction, second = found
        gradient_step = gradient * (full_step.norm() / gradient.norm())
        place = tuple(float(gradient_step @ fisher_product(along)) / (2.0 * max_kl) for along in (full_step, second))
        measure = _measure_of(measured or problem, parameters, full_step, second)
        fractions, kl, gain = _surface(measure, SLICE_REACH, n_points)
        _, gradient_step_kl = measure(*place)
    return SliceRecord(
        n_updates=n_updates,
        max_kl=max_kl,
        second_direction=second_direction,
        fractions=fractions,
        kl=kl,
        gain=gain,
        candidates=step.candidates,
        gradient_step=place,
        gradient_step_kl=gradient_step_kl,
        n_states=n_states,
    )


def slice_with_step(
    problem: TrustRegionProblem,
    step: th.Tensor,
    *,
    max_kl: float,
    damping: float | th.Tensor,
    n_updates: int,
    n_points: int | None = None,
    **others: Any,
) -> SliceRecord | None:
    """
    Measure surrogate and KL on the plane spanned by the natural gradient and a step that was taken, however it was found.

    :param problem: around the old policy, whose parameters are given back bit for bit
    :param step: what the update moved them by, shape (n_params,)
    :param max_kl: δ: where the natural step ends, in nats
    :param damping: added to the diagonal of the Fisher matrix for the direction of the natural gradient: a number, or one for
        each variable, shape (n_params,)
    :param n_updates: number of the update
    :param n_points: how many policies to measure along each side, ``SLICE_POINTS`` by default
    :param others: further fields of the record
    :return: ``None`` if the step or the natural gradient is zero, there is no second direction, or no length of the step
    """
    parameters = problem.parameters
    if not max_kl > 0.0 or not float(step.norm()) > 0.0:
        return None
    with as_they_were(parameters), unvalidated_distributions():
        _, gradient = problem.surrogate_gradient()
        norm = float(gradient.norm())
        if not 0.0 < norm < math.inf:
            return None
        fisher_product = problem.fisher_vector_product()
        solve = conjugate_gradient(lambda vector: fisher_product(vector) + damping * vector, gradient / norm)
        full_step = _natural_step(solve.solution, fisher_product, max_kl)
        if full_step is None:
            return None
        try:
            found = _beside(step, full_step, fisher_product, max_kl)
        except NoMeasureError:
            return None  # there is no telling where the step lies
        if found is not None:
            second_direction, (second, *place) = "step", found
        else:
            # The step taken is the natural one, longer or shorter
            beside = _second_step(full_step, gradient, fisher_product, max_kl)
            if beside is None:
                return None
            (second_direction, second), product = beside, fisher_product(full_step)
            place = [float(step @ product) / float(full_step @ product), 0.0]
        measure = _measure_of(problem, parameters, full_step, second)
        reach = min(MOST_REACH, max(SLICE_REACH, *(1.25 * abs(at) for at in place)))
        fractions, kl, gain = _surface(measure, reach, n_points)
        step_gain, step_kl = measure(*place)
        natural_gain, natural_kl = measure(1.0, 0.0)
    return SliceRecord(
        n_updates=n_updates,
        max_kl=max_kl,
        second_direction=second_direction,
        fractions=fractions,
        kl=kl,
        gain=gain,
        candidates=(),
        gradient_step=(),
        gradient_step_kl=math.nan,
        n_states=0,
        step=tuple(place),
        step_kl=step_kl,
        step_gain=step_gain,
        natural_kl=natural_kl,
        natural_gain=natural_gain,
    )._replace(**others)
