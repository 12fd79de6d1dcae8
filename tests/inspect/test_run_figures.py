"""Pictures of a whole run say what the record says, and overlap nowhere."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_trpo.inspect import (
    PANELS,
    Run,
    TrustRegionRecorder,
    UpdateRecord,
    draw_convergence,
    draw_ladder,
    draw_run,
    figures_of,
    read_run,
)
from sb3_trpo.inspect.health import kl_far_below
from tests.inspect.legible import assert_legible
from tests.small_models import small_model


def test_overview_of_a_run_has_a_panel_with_units_for_each_question(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every panel has its title and unit, legible on one sheet; each can be had by itself."""
    text = assert_legible(draw_run(run), monkeypatch)
    for panel in PANELS.values():
        assert panel.title in text and panel.unit in text
    assert text.count("environment steps") == len(PANELS)
    (axes,) = draw_run(run, ["time"]).axes
    assert axes.get_title(loc="left") == PANELS["time"].title


def test_overview_draws_what_the_record_says(run: Run) -> None:
    """The KL panel holds the measured KL of each update and the limit."""
    (axes,) = draw_run(run, ["kl"]).axes
    lines: dict[Any, Any] = {line.get_label(): line for line in axes.lines}
    drawn = [
        kl for outcome in ("full step", "backtracked", "refused") if outcome in lines for kl in lines[outcome].get_ydata()
    ]
    assert sorted(drawn) == sorted(update.mean_kl for update in run.updates)
    assert set(lines["limit δ"].get_ydata()) == {run.updates[0].max_kl}


def test_overview_refuses_what_it_cannot_draw(run: Run) -> None:
    """An unknown panel or an empty run is named."""
    with pytest.raises(ValueError, match="nonsense"):
        draw_run(run, ["nonsense"])
    with pytest.raises(ValueError, match="no update"):
        draw_run(run._replace(updates=()))


def test_overview_of_a_discrete_policy_has_no_standard_deviation(healthy: UpdateRecord) -> None:
    """A panel without numbers is left out."""
    titles = [axes.get_title(loc="left") for axes in draw_run(Run("discrete", (healthy, healthy))).axes]
    assert PANELS["std"].title not in titles and PANELS["entropy"].title in titles


def test_run_of_refused_updates_without_numbers_is_drawn(healthy: UpdateRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates that never came to a direction, a critic fit or an episode leave panels that say so, and no warning."""
    refused = healthy._replace(
        status="gradient_not_finite",
        mean_kl=0.0,
        surrogate_gain=math.nan,
        expected_gain=0.0,
        step_fraction=0.0,
        gradient_norm=math.nan,
        step_norm=0.0,
        candidates=(),
        cg_residual_norms=(),
        entropy=math.nan,
        explained_variance=math.nan,
        value_loss_first=math.nan,
        value_loss_last=math.nan,
        mean_return=math.nan,
        episode_returns=(),
        phase_seconds={},
    )
    text = assert_legible(draw_run(Run("refused", (refused,) * 3)), monkeypatch)
    assert "no critic fit" in text and "no episode has ended" in text
    assert draw_run(Run("refused", (refused,))).axes
    assert "gradient not finite" in assert_legible(draw_ladder(refused), monkeypatch)
    assert "gradient not finite" in assert_legible(draw_convergence(refused), monkeypatch)


def test_run_whose_limit_ends_at_zero_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a schedule that ends at zero the last update moves nothing; the record follows the limit and all is drawn."""
    model = small_model(target_kl=lambda remaining: 0.02 * remaining)
    model.learn(2 * 64, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    scheduled = read_run(tmp_path)
    assert [update.max_kl for update in scheduled.updates] == [0.01, 0.0]
    # The slice of the second update has no extent; that of the first was measured with the limit of its update
    assert [plane.max_kl for plane in scheduled.slices] == [0.01]
    for _, figure in figures_of(scheduled, 2):
        assert_legible(figure, monkeypatch)
    assert kl_far_below(scheduled.updates[1:]).healthy is None
    assert draw_run(Run("zero", scheduled.updates[1:]), ["kl"]).axes


def test_long_run_is_drawn_without_a_symbol_for_each_update(healthy: UpdateRecord) -> None:
    """Thousands of updates are pixels in a vector graphic."""
    updates = tuple(healthy._replace(n_updates=n, num_timesteps=64 * n) for n in range(1, 2001))
    (axes,) = draw_run(Run("long", updates), ["kl"]).axes
    symbols = [line for line in axes.lines if line.get_label() == "full step"]
    assert len(symbols) == 1 and symbols[0].get_rasterized()
    assert all(
        line.get_rasterized()
        for line in axes.lines
        if len(np.atleast_1d(line.get_xdata())) > 1500 and line.get_marker() != "None"
    )
