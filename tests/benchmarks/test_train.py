"""One run: what it writes down, that it can be repeated, and how it is evaluated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks import settings, train
from benchmarks.train import Run
from sb3_trpo import TRPO
from tests.benchmarks.fake_runs import QUICK


@pytest.mark.parametrize("algorithm", train.ALGORITHMS)
def test_train_writes_down_what_it_ran(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, arguments, 20 evaluation returns and a log; the setting is the one asked for, and nothing else is left."""
    run = Run("quick", "CartPole-v1", algorithm, 3)
    given = {**QUICK, "n_timesteps": 512}
    n_returns = 20
    if algorithm.endswith("lstm"):
        # They take their time
        given |= {"policy": "MlpLstmPolicy", "policy_kwargs": {"lstm_hidden_size": 8}}
        monkeypatch.setattr(train, "N_EVAL_EPISODES", n_returns := 2)
    train.train(run, given, tmp_path)
    (folder,) = run.folder(tmp_path).parent.iterdir()
    result = json.loads((folder / "run.json").read_text())
    assert folder == run.folder(tmp_path) and Run(*(result[name] for name in Run._fields)) == run
    arguments = result["hyperparameters"]
    assert result["timesteps"] == 512 and {**arguments, **given} == arguments
    # What was left to the algorithm is written down too
    assert arguments["gae_lambda"] == 0.95 and "verbose" not in arguments
    assert len(result["eval_returns"]) == n_returns and result["versions"]["torch"] == th.__version__
    assert len((folder / "progress.csv").read_text().splitlines()) >= 2


def test_games_are_trained_as_rl_zoo_does() -> None:
    """One entry for all of Atari: wrapped, four frames of one channel, and no argument of the constructor is left over."""
    run = Run("tuned", "PongNoFrameskip-v4", "trpo", 0)
    for algorithm in ("trpo", "contrib", "ppo"):
        hyperparameters = {**settings.load(algorithm, "tuned", run.env), "n_envs": 2}
        assert hyperparameters["n_timesteps"] == 400_000
        env = train.make_training_env(run, hyperparameters)
        assert env.observation_space.shape == (84, 84, 4) and env.num_envs == 2
        arguments = {**hyperparameters, "n_steps": 8, "batch_size": 8}
        assert train.make_model(algorithm, arguments, env=env).policy.features_extractor_class.__name__ == "NatureCNN"
        env.close()
    assert train.make_envs("CartPole-v1", 1, 0, QUICK).observation_space.shape == (4,)


def test_train_is_repeatable(tmp_path: Path) -> None:
    """The same run twice, in different folders: the same returns."""
    run = Run("quick", "CartPole-v1", "trpo", 5)
    first, second = (train.train(run, {**QUICK, "n_timesteps": 512}, tmp_path / name) for name in "ab")
    assert first["eval_returns"] == second["eval_returns"]


def test_evaluation_freezes_the_statistics_and_counts_true_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The episodes are those of the environment seeded 1000 + seed, seen through its wrappers and statistics."""
    run = Run("quick", "Pendulum-v1", "trpo", 4)
    hyperparameters = {**QUICK, "env_wrapper": {"gymnasium.wrappers.RescaleAction": {"min_action": -1, "max_action": 1}}}
    arguments = settings.constructor_arguments(hyperparameters)
    model = TRPO(env=train.make_training_env(run, hyperparameters), seed=4, **arguments).learn(512)
    training_env = model.get_env()
    assert isinstance(training_env, VecNormalize)
    statistics = training_env.obs_rms
    assert isinstance(statistics, RunningMeanStd)
    before = statistics.mean.copy()
    monkeypatch.setattr(train, "N_EVAL_EPISODES", 2)
    returns = train.evaluate(model, run, hyperparameters)

    env = make_vec_env("Pendulum-v1", seed=1004)
    observation: Any = env.reset()
    expected = [0.0, 0.0]
    for step in range(400):
        action, _ = model.predict(training_env.normalize_obs(observation), deterministic=True)
        observation, reward, _, _ = env.step(2.0 * action)
        expected[step // 200] += float(reward[0])
    np.testing.assert_allclose(returns, expected, rtol=1e-5)
    np.testing.assert_array_equal(statistics.mean, before)


def test_evaluation_of_normalized_returns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observations that training has left as they are stay so, and returns are the true ones."""
    run = Run("quick", "Pendulum-v1", "trpo", 4)
    hyperparameters = {**QUICK, "normalize": {"norm_obs": False}}
    arguments = settings.constructor_arguments(hyperparameters)
    model = TRPO(env=train.make_training_env(run, hyperparameters), seed=4, **arguments).learn(512)
    monkeypatch.setattr(train, "N_EVAL_EPISODES", 2)
    plain = make_vec_env("Pendulum-v1", seed=1004)
    expected, _ = evaluate_policy(model, plain, 2, deterministic=True, return_episode_rewards=True)
    np.testing.assert_allclose(train.evaluate(model, run, hyperparameters), expected)


def test_train_that_fails_leaves_no_run(tmp_path: Path) -> None:
    """What ended early is neither finished nor in the way."""
    run = Run("quick", "CartPole-v1", "trpo", 0)
    with pytest.raises(ValueError, match="gamma"):
        train.train(run, {**QUICK, "gamma": 2.0}, tmp_path)
    assert list(run.folder(tmp_path).parent.iterdir()) == []


@pytest.mark.parametrize("name", ["tuned", "quick", "design-03"])
def test_train_refuses_the_name_of_a_setting(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed setting under the name of another would go on record as that."""
    words = ["train", "CartPole-v1", "0", "trpo", "--set", "gamma=0.5", "--name", name]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        train.main()
    assert f"--name {name} is a setting already" in capsys.readouterr().err
