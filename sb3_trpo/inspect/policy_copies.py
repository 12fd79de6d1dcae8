"""A policy as it is now, kept while the one in training goes on."""

import copy
import types
from collections.abc import Iterator
from typing import Any

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_trpo.fast.network import is_a_chain

# Of no account to what a policy does with an observation
SHARED = (th.optim.Optimizer, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)


class CannotBeCopied(ValueError):
    """A policy holds something of which there can be no second one."""


def _parts(value: Any) -> Iterator[Any]:
    """Yield what an object is made of, as ``copy.deepcopy`` sees it."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from vars(value).values()


def _to_share_or_detach(policy: BasePolicy) -> dict[int, Any]:
    """Return what stands in a copy for what deepcopy would copy in vain, or cannot: optimizers, tensors with a graph."""
    stands_in: dict[int, Any] = {}
    seen: set[int] = set()
    to_visit: list[Any] = [policy]
    while to_visit:
        value = to_visit.pop()
        if id(value) in seen or isinstance(value, str | bytes | int | float | None):
            continue
        seen.add(id(value))
        if isinstance(value, SHARED):
            stands_in[id(value)] = value
        elif isinstance(value, th.Tensor):
            if not value.is_leaf:
                stands_in[id(value)] = value.detach().clone()
        else:
            to_visit.extend(_parts(value))
    return stands_in


def copy_of(policy: BasePolicy) -> BasePolicy:
    """
    Return a copy of a policy in evaluation mode, without its optimizers; the policy itself is not touched.

    What it holds besides its parameters is copied too: buffers, noise of gSDE, normalisation of the user's own.

    :param policy: of any algorithm of SB3
    :raises CannotBeCopied: saying why, if it holds what has no copy: a lock, a file, a generator
    """
    try:
        twin = copy.deepcopy(policy, _to_share_or_detach(policy))
    except Exception as error:  # whatever the user's own parts raise
        raise CannotBeCopied(f"{type(policy).__name__} cannot be copied ({type(error).__name__}: {error})") from error
    twin.set_training_mode(False)
    return twin


def to_look_at(policy: Any) -> Any:
    """Return a policy, or a copy of one that a look may leave something behind in, if there can be one."""
    try:
        return policy if is_a_chain(policy) else copy_of(policy)
    except CannotBeCopied:
        return policy
