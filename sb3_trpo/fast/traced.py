"""
The layers of a feature extractor of the user's own, if they are applied one after the other and nothing else is done.

Its ``forward`` is not read but run once with a stand-in for the observation, which notes what is done with it. A ``forward``
that looks at numbers fails on it, and one that does anything beside layers shows it. Not by ``torch.fx``: while that traces,
it changes how every module of the process is called, in other threads too.

The plain twin of the layers is the extractor itself.
"""

import copy
from collections.abc import Callable
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

# Layers by the key of the part of a Dict that they are for, and those that are for all of it
Layers = tuple[dict[str, list[nn.Module]], list[nn.Module]]

# Functions that are layers, where they are given nothing but what they are applied to
_AS_LAYERS: dict[Any, Callable[[], nn.Module]] = {
    th.relu: nn.ReLU,
    F.relu: nn.ReLU,
    th.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    th.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    F.elu: nn.ELU,
    F.silu: nn.SiLU,
    F.gelu: nn.GELU,
    F.leaky_relu: nn.LeakyReLU,
    F.softplus: nn.Softplus,
}
# Modules of torch's that are no layers but hold them
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _NotLayersAlone(Exception):
    """Something else is done."""


class _Part:
    """
    What stands for an observation, a part of it or what has become of it, while a ``forward`` is run.

    :param key: of the part of the Dict; ``None`` for a whole observation
    :param layers: what has been applied to it
    """

    def __init__(self, key: str | None, layers: list[nn.Module]):
        self.key = key
        self.layers = layers

    def then(self, layer: nn.Module) -> "_Part":
        """Return it with a layer applied."""
        return _Part(self.key, [*self.layers, layer])

    def __getitem__(self, key: Any) -> "_Part":
        if self.key is not None or self.layers or not isinstance(key, str):
            raise _NotLayersAlone
        return _Part(key, [])

    def __bool__(self) -> bool:
        raise _NotLayersAlone

    def __eq__(self, other: object) -> bool:
        raise _NotLayersAlone

    __hash__ = object.__hash__

    def flatten(self, *arguments: Any, **keywords: Any) -> "_Part":
        """Return it as vectors."""
        if (arguments, keywords) not in (((1,), {}), ((1, -1), {}), ((), {"start_dim": 1})):
            raise _NotLayersAlone
        return self.then(nn.Flatten())

    def relu(self) -> "_Part":
        """Return it with negative numbers made zero."""
        return self.then(nn.ReLU())

    def tanh(self) -> "_Part":
        """Return its hyperbolic tangent."""
        return self.then(nn.Tanh())

    def sigmoid(self) -> "_Part":
        """Return its logistic function."""
        return self.then(nn.Sigmoid())

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> "_Part":
        """Note what one of torch's functions does with stand-ins, shaped as torch asks it."""
        first, *rest = arguments
        keywords = {name: value for name, value in (keywords or {}).items() if (name, value) not in (("inplace", False),)}
        if function in (th.cat, th.concat, th.concatenate):
            return _joined(first, keywords | ({"dim": rest[0]} if rest else {}))
        if function is th.flatten:
            return first.flatten(*rest, **keywords)
        if function in _AS_LAYERS and not rest and not keywords:
            return first.then(_AS_LAYERS[function]())
        raise _NotLayersAlone


class _Joined(_Part):
    """
    Parts that have become one vector.

    :param parts: in their order
    """

    def __init__(self, parts: dict[str, list[nn.Module]], layers: list[nn.Module]):
        super().__init__(None, layers)
        self.parts = parts

    def then(self, layer: nn.Module) -> "_Joined":
        """Return them with a layer applied."""
        return _Joined(self.parts, [*self.layers, layer])

    def __getitem__(self, key: Any) -> "_Part":
        raise _NotLayersAlone


