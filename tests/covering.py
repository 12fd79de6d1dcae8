"""
Which tests are traced for the coverage: ``make test`` loads this with ``-p tests.covering``.

Whatever is traced takes half as long again with Python 3.11, torch and SB3 included. So only those tests are that cover
what no other does: the tests of the modules, without the long ones among them whose lines the others cover, which are
marked ``untraced``. Promises and benchmarks are made of the same lines. Nor is traced how pytest finds the tests; of all
that is imported, our modules are.

A test is left out with its fixtures. The marker ``no_cover`` of pytest-cov would not do: in a worker of xdist it stops one
tracer, and another, which pytest-cov has started there and forgotten, goes on in its place.
"""

import importlib
import pkgutil
from collections.abc import Generator

import pytest

# SB3 brings torch: both are imported here, before pytest-cov begins
import stable_baselines3  # noqa: F401
from coverage import Coverage

FOLDERS_LEFT_OUT = ("tests/promises/", "tests/benchmarks/")


class Tracing:
    """
    Traces the tests that cover, and nothing else.

    :param coverage: what pytest-cov has begun in this process
    """

    def __init__(self, coverage: Coverage):
        self.coverage = coverage
        while running := Coverage.current():
            running.stop()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if item.nodeid.startswith(FOLDERS_LEFT_OUT) or item.get_closest_marker("untraced"):
            return (yield)
        self.coverage.start()
        try:
            return (yield)
        finally:
            self.coverage.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Import our modules traced, where tests are going to run; from then on it is decided for each test."""
    coverage = Coverage.current()
    if coverage is None or session.config.pluginmanager.has_plugin("dsession"):
        return (yield)
    session.config.pluginmanager.register(Tracing(coverage))
    # The first optimizer would import it
    importlib.import_module("torch._dynamo")
    import sb3_trpo

    coverage.start()
    for module in pkgutil.walk_packages(sb3_trpo.__path__, "sb3_trpo."):
        importlib.import_module(module.name)
    coverage.stop()
    return (yield)
