"""The files of a run: what is damaged is told by file and line, and the rest is read."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_trpo.inspect import TrustRegionRecorder, UpdateRecord, inspect_model, read_run
from sb3_trpo.inspect.run_files import append, encode, take_up
from tests.small_models import small_model


def update_record(**fields: Any) -> UpdateRecord:
    """Return a record of an update that went well, but for some fields."""
    one = inspect_model(small_model()).updates[0]
    return one._replace(**fields)


# Reading


def test_damaged_lines_are_reported_by_file_and_line_and_the_rest_is_read(tmp_path: Path) -> None:
    """Garbage, a missing field, a wrong type and a line cut off each get a report; every other line is there."""
    path = tmp_path / "updates.jsonl"
    for n_updates in range(1, 7):
        append(path, update_record(n_updates=n_updates))
    lines = path.read_text().splitlines()
    without = json.loads(lines[2])
    del without["mean_kl"]
    wrong = json.loads(lines[3]) | {"candidates": [{"step_fraction": "all"}]}
    lines[1:4] = ["\x00\x00garbage", json.dumps(without), json.dumps(wrong)]
    path.write_text("\n".join(lines)[:-20])
    run = read_run(tmp_path)
    assert [update.n_updates for update in run.updates] == [1, 5]
    assert [problem.split(": ")[0] for problem in run.problems] == [f"{path}:{line}" for line in (2, 3, 4, 6)]
    assert "no field 'mean_kl'" in run.problems[1] and "field 'candidates'" in run.problems[2] and "cut off" in run.problems[3]
    # A run that goes on after the cut does not spoil its own first line
    append(path, update_record(n_updates=7))
    assert [update.n_updates for update in read_run(tmp_path).updates] == [1, 5, 7]


def test_missing_record_is_said_with_the_file_expected(tmp_path: Path) -> None:
    """A folder without a record, or none at all, names the file that is missing."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"updates\.jsonl"):
            read_run(folder)


def test_numbers_that_are_not_finite_survive_as_not_a_number_in_valid_json(tmp_path: Path) -> None:
    """NaN is written as null, which every reader of JSON knows, and comes back as NaN."""
    record = update_record(entropy=math.nan, explained_variance=math.inf)
    append(tmp_path / "updates.jsonl", record)
    text = (tmp_path / "updates.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and json.loads(text)["entropy"] is None
    (back,) = read_run(tmp_path).updates
    assert math.isnan(back.entropy) and math.isnan(back.explained_variance)
    assert back._replace(entropy=0.0, explained_variance=0.0) == record._replace(entropy=0.0, explained_variance=0.0)


def test_pictures_survive_the_disk(tmp_path: Path) -> None:
    """States and slices come back as they were measured, up to the digits that a picture needs."""
    model = small_model()
    model.learn(64, callback=TrustRegionRecorder(tmp_path, pictures_every=1, states=np.zeros((2, 3), np.float32)))
    run = read_run(tmp_path)
    (states,), (plane,) = run.states, run.slices
    assert encode(states) == json.loads((tmp_path / "states.jsonl").read_text())
    assert encode(plane) == json.loads((tmp_path / "slices.jsonl").read_text())
    assert plane.kl.shape == plane.gain.shape == (len(plane.fractions),) * 2
    assert [change.label for change in states.changes][2:] == ["chosen state 1", "chosen state 2"]
    assert states.changes[2].observation == "[0, 0, 0]"
    assert states.kl.mean() == pytest.approx(run.updates[0].mean_kl, rel=1e-3)
    assert states.changes[0].kl == pytest.approx(states.kl.max(), rel=1e-3)


def test_numbers_of_numpy_are_written(tmp_path: Path) -> None:
    """An environment of the user's own may count in them."""
    record = update_record(num_timesteps=np.int64(640), mean_kl=np.float32(0.5))
    append(tmp_path / "updates.jsonl", record)
    (read,) = read_run(tmp_path).updates
    assert (read.num_timesteps, read.mean_kl) == (640, 0.5)


def test_what_came_after_an_update_is_left_out(tmp_path: Path) -> None:
    """Lines that are none stay; a file that is not there, or has nothing of it, is not written to."""
    path = tmp_path / "updates.jsonl"
    take_up(path, 1)
    assert not path.exists()
    for n in (1, 2, 3):
        append(path, update_record(n_updates=n))
    with open(path, "ab") as file:
        file.write(b'{"n_upd')
    take_up(path, 2)
    assert [update.n_updates for update in read_run(tmp_path).updates] == [1, 2]
    assert path.read_bytes().endswith(b'{"n_upd') and [each.name for each in tmp_path.iterdir()] == ["updates.jsonl"]
    before = path.stat().st_mtime_ns
    take_up(path, 2)
    assert path.stat().st_mtime_ns == before
