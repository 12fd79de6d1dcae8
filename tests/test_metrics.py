"""The log: SB3's outputs all get every update, the last one too, and contrib's keys mean what they mean there."""

import copy
import csv
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import sb3_contrib
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_trpo.metrics import METRICS
from tests.small_models import DISCRETE, EVERY_CASE, Case, make_env, small_model

pytestmark = pytest.mark.untraced


def test_every_output_has_every_metric_of_every_update(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stdout, log file, CSV, JSON and TensorBoard; the last update stands at the last step."""
    model = small_model()
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "csv", "json", "tensorboard"]))
    model.learn(192)
    assert model.last_update is not None
    model.logger.close()
    last = {key: metric.of(model.last_update) for key, metric in METRICS.items()}
    last = {key: value for key, value in last.items() if value is not None}
    assert len(last) >= 24

    csv = pd.read_csv(tmp_path / "progress.csv")
    assert csv["train/n_updates"].dropna().tolist() == [1, 2, 3]
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [row["train/n_updates"] for row in rows if "train/n_updates" in row] == [1, 2, 3]
    for row in (csv.iloc[-1], rows[-1]):
        assert row["time/total_timesteps"] == 192
        for key, value in last.items():
            assert row[key] == pytest.approx(float(value)), key

    printed, kept = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    for text in (printed, kept):
        assert all(key.split("/")[1][:20] in text for key in last)
        assert text.count("update_accepted") == 3

    board = EventAccumulator(str(tmp_path)).Reload()
    for key, value in last.items():
        if METRICS[key].exclude == "tensorboard":
            assert key not in board.Tags()["scalars"]
            continue
        events = board.Scalars(key)
        # SB3 writes a row before the update that follows it
        assert [event.step for event in events] == [128, 192, 192], key
        assert events[-1].value == pytest.approx(float(value), rel=1e-5)


KEYS_OF_BOTH = [
    "train/policy_objective",
    "train/value_loss",
    "train/kl_divergence_loss",
    "train/explained_variance",
    "train/is_line_search_success",
    "train/std",
    "train/n_updates",
    "train/learning_rate",
]


CASES = {"box": (Case(), 3), "discrete": (Case(action_space=DISCRETE), 1)}


@pytest.mark.parametrize("case, factor", CASES.values(), ids=CASES)
def test_keys_of_contrib_mean_what_they_mean_there(case: Case, factor: int) -> None:
    """After contrib's update of a rollout and ours of the same, the keys say the same; the KL in units of the whole action."""
    # Little damping, as contrib's radius counts it; whole batches, as the order of minibatches is drawn at random
    settings: dict[str, Any] = {"n_steps": 256, "batch_size": 256, "n_critic_updates": 4, "cg_max_steps": 40, "seed": 0}
    theirs = sb3_contrib.TRPO("MlpPolicy", case.env(), target_kl=0.001, cg_damping=1e-4, device="cpu", **settings)
    ours = case.model(target_kl=factor * 0.001, cg_damping=factor * 1e-4, **settings)
    _, callback = theirs._setup_learn(256)
    ours._setup_learn(256)
    theirs.collect_rollouts(theirs.env, callback, theirs.rollout_buffer, 256)  # type: ignore[arg-type]
    ours.policy.load_state_dict(theirs.policy.state_dict())
    ours.rollout_buffer = copy.deepcopy(theirs.rollout_buffer)
    for model in (theirs, ours):
        model.train()
    there, here = theirs.logger.name_to_value, ours.logger.name_to_value
    keys = KEYS_OF_BOTH if factor > 1 else [key for key in KEYS_OF_BOTH if key != "train/std"]
    assert {*keys} == {*there} & {*here} and there["train/is_line_search_success"] == 1
    for key in keys:
        expected = there[key] * (factor if key == "train/kl_divergence_loss" else 1)
        # Contrib's radius counts the damping: its step is a little shorter than ours
        assert here[key] == pytest.approx(expected, rel=0.25, abs=1e-6), key
    # One minus a ratio near one: what rounding leaves is absolute
    assert here["train/explained_variance"] == pytest.approx(there["train/explained_variance"], rel=1e-5, abs=1e-6)


def test_keys_of_ppo_are_there_where_trpo_has_them() -> None:
    """A dashboard made for PPO finds what TRPO has too, with PPO's sign and unit."""
    ppo = PPO("MlpPolicy", make_env(), n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    ppo._setup_learn(64)
    model = small_model()
    model._setup_learn(64)
    for each in (ppo, model):
        each._init_callback(None)
        each.collect_rollouts(each.env, each._init_callback(None), each.rollout_buffer, 64)  # type: ignore[arg-type]
        each.train()
    theirs, ours = ({key for key in each.logger.name_to_value if key.startswith("train/")} for each in (ppo, model))
    of_clipping = {"train/clip_fraction", "train/clip_range", "train/approx_kl", "train/loss", "train/policy_gradient_loss"}
    assert theirs - ours == of_clipping
    # Both began with a deviation of one in three dimensions, and moved little
    assert model.logger.name_to_value["train/entropy_loss"] == pytest.approx(
        ppo.logger.name_to_value["train/entropy_loss"], rel=0.05
    )


@pytest.mark.parametrize("fast", [True, False])
def test_verbose_says_once_which_paths_are_in_use(fast: bool, capsys: pytest.CaptureFixture[str]) -> None:
    ways = {"collection": "lean", "Fisher products": "Gauss-Newton", "critic fit": "written out"}
    small_model(verbose=1, fast=fast).learn(128)
    printed = capsys.readouterr().out.splitlines()
    for phase, way in ways.items():
        assert printed.count(f"{phase}: {way if fast else 'plain'} path") == 1
    small_model(verbose=0, fast=fast).learn(128)
    assert " path" not in capsys.readouterr().out


def test_phases_fill_the_time_of_an_update() -> None:
    model = small_model()
    seconds: list[float] = []
    train = model.train

    def timed_train() -> None:
        start = time.perf_counter()
        train()
        seconds.append(time.perf_counter() - start)

    model.train = timed_train  # type: ignore[method-assign]
    model.learn(64)
    assert model.last_update is not None
    phases = model.last_update.phase_seconds
    assert list(phases) == ["gradient", "direction", "line_search", "critic"]
    assert min(phases.values()) > 0.0 and sum(phases.values()) <= seconds[-1]


class CsvLog:
    """A logger that writes a CSV file, and what it wrote."""

    def __init__(self, folder: pathlib.Path):
        self.path = folder / "progress.csv"
        self.logger = configure(str(folder), ["csv"])

    def rows(self) -> list[dict[str, str]]:
        """Return each row by its keys."""
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def updates(self) -> list[str]:
        """Return the number of the update that each row is about, of those that are about one."""
        return [row["train/n_updates"] for row in self.rows() if row["train/n_updates"]]


@pytest.fixture
def log(tmp_path: pathlib.Path) -> Iterator[CsvLog]:
    """Return a log in a folder of its own."""
    csv_log = CsvLog(tmp_path)
    yield csv_log
    csv_log.logger.close()


CONTRIB_KEYS = {
    "train/policy_objective",
    "train/value_loss",
    "train/kl_divergence_loss",
    "train/explained_variance",
    "train/is_line_search_success",
    "train/n_updates",
    "train/learning_rate",
}


@pytest.mark.parametrize("name", ["box-vector", "discrete-vector", "gsde-vector-squashed"])
def test_log_has_the_keys_of_contrib_and_of_the_table(name: str, log: CsvLog) -> None:
    """Contrib's keys are there, and every metric of our table that has a value with that value, and no other."""
    model = EVERY_CASE[name].model()
    model.set_logger(log.logger)
    model.learn(128)
    assert model.last_update is not None
    has_std = isinstance(model.action_space, spaces.Box)
    (row,) = [row for row in log.rows() if row["train/n_updates"] == "2"]
    recorded = {key for key, value in row.items() if value}
    assert recorded >= CONTRIB_KEYS | ({"train/std"} if has_std else set())
    values = {key: metric.of(model.last_update) for key, metric in METRICS.items()}
    with_value = {key for key, value in values.items() if value is not None}
    assert {key for key in recorded if key.startswith("train/")} <= with_value | {"train/learning_rate"}
    assert recorded >= with_value
    for key in with_value:
        value = values[key]
        assert float(row[key]) == pytest.approx(float(value))
    assert row["train/update_accepted"] == str(int(model.last_update.step.accepted))
    assert row["train/critic_fitted"] == "1" and row["train/cg_converged"] in ("0", "1")
    assert ("train/std" in with_value) == has_std


def test_log_has_a_row_for_every_update(log: CsvLog) -> None:
    """The last update is in the log too, at the step it was made at, and no update is there twice."""
    model = small_model()
    model.set_logger(log.logger)
    model.learn(3 * 64)
    assert log.updates() == ["1", "2", "3"]
    model.learn(64, reset_num_timesteps=False)
    assert log.updates() == ["1", "2", "3", "4"]


def test_log_of_every_second_rollout_still_has_the_last_update(log: CsvLog) -> None:
    """A larger log_interval does not lose the end of the run."""
    model = small_model()
    model.set_logger(log.logger)
    model.learn(3 * 64, log_interval=2)
    assert log.rows()[-1]["train/n_updates"] == "3"


def test_log_is_not_written_without_an_interval(log: CsvLog) -> None:
    """log_interval=None means no log."""
    model = small_model()
    model.set_logger(log.logger)
    model.learn(64, log_interval=None)  # type: ignore[arg-type]
    assert log.rows() == []


def test_tensorboard_log_is_written(tmp_path: pathlib.Path) -> None:
    """tensorboard_log makes a run folder named after the algorithm."""
    small_model(tensorboard_log=str(tmp_path)).learn(64).logger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["TRPO_1"]
    assert list((tmp_path / "TRPO_1").glob("events.*"))
