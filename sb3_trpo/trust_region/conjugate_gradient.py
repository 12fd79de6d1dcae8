"""The direction of the step: solve ``(F + damping I) s = g`` with matrix-vector products alone."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch as th

StoppedBy = Literal["converged", "max_iterations", "curvature", "stagnated", "not_finite", "zero_rhs"]


class ConjugateGradientResult(NamedTuple):
    """
    A solution and how the solve ended.

    :param solution: approximate x, shape (n,)
    :param n_iterations: number of products with A that led to the solution
    :param residual_norms: ``||b - A x|| / ||b||`` by the recurrence, before the first and after each iteration
    :param stopped_by: ``"converged"``, ``"max_iterations"``, ``"zero_rhs"``, or what was wrong with the next iterate: p'Ap
        was not positive (``"curvature"``), it was the same as the one before (``"stagnated"``), it or its residual was not
        finite (``"not_finite"``). The solution is then the last good iterate, zero if there was none
    """

    solution: th.Tensor
    n_iterations: int
    residual_norms: tuple[float, ...]
    stopped_by: StoppedBy


def conjugate_gradient(
    matrix_vector_product: Callable[[th.Tensor], th.Tensor],
    rhs: th.Tensor,
    *,
    max_iterations: int = 15,
    relative_tolerance: float = 1e-5,
    agree: Callable[[th.Tensor], th.Tensor] | None = None,
) -> ConjugateGradientResult:
    r"""
    Solve :math:`A x = b` for a symmetric positive definite :math:`A`.

    Nocedal & Wright, *Numerical Optimization*, algorithm 5.2. Starts from x = 0: it draws no random number.

    :param matrix_vector_product: maps v to A v, both of shape (n,)
    :param rhs: right-hand side b, shape (n,)
    :param max_iterations: largest number of products with A
    :param relative_tolerance: stop once ``||b - A x|| <= relative_tolerance * ||b||``
    :param agree: where several processes solve the same system, what makes a number that each has computed for itself the same
        on all: inner products of equal vectors differ in their last bits from process to process
    :return: the solution and how the solve ended; what cannot go on stops it, it does not raise
    """
    x = th.zeros_like(rhs)
    residual = rhs.clone()
    direction = residual.clone()
    squared = residual @ residual
    rhs_norm = math.sqrt(float(squared))
    if rhs_norm == 0.0:
        return ConjugateGradientResult(x, 0, (0.0,), "zero_rhs")
    residual_norms = [1.0]
    stopped_by: StoppedBy = "max_iterations"

    for _ in range(max_iterations):
        product = matrix_vector_product(direction)
        p_ap = direction @ product
        alpha = squared / p_ap
        next_x = x + alpha * direction
        next_residual = residual - alpha * product
        next_squared = next_residual @ next_residual
        # Everything that decides how to go on in one go: a GPU has to be waited for each time
        facts = th.stack((p_ap, next_squared, (next_x - x).abs().amax(), squared))
        if agree is not None:
            facts = agree(facts)
            p_ap, next_squared, _, squared = facts
            next_x, next_residual = x + squared / p_ap * direction, residual - squared / p_ap * product
        curvature, residual_squared, largest_change, own_squared = facts.tolist()
        if len(residual_norms) == 1:
            rhs_norm = math.sqrt(own_squared)
        if not 0.0 < curvature < math.inf:
            stopped_by = "curvature"
            break
        if largest_change == 0.0:
            stopped_by = "stagnated"
            break
        if not (math.isfinite(residual_squared) and math.isfinite(largest_change)):
            stopped_by = "not_finite"
            break
        x, residual = next_x, next_residual
        residual_norms.append(math.sqrt(residual_squared) / rhs_norm)
        if residual_norms[-1] <= relative_tolerance:
            stopped_by = "converged"
            break
        direction = residual + (next_squared / squared) * direction
        squared = next_squared

    return ConjugateGradientResult(x, len(residual_norms) - 1, tuple(residual_norms), stopped_by)
