"""A model with a seed has random numbers of its own; one without follows those of the process."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo import TRPO
from sb3_trpo.randomness import RandomNumbers
from tests.small_models import BOX, DISCRETE, changed, make_env, policy_state, small_model


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


IN_NUMPY: dict[str, Any] = {"env": {"action_space": DISCRETE}}
IN_TORCH: dict[str, Any] = {"env": {"action_space": DISCRETE, "observation_space": spaces.MultiDiscrete([5])}}
GSDE: dict[str, Any] = {"env": {"action_space": BOX}, "use_sde": True, "sde_sample_freq": 4}
GSDE_IN_TORCH = GSDE | {"policy_kwargs": {"activation_fn": th.nn.Softsign}}
WAYS = pytest.mark.parametrize(
    "way", [IN_NUMPY, IN_TORCH, GSDE, GSDE_IN_TORCH], ids=["NumPy", "torch", "gSDE", "gSDE in torch"]
)


def model_that_acts(way: dict[str, Any], **arguments: Any) -> TRPO:
    return small_model(**way | {"env": make_env(**way["env"])} | arguments)


@pytest.mark.untraced
@WAYS
def test_model_with_a_seed_draws_nothing_from_the_process(way: dict[str, Any]) -> None:
    """What others draw between its rollouts is no matter to it, nor is what it draws to others, in NumPy and in torch."""
    model, disturbed = (model_that_acts(way) for _ in range(2))

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


def test_actions_drawn_in_torch_are_those_of_sb3_with_the_same_seed() -> None:
    """A seed gives SB3's first rollout to the bit, though none of it is drawn where SB3 draws."""
    rollouts = []
    for fast in (True, False):
        model = model_that_acts(IN_TORCH, fast=fast)
        model.learn(model.n_steps * model.n_envs)
        rollouts.append((model.rollout_buffer.actions.copy(), model.rollout_buffer.log_probs.copy()))
    for ours, theirs in zip(*rollouts, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.untraced
@WAYS
def test_zip_goes_on_with_the_numbers_of_the_model(way: dict[str, Any], tmp_path: Path) -> None:
    """Saved in the midst of a training, it acts as the model does that was never saved."""
    model = model_that_acts(way)
    model.learn(64).save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model")
    for each in (model, loaded):
        env = make_env(**way["env"])
        env.seed(7)
        each.set_env(env)
        th.rand(3)
        each.learn(64)
    assert not changed(policy_state(model), policy_state(loaded))


@pytest.mark.parametrize("way", [IN_NUMPY, IN_TORCH], ids=["NumPy", "torch"])
def test_model_without_a_seed_follows_those_of_the_process(way: dict[str, Any]) -> None:
    """As with SB3: seeded from outside it does the same again."""
    model = model_that_acts(way, seed=None)
    actions = []
    for _ in range(2):
        th.manual_seed(5)
        _, callback = model._setup_learn(64)
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
        actions.append(model.rollout_buffer.actions[:1].copy())
    np.testing.assert_array_equal(actions[0], actions[1])
