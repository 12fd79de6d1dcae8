"""Lazy infos: a list of dicts for whoever asks."""

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

from sb3_trpo.vec_env import infos as module
from sb3_trpo.vec_env.infos import LazyInfos, info_of

BATCH: dict[str, Any] = {
    "speed": np.array([1.0, 2.0, 3.0]),
    "rare": np.array([0, 5, 0]),
    "_rare": np.array([False, True, False]),
    "inner": {"place": np.arange(6).reshape(3, 2), "_place": np.array([True, True, False])},
    "_own": np.array(["a", "b", "c"]),
}


def lazy() -> LazyInfos:
    marks = {"mark": np.array([True, False, False])}
    ended = {2: {"terminal_observation": np.ones(2)}}
    return LazyInfos(3, BATCH, ended=ended, truncated=np.array([False, False, True]), marks=marks)


def test_infos_are_those_of_each_environment() -> None:
    """Masks leave keys out, dicts are entered, a key with an underscore of its own stays."""
    first, second, third = lazy()
    assert first.keys() == {"speed", "inner", "_own", "TimeLimit.truncated", "mark"} and first["mark"] is True
    assert second["rare"] == 5 and second["_own"] == "b" and second["inner"]["place"].tolist() == [2, 3]
    assert third.keys() == {"terminal_observation", "TimeLimit.truncated"} and third["TimeLimit.truncated"] is True


def test_numbers_are_pythons_as_an_environment_gives_them() -> None:
    """What Gymnasium made arrays of: JSON can hold them, and ``is`` compares flags; others keep their type."""
    batch = {"steps": np.array([1, 2]), "speed": np.array([0.5, 1.5]), "is_success": np.array([True, False])}
    first = info_of(batch | {"reward": np.ones(2, np.float32)}, 0, 2)
    assert [type(first[key]) for key in ("steps", "speed", "is_success", "reward")] == [int, float, bool, np.float32]
    assert first["is_success"] is True and json.loads(json.dumps(info_of(batch, 1, 2))) == {
        "steps": 2,
        "speed": 1.5,
        "is_success": False,
    }


def test_infos_are_a_sequence() -> None:
    """Length, negative indices, slices, iteration, assignment, and errors beyond the ends."""
    found = lazy()
    assert len(found) == 3 and found[-1] is found[2] and found[int(np.int64(1))] is found[1]
    assert found[0:2] == [found[0], found[1]] and found[::-1][0] is found[2] and found[5:] == []
    assert list(found)[1] is found[1] and found[1] in found
    for index in (3, -4):
        with pytest.raises(IndexError):
            found[index]
    found[0] = {"new": 1}
    assert next(iter(found)) == {"new": 1} and repr(found).startswith("[{'new': 1}")


def test_an_info_is_the_same_dict_each_time() -> None:
    """What a wrapper writes into it stays, and the batch does not see it."""
    found = lazy()
    found[-2]["extra"] = 1
    found[1]["inner"]["place"][:] = 0
    assert list(found)[1]["extra"] == 1 and BATCH["inner"]["place"][1].tolist() == [2, 3]


def test_only_what_is_asked_for_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """One dict of three."""
    asked: list[int] = []

    def counted(batch: Any, index: int, n: int) -> dict[str, Any]:
        asked.append(index)
        return {}

    monkeypatch.setattr(module, "info_of", counted)
    found = lazy()
    assert found[1] is found[1] and found[2] is found[-1]
    assert asked == [1]


def test_infos_pickle_and_copy_as_a_list() -> None:
    """Callbacks keep them."""
    for other in (pickle.loads(pickle.dumps(lazy())), copy.deepcopy(lazy())):
        assert type(other) is list and [info.keys() for info in other] == [info.keys() for info in lazy()]


def test_values_that_are_no_rows_are_everyones() -> None:
    """A number, a string, or an array of another length."""
    info = info_of({"number": 3, "name": "abc", "pair": np.zeros(2), "none": None, "list": [1, 2, 3]}, 1, 3)
    assert (info["number"], info["name"], info["none"], info["list"]) == (3, "abc", None, 2) and info["pair"].shape == (2,)
