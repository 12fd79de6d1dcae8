"""What every test shares: one thread, repeatable property tests, and the five kinds of policy."""

import multiprocessing

import pytest
import torch as th
from hypothesis import settings

from tests.cases import ACTION_SPACES, PolicyCase, make_case

th.set_num_threads(1)
# Processes are forked from one that has imported what they need: that takes longer than what most of them do
multiprocessing.set_forkserver_preload(
    ["torch._dynamo", *(f"tests.workers.{m}" for m in ("joined", "engine", "learning", "updates"))]
)
# The same examples on every run: a red test is red for whoever looks at it
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure slices at few points: what is tested is where they lie, not how smooth the picture is."""
    monkeypatch.setattr("sb3_trpo.inspect.planes.SLICE_POINTS", 7)


@pytest.fixture(params=list(ACTION_SPACES))
def case(request: pytest.FixtureRequest) -> PolicyCase:
    """A float64 policy away from its initial weights and a batch, for each of the five action distributions."""
    return make_case(request.param)
