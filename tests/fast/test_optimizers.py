"""Optimizers written out, step after step beside torch's own."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_trpo.fast.optimizers import WRITTEN_OUT
from tests.cases import normal

SETTINGS: list[tuple[type[th.optim.Optimizer], dict[str, Any]]] = [
    (th.optim.Adam, {}),
    (th.optim.Adam, {"betas": (0.5, 0.8), "eps": 1e-2}),
    (th.optim.AdamW, {}),
    (th.optim.AdamW, {"weight_decay": 0.5, "betas": (0.5, 0.8)}),
    (th.optim.RMSprop, {}),
    (th.optim.RMSprop, {"alpha": 0.7, "eps": 1e-2}),
]


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_steps_are_those_of_torch(kind: Any, settings: dict[str, Any]) -> None:
    """In float64: the parameters and everything that is remembered of them."""
    parameter = th.nn.Parameter(normal(7, seed=1).double())
    theirs = kind([parameter], lr=0.1, **settings)
    ours = WRITTEN_OUT[kind](theirs.param_groups[0])
    flat = parameter.detach().numpy().copy()
    memory = [np.zeros_like(flat) for _ in ours.MEMORY]
    for step in range(1, 12):
        parameter.grad = normal(7, seed=step).double()
        ours.step(flat, parameter.grad.numpy().copy(), memory, step)
        theirs.step()
        np.testing.assert_allclose(flat, parameter.detach().numpy(), rtol=1e-10, atol=1e-12)
        for name, vector in zip(ours.MEMORY, memory, strict=True):
            np.testing.assert_allclose(vector, theirs.state[parameter][name].numpy(), rtol=1e-10, atol=1e-14)
