"""
Defaults beside defaults: what whoever changes the import line and nothing else gets.

``python -m benchmarks.library_defaults --seeds 20-24 --workers 2`` trains ours, sb3_contrib's TRPO and SB3's PPO on nine
tasks, with one environment, nothing normalized and every hyperparameter as its library has it. Then it times rollouts and
updates of the three in turn, and writes to ``benchmarks/results/defaults``: ``tables.md``, ``scores.png``, ``curves.png`` over
environment steps and ``curves_over_time.png`` over seconds of computing. What is on record is not run again; ``--seeds``
without a number only writes.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import signal
import sys
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch as th

from benchmarks import report, settings
from benchmarks.results import read
from benchmarks.sweep import parse_seeds, sweep
from benchmarks.train import RUNS, Run, make_model, make_training_env

RESULTS = Path(__file__).parent / "results" / "defaults"
ALGORITHMS = ("trpo", "contrib", "ppo")
# 100,000 steps where that solves it, 300,000 elsewhere
SETTINGS = {"CartPole-v1": "library-defaults-short"} | dict.fromkeys(
    (
        *("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5"),
        *("Acrobot-v1", "Pendulum-v1", "LunarLander-v3", "LunarLanderContinuous-v3"),
    ),
    "library-defaults",
)
COSTS = "costs.csv"


def jobs(seeds: list[int]) -> list[Run]:
    """Return the runs of the comparison, every task with one seed before the next seed."""
    return [Run(SETTINGS[env], env, name, seed) for seed, env, name in product(seeds, SETTINGS, ALGORITHMS)]


def milliseconds_per_step(env_id: str, rounds: int) -> dict[str, float]:
    """
    Return what a step costs each algorithm, rollouts, updates and all: milliseconds of computing on one thread.

    :param env_id: task
    :param rounds: number of rollouts and updates; the algorithms take turns. The median counts, and the first is a warm-up
    """
    models = {}
    for name in ALGORITHMS:
        run = Run(SETTINGS[env_id], env_id, name, seed=0)
        hyperparameters = settings.load(name, run.setting, env_id)
        models[name] = make_model(name, hyperparameters, env=make_training_env(run, hyperparameters), seed=run.seed)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds + 1):
        for name, model in models.items():
            start, before = time.process_time(), model.num_timesteps
            model.learn(model.n_steps, reset_num_timesteps=False)
            seconds[name].append((time.process_time() - start) / (model.num_timesteps - before))
    return {name: 1000 * median(values[1:]) for name, values in seconds.items()}


def costs(results: Path, rounds: int) -> pd.DataFrame:
    """Return milliseconds per step, a row per task and a column per algorithm; tasks that are not on record are measured."""
    path = results / COSTS
    known = pd.read_csv(path, index_col="env") if path.exists() else pd.DataFrame(columns=[*ALGORITHMS])
    for env_id in SETTINGS:
        if env_id not in known.index:
            known.loc[env_id] = milliseconds_per_step(env_id, rounds)
            known.round(4).to_csv(path, index_label="env")
    return known


def with_seconds(curves: pd.DataFrame, cost: pd.DataFrame) -> pd.DataFrame:
    """Add a column with the seconds of computing up to each point of the curves."""
    each = np.array([cost.loc[env, name] for env, name in zip(curves["env"], curves["algorithm"], strict=True)])
    return curves.assign(seconds=curves["timesteps"] * each / 1000)


def first_reached(curves: pd.DataFrame, goal: float) -> float:
    """Return the seconds after which the mean over seeds first is at a return; NaN if it never is."""
    seconds, mean, _, _ = report.mean_curve(curves, "seconds")
    return float(seconds[np.argmax(mean >= goal)]) if np.any(mean >= goal) else float("nan")


def table_of_time(curves: pd.DataFrame) -> str:
    """Return a row per task: the return in training with which PPO ends, and after how many seconds each first has it."""
    rows = []
    for env_id in report.sorted_tasks(set(curves["env"])):
        parts = {name: curves[(curves["env"] == env_id) & (curves["algorithm"] == name)] for name in ALGORITHMS}
        if all(len(part) for part in parts.values()):
            goal = float(report.mean_curve(parts["ppo"], "seconds")[1][-1])
            seconds = {name: first_reached(part, goal) for name, part in parts.items()}
            cells = [f"{value:.0f} s" if value == value else "not reached" for value in seconds.values()]
            share = seconds["trpo"] / seconds["ppo"]
            rows.append([env_id, report.in_digits(goal), *cells, f"{share:.2f}" if share == share else ""])
    return report.markdown(["task", "PPO's final return", *(report.LABELS[name] for name in ALGORITHMS), "ours / PPO"], rows)


def table_of_shares(runs: pd.DataFrame) -> str:
    """Return a row per task: mean scores, and ours as a share of the better of the two others."""
    means = report.with_scores(runs).groupby(["env", "algorithm"])["score"].mean().unstack().reindex(columns=[*ALGORITHMS])
    rows = []
    for env_id in report.sorted_tasks(means.dropna().index):
        ours, others = means.loc[env_id, "trpo"], means.loc[env_id, ["contrib", "ppo"]]
        rows.append([env_id, *(f"{score:.3f}" for score in (ours, *others)), f"{ours / others.max():.2f}"])
    return report.markdown(["task", *(report.LABELS[name] for name in ALGORITHMS), "ours / better of the others"], rows)


def write(results: Path, rounds: int) -> None:
    """Write every table and figure that the record allows."""
    runs, curves = read("runs", results), read("curves", results)
    curves = with_seconds(curves, costs(results, rounds))
    groups = report.scores_by_group(runs)
    report.write_tables(runs, groups, results / "tables.md", "benchmarks.library_defaults")
    with open(results / "tables.md", "a", encoding="utf-8") as file:
        file.write(f"\n## Share of the better of the others, in scores\n\n{table_of_shares(runs)}")
        file.write("\n## Seconds of computing to the return, in training, with which PPO ends\n\n")
        file.write(
            "Where the mean over seeds of the last 100 episodes first is there; seconds on one thread, measured in turns.\n\n"
        )
        file.write(table_of_time(curves))
    report.draw_curves(curves, results / "curves.png")
    report.draw_curves(curves, results / "curves_over_time.png", "seconds", "seconds of computing, on one thread")
    if groups:
        report.draw_scores(runs, groups, results / "scores.png")
    print((results / "tables.md").read_text(encoding="utf-8"))


def main() -> int:
    """Run what is not on record, and write; the exit status says whether a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", default=["20-24"], help="numbers and ranges, both ends included")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="rollouts and updates that are timed")
    parser.add_argument("--runs", type=Path, default=RUNS / "defaults")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the workers too
    th.set_num_threads(1)
    wanted = jobs(parse_seeds(arguments.seeds))
    failed = sweep(wanted, workers=arguments.workers, runs=arguments.runs, results=arguments.results)
    write(arguments.results, arguments.rounds)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
