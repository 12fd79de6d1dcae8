"""The recorder with every other on-policy algorithm: it tells what they did, and leaves their runs as they are."""

import json
import math
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import CallbackList, ConvertCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo.inspect import TrustRegionRecorder, figures_of, read_run
from sb3_trpo.inspect.run_files import UpdateRecord
from tests.other_algorithms import OTHERS
from tests.small_models import RandomEnv, changed, make_env, monitored, policy_state, small_model


@pytest.mark.untraced
@pytest.mark.parametrize("name", OTHERS)
def test_run_is_the_same_with_the_recorder_and_told_whole(name: str, tmp_path: Path) -> None:
    """Weights, statistics and every generator of the process agree bit for bit; each update has its line with its numbers."""

    def trained(callback: Any) -> tuple[Any, Any, Any, Any]:
        random.seed(1)
        model = OTHERS[name]().learn(2 * 64 if "one_step" not in name else 6, callback=callback)
        return policy_state(model), random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist()  # type: ignore

    (plain, *random_states), (watched, *states) = trained(None), trained(TrustRegionRecorder(tmp_path))
    assert not changed(plain, watched) and states == random_states
    run = read_run(tmp_path)
    assert run.problems == () and [update.n_updates for update in run.updates] == list(range(1, len(run.updates) + 1))
    assert len(run.updates) >= 2
    for update in run.updates:
        assert update.status in ("accepted", "unchanged") and update.accepted == (update.step_norm > 0)
        assert math.isfinite(update.mean_kl) and math.isfinite(update.surrogate_gain) and math.isfinite(update.expected_gain)
        assert update.largest_kl >= update.mean_kl >= 0 and len(update.kl_quantiles) == len(update.ratio_quantiles) == 5
        assert 0 <= update.outside_clip <= 1 and update.n_states > 0 and update.phase_seconds.keys() == {"collect", "update"}
        # What an algorithm does not have is left out
        assert not update.tells_of_search and not update.candidates and not update.cg_residual_norms
        assert math.isnan(update.max_kl) != ("trpo" in name)
        assert math.isnan(update.entropy) == (name == "ppo-gsde-squashed")
        assert math.isnan(update.std) == ("log_std" not in plain)
    assert any(update.accepted for update in run.updates)


@pytest.mark.untraced
@pytest.mark.parametrize(
    "name", ["ppo", "ppo-dict", "ppo-gsde", "a2c", "contrib-trpo", "maskable-ppo", "recurrent-ppo", "two-optimizers"]
)
def test_pictures_leave_the_run_as_it_is_and_hold_the_step_that_was_taken(name: str, tmp_path: Path) -> None:
    """The plane's new policy has the KL and the gain that were measured of the update; the states have its mean KL."""
    plain, watched = OTHERS[name]().learn(2 * 64), OTHERS[name]()
    watched.learn(2 * 64, callback=TrustRegionRecorder(tmp_path, pictures_every=2))
    assert not changed(policy_state(plain), policy_state(watched))  # type: ignore[arg-type]
    run = read_run(tmp_path)
    update = run.updates[1]
    (states,), (plane,) = run.states, run.slices
    assert states.n_updates == plane.n_updates == 2 and plane.algorithm == update.algorithm
    assert states.kl.mean() == pytest.approx(update.mean_kl, rel=1e-2, abs=1e-7)
    assert len(plane.step) == 2 and plane.candidates == () and plane.n_states == len(states.kl) == 64
    assert plane.step_kl == pytest.approx(update.mean_kl, rel=2e-2, abs=1e-7)
    assert plane.step_gain == pytest.approx(update.surrogate_gain, rel=2e-2, abs=1e-6)
    assert plane.max_kl == pytest.approx(update.max_kl if plane.has_limit else update.mean_kl, rel=1e-4)
    assert plane.has_limit == (name == "contrib-trpo")
    # By the quadratic model the natural step has δ
    assert plane.natural_kl == pytest.approx(plane.max_kl, rel=0.5)


def test_chosen_states_of_another_algorithm_are_told(tmp_path: Path) -> None:
    """Beside those of its rollout; figures come of all that was kept."""
    states = np.zeros((2, 3), np.float32)
    OTHERS["ppo"]().learn(64, callback=TrustRegionRecorder(tmp_path, pictures_every=1, states=states))
    run = read_run(tmp_path)
    assert [change.label for change in run.states[0].changes][2:] == ["chosen state 1", "chosen state 2"]
    assert [name for name, _ in figures_of(run)] == ["bubble", "bars", "kl_per_state"]


