"""Memory that an update needs beyond the rollout does not grow with the rollout."""

import multiprocessing
import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_trpo import TRPO
from tests.environments import make_env

MIB = 2**20
IMAGES = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def _status_bytes(field: str) -> int:
    """Return a size from Linux's account of this process."""
    (line,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _measure(answer: Any, policy: str, observations: spaces.Space, n_transitions: int) -> None:
    th.set_num_threads(1)
    env = make_env(observations, spaces.Discrete(6), 8)
    model = TRPO(policy, env, n_steps=n_transitions // 8, cg_max_steps=2, n_critic_updates=1, seed=0, device="cpu")
    train = model.train

    def train_and_measure() -> None:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status_bytes("VmRSS")
        train()
        answer.put(_status_bytes("VmHWM") - before)

    model.train = train_and_measure  # type: ignore[method-assign]
    model.learn(n_transitions)


def peak_above_rollout(policy: str, observations: spaces.Space, n_transitions: int) -> int:
    """Return by how many bytes an update raises the memory of a fresh process that has collected its rollout."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_measure, args=(answer, policy, observations, n_transitions))
    process.start()
    process.join()
    assert process.exitcode == 0
    return int(answer.get())


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of a process")
def test_update_of_a_large_rollout_stays_within_its_memory() -> None:
    """8,192 images through a convolution within 1.5 GB, and hardly more than 2,048 of them."""
    policy, observations = "CnnPolicy", IMAGES
    small, large = (peak_above_rollout(policy, observations, n) for n in (2_048, 8_192))
    assert large < 1_500 * MIB
    assert large < 1.5 * small + 150 * MIB, f"{small / MIB:.0f} and {large / MIB:.0f} MiB"
