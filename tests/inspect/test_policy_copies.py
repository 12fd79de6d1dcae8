"""A copy of a policy does what the policy did, and goes its own way; of what has no copy the reason is told."""

import threading
from typing import Any

import pytest
import torch as th

from sb3_trpo.inspect.policy_copies import CannotBeCopied, copy_of
from tests.other_algorithms import OTHERS


@pytest.mark.parametrize("name", ["ppo", "ppo-dict", "ppo-image", "ppo-gsde", "two-optimizers"])
def test_copy_does_what_the_policy_did_and_stays_what_it_is(name: str) -> None:
    """After an update, with the graph that it leaves behind, and whatever becomes of the policy from then on."""
    model = OTHERS[name]().learn(64)
    policy: Any = model.policy
    policy.set_training_mode(False)
    observations, _ = policy.obs_to_tensor(model._last_obs)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    twin: Any = copy_of(policy)
    assert not twin.training
    with th.no_grad():
        expected = policy.get_distribution(observations).mode().clone()
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert th.equal(twin.get_distribution(observations).mode(), expected)
    assert all(th.equal(value, before[key]) for key, value in twin.state_dict().items())
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in policy.parameters()}


def test_copy_leaves_the_policy_in_its_mode_and_its_optimizer_uncopied() -> None:
    """What an optimizer holds is twice the parameters, and nothing asks for it."""
    policy = OTHERS["ppo"]().policy
    policy.set_training_mode(True)
    twin = copy_of(policy)
    assert policy.training and not twin.training and twin.optimizer is policy.optimizer


def test_policy_that_has_no_copy_is_named_with_the_reason() -> None:
    """A lock, as of a logger or a queue, cannot be copied: torch and Python say so, and the error says of which policy."""
    policy: Any = OTHERS["ppo"]().policy
    policy.features_extractor.lock = threading.Lock()
    with pytest.raises(CannotBeCopied, match=r"ActorCriticPolicy cannot be copied .*lock"):
        copy_of(policy)


def test_copy_of_what_refers_to_itself() -> None:
    """Modules that know each other, and tensors with a graph anywhere in the policy's own objects."""
    policy: Any = OTHERS["ppo"]().policy

    class Notes:
        def __init__(self, owner: Any):
            self.owner = owner
            self.tensors = {"last": [policy.log_std * 2.0]}

    policy.notes = Notes(policy)
    twin: Any = copy_of(policy)
    assert twin.notes.owner is twin and not twin.notes.tensors["last"][0].requires_grad
    assert th.equal(twin.notes.tensors["last"][0], policy.log_std * 2.0)
    assert policy.notes.tensors["last"][0].requires_grad
