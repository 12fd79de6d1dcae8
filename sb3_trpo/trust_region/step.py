"""One trust-region step: gradient -> direction -> length -> search."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch as th

from sb3_trpo.trust_region.conjugate_gradient import ConjugateGradientResult, conjugate_gradient
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters, copies_of, put, unflatten
from sb3_trpo.trust_region.line_search import Candidate, LineSearchResult, backtrack


class TrustRegionProblem(Protocol):
    """What the step must be able to ask of the problem: maximise the surrogate with the mean KL inside a limit."""

    @property
    def parameters(self) -> Parameters:
        """The variables θ; the step moves them in place."""

    def surrogate_gradient(self) -> tuple[float, th.Tensor]:
        """Return L(θ_old) and g = ∇L there, shape (n_params,)."""

    def fisher_vector_product(self) -> MatrixVectorProduct:
        """Return v -> F v at θ_old, both of shape (n_params,)."""

    def evaluate(self) -> tuple[float, float]:
        """Return (L(θ), mean KL(old || θ)) at the present value of the parameters."""


class TrustRegionStep(NamedTuple):
    """
    What one step did.

    :param status: ``"accepted"``, or why every parameter is bit for bit what it was: ``"parameters_not_finite"``,
        ``"gradient_not_finite"``, ``"gradient_zero"``, ``"limit_zero"``, ``"curvature_not_positive"``,
        ``"direction_not_ascent"``, ``"line_search_failed"``, or what a caller found.
        The defaults of all that follows are those of a step that was not taken
    :param surrogate: L(θ) at the parameters kept
    :param surrogate_gain: measured L(θ) - L(θ_old) of the step kept, 0 if none was
    :param expected_gain: g · step for the same step, 0 if none was kept
    :param mean_kl: measured mean KL(old || new) of the step kept, in nats, 0 if none was
    :param expected_kl: ½ stepᵀ F step for the same step, in nats, 0 if none was kept
    :param step_fraction: share of the full step that was kept, 0 if none was
    :param gradient_norm: ||g||
    :param step_norm: ||step|| of the step kept, 0 if none was
    :param full_step_gain: g · full_step; times a candidate's fraction it is that candidate's expected gain. NaN if no line
        search was reached
    :param candidates: what the line search tried, longest first
    :param conjugate_gradient: the direction's solve, ``None`` if it was not reached
    """

    status: str
    surrogate: float = math.nan
    surrogate_gain: float = 0.0
    expected_gain: float = 0.0
    mean_kl: float = 0.0
    expected_kl: float = 0.0
    step_fraction: float = 0.0
    gradient_norm: float = math.nan
    step_norm: float = 0.0
    full_step_gain: float = math.nan
    candidates: tuple[Candidate, ...] = ()
    conjugate_gradient: ConjugateGradientResult | None = None

    @property
    def accepted(self) -> bool:
        """Whether the parameters moved."""
        return self.status == "accepted"


def are_finite(parameters: Parameters) -> bool:
    """Whether no number of any parameter is NaN or infinite."""
    return all(bool(parameter.isfinite().all()) for parameter in parameters)


def _search(problem: TrustRegionProblem, surrogate: float, full_step: th.Tensor, **limits: Any) -> LineSearchResult:
    """Move the parameters to the candidate that is accepted; without one, or if anything is raised, they stay."""
    parameters = problem.parameters
    origin = copies_of(parameters)
    step = unflatten(full_step, parameters)

    def evaluate(fraction: float) -> tuple[float, float]:
        put(parameters, (start + fraction * part for start, part in zip(origin, step, strict=True)))
        if not are_finite(parameters):
            return math.nan, math.nan
        new_surrogate, mean_kl = problem.evaluate()
        return new_surrogate - surrogate, mean_kl

    accepted = False
    try:
        result = backtrack(evaluate, **limits)
        accepted = result.accepted
        return result
    finally:
        if not accepted:
            put(parameters, origin)


def trust_region_step(
    problem: TrustRegionProblem,
    *,
    max_kl: float,
    damping: float | th.Tensor,
    cg_max_iterations: int = 15,
    cg_relative_tolerance: float = 1e-5,
    shrinking_factor: float = 0.8,
    max_candidates: int = 10,
    agree: Callable[[th.Tensor], th.Tensor] | None = None,
    phase: Callable[[str], None] = lambda name: None,
) -> TrustRegionStep:
    r"""
    Move the parameters to the best point that the trust region allows along the natural gradient, or leave them.

    .. math::
        \theta \leftarrow \theta + \alpha^j \sqrt{\frac{2 \delta}{s^T F s}} \, s, \qquad (F + \beta I) \, s = g

    Schulman et al., *Trust Region Policy Optimization*, section 6 and appendix C. The damping β shapes the direction s only:
    the radius is that of F itself, so that the step spends the whole budget δ of its quadratic model.

    :param problem: surrogate and KL at the parameters' present values
    :param max_kl: δ, limit on the mean KL, in nats; at zero there is no step
    :param damping: β, added to the diagonal of F for the direction: a number, or one for each variable, shape (n_params,)
    :param cg_max_iterations: largest number of conjugate gradient iterations
    :param cg_relative_tolerance: relative residual at which they stop
    :param shrinking_factor: α of the line search
    :param max_candidates: largest number of candidates of the line search
    :param agree: where several processes solve the same problem, what makes a tensor that each has computed for itself the
        same on all, so that they take the same decisions and the same step
    :param phase: called with the name of each phase as it begins (``"gradient"``, ``"direction"``, ``"line_search"``)
    :return: what was done. Unless it was accepted, every parameter is bit for bit what it was, also when an exception
        leaves this function
    """
    phase("gradient")
    parameters = problem.parameters
    if not are_finite(parameters):
        return TrustRegionStep("parameters_not_finite")
    surrogate, gradient = problem.surrogate_gradient()
    norm = gradient.double().norm()
    gradient_norm = float(norm if agree is None else agree(norm))
    refused = partial(TrustRegionStep, surrogate=surrogate, gradient_norm=gradient_norm)
    if not (math.isfinite(gradient_norm) and math.isfinite(surrogate)):
        return refused("gradient_not_finite")
    if gradient_norm == 0.0:
        return refused("gradient_zero")
    if max_kl == 0.0:
        return refused("limit_zero")

    phase("direction")
    fisher_product = problem.fisher_vector_product()
    # The step does not depend on the length of g: with a unit vector nothing over- or underflows on the way to it
    unit_gradient = gradient / gradient_norm
    solve = conjugate_gradient(
        lambda vector: fisher_product(vector) + damping * vector,
        unit_gradient,
        max_iterations=cg_max_iterations,
        relative_tolerance=cg_relative_tolerance,
        agree=agree,
    )
    natural_gradient = solve.solution
    facts = th.stack((natural_gradient @ fisher_product(natural_gradient), unit_gradient @ natural_gradient))
    if agree is not None:
        # The direction too: processors differ in how they round
        natural_gradient, facts = agree(th.cat((natural_gradient, facts))).split((len(natural_gradient), len(facts)))
    curvature, ascent = facts.tolist()
    if not 0.0 < curvature < math.inf:
        return refused("curvature_not_positive", conjugate_gradient=solve)
    if not ascent > 0.0:
        return refused("direction_not_ascent", conjugate_gradient=solve)
    full_step = math.sqrt(2.0 * max_kl / curvature) * natural_gradient
    full_step_gain = gradient_norm * float(unit_gradient @ full_step)

    phase("line_search")
    accepted, candidates = _search(
        problem, surrogate, full_step, max_kl=max_kl, shrinking_factor=shrinking_factor, max_candidates=max_candidates
    )
    if not accepted:
        return refused("line_search_failed", full_step_gain=full_step_gain, candidates=candidates, conjugate_gradient=solve)
    kept = candidates[-1]
    return TrustRegionStep(
        status="accepted",
        surrogate=surrogate + kept.surrogate_gain,
        surrogate_gain=kept.surrogate_gain,
        expected_gain=kept.step_fraction * full_step_gain,
        mean_kl=kept.mean_kl,
        expected_kl=kept.step_fraction**2 * max_kl,
        step_fraction=kept.step_fraction,
        gradient_norm=gradient_norm,
        step_norm=kept.step_fraction * float(full_step.double().norm()),
        full_step_gain=full_step_gain,
        candidates=candidates,
        conjugate_gradient=solve,
    )
