"""The layers of extractors of the user's own: what is read, and that everything else is left to the plain paths."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo.fast.traced import traced_layers
from tests.cases import normal
from tests.fast.covered import OwnCombined, StepByStep, Trunk
from tests.small_models import VECTOR

IMAGE = spaces.Box(0.0, 1.0, (1, 4, 4))
PICTURE_AND_VECTOR = spaces.Dict({"picture": spaces.Box(0.0, 1.0, (1, 36, 36)), "vector": VECTOR})


def of_forward(forward: Callable[[Any, Any], Any], space: spaces.Space = VECTOR) -> BaseFeaturesExtractor:
    """Make an extractor of two layers whose ``forward`` is this."""

    class Own(BaseFeaturesExtractor):
        def __init__(self) -> None:
            super().__init__(space, 4)
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)
            self.convolution, self.flat = nn.Conv2d(1, 2, 2), nn.Flatten()
            self.is_deep = True
            self.seen: list[Any] = []
            self.n_calls = 0

        def forward(self, observations: Any) -> Any:
            return forward(self, observations)

    return Own()


def keep(extractor: Any, last: Any, **attributes: Any) -> Any:
    """Put what it sees on an extractor, and more."""
    vars(extractor).update(attributes, last=last)
    return last


NOT_LAYERS_ALONE: dict[str, tuple[Callable[[Any, Any], Any], spaces.Space]] = {
    "another function": (lambda self, x: self.first(x).sin(), VECTOR),
    "arithmetic": (lambda self, x: self.first(x) * 2.0, VECTOR),
    "a limit that few states reach": (lambda self, x: self.first(x.clamp(-100.0, 100.0)), VECTOR),
    "a residual": (lambda self, x: self.second(self.first(x)) + self.first(x), VECTOR),
    "a branch that looks at numbers": (lambda self, x: self.first(x) if x.sum() > 0 else -self.first(x), VECTOR),
    "numbers that are picked": (lambda self, x: self.first(x)[:, :2], VECTOR),
    "features as a pair": (lambda self, x: (self.first(x), self.second(self.first(x))), VECTOR),
    "the same twice": (lambda self, x: th.cat([x["vector"], x["vector"]], dim=1), PICTURE_AND_VECTOR),
    "a part alone": (lambda self, x: self.first(x["vector"]), PICTURE_AND_VECTOR),
    "joined rows": (lambda self, x: th.cat([x["vector"], x["other"]], dim=0), PICTURE_AND_VECTOR),
    "a picture that is not flat": (lambda self, x: th.cat([x["picture"], x["vector"]], dim=1), PICTURE_AND_VECTOR),
    "a matrix through a layer": (lambda self, x: self.first(x), spaces.Box(-1.0, 1.0, (2, 3))),
    "maps that are not flat": (lambda self, x: self.convolution(x), IMAGE),
    "flat from the third dimension on": (lambda self, x: self.convolution(x).flatten(2), IMAGE),
    "a function with a setting": (lambda self, x: nn.functional.elu(self.first(x), 0.3), VECTOR),
    "what it sees, kept": (lambda self, x: self.first(keep(self, last=x)), VECTOR),
    "what it sees, kept in a list": (lambda self, x: (self.seen.append(x), self.first(x))[1], VECTOR),
    "calls that are counted": (lambda self, x: self.first(keep(self, n_calls=self.n_calls + 1, last=x)), VECTOR),
    "an error": (lambda self, x: self.missing(x), VECTOR),
}


@pytest.mark.parametrize("name", NOT_LAYERS_ALONE)
def test_what_does_more_than_to_apply_layers_is_not_read(name: str) -> None:
    forward, space = NOT_LAYERS_ALONE[name]
    assert traced_layers(of_forward(forward, space)) is None


@pytest.mark.parametrize("make", [Trunk, StepByStep, lambda space: of_forward(lambda self, x: self.second(self.first(x)))])
def test_layers_give_what_the_extractor_gives(make: Callable[[spaces.Space], BaseFeaturesExtractor]) -> None:
    extractor = make(VECTOR)
    layers = traced_layers(extractor)
    assert layers is not None and layers[0] == {}
    observations = normal(5, 3, seed=1).float()
    th.testing.assert_close(nn.Sequential(*layers[1])(observations), extractor(observations))


def test_parts_of_a_dict_are_told_apart() -> None:
    extractor = OwnCombined(PICTURE_AND_VECTOR)
    layers = traced_layers(extractor)
    assert layers is not None and list(layers[0]) == ["picture", "vector"] and layers[1] == []
    observations = {"picture": normal(2, 1, 36, 36, seed=1).float(), "vector": normal(2, 3, seed=2).float()}
    parts = [nn.Sequential(*layers[0][key])(observations[key]) for key in layers[0]]
    th.testing.assert_close(th.cat(parts, dim=1), extractor(observations))


@pytest.mark.parametrize("name", [name for name in NOT_LAYERS_ALONE if name.endswith(("kept", "kept in a list", "counted"))])
def test_extractor_is_left_as_it_is(name: str) -> None:
    """What ``forward`` keeps on the object is not the stand-in."""
    extractor: Any = of_forward(*NOT_LAYERS_ALONE[name])
    assert traced_layers(extractor) is None
    assert extractor.seen == [] and extractor.n_calls == 0 and not hasattr(extractor, "last")


def test_layers_are_those_of_now() -> None:
    """Where one was replaced, or a flag decides."""
    extractor: Any = of_forward(lambda self, x: self.second(self.first(x)) if self.is_deep else self.first(x))
    before = traced_layers(extractor)
    extractor.second = nn.Linear(4, 4)
    after = traced_layers(extractor)
    assert before is not None and after is not None
    assert before[1][1] is not after[1][1] is extractor.second
    extractor.is_deep = False
    assert traced_layers(extractor) == ({}, [extractor.first])
