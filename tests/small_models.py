"""Small environments and models for the integration tests: every supported space, nothing to learn beyond a hint of signal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_trpo import TRPO

VECTOR = spaces.Box(-1.0, 1.0, (3,))
# The smallest image that SB3's NatureCNN takes
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
# A key with "value" in it must not make an extractor the critic's
DICT = spaces.Dict({"value_map": IMAGE, "vector": VECTOR})

BOX = spaces.Box(-1.0, 1.0, (3,))
DISCRETE = spaces.Discrete(4)
MULTI_DISCRETE = spaces.MultiDiscrete([3, 2])
MULTI_BINARY = spaces.MultiBinary(3)


class RandomEnv(gym.Env[Any, Any]):
    """
    Observations are noise; large actions are paid for, a little more where the observation is large.

    :param observation_space: what is observed
    :param action_space: what can be done
    :param episode_length: after so many steps an episode is truncated
    :param termination_probability: of each step to end the episode
    """

    def __init__(
        self,
        observation_space: spaces.Space = VECTOR,
        action_space: spaces.Space = BOX,
        *,
        episode_length: int = 12,
        termination_probability: float = 0.05,
    ):
        self.observation_space = observation_space
        self.action_space = action_space
        self.episode_length = episode_length
        self.termination_probability = termination_probability
        self.n_steps = 0
        self.level = 0.0

    def _noise(self, space: spaces.Space) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._noise(part) for key, part in space.spaces.items()}
        if not isinstance(space, spaces.Box):
            space.seed(int(self.np_random.integers(2**31)))
            return space.sample()
        noise = self.np_random.uniform(space.low, space.high).astype(space.dtype)
        self.level = float(np.mean((noise - space.low) / (space.high - space.low)))
        return noise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self._noise(self.observation_space), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(np.mean(action)) * (0.5 + self.level)
        self.n_steps += 1
        terminated = bool(self.np_random.random() < self.termination_probability)
        return self._noise(self.observation_space), reward, terminated, self.n_steps >= self.episode_length, {}


def make_env(observation_space: spaces.Space = VECTOR, action_space: spaces.Space = BOX, n_envs: int = 1) -> VecEnv:
    """Return ``n_envs`` copies of the random environment."""
    make: Callable[[], gym.Env[Any, Any]] = lambda: RandomEnv(observation_space, action_space)  # noqa: E731
    return DummyVecEnv([make] * n_envs)


class Case(NamedTuple):
    """
    One kind of policy in one kind of environment.

    :param policy: its alias
    :param observation_space: what is observed
    :param action_space: what can be done
    :param n_envs: number of environments
    :param arguments: what else the constructor gets
    """

    policy: str = "MlpPolicy"
    observation_space: spaces.Space = VECTOR
    action_space: spaces.Space = BOX
    n_envs: int = 1
    arguments: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it

    def env(self) -> VecEnv:
        """Return its environment."""
        return make_env(self.observation_space, self.action_space, self.n_envs)

    def model(self, cls: type[TRPO] = TRPO, **arguments: Any) -> TRPO:
        """Return a small model; 64 steps make an update."""
        return small_model(cls, self.policy, self.env(), **(self.arguments | arguments))


def small_model(cls: type[TRPO] = TRPO, policy: Any = "MlpPolicy", env: VecEnv | None = None, **arguments: Any) -> TRPO:
    """Return a model that makes an update of 64 steps in a fraction of a second, the same one each time."""
    env = make_env() if env is None else env
    defaults: dict[str, Any] = {
        "n_steps": 64 // env.num_envs,
        "batch_size": 32,
        "n_critic_updates": 2,
        "cg_max_steps": 6,
        "seed": 0,
        "device": "cpu",
    }
    return cls(policy, env, **(defaults | arguments))


def policy_state(model: TRPO) -> dict[str, th.Tensor]:
    """Return a copy of every parameter and buffer of the policy, by name."""
    state = model.policy.state_dict()
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, th.Tensor)}


def observed(env: VecNormalize) -> RunningMeanStd:
    """Return the running statistics of observations that are vectors."""
    assert isinstance(env.obs_rms, RunningMeanStd)
    return env.obs_rms


def changed(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> set[str]:
    """Name the tensors that are not bit for bit the same."""
    assert before.keys() == after.keys()
    return {name for name in before if not th.equal(before[name], after[name])}


GSDE: dict[str, Any] = {"use_sde": True}
EVERY_CASE = {
    "box-vector": Case(),
    "box-vector-2": Case(n_envs=2),
    "box-image": Case("CnnPolicy", IMAGE),
    "box-dict": Case("MultiInputPolicy", DICT),
    "discrete-vector": Case(action_space=DISCRETE),
    "discrete-image-2": Case("CnnPolicy", IMAGE, DISCRETE, 2),
    "discrete-dict": Case("MultiInputPolicy", DICT, DISCRETE),
    "multi_discrete-vector-2": Case(action_space=MULTI_DISCRETE, n_envs=2),
    "multi_discrete-image": Case("CnnPolicy", IMAGE, MULTI_DISCRETE),
    "multi_binary-vector": Case(action_space=MULTI_BINARY),
    "multi_binary-dict-2": Case("MultiInputPolicy", DICT, MULTI_BINARY, 2),
    "gsde-vector": Case(arguments=GSDE),
    "gsde-vector-sampled-2": Case(n_envs=2, arguments=GSDE | {"sde_sample_freq": 4}),
    "gsde-vector-not_full": Case(arguments=GSDE | {"policy_kwargs": {"full_std": False}}),
    "gsde-vector-expln": Case(arguments=GSDE | {"policy_kwargs": {"use_expln": True}}),
    "gsde-vector-squashed": Case(arguments=GSDE | {"policy_kwargs": {"squash_output": True}}),
    "gsde-image": Case("CnnPolicy", IMAGE, arguments=GSDE),
    "gsde-dict": Case("MultiInputPolicy", DICT, arguments=GSDE),
    "matrix-box": Case(action_space=spaces.Box(-2.0, 3.0, (2, 2))),
    "discrete-observation": Case(observation_space=VECTOR, action_space=spaces.Discrete(2), n_envs=4),
}
# Where pixels are looked at, with every other kind of action: long, and nothing that the others do not have apart
LONG_CASES = ("multi_discrete-image", "gsde-image", "gsde-dict", "discrete-dict")


def monitored(n_envs: int = 2) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(RandomEnv())] * n_envs)
