"""How much memory an update needs beyond the rollout that it learns from."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

CAN_MEASURE = Path("/proc/self/clear_refs").exists()


def _status_bytes(field: str) -> int:
    """Return a size from Linux's account of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _measure(answer: Any, make_model: Callable[..., OnPolicyAlgorithm], *args: Any) -> None:
    th.set_num_threads(1)
    model: Any = make_model(*args)
    train = model.train

    def train_and_measure() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status_bytes("VmRSS")
        train()
        answer.put(_status_bytes("VmHWM") - before)

    model.train = train_and_measure
    model.learn(model.n_steps * model.n_envs)


def peak_above_rollout(make_model: Callable[..., OnPolicyAlgorithm], *args: Any) -> int:
    """
    Return by how many bytes one update raises the memory of a fresh process that has collected its rollout.

    :param make_model: a function of a module, called in that process
    :param args: what it is called with
    :raises RuntimeError: if the process fails. Without ``CAN_MEASURE``, which is to say without Linux, it does
    """
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_measure, args=(answer, make_model, *args))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"measuring the memory of an update ended with exit code {process.exitcode}")
    peak: int = answer.get()
    return peak
