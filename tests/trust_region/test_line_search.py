"""Backtracking: the longest of the candidates that keeps the limit and improves, or none."""

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_trpo.trust_region import backtrack
from tests.oracles import first_acceptable

Measured = Sequence[tuple[float, float]]
GOOD = (1.0, 0.005)


def replay(measured: Measured, seen: list[float] | None = None) -> Callable[[float], tuple[float, float]]:
    """Answer the calls one after the other with what was measured, whatever the fraction."""
    answers = iter(measured)

    def evaluate(fraction: float) -> tuple[float, float]:
        if seen is not None:
            seen.append(fraction)
        return next(answers)

    return evaluate


def search(measured: Measured, *, max_kl: float = 0.01) -> tuple[bool, list[str]]:
    result = backtrack(replay(measured), max_kl=max_kl, max_candidates=len(measured))
    return result.accepted, [candidate.refused_by for candidate in result.candidates]


@pytest.mark.parametrize("limit", [1.0, 0.3, 0.011, 1e-3])
def test_backtrack_takes_the_longest_step_that_keeps_the_limit(limit: float) -> None:
    """The accepted candidate satisfies both conditions and the one before it did not."""
    result = backtrack(lambda f: (f - 0.5 * f**2, f**2), max_kl=limit, shrinking_factor=0.5, max_candidates=20)
    assert result.accepted
    *refused, kept = result.candidates
    assert kept.mean_kl <= limit and kept.surrogate_gain > 0
    assert all(candidate.mean_kl > limit for candidate in refused)
    assert [candidate.refused_by for candidate in result.candidates] == ["kl"] * len(refused) + [""]


def test_backtrack_shortens_until_the_gain_is_positive() -> None:
    """The limit alone does not make a step acceptable: the surrogate must have improved."""
    result = backtrack(lambda f: (f * (0.3 - f), 1e-3 * f), max_kl=0.01, shrinking_factor=0.5)
    assert result.accepted
    assert [c.step_fraction for c in result.candidates] == [1.0, 0.5, 0.25]
    assert [c.refused_by for c in result.candidates] == ["gain", "gain", ""]


@pytest.mark.parametrize("factor", [0.8, 0.5, 0.1])
def test_backtrack_tries_the_powers_of_the_shrinking_factor(factor: float) -> None:
    """The candidates are α⁰, α¹, α², … in this order, each evaluated once, and no more of them than allowed."""
    seen: list[float] = []
    result = backtrack(replay([(-1.0, 0.0)] * 9, seen), max_kl=0.01, shrinking_factor=factor, max_candidates=6)
    assert seen == pytest.approx([factor**j for j in range(6)], rel=1e-12)
    assert seen[0] == 1.0
    assert [candidate.step_fraction for candidate in result.candidates] == seen


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("other", [0.005, 1.0, math.nan, math.inf, -math.inf])
def test_backtrack_never_accepts_what_is_not_finite(bad: float, other: float) -> None:
    """NaN or infinity in the gain or the KL refuses the candidate, whatever the other number says."""
    assert search([(bad, other), (other, bad), GOOD]) == (True, ["not_finite", "not_finite", ""])


def test_backtrack_refuses_no_gain() -> None:
    """A gain of exactly zero is none."""
    assert search([(0.0, 0.005), (-0.0, 0.005)]) == (False, ["gain", "gain"])


def test_backtrack_accepts_the_limit_itself() -> None:
    """A KL of exactly the limit is within it, the next larger number is not."""
    assert search([(1.0, 0.01)]) == (True, [""])
    assert search([(1.0, math.nextafter(0.01, 1.0))]) == (False, ["kl"])
    assert search([(5e-324, 0.01)]) == (True, [""])


def test_backtrack_refuses_a_negative_kl_that_is_more_than_rounding() -> None:
    """A KL below zero is rounding; where that is larger than the limit, the limit has not been measured."""
    assert search([(1.0, -1e-9), GOOD]) == (True, [""])
    assert search([(1.0, -0.01)]) == (True, [""])
    assert search([(1.0, math.nextafter(-0.01, -1.0)), (1.0, -5.0), GOOD]) == (True, ["kl", "kl", ""])


def test_backtrack_says_what_was_wrong() -> None:
    """Every reason has its name, both together theirs."""
    measured = [(math.nan, 0.005), (1.0, 0.02), (-1.0, 0.005), (-1.0, 0.02), GOOD]
    assert search(measured) == (True, ["not_finite", "kl", "gain", "kl+gain", ""])


def test_backtrack_that_finds_nothing_shows_all_that_it_tried() -> None:
    """Where every candidate is refused nothing is accepted and all of them are reported."""
    measured = [(-0.1 * j, 0.02 * j) for j in range(7)]
    result = backtrack(replay(measured), max_kl=0.01, max_candidates=7)
    assert not result.accepted
    assert [(c.surrogate_gain, c.mean_kl) for c in result.candidates] == measured
    assert all(c.refused_by for c in result.candidates)


def test_backtrack_lets_an_exception_through() -> None:
    """What the measurement raises is the caller's to see."""

    def evaluate(fraction: float) -> tuple[float, float]:
        raise ZeroDivisionError(str(fraction))

    with pytest.raises(ZeroDivisionError, match=r"1\.0"):
        backtrack(evaluate, max_kl=0.01)


numbers = st.one_of(
    st.floats(-1.0, 1.0), st.sampled_from([0.0, -0.0, 0.01, math.nextafter(0.01, 1.0), math.nan, math.inf, -math.inf, 5e-324])
)


@given(measured=st.lists(st.tuples(numbers, numbers), max_size=12), factor=st.floats(0.05, 0.95))
def test_backtrack_accepts_the_first_that_the_trust_region_allows(measured: Measured, factor: float) -> None:
    """Whatever is measured, the result is that of a plain search, and the last evaluation is the accepted one."""
    seen: list[float] = []
    result = backtrack(replay(measured, seen), max_kl=0.01, shrinking_factor=factor, max_candidates=len(measured))
    expected = first_acceptable(measured, 0.01)
    assert result.accepted == (expected is not None)
    assert len(result.candidates) == len(seen) == (len(measured) if expected is None else expected + 1)
    assert [c.step_fraction for c in result.candidates] == seen
    refused, kept = (result.candidates[:-1], result.candidates[-1]) if result.accepted else (result.candidates, None)
    assert all(candidate.refused_by for candidate in refused)
    assert kept is None or (kept.refused_by == "" and (kept.surrogate_gain, kept.mean_kl) == measured[len(seen) - 1])
