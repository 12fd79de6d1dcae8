"""The TRPO class as a guest in Stable-Baselines3: what works for SB3's own algorithms works for it."""

import inspect
import json
import pathlib
import zipfile
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trpo
from sb3_trpo import TRPO
from sb3_trpo.hyperparameters import PER_DIMENSION
from tests.small_models import EVERY_CASE, IMAGE, LONG_CASES, Case, changed, make_env, monitored, policy_state, small_model

pytestmark = pytest.mark.untraced


def test_trpo_is_an_on_policy_algorithm_of_sb3() -> None:
    """Whoever asks for SB3's OnPolicyAlgorithm gets one, with SB3's policies under their aliases."""
    assert issubclass(TRPO, OnPolicyAlgorithm)
    assert all(issubclass(policy, ActorCriticPolicy) for policy in TRPO.policy_aliases.values())
    assert TRPO.policy_aliases.keys() == sb3_contrib.TRPO.policy_aliases.keys()
    assert set(sb3_trpo.__all__) <= set(dir(sb3_trpo))
    assert set(sb3_trpo.__all__) >= {"TRPO", "MlpPolicy", "CnnPolicy", "MultiInputPolicy"}


@pytest.mark.parametrize("method", ["__init__", "learn", "load", "set_parameters", "save", "predict"])
def test_signature_begins_with_that_of_contrib(method: str) -> None:
    """
    Arguments have contrib's names, order, kinds and defaults, and what we add can be given by keyword only.

    The defaults of two depend on the action space, and are contrib's in our unit: see test_defaults.py.
    """
    ours, theirs = (list(inspect.signature(getattr(cls, method)).parameters.values()) for cls in (TRPO, sb3_contrib.TRPO))
    shared, ours_only = ours[: len(theirs)], ours[len(theirs) :]

    def described(parameters: list[inspect.Parameter]) -> list[tuple[Any, ...]]:
        return [(p.name, p.kind, None if p.name in PER_DIMENSION else p.default) for p in parameters]

    assert described(shared) == described(theirs)
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in ours_only)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in LONG_CASES)) for name, case in EVERY_CASE.items()]
)
def test_trpo_learns_saves_loads_and_predicts(case: Case, tmp_path: pathlib.Path) -> None:
    """Two updates, and a model that comes back from its zip with every weight and the same predictions, ready for more."""
    model = case.model()
    before = policy_state(model)
    assert model.learn(128) is model
    assert model.last_update is not None and model.last_update.n_updates == 2
    assert changed(before, policy_state(model))
    assert all(bool(tensor.isfinite().all()) for tensor in policy_state(model).values())

    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert not changed(policy_state(model), policy_state(loaded))
    observations: Any = case.env().reset()
    expected, _ = model.predict(observations, deterministic=True)
    actions, _ = loaded.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, expected)
    assert all(case.action_space.contains(action) for action in actions)

    loaded.set_env(case.env())
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 192 and loaded.last_update is not None and loaded.last_update.n_updates == 3


def test_load_takes_another_number_of_environments_and_other_arguments(tmp_path: pathlib.Path) -> None:
    """A model goes on in more environments than it was saved with, with what load is told to change."""
    small_model().learn(64).save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", make_env(n_envs=4), device="cpu", n_steps=16, target_kl=0.05, learning_rate=1e-4)
    loaded.learn(64)
    assert loaded.last_update is not None
    assert loaded.last_update.max_kl == loaded.target_kl == 0.05
    assert (loaded.rollout_buffer.buffer_size, loaded.rollout_buffer.n_envs) == (16, 4)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 1e-4


def test_load_puts_the_window_of_the_statistics_in_place(tmp_path: pathlib.Path) -> None:
    """stats_window_size given to load is the one used."""
    small_model().save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", make_env(), device="cpu", stats_window_size=3)
    loaded.learn(64)
    assert loaded.ep_info_buffer is not None and loaded.ep_info_buffer.maxlen == 3


@pytest.mark.parametrize("size", [2, 100, 500])
def test_window_of_the_statistics_goes_on_after_load(size: int, tmp_path: pathlib.Path) -> None:
    """With the latest of the episodes that are in the file, whether the window is another one or not."""
    model = small_model(env=monitored()).learn(256)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", monitored(), device="cpu", stats_window_size=size)
    assert len(model.ep_info_buffer) > 2  # type: ignore[arg-type]
    assert [*loaded.ep_info_buffer] == [*model.ep_info_buffer][-size:]  # type: ignore[misc]
    assert loaded.ep_info_buffer.maxlen == loaded.ep_success_buffer.maxlen == size  # type: ignore[union-attr]


