"""One update, from before it to after it: what ours report of it, and what is measured of those of other algorithms."""

import math
from typing import Any, Protocol

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.fast.network import is_a_chain
from sb3_trpo.guards.random_network import N_ASKED, is_random, is_same_answer
from sb3_trpo.inspect.as_ours import clip_range_of, gain_unit_of, limit_of, name_of, nothing_drawn, seen_as_ours
from sb3_trpo.inspect.measure import (
    Means,
    Spread,
    SpreadOfChunks,
    actor_parameters,
    as_updates_are_measured,
    measure,
    step_between,
)
from sb3_trpo.inspect.planes import slice_with_step
from sb3_trpo.inspect.policy_copies import CannotBeCopied, copy_of, to_look_at
from sb3_trpo.inspect.probe import WatchedStates, affordable, plain_problem, sample, slice_ahead
from sb3_trpo.inspect.run_files import SliceRecord, StatesRecord, UpdateRecord, record_of
from sb3_trpo.metrics import UpdateReport
from sb3_trpo.rollout import explained_by_values
from sb3_trpo.trpo import TRPO

# Ours reports its means itself; how they are spread is measured on so many states, which takes next to no time
SPREAD_STATES = 256

# How far the KL that an update reports may be from what is measured of it, in units of the limit
OF_ROUNDING = 1e-3

Pictures = tuple[tuple[StatesRecord, ...], tuple[SliceRecord, ...]]


class WatchedUpdate(Protocol):
    """An update whose rollout is in the model's buffer and that has not been made yet."""

    def prepare(self) -> None:
        """Keep the policy as it is before the update."""

    def measure(self) -> None:
        """Look at what became of the policy, after the update and before the next rollout; only what was prepared can be."""

    def record(self, **others: Any) -> UpdateRecord | None:
        """Return what there is to keep, ``None`` if no update was made; ``others`` are the fields that are not measured."""

    def pictures(self) -> Pictures:
        """Return what the pictures need, if they are wanted; like ``measure`` only of what was prepared."""


class OwnUpdate:
    """
    An update of TRPO or of a variant of it.

    :param model: with the rollout of the update in its buffer
    :param pictures: whether pictures are wanted
    :param states: observations to look at one by one in them
    """

    def __init__(self, model: TRPO, *, pictures: bool, states: Any = None):
        self.model = model
        self.report_before = model.last_update
        self.wants_pictures = pictures
        self.states = states
        self.spread: Spread | None = None

    def _seen(self) -> TRPO:
        """Return the model, or one like it with a copy of its policy where a look may leave something behind in that."""
        policy = self.model.policy
        looked_at = policy if self.is_a_chain else to_look_at(policy)
        return self.model if looked_at is policy else seen_as_ours(self.model, looked_at)

    def prepare(self) -> None:
        """Keep the policy in some states, and make the pictures' plane."""
        # Asked once, since it takes as long as a look: an update changes parameters, not what they are parameters of
        self.is_a_chain = is_a_chain(self.model.policy)
        with nothing_drawn():
            seen = self._seen()
            self.few = WatchedStates(seen, n_states=SPREAD_STATES)
            if self.wants_pictures:
                self.watched = WatchedStates(seen, self.states)
                self.slice = slice_ahead(seen)

    @property
    def report(self) -> UpdateReport | None:
        """What the update says of itself, ``None`` before it is made."""
        return None if self.model.last_update is self.report_before else self.model.last_update

    def measure(self) -> None:
        """Measure the spread."""
        if self.report is not None:
            with nothing_drawn(), as_updates_are_measured():
                spread = SpreadOfChunks(clip_range_of(self.model))
                spread.add(self.few.batch, self.few.old, self.few.now(self._seen())[0])
                self.spread = spread.spread()

    def record(self, **others: Any) -> UpdateRecord | None:
        """Return what there is to keep."""
        report = self.report
        if report is None:
            return None
        others["phase_seconds"] = _with_rest(others["phase_seconds"], report.phase_seconds)
        return record_of(
            report,
            algorithm=name_of(self.model),
            gain_unit=gain_unit_of(self.model),
            **others,
            **({} if self.spread is None else self.spread._asdict()),
        )

    def pictures(self) -> Pictures:
        """Return what the pictures need."""
        report = self.report
        if report is None or not self.wants_pictures:
            return (), ()
        with nothing_drawn():
            states = self.watched.compare(self._seen(), n_updates=report.n_updates, max_kl=report.max_kl)
        return (states,), () if self.slice is None else (self.slice,)


def _with_rest(seconds: dict[str, float], of_update: dict[str, float]) -> dict[str, float]:
    """Return the time of an update by its phases, and what is left of it as another one."""
    rest = max(0.0, seconds["update"] - sum(of_update.values()))
    return {name: value for name, value in seconds.items() if name != "update"} | {"other": rest}


