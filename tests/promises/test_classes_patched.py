"""Classes of torch and SB3 with methods of the user's own in them, and what else a process may have set: fast is as plain."""

from collections import UserDict
from collections.abc import Callable
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.guards.overridden import is_as_written
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.recurrent import RecurrentTRPO
from tests.small_models import RandomEnv, make_env, policy_state, small_model

linear, tanh, forward_actor = nn.Linear.forward, nn.Tanh.forward, MlpExtractor.forward_actor
add, returns = RolloutBuffer.add, RolloutBuffer.compute_returns_and_advantage


def clipping(self: Any, obs: Any, action: Any, reward: Any, *rest: Any) -> None:
    add(self, obs, action, np.clip(reward, -0.1, 0.1), *rest)


def sevens(self: Any, *args: Any, **kwargs: Any) -> None:
    returns(self, *args, **kwargs)
    self.returns.fill(7.0)


PATCHES: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "linear": (nn.Linear, "forward", lambda self, x: 1.5 * linear(self, x)),
    "activation": (nn.Tanh, "forward", lambda self, x: 0.5 * tanh(self, x)),
    "call": (nn.Linear, "__call__", lambda self, x: 0.5 * linear(self, x)),
    "extractor": (MlpExtractor, "forward_actor", lambda self, x: 3.0 * forward_actor(self, x)),
    "add": (RolloutBuffer, "add", clipping),
    "returns": (RolloutBuffer, "compute_returns_and_advantage", sevens),
    "optimizer": (th.optim.Adam, "step", lambda self, closure=None: None),
}


class Compared(BaseCallback):
    """Looks how far what the buffer has is from what the policy says."""

    def _on_step(self) -> bool:
        return True

    @th.no_grad()
    def _on_rollout_end(self) -> None:
        model: Any = self.model
        batch = model._full_batch()
        self.gap = float((model._distribution(batch).log_prob(batch.actions) - batch.old_log_prob).abs().max())


def trained(*, fast: bool, cls: type[TRPO] = TRPO, policy: str = "MlpPolicy") -> tuple[TRPO, Compared]:
    compared = Compared()
    model = small_model(cls, policy, fast=fast)
    return model.learn(2 * 64, callback=compared), compared


@pytest.mark.parametrize("name", PATCHES)
def test_method_in_a_class_is_used_whenever_it_was_put_there(name: str) -> None:
    """Before the model is built, too: rollouts and updates are those of the plain ways."""
    kind, method, own = PATCHES[name]
    with mock.patch.object(kind, method, own):
        (fast, compared), (plain, _) = (trained(fast=fast) for fast in (True, False))
    assert compared.gap < 1e-5 and "plain" in fast.paths_in_use.values()
    # Lean collection draws other numbers
    names = [key for key in policy_state(plain) if fast.paths_in_use["collection"] == "plain" or "value_net" in key]
    for key in names:
        assert th.allclose(policy_state(fast)[key], policy_state(plain)[key], atol=1e-4), key
    assert "plain" not in trained(fast=True)[0].paths_in_use.values()


@pytest.mark.parametrize("name", ["linear", "extractor"])
def test_method_in_a_class_is_used_where_the_policy_has_a_memory(name: str) -> None:
    kind, method, own = PATCHES[name]
    with mock.patch.object(kind, method, own):
        model, compared = trained(fast=True, cls=RecurrentTRPO, policy="MlpLstmPolicy")
    assert compared.gap < 1e-5 and model.paths_in_use["collection"] == "plain"


def test_method_of_a_class_is_told_from_one_that_was_put_there() -> None:
    """One that torch has wrapped, as it does with the step of an optimizer, is told by what is inside."""
    th.optim.Adam([nn.Parameter(th.zeros(1))])
    for kind, method, own in PATCHES.values():
        assert is_as_written(kind, method)
        with mock.patch.object(kind, method, own):
            assert not is_as_written(kind, method)
            if method == "step":
                th.optim.Adam([nn.Parameter(th.zeros(1))])
                assert not is_as_written(kind, method)
    assert is_as_written(RandomEnv, "step", "nothing_of_this_name")


