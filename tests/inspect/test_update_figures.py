"""Every picture is drawn for every kind of policy, says what the record says, and overlaps nowhere; the report renders."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from sb3_trpo import TRPO
from sb3_trpo.inspect import (
    PANELS,
    Run,
    StateChange,
    TrustRegionRecorder,
    UpdateRecord,
    change_of_probabilities,
    check_health,
    draw_bars,
    draw_bubble,
    draw_convergence,
    draw_kl_histogram,
    draw_ladder,
    draw_run,
    figures_of,
    inspect_model,
    read_run,
    write_report,
)
from sb3_trpo.inspect.__main__ import main
from sb3_trpo.inspect.health import (
    cg_converges,
    critic_explains,
    gain_is_measured,
    kl_at_limit,
    kl_far_below,
    policy_explores,
    steps_refused,
)
from sb3_trpo.inspect.run_files import ActionDistribution, SliceRecord, append
from sb3_trpo.trust_region import Candidate
from tests.small_models import small_model
from tests.test_inspect import coarse, monitored
from tests.test_trpo import CASES

__all__ = ["coarse"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of six updates, pictures of every third of them included."""
    folder = tmp_path_factory.mktemp("run")
    small_model(env=monitored()).learn(6 * 64, callback=TrustRegionRecorder(folder, pictures_every=3))
    return folder


@pytest.fixture(scope="module")
def run(recorded: Path) -> Run:
    return read_run(recorded)


@pytest.fixture(scope="module")
def healthy(run: Run) -> UpdateRecord:
    """Return an update as it should be."""
    kept = Candidate(1.0, 0.09, 0.009, "")
    return run.updates[-1]._replace(
        status="accepted",
        max_kl=0.01,
        mean_kl=0.009,
        expected_kl=0.01,
        surrogate_gain=0.09,
        expected_gain=0.1,
        full_step_gain=0.1,
        step_fraction=1.0,
        candidates=(kept,),
        cg_residual_norms=(1.0, 0.1, 0.01),
        cg_stopped_by="max_iterations",
        entropy=1.0,
        std=math.nan,
        explained_variance=0.7,
    )


