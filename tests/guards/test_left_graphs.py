"""What an update leaves on a policy loses its graph, in whatever it is kept, and stays what it is."""

import copy
import functools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch as th
from torch import nn

from sb3_trpo.guards.left_graphs import drop_graphs, views_of_parameters
from tests.guards.remembering import Remembering, graphs_of
from tests.small_models import small_model


class Named(NamedTuple):
    features: th.Tensor
    word: str


@dataclass(frozen=True)
class Frozen:
    features: th.Tensor


class Slotted:
    __slots__ = ("__hidden", "features")

    def __init__(self, features: th.Tensor):
        self.features = features
        self.__hidden = features

    def hidden(self) -> th.Tensor:
        return self.__hidden


class SlottedFurther(Slotted):
    __slots__ = "more"

    def __init__(self, features: th.Tensor):
        super().__init__(features)
        self.more = [features]


# In what a user's network may keep a tensor, and how to get at it
KEPT: dict[str, tuple[Callable[[th.Tensor], Any], Callable[[Any], th.Tensor]]] = {
    "tensor": (lambda x: x, lambda kept: kept),
    "list": (lambda x: [1, x], lambda kept: kept[1]),
    "tuple": (lambda x: (x, "two"), lambda kept: kept[0]),
    "dict": (lambda x: {"of": {"all": x}}, lambda kept: kept["of"]["all"]),
    "ordered dict": (lambda x: OrderedDict(a=x), lambda kept: kept["a"]),
    "default dict": (lambda x: defaultdict(list, {1: [x]}), lambda kept: kept[1][0]),
    "named tuple": (lambda x: Named(x, "word"), lambda kept: kept.features),
    "frozen dataclass": (Frozen, lambda kept: kept.features),
    "slots": (Slotted, lambda kept: kept.hidden()),
    "further slots": (SlottedFurther, lambda kept: kept.more[0]),
    "deque": (lambda x: deque([x], maxlen=2), lambda kept: kept[0]),
    "set": (lambda x: {x, 5}, lambda kept: next(part for part in kept if isinstance(part, th.Tensor))),
    "frozen set": (lambda x: frozenset([x]), lambda kept: next(iter(kept))),
    "partial function": (lambda x: functools.partial(th.add, x, alpha=2), lambda kept: kept.args[0]),
    "object in an object": (lambda x: SimpleNamespace(inner=[SimpleNamespace(x=x)]), lambda kept: kept.inner[0].x),
}


@pytest.mark.parametrize("name", KEPT)
def test_policy_can_be_copied_whatever_a_tensor_is_kept_in(name: str) -> None:
    """The value and the kind of thing around it stay; the graph, and with it the batch that made it, goes."""
    keep, get = KEPT[name]
    policy: Any = small_model().policy
    value = policy.action_net.weight.sum() * th.ones(2)
    policy.kept = keep(value)
    kind, number = type(policy.kept), value.detach().clone()
    with pytest.raises(RuntimeError, match="graph"):
        copy.deepcopy(policy)
    drop_graphs(policy)
    assert graphs_of(policy) == [] and type(policy.kept) is kind
    assert th.equal(get(policy.kept), number)
    assert th.equal(get(copy.deepcopy(policy).kept), number)


def test_what_a_policy_refers_to_and_is_no_part_of_it_is_left_alone() -> None:
    """The model, its environment, and a network of the user's that is trained elsewhere."""
    model = small_model()
    policy: Any = model.policy
    policy.owner, policy.env = model, model.env
    holder: Any = model
    holder.loss = (next(policy.parameters()) * 2).sum()
    holder.env.note = holder.loss
    drop_graphs(policy)
    assert holder.loss.grad_fn is not None and holder.env.note is holder.loss


def test_things_that_refer_to_each_other_come_to_an_end() -> None:
    """Two names of one tensor stay two names of one tensor."""
    policy: Any = small_model().policy
    policy.ring = [(policy.action_net.weight * 2).sum()]
    policy.ring.append(policy.ring)
    policy.again = policy.ring[0]
    drop_graphs(policy)
    assert policy.ring[1] is policy.ring and policy.again is policy.ring[0] and policy.again.grad_fn is None


def test_drop_graphs_keeps_what_has_none() -> None:
    """Objects stay themselves, values stay equal, parameters stay parameters."""
    policy = small_model(policy_kwargs={"features_extractor_class": Remembering}).policy
    extractor: Any = policy.features_extractor
    features = extractor(th.ones(2, 3))
    assert features.grad_fn is not None and len(graphs_of(policy)) > 0
    before, last, notes = list(policy.parameters()), extractor.last, extractor.notes
    kept = notes["kept"]
    drop_graphs(policy)
    assert graphs_of(policy) == []
    assert th.equal(extractor.last, last) and extractor.notes is notes and notes["kept"] is kept
    assert notes["all"][1][1] == "two" and th.equal(notes["all"][1][0], 2 * last)
    assert all(p is q for p, q in zip(before, policy.parameters(), strict=True))
    assert "seen" in dict(policy.features_extractor.named_buffers())
    assert isinstance(policy.action_net, nn.Module)


@pytest.mark.parametrize("fast", [True, False])
def test_weights_that_are_tied_stay_tied(fast: bool) -> None:
    """A view of a parameter that the user has built into the network is trained through as before."""

    class Tied(Remembering):
        def __init__(self, observation_space: Any):
            super().__init__(observation_space)
            self.back = self.layer.weight.t()

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return super().forward(observations @ self.back.t().t() @ self.back.t())

    model = small_model(policy_kwargs={"features_extractor_class": Tied}, fast=fast)
    extractor: Any = model.policy.features_extractor
    tied = extractor.back
    model.learn(128)
    assert extractor.back is tied and tied.requires_grad and tied._base is extractor.layer.weight
    assert [id(view) for view in views_of_parameters(model.policy)] == [id(tied)]
    assert extractor.last.grad_fn is None
    model.learn(64)  # and is still what the next update can go back through
