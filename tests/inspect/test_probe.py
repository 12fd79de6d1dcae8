"""What is measured around an update is what there is to measure, and measuring changes nothing."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO
from sb3_trpo.guards.finite import normalizers_of
from sb3_trpo.inspect import change_of_probabilities, inspect_model
from sb3_trpo.inspect.probe import sample
from tests.small_models import (
    DISCRETE,
    EVERY_CASE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    changed,
    make_env,
    observed,
    policy_state,
    small_model,
)

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


# What is measured


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


@pytest.mark.untraced
@pytest.mark.parametrize("name", KINDS)
def test_inspect_model_works_with_every_kind_of_policy_and_leaves_it_alone(name: str) -> None:
    """One update told whole; weights and counters are bit for bit what they were, and the model goes on training."""
    model = EVERY_CASE[name].model(cg_max_steps=3)
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
    (states,) = inspect_model(EVERY_CASE["discrete-vector"].model(target_kl=0.2)).states
    for change in states.changes:
        (old,), (new,) = change.old.probabilities, change.new.probabilities
        assert change.kl == pytest.approx(change_of_probabilities(old, new).kl, abs=1e-5)


def test_inspect_model_needs_an_environment_and_freezes_its_statistics(tmp_path: Path) -> None:
    """Without an environment it says how to give one; VecNormalize is not moved on, and TensorBoard has no empty run."""
    small_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="set_env"):
        inspect_model(TRPO.load(tmp_path / "model", device="cpu"))
    env = VecNormalize(make_env())
    model = small_model(env=VecNormalize(env), tensorboard_log=str(tmp_path / "tb"))
    model.learn(64)
    normalizers = normalizers_of(model.env)
    assert len(normalizers) == 2
    counts = [observed(normalizer).count for normalizer in normalizers]
    inspect_model(model)
    for normalizer, count in zip(normalizers, counts, strict=True):
        assert observed(normalizer).count == count and normalizer.training
    assert [run.name for run in (tmp_path / "tb").iterdir()] == ["TRPO_1"]


@pytest.mark.parametrize("is_own", [True, False])
def test_inspect_model_leaves_the_logger_alone(is_own: bool) -> None:
    """What somebody has recorded for the next row is still there."""
    model = small_model()
    if is_own:
        model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(64)
    logger = model.logger
    logger.record("mine", 1.0)
    held = dict(logger.name_to_value)
    inspect_model(model)
    assert model.logger is logger and logger.name_to_value == held and "mine" in held


def test_inspect_model_tells_of_a_policy_that_cannot_move() -> None:
    """With every parameter frozen there is no direction, no plane, and a record that says so."""
    model = small_model()
    for parameter in model.policy.parameters():
        parameter.requires_grad = False
    run = inspect_model(model)
    assert run.updates[0].status == "gradient_zero" and run.slices == () and not run.states[0].kl.any()


@pytest.mark.parametrize("cls, policy", [(MaskableTRPO, "MlpPolicy"), (MaskableRecurrentTRPO, "MlpLstmPolicy")])
def test_environment_without_masks_is_refused_by_name(cls: type[TRPO], policy: str) -> None:
    """As by ``learn``, and before anything is collected."""
    model = small_model(cls, policy, make_env(action_space=DISCRETE))
    with pytest.raises(ValueError, match=r"env must have a method action_masks\(\).*ActionMasker"):
        inspect_model(model)
    assert model.rollout_buffer.pos == 0


class Discriminating(TRPO):
    """Trains another network on what it collects, as GAIL does."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.discriminator = th.nn.Linear(3, 1)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        goes_on = super().collect_rollouts(*args, **kwargs)
        with th.no_grad():
            self.discriminator.weight.add_(1.0)
        return goes_on

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, others = super()._get_torch_save_params()
        return [*names, "discriminator"], others


def test_inspect_model_leaves_the_other_networks_of_a_variant_alone() -> None:
    model = small_model(Discriminating)
    before = model.discriminator.weight.detach().clone()  # type: ignore[attr-defined]
    inspect_model(model)
    assert th.equal(model.discriminator.weight, before)  # type: ignore[attr-defined]
