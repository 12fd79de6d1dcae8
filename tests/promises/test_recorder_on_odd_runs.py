"""The recorder on runs that are not as usual: what it writes is of the update that was made, and the run is the same."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.nn import functional as F

from sb3_trpo import TRPO
from sb3_trpo.inspect import TrustRegionRecorder, figures_of, inspect_model, read_run
from sb3_trpo.inspect.__main__ import main
from sb3_trpo.vec_env import GymnasiumVecEnv
from tests.other_algorithms import OTHERS
from tests.small_models import RandomEnv, changed, make_env, policy_state, small_model


@pytest.fixture(autouse=True)
def coarse_here(coarse: None) -> None:
    """Measure slices at few points, in all of these tests."""


def test_states_and_plane_are_those_of_the_update_where_steps_are_wasted(tmp_path: Path) -> None:
    """A vector environment that spends a step on each reset: in each rollout other steps are none."""
    env: Any = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    model = TRPO("MlpPolicy", env, n_steps=64, seed=0, device="cpu")
    model.learn(3 * 256, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    assert model._wasted_steps is not None
    run = read_run(tmp_path)
    for update, states, plane in zip(run.updates, run.states, run.slices, strict=True):
        assert states.kl.mean() == pytest.approx(update.mean_kl, rel=1e-4)
        assert [c.mean_kl for c in plane.candidates] == pytest.approx([c.mean_kl for c in update.candidates], rel=1e-4)


class Noisy(BaseFeaturesExtractor):
    """Drops features in evaluation too."""

    def __init__(self, observation_space: Any):
        super().__init__(observation_space, 8)
        self.layer = nn.Linear(3, 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return F.dropout(self.layer(observations), 0.2, training=True)


class Running(Noisy):
    """Keeps a mean of what it has seen, and counts how often."""

    def __init__(self, observation_space: Any):
        super().__init__(observation_space)
        self.mean: th.Tensor
        self.register_buffer("mean", th.zeros(8))
        self.n_calls = 0

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = self.layer(observations)
        self.n_calls += 1
        self.mean = 0.99 * self.mean + 0.01 * features.detach().mean(dim=0)
        return features - self.mean / self.n_calls


@pytest.mark.filterwarnings("ignore:The policy's network is random")
@pytest.mark.parametrize("extractor", [Noisy, Running])
@pytest.mark.parametrize("pictures_every", [0, 1])
def test_run_of_a_network_that_draws_or_remembers_is_the_same(extractor: Any, pictures_every: int, tmp_path: Path) -> None:
    """The recorder looks at a copy, and gives the generators of the process back."""
    ends = []
    for callback in (None, TrustRegionRecorder(tmp_path, pictures_every=pictures_every)):
        th.manual_seed(0)
        model = small_model(policy_kwargs={"features_extractor_class": extractor})
        model.learn(192, callback=callback)
        ends.append((policy_state(model), th.get_rng_state()))
    assert not changed(ends[0][0], ends[1][0]) and th.equal(ends[0][1], ends[1][1])
    assert len(read_run(tmp_path).updates) == 3


@pytest.mark.filterwarnings("ignore:The policy's network is random")
@pytest.mark.parametrize("extractor", [Noisy, Running])
def test_model_whose_network_draws_or_remembers_is_what_it_was_once_inspected(extractor: Any) -> None:
    model = small_model(policy_kwargs={"features_extractor_class": extractor}).learn(64)
    policy, n_calls = model.policy, getattr(model.policy.features_extractor, "n_calls", 0)
    before, state = policy_state(model), th.get_rng_state()
    (update,) = inspect_model(model).updates
    assert update.status in ("accepted", "line_search_failed")
    assert model.policy is policy and not changed(before, policy_state(model)) and th.equal(state, th.get_rng_state())
    assert getattr(model.policy.features_extractor, "n_calls", 0) == n_calls


class WarmsUp(BaseCallback):
    """Freezes the actor for the first rollout."""

    def _of_actor(self) -> list[nn.Parameter]:
        policy: Any = self.model.policy
        return [policy.log_std, *policy.action_net.parameters(), *policy.mlp_extractor.policy_net.parameters()]

    def _on_rollout_start(self) -> None:
        for parameter in self._of_actor():
            parameter.requires_grad_(self.num_timesteps > 0)

    def _on_step(self) -> bool:
        return True


def test_frozen_actor_of_another_algorithm_is_measured_and_the_updates_after_it(tmp_path: Path) -> None:
    """It has not changed, and does so later."""
    model = PPO("MlpPolicy", make_env(), n_steps=64, batch_size=32, seed=0, device="cpu")
    model.learn(192, callback=[WarmsUp(), TrustRegionRecorder(tmp_path, pictures_every=1)])
    first, *others = read_run(tmp_path).updates
    assert (first.status, first.mean_kl, first.step_norm) == ("unchanged", 0.0, 0.0)
    assert all(update.status == "accepted" and update.mean_kl > 0.0 for update in others) and len(others) == 2


class OnceNoNumber(RandomEnv):
    """Gives one observation that is no number."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        if self.n_steps == 70:
            observation[0] = np.nan
        return observation, *rest


