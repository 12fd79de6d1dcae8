"""The benchmark of learning with a memory and masks: what it trains, and what it keeps."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory_and_masks
from benchmarks.memory_and_masks import RESULTS, TASKS, Scheduling, ShownBefore, recorded, tables

DOCS = Path(__file__).parents[2] / "docs"


def test_best_of_the_memory_task_is_what_it_says() -> None:
    """Forty of forty for who takes what was shown before; all others are possible half of the time."""
    env = ShownBefore(masked=True)
    env.reset(seed=0)
    total, n_possible, truncated = 0.0, 0, False
    while not truncated:
        n_possible += int(env.action_masks().sum())
        _, reward, _, truncated, _ = env.step(env.before)
        total += reward
    assert total == 40.0 and 40 * 1.8 < n_possible < 40 * 3.2


def test_schedule_is_made_of_possible_operations_alone() -> None:
    """Every job gets through all of its machines, and what that takes is at least what the best schedule does."""
    pytest.importorskip("JSSEnv")
    env = Scheduling()
    observation, _ = env.reset(seed=0)
    n_started, total, terminated, info = 0, 0.0, False, dict[str, Any]()
    while not terminated:
        assert env.observation_space.contains(observation)
        action = int(env.action_masks().argmax())
        n_started += action < env.shop.jobs
        observation, reward, terminated, _, info = env.step(action)
        total += reward
    assert n_started == 15 * 15 and info["makespan"] >= 1231
    # What is gained is the time that machines work, less the time that they idle
    assert total == pytest.approx((2 * env.shop.sum_op - 15 * info["makespan"]) / env.shop.max_time_op)


@pytest.mark.filterwarnings("ignore:Evaluation environment")
def test_runs_are_kept_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every algorithm of every task for a few steps; the second time nothing is left to do."""
    monkeypatch.setattr(memory_and_masks, "N_EVAL_EPISODES", 2)
    small: dict[str, Any] = {name: task._replace(timesteps=256, n_envs=2) for name, task in TASKS.items()}
    for name in ("what was shown before, some actions masked", "one of 80 actions, 60 masked"):
        monkeypatch.setattr(memory_and_masks, "TASKS", small)
        monkeypatch.setattr("sys.argv", ["", "--seeds", "0", "--tasks", name, "--folder", str(tmp_path)])
        memory_and_masks.main()
    rows = recorded(tmp_path / "runs.csv")
    assert len(rows) == 5
    memory_and_masks.main()
    assert recorded(tmp_path / "runs.csv") == rows
    table = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert table == tables(rows) and len(re.findall(r"\| -?[\d.]+ \(1\) \|", table)) == 5


def test_means_and_errors_are_those_of_the_runs() -> None:
    """Over the seeds, with no error where there is one; who was not run is named all the same."""

    def row(algorithm: str, seed: int, mean: float, seconds: float) -> dict[str, str]:
        numbers = {"seed": seed, "timesteps": 5_120, "eval_mean": mean, "eval_std": 1.0, "cpu_seconds": seconds}
        return {"task": "one of 80 actions, 60 masked", "algorithm": algorithm} | {k: str(v) for k, v in numbers.items()}

    some = [row("MaskableTRPO", 0, 60.0, 3.0), row("MaskableTRPO", 1, 64.0, 5.0)]
    # Standard deviation sqrt(8), over the root of two seeds
    assert "| MaskableTRPO | 62.0 ± 2.0 (2) | 60.0 | 5,120 | 4 |\n| MaskablePPO | not run yet |" in tables(some)
    assert "| MaskablePPO | 84.8 (1) | 84.8 | 5,120 | 14 |" in tables([row("MaskablePPO", 0, 84.75, 14.3)])


def test_tables_are_those_of_the_record() -> None:
    """Written anew by ``python -m benchmarks.memory_and_masks --tasks``."""
    assert (RESULTS / "tables.md").read_text(encoding="utf-8") == tables(recorded(RESULTS / "runs.csv"))


def test_pages_show_the_tables() -> None:
    """Each task is on a page of an algorithm that it is run with, by the comments that enclose it."""
    shown = [
        (page.stem, name)
        for page in DOCS.glob("*.md")
        for name in re.findall(r":start-after: <!-- (.+?) -->\n:end-before: <!-- end -->", page.read_text(encoding="utf-8"))
    ]
    ours = {
        "recurrent_trpo": "RecurrentTRPO",
        "maskable_trpo": "MaskableTRPO",
        "maskable_recurrent_trpo": "MaskableRecurrentTRPO",
    }
    assert sorted(name for _, name in shown) == sorted(TASKS)
    assert all(ours[page] in TASKS[name].algorithms for page, name in shown)
