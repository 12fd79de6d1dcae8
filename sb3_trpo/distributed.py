"""The processes that make one update together, started by ``torchrun``: the only room that knows of ``torch.distributed``."""

# ruff: noqa: D102 - what the methods of TorchProcesses do is said in Processes
import atexit
import multiprocessing
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch as th
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

# Gloo's ``all_reduce`` hands 2 P pieces around in a ring, one after the other. What lies between these goes to all at once, in
# a third of the time (23 KB, 2 and 4 processes): a few numbers are one piece, and many bytes for each other process too many
FEW_BYTES, MANY_BYTES = 256, 2**21
# Seconds that a process waits for the others, and that those who are left wait to hear who is still there
TIMEOUT, PATIENCE = 1800.0, 1.0


class PeerError(RuntimeError):
    """Another process failed, was lost, came too late, or is not what this one is. The message says which, and why."""


def _nothing(*_: Any) -> None:
    """Say nothing, and do nothing with what others say."""


class Processes:
    """One process, of rank 0: every sum is complete as it is, and every decision its own."""

    rank: int = 0
    size: int = 1

    def total(self, part: th.Tensor) -> th.Tensor:
        """Return the sum of a tensor over all processes: the same bits on each."""
        return part

    def largest(self, value: th.Tensor) -> th.Tensor:
        """Return the largest of a tensor over all processes, element by element."""
        return value

    def agree(self, value: T) -> T:
        """Return what the process of rank 0 has, a tensor of the same shape on each or anything that can be pickled."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return what each process has, by rank: anything that can be pickled."""
        return [value]

    @contextmanager
    def jointly(self, report: Callable[[], Any] = _nothing, settle: Callable[[list], Any] = _nothing) -> Iterator[None]:
        """
        Run a part in which processes do not meet, and end it together: an exception on one ends it on all.

        :param report: what each process tells the others once its part is done, well or badly
        :param settle: is given what all have told, by rank, before anything is raised; what it raises, it raises on all
        :raises PeerError: naming the processes whose part failed, and how, where it did not fail here
        """
        yield

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Run a part in which processes meet: one that raises leaves, so that the others fail at once where they wait."""
        yield

    def leave(self, why: str, *, is_cause: bool = True) -> None:
        """Part from the others, who hear why, if it is not their own parting."""


class TorchProcesses(Processes):
    """
    The processes of ``torch.distributed``, once it is initialised, in a group of their own.

    :param timeout: seconds that one waits for the others
    :param store: where those who are left find why one has gone; without it they are told that one has
    :raises PeerError: if not all of them come
    """

    def __init__(self, *, timeout: float = TIMEOUT, store: Any = None):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.timeout = timeout
        self._left: str | None = None  # and why
        self._told: BaseException | None = None  # the others know of it
        self._group: Any = None
        self._store: Any = None
        self._group = self._meet(dist.new_group, backend=_backend(), timeout=timedelta(seconds=timeout))
        life = str(self.agree(time.time_ns()))  # what was written in an earlier one is of no account
        self._store = store and dist.PrefixStore(life, store)  # type: ignore[attr-defined]
        _JOINED.add(self)

    def __reduce__(self) -> Any:
        return Processes, ()  # the copy of a model learns alone

    def _meet(self, collective: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._left is not None:
            raise PeerError(f"process {self.rank} has left the others ({self._left}): begin again with join() on all")
        try:
            return collective(*args, **({"group": self._group} if self._group else {}), **kwargs)
        except th.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PeerError(self._who_is_lost() or f"the connection to the others broke: {in_words(error)[:120]}") from error

    def _met(self, collective: Callable[..., Any], own: Any, **kwargs: Any) -> Any:
        tensor = own.detach().clone(memory_format=th.contiguous_format)
        self._meet(collective, tensor, **kwargs)
        return tensor

    def total(self, part: th.Tensor) -> th.Tensor:
        n_bytes = part.numel() * part.element_size()
        if part.device.type == "cpu" and FEW_BYTES < n_bytes <= MANY_BYTES / self.size:
            return self._total_of_all(part.detach())
        return self._met(dist.all_reduce, part, op=dist.ReduceOp.SUM)

    def _total_of_all(self, part: th.Tensor) -> th.Tensor:
        """Return the same as ``all_reduce``: every part goes to everybody, who adds them up by rank, to the same bits."""
        sent = part.reshape(1, -1).expand(self.size, -1).flatten()
        received = th.empty_like(sent)
        self._meet(dist.all_to_all_single, received, sent)
        total, *others = received.view(self.size, *part.shape)
        for other in others:
            total += other
        return total

    def largest(self, value: th.Tensor) -> th.Tensor:
        return self._met(dist.all_reduce, value, op=dist.ReduceOp.MAX)

    def agree(self, value: T) -> T:
        if isinstance(value, th.Tensor):
            return self._met(dist.broadcast, value, src=0)
        box = [value]
        self._meet(dist.broadcast_object_list, box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        self._meet(dist.all_gather_object, values, value)
        return values

    @contextmanager
    def jointly(self, report: Callable[[], Any] = _nothing, settle: Callable[[list], Any] = _nothing) -> Iterator[None]:
        own: BaseException | None = None
        try:
            yield
        except BaseException as error:
            own = error
        try:
            outcomes = self.gather((own and in_words(own), report()))
        except PeerError as error:
            raise own or error  # noqa: B904 - what went wrong here comes first
        try:
            settle([told for _, told in outcomes])
            if own is not None:
                raise own
            failed = {rank: why for rank, (why, _) in enumerate(outcomes) if why}
            if failed:
                raise PeerError(self._named(failed))
        except BaseException as error:
            self._told = error
            raise

    @contextmanager
    def in_step(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if error is not self._told:
                self.leave(in_words(error), is_cause=not isinstance(error, PeerError))
            raise

    def leave(self, why: str, *, is_cause: bool = True) -> None:
        if self._left is None:
            self._left = why
            self._tell(why if is_cause else "")
            group, self._group = self._group, None
            with suppress(Exception):
                dist.destroy_process_group(group)

    def _named(self, causes: dict[int, str]) -> str:
        return "; ".join(f"process {rank} of {self.size}: {why}" for rank, why in sorted(causes.items()) if why)

    def _tell(self, why: str) -> None:
        with suppress(Exception):  # the store is with process 0 or with torchrun, and they may be gone
            self._store and self._store.set(f"left/{self.rank}", why)

    def _who_is_lost(self) -> str:
        """Ask those who are left: whoever finds itself alone says so, or has said why it went."""
        self._tell("")
        heard, until = {self.rank: ""}, time.monotonic() + PATIENCE
        try:
            while self._store is not None and len(heard) < self.size and time.monotonic() < until:
                new = [rank for rank in range(self.size) if rank not in heard and self._store.check([f"left/{rank}"])]
                heard |= {rank: self._store.get(f"left/{rank}").decode() for rank in new}
                time.sleep(0.01)
        except Exception:  # in whatever way the store says that it is gone
            return "process 0, or torchrun, has ended"
        missing = ", ".join(str(rank) for rank in range(self.size) if rank not in heard)
        lost = f"no word from process {missing} of {self.size}: ended, or later than the {self.timeout:g} s of the time-out"
        return self._named(heard) or (lost if missing else "")


def in_words(error: BaseException) -> str:
    """Return an exception as one line."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _backend() -> str:
    """Return the engines: NCCL for tensors on GPUs, where each process of this machine has one of its own."""
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    has_gpus = th.cuda.is_available() and dist.is_nccl_available() and n_local <= th.cuda.device_count()
    return "cpu:gloo,cuda:nccl" if has_gpus else "gloo"


