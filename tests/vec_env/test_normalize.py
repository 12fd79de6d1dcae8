"""Normalisation in batches: SB3's numbers and SB3's files."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, sync_envs_normalization

from sb3_trpo.vec_env import FastVecNormalize
from sb3_trpo.vec_env.normalize import _update
from tests.vec_env.tasks import SEED, TASKS, actions_for, assert_same_observations, assert_same_run, dummy, seeded

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vector": ("time limit", {"gamma": 0.9, "clip_obs": 1.5, "clip_reward": 0.7}),
    "rewards only": ("time limit", {"norm_obs": False}),
    "observations only": ("cart pole", {"norm_reward": False, "epsilon": 1e-3}),
    "not training": ("time limit", {"training": False}),
    "dict": ("goal", {"norm_obs_keys": ["vector", "image"]}),
    "dict, rewards only": ("goal", {"norm_obs": False}),
}


def statistics(env: VecNormalize) -> list[Any]:
    rms: Any = env.obs_rms if env.norm_obs else {}
    parts: list[RunningMeanStd] = [*(rms.values() if isinstance(rms, dict) else [rms]), env.ret_rms]
    return [env.returns, *[(part.mean, part.var, part.count) for part in parts]]


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_sb3(case: str) -> None:
    """Observations, rewards, last observations, originals and statistics, bit for bit."""
    task, kwargs = CASES[case]
    ours, theirs = (cls(dummy(TASKS[task]), **kwargs) for cls in (FastVecNormalize, VecNormalize))
    assert len(assert_same_run(ours, theirs, 60)) > 5
    np.testing.assert_equal(statistics(ours), statistics(theirs))
    assert_same_observations(ours.get_original_obs(), theirs.get_original_obs())
    assert_same_observations(ours.get_original_reward(), theirs.get_original_reward())
    assert ours.observation_space == theirs.observation_space


@pytest.mark.untraced
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize(
    "n, shape", [*itertools.product([1, 7, 64, 513], [(1,), (2,), (17,), (33,), (3, 4), ()]), (1, (9000,)), (64, (9000,))]
)
def test_statistics_of_any_shape_are_those_of_sb3(n: int, shape: tuple[int, ...], dtype: Any) -> None:
    """To the bit, in whatever order the rows lie in memory; so are the rewards' and what is made of both."""
    random = np.random.default_rng(0)
    ours, theirs = RunningMeanStd(shape=shape), RunningMeanStd(shape=shape)
    env: Any = FastVecNormalize(dummy(TASKS["time limit"]), clip_obs=0.8)
    for order in "CFC":
        rows = np.asarray((100.0 * random.normal(size=(n, *shape)) + 3.0).astype(dtype), order=order)  # type: ignore[call-overload]
        _update(ours, rows)
        theirs.update(rows)
        for name in ("mean", "var", "count"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        np.testing.assert_array_equal(
            env._normalize_obs(rows, ours), VecNormalize._normalize_obs(env, rows, theirs).astype(np.float32)
        )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("clip_obs", [10.0, np.float64(10.0), 3, np.inf])
def test_what_is_clipped_may_be_of_any_size(clip_obs: float) -> None:
    """A number that float32 does not hold is no reason for a warning."""
    env: Any = FastVecNormalize(dummy(TASKS["time limit"]), clip_obs=clip_obs)
    rms = RunningMeanStd(shape=(3,))
    rms.var = np.zeros(3)
    rows = np.array([[1e300, -1e300, np.nan], [-0.0, 1e-9, -np.inf]])
    with np.errstate(over="ignore"):
        expected = VecNormalize._normalize_obs(env, rows, rms).astype(np.float32)
    np.testing.assert_array_equal(env._normalize_obs(rows, rms), expected)


def test_last_observations_are_normalised_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for the step and one for all that ended in it."""
    env = FastVecNormalize(dummy(lambda: TASKS["time limit"](), 8))
    sizes: list[int] = []
    plain = FastVecNormalize._normalize_obs

    def counted(obs: np.ndarray, rms: RunningMeanStd) -> np.ndarray:
        sizes.append(len(obs))
        return plain(env, obs, rms)

    monkeypatch.setattr(env, "_normalize_obs", counted)
    env.reset()
    n_ended = []
    for actions in actions_for(env, 12):
        sizes.clear()
        n_ended.append(int(env.step(actions)[2].sum()))
        assert sizes == [8, n_ended[-1]][: 1 + bool(n_ended[-1])]
    assert max(n_ended) > 1


def test_what_is_returned_is_not_what_was_given() -> None:
    """Without normalisation too, and for an observation of one number."""
    for norm_obs in (True, False):
        env: Any = FastVecNormalize(dummy(TASKS["time limit"]), norm_obs=norm_obs)
        given: Any = env.venv.reset()
        given_before = given.copy()
        env.normalize_obs(given)[:] = 7.0
        np.testing.assert_array_equal(given, given_before)
    number: Any = FastVecNormalize(dummy(TASKS["time limit"]))
    number.obs_rms = RunningMeanStd(shape=())
    assert number.normalize_obs(np.float32(0.5)) == pytest.approx(0.5)


def trained(cls: type[VecNormalize]) -> VecNormalize:
    env = cls(dummy(TASKS["time limit"]), gamma=0.9)
    env.reset()
    for actions in actions_for(env, 20):
        env.step(actions)
    return env


@pytest.mark.parametrize("writer", [FastVecNormalize, VecNormalize])
@pytest.mark.parametrize("reader", [FastVecNormalize, VecNormalize])
def test_files_are_those_of_sb3(writer: type[VecNormalize], reader: type[VecNormalize], tmp_path: Path) -> None:
    """Each reads what the other wrote and goes on with the same numbers; SB3's class needs nothing of this package."""
    path = str(tmp_path / "normalize.pkl")
    env = trained(writer)
    env.save(path)
    assert b"sb3_trpo" not in Path(path).read_bytes()
    loaded = reader.load(path, dummy(TASKS["time limit"]))
    assert type(loaded) is reader and loaded.gamma == 0.9
    np.testing.assert_equal(statistics(loaded)[1:], statistics(env)[1:])
    reference = VecNormalize.load(path, dummy(TASKS["time limit"]))
    assert_same_run(seeded(loaded), seeded(reference), 20)
    assert env.venv is not None and env.num_envs == 3


def test_pickles_stay_what_they_are() -> None:
    """As SB3's: without the environment, which set_venv brings."""
    loaded: Any = pickle.loads(pickle.dumps(trained(FastVecNormalize)))
    loaded.set_venv(dummy(TASKS["time limit"]))
    assert type(loaded) is FastVecNormalize and loaded.num_envs == 3


def test_another_pickle_is_refused(tmp_path: Path) -> None:
    """With its type."""
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps({"some": "dict"}))
    with pytest.raises(ValueError, match="load_path must hold a VecNormalize, got a dict"):
        FastVecNormalize.load(str(path), dummy(TASKS["time limit"]))


