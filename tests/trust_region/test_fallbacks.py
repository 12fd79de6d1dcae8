"""Central differences are the matrix, and the way to a Fisher product that is chosen is one that is right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_trpo.trust_region import CentralDifferences, first_that_works, flatten
from sb3_trpo.trust_region.fallbacks import somewhere_else
from sb3_trpo.trust_region.fisher import MatrixVectorProduct
from tests.cases import normal
from tests.oracles import relative_error


def bits(parameters: list[nn.Parameter]) -> th.Tensor:
    return flatten([parameter.detach().view(th.uint8) for parameter in parameters])


def way(matrix: th.Tensor) -> Callable[[], Any]:
    return lambda: lambda v: matrix @ v


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


@pytest.mark.parametrize("stiffness", [1e-2, 1.0, 1e6])
def test_balanced_vector_moves_the_policy_equally_by_each_parameter(stiffness: float) -> None:
    """By a length √(2 KL) of one, in the direction that it had; what the policy does not depend on is left out."""
    problem = Parabola(stiffness=stiffness)
    unused = nn.Parameter(normal(3, seed=4))
    differences = CentralDifferences([lambda: problem._half() + 0.0 * unused.sum()] * 2, [*problem.parameters, unused])
    vector = normal(9, seed=5)
    balanced = differences.balanced(vector)
    assert not balanced[6:].any() and th.equal(flatten(problem.parameters), problem.start)
    for rows in (slice(0, 2), slice(2, 6)):
        part, block = balanced[rows], problem.fisher[rows, rows]
        assert float(part @ block @ part) == pytest.approx(1.0, rel=1e-2)
        assert relative_error(part / part.norm(), vector[rows] / vector[rows].norm()) < 1e-12


@pytest.mark.parametrize("stiffness", [1.0, 1e6, 1e12])
def test_central_differences_are_taken_where_the_kl_is_a_parabola_still(stiffness: float) -> None:
    """Near θ, and near as the policy sees it; yet so far that the KL is more than its own rounding."""
    problem, distances, lengths = Parabola(stiffness=stiffness), [], []

    def kl() -> th.Tensor:
        value = 2.0 * problem._half()
        if th.is_grad_enabled():
            distances.append(float((flatten(problem.parameters).detach() - problem.start).norm()))
            lengths.append((2.0 * float(value.detach())) ** 0.5)
        return value

    vector = normal(6, seed=5)
    for shorten in (1.0, 0.5):
        product = CentralDifferences([kl], problem.parameters, shorten=shorten)(vector)
        assert relative_error(product, problem.fisher @ vector) < 1e-3
    assert len(lengths) == 4 and max(distances) < 1e-4 and 1e-6 < min(lengths) <= max(lengths) < 1e-4
    assert distances[2:] == pytest.approx([0.5 * distance for distance in distances[:2]], rel=1e-3)


@pytest.mark.parametrize("stiffness", [1e-3, 1.0, 1e12])
def test_first_that_works_is_the_first_that_is_neither_missing_nor_wrong(stiffness: float) -> None:
    """In the order given. An error, a NaN, zeros in one parameter's rows: each is passed over; memory is another matter."""
    problem = Parabola(stiffness=stiffness)
    right, start = problem.fisher, problem.start
    of_the_process = th.get_rng_state()

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
        ("a tenth too much", way(1.1 * right)),
    ]
    assert (
        first_that_works([*wrong, ("right", way(right)), ("later", way(right))], problem.differences, problem.parameters)
        == "right"
    )
    assert first_that_works(wrong, problem.differences, problem.parameters) == ""
    with pytest.raises(th.OutOfMemoryError):
        first_that_works([("large", too_large), ("right", way(right))], problem.differences, problem.parameters)
    assert th.equal(flatten(problem.parameters), start) and th.equal(th.get_rng_state(), of_the_process)


