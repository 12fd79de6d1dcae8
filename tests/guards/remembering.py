"""Policies that keep what they have computed, and what is found of it."""

import gc
from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class Remembering(BaseFeaturesExtractor):
    """Keeps what it has seen, as one does to look at attention maps."""

    def __init__(self, observation_space: Any):
        super().__init__(observation_space, 4)
        self.layer = nn.Linear(3, 4)
        self.register_buffer("seen", th.zeros(1))
        self.notes: dict[str, Any] = {}

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = self.layer(observations)
        self.last = features
        self.seen = features.mean()
        self.notes = {"all": [features, (features * 2, "two")], "kept": Note(features)}
        return features.sin()


class Note:
    """Neither a module nor a distribution."""

    def __init__(self, features: th.Tensor):
        self.features = features


def graphs_of(policy: nn.Module) -> list[th.Tensor]:
    """Find every tensor with a graph that is reachable from a policy, by the garbage collector's account."""
    found, seen, to_visit = [], set(), [vars(module) for module in policy.modules()]
    while to_visit:
        value: Any = to_visit.pop()
        if id(value) in seen or isinstance(value, type) or type(value).__module__.startswith("gymnasium"):
            continue
        seen.add(id(value))
        if isinstance(value, th.Tensor):
            found += [] if value.grad_fn is None else [value]
        elif type(value).__name__ not in ("module", "function", "method", "builtin_function_or_method"):
            to_visit += gc.get_referents(value)
    return found
