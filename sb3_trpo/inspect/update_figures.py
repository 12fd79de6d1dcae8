"""Pictures of one update: the ladder of steps tried, the bubble in parameter space, the bars of what became of the policy."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_trpo.inspect.measure import kl_of_probabilities
from sb3_trpo.inspect.run_files import SliceRecord, StateChange, StatesRecord, UpdateRecord
from sb3_trpo.inspect.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    gain_colours,
    new_figure,
    styled,
    write_in,
)
from sb3_trpo.trust_region import Candidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# How many discrete factors or continuous dimensions of an action are drawn of a state
MAX_FACTORS = 4
# How many choices of a discrete action are drawn in a panel of full width, and how many letters their names may have to lie
# beside each other; half as many in one of half of it
MAX_CHOICES, MAX_LETTERS = 18, 40
# Lines of equal KL beside that of the limit, in units of it
OTHER_LEVELS = (0.25, 0.5, 2.0, 3.0)


def _multiple(kl: float, max_kl: float) -> str:
    """Write a KL in units of δ."""
    if not max_kl > 0.0:
        return "δ is 0"
    share = kl / max_kl
    return f"{share:,.0f} δ" if share >= 10.0 else f"{share:.2g} δ"


def _verdict(candidate: Candidate) -> str:
    """Say in a few words what became of a step."""
    kl, gain = f"KL {candidate.mean_kl:.3g}", f"gain {candidate.surrogate_gain:.2g}"
    words = {"": f"✓ {kl}, kept", "kl": f"✗ {kl} > δ", "gain": f"✗ {gain} ≤ 0", "kl+gain": f"✗ {kl} > δ, {gain}"}
    return words.get(candidate.refused_by, "✗ " + candidate.refused_by.replace("_", " "))


@styled
def draw_ladder(update: UpdateRecord) -> "Figure":
    """
    Draw the steps that the line search of one update tried, and the limit that they had to keep.

    :param update: from a run's ``updates``
    :return: a Matplotlib figure
    """
    tried = update.candidates
    figure = new_figure(4.6, 1.7 + 0.34 * max(2, len(tried)))
    axes = figure.subplots()
    axes.set(
        title=f"Steps tried by update {update.n_updates}", xlabel="mean KL(old ‖ new) [nats]", ylabel="share of full step"
    )
    if not tried:
        write_in(axes, f"no step was tried: {update.status.replace('_', ' ')}")
        return figure
    kls = np.array([candidate.mean_kl for candidate in tried])
    # A wild step must not squeeze the limit to nothing; it ends at the edge, with its KL in words
    largest = float(np.nanmax(np.append(kls[np.isfinite(kls)], update.max_kl)))
    edge = min(largest, 6.0 * update.max_kl) or 1e-6
    axes.axvline(update.max_kl, color=BLACK, linestyle="--", linewidth=1.2, zorder=1)
    for row, candidate in enumerate(tried):
        colour = VERMILLION if candidate.refused_by else GREEN
        end = min(candidate.mean_kl, edge) if math.isfinite(candidate.mean_kl) else edge
        axes.plot([0.0, end], [row, row], color=colour, linewidth=2.5, solid_capstyle="round", zorder=2)
        axes.plot(end, row, "X" if candidate.refused_by else "o", color=colour, markersize=8, zorder=3)
        axes.annotate(
            _verdict(candidate),
            (1.02 * max(edge, update.max_kl), row),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )
    predicted = [candidate.step_fraction**2 * update.max_kl for candidate in tried]
    axes.plot(
        predicted, range(len(tried)), "|", color=GREY, markersize=13, markeredgewidth=2, zorder=4, label="quadratic model"
    )
    axes.plot([], [], color=BLACK, linestyle="--", linewidth=1.2, label=f"limit δ = {update.max_kl:g}")
    axes.set(ylim=(len(tried) - 0.4, -0.6), xlim=(0.0, 1.02 * max(edge, update.max_kl)))
    axes.set_yticks(range(len(tried)), [f"{candidate.step_fraction:.2f}" for candidate in tried])
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter("{x:.3g}")  # a power of ten beside the axis would lie on its label
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def draw_convergence(update: UpdateRecord) -> "Figure":
    """
    Draw what each iteration of the conjugate gradients of one update left unsolved.

    :param update: from a run's ``updates``
    :return: a Matplotlib figure
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.6, 3.1)
    axes = figure.subplots()
    axes.set(title=f"Conjugate gradients of update {update.n_updates}", xlabel="iteration", ylabel="‖g − (F + βI)s‖ / ‖g‖")
    residuals = np.array(update.cg_residual_norms)
    if not len(residuals):
        write_in(axes, f"no direction was looked for: {update.status.replace('_', ' ')}")
        return figure
    stopped_by = update.cg_stopped_by.replace("_", " ")
    axes.plot(np.where(residuals > 0, residuals, math.nan), "o-", color=BLUE, markersize=4, label=stopped_by)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right", title="stopped by")
    return figure


