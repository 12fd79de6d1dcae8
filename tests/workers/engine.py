"""The engine alone: sums, agreements, and how parts end."""

import copy
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import torch as th

from sb3_trpo import distributed
from sb3_trpo.distributed import PeerError, Processes, join


def meet_and_part(processes: Processes) -> dict[str, Any]:
    """All of it one after the other: starting a process takes longer than what it does here."""
    found: dict[str, Any] = {part.__name__: part(processes) for part in (everything, fails_jointly, disagree, copies)}
    found["fails_in_step"] = fails_in_step(processes)
    again = join(timeout=20.0)
    found["again"] = float(again.total(th.ones(())))
    n_threads = _threads_of_the_engine()
    distributed._end()
    return found | {"threads": (n_threads > 0, _threads_of_the_engine())}


def _threads_of_the_engine() -> int:
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


def everything(processes: Processes) -> dict[str, Any]:
    """Use each of the ways in which processes meet, once."""
    rank = processes.rank
    own = th.tensor([1.5 * (rank + 1), -rank], dtype=th.float64)
    found: dict[str, Any] = {
        "place": (rank, processes.size),
        "total": processes.total(own),
        "scalar": processes.total(th.tensor(rank + 0.5)),
        "strided": processes.total(th.arange(6.0).view(2, 3).t()),
        "vector": processes.total(th.arange(1000.0).view(20, 50).t() / (rank + 3)),
        "large": processes.total(th.full((2**20,), rank + 0.1)),
        "own": own,
        "largest": processes.largest(own),
        "agreed tensor": processes.agree(own),
        "agreed object": processes.agree({"of": rank}),
        "gathered": processes.gather(("rank", rank)),
    }
    reports: list[Any] = []
    with processes.jointly(lambda: 10 * rank, reports.extend):
        pass
    found["reports"] = reports
    return found


def fails_jointly(processes: Processes) -> dict[str, Any]:
    """Fail in a part of one's own on some of the processes; afterwards meet as if nothing had been."""
    reports: list[Any] = []
    message = ""
    try:
        with processes.in_step(), processes.jointly(lambda: processes.rank, reports.extend):
            if processes.rank > 0:
                raise KeyboardInterrupt if processes.rank == 2 else ValueError(f"no luck\non {processes.rank}")
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
    return {"message": message, "reports": reports, "total": float(processes.total(th.ones(())))}


def disagree(processes: Processes) -> list[str]:
    """Raise on all from what all have told."""

    def compare(reports: list[int]) -> None:
        if len(set(reports)) > 1:
            raise PeerError("not the same")

    said = []
    for _ in range(2):
        try:
            with processes.in_step(), processes.jointly(lambda: processes.rank, compare):
                pass
        except PeerError as error:
            said.append(str(error))
    return said


def fails_in_step(processes: Processes) -> dict[str, Any]:
    """Fail on the last process in the midst of sums; the others are told at once, and nobody can go on as if nothing was."""
    started = time.monotonic()
    said = []
    for _ in range(2):
        try:
            with processes.in_step():
                processes.total(th.ones(3))
                if processes.rank == processes.size - 1:
                    raise ArithmeticError("one too many")
                processes.total(th.ones(3))
        except (ArithmeticError, PeerError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return {"said": said, "seconds": time.monotonic() - started}


def lost(processes: Processes, how: str, who: int) -> dict[str, Any]:
    """Lose a process between two sums: killed, asleep for too long, or gone without a word."""
    processes.total(th.ones(1))
    started = time.monotonic()
    said = ""
    if processes.rank == who:
        time.sleep(0.2)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "late":
            time.sleep(5.5)
    try:
        processes.total(th.ones(1))
    except PeerError as error:
        said = str(error)
        processes.leave("found out", is_cause=False)
    return {"said": said, "seconds": time.monotonic() - started}


def copies(processes: Processes) -> list[str]:
    """Copy what processes meet in."""
    return [type(copy.deepcopy(processes)).__name__, type(pickle.loads(pickle.dumps(processes))).__name__]


def in_a_group_of_ones_own(processes: Processes) -> tuple[int, int, float]:
    """Join where a process group is there, of which nothing stands in the environment."""
    processes.leave("done")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    again = join(timeout=20.0)
    return again.rank, again.size, float(again.total(th.ones(())))
