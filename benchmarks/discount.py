"""
Where a robot that falls ends its episode, the discount decides whether falling pays: ``python -m benchmarks.discount``.

Draws the runs on Hopper that are on record as paths of episode length and reward per step, a panel per discount factor, over
the return that is maximised there, and prints where each of them ended. Writes ``benchmarks/results/returns/discount.png``.

An episode that gains r a step and falls after L steps has the discounted return r (1 - γ^L) / (1 - γ). One that the time limit
ends goes on for the critic, with r / (1 - γ).
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from benchmarks import settings
from benchmarks.report import in_digits, markdown, panels
from benchmarks.results import IDENTITY, RESULTS, read
from sb3_trpo import TRPO

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

TASK, TIME_LIMIT = "Hopper-v5", 1000
SETTING = "first-round"


def discounted_return(reward: np.ndarray | float, length: np.ndarray | float, discount: float) -> np.ndarray:
    """
    Return what an episode is worth at its start.

    :param reward: of each step
    :param length: steps until it ends; from ``TIME_LIMIT`` on it does not
    :param discount: factor for each step
    """
    lost = np.where(np.asarray(length) < TIME_LIMIT, discount ** np.asarray(length), 0.0)
    return reward * (1.0 - lost) / (1.0 - discount)


def paths(results: Path = RESULTS) -> pd.DataFrame:
    """
    Return the learning curves of the runs that differ in their discount alone, where they have the lengths of their episodes.

    :return: with the columns ``discount``, ``length``, ``reward`` (per step) and those that tell the run
    """
    runs, curves = read("runs", results), read("curves", results)
    runs = runs[(runs["env"] == TASK) & (runs["algorithm"] == "trpo")]
    given = runs["hyperparameters"].map(json.loads)
    common = settings.with_defaults(TRPO, settings.load("trpo", SETTING, TASK))
    alike = given.map(lambda arguments: {**common, **arguments, "gamma": common["gamma"]} == common)
    runs = runs.assign(discount=given.map(lambda arguments: arguments["gamma"]))[alike]
    curves = curves.dropna(subset="train_length_last_100").merge(runs[[*IDENTITY, "discount", "eval_mean"]], on=IDENTITY)
    length = curves["train_length_last_100"]
    return curves.assign(length=length, reward=curves["train_mean_last_100"] / length)


def draw_panel(axis: Axes, curves: pd.DataFrame, discount: float) -> None:
    """Draw the runs with one discount factor over the return that they maximise."""
    lengths, rewards = np.linspace(50, TIME_LIMIT, 400), np.linspace(0.8, 4.0, 200)
    worth = discounted_return(rewards[:, None], lengths[None, :], discount)
    axis.contourf(lengths, rewards, worth / worth.max(), levels=np.linspace(0.0, 1.0, 21), cmap="Greys", alpha=0.55)
    axis.contour(lengths, rewards, worth / worth.max(), levels=np.linspace(0.1, 0.95, 18), colors="white", linewidths=0.6)
    for seed, run in curves.groupby("seed"):
        (line,) = axis.plot(run["length"], run["reward"], color=f"C{seed % 10}", linewidth=1.2, alpha=0.9)
        axis.plot(*run[["length", "reward"]].iloc[-1], "o", color=line.get_color(), markersize=6, mec="black", mew=0.6)
    axis.set_title(f"discount {discount:g}", loc="left", fontsize="medium")
    axis.set(xlim=(50, TIME_LIMIT), ylim=(0.8, 4.0))


def draw(curves: pd.DataFrame, path: Path) -> None:
    """Draw a panel per discount factor."""
    discounts = sorted(set(curves["discount"]))
    figure, axes = panels(len(discounts), 2, sharex=True, sharey=True)
    for axis, discount in zip(axes, discounts, strict=True):
        draw_panel(axis, curves[curves["discount"] == discount], discount)
    figure.supxlabel("steps of an episode, mean of the last 100", fontsize="medium")
    figure.supylabel("reward per step", fontsize="medium")
    seeds = sorted(set(curves["seed"]))
    handles = [Line2D([], [], color=f"C{seed % 10}", marker="o", mec="black", mew=0.6, label=f"seed {seed}") for seed in seeds]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(seeds), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(curves: pd.DataFrame) -> str:
    """Return a row per run with what the last hundred episodes of training were like."""
    last = curves.sort_values("timesteps").groupby(IDENTITY).tail(1).sort_values(["discount", "seed"])
    rows = []
    for run in last.itertuples():
        worth = discounted_return(run.reward, run.length, run.discount)
        cells = (f"{run.discount:g}", run.seed, f"{run.length:.0f}", f"{run.reward:.2f}", f"{worth:.0f}")
        rows.append([*cells, in_digits(run.eval_mean)])
    return markdown(["discount", "seed", "steps", "reward per step", "discounted return", "evaluation return"], rows)


def main() -> None:
    """Draw and print what is on record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    curves = paths()
    draw(curves, RESULTS / "discount.png")
    print(table(curves))


if __name__ == "__main__":
    main()
