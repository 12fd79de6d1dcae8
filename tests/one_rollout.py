"""Models with one and the same rollout, and where an update takes them by one way or the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.trust_region import flatten
from tests.cases import seeded
from tests.oracles import relative_error
from tests.small_models import DICT, DISCRETE, IMAGE, MULTI_BINARY, Case, make_env, small_model


def rolled_out(make: Callable[..., TRPO] = small_model, **arguments: Any) -> TRPO:
    """Return a model with one and the same rollout, collected in SB3's way; 64 transitions, 3 passes, 24 + 24 + 16 of them."""
    arguments = {"n_critic_updates": 3, "batch_size": 24, "learning_rate": 1e-2, **arguments}
    if make is small_model:
        arguments.setdefault("env", make_env(n_envs=2))
    model = make(**arguments, fast=False)
    assert model.env is not None
    with seeded(0):
        _, callback = model._setup_learn(10**6)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def check_update(model: TRPO, *, fast: bool) -> None:
    """Train on the rollout, with the random choices of one and the same seed."""
    model.fast = fast
    model.start = flatten([parameter.detach().clone() for parameter in model.policy.parameters()])  # type: ignore[attr-defined]
    np.random.seed(0)
    model.train()
    assert model.last_update is not None and model.last_update.step.accepted


def check_same_steps(ours: TRPO, theirs: TRPO) -> None:
    """Compare where two updates went, relative to how far, for actor and critic apart."""
    names = [name for name, _ in ours.policy.named_parameters()]
    assert th.equal(ours.start, theirs.start)  # type: ignore[attr-defined]
    starts = ours.start.split([parameter.numel() for parameter in ours.policy.parameters()])  # type: ignore[attr-defined]
    for of_critic in (False, True):
        steps = [
            th.cat(
                [
                    parameter.detach().flatten() - start
                    for name, parameter, start in zip(names, model.policy.parameters(), starts, strict=True)
                    if ("value_net" in name or name.startswith("vf_")) == of_critic
                ]
            )
            for model in (ours, theirs)
        ]
        assert steps[1].norm() > 1e-3
        assert relative_error(*steps) < 1e-4


UPDATES = {
    "box": partial(rolled_out),
    "box, normalised advantages off": partial(rolled_out, normalize_advantage=False),
    # Damped: the conjugate gradients of this ill-conditioned one would enlarge the rounding a hundredfold
    "relu": partial(rolled_out, policy_kwargs={"activation_fn": nn.ReLU}, cg_damping=1.0),
    "discrete": partial(rolled_out, Case(action_space=DISCRETE, n_envs=2).model),
    "multi binary": partial(rolled_out, Case(action_space=MULTI_BINARY, n_envs=2).model),
    "multi discrete": partial(rolled_out, Case(action_space=spaces.MultiDiscrete([3, 2, 4])).model),
    "image": partial(rolled_out, Case("CnnPolicy", IMAGE, DISCRETE).model, n_critic_updates=1, learning_rate=1e-4),
    "dict": partial(rolled_out, Case("MultiInputPolicy", DICT).model, n_critic_updates=1, learning_rate=1e-4),
    "thinned": partial(rolled_out, sub_sampling_factor=4),
}
