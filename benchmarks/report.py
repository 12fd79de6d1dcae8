"""
Tables and figures of what is on record: ``python -m benchmarks.report``.

Writes to ``benchmarks/results/returns``, or to ``--results``, for the settings that ship or shipped, ``tables.md`` (the
returns on each task with every seed, the worst and the median one, interquartile mean of the scores, probability of
improvement), ``curves.png`` (learning curves with 95 % bootstrap intervals over seeds) and ``scores.png`` (the score of every
seed, interquartile means and performance profiles); and ``ablations.md``, with what each other setting does beside ``--base``
on the same tasks and seeds, and the effects of the changes in the screening design.
``held_out.png`` shows what ``benchmarks.held_out`` has put on record.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from rliable import library, metrics

from benchmarks import settings
from benchmarks.results import HELD_OUT, RESULTS, read
from benchmarks.train import ALGORITHMS

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

LABELS = {"trpo": "sb3_trpo.TRPO", "contrib": "sb3_contrib.TRPO", "ppo": "stable_baselines3.PPO"}
LABELS |= {"trpo_lstm": "sb3_trpo.RecurrentTRPO", "ppo_lstm": "sb3_contrib.RecurrentPPO"}
COLOURS = {"trpo": "#0072B2", "contrib": "#D55E00", "ppo": "#999999", "trpo_lstm": "#0072B2", "ppo_lstm": "#999999"}
# What is held against the other algorithms
COMPARED = (settings.TUNED, *settings.SHIPPED_BEFORE)
BOOTSTRAP_RESAMPLES = 2000
SCORES_OF_PROFILE = np.linspace(0.0, 2.0, 81)


class Scores(NamedTuple):
    """
    The scores of the algorithms that have run the same tasks.

    :param tasks: those that every algorithm has run
    :param matrices: algorithm -> array of shape (n_seeds, n_tasks); only seeds that ran every task
    """

    tasks: list[str]
    matrices: dict[str, np.ndarray]


def sorted_tasks(names: Iterable[str]) -> list[str]:
    """Return environment ids in the order of ``settings.GROUPS``."""
    order = [env_id for group in settings.GROUPS.values() for env_id in group]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def algorithms_in(runs: pd.DataFrame) -> list[str]:
    """Return the algorithms that have runs, in the order of ``ALGORITHMS``."""
    return [name for name in ALGORITHMS if name in set(runs["algorithm"])]


def markdown(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def in_digits(value: float) -> str:
    """Return a return with the digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def in_words(values: pd.Series) -> str:
    """Return mean, standard error over seeds and number of seeds."""
    error = f" ± {in_digits(values.std(ddof=1) / np.sqrt(len(values)))}" if len(values) > 1 else ""
    return f"{in_digits(values.mean())}{error} ({len(values)})"


def steps_asked_for(runs: pd.DataFrame) -> pd.Series:
    """Return the environment steps that each run was to have; whole rollouts may make them a few more."""
    return runs["hyperparameters"].map(lambda hyperparameters: json.loads(hyperparameters)["n_timesteps"])


def in_thousands(steps: pd.Series) -> str:
    """Return the numbers of steps that there are as they are spoken of: 1M, 300k."""
    return ", ".join(map(EngFormatter(sep=""), sorted(set(steps))))


def table_of_returns(runs: pd.DataFrame) -> str:
    """
    Return a row per task: mean ± standard error of the evaluation returns, number of seeds, and what scores 1.

    Steps are one number if every algorithm had as many, else one for each of them.
    """
    algorithms = algorithms_in(runs)
    scale = settings.scale()
    runs = runs.assign(steps=steps_asked_for(runs))
    rows = []
    for task in sorted_tasks(set(runs["env"])):
        parts = [runs[(runs["env"] == task) & (runs["algorithm"] == name)] for name in algorithms]
        cells = [in_words(part["eval_mean"]) if len(part) else "" for part in parts]
        steps = [in_thousands(part["steps"]) or "–" for part in parts]
        numbers = set(steps) - {"–"}
        shown = numbers.pop() if len(numbers) == 1 else " / ".join(steps)
        published = f"{scale[task][1]:,}" if task in scale else ""
        rows.append([task, shown, *cells, published])
    return markdown(["task", "steps", *(LABELS[name] for name in algorithms), "best published"], rows)


