"""Few processes with several environments each: DummyVecEnv's numbers, errors with their traceback, no process left."""

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import ClipReward
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor

from sb3_trpo.vec_env import PoolVecEnv
from sb3_trpo.vec_env.pool import WorkerError
from tests.spawned import exit_code_of
from tests.vec_env.tasks import (
    TASKS,
    Goal,
    Reusing,
    actions_for,
    assert_same_info,
    assert_same_run,
    cart_pole,
    dummy,
    goal,
    seeded,
)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Whatever happens in a test, its processes are gone afterwards."""
    yield
    if multiprocessing.active_children():
        # What an exception holds
        gc.collect()
    assert multiprocessing.active_children() == []


def pool(make: Any = goal, n_envs: int = 3, n_workers: int | None = 2, *, monitored: bool = True) -> PoolVecEnv:
    maker = (lambda: Monitor(make())) if monitored else make
    env = PoolVecEnv([maker] * n_envs, n_workers, "fork")
    seeded(env)
    return env


def info_of_an_end(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The infos of ends are whole; of the others only the time limit is known."""
    if "terminal_observation" in theirs:
        assert_same_info(ours, theirs)
    else:
        assert ours == {"TimeLimit.truncated": False}


@pytest.mark.parametrize("task", TASKS)
def test_pool_gives_what_dummy_vec_env_gives(task: str) -> None:
    """Three environments in two processes; infos of ended episodes, infos of resets, successes, time limits."""
    env = pool(TASKS[task])
    assert len(assert_same_run(env, dummy(TASKS[task]), 60, same_info=info_of_an_end)) > 3
    env.close()


@pytest.mark.parametrize("n_workers", [1, 5, None])
def test_any_number_of_processes_gives_the_same(n_workers: int | None) -> None:
    """One, as many as environments, and one for each core."""
    env = pool(cart_pole, 5, n_workers)
    assert len(env._processes) == (n_workers or min(5, os.cpu_count() or 1))
    assert_same_run(env, dummy(cart_pole, 5), 30, same_info=info_of_an_end)


def test_number_of_processes_is_checked() -> None:
    """None without environments, none without processes."""
    for n_workers in (0, 4):
        with pytest.raises(ValueError, match=f"n_workers must be between 1 .* 3, got {n_workers}"):
            pool(n_workers=n_workers)


def test_what_is_returned_does_not_change_later() -> None:
    """The shared memory is copied."""
    env = pool(Reusing, monitored=False)
    kept = [env.reset()]
    copies = [np.copy(kept[0])]  # type: ignore[arg-type]
    for actions in actions_for(env, 5):
        observations, rewards, dones, infos = env.step(actions)
        kept.append(observations)
        copies.append(np.copy(observations))  # type: ignore[arg-type]
        before = (rewards.copy(), dones.copy())
        for index in np.flatnonzero(dones):
            assert infos[index]["terminal_observation"][0] == pytest.approx(rewards[index])
    env.step(actions)
    np.testing.assert_array_equal(kept, copies)
    np.testing.assert_array_equal((rewards, dones), before)


def test_actions_keep_their_type() -> None:
    """A float32 action reaches an environment whose space is float64 as it is, as in DummyVecEnv."""

    class Typed(gym.Env[Any, Any]):
        observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(1), {}

        def step(self, action: Any) -> Any:
            return np.zeros(1), 0.0, True, False, {"dtype": action.dtype}

    env = pool(Typed, monitored=False)
    env.reset()
    assert env.step(np.zeros((3, 1), np.float32))[3][2]["dtype"] == np.float32


def test_seeds_and_options_reach_each_environment_once() -> None:
    """Different options for each environment too."""
    ours, theirs = pool(), dummy(goal)
    for env in (ours, theirs):
        env.set_options([{"start": 0.5}, {}, {"start": -0.5}])
    assert_same_run(ours, theirs, 5, same_info=info_of_an_end)
    assert_same_run(ours, theirs, 5, same_info=info_of_an_end)


def test_attributes_and_methods_are_as_in_sb3() -> None:
    """With indices across processes, in any order."""
    env, theirs = pool(n_envs=5), dummy(goal, 5)
    for one in (env, theirs):
        one.set_attr("level", 3.0, [4, 0])
        one.set_attr("level", 2.0, 1)
    for indices in (None, 2, [4, 1], [-1]):
        assert env.get_attr("level", indices) == theirs.get_attr("level", indices)
    assert env.env_method("twice", 1.0, plus=1.0, indices=[3, 0]) == theirs.env_method("twice", 1.0, plus=1.0, indices=[3, 0])
    assert env.env_is_wrapped(Monitor) == [True] * 5 and env.env_is_wrapped(ClipReward, [1]) == [False]
    assert env.has_attr("twice") and not env.has_attr("nothing")
    with pytest.raises(AttributeError, match="nothing"):
        env.get_attr("nothing")
    assert env.metadata == Goal.metadata and env.render_mode is None
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.get_images() == [None] * 5
    env.close()


