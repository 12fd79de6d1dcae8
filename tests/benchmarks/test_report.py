"""The report says what is on record: means with their errors, scores, intervals, effects of the design, figures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import trim_mean

from benchmarks import report, settings, train
from benchmarks.results import collect, read
from benchmarks.train import Run
from tests.benchmarks.fake_runs import QUICK, record, write_run


def test_report_averages_over_seeds_with_their_standard_error(tmp_path: Path) -> None:
    """Mean ± s/√n over seeds, the number of seeds, and each of them."""
    runs = record({("trpo", "Hopper-v5"): [1000.0, 2000.0, 3000.0], ("ppo", "Hopper-v5"): [500.0]}, tmp_path)
    longer = runs["algorithm"].map({"trpo": '{"n_timesteps": 1000000}', "ppo": '{"n_timesteps": 300000}'})
    assert "| Hopper-v5 | 1M / 300k |" in report.table_of_returns(runs.assign(hyperparameters=longer))
    error = np.std([1000, 2000, 3000], ddof=1) / np.sqrt(3)
    assert f"| Hopper-v5 | 1.024k | 2,000 ± {error:.1f} (3) | 500.0 (1) | 3,372 |" in report.table_of_returns(runs)
    assert "0: 1,000 ± 1.0, 1: 2,000 ± 1.0, 2: 3,000 ± 1.0" in report.table_of_seeds(runs)


def test_report_tells_the_worst_and_the_median_seed(tmp_path: Path) -> None:
    """A mean hides a seed that failed; who has not run a task has no cell."""
    runs = record(
        {("trpo", "Hopper-v5"): [1000.0, 9.0, 3000.0], ("ppo", "Hopper-v5"): [5.0, 6.0], ("ppo", "Ant-v5"): [7.0]}, tmp_path
    )
    lines = report.table_of_spread(runs).splitlines()
    assert lines[0] == "| task | sb3_trpo.TRPO: worst, median | stable_baselines3.PPO: worst, median |"
    assert lines[2:] == ["| Hopper-v5 | 9.0, 1,000 | 5.0, 5.5 |", "| Ant-v5 |  | 7.0, 7.0 |"]


def test_scores_are_of_tasks_and_seeds_that_are_complete(tmp_path: Path) -> None:
    """A task that one algorithm has not run, and a seed that has not run every task, do not enter an average."""
    returns = {
        ("trpo", "Hopper-v5"): [3372.0, 1686.0, 0.0],
        ("trpo", "Acrobot-v1"): [-73.5, -500.0],
        ("trpo", "Ant-v5"): [1.0, 1.0, 1.0],
        ("ppo", "Acrobot-v1"): [-500.0, -73.5],
        ("ppo", "Hopper-v5"): [0.0, 3372.0],
    }
    scores = report.complete_scores(record(returns, tmp_path))
    assert scores.tasks == ["Hopper-v5", "Acrobot-v1"]
    np.testing.assert_allclose(scores.matrices["trpo"], [[1.0, 1.0], [0.5, 0.0]], atol=1e-9)
    np.testing.assert_allclose(scores.matrices["ppo"], [[0.0, 0.0], [1.0, 1.0]], atol=1e-9)


def test_scores_are_aggregated_with_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interquartile mean is the mean of the middle half, the intervals hold it; who is always better is so with p = 1."""
    monkeypatch.setattr(report, "BOOTSTRAP_RESAMPLES", 200)
    generator = np.random.default_rng(0)
    ours, theirs = generator.uniform(1, 2, (5, 3)), generator.uniform(0, 1, (3, 3))
    scores = report.Scores(["a", "b", "c"], {"trpo": ours, "ppo": theirs})
    points, intervals = report.aggregate(scores)
    np.testing.assert_allclose(points["trpo"], [trim_mean(ours.flatten(), 0.25), ours.mean()])
    low, high = intervals["trpo"]
    assert np.all(low < points["trpo"]) and np.all(points["trpo"] < high) and np.all(low > 1.0)
    chances, _ = report.improvement(scores)
    assert chances["trpo,ppo"] == 1.0
    text = report.table_of_scores(scores)
    assert f"| sb3_trpo.TRPO | 5 | {points['trpo'][0]:.3f} [{low[0]:.3f}, {high[0]:.3f}]" in text
    assert "| stable_baselines3.PPO | 1.00 [1.00, 1.00] |" in text


