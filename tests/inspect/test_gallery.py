"""Every figure by its name: of every kind of policy, in TensorBoard, and only where somebody looks."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_trpo.inspect import TrustRegionRecorder, figures_of, inspect_model
from tests.inspect.legible import assert_legible
from tests.other_algorithms import OTHERS
from tests.small_models import EVERY_CASE, small_model

# TensorBoard, and what is imported


def test_tensorboard_gets_the_figures_every_so_many_updates(tmp_path: Path) -> None:
    """The second of two updates has its figures under Images, though it is the last; both have their scalars."""
    model = small_model(tensorboard_log=str(tmp_path / "tb"))
    model.learn(2 * 64, callback=TrustRegionRecorder(tmp_path / "run", pictures_every=2))
    model.logger.close()
    events = EventAccumulator(str(tmp_path / "tb" / "TRPO_1"), size_guidance={"images": 0}).Reload()
    names = {"run", "ladder", "convergence", "bubble", "bars", "kl_per_state"}
    assert set(events.Tags()["images"]) == {f"trust_region/{name}" for name in names}
    for name in names:
        (image,) = events.Images(f"trust_region/{name}")
        assert image.step == 128 and min(image.width, image.height) > 150
    assert len(events.Scalars("train/kl_divergence_loss")) == 2


@pytest.mark.slow
def test_tensorboard_gets_the_figures_of_other_algorithms(tmp_path: Path) -> None:
    """Those that there are: the run, where the policy went, and what became of it in single states."""
    model = OTHERS["ppo"](tensorboard_log=str(tmp_path / "tb"))
    model.learn(2 * 64, callback=TrustRegionRecorder(tmp_path / "run", pictures_every=2))
    model.logger.close()
    events = EventAccumulator(str(tmp_path / "tb" / "PPO_1"), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {f"trust_region/{name}" for name in ("run", "bubble", "bars", "kl_per_state")}


# The pictures


@pytest.mark.untraced
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
    figures = dict(figures_of(inspect_model(EVERY_CASE[name].model(cg_max_steps=3, target_kl=0.02))))
    assert set(figures) == {"ladder", "convergence", "bubble", "bars", "kl_per_state"}
    for figure in figures.values():
        assert_legible(figure, monkeypatch)
