"""Libraries that are handed a model: imitation's GAIL, Optuna, SB3's evaluation, ONNX and TorchScript."""

import io
import pathlib
from typing import Any

import numpy as np
import onnxruntime
import optuna
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch.nn import functional as F

from sb3_trpo import TRPO
from tests.small_models import DICT, DISCRETE, IMAGE, Case, make_env, small_model


def demonstrated(observations: np.ndarray) -> np.ndarray:
    """Return what the demonstrator does."""
    return np.clip(-0.8 * observations, -1.0, 1.0)


class LearnedReward(VecEnvWrapper):
    """Rewards what a discriminator takes for the demonstrator's, in place of the environment's reward, as GAIL does."""

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        with th.random.fork_rng():
            th.manual_seed(0)
            self.discriminator = th.nn.Sequential(th.nn.Linear(6, 32), th.nn.Tanh(), th.nn.Linear(32, 1))
        self.optimizer = th.optim.Adam(self.discriminator.parameters(), lr=1e-2)
        self.seen: list[np.ndarray] = []

    def reset(self) -> Any:
        self.observations: Any = self.venv.reset()
        return self.observations

    def step_async(self, actions: np.ndarray) -> None:
        self.pairs = np.concatenate([self.observations, actions], axis=1)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        self.observations, _, dones, infos = self.venv.step_wait()
        self.seen.append(self.pairs)
        with th.no_grad():
            rewards = F.logsigmoid(self.discriminator(th.as_tensor(self.pairs, dtype=th.float32))).squeeze(1).numpy()
        return self.observations, rewards, dones, infos

    def train(self) -> None:
        generated = th.as_tensor(np.concatenate(self.seen), dtype=th.float32)
        self.seen.clear()
        expert = th.cat([generated[:, :3], th.as_tensor(demonstrated(generated[:, :3].numpy()))], dim=1)
        labels = th.cat([th.zeros(len(generated)), th.ones(len(expert))])
        for _ in range(20):
            self.optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(self.discriminator(th.cat([generated, expert])).squeeze(1), labels).backward()
            self.optimizer.step()


def test_adversarial_imitation_may_drive_it_as_its_generator() -> None:
    """The calls of imitation's GAIL, in its order, with a discriminator that learns: the generator nears the demonstrator."""
    venv = make_env(n_envs=4)
    generator = small_model(env=venv, n_steps=64, policy_kwargs={"log_std_init": -1.0}, target_kl=0.05)
    assert isinstance(generator, OnPolicyAlgorithm)
    steps_per_round = venv.num_envs * generator.n_steps
    reward = LearnedReward(venv)
    generator.set_env(reward)
    logger = Logger(folder=None, output_formats=[HumanOutputFormat(io.StringIO())])
    generator.set_logger(logger)
    observations = np.random.default_rng(0).uniform(-1, 1, (200, 3)).astype(np.float32)

    def distance() -> float:
        return float(np.abs(generator.predict(observations, deterministic=True)[0] - demonstrated(observations)).mean())

    start = distance()
    for round_ in range(12):
        generator.learn(total_timesteps=steps_per_round, reset_num_timesteps=False, callback=None)
        reward.train()
        assert generator.num_timesteps == (round_ + 1) * steps_per_round and generator._n_updates == round_ + 1
    assert generator.logger is logger and generator.get_env() is reward
    assert generator.paths_in_use["collection"] == "lean"
    assert distance() < 0.75 * start


class Pruning(EvalCallback):
    """The callback of SB3's and RL Zoo's examples: evaluates, reports to Optuna, and ends the trial where Optuna says so."""

    def __init__(self, trial: optuna.Trial, env: VecEnv):
        super().__init__(env, n_eval_episodes=2, eval_freq=64, verbose=0)
        self.trial = trial
        self.is_pruned = False

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            super()._on_step()
            self.trial.report(self.last_mean_reward, self.n_calls)
            self.is_pruned = self.trial.should_prune()
        return not self.is_pruned


