"""Gymnasium's vector environments through the adapter: what DummyVecEnv and Monitor give, bit for bit."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import ClipReward, TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from sb3_trpo.vec_env import GymnasiumVecEnv, as_vec_env
from tests.vec_env.tasks import (
    MODES,
    TASKS,
    Goal,
    Maskless,
    Reusing,
    actions_for,
    assert_same_info,
    assert_same_observations,
    assert_same_run,
    cart_pole,
    dummy,
    goal,
    seeded,
    vector,
)

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


def adapted(task: str, mode: AutoresetMode, **kwargs: Any) -> VecEnv:
    return seeded(GymnasiumVecEnv(vector(TASKS[task], mode, **kwargs)))


@pytest.mark.untraced
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", TASKS)
def test_adapter_gives_what_dummy_vec_env_and_monitor_give(task: str, mode: AutoresetMode) -> None:
    """Observations, rewards, ends, last observations, time limits, statistics, successes, infos, infos of resets."""
    env = adapted(task, mode)
    ended = assert_same_run(env, dummy(TASKS[task]))
    assert len(ended) > 5 and not env.wasted_steps.any()  # type: ignore[attr-defined]
    if task == "time limit":
        assert {info["TimeLimit.truncated"] for info in ended} == {True, False}
    if task == "goal":
        assert {info["is_success"] for info in ended} == {True, False}


@pytest.mark.untraced
@pytest.mark.parametrize("kwargs", [{}, {"shared_memory": False}, {"copy": False}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_processes_give_the_same(mode: AutoresetMode, kwargs: dict[str, Any]) -> None:
    """AsyncVectorEnv, wherever its observations lie; with NEXT_STEP not from pipes, see below."""
    if mode is NEXT_STEP and kwargs == {"shared_memory": False}:
        return
    env = adapted("goal", mode, n_envs=2, processes=True, **kwargs)
    assert len(assert_same_run(env, dummy(TASKS["goal"], n_envs=2), 40)) > 4
    env.close()


def test_processes_that_would_reset_twice_are_refused() -> None:
    """AsyncVectorEnv with NEXT_STEP and without shared memory loses episodes after a masked reset; the way out is named."""
    inside = vector(cart_pole, NEXT_STEP, 1, processes=True, shared_memory=False)
    with pytest.raises(ValueError, match=r"shared_memory=True.*got False.*SAME_STEP"):
        GymnasiumVecEnv(inside)
    inside.close()


@pytest.mark.parametrize("mode", MODES)
def test_memory_that_is_used_again_is_copied(mode: AutoresetMode) -> None:
    """A vector environment that returns its own arrays, and environments that write into one array for ever."""
    env = seeded(GymnasiumVecEnv(vector(Reusing, mode, copy=False)))
    kept = [env.reset()]
    copies = [kept[0].copy()]  # type: ignore[union-attr]
    details, last = [], []
    for actions in actions_for(env, 10):
        observations, _, dones, infos = env.step(actions)
        kept.append(observations)
        copies.append(observations.copy())  # type: ignore[union-attr]
        last += [(infos[i], infos[i]["terminal_observation"].copy()) for i in np.flatnonzero(dones)]
        details.append(infos)
    np.testing.assert_array_equal(kept, copies)
    assert len(last) == 9 and all((info["terminal_observation"] == copy).all() for info, copy in last)
    assert [infos[0]["detail"] for infos in details] == [[n] for n in range(1, 11)]


class Overwriting(VectorEnv):
    """A vector environment of an unknown kind with one array for everything it returns, infos included."""

    metadata = {"autoreset_mode": NEXT_STEP}  # noqa: RUF012
    num_envs = 2
    single_observation_space = Reusing.observation_space
    single_action_space = Reusing.action_space

    def __init__(self) -> None:
        self.memory = np.zeros((2, 2))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.memory[:] = 0.0
        return self.memory, {}

    def step(self, actions: Any) -> Any:
        self.memory += 1.0
        return self.memory, self.memory[:, 0], np.zeros(2, bool), np.zeros(2, bool), {"seen": self.memory, "batch": 3}


def test_memory_of_unknown_vector_environments_is_copied() -> None:
    """Whatever is not known to be fresh is copied when it comes: observations, rewards and infos that are asked for later."""
    env = GymnasiumVecEnv(Overwriting())
    start = env.reset()
    steps = [env.step(np.zeros(2, int)) for _ in range(3)]
    assert np.max(start) == 0.0  # type: ignore[arg-type]
    for number, (observations, rewards, _, infos) in enumerate(steps, start=1):
        assert np.all(observations == number) and np.all(rewards == number) and np.all(infos[1]["seen"] == number)
        assert infos[1]["batch"] == 3 and infos[1]["seen"].shape == (2,)


@pytest.mark.parametrize("wrapper", [None, gym.wrappers.vector.RecordEpisodeStatistics], ids=["unknown", "wrapped"])
def test_wasted_steps_are_marked_and_the_rest_is_the_same(wrapper: Any) -> None:
    """NEXT_STEP of an unknown kind: without the marked steps each environment has the history of a plain one."""
    if wrapper is None:
        inside: VectorEnv = Maskless([goal] * 3)
    else:
        inside = wrapper(vector(goal, NEXT_STEP))
    env = GymnasiumVecEnv(inside)
    assert env.wastes_steps
    env.seed(5)
    observation = env.reset()
    n_wasted = n_ended = 0
    plain = [dummy_one(5 + index) for index in range(3)]
    expected: list[Any] = [one.reset() for one in plain]
    for actions in actions_for(env, 60):
        was_ended = env._ended_before.copy()
        observation, rewards, dones, infos = env.step(actions)
        np.testing.assert_array_equal(env.wasted_steps, was_ended)
        for index, one in enumerate(plain):
            row = {key: rows[index] for key, rows in observation.items()}  # type: ignore[union-attr]
            assert infos[index].get("wasted_step", False) == was_ended[index]
            if was_ended[index]:
                n_wasted += 1
                assert rewards[index] == 0.0 and not dones[index] and "episode" not in infos[index]
                assert_same_observations(row, {key: rows[0] for key, rows in expected[index].items()})
                continue
            expected[index], reward, done, (info,) = one.step(actions[index : index + 1])
            assert (rewards[index], dones[index]) == (reward[0], done[0])
            ours = dict(infos[index])
            if done[0]:
                n_ended += 1
                # For want of the next one the observation is the last of the episode
                assert_same_observations(row, info["terminal_observation"])
            assert_same_info({key: ours[key] for key in info}, info)
    assert n_wasted > 10 and n_ended - n_wasted in range(4)
    env.step(actions)
    env.reset()
    assert not env.wasted_steps.any() and not env._ended_before.any()


def dummy_one(seed: int) -> VecEnv:
    return seeded(dummy(goal, 1), seed)


def test_cart_pole_vector_env_is_never_asked_for_a_masked_reset() -> None:
    """It ignores the mask and would reset all; here one episode ends and the others go on."""
    env = seeded(GymnasiumVecEnv(gym.make_vec("CartPole-v1", 4, "vector_entry_point")))
    env.reset()
    lengths = np.zeros(4, int)
    seen = []
    for actions in actions_for(env, 150):
        _, _, dones, infos = env.step(actions)
        lengths = np.where(env.wasted_steps, 0, lengths + 1)  # type: ignore[attr-defined]
        for index in np.flatnonzero(dones):
            assert infos[index]["episode"]["l"] == infos[index]["episode"]["r"] == lengths[index]
            seen.append(int(lengths[index]))
    assert len(seen) > 15 and len(set(seen)) > 5


def test_mode_must_be_known() -> None:
    """As of Gymnasium before 1.1, or of an environment that does not say."""
    inside = vector(cart_pole, SAME_STEP, 1)
    del inside.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match=r"autoreset_mode.*got None.*Gymnasium 1\.1"):
        GymnasiumVecEnv(inside)
    with pytest.raises(ValueError, match="VectorEnv, got Goal"):
        GymnasiumVecEnv(Goal())  # type: ignore[arg-type]


def test_same_step_without_last_observations_is_refused() -> None:
    """There is no way to know where an episode ended."""

    class Forgetful(Maskless):
        def step(self, actions: Any) -> Any:
            *results, infos = super().step(actions)
            return *results, {key: value for key, value in infos.items() if "final" not in key}

    env = seeded(GymnasiumVecEnv(Forgetful([goal] * 2, autoreset_mode=SAME_STEP)))
    env.reset()
    with pytest.raises(ValueError, match="final_obs"):
        for actions in actions_for(env, 30):
            env.step(actions)


def test_infos_in_a_list_are_refused_at_the_reset() -> None:
    """Gymnasium's wrapper makes one of the dict that is asked for."""
    env = GymnasiumVecEnv(gym.wrappers.vector.DictInfoToList(vector(goal, SAME_STEP)))
    with pytest.raises(ValueError, match=r"infos of .* must be a dict of arrays.*got a list.*DictInfoToList"):
        env.reset()