def test_statistics_are_shared_with_evaluation_as_in_sb3() -> None:
    """sync_envs_normalization takes it for a VecNormalize."""
    env, other = trained(FastVecNormalize), VecNormalize(dummy(TASKS["time limit"]))
    sync_envs_normalization(env, other)
    np.testing.assert_equal(other.ret_rms.mean, env.ret_rms.mean)


class Plain(gym.Env[Any, Any]):
    """Gives its observations as Python has them."""

    observation_space = spaces.Dict({"vector": spaces.Box(-9.0, 9.0, (2,)), "number": spaces.Discrete(9)})
    action_space = spaces.Discrete(2)

    def _observation(self) -> Any:
        return {"vector": [float(self.n_steps), 1.0], "number": self.n_steps}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        return self._observation(), 1.0, self.n_steps == 4, False, {}


def test_last_observations_may_be_lists_and_numbers() -> None:
    """An environment hands them out as they are, and SB3's takes them."""
    keys = ["vector"]
    ours, theirs = (cls(DummyVecEnv([Plain] * 2), norm_obs_keys=keys) for cls in (FastVecNormalize, VecNormalize))
    for each in (ours, theirs):
        each.reset()
    n_compared = 0
    for _ in range(12):
        infos = [each.step(np.zeros(2, int))[3] for each in (ours, theirs)]
        for key in ("vector", "number"):
            last = ([info["terminal_observation"] for info in of if "terminal_observation" in info] for of in infos)
            found, expected = ([each[key] for each in of] for of in last)
            np.testing.assert_array_equal(found, expected)
            n_compared += len(expected)
    assert n_compared == 12


class AtMostTen(RunningMeanStd):
    """Forgets what was long ago."""

    def update_from_moments(self, batch_mean: Any, batch_var: Any, batch_count: float) -> None:
        super().update_from_moments(batch_mean, batch_var, batch_count)
        self.count = min(self.count, 10.0)

    def update(self, arr: np.ndarray) -> None:
        super().update(2.0 * arr)


def test_statistics_of_the_users_own_are_asked_themselves() -> None:
    ours, theirs = (cls(dummy(TASKS["time limit"])) for cls in (FastVecNormalize, VecNormalize))
    for env in (ours, theirs):
        env.obs_rms = AtMostTen(shape=env.observation_space.shape)  # type: ignore[arg-type, assignment]
    assert_same_run(ours, theirs, 30)
    np.testing.assert_equal(statistics(ours), statistics(theirs))


def test_infos_without_last_observations_stay() -> None:
    """As of a VecEnv that gives none."""

    class Forgetful(DummyVecEnv):
        def step_wait(self) -> Any:
            observations, rewards, dones, _ = super().step_wait()
            return observations, rewards, dones, [{"done": bool(done)} for done in dones]

    env: VecEnv = FastVecNormalize(Forgetful([TASKS["time limit"]] * 2))
    env.seed(SEED)
    env.reset()
    assert isinstance(env.observation_space, spaces.Box)
    ended = [info for actions in actions_for(env, 30) for info in env.step(actions)[3] if info["done"]]
    assert ended and all(info == {"done": True} for info in ended)
