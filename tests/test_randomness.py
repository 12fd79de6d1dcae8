"""A model with a seed has random numbers of its own; one without follows those of the process."""

import copy
import pickle

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo.randomness import RandomNumbers
from tests.small_models import DISCRETE, changed, make_env, policy_state, small_model


@pytest.mark.parametrize("seed", [None, 3])
def test_twin_draws_the_same_and_leaves_the_numbers_where_they_are(seed: int | None) -> None:
    """Of a generator of its own and of the process'; copies and pickles draw the same too."""
    np.random.seed(1)
    numbers = RandomNumbers(seed)
    for draws_before in range(3):
        ahead = [numbers.twin().permutation(9).tolist() for _ in range(2)]
        assert ahead[0] == ahead[1] == numbers.permutation(9).tolist(), draws_before
    if seed is not None:
        copies = [copy.deepcopy(numbers), pickle.loads(pickle.dumps(numbers))]
        assert len({str(each.permutation(9)) for each in (numbers, *copies)}) == 1


def test_model_with_a_seed_draws_nothing_from_the_process() -> None:
    """What others draw between its rollouts is no matter to it, nor is what it draws to others."""
    model, disturbed = (small_model(env=make_env(action_space=DISCRETE)) for _ in range(2))

    class Disturbs(BaseCallback):
        def _on_step(self) -> bool:
            np.random.rand(3)
            th.rand(3)
            return True

    model.learn(128)
    disturbed.learn(128, Disturbs())
    assert not changed(policy_state(model), policy_state(disturbed))
    before = np.random.get_state()[1].tolist(), th.get_rng_state()  # type: ignore[index]
    model.learn(64)
    assert np.random.get_state()[1].tolist() == before[0]  # type: ignore[index]
    assert th.equal(th.get_rng_state(), before[1])


def test_model_without_a_seed_follows_those_of_the_process() -> None:
    """As with SB3: seeded from outside it does the same again."""
    model = small_model(env=make_env(action_space=DISCRETE), seed=None)
    actions = []
    for _ in range(2):
        th.manual_seed(5)
        _, callback = model._setup_learn(64)
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
        actions.append(model.rollout_buffer.actions[:1].copy())
    np.testing.assert_array_equal(actions[0], actions[1])
