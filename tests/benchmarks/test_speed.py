"""The benchmark of speed: what it runs, and what it keeps."""

import time
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.speed import chosen, run_case, save
from benchmarks.speed_cases import BOTH, CASES, NETWORKS, PLAIN, STEPPING, Case, can_run, make_model

SMALL = Case("small", "cheap", 4, 32, 2, n_critic_updates=1, algorithms=BOTH)


@pytest.mark.parametrize("clock", [time.perf_counter, time.process_time])
def test_small_case_is_timed(clock: speed.Clock) -> None:
    """Both algorithms, in collection and training, in seconds of either kind."""
    rows = run_case(SMALL, list(BOTH), "cpu", clock)
    assert [row["algorithm"] for row in rows] == list(BOTH)
    for row in rows:
        assert row["steps"] == 128
        assert 0.0 < row["collect"] <= row["collect+train"] < 60.0
        assert row["train"] > 0.0


def test_parts_of_a_collection_are_timed_alone() -> None:
    """The environments and the networks, of the same rollout."""
    algorithms = ["trpo", NETWORKS, STEPPING]
    collected = {row["algorithm"]: row["collect"] for row in run_case(SMALL, algorithms, "cpu", time.process_time)}
    assert collected.keys() == set(algorithms) and all(seconds > 0.0 for seconds in collected.values())


def test_what_is_on_record_stays_and_is_not_missing(tmp_path: Path) -> None:
    """A case that is run again replaces its rows and leaves the others."""
    path = tmp_path / "speed.csv"
    names = [case.name for case in CASES]
    row = {field: 1.0 for field in speed.FIELDS[2:]} | {"algorithm": "trpo"}
    save([row | {"case": names[1]}], path)
    save([row | {"case": names[0]}], path)
    again = save([row | {"case": names[1], "train": 2.0}], path)
    assert [(kept["case"], kept["train"]) for kept in again] == [(names[0], 1.0), (names[1], 2.0)]
    assert [case.name for case in chosen([], path, missing=True)] == [case.name for case in CASES[2:] if can_run(case)]


def test_case_is_chosen_by_its_name_or_a_part_of_it(tmp_path: Path) -> None:
    """The name of one case is a part of others'."""
    path = tmp_path / "none.csv"
    assert [case.name for case in chosen(["HalfCheetah-v5, 8 envs"], path, missing=False)] == ["HalfCheetah-v5, 8 envs"]
    assert len(list(chosen(["cost of steps"], path, missing=False))) == 3


OWN_POLICIES = [case for case in CASES if (case.arguments or case.wrapper) and not case.variant]


@pytest.mark.parametrize("case", OWN_POLICIES, ids=lambda case: case.name)
def test_policies_of_the_cases_are_on_the_fast_paths(case: Case) -> None:
    """Or the row would measure something else."""
    model = make_model("trpo", case._replace(n_steps=128, n_critic_updates=1))
    model.learn(128)
    assert "plain" not in model.paths_in_use.values()


@pytest.mark.parametrize("case", [case for case in CASES if case.variant], ids=lambda case: case.name)
def test_variants_of_the_cases_are_on_the_fast_paths(case: Case) -> None:
    """All that there are for them; the plain ones are on none, and what stands beside them trains."""
    small = case._replace(n_steps=128, n_critic_updates=1)
    ours = make_model("trpo", small)
    ours.learn(128)
    assert ours.paths_in_use["collection"] == "lean" and ours.paths_in_use["Fisher products"] == "Gauss-Newton"
    for algorithm in case.algorithms[1:]:
        model = make_model(algorithm, small)
        model.learn(128)
        assert algorithm != PLAIN or set(model.paths_in_use.values()) == {"plain"}
        assert model.num_timesteps == 128
