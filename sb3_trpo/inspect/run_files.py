"""What is known of a run's updates, and its files: JSON Lines, readable while they grow and after a crash."""

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from sb3_trpo.metrics import UpdateReport
from sb3_trpo.trust_region import Candidate

UPDATES_FILE = "updates.jsonl"
STATES_FILE = "states.jsonl"
SLICES_FILE = "slices.jsonl"

# Shares of the states, or actions, below each of the quantiles that are kept
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# What a gain of the surrogate is counted in: with normalised advantages, and without
OF_ADVANTAGE, OF_RETURN = "std of the advantage", "units of the return"

EpisodeInfos = Sequence[dict[str, Any]] | deque[dict[str, Any]]


class UpdateRecord(NamedTuple):
    """
    Everything that is kept of one update. A number that there is none of is NaN.

    Algorithms other than ours are measured from outside: of their search for a step nothing is known.

    :param n_updates: number of updates so far, this one included: of rollouts that were learned from
    :param num_timesteps: environment steps so far, those of the rollout of this update included
    :param status: ``"accepted"``, or why the policy is bit for bit what it was, see ``TrustRegionStep``; of algorithms other
        than ours ``"unchanged"`` then, and ``"not_measured"`` where there is no telling
    :param max_kl: the limit δ on the mean KL, in nats, of an algorithm that keeps one
    :param mean_kl: measured mean KL(old ‖ new) of the step kept, in nats, 0 if none was
    :param expected_kl: what the quadratic model expected of it
    :param surrogate_gain: measured gain of the surrogate of the step kept, in ``gain_unit``, 0 if none was
    :param expected_gain: what the linear model expected of it
    :param full_step_gain: what the linear model expects of the full step
    :param step_fraction: share of the full step that was kept, 0 if none was
    :param gradient_norm: length of the surrogate's gradient
    :param step_norm: length in parameter space of the step kept, 0 if none was
    :param candidates: what the line search tried, longest step first
    :param cg_residual_norms: relative residual of the conjugate gradients before the first and after each iteration
    :param cg_stopped_by: how they ended, ``""`` if they were not reached
    :param entropy: mean entropy of the policy after the update, in nats
    :param std: mean standard deviation parameter of the policy after the update
    :param explained_variance: of the returns by the values before the update
    :param value_loss_first: mean squared error of the critic over the first pass of its fit
    :param value_loss_last: and over the last pass
    :param phase_seconds: wall time of each phase, ``"collect"`` and ``"other"`` included
    :param mean_return: mean return of the last episodes, as in SB3's ``rollout/ep_rew_mean``
    :param episode_returns: returns of the episodes that ended in the rollout of this update, at most
        ``stats_window_size`` of them
    :param observation_spread: largest over smallest scale of the observations' dimensions
    :param algorithm: the name of its class
    :param reverse_kl: mean KL(new ‖ old), in nats
    :param largest_kl: the largest KL(old ‖ new) of a state
    :param kl_quantiles: of KL(old ‖ new) over the states, at ``QUANTILES``
    :param ratio_quantiles: of the ratio π_new(a|s) / π_old(a|s) over the actions taken, at ``QUANTILES``
    :param outside_clip: share of the actions whose ratio is outside 1 ± ``clip_range``
    :param clip_range: ε of PPO's clip; PPO's default, to compare by, for an algorithm that has none
    :param n_states: how many states of the rollout these six are of, ours being measured on some of them
    :param gain_unit: what the gains of the surrogate are counted in
    :param least_std: the least standard deviation of a dimension of continuous actions, before and after the update; ours says
    """

    n_updates: int
    num_timesteps: int
    status: str
    max_kl: float
    mean_kl: float
    expected_kl: float
    surrogate_gain: float
    expected_gain: float
    full_step_gain: float
    step_fraction: float
    gradient_norm: float
    step_norm: float
    candidates: tuple[Candidate, ...]
    cg_residual_norms: tuple[float, ...]
    cg_stopped_by: str
    entropy: float
    std: float
    explained_variance: float
    value_loss_first: float
    value_loss_last: float
    phase_seconds: dict[str, float]
    mean_return: float
    episode_returns: tuple[float, ...]
    observation_spread: float = math.nan
    algorithm: str = "TRPO"
    reverse_kl: float = math.nan
    largest_kl: float = math.nan
    kl_quantiles: tuple[float, ...] = ()
    ratio_quantiles: tuple[float, ...] = ()
    outside_clip: float = math.nan
    clip_range: float = math.nan
    n_states: int = 0
    gain_unit: str = OF_ADVANTAGE
    least_std: tuple[float, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the policy moved."""
        return self.status == "accepted"

    @property
    def tells_of_search(self) -> bool:
        """Whether it is known how the step was found: ours says, of others only what they did is measured."""
        return not math.isnan(self.step_fraction)

    @property
    def n_backtracks(self) -> int:
        """How many longer steps the line search refused."""
        return sum(bool(candidate.refused_by) for candidate in self.candidates)


def _std_of_actions(report: UpdateReport) -> float:
    """Return the mean standard deviation of the actions: that of gSDE is made of states, its parameter is that of weights."""
    found = report.std if report.noise_std is None else report.noise_std
    return math.nan if found is None else found


def record_of(
    report: UpdateReport,
    *,
    num_timesteps: int,
    phase_seconds: dict[str, float],
    mean_return: float,
    episode_returns: tuple[float, ...],
    **others: Any,
) -> UpdateRecord:
    """
    Turn an update's report into what is kept of it.

    :param report: of the update
    :param num_timesteps: environment steps so far
    :param phase_seconds: wall time of the phases outside of the update, to add to those of the report
    :param mean_return: mean return of the last episodes
    :param episode_returns: those of the episodes that ended in the rollout
    :param others: further fields, that a report does not tell of
    """
    step, solve, critic = report.step, report.step.conjugate_gradient, report.critic
    return UpdateRecord(
        n_updates=report.n_updates,
        num_timesteps=num_timesteps,
        status=step.status,
        max_kl=report.max_kl,
        mean_kl=step.mean_kl,
        expected_kl=step.expected_kl,
        surrogate_gain=step.surrogate_gain,
        expected_gain=step.expected_gain,
        full_step_gain=step.full_step_gain,
        step_fraction=step.step_fraction,
        gradient_norm=step.gradient_norm,
        step_norm=step.step_norm,
        candidates=step.candidates,
        cg_residual_norms=() if solve is None else solve.residual_norms,
        cg_stopped_by="" if solve is None else solve.stopped_by,
        entropy=math.nan if report.entropy is None else report.entropy,
        std=_std_of_actions(report),
        explained_variance=float(report.explained_variance),
        value_loss_first=math.nan if critic is None else critic.first_value_loss,
        value_loss_last=math.nan if critic is None else critic.last_value_loss,
        phase_seconds=report.phase_seconds | phase_seconds,
        mean_return=mean_return,
        episode_returns=episode_returns,
        observation_spread=math.nan if report.observation_spread is None else report.observation_spread,
        least_std=report.least_std or (),
        **others,
    )


def episode_statistics(ep_infos: EpisodeInfos, last_known: dict[str, Any] | None) -> dict[str, Any]:
    """
    Return the fields of a record that are about episodes.

    :param ep_infos: SB3's ``model.ep_info_buffer``, oldest first
    :param last_known: the last one that earlier records told of, the very object
    """
    returns = [info["r"] for info in ep_infos]
    new = next((n for n, info in enumerate(reversed(ep_infos)) if info is last_known), len(returns))
    return {
        "mean_return": float(np.mean(returns)) if returns else math.nan,
        "episode_returns": tuple(map(float, returns[len(returns) - new :])),
    }


class ActionDistribution(NamedTuple):
    """
    A policy in one state: probabilities for discrete actions, means and standard deviations for continuous ones.

    :param probabilities: for each discrete factor of the action the probability of each choice
    :param mean: for each continuous dimension, before any squashing
    :param std: its standard deviation
    :param family: the distribution that they are of
    """

    probabilities: tuple[tuple[float, ...], ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    family: str = "Normal"


class StateChange(NamedTuple):
    """
    What an update did to the policy in one state.

    :param label: why this state is looked at
    :param kl: KL(old ‖ new) in this state, in nats
    :param old: the policy before
    :param new: and after
    :param observation: the state in a few words, ``""`` where it does not fit in them
    """

    label: str
    kl: float
    old: ActionDistribution
    new: ActionDistribution
    observation: str = ""


class StatesRecord(NamedTuple):
    """
    What an update did to the policy in some states.

    :param n_updates: number of the update
    :param max_kl: the limit δ on the mean KL over the states of the rollout
    :param kl: KL(old ‖ new) in states of the rollout, shape (n_states,)
    :param changes: the states that are looked at one by one
    """

    n_updates: int
    max_kl: float
    kl: np.ndarray
    changes: tuple[StateChange, ...]


class SliceRecord(NamedTuple):
    r"""
    A plane through the old policy in parameter space, in which an update was made.

    Of an algorithm other than ours the second direction is the step that it took, and no search is known of.

    Coordinates are fractions of two steps that are orthogonal in the inner product of the Fisher matrix and for which the
    quadratic model of the KL expects the same, δ: in these coordinates its limit is the unit circle.

    :param n_updates: number of the update
    :param max_kl: the limit δ on the mean KL, in nats; of an algorithm that keeps none the mean KL of its update
    :param second_direction: what the second step is made of, ``"step"``, ``"gradient"`` or ``"random"``
    :param fractions: coordinates of the grid, the same along both steps, shape (n,)
    :param kl: measured mean KL, shape (n, n); rows go with the second step, columns with the first, the natural one
    :param gain: measured gain of the surrogate, shape (n, n)
    :param candidates: what the line search tried, longest step first; measured on the whole rollout
    :param gradient_step: where a step along the plain gradient of the full step's length in parameter space ends, if that
        is in the plane
    :param gradient_step_kl: measured mean KL there
    :param n_states: number of states that ``kl`` and ``gain`` were measured on
    :param algorithm: the name of its class
    :param has_limit: whether ``max_kl`` is a limit that the algorithm keeps
    :param step: where the policy ended, of an algorithm other than ours
    :param step_kl: measured mean KL there
    :param step_gain: and the gain of the surrogate
    :param natural_kl: measured mean KL of the full natural step
    :param natural_gain: and its gain
    :param gain_unit: what the gains are counted in
    """

    n_updates: int
    max_kl: float
    second_direction: str
    fractions: np.ndarray
    kl: np.ndarray
    gain: np.ndarray
    candidates: tuple[Candidate, ...]
    gradient_step: tuple[float, ...]
    gradient_step_kl: float
    n_states: int
    algorithm: str = "TRPO"
    has_limit: bool = True
    step: tuple[float, ...] = ()
    step_kl: float = math.nan
    step_gain: float = math.nan
    natural_kl: float = math.nan
    natural_gain: float = math.nan
    gain_unit: str = OF_ADVANTAGE


class Run(NamedTuple):
    """
    What is known of a run.

    :param name: what to call it
    :param updates: in order, each at most once
    :param states: of the updates that it was kept of
    :param slices: of the updates that it was kept of
    :param problems: what could not be read, each with its file and line
    """

    name: str
    updates: tuple[UpdateRecord, ...]
    states: tuple[StatesRecord, ...] = ()
    slices: tuple[SliceRecord, ...] = ()
    problems: tuple[str, ...] = ()


Record = TypeVar("Record", UpdateRecord, StatesRecord, SliceRecord)


def encode(value: Any) -> Any:
    """Turn a record into what JSON has: named tuples into objects, what is not finite into ``null``."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: encode(field) for name, field in value._asdict().items()}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        # Enough for a picture
        return encode([float(f"{number:.5g}") for number in value.tolist()] if value.ndim == 1 else list(value))
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def decode(value: Any, kind: Any) -> Any:
    """
    Turn what JSON has back into a record.

    :param value: an object, array, number or string
    :param kind: the type to make of it
    :raises ValueError: saying which field is missing or of another type
    """
    if hasattr(kind, "_fields"):
        return _decode_fields(value, kind)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(decode(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: decode(item, get_args(kind)[1]) for key, item in value.items()}
    if kind is np.ndarray:
        return _decode_array(value)
    if kind is float and (value is None or type(value) in (int, float)):
        return math.nan if value is None else float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise ValueError(f"expected {getattr(kind, '__name__', kind)}, got {value!r}")


def _decode_fields(value: Any, kind: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {value!r}")
    missing = [name for name in kind._fields if name not in value and name not in kind._field_defaults]
    if missing:
        raise ValueError(f"no field {missing[0]!r}")
    hints = get_type_hints(kind)
    fields = {}
    for name in kind._fields:
        try:
            if name in value:
                fields[name] = decode(value[name], hints[name])
        except ValueError as error:
            raise ValueError(f"field {name!r}: {error}") from None
    return kind(**fields)


def _decode_array(value: Any) -> np.ndarray:
    try:
        return np.array(value, dtype=float)
    except (TypeError, ValueError):
        raise ValueError("expected an array of numbers") from None


def append(path: Path, record: UpdateRecord | StatesRecord | SliceRecord) -> None:
    """
    Write one more line to a file, after which it is on the disk.

    :param path: a file, made if there is none
    :param record: what to write
    """
    line = json.dumps(encode(record), allow_nan=False) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            # A run that died in the middle of a line must not spoil the first one after it
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())


def limits_in_words(updates: Sequence[UpdateRecord]) -> str:
    """Say which limits updates had, the first one's and the last one's where they differ; a dash where they had none."""
    limits = [update.max_kl for update in updates if math.isfinite(update.max_kl)]
    if not limits:
        return "–"
    return f"{limits[0]:.3g}" if len(set(limits)) == 1 else f"{limits[0]:.3g} to {limits[-1]:.3g}"


def take_up(path: Path, n_updates: int) -> None:
    """
    Leave out of a file what was written after some update: a run that goes on from there makes the next ones anew.

    :param path: a file, which need not be there
    :param n_updates: number of that update
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if _number_of(line) <= n_updates]
    if len(kept) < len(lines):
        unfinished = path.with_name(f".{path.name}.tmp")
        unfinished.write_bytes(b"".join(kept))
        unfinished.replace(path)


def _number_of(line: bytes) -> int:
    """Return the number of the update that a line is of, 0 for one that is none."""
    try:
        return int(json.loads(line)["n_updates"])
    except (ValueError, TypeError, KeyError):
        return 0


def _read_lines(path: Path, kind: Callable[..., Record]) -> tuple[tuple[Record, ...], list[str]]:
    """Return the records of a file, and by file and line what is wrong with the lines that hold none."""
    records: list[Record] = []
    problems = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record: Record = decode(json.loads(line), kind)
        except ValueError as error:
            is_cut = number == len(lines)
            reason = "cut off: it is being written, or the run ended here" if is_cut else f"not a record: {error}"
            problems.append(f"{path}:{number}: {reason}")
            continue
        # A run that was taken up again from an earlier save makes some of its updates anew
        while records and records[-1].n_updates >= record.n_updates:
            records.pop()
        records.append(record)
    return tuple(records), problems


def n_updates_before(folder: Path, num_timesteps: int) -> int | None:
    """Return the number of the last update on record that was made by then, ``None`` if there is none."""
    updates, _ = _read_lines(folder / UPDATES_FILE, UpdateRecord)
    return max((update.n_updates for update in updates if update.num_timesteps <= num_timesteps), default=None)


def read_run(folder: str | Path) -> Run:
    """
    Read what ``TrustRegionRecorder`` has written so far.

    Lines that are damaged are left out and reported in ``problems`` by file and line. Of an update that was made twice, since
    the run was taken up again from an earlier save, the later one counts.

    :param folder: the recorder's folder, or the file ``updates.jsonl`` in it
    :return: everything that could be read
    :raises FileNotFoundError: if there is no record of a run
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == UPDATES_FILE else folder
    if not (folder / UPDATES_FILE).is_file():
        raise FileNotFoundError(f"no record of a run: {folder / UPDATES_FILE} does not exist. TrustRegionRecorder writes it")
    updates, update_problems = _read_lines(folder / UPDATES_FILE, UpdateRecord)
    states, state_problems = _read_lines(folder / STATES_FILE, StatesRecord)
    slices, slice_problems = _read_lines(folder / SLICES_FILE, SliceRecord)
    problems = (*update_problems, *state_problems, *slice_problems)
    return Run(folder.resolve().name, updates, states, slices, problems)
