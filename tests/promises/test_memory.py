"""Memory that an update needs beyond the rollout does not grow with the rollout."""

import numpy as np
import pytest
from gymnasium import spaces

from benchmarks.memory import CAN_MEASURE, peak_above_rollout
from sb3_trpo import TRPO
from tests.small_models import make_env

MIB = 2**20
IMAGES = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def make_model(n_transitions: int) -> TRPO:
    env = make_env(IMAGES, spaces.Discrete(6), 8)
    return TRPO("CnnPolicy", env, n_steps=n_transitions // 8, cg_max_steps=2, n_critic_updates=1, seed=0, device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(not CAN_MEASURE, reason="reads Linux's account of a process")
def test_update_of_a_large_rollout_stays_within_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """8,192 images through a convolution need what 2,048 of them do."""
    # glibc keeps freed blocks below a threshold that grows, and then lets the same update raise the memory by 240 to 740 MiB.
    # Fixed thresholds, which a new process reads as it starts, leave what the update needs
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, str(MIB))
    small, large = (peak_above_rollout(make_model, n) for n in (2_048, 8_192))
    assert small < 500 * MIB
    assert large < 1.2 * small, f"{small / MIB:.0f} and {large / MIB:.0f} MiB"
