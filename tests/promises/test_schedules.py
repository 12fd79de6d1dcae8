"""Schedules: learning_rate, target_kl and cg_damping may be functions of the progress remaining, as in SB3."""

import math
import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_trpo import TRPO, UpdateReport
from tests.small_models import changed, make_env, policy_state, small_model


class Remembering(TRPO):
    """TRPO that keeps the report of every update, with the critic's learning rate."""

    reports: tuple[tuple[UpdateReport, float], ...] = ()

    def train(self) -> None:
        super().train()
        assert self.last_update is not None
        self.reports += ((self.last_update, self.policy.optimizer.param_groups[0]["lr"]),)


def remembering(total_timesteps: int = 256, **arguments: Any) -> Remembering:
    model = small_model(Remembering, **arguments)
    assert isinstance(model, Remembering)
    model.learn(total_timesteps)
    return model


SCHEDULES: dict[str, Any] = {
    "SB3's linear": LinearSchedule(0.04, 0.01, 1.0),
    "SB3's constant": ConstantSchedule(0.02),
    "SB3's float": FloatSchedule(0.02),
    "a function": lambda remaining: 0.01 + 0.03 * remaining**2,
    "of numpy's numbers": lambda remaining: np.float32(0.02 + remaining / 64),
    "of tensors": lambda remaining: th.tensor(0.02 + remaining / 64),
}


CONSTANTS: dict[str, Any] = {"learning_rate": 1e-3, "target_kl": 0.01, "cg_damping": 0.1}


# Every schedule for all of them at once, and one for each alone
@pytest.mark.parametrize(
    "names, schedule",
    [
        *(pytest.param([*CONSTANTS], schedule, id=name) for name, schedule in SCHEDULES.items()),
        *(pytest.param([name], SCHEDULES["SB3's linear"], id=name) for name in CONSTANTS),
    ],
)
def test_schedule_is_in_force_at_each_update(names: list[str], schedule: Any) -> None:
    """Each update uses the schedule's value after its rollout, the constants around it stay, and the limit is kept."""
    model = remembering(**(CONSTANTS | dict.fromkeys(names, schedule)))
    assert len(model.reports) == 4
    for index, (report, learning_rate) in enumerate(model.reports):
        expected = CONSTANTS | dict.fromkeys(names, float(schedule(0.75 - index / 4)))
        assert {"learning_rate": learning_rate, "target_kl": report.max_kl, "cg_damping": report.damping} == expected
        assert report.step.accepted and report.step.mean_kl <= report.max_kl
    assert all(getattr(model, name) is schedule for name in names)


def test_damping_of_a_schedule_is_that_of_the_solve() -> None:
    """A schedule that is constant gives the same weights as the constant, bit for bit; another one leads elsewhere."""
    constant, schedule, other = (remembering(cg_damping=value) for value in (0.7, lambda _: 0.7, lambda _: 1e-3))
    assert not changed(policy_state(constant), policy_state(schedule))
    assert changed(policy_state(constant), policy_state(other))


@pytest.mark.parametrize("name", ["target_kl", "cg_damping"])
def test_number_set_between_updates_is_in_force(name: str) -> None:
    """The attribute is asked at each update, so that user code may change it."""
    model = remembering(64)
    setattr(model, name, 0.05)
    model.learn(64, reset_num_timesteps=False)
    report, _ = model.reports[-1]
    assert {"target_kl": report.max_kl, "cg_damping": report.damping}[name] == 0.05


def test_schedule_that_ends_at_zero_ends_the_steps_and_not_the_run() -> None:
    """With no region left the policy stays bit for bit, the critic learns on, and the report says why."""
    model = small_model(Remembering, target_kl=lambda remaining: 0.02 * remaining)
    assert isinstance(model, Remembering)
    model.learn(64)
    before = policy_state(model)
    model.learn(64)
    (first, _), (last, _) = model.reports
    assert first.step.status == last.step.status == "limit_zero" and last.max_kl == 0.0
    moved = changed(before, policy_state(model))
    assert moved and all("value" in name for name in moved)
    model.learn(128)
    assert [report.step.status for report, _ in model.reports[2:]] == ["accepted", "limit_zero"]


