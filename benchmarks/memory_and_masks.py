"""
Learning with a memory and with masks: ours beside RecurrentPPO and MaskablePPO.

``python -m benchmarks.memory_and_masks --seeds 0-4`` trains every algorithm on every task, and puts a row for each run into
``results/memory_and_masks/runs.csv``. What is there already is not run again, so it may be stopped at any time.
From the rows it writes the tables that the pages of the algorithms show. ``--tasks`` without a task only writes them.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import csv
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo import MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.maskable_recurrent import evaluate_policy as evaluate_with_masks

RESULTS = Path(__file__).parent / "results" / "memory_and_masks"
FIELDS = ["task", "algorithm", "seed", "timesteps", "eval_mean", "eval_std", "cpu_seconds"]
N_EVAL_EPISODES = 20


class ShownBefore(gym.Env):
    """
    Take what was shown one step ago, 40 times: nobody does who forgets it.

    :param masked: whether each of the other actions is impossible half of the time
    """

    observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(4)

    def __init__(self, masked: bool = False):
        self.masked = masked
        self.shown = 0

    def _show(self) -> np.ndarray:
        self.before, self.shown = self.shown, int(self.np_random.integers(4))
        self.masks = self.np_random.random(4) < (0.5 if self.masked else 1.0)
        self.masks[self.before] = True
        return np.eye(4, dtype=np.float32)[self.shown]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps, self.shown = 0, 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.before)
        self.n_steps += 1
        return self._show(), reward, False, self.n_steps == 40, {}

    def action_masks(self) -> np.ndarray:
        return self.masks


class Scheduling(gym.Env):
    """
    Job-shop scheduling: fifteen jobs on fifteen machines, Taillard's first instance, from the package ``jssenv``.

    An action starts a job's next operation, or waits. What it costs is the time that machines idle; the ``makespan``, in the
    last info of an episode, is how long everything takes, and 1,231 the shortest that there is.
    """

    def __init__(self) -> None:
        from JSSEnv.envs.jss_env import JssEnv  # pip install jssenv; nothing else of the benchmarks needs it

        self.shop = JssEnv({"instance_path": Path(inspect.getfile(JssEnv)).parent / "instances" / "ta01"})
        self.action_space = self.shop.action_space
        self.observation_space = spaces.Box(0.0, 1.0, (self.shop.jobs * 7,), np.float32)

    def _observed(self, state: dict[str, np.ndarray]) -> np.ndarray:
        return state["real_obs"].flatten().astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observed(self.shop.reset()), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        state, reward, terminated, _, _ = self.shop.step(int(action))
        return (
            self._observed(state),
            float(reward),
            terminated,
            False,
            {"makespan": self.shop.last_time_step} if terminated else {},
        )

    def action_masks(self) -> np.ndarray:
        return self.shop.get_legal_actions()


class Task(NamedTuple):
    """
    What is learned.

    :param env: makes an environment
    :param n_envs: number of them
    :param timesteps: number of steps
    :param best: the largest return that there is
    :param algorithms: maker of a model by name, given the environments and a seed
    :param masks: whether the environment has masks
    """

    env: Callable[[], gym.Env]
    n_envs: int
    timesteps: int
    best: int
    algorithms: dict[str, Callable[[VecEnv, int], Any]]
    masks: bool = False


def of(cls: Any, policy: str, **arguments: Any) -> Callable[[VecEnv, int], Any]:
    """Return what makes a model of a class."""
    return lambda env, seed: cls(policy, env, seed=seed, device="cpu", **arguments)


SMALL: dict[str, Any] = {"policy_kwargs": {"lstm_hidden_size": 16}, "n_steps": 128}
# Chosen on seeds 100 and 101; those of PPO are sb3-contrib's own, in its tests
EIGHTY: dict[str, Any] = {"n_steps": 128, "target_kl": 0.05, "cg_damping": 0.003, "n_critic_updates": 20}
TASKS = {
    "what was shown before, some actions masked": Task(
        lambda: ShownBefore(masked=True),
        8,
        20_000,
        40,
        {
            "MaskableRecurrentTRPO": of(MaskableRecurrentTRPO, "MlpLstmPolicy", target_kl=0.05, **SMALL),
            "MaskableTRPO, no memory": of(MaskableTRPO, "MlpPolicy", target_kl=0.05, n_steps=128),
            "MaskablePPO, no memory": of(MaskablePPO, "MlpPolicy", n_steps=128, batch_size=128),
        },
        masks=True,
    ),
    "what was shown before": Task(
        ShownBefore,
        8,
        20_000,
        40,
        {
            "RecurrentTRPO": of(RecurrentTRPO, "MlpLstmPolicy", target_kl=0.05, **SMALL),
            "RecurrentPPO": of(RecurrentPPO, "MlpLstmPolicy", batch_size=128, **SMALL),
        },
    ),
    "one of 80 actions, 60 masked": Task(
        lambda: InvalidActionEnvDiscrete(dim=80, n_invalid_actions=60),
        1,
        5_000,
        100,
        {
            "MaskableTRPO": of(MaskableTRPO, "MlpPolicy", gamma=0.4, **EIGHTY),
            "MaskablePPO": of(MaskablePPO, "MlpPolicy", gamma=0.4, n_steps=512),
        },
        masks=True,
    ),
    "scheduling, 15 jobs and 15 machines": Task(
        Scheduling,
        8,
        100_000,
        49,
        {
            "MaskableTRPO": of(MaskableTRPO, "MlpPolicy", n_steps=256),
            "MaskablePPO": of(MaskablePPO, "MlpPolicy", n_steps=256),
        },
        masks=True,
    ),
}


def train(name: str, algorithm: str, seed: int) -> dict[str, Any]:
    """Train and evaluate; return the row."""
    task, start = TASKS[name], time.process_time()
    envs: Any = task.env
    model = task.algorithms[algorithm](make_vec_env(envs, task.n_envs, seed=seed), seed)
    model.learn(task.timesteps)
    seconds = time.process_time() - start
    test_env = make_vec_env(envs, 1, seed=1000 + seed)
    evaluate: Any = evaluate_with_masks if task.masks else evaluate_policy
    returns, _ = evaluate(model, test_env, N_EVAL_EPISODES, return_episode_rewards=True)
    row = {"task": name, "algorithm": algorithm, "seed": seed, "timesteps": model.num_timesteps}
    return row | {"eval_mean": np.mean(returns), "eval_std": np.std(returns), "cpu_seconds": round(seconds, 1)}


def recorded(path: Path) -> list[dict[str, str]]:
    """Return the rows on record."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def tables(rows: list[dict[str, str]]) -> str:
    """Return a table in Markdown for each task, between comments by which the pages of the algorithms find it."""
    lines = ["# Learning with a memory and masks", ""]
    for name, task in TASKS.items():
        lines += [f"## {name[0].upper()}{name[1:]}", "", f"<!-- {name} -->", ""]
        lines += [f"| algorithm | return, of {task.best} (seeds) | worst seed | steps | CPU s |", "|---|---|---|---|---|"]
        for algorithm in task.algorithms:
            runs = [row for row in rows if (row["task"], row["algorithm"]) == (name, algorithm)]
            lines.append(f"| {algorithm} | {numbers_of(runs) if runs else 'not run yet | | |'} |")
        lines += ["", "<!-- end -->", ""]
    return "\n".join(lines[:-1]) + "\n"