def test_pictures_are_those_of_sb3() -> None:
    """From all processes side by side."""
    make = lambda: goal(render_mode="rgb_array")  # noqa: E731
    env, theirs = pool(make), dummy(make)
    for one in (env, theirs):
        one.reset()
    np.testing.assert_array_equal(env.render(), theirs.render())


class Fragile(Goal):
    """Fails at its third step where it was told to."""

    fails = False
    error: Any = ZeroDivisionError("no way on")

    def step(self, action: Any) -> Any:
        if self.fails and self.n_steps == 2:
            raise self.error
        return super().step(action)


def fragile() -> gym.Env[Any, Any]:
    return Fragile()


def test_an_error_in_a_worker_is_raised_here_with_its_traceback() -> None:
    """Its type stays; the others stepped, and all of them can go on."""
    env = pool(fragile, monitored=False)
    env.set_attr("fails", True, [2])
    env.reset()
    actions = np.ones((3, 2), int)
    env.step(actions)
    env.step(actions)
    with pytest.raises(ZeroDivisionError, match="no way on") as caught:
        env.step(actions)
    assert isinstance(caught.value.__cause__, WorkerError)
    assert "in step" in str(caught.value.__cause__) and "worker 1, environments range(1, 3)" in str(caught.value.__cause__)
    env.set_attr("fails", False)
    assert env.env_method("twice", 1.0) == [3.0] * 3
    assert env.step(actions)[1].shape == (3,)
    env.close()


class Unpicklable(Exception):
    def __init__(self, first: int, second: int):
        super().__init__("two numbers")


@pytest.mark.parametrize("error", [Unpicklable(1, 2), RuntimeError(lambda: 0)], ids=["comes apart", "does not pickle"])
def test_an_error_that_does_not_pickle_is_raised_as_another(error: Exception) -> None:
    """With the traceback all the same."""

    class Failing(Goal):
        def step(self, action: Any) -> Any:
            raise error

    env = pool(Failing, monitored=False)
    env.reset()
    with pytest.raises(WorkerError) as caught:
        env.step(np.ones((3, 2), int))
    assert "in step" in str(caught.value.__cause__)
    env.close()


def test_a_result_that_does_not_pickle_is_an_error() -> None:
    """And not a process that is stuck."""

    class Closure(Goal):
        closure = staticmethod(lambda: 0)

    env = pool(Closure)
    with pytest.raises(WorkerError, match="cannot be sent"):
        env.get_attr("closure")
    assert env.get_attr("level") == [1.0] * 3
    env.close()


def test_a_process_that_died_is_named() -> None:
    """Killed from outside, as by the kernel for want of memory."""
    env = pool()
    env.reset()
    os.kill(env._processes[1].pid or 0, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"worker 1, environments range\(1, 3\), is gone: exit code -9"):
        for _ in range(3):
            env.step(np.ones((3, 2), int))
    env.close()


def test_an_environment_that_cannot_be_made_leaves_no_process() -> None:
    """In a worker only: the example here could be made."""
    here = os.getpid()

    def make() -> gym.Env[Any, Any]:
        if os.getpid() != here:
            raise OSError("no licence left")
        return goal()

    with pytest.raises(OSError, match="no licence left") as caught:
        pool(make)
    # Even while the exception is held, and with it the frames it went through
    assert multiprocessing.active_children() == [] and caught.value.__traceback__ is not None


def test_close_ends_the_processes() -> None:
    """In the middle of a step too, and twice; afterwards it says that it is closed."""
    env = pool()
    env.reset()
    env.step_async(np.ones((3, 2), int))
    processes = list(env._processes)
    env.close()
    env.close()
    assert [process.exitcode for process in processes] == [0, 0]
    with pytest.raises(ValueError, match="closed"):
        env.reset()


def test_processes_end_when_nobody_holds_the_environment() -> None:
    """Nothing refers to it in a circle."""
    env = pool()
    processes = list(env._processes)
    del env
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_step_that_was_interrupted_is_forgotten() -> None:
    """What comes next gets its own answers."""
    env = pool(n_envs=4)
    env.reset()
    env.step_async(np.ones((4, 2), int))
    assert env.get_attr("level") == [1.0] * 4
    env.step_async(np.ones((4, 2), int))
    assert set(env.reset()) == {"vector", "image", "phase"}


class Interrupted:
    """A pipe at which Ctrl-C comes once, before or after a message."""

    def __init__(self, pipe: Any, method: str, *, after: bool):
        self.pipe, self.method, self.after, self.is_over = pipe, method, after, False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.pipe, name)
        if name not in (self.method, self.method.removesuffix("_bytes")) or self.is_over:
            return method

        def interrupted(*arguments: Any) -> None:
            self.is_over = True
            if self.after:
                method(*arguments)
            raise KeyboardInterrupt

        return interrupted


