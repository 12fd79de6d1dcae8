"""Runs on the same axes: each is drawn, told apart by more than its colour, and overlaps nothing."""

import math
from typing import Any

import numpy as np
import pytest

from sb3_trpo.inspect import COMPARED, Run, UpdateRecord, draw_comparison
from sb3_trpo.inspect.comparison_figures import POINTS, compared_panels_of, groups_of, look_of, seconds_per_1000_steps
from tests.inspect.legible import assert_legible


def compared(healthy: UpdateRecord, n_runs: int = 2, n_updates: int = 20, **fields: Any) -> list[Run]:
    """Return runs of TRPO and PPO in turns."""
    unknown: dict[str, Any] = dict.fromkeys(("largest_kl", "outside_clip", "clip_range"), math.nan)
    of_ppo = {"algorithm": "PPO", "max_kl": math.nan, "step_fraction": math.nan, "candidates": ()}

    def update(number: int, n: int) -> UpdateRecord:
        numbers = {"n_updates": n, "num_timesteps": 64 * n, "mean_kl": 0.01 * (1 + number) + 1e-4 * n}
        return healthy._replace(**(unknown | numbers | (of_ppo if number % 2 else {}) | fields))

    return [Run(f"run {number}", tuple(update(number, n) for n in range(1, n_updates + 1))) for number in range(n_runs)]


