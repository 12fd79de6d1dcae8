"""What is looked at around the user's callback while a rollout is made."""

from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.guards.finite import FinitePart, NonFiniteError
from sb3_trpo.guards.watched_rollout import WatchedRollout
from tests.small_models import small_model


class Sets(BaseCallback):
    """Sets an attribute of the model at a step."""

    value: Any = 0.5

    def _on_step(self) -> bool:
        self.model.gamma = self.value  # type: ignore[attr-defined]
        return True


def watched(finite: FinitePart) -> tuple[Any, Sets, WatchedRollout]:
    model, callback = small_model(), Sets()
    model._setup_learn(64, callback)
    return model, callback, WatchedRollout(callback, model, finite)


@pytest.mark.parametrize("observations", [True, False])
def test_observation_that_is_not_finite_is_refused_where_it_must_be(observations: bool) -> None:
    """Before the user's callback hears of the step, naming it."""
    _, callback, rollout = watched(FinitePart(policy=True, observations=observations))
    step = {"new_obs": np.array([[0.0, np.nan, 0.0]], np.float32), "n_steps": 4, "callback": rollout}
    if observations:
        with pytest.raises(NonFiniteError, match="environment 0 at step 5"):
            rollout.update_locals(step)
        assert "new_obs" not in callback.locals
    else:
        rollout.update_locals(step)
        assert callback.locals["callback"] is callback


def test_attribute_that_cannot_work_is_refused_in_the_step_that_sets_it() -> None:
    """The environment is a step further on then: it begins anew."""
    model, callback, rollout = watched(FinitePart(policy=False, observations=False))
    rollout.on_rollout_start()
    assert rollout.on_step() and model.rollout_buffer.gamma == 0.5
    callback.value = 2.0
    with pytest.raises(ValueError, match=r"gamma.*2\.0"):
        rollout.on_step()
    assert model._last_obs is None


class Counter(gym.Env[Any, Any]):
    """Observes how many steps an episode has; masks tell odd from even."""

    observation_space = spaces.Box(0.0, 1e6, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.full(1, self.t, np.float32), 0.0, False, self.t == 25, {}

    def action_masks(self) -> np.ndarray:
        return np.array([self.t % 2, (self.t + 1) % 2], bool)


def raises(*_: Any) -> bool:
    raise ArithmeticError("one too many")


@pytest.mark.parametrize("end", [lambda *_: False, raises])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("cls", "policy"),
    [
        (TRPO, "MlpPolicy"),
        (MaskableTRPO, "MlpPolicy"),
        (RecurrentTRPO, "MlpLstmPolicy"),
        (MaskableRecurrentTRPO, "MlpLstmPolicy"),
    ],
)
@pytest.mark.parametrize("n_before", [8, 24])
def test_rollout_that_is_left_goes_on_where_the_environment_is(
    cls: Any, policy: str, fast: bool, end: Any, n_before: int
) -> None:
    """In the middle of an episode and at its end: the next observation, the memory of all before it, and its masks."""
    kwargs = {"lstm_hidden_size": 4} if "Lstm" in policy else {}
    env = DummyVecEnv([Counter])
    model = cls(policy, env, n_steps=8, batch_size=8, seed=0, device="cpu", fast=fast, policy_kwargs=kwargs)
    model.train = lambda: None
    model.learn(n_before)
    with suppress(ArithmeticError):
        model.learn(8, callback=end, reset_num_timesteps=False)
    model.learn(8, reset_num_timesteps=False)
    buffer = model.rollout_buffer
    observed = buffer.observations.reshape(8)
    first = (n_before + 1) % 25
    np.testing.assert_array_equal(observed, first + np.arange(8))
    assert buffer.episode_starts[0] == (first == 0)
    if hasattr(buffer, "action_masks"):
        np.testing.assert_array_equal(buffer.action_masks.reshape(8, 2)[:, 0], observed % 2)
    if "Lstm" in policy:
        seen = th.arange(0.0, first + 1).reshape(-1, 1, 1)
        _, (hidden, _) = model.policy.lstm_actor(seen)
        np.testing.assert_allclose(buffer.hidden_states_pi[1].reshape(-1), hidden.detach().reshape(-1), atol=1e-5)
