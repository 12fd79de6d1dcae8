"""The distance of the step: shorten it until the measured KL and the measured gain agree to it."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Candidate(NamedTuple):
    """
    One step length that the line search tried.

    :param step_fraction: share of the full step
    :param surrogate_gain: measured surrogate minus that of the old policy
    :param mean_kl: measured mean KL(old || new), in nats
    :param refused_by: ``""`` if it was accepted, else what was wrong: ``"not_finite"``, ``"kl"``, ``"gain"`` or ``"kl+gain"``
    """

    step_fraction: float
    surrogate_gain: float
    mean_kl: float
    refused_by: str


class LineSearchResult(NamedTuple):
    """
    How a line search ended: the last candidate is the accepted one, if any is.

    :param accepted: whether a candidate satisfied both conditions
    :param candidates: what was tried, longest step first
    """

    accepted: bool
    candidates: tuple[Candidate, ...]


def _refusal(surrogate_gain: float, mean_kl: float, max_kl: float) -> str:
    """Name what is wrong with a candidate; written so that NaN is refused."""
    if not (math.isfinite(surrogate_gain) and math.isfinite(mean_kl)):
        return "not_finite"
    # A KL can be negative by its rounding alone; where that is larger than the limit, it measures nothing
    return "+".join(name for name, holds in (("kl", abs(mean_kl) <= max_kl), ("gain", surrogate_gain > 0.0)) if not holds)


def backtrack(
    evaluate: Callable[[float], tuple[float, float]],
    *,
    max_kl: float,
    shrinking_factor: float = 0.8,
    max_candidates: int = 10,
) -> LineSearchResult:
    r"""
    Find the smallest j for which the step :math:`\alpha^j` keeps the trust region and improves the surrogate.

    Schulman et al., *Trust Region Policy Optimization*, appendix C. Both conditions are measured, not predicted.

    :param evaluate: maps a step fraction to (surrogate gain, mean KL) of the policy there; on return of this function the
        last fraction evaluated is the accepted one, if any is
    :param max_kl: limit on the mean KL, in nats
    :param shrinking_factor: :math:`\alpha`, in (0, 1)
    :param max_candidates: largest number of candidates
    :return: every candidate tried and whether the last one is accepted
    """
    candidates: list[Candidate] = []
    for j in range(max_candidates):
        step_fraction = shrinking_factor**j
        surrogate_gain, mean_kl = evaluate(step_fraction)
        candidates.append(Candidate(step_fraction, surrogate_gain, mean_kl, _refusal(surrogate_gain, mean_kl, max_kl)))
        if not candidates[-1].refused_by:
            return LineSearchResult(True, tuple(candidates))
    return LineSearchResult(False, tuple(candidates))
