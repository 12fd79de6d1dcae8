"""Classes of the user's own: whether they do as those that they are derived from."""

from collections.abc import Callable, Collection
from typing import Any

# A constructor may do as it likes, for what it has made can be looked at; the others are Python's
_NEUTRAL = {"__init__", "_abc_impl", "__annotate__", "__annotate_func__"}


def _changes(kind: type, name: str, value: Any) -> bool:
    """Whether what stands in a class changes what the class that it is derived from does."""
    if name in _NEUTRAL or (name.startswith("__") and not callable(value)):
        return False  # names, documents and what Python notes of a class
    # A property may stand in the place of an attribute
    return hasattr(kind, name) or hasattr(value, "__set__")


def known_kind(thing: Any, known: Collection[type]) -> type | None:
    """
    Return the class, among those that are known, as which an object does.

    A class of the user's own may have further methods and a constructor. One that overrides anything may do anything.

    :param thing: the object
    :param known: classes, of which the nearest counts
    :return: ``None`` where it is of none of them, or where it, its class or one in between overrides something
    """
    classes = type(thing).__mro__
    kind = next((each for each in classes if each in known), None)
    if kind is None:
        return None
    between = classes[: classes.index(kind)]
    if any(_changes(kind, name, value) for each in between for name, value in vars(each).items()):
        return None
    wrapped = any(callable(value) and hasattr(kind, name) for name, value in vars(thing).items())
    return None if wrapped else kind


def as_in_package(thing: Any, name: str) -> Callable[..., Any] | None:
    """
    Return a method as the nearest class of this package has it, whatever a class of the user's own or the object has.

    :param thing: the object
    :param name: of the method
    :return: the function; ``None`` where no class of this package has it, since somebody has put another one in its place
    """
    functions = (vars(kind)[name] for kind in type(thing).__mro__ if name in vars(kind))
    package = __name__.partition(".")[0]
    return next((each for each in functions if _module_of(each).partition(".")[0] == package), None)


def is_as_in_package(thing: Any, name: str) -> bool:
    """Whether a method is that of the nearest class of this package: neither overridden nor replaced."""
    return getattr(getattr(thing, name), "__func__", None) is as_in_package(thing, name) is not None


def _module_of(function: Any) -> str:
    # Not its __module__, which a decorator copies
    return getattr(function, "__globals__", {}).get("__name__", "")