@pytest.mark.parametrize("board", [True, False])
def test_state_that_is_no_number_ends_no_training_and_no_picture(board: bool, tmp_path: Path) -> None:
    """One observation is NaN, with TensorBoard and without."""
    env = DummyVecEnv([OnceNoNumber])
    model = small_model(env=env, error_if_nonfinite=False, tensorboard_log=str(tmp_path) if board else None)
    model.learn(192, callback=TrustRegionRecorder(tmp_path / "run", pictures_every=1))
    run = read_run(tmp_path / "run")
    assert [update.status for update in run.updates].count("accepted") >= 1 and len(run.updates) == 3
    for update in run.updates:
        assert dict(figures_of(run, update.n_updates))


def test_numbers_are_those_of_full_precision_under_autocast(tmp_path: Path) -> None:
    """Of the last update too, which is measured once training has ended, and of a model that is looked at."""
    found: list[list[Any]] = []
    for name, half in (("full", False), ("half", True)):
        model = small_model(target_kl=1e-4, policy_kwargs={"log_std_init": -3.0})
        with th.autocast("cpu", dtype=th.bfloat16, enabled=half):
            model.learn(128, callback=TrustRegionRecorder(tmp_path / name, pictures_every=1))
            looked_at = inspect_model(model)
        runs = (read_run(tmp_path / name), looked_at)
        found.append([(u.mean_kl, u.largest_kl, u.ratio_quantiles) for run in runs for u in run.updates])
        found[-1] += [float(states.kl.mean()) for run in runs for states in run.states]
    np.testing.assert_equal(found[0], found[1])