def test_curves_are_averaged_with_bootstrap_intervals() -> None:
    """Seeds on different grids are read at the same steps; the interval lies within them and has the bootstrap's width."""
    ends = {seed: float(np.random.default_rng(seed).normal()) for seed in range(20)}
    parts = [
        pd.DataFrame({"seed": seed, "timesteps": np.arange(0, 1001, 50 + seed), "train_mean_last_100": end})
        for seed, end in ends.items()
    ]
    steps, mean, low, high = report.mean_curve(pd.concat(parts))
    values = np.array(list(ends.values()))
    np.testing.assert_allclose(mean, values.mean())
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std() / np.sqrt(20), rtol=0.1)
    assert steps[0] == 0 and steps[-1] <= 1000
    alone = report.mean_curve(parts[0])
    assert np.array_equal(alone[1], alone[2]) and np.array_equal(alone[1], alone[3])


def test_ablations_are_held_against_the_same_tasks_and_seeds(tmp_path: Path) -> None:
    """A seed that only one of two settings has run says nothing about their difference, nor does one with more steps."""
    for setting, seeds in {"screen": {100: 0.0, 101: 3372.0}, "third": {100: 1686.0, 102: 9999.0}}.items():
        for seed, value in seeds.items():
            write_run(Run(setting, "Hopper-v5", "trpo", seed), tmp_path / "runs", eval_returns=[value])
    twice = {**QUICK, "n_timesteps": 2048}
    write_run(Run("fourth", "Hopper-v5", "trpo", 100), tmp_path / "runs", eval_returns=[3372.0], hyperparameters=twice)
    collect(tmp_path / "runs", tmp_path)
    lines = report.table_of_ablations(read("runs", tmp_path), "screen").splitlines()
    assert lines[2:] == [
        "| `screen` | 1.024k | 100: 0.0, 101: 3,372 | +0.000 (2) |",
        "| `fourth` | 2.048k | 100: 3,372 |  |",
        "| `third` | 1.024k | 100: 1,686, 102: 9,999 | +0.500 (1) |",
    ]


def test_effects_of_the_design_are_told_apart(tmp_path: Path) -> None:
    """Where returns are a sum of what each change does, the effects come out as they went in, for every complete block."""
    design = settings.design()
    true = {change: 100.0 * index for index, change in enumerate(design)}
    for setting in next(iter(design.values())):
        value = 5000.0 + sum(true[change] for change, made in design.items() if made[setting])
        write_run(Run(setting, "Hopper-v5", "trpo", 100), tmp_path / "runs", eval_returns=[value])
    write_run(Run("screen", "Hopper-v5", "trpo", 101), tmp_path / "runs")
    collect(tmp_path / "runs", tmp_path)
    runs = read("runs", tmp_path)
    effects = report.main_effects(report.with_scores(runs))
    assert list(effects.columns) == [("Hopper-v5", 100)]
    np.testing.assert_allclose(effects["Hopper-v5", 100] * 3372.0, list(true.values()), atol=0.01)
    assert f"| {list(design)[1]} | +0.030 | +0.030 |" in report.table_of_effects(runs)


def test_report_draws_and_writes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and figures from the record alone, without a folder of runs."""
    monkeypatch.setattr(report, "BOOTSTRAP_RESAMPLES", 50)
    cases = [(name, env_id) for name in train.ALGORITHMS for env_id in ("CartPole-v1", "Acrobot-v1")]
    record({case: [-100.0 - index, -80.0] for index, case in enumerate(cases)}, tmp_path)
    write_run(Run("screen", "Hopper-v5", "trpo", 100), tmp_path / "more")
    collect(tmp_path / "more", tmp_path)
    report.report(tmp_path)
    for name in ("curves.png", "scores.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG") and (tmp_path / name).stat().st_size > 10_000
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert all(label in tables for label in report.LABELS.values()) and "Scores over 2 tasks" in tables
    assert "`screen`" in (tmp_path / "ablations.md").read_text(encoding="utf-8")


def test_report_says_nothing_of_an_empty_record(tmp_path: Path) -> None:
    """No runs, no files."""
    report.report(tmp_path)
    assert list(tmp_path.iterdir()) == []
