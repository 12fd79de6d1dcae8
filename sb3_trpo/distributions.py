"""
Action distributions to any depth: copies without a graph or in float64, and what they are made of.

An SB3 distribution holds one of torch's, or several. Each of them may hold others, transforms, and values it has computed.
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from types import MemberDescriptorType
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from torch import nn
from torch.distributions.utils import lazy_property

TorchDistribution = th.distributions.Distribution
Transform = th.distributions.transforms.Transform
T = TypeVar("T")

# What a transform keeps for speed: its last input and output, and its inverse, which refers back to it
OF_NO_ACCOUNT = ("_cached_x_y", "_inv")


def is_torchs_own(kind: type) -> bool:
    """Whether a class of distribution is one of torch's: of the user's own there is more to compute than is known here."""
    return kind.__module__.startswith("torch.distributions.")


def _has_parts(value: Any) -> bool:
    """Whether something is a distribution, a transform, or a record of such things and of tensors."""
    known = Distribution | TorchDistribution | Transform
    if isinstance(value, known):
        return True
    if isinstance(value, nn.Module | type) or not hasattr(value, "__dict__"):
        return False
    return any(isinstance(part, th.Tensor | known) for part in vars(value).values())


def _parts(value: Any) -> Iterator[Any]:
    """Yield what an object is made of, as far as it may hold a tensor."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, nn.Module) and not isinstance(value, Distribution | TorchDistribution):
        yield from value.parameters()
    elif _has_parts(value):
        yield from (part for name, part in vars(value).items() if name not in OF_NO_ACCOUNT or _is_inverse(value))
        yield from (part for _, part in _in_slots(value))


def _in_slots(value: Any) -> Iterator[tuple[MemberDescriptorType, Any]]:
    """Yield what an object has in the slots of its classes, with these."""
    for kind in type(value).__mro__:
        for slot in vars(kind).values() if "__slots__" in vars(kind) else ():
            if isinstance(slot, MemberDescriptorType):
                try:
                    yield slot, slot.__get__(value)
                except AttributeError:
                    pass  # not set


def _shallow_copy(value: T) -> T:
    """Return an object with the same attributes; without asking the object, which may answer for another one."""
    try:
        new = object.__new__(type(value))
    except TypeError:
        return copy.copy(value)  # of a class that is not Python's own
    vars(new).update(vars(value))
    for slot, part in _in_slots(value):
        slot.__set__(new, part)
    return new


def _is_inverse(value: Any) -> bool:
    """Whether a transform is the inverse of another one, and made of it."""
    return isinstance(value, th.distributions.transforms._InverseTransform)


def _moves(value: Any, seen: set[int] | None = None) -> bool:
    """Whether something depends on what can be trained."""
    if isinstance(value, th.Tensor):
        # A view made without gradients is still the memory of its parameter
        return value.requires_grad or (value._base is not None and value._base.requires_grad)
    seen = set() if seen is None else seen
    if id(value) in seen:
        return False
    seen.add(id(value))
    return any(_moves(part, seen) for part in _parts(value))


