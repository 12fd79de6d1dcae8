"""One update on many processes is the update that one process makes with all of the data."""

from typing import Any

import numpy as np
import pytest
import torch as th
import torch.distributed as dist
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_trpo import TRPO
from sb3_trpo.distributed import Processes
from sb3_trpo.randomness import RandomNumbers
from tests.oracles import relative_error
from tests.small_models import changed, policy_state, small_model
from tests.spawned import spawn, values_of
from tests.workers.learning import COUNTED
from tests.workers.updates import IN_ONE_GO, KINDS, N_ENVS, N_STEPS, InOrder, build, numbers_of, update

N_OWN = N_STEPS * N_ENVS


class OrdersOfAll(RandomNumbers):
    """What the processes draw, told as one drawing: the groups that they take at a time stand one after the other."""

    def __init__(self, size: int, groups: list[int]):
        super().__init__(0)
        self.ranks = [numbers_of(rank) for rank in range(size)]
        self.groups = iter(groups)

    def permutation(self, n: int) -> np.ndarray:
        group = next(self.groups)
        assert n == N_OWN * len(self.ranks)
        orders = []
        for rank, numbers in enumerate(self.ranks):
            step, env = divmod(numbers.permutation(N_OWN), N_ENVS)
            orders.append((step * len(self.ranks) + rank) * N_ENVS + env)
        return np.concatenate([order[at : at + group] for at in range(0, N_OWN, group) for order in orders])


def union(kind: str, parts: list[dict[str, np.ndarray]]) -> TRPO:
    """Return a model of one process with the rollouts of all, side by side."""
    model = build(kind, n_envs=N_ENVS * len(parts))
    model._setup_learn(10**6)
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        axis = 2 if name.startswith(("hidden_states", "cell_states")) else 1
        setattr(model.rollout_buffer, name, np.concatenate(arrays, axis=axis))
    model.rollout_buffer.pos, model.rollout_buffer.full = N_STEPS, True
    return model


