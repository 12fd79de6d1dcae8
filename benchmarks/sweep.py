"""
Train environments × algorithms × settings × seeds on some workers, and put what is finished on record.

``python -m benchmarks.sweep --envs mujoco --algorithms trpo --seeds 0-4 --workers 2``

Runs on record in ``benchmarks/results/returns`` or finished in ``runs/`` are skipped. It may be killed at any time and started
again, on another machine too: what was finished stays, what was under way begins anew.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks import settings
from benchmarks.results import RESULTS, collect, known_arguments
from benchmarks.train import ALGORITHMS, RUNS, Run


def parse_seeds(words: Sequence[str]) -> list[int]:
    """Read seeds and ranges of them, both ends included: ``0-4 100`` is 0, 1, 2, 3, 4, 100."""
    ends = [(first, last or first) for first, _, last in (word.partition("-") for word in words)]
    return [seed for first, last in ends for seed in range(int(first), int(last) + 1)]


def missing(jobs: Sequence[Run], results: Path = RESULTS) -> list[Run]:
    """
    Return the jobs that are not on record. One with what ships is done if it was run with what shipped then.

    :raises KeyError: if one that is not on record is of a setting that there is not
    :raises ValueError: naming the run, if one is on record with other hyperparameters than its setting has now
    """
    known, names = known_arguments(results), settings.names()
    for run in jobs:
        if run in known and run.setting not in names:
            continue  # given up: the code it needs is gone, the record is not
        written = settings.load(run.algorithm, run.setting, run.env)
        now = settings.with_defaults(ALGORITHMS[run.algorithm], written)
        before = known.get(run, {})
        # What the algorithm has learned to take since then has a default that changes nothing
        changed = sorted(name for name in before.keys() | written.keys() if before.get(name) != now.get(name))
        if run in known and changed:
            raise ValueError(
                f"{'/'.join(map(str, run))} is on record with another {', '.join(changed)} than its setting has now: "
                f"give the changed setting a new name, or delete the outdated rows from {results}"
            )
    earlier = {run._replace(setting=settings.TUNED) for run in known if run.setting in settings.SHIPPED_BEFORE}
    return [run for run in jobs if run not in known and run not in earlier]


class Worker:
    """
    A run in a process of its own.

    :param run: which
    :param runs: folder of all runs
    """

    def __init__(self, run: Run, runs: Path):
        self.run = run
        self.output = tempfile.TemporaryFile("w+")
        words = [run.env, str(run.seed), run.algorithm, "--setting", run.setting, "--runs", str(runs)]
        command = [sys.executable, "-m", "benchmarks.train", *words]
        self.process = subprocess.Popen(command, stdout=self.output, stderr=subprocess.STDOUT)

    def report(self) -> bool:
        """Print how the run ended, and return whether it succeeded."""
        succeeded = self.process.wait() == 0
        self.output.seek(0)
        with self.output:
            lines = self.output.read().splitlines()
        text = lines[-1] if succeeded else "\n".join([f"{'/'.join(map(str, self.run))} failed:", *lines])
        print(text, flush=True)
        return succeeded


def sweep(jobs: Sequence[Run], *, workers: int = 1, runs: Path = RUNS, results: Path = RESULTS) -> list[Run]:
    """
    Run what is missing.

    :param jobs: in the order in which they are begun
    :param workers: how many to run at a time, one thread each
    :param runs: folder of all runs
    :param results: folder of the record
    :return: the runs that failed; what they wrote is printed, and the others go on
    """
    collect(runs, results, jobs)
    waiting = deque(missing(jobs, results))
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished before", flush=True)
    busy: list[Worker] = []
    failed = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                busy.append(Worker(waiting.popleft(), runs))
            for worker in [worker for worker in busy if worker.process.poll() is not None]:
                busy.remove(worker)
                if not worker.report():
                    failed.append(worker.run)
                collect(runs, results, jobs)
            time.sleep(0.2)
    finally:
        for worker in busy:
            worker.process.terminate()
        for worker in busy:
            worker.process.wait()
            worker.output.close()
    return failed


def main() -> int:
    """Run the sweep that was asked for; the exit status says whether a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", required=True, help=f"environment ids or groups: {', '.join(settings.GROUPS)}")
    parser.add_argument("--algorithms", nargs="+", default=["trpo", "contrib", "ppo"], choices=ALGORITHMS)
    parser.add_argument("--settings", nargs="+", default=[settings.TUNED])
    parser.add_argument("--seeds", nargs="+", default=["0-4"], help="numbers and ranges, both ends included")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    # Ends the workers too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    axes = (arguments.settings, settings.environments(arguments.envs), arguments.algorithms, parse_seeds(arguments.seeds))
    jobs = [Run(*axis) for axis in product(*axes)]
    return int(bool(sweep(jobs, workers=arguments.workers, runs=arguments.runs, results=arguments.results)))


if __name__ == "__main__":
    sys.exit(main())