def assert_same_after(env: PoolVecEnv) -> None:
    """What comes next is what comes in an environment to which nothing happened."""
    env.seed(7)
    theirs = dummy(cart_pole, 4)
    theirs.seed(7)
    assert_same_run(env, theirs, 20, same_info=info_of_an_end)


@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_while_asking_leaves_no_answer_behind(worker: int, after: bool) -> None:
    """Whether the worker was asked or not, its next answer is that to the next question."""
    env = pool(cart_pole, 4)
    env.reset()
    env._pipes[worker] = Interrupted(env._pipes[worker], "send_bytes", after=after)  # type: ignore[call-overload]
    with pytest.raises(KeyboardInterrupt):
        env.step(np.ones(4, int))
    assert_same_after(env)


@pytest.mark.parametrize("worker", [0, 1])
def test_an_answer_of_which_a_part_may_be_lost_is_known(worker: int) -> None:
    """Wrong numbers are worse than an error, and so is a program that waits for ever."""
    env = pool(cart_pole, 4)
    env.reset()
    env._pipes[worker] = Interrupted(env._pipes[worker], "recv_bytes", after=True)  # type: ignore[call-overload]
    with pytest.raises(KeyboardInterrupt):
        env.step(np.ones(4, int))
    for use in (env.reset, lambda: env.step(np.ones(4, int)), lambda: env.get_attr("spec")):
        with pytest.raises(WorkerError, match=f"an interrupt cut a message of worker {worker} in two: close this PoolVecEnv"):
            use()
    env.close()


def test_a_step_is_waited_for_once() -> None:
    """Nothing would come of a second time."""
    env = pool()
    env.reset()
    env.step(np.ones((3, 2), int))
    with pytest.raises(RuntimeError, match="step_wait must come after step_async"):
        env.step_wait()
    env.step_async(np.ones((3, 2), int))
    env.close()
    with pytest.raises(RuntimeError, match="step_wait must come after step_async"):
        env.step_wait()


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def step_interrupted() -> None:
    """Be interrupted again and again, wherever a signal finds the process."""
    signal.signal(signal.SIGALRM, interrupt)
    rng = np.random.default_rng(0)
    env, n_right = pool(cart_pole, 4), 0
    for _ in range(12):
        env.reset()
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.002, 0.02))
            while True:
                env.step(np.ones(4, int))
        except KeyboardInterrupt:
            pass
        try:
            assert_same_after(env)
            n_right += 1
        except WorkerError:
            env.close()
            env = pool(cart_pole, 4)
    env.close()
    assert n_right > 2


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts itself with a timer of Unix")
def test_interrupts_at_any_time_leave_right_numbers_or_an_error() -> None:
    """In a process of its own: what traces this one is not made for that."""
    assert exit_code_of(step_interrupted) == 0


def test_processes_leave_ctrl_c_to_the_program() -> None:
    """The signal reaches every process of a terminal."""
    env = pool()
    env.reset()
    for process in env._processes:
        os.kill(process.pid or 0, signal.SIGINT)
    assert env.step(np.ones((3, 2), int))[1].shape == (3,)


def hold_a_pool(pipe: Any) -> None:
    env = pool()
    pipe.send([process.pid for process in env._processes])
    time.sleep(60.0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at Linux's table of processes")
def test_processes_end_with_a_program_that_was_killed() -> None:
    """They see that nobody asks any more."""

    def runs(pid: int) -> bool:
        stat = Path(f"/proc/{pid}/stat")
        # Whoever adopted it may not have buried it yet
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    program = context.Process(target=hold_a_pool, args=(theirs,))
    program.start()
    pids = ours.recv()
    assert all(map(runs, pids))
    program.kill()
    program.join()
    deadline = time.monotonic() + 20.0
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(runs, pids))


def test_sb3s_helper_makes_one_and_ppo_learns_the_same() -> None:
    """make_vec_env takes the class; the policy is the one that DummyVecEnv's experience makes."""
    kwargs = {"n_workers": 2, "start_method": "fork"}
    parameters = []
    for vec_env in ({"vec_env_cls": PoolVecEnv, "vec_env_kwargs": kwargs}, {}):
        env = make_vec_env("CartPole-v1", 4, seed=1, env_kwargs={"max_episode_steps": 20}, **vec_env)  # type: ignore[arg-type]
        model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, seed=1, device="cpu").learn(256)
        assert model.ep_info_buffer is not None and len(model.ep_info_buffer) > 5
        parameters.append([parameter.detach().numpy() for parameter in model.policy.parameters()])
        env.close()
    np.testing.assert_equal(parameters[0], parameters[1])


@pytest.mark.slow
@pytest.mark.parametrize("start_method", [None, "spawn"])
def test_other_ways_to_start_give_the_same(start_method: str | None) -> None:
    """SB3's default, and the one of Windows and macOS."""
    env = PoolVecEnv([lambda: Monitor(goal())] * 3, 2, start_method)
    assert_same_run(seeded(env), dummy(goal), 20, same_info=info_of_an_end)
    env.close()
