"""Every figure that can be drawn of a run, by name."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sb3_trpo.inspect.run_figures import draw_run
from sb3_trpo.inspect.run_files import Run
from sb3_trpo.inspect.update_figures import draw_bars, draw_bubble, draw_convergence, draw_kl_histogram, draw_ladder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def choose_update(run: Run, n_updates: int | None = None) -> int:
    """
    Return the number of the update to look at.

    :param run: from ``read_run`` or ``inspect_model``
    :param n_updates: the one asked for; by default the last one that pictures were kept of, else the last one
    :raises ValueError: if the run has no such update
    """
    pictured = {record.n_updates for records in (run.slices, run.states) for record in records}
    known = pictured | {update.n_updates for update in run.updates}
    if not known:
        raise ValueError(f"run {run.name!r} has no update that can be drawn")
    if n_updates is None:
        return max(pictured or known)
    if n_updates not in known:
        span = f"{min(known)} to {max(known)}"
        raise ValueError(f"run {run.name!r} has no record of update {n_updates}, expected one of those it has, {span}")
    return n_updates


def figures_of_update(run: Run, n_updates: int | None = None) -> Iterator[tuple[str, "Figure"]]:
    """
    Draw what is known of one update.

    :param run: from ``read_run`` or ``inspect_model``
    :param n_updates: number of the update, as for :func:`choose_update`
    :return: names and figures: ladder, convergence, bubble, bars, kl_per_state
    :raises ValueError: if the run has no such update
    """
    n_updates = choose_update(run, n_updates)
    for update in run.updates:
        if update.n_updates == n_updates:
            if update.tells_of_search:
                yield "ladder", draw_ladder(update)
                yield "convergence", draw_convergence(update)
    for plane in run.slices:
        if plane.n_updates == n_updates:
            yield "bubble", draw_bubble(plane)
    for states in run.states:
        if states.n_updates == n_updates:
            if states.changes:
                yield "bars", draw_bars(states.changes, states.max_kl, title=f"What update {n_updates} did to the policy")
            yield "kl_per_state", draw_kl_histogram(states)


def figures_of(run: Run, n_updates: int | None = None) -> Iterator[tuple[str, "Figure"]]:
    """
    Draw a run and one of its updates.

    :param run: from ``read_run`` or ``inspect_model``
    :param n_updates: number of the update, as for :func:`choose_update`
    :return: names and figures: run, and those of the update
    :raises ValueError: if the run has no such update
    """
    n_updates = choose_update(run, n_updates)
    # Of a single update its own pictures say more than a dot in each panel
    if len(run.updates) > 1:
        yield "run", draw_run(run)
    yield from figures_of_update(run, n_updates)