class _Noted(nn.Module):
    """
    What stands for a layer: it is noted, and not run.

    :param layer: one of torch's own
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.of = [layer]  # in a list: it is no part of this

    def forward(self, part: _Part) -> _Part:
        """Return what it is applied to, and itself."""
        return part.then(self.of[0])


def _check_shapes(layers: list[nn.Module], space: Any) -> None:
    """Refuse layers that take or give anything but vectors where a chain of stages flattens."""
    is_vector = len(space.shape) == 1 or isinstance(space, spaces.Discrete)
    for layer in layers:
        if isinstance(layer, nn.Flatten):
            is_vector = True
        elif isinstance(layer, nn.Conv2d):
            is_vector = False
        elif isinstance(layer, nn.Linear | nn.LayerNorm) and not is_vector:
            raise _NotLayersAlone
    if not is_vector:
        raise _NotLayersAlone


def _joined(parts: Any, keywords: dict[str, Any]) -> _Joined:
    """Return parts of a Dict as one vector."""
    by_key = {part.key: part.layers for part in parts}
    if keywords != {"dim": 1} or len(by_key) < len(parts) or None in by_key:
        raise _NotLayersAlone
    return _Joined(by_key, [])


def _skeleton(module: nn.Module) -> nn.Module:
    """Return a copy that notes its layers, to whose attributes and their lists may be written."""
    if type(module).__module__.startswith("torch.nn.") and not isinstance(module, _CONTAINERS):
        return _Noted(module)
    clone = copy.copy(module)
    attributes = vars(clone)
    attributes.update({name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, list | dict | set)})
    attributes["_modules"] = {name: child and _skeleton(child) for name, child in module._modules.items()}
    return clone


def _kept(module: nn.Module) -> list[Any]:
    """Return what is on the modules that are no layers, and in their lists: what somebody may read there."""
    found: list[Any] = []
    for part in module.modules():
        for name, value in vars(part).items():
            found += [name, value]
            if isinstance(value, list | dict | set) and name != "_modules":
                found += value.values() if isinstance(value, dict) else value
    return found


def _trace(extractor: nn.Module) -> Layers:
    skeleton = _skeleton(extractor)
    before = _kept(skeleton)
    with th.no_grad():
        given = skeleton(_Part(None, []))
    if not isinstance(given, _Part) or given.key is not None:
        raise _NotLayersAlone
    after = _kept(skeleton)
    if len(before) != len(after) or not all(map(is_, before, after)):
        raise _NotLayersAlone  # ``forward`` keeps what it sees, for someone who looks
    space: Any = extractor._observation_space
    if not isinstance(given, _Joined):
        _check_shapes(given.layers, space)
        return {}, given.layers
    for key, layers in given.parts.items():
        _check_shapes(layers, space[key])
    return given.parts, given.layers


def _made_of(extractor: nn.Module) -> Any:
    """Return what the layers depend on: while it is the same, so are they."""
    settings = [
        tuple((name, value) for name, value in vars(module).items() if isinstance(value, bool | int | float | str))
        for module in extractor.modules()
    ]
    modules = tuple((name, id(module), type(module)) for name, module in extractor.named_modules())
    return type(extractor).forward, modules, tuple(settings)


_known: "WeakKeyDictionary[nn.Module, tuple[Any, Layers | None]]" = WeakKeyDictionary()


def traced_layers(extractor: nn.Module) -> Layers | None:
    """
    Return the layers of a feature extractor.

    :param extractor: of any class; nothing may be hooked to it
    :return: by the key of the part of a Dict that they are for, and those for all of it; ``None`` if it does anything else, or
        if it cannot be traced
    """
    made_of = _made_of(extractor)
    if extractor not in _known or _known[extractor][0] != made_of:
        try:
            layers = _trace(extractor)
        except Exception:
            # Code of the user's, with a stand-in that it does not expect
            _known[extractor] = made_of, None
        else:
            _known[extractor] = made_of, layers
    return _known[extractor][1]
