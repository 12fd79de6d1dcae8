"""The way to a Fisher product was chosen on a few states: what becomes of it where it fails on all of them."""

import math
from typing import Any

import pytest
import torch as th

from sb3_trpo.objective import DIFFERENCES, FORWARD_MODE, TWICE
from sb3_trpo.trust_region.fisher import MatrixVectorProduct
from tests.cases import make_case


@pytest.mark.parametrize("n_failing", [0, 1, 2])
@pytest.mark.parametrize("failure", ["not finite", "raised", "raised as it is made"])
def test_way_to_the_product_that_fails_on_all_states_gives_way_to_the_next(
    n_failing: int, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way is tried once, in their order; the one that is found stays, though later products are not finite."""
    problem = make_case("categorical").problem(fisher_path=TWICE)
    problem.forward_fisher = lambda *arguments: pytest.fail("not reached")
    order, made = [TWICE, FORWARD_MODE, DIFFERENCES], []

    def way(path: str, chunks: Any) -> MatrixVectorProduct:
        made.append(path)
        fails = order.index(path) < n_failing
        if fails and failure == "raised as it is made":
            raise ZeroDivisionError

        def product(vector: th.Tensor) -> th.Tensor:
            if fails and failure == "raised":
                raise ZeroDivisionError
            return vector * (math.nan if fails else 1.0 + order.index(path))

        return product

    monkeypatch.setattr(problem, "_fisher_by", way)
    product = problem.fisher_vector_product()
    ones = th.ones(3, dtype=th.float64)
    for _ in range(2):
        assert th.equal(product(ones), (1.0 + n_failing) * ones)
    assert product(math.inf * ones).isinf().all()
    assert problem.fisher_path == problem.known_path == order[n_failing] and made == order[: n_failing + 1]


@pytest.mark.parametrize("error", [th.OutOfMemoryError, KeyboardInterrupt])
def test_product_that_has_no_memory_is_not_tried_in_another_way(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no fault of the way; nor is the user who wants to stop."""
    problem = make_case("categorical").problem(fisher_path=TWICE)

    def fail(path: str, chunks: Any) -> MatrixVectorProduct:
        raise error

    monkeypatch.setattr(problem, "_fisher_by", fail)
    with pytest.raises(error):
        problem.fisher_vector_product()(th.ones(3, dtype=th.float64))
    assert problem.fisher_path == TWICE


def test_error_of_the_last_way_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the policy itself is wrong in every way."""
    problem = make_case("categorical").problem(fisher_path=TWICE)

    def fail(path: str, chunks: Any) -> MatrixVectorProduct:
        raise ZeroDivisionError(path)

    monkeypatch.setattr(problem, "_fisher_by", fail)
    with pytest.raises(ZeroDivisionError, match=DIFFERENCES):
        problem.fisher_vector_product()(th.ones(3, dtype=th.float64))