def test_a_reset_in_between_starts_the_statistics_anew() -> None:
    """The third reset too, and seeds count once."""
    ours, theirs = adapted("goal", SAME_STEP), dummy(TASKS["goal"])
    for _ in range(3):
        assert_same_run(ours, theirs, 5)
    for env in (ours, theirs):
        env.seed(3)
    assert_same_run(ours, theirs, 20)


def test_options_reach_every_environment_once() -> None:
    """Options as in SB3; different ones for each environment are refused."""
    ours, theirs = adapted("goal", DISABLED), dummy(TASKS["goal"])
    for env in (ours, theirs):
        env.set_options({"start": 0.5})
    assert_same_observations(ours.reset(), theirs.reset())
    assert_same_observations(ours.reset(), theirs.reset())
    ours.set_options([{"start": 0.5}, {"start": 0.1}, {}])
    with pytest.raises(ValueError, match="options must be the same"):
        ours.reset()


@pytest.mark.parametrize("processes", [False, True], ids=["sync", "async"])
def test_attributes_and_methods_are_as_in_sb3(processes: bool) -> None:
    """Values are those that DummyVecEnv gives; AsyncVectorEnv cannot do it for some of the environments."""
    env, theirs = adapted("goal", SAME_STEP, processes=processes), dummy(TASKS["goal"])
    env.reset()
    assert env.get_attr("level") == theirs.get_attr("level") == [1.0] * 3
    env.set_attr("level", [3.0])
    assert env.get_attr("level", [0, -1]) == [[3.0]] * 2 and env.get_attr("level", 1) == [[3.0]]
    env.set_attr("level", 2.0)
    assert env.env_method("twice", 1.5, plus=1.0) == [6.0] * 3
    assert env.has_attr("twice") and not env.has_attr("nothing")
    with pytest.raises(AttributeError, match="nothing"):
        env.get_attr("nothing")
    with pytest.raises(AttributeError, match="nothing"):
        env.env_method("nothing")
    assert env.env_is_wrapped(Monitor) == [True] * 3 and env.env_is_wrapped(Monitor, [1]) == [True]
    if processes:
        with pytest.raises(ValueError, match=r"indices must be .* all"):
            env.set_attr("level", 5.0, [1])
        with pytest.raises(ValueError, match=r"indices must be .* all"):
            env.env_method("twice", 1.0, indices=1)
        with pytest.raises(ValueError, match="cannot tell"):
            env.env_is_wrapped(TimeLimit)
    else:
        env.set_attr("level", 5.0, [1])
        assert env.get_attr("level") == [2.0, 5.0, 2.0]
        assert env.env_method("twice", 1.0, indices=1) == [7.0]
        assert env.env_is_wrapped(TimeLimit) == [True] * 3
        assert env.env_is_wrapped(ClipReward) == [False] * 3
    # Nothing of this has ended a process
    env.step(np.zeros((3, 2), int))
    env.close()
    env.close()