def _label_places(plane: SliceRecord) -> list[tuple[float, float]]:
    """Find where the lines of equal KL cross the diagonal to the lower left of the old policy, where no steps go."""
    half = len(plane.fractions) // 2
    diagonal = plane.kl.diagonal()[half::-1] / plane.max_kl
    outwards = -plane.fractions[half::-1]
    places = []
    for level in OTHER_LEVELS:
        beyond = np.flatnonzero(diagonal >= level)
        if len(beyond) and beyond[0] > 0:
            inner, outer = beyond[0] - 1, beyond[0]
            at = -float(np.interp(level, diagonal[[inner, outer]], outwards[[inner, outer]]))
            places.append((at, at))
    return places


def _round_below(value: float) -> float:
    """Return the largest of 1, 2, 4, 6 and 8 times a power of ten that is no larger; half of it is round too."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(factor * power for factor in (1.0, 2.0, 4.0, 6.0, 8.0) if factor * power <= value * (1.0 + 1e-9))


def _contours(axes: "Axes", plane: SliceRecord) -> None:
    """Draw the gain in colours and lines of equal KL above them."""
    x, kl = plane.fractions, plane.kl / plane.max_kl
    finite = plane.gain[np.isfinite(plane.gain)]
    largest = max(float(np.percentile(np.abs(finite), 98)) if len(finite) else 0.0, 1e-12)
    shades = np.linspace(-largest, largest, 41)
    filled = axes.contourf(x, x, np.ma.masked_invalid(plane.gain), shades, cmap=gain_colours(), extend="both")
    ticks = _round_below(largest) * np.linspace(-1.0, 1.0, 5)
    colorbar = axes.figure.colorbar(filled, ax=axes, location="bottom", aspect=40, format="%.6g", ticks=ticks)
    colorbar.set_label(f"measured gain of the surrogate [{plane.gain_unit}]")
    colorbar.outline.set_visible(False)
    kl = np.ma.masked_invalid(kl)
    others = axes.contour(x, x, kl, OTHER_LEVELS, colors=GREY, linewidths=0.8)
    axes.clabel(others, fmt=lambda level: f"{level:g} δ", fontsize=8, manual=_label_places(plane))
    axes.contour(x, x, kl, [1.0], colors=BLACK, linewidths=2.4)


def _plain_gradient(axes: "Axes", plane: SliceRecord, reach: float) -> str:
    """Draw the step along the plain gradient, to the edge where it leaves the picture; return what to say of it."""
    end = np.array(plane.gradient_step)
    says = f"plain gradient step of equal length,\nKL = {_multiple(plane.gradient_step_kl, plane.max_kl)}"
    largest = float(np.abs(end).max())
    if largest > reach:
        says += f", ends {np.linalg.norm(end):.2g} full steps away"
        end *= reach / largest
        axes.plot([0.0, end[0]], [0.0, end[1]], color=PURPLE, linewidth=2)  # no head: it goes on
    else:
        _arrow(axes, end, PURPLE)
    return says


def _arrow(axes: "Axes", end: np.ndarray, colour: str) -> None:
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (end[0], end[1]), (0.0, 0.0), arrowprops=look)


def _step_taken(axes: "Axes", plane: SliceRecord, reach: float) -> None:
    """Draw where the policy of another algorithm ended, and where the natural gradient would have led."""
    end = np.array(plane.step)
    look: dict[str, Any] = {"markeredgecolor": "white", "linestyle": "", "zorder": 5}
    natural, new = (
        f"{what},\nKL {kl:.2g}, gain {gain:.2g}"
        for what, kl, gain in (
            ("full natural step", plane.natural_kl, plane.natural_gain),
            ("new policy", plane.step_kl, plane.step_gain),
        )
    )
    axes.plot(1.0, 0.0, "D", color=ORANGE, markersize=9, label=natural, **look)
    largest = float(np.abs(end).max())
    if largest > reach:
        axes.plot(*zip((0.0, 0.0), end * reach / largest, strict=True), color=GREEN, linewidth=2)
        axes.plot([], [], color=GREEN, linewidth=2, label=f"{new},\n{np.linalg.norm(end):.2g} full steps away")
        return
    _arrow(axes, end, GREEN)
    axes.plot(*end, "o", color=GREEN, markersize=10, label=new, **look)


@styled
def draw_bubble(plane: SliceRecord) -> "Figure":
    """
    Draw the trust region of one update: a plane through the old policy in parameter space.

    To the right goes the natural step, upwards the second direction, both in lengths for which the quadratic model of the KL
    expects δ; the model's limit is therefore the unit circle, beside the measured one. Of an algorithm other than ours the
    plane is that of the step which it took, and δ the KL of this step where it keeps no limit.

    :param plane: from a run's ``slices``
    :return: a Matplotlib figure
    """
    figure = new_figure(5.0, 6.5)
    axes = figure.subplots()
    _contours(axes, plane)
    turn = np.linspace(0.0, 2.0 * np.pi, 200)
    axes.plot(np.cos(turn), np.sin(turn), color=BLACK, linestyle=":", linewidth=1.6)
    reach = float(plane.fractions[-1])
    delta = f"measured KL = δ = {plane.max_kl:.3g}" + ("" if plane.has_limit else ",\nthat of the update")
    axes.plot([], [], color=BLACK, linewidth=2.4, label=delta)
    axes.plot([], [], color=BLACK, linestyle=":", linewidth=1.6, label="KL = δ by the quadratic model")
    if plane.gradient_step:
        says = _plain_gradient(axes, plane, reach)
        axes.plot([], [], color=PURPLE, linewidth=2, label=says)
    axes.plot(0.0, 0.0, "s", color=BLACK, markersize=7, label="old policy")
    refused = [candidate.step_fraction for candidate in plane.candidates if candidate.refused_by]
    kept = [candidate.step_fraction for candidate in plane.candidates if not candidate.refused_by]
    for fractions, marker, colour, label in (
        (refused, "X", VERMILLION, "step refused"),
        (kept, "o", GREEN, "new policy: step kept"),
    ):
        if fractions:
            look: dict[str, Any] = {"markeredgecolor": "white", "markersize": 10, "linestyle": "", "zorder": 5}
            axes.plot(fractions, np.zeros(len(fractions)), marker, color=colour, label=label, **look)
    if plane.step:
        _step_taken(axes, plane, reach)
    second = {"gradient": "plain gradient", "random": "random direction", "step": "step taken"}.get(plane.second_direction)
    of_whom = f"The step of {plane.algorithm}, " if plane.step else "The trust region of "
    axes.set(
        title=f"{of_whom}update {plane.n_updates}",
        xlabel="along the natural gradient [full steps]",
        ylabel=f"along the {second or plane.second_direction}, F-orthogonal to it\n[steps for which the model expects δ]",
        xlim=(-reach, reach),
        ylim=(-reach, reach),
        aspect="equal",
    )
    axes.spines[["top", "right"]].set_visible(True)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


def _changed_most(old: Sequence[float], new: Sequence[float], n: int) -> np.ndarray:
    """Return the numbers of the n choices whose probability changed most, in their order."""
    return np.sort(np.argsort(-np.abs(np.subtract(new, old)), kind="stable")[:n])


def _ratio(old: float, new: float) -> str:
    """Say how many times as likely a choice is."""
    if not old > 0.0:
        # Where a mask makes an action impossible it is of probability zero in both
        return "new" if new > 0.0 else "0"
    ratio = new / old
    return f"×{ratio:,.0f}" if ratio >= 100.0 else f"×{ratio:.3g}" if ratio >= 0.01 or not ratio else "< ×0.01"


def _is_crowded(names: Sequence[str], n_beside: int) -> bool:
    """Whether names beside each other would lie on each other."""
    return sum(map(len, names)) > MAX_LETTERS // n_beside


def _bar_factor(axes: "Axes", old: Sequence[float], new: Sequence[float], names: Sequence[str], n_beside: int) -> None:
    """Draw one discrete factor as pairs of bars, with the ratio of each pair, in one of so many panels beside each other."""
    places = np.arange(len(old))
    many = len(old) > 6
    for shift, probabilities, colour, label in ((-0.2, old, GREY, "old policy"), (0.2, new, BLUE, "new policy")):
        axes.bar(places + shift, probabilities, 0.4, color=colour, label=label)
    for place, p, q in zip(places, old, new, strict=True):
        if not (math.isfinite(p) and math.isfinite(q)):
            continue
        axes.annotate(
            _ratio(p, q),
            (place, max(p, q)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90 if many else 0,
            fontsize=8 if many else 9,
        )
    axes.set_xticks(places, names, rotation=90 if _is_crowded(names, n_beside) else 0)
    top = max((value for value in (*old, *new) if math.isfinite(value)), default=1.0)
    axes.set_ylim(0.0, 1.5 * top if many else 1.18 * top)
    axes.margins(x=0.04)


def _densities(axes: "Axes", old: tuple[float, float], new: tuple[float, float]) -> None:
    """Draw one continuous dimension as two normal densities, each given by mean and standard deviation."""
    low = min(mean - 3.5 * std for mean, std in (old, new))
    high = max(mean + 3.5 * std for mean, std in (old, new))
    actions = np.linspace(low, high, 300)
    for (mean, std), colour, label, line in ((old, GREY, "old policy", "--"), (new, BLUE, "new policy", "-")):
        density = np.exp(-0.5 * ((actions - mean) / std) ** 2) / (std * math.sqrt(2.0 * math.pi))
        axes.plot(actions, density, color=colour, linestyle=line, linewidth=2, label=label)
        axes.fill_between(actions, density, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0.0)
    axes.locator_params(axis="x", nbins=5)


def _gaussian_kls(change: StateChange) -> np.ndarray:
    """Return KL(old ‖ new) of each continuous dimension, shape (n,)."""
    (mean, std), (new_mean, new_std) = ((np.array(d.mean), np.array(d.std)) for d in (change.old, change.new))
    return np.log(new_std / std) + (std**2 + (mean - new_mean) ** 2) / (2.0 * new_std**2) - 0.5


def _discrete_kls(change: StateChange) -> np.ndarray:
    """Return KL(old ‖ new) of each discrete factor, shape (n,)."""
    return np.array([*map(kl_of_probabilities, change.old.probabilities, change.new.probabilities)])


def _factors(change: StateChange) -> list[int]:
    """Choose which factors or dimensions of the action to draw: those of largest KL, in their order."""
    kls = _discrete_kls(change) if change.old.probabilities else _gaussian_kls(change)
    return sorted(np.argsort(-kls, kind="stable")[:MAX_FACTORS].tolist())


def _draw_factor(axes: "Axes", change: StateChange, factor: int, action_names: Sequence[str] | None) -> None:
    n_factors = len(change.old.probabilities) or len(change.old.mean)
    says = "action" if n_factors == 1 else f"action {factor}"
    if change.old.probabilities:
        old, new = change.old.probabilities[factor], change.new.probabilities[factor]
        n_beside = min(2, n_factors)
        drawn = _changed_most(old, new, MAX_CHOICES // n_beside)
        names = [action_names[i] if action_names else str(i) for i in drawn]
        _bar_factor(axes, [old[i] for i in drawn], [new[i] for i in drawn], names, n_beside)
        if len(drawn) < len(old):
            says += f": {len(drawn)} of {len(old):,}\nthat changed most"
    else:
        old_new = ((d.mean[factor], d.std[factor]) for d in (change.old, change.new))
        _densities(axes, *old_new)
        if change.old.family != "Normal":
            says += f"\nnormal with the mean\nand std of the {change.old.family}"
    axes.set_xlabel(says)


def _heading(change: StateChange, max_kl: float) -> str:
    n_drawn, n_dimensions = len(_factors(change)), len(change.old.probabilities) or len(change.old.mean)
    heading = f"{change.label}: {change.kl:.3g} nats"
    if max_kl > 0.0:
        heading += f" = {_multiple(change.kl, max_kl)}"
    return heading if n_drawn == n_dimensions else f"{heading}\n{n_drawn} of {n_dimensions} action dimensions"


@styled
def draw_bars(
    changes: Sequence[StateChange], max_kl: float, *, title: str = "", action_names: Sequence[str] | None = None
) -> "Figure":
    """
    Draw what became of the policy in single states: probabilities with the ratio new / old, or densities.

    :param changes: the states, from a run's ``states`` or ``change_of_probabilities``
    :param max_kl: the limit δ on the mean KL, in nats, to compare with; NaN if there is none
    :param title: what to write above
    :param action_names: of the choices of a discrete action; numbers by default
    :return: a Matplotlib figure
    :raises ValueError: if there are no states
    """
    if not changes:
        raise ValueError("there are no states to draw")
    n_factors = len(_factors(changes[0]))
    n_columns = min(2, n_factors)
    n_rows = math.ceil(n_factors / n_columns)
    # Names that stand upright take their place from the bars
    for_names = 0.07 * max(map(len, action_names)) if action_names and _is_crowded(action_names, n_columns) else 0.0
    figure = new_figure(4.6, 0.6 + len(changes) * (0.5 + (2.0 + for_names) * n_rows))
    for part, change in zip(figure.subfigures(len(changes), 1, squeeze=False)[:, 0], changes, strict=True):
        part.suptitle(_heading(change, max_kl), fontsize=10)
        every_axes = part.subplots(n_rows, n_columns, squeeze=False).flatten()
        for axes, factor in zip(every_axes, _factors(change), strict=False):
            _draw_factor(axes, change, factor, action_names)
        for axes in every_axes[n_factors:]:
            axes.remove()
        for axes in every_axes[:n_factors:n_columns]:
            axes.set_ylabel("probability" if change.old.probabilities else "density")
        if change.observation:
            text = textwrap.fill(f"observation {change.observation}", 55)
            every_axes[0].set_title(text, fontsize=8, fontweight="normal", color=GREY)
    handles, labels = every_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


@styled
def draw_kl_histogram(states: StatesRecord) -> "Figure":
    """
    Draw how the KL of one update is spread over the states, with its mean and the limit on that mean.

    :param states: from a run's ``states``
    :return: a Matplotlib figure
    """
    figure = new_figure(4.6, 3.3)
    axes = figure.subplots()
    kl = states.kl[np.isfinite(states.kl)]
    axes.set(
        title=f"KL of update {states.n_updates} in {len(states.kl):,} states",
        xlabel="KL(old ‖ new) in a state [nats]",
        ylabel="states",
    )
    if not len(kl) or not kl.max() > 0:
        write_in(axes, "the policy is the same in every state")
        return figure
    # The few states far out share the last bar
    edge = float(np.nanmax((np.percentile(kl, 99), 1.3 * states.max_kl)))
    axes.hist(np.minimum(kl, edge), bins=np.linspace(0.0, edge, 41).tolist(), color=BLUE, alpha=0.75)
    mean = float(kl.mean())
    axes.axvline(mean, color=ORANGE, linewidth=2.2, label=f"mean {mean:.3g}")
    if not math.isnan(states.max_kl):
        says = f"limit δ = {states.max_kl:g} on the mean"
        axes.axvline(states.max_kl, color=BLACK, linestyle="--", linewidth=1.6, label=says)
    if kl.max() > edge:
        axes.plot([], [], " ", label=f"last bar: up to {kl.max():.3g}")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:.3g}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
