"""Vector environments that are not as Gymnasium's own are: a Monitor inside, rewards made of nothing, numbers of torch."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TransformReward
from gymnasium.wrappers import vector as around
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO
from sb3_trpo.vec_env import GymnasiumVecEnv, make_vector_env
from tests.vec_env.tasks import MODES, assert_same_run, seeded


def smaller(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Shape the rewards of an environment."""
    return TransformReward(env, lambda reward: float(reward) / 100.0)


class Lives(gym.Wrapper[Any, Any, Any, Any]):
    """Ends an episode every third step, as losing a life does, and goes on with the same one."""

    def reset(self, **kwargs: Any) -> Any:
        self.n_steps = 0
        if getattr(self, "is_over", True):
            self.is_over = False
            return super().reset(**kwargs)
        return self.last, {}

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        self.last, self.is_over = observation, terminated or truncated
        self.n_steps += 1
        return observation, reward, terminated or self.n_steps == 3, truncated, info


def monitored(wrap: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """Return an environment with its Monitor inside of a wrapper, as SB3 makes them."""
    return wrap(Monitor(gym.make("CartPole-v1", max_episode_steps=20)))


@pytest.mark.parametrize("wrap", [smaller, Lives])
@pytest.mark.parametrize("mode", MODES)
def test_monitor_inside_of_a_wrapper_counts_the_episodes(wrap: Any, mode: AutoresetMode) -> None:
    """Returns before they are shaped, and whole episodes where a wrapper ends them early; and nothing where none has ended."""
    made = [lambda: monitored(wrap)] * 2
    ours = GymnasiumVecEnv(SyncVectorEnv(made, autoreset_mode=mode))
    ended = assert_same_run(seeded(ours), seeded(DummyVecEnv(made)), 60)
    assert len(ended) > 3 and all(info["episode"]["l"] > 3 for info in ended)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_wrappers_leave_the_statistics_to_the_task(backend: str) -> None:
    """As those of ``make_vec_env`` do."""
    ours = make_vector_env("Pendulum-v1", 2, seed=3, backend=backend, wrappers=[smaller])
    theirs = make_vec_env("Pendulum-v1", 2, seed=3, wrapper_class=smaller)
    found = [evaluate_policy(_Still(), env, 4, return_episode_rewards=True) for env in (ours, theirs)]
    assert found[0] == found[1] and min(found[0][0]) < -100.0  # type: ignore[arg-type]
    ours.close()


class _Still:
    """Does nothing."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return np.zeros((len(observation), 1), np.float32), None


def test_reward_of_a_wasted_step_is_zero_whatever_is_made_of_it() -> None:
    """By a wrapper, here; it is no part of the next episode either."""
    made = [lambda: gym.make("CartPole-v1", max_episode_steps=5)]
    inside = around.TransformReward(SyncVectorEnv(made), lambda reward: reward - 0.5)
    env = GymnasiumVecEnv(inside)
    env.reset()
    ended, wasted = [], []
    for _ in range(30):
        _, rewards, dones, infos = env.step(np.array([0]))
        ended += [infos[0]["episode"]["r"]] if dones[0] else []
        wasted += rewards[env.wasted_steps].tolist()
    assert len(ended) >= 4 and set(ended) == {2.5} and set(wasted) == {0.0}


class Simulator(VectorEnv[Any, Any, Any]):
    """
    Gives tensors of torch, and episodes of five steps.

    :param mode: of its resets
    :param column: whether rewards are a column
    """

    def __init__(self, mode: AutoresetMode, column: bool = False):
        self.metadata = {"autoreset_mode": mode}
        self.num_envs, self.column = 3, column
        self.single_observation_space, self.single_action_space = spaces.Box(-9.0, 9.0, (2,)), spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, 3)
        self.action_space = batch_space(self.single_action_space, 3)

    def _observations(self) -> th.Tensor:
        return th.stack([self.elapsed, 2.0 * self.elapsed], dim=1)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = th.as_tensor((options or {}).get("reset_mask", np.ones(3, bool)))
        before = getattr(self, "elapsed", th.zeros(3))
        self.elapsed = th.where(mask, th.arange(3.0), before)
        return self._observations(), {"elapsed": self.elapsed.clone()}

    def step(self, actions: Any) -> Any:
        self.elapsed = self.elapsed + 1.0
        rewards, ends = self.elapsed * 0.5, self.elapsed >= 5.0
        infos: dict[str, Any] = {"elapsed": self.elapsed.clone()}
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            infos |= {"final_obs": self._observations(), "final_info": {"elapsed": self.elapsed.clone()}}
            self.elapsed = th.where(ends, th.zeros(3), self.elapsed)
        return self._observations(), rewards[:, None] if self.column else rewards, ends, th.zeros(3, dtype=th.bool), infos


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_simulator_of_tensors_is_trained_in(mode: AutoresetMode) -> None:
    """Observations, rewards, ends and infos become NumPy's, and an info holds what is of its own environment."""
    env = GymnasiumVecEnv(Simulator(mode))
    env.reset()
    for _ in range(12):
        observations, rewards, dones, infos = env.step(np.zeros(3, int))
        assert all(isinstance(each, np.ndarray) for each in (observations, rewards, dones)) and dones.dtype == bool
        assert all(np.ndim(info["elapsed"]) == 0 for info in infos)
        for i in np.flatnonzero(dones):
            np.testing.assert_allclose(infos[i]["terminal_observation"], [infos[i]["elapsed"], 2.0 * infos[i]["elapsed"]])
    model = TRPO("MlpPolicy", env, n_steps=16, seed=0, device="cpu").learn(96)
    assert model._n_updates == 2 and model.ep_info_buffer


def test_numbers_of_another_shape_are_refused_by_name() -> None:
    env = GymnasiumVecEnv(Simulator(AutoresetMode.DISABLED, column=True))
    env.reset()
    with pytest.raises(ValueError, match=r"rewards of .* must be of shape \(3,\), got \(3, 1\)"):
        env.step(np.zeros(3, int))


class Numbered(gym.Env[Any, Any]):
    """Has infos under numbers."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, bool(self.np_random.random() < 0.3), False, {1: 2.0}


@pytest.mark.parametrize("mode", MODES)
def test_infos_may_have_other_keys_than_words(mode: AutoresetMode) -> None:
    env = GymnasiumVecEnv(SyncVectorEnv([Numbered] * 2, autoreset_mode=mode))
    env.reset()
    for _ in range(12):
        infos = env.step(np.zeros(2, int))[3]
        assert all(info[1] == 2.0 for info in infos)