class _Copy:
    """
    One copy of a distribution and of everything in it; what occurs twice is copied once.

    Of a transform, and of a module, only what can be trained is copied. Torch takes two transforms that it cannot compare for
    the same if they are one object.

    :param of_tensor: what becomes of each tensor
    :param double: whether torch's own distributions, the closed forms of which are known, shall compute in float64
    :param share: whether transforms and modules stay what they are, trainable or not
    """

    def __init__(self, of_tensor: Callable[[th.Tensor], th.Tensor], *, double: bool = False, share: bool = False):
        self.of_tensor = of_tensor
        self.double = double
        self.share = share
        self.done: dict[tuple[int, bool, bool], Any] = {}

    def __call__(self, value: T) -> T:
        """Return the copy."""
        return self._copy(value, False)

    def _copy(self, value: Any, double: bool, *, inside: bool = False) -> Any:
        """
        Copy a part.

        :param value: the part
        :param double: whether its tensors are those of a distribution that shall compute in float64
        :param inside: whether it is part of a torch distribution, and not of the SB3 distribution around it
        """
        inside = inside or isinstance(value, TorchDistribution)
        # A module that the SB3 distribution holds too is one that makes distributions there, and a part of them here
        key = id(value), double, inside
        if key not in self.done:
            self.done[key] = value
            if isinstance(value, th.Tensor):
                self.done[key] = self._tensor(value, double)
            elif isinstance(value, Distribution | TorchDistribution):
                self._object(key, value, double, inside=inside)
            elif isinstance(value, nn.Module):
                if inside and not self.share and _moves(value):
                    self.done[key] = copy.deepcopy(value).requires_grad_(False)
            elif isinstance(value, Transform):
                if not self.share and _moves(value):
                    self._object(key, value, double, inside=True)
            elif isinstance(value, list | tuple | dict):
                self._container(key, value, double, inside=inside)
            elif _has_parts(value):
                self._object(key, value, double, inside=inside)
        return self.done[key]

    def _tensor(self, tensor: th.Tensor, double: bool) -> th.Tensor:
        value = self.of_tensor(tensor)
        return value.double() if double and value.is_floating_point() else value

    def _container(self, key: tuple[int, bool, bool], value: Any, double: bool, *, inside: bool) -> None:
        if isinstance(value, tuple):
            if type(value) is not th.Size:
                items = [self._copy(item, double, inside=inside) for item in value]
                self.done[key] = type(value)(*items) if hasattr(value, "_fields") else tuple(items)
            return
        new = self.done[key] = copy.copy(value)
        for name in new if isinstance(new, dict) else range(len(new)):
            new[name] = self._copy(new[name], double, inside=inside)

    def _object(self, key: tuple[int, bool, bool], value: Any, double: bool, *, inside: bool) -> None:
        new = self.done[key] = _shallow_copy(value)
        if isinstance(value, TorchDistribution):
            double = self.double and is_torchs_own(type(value))
        forgotten = _derived(value) if double else set()
        for name, part in vars(value).items():
            if name in forgotten:
                del vars(new)[name]
            elif name == "_cached_x_y":
                vars(new)[name] = (None, None)
            elif name != "_inv" or _is_inverse(value):
                vars(new)[name] = self._copy(part, double, inside=inside)
        for slot, part in _in_slots(value):
            slot.__set__(new, self._copy(part, double, inside=inside))
        if double and type(value) is th.distributions.Categorical:
            _normalize(new)


def _derived(distribution: Any) -> set[str]:
    """Name what one of torch's distributions has computed from its arguments, and will again when it is asked."""
    kind = type(distribution)
    lazy = {name for name in vars(distribution) if isinstance(inspect.getattr_static(kind, name, None), lazy_property)}
    if {"probs", "logits"} <= lazy:
        # One of the two is the argument
        is_argument = vars(distribution).get("_param") is vars(distribution)["probs"]
        return lazy - {"probs" if is_argument else "logits"}
    return lazy - {"probs", "logits"}


def _normalize(categorical: Any) -> None:
    """Do in float64 what was done in float32: a normalised logit of ten thousand is rounded to a thousandth there."""
    name = "logits" if "logits" in vars(categorical) else "probs"
    value = vars(categorical)[name]
    total = value.logsumexp(dim=-1, keepdim=True) if name == "logits" else value.sum(dim=-1, keepdim=True)
    vars(categorical)[name] = categorical._param = value - total if name == "logits" else value / total


def _without_graph(tensor: th.Tensor) -> th.Tensor:
    return tensor.detach().clone()


def _elsewhere(tensor: th.Tensor) -> th.Tensor:
    value = _without_graph(tensor)
    return value + 1e-3 * (1.0 + value.abs()) if tensor.requires_grad else value


def copied(distribution: Distribution) -> Distribution:
    """Return a copy of an SB3 action distribution with its graph: SB3 hands out the same object each time."""
    return _Copy(lambda tensor: tensor, share=True)(distribution)


def detached(distribution: Distribution) -> Distribution:
    """Return a copy of an SB3 action distribution that has no graph and stays what it is when the policy changes."""
    return _Copy(_without_graph)(distribution)


def moved(distribution: Distribution) -> Distribution:
    """Return a copy without a graph in which every tensor that depends on the policy has another value."""
    return _Copy(_elsewhere)(distribution)


def in_double(distribution: Distribution) -> Distribution:
    """
    Return a copy of an SB3 action distribution, with its graph, that computes in float64.

    What is built of the user's own classes is left as it is.
    """
    return _Copy(lambda tensor: tensor, double=True, share=True)(distribution)


