"""Graphs that an update leaves on a policy, dropped: with one behind it a tensor can be neither copied nor pickled."""

import functools
from collections import deque
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

# What a policy may refer to and is no part of it, and what holds no graph
OF_OTHERS = (
    *(BaseAlgorithm, BaseCallback, VecEnv, gym.Env, gym.Space, Logger, th.optim.Optimizer, nn.Module),
    *(type, ModuleType, FunctionType, BuiltinFunctionType, str, bytes, int, float, complex, np.ndarray, np.generic),
)
# How deep inside the attributes of a module a tensor is looked for
MOST_DEPTH = 6


def views_of_parameters(policy: nn.Module) -> list[th.Tensor]:
    """List the views of parameters that modules hold, tied weights for one: their graph is how the user has built them."""
    held = (value for module in policy.modules() for value in vars(module).values())
    return [value for value in held if isinstance(value, th.Tensor) and _is_view_of_parameter(value)]


def _is_view_of_parameter(tensor: th.Tensor) -> bool:
    base = tensor._base
    return base is not None and base.is_leaf and base.requires_grad


def drop_graphs(policy: nn.Module, kept: Iterable[th.Tensor] = ()) -> None:
    """
    Detach every tensor that a policy holds on to besides its parameters, its last action distribution first of all.

    With a graph behind it a tensor can be neither deep-copied nor sent to another process, and it keeps a whole batch alive.

    :param policy: with its modules
    :param kept: tensors that were there before, and stay as they are
    """
    dropper = _Dropper(kept)
    for module in policy.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_modules"):
                vars(module)[name] = dropper(value)


class _Dropper:
    """Returns what it is given without a graph: what can be changed is changed in place, the rest is replaced."""

    def __init__(self, kept: Iterable[th.Tensor]):
        # The values themselves too: what is gone leaves its number to something else
        self.seen: dict[int, tuple[Any, Any]] = {id(tensor): (tensor, tensor) for tensor in kept}
        self.depth = 0

    def __call__(self, value: Any) -> Any:
        if id(value) not in self.seen:
            self.seen[id(value)] = value, value
            self.depth += 1
            self.seen[id(value)] = value, self._dropped(value)
            self.depth -= 1
        return self.seen[id(value)][1]

    def _dropped(self, value: Any) -> Any:
        if isinstance(value, th.Tensor):
            return value if value.is_leaf else value.detach()
        if value is None or isinstance(value, OF_OTHERS) or self.depth > MOST_DEPTH:
            return value
        if isinstance(value, functools.partial):
            return self._replaced(value, [value.func, value.args, value.keywords], _partial)
        if isinstance(value, tuple | frozenset):
            return self._replaced(value, list(value), getattr(value, "_make", type(value)))
        if isinstance(value, list | deque | dict):
            self._change(value, list(value) if isinstance(value, dict) else range(len(value)))
        elif isinstance(value, set):
            for part in [part for part in value if self(part) is not part]:
                value.remove(part)
                value.add(self(part))
        else:
            self._change_object(value)
        return value

    def _replaced(self, value: Any, parts: list[Any], made_of: Callable[[list[Any]], Any]) -> Any:
        new = [self(part) for part in parts]
        return made_of(new) if any(one is not other for one, other in zip(new, parts, strict=True)) else value

    def _change(self, container: Any, places: Iterable[Any]) -> None:
        for place in places:
            part = container[place]
            if self(part) is not part:
                container[place] = self(part)

    def _change_object(self, value: Any) -> None:
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):
            self._change(held, list(held))
        kind: Any = type(value)
        for name in _slots(kind):
            part = getattr(value, name, None)
            if self(part) is not part:
                object.__setattr__(value, name, self(part))  # a frozen dataclass refuses its own


def _partial(parts: list[Any]) -> Any:
    function, arguments, keywords = parts
    return functools.partial(function, *arguments, **keywords)


@functools.cache
def _slots(kind: Any) -> tuple[str, ...]:
    """Name the attributes that objects of a class keep outside their ``__dict__``."""
    found = []
    for base in getattr(kind, "__mro__", ()):
        names = base.__dict__.get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            if not name.startswith("__"):
                found.append(name)
            elif not name.endswith("__"):
                found.append(f"_{base.__name__.lstrip('_')}{name}")
    return tuple(found)
