"""
Time of a step in each kind of vectorised environment, relative to SB3's ``DummyVecEnv``.

``python -m benchmarks.vector_envs`` takes all kinds in turn, block after block of steps with random actions in one process,
and prints the median microseconds of an environment's step and the median of the ratios within a round; then what the
normalisation of a step costs. EnvPool's rows are left out where it is not installed. On a busy machine ``--cpu`` counts the
seconds that the process computes, and leaves out what has processes of its own.

``--training`` trains instead, this TRPO and sb3_contrib's in turn, and prints seconds of collection and update: with EnvPool
and with ``DummyVecEnv``, and with environments that cost nothing.
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
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

import sb3_trpo
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
    for env in envs.values():
        env.close()


class Cheap(VecEnv):
    """Environments that cost nothing: every step is the same noise, and one of twenty ends."""

    def __init__(self, n_envs: int, action_space: spaces.Space | None = None):
        self.rows = np.random.default_rng(0).normal(size=(n_envs, 17)).astype(np.float32)
        self.dones = np.arange(n_envs) % 20 == 0
        super().__init__(n_envs, spaces.Box(-np.inf, np.inf, (17,)), action_space or spaces.Discrete(2))

    def reset(self) -> Any:
        return self.rows.copy()

    def step_async(self, actions: np.ndarray) -> None:
        pass

    def step_wait(self) -> Any:
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(self.dones):
            infos[index]["terminal_observation"] = self.rows[index]
        return self.rows.copy(), self.rows[:, 0].copy(), self.dones.copy(), infos

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    set_attr = env_method = env_is_wrapped = close = lambda self, *args, **kwargs: []  # type: ignore[assignment]


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


class Trained:
    """A model, and the seconds of each of its rollouts and updates."""

    def __init__(self, cls: Any, env: VecEnv, n_steps: int, clock: Callable[[], float]):
        self.clock = clock
        self.model = cls("MlpPolicy", env, n_steps=n_steps, seed=0, device="cpu")
        self.collect: list[float] = []
        self.train: list[float] = []
        self.model.collect_rollouts = self._timed(self.model.collect_rollouts, self.collect)
        self.model.train = self._timed(self.model.train, self.train)

    def _timed(self, function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            result = function(*args, **kwargs)
            seconds.append(self.clock() - start)
            return result

        return timed

    def update(self) -> None:
        """Collect a rollout and learn from it."""
        self.model.learn(self.model.n_steps * self.model.n_envs, reset_num_timesteps=False)

    def medians(self) -> tuple[float, float, float]:
        """Return those of collection, of the update, and of both together; the first of each does not count."""
        both = [a + b for a, b in zip(self.collect, self.train, strict=True)]
        collect, train, together = (median(values[1:]) for values in (self.collect, self.train, both))
        return collect, train, together


def compare_training(title: str, contenders: dict[str, Trained], rounds: int, stepped: VecEnv | None = None) -> None:
    """Train all of them in turn, and print what they took and how many times quicker than the first one each is."""
    first, *_ = contenders.values()
    n_steps, alone = first.model.n_steps, []
    for _ in range(rounds + 1):
        for contender in contenders.values():
            contender.update()
        if stepped is not None:
            stepped.reset()
            actions = np.zeros((n_steps, stepped.num_envs, *(stepped.action_space.shape or ())), np.float32)
            alone.append(seconds(stepped, actions, first.clock) * n_steps)
    print(f"\n{title}\n\n| | collect, s | update, s | both, s | collection | both |\n|---|---|---|---|---|---|")
    base = first.medians()
    for name, contender in contenders.items():
        now = contender.medians()
        print(f"| {name} | {now[0]:.3f} | {now[1]:.3f} | {now[2]:.3f} | {base[0] / now[0]:.2f} | {base[2] / now[2]:.2f} |")
    if alone:
        print(f"| stepping EnvPool alone | {median(alone[1:]):.3f} | | | | |")


def training(arguments: argparse.Namespace) -> None:
    """Compare training with EnvPool and ``DummyVecEnv``, then with environments that cost nothing."""
    th.set_num_threads(1)
    clock = time.process_time if arguments.cpu else time.perf_counter
    algorithms: dict[str, Any] = {"sb3_contrib": sb3_contrib.TRPO, "sb3_trpo": sb3_trpo.TRPO}

    def pool(n_envs: int) -> VecEnv:
        return make_vector_env("HalfCheetah-v5", n_envs, seed=0, backend="envpool", vector_kwargs=ONE_THREAD)

    kinds: dict[str, Callable[[int], VecEnv]] = {"DummyVecEnv": lambda n_envs: plain("HalfCheetah-v5", n_envs)}
    if importlib.util.find_spec("envpool"):
        kinds["EnvPool"] = pool
    for n_envs, n_steps in ((8, 256), (64, 256)):
        contenders = {
            f"{name}, {kind}": Trained(cls, make(n_envs), n_steps, clock)
            for kind, make in kinds.items()
            for name, cls in algorithms.items()
        }
        stepped = pool(n_envs) if "EnvPool" in kinds else None
        compare_training(
            f"HalfCheetah-v5, {n_envs} environments, {n_envs * n_steps:,} steps", contenders, arguments.rounds, stepped
        )
    box = spaces.Box(-1.0, 1.0, (6,))
    for n_envs, n_steps in ((64, 128), (512, 32), (4096, 16)):
        contenders = {name: Trained(cls, Cheap(n_envs, box), n_steps, clock) for name, cls in algorithms.items()}
        title = f"environments that cost nothing, {n_envs:,}, {n_envs * n_steps:,} steps"
        compare_training(title, contenders, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4096, help="steps of environments in a block")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2, help="processes of PoolVecEnv")
    parser.add_argument("--cpu", action="store_true", help="seconds of computing instead of seconds")
    parser.add_argument("--training", action="store_true", help="train instead")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, medians of {arguments.rounds} rounds")
    if arguments.training:
        training(arguments)
        return
    for env_id, n_envs in CASES:
        compare(env_id, n_envs, arguments)
    print("\nms per step that normalisation adds\n\n| environments | VecNormalize | FastVecNormalize | ratio |")
    print("|---|---|---|---|")
    for n_envs in (64, 512, 4096):
        compare_normalization(n_envs, arguments)


if __name__ == "__main__":
    main()
