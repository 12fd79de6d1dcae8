"""
Seconds per update of this TRPO, of sb3_contrib's and of SB3's PPO, phase by phase, side by side in one process.

``python -m benchmarks.speed`` runs every case with one thread and with the defaults of sb3_contrib's TRPO for all three,
update after update in turn, and writes a table, ``speed.csv`` and ``speed.png`` to ``benchmarks/results``. ``--device cuda``
runs them on a GPU and writes to ``benchmarks/results/cuda``. The host runs ahead of the GPU there: an update's time is exact,
and what its phases take is not.

On a busy machine ``--cpu`` counts the seconds that the process computes, the threads of EnvPool included, and writes to
``benchmarks/results/cpu_seconds``; phases are not told apart. Every case is saved as soon as it is done. ``--missing`` runs
those of which nothing is on record, ``--rounds 2`` gives a first impression.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import csv
import gc
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import sb3_contrib.trpo.trpo
import torch as th
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.memory import peak_above_rollout
from benchmarks.speed_cases import CASES, NETWORKS, ON_DUMMY, PLAIN, STEPPING, Case, can_run, make_env, make_model
from sb3_trpo.objective import PolicyProblem

contrib_module: Any = sb3_contrib.trpo.trpo

PHASES = ("collect", "gradient", "fisher", "cg", "line_search", "critic")
# How seconds were taken
ON_THE_WALL, COMPUTED, ON_GPU = "on one thread", "on one thread, computing alone", "with the networks on a GPU"
Clock = Callable[[], float]


def timed(function: Callable[..., Any], phase: str, seconds: dict[str, float], clock: Clock) -> Callable[..., Any]:
    """Add up the time that calls of a function take."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[phase] += clock() - start

    return wrapper


class Contender:
    """
    A model that is timed as it trains.

    :param algorithm: which one
    :param case: on what
    :param device: of its networks
    :param clock: what tells the time. The phases of an update are told apart where it is the one on the wall
    """

    def __init__(self, algorithm: str, case: Case, device: str, clock: Clock):
        self.algorithm = algorithm
        self.clock = clock
        self.tells_phases = clock is time.perf_counter
        self.model = make_model(algorithm, case, device)
        self.seconds: dict[str, float] = defaultdict(float)
        self.critic_since = 0.0
        self.is_contrib = algorithm.startswith("contrib")
        self._time_method("collect_rollouts", "collect")
        self._time_method("train", "train")
        if self.is_contrib and self.tells_phases:
            self._time_method("_compute_actor_grad", "gradient")
            self._time_method("hessian_vector_product", "fisher")
            get = self.model.rollout_buffer.get

            def get_and_notice(batch_size: int | None = None) -> Any:
                if batch_size is not None and not self.critic_since:
                    self.critic_since = clock()
                return get(batch_size)

            self.model.rollout_buffer.get = get_and_notice

    def _time_method(self, name: str, phase: str) -> None:
        setattr(self.model, name, timed(getattr(self.model, name), phase, self.seconds, self.clock))

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """Time what is no method of the model, for as long as this model has its turn."""
        make_product, solve = PolicyProblem.fisher_vector_product, contrib_module.conjugate_gradient_solver

        def make_timed_product(problem: PolicyProblem) -> Any:
            return timed(make_product(problem), "fisher", self.seconds, self.clock)

        def solve_and_note(*args: Any, **kwargs: Any) -> Any:
            start, products = self.clock(), self.seconds["fisher"]
            result = solve(*args, **kwargs)
            self.seconds["cg"] += self.clock() - start - (self.seconds["fisher"] - products)
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
        n_steps = self.model.n_steps * self.model.n_envs
        if not self.tells_phases:
            self.model.learn(n_steps, reset_num_timesteps=False)
            return dict(self.seconds)
        with self._observed():
            self.model.learn(n_steps, reset_num_timesteps=False)
        result = dict(self.seconds)
        if hasattr(self.model, "last_update"):
            result |= self.model.last_update.phase_seconds
            result["cg"] = result.pop("direction") - result["fisher"]
        elif self.is_contrib:
            result["critic"] = self.clock() - self.critic_since if self.critic_since else 0.0
            # What is left of the policy update: setting it up and the line search
            result["line_search"] = result["train"] - sum(result[phase] for phase in ("gradient", "fisher", "cg", "critic"))
        return result


class Stepper:
    """What any algorithm has to wait for: the environments alone, with one action all the time."""

    algorithm = STEPPING

    def __init__(self, case: Case, clock: Clock):
        self.clock = clock
        self.env = make_env(case)
        self.n_steps = case.n_steps
        self.env.reset()
        self.actions = np.stack([self.env.action_space.sample()] * self.env.num_envs)

    def update(self) -> dict[str, float]:
        """Make the steps of one rollout, and return their seconds."""
        start = self.clock()
        for _ in range(self.n_steps):
            self.env.step(self.actions)
        return {"collect": self.clock() - start, "train": 0.0}


class Networks:
    """What any algorithm computes as it collects: actor and critic of every state, a step's at a time, in torch."""

    algorithm = NETWORKS

    def __init__(self, case: Case, clock: Clock):
        self.clock = clock
        model = make_model("contrib", case)
        policy, self.n_steps = model.policy, case.n_steps
        self.actor = th.nn.Sequential(*policy.mlp_extractor.policy_net, policy.action_net)
        self.critic = th.nn.Sequential(*policy.mlp_extractor.value_net, policy.value_net)
        self.states = th.as_tensor(model.env.reset())

    @th.inference_mode()
    def update(self) -> dict[str, float]:
        """Evaluate the states of one rollout, and return the seconds."""
        start = self.clock()
        for _ in range(self.n_steps):
            self.actor(self.states), self.critic(self.states)
        return {"collect": self.clock() - start, "train": 0.0}


