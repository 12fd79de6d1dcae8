"""EnvPool's environments in the place of those that RL Zoo would make."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.wrappers import RescaleAction
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import sb3_trpo.zoo
from sb3_trpo.zoo.quick_envs import QUICK_ENVS, envpool_of
from tests.spawned import ROOT


@pytest.mark.filterwarnings("ignore:.*precision lowered")
@pytest.mark.parametrize("kind", QUICK_ENVS)
def test_environments_are_made_as_rl_zoo_makes_its_own(kind: str) -> None:
    """By SB3's helper, seeded."""
    if kind == "envpool":
        pytest.importorskip("envpool")
    makers: Any = QUICK_ENVS[kind]
    first, again = (make_vec_env("CartPole-v1", 3, seed=5, vec_env_cls=makers) for _ in range(2))
    other = make_vec_env("CartPole-v1", 3, seed=6, vec_env_cls=makers)
    assert all(isinstance(env, VecEnv) and env.num_envs == 3 for env in (first, again, other))
    rows: Any = [env.reset() for env in (first, again, other)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    for env in (first, again, other):
        env.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RescaleAction(gym.make("Pendulum-v1"), np.float32(-1.0), np.float32(1.0)),
        lambda: gym.make("Pendulum-v1", g=9.81),
    ],
    ids=["wrapper", "argument"],
)
def test_what_envpool_knows_nothing_of_is_refused(make: Callable[[], gym.Env]) -> None:
    """Another task would be trained on without a word."""
    with pytest.raises(ValueError, match="--vector-env must be lean or pool"):
        envpool_of([make])


def test_envpool_trains_what_the_page_says_that_it_does() -> None:
    """The shipped setting of its example has no wrapper, which would be refused."""
    page = (ROOT / "docs" / "vector_environments.md").read_text(encoding="utf-8")
    env_ids = re.findall(r"--env (\S+) --vector-env envpool", page)
    shipped = yaml.safe_load((Path(sb3_trpo.zoo.__file__).parent / "hyperparams" / "trpo.yml").read_text(encoding="utf-8"))
    assert env_ids and not any("env_wrapper" in shipped[env_id] for env_id in env_ids)
    assert "env_wrapper" not in shipped["Swimmer-v5"] and "env_wrapper" in shipped["atari"]
