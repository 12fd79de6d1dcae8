"""The cases of :mod:`benchmarks.speed`: environments, policies and sizes, and the models that are compared on them."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch as th
from gymnasium import spaces
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack
from torch import nn

import sb3_trpo
from benchmarks.cheap import Cheap
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.maskable_recurrent import MaskableRecurrentTRPO
from sb3_trpo.recurrent import RecurrentTRPO
from sb3_trpo.vec_env import make_vector_env

STEPPING = "env.step"
# Actor and critic of every state in torch, with nothing around them
NETWORKS = "networks"
# Beside EnvPool: sb3_contrib as its users have it
ON_DUMMY = "contrib, DummyVecEnv"
EVERYTHING = ("trpo", "contrib", "ppo", STEPPING)
BOTH = ("trpo", "contrib")
# Ours with fast=False
PLAIN = "trpo, plain"
OF_A_VARIANT = ("trpo", PLAIN, "ppo")
# Ours, and sb3-contrib's PPO of the same kind. There is none of both kinds at once: beside it stands ours without masks
VARIANTS: dict[str, tuple[Any, Any]] = {
    "masked": (MaskableTRPO, sb3_contrib.MaskablePPO),
    "recurrent": (RecurrentTRPO, sb3_contrib.RecurrentPPO),
    "both": (MaskableRecurrentTRPO, RecurrentTRPO),
}
WITH_NETWORKS = ("trpo", "contrib", NETWORKS, STEPPING)
WITH_ENVPOOL = ("trpo", "contrib", ON_DUMMY, STEPPING)


class Case(NamedTuple):
    """
    One row of the comparison.

    :param name: what it is called
    :param env_id: an id of Gymnasium, ``images`` or ``cheap``
    :param n_envs: number of environments
    :param n_steps: number of steps of each in a rollout
    :param rounds: number of updates that are timed
    :param sub_sampling_factor: of ours
    :param policy: alias of the policy
    :param policy_update_only: whether the critic stays as it is
    :param n_critic_updates: number of passes over the rollout
    :param arguments: more of the constructor, the same for all
    :param wrapper: what each environment is wrapped in
    :param backend: of a vector environment, ``envpool`` (with one thread) or ``vector``; SB3's otherwise
    :param algorithms: what is compared
    :param variant: key of ``VARIANTS``, for those of TRPO
    """

    name: str
    env_id: str
    n_envs: int
    n_steps: int
    rounds: int
    sub_sampling_factor: int = 1
    policy: str = "MlpPolicy"
    policy_update_only: bool = False
    n_critic_updates: int = 10
    arguments: dict[str, Any] | None = None
    wrapper: Callable[[gym.Env], gym.Env] | None = None
    backend: str | None = None
    algorithms: tuple[str, ...] = EVERYTHING
    variant: str = ""


class RandomImages(gym.Env):
    """Frames of noise in the shape of four stacked Atari frames."""

    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._frame(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._frame(), float(self.np_random.normal()), False, False, {}

    def _frame(self) -> np.ndarray:
        return self.np_random.integers(0, 256, self.observation_space.shape, dtype=np.uint8)


class InTwoParts(gym.ObservationWrapper):
    """A Dict of two vectors for one vector, as tasks with goals have it."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        (size,) = env.observation_space.shape or (0,)
        self.first = size // 2
        parts = {"first": self.first, "second": size - self.first}
        self.observation_space = spaces.Dict({key: spaces.Box(-np.inf, np.inf, (n,)) for key, n in parts.items()})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"first": observation[: self.first], "second": observation[self.first :]}


