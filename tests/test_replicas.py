"""What keeps the copies of a model the same, one piece at a time; whole trainings are in promises/test_many_processes.py."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo.distributed import PeerError
from sb3_trpo.replicas import arguments_of, check_same, checksum, digest, since
from tests.small_models import make_env, observed, small_model


def test_check_same_names_the_first_difference() -> None:
    """On the first process that has another value; one that has failed tells nothing."""
    check_same([{"a": 1, "b": 2}, {}, {"a": 1, "b": 2}])
    with pytest.raises(PeerError, match="b must be the same on all processes, got 2 on process 0 and 3 on 2"):
        check_same([{"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1, "b": 3}])


def test_arguments_are_told_in_the_same_words_by_models_that_are_alike() -> None:
    """Where functions lie in memory is of no account; a schedule is what it returns."""

    def told(**arguments: Any) -> dict[str, str]:
        return arguments_of(small_model(policy_kwargs={"activation_fn": lambda: th.nn.Tanh()}, **arguments), total_timesteps=5)

    assert told(seed=1, verbose=0) == told(seed=2, device="cpu")
    assert told(target_kl=lambda left: 0.01 + left)["target_kl"] == "[1.01, 0.51, 0.01]"
    assert told()["total_timesteps"] == "5" and told()["VecNormalize"] == "None"
    assert {name for name, value in told(gamma=0.9).items() if value != told()[name]} == {"gamma"}


def test_checksum_sees_a_bit_of_everything() -> None:
    """Of weights, of the optimizer's memory and of running statistics; it is the same while nothing changes."""
    env = VecNormalize(make_env())
    model = small_model(env=env).learn(64)
    sums = [checksum(model)]
    assert checksum(model) == sums[0]
    with th.no_grad():
        model.policy.log_std.view(th.int32)[0] ^= 1
    sums.append(checksum(model))
    next(iter(model.policy.optimizer.state.values()))["exp_avg"].view(-1)[0] += 1.0
    sums.append(checksum(model))
    observed(env).var[1] *= 1 + 1e-15
    sums.append(checksum(model))
    env.ret_rms.count += 1
    assert len({*sums, checksum(model)}) == 5


def test_digest_is_of_actions_rewards_and_observations() -> None:
    model = small_model().learn(64)
    found = {digest(model.rollout_buffer)}
    for array in (model.rollout_buffer.actions, model.rollout_buffer.rewards, model.rollout_buffer.observations):
        array[0] += 1.0
        found.add(digest(model.rollout_buffer))
    assert len(found) == 4


@pytest.mark.parametrize("n_before", [0, 100, 1_000_000])
def test_since_is_what_came_in(n_before: int) -> None:
    """Also after so much that it hardly moves them, and far from zero; nothing where nothing came."""
    random = np.random.default_rng(0)
    before, rows = random.normal(7.0, 2.0, (n_before, 3)), random.normal(8.0, 0.1, (20, 3))
    agreed = RunningMeanStd(shape=(3,))
    if n_before:
        agreed.update(before)
    now = agreed.copy()
    assert since(now, agreed)[2] == 0.0
    now.update(rows)
    mean, var, count = since(now, agreed)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(var, rows.var(axis=0), rtol=1e-4)
    assert count == pytest.approx(20)
