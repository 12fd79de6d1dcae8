"""SB3's vectorised environments and wrappers: collected from leanly, and as by SB3's own collection."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_trpo import TRPO
from tests.small_models import BOX, DICT, DISCRETE, IMAGE, VECTOR, RandomEnv, observed, small_model

TWO_VECTORS = spaces.Dict({"one": VECTOR, "other": spaces.Box(-1.0, 1.0, (2,))})


class IndifferentEnv(RandomEnv):
    """The random environment with a reward that does not ask for the action, so that any two runs have the same experience."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 3.0 * self.level - 1.0, terminated, truncated, info


class Pipeline(NamedTuple):
    """
    An environment as a user puts it together.

    :param wrap: what it is wrapped in
    :param n_envs: number of environments
    :param observation_space: what a single one observes
    :param policy: alias of the policy
    :param action_space: what can be done
    :param processes: whether each environment has a process of its own
    :param ends: what ends episodes
    :param monitored: whether each environment keeps its own statistics
    """

    wrap: Callable[[VecEnv], VecEnv] = lambda env: env
    n_envs: int = 2
    observation_space: spaces.Space = VECTOR
    policy: str = "MlpPolicy"
    action_space: spaces.Space = BOX
    processes: bool = False
    ends: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it
    monitored: bool = True

    def env(self) -> VecEnv:
        def make() -> gym.Env[Any, Any]:
            env = IndifferentEnv(self.observation_space, self.action_space, **self.ends)
            return Monitor(env) if self.monitored else env

        makers = [make] * self.n_envs
        return self.wrap(SubprocVecEnv(makers, "fork") if self.processes else DummyVecEnv(makers))

    def run(self, **arguments: Any) -> "Run":
        """Return a model after two updates."""
        keep = KeepBuffer()
        model = small_model(policy=self.policy, env=self.env(), **arguments).learn(128, callback=keep)
        return Run(model, keep.contents)


class Run(NamedTuple):
    """A model that was trained, and what its buffer held at the end of each rollout."""

    model: TRPO
    contents: list[dict[str, Any]]


