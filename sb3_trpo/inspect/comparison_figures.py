"""Pictures of several runs on the same axes."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sb3_trpo.inspect.run_files import OF_ADVANTAGE, Run, UpdateRecord
from sb3_trpo.inspect.style import (
    BLACK,
    BLUE,
    COLUMNS,
    GREEN,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    as_label,
    figure_of_panels,
    plain_log_scale,
    shortened,
    styled,
    write_in,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, BLACK, SKY_BLUE)
# No two of the first thirty-five runs have both in common
LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)))
MARKERS = "o^sDvXP"
# A line has at most so many points: each is of several updates then
POINTS = 60
# Inches that an entry of the legend takes: its line, and a letter
OF_LINE, PER_LETTER = 0.75, 0.09
# The spread is drawn of so many runs: more of them would hide each other
MOST_BANDS = 3


def look_of(number: int) -> dict[str, Any]:
    """Return how to draw a run: colour, line and marker say the same, to every kind of colour vision."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.8,
    }


def groups_of(updates: Sequence[UpdateRecord]) -> list[Sequence[UpdateRecord]]:
    """Cut a run into at most ``POINTS`` groups of updates that follow each other."""
    size = math.ceil(len(updates) / POINTS)
    return [updates[start : start + size] for start in range(0, len(updates), size)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _largest(values: Sequence[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=math.nan)


Number = Callable[[UpdateRecord], float]
OfGroup = Callable[[Sequence[float]], float]


def _series(run: Run, number: Number, of_group: OfGroup = _mean) -> tuple[np.ndarray, np.ndarray]:
    """Return where each group of updates ends, and the mean of a number over it."""
    groups = groups_of(run.updates)
    values = [of_group(list(map(number, group))) for group in groups]
    return np.array([group[-1].num_timesteps for group in groups]), np.array(values)


def _line(axes: "Axes", run: Run, number: Number, look: dict[str, Any], of_group: OfGroup = _mean) -> bool:
    """Draw one number of a run; return whether there was any."""
    steps, values = _series(run, number, of_group)
    axes.plot(steps, values, label=as_label(run.name), markevery=max(1, len(steps) // 8), **look)
    return bool(np.isfinite(values).any())


def _lines(number: Number, of_group: OfGroup = _mean) -> Callable[["Axes", Sequence[Run]], bool]:
    """Return what draws one number of every run."""

    def draw(axes: "Axes", runs: Sequence[Run]) -> bool:
        return any([_line(axes, run, number, look_of(n), of_group) for n, run in enumerate(runs)])

    return draw


def _positive(number: Number) -> Number:
    return lambda update: value if (value := number(update)) > 0.0 else math.nan


def _kl(axes: "Axes", runs: Sequence[Run]) -> bool:
    """Draw the mean KL of each update; of few runs its spread over the states, and the limit of those that keep one."""
    found = False
    for n, run in enumerate(runs):
        look = look_of(n)
        if len(runs) <= MOST_BANDS:
            steps, mean = _series(run, lambda update: update.mean_kl)
            _, high = _series(run, lambda update: update.kl_quantiles[-1] if update.kl_quantiles else math.nan)
            axes.fill_between(steps, mean, high, color=look["color"], alpha=0.15, linewidth=0)
        found |= _line(axes, run, _positive(lambda update: update.mean_kl), look)
        steps, limit = _series(run, lambda update: update.max_kl)
        axes.plot(steps, np.where(limit > 0, limit, math.nan), color=look["color"], linestyle=":", linewidth=1.2)
    if found:
        plain_log_scale(axes)
    return found


def _largest_kl(axes: "Axes", runs: Sequence[Run]) -> bool:
    found = _lines(_positive(lambda update: update.largest_kl), _largest)(axes, runs)
    if found:
        plain_log_scale(axes)
    return found


def _from_zero(number: Number) -> Callable[["Axes", Sequence[Run]], bool]:
    def draw(axes: "Axes", runs: Sequence[Run]) -> bool:
        found = _lines(number)(axes, runs)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        return found

    return draw


def _gain(axes: "Axes", runs: Sequence[Run]) -> bool:
    units = {update.gain_unit for run in runs for update in run.updates}
    axes.set_ylabel(f"gain [{units.pop() if len(units) == 1 else 'in the unit of each run'}]")
    return _from_zero(lambda update: update.surrogate_gain)(axes, runs)


def _seconds(axes: "Axes", runs: Sequence[Run]) -> bool:
    found = False
    for n, run in enumerate(runs):
        groups = groups_of(run.updates)
        before = [run.updates[0].num_timesteps - _steps_of_first(run), *(group[-1].num_timesteps for group in groups[:-1])]
        steps = np.array([group[-1].num_timesteps for group in groups])
        seconds = np.array([sum(sum(u.phase_seconds.values()) for u in group) for group in groups])
        axes.plot(
            steps,
            1000.0 * seconds / np.maximum(steps - np.array(before), 1),
            label=as_label(run.name),
            markevery=max(1, len(steps) // 8),
            **look_of(n),
        )
        found |= bool(seconds.any())
    axes.set_ylim(bottom=0.0)
    return found


def _steps_of_first(run: Run) -> int:
    """Return how many steps the first rollout on record had, as far as the second tells."""
    first, *rest = run.updates
    return rest[0].num_timesteps - first.num_timesteps if rest else first.num_timesteps


def seconds_per_1000_steps(run: Run) -> float:
    """Return the wall time of a run by its length, NaN where there are no times on record."""
    n_steps = run.updates[-1].num_timesteps - run.updates[0].num_timesteps + _steps_of_first(run)
    seconds = sum(sum(update.phase_seconds.values()) for update in run.updates)
    return 1000.0 * seconds / n_steps if seconds and n_steps else math.nan


class ComparedPanel(NamedTuple):
    """
    One plot of several runs.

    :param title: what it shows
    :param unit: label of its vertical axis
    :param caption: how to read it
    :param draw: draws it, and says whether there was anything to draw
    :param otherwise: what to say if there was not
    """

    title: str
    unit: str
    caption: str
    draw: Callable[["Axes", Sequence[Run]], bool]
    otherwise: str = "not on record"


# What a logarithmic axis can show
ABOVE_ZERO = "not on record,\nor zero throughout"

COMPARED: dict[str, ComparedPanel] = {
    "returns": ComparedPanel(
        "Return",
        "mean return of the latest episodes",
        "SB3's mean over the latest episodes.",
        _lines(lambda update: update.mean_return),
    ),
    "kl": ComparedPanel(
        "How far each update went",
        "mean KL(old ‖ new) [nats]",
        "Measured after each update over the states of its rollout. Shaded, of up to three runs: up to what 95 % of the "
        "states stay below. "
        "Dotted: the limit, of those that keep one. An update of many steps may go further than one of few.",
        _kl,
        ABOVE_ZERO,
    ),
    "largest_kl": ComparedPanel(
        "The state that changed most",
        "largest KL(old ‖ new) [nats]",
        "The largest KL of any state that was looked at, in each update.",
        _largest_kl,
        ABOVE_ZERO,
    ),
    "outside_clip": ComparedPanel(
        "Ratios outside the clip",
        "share of the actions",
        "Share of the actions whose ratio ends outside 1 ± ε, ε being that of the run's clip, or 0.2 where it has none.",
        _from_zero(lambda update: update.outside_clip),
    ),
    "gain": ComparedPanel(
        "Gain of the surrogate",
        f"gain [{OF_ADVANTAGE}]",
        "What the rollout promises of the new policy over the old one.",
        _gain,
    ),
    "entropy": ComparedPanel(
        "Entropy of the policy",
        "entropy [nats]",
        "How random the policy is after each update.",
        _lines(lambda update: update.entropy),
    ),
    "std": ComparedPanel(
        "Standard deviation of the policy",
        "mean std [action units]",
        "How far actions are scattered around their mean.",
        _lines(lambda update: update.std),
    ),
    "seconds": ComparedPanel(
        "Time",
        "wall time of 1,000 steps [s]",
        "Collection and updates together, on the machine of the run.",
        _seconds,
    ),
}


def _has(run: Run, number: Number) -> bool:
    return any(math.isfinite(number(update)) for update in run.updates)


def compared_panels_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """Name the panels that there is something to draw in, for one of the runs at least."""
    numbers: dict[str, Number] = {
        "std": lambda update: update.std,
        "entropy": lambda update: update.entropy,
        "outside_clip": lambda update: update.outside_clip,
        "largest_kl": lambda update: update.largest_kl,
    }
    without = {name for name, number in numbers.items() if not any(_has(run, number) for run in runs)}
    return tuple(name for name in COMPARED if name not in without)


@styled
def draw_comparison(runs: Sequence[Run], panels: Sequence[str] | None = None) -> "Figure":
    """
    Draw several runs on the same axes against their environment steps, one panel for each question.

    Of a long run each point is the mean over some updates that follow each other.

    :param runs: from ``read_run``, with names of their own
    :param panels: which to draw, by their names in ``COMPARED``; all that apply by default
    :return: a Matplotlib figure
    :raises ValueError: if there is no such panel, or a run without an update
    """
    empty = [run.name for run in runs if not run.updates]
    if empty or not runs:
        raise ValueError(f"there is no update to draw in {empty}" if runs else "there are no runs to draw")
    names = compared_panels_of(runs) if panels is None else tuple(panels)
    unknown = [name for name in names if name not in COMPARED]
    if unknown or not names:
        raise ValueError(f"panels must be some of {list(COMPARED)}, got {list(names)}")
    figure, every_axes = figure_of_panels([COMPARED[name] for name in names])
    width, height = figure.get_size_inches()
    longest = max(len(as_label(run.name)) for run in runs)
    n_beside = max(1, min(len(runs), 2 * min(COLUMNS, len(names)), int(width / (OF_LINE + PER_LETTER * longest))))
    figure.set_figheight(height + 0.22 * math.ceil(len(runs) / n_beside) + 0.1)
    for axes, name in zip(every_axes, names, strict=True):
        if not COMPARED[name].draw(axes, runs):
            write_in(axes, COMPARED[name].otherwise)
    handles, _ = every_axes[0].get_legend_handles_labels()
    most = int((width / n_beside - OF_LINE) / PER_LETTER)
    labels = [as_label(shortened(run.name, most)) for run in runs]
    figure.legend(handles, labels, loc="outside lower center", ncols=n_beside, handlelength=3.0)
    return figure
