"""Pictures of a whole run: one panel for each question that is asked of it."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sb3_trpo.inspect.run_files import OF_ADVANTAGE, Run, UpdateRecord
from sb3_trpo.inspect.style import (
    BACKTRACKED,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    KEPT,
    ORANGE,
    PURPLE,
    REFUSED,
    SKY_BLUE,
    VERMILLION,
    figure_of_panels,
    plain_log_scale,
    styled,
    write_in,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASES = {
    "collect": ("collection", SKY_BLUE),
    "update": ("update", BLUE),
    "gradient": ("gradient", BLUE),
    "direction": ("conjugate gradients", ORANGE),
    "line_search": ("line search", VERMILLION),
    "critic": ("critic fit", GREEN),
    "other": ("other", GREY),
}


def outcome_of(update: UpdateRecord) -> str:
    """Return ``"full step"``, ``"backtracked"`` or ``"refused"``."""
    if not update.accepted:
        return "refused"
    return "backtracked" if update.n_backtracks else "full step"


OUTCOMES: dict[str, dict[str, Any]] = {"full step": KEPT, "backtracked": BACKTRACKED, "refused": REFUSED}


def _finite(values: Any) -> np.ndarray:
    """Return numbers with NaN, which is not drawn, in place of what is not finite."""
    numbers = np.array(values, dtype=float)
    return np.where(np.isfinite(numbers), numbers, math.nan)


def _of(updates: Sequence[UpdateRecord], name: str) -> np.ndarray:
    return _finite([getattr(update, name) for update in updates])


def _marker_size(updates: Sequence[UpdateRecord]) -> float:
    return float(np.clip(60.0 / math.sqrt(max(1, len(updates))), 2.0, 6.0))


def _line(axes: "Axes", updates: Sequence[UpdateRecord], values: np.ndarray, **look: Any) -> None:
    """Draw one number of each update as a line with dots."""
    many = len(updates) > 1500  # then a vector graphic would hold thousands of symbols
    standard: dict[str, Any] = {"marker": "o", "markersize": 0.7 * _marker_size(updates), "linewidth": 1.2, "color": BLUE}
    axes.plot(_of(updates, "num_timesteps"), values, rasterized=many, **(standard | look))


def _outcomes(axes: "Axes", updates: Sequence[UpdateRecord], name: str, *, count: bool = False) -> None:
    """Draw one number of each update with the marker of what became of its step."""
    for outcome, look in OUTCOMES.items():
        some = [update for update in updates if outcome_of(update) == outcome]
        if some:
            label = f"{outcome}: {len(some)}" if count else outcome
            _line(axes, some, _of(some, name), linestyle="", label=label, **look, markersize=_marker_size(updates))


def _level(axes: "Axes", level: float, meaning: str) -> None:
    """Draw a level that numbers are to be compared with, and say at its right end what it means."""
    axes.axhline(level, color=BLACK, linestyle="--", linewidth=1.2)
    axes.annotate(
        meaning,
        (1.0, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
    )


def _returns(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    some = [update for update in updates if update.episode_returns]
    if some:
        low, high = _finite([np.percentile(update.episode_returns, (10, 90)) for update in some]).T
        steps = _of(some, "num_timesteps")
        axes.fill_between(steps, low, high, color=SKY_BLUE, alpha=0.4, linewidth=0, label="10–90 % of the rollout's episodes")
        _line(axes, some, _finite([np.mean(u.episode_returns) for u in some]), label="mean of the rollout's episodes")
    _line(axes, updates, _of(updates, "mean_return"), color=GREY, marker="", linestyle="--", label="SB3's mean of the latest")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.4 * (top - bottom))  # the legend's place
    axes.legend(loc="upper left")


def _limit(axes: "Axes", updates: Sequence[UpdateRecord]) -> float:
    """Draw the limit where there is one; return the largest it has been, else 0."""
    limits = _of(updates, "max_kl")
    if np.isnan(limits).all():
        return 0.0
    look: dict[str, Any] = {"color": BLACK, "linestyle": "--", "linewidth": 1.2}
    axes.step(_of(updates, "num_timesteps"), limits, where="mid", label="_limit δ", **look)
    if len(updates) == 1:
        axes.axhline(limits[0], **look)
    place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
    axes.annotate(f"limit δ = {limits[-1]:g}", (1.0, limits[-1]), **place)  # type: ignore[arg-type]
    return float(np.nanmax(limits))


def _kl(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    kls = _of(updates, "mean_kl")
    top = _limit(axes, updates)
    if any(update.tells_of_search for update in updates):
        accepted = [update for update in updates if update.accepted]
        look: dict[str, Any] = {"color": GREY, "linestyle": "", "marker": "_", "markersize": 7}
        _line(axes, accepted, _of(accepted, "expected_kl"), label="predicted", **look)
        _outcomes(axes, updates, "mean_kl")
    else:
        spread = [(u.kl_quantiles[0], u.kl_quantiles[-1]) if u.kl_quantiles else (math.nan, math.nan) for u in updates]
        low, high = _finite(spread).T
        axes.fill_between(
            _of(updates, "num_timesteps"), low, high, color=SKY_BLUE, alpha=0.4, linewidth=0, label="5–95 % of the states"
        )
        _line(axes, updates, kls, label="mean")
        # One wild update must not flatten all others
        top = max(top, min(float(np.nanmax(kls)), 4.0 * float(np.nanpercentile(kls, 90))))
        top = float(np.fmax(top, np.percentile(np.append(high[~np.isnan(high)], top), 90)))
    axes.set_ylim(0.0, 1.4 * top or 1e-6)
    axes.legend(loc="upper left", ncols=3, columnspacing=1.0, handletextpad=0.4)


def _ratio(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    some = [update for update in updates if update.ratio_quantiles]
    low, middle, high = (_finite([update.ratio_quantiles[at] for update in some]) for at in (0, 2, -1))
    steps = _of(some, "num_timesteps")
    clip_range = _of(some, "clip_range")
    for sign in (-1.0, 1.0):
        axes.step(steps, 1.0 + sign * clip_range, where="mid", color=BLACK, linestyle="--", linewidth=1.2)
    axes.fill_between(steps, low, high, color=SKY_BLUE, alpha=0.4, linewidth=0, label="5–95 % of the actions")
    _line(axes, some, middle, label="median")
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0.0, bottom), top + 0.25 * (top - bottom))
    axes.plot([], [], color=BLACK, linestyle="--", linewidth=1.2, label=f"1 ± {clip_range[-1]:.3g}")
    axes.legend(loc="upper left", ncols=3, columnspacing=1.0, handletextpad=0.4)


def _outside_clip(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    _line(axes, updates, _of(updates, "outside_clip"), color=ORANGE)
    axes.set_ylim(0.0, max(0.1, 1.2 * float(np.nanmax(_of(updates, "outside_clip")))))


def _gain(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    axes.set_ylabel(f"gain [{updates[-1].gain_unit}]")
    says = "predicted" if updates[-1].tells_of_search else "linear model"
    _line(axes, updates, _of(updates, "expected_gain"), color=GREY, linestyle="--", marker="", label=says)
    _line(axes, updates, _of(updates, "surrogate_gain"), label="measured")
    if not axes.get_ylim()[0] < 0:
        axes.set_ylim(bottom=0.0)
    axes.legend(loc="best", ncols=2)


def _step_fraction(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    _outcomes(axes, updates, "step_fraction", count=True)
    axes.set_ylim(-0.05, 1.3)
    axes.set_yticks(np.linspace(0.0, 1.0, 6))
    axes.legend(loc="upper left", ncols=3, columnspacing=1.0, handletextpad=0.2)


def _cg_iterations(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    from matplotlib.ticker import MaxNLocator

    counts = np.array([max(0, len(update.cg_residual_norms) - 1) for update in updates], dtype=float)
    _line(axes, updates, counts)
    axes.set_ylim(0.0, counts.max() + 2.0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _cg_residual(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    residuals = _finite([update.cg_residual_norms[-1] if update.cg_residual_norms else math.nan for update in updates])
    counts = {max(0, len(update.cg_residual_norms) - 1) for update in updates}
    if len(counts) == 1 and counts != {0}:
        axes.set_title(f"{axes.get_title(loc='left')} after {counts.pop()}")
    _level(axes, 1.0, "1: no progress")
    _line(axes, updates, np.where(residuals > 0, residuals, math.nan))
    plain_log_scale(axes)
    axes.set_ylim(top=3.0)


def _norms(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    for name, label, look in (
        ("gradient_norm", "gradient ‖g‖", {"color": ORANGE, "marker": "^"}),
        ("step_norm", "step ‖θ − θ_old‖", {"color": BLUE}),
    ):
        lengths = _of(updates, name)
        _line(axes, updates, np.where(lengths > 0, lengths, math.nan), label=label, **look)
    plain_log_scale(axes)
    axes.legend(loc="best")


def _entropy(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    _line(axes, updates, _of(updates, "entropy"), color=PURPLE)


def _std(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    values = _of(updates, "std")
    _line(axes, updates, values, color=PURPLE)
    # What has hardly moved shall look so
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = max(0.1 * (high - low), 0.05 * high)
    axes.set_ylim(max(0.0, low - room), high + room)


def _explained_variance(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    values = _of(updates, "explained_variance")
    for level in (0.0, 1.0):
        axes.axhline(level, color=BLACK, linestyle="--", linewidth=1.0)
    # A critic that has learned nothing yet may be worse than a constant by orders of magnitude
    _line(axes, updates, np.clip(values, -1.0, None), color=GREEN)
    axes.set_ylim(-1.1, 1.25)


def _value_loss(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    _line(axes, updates, _of(updates, "value_loss_first"), color=ORANGE, marker="^", label="first pass of the fit")
    _line(axes, updates, _of(updates, "value_loss_last"), color=GREEN, label="last pass")
    plain_log_scale(axes)
    axes.legend(loc="best")


def _time(axes: "Axes", updates: Sequence[UpdateRecord]) -> None:
    seconds = {phase: np.array([update.phase_seconds.get(phase, 0.0) for update in updates]) for phase in PHASES}
    present = [phase for phase, values in seconds.items() if values.any()]
    steps = _of(updates, "num_timesteps")
    if len(updates) == 1:
        # An area needs two edges
        steps, seconds = np.array([0.0, steps[0]]), {phase: np.repeat(values, 2) for phase, values in seconds.items()}
    axes.stackplot(
        steps,
        [seconds[phase] for phase in present],
        labels=[PHASES[phase][0] for phase in present],
        colors=[PHASES[phase][1] for phase in present],
        edgecolor="white",
        linewidth=0.3,
    )
    total = np.sum([seconds[phase] for phase in present], axis=0)
    # One pause of the machine must not flatten everything else; the legend has its place above
    axes.set_ylim(0.0, 1.7 * float(np.percentile(total, 95)))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, loc="upper left", ncols=2, columnspacing=1.0)


def _positive(*values: float) -> float:
    """Return the first number that a logarithmic axis can show, NaN if there is none."""
    return next((value for value in values if 0.0 < value < math.inf), math.nan)


class Panel(NamedTuple):
    """
    One plot of a run.

    :param title: what it shows
    :param unit: label of its vertical axis
    :param draw: draws it
    :param number: returns a number of an update; if it is not finite in any there is nothing to draw
    :param otherwise: what to say then
    """

    title: str
    unit: str
    draw: Callable[["Axes", Sequence[UpdateRecord]], None]
    number: Callable[[UpdateRecord], float]
    otherwise: str = "not on record"


PANELS: dict[str, Panel] = {
    "returns": Panel(
        "Return",
        "return of an episode",
        _returns,
        lambda update: float(np.mean(update.episode_returns or update.mean_return)),
        "no episode has ended,\nor the environment has no Monitor",
    ),
    "kl": Panel(
        "How far each update went",
        "mean KL(old ‖ new) [nats]",
        _kl,
        lambda update: update.mean_kl,
        "the updates of this run\nwere not measured",
    ),
    "ratio": Panel(
        "How much likelier actions became",
        "π_new(a|s) / π_old(a|s)",
        _ratio,
        lambda update: update.ratio_quantiles[2] if update.ratio_quantiles else math.nan,
    ),
    "outside_clip": Panel(
        "Ratios outside PPO's clip", "share of the actions", _outside_clip, lambda update: update.outside_clip
    ),
    "gain": Panel("Gain of the surrogate", f"gain [{OF_ADVANTAGE}]", _gain, lambda update: update.surrogate_gain),
    "step_fraction": Panel(
        "What the line search kept", "share of the full step", _step_fraction, lambda update: update.step_fraction
    ),
    "cg_iterations": Panel(
        "Conjugate gradient iterations",
        "iterations",
        _cg_iterations,
        lambda update: _positive(len(update.cg_residual_norms)),
        "no direction was looked for",
    ),
    "cg_residual": Panel(
        "Conjugate gradient residual",
        "‖g − (F + βI)s‖ / ‖g‖",
        _cg_residual,
        lambda update: _positive(*update.cg_residual_norms[-1:]),
        "nothing was left to solve,\nor no direction was looked for",
    ),
    "norms": Panel(
        "Length of gradient and step",
        "Euclidean norm",
        _norms,
        lambda update: _positive(update.gradient_norm, update.step_norm),
        "no gradient, and no step",
    ),
    "entropy": Panel(
        "Entropy of the policy",
        "entropy [nats]",
        _entropy,
        lambda update: update.entropy,
        "the entropy of this policy\nhas no closed form",
    ),
    "std": Panel("Standard deviation of the policy", "mean std [action units]", _std, lambda update: update.std),
    "explained_variance": Panel(
        "What the critic explains: 1 all, 0 nothing",
        "explained variance",
        _explained_variance,
        lambda update: update.explained_variance,
        "nothing to explain:\nreturns that are all the same",
    ),
    "value_loss": Panel(
        "Fit of the critic",
        "mean squared error",
        _value_loss,
        lambda update: _positive(update.value_loss_last, update.value_loss_first),
        "no critic fit,\nor an error that is zero or not finite",
    ),
    "time": Panel(
        "Time of an update",
        "wall time [s]",
        _time,
        lambda update: _positive(sum(update.phase_seconds.values())),
        "no times on record",
    ),
}


# Not every policy, and not every algorithm, has them
NOT_OF_ALL = {"std", "ratio", "outside_clip"}
# Of these it is known what they did, and not how
OF_SEARCH = {"step_fraction", "cg_iterations", "cg_residual", "value_loss"}


def _is_empty(name: str, updates: Sequence[UpdateRecord]) -> bool:
    return not any(math.isfinite(PANELS[name].number(update)) for update in updates)


def panels_of(run: Run) -> tuple[str, ...]:
    """Name the panels that there is something to draw in: discrete policies have no standard deviation, PPO no line search."""
    updates = run.updates
    without = {name for name in NOT_OF_ALL if _is_empty(name, updates)}
    if not any(update.tells_of_search for update in updates):
        without |= OF_SEARCH
    elif len({len(update.cg_residual_norms) for update in updates}) == 1:
        # The same every time: the panel of the residual says how many
        without.add("cg_iterations")
    return tuple(name for name in PANELS if name not in without)


@styled
def draw_run(run: Run, panels: Sequence[str] | None = None) -> "Figure":
    """
    Draw a run against its environment steps, one panel for each question.

    :param run: from ``read_run`` or ``inspect_model``
    :param panels: which to draw, by their names in ``PANELS``; all that apply by default
    :return: a Matplotlib figure
    :raises ValueError: if there is no such panel, or no update to draw
    """
    names = panels_of(run) if panels is None else tuple(panels)
    unknown = [name for name in names if name not in PANELS]
    if unknown or not names:
        raise ValueError(f"panels must be some of {list(PANELS)}, got {list(names)}")
    if not run.updates:
        raise ValueError(f"run {run.name!r} has no update to draw")
    steps = _of(run.updates, "num_timesteps")
    room = 0.03 * (steps[-1] - steps[0])
    figure, every_axes = figure_of_panels([PANELS[name] for name in names])
    for axes, name in zip(every_axes, names, strict=True):
        if _is_empty(name, run.updates):
            write_in(axes, PANELS[name].otherwise)
            continue
        PANELS[name].draw(axes, run.updates)
        if len(run.updates) == 1:
            axes.set_xticks(steps)
        elif room > 0.0:
            axes.set_xlim(steps[0] - room, steps[-1] + room)
    return figure
