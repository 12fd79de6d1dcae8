"""What stands between a collection loop and the user's callback passes everything on."""

from typing import Any

import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EvalCallback,
    ProgressBarCallback,
)

from sb3_trpo.guards.passed_on import PassedOn, runs_user_code
from tests.small_models import make_env


class Heard(BaseCallback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def _on_rollout_start(self) -> None:
        self.told.append("start")

    def _on_step(self) -> bool:
        self.told.append(self.locals["callback"])
        return len(self.told) < 3

    def _on_rollout_end(self) -> None:
        self.told.append("end")


def test_callback_hears_everything_and_sees_itself() -> None:
    """Through two of them: the answer to a step comes back, and the variables name the user's callback."""
    heard = Heard()
    heard.model = type("Model", (), {"num_timesteps": 0})()
    outer = PassedOn(PassedOn(heard))
    outer.on_rollout_start()
    outer.update_locals({"callback": outer})
    assert outer.on_step() is True
    assert outer.on_step() is False
    outer.on_rollout_end()
    assert heard.told == ["start", heard, heard, "end"]


class OwnProgressBar(ProgressBarCallback):
    """May do anything."""


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ConvertCallback(None), False),
        (lambda: CallbackList([ConvertCallback(None), ProgressBarCallback()]), False),
        (lambda: PassedOn(PassedOn(ConvertCallback(None))), False),
        (lambda: ConvertCallback(lambda locals_, globals_: True), True),
        (lambda: CallbackList([ProgressBarCallback(), Heard()]), True),
        (lambda: PassedOn(Heard()), True),
        (OwnProgressBar, True),
        (lambda: EvalCallback(make_env()), True),
    ],
)
def test_user_code_is_all_but_what_is_known_to_be_none(make: Any, expected: bool) -> None:
    """What SB3 makes of no callback at all, and its progress bar."""
    assert runs_user_code(make()) is expected
