"""Few processes with several environments each, which hand their observations over in shared memory."""

import itertools
import multiprocessing
import os
import pickle
import signal
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import CloudpickleWrapper, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.patch_gym import _patch_env
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from sb3_trpo.vec_env.infos import LazyInfos
from sb3_trpo.vec_env.lean import LeanVecEnv

EnvMaker = Callable[[], gym.Env]
# A method of a worker's environments, with its arguments by position and by name
Request = tuple[str, tuple[Any, ...], dict[str, Any]]
# Bytes that a Connection writes in one piece
AT_ONCE = 2**14
# Seconds that a process has to close its environments before it is stopped
PATIENCE = 5.0


class WorkerError(RuntimeError):
    """What a worker process could not do: its traceback, or how it ended."""


class Shared(NamedTuple):
    """
    Arrays in shared memory, with a row for each environment.

    :param memory: by name the bytes; ``rewards``, ``dones``, and a number for each key of the observation
    :param shapes: by name
    :param dtypes: by name
    """

    memory: dict[Any, Any]
    shapes: dict[Any, tuple[int, ...]]
    dtypes: dict[Any, np.dtype]

    @classmethod
    def for_envs(cls, n_envs: int, observation_space: gym.Space, context: Any) -> "Shared":
        """
        Reserve memory.

        :param n_envs: number of environments
        :param observation_space: of each of them
        :param context: of multiprocessing
        """
        keys, shapes, dtypes = obs_space_info(observation_space)
        rows: dict[Any, tuple[int, ...]] = {("observations", key): (n_envs, *shapes[key]) for key in keys}
        types: dict[Any, np.dtype] = {("observations", key): np.dtype(dtypes[key]) for key in keys}
        for name, dtype in {"rewards": np.float32, "dones": bool}.items():
            rows[name], types[name] = (n_envs,), np.dtype(dtype)
        memory = {name: context.RawArray("b", max(1, int(np.prod(rows[name])) * types[name].itemsize)) for name in rows}
        return cls(memory, rows, types)

    def array(self, name: Any) -> np.ndarray:
        """
        View one of the arrays.

        :param name: of the array
        :return: a view
        """
        size = int(np.prod(self.shapes[name]))
        return np.frombuffer(self.memory[name], self.dtypes[name], size).reshape(self.shapes[name])