def test_zip_holds_no_report_of_the_last_update(tmp_path: pathlib.Path) -> None:
    """What the last update did is for who looks at the running model, and does not travel with it."""
    model = small_model().learn(64)
    assert model.last_update is not None
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        saved = json.loads(archive.read("data"))
    assert "target_kl" in saved and "last_update" not in saved
    assert TRPO.load(tmp_path / "model.zip", device="cpu").last_update is None


@pytest.mark.parametrize(
    "name", ["box-vector-2", "discrete-vector", "multi_discrete-vector-2", "gsde-vector-sampled-2", "multi_binary-dict-2"]
)
def test_trpo_with_the_same_seed_ends_with_the_same_weights(name: str) -> None:
    """Two runs with one seed agree bit for bit, another seed leads elsewhere."""
    first, second, other = (EVERY_CASE[name].model(seed=seed).learn(128) for seed in (3, 3, 4))
    assert not changed(policy_state(first), policy_state(second))
    assert changed(policy_state(first), policy_state(other))


def test_run_that_was_saved_and_loaded_goes_on_like_one_that_was_not(tmp_path: pathlib.Path) -> None:
    """Optimizer and weights come back whole: given the same environment and random state the next update is the same."""
    model = small_model().learn(64)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", make_env(), device="cpu")
    model.set_env(make_env())
    for each in (model, loaded):
        each.set_random_seed(7)
        each.learn(64, reset_num_timesteps=False)
    assert not changed(policy_state(model), policy_state(loaded))


class Untouched(TRPO):
    """TRPO that looks at torch's random state on both sides of an update."""

    untouched: tuple[bool, ...] = ()

    def train(self) -> None:
        before = th.get_rng_state()
        super().train()
        self.untouched += (th.equal(before, th.get_rng_state()),)


@pytest.mark.parametrize("name", ["box-vector", "gsde-vector-sampled-2"])
def test_train_draws_nothing_from_the_global_generator_of_torch(name: str) -> None:
    """The actions of the next rollout do not depend on how the update was solved."""
    model = EVERY_CASE[name].model(Untouched)
    assert isinstance(model, Untouched)
    model.learn(128)
    assert model.untouched == (True, True)


class Witness(BaseCallback):
    """Counts the events of a run, and ends it after some steps."""

    def __init__(self, last_step: int = 10**9):
        super().__init__()
        self.last_step = last_step
        self.events: list[str] = []

    def _on_training_start(self) -> None:
        self.events.append("training_start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout_start")

    def _on_step(self) -> bool:
        self.events.append("step")
        return self.n_calls < self.last_step

    def _on_rollout_end(self) -> None:
        self.events.append("rollout_end")

    def _on_training_end(self) -> None:
        self.events.append("training_end")


def test_learn_calls_callbacks() -> None:
    """A callback hears of every step and rollout, in SB3's order."""
    witness = Witness()
    small_model(env=make_env(n_envs=2)).learn(128, callback=witness)
    rollout = ["rollout_start", *["step"] * 32, "rollout_end"]
    assert witness.events == ["training_start", *rollout, *rollout, "training_end"]


def test_learn_ends_when_a_callback_says_so() -> None:
    """A callback that returns False ends training before the update."""
    model = small_model()
    model.learn(1000, callback=Witness(last_step=70))
    assert model.num_timesteps == 70
    assert model.last_update is not None and model.last_update.n_updates == 1


def test_learn_works_with_evaluation_and_normalised_observations() -> None:
    """SB3's EvalCallback and VecNormalize are served."""
    env = VecNormalize(make_env())
    callback = EvalCallback(VecNormalize(make_env(), training=False), n_eval_episodes=2, eval_freq=64, verbose=0)
    model = small_model(env=env)
    # Its evaluation environments have no Monitor, of which SB3 warns
    with pytest.warns(UserWarning, match="Monitor"):
        model.learn(128, callback=callback)
    assert np.isfinite(callback.last_mean_reward)


def test_learn_wraps_a_single_environment_and_takes_its_name() -> None:
    """An environment may be given by its registered name; it is wrapped and monitored as SB3 does."""
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(64)
    assert model.get_env() is not None and model.env is not None and model.env.env_is_wrapped(Monitor) == [True]
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) > 0


