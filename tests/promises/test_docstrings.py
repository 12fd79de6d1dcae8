"""The documented parameters are the ones that there are."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import pytest

import sb3_trpo


def documented(docstring: str | None) -> list[str]:
    return re.findall(r"^\s*:param \*{0,2}(\w+):", docstring or "", flags=re.MULTILINE)


def accepted(thing: Callable[..., Any]) -> list[str]:
    """List the names that it takes; for a class those of its constructor, which for a named tuple are its fields."""
    return [name for name in inspect.signature(thing).parameters if name not in ("self", "cls")]


def public_things() -> dict[str, Callable[..., Any]]:
    """Find every public function, class and method that is defined in the package."""
    found: dict[str, Callable[..., Any]] = {}
    for info in pkgutil.walk_packages(sb3_trpo.__path__, "sb3_trpo."):
        module = importlib.import_module(info.name)
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != info.name:
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                found[f"{info.name}.{name}"] = thing
            if inspect.isclass(thing):
                for method_name, method in vars(thing).items():
                    function = method.__func__ if isinstance(method, classmethod | staticmethod) else method
                    if inspect.isfunction(function) and not method_name.startswith("_"):
                        found[f"{info.name}.{name}.{method_name}"] = function
    return found


PUBLIC = public_things()


def test_docstrings_are_found() -> None:
    """The list below holds functions, classes, named tuples and methods."""
    expected = {
        "sb3_trpo.objective.kl_old_new",
        "sb3_trpo.objective.Batch",
        "sb3_trpo.objective.Batch.thinned",
        "sb3_trpo.trpo.TRPO",
        "sb3_trpo.checked_algorithm.CheckedOnPolicyAlgorithm.load",
        "sb3_trpo.trust_region.step.trust_region_step",
    }
    assert expected <= set(PUBLIC)


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if documented(thing.__doc__)])
def test_docstrings_name_the_parameters_that_there_are(name: str) -> None:
    """Every parameter or field is described, in the order of the signature, and nothing is that does not exist."""
    assert documented(PUBLIC[name].__doc__) == accepted(PUBLIC[name])


@pytest.mark.parametrize("name", list(PUBLIC))
def test_docstrings_are_there(name: str) -> None:
    """Everything public says what it is."""
    assert inspect.getdoc(PUBLIC[name])


def test_docstrings_check_sees_a_mistake() -> None:
    """A parameter that is missing, invented or renamed would be noticed."""

    def function(first: int, *, second: int) -> None:
        """
        Do nothing.

        :param first: described
        :param third: does not exist
        """

    assert documented(function.__doc__) == ["first", "third"] and accepted(function) == ["first", "second"]
