"""
imitation's own GAIL and AIRL, the best-known clients of a TRPO, with ours as their generator.

imitation 1.0.1 asks for older releases of SB3 and Gymnasium, and works with the present ones. It is installed beside them with
``make test-imitation``, which runs this file, or by hand with ``pip install --no-deps imitation==1.0.1``. Without it these
tests are skipped. What it needs for reading files of demonstrations only (``datasets``, ``jsonpickle``) need not be there.
"""

import csv
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo import TRPO
from sb3_trpo.inspect import TrustRegionRecorder, read_run
from tests.small_models import changed, policy_state

pytestmark = [
    pytest.mark.imitation,
    pytest.mark.skipif(importlib.util.find_spec("imitation") is None, reason="pip install --no-deps imitation==1.0.1"),
    # Of imitation and of what it uses: not ours to mend
    pytest.mark.filterwarnings("ignore"),
]

N_ROUNDS = 20
N_STEPS = 32


@pytest.fixture(scope="module")
def imitation() -> Iterator[Any]:
    """Return imitation's parts, with stand-ins for what it reads files with."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("datasets", "jsonpickle"):
            if importlib.util.find_spec(name) is None:
                patch.setitem(sys.modules, name, types.ModuleType(name))
                patch.setattr(sys.modules[name], "Dataset", object, raising=False)
        from imitation.algorithms.adversarial.airl import AIRL
        from imitation.algorithms.adversarial.gail import GAIL
        from imitation.data.types import Transitions
        from imitation.data.wrappers import RolloutInfoWrapper
        from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet
        from imitation.util import logger

        yield types.SimpleNamespace(
            trainers={"GAIL": (GAIL, BasicRewardNet), "AIRL": (AIRL, BasicShapedRewardNet)},
            Transitions=Transitions,
            RolloutInfoWrapper=RolloutInfoWrapper,
            logger=logger,
        )


def demonstrations(imitation: Any, env: VecEnv, *, n: int = 200) -> Any:
    """Return transitions to learn from: noise, which is as good as anything for a test of who calls whom."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(n + 1, *(env.observation_space.shape or ()))).astype(np.float32)
    return imitation.Transitions(
        obs=observations[:-1],
        acts=np.array([env.action_space.sample() for _ in range(n)]),
        infos=np.array([{}] * n),
        next_obs=observations[1:],
        dones=np.zeros(n, dtype=bool),
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("name", ["GAIL", "AIRL"])
@pytest.mark.parametrize("fast", [True, False])
def test_imitation_trains(imitation: Any, name: str, env_id: str, fast: bool, tmp_path: Path) -> None:
    """Twenty rounds with the default logger's outputs; each has our metrics, and averages of them that are shares."""
    trainer, reward_net = imitation.trainers[name]
    env = make_vec_env(env_id, n_envs=2, seed=0, wrapper_class=imitation.RolloutInfoWrapper)
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=32, n_critic_updates=2, fast=fast, device="cpu", seed=0)
    before = policy_state(model)
    adversarial = trainer(
        demonstrations=demonstrations(imitation, env),
        demo_batch_size=32,
        gen_replay_buffer_capacity=128,
        n_disc_updates_per_round=2,
        venv=env,
        gen_algo=model,
        reward_net=reward_net(env.observation_space, env.action_space),
        custom_logger=imitation.logger.configure(tmp_path, ["log", "csv", "json", "tensorboard"]),
        allow_variable_horizon=True,
    )
    adversarial.train(N_ROUNDS * 2 * N_STEPS)
    adversarial.logger.close()
    assert model.num_timesteps == N_ROUNDS * 2 * N_STEPS and model._n_updates == N_ROUNDS
    assert model.last_update is not None and model.last_update.max_kl == 0.01
    after = policy_state(model)
    assert len(changed(before, after)) == len(before) and all(bool(t.isfinite().all()) for t in after.values())
    key = "mean/gen/train/update_accepted"
    accepted = [float(row[key]) for row in rows(tmp_path / "progress.csv") if row.get(key)]
    assert len(accepted) == N_ROUNDS and set(accepted) <= {0.0, 0.5, 1.0} and np.mean(accepted) > 0.5


def test_imitation_with_the_recorder(imitation: Any, tmp_path: Path) -> None:
    """A callback of ours, with pictures, beside imitation's own, and TensorBoard: rounds of several updates."""
    trainer, reward_net = imitation.trainers["GAIL"]
    env = make_vec_env("CartPole-v1", n_envs=2, seed=0, wrapper_class=imitation.RolloutInfoWrapper)
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=32, device="cpu", seed=0)
    adversarial = trainer(
        demonstrations=demonstrations(imitation, env),
        demo_batch_size=32,
        gen_train_timesteps=3 * 2 * N_STEPS,
        venv=env,
        gen_algo=model,
        reward_net=reward_net(env.observation_space, env.action_space),
        custom_logger=imitation.logger.configure(tmp_path, ["csv", "tensorboard"]),
        allow_variable_horizon=True,
    )
    recorder = TrustRegionRecorder(tmp_path / "run", pictures_every=3)
    adversarial.gen_callback = [adversarial.gen_callback, recorder]
    adversarial.train(3 * 2 * N_STEPS)
    adversarial.logger.close()
    assert [update.n_updates for update in read_run(tmp_path / "run").updates] == [1, 2, 3]
    assert all(bool(tensor.isfinite().all()) for tensor in policy_state(model).values())
