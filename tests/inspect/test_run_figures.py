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
from tests.other_algorithms import OTHERS
from tests.small_models import small_model


@pytest.mark.untraced
def test_overview_of_a_run_has_a_panel_with_units_for_each_question(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every panel has its title and unit, legible on one sheet; each can be had by itself."""
    text = assert_legible(draw_run(run, list(PANELS)), monkeypatch)
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
    assert set(lines["_limit δ"].get_ydata()) == {run.updates[0].max_kl}


def test_conjugate_gradients_that_always_take_as_many_iterations_have_no_panel_for_them(run: Run) -> None:
    """The panel of the residual says how many; where they differ there is one."""
    titles = [axes.get_title(loc="left") for axes in draw_run(run).axes]
    assert PANELS["cg_iterations"].title not in titles and "Conjugate gradient residual after 6" in titles
    shorter = run.updates[0]._replace(cg_residual_norms=run.updates[0].cg_residual_norms[:-1])
    titles = [axes.get_title(loc="left") for axes in draw_run(run._replace(updates=(shorter, *run.updates[1:]))).axes]
    assert PANELS["cg_iterations"].title in titles


def test_gain_says_what_it_is_counted_in(healthy: UpdateRecord) -> None:
    """Without normalised advantages a gain is one of return."""
    (axes,) = draw_run(Run("raw", (healthy._replace(gain_unit="units of the return"),) * 2), ["gain"]).axes
    assert axes.get_ylabel() == "gain [units of the return]"


@pytest.mark.parametrize("name", ["ppo", "contrib-trpo", "recurrent-ppo", "a2c-one_step"])
def test_run_of_another_algorithm_is_drawn_without_what_it_does_not_have(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No panel of a search that nobody knows of; the KL with its spread, and the limit where there is one."""
    OTHERS[name]().learn(3 * 64 if "one" not in name else 6, callback=TrustRegionRecorder(tmp_path))
    figures = dict(figures_of(read_run(tmp_path)))
    text = assert_legible(figures["run"], monkeypatch)
    assert "line search" not in text and "Conjugate" not in text and "predicted" not in text and list(figures) == ["run"]
    assert "5–95 % of the states" in text and ("limit δ" in text) == ("trpo" in name)
    unmeasured = read_run(tmp_path).updates[0]._replace(mean_kl=math.nan, kl_quantiles=(), ratio_quantiles=())
    assert "not measured" in assert_legible(draw_run(Run("skipped", (unmeasured,) * 2), ["kl"]), monkeypatch)


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


# What an update has where nothing, or nothing that can be drawn, is known of a panel
UNKNOWN: dict[str, list[dict[str, Any]]] = {
    "returns": [{"episode_returns": (), "mean_return": math.nan}],
    "kl": [{"mean_kl": math.nan}, {"mean_kl": math.inf}],
    "ratio": [{"ratio_quantiles": ()}, {"ratio_quantiles": (math.nan,) * 5}],
    "outside_clip": [{"outside_clip": math.nan}],
    "gain": [{"surrogate_gain": math.nan}, {"surrogate_gain": math.inf}],
    "step_fraction": [{"step_fraction": math.nan}],
    "cg_iterations": [{"cg_residual_norms": ()}],
    "cg_residual": [{"cg_residual_norms": ()}, {"cg_residual_norms": (1.0, 0.0)}, {"cg_residual_norms": (1.0, math.inf)}],
    "norms": [{"gradient_norm": 0.0, "step_norm": 0.0}, {"gradient_norm": math.nan, "step_norm": math.inf}],
    "entropy": [{"entropy": math.nan}, {"entropy": -math.inf}],
    "std": [{"std": math.nan}, {"std": math.inf}],
    "explained_variance": [{"explained_variance": math.nan}, {"explained_variance": -math.inf}],
    "value_loss": [{"value_loss_first": n, "value_loss_last": n} for n in (math.nan, math.inf, 0.0)],
    "time": [{"phase_seconds": {}}, {"phase_seconds": {"collect": 0.0}}],
}


@pytest.mark.parametrize(("panel", "unknown"), [(panel, some) for panel in PANELS for some in UNKNOWN[panel]])
def test_panel_without_a_number_says_so(
    panel: str, unknown: dict[str, Any], healthy: UpdateRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds nothing but the reason."""
    for n in (1, 3):
        figure = draw_run(Run("run", (healthy._replace(**unknown),) * n), [panel])
        assert [text.get_text() for text in figure.axes[0].texts] == [PANELS[panel].otherwise]
        assert not figure.axes[0].lines and not figure.axes[0].collections
        assert PANELS[panel].otherwise.split("\n")[0] in assert_legible(figure, monkeypatch)


@pytest.mark.parametrize(("panel", "unknown"), [(panel, some) for panel in PANELS for some in UNKNOWN[panel]])
def test_panel_has_the_steps_of_the_run_whatever_is_known_of_some(
    panel: str, unknown: dict[str, Any], healthy: UpdateRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first updates may have ended no episode, or one in the middle be wild: the others are drawn where they are."""
    known: dict[str, Any] = {
        "std": 0.5,
        "entropy": 1.0,
        "outside_clip": 0.1,
        "ratio_quantiles": (0.8, 0.9, 1.0, 1.1, 1.2),
        "mean_return": 1.0,
    }
    known |= {"value_loss_first": 2.0, "value_loss_last": 1.0, "episode_returns": (1.0, 2.0), "explained_variance": 0.5}
    updates = [healthy._replace(num_timesteps=100 * n, **known) for n in range(1, 7)]
    for which in ([0, 1, 2], [3], [4, 5]):
        some = tuple(update._replace(**unknown) if n in which else update for n, update in enumerate(updates))
        figure = draw_run(Run("run", some), [panel])
        assert_legible(figure, monkeypatch)
        assert figure.axes[0].get_xlim() == pytest.approx((85.0, 615.0))
        assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_returns_that_only_sb3_knows_are_drawn(healthy: UpdateRecord) -> None:
    """A run may have ended its latest episodes before the recorder began."""
    (axes,) = draw_run(Run("run", (healthy._replace(episode_returns=(), mean_return=3.0),) * 2), ["returns"]).axes
    assert [line.get_label() for line in axes.lines] == ["SB3's mean of the latest"]