def test_what_a_batch_cannot_do_is_said() -> None:
    """A vector environment without environments inside has none whose attributes could be asked for."""
    env = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2, "vector_entry_point"))
    assert env.get_attr("render_mode") == [None, None] and not env.has_attr("gravity")
    assert env.env_is_wrapped(ClipReward) == [False] * 2
    for ask in (
        lambda: env.get_attr("gravity"),
        lambda: env.set_attr("gravity", 1.0),
        lambda: env.env_method("step"),
    ):
        with pytest.raises(ValueError, match="CartPoleVectorEnv steps all of them as one"):
            ask()


def test_as_vec_env_takes_vector_environments_only() -> None:
    """Anything else is handed on as it is."""
    inside = vector(cart_pole, SAME_STEP, 1)
    env = as_vec_env(inside)
    assert isinstance(env, GymnasiumVecEnv) and env.vector_env is inside
    single = goal()
    for other in (env, single, "CartPole-v1", None):
        assert as_vec_env(other) is other


def test_ppo_learns_the_same_as_with_dummy_vec_env() -> None:
    """Parameters, episode statistics and successes after two rollouts are equal bit for bit."""

    def train(env: VecEnv) -> Any:
        model = PPO(
            "MlpPolicy", VecExtractDictObs(env, "vector"), n_steps=16, batch_size=24, n_epochs=1, seed=1, device="cpu"
        ).learn(96)
        parameters = [parameter.detach().numpy() for parameter in model.policy.parameters()]
        assert model.ep_info_buffer is not None and len(model.ep_info_buffer) > 5
        episodes = [(info["r"], info["l"]) for info in model.ep_info_buffer]
        return parameters, episodes, list(model.ep_success_buffer or [])

    np.testing.assert_equal(train(adapted("goal", NEXT_STEP)), train(dummy(TASKS["goal"])))


