"""Vector environments by name."""

import builtins
import importlib
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TimeAwareObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo.vec_env import factory, make_vector_env
from tests.vec_env.tasks import actions_for, assert_same_run

pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting")


@pytest.fixture
def without_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if EnvPool were not installed."""
    plain = importlib.import_module

    def import_module(name: str, *arguments: Any) -> Any:
        if name == "envpool":
            raise ImportError("No module named 'envpool'")
        return plain(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.mark.parametrize("kwargs", [{}, {"autoreset_mode": "NextStep"}], ids=str)
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_gymnasiums_backends_give_what_make_vec_env_gives(backend: str, kwargs: dict[str, Any]) -> None:
    """Bit for bit with the same seed, arguments of the environment included."""
    limit = {"max_episode_steps": 15}
    vector_kwargs = kwargs | ({"context": "fork"} if backend == "async" else {})
    env = make_vector_env("CartPole-v1", 3, seed=3, backend=backend, env_kwargs=limit, vector_kwargs=vector_kwargs)
    assert env.backend.name == backend and env.backend.mode == kwargs.get("autoreset_mode", "SameStep")
    assert assert_same_run(env, make_vec_env("CartPole-v1", 3, seed=3, env_kwargs=limit), 30)
    env.close()


def test_wrappers_are_put_around_each_environment() -> None:
    """As DummyVecEnv's are."""
    env = make_vector_env("CartPole-v1", 2, seed=1, backend="sync", wrappers=[TimeAwareObservation])
    theirs = DummyVecEnv([lambda: TimeAwareObservation(gym.make("CartPole-v1"))] * 2)
    theirs.seed(1)
    np.testing.assert_array_equal(env.reset(), theirs.reset())
    for backend in ("vector", "envpool"):
        with pytest.raises(ValueError, match=f"wrappers must be empty with backend '{backend}'"):
            make_vector_env("CartPole-v1", 2, backend=backend, wrappers=[TimeAwareObservation])


def test_gymnasiums_vectorised_implementation_is_made() -> None:
    """With its wasted steps, and the same numbers for the same seed."""
    runs = []
    for _ in range(2):
        env = make_vector_env("CartPole-v1", 5, seed=2, backend="vector")
        assert env.wastes_steps and env.backend.name == "vector"
        env.reset()
        runs.append([env.step(actions)[0] for actions in actions_for(env, 20)])
    np.testing.assert_array_equal(runs[0], runs[1])


def test_envpool_is_made_with_its_seed() -> None:
    """The same numbers for the same seed, others for others and for none."""
    pytest.importorskip("envpool")
    kwargs = {"vector_kwargs": {"num_threads": 1}, "env_kwargs": {"max_episode_steps": 9}}
    starts: list[Any] = []
    for seed in (2, 2, 3, None, None):
        env = make_vector_env("CartPole-v1", 2, seed=seed, backend="envpool", **kwargs)  # type: ignore[arg-type]
        assert env.vector_env.config["num_threads"] == 1  # type: ignore[attr-defined]
        starts.append(env.reset())
    assert (starts[0] == starts[1]).all()
    assert all((starts[a] != starts[b]).any() for a, b in [(0, 2), (0, 3), (3, 4)])
    with pytest.raises(ValueError, match="id must be a task of EnvPool"):
        make_vector_env("Nowhere-v0", 2, backend="envpool")


def test_auto_takes_envpool_where_both_know_the_task_and_nothing_more_is_asked_for() -> None:
    """And Gymnasium's own otherwise."""
    pytest.importorskip("envpool")
    assert make_vector_env("CartPole-v1", 2).backend.name == "envpool"
    assert make_vector_env("CartPole-v1", 2, wrappers=[TimeAwareObservation]).backend.name == "sync"
    assert make_vector_env("CartPole-v1", 2, env_kwargs={"render_mode": "rgb_array"}).backend.name == "sync"
    # EnvPool's Atari tasks have names that Gymnasium does not know
    assert not factory._both_know("Pong-v5") and not factory._both_know("Nowhere-v0")


@pytest.mark.usefixtures("without_envpool")
def test_without_envpool_auto_is_sync_and_its_name_says_what_to_install() -> None:
    """Nobody needs it."""
    assert make_vector_env("CartPole-v1", 2).backend.name == "sync"
    with pytest.raises(ImportError, match=r"pip install 'sb3_trpo\[envpool\]'"):
        make_vector_env("CartPole-v1", 2, backend="envpool")


def test_wrong_arguments_are_named() -> None:
    """With what was received."""
    with pytest.raises(ValueError, match="backend must be one of auto, sync, async, vector, envpool, got 'dummy'"):
        make_vector_env("CartPole-v1", 2, backend="dummy")
    with pytest.raises(ValueError, match="n_envs must be at least 1, got 0"):
        make_vector_env("CartPole-v1", 0)


def test_importing_the_package_does_not_import_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second."""
    plain = builtins.__import__

    def watched(name: str, *arguments: Any, **keywords: Any) -> Any:
        assert not name.startswith("envpool")
        return plain(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", watched)
    importlib.reload(factory)


@pytest.mark.parametrize("wrapper", [RecordEpisodeStatistics, partial(RecordEpisodeStatistics, buffer_length=3), Monitor])
def test_wrapper_that_counts_episodes_itself_takes_the_place_of_the_monitor(wrapper: Any) -> None:
    """Gymnasium's refuses to count what somebody else has counted."""
    env = make_vector_env("CartPole-v1", 2, seed=0, backend="sync", wrappers=[wrapper])
    env.reset()
    ended = [info for _ in range(60) for info in env.step(np.zeros(2, int))[3] if "episode" in info]
    assert len(ended) > 5 and all(info["episode"]["r"] == info["episode"]["l"] for info in ended)
