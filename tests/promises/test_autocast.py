"""Inside of torch.autocast a model learns what it learns outside: no KL is measured in half precision."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo.inspect import inspect_model
from tests.promises.test_threads import IN_TORCH, learned
from tests.small_models import BOX, changed, policy_state, small_model

LEARNERS: dict[str, dict[str, Any]] = {
    "fast": {"space": BOX},
    "with a memory, plain": {**IN_TORCH["with a memory"], "fast": False},
    **IN_TORCH,
}


def product_dtype() -> th.dtype:
    """What a product of single precision is in here."""
    return (th.ones(1, 1) @ th.ones(1, 1)).dtype


@pytest.mark.parametrize("dtype", [th.bfloat16, th.float16], ids=str)
@pytest.mark.parametrize("name", LEARNERS)
def test_autocast_around_learn_changes_nothing(name: str, dtype: th.dtype) -> None:
    """Bit for bit, and it is on again afterwards."""
    alone = learned(0, **LEARNERS[name])
    with th.autocast("cpu", dtype=dtype):
        model = learned(0, **LEARNERS[name])
        assert product_dtype() is dtype
    assert not changed(policy_state(alone), policy_state(model))


def test_autocast_around_an_update_and_its_picture_changes_nothing() -> None:
    alone, model = small_model().learn(64), small_model().learn(64)
    (expected,) = inspect_model(alone).slices
    with th.autocast("cpu", dtype=th.bfloat16):
        (drawn,) = inspect_model(model).slices
        model.train()
    alone.train()
    assert np.array_equal(drawn.kl, expected.kl) and np.array_equal(drawn.gain, expected.gain)
    assert not changed(policy_state(alone), policy_state(model))


class OwnAutocast(FlattenExtractor):
    """Computes in half precision because it asks for it itself."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        with th.autocast("cpu", dtype=th.bfloat16):
            assert product_dtype() is th.bfloat16
            return super().forward(observations)


def test_network_that_asks_for_autocast_itself_gets_it() -> None:
    model = small_model(policy_kwargs={"features_extractor_class": OwnAutocast}).learn(64)
    assert model.last_update is not None and model.last_update.step.accepted