def numbers_of(runs: list[dict[str, str]]) -> str:
    """Return the cells of an algorithm: mean over seeds and its error, worst seed, steps, seconds of computing."""
    means = [float(run["eval_mean"]) for run in runs]
    error = f" ± {np.std(means, ddof=1) / len(means) ** 0.5:.1f}" if len(means) > 1 else ""
    steps = max(int(run["timesteps"]) for run in runs)
    seconds = np.mean([float(run["cpu_seconds"]) for run in runs])
    return f"{np.mean(means):.1f}{error} ({len(runs)}) | {min(means):.1f} | {steps:,} | {seconds:.0f}"


def main() -> None:
    """Run what is not on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-4", help="first and last")
    parser.add_argument("--tasks", nargs="*", default=[*TASKS], choices=[*TASKS])
    parser.add_argument("--folder", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    th.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "runs.csv"
    for seed in range(int(first), int(last or first) + 1):
        for name in arguments.tasks:
            for algorithm in TASKS[name].algorithms:
                done = {(row["task"], row["algorithm"], row["seed"]) for row in recorded(path)}
                if (name, algorithm, str(seed)) in done:
                    continue
                row = train(name, algorithm, seed)
                is_new = not path.exists()
                with open(path, "a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    if is_new:
                        writer.writeheader()
                    writer.writerow(row)
                print(row, flush=True)
                (arguments.folder / "tables.md").write_text(tables(recorded(path)), encoding="utf-8")
    (arguments.folder / "tables.md").write_text(tables(recorded(path)), encoding="utf-8")


if __name__ == "__main__":
    main()
