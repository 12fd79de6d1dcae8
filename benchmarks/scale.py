"""
What more processes cost and bring: one update of HalfCheetah with one process' data each, beside one process alone.

    python -m benchmarks.scale                       # P = 1, 2 and 4, in turns; writes results/scale.csv and prints the tables
    python -m benchmarks.scale --device cuda --processes 1 2 --record scale_gpu.csv

Each row is a median over updates. The machine may be busy: what is compared was measured in turns. What two processes would
bring that never meet is measured beside them: cores share caches and memory, and that much is the machine's.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.distributed import Processes, TorchProcesses, join

RECORD = Path(__file__).parent / "results" / "scale.csv"
N_ENVS, N_STEPS = 8, 2048
BATCH_SIZES = (1024, 128)
# Bytes of a sum: a number, a critic's gradient, a network for images
SIZES = {"8 B": 8, "23 KB": 23_000, "6.7 MB": 6_700_000}
FIELDS = ["processes", "meet", "batch_size", "round", "collect", "update", "update_cpu", "collectives", *SIZES]


class Measured(TRPO):
    """Note how long collecting and updating take, and how often processes meet in an update."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.notes: list[dict[str, float]] = []
        super().__init__(*args, **kwargs)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        start = time.perf_counter()
        goes_on = super().collect_rollouts(*args, **kwargs)
        self.notes.append({"collect": time.perf_counter() - start})
        return goes_on

    def train(self) -> None:
        meetings = 0
        meet = TorchProcesses._meet

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal meetings
            meetings += 1
            return meet(*args, **kwargs)

        self.processes.total(th.zeros(()))  # all begin at the same time: waiting for the slowest rollout is no update
        with patch.object(TorchProcesses, "_meet", counting):
            start, start_cpu = time.perf_counter(), time.process_time()
            super().train()
            seconds = {"update": time.perf_counter() - start, "update_cpu": time.process_time() - start_cpu}
        self.notes[-1] |= seconds | {"collectives": meetings}


def latency(processes: Processes, n_bytes: int, device: th.device) -> float:
    """Return how long one sum takes, in milliseconds; of one process nothing."""
    value, seconds = th.zeros(n_bytes // 8, dtype=th.float64, device=device), []
    for _ in range(0 if processes.size == 1 else 40):
        start = time.perf_counter()
        processes.total(value)[0].item()  # a GPU is waited for
        seconds.append(time.perf_counter() - start)
    return 1000.0 * median(seconds) if seconds else 0.0


def work(batch_size: int, n_steps: int, n_updates: int, device: str) -> dict[str, float] | None:
    """Train for some updates; return on rank 0 the medians of all but the first, which warms up."""
    th.set_num_threads(1)
    processes = join()
    env = VecNormalize(make_vec_env("HalfCheetah-v5", n_envs=N_ENVS))
    model = Measured("MlpPolicy", env, n_steps=n_steps, batch_size=batch_size, seed=0, device=device, processes=processes)
    model.learn(n_updates * N_ENVS * n_steps * processes.size)
    found = {name: median(notes[name] for notes in model.notes[1:]) for name in model.notes[0]}
    found |= {name: latency(processes, n_bytes, model.device) for name, n_bytes in SIZES.items()}
    return found if processes.rank == 0 else None


def measure(
    n_processes: int, meet: bool, batch_size: int, n_steps: int, n_updates: int, device: str = "cpu"
) -> dict[str, float]:
    """Run that in so many processes, which make one update together, or each its own at the same time."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"] if meet else []
    options = [str(value) for value in ("--device", device, "--work", batch_size, n_steps, n_updates)]
    command = [sys.executable, *launcher, "-m", "benchmarks.scale", *options]
    # NumPy's threads are not torch's, and torchrun sets them for more than one process only
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread)
        for _ in range(1 if meet else n_processes)
    ]
    found = [(*process.communicate(timeout=1800), process.returncode) for process in started]
    failed = next((errors for _, errors, code in found if code != 0), None)
    if failed is not None:
        raise RuntimeError(failed[-3000:])
    each = [json.loads(output.splitlines()[-1]) for output, _, _ in found]
    return {name: median(one[name] for one in each) for name in each[0]}


def _key(row: dict[str, Any]) -> tuple[int, int, int]:
    return int(row["batch_size"]), int(row["processes"]), int(row["meet"])


def medians(rows: list[dict[str, Any]]) -> dict[tuple[int, int, int], dict[str, float]]:
    """Return for each batch size, number of processes, and whether these meet, the median of each number over the rounds."""
    of = {key: [row for row in rows if _key(row) == key] for key in sorted({_key(row) for row in rows})}
    return {key: {name: median(float(row[name]) for row in found) for name in FIELDS[4:]} for key, found in of.items()}


def table(rows: list[dict[str, Any]], n_transitions: int) -> list[str]:
    """Return the measured table in Markdown."""
    lines = [
        "| batch per process | processes | collect | update | times one's | CPU of the update "
        "| frames / s | times one's | collectives |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    found = medians(rows)
    for (batch_size, n, meet), row in found.items():
        one = found[batch_size, 1, 1]
        speed, speed_of_one = (k * n_transitions / (r["collect"] + r["update"]) for k, r in ((n, row), (1, one)))
        who = n if meet else f"{n} that never meet"
        lines.append(
            f"| {batch_size} | {who} | {row['collect']:.2f} s | {row['update']:.2f} s | {row['update'] / one['update']:.2f} | "
            f"{row['update_cpu']:.2f} s | {speed:,.0f} | {speed / speed_of_one:.2f} | {row['collectives']:.0f} |"
        )
    return lines


def on_paper(rows: list[dict[str, Any]]) -> list[str]:
    """
    Return what the collectives of an update would take in larger numbers of processes, in Markdown.

    A sum in a ring of P processes has 2 (P - 1) steps, in a tree 2 log2 P. The latency of a step is that which a number has
    between two processes on this machine, for which both have two.
    """
    lines = [
        "| processes | ring, batch 1,024 | tree, batch 1,024 | ring, batch 128 | tree, batch 128 |",
        "|---:|---:|---:|---:|---:|",
    ]
    found = medians(rows)
    for n in (8, 64, 256, 1000):
        cells = []
        for batch_size in BATCH_SIZES:
            row = found.get((batch_size, 2, 1))
            if row is not None:
                step = row["8 B"] / 1000.0 / 2.0
                depth = (n - 1).bit_length()
                cells += [f"{row['collectives'] * step * 2 * k:.2f} s" for k in (n - 1, depth)]
        lines.append(f"| {n:,} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure in turns, write the record, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=4, help="of each run; the first warms up")
    parser.add_argument("--steps", type=int, default=N_STEPS)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES))
    parser.add_argument("--device", default="cpu", help="cuda: each process takes a GPU, as far as there are")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--work", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        batch_size, n_steps, n_updates = arguments.work
        found = work(batch_size, n_steps, n_updates, arguments.device)
        if found is not None:
            print(json.dumps(found))
        return
    rows: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        for batch_size in arguments.batch_sizes:
            for n, meet in [(n, True) for n in arguments.processes] + [(n, False) for n in arguments.processes if n == 2]:
                row = measure(n, meet, batch_size, arguments.steps, arguments.updates, arguments.device)
                rows.append({"processes": n, "meet": int(meet), "batch_size": batch_size, "round": number} | row)
                print({name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
    with arguments.record.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    print("\n".join(["", *table(rows, N_ENVS * arguments.steps), "", *on_paper(rows)]))


if __name__ == "__main__":
    main()
