"""
Time of a step in each kind of vectorised environment, relative to SB3's ``DummyVecEnv``.

``python -m benchmarks.vector_envs`` takes all kinds in turn, block after block of steps with random actions in one process,
and prints the median microseconds of an environment's step and the median of the ratios within a round, and what the adapter
adds to a vector environment; then what the normalisation of a step costs. EnvPool's rows are left out where it is not
installed. On a busy machine ``--cpu`` counts the seconds that the process computes, and leaves out what has processes of its
own. :mod:`benchmarks.speed` trains with them.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from benchmarks.cheap import Cheap
from sb3_trpo.vec_env import FastVecNormalize, LeanVecEnv, PoolVecEnv, make_vector_env

CASES = [("HalfCheetah-v5", 8), ("HalfCheetah-v5", 32), ("CartPole-v1", 8), ("CartPole-v1", 64)]
# More processes than this say nothing of a machine with few cores
MOST_PROCESSES = 8
ONE_THREAD = {"num_threads": 1}


def plain(env_id: str, n_envs: int, cls: Any = DummyVecEnv, **kwargs: Any) -> VecEnv:
    """Make environments with a Monitor each, without pictures."""
    return cls([lambda: Monitor(gym.make(env_id))] * n_envs, **kwargs)


def kinds(env_id: str, n_envs: int, workers: int) -> dict[str, Callable[[], Any]]:
    """List what to measure."""
    found: dict[str, Callable[[], Any]] = {
        "DummyVecEnv": lambda: plain(env_id, n_envs),
        "LeanVecEnv": lambda: plain(env_id, n_envs, LeanVecEnv),
        "SyncVectorEnv": lambda: make_vector_env(env_id, n_envs, backend="sync"),
    }
    if workers:
        found[f"PoolVecEnv, {workers} workers"] = lambda: plain(env_id, n_envs, PoolVecEnv, n_workers=workers)
    if workers and n_envs <= MOST_PROCESSES:
        found["AsyncVectorEnv"] = lambda: make_vector_env(env_id, n_envs, backend="async")
        found["SubprocVecEnv"] = lambda: plain(env_id, n_envs, SubprocVecEnv)
    if gym.spec(env_id).vector_entry_point is not None:
        found["Gymnasium's own, bare"] = lambda: gym.make_vec(env_id, n_envs, "vector_entry_point")
        found["Gymnasium's own"] = lambda: make_vector_env(env_id, n_envs, backend="vector")
    if importlib.util.find_spec("envpool"):
        envpool: Any = importlib.import_module("envpool")
        found["EnvPool, bare"] = lambda: envpool.make(env_id, env_type="gymnasium", num_envs=n_envs, **ONE_THREAD)
        found["EnvPool"] = lambda: make_vector_env(env_id, n_envs, backend="envpool", vector_kwargs=ONE_THREAD)
    return found


def seconds(env: Any, actions: np.ndarray, clock: Callable[[], float]) -> float:
    """Time a block of steps."""
    start = clock()
    for action in actions:
        env.step(action)
    return (clock() - start) / len(actions)


def interleaved(envs: dict[str, Any], actions: np.ndarray, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Time a block of each in turn, after one that does not count."""
    clock = time.process_time if arguments.cpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in envs}
    for env in envs.values():
        env.reset()
        seconds(env, actions, clock)
    for _ in range(arguments.rounds):
        for name, env in envs.items():
            times[name].append(seconds(env, actions, clock))
    return times


def compare(env_id: str, n_envs: int, arguments: argparse.Namespace) -> None:
    """Print a table of one task."""
    envs = {name: make() for name, make in kinds(env_id, n_envs, 0 if arguments.cpu else arguments.workers).items()}
    space: Any = envs["DummyVecEnv"].action_space
    space.seed(0)
    n_steps = max(8, arguments.steps // n_envs)
    actions = np.array([[space.sample() for _ in range(n_envs)] for _ in range(n_steps)])
    times = interleaved(envs, actions, arguments)
    print(f"\n{env_id}, {n_envs} environments\n\n| | µs per environment | times DummyVecEnv's speed |\n|---|---|---|")
    for name, values in times.items():
        ratio = median(theirs / ours for theirs, ours in zip(times["DummyVecEnv"], values, strict=True))
        print(f"| {name} | {1e6 * median(values) / n_envs:.1f} | {ratio:.2f} |")
    for name in [name for name in times if f"{name}, bare" in times]:
        ratio = median(ours / bare for ours, bare in zip(times[name], times[f"{name}, bare"], strict=True))
        print(f"\nThe adapter adds to a step of {name}, bare: {100 * (ratio - 1):.1f} %")
    for env in envs.values():
        env.close()


def compare_normalization(n_envs: int, arguments: argparse.Namespace) -> None:
    """Print what normalising a step costs."""
    envs = {
        "none": Cheap(n_envs),
        "VecNormalize": VecNormalize(Cheap(n_envs)),
        "FastVecNormalize": FastVecNormalize(Cheap(n_envs)),
    }
    times = interleaved(envs, np.zeros((max(8, arguments.steps // n_envs), n_envs), int), arguments)
    theirs, ours = (
        [value - base for value, base in zip(times[name], times["none"], strict=True)]
        for name in ("VecNormalize", "FastVecNormalize")
    )
    ratio = median(our / their for our, their in zip(ours, theirs, strict=True))
    print(f"| {n_envs} | {1e3 * median(theirs):.2f} | {1e3 * median(ours):.2f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4096, help="steps of environments in a block")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2, help="processes of PoolVecEnv")
    parser.add_argument("--cpu", action="store_true", help="seconds of computing instead of seconds")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, medians of {arguments.rounds} rounds")
    for env_id, n_envs in CASES:
        compare(env_id, n_envs, arguments)
    print("\nms per step that normalisation adds\n\n| environments | VecNormalize | FastVecNormalize | ratio |")
    print("|---|---|---|---|")
    for n_envs in (64, 512, 4096):
        compare_normalization(n_envs, arguments)


if __name__ == "__main__":
    main()