@pytest.mark.parametrize("make", [small_model, lambda: PPO("MlpPolicy", make_env(), n_steps=64, seed=0, device="cpu")])
def test_run_that_goes_on_from_an_earlier_save_has_no_pictures_of_what_came_after(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    """They are of updates that have been made anew since, without pictures."""
    model = make()
    model.learn(256, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    model.save(tmp_path / "model")
    model.learn(256, callback=TrustRegionRecorder(tmp_path, pictures_every=1), reset_num_timesteps=False)
    loaded = type(model).load(tmp_path / "model", make_env(), device="cpu")
    loaded.learn(128, callback=TrustRegionRecorder(tmp_path), reset_num_timesteps=False)
    run = read_run(tmp_path)
    assert [update.n_updates for update in run.updates] == [1, 2, 3, 4, 5, 6]
    assert [states.n_updates for states in run.states] == [plane.n_updates for plane in run.slices] == [1, 2, 3, 4]


def test_model_that_learns_or_is_not_ours_is_not_inspected() -> None:
    """Before anything is collected."""

    class Looks(BaseCallback):
        def _on_step(self) -> bool:
            inspect_model(self.model)  # type: ignore[arg-type]
            return True

    with pytest.raises(RuntimeError, match="while the model learns"):
        small_model().learn(64, callback=Looks())
    model: Any = PPO("MlpPolicy", make_env(), n_steps=64, seed=0, device="cpu")
    with pytest.raises(TypeError, match="got PPO: TrustRegionRecorder"):
        inspect_model(model)
    assert math.isclose(model.num_timesteps, 0)


@th.no_grad()
def move(model: TRPO) -> None:
    policy: Any = model.policy
    policy.action_net.bias.add_(0.3)


class OwnTrain(TRPO):
    """Makes its updates itself, and reports none."""

    def train(self) -> None:
        move(self)
        self._n_updates += 1


class AuxiliaryPhase(TRPO):
    """Moves the policy after the update, which its report does not know."""

    def train(self) -> None:
        super().train()
        move(self)


class Around(TRPO):
    """Does something around the update, and nothing with the policy."""

    def train(self) -> None:
        super().train()
        self.logger.record("train/mine", 1.0)


@pytest.mark.parametrize("variant", [OwnTrain, AuxiliaryPhase, Around])
def test_update_of_a_variant_is_recorded_as_what_became_of_the_policy(variant: type[TRPO], tmp_path: Path) -> None:
    """By its report, where that tells of it; and measured from outside, where it does not."""
    model = small_model(variant)
    model.learn(3 * 64, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    run = read_run(tmp_path)
    assert [update.n_updates for update in run.updates] == [1, 2, 3] and len(run.states) == 3
    for update, states in zip(run.updates, run.states, strict=True):
        assert states.kl.mean() == pytest.approx(update.mean_kl, rel=1e-3)
        assert bool(update.candidates) == (variant is Around)


class CountsNothing(TRPO):
    """Makes its updates itself, and does not number them."""

    def train(self) -> None:
        move(self)


class Warm(TRPO):
    """Learns nothing from its first rollouts."""

    def train(self) -> None:
        if self.num_timesteps > 2 * 64:
            super().train()


@pytest.mark.parametrize("variant", [CountsNothing, Warm, OwnTrain])
def test_updates_of_a_variant_are_numbered_by_its_rollouts(variant: type[TRPO], tmp_path: Path) -> None:
    """However it counts: nothing is taken for an update that was made anew, and a run that goes on is appended to."""
    model = small_model(variant)
    model.learn(4 * 64, callback=TrustRegionRecorder(tmp_path, pictures_every=2))
    model.learn(2 * 64, callback=TrustRegionRecorder(tmp_path, pictures_every=2), reset_num_timesteps=False)
    run = read_run(tmp_path)
    assert [(update.n_updates, update.num_timesteps) for update in run.updates] == [(n, 64 * n) for n in range(1, 7)]
    assert [states.n_updates for states in run.states] == [2, 4, 6]
    # An update that moves nothing lies in no plane
    assert [plane.n_updates for plane in run.slices] == ([4, 6] if variant is Warm else [2, 4, 6])
    assert [update.status for update in run.updates[:2]].count("unchanged") == (2 if variant is Warm else 0)


class BlindLater(gym.Env):
    """Observes NaN from some step on."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,))
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))
    n_steps = 0

    def _observation(self) -> np.ndarray:
        return np.full(3, np.nan, np.float32) if self.n_steps > 60 else self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        return self._observation(), 1.0, self.n_steps % 10 == 0, False, {}


def test_update_that_is_no_number_anywhere_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    """There is no state whose policy could be drawn before and after; the command writes what there is."""
    model = TRPO("MlpPolicy", BlindLater(), n_steps=32, seed=0, error_if_nonfinite=False, device="cpu")
    model.learn(128, callback=TrustRegionRecorder(tmp_path, pictures_every=2))
    run = read_run(tmp_path)
    assert [len(states.changes) for states in run.states] == [2, 0]
    assert "bars" not in dict(figures_of(run)) and "kl_per_state" in dict(figures_of(run))
    assert main([str(tmp_path), "--html"]) == 0


class OneStepEpisodes(VectorEnv):
    """Every other step is spent on resets, of all environments at once."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    num_envs = 2
    single_observation_space = gym.spaces.Box(-1.0, 1.0, (3,))
    single_action_space = gym.spaces.Discrete(2)
    observation_space = batch_space(single_observation_space, 2)
    action_space = batch_space(single_action_space, 2)
    has_ended = False

    def _observations(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, (2, 3)).astype(np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed if seed is None else int(np.ravel(seed)[0]))
        self.has_ended = False
        return self._observations(), {}

    def step(self, actions: Any) -> Any:
        self.has_ended = not self.has_ended
        ended = np.full(2, self.has_ended)
        return self._observations(), ended * self.np_random.normal(size=2), ended, np.zeros(2, bool), {}


def test_rollout_of_wasted_steps_alone_is_one_among_others(tmp_path: Path) -> None:
    """There is nothing to measure in it; in the next one there is."""
    model = TRPO("MlpPolicy", GymnasiumVecEnv(OneStepEpisodes()), n_steps=1, seed=0, device="cpu")
    model.learn(12, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    run = read_run(tmp_path)
    assert [update.n_states for update in run.updates] == [2, 0, 2, 0, 2, 0]
    assert [states.n_updates for states in run.states] == [1, 2, 3, 4, 5, 6]
    assert {"run", "kl_per_state"} <= {name for name, _ in figures_of(run, 2)} & {name for name, _ in figures_of(run, 3)}


def test_warning_of_a_picture_that_fails_names_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no ink")

    monkeypatch.setattr("sb3_trpo.inspect.gallery.figures_of", fails)
    model = small_model(tensorboard_log=str(tmp_path / "tb"))
    with pytest.warns(UserWarning, match="could not draw update 2: RuntimeError: no ink"):
        model.learn(3 * 64, callback=TrustRegionRecorder(tmp_path / "run", pictures_every=2))


def test_standard_deviation_of_gsde_is_that_of_the_actions_of_ppo_too(tmp_path: Path) -> None:
    """One of many states: that of the actions is what the policy says of them."""
    model = OTHERS["ppo"](use_sde=True)
    model.learn(64, callback=TrustRegionRecorder(tmp_path))
    observations = th.as_tensor(model.rollout_buffer.observations).reshape(64, -1)
    policy: Any = model.policy
    with th.no_grad():
        expected = float(policy.get_distribution(observations).distribution.stddev.mean())
        assert expected != pytest.approx(float(policy.log_std.exp().mean()), rel=0.01)
    assert read_run(tmp_path).updates[0].std == pytest.approx(expected, rel=1e-5)


def test_standard_deviation_of_gsde_is_that_of_the_actions(tmp_path: Path) -> None:
    """And not that of the weights of its noise."""
    model = small_model(use_sde=True)
    model.learn(64, callback=TrustRegionRecorder(tmp_path))
    assert model.last_update is not None and model.last_update.noise_std is not None
    assert model.last_update.noise_std != pytest.approx(model.last_update.std, rel=0.01)
    assert read_run(tmp_path).updates[0].std == model.last_update.noise_std