class KeepBuffer(BaseCallback):
    """Copies what the rollout buffer holds at the end of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.contents: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        names = ("observations", "episode_starts", "rewards", "values", "returns")
        self.contents.append({name: copy.deepcopy(getattr(buffer, name)) for name in names})


def everything(env: VecEnv) -> VecEnv:
    return VecMonitor(VecCheckNan(VecFrameStack(VecNormalize(env, gamma=0.9), 3), raise_exception=True))


PIPELINES: dict[str, Pipeline] = {
    "dummy, 1 env": Pipeline(n_envs=1),
    "dummy, 4 envs": Pipeline(n_envs=4),
    "processes": Pipeline(processes=True),
    "processes, 1 env": Pipeline(processes=True, n_envs=1),
    "normalize": Pipeline(VecNormalize),
    "normalize observations": Pipeline(partial(VecNormalize, norm_reward=False), n_envs=1),
    "normalize rewards": Pipeline(partial(VecNormalize, norm_obs=False, gamma=0.9), action_space=DISCRETE),
    "normalize, processes": Pipeline(VecNormalize, processes=True),
    "normalize dict": Pipeline(
        partial(VecNormalize, norm_obs_keys=["one"]), observation_space=TWO_VECTORS, policy="MultiInputPolicy"
    ),
    "frame stack": Pipeline(partial(VecFrameStack, n_stack=3)),
    "frame stack of images": Pipeline(
        partial(VecFrameStack, n_stack=2), observation_space=IMAGE, policy="CnnPolicy", action_space=DISCRETE
    ),
    "monitor": Pipeline(VecMonitor, monitored=False),
    "transpose": Pipeline(VecTransposeImage, observation_space=IMAGE, policy="CnnPolicy"),
    "check nan": Pipeline(partial(VecCheckNan, raise_exception=True)),
    "extract from dict": Pipeline(partial(VecExtractDictObs, key="vector"), observation_space=DICT),
    "everything": Pipeline(everything, n_envs=4, monitored=False),
    "truncated only": Pipeline(ends={"termination_probability": 0.0, "episode_length": 5}),
    "terminated only": Pipeline(ends={"termination_probability": 0.2, "episode_length": 10**6}),
    "each step ends both ways": Pipeline(ends={"termination_probability": 0.5, "episode_length": 1}),
    "no episode ends": Pipeline(VecNormalize, ends={"termination_probability": 0.0, "episode_length": 10**6}),
}


def statistics(model: TRPO) -> dict[str, Any]:
    """Return what the wrappers and the model know of the experience."""
    assert model.ep_info_buffer is not None
    found: dict[str, Any] = {
        "episodes": [(info["r"], info["l"]) for info in model.ep_info_buffer],
        "steps": model.num_timesteps,
        "last observation": model._last_obs,
        "last starts": model._last_episode_starts,
    }
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        running: dict[str, Any] = {"returns": normalize.ret_rms, "discounted": normalize.returns}
        if normalize.norm_obs:
            observed = normalize.obs_rms
            running |= observed if isinstance(observed, dict) else {"observations": observed}
        for key, value in running.items():
            parts = (value.mean, value.var, value.count) if isinstance(value, RunningMeanStd) else value
            found[f"running {key}"] = parts
    return found


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_pipeline_is_collected_from_leanly_and_as_by_sb3(pipeline: Pipeline) -> None:
    """After two rollouts every statistic of wrappers, episodes and buffer is the one that SB3's collection leaves."""
    (lean, our_contents), (plain, their_contents) = (pipeline.run(fast=fast) for fast in (True, False))
    assert (lean.paths_in_use["collection"], plain.paths_in_use["collection"]) == ("lean", "plain")
    ours, theirs = statistics(lean), statistics(plain)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_equal(ours[name], theirs[name], err_msg=name)
    for our_content, their_content in zip(our_contents, their_contents, strict=True):
        for name in ("observations", "episode_starts"):
            np.testing.assert_equal(our_content[name], their_content[name], err_msg=name)
    # Only before the first update are the critics the same too
    for name in ("rewards", "values", "returns"):
        np.testing.assert_allclose(our_contents[0][name], their_contents[0][name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert lean.last_update is not None and lean.last_update.n_updates == 2
    for model in (lean, plain):
        assert model.env is not None
        model.env.close()


@pytest.mark.parametrize("name", ["normalize", "frame stack", "monitor", "everything"])
def test_wrappers_see_episodes_end(name: str) -> None:
    """The comparison above was about something: episodes were recorded, and running means moved."""
    model, contents = PIPELINES[name].run()
    found = statistics(model)
    assert len(found["episodes"]) >= 5 and all(content["episode_starts"].sum() > 0 for content in contents)
    if "running observations" in found:
        mean, var, count = found["running observations"]
        assert count > 128 and not np.allclose(mean, 0.0) and not np.allclose(var, 1.0)


def test_statistics_travel_with_the_environment(tmp_path: Any) -> None:
    """VecNormalize saved beside a model and loaded around a new environment goes on where it was."""
    pipeline = Pipeline(VecNormalize)
    model, _ = pipeline.run()
    normalize = model.get_vec_normalize_env()
    assert normalize is not None
    model.save(tmp_path / "model")
    normalize.save(str(tmp_path / "normalize.pkl"))
    env = VecNormalize.load(str(tmp_path / "normalize.pkl"), Pipeline().env())
    loaded = TRPO.load(tmp_path / "model", env, device="cpu")
    count = observed(env).count
    assert loaded.get_vec_normalize_env() is env and count == observed(normalize).count
    loaded.learn(128, reset_num_timesteps=False)
    assert observed(env).count == pytest.approx(count + 128 + 2)
    assert loaded.num_timesteps == 256


def test_new_environment_brings_its_own_statistics() -> None:
    """After set_env the normaliser of the old environment is not asked any more (SB3 issue 637)."""
    model, _ = Pipeline(VecNormalize).run()
    env = Pipeline(VecNormalize).env()
    model.set_env(env)
    assert model.get_vec_normalize_env() is env
    model.set_env(Pipeline().env())
    assert model.get_vec_normalize_env() is None
    model.learn(64, reset_num_timesteps=False)


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_processes_of_every_kind(start_method: str) -> None:
    """SB3's default way to start them, and the one of Windows and macOS."""
    kwargs = {"start_method": start_method}
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs=kwargs)
    model = small_model(env=env).learn(128)
    assert model.paths_in_use["collection"] == "lean" and model.num_timesteps == 128
    env.close()
