"""
Search for hyperparameters with Optuna: trials that do badly are stopped, and the best is trained again with other seeds.

Needs Optuna (``pip install optuna``). Three minutes on one core: ``python examples/optuna_search.py``.
"""

import argparse
import statistics
from typing import Any

import optuna
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO

ENV_ID = "Pendulum-v1"
N_ENVS = 8


def suggested(trial: optuna.Trial) -> dict[str, Any]:
    """Return arguments. How far the policy goes, what it learns from, and the critic: the rest matters less."""
    return {
        "n_steps": trial.suggest_categorical("n_steps", [64, 128, 256]),
        "target_kl": trial.suggest_float("target_kl", 0.003, 0.1, log=True),
        "cg_damping": trial.suggest_float("cg_damping", 0.01, 1.0, log=True),
        "gamma": 1.0 - trial.suggest_float("one_minus_gamma", 0.01, 0.1, log=True),
        "gae_lambda": trial.suggest_float("gae_lambda", 0.8, 0.98),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 20, step=5),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
    }


def make_env(seed: int, *, training: bool) -> VecNormalize:
    """Make normalised environments; for tests the statistics stay, and rewards are what they are."""
    env = make_vec_env(ENV_ID, n_envs=N_ENVS, seed=seed)
    return VecNormalize(env, training=training, norm_reward=training)


class StopBadTrials(BaseCallback):
    """Tells Optuna how each test went, and ends the training when it has seen enough."""

    parent: EvalCallback

    def __init__(self, trial: optuna.Trial):
        super().__init__()
        self.trial = trial

    def _on_step(self) -> bool:
        self.trial.report(float(self.parent.last_mean_reward), self.num_timesteps)
        return not self.trial.should_prune()


def trained(
    arguments: dict[str, Any], seed: int, n_timesteps: int, after_test: BaseCallback | None = None
) -> tuple[TRPO, float]:
    """Train, and return the model with the return of its final policy."""
    model = TRPO("MlpPolicy", make_env(seed, training=True), seed=seed, device="cpu", **arguments)
    tests = EvalCallback(
        make_env(1_000 + seed, training=False),
        eval_freq=n_timesteps // N_ENVS // 5,
        n_eval_episodes=16,
        callback_after_eval=after_test,
        verbose=0,
    )
    model.learn(n_timesteps, callback=tests)
    test_env = make_env(2_000 + seed, training=False)
    statistics_of_training = model.get_vec_normalize_env()
    assert statistics_of_training is not None
    test_env.obs_rms = statistics_of_training.obs_rms
    mean, _ = evaluate_policy(model, test_env, n_eval_episodes=40)
    return model, float(mean)  # type: ignore[arg-type]


def main() -> None:
    """Search, then look whether the best was luck."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40_000)
    given = parser.parse_args()
    th.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        model, mean = trained(suggested(trial), seed=0, n_timesteps=given.steps, after_test=StopBadTrials(trial))
        stopped = model.num_timesteps < given.steps
        print(f"trial {trial.number:2}: {mean:8.1f}" + (" (stopped early)" if stopped else ""), flush=True)
        if stopped:
            raise optuna.TrialPruned
        return mean

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=6),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=given.steps // 3),
    )
    study.optimize(objective, n_trials=given.trials)
    print("best:", {name: round(value, 4) for name, value in study.best_params.items()})

    # The best of many trials is partly luck: seeds that the search did not see tell how much
    again = [trained(suggested(study.best_trial), seed, given.steps)[1] for seed in (1, 2, 3)]  # type: ignore[arg-type]
    print(f"found with {study.best_value:.1f}, with three other seeds {statistics.mean(again):.1f}")


if __name__ == "__main__":
    main()
