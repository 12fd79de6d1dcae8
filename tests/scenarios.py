"""Environments of every kind to collect from, and how two collections are held against each other."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_trpo import TRPO
from tests.cases import seeded, shake
from tests.small_models import BOX, VECTOR, RandomEnv, small_model

FIELDS = ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
# Bounds of which the policy knows nothing, so that clipping and squashing have something to do
NARROW = spaces.Box(np.array([-0.5, -1.0, 0.1], dtype=np.float32), np.array([0.5, 2.0, 0.3], dtype=np.float32))
GRID = spaces.MultiDiscrete([3, 2, 4])

Arrays = dict[str, np.ndarray]


class NoiseEnv(RandomEnv):
    """The random environment with finite observations too, and a reward that any part of the action changes."""

    def _noise(self, space: spaces.Space) -> Any:
        if isinstance(space, spaces.Discrete):
            return int(self.np_random.integers(space.n))
        if isinstance(space, spaces.MultiDiscrete):
            return self.np_random.integers(space.nvec).astype(space.dtype)
        return super()._noise(space)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        return observation, reward + float(np.sum(np.ravel(action) * np.arange(1, np.size(action) + 1))), *rest


class Scenario(NamedTuple):
    """
    What is collected from.

    :param observation_space: what is observed
    :param action_space: what can be done
    :param n_envs: number of environments
    :param policy: its alias or class
    :param arguments: what else the model gets
    :param episode_length: after so many steps an episode is truncated
    :param termination_probability: of each step to end the episode
    :param processes: whether each environment runs in a process of its own
    :param normalized: whether in ``VecNormalize``
    """

    observation_space: spaces.Space = VECTOR
    action_space: spaces.Space = BOX
    n_envs: int = 3
    policy: Any = "MlpPolicy"
    arguments: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it
    episode_length: int = 7
    termination_probability: float = 0.1
    processes: bool = False
    normalized: bool = False

    def env(self) -> VecEnv:
        make: Callable[[], gym.Env] = partial(
            NoiseEnv,
            self.observation_space,
            self.action_space,
            episode_length=self.episode_length,
            termination_probability=self.termination_probability,
        )
        env: VecEnv = SubprocVecEnv([make] * self.n_envs, "fork") if self.processes else DummyVecEnv([make] * self.n_envs)
        return VecNormalize(env, gamma=0.9) if self.normalized else env

    def model(self, *, fast: bool, **arguments: Any) -> TRPO:
        """Return a model with weights away from the initial ones, where all actions are as good as equally likely."""
        settings = {"n_steps": 20, "gamma": 0.9, "gae_lambda": 0.8, "fast": fast, **self.arguments, **arguments}
        model = small_model(TRPO, self.policy, self.env(), **settings)
        # The many weights of a NatureCNN would add up to values of which rounding is no longer small
        scale = 0.2 if self.policy == "MlpPolicy" else 0.02
        shake(list(model.policy.parameters()), scale=scale, seed=1)
        return model


class Recorder(BaseCallback):
    """Writes down what a callback sees, and ends the run at a call of ``on_step`` if told to."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.stop_at = stop_at
        self.events: list[tuple[str, int, int]] = []
        self.seen: list[dict[str, Any]] = []

    def _record(self, event: str) -> None:
        self.events.append((event, self.num_timesteps, self.model.num_timesteps))
        self.seen.append(dict(self.locals))

    def _on_training_start(self) -> None:
        self._record("training_start")

    def _on_rollout_start(self) -> None:
        self._record("rollout_start")

    def _on_step(self) -> bool:
        self._record("step")
        return self.n_calls != self.stop_at

    def _on_rollout_end(self) -> None:
        self._record("rollout_end")

    def _on_training_end(self) -> None:
        self._record("training_end")


def contents(buffer: RolloutBuffer) -> Arrays:
    """Copy everything that a buffer holds."""
    stored: Any = buffer.observations
    observations = stored if isinstance(stored, dict) else {"": stored}
    return {f"observations {key}": value.copy() for key, value in observations.items()} | {
        name: getattr(buffer, name).copy() for name in FIELDS
    }


def collect(model: TRPO, *, n_rollouts: int = 2, callback: BaseCallback | None = None) -> list[Arrays]:
    """Collect one rollout after the other without an update, and return what each put into the buffer."""
    assert model.env is not None
    _, callback = model._setup_learn(10**6, callback)
    collected = []
    with seeded(0):
        model._random.go_on_from_process(model.device)  # SB3's own loop draws from the process
        for _ in range(n_rollouts):
            assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
            assert model.rollout_buffer.full and model.rollout_buffer.pos == model.n_steps
            collected.append(contents(model.rollout_buffer))
    return collected


def replay(model: TRPO, collected: list[Arrays], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a policy take actions taken before instead of sampling its own."""
    shape = (model.n_envs, *(model.action_space.shape or ()))
    kind = th.float32 if isinstance(model.action_space, spaces.Box | spaces.MultiBinary) else th.int64
    actions = (th.as_tensor(row).reshape(shape).to(kind) for arrays in collected for row in arrays["actions"])
    monkeypatch.setattr(model.policy.action_dist, "get_actions", lambda deterministic=False: next(actions))


def check_equal(lean: list[Arrays], plain: list[Arrays], *, rounding: float = 1e-6) -> None:
    """Observations, actions and episode starts are the same to the bit, what was computed from them is so up to rounding."""
    for ours, theirs in zip(lean, plain, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].shape == theirs[name].shape and ours[name].dtype == theirs[name].dtype, name
            exact = name.startswith(("observations", "actions", "episode_starts"))
            atol = 0.0 if exact else rounding * max(1.0, np.abs(theirs[name]).max())
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0.0, atol=atol, err_msg=name)


GSDE: dict[str, Any] = {"use_sde": True}
