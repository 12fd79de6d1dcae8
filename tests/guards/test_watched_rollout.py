"""What is looked at around the user's callback while a rollout is made."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo.guards.finite import FinitePart, NonFiniteError
from sb3_trpo.guards.watched_rollout import WatchedRollout
from tests.small_models import small_model


class Sets(BaseCallback):
    """Sets an attribute of the model at a step."""

    value: Any = 0.5

    def _on_step(self) -> bool:
        self.model.gamma = self.value  # type: ignore[attr-defined]
        return True


def watched(finite: FinitePart) -> tuple[Any, Sets, WatchedRollout]:
    model, callback = small_model(), Sets()
    model._setup_learn(64, callback)
    return model, callback, WatchedRollout(callback, model, finite)


@pytest.mark.parametrize("observations", [True, False])
def test_observation_that_is_not_finite_is_refused_where_it_must_be(observations: bool) -> None:
    """Before the user's callback hears of the step, naming it."""
    _, callback, rollout = watched(FinitePart(policy=True, observations=observations))
    step = {"new_obs": np.array([[0.0, np.nan, 0.0]], np.float32), "n_steps": 4, "callback": rollout}
    if observations:
        with pytest.raises(NonFiniteError, match="environment 0 at step 5"):
            rollout.update_locals(step)
        assert "new_obs" not in callback.locals
    else:
        rollout.update_locals(step)
        assert callback.locals["callback"] is callback


def test_attribute_that_cannot_work_is_refused_in_the_step_that_sets_it() -> None:
    """The environment is a step further on then: it begins anew."""
    model, callback, rollout = watched(FinitePart(policy=False, observations=False))
    rollout.on_rollout_start()
    assert rollout.on_step() and model.rollout_buffer.gamma == 0.5
    callback.value = 2.0
    with pytest.raises(ValueError, match=r"gamma.*2\.0"):
        rollout.on_step()
    assert model._last_obs is None
