"""The rollout of any algorithm, read as one of ours: in one order, with what its policy needs, and without a trace."""

import random
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo import TRPO
from sb3_trpo.inspect.as_ours import clip_range_of, limit_of, name_of, nothing_drawn, seen_as_ours
from sb3_trpo.inspect.policy_copies import copy_of
from tests.other_algorithms import OTHERS
from tests.small_models import small_model

pytestmark = pytest.mark.untraced


class AtRolloutEnd(BaseCallback):
    """Looks at the rollout before it is learned from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[TRPO, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        view = seen_as_ours(self.model, copy_of(self.model.policy))  # type: ignore[arg-type]
        self.seen.append((view, view._full_batch()))


@pytest.mark.parametrize("name", OTHERS)
def test_policy_that_collected_gives_the_probabilities_that_were_stored(name: str) -> None:
    """Observations, actions, masks and states belong together: the ratio of the old policy to itself is one, everywhere."""
    look = AtRolloutEnd()
    OTHERS[name]().learn(8 if "one_step" in name else 128, callback=look)
    assert len(look.seen) >= 2
    for view, batch in look.seen:
        with th.no_grad():
            log_prob = view._distribution(batch).log_prob(batch.actions)
        np.testing.assert_allclose(log_prob, batch.old_log_prob, rtol=1e-4, atol=2e-5)
        assert float(batch.weights.sum()) == pytest.approx(1.0, abs=1e-5)
        assert len(batch.weights) == view.n_steps * view.n_envs


def test_gain_of_every_algorithm_is_in_one_unit() -> None:
    """Advantages are normalised over the rollout whatever the algorithm does with them; a single one is left as it is."""
    for name, expected in (("ppo", 1.0), ("a2c", 1.0), ("contrib-trpo", 1.0)):
        look = AtRolloutEnd()
        OTHERS[name]().learn(64, callback=look)
        assert float(look.seen[-1][1].advantages.std()) == pytest.approx(expected, rel=1e-4)
    look = AtRolloutEnd()
    OTHERS["a2c-one_step"]().learn(2, callback=look)
    assert th.isfinite(look.seen[-1][1].advantages).all()


def test_limit_is_in_nats_for_the_whole_action() -> None:
    """sb3-contrib averages over three dimensions; PPO keeps no limit, its target_kl only ends an update early."""
    assert limit_of(OTHERS["contrib-trpo"](target_kl=0.02)) == pytest.approx(0.06)
    assert limit_of(OTHERS["contrib-trpo-multi_binary"](target_kl=0.02)) == pytest.approx(0.06)
    assert limit_of(small_model(target_kl=0.02)) == 0.02
    assert np.isnan(limit_of(OTHERS["ppo-limited"]())) and np.isnan(limit_of(OTHERS["a2c"]()))


def test_direction_is_damped_as_a_trpo_of_the_same_policy_is() -> None:
    """By our defaults where the algorithm has no damping, and as sb3-contrib damps where it is sb3-contrib's."""
    for model in (OTHERS["ppo"](), small_model()):
        view = seen_as_ours(model, copy_of(model.policy))
        assert view.cg_damping == pytest.approx(0.3) and view.std_damping == 0.0
    view = seen_as_ours(OTHERS["contrib-trpo"](), copy_of(OTHERS["contrib-trpo"]().policy))
    assert view.cg_damping == pytest.approx(0.3) and view.std_damping is None


def test_names() -> None:
    """Two algorithms are called TRPO."""
    assert name_of(small_model()) == "TRPO" and name_of(OTHERS["contrib-trpo"]()) == "sb3_contrib.TRPO"
    assert name_of(OTHERS["two-optimizers"]()) == "TwoOptimizers"


def test_clip_range_is_that_of_the_last_update() -> None:
    """A schedule is where the algorithm is; who has none is counted by PPO's default."""
    model = OTHERS["ppo-limited"]()
    model._current_progress_remaining = 0.5
    assert clip_range_of(model) == pytest.approx(0.15)
    assert clip_range_of(OTHERS["ppo"]()) == clip_range_of(OTHERS["a2c"]()) == 0.2


def test_generators_of_the_process_are_given_back() -> None:
    """Whatever a policy or a buffer draws while it is looked at."""
    states: Any = random.getstate(), np.random.get_state(), th.get_rng_state()
    with nothing_drawn():
        random.random(), np.random.random(), th.rand(1)
    after: Any = random.getstate(), np.random.get_state(), th.get_rng_state()
    assert states[0] == after[0] and np.array_equal(states[1][1], after[1][1]) and th.equal(states[2], after[2])


def test_model_is_not_touched_by_being_looked_at() -> None:
    """Ours made of another algorithm has the model's parts and changes none of its attributes."""
    model: Any = OTHERS["ppo"]().learn(64)
    before = dict(vars(model))
    view = seen_as_ours(model, copy_of(model.policy))
    view._full_batch()
    assert vars(model) == before and view.policy is not model.policy and type(view) is TRPO
