"""The recorder: every update is told, the run is left as it is, and a run that died has its record."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo import TRPO, UpdateReport
from sb3_trpo.inspect import TrustRegionRecorder, read_run
from tests.small_models import changed, make_env, monitored, policy_state, small_model


class Reports(BaseCallback):
    """Keeps the reports of a run, and reads the recorder's folder while it goes on."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.reports: list[UpdateReport] = []
        self.n_read: list[int] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if (self.folder / "updates.jsonl").exists():
            self.n_read.append(len(read_run(self.folder).updates))

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, TRPO)
        if self.model.last_update is not None:
            self.reports.append(self.model.last_update)


# The record


def test_recorder_writes_every_update_the_last_one_included(tmp_path: Path) -> None:
    """A line for each update with the numbers of its report, readable while the run goes on."""
    model, witness = small_model(env=monitored(), target_kl=0.05), Reports(tmp_path)
    model.learn(4 * 64, callback=[TrustRegionRecorder(tmp_path), witness])
    assert model.last_update is not None
    reports = [*witness.reports, model.last_update]
    run = read_run(tmp_path)
    assert run.problems == () and witness.n_read == [1, 2, 3]
    assert [update.n_updates for update in run.updates] == [1, 2, 3, 4]
    assert [update.num_timesteps for update in run.updates] == [64, 128, 192, 256]
    for report, update in zip(reports, run.updates, strict=True):
        assert update.candidates == report.step.candidates and update.max_kl == 0.05
        for name in (
            "mean_kl",
            "surrogate_gain",
            "expected_gain",
            "expected_kl",
            "step_fraction",
            "gradient_norm",
            "step_norm",
        ):
            assert getattr(update, name) == getattr(report.step, name)
        assert report.step.conjugate_gradient is not None and report.critic is not None
        assert update.cg_residual_norms == report.step.conjugate_gradient.residual_norms
        assert (update.entropy, update.std) == (report.entropy, report.std)
        assert update.explained_variance == pytest.approx(report.explained_variance)
        assert update.value_loss_first == report.critic.first_value_loss
        assert update.value_loss_last == report.critic.last_value_loss
        assert update.phase_seconds.items() >= report.phase_seconds.items()
        assert update.phase_seconds["collect"] > 0 and update.phase_seconds["other"] >= 0


def test_recorder_tells_each_episode_once(tmp_path: Path) -> None:
    """The returns of a record are those of the episodes that ended in its rollout; the mean is SB3's over the latest."""
    model = small_model(env=monitored())
    seen: list[list[float]] = []

    class Episodes(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen.append([])

        def _on_step(self) -> bool:
            seen[-1].extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
            return True

    model.learn(3 * 64, callback=[TrustRegionRecorder(tmp_path), Episodes()])
    updates = read_run(tmp_path).updates
    assert [list(update.episode_returns) for update in updates] == seen and min(map(len, seen)) > 0
    assert updates[-1].mean_return == pytest.approx(np.mean([r for rollout in seen for r in rollout]))


def test_recorder_works_without_a_monitor(tmp_path: Path) -> None:
    """Without episode statistics there is no return, and no failure."""
    small_model().learn(64, callback=TrustRegionRecorder(tmp_path))
    (update,) = read_run(tmp_path).updates
    assert math.isnan(update.mean_return) and update.episode_returns == ()


class Crash(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls == 150:
            raise RuntimeError("the machine caught fire")
        return True


def test_record_of_a_run_that_died_is_there(tmp_path: Path) -> None:
    """After an exception in the third rollout both updates before it are on the disk."""
    with pytest.raises(RuntimeError, match="caught fire"):
        small_model().learn(1000, callback=[TrustRegionRecorder(tmp_path), Crash()])
    assert [update.n_updates for update in read_run(tmp_path).updates] == [1, 2]


def test_resumed_run_is_appended_and_other_runs_are_put_aside(tmp_path: Path) -> None:
    """learn(reset_num_timesteps=False) goes on in the same file; a new run keeps the old one's files beside its own."""
    model, recorder = small_model(), TrustRegionRecorder(tmp_path, pictures_every=1)
    model.learn(2 * 64, callback=recorder)
    model.learn(64, callback=recorder, reset_num_timesteps=False)
    assert [update.n_updates for update in read_run(tmp_path).updates] == [1, 2, 3]
    before = (tmp_path / "updates.jsonl").read_bytes()
    small_model().learn(64, callback=TrustRegionRecorder(tmp_path))
    small_model().learn(64, callback=TrustRegionRecorder(tmp_path))
    assert [update.n_updates for update in read_run(tmp_path).updates] == [1]
    assert (tmp_path / "updates.1.jsonl").read_bytes() == before
    assert {"updates.2.jsonl", "states.1.jsonl", "slices.1.jsonl"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "states.jsonl").exists()


def test_run_resumed_from_an_earlier_save_makes_its_updates_anew(tmp_path: Path) -> None:
    """Of an update that the record holds twice the later one counts, and what came after the save is gone."""
    model = small_model()
    model.learn(64).save(tmp_path / "model")
    model.learn(3 * 64, callback=TrustRegionRecorder(tmp_path), reset_num_timesteps=False)
    loaded = TRPO.load(tmp_path / "model", make_env(), device="cpu")
    loaded.learn(64, callback=TrustRegionRecorder(tmp_path), reset_num_timesteps=False)
    (last,) = read_run(tmp_path).updates
    assert loaded.last_update is not None and last.n_updates == 2 and last.mean_kl == loaded.last_update.step.mean_kl


def test_recorder_does_not_take_an_update_of_before_for_its_own(tmp_path: Path) -> None:
    """A model that trained without the recorder brings no update into the record."""
    model = small_model().learn(64)
    model.learn(64, callback=TrustRegionRecorder(tmp_path), reset_num_timesteps=False)
    assert [update.n_updates for update in read_run(tmp_path).updates] == [2]


def test_recorder_refuses_what_cannot_work(tmp_path: Path) -> None:
    """A negative interval, states without pictures or of another shape: named with what was received."""
    with pytest.raises(ValueError, match="observation"):
        small_model().learn(64, callback=TrustRegionRecorder(tmp_path, pictures_every=1, states=np.zeros((1, 4))))
    assert TrustRegionRecorder(tmp_path, pictures_every=np.int64(2)).pictures_every == 2  # type: ignore[arg-type]
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"pictures_every.*{wrong}"):
            TrustRegionRecorder(tmp_path, pictures_every=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pictures_every"):
        TrustRegionRecorder(tmp_path, states=np.zeros((1, 3)))


@pytest.mark.untraced
@pytest.mark.parametrize("arguments", [{}, {"sub_sampling_factor": 4}, {"use_sde": True}], ids=str)
def test_recorder_with_pictures_leaves_the_run_as_it_is(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Weights after a run with and without the recorder agree bit for bit."""
    plain = small_model(**arguments)
    plain.learn(3 * 64)
    watched = small_model(**arguments)
    watched.learn(3 * 64, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    assert not changed(policy_state(plain), policy_state(watched))
    # And what was made ahead of each update is what the update did
    run = read_run(tmp_path)
    assert [plane.candidates for plane in run.slices] == [update.candidates for update in run.updates]