def test_optuna_prunes_a_trial_through_a_callback() -> None:
    """A trial that is pruned ends at its evaluation, before the update."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ended: list[tuple[int, int]] = []

    def objective(trial: optuna.Trial) -> float:
        target_kl = trial.suggest_float("target_kl", 0.001, 0.1, log=True)
        model = small_model(env=make_vec_env("CartPole-v1", seed=0), target_kl=target_kl, n_steps=32)
        callback = Pruning(trial, make_vec_env("CartPole-v1", seed=1))
        model.learn(256, callback=callback)
        ended.append((model.num_timesteps, model._n_updates))
        if callback.is_pruned:
            raise optuna.TrialPruned()
        return callback.last_mean_reward

    # Whatever is below a threshold that none of them reaches
    pruner = optuna.pruners.ThresholdPruner(lower=1e6, n_warmup_steps=100)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner, direction="maximize")
    study.optimize(objective, n_trials=2)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.PRUNED] * 2
    assert ended == [(128, 3)] * 2


def test_evaluate_policy_evaluates_it() -> None:
    """SB3's helper, on the model and on the policy alone, with one environment and several."""
    model = small_model(env=make_vec_env("CartPole-v1", seed=0), n_steps=256).learn(512)
    alone = evaluate_policy(model, make_vec_env("CartPole-v1", seed=5), n_eval_episodes=4)
    assert alone == evaluate_policy(model.policy, make_vec_env("CartPole-v1", seed=5), n_eval_episodes=4)
    returns, lengths = evaluate_policy(
        model, make_vec_env("CartPole-v1", n_envs=3, seed=5), n_eval_episodes=6, return_episode_rewards=True
    )
    assert returns == lengths and len(returns) == 6  # type: ignore[arg-type]


class ExportablePolicy(th.nn.Module):
    """The wrapper of SB3's documentation on exporting models."""

    def __init__(self, policy: Any):
        super().__init__()
        self.policy = policy

    def forward(self, observation: Any) -> Any:
        return self.policy(observation, deterministic=True)


# What torch says of both ways on its own way to newer ones
EXPORTING = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)
EXPORTED = {
    "box": Case(),
    "discrete": Case(action_space=DISCRETE),
    "image": Case("CnnPolicy", IMAGE, DISCRETE),
}


def trained(case: Case) -> tuple[TRPO, th.Tensor]:
    """Return a model, and observations as the environment gives them."""
    model = case.model().learn(64)
    assert model.env is not None
    return model, th.as_tensor(model.env.reset())


def expected_of(model: TRPO, observation: th.Tensor) -> list[np.ndarray]:
    with th.no_grad():
        return [part.numpy() for part in model.policy(observation, deterministic=True)]


@EXPORTING
@pytest.mark.parametrize("case", EXPORTED.values(), ids=EXPORTED)
def test_policy_is_exported_to_onnx(case: Case, tmp_path: pathlib.Path) -> None:
    """The exported graph, run by ONNX Runtime, gives the policy's actions, values and log-probabilities."""
    model, observation = trained(case)
    path = str(tmp_path / "trpo.onnx")
    th.onnx.export(ExportablePolicy(model.policy), (observation,), path, opset_version=17, input_names=["input"], dynamo=False)
    session = onnxruntime.InferenceSession(path)
    found = session.run(None, {"input": observation.numpy()})
    for ours, theirs in zip(expected_of(model, observation), found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


@EXPORTING
@pytest.mark.parametrize("case", EXPORTED.values(), ids=EXPORTED)
def test_policy_is_exported_to_torchscript(case: Case, tmp_path: pathlib.Path) -> None:
    """Traced, frozen, saved and loaded, it gives the same."""
    model, observation = trained(case)
    traced = th.jit.freeze(th.jit.trace(ExportablePolicy(model.policy).eval(), observation))
    th.jit.save(traced, str(tmp_path / "trpo.pt"))
    found = th.jit.load(str(tmp_path / "trpo.pt"))(observation)
    for ours, theirs in zip(expected_of(model, observation), found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


@EXPORTING
def test_dictionary_policy_is_exported_to_torchscript(tmp_path: pathlib.Path) -> None:
    """Dict observations are traced as well."""
    model = Case("MultiInputPolicy", DICT).model()
    assert model.env is not None
    observation = {key: th.as_tensor(value) for key, value in model.env.reset().items()}  # type: ignore[union-attr]
    model.policy.set_training_mode(False)
    traced = th.jit.trace(ExportablePolicy(model.policy), (observation,), strict=False)
    for ours, theirs in zip(expected_of(model, observation), traced(observation), strict=True):  # type: ignore[arg-type]
        np.testing.assert_allclose(theirs.detach().numpy(), ours, rtol=1e-4, atol=1e-5)
