"""A run to look at and to draw, made once and written to by nobody."""

import math
from pathlib import Path

import pytest

from sb3_trpo.inspect import Run, TrustRegionRecorder, UpdateRecord, read_run
from sb3_trpo.trust_region import Candidate
from tests.small_models import monitored, small_model


@pytest.fixture(autouse=True)
def coarse_here(coarse: None) -> None:
    """Measure slices at few points, in all of these tests."""


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of six updates, pictures of every third of them included."""
    folder = tmp_path_factory.mktemp("run")
    small_model(env=monitored()).learn(6 * 64, callback=TrustRegionRecorder(folder, pictures_every=3))
    return folder


@pytest.fixture(scope="session")
def run(recorded: Path) -> Run:
    return read_run(recorded)


@pytest.fixture(scope="session")
def healthy(run: Run) -> UpdateRecord:
    """Return an update as it should be."""
    kept = Candidate(1.0, 0.09, 0.009, "")
    return run.updates[-1]._replace(
        status="accepted",
        max_kl=0.01,
        mean_kl=0.009,
        expected_kl=0.01,
        surrogate_gain=0.09,
        expected_gain=0.1,
        full_step_gain=0.1,
        step_fraction=1.0,
        candidates=(kept,),
        cg_residual_norms=(1.0, 0.1, 0.01),
        cg_stopped_by="max_iterations",
        entropy=1.0,
        std=math.nan,
        explained_variance=0.7,
    )
