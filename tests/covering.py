"""
Which tests are traced for the coverage: ``make test`` loads this with ``-p tests.covering``.

Traced, Python before 3.12 takes half as long again for everything, torch and SB3 included. So only those tests are that can
cover what no other does: the tests of the modules, which stand where the module stands in the package. Promises and
benchmarks are made of the same lines. Nor is traced how pytest finds the tests; of the imports, those of our modules are.

A whole protocol is left out, fixtures included. The marker ``no_cover`` of pytest-cov would not do: in a worker of xdist it
stops one tracer, and another one, which pytest-cov has started there and forgotten, goes on in its place.
"""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

# SB3 brings torch, and both are imported before pytest-cov begins
import stable_baselines3  # noqa: F401
from coverage import Coverage

# Folders and files that are not traced
FREE = ("tests/promises/", "tests/benchmarks/")


class Tracing:
    """
    Turns the tracing on where it is wanted, and has it off everywhere else.

    :param coverage: what traces in this process
    """

    def __init__(self, coverage: Coverage):
        self.coverage = coverage
        while running := Coverage.current():
            running.stop()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Trace a test that covers."""
        if item.nodeid.startswith(FREE):
            return (yield)
        self.coverage.start()
        try:
            return (yield)
        finally:
            self.coverage.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Import our modules traced, and nothing else, where tests are going to run."""
    coverage = Coverage.current()
    if coverage is None or session.config.pluginmanager.has_plugin("dsession"):
        return (yield)
    session.config.pluginmanager.register(Tracing(coverage))
    importlib.import_module("torch._dynamo")
    import sb3_trpo

    coverage.start()
    for module in pkgutil.walk_packages(sb3_trpo.__path__, "sb3_trpo."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    coverage.stop()
    return (yield)
