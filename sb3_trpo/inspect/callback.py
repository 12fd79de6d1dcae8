"""A callback that keeps what every update did, and on request what the pictures need."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure as LoggedFigure
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.guards.overridden import is_as_in_package
from sb3_trpo.inspect.as_ours import seen_as_ours
from sb3_trpo.inspect.run_files import (
    SLICES_FILE,
    STATES_FILE,
    UPDATES_FILE,
    Run,
    SliceRecord,
    StatesRecord,
    append,
    episode_statistics,
    n_updates_before,
    read_run,
    take_up,
)
from sb3_trpo.inspect.watched_update import OtherUpdate, OwnUpdate, UpdateOfVariant, WatchedUpdate
from sb3_trpo.trpo import TRPO

Result = TypeVar("Result")


class TrustRegionRecorder(BaseCallback):
    """
    Write down what every update did, the last one included, as JSON Lines that can be read while training goes on.

    It is a callback of every on-policy algorithm: those of this package, PPO and A2C, those of sb3-contrib, and the user's
    own. Ours report what they did. Of any other the policy is kept before an update, and compared with that after it in every
    state of the rollout. The run is the same with the recorder as without it, bit for bit.

    Give it to ``learn(callback=...)``, alone or among others, and look with ``python -m sb3_trpo.inspect FOLDER`` or
    :func:`read_run`. ``updates.jsonl`` holds a line for each update, ``states.jsonl`` and ``slices.jsonl`` what the pictures
    of an update need. A run that goes on (``reset_num_timesteps=False``) is appended to. If it goes on from an earlier save,
    what came after that is left out. Files of another run are kept beside as ``updates.1.jsonl`` and so on.

    :param folder: where to write; made if it does not exist
    :param pictures_every: every so many updates also keep the policy before and after in some states, and measure the plane
        that the step lies in, which takes as long as some hundred evaluations of the policy on the rollout. With
        ``tensorboard_log`` the figures then appear there under Images. 0 means never
    :param states: states to look at one by one: observations of shape (n, *obs_shape) or a dict of such arrays, and of a
        policy with a memory a pair of these and of the state before them, as ``predict`` returns it
    :param verbose: verbosity level of SB3's callbacks
    :raises ValueError: if ``pictures_every`` is negative, or ``states`` are given and no pictures asked for
    """

    model: OnPolicyAlgorithm

    def __init__(self, folder: str | Path, *, pictures_every: int = 0, states: Any = None, verbose: int = 0):
        super().__init__(verbose)
        if isinstance(pictures_every, bool) or not isinstance(pictures_every, int | np.integer) or pictures_every < 0:
            raise ValueError(f"pictures_every must be a number of updates, 0 for never, got {pictures_every!r}")
        if states is not None and pictures_every == 0:
            raise ValueError("states are looked at in pictures: give pictures_every too")
        self.folder = Path(folder)
        self.pictures_every = pictures_every
        self.states = states
        self._last_episode: dict[str, Any] | None = None
        self._episodes: dict[str, Any] = {}
        self._n_updates = 0
        self._rollout_start = self._rollout_end = self._own_seconds = 0.0
        self._watched: WatchedUpdate | None = None
        self._has_warned = False

    def _init_callback(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise TypeError(
                f"TrustRegionRecorder records the updates of on-policy algorithms, got {type(self.model).__name__}: it has no "
                "rollout that an update could be measured on"
            )
        if self.states is not None:
            seen_as_ours(self.model, self.model.policy)._chosen_states(self.states)  # fails where they are none

    def _on_training_start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.model.num_timesteps == 0:
            self._put_other_run_aside()
        self._n_updates = self._n_updates_so_far()
        for name in (UPDATES_FILE, STATES_FILE, SLICES_FILE):
            take_up(self.folder / name, self._n_updates)
        self._watched, self._has_warned = None, False
        self._last_episode = self.model.ep_info_buffer[-1] if self.model.ep_info_buffer else None

    def _n_updates_so_far(self) -> int:
        """Return how many rollouts have been learned from: PPO and others count passes over them, or nothing."""
        if isinstance(self.model, TRPO) and is_as_in_package(self.model, "train"):
            return self.model._n_updates
        on_record = n_updates_before(self.folder, self.model.num_timesteps)
        return self.model.num_timesteps // (self.model.n_steps * self.model.n_envs) if on_record is None else on_record

    def _put_other_run_aside(self) -> None:
        files = [self.folder / name for name in (UPDATES_FILE, STATES_FILE, SLICES_FILE)]
        files = [path for path in files if path.exists()]
        number = 1
        while any(path.with_suffix(f".{number}.jsonl").exists() for path in files):
            number += 1
        for path in files:
            path.rename(path.with_suffix(f".{number}.jsonl"))

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._record_last_update()
        self._rollout_start = time.perf_counter()

    def _on_rollout_end(self) -> None:
        # Before anything is measured, which is no part of the rollout, and before SB3 empties the buffer for the next one
        self._rollout_end = time.perf_counter()
        infos = self.model.ep_info_buffer or ()
        self._episodes = episode_statistics(infos, self._last_episode)
        self._last_episode = infos[-1] if infos else None
        self._n_updates += 1
        self._watched = self._watch()
        self._or_warn(self._watched.prepare)
        self._own_seconds = time.perf_counter() - self._rollout_end

    def _watch(self) -> WatchedUpdate:
        pictures = bool(self.pictures_every) and self._n_updates % self.pictures_every == 0
        other = OtherUpdate(self.model, self._n_updates, pictures=pictures, states=self.states)
        if not isinstance(self.model, TRPO):
            return other
        own = OwnUpdate(self.model, pictures=pictures, states=self.states)
        return own if is_as_in_package(self.model, "train") else UpdateOfVariant(own, other)

    def _or_warn(self, look: Callable[[], Result]) -> Result | None:
        """Return what a look at the user's policy finds; if it fails, training goes on, and it is not tried again."""
        if self._has_warned:
            return None
        try:
            return look()
        except Exception as error:  # whatever the user's own policy, distribution or buffer raises
            self._has_warned = True
            says = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            warnings.warn(f"TrustRegionRecorder does not measure the updates of this run: {says}", stacklevel=2)
            return None

    # SB3 calls no callback after train(): an update is seen when the next rollout starts, the last one when training ends
    def _on_training_end(self) -> None:
        self._record_last_update()

    def _record_last_update(self) -> None:
        watched, self._watched = self._watched, None
        if watched is None:
            return
        others = {
            "phase_seconds": {
                "collect": self._rollout_end - self._rollout_start,
                "update": max(0.0, time.perf_counter() - self._rollout_end - self._own_seconds),
            },
            "num_timesteps": self.model.num_timesteps,
            **self._episodes,
        }
        self._or_warn(watched.measure)
        record = watched.record(**others)
        if record is not None:
            append(self.folder / UPDATES_FILE, record)
            self._record_pictures(*(self._or_warn(watched.pictures) or ((), ())))

    def _record_pictures(self, states: tuple[StatesRecord, ...], planes: tuple[SliceRecord, ...]) -> None:
        for of_states in states:
            append(self.folder / STATES_FILE, of_states)
        for plane in planes:
            append(self.folder / SLICES_FILE, plane)
        if states or planes:
            try:
                self._log_figures(states, planes)
            except Exception as error:  # a picture is not worth a training
                says = f"{type(error).__name__}: {error}"
                warnings.warn(f"TrustRegionRecorder could not draw update {self._n_updates}: {says}", stacklevel=2)

    def _log_figures(self, states: tuple[StatesRecord, ...], planes: tuple[SliceRecord, ...]) -> None:
        """Hand the figures to TensorBoard, if SB3's logger writes to it."""
        boards = [output for output in self.logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
        if not boards:
            return
        from sb3_trpo.inspect.gallery import figures_of

        run: Run = read_run(self.folder)._replace(states=states, slices=planes)
        figures = {f"trust_region/{name}": LoggedFigure(figure, close=False) for name, figure in figures_of(run)}
        # Not by way of the logger: its other outputs, those of users too, take numbers
        for board in boards:
            board.write(figures, dict.fromkeys(figures, ()), step=self.num_timesteps)
