"""Where a policy holds its parts: whatever is put in the place of one is noticed, and numbers that change are not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_trpo.fast.places import Places
from tests.cases import shake
from tests.small_models import small_model


def places_of(policy: Any) -> Places:
    return Places(list(policy.modules()), policy, [policy.pi_features_extractor])


def transpose(policy: Any) -> None:
    layer = policy.mlp_extractor.policy_net[2]
    layer.weight.data = layer.weight.data.t()


REPLACED: dict[str, Callable[[Any], Any]] = {
    "a layer": lambda policy: setattr(policy, "action_net", nn.Linear(64, 3)),
    "a layer more": lambda policy: policy.mlp_extractor.policy_net.append(nn.Tanh()),
    "a layer less": lambda policy: policy.mlp_extractor.policy_net.pop(1),
    "a parameter": lambda policy: setattr(policy.action_net, "bias", nn.Parameter(th.zeros(3))),
    "a parameter's memory": lambda policy: setattr(policy.log_std, "data", th.zeros(3)),
    "its order in memory": transpose,
    "a hook": lambda policy: policy.action_net.register_forward_hook(lambda module, given, result: 2.0 * result),
    "a method": lambda policy: setattr(policy.action_net, "forward", lambda values: values),
    "a class": lambda policy: setattr(policy.action_net, "__class__", type("Own", (nn.Linear,), {})),
    "the distribution": lambda policy: setattr(policy, "action_dist", type(policy.action_dist)(3)),
    "a method of the distribution": lambda policy: setattr(policy.action_dist, "sample", policy.action_dist.mode),
    "what the extractor looks at": lambda policy: setattr(policy.pi_features_extractor, "_features_dim", 4),
}


@pytest.mark.parametrize("name", REPLACED)
def test_whatever_is_replaced_is_noticed(name: str) -> None:
    policy = small_model().policy
    places = places_of(policy)
    assert places.are_as_they_were()
    REPLACED[name](policy)
    assert not places.are_as_they_were()


def test_numbers_may_change() -> None:
    policy = small_model().policy
    places = places_of(policy)
    shake(list(policy.parameters()), scale=1.0, seed=0)
    policy.set_training_mode(True)
    assert places.are_as_they_were()