class OtherUpdate:
    """
    An update of any other on-policy algorithm.

    :param model: with the rollout of the update in its buffer
    :param n_updates: number of the update
    :param pictures: whether pictures are wanted
    :param states: observations to look at one by one in them
    """

    explained_variance = observation_spread = math.nan
    measured: tuple[Means, Spread] | None = None

    def __init__(self, model: OnPolicyAlgorithm, n_updates: int, *, pictures: bool = False, states: Any = None):
        self.model = model
        self.n_updates = n_updates
        self.wants_pictures = pictures
        self.states = states

    def prepare(self) -> None:
        """Keep a copy of the policy, and the rollout."""
        model = self.model
        self.before = seen_as_ours(model, copy_of(model.policy))
        with nothing_drawn():
            self.batch = self.before._full_batch()
            self.few = sample(self.batch, N_ASKED)
            self.said = self._say()
            if self.wants_pictures:
                self.watched = WatchedStates(self.before, self.states)
        self.explained_variance = explained_by_values(model.rollout_buffer)
        spread = self.before._observation_spread()
        self.observation_spread = math.nan if spread is None else spread

    def measure(self) -> None:
        """Measure the update on every state of its rollout."""
        self.after = after = seen_as_ours(self.model, copy_of(self.model.policy))
        with nothing_drawn():
            self._check_copy()
            self.measured = measure(self.before, after, self.batch, clip_range_of(self.model))

    @th.no_grad()
    def _say(self) -> th.Tensor:
        """Return what the copy of the old policy says of a few actions."""
        with as_updates_are_measured():
            return self.before._distribution(self.few).log_prob(self.few.actions)

    def _check_copy(self) -> None:
        """Refuse a copy that is another policy since the update: it would be measured from there."""
        if not is_same_answer(self.said, self._say()) and not is_random(self._say):
            raise CannotBeCopied(
                f"{type(self.model.policy).__name__} cannot be copied: its copy changes when it does, as one does that holds "
                "itself in a function or a weak reference"
            )

    def record(self, **others: Any) -> UpdateRecord:
        """Return what there is to keep."""
        known: dict[str, Any] = {
            "explained_variance": self.explained_variance,
            "observation_spread": self.observation_spread,
        }
        if self.measured is None:
            return record_from_outside(self.model, self.n_updates, **known, **others)
        means, spread = self.measured
        status = "accepted" if means.step_norm > 0.0 or means.mean_kl > 0.0 else "unchanged"
        known |= means._asdict() | spread._asdict() | {"status": status, "max_kl": limit_of(self.model)}
        return record_from_outside(self.model, self.n_updates, **known, **others)

    def pictures(self) -> Pictures:
        """Return what the pictures need."""
        if not self.wants_pictures or self.measured is None:
            return (), ()
        limit = limit_of(self.model)
        with nothing_drawn():
            states = self.watched.compare(self.after, n_updates=self.n_updates, max_kl=limit)
            plane = self._plane(limit)
        return (states,), () if plane is None else (plane,)

    def _plane(self, limit: float) -> SliceRecord | None:
        """Measure the plane of the natural gradient and the step that was taken."""
        assert self.measured is not None
        few = sample(self.batch, affordable(self.model.observation_space))
        with self.before._update_of_the_policy():
            parameters = actor_parameters(self.before, few)
            if not parameters:
                return None
            problem = plain_problem(self.before, few, parameters)
            return slice_with_step(
                problem,
                step_between(self.before, self.after, parameters),
                max_kl=self.measured[0].mean_kl if math.isnan(limit) else limit,
                damping=self.before._damping(parameters),
                n_updates=self.n_updates,
                algorithm=name_of(self.model),
                has_limit=not math.isnan(limit),
                n_states=len(few.weights),
            )


class UpdateOfVariant:
    """
    An update of a TRPO whose ``train`` is the user's own: what it reports, if the policy is what the report says of it.

    :param own: the update as it reports itself
    :param other: the same, measured from outside
    """

    def __init__(self, own: OwnUpdate, other: OtherUpdate):
        self.own = own
        self.other = other
        self.chosen: WatchedUpdate = other

    def prepare(self) -> None:
        """Keep the policy as it is before the update."""
        self.own.prepare()
        self.other.prepare()

    def measure(self) -> None:
        """Measure from outside, and choose."""
        self.other.measure()
        report, measured = self.own.report, self.other.measured
        if report is not None and measured is not None:
            apart = abs(measured[0].mean_kl - report.step.mean_kl)
            if apart <= OF_ROUNDING * max(report.max_kl, report.step.mean_kl):
                self.chosen = self.own
                self.own.measure()

    def record(self, **others: Any) -> UpdateRecord | None:
        """Return what there is to keep."""
        record = self.chosen.record(**others)
        return record and record._replace(n_updates=self.other.n_updates)

    def pictures(self) -> Pictures:
        """Return what the pictures need."""
        # A train of the user's own may count in its own way
        states, planes = self.chosen.pictures()
        number = self.other.n_updates
        return tuple(each._replace(n_updates=number) for each in states), tuple(
            each._replace(n_updates=number) for each in planes
        )


def record_from_outside(model: OnPolicyAlgorithm, n_updates: int, **known: Any) -> UpdateRecord:
    """Return a record of an update of which nothing is known but the fields given."""
    fields: dict[str, Any] = dict.fromkeys(UpdateRecord._fields[: -len(UpdateRecord._field_defaults)], math.nan)
    fields |= {"status": "not_measured", "candidates": (), "cg_residual_norms": (), "cg_stopped_by": ""}
    fields |= {"n_updates": n_updates, "algorithm": name_of(model), "num_timesteps": model.num_timesteps}
    return UpdateRecord(**(fields | known))
