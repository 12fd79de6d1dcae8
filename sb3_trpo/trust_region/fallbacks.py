r"""
Fisher products for networks that cannot be differentiated twice, and the choice among the ways to make them.

Fused attention, compiled modules, some activations and recurrent layers have no second derivative: torch says so when it is
asked for one. Others have one that is wrong, which nobody says.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch as th

from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters, copies_of, flat_gradient, flatten, put, unflatten

# A way to make Fisher products: its name, and what makes the product
Way = tuple[str, Callable[[], MatrixVectorProduct]]
Result = TypeVar("Result")
# Maps a factor on the distance to central differences
Differences = Callable[[float], "CentralDifferences"]

# Two measurements that differ by more than this share measure no derivative: the network has steps, or is rounded
AGREEMENT = 0.03
# A product is contradicted from this share of it on, and from so many times the difference of two measurements
CONTRADICTION, OF_AGREEMENT = 0.02, 5.0
# As many attempts to find a distance at which the KL is small
MOST_ATTEMPTS = 12
# Beside a kink, as ReLU has, both its sides are measured, and what is right is contradicted: of small networks in one place of
# twenty. Where a gradient is not that of the network, the KL agrees with it by chance in one place of thirty. Hence a
# contradiction has to repeat
ENOUGH_PLACES, MOST_PLACES = 3, 5


class CentralDifferences:
    r"""
    Products :math:`F v \approx (\nabla \bar D_{KL}(\theta + h v) - \nabla \bar D_{KL}(\theta - h v)) / 2h`.

    Needs first derivatives only. Nocedal & Wright, *Numerical Optimization*, section 8.1. The gradient is zero at
    :math:`\theta` itself, so that the difference loses no digits. What is left is the rounding of the network, over h, and
    the third derivative, times h²: for a network in float32 about a thousandth of the product, in float64 a billionth.

    :param kl_terms: functions without argument that sum to the mean KL from the policy at θ_old, held fixed, to that at the
        present parameters, one for each chunk of the batch; the memory needed is that of a chunk
    :param parameters: the parameters θ, with the values θ_old; they are moved, and given back bit for bit. A graph made
        before a product is of no use after it
    :param shorten: factor on the distance
    """

    def __init__(self, kl_terms: Sequence[Callable[[], th.Tensor]], parameters: Parameters, *, shorten: float = 1.0):
        self.kl_terms = kl_terms
        self.parameters = parameters
        self.origin = copies_of(parameters)
        # Where rounding, over h, and truncation, times h², balance
        self.small = max(th.finfo(parameter.dtype).eps for parameter in parameters) ** (1 / 3)
        self.farthest = 0.25 * self.small * (1.0 + float(flatten(self.origin).double().norm()))
        self.shorten = shorten

    def _move(self, step: list[th.Tensor], distance: float) -> None:
        put(self.parameters, (start + distance * part for start, part in zip(self.origin, step, strict=True)))

    def _kl_and_gradient(self, step: list[th.Tensor], distance: float) -> tuple[float, th.Tensor]:
        self._move(step, distance)
        kl, total = 0.0, th.zeros((), device="cpu")
        for kl_term in self.kl_terms:
            term = kl_term()
            total = flat_gradient(term, self.parameters).add_(total.to(self.parameters[0]))
            kl += float(term.detach())
        return kl, total

    @th.no_grad()
    def _natural_length(self, step: list[th.Tensor], distance: float) -> float:
        """Return the length √(2 KL) of a step as the policy sees it."""
        self._move(step, distance)
        kl = sum(float(kl_term()) for kl_term in self.kl_terms)
        return max(2.0 * kl, 0.0) ** 0.5 if kl == kl else float("inf")

    def _distance(self, step: list[th.Tensor]) -> float:
        """Choose h for a step of length one: small beside the parameters, and small as the policy sees it."""
        distance, wanted = self.farthest, 4.0 * self.small
        for _ in range(MOST_ATTEMPTS):
            length = self._natural_length(step, distance)
            if length <= 0.5:
                # So near the KL is a parabola
                return distance * (wanted / max(length, wanted))
            distance *= max(wanted / length, 1e-3)
        return distance

    def __call__(self, vector: th.Tensor) -> th.Tensor:
        """Return F v, shape (n_params,)."""
        return self.measure(vector)[0]

    def measure(self, vector: th.Tensor) -> tuple[th.Tensor, float]:
        """Return F v, shape (n_params,), and vᵀ F v from the KL itself, without a derivative."""
        norm = vector.norm()
        if not norm > 0.0:
            return th.zeros_like(vector) * norm, 0.0 * float(norm)
        step = unflatten(vector / norm, self.parameters)
        try:
            distance = self._distance(step) * self.shorten
            (kl_ahead, ahead), (kl_behind, behind) = (self._kl_and_gradient(step, at) for at in (distance, -distance))
        finally:
            put(self.parameters, self.origin)
        curvature = (kl_ahead + kl_behind) * (float(norm) / distance) ** 2
        return (ahead - behind) * (norm / (2.0 * distance)), curvature

    def balanced(self, vector: th.Tensor) -> th.Tensor:
        """Return a vector of which every parameter's part changes the policy as much as any other's, if it changes it."""
        parts = unflatten(vector, self.parameters)
        try:
            return flatten([part * self._scale(i, part) for i, part in enumerate(parts)])
        finally:
            put(self.parameters, self.origin)

    def _scale(self, i: int, part: th.Tensor) -> float:
        step = [part / part.norm() if j == i else th.zeros_like(p) for j, p in enumerate(self.parameters)]
        distance = self._distance(step)
        length = self._natural_length(step, distance)
        # Below that it is rounding
        return distance / (length * float(part.norm())) if length > 0.01 * self.small else 0.0


class _Measurement:
    """
    What a product must be, as far as central differences can tell.

    The vector is one to which every parameter contributes: a large part would hide that a small one is missing.
    They cannot where a network has steps, and where a gradient is not that of the network on purpose (``detach``, straight
    through a rounding): what is measured then differs from distance to distance, or from what the KL itself says.
    """

    def __init__(self, differences: Differences, vector: th.Tensor):
        self.vector = differences(1.0).balanced(vector)
        self.product, curvature = differences(1.0).measure(self.vector)
        self.uncertainty = _differ_by(self.product, differences(0.5)(self.vector))
        # Away from θ_old a network may be no number at all
        self.is_finite = bool(self.product.isfinite().all()) and float(self.product.double().norm()) > 0.0
        self.is_sure = (
            self.is_finite
            and self.uncertainty <= AGREEMENT
            and abs(float(self.product.double() @ self.vector.double()) - curvature) <= AGREEMENT * curvature
        )

    def agrees(self, product: th.Tensor | None) -> bool | None:
        """Return whether a product is this one, ``None`` if not sure; one that there is not, or is not finite, is another."""
        if not self.is_sure:
            return None
        share = max(CONTRADICTION, OF_AGREEMENT * self.uncertainty)
        return product is not None and _differ_by(self.product, product) <= share


def _differ_by(expected: th.Tensor, other: th.Tensor) -> float:
    """Return the norm of the difference in units of what is expected; zero between zeros."""
    difference, size = float((other - expected).double().norm()), float(expected.double().norm())
    return difference / size if size > 0.0 else difference


@contextmanager
def somewhere_else(parameters: Parameters, generator: th.Generator) -> Iterator[None]:
    """Move parameters away for a moment: where a last layer is almost zero, what is wrong behind it does not show."""
    origin = copies_of(parameters)
    try:
        with th.no_grad():
            for parameter in parameters:
                scale = 0.3 / max(1.0, parameter.numel() / (max(1, len(parameter)) if parameter.dim() else 1)) ** 0.5
                parameter.add_(scale * th.randn(parameter.shape, generator=generator, device="cpu").to(parameter))
        yield
    finally:
        put(parameters, origin)


def first_that_works(ways: Sequence[Way], differences: Differences, parameters: Parameters) -> str:
    """
    Return the name of the first way to make Fisher products that gives one, and not one that measurements contradict.

    :param ways: in the order in which they are asked; each raises where it does not work
    :param differences: maps a factor on the distance to central differences, which decide
    :param parameters: the parameters θ; they are moved, and given back bit for bit
    :return: the name, ``""`` if none of them works
    """
    vector = _random_vector(parameters, th.Generator("cpu").manual_seed(0))
    for name, build in ways:
        # Before anything is measured: most of what does not work says so
        if _product(build, vector) is not None and not _is_contradicted(build, differences, parameters):
            return name
    return ""


def _random_vector(parameters: Parameters, generator: th.Generator) -> th.Tensor:
    return flatten([th.randn(p.shape, generator=generator, device="cpu").to(p) for p in parameters])


def _attempt(make: Callable[[], Result]) -> Result | None:
    """Return what is made, ``None`` if that fails: torch and its compilers say it in many ways, and so do distributions."""
    try:
        return make()
    except th.OutOfMemoryError:
        raise
    except Exception:
        return None


def _product(build: Callable[[], MatrixVectorProduct], vector: th.Tensor) -> th.Tensor | None:
    return _attempt(lambda: build()(vector))


def _is_contradicted(build: Callable[[], MatrixVectorProduct], differences: Differences, parameters: Parameters) -> bool:
    """Whether what is measured in random places is another product in enough of them, before it is this one in any."""
    n_contradictions = 0
    for place in range(MOST_PLACES):
        agrees = _agrees_at(place, build, differences, parameters)
        if agrees:
            return False
        n_contradictions += agrees is False
        if n_contradictions == ENOUGH_PLACES:
            return True
    return False


def _agrees_at(
    number: int, build: Callable[[], MatrixVectorProduct], differences: Differences, parameters: Parameters
) -> bool | None:
    """Return whether a product is what is measured in one place, ``None`` if there is no telling."""
    generator = th.Generator("cpu").manual_seed(number)
    vector = _random_vector(parameters, generator)
    # Parameters that have a domain, under a logarithm for one, may have left it: then it is asked where they are
    for place in (somewhere_else(parameters, generator), nullcontext()):
        with place:
            measurement = _attempt(lambda: _Measurement(differences, vector))
            if measurement is not None and measurement.is_finite:
                return measurement.agrees(_product(build, measurement.vector))
    return None
