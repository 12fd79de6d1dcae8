"""Nothing ships that was not run: every entry for RL Zoo has runs on record, with the hyperparameters that it has now."""

from pathlib import Path

import pytest
import yaml

from benchmarks import settings
from benchmarks.results import RESULTS, known_arguments
from benchmarks.train import ALGORITHMS
from sb3_trpo.zoo import HYPERPARAMETERS

RECORDS = [RESULTS.parent / name for name in ("returns", "untouched", "no_velocities")]
ENTRIES = [
    (algorithm, name)
    for algorithm, path in HYPERPARAMETERS.items()
    for name in yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if name != "default"
]


@pytest.mark.parametrize("algorithm, name", ENTRIES)
def test_entries_were_run_as_they_are(algorithm: str, name: str) -> None:
    """Three seeds at least, as many steps as the entry says among the rest. One game stands for Atari, over fewer steps."""
    envs = settings.GROUPS["atari"] if name == "atari" else (name,)
    written = yaml.safe_load(Path(HYPERPARAMETERS[algorithm]).read_text(encoding="utf-8"))[name]
    entry = settings.load(algorithm, settings.TUNED, envs[0])
    if name != "atari":
        assert entry["n_timesteps"] == written["n_timesteps"]
    now = settings.with_defaults(ALGORITHMS[algorithm], entry)
    seeds = {
        run.seed
        for record in RECORDS
        for run, arguments in known_arguments(record).items()
        if run.algorithm == algorithm and run.env in envs and {**now, **arguments} == now
    }
    assert len(seeds) >= (1 if name == "atari" else 3)
