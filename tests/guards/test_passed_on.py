"""What stands between a collection loop and the user's callback passes everything on."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import ClipAction, TransformReward
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EvalCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo.guards.passed_on import PassedOn, runs_user_code, steps_through_user_code
from tests.small_models import make_env


class Heard(BaseCallback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def _on_training_start(self) -> None:
        self.told.append(self.locals["callback"])

    def _on_training_end(self) -> None:
        self.told.append("training ends")

    def _on_rollout_start(self) -> None:
        self.told.append("start")

    def _on_step(self) -> bool:
        self.told.append(self.locals["callback"])
        return len(self.told) < 4

    def _on_rollout_end(self) -> None:
        self.told.append("end")


def test_callback_hears_everything_and_sees_itself() -> None:
    """Through two of them: the answer to a step comes back, and the variables name the user's callback."""
    heard = Heard()
    heard.model = type("Model", (), {"num_timesteps": 0})()
    outer = PassedOn(PassedOn(heard))
    outer.on_training_start({"callback": outer}, {})
    outer.on_rollout_start()
    outer.update_locals({"callback": outer})
    assert outer.on_step() is True
    assert outer.on_step() is False
    outer.on_rollout_end()
    outer.on_training_end()
    assert heard.told == [heard, "start", heard, heard, "end", "training ends"]


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


def squared(reward: Any) -> Any:
    return reward**2


class InItself(gym.Wrapper):
    """Holds something that holds it."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.other = self


# Classes as Gymnasium's own, of which nobody knows what they hold
Wrapping = type("Wrapping", (InItself,), {"__module__": "gymnasium.wrappers.own"})
Holding = type("Holding", (), {"__module__": "shimmy.own", "__init__": lambda self, env: setattr(self, "gym_env", env)})


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda env: env, False),
        (Wrapping, False),
        (InItself, True),
        (ClipAction, False),
        (lambda env: TransformReward(env, squared), True),
        (lambda env: TransformReward(env, partial(squared)), True),
        (lambda env: TransformReward(env, np.tanh), False),  # type: ignore[arg-type]
        (lambda env: ClipAction(TransformReward(env, lambda reward: reward)), True),
        (lambda env: Holding(InItself(env)), True),
    ],
)
def test_environment_with_a_function_of_the_users_own_steps_through_it(wrap: Any, expected: bool) -> None:
    """A wrapper of Gymnasium's may be made of one, and one that is known may hold what is not."""
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1")])
    env.envs[0] = wrap(env.envs[0])
    assert steps_through_user_code(env) is expected
