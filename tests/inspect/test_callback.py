"""What is recorded of the updates, what is measured around them, and that looking changes nothing."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sb3_trpo.inspect.probe
from sb3_trpo import TRPO, UpdateReport
from sb3_trpo.inspect import (
    TrustRegionRecorder,
    UpdateRecord,
    change_of_probabilities,
    draw_ladder,
    inspect_model,
    read_run,
    slice_of,
)
from sb3_trpo.inspect.probe import sample
from sb3_trpo.inspect.run_files import append, encode
from sb3_trpo.trust_region import trust_region_step
from tests.cases import QuadraticProblem, normal, spd_matrix
from tests.small_models import MULTI_BINARY, MULTI_DISCRETE, RandomEnv, changed, make_env, policy_state, small_model
from tests.test_trpo import CASES

# One of each kind of action, observation and number of environments
KINDS = (
    "box-vector",
    "box-image",
    "box-dict",
    "discrete-vector",
    "discrete-image-2",
    "multi_discrete-vector-2",
    "multi_binary-dict-2",
    "gsde-vector-sampled-2",
    "gsde-vector-squashed",
    "matrix-box",
)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure slices at few points: what is tested is where they lie, not how smooth the picture is."""
    monkeypatch.setattr(sb3_trpo.inspect.probe, "SLICE_POINTS", 7)


def monitored(n_envs: int = 2) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(RandomEnv())] * n_envs)


