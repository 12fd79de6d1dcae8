"""The manners of any careful on-policy algorithm of SB3: it refuses what cannot work, and leaves nothing half done."""

import copy
import inspect
import io
import pathlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.guards.arguments import (
    OF_LEARN,
    RULES,
    Rules,
    UnsupportedError,
    check_arguments,
    check_policy,
    naming,
    value_at,
)
from sb3_trpo.guards.environments import AnyEnv, as_env, check_kind_of_actions, closed_if_refused, made_env, wrapped_env
from sb3_trpo.guards.finite import NonFiniteError, finite_rollout, finite_statistics
from sb3_trpo.guards.model_zip import path_to_write, saved_attributes, written_whole
from sb3_trpo.guards.observations import check_observation_space
from sb3_trpo.guards.parameters import check_parameters
from sb3_trpo.guards.passed_on import BeforeTheEnd, StandIn
from sb3_trpo.guards.process import drawing, full_precision
from sb3_trpo.guards.set_later import AsBuilt
from sb3_trpo.guards.watched_rollout import WatchedRollout
from sb3_trpo.policies import n_observations
from sb3_trpo.randomness import RandomNumbers

SelfChecked = TypeVar("SelfChecked", bound="CheckedOnPolicyAlgorithm")


class _PolicyDrawing(StandIn):
    """A policy that draws a model's own random numbers where it draws from torch."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.model._random.in_torch(self.model.device):
            return self.thing(*args, **kwargs)

    def predict_values(self, *args: Any, **kwargs: Any) -> Any:
        """Return the values of observations: the network may be random."""
        with self.model._random.in_torch(self.model.device):
            return self.thing.predict_values(*args, **kwargs)

    def reset_noise(self, *args: Any) -> None:
        """Draw the noise of gSDE anew."""
        with self.model._random.in_torch(self.model.device):
            self.thing.reset_noise(*args)


class _DrawingOwnNumbers(StandIn):
    """A model whose policy of the moment draws the model's own random numbers."""

    @property
    def policy(self) -> Any:
        """The policy, wherever it came from."""
        return _PolicyDrawing(self.thing.policy, model=self.thing)


