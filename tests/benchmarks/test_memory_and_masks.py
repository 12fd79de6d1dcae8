"""The benchmark of learning with a memory and masks: what it trains, and what it keeps."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory_and_masks
from benchmarks.memory_and_masks import TASKS, Scheduling, ShownBefore, recorded, tables


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
    n_started, terminated, info = 0, False, dict[str, Any]()
    while not terminated:
        assert env.observation_space.contains(observation)
        action = int(env.action_masks().argmax())
        n_started += action < env.shop.jobs
        observation, _, terminated, _, info = env.step(action)
    assert n_started == 15 * 15 and info["makespan"] >= 1231


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
    assert tables(rows).count("\n") == 2 + 5