def in_one_process(kind: str, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the same update with all of the data."""
    size = len(outcomes)
    model = union(kind, [outcome["rollout"] for outcome in outcomes])
    arguments = KINDS[kind][2]
    model.batch_size *= size
    factor = arguments.get("sub_sampling_factor", 1)
    thinned = [-(-N_OWN // factor)] if factor > 1 else []
    numbers = InOrder(0) if IN_ONE_GO.items() <= arguments.items() else OrdersOfAll(size, [*thinned, *[24] * 3])
    return update(model, numbers, chunk_size=40)


@pytest.fixture(scope="module", params=[2, 3])
def outcomes(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each of two or three processes made of one update of every kind."""
    return values_of(spawn("updates.updates", request.param, list(KINDS)))


@pytest.mark.parametrize("kind", KINDS)
def test_update_is_that_of_one_process_with_all_the_data(kind: str, outcomes: list[dict[str, Any]]) -> None:
    """Policy and critic, relative to the step, and what is said of it; bit for bit the same on every process."""
    ours = [outcome[kind] for outcome in outcomes]
    alone = in_one_process(kind, ours)
    precision = 1e-12 if "double" in kind else 2e-5
    assert all(th.equal(one["before"], alone["before"]) for one in ours)
    assert all(th.equal(ours[0]["after"], other["after"]) for other in ours)
    assert alone["status"] == "accepted" and ours[0]["num_timesteps"] == N_OWN * len(ours)
    moved, expected = ours[0]["after"] - ours[0]["before"], alone["after"] - alone["before"]
    assert expected.norm() > 1e-2
    assert relative_error(moved, expected) < precision
    for key in ("status", "refused", "paths"):
        assert ours[0][key] == alone[key]
    for key in ("numbers", "critic", "explained_variance", "entropy"):
        assert all(other[key] == pytest.approx(ours[0][key], rel=1e-9) for other in ours)
        np.testing.assert_allclose(ours[0][key], alone[key], rtol=1e-9 if "double" in kind else 1e-3, atol=1e-7)


def test_one_process_calls_nothing_of_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are its weights others than without the argument, by a bit."""
    alone = small_model().learn(128)
    for name in [name for name, value in vars(dist).items() if callable(value) and not isinstance(value, type)]:
        monkeypatch.setattr(dist, name, None)
    given = small_model(processes=Processes()).learn(128)
    assert not changed(policy_state(alone), policy_state(given))
    assert type(alone.processes) is Processes and "processes" in alone._excluded_save_params()
    with pytest.raises(TypeError, match=r"processes must be what sb3_trpo.distributed.join\(\) returns, or None, got 4"):
        small_model(processes=4)


@pytest.fixture(scope="module")
def of_updates() -> list[dict[str, Any]]:
    return values_of(spawn("learning.updates", 2, OMP_NUM_THREADS=["1", "2"]))


def test_weights_stay_the_same_bit_for_bit(of_updates: list[dict[str, Any]]) -> None:
    """For twenty updates of more than 100,000 weights, with another number of threads on each process."""
    one, other = (outcome["twenty_updates"] for outcome in of_updates)
    assert (one["threads"], other["threads"]) == (1, 2)
    assert one["n_updates"] == other["n_updates"] == 20 and one["n_weights"] > 100_000
    assert one["bits"] == other["bits"]


@pytest.mark.parametrize("kind", COUNTED)
def test_collectives_of_an_update_are_counted(kind: str, of_updates: list[dict[str, Any]]) -> None:
    """
    Two an iteration, one a candidate and nine; of the critic one a minibatch, and two; four for the report.

    A network that is no chain of layers has one more for the policy, and one for the critic, as any without fast ways has.
    """
    more = kind in ("no chain", "memory", "plain memory")
    for outcome in of_updates:
        counted = outcome["counted_updates"][kind]
        found = counted["counts"]
        fixed = found["policy"] - 2 * counted["iterations"] - counted["candidates"]
        assert fixed == 9 + more and (found["opening"], found["after"]) == (1, 4)
        # With fifteen iterations and ten candidates, the most that there are by default
        assert fixed + 2 * 15 + 10 <= 50
        if "memory" not in kind:  # their minibatches are of whole sequences
            assert found["critic"] == 5 * 64 // 16 + 2 + (kind != "default")


@pytest.fixture(scope="module")
def of_trainings() -> list[dict[str, Any]]:
    return values_of(spawn("learning.trainings", 2))


def test_steps_and_episodes_are_those_of_all(of_trainings: list[dict[str, Any]]) -> None:
    """Counters, windows and the progress bar; a window holds episodes of each process in turn."""
    outcomes = [outcome["statistics"] for outcome in of_trainings]
    for found in outcomes:
        assert found["num_timesteps"] == 2 * 40 * 2 * 2
        assert found["seen"] == list(range(4, 321, 4))
        assert found["successes"] == [False, True] * 4
        assert found["episodes"] == outcomes[0]["episodes"] and len(found["episodes"]) == 2 * 4
        assert found["bar"] == (320, 320)
        assert found["bits"] == outcomes[0]["bits"] and found["seed"] == 3
    assert outcomes[0]["observations"] != outcomes[1]["observations"]


def test_only_rank_0_writes_and_only_learn_waits(of_trainings: list[dict[str, Any]]) -> None:
    """Evaluation, checkpoints and the saved model are rank 0's; the other has neither a log nor a folder for it."""
    first, second = (outcome["statistics"] for outcome in of_trainings)
    assert first["files"] == ["TRPO_1", "best", "checkpoints", "model.zip"]
    assert first["checkpoints"] == ["rl_model_200_steps.zip"]
    assert first["outputs"] == ["HumanOutputFormat", "TensorBoardOutputFormat"]
    assert second["files"] == second["outputs"] == []


def test_loaded_model_goes_on_with_other_data_on_each(of_trainings: list[dict[str, Any]]) -> None:
    """What each draws is its own after `load` too; the weights are those of rank 0, whatever became of them elsewhere."""
    one, other = (outcome["loaded"] for outcome in of_trainings)
    assert one["initial"] != other["initial"]
    for found in (one, other):
        assert found["same as saved"] and found["seed"] == 0
        assert (found["alone"], found["copied"]) == ("Processes", "Processes")
        assert found["num_timesteps"] == 3 * 128 * 2
        assert found["bits"] == one["bits"]
    assert one["drawn"] != other["drawn"] and one["observations"] != other["observations"]


def test_running_statistics_have_seen_everything_once(of_trainings: list[dict[str, Any]]) -> None:
    """They are those of one that saw the observations and returns of all, through two calls of learn."""
    outcomes = [outcome["normalized"] for outcome in of_trainings]
    assert outcomes[0]["bits"] == outcomes[1]["bits"]
    np.testing.assert_array_equal(outcomes[0]["keyed"], outcomes[1]["keyed"])
    for name in ("observations", "returns"):
        came_in = np.concatenate([outcome[f"{name} came in"] for outcome in outcomes])
        seen = RunningMeanStd(shape=came_in.shape[1:])
        seen.update(came_in)
        for outcome in outcomes:
            mean, var, count = outcome[name]
            np.testing.assert_allclose(mean, seen.mean, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(var, seen.var, rtol=1e-9)
            assert count == pytest.approx(seen.count, rel=1e-12)


@pytest.fixture(scope="module")
def of_faults() -> list[dict[str, Any]]:
    return values_of(spawn("learning.faults", 2))


ENDS = {
    "nan": ("NonFiniteError: the reward", 256),
    "dies": ("OSError: the simulator has died", 207),
    "interrupted": ("KeyboardInterrupt", 207),
    "callback": ("ZeroDivisionError: division by zero", 208),
}


@pytest.mark.parametrize("how", ENDS)
def test_rollout_that_fails_on_one_ends_on_all(how: str, of_faults: list[dict[str, Any]]) -> None:
    """After the same update and with the same count of steps; the others name it, and learning can go on."""
    error, n = ENDS[how]
    here, there = (outcome["ended_jointly"][how] for outcome in of_faults)
    assert there["message"].startswith(error)
    assert here["message"].startswith(f"PeerError: process 1 of 2: {error}")
    for found in (here, there):
        assert (found["n_updates"], found["num_timesteps"]) == (1, n)
        assert found["again"] == "" and found["after"][0] == n + 256
        assert found["bits"] == here["bits"] and found["after"] == here["after"]


def test_callback_that_stops_one_stops_all(of_faults: list[dict[str, Any]]) -> None:
    """Without an error, and without an update from half a rollout."""
    here, there = (outcome["ended_jointly"]["stops"] for outcome in of_faults)
    for found in (here, there):
        assert (found["message"], found["n_updates"], found["num_timesteps"], found["again"]) == ("", 1, 208, "")
        assert found["bits"] == here["bits"] and found["after"] == here["after"]


def test_what_is_not_finite_on_one_is_the_status_on_all(of_faults: list[dict[str, Any]]) -> None:
    """With ``error_if_nonfinite=False``: no process moves its policy, and the next update is made by all."""
    here, there = (outcome["not_finite"] for outcome in of_faults)
    assert here["status"] == there["status"] == "rewards_not_finite"
    assert here["critic"] == there["critic"] == "steps_skipped" and here["moved"] == []
    assert here["bits"] == there["bits"] and here["after"] == there["after"]
    assert here["then"] == there["then"] == "accepted"


def test_parameters_that_are_not_finite_are_the_status_as_of_one_process(of_faults: list[dict[str, Any]]) -> None:
    """And not the actions that they gave."""
    alone = small_model(error_if_nonfinite=False)
    with th.no_grad():
        next(alone.policy.action_net.parameters()).fill_(th.nan)
    alone.learn(64)
    assert alone.last_update is not None and alone.last_update.step.status == "parameters_not_finite"
    assert [outcome["parameters_not_finite"]["status"] for outcome in of_faults] == ["parameters_not_finite"] * 2


@pytest.mark.parametrize(
    "what, message",
    {
        "argument": "batch_size must be the same on all processes, got 32 on process 0 and 16 on 1",
        "total": "total_timesteps must be the same on all processes, got 600 on process 0 and 500 on 1",
        "schedule": "target_kl must be the same on all processes, got 0.02 on process 0 and [0.03, 0.025, 0.02] on 1",
        "environments": "n_envs must be the same on all processes, got 1 on process 0 and 2 on 1",
        "space": "action_space must be the same on all processes, got Box(-1.0, 1.0, (3,), float32) on process 0 and",
        "weights": "the checksum of weights, optimizer and running statistics must be the same on all processes, got",
    }.items(),
)
def test_what_differs_between_processes_is_named_on_all(what: str, message: str, of_faults: list[dict[str, Any]]) -> None:
    """Before anything moves; once it is the same again learning goes on."""
    for outcome in of_faults:
        found = outcome["not_the_same"]
        assert found[what].startswith(f"PeerError: {message}")
        assert found["then"] == found["again"] == ""


def test_same_rollout_on_two_processes_is_warned_of_once(of_faults: list[dict[str, Any]]) -> None:
    for outcome in of_faults:
        (warning,) = outcome["not_the_same"]["warned"]
        assert warning.startswith("Processes 0 and 1 have made the same rollout, whose data count more than once.")
        assert outcome["not_the_same"]["logger"] == 1


@pytest.mark.parametrize("how, where", [("memory", "policy"), ("interrupted", "critic"), ("killed", "critic")])
def test_process_lost_in_an_update_leaves_the_policy_as_it_was(how: str, where: str) -> None:
    """Also where the step is made already; who is left says whom it misses, and refuses to go on."""
    outcomes = spawn("learning.lost_in_an_update", 2, how, where, JOIN_TIMEOUT=["20", "20"])
    (here,) = values_of(outcomes[:1])
    causes = {
        "memory": "PeerError: process 1 of 2: MemoryError: no more of it",
        "interrupted": "PeerError: process 1 of 2: KeyboardInterrupt",
        "killed": "PeerError: no word from process 1 of 2: ended, or later than the 20 s of the time-out",
    }
    assert here["message"] == causes[how]
    survivors = [here] if how == "killed" else values_of(outcomes)
    for found in survivors:
        assert found["is as before"] and found["n_updates"] == 1
        assert found["again"].endswith("begin again with join() on all")
