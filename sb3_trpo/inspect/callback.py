"""A callback that keeps what every update did, and on request what the pictures need."""

import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure as LoggedFigure
from stable_baselines3.common.logger import TensorBoardOutputFormat

from sb3_trpo.inspect.probe import WatchedStates, slice_ahead
from sb3_trpo.inspect.run_files import (
    SLICES_FILE,
    STATES_FILE,
    UPDATES_FILE,
    Run,
    SliceRecord,
    StatesRecord,
    append,
    episode_statistics,
    read_run,
    record_of,
)
from sb3_trpo.metrics import UpdateReport
from sb3_trpo.trpo import TRPO


class TrustRegionRecorder(BaseCallback):
    """
    Write down what every update did, the last one included, as JSON Lines that can be read while training goes on.

    Give it to ``learn(callback=...)``, alone or among others, and look with ``python -m sb3_trpo.inspect FOLDER`` or
    :func:`read_run`. ``updates.jsonl`` holds a line for each update, ``states.jsonl`` and ``slices.jsonl`` what the pictures
    of an update need. A run that goes on (``reset_num_timesteps=False``) is appended to; files of another run are kept beside
    as ``updates.1.jsonl`` and so on.

    :param folder: where to write; made if it does not exist
    :param pictures_every: every so many updates also keep the policy before and after in some states, and measure the plane
        that the step lies in, which takes as long as some hundred evaluations of the policy on the rollout. With
        ``tensorboard_log`` the figures then appear there under Images. 0 means never
    :param states: states to look at one by one: observations of shape (n, *obs_shape) or a dict of such arrays, and of a
        policy with a memory a pair of these and of the state before them, as ``predict`` returns it
    :param verbose: verbosity level of SB3's callbacks
    :raises ValueError: if ``pictures_every`` is negative, or ``states`` are given and no pictures asked for
    """

    model: TRPO

    def __init__(self, folder: str | Path, *, pictures_every: int = 0, states: Any = None, verbose: int = 0):
        super().__init__(verbose)
        if isinstance(pictures_every, bool) or not isinstance(pictures_every, int) or pictures_every < 0:
            raise ValueError(f"pictures_every must be a number of updates, 0 for never, got {pictures_every!r}")
        if states is not None and pictures_every == 0:
            raise ValueError("states are looked at in pictures: give pictures_every too")
        self.folder = Path(folder)
        self.pictures_every = pictures_every
        self.states = states
        self._recorded: UpdateReport | None = None  # the last report that is on the disk, or that is none of ours
        self._last_episode: dict[str, Any] | None = None
        self._episodes: dict[str, Any] = {}
        self._rollout_start = self._rollout_end = self._pictures_seconds = 0.0
        self._watched: WatchedStates | None = None
        self._slice: SliceRecord | None = None

    def _init_callback(self) -> None:
        if not isinstance(self.model, TRPO):
            raise TypeError(f"TrustRegionRecorder records the updates of sb3_trpo.TRPO, got {type(self.model).__name__}")

    def _on_training_start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.model.num_timesteps == 0:
            self._put_other_run_aside()
        self._recorded = self.model.last_update
        self._last_episode = self.model.ep_info_buffer[-1] if self.model.ep_info_buffer else None

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
        # Before the figures, which are no part of the rollout, and before SB3 empties the buffer for the next one
        self._rollout_end = time.perf_counter()
        infos = self.model.ep_info_buffer or ()
        self._episodes = episode_statistics(infos, self._last_episode)
        self._last_episode = infos[-1] if infos else None
        if self.pictures_every and (self.model._n_updates + 1) % self.pictures_every == 0:
            self._watched = WatchedStates(self.model, self.states)
            self._slice = slice_ahead(self.model)
            self._pictures_seconds = time.perf_counter() - self._rollout_end

    # SB3 calls no callback after train(): an update is seen when the next rollout starts, the last one when training ends
    def _on_training_end(self) -> None:
        self._record_last_update()

    def _record_last_update(self) -> None:
        report = self.model.last_update
        if report is None or report is self._recorded:
            return
        self._recorded = report
        collect = self._rollout_end - self._rollout_start
        other = time.perf_counter() - self._rollout_end - self._pictures_seconds - sum(report.phase_seconds.values())
        record = record_of(
            report,
            num_timesteps=self.model.num_timesteps,
            phase_seconds={"collect": collect, "other": max(0.0, other)},
            **self._episodes,
        )
        append(self.folder / UPDATES_FILE, record)
        self._record_pictures(report)

    def _record_pictures(self, report: UpdateReport) -> None:
        states: tuple[StatesRecord, ...] = ()
        plane: tuple[SliceRecord, ...] = ()
        if self._watched is not None:
            states = (self._watched.compare(n_updates=report.n_updates, max_kl=report.max_kl),)
            append(self.folder / STATES_FILE, states[0])
        if self._slice is not None:
            plane = (self._slice,)
            append(self.folder / SLICES_FILE, self._slice)
        if states or plane:
            self._log_figures(states, plane)
        self._watched = self._slice = None
        self._pictures_seconds = 0.0

    def _log_figures(self, states: tuple[StatesRecord, ...], plane: tuple[SliceRecord, ...]) -> None:
        """Hand the figures to TensorBoard, if SB3's logger writes to it."""
        boards = [output for output in self.logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
        if not boards:
            return
        from sb3_trpo.inspect.gallery import figures_of

        run: Run = read_run(self.folder)._replace(states=states, slices=plane)
        figures = {f"trust_region/{name}": LoggedFigure(figure, close=False) for name, figure in figures_of(run)}
        # Not by way of the logger: its other outputs, those of users too, take numbers
        for board in boards:
            board.write(figures, dict.fromkeys(figures, ()), step=self.num_timesteps)