# Those that are in use: the threads of a group last for as long as anything refers to it
_JOINED: "weakref.WeakSet[TorchProcesses]" = weakref.WeakSet()


def _end() -> None:
    """End the threads of the engine before Python ends: one that is late with its last tensor would abort the process."""
    for processes in _JOINED:
        processes._group = None
    with suppress(Exception):
        dist.destroy_process_group()


def join(*, timeout: float = TIMEOUT) -> Processes:
    """
    Join the processes that ``torchrun`` has started; each waits here until all have come.

    On a machine with GPUs each takes one, as ``torch.cuda.set_device`` does.

    :param timeout: seconds that one waits for the others wherever they meet. Longer than anything that one of them does alone,
        such as an evaluation on rank 0, and than the difference between the quickest and the slowest rollout
    :return: what ``TRPO(..., processes=...)`` takes: one process alone unless ``torchrun`` says otherwise,
        or a process group of ``torch.distributed`` that is there already
    :raises ValueError: if ``timeout`` is not a number of seconds
    :raises RuntimeError: in a new process that imports the script, which is none of those that torchrun has started
    :raises PeerError: if not all of them come in time
    """
    if not 0.0 < timeout < 1e9:
        raise ValueError(f"timeout must be a number of seconds > 0, got {timeout!r}")
    # A group that is there already need not stand in the environment
    group = getattr(getattr(dist, "GroupMember", None), "WORLD", None)
    if (group.size() if group is not None else int(os.environ.get("WORLD_SIZE", "1"))) == 1:
        return Processes()
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "join() was called while a new process, one of SubprocVecEnv for instance, imports the script that torchrun has "
            'started: put what the script does behind if __name__ == "__main__":'
        )
    if th.cuda.is_available():
        th.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % th.cuda.device_count())
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else NCCL ends the process where it should raise
    limit, store = timedelta(seconds=timeout), None
    try:
        # In a group that the user has made in another way nobody can look up why one has gone
        with suppress(ValueError) if dist.is_initialized() else nullcontext():
            store, rank, size = next(iter(rendezvous("env://", timeout=limit)))
        if not dist.is_initialized():
            own = dist.PrefixStore("default", store)  # type: ignore[attr-defined]
            dist.init_process_group(_backend(), store=own, rank=rank, world_size=size, timeout=limit)
            atexit.register(_end)
    except (RuntimeError, ValueError) as error:
        raise PeerError(f"not all processes have joined within {timeout:g} s: {in_words(error)}") from error
    return TorchProcesses(timeout=timeout, store=store)