def test_names_and_returns_of_other_algorithms(tmp_path: Path) -> None:
    """The class names the algorithm, sb3-contrib's TRPO by its full name; returns are told as of ours."""
    for name, expected in (("ppo", "PPO"), ("contrib-trpo", "sb3_contrib.TRPO"), ("two-optimizers", "TwoOptimizers")):
        model = OTHERS[name]().learn(128, callback=TrustRegionRecorder(tmp_path / name))
        (*_, last) = read_run(tmp_path / name).updates
        assert last.algorithm == expected and last.episode_returns
        assert last.mean_return == pytest.approx(np.mean([info["r"] for info in model.ep_info_buffer or ()]))
        assert last.num_timesteps == 128 and math.isfinite(last.explained_variance)
    small_model().learn(64, callback=TrustRegionRecorder(tmp_path))
    assert read_run(tmp_path).updates[0].algorithm == "TRPO"


def test_explained_variance_is_the_one_that_the_algorithm_logs(tmp_path: Path) -> None:
    """And the standard deviation."""
    model = OTHERS["ppo"]().learn(64, callback=TrustRegionRecorder(tmp_path))
    (update,) = read_run(tmp_path).updates
    assert update.explained_variance == pytest.approx(model.logger.name_to_value["train/explained_variance"], abs=1e-5)
    assert update.std == pytest.approx(model.logger.name_to_value["train/std"])


def test_updates_are_numbered_by_rollouts_and_a_run_goes_on(tmp_path: Path) -> None:
    """PPO counts passes; the record counts rollouts, also after a pause, a load, and with other environments."""
    model = OTHERS["ppo"]()
    model.learn(128, callback=TrustRegionRecorder(tmp_path))
    model.save(tmp_path / "model")
    model.learn(64, callback=TrustRegionRecorder(tmp_path), reset_num_timesteps=False)
    assert [update.n_updates for update in read_run(tmp_path).updates] == [1, 2, 3]
    loaded = PPO.load(tmp_path / "model", monitored(4), n_steps=32, device="cpu")
    loaded.learn(2 * 128, callback=TrustRegionRecorder(tmp_path), reset_num_timesteps=False)
    # The third one is made anew
    assert [(u.n_updates, u.num_timesteps) for u in read_run(tmp_path).updates] == [(1, 64), (2, 128), (3, 256), (4, 384)]
    # Without a record of what was before
    loaded.learn(128, callback=TrustRegionRecorder(tmp_path / "later"), reset_num_timesteps=False)
    assert [update.n_updates for update in read_run(tmp_path / "later").updates] == [4]


def test_policy_that_cannot_be_copied_is_skipped_with_one_warning(tmp_path: Path) -> None:
    """The run goes on, its returns and times are on record, and the warning says what is in the way."""
    model = OTHERS["ppo"]()
    policy: Any = model.policy
    policy.lock = threading.Lock()
    with pytest.warns(UserWarning, match=r"does not measure .* ActorCriticPolicy cannot be copied .*lock") as caught:
        model.learn(3 * 64, callback=TrustRegionRecorder(tmp_path))
    assert len(caught) == 1
    updates = read_run(tmp_path).updates
    assert [update.status for update in updates] == ["not_measured"] * 3
    assert all(math.isnan(update.mean_kl) and update.episode_returns for update in updates)


class NoClosedForm(ActorCriticPolicy):
    """A policy whose distribution is no distribution of SB3's."""

    def get_distribution(self, obs: Any) -> Any:
        raise RuntimeError("ask me something else")


def test_what_a_policy_of_the_users_own_raises_ends_the_measuring_and_not_the_run(tmp_path: Path) -> None:
    """Whatever it is: one warning with its words."""
    model = PPO(NoClosedForm, make_env(), n_steps=64, seed=0, device="cpu")
    with pytest.warns(UserWarning, match="RuntimeError: ask me something else") as caught:
        model.learn(128, callback=TrustRegionRecorder(tmp_path))
    assert len(caught) == 1 and len(read_run(tmp_path).updates) == 2