class Settling(gym.Env[Any, Any]):
    """A position that goes to zero, and large numbers beside it."""

    action_space = spaces.Discrete(2)

    def __init__(self, dtype: Any = np.float32, floor: float = 1e-37, scale: float = 1.0):
        self.dtype, self.floor, self.scale = dtype, floor, scale
        self.observation_space = spaces.Box(-1e3, 1e3, (2,), dtype)
        self.position, self.n_steps = 1.0, 0

    def observe(self) -> np.ndarray:
        return np.array([max(self.position, self.floor), self.scale * (1.0 - self.n_steps / 200)], self.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.n_steps = 1.0, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        self.position *= 0.6
        return self.observe(), float(action), self.n_steps >= 200, False, {}


SETTLING: dict[str, tuple[type[TRPO], str, gym.Env, dict[str, Any]]] = {
    "tiny": (TRPO, "MlpPolicy", Settling(), {}),
    "tiny in double": (TRPO, "MlpPolicy", Settling(np.float64, 1e-44), {}),
    "silu": (TRPO, "MlpPolicy", Settling(floor=1e-3, scale=400.0), {"policy_kwargs": {"activation_fn": nn.SiLU}}),
    "lstm": (RecurrentTRPO, "MlpLstmPolicy", Settling(floor=1e-3, scale=400.0), {"policy_kwargs": {"lstm_hidden_size": 16}}),
}


@pytest.mark.parametrize("name", SETTLING)
def test_floating_point_errors_that_a_process_raises_are_of_its_own_code(name: str) -> None:
    """SB3's guide on NaNs sets it; torch computes without a word, and so does NumPy in the place of torch."""
    cls, policy, env, arguments = SETTLING[name]
    with np.errstate(all="raise"):
        model = cls(policy, env, n_steps=256, seed=0, device="cpu", **arguments).learn(512)
        assert np.geterr()["under"] == "raise"
    assert model.paths_in_use["collection"] == "lean" and model.paths_in_use["Fisher products"] == "Gauss-Newton"


class BareWrapper(VecEnvWrapper):
    """Built as a ``VecEnv``, as some are."""

    def __init__(self, venv: VecEnv):
        self.venv = venv
        VecEnv.__init__(self, venv.num_envs, venv.observation_space, venv.action_space)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def test_wrapper_that_is_built_in_its_own_way_is_taken() -> None:
    small_model(env=BareWrapper(make_env())).learn(64)


class TakesMasks(ActorCriticPolicy):
    """Takes masks, and does without them."""

    def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> Any:
        return super().forward(obs, deterministic)


class NeedsMasks(ActorCriticPolicy):
    """Cannot do without."""

    def forward(self, obs: Any, action_masks: Any) -> Any:  # type: ignore[override]
        return super().forward(obs)


def test_policy_that_does_without_what_it_could_be_handed_is_taken() -> None:
    small_model(policy=TakesMasks).learn(64)
    with pytest.raises(ValueError, match="it acts on action_masks, and a policy of TRPO acts on observations alone"):
        small_model(policy=NeedsMasks)
    with pytest.raises((TypeError, ValueError), match="acts on action_masks"):
        small_model(policy=MaskableTRPO.policy_aliases["MlpPolicy"])


def test_arguments_of_policy_and_buffer_may_be_any_mapping(tmp_path: Any) -> None:
    model = small_model(policy_kwargs=UserDict(net_arch=[8]), rollout_buffer_kwargs=UserDict())
    model.learn(64).save(tmp_path / "model")
    assert model.policy_kwargs == {"net_arch": [8]} == TRPO.load(tmp_path / "model").policy_kwargs
    with pytest.raises(TypeError, match="policy_kwargs must be a dictionary or None"):
        small_model(policy_kwargs=[("net_arch", [8])])
