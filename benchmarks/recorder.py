"""
What ``TrustRegionRecorder`` costs, as a share of training time.

``python -m benchmarks.recorder`` trains with one and adds up the time that passes inside its calls; that of ``on_step``, too
short to be timed one by one, is measured in a loop of its own. A difference of two whole runs would drown in their noise.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import sb3_contrib
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO
from sb3_trpo.inspect import TrustRegionRecorder

OF_OURS = (("CartPole-v1", 1, 2048), ("Pendulum-v1", 1, 2048), ("HalfCheetah-v5", 1, 2048), ("HalfCheetah-v5", 8, 256))
OF_OTHERS = (("CartPole-v1", 1, 2048), ("HalfCheetah-v5", 1, 2048))
ALGORITHMS: dict[str, tuple[Any, tuple[tuple[str, int, int], ...]]] = {
    "TRPO": (TRPO, OF_OURS),
    "PPO": (PPO, OF_OTHERS),
    "A2C": (A2C, OF_OTHERS),
    "sb3_contrib.TRPO": (sb3_contrib.TRPO, OF_OTHERS),
    "RecurrentPPO": (sb3_contrib.RecurrentPPO, (("CartPole-v1", 1, 2048),)),
}
HOOKS = ("on_training_start", "on_rollout_start", "on_rollout_end", "on_training_end")


class Stopwatch:
    """Adds up the time that calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds += time.perf_counter() - start

        return wrapper


def share_of_training(algorithm: Any, env_id: str, n_envs: int, n_steps: int, n_updates: int) -> tuple[float, float]:
    """Return seconds inside the recorder and seconds in all, for a run."""
    policy = "MlpLstmPolicy" if algorithm is sb3_contrib.RecurrentPPO else "MlpPolicy"
    model = algorithm(policy, make_vec_env(env_id, n_envs=n_envs, seed=0), n_steps=n_steps, seed=0, device="cpu")
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        recorder = TrustRegionRecorder(folder)
        for hook in HOOKS:
            setattr(recorder, hook, watch.around(getattr(recorder, hook)))
        start = time.perf_counter()
        model.learn(n_updates * n_envs * n_steps, callback=recorder)
        total = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(n_updates * n_steps):
            recorder.on_step()
        watch.seconds += time.perf_counter() - start
    return watch.seconds, total


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20, help="updates of each run")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), help="which to measure")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    per_update = [f"{what} [ms per update]" for what in ("recorder", "training")]
    table = Table("algorithm", "environment", "environments", "steps", *per_update, "share")
    for name in arguments.algorithms:
        algorithm, cases = ALGORITHMS[name]
        for env_id, n_envs, n_steps in cases:
            recorder, total = share_of_training(algorithm, env_id, n_envs, n_steps, arguments.updates)
            milliseconds = (f"{1000 * seconds / arguments.updates:,.2f}" for seconds in (recorder, total))
            table.add_row(name, env_id, str(n_envs), str(n_envs * n_steps), *milliseconds, f"{recorder / total:.2%}")
    Console().print(table)


if __name__ == "__main__":
    main()
