"""Central differences are the matrix, and the way to a Fisher product that is chosen is one that is right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_trpo.trust_region import CentralDifferences, first_that_works, flatten
from sb3_trpo.trust_region.fisher import MatrixVectorProduct
from tests.cases import normal
from tests.oracles import relative_error


def bits(parameters: list[nn.Parameter]) -> th.Tensor:
    return flatten([parameter.detach().view(th.uint8) for parameter in parameters])


class Parabola:
    """KL(θ) = ½ (θ - θ_old)ᵀ F (θ - θ_old) + cubic, in two parameters, in two chunks; counts what is asked of it."""

    def __init__(self, *, cubic: float = 0.0, stiffness: float = 1.0, dtype: th.dtype = th.float64):
        root = normal(6, 6, seed=0)
        self.fisher = stiffness * root @ root.T
        start = normal(6, seed=1).to(dtype)
        self.parameters = [nn.Parameter(start[:2].clone()), nn.Parameter(start[2:].clone().reshape(2, 2))]
        self.start, self.cubic = start, cubic
        self.fail_at: int | None = None
        self.n_asked = 0

    def _half(self) -> th.Tensor:
        self.n_asked += 1
        if self.n_asked == self.fail_at:
            raise KeyboardInterrupt
        d = flatten(self.parameters).double() - self.start.double()
        return 0.25 * d @ self.fisher @ d + self.cubic * (d.sum() ** 3)

    def differences(self, shorten: float = 1.0) -> CentralDifferences:
        self.start = flatten(self.parameters).detach().clone()
        return CentralDifferences([self._half, self._half], self.parameters, shorten=shorten)


@pytest.mark.parametrize("stiffness", [1e-8, 1.0, 1e12])
def test_central_differences_of_a_parabola_are_its_matrix(stiffness: float) -> None:
    """Flat or stiff: the distance fits itself to the KL. A cubic part cancels between the two sides."""
    problem = Parabola(stiffness=stiffness, cubic=1e-9 * stiffness)
    vector = normal(6, seed=2)
    product, curvature = problem.differences().measure(vector)
    assert relative_error(product, problem.fisher @ vector) < (1e-3 if stiffness > 1.0 else 1e-6)
    assert curvature == pytest.approx(float(vector @ problem.fisher @ vector), rel=1e-3)


def test_central_differences_keep_to_where_the_kl_is_finite() -> None:
    """A policy may be another one altogether at the first distance that is tried."""
    problem = Parabola()

    def bounded() -> th.Tensor:
        d = flatten(problem.parameters) - problem.start
        return 0.5 * d @ problem.fisher @ d if float(d.detach().norm()) < 1e-7 else d.sum() * th.inf

    vector = normal(6, seed=5)
    product = CentralDifferences([bounded], problem.parameters)(vector)
    assert relative_error(product, problem.fisher @ vector) < 1e-6


def test_central_differences_of_zero_are_zero_and_of_nan_are_nan() -> None:
    problem = Parabola()
    assert th.equal(problem.differences()(th.zeros(6).double()), th.zeros(6).double()) and problem.n_asked == 0
    assert bool(problem.differences()(th.full((6,), th.nan).double()).isnan().all())
    assert th.equal(flatten(problem.parameters), problem.start)


@pytest.mark.parametrize("fail_at", range(1, 9))
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_central_differences_that_are_interrupted_give_the_parameters_back(fail_at: int, dtype: th.dtype) -> None:
    """Bit for bit, wherever it happens."""
    problem = Parabola(dtype=dtype)
    problem.fail_at = fail_at
    before = bits(problem.parameters)
    try:
        problem.differences()(normal(6, seed=3).to(dtype))
    except KeyboardInterrupt:
        pass
    assert th.equal(bits(problem.parameters), before)


def test_first_that_works_is_the_first_that_is_neither_missing_nor_wrong() -> None:
    """In the order given. An error, a NaN, zeros in one parameter's rows: each is passed over; memory is another matter."""
    problem = Parabola()
    right, start = problem.fisher, problem.start

    def way(matrix: th.Tensor) -> Callable[[], Any]:
        return lambda: lambda v: matrix @ v

    def missing() -> Any:
        raise NotImplementedError("derivative for aten::something is not implemented")

    def too_large() -> Any:
        raise th.OutOfMemoryError("no room")

    cut = right.clone()
    cut[:2] = 0.0
    wrong = [
        ("missing", missing),
        ("nan", way(right * th.nan)),
        ("zero", way(0 * right)),
        ("cut", way(cut)),
        ("twice", way(2 * right)),
    ]
    assert (
        first_that_works([*wrong, ("right", way(right)), ("later", way(right))], problem.differences, problem.parameters)
        == "right"
    )
    assert first_that_works(wrong, problem.differences, problem.parameters) == ""
    with pytest.raises(th.OutOfMemoryError):
        first_that_works([("large", too_large), ("right", way(right))], problem.differences, problem.parameters)
    assert th.equal(flatten(problem.parameters), start)


def test_parameter_that_has_left_its_domain_contradicts_nothing() -> None:
    """Away from where it is, a small scale under a root is negative, and everything NaN: then it is asked where it is."""
    scale = nn.Parameter(th.tensor([1e-3], dtype=th.float64))
    start = scale.item()

    def kl() -> th.Tensor:
        return 0.5 * ((scale.sqrt() - start**0.5) ** 2).sum()

    def product(factor: float) -> Callable[[], MatrixVectorProduct]:
        return lambda: lambda vector: factor * vector / (4.0 * scale.detach())

    def differences(shorten: float) -> CentralDifferences:
        return CentralDifferences([kl], [scale], shorten=shorten)

    with th.random.fork_rng():
        assert first_that_works([("wrong", product(2.0)), ("right", product(1.0))], differences, [scale]) == "right"
    assert scale.item() == start
