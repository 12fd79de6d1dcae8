"""SB3's callbacks, the real ones: they are served while experience is collected leanly, and stop training when they say so."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_trpo import TRPO
from tests.small_models import RandomEnv, changed, make_env, observed, policy_state, small_model


def monitored(n_envs: int = 1, **arguments: Any) -> VecEnv:
    make: Callable[[], Monitor] = lambda: Monitor(RandomEnv(**arguments))  # noqa: E731
    return DummyVecEnv([make] * n_envs)


def lean(model: TRPO) -> bool:
    return model.paths_in_use["collection"] == "lean"


class FlatEnv(RandomEnv):
    """The random environment with the same return for every policy: never better than the first time."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, _, truncated, info = super().step(action)
        return observation, 1.0, False, truncated, info


class Count(BaseCallback):
    """Counts its calls."""

    n_triggers = 0

    def _on_step(self) -> bool:
        self.n_triggers += 1
        return True


def evaluation(threshold: float, **arguments: Any) -> EvalCallback:
    stop = StopTrainingOnRewardThreshold(threshold, verbose=0)
    return EvalCallback(monitored(), callback_on_new_best=stop, eval_freq=40, n_eval_episodes=2, verbose=0, **arguments)


def test_evaluation_writes_what_it_found(tmp_path: pathlib.Path) -> None:
    """EvalCallback evaluates, keeps the best model and its log, and what it logs stands beside our metrics."""
    callback = evaluation(np.inf, best_model_save_path=str(tmp_path), log_path=str(tmp_path))
    model = small_model(env=monitored())
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(192, callback=callback)
    assert lean(model) and np.isfinite(callback.best_mean_reward)
    found = np.load(tmp_path / "evaluations.npz")
    assert found["timesteps"].tolist() == [40, 80, 120, 160] and found["results"].shape == (4, 2)
    best = TRPO.load(tmp_path / "best_model", device="cpu")
    assert changed(policy_state(best), policy_state(small_model())) or best.num_timesteps == 40
    rows = pd.read_csv(tmp_path / "progress.csv")
    assert rows["eval/mean_reward"].notna().sum() == 4
    assert sorted(rows["train/n_updates"].dropna()) == [1, 2, 3]
    model.logger.close()


def test_evaluation_stops_at_a_threshold() -> None:
    """The run ends at the evaluation that reaches it, in the middle of a rollout, with the update before it kept."""
    model = small_model(env=monitored())
    model.learn(1000, callback=evaluation(-1e9))
    assert model.num_timesteps == 40 and model.last_update is None and lean(model)


def test_evaluation_stops_without_improvement() -> None:
    """StopTrainingOnNoModelImprovement counts evaluations and ends the run."""
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1, verbose=0)
    model = small_model(env=monitored())
    callback = EvalCallback(
        DummyVecEnv([lambda: Monitor(FlatEnv())]), callback_after_eval=stop, eval_freq=40, n_eval_episodes=1, verbose=0
    )
    model.learn(10_000, callback=callback)
    assert model.num_timesteps == 120


def test_evaluation_sees_the_normalisation_of_training() -> None:
    """The statistics of VecNormalize are copied to the evaluation's environment before each evaluation."""
    env, evaluated = VecNormalize(monitored()), VecNormalize(monitored(), training=False, norm_reward=False)
    callback = EvalCallback(evaluated, eval_freq=64, n_eval_episodes=1, verbose=0)
    small_model(env=env).learn(128, callback=callback)
    assert observed(evaluated).count == observed(env).count > 128
    np.testing.assert_array_equal(observed(evaluated).mean, observed(env).mean)


