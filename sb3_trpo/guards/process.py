"""Settings of the process or of the thread, changed for a while, and put back when the last that needs it is done."""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch as th
from threadpoolctl import LibController, ThreadpoolController


def _in_forked_processes(do: Callable[[], object]) -> None:
    """Have something done first of all in each process that is forked from this one."""
    if hasattr(os, "register_at_fork"):  # else there is no fork
        os.register_at_fork(after_in_child=do)


def new_lock(kind: Callable[[], Any]) -> Any:
    """
    Return a lock that is free in a process forked while another thread holds it, which is not there to give it back.

    :param kind: of ``threading``: ``Lock`` or ``RLock``
    """
    lock = kind()
    _in_forked_processes(lock._at_fork_reinit)  # as the standard library does with its own
    return lock


# Whoever seeds the generators of the process, and then draws from them, does it alone
drawing = new_lock(threading.RLock)
# Torch has one level of forward mode for the whole process
forward_mode = new_lock(threading.RLock)


class TorchGenerators:
    """
    The states of torch's generators of the process: that of the CPU, and that of a GPU.

    :param device: the GPU, if it is one
    """

    def __init__(self, device: th.device):
        self.gpu = device if device.type == "cuda" else None

    def states(self) -> list[np.ndarray]:
        """Return copies, in bytes that any file can hold."""
        states = [th.get_rng_state(), *([] if self.gpu is None else [th.cuda.get_rng_state(self.gpu)])]
        return [state.numpy() for state in states]

    def put(self, states: list[np.ndarray]) -> None:
        """Put others in their place."""
        th.set_rng_state(th.from_numpy(states[0]))
        if self.gpu is not None:
            th.cuda.set_rng_state(th.from_numpy(states[1]), self.gpu)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Put back afterwards what they are now; meanwhile no other thread that asks in this way draws from them."""
        with drawing:
            before = self.states()
            try:
                yield
            finally:
                self.put(before)


class SharedSetting:
    """
    A context in which a setting of the process is another one.

    Threads may be inside at the same time. The first one in changes the setting, and the last one out puts it back.

    :param read: returns what the setting is
    :param put: makes it what it is handed
    :param inside: what it is inside
    """

    def __init__(self, read: Callable[[], Any], put: Callable[[Any], object], inside: Any):
        self._read = read
        self._put = put
        self._inside = inside
        self._lock = new_lock(threading.Lock)
        self._n_inside = 0
        self._outside: Any = None
        self._n_forks = 0
        _in_forked_processes(self._leave_threads_behind)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enter the context."""
        is_inside, n_forks = False, self._n_forks
        # Ctrl-C may come with any call: whoever counts has noted what there was before, and is in ``try``
        try:
            with self._lock:
                if self._n_inside == 0:
                    self._outside = self._read()
                self._n_inside += 1
                is_inside = True
                if self._n_inside == 1:
                    self._put(self._inside)
            yield
        finally:
            with self._lock:
                if is_inside and n_forks == self._n_forks:
                    self._n_inside -= 1
                    if self._n_inside == 0:
                        self._put(self._outside)

    def _leave_threads_behind(self) -> None:
        """Put the setting back in a process that was forked: the threads that are inside are not there."""
        self._n_forks += 1
        if self._n_inside > 0:
            self._n_inside = 0
            self._put(self._outside)


@contextmanager
def full_precision() -> Iterator[None]:
    """
    Compute in the precision of the parameters, inside of ``torch.autocast`` too.

    Half precision has two or three digits, too few to tell two near policies apart. Autocast is a setting
    of the thread; what a network asks for itself, in its ``forward``, it gets.
    """
    with th.autocast("cpu", enabled=False), th.autocast("cuda", enabled=False):
        yield


@cache
def _blas_libraries() -> list[LibController]:
    """Return the handles on the libraries behind NumPy; finding them takes milliseconds."""
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _set_blas_threads(n_threads: Iterable[int | None]) -> None:
    for library, n in zip(_blas_libraries(), n_threads, strict=False):
        if n is not None:
            library.set_num_threads(n)


# A distribution with parameters that are not finite yields NaN, which the step refuses, instead of raising. It also spares a
# pass over the parameters of every distribution made
unvalidated_distributions = SharedSetting(
    read=lambda: th.distributions.Distribution._validate_args,
    # A call that nothing interrupts
    put=partial(setattr, th.distributions.Distribution, "_validate_args"),
    inside=False,
)
# What is too small to share among threads is slower with them: they would wait for each other
one_blas_thread = SharedSetting(
    read=lambda: [library.num_threads for library in _blas_libraries()], put=_set_blas_threads, inside=itertools.repeat(1)
)