CHEETAH: dict[str, Any] = {"env_id": "HalfCheetah-v5", "n_envs": 1, "n_steps": 2048, "rounds": 7, "algorithms": BOTH}
LSTM = "MlpLstmPolicy"
MASKED = "InvalidActionEnvDiscrete(20)"
CASES = (
    Case("CartPole-v1, 1 env", "CartPole-v1", 1, 2048, 7),
    Case("HalfCheetah-v5, 1 env", "HalfCheetah-v5", 1, 2048, 7),
    Case("HalfCheetah-v5, 8 envs", "HalfCheetah-v5", 8, 256, 7),
    Case("HalfCheetah-v5, 8 envs, 65,536 steps", "HalfCheetah-v5", 8, 8192, 3, sub_sampling_factor=8),
    Case("HalfCheetah-v5, 8 envs, EnvPool", "HalfCheetah-v5", 8, 256, 7, backend="envpool", algorithms=WITH_ENVPOOL),
    Case("HalfCheetah-v5, 64 envs, EnvPool", "HalfCheetah-v5", 64, 256, 3, backend="envpool", algorithms=WITH_ENVPOOL),
    Case("HalfCheetah-v5, Dict of two vectors", wrapper=InTwoParts, policy="MultiInputPolicy", **CHEETAH),
    Case("HalfCheetah-v5, ELU", arguments={"policy_kwargs": {"activation_fn": nn.ELU}}, **CHEETAH),
    Case("HalfCheetah-v5, gSDE", arguments={"use_sde": True}, **CHEETAH),
    Case("HalfCheetah-v5, AdamW", arguments={"policy_kwargs": {"optimizer_class": th.optim.AdamW}}, **CHEETAH),
    Case("CartPole-v1, 64 envs, Gymnasium's own", "CartPole-v1", 64, 128, 7, backend="vector", algorithms=BOTH),
    Case("CartPole-v1, 512 envs, Gymnasium's own", "CartPole-v1", 512, 32, 7, backend="vector", algorithms=BOTH),
    Case("CartPole-v1, 4,096 envs, Gymnasium's own", "CartPole-v1", 4096, 16, 3, backend="vector", algorithms=BOTH),
    Case("no cost of steps, 64 envs", "cheap", 64, 128, 7, algorithms=WITH_NETWORKS),
    Case("no cost of steps, 512 envs", "cheap", 512, 32, 7, algorithms=WITH_NETWORKS),
    Case("no cost of steps, 4,096 envs", "cheap", 4096, 16, 3, algorithms=WITH_NETWORKS),
    Case("RecurrentTRPO, CartPole-v1, hidden 64", "CartPole-v1", 1, 2048, 3, policy=LSTM, variant="recurrent")._replace(
        algorithms=OF_A_VARIANT, arguments={"policy_kwargs": {"lstm_hidden_size": 64}}
    ),
    Case("RecurrentTRPO, CartPole-v1, hidden 256", "CartPole-v1", 1, 2048, 2, policy=LSTM, variant="recurrent")._replace(
        algorithms=OF_A_VARIANT
    ),
    Case("MaskableTRPO, Discrete(20)", MASKED, 1, 2048, 5, variant="masked", algorithms=OF_A_VARIANT),
    Case("MaskableRecurrentTRPO, Discrete(20), hidden 64", MASKED, 1, 2048, 3, policy=LSTM, variant="both")._replace(
        algorithms=("trpo", "without masks"), arguments={"policy_kwargs": {"lstm_hidden_size": 64}}
    ),
    Case("ALE/Pong-v5, 8 envs", "ALE/Pong-v5", 8, 128, 2, policy="CnnPolicy", n_critic_updates=1),
    Case("NatureCNN, 1,024 images, all states", "images", 1, 1024, 2, policy="CnnPolicy", policy_update_only=True),
    Case("NatureCNN, 1,024 images, 1/8 of the states", "images", 1, 1024, 2, 8, "CnnPolicy", True),
)


def can_run(case: Case) -> bool:
    """Whether what a case needs is installed."""
    return case.backend != "envpool" or importlib.util.find_spec("envpool") is not None


def make_env(case: Case) -> VecEnv:
    """Build the environments of a case, Atari games with SB3's wrappers and four stacked frames."""
    if case.env_id == "cheap":
        return Cheap(case.n_envs, spaces.Box(-1.0, 1.0, (6,)))
    if case.backend is not None:
        vector_kwargs = {"num_threads": 1} if case.backend == "envpool" else None
        return make_vector_env(case.env_id, case.n_envs, seed=0, backend=case.backend, vector_kwargs=vector_kwargs)
    if not case.env_id.startswith("ALE/"):
        made: dict[str, Any] = {
            "images": RandomImages,
            MASKED: partial(InvalidActionEnvDiscrete, dim=20, n_invalid_actions=10),
        }
        env_id: Any = made.get(case.env_id, case.env_id)
        return make_vec_env(env_id, n_envs=case.n_envs, seed=0, wrapper_class=case.wrapper)
    import ale_py

    gym.register_envs(ale_py)
    return VecFrameStack(make_atari_env(case.env_id, n_envs=case.n_envs, seed=0), n_stack=4)


def make_model(algorithm: str, case: Case, device: str = "cpu") -> Any:
    """Build one of them with the same environment, network and sizes."""
    env = make_env(case._replace(backend=None) if algorithm == ON_DUMMY else case)
    common: dict[str, Any] = {"n_steps": case.n_steps, "batch_size": 128, "seed": 0, "device": device}
    common |= case.arguments or {}
    if case.variant:
        # With the defaults of each
        del common["batch_size"]
        ours, other = VARIANTS[case.variant]
        if algorithm in ("trpo", PLAIN):
            return ours(case.policy, env, n_critic_updates=case.n_critic_updates, fast=algorithm == "trpo", **common)
        return other(case.policy, env, **common)
    if algorithm == "ppo":
        return PPO(case.policy, env, n_epochs=case.n_critic_updates, **common)
    common |= {"n_critic_updates": case.n_critic_updates}
    if case.policy_update_only:
        # The extractor shared as in sb3_contrib, so that both collect with the same network
        common |= {"n_critic_updates": 0, "policy_kwargs": {"share_features_extractor": True}}
    if algorithm.startswith("contrib"):
        return sb3_contrib.TRPO(case.policy, env, **common)
    return sb3_trpo.TRPO(case.policy, env, **common, sub_sampling_factor=case.sub_sampling_factor)