def table_of_seeds(runs: pd.DataFrame) -> str:
    """Return a row per task and algorithm with the evaluation return of every seed."""
    rows = []
    for task in sorted_tasks(set(runs["env"])):
        for name in ALGORITHMS:
            cell = runs[(runs["env"] == task) & (runs["algorithm"] == name)].sort_values("seed")
            if len(cell):
                seeds = ", ".join(
                    f"{seed}: {in_digits(value)} ± {in_digits(spread)}"
                    for seed, value, spread in cell[["seed", "eval_mean", "eval_std"]].itertuples(index=False)
                )
                rows.append([task, LABELS[name], seeds])
    return markdown(["task", "algorithm", "seed: mean ± standard deviation of 20 episodes"], rows)


def table_of_spread(runs: pd.DataFrame) -> str:
    """Return a row per task with the evaluation return of the worst and of the median seed of each algorithm."""
    algorithms = algorithms_in(runs)
    rows = []
    for task in sorted_tasks(set(runs["env"])):
        of_task = runs[runs["env"] == task].groupby("algorithm")["eval_mean"]
        both = {name: f"{in_digits(each.min())}, {in_digits(each.median())}" for name, each in of_task}
        rows.append([task, *(both.get(name, "") for name in algorithms)])
    return markdown(["task", *(f"{LABELS[name]}: worst, median" for name in algorithms)], rows)


def complete_scores(runs: pd.DataFrame) -> Scores:
    """Return the scores on the tasks that every algorithm has run, of the seeds with which it ran all of these."""
    tables = {
        name: runs[runs["algorithm"] == name].pivot(index="seed", columns="env", values="eval_mean")
        for name in algorithms_in(runs)
    }
    common = set.intersection(*(set(table) for table in tables.values())) if tables else set()
    scale = settings.scale()
    tasks = [task for task in sorted_tasks(common) if task in scale]
    zero, one = np.array([scale[task] for task in tasks]).reshape(-1, 2).T
    matrices = {name: (table[tasks].dropna().to_numpy() - zero) / (one - zero) for name, table in tables.items()}
    return Scores(tasks, {name: matrix for name, matrix in matrices.items() if matrix.size})


def scores_by_group(runs: pd.DataFrame) -> dict[str, Scores]:
    """Return the scores on the MuJoCo tasks, with one setting of ours and as many steps for all, and those on all tasks."""
    mujoco = complete_scores(runs[runs["env"].isin(settings.GROUPS["mujoco"])])
    everything = complete_scores(runs)
    groups = {f"{len(mujoco.tasks)} MuJoCo tasks": mujoco, f"{len(everything.tasks)} tasks": everything}
    return {name: scores for name, scores in groups.items() if scores.matrices}


def aggregate(scores: Scores) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return interquartile mean and mean of each algorithm, and their 95 % intervals."""
    np.random.seed(0)  # rliable draws from the global generator
    return library.get_interval_estimates(
        scores.matrices,
        lambda matrix: np.array([metrics.aggregate_iqm(matrix), metrics.aggregate_mean(matrix)]),
        reps=BOOTSTRAP_RESAMPLES,
    )


def improvement(scores: Scores) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the probability that a run of ours is better than one of each other algorithm, averaged over tasks."""
    np.random.seed(0)
    pairs = {f"trpo,{name}": (scores.matrices["trpo"], matrix) for name, matrix in scores.matrices.items() if name != "trpo"}
    return library.get_interval_estimates(pairs, metrics.probability_of_improvement, reps=BOOTSTRAP_RESAMPLES)


def table_of_scores(scores: Scores) -> str:
    """Return a row per algorithm with interquartile mean and mean of its scores."""
    points, intervals = aggregate(scores)
    rows = []
    for name, point in points.items():
        cells = [f"{p:.3f} [{low:.3f}, {high:.3f}]" for p, (low, high) in zip(point, intervals[name].T, strict=True)]
        rows.append([LABELS[name], len(scores.matrices[name]), *cells])
    text = markdown(["algorithm", "seeds", "interquartile mean [95 %]", "mean [95 %]"], rows)
    if "trpo" in scores.matrices and len(scores.matrices) > 1:
        points, intervals = improvement(scores)
        pairs = [(key.split(",")[1], float(points[key]), *intervals[key].flatten()) for key in points]
        rows = [[LABELS[name], f"{p:.2f} [{low:.2f}, {high:.2f}]"] for name, p, low, high in pairs]
        text += "\n" + markdown(["a run of ours is better than one of", "probability, averaged over tasks [95 %]"], rows)
    return text


