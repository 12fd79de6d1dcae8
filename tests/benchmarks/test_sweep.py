"""A sweep runs what is missing, goes on after a failure, leaves nothing half done, and knows what is on record."""

import os
import signal
import sys
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from benchmarks import settings
from benchmarks.results import collect, known_arguments, read
from benchmarks.sweep import main, missing, parse_seeds, sweep
from benchmarks.train import Run
from sb3_trpo import TRPO
from tests.benchmarks.fake_runs import QUICK, write_run


def test_sweep_runs_what_is_missing_and_goes_on_after_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is finished, one to run and one that cannot: the good ones are on record, and no run of another sweep."""
    jobs = [Run("quick", "CartPole-v1", "trpo", seed) for seed in (0, 1)]
    broken = Run("quick", "CartPole-v1", "trpo", -1)
    results = tmp_path / "results"
    write_run(jobs[0], tmp_path / "runs")
    write_run(jobs[0]._replace(seed=7), tmp_path / "runs")
    assert sweep([broken, *jobs], workers=2, runs=tmp_path / "runs", results=results) == [broken]
    assert "quick/CartPole-v1/trpo/-1 failed" in capsys.readouterr().out
    assert set(known_arguments(results)) == set(jobs)
    before = {path.name: path.read_text() for path in results.iterdir()}
    assert sweep(jobs, runs=tmp_path / "elsewhere", results=results) == []
    assert "2 runs, 2 of them finished before" in capsys.readouterr().out
    assert {path.name: path.read_text() for path in results.iterdir()} == before
    assert set(read("curves", results)["seed"]) == {0, 1}


@pytest.mark.slow
def test_sweep_that_is_told_to_end_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM ends the workers too, and their folders go."""
    words = [*"--envs CartPole-v1 --algorithms trpo --settings classic --seeds 100 --runs".split(), str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["sweep", *words, "--results", str(tmp_path / "results")])
    folder = Run("classic", "CartPole-v1", "trpo", 100).folder(tmp_path / "runs").parent
    begun: list[Path] = []
    over = Event()

    def end() -> None:
        deadline = time.monotonic() + 180
        while not begun and time.monotonic() < deadline and not over.wait(0.1):
            begun.extend(folder.glob(".100-*/progress.csv"))
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    try:
        Thread(target=end, daemon=True).start()
        with pytest.raises(SystemExit, match="1"):
            main()
    finally:
        over.set()
        signal.signal(signal.SIGTERM, before)
    assert begun, "the run did not begin"
    assert list(folder.iterdir()) == []


def test_sweep_refuses_a_record_made_with_other_hyperparameters(tmp_path: Path) -> None:
    """A setting that changed under its name would pass old runs off as its own."""
    run = Run("quick", "CartPole-v1", "trpo", 0)
    write_run(run, tmp_path / "runs", hyperparameters={**QUICK, "gamma": 0.5})
    collect(tmp_path / "runs", tmp_path)
    with pytest.raises(ValueError, match=r"quick/CartPole-v1/trpo/0 is on record with another gamma than its setting has now"):
        missing([run], tmp_path)


def test_sweep_finds_finished_what_has_been_given_up() -> None:
    """A setting that is on record and no longer written down need not and cannot be run; a seed of it that is not says so."""
    (setting, *_) = {run.setting for run in known_arguments()} - settings.names()
    finished = next(run for run in known_arguments() if run.setting == setting)
    assert missing([finished]) == []
    with pytest.raises(KeyError, match=f"no entry '{setting}'"):
        missing([finished._replace(seed=12345)])


def test_sweep_does_not_repeat_what_ran_with_what_shipped_then(tmp_path: Path) -> None:
    """A setting that changes after a comparison leaves the comparison as it was made; another seed is missing as ever."""
    then = Run("second-round", "Hopper-v5", "trpo", 10)
    write_run(then, tmp_path / "runs", hyperparameters=settings.load("trpo", "second-round", "Hopper-v5"))
    collect(tmp_path / "runs", tmp_path)
    now = then._replace(setting=settings.TUNED)
    assert missing([now, now._replace(seed=11), now._replace(algorithm="ppo")], tmp_path) == [
        now._replace(seed=11),
        now._replace(algorithm="ppo"),
    ]


def test_seeds_are_numbers_and_ranges() -> None:
    """Both ends are included."""
    assert parse_seeds(["0-4", "100", "7-7"]) == [0, 1, 2, 3, 4, 100, 7]


def test_sweep_refuses_a_record_made_with_another_default(tmp_path: Path) -> None:
    """A default that changes in the library changes every setting that leaves it out; one that is new changes none."""
    run = Run("quick", "CartPole-v1", "trpo", 0)
    write_run(run, tmp_path / "runs", hyperparameters={**QUICK, "target_kl": 0.5})
    collect(tmp_path / "runs", tmp_path)
    with pytest.raises(ValueError, match="another target_kl than its setting has now"):
        missing([run], tmp_path)
    arguments = settings.with_defaults(TRPO, QUICK)
    del arguments["gae_lambda"]
    write_run(run, tmp_path / "again", hyperparameters=arguments)
    collect(tmp_path / "again", tmp_path / "other")
    assert missing([run], tmp_path / "other") == []
