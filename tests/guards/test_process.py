"""Settings of the process are changed by the first one in, and put back by the last one out."""

import multiprocessing
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch as th
from threadpoolctl import threadpool_limits

from sb3_trpo.guards.process import SharedSetting, drawing, forward_mode, one_blas_thread, unvalidated_distributions
from tests.promises.test_threads import process_state
from tests.spawned import exit_code_of


@pytest.mark.parametrize("context", [unvalidated_distributions, one_blas_thread], ids=["validation", "threads"])
def test_shared_setting_is_put_back_by_the_last_one_out(context: SharedSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever came first may leave first: the setting stays until nobody needs it."""
    # torch.compile turns the validation off for good
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)
    with threadpool_limits(2, user_api="blas"):
        before = process_state()
        first, second = context(), context()
        first.__enter__()
        changed_state = process_state()
        assert changed_state != before
        second.__enter__()
        first.__exit__(None, None, None)
        assert process_state() == changed_state
        second.__exit__(None, None, None)
        assert process_state() == before


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def enter_and_leave_interrupted() -> None:
    """Be interrupted five hundred times, wherever a signal finds the process."""
    signal.signal(signal.SIGALRM, interrupt)
    th.distributions.Distribution.set_default_validate_args(True)
    rng = np.random.default_rng(0)
    for _ in range(500):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-4))
            while True:
                with unvalidated_distributions():
                    pass
        except KeyboardInterrupt:
            pass
        # Where the way out itself was cut, it is gone once nobody holds the interrupt any more
        assert th.distributions.Distribution._validate_args
    with unvalidated_distributions():
        assert not th.distributions.Distribution._validate_args
    assert th.distributions.Distribution._validate_args


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts itself with a timer of Unix")
def test_shared_setting_is_put_back_whenever_an_interrupt_comes() -> None:
    """Ctrl-C may come between any two calls, as one enters and as one leaves too."""
    # A process of its own: what traces this one is not made for that
    assert exit_code_of(enter_and_leave_interrupted) == 0


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_process_that_is_forked_while_a_thread_is_inside_goes_on() -> None:
    """The thread is not there to give locks and settings back."""
    forks = multiprocessing.get_context("fork")
    found = forks.SimpleQueue()
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with drawing, forward_mode, unvalidated_distributions():
            inside.set()
            leave.wait(60.0)

    def work() -> None:
        at_first = th.distributions.Distribution._validate_args
        with drawing, forward_mode, unvalidated_distributions():
            changed = th.distributions.Distribution._validate_args
        found.put((at_first, changed, th.distributions.Distribution._validate_args))

    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(True)
    thread = threading.Thread(target=stay)
    process = forks.Process(target=work)
    try:
        thread.start()
        assert inside.wait(60.0)
        process.start()
        process.join(60.0)
        assert process.exitcode == 0 and found.get() == (True, False, True)
    finally:
        process.kill()
        leave.set()
        thread.join()
        assert th.distributions.Distribution._validate_args
        th.distributions.Distribution.set_default_validate_args(before)