def mean_curve(curves: pd.DataFrame, over: str = "timesteps") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Return steps, mean over seeds and its 95 % percentile bootstrap interval.

    :param curves: the rows of one task and algorithm
    :param over: the column with the steps, or with what stands in their place
    :return: arrays of shape (100,); with one seed the interval is the mean
    """
    seeds = [curve.sort_values(over) for _, curve in curves.groupby("seed")]
    first, last = max(curve[over].min() for curve in seeds), min(curve[over].max() for curve in seeds)
    steps = np.linspace(first, last, 100)
    returns = np.stack([np.interp(steps, curve[over], curve["train_mean_last_100"]) for curve in seeds])
    mean = returns.mean(axis=0)
    if len(seeds) == 1:
        return steps, mean, mean, mean
    resamples = np.random.default_rng(0).integers(len(seeds), size=(BOOTSTRAP_RESAMPLES, len(seeds)))
    low, high = np.percentile(returns[resamples].mean(axis=1), [2.5, 97.5], axis=0)
    return steps, mean, low, high


def panels(n_panels: int, n_columns: int, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """
    Return a figure with panels in rows.

    :param n_panels: how many there are
    :param n_columns: how many in a row at most
    :param kwargs: further arguments of ``plt.subplots``
    """
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
    size = (4 * n_columns, 0.5 + 2.8 * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False, **kwargs)
    for axis in axes.flat[n_panels:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:n_panels])


def draw_curves(curves: pd.DataFrame, path: Path, over: str = "timesteps", label: str = "environment steps") -> None:
    """
    Draw a panel per task with the learning curve of each algorithm.

    :param curves: their points
    :param path: where to
    :param over: the column along the horizontal axis
    :param label: of that axis
    """
    tasks = sorted_tasks(set(curves["env"]))
    figure, axes = panels(len(tasks), 3)
    for axis, task in zip(axes, tasks, strict=True):
        for name in ALGORITHMS:
            part = curves[(curves["env"] == task) & (curves["algorithm"] == name)]
            if len(part):
                steps, mean, low, high = mean_curve(part, over)
                axis.plot(steps, mean, color=COLOURS[name], label=LABELS[name])
                axis.fill_between(steps, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)
        axis.set_title(task, loc="left", fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supxlabel(label, fontsize="medium")
    figure.supylabel("mean return of the last 100 episodes", fontsize="medium")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_seeds(axis: Axes, runs: pd.DataFrame) -> None:
    """
    Draw a row per task with a dot for the score of every seed, and a line at the mean of each algorithm.

    :param axis: what to draw on
    :param runs: with a column ``score``
    """
    tasks = sorted_tasks(set(runs["env"]))
    algorithms = algorithms_in(runs)
    heights = {name: 0.25 * (index - (len(algorithms) - 1) / 2) for index, name in enumerate(algorithms)}
    for row, task in enumerate(tasks):
        axis.axhspan(row - 0.5, row + 0.5, color="#f5f5f5" if row % 2 else "white", linewidth=0)
        for name, height in heights.items():
            values = runs[(runs["env"] == task) & (runs["algorithm"] == name)]["score"]
            if len(values):
                axis.plot(values, [row + height] * len(values), "o", color=COLOURS[name], alpha=0.6, markersize=4.5, mew=0)
                axis.plot(values.mean(), row + height, "|", color=COLOURS[name], markersize=9, mew=2)
    axis.axvline(1.0, color="#999999", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(tasks)), tasks)
    axis.tick_params("y", length=0)
    axis.set_ylim(len(tasks) - 0.5, -0.5)
    axis.set_title("every seed", loc="left", fontsize="medium")
    axis.set_xlabel("score (1: best published)")


def draw_aggregates(axis: Axes, groups: Mapping[str, Scores]) -> None:
    """Draw for each group of tasks the interquartile mean of each algorithm with its interval."""
    y, ticks = 0.0, []
    for scores in groups.values():
        points, intervals = aggregate(scores)
        ticks.append(y + (len(points) - 1) / 2)
        for name, (point, _) in points.items():
            below, above = np.abs(intervals[name][:, 0] - point)
            axis.errorbar(point, y, xerr=[[below], [above]], fmt="o", color=COLOURS[name], capsize=3, markersize=5)
            axis.annotate(f"{point:.2f}", (point, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize="small")
            y += 1.0
        y += 0.8
    axis.set_yticks(ticks, [name.replace(" tasks", "\ntasks") for name in groups])
    axis.tick_params("y", length=0)
    axis.set_ylim(y - 1.3, -0.8)
    axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
    axis.set_title("interquartile mean with 95 % bootstrap interval", loc="left", fontsize="medium")
    axis.set_xlabel("score")


def draw_profiles(axis: Axes, scores: Scores) -> None:
    """Draw the performance profiles."""
    np.random.seed(0)
    profiles, bands = library.create_performance_profile(
        scores.matrices,
        SCORES_OF_PROFILE,
        # The same as rliable's own without a Python loop over the thresholds
        custom_profile_func=lambda matrix, thresholds: np.mean(matrix[..., None] > thresholds, axis=(0, 1)),
        reps=BOOTSTRAP_RESAMPLES,
    )
    for name, profile in profiles.items():
        axis.plot(SCORES_OF_PROFILE, profile, color=COLOURS[name])
        axis.fill_between(SCORES_OF_PROFILE, *bands[name], color=COLOURS[name], alpha=0.2, linewidth=0)
    axis.set_title(f"performance profiles, {len(scores.tasks)} tasks", loc="left", fontsize="medium")
    axis.set(xlabel="score", ylabel="share of runs above it", ylim=(0.0, 1.02))


def draw_scores(runs: pd.DataFrame, groups: Mapping[str, Scores], path: Path) -> None:
    """Draw the scores of every seed beside interquartile means and, for the last group, performance profiles."""
    runs = with_scores(runs).dropna(subset="score")
    figure, axes = plt.subplot_mosaic(
        [["seeds", "aggregates"], ["seeds", "profiles"]],
        figsize=(12, max(4.5, 1.2 + 0.4 * runs["env"].nunique())),
        layout="constrained",
        width_ratios=(1.35, 1),
        height_ratios=(1, 1.15),
    )
    draw_seeds(axes["seeds"], runs)
    draw_aggregates(axes["aggregates"], groups)
    draw_profiles(axes["profiles"], list(groups.values())[-1])
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
    algorithms = algorithms_in(runs)
    handles = [Line2D([], [], color=COLOURS[name], marker="o", markersize=5) for name in algorithms]
    figure.legend(handles, [LABELS[name] for name in algorithms], loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_held_out(found: pd.DataFrame, path: Path) -> None:
    """Draw a panel per task and moment of training with the gain on held-out rollouts, over damping and lambda."""
    found = found[found["std"] == "held"]
    tasks, moments = sorted_tasks(set(found["env"])), sorted(set(found["steps"]))
    figure, axes = plt.subplots(
        len(moments), len(tasks), figsize=(3.6 * len(tasks), 0.8 + 2.5 * len(moments)), layout="constrained", squeeze=False
    )
    lambdas = sorted(set(found["gae_lambda"]))
    colours = plt.colormaps["viridis"](np.linspace(0.0, 0.85, len(lambdas)))
    for (row, column), axis in np.ndenumerate(axes):
        panel = found[(found["env"] == tasks[column]) & (found["steps"] == moments[row])]
        for gae_lambda, colour in zip(lambdas, colours, strict=True):
            line = panel[panel["gae_lambda"] == gae_lambda].sort_values("damping")
            gain, error = line["held_out_gain"], line["standard_error"]
            axis.plot(line["damping"], gain, color=colour, marker="o", markersize=3, label=f"$\\lambda$ = {gae_lambda:g}")
            axis.fill_between(line["damping"], gain - error, gain + error, color=colour, alpha=0.12, linewidth=0)
        axis.axhline(0.0, color="#999999", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_title(f"{tasks[column]}, {moments[row]:,} steps", loc="left", fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("damping", fontsize="medium")
    figure.supylabel("gain on other rollouts\n[standard deviations of the advantages]", fontsize="medium")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(lambdas), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def with_scores(runs: pd.DataFrame) -> pd.DataFrame:
    """Add a column with the score of each run, NaN where the task has no scale."""
    scale = settings.scale()
    zero, one = np.array([scale.get(env, (np.nan, np.nan)) for env in runs["env"]]).reshape(-1, 2).T
    return runs.assign(score=(runs["eval_mean"] - zero) / (one - zero))


def table_of_ablations(runs: pd.DataFrame, base: str) -> str:
    """
    Return a row per setting: the return of each seed, and how its mean score differs from the base's.

    The difference is over the tasks and seeds of both, and only where both had as many steps.

    :param runs: of ours, with other settings than ``tuned``
    :param base: the setting that the others are held against
    """
    runs = with_scores(runs).assign(steps=steps_asked_for(runs))
    tasks = sorted_tasks(set(runs["env"]))
    key = ["env", "seed", "algorithm", "steps"]
    base_scores = runs[runs["setting"] == base].set_index(key)["score"]
    rows = []
    for name in sorted(set(runs["setting"]), key=lambda name: (name != base, name)):
        own = runs[runs["setting"] == name]
        gains = (own.set_index(key)["score"] - base_scores).dropna()
        cells = []
        for task in tasks:
            cell = own[own["env"] == task].sort_values("seed")
            values = cell[["seed", "eval_mean"]].itertuples(index=False)
            cells.append(", ".join(f"{seed}: {in_digits(value)}" for seed, value in values))
        rows.append(
            [f"`{name}`", in_thousands(own["steps"]), *cells, f"{gains.mean():+.3f} ({len(gains)})" if len(gains) else ""]
        )
    return markdown(["setting", "steps", *tasks, f"mean score − that of `{base}` (pairs)"], rows)


def main_effects(runs: pd.DataFrame) -> pd.DataFrame:
    """
    Return what each change of the screening design does to the score: mean of the runs with it less mean of those without.

    :param runs: with a column ``score``
    :return: a row per change; a column per task and seed for which all twelve settings have run
    """
    design = settings.design()
    names = list(next(iter(design.values())))
    effects = {}
    for block, part in runs[runs["setting"].isin(names)].groupby(["env", "seed"]):
        scores = part.set_index("setting")["score"]
        if len(scores) == len(names):
            sign = {change: np.array([1 if made[name] else -1 for name in names]) for change, made in design.items()}
            effects[block] = {change: float(signs @ scores[names]) / (len(names) / 2) for change, signs in sign.items()}
    return pd.DataFrame(effects, index=list(design))


def table_of_effects(runs: pd.DataFrame) -> str:
    """Return a row per change of the screening design: its effect on the score for each task and seed, and their mean."""
    effects = main_effects(with_scores(runs))
    if effects.empty:
        return ""
    rows = []
    for change, values in effects.iterrows():
        error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else ""
        rows.append([change, *(f"{value:+.3f}" for value in values), f"{values.mean():+.3f}{error}"])
    header = ["change", *(f"{env}, seed {seed}" for env, seed in effects.columns), "mean ± standard error"]
    return markdown(header, rows)


def write_tables(runs: pd.DataFrame, groups: Mapping[str, Scores], path: Path, command: str = "benchmarks.report") -> None:
    """Write ``tables.md``."""
    text = f"# Returns\n\nWritten by `python -m {command}`. 20 deterministic episodes of the final policy; "
    text += "mean ± standard error over seeds (number of seeds). "
    text += f"Where there are several numbers of steps, they are in the order of the columns.\n\n{table_of_returns(runs)}"
    text += f"\n## Worst and median seed\n\n{table_of_spread(runs)}"
    for name, scores in groups.items():
        text += f"\n## Scores over {name}\n\n{', '.join(scores.tasks)}; the scale is `settings/scores.yml`."
        text += "\n\n" + table_of_scores(scores)
    path.write_text(f"{text}\n## Every seed\n\n{table_of_seeds(runs)}", encoding="utf-8")


def write_ablations(runs: pd.DataFrame, path: Path, base: str) -> None:
    """Write ``ablations.md``."""
    text = "# Settings tried\n\nWritten by `python -m benchmarks.report`. Mean of 20 deterministic episodes, for each seed; "
    text += f"scores are on the scale of `settings/scores.yml`.\n\n{table_of_ablations(runs, base)}"
    effects = table_of_effects(runs)
    if effects:
        text += f"\n## What each change of the screening design does to the score\n\n{effects}"
    path.write_text(text, encoding="utf-8")


def report(results: Path = RESULTS, base: str = "screen") -> None:
    """Write every table and figure that the record allows; settings that were tried are held against the base."""
    runs, curves = read("runs", results), read("curves", results)
    compared = runs["setting"].isin(COMPARED)
    tuned, other = runs[compared], runs[~compared]
    if len(tuned):
        groups = scores_by_group(tuned)
        write_tables(tuned, groups, results / "tables.md")
        draw_curves(curves[curves["setting"].isin(COMPARED)], results / "curves.png")
        if groups:
            draw_scores(tuned, groups, results / "scores.png")
    if len(other):
        write_ablations(other, results / "ablations.md", base)
    if (results / HELD_OUT).exists():
        draw_held_out(pd.read_csv(results / HELD_OUT), results / "held_out.png")
    for name in ("tables.md", "ablations.md"):
        if (results / name).exists():
            print((results / name).read_text(encoding="utf-8"))


def main() -> None:
    """Report what sweeps have put on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--base", default="screen", help="the setting that the others are held against")
    arguments = parser.parse_args()
    report(arguments.results, arguments.base)


if __name__ == "__main__":
    main()