def test_evaluation_is_the_same(tmp_path: Path) -> None:
    """evaluate_policy and EvalCallback, without a warning that a Monitor is missing."""
    model = PPO("MlpPolicy", dummy(TASKS["time limit"], 2), n_steps=32, batch_size=32, n_epochs=1, seed=1, device="cpu")
    results = []
    for env in (adapted("time limit", SAME_STEP), dummy(TASKS["time limit"])):
        model.set_random_seed(3)
        seeded(env)
        results.append(evaluate_policy(model, env, n_eval_episodes=8, return_episode_rewards=True, deterministic=False))
    assert results[0] == results[1]
    model.set_env(adapted("time limit", SAME_STEP, n_envs=2))
    callback = EvalCallback(adapted("time limit", DISABLED), eval_freq=16, log_path=str(tmp_path), verbose=0)
    model.learn(64, callback=callback)
    assert len(callback.evaluations_results) == 2


def stacked_and_normalized(env: VecEnv) -> VecEnv:
    return VecCheckNan(VecFrameStack(VecNormalize(env), 2), raise_exception=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("wrap", "task"),
    [(VecMonitor, "goal"), (VecTransposeImage, "goal"), (stacked_and_normalized, "time limit")],
    ids=["monitor", "transpose", "normalize, stack, check"],
)
@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor` wrapper")
def test_sb3_wrappers_give_the_same(wrap: Any, task: str, mode: AutoresetMode) -> None:
    """Their changes to infos stay in them, as they stay in a list of dicts."""

    def same_info(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        assert ours.keys() == theirs.keys()
        if "terminal_observation" in theirs:
            assert_same_observations(ours["terminal_observation"], theirs["terminal_observation"])
            assert (ours["episode"]["r"], ours["episode"]["l"]) == (theirs["episode"]["r"], theirs["episode"]["l"])

    assert assert_same_run(wrap(adapted(task, mode)), wrap(dummy(TASKS[task])), 40, same_info=same_info)


@pytest.mark.parametrize("processes", [False, True], ids=["sync", "async"])
def test_pictures_are_those_of_sb3(processes: bool) -> None:
    """render and get_images."""

    def make() -> gym.Env[Any, Any]:
        return goal(render_mode="rgb_array")

    env, theirs = GymnasiumVecEnv(vector(make, SAME_STEP, processes=processes)), dummy(make)
    for one in (env, theirs):
        one.reset()
        one.step(np.zeros((3, 2), int))
    assert env.render_mode == "rgb_array" and Goal.metadata.items() <= env.metadata.items()
    np.testing.assert_array_equal(env.get_images(), theirs.get_images())
    np.testing.assert_array_equal(env.render(), theirs.render())
    env.close()


def test_human_rendering_is_left_to_the_environment() -> None:
    """In that mode there are no pictures to put side by side."""

    class Window(Goal):
        shown = 0

        def render(self) -> Any:
            Window.shown += 1

    env = GymnasiumVecEnv(vector(lambda: Window(render_mode="human"), SAME_STEP, 2))
    env.reset()
    assert env.render() is None and Window.shown == 2


def test_video_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3's recorder finds metadata, render mode and frames."""
    inside = GymnasiumVecEnv(vector(lambda: goal(render_mode="rgb_array"), SAME_STEP, 2))
    env = VecVideoRecorder(inside, str(tmp_path), lambda step: step == 0, video_length=4)
    written: list[list[np.ndarray]] = []

    def stop() -> None:
        written.append(env.recorded_frames[:])
        env.recording = False

    monkeypatch.setattr(env, "_stop_recording", stop)
    env.reset()
    for actions in actions_for(env, 4):
        env.step(actions)
    assert env.frames_per_sec == 30
    assert [frame.shape for frame in written[0]] == [(16, 6, 3)] * 5
    env.recorded_frames.clear()
