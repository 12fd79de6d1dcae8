"""The record keeps what is finished, and adds only what is new."""

import json
from pathlib import Path

import numpy as np

from benchmarks.results import CURVE_COLUMNS, RUN_COLUMNS, collect, known_arguments, read
from benchmarks.sweep import missing
from benchmarks.train import Run
from tests.benchmarks.fake_runs import QUICK, write_run


def test_record_keeps_every_digit_that_matters_and_adds_only_what_is_new(tmp_path: Path) -> None:
    """Rows on record stay as they are when a folder of runs is collected again."""
    runs = tmp_path / "runs"
    write_run(Run("quick", "CartPole-v1", "trpo", 0), runs, eval_returns=[100.25, 300.75])
    assert collect(runs, tmp_path) == 1
    write_run(Run("quick", "CartPole-v1", "ppo", 0), runs)
    assert collect(runs, tmp_path) == 1 and collect(runs, tmp_path) == 0
    frame = read("runs", tmp_path)
    assert list(frame.columns) == RUN_COLUMNS and list(read("curves", tmp_path).columns) == CURVE_COLUMNS
    row = frame[frame["algorithm"] == "trpo"].iloc[0]
    assert (row["eval_mean"], row["eval_std"], json.loads(row["eval_returns"])) == (200.5, 100.25, [100.25, 300.75])
    assert json.loads(row["hyperparameters"]) == QUICK
    # The line of the log without a finished episode is left out
    assert list(read("curves", tmp_path)["timesteps"]) == [1024, 1024]


def test_record_of_a_deleted_run_is_made_anew(tmp_path: Path) -> None:
    """Who deletes a row of runs.csv gets no second learning curve with the next run."""
    write_run(Run("quick", "CartPole-v1", "trpo", 0), tmp_path / "runs")
    collect(tmp_path / "runs", tmp_path)
    path = tmp_path / "runs.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert collect(tmp_path / "runs", tmp_path) == 1
    assert len(read("runs", tmp_path)) == len(read("curves", tmp_path)) == 1


def test_record_leaves_out_what_is_under_way_and_names_of_ones_own(tmp_path: Path) -> None:
    """A run whose folder still has its scratch name may be half written, and a private name means nothing to others."""
    runs = tmp_path / "runs"
    write_run(Run("quick", "CartPole-v1", "trpo", 0), runs)
    folder = Run("quick", "CartPole-v1", "trpo", 0).folder(runs)
    folder.rename(folder.with_name(".0-abc"))
    write_run(Run("mine", "CartPole-v1", "trpo", 0), runs)
    assert collect(runs, tmp_path) == 0 and known_arguments(tmp_path) == {}


def test_curves_are_thinned_and_keep_both_ends(tmp_path: Path) -> None:
    """At most fifty points a run."""
    runs = tmp_path / "runs"
    run = Run("quick", "CartPole-v1", "trpo", 0)
    write_run(run, runs)
    lines = [f"{512 * i},{i}" for i in range(1, 501)]
    (run.folder(runs) / "progress.csv").write_text("\n".join(["time/total_timesteps,rollout/ep_rew_mean", *lines]))
    collect(runs, tmp_path)
    steps = read("curves", tmp_path)["timesteps"]
    assert len(steps) == 50 and (steps.iloc[0], steps.iloc[-1]) == (512, 256_000)


def test_updates_are_summed_up(tmp_path: Path) -> None:
    """First and last tenth, mean and minimum of what was logged; lines before the first update do not count."""
    runs = tmp_path / "runs"
    run = Run("quick", "CartPole-v1", "trpo", 0)
    write_run(run, runs)
    lines = ["100,9.0,,,"] + [f"{100 * i},9.0,{i},2.0,{i}" for i in range(1, 21)]
    header = "time/total_timesteps,rollout/ep_rew_mean,train/surrogate_gain,train/surrogate_gain_expected,train/std"
    (run.folder(runs) / "progress.csv").write_text("\n".join([header, *lines]))
    collect(runs, tmp_path)
    summary = json.loads(read("runs", tmp_path)["updates"].iloc[0])
    assert summary == {
        "surrogate_gain_ratio": {"mean": 5.25, "first": 0.75, "last": 9.75, "min": 0.5},
        "std": {"mean": 10.5, "first": 1.5, "last": 19.5, "min": 1.0},
    }


def test_committed_record_is_of_the_settings_as_they_are() -> None:
    """Nobody edited a setting that has runs on record, and every row adds up."""
    jobs = list(known_arguments())
    assert missing(jobs) == []
    for _, row in read("runs").iterrows():
        returns = json.loads(row["eval_returns"])
        # The first runs of sb3_contrib's kept their mean only
        assert len(returns) == 20 or (row["algorithm"] == "contrib" and not returns)
        assert not returns or abs(np.mean(returns) - row["eval_mean"]) < 0.02
