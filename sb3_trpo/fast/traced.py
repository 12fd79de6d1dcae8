"""
The layers of a feature extractor of the user's own, if they are applied one after the other and nothing else is done.

Its ``forward`` is not read but traced (``torch.fx``): it is run once with a stand-in for the observation, which notes what is
done with it. A ``forward`` that looks at numbers cannot be traced, and one that does anything beside layers shows it.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch as th
from gymnasium import spaces
from torch import fx, nn
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
_METHODS_AS_LAYERS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class _NotLayersAlone(Exception):
    """Something else is done."""


class _Part:
    """
    What the stand-in stands for at a point of ``forward``.

    :param key: of the part of the Dict; ``None`` for a whole observation
    :param layers: what has been applied to it
    """

    def __init__(self, key: str | None, layers: list[nn.Module]):
        self.key = key
        self.layers = layers

    def then(self, layer: nn.Module) -> "_Part":
        """Return it with a layer applied."""
        return _Part(self.key, [*self.layers, layer])


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


def _applied(node: fx.Node, arguments: list[Any], keywords: dict[str, Any], extractor: nn.Module) -> _Part:
    """Return what a step of ``forward`` gives."""
    first, *rest = arguments
    keywords = {name: value for name, value in keywords.items() if (name, value) != ("inplace", False)}
    if node.op == "call_function" and node.target in (th.cat, th.concat, th.concatenate):
        return _joined(first, keywords | ({"dim": rest[0]} if rest else {}))
    if not isinstance(first, _Part):
        raise _NotLayersAlone
    if node.op == "call_function" and node.target is operator.getitem and type(first) is _Part:
        if first.key is None and not first.layers and isinstance(rest[0], str):
            return _Part(rest[0], [])
    elif node.op == "call_module" and not rest and not keywords:
        return first.then(extractor.get_submodule(str(node.target)))
    elif node.op == "call_function" and node.target in _AS_LAYERS and not rest and not keywords:
        return first.then(_AS_LAYERS[node.target]())
    elif node.op == "call_method" and node.target in _METHODS_AS_LAYERS and not rest and not keywords:
        return first.then(_METHODS_AS_LAYERS[str(node.target)]())
    elif node.target in ("flatten", th.flatten) and (rest == [1] or keywords == {"start_dim": 1}):
        return first.then(nn.Flatten())
    raise _NotLayersAlone


def _skeleton(module: nn.Module) -> nn.Module:
    """Return a copy with the same parameters, to whose attributes and their lists may be written."""
    clone = copy.copy(module)
    attributes = vars(clone)
    attributes.update({name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, list | dict | set)})
    attributes["_modules"] = {name: child and _skeleton(child) for name, child in module._modules.items()}
    return clone


def _trace(extractor: nn.Module) -> Layers:
    # ``forward`` may keep what it sees on the object
    graph = fx.Tracer().trace(_skeleton(extractor))
    found: dict[fx.Node, _Part] = {}

    def known(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return found[value]
        return [known(part) for part in value] if isinstance(value, list | tuple) else value

    n_inputs = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            n_inputs += 1
            found[node] = _Part(None, [])
        elif node.op == "output":
            given = known(node.args[0])
            break
        else:
            found[node] = _applied(node, known(node.args), dict(node.kwargs), extractor)
    if n_inputs != 1 or not isinstance(given, _Part) or given.key is not None:
        raise _NotLayersAlone
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
