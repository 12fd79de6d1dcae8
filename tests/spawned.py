"""Real processes that join each other as those of ``torchrun`` do: started, waited for and ended whatever happens."""

import multiprocessing
import os
import pickle
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.workers import joined

ROOT = Path(__file__).parent.parent
# Each is forked from a process that has done nothing but import: see tests/conftest.py
FORKS = multiprocessing.get_context("forkserver")


def exit_code_of(target: Callable[[], None]) -> int | None:
    """Return how a process of its own ends that does something; it is ended where it takes a minute."""
    process = FORKS.Process(target=target)
    process.start()
    process.join(timeout=60.0)
    process.kill()
    return process.exitcode


class Outcome(NamedTuple):
    """
    How a process ended.

    :param value: what its part returned
    :param error: what it raised, in words: the type and the message; empty if it returned
    :param code: exit code, negative for a signal
    :param seconds: from the start of all until the end of this one
    """

    value: Any
    error: str
    code: int
    seconds: float


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def spawn(part: str, size: int, *arguments: Any, timeout: float = 60.0, **environments: list[str]) -> list[Outcome]:
    """
    Run a function of ``tests/workers`` in several processes, and end them all when the time is over.

    :param part: ``module.function``; it is called with what ``join()`` returns and the arguments
    :param size: number of processes
    :param arguments: anything that can be pickled
    :param timeout: seconds after which whoever is left is killed, on a machine that has nothing else to do
    :param environments: variables of the environment, a value for each process
    """
    # A machine that has more to do than it can takes so much longer
    timeout *= max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "arguments").write_bytes(pickle.dumps(arguments))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        started = time.monotonic()
        processes = []
        ended: dict[int, float] = {}
        try:
            for rank in range(size):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
                own |= {key: values[rank] for key, values in environments.items()}
                processes.append(FORKS.Process(target=joined.run, args=(part, folder, shared | own)))
                processes[-1].start()
            while len(ended) < size and time.monotonic() < started + timeout:
                new = [rank for rank, process in enumerate(processes) if rank not in ended and not process.is_alive()]
                ended |= dict.fromkeys(new, time.monotonic() - started)
                time.sleep(0.02)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [_outcome(folder, rank, process.exitcode, ended.get(rank)) for rank, process in enumerate(processes)]


def _outcome(folder: Path, rank: int, code: int | None, seconds: float | None) -> Outcome:
    written, said = folder / f"outcome_{rank}", (folder / f"said_{rank}").read_text()
    if seconds is None:
        raise TimeoutError(f"process {rank} was still running at the end of the time-out; it said:\n{said[-3000:]}")
    assert code is not None
    if not written.exists():
        return Outcome(None, f"ended without a word: {said[-3000:]}", code, seconds)
    value, error = pickle.loads(written.read_bytes())
    return Outcome(value, error, code, seconds)


def values_of(outcomes: list[Outcome]) -> list[Any]:
    """Return what each returned, none of them having failed."""
    for rank, outcome in enumerate(outcomes):
        assert not outcome.error, f"process {rank}: {outcome.error}"
    return [outcome.value for outcome in outcomes]