ALONE: dict[str, Any] = {STEPPING: Stepper, NETWORKS: Networks}


def run_case(case: Case, algorithms: list[str], device: str, clock: Clock) -> list[dict[str, Any]]:
    """Time the algorithms in turn; the first update of each is a warm-up and dropped."""
    contenders = [ALONE[a](case, clock) if a in ALONE else Contender(a, case, device, clock) for a in algorithms]
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    for index in track(range(case.rounds + 1), description=case.name):
        for contender in contenders:
            gc.collect()  # what one leaves behind is not counted against the next
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
    for case, algorithms in by_case.items():
        measured = [phase for phase in PHASES if any(row[phase] == row[phase] for row in algorithms.values())]
        columns = (*measured, "train", "collect+train")
        table = Table("", *columns, "steps/s", "peak memory", title=f"{case}: seconds per update, median")
        for algorithm, row in algorithms.items():
            table.add_row(
                algorithm,
                *(f"{row[c]:.3f}" if row[c] == row[c] else "" for c in columns),
                f"{row['steps/s']:,.0f}",
                f"{row['peak memory'] / 2**20:,.0f} MiB" if row.get("peak memory") else "",
            )
        beside = ("contrib", ON_DUMMY, PLAIN, *(["ppo"] if "contrib" not in algorithms else []), "without masks")
        for other in [name for name in beside if {"trpo", name} <= algorithms.keys()]:
            ours, theirs = algorithms["trpo"], algorithms[other]
            table.add_row(
                f"({other}) / trpo",
                *(f"{theirs[c] / ours[c]:.1f}x" if ours[c] > 0 and theirs[c] == theirs[c] else "" for c in columns),
                f"{ours['steps/s'] / theirs['steps/s']:.1f}x",
                f"{theirs['peak memory'] / ours['peak memory']:.1f}x" if ours.get("peak memory") else "",
                style="bold",
            )
        Console(width=127).print(table)


def draw(rows: list[dict[str, Any]], path: Path, where: str) -> None:
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
            undivided = row["algorithm"] == "ppo" or where != ON_THE_WALL
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
    axes[-1, 0].set_xlabel(f"seconds per update, median of interleaved runs {where}")
    handles = {label: handle for axis in axes[:, 0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6, fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


FIELDS = ["case", "algorithm", "steps", *PHASES, "train", "collect+train", "steps/s", "peak memory"]


def recorded(path: Path) -> list[dict[str, Any]]:
    """Return what a file has on record."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {field: float(row[field] or "nan") for field in FIELDS[3:]}
    return rows


def save(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Put the rows of a case in place of those that the file has of it, and return all."""
    order = [case.name for case in CASES]
    kept = [row for row in recorded(path) if row["case"] in order and row["case"] not in {new["case"] for new in rows}]
    rows = sorted((*kept, *rows), key=lambda row: order.index(row["case"]))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=FIELDS)
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return rows


def chosen(parts: list[str], path: Path, *, missing: bool) -> Iterator[Case]:
    """
    Yield the cases to run.

    :param parts: their names or parts of these; all if there are none
    :param path: what is on record
    :param missing: whether to leave out those that are
    """
    names = {case.name for case in CASES}
    known = {row["case"] for row in recorded(path)} if missing else set()
    for case in CASES:
        if parts and not any(part == case.name if part in names else part in case.name for part in parts):
            continue
        if case.name in known:
            continue
        if can_run(case):
            yield case
        else:
            print(f"{case.name}: left out, since EnvPool is not installed (pip install 'sb3_trpo[envpool]')")


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=[], help="run only the cases of these names, or whose name contains one")
    parser.add_argument("--missing", action="store_true", help="run only cases of which nothing is on record")
    parser.add_argument("--algorithms", nargs="*", help="instead of those of each case")
    parser.add_argument("--rounds", type=int, help="updates to time of each case, instead of its own number")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cpu", action="store_true", help="seconds of computing instead of seconds")
    parser.add_argument("--folder", type=Path, help="instead of benchmarks/results and its folders cuda and cpu_seconds")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not th.cuda.is_available():
        parser.error("there is no CUDA device")
    if arguments.device == "cuda" and arguments.cpu:
        parser.error("--cpu does not see what a GPU computes")
    results = Path(__file__).parent / "results"
    of_kind = {"cuda": results / "cuda", "cpu": results / "cpu_seconds" if arguments.cpu else results}
    folder = arguments.folder or of_kind[arguments.device]
    where = ON_GPU if arguments.device == "cuda" else COMPUTED if arguments.cpu else ON_THE_WALL
    clock = time.process_time if arguments.cpu else time.perf_counter

    warnings.filterwarnings("ignore", message="Mean of empty slice")
    th.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "speed.csv"
    for case in chosen(arguments.cases, path, missing=arguments.missing):
        case = case._replace(rounds=arguments.rounds or case.rounds)
        algorithms = arguments.algorithms or list(case.algorithms)
        if case.policy_update_only:
            algorithms = [algorithm for algorithm in algorithms if algorithm not in ("ppo", STEPPING)]
        case_rows = run_case(case, algorithms, arguments.device, clock)
        for row in case_rows if case.policy_update_only and where == ON_THE_WALL else []:
            row["peak memory"] = float(peak_above_rollout(make_model, row["algorithm"], case))
        print_tables(case_rows)
        draw(save(case_rows, path), folder / "speed.png", where)


if __name__ == "__main__":
    main()
