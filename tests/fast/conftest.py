"""Float64 throughout, where a test asks for it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch as th
from stable_baselines3.common import policies as sb3_policies
from stable_baselines3.common.preprocessing import preprocess_obs

from sb3_trpo.fast import network


@pytest.fixture(autouse=True)
def double_stays_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SB3 casts every observation to float32: what a float64 policy is given is cast back."""

    def preprocess(observations: Any, space: Any, normalize_images: bool = True) -> Any:
        processed: Any = preprocess_obs(observations, space, normalize_images=normalize_images)
        if th.get_default_dtype() is not th.float64:
            return processed
        return {k: v.double() for k, v in processed.items()} if isinstance(processed, dict) else processed.double()

    for module in (sb3_policies, network):
        monkeypatch.setattr(module, "preprocess_obs", preprocess)
    before = th.get_default_dtype()
    yield
    th.set_default_dtype(before)