def test_ours_is_recorded_by_its_report_where_its_spread_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of the report are there all the same."""

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no spread")

    monkeypatch.setattr("sb3_trpo.inspect.watched_update.WatchedStates", fails)
    model = small_model()
    with pytest.warns(UserWarning, match="no spread"):
        model.learn(64, callback=TrustRegionRecorder(tmp_path))
    (update,) = read_run(tmp_path).updates
    assert model.last_update is not None and update.mean_kl == model.last_update.step.mean_kl and update.n_states == 0


def test_spread_of_ours_is_near_its_means(tmp_path: Path) -> None:
    """Of 64 states all are looked at: the middle of the KLs is below the largest, and their quantiles surround the mean."""
    model = small_model(target_kl=0.05)
    model.learn(64, callback=TrustRegionRecorder(tmp_path))
    (update,) = read_run(tmp_path).updates
    assert update.n_states == 64 and update.kl_quantiles[0] < update.mean_kl < update.largest_kl
    assert update.reverse_kl == pytest.approx(update.mean_kl, rel=0.3) and update.clip_range == 0.2


def test_off_policy_algorithm_is_refused_by_name(tmp_path: Path) -> None:
    """DQN has no rollout to measure on."""
    model = DQN("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(TypeError, match=r"on-policy.*DQN"):
        model.learn(10, callback=TrustRegionRecorder(tmp_path))


def test_states_that_are_none_are_refused_before_anything_is_collected(tmp_path: Path) -> None:
    """Those of a policy with a memory may come with it."""
    states = np.zeros((2, 3), np.float32)
    for wrong in (np.zeros((1, 4)), (states, (np.zeros((1, 1, 8)),) * 2)):
        with pytest.raises(ValueError, match=r"observation|shape"):
            OTHERS["recurrent-ppo"]().learn(64, callback=TrustRegionRecorder(tmp_path, pictures_every=1, states=wrong))


def test_record_of_before_there_were_other_algorithms_is_read(tmp_path: Path) -> None:
    """A line without the newer fields is one of TRPO, with nothing known of its spread."""
    small_model().learn(64, callback=TrustRegionRecorder(tmp_path))
    path = tmp_path / "updates.jsonl"
    line = json.loads(path.read_text())
    newer = UpdateRecord._fields[UpdateRecord._fields.index("observation_spread") :]
    path.write_text(json.dumps({name: value for name, value in line.items() if name not in newer}) + "\n")
    run = read_run(tmp_path)
    assert run.problems == () and run.updates[0].algorithm == "TRPO" and run.updates[0].kl_quantiles == ()


def test_rollout_that_is_stopped_is_no_update(tmp_path: Path) -> None:
    """Nothing was learned from it."""
    model = PPO("MlpPolicy", RandomEnv(), n_steps=64, seed=0, device="cpu")

    def stop(locals_: dict[str, Any], _: Any) -> bool:
        return bool(locals_["n_steps"] < 10)

    model.learn(64, callback=CallbackList([TrustRegionRecorder(tmp_path), ConvertCallback(stop)]))
    assert not (tmp_path / "updates.jsonl").exists()


class Noise(RandomEnv):
    """Short episodes of noise, in which large actions are paid for."""

    def __init__(self) -> None:
        super().__init__(action_space=spaces.Box(-1.0, 1.0, (2,)), termination_probability=0.2)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return (observation, float(0.3 * action.sum() + self.np_random.normal()), *rest)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_step_of_a_memory_with_gsde_lies_where_it_ended(seed: int, n_layers: int, tmp_path: Path) -> None:
    """Its KL in the plane is that on record."""
    from sb3_contrib import RecurrentPPO

    kwargs = {"lstm_hidden_size": 8, "n_lstm_layers": n_layers}
    model = RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv([Noise] * 2),
        n_steps=64,
        batch_size=32,
        n_epochs=3,
        seed=seed,
        use_sde=True,
        policy_kwargs=kwargs,
        device="cpu",
    )
    model.learn(384, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    run = read_run(tmp_path)
    assert len(run.slices) == len(run.updates) == 3
    for update, plane in zip(run.updates, run.slices, strict=True):
        assert plane.step_kl == pytest.approx(update.mean_kl, rel=1e-3) and plane.second_direction == "step"
