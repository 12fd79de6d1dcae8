"""What is particular to EnvPool, and what is known of other vector environments by their class."""

import warnings
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo.vec_env import FastVecNormalize, GymnasiumVecEnv, as_vec_env
from sb3_trpo.vec_env.backends import backend_of, put_rows, rows_of
from tests.vec_env.tasks import MODES, Maskless, actions_for, goal, vector

# Gymnasium says so of EnvPool's bounds
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting")


def pool(n_envs: int = 3, seed: int = 4, task: str = "CartPole-v1", **kwargs: Any) -> Any:
    envpool = pytest.importorskip("envpool")
    return envpool.make(task, env_type="gymnasium", num_envs=n_envs, seed=seed, max_episode_steps=30, **kwargs)


class Recorder:
    """What each environment went through, and its next action, which depends on nothing but the number of its steps."""

    def __init__(self, n_envs: int):
        self.history: list[list[Any]] = [[] for _ in range(n_envs)]

    def actions(self) -> np.ndarray:
        return np.array([(3 * len(history) ** 2 + index) // 2 % 2 for index, history in enumerate(self.history)])


@pytest.mark.untraced
def test_envpool_gives_what_it_gives_by_itself_without_the_wasted_steps() -> None:
    """Bit for bit, from the masked resets on: observations, last observations, rewards, ends, time limits, infos."""
    n_envs, n_steps = 3, 200
    bare, through = Recorder(n_envs), Recorder(n_envs)
    inside = pool()
    observations = inside.reset()[0]
    starts: Any = deque(enumerate(observations.copy()))
    wasted = np.zeros(n_envs, bool)
    first: list[Any] = [[row] for _, row in starts]
    for _ in range(n_steps + n_steps // 5):
        observations, rewards, terminated, truncated, infos = inside.step(bare.actions())
        for index in range(n_envs):
            if wasted[index]:
                first[index].append(observations[index].copy())
                continue
            step = (
                observations[index].copy(),
                rewards[index],
                terminated[index],
                truncated[index],
                infos["elapsed_step"][index],
            )
            bare.history[index].append(step)
        wasted = terminated | truncated
    env = GymnasiumVecEnv(pool())
    assert not env.wastes_steps
    rows: Any = env.reset()
    begun: list[Any] = [[row] for row in rows.copy()]
    n_truncated = 0
    for _ in range(n_steps):
        rows, rewards, dones, infos = env.step(through.actions())
        for index in range(n_envs):
            info = infos[index]
            last = info["terminal_observation"] if dones[index] else rows[index]
            cut = info["TimeLimit.truncated"]
            n_truncated += cut
            step = (last.copy(), rewards[index], dones[index] and not cut, cut, info["elapsed_step"])
            through.history[index].append(step)
            if dones[index]:
                begun[index].append(rows[index].copy())
                assert env.reset_infos[index]["elapsed_step"] == 0 and env.reset_infos[index]["env_id"] == index
    n_ends = [len(starts) for starts in begun]
    assert min(n_ends) > 5 and n_truncated > 0
    for index in range(n_envs):
        np.testing.assert_equal(through.history[index], bare.history[index][:n_steps])
        np.testing.assert_equal(begun[index], first[index][: n_ends[index]])


def test_envpool_counts_episodes_as_monitor_does() -> None:
    """Returns and lengths, and a PPO that learns and is evaluated with them."""
    env = GymnasiumVecEnv(pool(4))
    model = PPO("MlpPolicy", FastVecNormalize(env), n_steps=32, batch_size=64, n_epochs=1, device="cpu").learn(256)
    assert model.ep_info_buffer and all(info["r"] == info["l"] <= 30 for info in model.ep_info_buffer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, _ = evaluate_policy(model, env, n_eval_episodes=4)
    assert isinstance(mean, float) and 5.0 < mean <= 30.0
    env.close()
    env.close()


def test_envpool_arrays_are_not_written_to_again() -> None:
    """They are handed on without a copy: each step has its own memory."""
    env = GymnasiumVecEnv(pool())
    kept: list[Any] = [env.reset()]
    copies = [kept[0].copy()]
    seen = []
    for actions in actions_for(env, 60):
        observations, _, _, infos = env.step(actions)
        kept.append(observations)
        copies.append(np.copy(observations))  # type: ignore[arg-type]
        seen.append((infos, infos[1]["elapsed_step"]))
    for actions in actions_for(env, 60):
        env.step(actions)
    np.testing.assert_array_equal(kept, copies)
    assert all(infos[1]["elapsed_step"] == number for infos, number in seen)


def test_envpools_seed_counts_when_it_is_made() -> None:
    """A differing seed warns, and so does the same one when it is too late for it."""
    env = GymnasiumVecEnv(pool(seed=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert env.seed(4) == [4, 5, 6]
        env.seed()
    with pytest.warns(UserWarning, match=r"seed\(5\) has no effect: EnvPool.*seed=5\).*made with seed 4, and go on"):
        env.seed(5)
    env.reset()
    with pytest.warns(UserWarning, match=r"seed\(4\) has no effect: .*were reset already"):
        env.seed(4)


def test_what_envpool_cannot_do_is_said() -> None:
    """Batches of some of the environments, options, attributes of one environment."""
    with pytest.raises(ValueError, match="batch_size must be num_envs=4, got 2"):
        GymnasiumVecEnv(pool(4, batch_size=2))
    env = GymnasiumVecEnv(pool())
    assert env.render_mode is None and env.backend.mode == "NextStep"
    assert not env.has_attr("gravity")
    with pytest.raises(ValueError, match="steps all of them as one"):
        env.get_attr("gravity")
    env.set_options({"low": 0.1})
    with pytest.raises(ValueError, match="low"):
        env.reset()


def test_envpool_is_a_vector_environment_first() -> None:
    """Its objects are a gymnasium.Env too, which SB3 would take for a single one."""
    inside = pool()
    assert isinstance(inside, gym.Env) and isinstance(inside, VectorEnv)
    assert isinstance(as_vec_env(inside), GymnasiumVecEnv)


class Named(SyncVectorEnv):
    """Changes nothing of what a reset is."""


def test_masked_resets_are_known_by_class() -> None:
    """An allow-list: those two of Gymnasium without a wrapper or a worker of one's own, EnvPool, and whoever says DISABLED."""
    known = [vector(goal, mode, 1) for mode in MODES] + [Named([goal])]
    unknown = [
        Maskless([goal]),
        gym.wrappers.vector.RecordEpisodeStatistics(vector(goal, AutoresetMode.NEXT_STEP, 1)),
        gym.make_vec("CartPole-v1", 1, "vector_entry_point"),
    ]
    assert all(backend_of(env).resets_masked for env in known)
    assert not any(backend_of(env).resets_masked for env in unknown)


def test_a_worker_of_ones_own_is_not_trusted_with_masks() -> None:
    """What it does at a reset is not known."""
    from gymnasium.vector.async_vector_env import _async_worker

    def worker(*arguments: Any) -> None:
        _async_worker(*arguments)

    plain, own = (AsyncVectorEnv([goal], context="fork", worker=worker) for worker in (None, worker))
    assert backend_of(plain).resets_masked and not backend_of(own).resets_masked
    for env in (plain, own):
        env.close()


def test_observations_must_be_ones_that_sb3_knows() -> None:
    """Nested spaces are refused as DummyVecEnv refuses them."""

    class Nested(gym.Env[Any, Any]):
        observation_space = gym.spaces.Dict({"inner": gym.spaces.Dict({"x": gym.spaces.Box(0.0, 1.0)})})
        action_space = gym.spaces.Discrete(2)

    with pytest.raises(NotImplementedError, match="Nested"):
        GymnasiumVecEnv(SyncVectorEnv([Nested], autoreset_mode=AutoresetMode.SAME_STEP))


def test_rows_are_picked_and_put_in_every_kind_of_observation() -> None:
    """Arrays, dicts and tuples."""
    for observations in (np.arange(3), {"x": np.arange(3)}, (np.arange(3), np.arange(3))):
        put_rows(observations, np.array([0, 2]), rows_of(observations, np.array([2, 1])))
        expected = np.array([2, 1, 1])
        parts: Any = observations
        if isinstance(observations, np.ndarray):
            parts = [observations]
        for part in parts.values() if isinstance(parts, dict) else parts:
            np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("index", [1, np.array([0, 2])])
def test_rows_of_lists_are_those_of_arrays(index: Any) -> None:
    """As an environment of one's own may give them, at any depth."""
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    expected = np.array(rows)[index]
    np.testing.assert_array_equal(rows_of(rows, index), expected)
    for given, way in (({"a": rows}, ("a",)), ((rows,), (0,)), ({"a": ({"b": rows},)}, ("a", 0, "b"))):
        found = rows_of(given, index)
        for key in way:
            found = found[key]
        np.testing.assert_array_equal(found, expected)


class Ends(VectorEnv):
    """Three environments whose episodes end together now and then, in plain Python lists."""

    def __init__(self, mode: str):
        self.num_envs, self.metadata = 3, {"autoreset_mode": mode}
        self.single_observation_space: Any = spaces.Box(-1.0, 1.0, (2,))
        self.single_action_space = spaces.Discrete(2)
        self.steps = np.zeros(3, int)

    def _observations(self) -> Any:
        return [[steps / 10.0, -steps / 10.0] for steps in self.steps]

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.steps[(options or {}).get("reset_mask", np.ones(3, bool))] = 0
        return self._observations(), {}

    def step(self, actions: Any) -> Any:
        self.steps += 1
        ended, infos = self.steps >= [2, 3, 6], {}
        if self.metadata["autoreset_mode"] == "SameStep" and ended.any():
            last = [np.array(row) if end else None for row, end in zip(self._observations(), ended, strict=True)]
            infos = {"final_obs": np.array(last, object), "_final_obs": ended}
            self.steps[ended] = 0
        return self._observations(), [1.0] * 3, ended.tolist(), [False] * 3, infos


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_lists_are_taken_for_arrays(mode: str) -> None:
    """Of any number of ends at once: of all three NumPy makes another array of last observations than of one."""
    env = GymnasiumVecEnv(Ends(mode))
    assert env.reset().dtype == np.float32  # type: ignore[union-attr]
    at_once = set()
    for _ in range(12):
        observations, rewards, dones, infos = env.step(np.zeros(3, int))
        assert isinstance(observations, np.ndarray) and observations.dtype == rewards.dtype == np.float32
        at_once.add(int(dones.sum()))
        for index in np.flatnonzero(dones):
            last, length = infos[index]["terminal_observation"], infos[index]["episode"]["l"]
            assert last.dtype.kind == "f" and observations[index].tolist() == [0.0, 0.0]
            np.testing.assert_allclose(last, [length / 10.0, -length / 10.0])
    assert at_once == {0, 1, 3}


def test_a_tuple_of_observations_is_what_dummy_vec_env_gives() -> None:
    """SB3's environments take tuples even though its policies do not."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Pair(gym.Env[Any, Any]):
        observation_space = gym.spaces.Tuple((gym.spaces.Box(0.0, 9.0, (2,)), gym.spaces.Discrete(9)))
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.n_steps = 0
            return self.observe(), {}

        def observe(self) -> Any:
            return np.full(2, self.n_steps, np.float32), np.int64(self.n_steps)

        def step(self, action: Any) -> Any:
            self.n_steps += 1
            return self.observe(), 1.0, self.n_steps > 2, False, {}

    for mode in MODES:
        ours, theirs = GymnasiumVecEnv(vector(Pair, mode, 2)), DummyVecEnv([Pair] * 2)
        np.testing.assert_equal(ours.reset(), theirs.reset())
        for actions in actions_for(theirs, 7):
            for our_part, their_part in zip(ours.step(actions)[:3], theirs.step(actions)[:3], strict=True):
                np.testing.assert_equal(our_part, their_part)