@pytest.mark.untraced
@pytest.mark.parametrize("n_runs", [1, 2, 3, 10])
def test_comparison_is_legible_and_names_every_run(
    n_runs: int, healthy: UpdateRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one sheet, and panel by panel."""
    runs = compared(healthy, n_runs)
    text = assert_legible(draw_comparison(runs), monkeypatch)
    for name in compared_panels_of(runs):
        assert COMPARED[name].title in text and COMPARED[name].unit in text
    alone = assert_legible(draw_comparison(runs, ["kl"]), monkeypatch)
    assert all(run.name in text.split("\n") and run.name in alone.split("\n") for run in runs)


def test_every_run_is_drawn_on_the_same_axes_with_its_numbers(healthy: UpdateRecord) -> None:
    """The KL of each update against its steps; the limit of those that keep one alone."""
    runs = compared(healthy)
    (axes,) = draw_comparison(runs, ["kl"]).axes
    lines: dict[Any, Any] = {line.get_label(): line for line in axes.lines}
    for run in runs:
        assert list(lines[run.name].get_ydata()) == [update.mean_kl for update in run.updates]
        assert list(lines[run.name].get_xdata()) == [update.num_timesteps for update in run.updates]
    limits: list[Any] = [line for line in axes.lines if line.get_linestyle() == ":"]
    limits = [line for line in limits if np.isfinite(line.get_ydata()).any()]
    assert len(limits) == 1 and set(limits[0].get_ydata()) == {runs[0].updates[0].max_kl}


def test_runs_are_told_apart_by_more_than_their_colour() -> None:
    """Lines and markers differ too: no two of ten look alike in black and white."""
    looks = [look_of(number) for number in range(10)]
    assert len({str((look["linestyle"], look["marker"])) for look in looks}) == 10
    assert len({str((look["color"], look["linestyle"])) for look in map(look_of, range(35))}) == 35


def test_long_run_is_drawn_in_groups_that_keep_its_mean(healthy: UpdateRecord) -> None:
    """A thousand updates are at most sixty points, and nothing is left out."""
    (run,) = compared(healthy, 1, 1000)
    groups = groups_of(run.updates)
    assert len(groups) <= POINTS and [u for group in groups for u in group] == list(run.updates)
    (axes,) = draw_comparison([run], ["kl"]).axes
    line: Any = next(line for line in axes.lines if line.get_label() == run.name)
    assert np.mean(line.get_ydata()) == pytest.approx(np.mean([u.mean_kl for u in run.updates]), rel=1e-2)


def test_panels_without_a_number_are_left_out(healthy: UpdateRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discrete policies have no standard deviation; a record of before has no ratios; a run that was skipped has no KL."""
    assert {"std", "largest_kl", "outside_clip"}.isdisjoint(compared_panels_of(compared(healthy)))
    measured = compared(healthy, std=1.0, largest_kl=0.1, outside_clip=0.2)
    assert compared_panels_of(measured) == tuple(COMPARED)
    skipped = compared(healthy, mean_kl=math.nan, mean_return=math.nan)
    text = assert_legible(draw_comparison(skipped, ["kl", "returns"]), monkeypatch)
    assert text.count("not on record") == 2


@pytest.mark.parametrize("panels", [None, ["kl"]])
@pytest.mark.parametrize("n_letters", [12, 60, 250])
def test_long_names_are_inside_and_told_apart(
    panels: list[str] | None, n_letters: int, healthy: UpdateRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As folders of a sweep have them: what does not fit loses its middle."""
    runs = [
        Run(f"lr{seed}/{('HalfCheetah-v5_target_kl_0.01_' * 9)[:n_letters]}/seed_{seed}", (healthy,) * 3) for seed in range(6)
    ]
    figure = draw_comparison(runs, panels)
    assert_legible(figure, monkeypatch)
    (legend,) = figure.legends
    box, names = legend.get_window_extent(), [text.get_text() for text in legend.get_texts()]
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert len(set(names)) == 6 and all(name.startswith("lr") and f"seed_{n}" in name for n, name in enumerate(names))


def test_kl_that_is_zero_throughout_is_said_to_be(healthy: UpdateRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on record, and no logarithmic axis can show it."""
    still = Run("still", (healthy._replace(mean_kl=0.0, largest_kl=0.0),) * 3)
    text = assert_legible(draw_comparison([still, still], ["kl", "largest_kl"]), monkeypatch)
    assert text.count("or zero throughout") == 2


def test_time_is_by_steps(healthy: UpdateRecord) -> None:
    """Two seconds for 64 steps are 31.25 for a thousand, however many updates are in a point."""
    seconds = {"collect": 0.5, "update": 1.5}
    for n_updates in (1, 20, 1000):
        (run,) = compared(healthy, 1, n_updates, phase_seconds=seconds)
        assert seconds_per_1000_steps(run) == pytest.approx(31.25)
        (axes,) = draw_comparison([run], ["seconds"]).axes
        line: Any = axes.lines[0]
        np.testing.assert_allclose(line.get_ydata(), 31.25)
    assert math.isnan(seconds_per_1000_steps(compared(healthy, 1, phase_seconds={})[0]))


def test_comparison_refuses_what_it_cannot_draw(healthy: UpdateRecord) -> None:
    """An unknown panel, no run, an empty run: named."""
    runs = compared(healthy)
    with pytest.raises(ValueError, match="nonsense"):
        draw_comparison(runs, ["nonsense"])
    with pytest.raises(ValueError, match=r"no update.*run 1"):
        draw_comparison([runs[0], runs[1]._replace(updates=())])
    with pytest.raises(ValueError, match="no runs"):
        draw_comparison([])


def test_gains_in_different_units_are_not_said_to_be_one(healthy: UpdateRecord) -> None:
    """The label says what holds."""
    runs = compared(healthy)
    raw = runs[1]._replace(updates=tuple(u._replace(gain_unit="units of the return") for u in runs[1].updates))
    assert draw_comparison(runs, ["gain"]).axes[0].get_ylabel() == "gain [std of the advantage]"
    assert draw_comparison([runs[0], raw], ["gain"]).axes[0].get_ylabel() == "gain [in the unit of each run]"


@pytest.mark.parametrize("name", ["_base", "cost $5 and $6", "a$x^$", "a_b"])
def test_name_is_written_as_it_is(name: str, healthy: UpdateRecord) -> None:
    """An underscore in front hides nothing, and dollars are no mathematics."""
    first, second = compared(healthy)
    figure = draw_comparison([first._replace(name=name), second])
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text().strip().replace("\\$", "$") for text in legend.get_texts()] == [name, "run 1"]