@contextmanager
def _blaming(given: Mapping[str, Any]) -> Iterator[None]:
    """Name in an error what was given in place of what was saved: SB3 says what does not fit, not whose doing it is."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not given:
            raise
        in_place = ", ".join(f"{name}={value!r}" for name, value in given.items())
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{error} (with {in_place} in place of what was saved)") from error


class CheckedOnPolicyAlgorithm(OnPolicyAlgorithm):
    """
    SB3's ``OnPolicyAlgorithm`` with checks at construction, use and load, whole files, finite rollouts and a complete log.

    A subclass sets ``rules``, and calls ``check_arguments(self.rules, locals())`` first thing in its constructor. It writes
    ``train()`` as for SB3, and may override :meth:`_collect` and :meth:`_finish_load`.

    :param policy: The policy model to use: one of ``policy_aliases``, or a class
    :param env: The environment to learn from (if registered in Gymnasium, can be str or EnvSpec)
    :param error_if_nonfinite: Whether a reward, observation or action that is NaN or infinite is an error, raised at once
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param arguments: those of SB3's ``OnPolicyAlgorithm``
    :raises TypeError: naming the argument and the value received, if it is not of the right type
    :raises ValueError: naming the argument and the value received, if it cannot work
    """

    # What each argument may be
    rules: ClassVar[Rules] = RULES
    # Attributes that every saved model of this kind has, and what saves such models
    expected_in_zip: ClassVar[Set[str]] = frozenset()
    saved_by: ClassVar[str] = "an on-policy algorithm"

    # The algorithm's name in a saved model. A subclass of the user's own has that of its base, and without one its own name.
    # A file without a name is one of ``kind_of_old_files``
    kind: ClassVar[str] = ""
    kind_of_old_files: ClassVar[str] = ""
    # What a policy class is derived from
    policy_base: ClassVar[type[BasePolicy]] = ActorCriticPolicy
    # What of an environment there are actions for, ``None`` for everything that SB3 knows
    supported_action_spaces: ClassVar[tuple[type[spaces.Space], ...] | None] = None

    # Steps of the last rollout in which an environment did nothing but reset, shape (n_steps, n_envs), if there are such
    _wasted_steps: np.ndarray | None = None
    # Whether the last rollout had any reward other than zero
    _is_rewarded = True
    # Which model is in `learn`, if any
    _learning: int | None = None
    _made_env: Any = None
    # Whether `learn` writes a log, or a callback has
    _logs_anything = False
    # What the last row of the log had, by name
    _written: Mapping[str, Any] = MappingProxyType({})
    # What the model draws from
    _random: RandomNumbers

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if not cls.kind:
            cls.kind = cls.__name__  # of subclasses too, by the order of their classes

    def __init__(
        self,
        policy: str | type,
        env: AnyEnv | None,
        *,
        error_if_nonfinite: bool = True,
        verbose: int = 0,
        **arguments: Any,
    ):
        check_arguments(self.rules, {"error_if_nonfinite": error_if_nonfinite, "verbose": verbose, **arguments})
        check_policy(policy, self.policy_aliases, self.policy_base, of=self.kind)
        self.error_if_nonfinite = error_if_nonfinite
        for name in ("policy_kwargs", "rollout_buffer_kwargs"):
            if arguments.get(name) is not None:
                arguments[name] = dict(arguments[name])  # any mapping will do
        made = made_env(env, verbose)
        with closed_if_refused(made, env):
            super().__init__(policy, made, verbose=verbose, **arguments)
        # Ours to close, until the model is built and the user's with it
        self._made_env = None if made is env else made

    def _setup_model(self) -> None:
        # Also what `load` calls once it has put saved and given arguments in place
        with closed_if_refused(self._made_env, None):
            if getattr(self, "observation_space", None) is None:
                as_env(None)
            check_arguments(self.rules, vars(self))
            self._check_numbers()
            check_kind_of_actions(self.action_space, self.supported_action_spaces, of=self.kind)
            check_observation_space(self.observation_space, self.policy_class, self.policy_kwargs)
            saved = vars(self).get("_random")
            with drawing:
                self._build()
                self._random.go_on_from_process(self.device)
            if self.kind != self.kind_of_old_files:
                self.saved_kind = self.kind
            if saved is not None and saved.seed == self.seed:
                self._go_on_drawing(saved)
            self._as_built = AsBuilt(self)
            self._check_attributes()
        self._made_env = None

    def _build(self) -> None:
        """
        Seed the model and make its policy and its buffer: a hook for algorithms with others than SB3's.

        Called once, when the model is made or loaded; ``policy`` and ``rollout_buffer`` are there when it returns.
        """
        # SB3 makes the buffer first
        with naming(lambda: self._buffer_made_of() if vars(self).get("rollout_buffer") is None else self._policy_made_of()):
            super()._setup_model()

    def _made_policy(self, **own: Any) -> Any:
        """Return a policy of ``policy_class`` on the model's device; ``own`` is what its constructor takes besides."""
        policy: Any = self.policy_class
        with naming(self._policy_made_of):
            made = policy(self.observation_space, self.action_space, self.lr_schedule, **own, **self.policy_kwargs)
        return made.to(self.device)

    def _made_buffer(self, *own: Any) -> Any:
        """Return a buffer of ``rollout_buffer_class``; ``own`` is what its constructor takes besides, after the spaces."""
        buffer: Any = self.rollout_buffer_class
        with naming(self._buffer_made_of):
            return buffer(
                self.n_steps,
                self.observation_space,
                self.action_space,
                *own,
                device=self.device,
                gamma=self.gamma,
                gae_lambda=self.gae_lambda,
                n_envs=self.n_envs,
                **self.rollout_buffer_kwargs,
            )

    def _policy_made_of(self) -> tuple[type, dict[str, Any]]:
        return self.policy_class, {"policy_kwargs": self.policy_kwargs} | ({"use_sde": True} if self.use_sde else {})

    def _buffer_made_of(self) -> tuple[type | None, dict[str, Any]]:
        return self.rollout_buffer_class, {"rollout_buffer_kwargs": self.rollout_buffer_kwargs}

    # What is set later is checked when it is used

    def _check_numbers(self) -> None:
        """Turn NumPy's numbers into Python's, and refuse those that cannot work together."""
        for name, value in list(vars(self).items()):
            if isinstance(value, np.generic):
                # Not all of SB3 and torch takes NumPy's numbers, and they keep a zip from being loaded with weights only
                setattr(self, name, value.item())
        if getattr(self, "normalize_advantage", False) and self.n_steps * self.n_envs < 2:
            raise UnsupportedError(
                f"n_steps * n_envs must be at least 2 with normalize_advantage=True, "
                f"got n_steps={self.n_steps} and n_envs={self.n_envs}"
            )

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seed of the generators of the process, as SB3 does, and of the model's own.

        :param seed: ``None`` for a model that draws from the generators of the process
        :raises TypeError: if it is no whole number
        :raises ValueError: if it is none that NumPy takes
        """
        check_arguments(self.rules, {"seed": seed})
        own = self._own_seed(seed)
        with drawing:
            super().set_random_seed(own)
        self._random = RandomNumbers(own)
        self.seed = seed
        if "_as_built" in vars(self):
            self._as_built.agree("seed", seed)

    def _own_seed(self, seed: int | None) -> int | None:
        """Return the seed of this model's numbers: a hook for algorithms of which several parts draw side by side."""
        return seed

    def _go_on_drawing(self, saved: RandomNumbers) -> None:
        """Go on with the numbers that a model which was saved would have drawn."""
        self._random = saved

    def _say(self, message: str) -> None:
        """Tell the user something where there is no log yet, as SB3 does."""
        if self.verbose >= 1:
            print(message)  # noqa: T201

    def _check_attributes(self) -> None:
        """
        Refuse what user code has set to what cannot work. A hook for algorithms that have more to check.

        Called at each rollout and update, and after a step whose callback has set one that the next step uses.

        :raises TypeError: naming the attribute and its value, if that is not of the right type
        :raises ValueError: the same, if it is out of range, or if the model was built with another and cannot take it over
        """
        if self._as_built.is_anything_set(self, self.rules):
            check_arguments(self.rules, vars(self), ask_schedules=False)
            self._check_numbers()
            self._as_built.note(self, self.rules)
        self._as_built.take_over(self)

    def _check_before_update(self) -> None:
        """Refuse what cannot work before anything moves, what a schedule returns now included."""
        self._check_attributes()
        for name, rule in self.rules.items():
            if rule.schedule:
                self._now(name)
        # What the optimizer follows, and users set
        if not callable(self.lr_schedule):
            raise TypeError(f"lr_schedule must be a function of the progress remaining, got {self.lr_schedule!r}")
        value_at("lr_schedule", self.lr_schedule, progress_remaining=self._current_progress_remaining)

    def _now(self, name: str) -> float:
        """Return what an argument that may be a schedule is at this point of the training."""
        return value_at(name, getattr(self, name), progress_remaining=self._current_progress_remaining)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout may go beyond the end, and schedules are functions from 1 to 0
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    # Rollouts

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect experience with the current policy (see SB3's ``OnPolicyAlgorithm.collect_rollouts`` for the parameters).

        :raises ValueError: with ``error_if_nonfinite``, naming the environment and the step of the rollout, or the parameter
        :raises TypeError: naming an attribute that a callback has set, and its value (also a ``ValueError``)
        """
        self._check_attributes()
        watched: WatchedRollout | None = None
        try:
            looked_at = finite_rollout(self, env, rollout_buffer, required=self.error_if_nonfinite)
            with full_precision(), finite_statistics(self), looked_at as finite:
                watched = WatchedRollout(callback, self, finite)
                goes_on = self._collect(env, watched, rollout_buffer, n_rollout_steps)
        except BaseException as error:
            if isinstance(error, NonFiniteError) or (watched is not None and watched.is_between_callbacks):
                # The next call of `learn` is not to go on in the middle of it: some environments may be further on than others
                self._last_obs = None
            raise
        if not goes_on or self.num_timesteps >= self._total_timesteps:
            # The last one: who is called once training has ended may set another environment
            self._learning = None
        return goes_on

    def _collect(self, env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        """Fill the buffer: a hook for algorithms that do not collect as SB3 does; parameters and result as there."""
        return OnPolicyAlgorithm.collect_rollouts(self._drawing_own_numbers(), env, callback, rollout_buffer, n_rollout_steps)

    def _drawing_own_numbers(self) -> Any:
        """Return the model as a loop of SB3's or sb3-contrib's takes it for its own: its policy draws the model's numbers."""
        return self if self.seed is None else _DrawingOwnNumbers(self)

    # The log

    def learn(
        self: SelfChecked,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "OnPolicyAlgorithm",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfChecked:
        """
        Train for at least a number of environment steps (see SB3's ``BaseAlgorithm.learn`` for the parameters).

        SB3 writes its log before each update; here what the last one did is written too, once training has ended.

        :raises TypeError: if an argument is of another type than expected
        :raises ValueError: if one cannot work, or the model has no environment
        """
        told = {"total_timesteps": total_timesteps, "callback": callback, "log_interval": log_interval}
        check_arguments(OF_LEARN, told)
        self._logs_anything = log_interval is not None
        self._learning = id(self)
        try:
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        finally:
            self._learning = None
        return self

    def _check_before_learning(self, *, begins: bool) -> None:
        """Refuse what cannot be learned from; ``begins`` says whether a run does. Several processes hear of it."""
        if self.env is None:
            raise ValueError(
                "the model has no environment to learn in, as one that was loaded without: give it one with load(path, env), "
                "or with model.set_env(env)"
            )

    def _setup_learn(
        self, total_timesteps: int, callback: Any = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        self._check_before_learning(begins=reset_num_timesteps or self._last_obs is None)
        self._forget_last_row()
        total_timesteps, callback = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        # A callback that hears of the end finds the log complete, and may close it
        return total_timesteps, BeforeTheEnd(callback, self._write_last_row)

    def _held_by_logger(self) -> list[dict[str, Any]]:
        """Return what the logger holds for the next row, values first: of a logger of another kind nothing."""
        logger = getattr(self, "_logger", None)  # none before the first run
        return [getattr(logger, name, {}) for name in ("name_to_value", "name_to_count", "name_to_excluded")]

    def _write_last_row(self) -> None:
        """Write what the last update did, and let it stand where SB3 does, for whoever reads it when training has ended."""
        held = self._held_by_logger()
        if not self._logs_anything or not held[0]:
            return
        before = [dict(part) for part in held]
        self.dump_logs(0)
        for part, values in zip(held, before, strict=True):
            part.update(values)
        # These very tuples mark values as written: recording again replaces the tuple, be the value the same object
        held[2].update({name: tuple([*left_out]) for name, left_out in before[2].items()})
        self._written = dict(held[2])

    def _forget_last_row(self) -> None:
        """Take out of the logger what has been written, and nobody has recorded anew: the next row is not to have it again."""
        held = self._held_by_logger()
        for name, left_out in self._written.items():
            if held[2].get(name) is left_out:
                for part in held:
                    part.pop(name, None)
        self._written = {}

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the log (see SB3's ``OnPolicyAlgorithm.dump_logs``); callbacks call it too, whatever the interval."""
        self._logs_anything = True
        super().dump_logs(iteration)

    # Environments, files and parameters

    def set_env(self, env: AnyEnv, force_reset: bool = True) -> None:
        """
        Set the environment to learn from (see SB3's ``BaseAlgorithm.set_env`` for the parameters).

        :raises TypeError: if it is no environment
        :raises ValueError: if its spaces or the number of its copies are not those of the model, which stays as it is
        :raises RuntimeError: while the model learns
        """
        # Of this very model: a copy that a callback makes of it is not learning
        if self._learning == id(self):
            raise RuntimeError(
                "set_env cannot be called while the model learns: a rollout is of one environment. Call set_env between two "
                "calls of learn, the second with reset_num_timesteps=False; a callback ends the first by returning False"
            )
        made = made_env(env, self.verbose)
        with closed_if_refused(made, env):
            wrapped = self._wrap_env(made, self.verbose)
            if wrapped.num_envs != self.n_envs:
                raise UnsupportedError(
                    f"env must hold {self.n_envs} environments as the model's own does, got {wrapped.num_envs}; "
                    "`load(path, env)` takes a model to another number of them"
                )
            super().set_env(wrapped, force_reset)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # What constructor, `load` and `set_env` all come by
        return wrapped_env(env, lambda converted: OnPolicyAlgorithm._wrap_env(converted, verbose, monitor_wrapper))

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model in a zip-file (see SB3's ``BaseAlgorithm.save`` for the parameters).

        Under the file's name there is never half a model: a run that is killed leaves the old file or the new one.
        """
        if not isinstance(path, str | pathlib.Path):
            return super().save(path, exclude, include)
        with written_whole(path_to_write(path, suffix="zip")) as file:
            super().save(file, exclude, include)

    def _excluded_save_params(self) -> list[str]:
        of_a_run = ["_logs_anything", "_learning", "_made_env", "_as_built", "_wasted_steps", "_is_rewarded", "_written"]
        return [*super()._excluded_save_params(), *of_a_run]

    @classmethod
    def _names_of_arguments(cls) -> set[str]:
        """Return what the constructors of this class and of those on the way to the one of this module take."""
        own = cls.__mro__[: cls.__mro__.index(CheckedOnPolicyAlgorithm) + 1]
        constructors = [parent.__init__ for parent in own]  # type: ignore[misc]
        known = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
        return known - {"self", "policy", "_init_setup_model", "args", "kwargs", "arguments"}

    @classmethod
    def _check_kind(cls, path: str | pathlib.Path | io.BufferedIOBase) -> set[str]:
        """Refuse the file of a model of another kind; return the names of what is in this one."""
        saved = saved_attributes(path, expected=cls.expected_in_zip, kind=cls.saved_by)
        kind = saved.get("saved_kind", cls.kind_of_old_files)
        if kind != cls.kind:
            whose, reads_it = kind or "another algorithm", f"{kind}.load" if kind else "the algorithm's own load"
            raise ValueError(
                f"{path} holds a model of {whose}, expected one of {cls.kind}: {reads_it} reads it, and the parameters of a "
                "model that is loaded are a dictionary, get_parameters(), that set_parameters takes where they fit"
            )
        return set(saved)

    @classmethod
    def load(
        cls: type[SelfChecked],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: AnyEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfChecked:
        """
        Load the model from a zip-file (see SB3's ``BaseAlgorithm.load`` for the parameters).

        :raises TypeError: if a further keyword is not an argument of the constructor
        :raises ValueError: if the file holds another algorithm's model, or one for other spaces than those of the environment
        """
        names = cls._check_kind(path)
        known = cls._names_of_arguments()
        for name, value in kwargs.items():
            if name not in known:
                raise TypeError(f"load() got an unexpected keyword argument {name}={value!r}, expected one of {sorted(known)}")
        given = {"device": device, "custom_objects": custom_objects}
        check_arguments(cls.rules, kwargs | given | {"print_system_info": print_system_info, "force_reset": force_reset})
        told = cls._in_place_of_saved(kwargs)
        if told:
            # As custom objects before an environment is wrapped, which a model may speak of
            custom_objects, kwargs = {**(custom_objects or {}), **told}, kwargs | told
        if "stats_window_size" in kwargs:
            # SB3 keeps it under another name
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
        for name in {"policy_kwargs", "rollout_buffer_kwargs"} & kwargs.keys():
            kwargs[name] = kwargs[name] or {}
        made = made_env(env)
        with closed_if_refused(made, env):
            converted = None if made is None else as_env(made)
            with _blaming(kwargs):
                model = super().load(path, converted, device, custom_objects, print_system_info, force_reset, **kwargs)
            if model.ep_info_buffer is not None and model.ep_info_buffer.maxlen != model._stats_window_size:
                # Another window, or that of several processes, which learned together
                for name in ("ep_info_buffer", "ep_success_buffer"):
                    setattr(model, name, deque(getattr(model, name) or (), maxlen=model._stats_window_size))
            last: Any = model._last_obs
            if last is not None and n_observations(last) != model.n_envs:
                # Of another number of environments there is none to go on from, ``force_reset`` or not
                model._last_obs = None
            model._finish_load(names, {*kwargs, *(custom_objects or {})})
        return model

    @classmethod
    def _in_place_of_saved(cls, given: dict[str, Any]) -> dict[str, Any]:
        """
        Return arguments that a model takes in place of what was saved, though nobody gave them: a hook of ``load``.

        :param given: the arguments that somebody did give
        """
        return {}

    def _finish_load(self, saved: Collection[str], given: Collection[str]) -> None:
        """
        Put in order what a file of another version or library says in its own way: a hook of ``load``, called last.

        :param saved: names of the attributes in the file
        :param given: names of those that came with the call in place of the file's
        """

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load parameters from a zip-file or a dictionary (see SB3's ``BaseAlgorithm.set_parameters`` for the parameters).

        :raises ValueError: if a tensor is unknown, of the wrong shape or not finite; no parameter is changed then
        """
        params: dict[str, Any] = load_path_or_dict  # type: ignore[assignment]
        if not isinstance(load_path_or_dict, dict):
            _, params, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
            if params:
                self._check_kind(load_path_or_dict)
        check_parameters(params, self.get_parameters(), self.policy, exact_match=exact_match)
        before: dict[str, Any] = copy.deepcopy(self.get_parameters())
        try:
            super().set_parameters(params, exact_match, device)
        except Exception:
            super().set_parameters(before)
            raise