@pytest.mark.parametrize("name", ["box-vector", "discrete-vector", "multi_binary-vector", "gsde-vector"])
def test_last_update_describes_the_policy_after_it(name: str) -> None:
    """Entropy and standard deviation of the report are those of the policy that train leaves behind."""
    model = EVERY_CASE[name].model(target_kl=0.2).learn(64)
    report = model.last_update
    assert report is not None and report.step.accepted and report.entropy is not None
    data = next(model.rollout_buffer.get(batch_size=None))
    with th.no_grad():
        entropy = model.policy.get_distribution(data.observations).entropy()
    assert entropy is not None
    assert report.entropy == pytest.approx(float(entropy.mean()), abs=1e-5)
    if report.std is not None:
        log_std = model.policy.log_std
        assert isinstance(log_std, th.Tensor)
        assert report.std == pytest.approx(float(log_std.detach().exp().mean()))


def test_train_without_a_critic_fit_reports_none() -> None:
    """n_critic_updates=0 trains the actor only."""
    model = small_model(n_critic_updates=0)
    before = policy_state(model)
    model.learn(64)
    assert model.last_update is not None and model.last_update.critic is None
    assert {name for name in changed(before, policy_state(model)) if "value" in name} == set()


def test_learning_rate_is_that_of_the_critic() -> None:
    """A schedule moves the critic's learning rate; at zero the critic stays, and the policy steps as far as ever."""
    scheduled = small_model(learning_rate=lambda remaining: 1e-3 * remaining).learn(128)
    assert scheduled.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    still, moving = (small_model(learning_rate=rate).learn(64) for rate in (0.0, 1e-3))
    apart = changed(policy_state(still), policy_state(moving))
    assert apart and all("value" in name for name in apart)


@pytest.mark.parametrize("fast", [True, False])
def test_standard_deviation_has_a_damping_of_its_own(fast: bool) -> None:
    """A Gaussian's Fisher information about each log std is 2 and tells of nothing else: its step is g / (2 + damping)."""
    start = policy_state(small_model())

    def log_std_step(std_damping: float | None) -> th.Tensor:
        """Return the step of the log std beside that of the means."""
        model = small_model(fast=fast, cg_damping=1.0, cg_max_steps=200, std_damping=std_damping).learn(64)
        assert model.last_update is not None and model.last_update.step.accepted
        step = {name: tensor - start[name] for name, tensor in policy_state(model).items()}
        return step["log_std"] / step["action_net.weight"].norm()

    without = log_std_step(None)
    assert th.equal(log_std_step(1.0), without)
    for std_damping in (0.0, 4.0, 1e3):
        expected = without * (2.0 + 1.0) / (2.0 + std_damping)
        th.testing.assert_close(log_std_step(std_damping), expected, rtol=5e-3, atol=1e-6)


def test_default_damping_leaves_the_standard_deviation_its_whole_step() -> None:
    """Without any damping asked for, the update is that of ``std_damping=0`` beside the default of ``cg_damping``."""
    models = small_model(), small_model(cg_damping=0.3, std_damping=0.0), small_model(cg_damping=0.3)
    left_out, written_out, damped = (policy_state(model.learn(64)) for model in models)
    assert changed(left_out, written_out) == set() and "log_std" in changed(left_out, damped)


def test_damping_of_the_standard_deviation_survives_the_zip_and_goes_with_gsde(tmp_path: pathlib.Path) -> None:
    """It is there after loading, can be replaced, and works where the standard deviation is that of a matrix."""
    model = small_model(use_sde=True, std_damping=4.0).learn(64)
    assert model.last_update is not None and model.last_update.step.accepted
    model.save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model", device="cpu").std_damping == 4.0
    assert TRPO.load(tmp_path / "model", make_env(), device="cpu", std_damping=None).learn(64).std_damping is None


@pytest.mark.parametrize("share", [True, False])
def test_frozen_parameters_stay_and_training_goes_on(share: bool) -> None:
    """An extractor with requires_grad=False, SB3's way to freeze one, keeps its weights while the rest trains."""
    model = small_model(policy="CnnPolicy", env=make_env(IMAGE), policy_kwargs={"share_features_extractor": share})
    for parameter in model.policy.features_extractor.parameters():
        parameter.requires_grad = False
    before = policy_state(model)
    model.learn(128)
    assert model.last_update is not None and model.last_update.step.accepted
    moved = changed(before, policy_state(model))
    frozen = {f"features_extractor.{name}" for name, _ in model.policy.features_extractor.named_parameters()}
    assert frozen and not moved & frozen
    assert {"action_net.weight", "log_std", "value_net.weight"} <= moved
    assert any(name.startswith("vf_features_extractor") for name in moved) != share


def test_policy_frozen_as_a_whole_leaves_only_the_critic_to_train() -> None:
    """With nothing to move the update says so instead of failing."""
    model = small_model()
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad = "value" in name
    before = policy_state(model)
    model.learn(64)
    assert model.last_update is not None and not model.last_update.step.accepted
    moved = changed(before, policy_state(model))
    assert moved and all("value" in name for name in moved)
