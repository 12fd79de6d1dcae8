"""
Seconds per update of this TRPO, of sb3_contrib's and of SB3's PPO, phase by phase, side by side in one process.

``python -m benchmarks.speed`` runs every case with one thread and with the defaults of sb3_contrib's TRPO for all three,
update after update in turn, and writes a table, ``speed.csv`` and ``speed.png`` to ``benchmarks/results``. ``--device cuda``
runs them on a GPU and writes to ``benchmarks/results/cuda``. The host runs ahead of the GPU there: an update's time is exact,
and what its phases take is not.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import csv
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import sb3_contrib
import sb3_contrib.trpo.trpo
import torch as th
from gymnasium import spaces
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

import sb3_trpo
from benchmarks.memory import peak_above_rollout
from sb3_trpo.objective import PolicyProblem

contrib_module: Any = sb3_contrib.trpo.trpo

STEPPING = "env.step"
PHASES = ("collect", "gradient", "fisher", "cg", "line_search", "critic")


class Case(NamedTuple):
    """One row of the comparison: an environment and the size of the rollout."""

    name: str
    env_id: str
    n_envs: int
    n_steps: int
    rounds: int
    sub_sampling_factor: int = 1
    policy: str = "MlpPolicy"
    policy_update_only: bool = False
    n_critic_updates: int = 10


class RandomImages(gym.Env):
    """Frames of noise in the shape of four stacked Atari frames."""

    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._frame(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._frame(), float(self.np_random.normal()), False, False, {}

    def _frame(self) -> np.ndarray:
        return self.np_random.integers(0, 256, self.observation_space.shape, dtype=np.uint8)


CASES = (
    Case("CartPole-v1, 1 env", "CartPole-v1", 1, 2048, 7),
    Case("HalfCheetah-v5, 1 env", "HalfCheetah-v5", 1, 2048, 7),
    Case("HalfCheetah-v5, 8 envs", "HalfCheetah-v5", 8, 256, 7),
    Case("HalfCheetah-v5, 8 envs, 65,536 steps", "HalfCheetah-v5", 8, 8192, 3, sub_sampling_factor=8),
    Case("ALE/Pong-v5, 8 envs", "ALE/Pong-v5", 8, 128, 2, policy="CnnPolicy", n_critic_updates=1),
    Case("NatureCNN, 1,024 images, all states", "images", 1, 1024, 2, policy="CnnPolicy", policy_update_only=True),
    Case("NatureCNN, 1,024 images, 1/8 of the states", "images", 1, 1024, 2, 8, "CnnPolicy", True),
)


def make_env(case: Case) -> VecEnv:
    """Build the environments of a case, Atari games with SB3's wrappers and four stacked frames."""
    if not case.env_id.startswith("ALE/"):
        env_id: Any = RandomImages if case.env_id == "images" else case.env_id
        return make_vec_env(env_id, n_envs=case.n_envs, seed=0)
    import ale_py

    gym.register_envs(ale_py)
    return VecFrameStack(make_atari_env(case.env_id, n_envs=case.n_envs, seed=0), n_stack=4)


def make_model(algorithm: str, case: Case, device: str = "cpu") -> Any:
    """Build one of the three with the same environment, network and sizes."""
    env = make_env(case)
    common: dict[str, Any] = {"n_steps": case.n_steps, "batch_size": 128, "seed": 0, "device": device}
    if algorithm == "ppo":
        return PPO(case.policy, env, n_epochs=case.n_critic_updates, **common)
    common |= {"n_critic_updates": case.n_critic_updates}
    if case.policy_update_only:
        # The extractor shared as in sb3_contrib, so that both collect with the same network
        common |= {"n_critic_updates": 0, "policy_kwargs": {"share_features_extractor": True}}
    if algorithm == "contrib":
        return sb3_contrib.TRPO(case.policy, env, **common)
    return sb3_trpo.TRPO(case.policy, env, **common, sub_sampling_factor=case.sub_sampling_factor)


