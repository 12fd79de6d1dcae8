"""
The copies of a model on several processes: what makes them the same, notices that they are not, and makes their rollouts one.

Of a single process there is nothing to do, and nothing is done.
"""

import copy
import io
import re
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_trpo.distributed import PeerError, Processes
from sb3_trpo.guards.finite import normalizers_of, running_statistics
from sb3_trpo.guards.passed_on import PassedOn
from sb3_trpo.trust_region import flatten, unflatten

# What each process may have in its own way
OWN = {"verbose", "seed", "device", "tensorboard_log", "processes", "custom_objects", "print_system_info", "force_reset"}
# What a checksum is of
CHECKSUM = "the checksum of weights, optimizer and running statistics"
COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "ep_info_buffer", "ep_success_buffer")

SAME_ROLLOUTS = (
    "Processes {ranks} have made the same rollout, whose data count more than once. Give TRPO a seed, which is another one on "
    "each process, or environments that are seeded apart"
)


# What must be the same


def arguments_of(model: Any, *, ask_schedules: bool = True, **of_learn: Any) -> dict[str, str]:
    """
    Return what must be the same on all processes that learn together, in words by name.

    :param model: the algorithm
    :param ask_schedules: whether to tell what schedules return, which are passed over otherwise
    :param of_learn: what ``learn`` was given
    """
    # Spaces first: some arguments follow from them
    names = ("observation_space", "action_space", "n_envs", *(name for name in model.rules if name not in OWN))
    found: dict[str, Any] = {name: getattr(model, name, None) for name in names}
    for name in [name for name in found if _is_schedule(model, name)]:
        schedule = found.pop(name)
        if ask_schedules:
            found[name] = [schedule(at) for at in (1.0, 0.5, 0.0)]
    found["stats_window_size"] = model._stats_window_size
    found["optimizer"] = type(model.policy.optimizer).__name__
    found["use_masking"] = getattr(model, "_use_masking", None)
    found["parameters"] = "\n".join(
        f"{name}: {tuple(parameter.shape)} {parameter.dtype}{'' if parameter.requires_grad else ' frozen'}"
        for name, parameter in model.policy.named_parameters()
    )
    settings = ("training", "norm_obs", "norm_obs_keys", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")
    found["VecNormalize"] = [{name: getattr(each, name) for name in settings} for each in normalizers_of(model.env)] or None
    # Where an object lies in memory says nothing
    return {name: re.sub(r" at 0x[0-9a-fA-F]+", "", f"{_ordered(value)}") for name, value in (found | of_learn).items()}


def settings_of(optimizer: th.optim.Optimizer) -> str:
    """Return what an optimizer has been told, in words; how quickly it goes is the schedule's to say."""
    told = [{name: group[name] for name in sorted(group) if name not in ("params", "lr")} for group in optimizer.param_groups]
    return str(told)


def _ordered(value: Any) -> Any:
    """Return something with its sets and dictionaries sorted: what they were made from may come in another order elsewhere."""
    if isinstance(value, set | frozenset):
        return sorted(map(_ordered, value), key=str)
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value, key=str)}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, {field.name: _ordered(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return tuple(map(_ordered, value))
    return list(map(_ordered, value)) if type(value) is list else value


def _is_schedule(model: Any, name: str) -> bool:
    return name in model.rules and bool(model.rules[name].schedule) and callable(getattr(model, name, None))


def _lines_apart(text: str, other: str) -> str:
    """Return the lines of a text which another one does not have."""
    lines, known = text.splitlines(), set(other.splitlines())
    return "; ".join(line for line in lines if line not in known) or f"{len(lines)} in this order"


def check_same(told: Sequence[dict[str, Any]]) -> None:
    """
    Refuse to go on together with processes that have something else.

    :param told: for each process what it has, by name; nothing where it has failed
    :raises PeerError: naming what, and on which process
    """
    for rank, other in enumerate(told):
        for name, value in told[0].items():
            if name in other and other[name] != value:
                first, its = (_lines_apart(f"{a}", f"{b}") for a, b in ((value, other[name]), (other[name], value)))
                raise PeerError(f"{name} must be the same on all processes, got {first} on process 0 and {its} on {rank}")


def _tensors(model: OnPolicyAlgorithm) -> Iterator[th.Tensor]:
    """Yield every tensor of the policy, and of the optimizer's memory of it."""
    optimizer = model.policy.optimizer
    yield from (value for value in model.policy.state_dict().values() if isinstance(value, th.Tensor))
    for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
        memory = optimizer.state.get(parameter, {})
        yield from (th.as_tensor(memory[name]) for name in sorted(memory) if memory[name] is not None)


def checksum(model: OnPolicyAlgorithm) -> int:
    """Return a number that is another one if a bit of the policy, the optimizer's memory or running statistics is."""
    parts = [value.detach().reshape(-1).contiguous().cpu().view(th.uint8).numpy() for value in _tensors(model)]
    parts += [np.hstack([np.ravel(rms.mean), np.ravel(rms.var), rms.count]) for rms in _statistics(model)]
    found = 0
    for part in parts:
        found = zlib.crc32(np.ascontiguousarray(part).data, found)
    return found


def _statistics(model: OnPolicyAlgorithm) -> list[RunningMeanStd]:
    return [*chain.from_iterable(map(running_statistics, normalizers_of(model.env)))]


def share(model: Any) -> None:
    """Give all processes the policy, the optimizer's memory, the running statistics and the counters of rank 0."""
    if model.processes.size == 1:
        return
    file = io.BytesIO()
    if model.processes.rank == 0:
        state: dict[str, Any] = {"policy": model.policy.state_dict(), "optimizer": model.policy.optimizer.state_dict()}
        state["statistics"] = [vars(statistics.copy()) for statistics in _statistics(model)]
        state["counters"] = {name: getattr(model, name) for name in COUNTERS}
        th.save(state, file)
    received = model.processes.agree(file.getvalue())
    if model.processes.rank > 0:
        state = th.load(io.BytesIO(received), map_location="cpu", weights_only=False)
        model.policy.load_state_dict(state["policy"])
        model.policy.optimizer.load_state_dict(state["optimizer"])
        for statistics, values in zip(_statistics(model), state["statistics"], strict=True):
            vars(statistics).update(values)
        vars(model).update(state["counters"])
    model._agreed_statistics = [statistics.copy() for statistics in _statistics(model)]


@th.no_grad()
def make_same(model: Any) -> None:
    """Take over the last bits of rank 0 after an update: processors differ in how they round."""
    if model.processes.size > 1:
        own = [value for value in _tensors(model) if value.is_floating_point()]
        of_all = model.processes.agree(flatten([value.detach().double().cpu() for value in own]))
        for value, agreed in zip(own, unflatten(of_all, own), strict=True):
            value.copy_(agreed)


@contextmanager
def unmoved_if_it_fails(model: Any) -> Iterator[None]:
    """Put policy and optimizer back if an update that several processes make together does not come to its end."""
    if model.processes.size == 1:
        yield
        return
    optimizer = model.policy.optimizer
    before, n_updates = copy.deepcopy((model.policy.state_dict(), optimizer.state_dict())), model._n_updates
    try:
        yield
    except BaseException:
        model.policy.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        model._n_updates = n_updates
        raise


@contextmanager
def quiet(model: Any) -> Iterator[None]:
    """Make no logger that writes anywhere on ranks above 0; one that the user has given stays."""
    before = {name: getattr(model, name) for name in ("verbose", "tensorboard_log")}
    try:
        if model.processes.rank > 0:
            vars(model).update(verbose=0, tensorboard_log=None)
        yield
    finally:
        vars(model).update(before)


# Rollouts


@contextmanager
def statistics_put_in_place(model: Any) -> Iterator[None]:
    """Take running statistics that a callback loads or resets for what all have agreed on: they are no new data."""
    before = [(statistics, statistics.count) for statistics in _statistics(model)]
    yield
    now = _statistics(model)
    if len(now) != len(before):
        model._agreed_statistics = [statistics.copy() for statistics in now]
        return
    for index, (statistics, (was, count)) in enumerate(zip(now, before, strict=True)):
        if statistics is not was or statistics.count < count:
            model._agreed_statistics[index] = statistics.copy()


class ToldJointly(PassedOn):
    """
    Begin and end a training together: what a callback raises there on one process is an error on all, and nothing is lost.

    :param callback: the user's
    :param model: the algorithm
    """

    def __init__(self, callback: "BaseCallback | PassedOn", model: Any):
        super().__init__(callback)
        self.model = model
        self.processes: Processes = model.processes

    def on_training_start(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """Pass the start of the training on."""
        with self.processes.jointly(), statistics_put_in_place(self.model):
            super().on_training_start(locals_, globals_)

    def on_training_end(self) -> None:
        """Pass the end of the training on."""
        with self.processes.jointly():
            super().on_training_end()


class CountedOnAll(PassedOn):
    """
    Count the steps of all processes at each step of this one: callbacks see how far all are, if the others are as quick.

    :param callback: the user's
    :param model: the algorithm that collects
    """

    def __init__(self, callback: "BaseCallback | PassedOn", model: Any):
        super().__init__(callback)
        self.model = model
        self.of_others = (model.processes.size - 1) * model.n_envs
        self.n_added = 0
        self.bars = list(_progress_bars(callback))

    def on_rollout_start(self) -> None:
        """Pass the start of a rollout on."""
        with statistics_put_in_place(self.model):
            super().on_rollout_start()

    def on_step(self) -> bool:
        """Add the others' steps, and pass the step on."""
        self.model.num_timesteps += self.of_others
        self.n_added += self.of_others
        for bar in self.bars:
            bar.pbar.update(self.of_others)
        with statistics_put_in_place(self.model):
            return self.callback.on_step()

    def on_rollout_end(self) -> None:
        """Pass the end of a rollout on."""
        with statistics_put_in_place(self.model):
            super().on_rollout_end()


def _progress_bars(callback: Any) -> Iterator[ProgressBarCallback]:
    if isinstance(callback, PassedOn):
        yield from _progress_bars(callback.callback)
    elif isinstance(callback, CallbackList):
        yield from chain.from_iterable(map(_progress_bars, callback.callbacks))
    elif isinstance(callback, ProgressBarCallback):
        yield callback


class JointRollout:
    """
    A rollout that all processes make, each a part of it, and end together.

    :param model: the algorithm that collects
    """

    def __init__(self, model: Any):
        self.model = model
        self.n_before = model.num_timesteps
        self.before = [list(buffer) for buffer in self._windows()]
        self.own: list[list[Any]] = [[], []]
        self.goes_on = False

    def __reduce__(self) -> Any:
        return type(None), ()  # the copy of a model that a callback makes learns alone

    def _windows(self) -> tuple[deque, deque]:
        return self.model.ep_info_buffer, self.model.ep_success_buffer

    def collect(self, collect: Callable[[Any], bool], callback: Any) -> bool:
        """
        Make the own part; return whether to go on, which is for all to say.

        :param collect: fills the buffer, calling the callback; returns False if that ended the rollout before its time
        :param callback: the user's
        """
        self.counted = CountedOnAll(callback, self.model)
        with self.model.processes.jointly(self._report, self._settle):
            self.goes_on = collect(self.counted)
        return self.goes_on

    def note(self, infos: Sequence[dict[str, Any]], dones: np.ndarray | None) -> None:
        """Note the episodes that have ended here, as SB3 does."""
        self.own[0] += [info["episode"] for info in infos if info.get("episode") is not None]
        successes = [info.get("is_success") for info in infos]
        ended = [False] * len(infos) if dones is None else dones
        self.own[1] += [success for success, done in zip(successes, ended, strict=True) if done and success is not None]

    def _report(self) -> dict[str, Any]:
        own_steps = self.model.num_timesteps - self.n_before - self.counted.n_added
        statistics = zip(_statistics(self.model), self.model._agreed_statistics, strict=True)
        return {
            "steps": own_steps,
            "goes_on": self.goes_on,
            "windows": self.own,
            "statistics": [since(now, agreed) for now, agreed in statistics],
            "digest": digest(self.model.rollout_buffer) if self.goes_on else None,
        }

    def _settle(self, reports: list[dict[str, Any]]) -> None:
        self.model.num_timesteps = self.n_before + sum(report["steps"] for report in reports)
        self.goes_on = all(report["goes_on"] for report in reports)
        for index, window in enumerate(self._windows()):
            # By turns: a window that is full holds episodes of every process
            of_each = zip_longest(*(report["windows"][index] for report in reports), fillvalue=_NOTHING)
            window.clear()
            window.extend(self.before[index] + [one for one in chain.from_iterable(of_each) if one is not _NOTHING])
        merge(self.model, [report["statistics"] for report in reports])
        digests = [report["digest"] for report in reports]
        same = [rank for rank, one in enumerate(digests) if one is not None and digests.count(one) > 1]
        if same and not self.model._warned_of_same_rollouts:
            self.model._warned_of_same_rollouts = True
            warnings.warn(SAME_ROLLOUTS.format(ranks=" and ".join(map(str, same))), stacklevel=2)


_NOTHING = object()


def digest(rollout_buffer: Any) -> int:
    """Return a number that two rollouts have in common if they are the same: of actions, rewards and some observations."""
    stored = rollout_buffer.observations
    observations = list(stored.values()) if isinstance(stored, dict) else [stored]
    found = 0
    for part in (rollout_buffer.actions, rollout_buffer.rewards, *(some[:1] for some in observations)):
        found = zlib.crc32(np.ascontiguousarray(part).data, found)
    return found


# Running statistics: mean, variance and count of what came in since they were agreed on
Moments = tuple[Any, Any, float]


def since(now: RunningMeanStd, agreed: RunningMeanStd) -> Moments:
    """Return the moments of what came in since; Chan et al. 1979, *Updating Formulae*, solved for the second of two sets."""
    count = now.count - agreed.count
    if count <= 0.0:
        return np.zeros_like(now.mean), np.zeros_like(now.var), 0.0
    mean = agreed.mean + (now.mean - agreed.mean) * (now.count / count)
    between = np.square(mean - agreed.mean) * (agreed.count * count / now.count)
    var = (now.var * now.count - agreed.var * agreed.count - between) / count
    return mean, np.maximum(var, 0.0), count


def merge(model: Any, told: Sequence[Sequence[Moments]]) -> None:
    """
    Make of each running statistics those that have seen what came in on any process since they were agreed on.

    :param model: the algorithm
    :param told: for each process and each of the statistics what :func:`since` returns
    """
    for index, statistics in enumerate(_statistics(model)):
        merged: RunningMeanStd = model._agreed_statistics[index]
        for moments in told:
            if moments[index][2] > 0.0:
                merged.update_from_moments(*moments[index])
        vars(statistics).update(vars(merged.copy()))