def test_checkpoints_load_and_go_on(tmp_path: pathlib.Path) -> None:
    """Each checkpoint is a model with its VecNormalize statistics, from which training goes on."""
    callback = CheckpointCallback(save_freq=40, save_path=str(tmp_path), name_prefix="trpo", save_vecnormalize=True)
    model = small_model(env=VecNormalize(make_env())).learn(128, callback=callback)
    assert lean(model)
    names = {f"trpo_{n}_steps.zip" for n in (40, 80, 120)} | {f"trpo_vecnormalize_{n}_steps.pkl" for n in (40, 80, 120)}
    assert {path.name for path in tmp_path.iterdir()} == names
    env = VecNormalize.load(str(tmp_path / "trpo_vecnormalize_80_steps.pkl"), make_env())
    count = observed(env).count
    assert 80 < count < 120
    resumed = TRPO.load(tmp_path / "trpo_80_steps", env, device="cpu")
    assert resumed.num_timesteps == 80 and resumed._n_updates == 1
    resumed.learn(64, reset_num_timesteps=False)
    assert resumed.num_timesteps == 144 and observed(env).count > count + 60


@pytest.mark.parametrize("n_envs", [1, 2])
def test_event_every_n_timesteps(n_envs: int) -> None:
    """EveryNTimesteps triggers its callback by steps of all environments together."""
    count = Count()
    model = small_model(env=make_env(n_envs=n_envs)).learn(128, callback=EveryNTimesteps(n_steps=32, callback=count))
    assert count.n_triggers == 4 and lean(model)


def test_training_stops_after_so_many_episodes() -> None:
    """StopTrainingOnMaxEpisodes finds the `dones` of a lean rollout."""
    env = DummyVecEnv([lambda: RandomEnv(termination_probability=0.0, episode_length=10)] * 2)
    model = small_model(env=env)
    model.learn(10_000, callback=StopTrainingOnMaxEpisodes(max_episodes=5, verbose=0))
    assert model.num_timesteps == 100 and lean(model)


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar_reaches_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """As a callback and as an argument of learn."""
    bar = ProgressBarCallback()
    small_model(env=make_env(n_envs=2)).learn(128, callback=bar)
    assert bar.pbar.n == 128
    capsys.readouterr()
    small_model().learn(64, progress_bar=True)
    assert "64/64" in "".join(capsys.readouterr())


@pytest.mark.parametrize("log_interval", [None, 1])
def test_log_every_n_timesteps_has_the_last_update(log_interval: Any, tmp_path: pathlib.Path) -> None:
    """With SB3's own rows switched off the callback's are there, each update once, and the last update too."""
    model = small_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(256, callback=LogEveryNTimesteps(n_steps=100), log_interval=log_interval)
    model.logger.close()
    rows = pd.read_csv(tmp_path / "progress.csv")
    updates = rows["train/n_updates"].dropna().tolist()
    # The second update is the last one before step 200
    assert updates == ([1, 3, 4] if log_interval is None else [1, 2, 3, 4])
    assert {100, 200} <= set(rows["time/total_timesteps"]) and rows["time/total_timesteps"].iloc[-1] == 256


def test_list_of_callbacks_and_a_function() -> None:
    """A CallbackList, a plain list and a function are all called at each step, and any of them ends the run."""
    counts, seen = [Count(), Count()], []

    def function(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        seen.append(locals_["self"].num_timesteps)
        return len(seen) < 70

    model = small_model()
    model.learn(64, callback=CallbackList(list(counts)))
    assert [count.n_triggers for count in counts] == [64, 64]
    model.learn(1000, callback=[counts[0], EveryNTimesteps(32, counts[1])])
    assert counts[0].n_triggers == 64 + 1024 and counts[1].n_triggers == 64 + 32
    model.learn(1000, callback=function)
    assert seen == list(range(1, 71)) and model.num_timesteps == 70 and lean(model)


class StopAt(BaseCallback):
    """Ends the run at a step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


@pytest.mark.parametrize("fast", [True, False])
def test_stop_in_the_middle_of_a_rollout_leaves_a_model_that_goes_on(fast: bool, tmp_path: pathlib.Path) -> None:
    """The half rollout makes no update; saved or not, the model predicts, and trains on from there."""
    model = small_model(fast=fast)
    model.learn(1000, callback=StopAt(100))
    assert model.num_timesteps == 100 and model._n_updates == 1
    before = policy_state(model)
    model.save(tmp_path / "model")
    for each in (model, TRPO.load(tmp_path / "model", make_env(), device="cpu")):
        assert not changed(before, policy_state(each))
        each.learn(64, reset_num_timesteps=False)
        assert each.num_timesteps == 164 and each._n_updates == 2