class Part(LeanVecEnv):
    """
    The environments of one worker process.

    :param env_fns: functions that make them
    :param shared: where all workers write
    :param start: row of the first environment
    """

    def __init__(self, env_fns: list[EnvMaker], shared: Shared, start: int):
        super().__init__(env_fns)
        rows = slice(start, start + self.num_envs)
        for key in self.keys:
            self.buf_obs[key] = shared.array(("observations", key))[rows]
        self.buf_rews, self.buf_dones = shared.array("rewards")[rows], shared.array("dones")[rows]

    def step_part(self, actions: np.ndarray) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
        """
        Step these environments; observations, rewards and ends go to shared memory.

        :param actions: a row for each
        :return: for each episode that ended the environment's place here, its info, and the info of the reset
        """
        self.actions = actions
        infos = self.step_rows()
        return [(index, infos[index], self.reset_infos[index]) for index in np.flatnonzero(self.buf_dones).tolist()]

    def reset_part(self, seeds: list[int | None], options: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Reset these environments; observations go to shared memory.

        :param seeds: of each
        :param options: of each
        :return: infos of the resets
        """
        self._seeds, self._options = seeds, options
        self.reset()
        return self.reset_infos


def _answer(pipe: Connection, number: int, result: Any, error: Exception | None) -> None:
    """Send what a command gave; an exception with its traceback, and as another one if it does not pickle."""
    trace = "".join(traceback.format_exception(error)) if error else ""
    try:
        message = pickle.dumps((number, result, error, trace))
        if error:
            pickle.loads(message)
    except Exception as problem:
        named = repr(error) if error else f"the result of a worker cannot be sent: {problem!r}"
        message = pickle.dumps((number, None, WorkerError(named), trace))
    pipe.send_bytes(message)


def _work(pipe: Connection, other_end: Connection, env_fns: CloudpickleWrapper, shared: Shared, start: int) -> None:
    """Make environments when the parent process asks for something, and do it, until it says nothing or is gone."""
    other_end.close()
    # Ctrl-C is for the parent to handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    part = None
    try:
        while message := pipe.recv_bytes():
            number, request = pickle.loads(message)
            try:
                name, arguments, keywords = pickle.loads(request)
                if part is None:
                    part = Part(env_fns.var, shared, start)
                result, problem = getattr(part, name)(*arguments, **keywords), None
            except Exception as error:
                result, problem = None, error
            _answer(pipe, number, result, problem)
    except (EOFError, ConnectionError):
        pass
    finally:
        if part is not None:
            part.close()
        pipe.close()


def _stop(pipes: Sequence[Connection], processes: Sequence[BaseProcess], owner: int) -> None:
    """End the worker processes, by force those that do not answer."""
    if os.getpid() != owner:
        return
    for pipe in pipes:
        with suppress(OSError):
            pipe.send_bytes(b"")
        pipe.close()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.terminate()
            process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


class PoolVecEnv(VecEnv):
    """
    Environments in a few processes, several in each, with the numbers of ``DummyVecEnv``.

    Observations, rewards and ends of episodes come through shared memory. Only the infos of episodes that ended travel; every
    other info holds ``TimeLimit.truncated`` and nothing else. Worth it where a step takes long and cores are free.

    The first function is called once in this process too, to learn the spaces; that environment is closed at once. An
    exception in a worker is raised here with the worker's traceback as its cause. The processes end with ``close``, when
    nobody holds the environment any more, and with the program.

    After an interrupt (Ctrl-C) it goes on as before: the step that nobody waits for any more is finished and forgotten. Only
    where the interrupt falls into the microseconds in which an answer is read, or a request of more than 16 KiB is sent, a
    ``WorkerError`` says from then on that another one must be made.

    :param env_fns: functions that make the environments, as for ``SubprocVecEnv``
    :param n_workers: number of processes; None for one per core of the machine, and never more than environments
    :param start_method: of the processes, as for ``SubprocVecEnv``: ``"forkserver"`` where there is one, else ``"spawn"``
    """

    def __init__(self, env_fns: Iterable[EnvMaker], n_workers: int | None = None, start_method: str | None = None):
        makers = list(env_fns)
        n_workers = min(os.cpu_count() or 1, len(makers)) if n_workers is None else n_workers
        if not 1 <= n_workers <= len(makers):
            raise ValueError(f"n_workers must be between 1 and the number of environments, {len(makers)}, got {n_workers}")
        if start_method is None:
            start_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(start_method)
        example = _patch_env(makers[0]())
        observation_space, action_space = example.observation_space, example.action_space
        metadata = example.metadata
        example.close()
        self._shared = Shared.for_envs(len(makers), observation_space, context)
        self._keys = obs_space_info(observation_space)[0]
        self._views = {name: self._shared.array(name) for name in self._shared.memory}
        bounds = np.linspace(0, len(makers), n_workers + 1).astype(int).tolist()
        # The rows of each worker
        self._parts = [range(start, end) for start, end in itertools.pairwise(bounds)]
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        # Of the last requests. Answers to those before are left over from an interrupt
        self._number = 0
        # The worker with which a message is not over
        self._cut: int | None = None
        self._is_stepping = False
        self._stopper = weakref.finalize(self, _stop, self._pipes, self._processes, os.getpid())
        try:
            for part in self._parts:
                ours, theirs = context.Pipe()
                arguments = (theirs, ours, CloudpickleWrapper(makers[part.start : part.stop]), self._shared, part.start)
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self._of_each_worker("has_attr", "num_envs")
            super().__init__(len(makers), observation_space, action_space)
        except BaseException:
            self.close()
            raise
        self.metadata = metadata

    @contextmanager
    def _message(self, worker: int, *, in_pieces: bool) -> Iterator[Connection]:
        """Send or read a message, whole at once or in pieces; if an interrupt comes between these, it is known afterwards."""
        self._cut = worker if in_pieces else None
        try:
            yield self._pipes[worker]
        except (OSError, EOFError):
            self._cut = None
            raise self._death(worker) from None
        self._cut = None

    def _ask(self, requests: Mapping[int, Request]) -> None:
        """Ask workers for something; each answers with the number of its request."""
        if not self._stopper.alive:
            raise ValueError("this PoolVecEnv is closed")
        if self._cut is not None:
            raise WorkerError(
                f"an interrupt cut a message of worker {self._cut} in two: close this PoolVecEnv and make another"
            )
        self._number += 1
        messages = [pickle.dumps((self._number, pickle.dumps(request))) for request in requests.values()]
        for worker, message in zip(requests, messages, strict=True):
            with self._message(worker, in_pieces=len(message) > AT_ONCE) as pipe:
                pipe.send_bytes(message)

    def _answer_of(self, worker: int) -> tuple[Any, Exception | None, str]:
        """Wait for a worker's answer to the last request: its result, or an exception and the worker's traceback."""
        try:
            while True:
                # Most interrupts come while one waits, where they do no harm
                self._pipes[worker].poll(None)
                with self._message(worker, in_pieces=True) as pipe:
                    message = pipe.recv_bytes()
                number, *answer = pickle.loads(message)
                if number == self._number:
                    return tuple(answer)
        except WorkerError as death:
            return None, death, ""

    def _answers(self, workers: Iterable[int]) -> list[Any]:
        """Read an answer of each worker that was asked, in this order; raise the first exception after all were read."""
        results: list[Any] = []
        problems: list[tuple[Exception, str]] = []
        for worker in workers:
            result, error, trace = self._answer_of(worker)
            results.append(result)
            if error is not None:
                problems.append((error, f"worker {worker}, environments {self._parts[worker]}:\n{trace}"))
        if problems:
            error, trace = problems[0]
            try:
                raise error from WorkerError(trace)
            finally:
                # An exception refers to this frame: no circle
                del error, problems
        return results

    def _death(self, worker: int) -> WorkerError:
        process = self._processes[worker]
        process.join(PATIENCE)
        return WorkerError(f"worker {worker}, environments {self._parts[worker]}, is gone: exit code {process.exitcode}")

    def _of_each_worker(self, name: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker's ``VecEnv``; return an answer for each worker."""
        self._ask(dict.fromkeys(range(len(self._parts)), (name, arguments, {})))
        return self._answers(range(len(self._parts)))

    def _of_all(self, name: str, *arguments: Any, indices: VecEnvIndices = None, **keywords: Any) -> list[Any]:
        """Call a method of every worker's ``VecEnv`` that takes ``indices``; return an answer for each environment."""
        chosen = [range(self.num_envs)[index] for index in self._get_indices(indices)]
        places, requests = {}, {}
        for worker, part in enumerate(self._parts):
            mine = [index for index in chosen if index in part]
            if mine:
                places[worker] = mine
                requests[worker] = (name, arguments, {**keywords, "indices": [index - part.start for index in mine]})
        self._ask(requests)
        found: dict[int, Any] = {}
        for mine, answer in zip(places.values(), self._answers(places), strict=True):
            found.update(zip(mine, answer or [None] * len(mine), strict=True))
        return [found[index] for index in chosen]

    def step_async(self, actions: np.ndarray) -> None:
        """Ask every worker for a step (see base class)."""
        self._ask({worker: ("step_part", (actions[part.start : part.stop],), {}) for worker, part in enumerate(self._parts)})
        self._is_stepping = True

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for every worker's step (see base class)."""
        if not self._is_stepping:
            raise RuntimeError("step_wait must come after step_async, once for each")
        self._is_stepping = False
        ended = {}
        truncated = np.zeros(self.num_envs, bool)
        for part, ends in zip(self._parts, self._answers(range(len(self._parts))), strict=True):
            for index, info, reset_info in ends:
                place = part.start + index
                ended[place], self.reset_infos[place] = info, reset_info
                truncated[place] = info["TimeLimit.truncated"]
        infos: Any = LazyInfos(self.num_envs, {}, ended=ended, truncated=truncated)
        return self._observations(), self._views["rewards"].copy(), self._views["dones"].copy(), infos

    def reset(self) -> VecEnvObs:
        """Reset every environment (see base class)."""
        requests: dict[int, Request] = {}
        for worker, part in enumerate(self._parts):
            rows = slice(part.start, part.stop)
            requests[worker] = ("reset_part", (self._seeds[rows], self._options[rows]), {})
        self._ask(requests)
        self.reset_infos = [info for infos in self._answers(requests) for info in infos]
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def _observations(self) -> VecEnvObs:
        return dict_to_obs(self.observation_space, {key: self._views["observations", key].copy() for key in self._keys})

    def close(self) -> None:
        """Close the environments and end the processes."""
        self._is_stepping = False
        self._stopper()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return a picture of each environment (see base class)."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"render_mode must be 'rgb_array' for pictures, got {self.render_mode!r}", stacklevel=2)
            return [None] * self.num_envs
        return self.env_method("render")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Read an attribute of environments.

        :param attr_name: its name
        :param indices: of the environments; all if there are none
        :return: a value for each
        """
        return self._of_all("get_attr", attr_name, indices=indices)

    def has_attr(self, attr_name: str) -> bool:
        """
        Tell whether every environment has an attribute, without sending it here.

        :param attr_name: its name
        """
        return all(self._of_each_worker("has_attr", attr_name))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of environments.

        :param attr_name: its name
        :param value: the same for each
        :param indices: of the environments; all if there are none
        """
        self._of_all("set_attr", attr_name, value, indices=indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of environments.

        :param method_name: its name
        :param method_args: arguments by position
        :param indices: of the environments; all if there are none
        :param method_kwargs: arguments by name
        :return: what each returned
        """
        return self._of_all("env_method", method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        Tell whether environments are in a wrapper.

        :param wrapper_class: its class
        :param indices: of the environments; all if there are none
        :return: an answer for each
        """
        return self._of_all("env_is_wrapped", wrapper_class, indices=indices)
