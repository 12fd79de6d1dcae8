"""Two processes played by two threads: what is said of processes, where nothing of them need be real."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch as th

from sb3_trpo.distributed import TorchProcesses

T = TypeVar("T")


class Table:
    """Where they put what they bring."""

    def __init__(self, size: int = 2):
        self.barrier = threading.Barrier(size, timeout=60.0)
        self.brought: list[Any] = [None] * size


class InThreads(TorchProcesses):
    """One of them; it ends its parts as a real one does."""

    def __init__(self, table: Table, rank: int):
        self.rank, self.size, self.timeout = rank, len(table.brought), 60.0
        self.table = table
        self._left = self._told = self._store = self._group = None

    def gather(self, value: T) -> list[T]:
        return self._meet(self._exchange, value)

    def _exchange(self, value: T) -> list[T]:
        # A barrier that is broken is an error of the engine
        self.table.barrier.wait()
        self.table.brought[self.rank] = value
        self.table.barrier.wait()
        return list(self.table.brought)

    def total(self, part: th.Tensor) -> th.Tensor:
        first, *rest = self.gather(part.detach().clone())
        return sum(rest, first)

    def largest(self, value: th.Tensor) -> th.Tensor:
        return th.stack(self.gather(value.detach().clone())).amax(dim=0)

    def agree(self, value: T) -> T:
        decided = self.gather(value)[0]
        return decided.clone() if isinstance(decided, th.Tensor) else decided  # type: ignore[return-value]

    def leave(self, why: str, *, is_cause: bool = True) -> None:
        super().leave(why, is_cause=is_cause)
        self.table.barrier.abort()


def together(parts: Sequence[Callable[[], T]]) -> list[Any]:
    """Run them at the same time; return what each returned, or the exception that it raised."""

    def outcome(part: Callable[[], T]) -> Any:
        try:
            return part()
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(parts)) as threads:
        return list(threads.map(outcome, parts))
