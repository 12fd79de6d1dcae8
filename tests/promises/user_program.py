"""What a user writes in a day: checked by mypy --strict as it stands, and run."""

import sys
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList, EveryNTimesteps, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from typing_extensions import assert_type

from sb3_trpo import TRPO, UpdateReport
from sb3_trpo.contrib import from_contrib


class MyTRPO(TRPO):
    """A subclass, to which everything that returns a model must be true."""

    def last_kl(self) -> float:
        report: UpdateReport | None = self.last_update
        return 0.0 if report is None else report.step.mean_kl


def train(folder: Path) -> MyTRPO:
    """Build, train, save, load and go on."""
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    model = MyTRPO("MlpPolicy", env, n_steps=32, target_kl=LinearSchedule(0.02, 0.01, 1.0), cg_damping=0.1, seed=0, fast=True)
    stop = CallbackList([EveryNTimesteps(32, StopTrainingOnMaxEpisodes(100))])
    trained = model.learn(128, callback=stop)
    assert_type(trained, MyTRPO)
    assert_type(TRPO("MlpPolicy", env, **from_contrib({"n_steps": 32}, env.action_space)).learn(64), TRPO)
    trained.save(folder / "model")
    loaded = MyTRPO.load(folder / "model", env=env, target_kl=0.02)
    assert_type(loaded, MyTRPO)
    loaded.learn(64, reset_num_timesteps=False).save(folder / "model")
    return loaded


def main(folder: Path) -> float:
    """Train, and use what was trained."""
    model = train(folder)
    algorithm: BaseAlgorithm = model
    observation = np.zeros((1, 3), dtype=np.float32)
    action, state = algorithm.predict(observation, deterministic=True)
    assert_type(action, np.ndarray)
    assert action.shape == (1, 1) and state is None
    env = model.get_env()
    assert env is not None
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)
    return model.last_kl()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
