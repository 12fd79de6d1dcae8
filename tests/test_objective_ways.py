"""The ways to a Fisher product: which one is chosen on a few states, and what becomes of it where it fails on all of them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_trpo.fast.forward_mode import forward_mode_fisher
from sb3_trpo.objective import DIFFERENCES, FORWARD_MODE, N_TRIED, TWICE, Batch, PolicyProblem
from sb3_trpo.trust_region.fisher import MatrixVectorProduct
from tests.cases import PolicyCase, WithoutSecondDerivative, make_case, normal
from tests.oracles import dense_fisher, relative_error

# What torch says of itself when forward mode is asked for the first time
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")


def with_forward_mode(case: PolicyCase, **kwargs: Any) -> tuple[PolicyProblem, list[int]]:
    """Return a problem that has every way, and what notes of how many states forward mode was asked."""
    asked: list[int] = []

    def forward(chunks: Sequence[Batch], *rest: Any) -> MatrixVectorProduct:
        asked.append(sum(len(chunk.weights) for chunk in chunks))
        return forward_mode_fisher(case.policy, chunks, *rest)

    return case.problem(forward_fisher=forward, **kwargs), asked


def check_product(problem: PolicyProblem, case: PolicyCase) -> None:
    """Hold a product against the dense matrix."""
    observations = case.batch.observations
    assert isinstance(observations, th.Tensor)
    dense = dense_fisher(case.policy, observations, case.batch.weights, case.parameters)
    vector = normal(len(dense), seed=1)
    assert relative_error(problem.fisher_vector_product()(vector), dense @ vector) < 1e-6


class Sine(WithoutSecondDerivative):
    """The same with a forward mode."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        ctx.save_for_forward(x)
        return WithoutSecondDerivative.forward(ctx, x)

    @staticmethod
    def jvp(ctx: Any, tangent: th.Tensor) -> th.Tensor:
        return tangent * ctx.saved_tensors[0].cos()


class Once(nn.Module):
    """The layer of it."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return Sine.apply(x)


class Stairs(nn.Module):
    """The staircase that is quantized on purpose, and learned through as if it were straight."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x + ((4 * x).round() / 4 - x).detach()


# In chunks, the first of which has fewer states than are tried
@pytest.mark.untraced
@pytest.mark.parametrize(("activation", "chunk_size"), [(nn.Tanh, None), (nn.Tanh, 7), (Once, None), (Once, 7)])
@pytest.mark.parametrize("has_forward_mode", [False, True])
def test_way_that_is_found_is_the_first_that_is_right(
    activation: type[nn.Module], chunk_size: int | None, has_forward_mode: bool
) -> None:
    """On a few states, and without forward mode where nobody offers it; the product is that of all of them."""
    case = make_case("diag_gaussian", n=20, activation_fn=activation)
    problem, asked = with_forward_mode(case, chunk_size=chunk_size)
    if not has_forward_mode:
        problem.forward_fisher = None
    check_product(problem, case)
    expected = TWICE if activation is nn.Tanh else FORWARD_MODE if has_forward_mode else DIFFERENCES
    assert problem.fisher_path == problem.known_path == expected
    n_tried = min(N_TRIED, chunk_size or 20)
    assert asked == ([n_tried, n_tried, 20] if expected == FORWARD_MODE else [])


@pytest.mark.parametrize("path", [TWICE, FORWARD_MODE, DIFFERENCES])
def test_way_that_is_known_is_taken_and_no_other(path: str) -> None:
    case = make_case("categorical", n=20)
    problem, asked = with_forward_mode(case, chunk_size=7, fisher_path=path)
    check_product(problem, case)
    assert problem.fisher_path == path
    assert asked == ([20] if path == FORWARD_MODE else [])


def test_network_that_is_measured_differently_at_other_distances_is_believed() -> None:
    """Stairs have no derivative that differences could measure."""
    case = make_case("diag_gaussian", n=20, activation_fn=Stairs)
    problem, _ = with_forward_mode(case)
    problem.fisher_vector_product()
    assert problem.fisher_path == TWICE


@pytest.mark.parametrize("path", [TWICE, FORWARD_MODE, DIFFERENCES])
def test_random_network_has_the_same_noise_in_every_product(path: str) -> None:
    """Else F would be no matrix. The generator of the process stays where it was; a network that is not random may draw."""
    case = make_case("diag_gaussian", n=20)

    def noisy(batch: Batch) -> Any:
        assert isinstance(batch.observations, th.Tensor)
        return case.distribution_of(batch._replace(observations=batch.observations + th.randn_like(batch.observations)))

    for is_random in (True, False):
        problem = PolicyProblem(
            noisy,
            case.batch,
            case.parameters,
            fisher_path=path,
            is_random=is_random,
            forward_fisher=partial(forward_mode_fisher, case.policy),
        )
        vector = normal(sum(p.numel() for p in case.parameters), seed=1)
        state = th.get_rng_state()
        first, second = (problem.fisher_vector_product()(vector) for _ in range(2))
        assert th.equal(th.get_rng_state(), state) == is_random
        assert th.equal(first, second) == is_random


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
