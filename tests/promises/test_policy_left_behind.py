"""The policy is left the same however an update ends: it can be copied, pickled and sent on, and no graph stays behind."""

import copy
import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import distributions as td

from sb3_trpo import TRPO
from sb3_trpo.inspect import TrustRegionRecorder, inspect_model
from sb3_trpo.objective import PolicyProblem
from tests.guards.remembering import Remembering, graphs_of
from tests.own_policies import OwnPolicy, halves, positive
from tests.small_models import BOX, DISCRETE, MULTI_DISCRETE, make_env, small_model


def squashed(z: th.Tensor) -> Any:
    mean, std = halves(z)
    return [td.TransformedDistribution(td.Independent(td.Normal(mean, positive(std)), 1), [td.TanhTransform(cache_size=1)])]


def gsde(**arguments: Any) -> TRPO:
    return small_model(use_sde=True, **arguments)


def remembering(**arguments: Any) -> TRPO:
    return small_model(policy_kwargs={"features_extractor_class": Remembering}, **arguments)


def own(**arguments: Any) -> TRPO:
    env = make_env(action_space=type(BOX)(-1.0, 1.0, (2,)))
    return small_model(policy=OwnPolicy, env=env, policy_kwargs={"build": squashed}, **arguments)


POLICIES: dict[str, Callable[..., TRPO]] = {
    "box": small_model,
    "discrete": lambda **arguments: small_model(env=make_env(action_space=DISCRETE), **arguments),
    "multi_discrete": lambda **arguments: small_model(env=make_env(action_space=MULTI_DISCRETE), **arguments),
    "gsde": gsde,
    "remembering": remembering,
    "own distribution": own,
}


def fail(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError


def nan_gradient(problem: PolicyProblem) -> Any:
    return 0.0, th.full((sum(p.numel() for p in problem.parameters),), th.nan)


def zero_gradient(problem: PolicyProblem) -> Any:
    return 0.0, th.zeros(sum(p.numel() for p in problem.parameters))


def negative_curvature(problem: PolicyProblem) -> Any:
    return lambda vector: -vector


# What is done to the update, and how it ends
ENDS: dict[str, tuple[dict[str, Any], str]] = {
    "accepted": ({}, "accepted"),
    "gradient_not_finite": ({"surrogate_gradient": nan_gradient}, "gradient_not_finite"),
    "gradient_zero": ({"surrogate_gradient": zero_gradient}, "gradient_zero"),
    "limit_zero": ({}, "limit_zero"),
    "curvature": ({"fisher_vector_product": negative_curvature}, "curvature_not_positive"),
    "line_search_failed": ({"evaluate": lambda problem: (-1.0, 0.0)}, "line_search_failed"),
    "rewards": ({}, "rewards_not_finite"),
    "error in the gradient": ({"surrogate_gradient": fail}, ""),
    "error in the product": ({"fisher_vector_product": fail}, ""),
    "error in the line search": ({"evaluate": fail}, ""),
    "error in the critic": ({"critic": fail}, ""),
    "critic undone": ({}, "accepted"),
}


def kinds_of(value: Any, depth: int = 0) -> Any:
    """Say what kind of thing is left: types all the way down, and whether a tensor has a graph."""
    if isinstance(value, th.Tensor):
        return "tensor" if value.grad_fn is None else "graph"
    if isinstance(value, list | tuple):
        return [kinds_of(part, depth + 1) for part in value]
    inside = value if isinstance(value, dict) else vars(value) if hasattr(value, "__dict__") and depth < 4 else {}
    return type(value).__name__, {k: kinds_of(v, depth + 1) for k, v in inside.items() if k not in ("probs", "build")}


def end_an_update(model: TRPO, end: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make one update that ends so; return its status, ``""`` after an exception."""
    replaced, _ = ENDS[end]
    for name, function in replaced.items():
        if name == "critic":
            monkeypatch.setattr(TRPO, "_fit_critic", function)
        else:
            monkeypatch.setattr(PolicyProblem, name, function)
    if end == "limit_zero":
        model.target_kl = lambda progress: 0.0
    if end == "rewards":
        model.rollout_buffer.rewards[0] = np.nan
    if end == "critic undone":
        model.learning_rate = 1e30
        model._setup_lr_schedule()
    try:
        model.train()
    except ZeroDivisionError:
        return ""
    finally:
        monkeypatch.undo()
    assert model.last_update is not None
    if end == "critic undone":
        assert model.last_update.critic is not None and model.last_update.critic.status == "undone"
    return model.last_update.step.status


@pytest.mark.parametrize("name, fast", [("box", False), *((name, i % 2 == 0) for i, name in enumerate(POLICIES))])
def test_policy_can_be_copied_however_an_update_ends(name: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep-copied, pickled, saved; and what is left on it is of the same kind each time."""
    model = POLICIES[name](fast=fast).learn(64)
    expected = kinds_of(model.policy.action_dist)
    for end, (_, status) in ENDS.items():
        assert end_an_update(model, end, monkeypatch) == status, end
        assert graphs_of(model.policy) == [], end
        assert kinds_of(model.policy.action_dist) == expected, end
        again = copy.deepcopy(model.policy)
        assert all(th.equal(p, q) for p, q in zip(again.parameters(), model.policy.parameters(), strict=True))
        if name != "own distribution":  # made of a function in a test
            pickle.loads(pickle.dumps(model.policy))
        th.save(model.policy.state_dict(), io.BytesIO())
        assert all(p.requires_grad and p.is_leaf for p in model.policy.parameters())
        model.target_kl, model.learning_rate = 0.01, 1e-3
        model._setup_lr_schedule()
        model.rollout_buffer.rewards[0] = 0.0


def test_policy_can_be_sent_to_another_process_after_a_refusal() -> None:
    """Torch refuses to send a tensor that has a graph."""
    model = small_model(target_kl=lambda progress: 0.0, n_critic_updates=0, fast=False).learn(64)
    assert model.last_update is not None and model.last_update.step.status == "limit_zero"
    sent = pickle.loads(ForkingPickler.dumps(model.policy))
    assert all(th.equal(p, q) for p, q in zip(sent.parameters(), model.policy.parameters(), strict=True))


@pytest.mark.usefixtures("coarse")
def test_what_inspects_leaves_no_graph(tmp_path: Any) -> None:
    """Neither the picture of an update, nor the recorder in training."""
    model = remembering()
    model.learn(64)
    for limit in (lambda progress: 0.0, 0.01):
        model.target_kl = limit
        inspect_model(model)
        assert graphs_of(model.policy) == []
    copies = []

    class Copying(TrustRegionRecorder):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            copies.append(copy.deepcopy(self.model.policy))

    model.learn(128, callback=Copying(tmp_path, pictures_every=1))
    assert len(copies) == 2


@pytest.mark.parametrize("arguments", [{}, {"use_sde": True, "sde_sample_freq": 4}], ids=["box", "gsde"])
def test_policy_can_be_copied_in_the_middle_of_a_rollout(arguments: dict[str, Any]) -> None:
    """By a callback, at every step of every rollout: a copy acts like the policy."""

    class Copies(BaseCallback):
        def _on_step(self) -> bool:
            assert isinstance(copy.deepcopy(self.model.policy), type(self.model.policy))
            return True

    small_model(**arguments).learn(128, Copies())
