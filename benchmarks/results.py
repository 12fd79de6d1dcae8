"""
The committed record of finished runs: ``runs.csv`` with a row for each, ``curves.csv`` with their thinned learning curves;
and ``held_out.csv``, what ``benchmarks.held_out`` measured.

What is in it need not be run again, on whatever machine.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import settings
from benchmarks.train import Run

RESULTS = Path(__file__).parent / "results" / "returns"
HELD_OUT = "held_out.csv"
IDENTITY = list(Run._fields)
RUN_COLUMNS = [
    *IDENTITY,
    "timesteps",
    "eval_mean",
    "eval_std",
    "train_mean_last_100",
    "train_seconds",
    "commit",
    "versions",
    "hyperparameters",
    "eval_returns",
    "updates",
]
CURVE_COLUMNS = [*IDENTITY, "timesteps", "train_mean_last_100", "train_length_last_100"]
POINTS_OF_A_CURVE = 50
# Of what the updates log, where the algorithm does
LOGGED = [
    "is_line_search_success",
    "n_backtracks",
    "kl_divergence_loss",
    "surrogate_gain_ratio",
    "cg_residual",
    "explained_variance",
    "std",
]


def run_row(result: dict[str, Any]) -> dict[str, Any]:
    """Return a run's row in ``runs.csv`` from the contents of its ``run.json``."""
    returns = np.array(result["eval_returns"])
    row = {name: result[name] for name in RUN_COLUMNS if name in result}
    row |= {name: json.dumps(result[name], sort_keys=True) for name in ("versions", "hyperparameters", "eval_returns")}
    row["eval_returns"] = json.dumps([round(value, 2) for value in result["eval_returns"]])
    return row | {"eval_mean": returns.mean(), "eval_std": returns.std()}


def summary_of_updates(folder: Path) -> dict[str, dict[str, float]]:
    """Return what a run's updates were like: mean over all, over the first and over the last tenth of them, and minimum."""
    log = pd.read_csv(folder / "progress.csv")
    log.columns = log.columns.str.removeprefix("train/")
    if "surrogate_gain_expected" in log:
        log["surrogate_gain_ratio"] = log["surrogate_gain"] / log["surrogate_gain_expected"]
    summary = {}
    for name in log.columns.intersection(LOGGED, sort=False):
        values = log[name].dropna()
        tenth = -(-len(values) // 10)
        parts = {"mean": values.mean(), "first": values[:tenth].mean(), "last": values[-tenth:].mean(), "min": values.min()}
        if len(values):
            summary[name] = {part: round(float(value), 4) for part, value in parts.items()}
    return summary


def curve_rows(folder: Path) -> pd.DataFrame:
    """Return a run's rows in ``curves.csv``: some of the lines of SB3's log, the first and the last among them."""
    columns = {
        "time/total_timesteps": "timesteps",
        "rollout/ep_rew_mean": "train_mean_last_100",
        "rollout/ep_len_mean": "train_length_last_100",
    }
    log = pd.read_csv(folder / "progress.csv").reindex(columns=list(columns)).rename(columns=columns)
    # SB3 writes none before an episode has ended
    log = log.dropna(subset=["timesteps", "train_mean_last_100"])
    n_points = min(POINTS_OF_A_CURVE, len(log))
    kept = np.linspace(0, len(log) - 1, n_points).round().astype(int)
    return log.iloc[kept].astype({"timesteps": int})


def read(name: str, results: Path = RESULTS) -> pd.DataFrame:
    """
    Read what is committed.

    :param name: ``"runs"`` or ``"curves"``
    :param results: folder of the record
    :return: without a row if there is no such file
    """
    path = results / f"{name}.csv"
    columns = RUN_COLUMNS if name == "runs" else CURVE_COLUMNS
    # The lengths of episodes were not asked for until many curves were on record
    return (
        pd.read_csv(path, dtype={"commit": str}).reindex(columns=columns) if path.exists() else pd.DataFrame(columns=columns)
    )


def _write(frame: pd.DataFrame, path: Path) -> None:
    """Put a file in place of the old one, in one go."""
    scratch = path.with_suffix(f".{os.getpid()}")
    frame.round(2).to_csv(scratch, index=False)
    scratch.replace(path)


def known_arguments(results: Path = RESULTS) -> dict[Run, dict[str, Any]]:
    """Return the hyperparameters of each run on record."""
    frame = read("runs", results)
    runs = (Run(*identity) for identity in frame[IDENTITY].itertuples(index=False))
    return {run: json.loads(hyperparameters) for run, hyperparameters in zip(runs, frame["hyperparameters"], strict=True)}


def collect(runs: Path, results: Path = RESULTS, wanted: Collection[Run] | None = None) -> int:
    """
    Put the finished runs of a folder on record; what is there already stays as it is.

    :param runs: folder of all runs; those under names that are no setting's are left out
    :param results: folder of the record
    :param wanted: the runs that belong there; all if it is ``None``
    :return: number of runs that were new
    """
    known, names = known_arguments(results), settings.names()
    rows, curves = [], []
    for path in sorted(runs.glob("*/*/*/[!.]*/run.json")):  # a folder with a dot is of a run that is under way
        result = json.loads(path.read_text(encoding="utf-8"))
        run = Run(*(result[name] for name in IDENTITY))
        if run not in known and run.setting in names and (wanted is None or run in wanted):
            rows.append(run_row(result) | {"updates": json.dumps(summary_of_updates(path.parent))})
            curves.append(curve_rows(path.parent).assign(**run._asdict()))
    if rows:
        results.mkdir(parents=True, exist_ok=True)
        for name, columns, new in (("curves", CURVE_COLUMNS, curves), ("runs", RUN_COLUMNS, [pd.DataFrame(rows)])):
            old = read(name, results)
            # Curves whose run was deleted make way
            old = old[[Run(*identity) in known for identity in old[IDENTITY].itertuples(index=False)]]
            frame = pd.concat([part for part in (old, *new) if len(part)])[columns]
            by = [*IDENTITY, "timesteps"]
            _write(frame.sort_values(by, kind="stable"), results / f"{name}.csv")
    return len(rows)
