"""The comparison of the libraries' defaults: what it trains, when a return is reached, and what it keeps."""

import inspect
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import library_defaults, settings
from benchmarks.library_defaults import (
    ALGORITHMS,
    RESULTS,
    SETTINGS,
    first_reached,
    table_of_shares,
    table_of_time,
    with_seconds,
)
from benchmarks.results import collect, read
from benchmarks.train import ALGORITHMS as CLASSES
from benchmarks.train import Run
from tests.benchmarks.fake_runs import record, write_run


def test_no_hyperparameter_is_chosen() -> None:
    """A setting says the policy and the length of the run; whatever else there is, is the library's."""
    for env_id, setting in SETTINGS.items():
        for name in ALGORITHMS:
            hyperparameters = settings.load(name, setting, env_id)
            assert set(hyperparameters) == {"n_timesteps", "policy"}
            arguments = settings.constructor_arguments(hyperparameters)
            assert arguments == {"policy": "MlpPolicy", "policy_kwargs": {}}
            assert "policy_kwargs" in inspect.signature(CLASSES[name]).parameters


def curves_of(ends: dict[str, list[float]], env_id: str = "Hopper-v5") -> pd.DataFrame:
    """Return straight curves from 0 at step 0 to the ends of the seeds at step 1,000."""
    parts = [
        pd.DataFrame(
            {"env": env_id, "algorithm": name, "seed": seed, "timesteps": [0, 1000], "train_mean_last_100": [0.0, end]}
        )
        for name, values in ends.items()
        for seed, end in enumerate(values)
    ]
    return pd.concat(parts, ignore_index=True)


def test_time_is_that_of_the_mean_over_seeds() -> None:
    """A step costs each algorithm its own; the return that counts is PPO's last one, for PPO too."""
    cost = pd.DataFrame({"trpo": [2.0], "contrib": [4.0], "ppo": [10.0]}, index=["Hopper-v5"])
    curves = with_seconds(curves_of({"trpo": [100.0, 300.0], "contrib": [50.0], "ppo": [90.0, 110.0]}), cost)
    # The mean of ours ends at 200 after two seconds: 100 is reached after one, up to the 100 points of a curve
    assert first_reached(curves[curves["algorithm"] == "trpo"], 100.0) == pytest.approx(1.0, abs=0.02)
    assert math.isnan(first_reached(curves[curves["algorithm"] == "contrib"], 100.0))
    assert "| Hopper-v5 | 100.0 | 1 s | not reached | 10 s | 0.10 |" in table_of_time(curves)
    assert "Hopper" not in table_of_time(curves[curves["algorithm"] != "contrib"])


def test_share_is_of_the_better_of_the_others(tmp_path: Path) -> None:
    """In scores, since returns may be negative; a task that one has not run is left out."""
    returns = {("trpo", "Pendulum-v1"): [-172.2], ("contrib", "Pendulum-v1"): [-886.1], ("ppo", "Pendulum-v1"): [-1600.0]}
    text = table_of_shares(record({**returns, ("trpo", "Ant-v5"): [3554.0]}, tmp_path))
    assert "| Pendulum-v1 | 1.000 | 0.500 | 0.000 | 2.00 |" in text and "Ant" not in text
    assert "Ant" not in table_of_shares(record({("trpo", "Ant-v5"): [3554.0]}, tmp_path / "ours"))


@pytest.mark.filterwarnings("ignore:Degrees of freedom", "ignore:invalid value")
def test_command_trains_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task, three real algorithms; the second time neither runs nor costs are made again."""
    monkeypatch.setattr(library_defaults, "SETTINGS", {"CartPole-v1": "library-defaults-short"})
    begun: list[Run] = []

    def pretend(jobs: list[Run], *, workers: int, runs: Path, results: Path) -> list[Run]:
        for run in jobs:
            if run not in begun:
                begun.append(run)
                write_run(run, runs, hyperparameters=settings.load(run.algorithm, run.setting, run.env))
        collect(runs, results)
        return []

    monkeypatch.setattr(library_defaults, "sweep", pretend)
    words = ["", "--seeds", "20-21", "--rounds", "1", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    assert library_defaults.main() == 0
    measured = (tmp_path / library_defaults.COSTS).read_text()
    assert len(begun) == 6 and len(read("runs", tmp_path)) == 6
    assert np.all(pd.read_csv(tmp_path / library_defaults.COSTS, index_col="env") > 0)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert text.startswith("# Returns\n\nWritten by `python -m benchmarks.library_defaults`.")
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png", "curves_over_time.png", "scores.png"}
    assert library_defaults.main() == 0
    assert len(begun) == 6 and (tmp_path / library_defaults.COSTS).read_text() == measured


def test_what_is_on_record_is_of_the_comparison() -> None:
    """Every run has its task's setting, and what it left to its library is what that library has now."""
    for run in read("runs", RESULTS)[list(Run._fields)].itertuples(index=False):
        assert SETTINGS[run.env] == run.setting and run.algorithm in ALGORITHMS
