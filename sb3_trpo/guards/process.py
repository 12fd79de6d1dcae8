"""Settings of the process or of the thread, changed for a while, and put back when the last that needs it is done."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch as th
from threadpoolctl import ThreadpoolController


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

    :param change: changes the setting, and returns what puts it back
    """

    def __init__(self, change: Callable[[], Callable[[], object]]):
        self._change = change
        self._lock = new_lock(threading.Lock)
        self._n_inside = 0
        self._put_back: Callable[[], object] = lambda: None
        _in_forked_processes(self._leave_threads_behind)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enter the context."""
        with self._lock:
            if self._n_inside == 0:
                self._put_back = self._change()
            self._n_inside += 1
        process = os.getpid()
        try:
            yield
        finally:
            with self._lock:
                if os.getpid() == process:
                    self._n_inside -= 1
                    if self._n_inside == 0:
                        self._put_back()

    def _leave_threads_behind(self) -> None:
        """Put the setting back in a process that was forked: the threads that are inside are not there."""
        if self._n_inside > 0:
            self._n_inside = 0
            self._put_back()


@contextmanager
def full_precision() -> Iterator[None]:
    """
    Compute in the precision of the parameters, inside of ``torch.autocast`` too.

    Half precision has two or three digits, too few to tell two near policies apart. Autocast is a setting
    of the thread; what a network asks for itself, in its ``forward``, it gets.
    """
    with th.autocast("cpu", enabled=False), th.autocast("cuda", enabled=False):
        yield


def _validate_no_distribution() -> Callable[[], object]:
    validated = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    return lambda: th.distributions.Distribution.set_default_validate_args(validated)


@cache
def _thread_pools() -> ThreadpoolController:
    """Return the handle on the libraries behind NumPy; finding them takes milliseconds."""
    return ThreadpoolController()


# A distribution with parameters that are not finite yields NaN, which the step refuses, instead of raising. It also spares a
# pass over the parameters of every distribution made
unvalidated_distributions = SharedSetting(_validate_no_distribution)
# What is too small to share among threads is slower with them: they would wait for each other
one_blas_thread = SharedSetting(lambda: _thread_pools().limit(limits=1, user_api="blas").restore_original_limits)
