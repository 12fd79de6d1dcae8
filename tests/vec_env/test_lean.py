"""DummyVecEnv without deep copies: the same numbers."""

import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor

from sb3_trpo.vec_env import LeanVecEnv
from tests.vec_env.tasks import TASKS, Reusing, actions_for, assert_same_run, dummy, seeded


@pytest.mark.parametrize("task", TASKS)
def test_lean_env_gives_what_dummy_vec_env_gives(task: str) -> None:
    """Everything that a step returns."""
    make = TASKS[task]
    assert len(assert_same_run(seeded(LeanVecEnv([lambda: Monitor(make())] * 3)), dummy(make))) > 5


def test_lean_env_hands_out_no_memory_of_its_own_or_of_last_observations() -> None:
    """Arrays that it returned stay as they were, and a last observation is that of before the reset."""
    env = LeanVecEnv([Reusing, Reusing])
    kept = [env.reset()]
    copies = [np.copy(kept[0])]  # type: ignore[arg-type]
    for actions in actions_for(env, 7):
        observations, rewards, dones, infos = env.step(actions)
        kept.append(observations)
        copies.append(np.copy(observations))  # type: ignore[arg-type]
        for index in np.flatnonzero(dones):
            assert infos[index]["terminal_observation"][0] == pytest.approx(rewards[index])
    np.testing.assert_array_equal(kept, copies)
    assert infos[0] is not infos[1]
