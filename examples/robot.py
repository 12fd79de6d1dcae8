"""
Train a robot of MuJoCo with normalisation and evaluation, keep the best policy, and write a report of its updates.

Needs MuJoCo: ``pip install 'sb3_trpo[demo]' 'gymnasium[mujoco]'``. Three minutes on one core: ``python examples/robot.py``.
"""

import argparse
from pathlib import Path

import torch as th
from gymnasium.wrappers import RescaleAction
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.inspect import TrustRegionRecorder, check_health, read_run, write_report


def make_env(env_id: str, n_envs: int, seed: int) -> VecNormalize:
    """Make environments whose actions lie in [-1, 1], and whose observations and returns are normalised."""
    scale = {"min_action": -1, "max_action": 1}
    return VecNormalize(make_vec_env(env_id, n_envs, seed, wrapper_class=RescaleAction, wrapper_kwargs=scale))  # type: ignore[arg-type]


def make_test_env(env_id: str, seed: int) -> VecNormalize:
    """Make the same for tests: the statistics are those of training, and rewards are what they are."""
    env = make_env(env_id, n_envs=4, seed=seed)
    env.training, env.norm_reward = False, False
    return env


class SaveStatistics(BaseCallback):
    """Save the statistics of the normalisation, which the policy of the moment goes with."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        env = self.model.get_vec_normalize_env()
        assert env is not None
        env.save(str(self.path))
        return True


def main() -> None:
    """Train, test, save, load, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=200_000, help="1,000,000 for the returns of the benchmarks")
    parser.add_argument("--folder", type=Path, default=Path("robot"))
    arguments = parser.parse_args()
    # Networks of this size gain nothing from a second thread
    th.set_num_threads(1)

    env = make_env(arguments.env, n_envs=8, seed=0)
    model = TRPO(
        "MlpPolicy",
        env,
        n_steps=256,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        target_kl=LinearSchedule(0.1, 0.0, 1.0),
        gae_lambda=0.8,
        critic_gae_lambda=0.95,
        cg_max_steps=40,
        cg_damping=1.0,
        std_damping=4.0,
        policy_kwargs={"log_std_init": -1.0, "net_arch": {"pi": [64, 64], "vf": [256, 256]}},
        seed=0,
        device="cpu",
    )
    recorder = TrustRegionRecorder(arguments.folder / "record", pictures_every=25)
    # The callback copies the statistics of training into its environment before each test
    tests = EvalCallback(
        make_test_env(arguments.env, seed=1_000),
        eval_freq=arguments.steps // 8 // 5,
        n_eval_episodes=4,
        best_model_save_path=str(arguments.folder),
        callback_on_new_best=SaveStatistics(arguments.folder / "best_statistics.pkl"),
        verbose=0,
    )
    model.learn(arguments.steps, callback=CallbackList([recorder, tests]), progress_bar=True)
    model.save(arguments.folder / "model.zip")
    env.save(str(arguments.folder / "statistics.pkl"))

    # Later, or elsewhere: a policy is of no use without the statistics that it was trained with
    plain = make_test_env(arguments.env, seed=2_000).venv
    test_env = VecNormalize.load(str(arguments.folder / "statistics.pkl"), plain)
    test_env.training, test_env.norm_reward = False, False
    loaded = TRPO.load(arguments.folder / "model.zip", device="cpu")
    mean, std = evaluate_policy(loaded, test_env, n_eval_episodes=10)
    print(f"return over 10 deterministic episodes: {mean:,.0f} ± {std:,.0f}")

    run = read_run(arguments.folder / "record")._replace(name=f"TRPO on {arguments.env}")
    print("report:", write_report(run, arguments.folder / "report.html"))
    for finding in check_health(run.updates):
        if finding.healthy is False:
            print("look at:", finding.name, finding.says)


if __name__ == "__main__":
    main()