def timed(function: Callable[..., Any], phase: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """Add up the time that calls of a function take."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[phase] += time.perf_counter() - start

    return wrapper


class Contender:
    """A model that is told apart by phases as it trains."""

    def __init__(self, algorithm: str, case: Case, device: str):
        self.algorithm = algorithm
        self.model = make_model(algorithm, case, device)
        self.seconds: dict[str, float] = defaultdict(float)
        self.critic_since = 0.0
        self.model.collect_rollouts = timed(self.model.collect_rollouts, "collect", self.seconds)
        self.model.train = timed(self.model.train, "train", self.seconds)
        if algorithm == "contrib":
            self.model._compute_actor_grad = timed(self.model._compute_actor_grad, "gradient", self.seconds)
            self.model.hessian_vector_product = timed(self.model.hessian_vector_product, "fisher", self.seconds)
            get = self.model.rollout_buffer.get

            def get_and_notice(batch_size: int | None = None) -> Any:
                if batch_size is not None and not self.critic_since:
                    self.critic_since = time.perf_counter()
                return get(batch_size)

            self.model.rollout_buffer.get = get_and_notice

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """Time what is no method of the model, for as long as this model has its turn."""
        make_product, solve = PolicyProblem.fisher_vector_product, contrib_module.conjugate_gradient_solver

        def make_timed_product(problem: PolicyProblem) -> Any:
            return timed(make_product(problem), "fisher", self.seconds)

        def solve_and_note(*args: Any, **kwargs: Any) -> Any:
            start, products = time.perf_counter(), self.seconds["fisher"]
            result = solve(*args, **kwargs)
            self.seconds["cg"] += time.perf_counter() - start - (self.seconds["fisher"] - products)
            return result

        PolicyProblem.fisher_vector_product = make_timed_product  # type: ignore[method-assign,assignment]
        contrib_module.conjugate_gradient_solver = solve_and_note
        try:
            yield
        finally:
            PolicyProblem.fisher_vector_product = make_product  # type: ignore[method-assign]
            contrib_module.conjugate_gradient_solver = solve

    def update(self) -> dict[str, float]:
        """Collect one rollout, train once, and return seconds by phase."""
        self.seconds.clear()
        self.critic_since = 0.0
        with self._observed():
            self.model.learn(self.model.n_steps * self.model.n_envs, reset_num_timesteps=False)
        result = dict(self.seconds)
        if self.algorithm == "trpo":
            result |= self.model.last_update.phase_seconds
            result["cg"] = result.pop("direction") - result["fisher"]
        elif self.algorithm == "contrib":
            result["critic"] = time.perf_counter() - self.critic_since if self.critic_since else 0.0
            # What is left of the policy update: setting it up and the line search
            result["line_search"] = result["train"] - sum(result[phase] for phase in ("gradient", "fisher", "cg", "critic"))
        return result


class Stepper:
    """What any algorithm has to wait for: the environments alone, with one action all the time."""

    algorithm = STEPPING

    def __init__(self, case: Case):
        self.env = make_env(case)
        self.n_steps = case.n_steps
        self.env.reset()
        self.actions = np.stack([self.env.action_space.sample()] * self.env.num_envs)

    def update(self) -> dict[str, float]:
        """Make the steps of one rollout, and return their seconds."""
        start = time.perf_counter()
        for _ in range(self.n_steps):
            self.env.step(self.actions)
        return {"collect": time.perf_counter() - start, "train": 0.0}


def run_case(case: Case, algorithms: list[str], device: str) -> list[dict[str, Any]]:
    """Time the algorithms in turn; the first update of each is a warm-up and dropped."""
    contenders = [Stepper(case) if algorithm == STEPPING else Contender(algorithm, case, device) for algorithm in algorithms]
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    for index in track(range(case.rounds + 1), description=case.name):
        for contender in contenders:
            seconds = contender.update()
            if index > 0:
                measured[contender.algorithm].append(seconds)
    rows = []
    for algorithm, updates in measured.items():
        row: dict[str, Any] = {"case": case.name, "algorithm": algorithm, "steps": case.n_steps * case.n_envs}
        for phase in (*PHASES, "train"):
            row[phase] = median(update.get(phase, float("nan")) for update in updates)
        row["collect+train"] = median(update["collect"] + update["train"] for update in updates)
        row["steps/s"] = row["steps"] / row["collect+train"]
        rows.append(row)
    return rows


def print_tables(rows: list[dict[str, Any]]) -> None:
    """Print the medians and, beside ours, how many times faster than sb3_contrib it is."""
    by_case: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_case[row["case"]][row["algorithm"]] = row
    columns = (*PHASES, "train", "collect+train")
    for case, algorithms in by_case.items():
        table = Table("", *columns, "steps/s", "peak memory", title=f"{case}: seconds per update, median")
        for algorithm, row in algorithms.items():
            table.add_row(
                algorithm,
                *(f"{row[c]:.3f}" if row[c] == row[c] else "" for c in columns),
                f"{row['steps/s']:,.0f}",
                f"{row['peak memory'] / 2**20:,.0f} MiB" if row.get("peak memory") else "",
            )
        if {"trpo", "contrib"} <= algorithms.keys():
            ours, theirs = algorithms["trpo"], algorithms["contrib"]
            table.add_row(
                "contrib / trpo",
                *(f"{theirs[c] / ours[c]:.1f}x" if ours[c] > 0 and theirs[c] == theirs[c] else "" for c in columns),
                f"{ours['steps/s'] / theirs['steps/s']:.1f}x",
                f"{theirs['peak memory'] / ours['peak memory']:.1f}x" if ours.get("peak memory") else "",
                style="bold",
            )
        Console(width=127).print(table)


def draw(rows: list[dict[str, Any]], path: Path, device: str) -> None:
    """Draw one panel per case with a stacked bar per algorithm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(PHASES, ("#0072B2", "#F0E442", "#E69F00", "#56B4E9", "#D55E00", "#009E73"), strict=True))
    colours["train"] = "#999999"
    labels = {"fisher": "Fisher products", "cg": "conjugate gradients", "line_search": "line search"}
    labels["train"] = "train (undivided)"
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = plt.subplots(len(cases), 1, figsize=(9, 0.7 + 1.35 * len(cases)), layout="constrained", squeeze=False)
    for axis, case in zip(axes[:, 0], cases, strict=True):
        contenders = [row for row in rows if row["case"] == case]
        for row in contenders:
            left = 0.0
            undivided = row["algorithm"] == "ppo" or device != "cpu"
            phases = ("collect", "train") if undivided else PHASES  # of stepping the first alone
            for phase in phases:
                if row[phase] == row[phase] and not (phase == "collect" and "NatureCNN" in case):
                    label = labels.get(phase, phase)
                    axis.barh(row["algorithm"], row[phase], left=left, color=colours[phase], label=label, edgecolor="white")
                    left += row[phase]
            axis.annotate(f" {left:.3g} s", (left, row["algorithm"]), va="center")
        axis.invert_yaxis()
        axis.set_title(case, loc="left", fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.1)
    where = "on one thread" if device == "cpu" else "with the networks on a GPU"
    axes[-1, 0].set_xlabel(f"seconds per update, median of interleaved runs {where}")
    handles = {label: handle for axis in axes[:, 0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6, fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Put the rows of a case in place of those that the file has of it, and return all."""
    fields = ["case", "algorithm", "steps", *PHASES, "train", "collect+train", "steps/s", "peak memory"]
    kept: list[dict[str, Any]] = []
    if path.exists():
        with open(path, newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["case"] not in {new["case"] for new in rows}]
    for row in kept:
        row |= {field: float(row[field] or "nan") for field in fields[3:]}
    order = [case.name for case in CASES]
    rows = sorted((*kept, *rows), key=lambda row: order.index(row["case"]))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields)
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return rows


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=[], help="run only the cases of these names, or whose name contains one")
    parser.add_argument("--algorithms", nargs="*", default=["trpo", "contrib", "ppo", STEPPING])
    parser.add_argument("--rounds", type=int, help="updates to time of each case, instead of its own number")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--folder", type=Path, help="instead of benchmarks/results, and its folder cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not th.cuda.is_available():
        parser.error("there is no CUDA device")
    results = Path(__file__).parent / "results"
    folder = arguments.folder or (results if arguments.device == "cpu" else results / arguments.device)

    warnings.filterwarnings("ignore", message="Mean of empty slice")
    th.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    names = {case.name for case in CASES}
    for case in CASES:
        if arguments.cases and not any(part == case.name if part in names else part in case.name for part in arguments.cases):
            continue
        case = case._replace(rounds=arguments.rounds or case.rounds)
        algorithms = [a for a in arguments.algorithms if not (a in ("ppo", STEPPING) and case.policy_update_only)]
        case_rows = run_case(case, algorithms, arguments.device)
        for row in case_rows if case.policy_update_only and arguments.device == "cpu" else []:
            row["peak memory"] = float(peak_above_rollout(make_model, row["algorithm"], case))
        print_tables(case_rows)
        draw(save(case_rows, folder / "speed.csv"), folder / "speed.png", arguments.device)


if __name__ == "__main__":
    main()