def test_schedule_is_never_asked_beyond_the_end() -> None:
    """The last rollout goes beyond total_timesteps; the progress remaining stays in [0, 1] for every schedule."""
    asked: list[float] = []

    def schedule(remaining: float) -> float:
        asked.append(remaining)
        return 0.02 * remaining

    model = remembering(100, learning_rate=schedule, target_kl=schedule, cg_damping=schedule)
    assert model.num_timesteps == 128
    assert min(asked) == 0.0 and max(asked) == 1.0
    assert model.reports[-1][1] == 0.0


BAD_SCHEDULES: dict[str, tuple[Any, type[Exception], str]] = {
    "nan": (lambda _: math.nan, ValueError, "nan"),
    "infinite": (lambda _: math.inf, ValueError, "inf"),
    "negative": (lambda _: -1e-3, ValueError, "-0.001"),
    "none": (lambda _: None, TypeError, "None"),
    "array": (lambda _: np.zeros(2), TypeError, "array"),
}


@pytest.mark.parametrize("schedule, error, shown", BAD_SCHEDULES.values(), ids=BAD_SCHEDULES)
@pytest.mark.parametrize("name", ["learning_rate", "target_kl", "cg_damping"])
def test_schedule_that_cannot_work_is_refused_at_construction(
    name: str, schedule: Any, error: type[Exception], shown: str, tmp_path: pathlib.Path
) -> None:
    """The error names the argument and what the schedule returned; load refuses the same."""
    with pytest.raises(error, match=name) as refusal:
        small_model(**{name: schedule})
    assert shown in str(refusal.value)
    small_model().save(tmp_path / "model")
    with pytest.raises(error, match=name):
        TRPO.load(tmp_path / "model", device="cpu", **{name: schedule})


# Which values are refused of which is held at construction
@pytest.mark.parametrize("name, value", [("learning_rate", math.nan), ("target_kl", -1.0), ("cg_damping", None)])
def test_schedule_that_goes_wrong_later_stops_before_anything_moves(name: str, value: Any) -> None:
    """An update whose numbers cannot work raises, and policy and optimizer are bit for bit what they were."""
    schedule: Any = lambda remaining: 0.01 if remaining > 0.4 else value  # noqa: E731
    model = small_model(**{name: schedule})
    at_rollout_end: list[tuple[dict[str, th.Tensor], str]] = []

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            at_rollout_end.append((policy_state(model), str(model.policy.optimizer.state_dict())))

    with pytest.raises((TypeError, ValueError), match=r"progress_remaining=0\.0|NoneType"):
        model.learn(128, callback=Keep())
    (first, _), (second, optimizer) = at_rollout_end
    assert changed(first, second) and not changed(second, policy_state(model))
    assert (str(model.policy.optimizer.state_dict()), model._n_updates) == (optimizer, 1)


@pytest.mark.parametrize("name", ["target_kl", "cg_damping"])
def test_constant_spoiled_by_hand_is_refused_at_the_next_update(name: str) -> None:
    """What the constructor would refuse does not pass as an attribute either."""
    model = small_model().learn(64)
    before = policy_state(model)
    setattr(model, name, -1.0)
    with pytest.raises(ValueError, match=f"{name}.*-1.0"):
        model.learn(64)
    assert not changed(before, policy_state(model))


def test_schedules_survive_the_zip(tmp_path: pathlib.Path) -> None:
    """A model with schedules comes back with them and goes on as one that was never saved."""
    arguments: dict[str, Any] = {
        "target_kl": lambda remaining: 0.01 + 0.02 * remaining,
        "cg_damping": LinearSchedule(0.3, 0.1, 1.0),
        "learning_rate": LinearSchedule(1e-3, 1e-4, 1.0),
    }
    model = small_model(Remembering, **arguments).learn(64)
    model.save(tmp_path / "model")
    loaded = Remembering.load(tmp_path / "model", make_env(), device="cpu")
    for name, schedule in arguments.items():
        assert getattr(loaded, name)(0.3) == schedule(0.3)
    model.set_env(make_env())
    for each in (model, loaded):
        each.set_random_seed(5)
        each.learn(128, reset_num_timesteps=False)
    assert not changed(policy_state(model), policy_state(loaded))
    assert [r.max_kl for r, _ in loaded.reports[-2:]] == pytest.approx([0.01 + 0.02 / 3, 0.01])