class Kinked:
    """KL(θ) = ½ |y - y_old|² of a network with leaky ReLU: F = Jᵀ J is right wherever it is asked."""

    def __init__(self, seed: int):
        self.inputs = normal(16, 3, seed=seed).float()
        self.parameters = [
            nn.Parameter(normal(*shape, seed=seed + i).float()) for i, shape in enumerate([(8, 3), (8, 8), (2, 8)], 1)
        ]

    def outputs(self, *parameters: th.Tensor) -> th.Tensor:
        first, second, last = parameters
        hidden = nn.functional.leaky_relu(self.inputs @ first.T, 0.3)
        return (nn.functional.leaky_relu(hidden @ second.T, 0.3) @ last.T).reshape(-1)

    def way(self, factor: float = 1.0) -> Callable[[], MatrixVectorProduct]:
        def product() -> MatrixVectorProduct:
            jacobians = th.autograd.functional.jacobian(self.outputs, tuple(self.parameters))
            jacobian = th.cat([part.reshape(len(part), -1) for part in jacobians], 1)
            return lambda vector: factor * (jacobian.T @ (jacobian @ vector))

        return product

    def differences(self, shorten: float = 1.0) -> CentralDifferences:
        old = self.outputs(*self.parameters).detach()
        return CentralDifferences(
            [lambda: 0.5 * ((self.outputs(*self.parameters) - old) ** 2).sum()], self.parameters, shorten=shorten
        )


def test_kink_near_one_place_contradicts_nothing() -> None:
    """There both sides of it are measured, and one is right; and what is wrong is wrong in other places too."""
    found = set()
    for seed in range(0, 400, 4):
        problem = Kinked(seed)
        ways = [("half too much", problem.way(1.5)), ("right", problem.way()), ("later", problem.way())]
        found.add(first_that_works(ways, problem.differences, problem.parameters))
    assert found == {"right"}


def test_policy_that_does_not_move_contradicts_no_way() -> None:
    """Zero is not a measurement: the first way that gives a product is taken."""
    problem = Parabola(stiffness=0.0)

    def missing() -> MatrixVectorProduct:
        raise NotImplementedError

    ways = [("missing", missing), ("zero", way(problem.fisher))]
    assert first_that_works(ways, problem.differences, problem.parameters) == "zero"


class Bent(th.autograd.Function):
    """A number with a gradient that is not its own."""

    @staticmethod
    def forward(ctx: Any, value: th.Tensor, gradient: th.Tensor, at: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: th.Tensor) -> Any:
        return None, None, factor * ctx.saved_tensors[0]


@pytest.mark.parametrize(
    ("of_the_kl", "of_the_gradient", "of_half_the_distance"), [(1.0, 1.0, 1.1), (1.5, 1.0, 1.0), (1.0, 1.1, 1.1)]
)
def test_measurement_that_contradicts_itself_contradicts_no_way(
    of_the_kl: float, of_the_gradient: float, of_half_the_distance: float
) -> None:
    """Gradients at two distances, and the KL itself: where they disagree, whoever wrote the network has said what counts."""
    problem = Parabola()

    def differences(shorten: float) -> CentralDifferences:
        start = flatten(problem.parameters).detach().clone()
        share = of_half_the_distance if shorten < 1.0 else of_the_gradient

        def kl() -> th.Tensor:
            at = flatten(problem.parameters)
            pull = problem.fisher @ (at - start).detach()
            return Bent.apply(0.5 * of_the_kl * (at - start).detach() @ pull, share * pull, at)

        return CentralDifferences([kl], problem.parameters, shorten=shorten)

    ways = [("any", way(2.0 * problem.fisher))]
    assert first_that_works(ways, differences, problem.parameters) == "any"
    assert first_that_works(ways, problem.differences, problem.parameters) == ""


def test_parameter_that_has_left_its_domain_contradicts_nothing() -> None:
    """Away from where it is, a small scale under a root is negative, and everything NaN: then it is asked where it is."""
    scale = nn.Parameter(th.tensor([1e-3], dtype=th.float64))
    start = scale.item()

    def product(factor: float) -> Callable[[], MatrixVectorProduct]:
        return lambda: lambda vector: factor * vector / (4.0 * scale.detach())

    def differences(shorten: float) -> CentralDifferences:
        old = scale.detach().sqrt()
        return CentralDifferences([lambda: 0.5 * ((scale.sqrt() - old) ** 2).sum()], [scale], shorten=shorten)

    with th.random.fork_rng():
        assert first_that_works([("wrong", product(2.0)), ("right", product(1.0))], differences, [scale]) == "right"
    assert scale.item() == start


@pytest.mark.parametrize("shape", [(0, 4), (0,), (3, 0)])
def test_empty_parameter_is_moved_nowhere(shape: tuple[int, ...]) -> None:
    """One head of several may have no outputs."""
    parameters = [nn.Parameter(th.zeros(shape)), nn.Parameter(th.zeros(2))]
    with somewhere_else(parameters, th.Generator("cpu").manual_seed(0)):
        assert parameters[0].shape == shape and bool((parameters[1] != 0.0).all())
    assert bool((parameters[1] == 0.0).all())
