"""Settings of the whole process, changed for a while, and put back when the last of several threads is done."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch as th
from threadpoolctl import ThreadpoolController

# SB3 seeds the generators of the process and then draws a network's weights from them: one model at a time
building = threading.RLock()


class SharedSetting:
    """
    A context in which a setting of the process is another one.

    Threads may be inside at the same time. The first one in changes the setting, and the last one out puts it back.

    :param change: changes the setting, and returns what puts it back
    """

    def __init__(self, change: Callable[[], Callable[[], object]]):
        self._change = change
        self._lock = threading.Lock()
        self._n_inside = 0
        self._put_back: Callable[[], object] = lambda: None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enter the context."""
        with self._lock:
            if self._n_inside == 0:
                self._put_back = self._change()
            self._n_inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_inside -= 1
                if self._n_inside == 0:
                    self._put_back()


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
