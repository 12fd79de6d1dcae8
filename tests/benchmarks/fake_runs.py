"""Runs on record that nobody has run."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import settings
from benchmarks.results import collect, read
from benchmarks.train import Run

QUICK = settings.load("trpo", "quick", "CartPole-v1")


def run_json(run: Run, **changes: Any) -> dict[str, Any]:
    """Return what a run writes down, without having run it."""
    result = {"hyperparameters": QUICK, "versions": {}, "commit": "", "timesteps": 1024, "train_seconds": 1.0}
    return {**run._asdict(), **result, "train_mean_last_100": 20.0, "eval_returns": [10.0, 30.0], **changes}


def write_run(run: Run, runs: Path, **changes: Any) -> None:
    """Make a folder look as if a run had finished there."""
    folder = run.folder(runs)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run_json(run, **changes)))
    (folder / "progress.csv").write_text("time/total_timesteps,rollout/ep_rew_mean\n512,\n1024,20.0\n")


def record(returns: dict[tuple[str, str], list[float]], folder: Path) -> pd.DataFrame:
    """Put runs of the setting ``tuned`` on record: (algorithm, environment id) -> return of each seed."""
    runs = folder / "runs"
    for (algorithm, env_id), values in returns.items():
        for seed, value in enumerate(values):
            write_run(Run("tuned", env_id, algorithm, seed), runs, eval_returns=[value - 1.0, value + 1.0])
    collect(runs, folder)
    return read("runs", folder)
