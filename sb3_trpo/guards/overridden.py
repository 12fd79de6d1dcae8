"""Classes of the user's own: whether they do as those that they are derived from."""

from collections.abc import Callable, Collection
from typing import Any

# Those whose classes are stood in for
PACKAGES = {"torch", "stable_baselines3", "sb3_contrib", "sb3_trpo"}
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
    return next((each for each in functions if _package_of(each) == _package(__name__)), None)


def is_as_in_package(thing: Any, name: str) -> bool:
    """Whether a method is that of the nearest class of this package: neither overridden nor replaced."""
    return getattr(getattr(thing, name), "__func__", None) is as_in_package(thing, name) is not None


def is_as_written(kind: type, *names: str) -> bool:
    """
    Whether methods of a class are its authors': nobody has put others in their place, however long ago.

    :param kind: the class; of one that is not of the packages known here, what it has is what it is
    :param names: of methods, those that it has
    """
    for name in names:
        owner = next((each for each in kind.__mro__ if name in vars(each)), object)
        function = vars(owner).get(name) if is_of_known_package(owner) else None
        while function is not None:
            if _package_of(function) not in PACKAGES:
                return False
            function = getattr(function, "__wrapped__", None)  # torch wraps what stands in the place of a step, too
    return True


def is_of_known_package(kind: type) -> bool:
    """Whether a class is of torch, SB3, sb3-contrib or this package."""
    return _package(kind.__module__) in PACKAGES


def _package(module: str) -> str:
    return module.partition(".")[0]


def _package_of(function: Any) -> str:
    function = getattr(function, "__func__", function)  # of a static method
    # Not by its __module__, which a decorator copies
    return _package(getattr(function, "__globals__", {}).get("__name__", ""))