def texts_of(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """Draw a figure and return the texts that were drawn."""
    texts: list[Text] = []
    draw = Text.draw

    def draw_and_note(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            texts.append(self)
        draw(self, renderer)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", draw_and_note)
        FigureCanvasAgg(figure).draw()
    return texts


def assert_legible(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> str:
    """Assert that every text lies within the figure and on no other; return all of it."""
    texts = texts_of(figure, monkeypatch)
    upright = [text for text in texts if text.get_rotation() % 90 == 0]  # of slanted ones the boxes overlap, not the letters
    boxes = [text.get_window_extent().shrunk(0.98, 0.9) for text in upright]
    for n, (text, box) in enumerate(zip(upright, boxes, strict=True)):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text.get_text()
        for other, other_box in zip(upright[:n], boxes[:n], strict=True):
            assert not box.overlaps(other_box), f"{text.get_text()!r} overlaps {other.get_text()!r}"
    assert min(float(text.get_fontsize()) for text in texts) >= 8
    return "\n".join(text.get_text() for text in texts)


# The pictures


@pytest.mark.parametrize(
    "name",
    [
        "box-vector",
        "discrete-vector",
        "multi_discrete-vector-2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("multi_binary-vector", "gsde-vector", "matrix-box")),
    ],
)
def test_every_figure_of_every_kind_of_policy_is_legible(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All action spaces: each figure is drawn without a warning, and no text is cut off or lies on another."""
    figures = dict(figures_of(inspect_model(CASES[name].model(cg_max_steps=3, target_kl=0.02))))
    assert set(figures) == {"ladder", "convergence", "bubble", "bars", "kl_per_state"}
    for figure in figures.values():
        assert_legible(figure, monkeypatch)


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
    for n_updates in (1, 2):
        for name, figure in figures_of(scheduled, n_updates):
            if name != "run" or n_updates == 2:
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


def test_histogram_shows_mean_and_limit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is in a bar, and the mean is that of the states."""
    states = run.states[-1]
    figure = draw_kl_histogram(states)
    assert f"mean {states.kl.mean():.3g}" in assert_legible(figure, monkeypatch)
    bars: Any = figure.axes[0].patches
    assert sum(bar.get_height() for bar in bars) == len(states.kl)
    unchanged = states._replace(kl=np.zeros(5))
    assert "the same in every state" in assert_legible(draw_kl_histogram(unchanged), monkeypatch)


def test_figures_leave_the_users_matplotlib_alone(run: Run) -> None:
    """No figure is open in pyplot afterwards, no setting has changed, and a style of the user's own does not show."""
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({"font.size": 33.0, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        figure = draw_run(run, ["kl"])
        assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []
    assert figure.axes[0].get_facecolor()[:3] == (1.0, 1.0, 1.0) and figure.axes[0].xaxis.label.get_fontsize() == 10.0


# Health


Change = Callable[[UpdateRecord], UpdateRecord]
UNHEALTHY: dict[Any, Change] = {
    kl_at_limit: lambda update: update._replace(
        mean_kl=0.0095, candidates=(*[Candidate(0.8**j, 0.1, 0.02, "kl") for j in range(4)], Candidate(0.41, 0.1, 0.0095, ""))
    ),
    kl_far_below: lambda update: update._replace(mean_kl=0.001),
    steps_refused: lambda update: update._replace(status="line_search_failed", mean_kl=0.0),
    cg_converges: lambda update: update._replace(cg_residual_norms=(1.0, 0.95, 0.9)),
    gain_is_measured: lambda update: update._replace(candidates=(Candidate(1.0, 0.02, 0.009, ""),)),
    policy_explores: lambda update: update._replace(entropy=0.01 if update.n_updates > 1 else 1.0),
    critic_explains: lambda update: update._replace(explained_variance=-0.2),
}


def series(update: UpdateRecord, n: int = 30) -> list[UpdateRecord]:
    return [update._replace(n_updates=number, num_timesteps=64 * number) for number in range(1, n + 1)]


@pytest.mark.parametrize("rule", UNHEALTHY, ids=lambda rule: rule.__name__)
def test_rule_of_health_triggers_on_its_trouble_and_not_without(rule: Any, healthy: UpdateRecord) -> None:
    """What is wrong is found, with advice and a panel that shows it; a healthy run is left in peace by every rule."""
    assert all(finding.healthy and not finding.advice for finding in check_health(series(healthy)))
    updates = list(map(UNHEALTHY[rule], series(healthy)))
    finding = rule(updates)
    assert finding.healthy is False and finding.advice and finding.panel in PANELS
    # The trouble of long ago is over
    later = [update._replace(n_updates=100) for update in series(healthy)]
    assert rule([*updates[:5], *later]).healthy is True


def test_rules_judge_a_standard_deviation_where_there_is_one(healthy: UpdateRecord) -> None:
    """Entropy of a continuous policy may be negative: its standard deviation is what counts."""
    updates = series(healthy._replace(std=1.0, entropy=-3.0))
    assert policy_explores(updates).healthy is True and policy_explores(updates).panel == "std"
    updates[-1] = updates[-1]._replace(std=0.05)
    assert policy_explores(updates).healthy is False


def test_rules_say_when_they_cannot_tell(healthy: UpdateRecord) -> None:
    """Without the numbers a rule is silent on health instead of guessing, and none fails."""
    nothing = healthy._replace(
        status="gradient_not_finite", candidates=(), cg_residual_norms=(), entropy=math.nan, explained_variance=math.nan
    )
    by_name = {finding.panel: finding.healthy for finding in check_health([nothing])}
    assert by_name["kl"] is by_name["cg_residual"] is by_name["gain"] is by_name["entropy"] is None
    assert by_name["explained_variance"] is None and steps_refused([nothing]).healthy is False
    assert check_health([]) == []


# The report


@pytest.fixture(scope="module")
def trouble(healthy: UpdateRecord) -> list[UpdateRecord]:
    """Return the updates of a run whose critic explains nothing."""
    return [UNHEALTHY[critic_explains](update) for update in series(healthy)]


@pytest.fixture(scope="module")
def page(run: Run, trouble: list[UpdateRecord], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report of a run with trouble, a damaged record and a name that is no HTML."""
    problems = ("updates.jsonl:3: not a record: <garbage>",)
    named = run._replace(name="<b>run</b>", updates=tuple(trouble), problems=problems)
    return write_report(named, tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


def test_report_is_one_page_with_everything_in_it(page: str, trouble: list[UpdateRecord]) -> None:
    """Findings in words, every figure inside the page with a description, and nothing loaded from anywhere."""
    (wrong,) = [finding for finding in check_health(trouble) if not finding.healthy]
    assert wrong.name in page and wrong.advice.split(".")[0] in page and "1 of 7 checks ask for a look" in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page and "updates.jsonl:3: not a record: &lt;garbage&gt;" in page
    assert page.index(wrong.name) < min(page.index(f.name) for f in check_health(trouble) if f.healthy)
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) >= len(PANELS) and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.findall(r'(?:href|src|url\()\s*=?\s*["\']?(?:https?:|//|file:)', page) and "<script" not in page
    assert all(alt for alt in re.findall(r'alt="([^"]*)"', page))
    assert 'name="viewport"' in page and "@media print" in page


def test_report_needs_the_update_that_it_is_asked_for(run: Run, tmp_path: Path) -> None:
    """Without an update there is an error, not an empty page."""
    with pytest.raises(ValueError, match="no update"):
        write_report(run._replace(updates=()), tmp_path / "report.html")
    with pytest.raises(ValueError, match="update 77"):
        write_report(run, tmp_path / "report.html", n_updates=77)
    assert not (tmp_path / "report.html").exists()


def chromium(page: Path, *options: str, folder: Path) -> str:
    assert CHROMIUM is not None
    switches = (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}",
    )  # fmt: skip
    command = [CHROMIUM, *switches, *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


MEASURE = """
<script>addEventListener("load", () => { document.title = JSON.stringify({
  width: innerWidth, content: document.documentElement.scrollWidth,
  images: [...document.images].map(image => [image.naturalWidth, image.clientWidth, image.clientHeight]),
  font: parseFloat(getComputedStyle(document.querySelector("p")).fontSize)}) })</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 500], ids=["laptop", "phone"])
def test_report_renders_in_a_browser(width: int, page: str, tmp_path: Path) -> None:
    """On a laptop and a phone: nothing is wider than the screen, every figure is there and large enough to read."""
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    (tmp_path / "measured.html").write_text(page.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    dom = chromium(tmp_path / "measured.html", f"--window-size={width},900", "--dump-dom", folder=tmp_path)
    title = re.search(r"<title>(\{.*?\})</title>", dom)
    assert title is not None
    measured = json.loads(title[1])
    assert measured["width"] == width and measured["content"] <= width and measured["font"] >= 14
    assert len(measured["images"]) == page.count("<img ")
    for natural, shown, height in measured["images"]:
        assert natural > 300 and height > 100 and 300 < shown <= width
    if width < 1000:
        return
    shot = tmp_path / "shot.png"
    chromium(tmp_path / "report.html", f"--window-size={width},900", f"--screenshot={shot}", folder=tmp_path)
    pixels = imread(shot)
    assert pixels.shape[:2] == (900, width)
    # Text, the green marks of what is healthy, and white in between
    n_colours = len(np.unique((pixels * 8).astype(int).reshape(-1, pixels.shape[2]), axis=0))
    assert 0.5 < pixels[..., :3].mean() < 0.99 and n_colours > 20


# The command line


def test_command_draws_a_record_and_reports_what_is_damaged(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures where they are wanted, with the health in words; damaged lines by file and line on the error stream."""
    folder, out = tmp_path / "damaged", tmp_path / "out"
    shutil.copytree(recorded, folder)
    for name, line in (("updates.jsonl", 3), ("slices.jsonl", 1)):
        lines = (folder / name).read_text().splitlines()
        lines[line - 1] = lines[line - 1][:100]
        (folder / name).write_text("\n".join(lines) + "\n")
    assert main([str(folder / "updates.jsonl"), "--output", str(out)]) == 0
    output, error = capsys.readouterr()
    assert f"{folder / 'updates.jsonl'}:3: " in error and f"{folder / 'slices.jsonl'}:1: " in error
    names = {"run", "ladder", "convergence", "bubble", "bars", "kl_per_state"}
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in names}
    assert all(imread(path).std() > 0.01 for path in out.iterdir())
    assert str(out / "bubble.png") in output and "✓ Do the conjugate gradients converge?" in output


def test_command_inspects_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A zip and the name of an environment are enough; the file is what it was."""
    path = tmp_path / "model.zip"
    TRPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu").learn(128).save(path)
    before = path.read_bytes()
    assert main([str(path), "--env", "CartPole-v1", "--html"]) == 0
    assert path.read_bytes() == before
    page = (tmp_path / "model_figures" / "report.html").read_text(encoding="utf-8")
    # Of a single update there is no run to draw
    assert "model on CartPole-v1" in page and "<h2>One update</h2>" in page and "<h2>The run</h2>" not in page
    assert "✓ Do the conjugate gradients converge?" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], r"updates\.jsonl does not exist"),
        (["model.zip"], "--env"),
        (["folder", "--env", "CartPole-v1"], "saved model"),
        (["nowhere.zip", "--env", "CartPole-v1"], "nowhere"),
        (["empty"], "no update"),
        (["empty", "--html"], "no update"),
    ],
)
def test_command_says_what_is_wrong(
    arguments: Sequence[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing records, models and options: one line that names them, and status 1."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "updates.jsonl").write_text("")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(message, error)


def test_command_names_an_update_that_there_is_not(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The updates that there are stand in the message."""
    assert main([str(recorded), "--update", "77"]) == 1
    assert "update 77" in capsys.readouterr().err


def test_figures_of_an_update_whose_line_is_damaged_are_still_drawn(run: Run, tmp_path: Path) -> None:
    """The plane of an update is drawn though its record is lost."""
    append(tmp_path / "slices.jsonl", run.slices[-1])
    (tmp_path / "updates.jsonl").write_text("garbage\n")
    assert [name for name, _ in figures_of(read_run(tmp_path))] == ["bubble"]