def frozen(distribution: Distribution) -> Distribution:
    """Return a copy of an SB3 action distribution to measure with: without a graph, and in float64."""
    return _Copy(_without_graph, double=True)(distribution)


def selected(distribution: Distribution, rows: th.Tensor, n: int) -> Distribution:
    """Return a copy of an SB3 action distribution for n states, with its graph, of some of them."""
    of_some = _Copy(lambda tensor: tensor[rows] if tensor.shape[:1] == (n,) else tensor, share=True)(distribution)
    to_visit = list(factors_of(of_some))
    while to_visit:
        part = to_visit.pop()
        if part._batch_shape[:1] == (n,):
            part._batch_shape = th.Size((len(rows), *part._batch_shape[1:]))
        to_visit.extend(within for within in vars(part).values() if isinstance(within, TorchDistribution))
    return of_some


def tensors_of(distribution: Distribution) -> list[th.Tensor]:
    """List the tensors of floats that an SB3 action distribution is made of, in an order that the policy does not change."""
    tensors: list[th.Tensor] = []

    def note(tensor: th.Tensor) -> th.Tensor:
        if tensor.is_floating_point():
            tensors.append(tensor)
        return tensor

    _Copy(note, share=True)(distribution)
    return tensors


def with_tensors(distribution: Distribution, tensors: list[th.Tensor]) -> Distribution:
    """Return a copy that is made of other tensors, in the order of :func:`tensors_of`, and computes in float64."""
    others = iter(tensors)
    replaced = _Copy(lambda tensor: next(others) if tensor.is_floating_point() else tensor, share=True)(distribution)
    return in_double(replaced)


def named(distribution: Any) -> str:
    """Say what kind of distribution it is, and of what: ``Independent(Normal)``."""
    if isinstance(distribution, Distribution):
        return f"{type(distribution).__name__} of {named(distribution.distribution)}"
    if isinstance(distribution, dict):
        distribution = list(distribution.values())
    if isinstance(distribution, list | tuple):
        return f"[{', '.join(map(named, distribution))}]"
    within = [named(p) for p in vars(distribution).values() if isinstance(p, TorchDistribution)]
    transforms = [type(transform).__name__ for transform in getattr(distribution, "transforms", ())]
    inner = ", ".join([*within, *transforms])
    return type(distribution).__name__ + (f"({inner})" if inner else "")


def factors_of(distribution: Any) -> Iterator[TorchDistribution]:
    """Yield the independent factors of an action distribution: of one of SB3's, or of a list, tuple or dict, at any depth."""
    if isinstance(distribution, TorchDistribution):
        yield distribution
    elif isinstance(distribution, Distribution):
        # sb3-contrib's masked ones of several variables have another name for them
        parts = getattr(distribution, "distributions", None) or getattr(distribution, "distribution", None)
        if parts is None:
            raise TypeError(
                f"{type(distribution).__name__} must have its torch.distributions.Distribution, or a list, tuple or dict of "
                f"such, as its attribute `distribution`, as SB3's have it, got {sorted(vars(distribution))}"
            )
        yield from factors_of(parts)
    else:
        for part in distribution.values() if isinstance(distribution, dict) else distribution:
            yield from factors_of(part)


def has_noise_by_state(policy: Any) -> bool:
    """Whether a policy has gSDE."""
    return isinstance(getattr(policy, "action_dist", None), StateDependentNoiseDistribution)


def mean_stds(distributions: Iterable[Distribution]) -> th.Tensor:
    """Return the standard deviation of each dimension of the actions, a mean over states, shape (n_dims,); NaN if unknown."""
    sums, n_states = th.zeros((), device="cpu"), 0
    for each in distributions:
        try:
            stds = th.cat([factor.stddev.reshape(len(factor.stddev), -1) for factor in factors_of(each)], dim=1)
        except NotImplementedError:
            return th.full((1,), math.nan, device="cpu")  # torch knows none
        sums, n_states = sums.to(stds) + stds.sum(dim=0), n_states + len(stds)
    return sums / n_states


def per_state(values: th.Tensor) -> th.Tensor:
    """Sum over every dimension but the first one, that of the states."""
    return values.flatten(1).sum(dim=1) if values.dim() > 1 else values
