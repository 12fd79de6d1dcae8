"""What does as a class that is known is told from what may do anything."""

import copy
import functools
from abc import ABC, abstractmethod
from typing import Any

import pytest

from sb3_trpo import TRPO
from sb3_trpo.guards.overridden import as_in_package, is_as_in_package, known_kind
from tests.small_models import small_model


class Known(ABC):
    size = 3

    def __init__(self) -> None:
        self.content = [0]

    @abstractmethod
    def put(self, value: int) -> None: ...


class Store(Known):
    def put(self, value: int) -> None:
        self.content[0] = value


class Longer(Store):
    """A constructor and a method more."""

    def __init__(self, more: int = 0) -> None:
        super().__init__()
        self.more = more

    def total(self) -> int:
        return sum(self.content)


class Longest(Longer):
    name = "a constant of its own"


class Overriding(Longer):
    def put(self, value: int) -> None:
        super().put(value)


class Below(Overriding): ...


class Mixin:
    def put(self, value: int) -> None: ...


class Mixed(Mixin, Store): ...


class OtherConstant(Store):
    size = 4


class Intercepts(Store):
    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)


class InPlaceOfAttribute(Store):
    @property
    def content(self) -> list[int]:
        return [1]

    @content.setter
    def content(self, value: list[int]) -> None: ...


@pytest.mark.parametrize("kind", [Store, Longer, Longest])
def test_what_is_added_changes_nothing(kind: type[Store]) -> None:
    """Nor does what Python notes of a class once an object of it was copied."""
    thing = copy.copy(kind())
    assert known_kind(thing, {Store, Known, dict}) is Store


@pytest.mark.parametrize("kind", [Overriding, Below, Mixed, OtherConstant, Intercepts, InPlaceOfAttribute])
def test_what_is_overridden_may_do_anything(kind: type[Store]) -> None:
    """Also two levels up, in a class beside it, or by a property."""
    assert known_kind(kind(), {Store}) is None


def test_method_that_is_set_on_an_object_is_the_users_own() -> None:
    thing = Store()
    thing.put = lambda value: None  # type: ignore[method-assign]
    assert known_kind(thing, {Store}) is None


def test_nearest_class_that_is_known_counts() -> None:
    assert known_kind(Below(), {Store, Overriding}) is Overriding
    assert known_kind({}, {Store}) is None


def test_method_of_this_package_is_told_from_one_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Overrides(TRPO):
        def _full_batch(self) -> Any:
            return super()._full_batch()

    ours, theirs, on_object = (small_model(cls) for cls in (TRPO, Overrides, TRPO))
    vars(on_object)["_full_batch"] = lambda: None
    assert is_as_in_package(ours, "_full_batch") and is_as_in_package(theirs, "train")
    assert not is_as_in_package(theirs, "_full_batch") and not is_as_in_package(on_object, "_full_batch")
    assert as_in_package(theirs, "_full_batch") is TRPO._full_batch
    monkeypatch.setattr(TRPO, "_full_batch", functools.wraps(TRPO._full_batch)(lambda self: None))
    assert as_in_package(ours, "_full_batch") is None and not is_as_in_package(ours, "_full_batch")
