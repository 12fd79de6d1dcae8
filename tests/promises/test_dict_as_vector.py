"""A Dict and a vector of the same numbers are the same task."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation

from sb3_trpo import TRPO
from tests.fast.covered import TWO_VECTORS
from tests.small_models import BOX, DISCRETE, RandomEnv


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("action_space", [BOX, DISCRETE], ids=["box", "discrete"])
def test_dict_and_vector_of_the_same_numbers_give_the_same_policy(action_space: spaces.Space, fast: bool) -> None:
    """Before learning and after two updates, on the same path."""
    found = []
    for policy, wrap in (("MultiInputPolicy", lambda env: env), ("MlpPolicy", FlattenObservation)):
        env: gym.Env[Any, Any] = wrap(RandomEnv(TWO_VECTORS, action_space))
        model = TRPO(policy, env, n_steps=128, seed=1, fast=fast, device="cpu")
        observation, _ = env.reset(seed=3)
        before = model.policy.get_distribution(model.policy.obs_to_tensor(observation)[0]).distribution
        model.learn(256)
        after = model.policy.get_distribution(model.policy.obs_to_tensor(observation)[0]).distribution
        numbers = [getattr(d, "mean" if action_space is BOX else "logits").detach().numpy() for d in (before, after)]
        found.append((model.paths_in_use, numbers))
    assert found[0][0] == found[1][0]
    assert np.abs(found[0][1][0] - found[0][1][1]).max() > 1e-3
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)
