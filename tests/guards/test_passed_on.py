"""What stands between a collection loop and the user's callback passes everything on."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo.guards.passed_on import PassedOn


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
