"""Pictures of one update say what the record says, and overlap nowhere."""

import math
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sb3_trpo.inspect import (
    Run,
    StateChange,
    UpdateRecord,
    change_of_probabilities,
    draw_bars,
    draw_bubble,
    draw_kl_histogram,
    draw_ladder,
)
from sb3_trpo.inspect.run_files import ActionDistribution, SliceRecord
from sb3_trpo.trust_region import Candidate
from tests.inspect.legible import assert_legible


def test_ladder_marks_each_step_with_its_reason(healthy: UpdateRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate has its share, its verdict and the number that decided."""
    candidates = (
        Candidate(1.0, 0.1, 0.35, "kl"),
        Candidate(0.8, math.nan, math.nan, "not_finite"),
        Candidate(0.64, -0.2, 0.02, "kl+gain"),
        Candidate(0.51, -0.03, 0.008, "gain"),
        Candidate(0.41, 0.04, 0.004, ""),
    )
    text = assert_legible(draw_ladder(healthy._replace(candidates=candidates)), monkeypatch)
    for expected in (
        "1.00\n", "0.41\n", "✗ KL 0.35 > δ", "✗ not finite", "✗ KL 0.02 > δ, gain -0.2", "✗ gain -0.03 ≤ 0", "✓ KL 0.004, kept"
    ):  # fmt: skip
        assert expected in text
    assert "limit δ = 0.01" in text


def test_ladder_of_ten_candidates_is_legible(healthy: UpdateRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest ladder of the defaults fits."""
    candidates = tuple(Candidate(0.8**j, 0.1, 0.3 * 0.8 ** (2 * j), "kl") for j in range(10))
    assert_legible(draw_ladder(healthy._replace(candidates=candidates, status="line_search_failed")), monkeypatch)


def exact_plane(**fields: Any) -> SliceRecord:
    """Return a plane in which both models are exact."""
    x = np.linspace(-1.5, 1.5, 25)
    first, second = np.meshgrid(x, x)
    candidates = (Candidate(1.0, 0.1, 0.0101, "kl"), Candidate(0.8, 0.08, 0.0064, ""))
    plane = SliceRecord(7, 0.01, "gradient", x, 0.01 * (first**2 + second**2), 0.1 * first, candidates, (0.9, 1.1), 0.02, 64)
    return plane._replace(**fields)


def test_bubble_draws_the_measured_limit_and_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thick contour is where the KL is δ, the dotted one the unit circle; refused and kept steps lie on the axis."""
    figure = draw_bubble(exact_plane())
    text = assert_legible(figure, monkeypatch)
    axes: Any = figure.axes[0]
    limit = max(axes.collections, key=lambda collection: float(np.max(collection.get_linewidths(), initial=0.0)))
    radii = np.hypot(*np.concatenate([path.vertices for path in limit.get_paths()]).T)
    np.testing.assert_allclose(radii, 1.0, atol=0.01)
    (circle,) = [line for line in axes.lines if line.get_linestyle() == ":" and len(np.atleast_1d(line.get_xdata())) > 10]
    np.testing.assert_allclose(np.hypot(circle.get_xdata(), circle.get_ydata()), 1.0)
    (refused,) = [line for line in axes.lines if line.get_label() == "step refused"]
    (kept,) = [line for line in axes.lines if line.get_label() == "new policy: step kept"]
    assert list(refused.get_xdata()) == [1.0] and list(kept.get_xdata()) == [0.8]
    assert "KL = 2 δ" in text and "measured KL = δ = 0.01" in text and "full steps away" not in text


def test_bubble_copes_with_a_gradient_far_away_and_with_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arrow that leaves the picture says how far it goes; a corner without numbers, a flat surrogate do no harm."""
    text = assert_legible(draw_bubble(exact_plane(gradient_step=(3.0, 4.0), gradient_step_kl=0.251)), monkeypatch)
    assert "KL = 25 δ, ends 5 full steps away" in text
    plane = exact_plane(second_direction="random", gain=np.zeros((25, 25)))
    plane.kl[0, :3] = math.nan
    plane.gain[0, :3] = math.nan
    assert "random direction" in assert_legible(draw_bubble(plane), monkeypatch)


def test_bubble_of_another_algorithm_draws_where_it_ended_and_where_the_natural_gradient_leads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both with their KL and gain; δ is said to be that of the update, or the limit where there is one."""
    plane = exact_plane(
        candidates=(), gradient_step=(), gradient_step_kl=math.nan, second_direction="step", algorithm="PPO", has_limit=False
    )._replace(step=(0.6, 0.8), step_kl=0.0101, step_gain=0.06, natural_kl=0.0099, natural_gain=0.1)
    figure = draw_bubble(plane)
    text = assert_legible(figure, monkeypatch)
    assert "The step of PPO, update 7" in text and "along the step taken" in text and "plain gradient" not in text
    assert "that of the update" in text and "new policy,\nKL 0.01, gain 0.06" in text
    assert "full natural step,\nKL 0.0099, gain 0.1" in text
    lines: dict[str, Any] = {str(line.get_label()).split(",")[0]: line for line in figure.axes[0].lines}
    assert list(*zip(*lines["new policy"].get_data(), strict=True)) == [0.6, 0.8]
    assert list(*zip(*lines["full natural step"].get_data(), strict=True)) == [1.0, 0.0]
    limited = assert_legible(draw_bubble(plane._replace(has_limit=True, algorithm="sb3_contrib.TRPO")), monkeypatch)
    assert "that of the update" not in limited
    assert "10 full steps away" in assert_legible(draw_bubble(plane._replace(step=(6.0, 8.0))), monkeypatch)


@pytest.mark.untraced
def test_colours_have_round_numbers_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the largest gain is."""
    plane = exact_plane()
    for factor in (0.0437, 3.14, 1e-4):
        text = assert_legible(draw_bubble(plane._replace(gain=plane.gain * factor)), monkeypatch)
        numbers = text.split("measured gain")[0].split("\n")[-6:]
        assert all(len(number.lstrip("-").replace(".", "").lstrip("0").split("e")[0]) <= 2 for number in numbers), numbers
    raw = draw_bubble(plane._replace(gain_unit="units of the return"))
    assert "[units of the return]" in assert_legible(raw, monkeypatch)


def test_states_without_a_limit_have_nothing_to_compare_with(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO keeps none: the KL is told in nats alone."""
    states = run.states[-1]._replace(max_kl=math.nan)
    for figure in (draw_kl_histogram(states), draw_bars(states.changes, states.max_kl)):
        assert "δ" not in assert_legible(figure, monkeypatch)


def test_bars_of_the_two_examples_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.2 to 0.6 is three times as likely and 33 δ, 0.2 to 0.25 stays within δ."""
    changes = [
        change_of_probabilities([0.2, 0.8], [0.6, 0.4], "too big"),
        change_of_probabilities([0.2, 0.8], [0.25, 0.75], "small"),
    ]
    figure = draw_bars(changes, 0.01, action_names=["left", "right"])
    text = assert_legible(figure, monkeypatch)
    for expected in ("too big: 0.335 nats = 33 δ", "×3\n", "×0.5\n", "small: 0.007 nats = 0.7 δ", "×1.25", "left", "right"):
        assert expected in text
    bars: Any = figure.axes[0].patches
    heights = [bar.get_height() for bar in bars]
    assert heights == [0.2, 0.8, 0.6, 0.4]


def test_bars_choose_the_dimensions_that_changed_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many continuous dimensions four are drawn, those with the largest KL, and the figure says so."""
    old = ActionDistribution(mean=(0.0,) * 17, std=(1.0,) * 17)
    mean = np.zeros(17)
    mean[[2, 5, 11, 16]] = 1.0
    change = StateChange("state", 2.0, old, ActionDistribution(mean=tuple(mean), std=old.std), "[" + "1.23e-05, " * 7 + "1]")
    text = assert_legible(draw_bars([change, change], 0.01), monkeypatch)
    assert re.findall(r"action (\d+)", text) == ["2", "5", "11", "16"] * 2 and "4 of 17 action dimensions" in text
    with pytest.raises(ValueError, match="no states"):
        draw_bars([], 0.01)


def test_bars_of_eighteen_actions_are_legible(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many actions as Atari has, one of which was impossible before."""
    old = np.append(np.full(17, 1 / 17), 0.0)
    new = np.random.default_rng(0).dirichlet(np.ones(18))
    assert "new\n" in assert_legible(
        draw_bars([change_of_probabilities(old.tolist(), new.tolist(), "Atari")], 0.01), monkeypatch
    )


def _dirichlet(*sizes: int) -> ActionDistribution:
    random = np.random.default_rng(sum(sizes))
    return ActionDistribution(probabilities=tuple(tuple(random.dirichlet(np.full(n, 0.3)).tolist()) for n in sizes))


@pytest.mark.parametrize(
    ("sizes", "drawn"),
    [((4000,), "18 of 4,000"), ((19,), "18 of 19"), ((18,), None), ((50, 40), "9 of 50"), ((3, 9, 1000), "9 of 1,000")],
)
def test_of_many_choices_those_that_changed_most_are_drawn(
    sizes: tuple[int, ...], drawn: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as can be read, in their order, and the figure says of how many."""
    old = _dirichlet(*sizes)
    new = ActionDistribution(probabilities=tuple(part[::-1] for part in old.probabilities))
    figure = draw_bars([StateChange("state", 2.0, old, new, "[1, 2]")] * 2, 0.01)
    text = assert_legible(figure, monkeypatch)
    assert drawn is None or drawn in text
    for axes, p, q in zip(figure.axes, old.probabilities, new.probabilities, strict=False):
        places = [int(label.get_text()) for label in axes.get_xticklabels()]
        change = np.abs(np.subtract(q, p))
        left_out = np.delete(change, places)
        assert places == sorted(places) and (not len(left_out) or left_out.max() <= change[places].min())


def test_discrete_factors_that_changed_most_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many buttons those of the largest KL; one that has become impossible changed most of all."""
    old = [(0.5, 0.5)] * 20
    new = list(old)
    new[3], new[7], new[11], new[19], new[12] = (0.1, 0.9), (0.6, 0.4), (0.0, 1.0), (0.7, 0.3), (0.51, 0.49)
    before, after = (ActionDistribution(probabilities=tuple(each)) for each in (old, new))
    change = StateChange("state", 2.0, before, after)
    assert re.findall(r"action (\d+)", assert_legible(draw_bars([change], 0.01), monkeypatch)) == ["3", "7", "11", "19"]


def test_density_that_is_no_normal_one_is_said_to_be_drawn_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Beta there are mean and standard deviation on record."""
    beta = ActionDistribution(mean=(0.4, 0.5), std=(0.2, 0.1), family="Beta")
    text = assert_legible(draw_bars([StateChange("state", 0.1, beta, beta)], 0.01), monkeypatch)
    assert text.count("std of the Beta") == 2
    normal = beta._replace(family="Normal")
    assert "normal" not in assert_legible(draw_bars([StateChange("state", 0.1, normal, normal)], 0.01), monkeypatch)


def test_limit_of_zero_is_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = assert_legible(draw_bars([change_of_probabilities([0.5, 0.5], [0.5, 0.5], "still")], 0.0), monkeypatch)
    assert "still: 0 nats\n" in text + "\n"


def test_names_of_eighteen_actions_stand_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        f"{up}{side}{fire}" for up in ("UP", "DOWN", "STAY") for side in ("RIGHT", "LEFT", "HERE") for fire in ("FIRE", "")
    ]
    change = change_of_probabilities(_dirichlet(18).probabilities[0], _dirichlet(18, 1).probabilities[0], "Atari")
    text = assert_legible(draw_bars([change], 0.01, action_names=names), monkeypatch)
    assert "DOWNLEFTFIRE" in text and "< ×0.01" in text


@pytest.mark.parametrize("scale", [1e-5, 1e3])
def test_numbers_of_whatever_size_lie_on_no_label(scale: float, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    update = run.updates[0]
    tried = tuple(step._replace(mean_kl=scale * step.mean_kl) for step in update.candidates)
    assert_legible(draw_ladder(update._replace(max_kl=scale * update.max_kl, candidates=tried)), monkeypatch)
    states = run.states[-1]
    assert_legible(draw_kl_histogram(states._replace(kl=scale * states.kl, max_kl=scale * states.max_kl)), monkeypatch)


def test_legend_of_the_histogram_lies_on_no_line(run: Run) -> None:
    figure = draw_kl_histogram(run.states[-1])
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(figure.axes[0].bbox)


def test_bars_of_masked_actions_say_that_nothing_became_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Impossible before and after is not new."""
    text = assert_legible(draw_bars([change_of_probabilities([0.5, 0.5, 0.0], [0.25, 0.75, 0.0], "")], 0.01), monkeypatch)
    assert "new\n" not in text and "0\n" in text


def test_histogram_shows_mean_and_limit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is in a bar, and the mean is that of the states."""
    states = run.states[-1]
    figure = draw_kl_histogram(states)
    assert f"mean {states.kl.mean():.3g}" in assert_legible(figure, monkeypatch)
    bars: Any = figure.axes[0].patches
    assert sum(bar.get_height() for bar in bars) == len(states.kl)
    unchanged = states._replace(kl=np.zeros(5))
    assert "the same in every state" in assert_legible(draw_kl_histogram(unchanged), monkeypatch)
