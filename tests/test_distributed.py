"""Processes that meet, and how they part: real ones, with gloo on this machine."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch as th
import torch.distributed as dist

from sb3_trpo.distributed import PeerError, Processes, TorchProcesses, join
from tests.spawned import spawn, values_of


def test_one_process_is_the_identity_of_everything() -> None:
    """It hands back the very same objects, runs a part as it is, and never calls what is for several."""
    processes, value = Processes(), th.ones(3)
    assert (processes.rank, processes.size) == (0, 1)
    assert processes.total(value) is value and processes.agree(value) is value and processes.largest(value) is value
    assert processes.gather(value) == [value]

    def never(*_: Any) -> None:
        raise AssertionError

    with processes.jointly(never, never), processes.in_step():
        processes.leave("nobody hears it")
    with pytest.raises(KeyError), processes.in_step(), processes.jointly(never, never):
        raise KeyError


def test_join_is_one_process_unless_torchrun_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a call into torch.distributed."""
    for name in [name for name in vars(dist) if callable(getattr(dist, name)) and not isinstance(getattr(dist, name), type)]:
        monkeypatch.setattr(dist, name, None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert type(join()) is Processes
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert type(join(timeout=3.0)) is Processes


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_join_refuses_a_time_out_that_is_none(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be a number of seconds > 0, got"):
        join(timeout=timeout)


def test_join_says_that_others_have_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """In words of our own, and within the time-out."""
    from tests.spawned import free_port

    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(PeerError, match=r"not all processes have joined within 0\.5 s: "):
        join(timeout=0.5)
    assert not dist.is_initialized()


@pytest.fixture
def of_one() -> Iterator[TorchProcesses]:
    """A group of one process in this one: the engine is the same, and nobody is waited for."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield TorchProcesses(timeout=5.0, store=dist.HashStore())  # type: ignore[attr-defined]
    dist.destroy_process_group()


def test_group_of_one_meets_itself(of_one: TorchProcesses) -> None:
    """Its sums are its own, in memory of their own."""
    value = th.tensor([1.0, -2.0])
    for met in (of_one.total(value), of_one.largest(value), of_one.agree(value)):
        assert th.equal(met, value) and met.data_ptr() != value.data_ptr()
    assert of_one.agree({"a": 1}) == {"a": 1} and of_one.gather("b") == ["b"]
    reports: list[int] = []
    with pytest.raises(ArithmeticError), of_one.in_step(), of_one.jointly(lambda: 7, reports.extend):
        raise ArithmeticError
    assert reports == [7] and of_one.gather(1) == [1]


def test_who_has_left_stays_away(of_one: TorchProcesses) -> None:
    """Whatever it is asked for; it has told why, and how many times it leaves is no matter."""
    with pytest.raises(KeyError), of_one.in_step():
        raise KeyError("a")
    with pytest.raises(PeerError, match=r"process 0 has left the others \(KeyError: 'a'\): begin again with join\(\) on all"):
        of_one.total(th.ones(1))
    of_one.leave("again")
    assert of_one._store.get("left/0") == b"KeyError: 'a'"


@pytest.mark.parametrize(
    "left, message",
    [
        ({1: "OSError: no"}, "process 1 of 3: OSError: no"),
        ({1: ""}, "no word from process 2 of 3: ended, or later than the 5 s of the time-out"),
        ({1: "", 2: ""}, "the connection to the others broke: RuntimeError: the engine says"),
    ],
)
def test_error_of_the_engine_becomes_ours(
    left: dict[int, str], message: str, of_one: TorchProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the word of those who have left one, else of whom there is no word; memory that is full is no peer's fault."""
    of_one.size = 3
    for rank, why in left.items():
        of_one._store.set(f"left/{rank}", why)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the engine says\nmuch")

    monkeypatch.setattr(dist, "all_reduce", broken)
    with pytest.raises(PeerError) as raised:
        of_one.total(th.ones(1))
    assert str(raised.value) == message

    def full(*_: Any, **__: Any) -> None:
        raise th.OutOfMemoryError

    monkeypatch.setattr(dist, "all_reduce", full)
    with pytest.raises(th.OutOfMemoryError):
        of_one.total(th.ones(1))


@pytest.fixture(scope="module")
def three() -> list[dict[str, Any]]:
    """What three processes found in everything that they did together."""
    return values_of(spawn("engine.meet_and_part", 3))


def test_processes_meet(three: list[dict[str, Any]]) -> None:
    """Sums, largest values, the word of rank 0 and of each: the same on all, and what was given stays as it was."""
    for rank, found in enumerate(one["everything"] for one in three):
        assert found["place"] == (rank, 3)
        assert found["total"].tolist() == [1.5 + 3.0 + 4.5, -3.0]
        assert float(found["scalar"]) == 0.5 + 1.5 + 2.5
        assert th.equal(found["strided"], 3 * th.arange(6.0).view(2, 3).t())
        # To all at once, and around in a ring
        exact = th.arange(1000.0, dtype=th.float64).view(20, 50).t() * (1 / 3 + 1 / 4 + 1 / 5)
        assert th.equal(found["vector"], three[0]["everything"]["vector"]) and found["vector"].shape == (50, 20)
        th.testing.assert_close(found["vector"].double(), exact, rtol=1e-6, atol=0.0)
        th.testing.assert_close(found["large"], th.full((2**20,), 3.3))
        assert found["own"].tolist() == [1.5 * (rank + 1), -rank]
        assert found["largest"].tolist() == [4.5, 0.0]
        assert found["agreed tensor"].tolist() == [1.5, 0.0] and found["agreed object"] == {"of": 0}
        assert found["gathered"] == [("rank", 0), ("rank", 1), ("rank", 2)]
        assert found["reports"] == [0, 10, 20]


def test_part_that_fails_ends_on_all(three: list[dict[str, Any]]) -> None:
    """Who failed raises its own error, the others name it; what was told is told first, and all can go on afterwards."""
    outcomes = [found["fails_jointly"] for found in three]
    others = "PeerError: process 1 of 3: ValueError: no luck; process 2 of 3: KeyboardInterrupt"
    assert [found["message"] for found in outcomes] == [others, "ValueError: no luck\non 1", "KeyboardInterrupt: "]
    assert all(found["reports"] == [0, 1, 2] and found["total"] == 3.0 for found in outcomes)


def test_what_all_find_out_together_is_raised_on_all(three: list[dict[str, Any]]) -> None:
    """And they stay together: a second time too."""
    assert [found["disagree"] for found in three] == [["not the same"] * 2] * 3


def test_copy_of_several_processes_is_alone(three: list[dict[str, Any]]) -> None:
    """A copy of a model on one process must not wait for the others: pickled, or copied deeply."""
    assert [found["copies"] for found in three] == [["Processes", "Processes"]] * 3


def test_step_that_fails_ends_at_once_on_all(three: list[dict[str, Any]]) -> None:
    """Long before the time-out, with the cause; nobody goes on with sums that lack a part, and all can join anew."""
    for rank, found in enumerate(three):
        first, second = found["fails_in_step"]["said"]
        assert found["fails_in_step"]["seconds"] < 20.0
        if rank == 2:
            assert first == "ArithmeticError: one too many"
        else:
            assert first == "PeerError: process 2 of 3: ArithmeticError: one too many"
        assert second.startswith(f"PeerError: process {rank} has left the others (")
        assert second.endswith("begin again with join() on all")
        assert found["again"] == 3.0
        assert found["threads"] == (True, 0)  # at the end of the process: one that is late would abort it


@pytest.mark.parametrize("who", [0, 1])
def test_process_that_is_killed_is_missed(who: int) -> None:
    """Process 0 too, with which goes the place where the others look for its last word."""
    outcomes = spawn("engine.lost", 3, "killed", who)
    assert outcomes[who].code == -9
    for rank in {0, 1, 2} - {who}:
        (found,) = values_of([outcomes[rank]])
        assert found["seconds"] < 20.0
        expected = "process 0, or torchrun, has ended" if who == 0 else "no word from process 1 of 3: ended, or later"
        assert expected in found["said"]


def test_process_that_is_late_is_not_waited_for() -> None:
    """The others end within the time-out; the late one hears that they have gone."""
    early, late = values_of(spawn("engine.lost", 2, "late", 1, JOIN_TIMEOUT=["3", "3"]))
    assert 2.0 < early["seconds"] < 20.0
    assert "no word from process 1 of 2: ended, or later than the 3 s of the time-out" in early["said"]
    assert late["said"]


def test_process_group_that_is_there_already_is_joined() -> None:
    """As with ``torch.multiprocessing.spawn``: one process alone would be as many runs of the same training."""
    assert values_of(spawn("engine.in_a_group_of_ones_own", 2)) == [(0, 2, 2.0), (1, 2, 2.0)]
