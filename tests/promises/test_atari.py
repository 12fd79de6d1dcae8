"""Atari as SB3 does it: CnnPolicy on ALE/Pong-v5 with make_atari_env, VecFrameStack and eight environments."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_trpo import TRPO
from tests.small_models import changed, policy_state

pytestmark = pytest.mark.slow


@pytest.fixture
def pong() -> Iterator[VecEnv]:
    """Return eight games of Pong with the usual wrappers and four stacked frames."""
    import ale_py
    import gymnasium as gym

    gym.register_envs(ale_py)
    env = VecFrameStack(make_atari_env("ALE/Pong-v5", n_envs=8, seed=0), n_stack=4)
    yield env
    env.close()


def test_pong_trains_saves_and_plays(pong: VecEnv, tmp_path: pathlib.Path) -> None:
    """Two updates of 1,024 frames: within the limit, by the fast paths, actor and critic each with its own convolutions."""
    model = TRPO(
        "CnnPolicy", pong, n_steps=128, batch_size=256, n_critic_updates=1, sub_sampling_factor=8, seed=0, device="cpu"
    )
    start = policy_state(model)
    model.learn(2048)
    assert model.num_timesteps == 2048 and model._n_updates == 2
    assert model.last_update is not None and model.last_update.step.accepted
    assert 0.0 < model.last_update.step.mean_kl <= 0.01
    assert model.paths_in_use["collection"] == "lean" and model.paths_in_use["Fisher products"] == "Gauss-Newton"
    moved = changed(start, policy_state(model))
    assert {"pi_features_extractor.cnn.0.weight", "vf_features_extractor.cnn.0.weight", "action_net.weight"} <= moved
    # The frames are in the buffer as the network takes them: channels first, bytes
    assert model.rollout_buffer.observations.dtype == np.uint8 and model.rollout_buffer.obs_shape == (4, 84, 84)
    assert model.ep_info_buffer is not None

    model.save(tmp_path / "pong")
    loaded = TRPO.load(tmp_path / "pong", pong, device="cpu")
    observations = pong.reset()
    actions, _ = loaded.predict(observations, deterministic=True)  # type: ignore[arg-type]
    assert actions.shape == (8,) and np.array_equal(actions, model.predict(observations, deterministic=True)[0])  # type: ignore[arg-type]
    with th.no_grad():
        values = loaded.policy.predict_values(loaded.policy.obs_to_tensor(observations)[0])  # type: ignore[arg-type]
    assert bool(values.isfinite().all())
    loaded.learn(1024, reset_num_timesteps=False)
    assert loaded._n_updates == 3
