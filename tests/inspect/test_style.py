"""How figures look is no one else's business: the user's Matplotlib is left alone, and is not needed to record."""

import sys
import threading
from pathlib import Path

import matplotlib
import pytest

from sb3_trpo.inspect import Run, TrustRegionRecorder, draw_ladder, draw_run, read_run
from sb3_trpo.inspect.style import new_figure, plain_log_scale, shortened
from tests.small_models import small_model


def test_figures_are_spared_where_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorBoard nothing is drawn: recording needs no Matplotlib, and drawing without it says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    small_model().learn(64, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    with pytest.raises(ImportError, match=r"pip install 'sb3_trpo\[plots\]'"):
        draw_ladder(read_run(tmp_path).updates[0])


@pytest.mark.parametrize("width", [1.05, 1.6, 3.0, 4.9, 5.1, 40.0, 1e4])
@pytest.mark.parametrize("low", [0.0063, 0.0101, 2.1e-5, 31.0])
def test_logarithmic_axis_has_numbers_to_read_it_by(low: float, width: float) -> None:
    axes = new_figure(4.0, 3.0).subplots()
    axes.plot([low, width * low])
    plain_log_scale(axes)
    bottom, top = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    assert 2 <= len(ticks) <= 9 and len(set(map(axes.yaxis.get_major_formatter(), ticks))) == len(ticks)


@pytest.mark.parametrize(("name", "expected"), [("short", "short"), ("abcdefgh", "abc…gh"), ("abcdef", "abcdef")])
def test_name_is_shortened_in_its_middle(name: str, expected: str) -> None:
    assert shortened(name, 6) == expected


def test_figures_leave_the_users_matplotlib_alone(run: Run) -> None:
    """No figure is open in pyplot afterwards, no setting has changed, and a style of the user's own does not show."""
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({"font.size": 33.0, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        figure = draw_run(run, ["kl"])
        assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []
    assert figure.axes[0].get_facecolor()[:3] == (1.0, 1.0, 1.0) and figure.axes[0].xaxis.label.get_fontsize() == 10.0


def test_threads_that_draw_leave_matplotlib_alone(run: Run) -> None:
    """What each puts back is of the whole process."""
    before = dict(matplotlib.rcParams)
    threads = [threading.Thread(target=draw_run, args=(run,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(matplotlib.rcParams) == before
