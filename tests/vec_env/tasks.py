"""Small tasks, and the comparison of two vectorised environments step by step."""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

SEED = 7
MODES = list(AutoresetMode)
EnvMaker = Callable[[], gym.Env[Any, Any]]


class Goal(gym.Env[Any, Any]):
    """
    Reach a goal on a line: a Dict of a vector, an image and a number, MultiDiscrete actions, successes, infos of every kind.

    Episodes end at the goal or at a wall; the time limit is a wrapper's, so that both can be at once.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - as Gymnasium has it
    action_space = spaces.MultiDiscrete([3, 2])

    def __init__(self, level: float = 1.0, render_mode: str | None = None):
        # Of each its own: VecNormalize changes that of images in place
        self.observation_space = spaces.Dict(
            {
                "vector": spaces.Box(-np.inf, np.inf, (2,), np.float32),
                "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
                "phase": spaces.Discrete(3),
            }
        )
        self.level = level
        self.render_mode = render_mode
        self.n_resets = 0

    def _observation(self) -> dict[str, Any]:
        image = np.full((36, 36, 1), int(20 * abs(self.position)) % 256, np.uint8)
        vector = np.array([self.position, self.goal], np.float32)
        return {"vector": vector, "image": image, "phase": np.int64(self.n_steps % 3)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_resets += 1
        self.n_steps = 0
        self.position = (options or {}).get("start", 0.0)
        self.goal = float(self.np_random.uniform(1.0, 2.0))
        return self._observation(), {"goal": self.goal, "resets": self.n_resets}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        push = (float(action[0]) - 1.0) * (1.0 + float(action[1])) * self.level
        self.position += push + float(self.np_random.normal(0.05, 0.2))
        is_success = self.position >= self.goal
        info = {
            "is_success": is_success,
            "distance": self.goal - self.position,
            "where": {"position": np.array([self.position, self.goal]), "steps": self.n_steps},
            "name": "left" if self.position < 0.0 else "right",
        }
        if self.n_steps % 2:
            info["odd"] = self.n_steps
        return self._observation(), 0.1 - abs(self.goal - self.position), is_success or self.position < -2.0, False, info

    def render(self) -> Any:
        return np.full((8, 6, 3), 10 * self.n_steps % 256, np.uint8)

    def twice(self, number: float, *, plus: float = 0.0) -> float:
        """Something to call."""
        return 2.0 * number + plus + self.level


class Reusing(gym.Env[Any, Any]):
    """Writes each observation, and an array in its infos, into the same memory."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.memory = np.zeros(2)
        self.detail = [0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.memory[:] = self.np_random.uniform(size=2)
        self.n_steps = 0
        return self.memory, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        self.memory += 1.0 + action
        self.detail[0] += 1
        return self.memory, float(self.memory[0]), False, self.n_steps >= 3, {"detail": self.detail}


def cart_pole(limit: int = 500) -> gym.Env[Any, Any]:
    """CartPole with a time limit that random actions reach where it is low."""
    return gym.make("CartPole-v1", max_episode_steps=limit)


def goal(limit: int = 9, **kwargs: Any) -> gym.Env[Any, Any]:
    """The goal task with its time limit."""
    return TimeLimit(Goal(**kwargs), limit)


TASKS: dict[str, EnvMaker] = {"cart pole": cart_pole, "time limit": lambda: cart_pole(12), "goal": goal}


def dummy(make: EnvMaker, n_envs: int = 3) -> VecEnv:
    """SB3's environments, each with a Monitor."""
    return seeded(DummyVecEnv([lambda: Monitor(make())] * n_envs))


def vector(make: EnvMaker, mode: AutoresetMode, n_envs: int = 3, *, processes: bool = False, **kwargs: Any) -> VectorEnv:
    """Gymnasium's environments."""
    if processes:
        return AsyncVectorEnv([make] * n_envs, autoreset_mode=mode, context="fork", **kwargs)
    return SyncVectorEnv([make] * n_envs, autoreset_mode=mode, **kwargs)


class Maskless(SyncVectorEnv):
    """As most vector environments that are not Gymnasium's own two: knows no ``reset_mask`` and resets all."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        assert "reset_mask" not in (options or {}), "would reset all"
        return super().reset(seed=seed, options=options)


def seeded(env: VecEnv, seed: int = SEED) -> VecEnv:
    """Seed an environment's next reset."""
    env.seed(seed)
    return env


def actions_for(env: VecEnv, n_steps: int) -> Iterator[np.ndarray]:
    """The same random actions for every environment of these spaces."""
    space: Any = env.action_space
    generator = np.random.default_rng(SEED)
    for _ in range(n_steps):
        if isinstance(space, spaces.Box):
            yield generator.uniform(-1.0, 1.0, (env.num_envs, *space.shape)).astype(np.float32)
        else:
            highest = space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n
            yield generator.integers(highest, size=(env.num_envs, *space.shape))


def assert_same_observations(ours: Any, theirs: Any) -> None:
    """Equal bit for bit, with the same keys and types."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same_observations(ours[key], theirs[key])
        return
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def assert_same_info(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Equal but for the times of day."""
    assert ours.keys() == theirs.keys()
    for key in theirs:
        if key == "terminal_observation":
            assert_same_observations(ours[key], theirs[key])
        elif key == "episode":
            assert ours[key].keys() == theirs[key].keys() and ours[key]["t"] >= 0.0
            assert (ours[key]["r"], ours[key]["l"]) == (theirs[key]["r"], theirs[key]["l"])
            assert [type(value) for value in ours[key].values()] == [float, int, float]
        else:
            np.testing.assert_equal(ours[key], theirs[key], err_msg=key)


def assert_same_run(
    ours: VecEnv, theirs: VecEnv, n_steps: int = 100, *, same_info: Any = assert_same_info
) -> list[dict[str, Any]]:
    """
    Step two environments with the same actions and compare everything that they return; the infos after the step that follows.

    :return: the infos of episodes that ended
    """
    ended: list[dict[str, Any]] = []
    assert_same_observations(ours.reset(), theirs.reset())
    np.testing.assert_equal(list(ours.reset_infos), list(theirs.reset_infos))
    earlier: list[tuple[Any, Any]] = []
    for actions in actions_for(theirs, n_steps):
        observations, rewards, dones, infos = ours.step(actions)
        expected, their_rewards, their_dones, their_infos = theirs.step(actions)
        assert_same_observations(observations, expected)
        assert (rewards.dtype, dones.dtype) == (their_rewards.dtype, their_dones.dtype)
        np.testing.assert_array_equal(rewards, their_rewards)
        np.testing.assert_array_equal(dones, their_dones)
        np.testing.assert_equal(list(ours.reset_infos), list(theirs.reset_infos))
        # Infos are made when they are asked for: then too they are those of their step
        earlier.append((infos, their_infos))
        if len(earlier) == 2:
            compare_infos(*earlier.pop(0), same_info)
        ended += [info for info in their_infos if "episode" in info]
    return ended


def compare_infos(ours: Any, theirs: Any, same_info: Any) -> None:
    """Compare the infos of one step."""
    assert len(ours) == len(theirs)
    for our_info, their_info in zip(ours, theirs, strict=True):
        same_info(our_info, their_info)