def update_record(**fields: Any) -> UpdateRecord:
    """Return a record of an update that went well, but for some fields."""
    one = inspect_model(small_model()).updates[0]
    return one._replace(**fields)


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
    """Another algorithm, a negative interval, states without pictures: named with what was received."""
    with pytest.raises(TypeError, match="PPO"):
        PPO("MlpPolicy", make_env(), n_steps=64, device="cpu").learn(64, callback=TrustRegionRecorder(tmp_path))
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"pictures_every.*{wrong}"):
            TrustRegionRecorder(tmp_path, pictures_every=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pictures_every"):
        TrustRegionRecorder(tmp_path, states=np.zeros((1, 3)))


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


# Reading


def test_damaged_lines_are_reported_by_file_and_line_and_the_rest_is_read(tmp_path: Path) -> None:
    """Garbage, a missing field, a wrong type and a line cut off each get a report; every other line is there."""
    path = tmp_path / "updates.jsonl"
    for n_updates in range(1, 7):
        append(path, update_record(n_updates=n_updates))
    lines = path.read_text().splitlines()
    without = json.loads(lines[2])
    del without["mean_kl"]
    wrong = json.loads(lines[3]) | {"candidates": [{"step_fraction": "all"}]}
    lines[1:4] = ["\x00\x00garbage", json.dumps(without), json.dumps(wrong)]
    path.write_text("\n".join(lines)[:-20])
    run = read_run(tmp_path)
    assert [update.n_updates for update in run.updates] == [1, 5]
    assert [problem.split(": ")[0] for problem in run.problems] == [f"{path}:{line}" for line in (2, 3, 4, 6)]
    assert "no field 'mean_kl'" in run.problems[1] and "field 'candidates'" in run.problems[2] and "cut off" in run.problems[3]
    # A run that goes on after the cut does not spoil its own first line
    append(path, update_record(n_updates=7))
    assert [update.n_updates for update in read_run(tmp_path).updates] == [1, 5, 7]


def test_missing_record_is_said_with_the_file_expected(tmp_path: Path) -> None:
    """A folder without a record, or none at all, names the file that is missing."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"updates\.jsonl"):
            read_run(folder)


def test_numbers_that_are_not_finite_survive_as_not_a_number_in_valid_json(tmp_path: Path) -> None:
    """NaN is written as null, which every reader of JSON knows, and comes back as NaN."""
    record = update_record(entropy=math.nan, explained_variance=math.inf)
    append(tmp_path / "updates.jsonl", record)
    text = (tmp_path / "updates.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and json.loads(text)["entropy"] is None
    (back,) = read_run(tmp_path).updates
    assert math.isnan(back.entropy) and math.isnan(back.explained_variance)
    assert back._replace(entropy=0.0, explained_variance=0.0) == record._replace(entropy=0.0, explained_variance=0.0)


def test_pictures_survive_the_disk(tmp_path: Path) -> None:
    """States and slices come back as they were measured, up to the digits that a picture needs."""
    model = small_model()
    model.learn(64, callback=TrustRegionRecorder(tmp_path, pictures_every=1, states=np.zeros((2, 3), np.float32)))
    run = read_run(tmp_path)
    (states,), (plane,) = run.states, run.slices
    assert encode(states) == json.loads((tmp_path / "states.jsonl").read_text())
    assert encode(plane) == json.loads((tmp_path / "slices.jsonl").read_text())
    assert plane.kl.shape == plane.gain.shape == (len(plane.fractions),) * 2
    assert [change.label for change in states.changes][2:] == ["chosen state 1", "chosen state 2"]
    assert states.changes[2].observation == "[0, 0, 0]"
    assert states.kl.mean() == pytest.approx(run.updates[0].mean_kl, rel=1e-3)
    assert states.changes[0].kl == pytest.approx(states.kl.max(), rel=1e-3)


# What is measured


@pytest.fixture(params=["gradient", "random"])
def quadratic(request: pytest.FixtureRequest) -> Iterator[tuple[QuadraticProblem, str]]:
    """A problem whose models are exact; with the identity for Fisher matrix the gradient is the natural gradient."""
    eigenvalues = th.ones(12, dtype=th.float64) if request.param == "random" else th.logspace(-1, 1, 12, dtype=th.float64)
    yield QuadraticProblem(spd_matrix(eigenvalues, seed=1), normal(12, seed=2)), request.param


def test_slice_of_a_quadratic_problem_is_the_unit_circle(quadratic: tuple[QuadraticProblem, str]) -> None:
    """Where the quadratic model is exact, KL is δ (x² + y²), the gain rises along x, and the gradient lies in the plane."""
    problem, second_direction = quadratic
    before = [parameter.detach().clone() for parameter in problem.parameters]
    step = trust_region_step(problem, max_kl=0.02, damping=0.0, cg_max_iterations=50, cg_relative_tolerance=1e-12)
    for parameter, start in zip(problem.parameters, before, strict=True):
        parameter.data.copy_(start)
    plane = slice_of(problem, step, max_kl=0.02, n_updates=3, n_points=7)
    assert plane is not None and plane.second_direction == second_direction
    x, y = np.meshgrid(plane.fractions, plane.fractions)
    np.testing.assert_allclose(plane.kl, 0.02 * (x**2 + y**2), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(plane.gain, step.full_step_gain * x, rtol=1e-6, atol=1e-12)
    assert all(th.equal(parameter, start) for parameter, start in zip(problem.parameters, before, strict=True))
    # The plain gradient, scaled to the length of the full step, by a definition of its own
    full_step = th.linalg.solve(problem.fisher, problem.gradient)
    full_step *= math.sqrt(0.04 / float(full_step @ problem.fisher @ full_step))
    plain = problem.gradient * (full_step.norm() / problem.gradient.norm())
    assert plane.gradient_step_kl == pytest.approx(0.5 * float(plain @ problem.fisher @ plain), rel=1e-6)
    assert 0.02 * float(np.square(plane.gradient_step).sum()) == pytest.approx(plane.gradient_step_kl, rel=1e-6)


def test_slice_needs_a_direction() -> None:
    """Where no direction was found, or there is no second one, there is no plane to draw."""
    flat = QuadraticProblem(spd_matrix(th.ones(3, dtype=th.float64), seed=1), th.zeros(3, dtype=th.float64))
    assert slice_of(flat, trust_region_step(flat, max_kl=0.01, damping=0.1), max_kl=0.01, n_updates=1) is None

    class Line(QuadraticProblem):
        def __init__(self) -> None:
            super().__init__(th.eye(1, dtype=th.float64), th.ones(1, dtype=th.float64))

    line = Line()
    assert slice_of(line, trust_region_step(line, max_kl=0.01, damping=0.1), max_kl=0.01, n_updates=1) is None


def test_slice_of_a_model_holds_what_the_line_search_measured() -> None:
    """At a candidate's place in the plane KL and gain are the candidate's."""
    run = inspect_model(small_model(n_steps=256, target_kl=0.01))
    (plane,), (update,) = run.slices, run.updates
    at_full_step = np.argmin(np.abs(plane.fractions - 1.0))
    assert plane.fractions[at_full_step] == 1.0 and plane.candidates[0].step_fraction == 1.0
    middle = len(plane.fractions) // 2
    assert plane.kl[middle, at_full_step] == pytest.approx(plane.candidates[0].mean_kl, rel=1e-3)
    assert plane.gain[middle, at_full_step] == pytest.approx(plane.candidates[0].surrogate_gain, rel=1e-2, abs=1e-5)
    assert plane.kl[middle, middle] == pytest.approx(0.0, abs=1e-6) and plane.n_states == 256
    assert update.candidates == plane.candidates


def test_sample_is_no_stride_of_a_rollout() -> None:
    """Of two interleaved environments both are in the sample, which is the same each time and sums to one."""
    model = small_model(env=make_env(n_envs=2))
    model.learn(64)
    batch = model._full_batch()
    first, second = sample(batch, 32), sample(batch, 32)
    assert isinstance(batch.observations, th.Tensor) and isinstance(first.observations, th.Tensor)
    assert th.equal(first.actions, second.actions) and len(first.weights) == 32
    assert float(first.weights.sum()) == pytest.approx(1.0)
    rows = [int((batch.observations == row).all(dim=1).nonzero()) for row in first.observations]
    assert 5 < sum(row % 2 for row in rows) < 27


def test_change_of_probabilities_is_that_of_the_seed_examples() -> None:
    """0.2 log(0.2/0.6) + 0.8 log(0.8/0.4) = 0.3348 nats, and 0.0070 for the small change."""
    assert change_of_probabilities([0.2, 0.8], [0.6, 0.4]).kl == pytest.approx(0.3348, abs=5e-5)
    assert change_of_probabilities([0.2, 0.8], [0.25, 0.75]).kl == pytest.approx(0.0070, abs=5e-5)
    assert change_of_probabilities([0.0, 1.0], [0.5, 0.5]).kl == pytest.approx(math.log(2.0))
    assert change_of_probabilities([0.5, 0.5], [0.0, 1.0]).kl == math.inf
    for old, new in (([0.2, 0.8], [1.0]), ([0.2, 0.9], [0.5, 0.5]), ([-0.2, 1.2], [0.5, 0.5])):
        with pytest.raises(ValueError, match="probabilities"):
            change_of_probabilities(old, new)


# A saved model and its environment alone


@pytest.mark.parametrize("name", KINDS)
def test_inspect_model_works_with_every_kind_of_policy_and_leaves_it_alone(name: str) -> None:
    """One update told whole; weights and counters are bit for bit what they were, and the model goes on training."""
    model = CASES[name].model(cg_max_steps=3)
    before, counters = policy_state(model), (model.num_timesteps, model._n_updates, model.last_update)
    run = inspect_model(model)
    assert not changed(before, policy_state(model))
    assert (model.num_timesteps, model._n_updates, model.last_update) == counters
    (update,), (states,), (plane,) = run.updates, run.states, run.slices
    assert update.accepted and update.candidates and np.isfinite(plane.kl).all()
    assert states.kl.mean() == pytest.approx(update.mean_kl, rel=1e-2, abs=1e-6)
    for change in states.changes:
        for policy in (change.old, change.new):
            assert all(sum(p) == pytest.approx(1.0, abs=1e-5) for p in policy.probabilities)
            assert bool(policy.probabilities) != bool(policy.mean) and len(policy.mean) == len(policy.std)
    model.learn(64)
    assert model.last_update is not None


def test_states_record_of_discrete_factors_has_one_for_each() -> None:
    """MultiDiscrete has a distribution for each factor, MultiBinary one of two outcomes for each bit."""
    for space, sizes in ((MULTI_DISCRETE, [3, 2]), (MULTI_BINARY, [2, 2, 2])):
        (states,) = inspect_model(small_model(env=make_env(action_space=space))).states
        assert [len(factor) for factor in states.changes[0].new.probabilities] == sizes


def test_kl_of_a_state_is_that_of_the_distributions_kept() -> None:
    """The KL told of a state follows from the probabilities told of it."""
    (states,) = inspect_model(CASES["discrete-vector"].model(target_kl=0.2)).states
    for change in states.changes:
        (old,), (new,) = change.old.probabilities, change.new.probabilities
        assert change.kl == pytest.approx(change_of_probabilities(old, new).kl, abs=1e-5)


def test_inspect_model_needs_an_environment_and_freezes_its_statistics(tmp_path: Path) -> None:
    """Without an environment it says how to give one; VecNormalize is not moved on."""
    small_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="set_env"):
        inspect_model(TRPO.load(tmp_path / "model", device="cpu"))
    env = VecNormalize(make_env())
    model = small_model(env=env)
    model.learn(64)
    assert isinstance(env.obs_rms, RunningMeanStd)
    count = env.obs_rms.count
    inspect_model(model)
    assert env.obs_rms.count == count and env.training


def test_inspect_model_tells_of_a_policy_that_cannot_move() -> None:
    """With every parameter frozen there is no direction, no plane, and a record that says so."""
    model = small_model()
    for parameter in model.policy.parameters():
        parameter.requires_grad = False
    run = inspect_model(model)
    assert run.updates[0].status == "gradient_zero" and run.slices == () and not run.states[0].kl.any()


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


def test_figures_are_spared_where_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorBoard nothing is drawn: recording needs no Matplotlib, and drawing without it says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    small_model().learn(64, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    with pytest.raises(ImportError, match=r"pip install sb3_trpo\[plots\]"):
        draw_ladder(read_run(tmp_path).updates[0])
