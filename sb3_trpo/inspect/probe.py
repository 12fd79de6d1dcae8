"""Looks at an update from the inside, and leaves the model as it was: policies in single states, slices of parameter space."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.logger import Logger

from sb3_trpo.distributions import factors_of, frozen, has_noise_by_state
from sb3_trpo.guards.finite import normalizers_of
from sb3_trpo.guards.overridden import is_as_in_package
from sb3_trpo.inspect.as_ours import gain_unit_of, name_of, nothing_drawn
from sb3_trpo.inspect.measure import as_updates_are_measured, kl_of_probabilities
from sb3_trpo.inspect.planes import as_they_were, slice_of
from sb3_trpo.inspect.policy_copies import to_look_at
from sb3_trpo.inspect.run_files import (
    ActionDistribution,
    Run,
    SliceRecord,
    StateChange,
    StatesRecord,
    episode_statistics,
    record_of,
)
from sb3_trpo.metrics import PhaseClock
from sb3_trpo.objective import DIFFERENCES, Batch, PolicyProblem, kl_old_new
from sb3_trpo.policies import rows_of
from sb3_trpo.rollout import is_sb3s_own
from sb3_trpo.trpo import TRPO
from sb3_trpo.trust_region import TrustRegionStep

# Largest number of states of a rollout to look at
MAX_STATES = 2048


@contextmanager
def without_drawing(model: TRPO) -> Iterator[None]:
    """Let a model draw the random numbers that come next, and have them still before it afterwards."""
    before, model._random = model._random, model._random.twin()
    # A buffer of the user's own draws from NumPy's generator as it is read
    state = None if is_sb3s_own(model.rollout_buffer) else np.random.get_state()
    try:
        yield
    finally:
        model._random = before
        if state is not None:
            np.random.set_state(state)


def affordable(space: spaces.Space) -> int:
    """Return how many observations to look at: fewer where each is large."""
    return max(64, min(MAX_STATES, 2**22 // spaces.flatdim(space)))


def sample(batch: Batch, n: int) -> Batch:
    """Return at most n of the transitions that count, the same ones each time, with weights that sum to one."""
    if type(batch) is not Batch:
        # Sequences are looked at from their beginning
        few = batch.few(n)
        own = rows_of(few.observations, slice(None))
        return few._replace(observations=own, weights=few.weights / few.weights.sum())
    rows = batch.weights.nonzero().squeeze(1)
    if len(rows) > n:
        # Not every second one, which with two environments would be one of them; with a generator that is nobody else's
        drawn = th.randperm(len(rows), generator=th.Generator("cpu").manual_seed(0), device="cpu")[:n]
        rows = rows[drawn.sort().values.to(rows.device)]
    chosen = batch.select(rows)
    return chosen._replace(weights=chosen.weights / chosen.weights.sum())


# Policies in single states


def _moments(factor: Any) -> tuple[th.Tensor, th.Tensor]:
    """Return mean and standard deviation of a factor, each shape (n, ...); of what is transformed those before it."""
    try:
        return factor.mean, factor.stddev
    except NotImplementedError:
        return (
            _moments(factor.base_dist)
            if hasattr(factor, "base_dist")
            else (th.full(factor.batch_shape, math.nan, device="cpu"),) * 2
        )


def _family(factor: Any) -> str:
    """Return the name of the distribution whose moments are those of a factor."""
    while hasattr(factor, "base_dist"):
        factor = factor.base_dist
    return "Normal" if isinstance(factor, th.distributions.Normal) else type(factor).__name__


def action_distribution(distribution: Distribution, row: int) -> ActionDistribution:
    """Return one state's part of an SB3 action distribution in numbers, beside continuous factors without the discrete."""
    probabilities: list[tuple[float, ...]] = []
    means: list[float] = []
    stds: list[float] = []
    families: list[str] = []
    for factor in factors_of(distribution):
        if isinstance(factor, th.distributions.Bernoulli):
            probabilities += [(1.0 - p, p) for p in factor.probs[row].flatten().tolist()]
        elif isinstance(factor, th.distributions.Categorical | th.distributions.OneHotCategorical):
            probabilities += [tuple(p) for p in factor.probs[row].reshape(-1, factor.probs.shape[-1]).tolist()]
        else:
            mean, std = _moments(factor)
            families.append(_family(factor))
            means += mean[row].flatten().tolist()
            stds += std[row].flatten().tolist()
    if not means:
        return ActionDistribution(tuple(probabilities))
    return ActionDistribution((), tuple(means), tuple(stds), ", ".join(dict.fromkeys(families)))


def change_of_probabilities(old: Sequence[float], new: Sequence[float], label: str = "") -> StateChange:
    """
    Describe the change of a discrete policy in one state from its probabilities alone.

    :param old: probability of each action before
    :param new: and after
    :param label: what to call it
    """
    if len(old) != len(new) or not all(math.isclose(sum(p), 1.0, abs_tol=1e-6) and min(p) >= 0 for p in (old, new)):
        raise ValueError(f"old and new must be probabilities of the same actions, got {list(old)} and {list(new)}")
    before, after = (ActionDistribution(probabilities=(tuple(p),)) for p in (old, new))
    return StateChange(label, kl_of_probabilities(old, new), before, after)


def describe_observation(observations: Any, row: int) -> str:
    """Write an observation out where it is a vector of few numbers, else return ``""``."""
    if not isinstance(observations, th.Tensor) or observations[row].numel() > 8:
        return ""
    return "[" + ", ".join(f"{number:.3g}" for number in observations[row].flatten().tolist()) + "]"


class WatchedStates:
    """
    States whose policy is kept before an update, to be compared with that after it.

    :param model: with the old policy, and the rollout in its buffer
    :param chosen: further states to look at one by one: observations of shape (n, *obs_shape) or a dict of such arrays, and
        of a policy with a memory a pair of these and of the state before them, as ``predict`` returns it
    :param n_states: how many states of the rollout to look at, at most; by default as many as one can afford
    """

    def __init__(self, model: TRPO, chosen: Any = None, *, n_states: int | None = None):
        with without_drawing(model):
            self.batch = sample(model._full_batch(), n_states or affordable(model.observation_space))
        self.chosen = None if chosen is None else model._chosen_states(chosen)
        self.old, self.old_chosen = self.now(model)

    @th.no_grad()
    def now(self, model: TRPO) -> tuple[Distribution, Distribution | None]:
        """Return the policy that a model has now, in the states of the rollout, and in the further ones."""
        with as_updates_are_measured():
            of_rollout = frozen(model._distribution(self.batch))
            return of_rollout, None if self.chosen is None else frozen(model._distribution(self.chosen))

    def compare(self, model: TRPO, *, n_updates: int, max_kl: float) -> StatesRecord:
        """
        Compare the old policy with another one.

        :param model: with the policy after the update
        :param n_updates: number of the update
        :param max_kl: its limit on the mean KL
        """
        new, new_chosen = self.now(model)
        with as_updates_are_measured():
            kl = kl_old_new(self.old, new)
        # Where a policy is no number it has not changed by any
        finite = kl.isfinite().nonzero().flatten()
        by_kl = finite[kl[finite].argsort(descending=True)].tolist()
        changes = [
            self._change(f"{name} KL of {len(kl):,} states", kl, self.old, new, self.batch.observations, row)
            for name, row in ((("largest", by_kl[0]), ("median", by_kl[len(by_kl) // 2])) if by_kl else ())
        ]
        if self.chosen is not None and self.old_chosen is not None and new_chosen is not None:
            with as_updates_are_measured():
                kl_chosen = kl_old_new(self.old_chosen, new_chosen)
            changes += [
                self._change(f"chosen state {row + 1}", kl_chosen, self.old_chosen, new_chosen, self.chosen.observations, row)
                for row in range(len(kl_chosen))
            ]
        return StatesRecord(n_updates, max_kl, kl.double().cpu().numpy(), tuple(changes))

    @staticmethod
    def _change(label: str, kl: th.Tensor, old: Distribution, new: Distribution, observations: Any, row: int) -> StateChange:
        before, after = (action_distribution(distribution, row) for distribution in (old, new))
        return StateChange(label, float(kl[row]), before, after, describe_observation(observations, row))


# Planes in parameter space


def plain_problem(model: TRPO, batch: Batch, parameters: Sequence[th.nn.Parameter]) -> PolicyProblem:
    """Return the problem of a batch around a model's policy, to measure on: nothing is thinned or drawn."""
    # Differentiating the steps of an LSTM twice takes longer than a picture is worth. But SB3's gSDE holds the features fixed
    # that noise is made of, and differences of such gradients make no symmetric matrix
    path = "" if type(batch) is Batch or has_noise_by_state(model.policy) else DIFFERENCES
    return PolicyProblem(
        model._distribution,
        batch,
        parameters,
        chunk_size=model._chunk_size(),
        fast_fisher=None if path else model._fast_fisher,
        fisher_path=path,
    )


def slice_of_model(
    model: TRPO, batch: Batch, problem: PolicyProblem, step: TrustRegionStep, n_updates: int
) -> SliceRecord | None:
    """Measure the slice of an update, on part of its rollout where all of it would take long."""
    few = sample(batch, affordable(model.observation_space))
    plane = slice_of(
        problem,
        step,
        max_kl=model._now("target_kl"),
        n_updates=n_updates,
        measured=plain_problem(model, few, problem.parameters),
        n_states=len(few.weights),
    )
    return plane and plane._replace(algorithm=name_of(model), gain_unit=gain_unit_of(model))


@contextmanager
def _at_the_update(model: TRPO) -> Iterator[None]:
    """Let schedules be where the update will find them: SB3 moves them on between a rollout and its update."""
    before = model._current_progress_remaining
    try:
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        yield
    finally:
        model._current_progress_remaining = before


def slice_ahead(model: TRPO) -> SliceRecord | None:
    """
    Make the update that comes next without keeping it, and measure the plane that it lies in.

    :param model: with the old policy, and the rollout in its buffer
    """
    parameters = list(model.policy.parameters())
    with _at_the_update(model), as_they_were(parameters), without_drawing(model), model._update_of_the_policy():
        batch = model._full_batch()
        parameters, _ = model._split_parameters(batch)
        # Both problems are thinned alike: each begins with the random numbers that the update will find
        with as_they_were(parameters), without_drawing(model):
            step = model._trust_region_step(model._policy_problem(batch, parameters))
        return slice_of_model(model, batch, model._policy_problem(batch, parameters), step, model._n_updates + 1)


class _Silent(BaseCallback):
    def _on_step(self) -> bool:
        return True


@contextmanager
def _state_kept(model: TRPO) -> Iterator[None]:
    """Give a model its counters, logger and statistics back after a rollout; its environments have moved on."""
    before = dict(vars(model))
    # A variant may train another network on what it collects
    learned = None if is_as_in_package(model, "collect_rollouts") else copy.deepcopy(model.get_parameters())
    were_training = [(normalizer, normalizer.training) for normalizer in normalizers_of(model.env)]
    try:
        for normalizer, _ in were_training:
            normalizer.training = False
        # Neither an empty run of TensorBoard, nor a row that the model's own logger holds
        model._logger, model._custom_logger = Logger(folder=None, output_formats=[]), True
        model.processes, model._joint_rollout = None, None  # the others do not know that anybody looks
        yield
    finally:
        for normalizer, was_training in were_training:
            normalizer.training = was_training
        vars(model).clear()
        vars(model).update(before)
        if learned is not None:
            model.set_parameters(learned, device=model.device)
        # The next call of learn begins a new episode
        model._last_obs = None


def _collect(model: TRPO) -> float:
    """Fill the model's rollout buffer with experience from its environment; return the seconds that it took."""
    _, callback = model._setup_learn(0, _Silent())
    assert model.env is not None
    start = time.perf_counter()
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return time.perf_counter() - start


def inspect_model(model: TRPO, *, states: Any = None, name: str = "model") -> Run:
    """
    Collect one rollout with a model, make one update of its policy without keeping it, and tell everything about it.

    Every parameter and counter of the model is what it was afterwards; there is no critic fit.

    :param model: with an environment
    :param states: states to look at one by one: observations of shape (n, *obs_shape) or a dict of such arrays, and of a
        policy with a memory a pair of these and of the state before them, as ``predict`` returns it
    :param name: what to call the result
    :return: a run of this one update
    :raises TypeError: if it is no model of this package
    :raises ValueError: if the model has no environment
    :raises RuntimeError: while the model learns
    """
    if not isinstance(model, TRPO):
        raise TypeError(
            f"inspect_model makes an update of a model of this package, got {type(model).__name__}: TrustRegionRecorder "
            "records those of other algorithms as they are made"
        )
    if model._learning == id(model):
        raise RuntimeError(
            "inspect_model cannot be called while the model learns: it would collect a rollout of its own in the middle of "
            "one. TrustRegionRecorder looks at updates as they are made"
        )
    if model.env is None:
        raise ValueError("the model has no environment to collect a rollout in: give it one with model.set_env(env)")
    with nothing_drawn(), _state_kept(model):
        model.policy = to_look_at(model.policy)
        collect_seconds = _collect(model)
        n_updates, clock = model._n_updates + 1, PhaseClock()
        batch = model._full_batch()
        watched = WatchedStates(model, states)
        parameters = list(model.policy.parameters())
        with as_they_were(parameters), without_drawing(model), model._update_of_the_policy():
            parameters, _ = model._split_parameters(batch)
            problem = model._policy_problem(batch, parameters)
            step = model._trust_region_step(problem, clock.begin)
            clock.stop()
            report = model._report(problem, step, None, clock.seconds)._replace(n_updates=n_updates)
            changes = watched.compare(model, n_updates=n_updates, max_kl=report.max_kl)
        update = record_of(
            report,
            num_timesteps=model.num_timesteps,
            phase_seconds={"collect": collect_seconds},
            algorithm=name_of(model),
            gain_unit=gain_unit_of(model),
            **episode_statistics(model.ep_info_buffer or (), None),
        )
        with without_drawing(model), model._update_of_the_policy():
            plane = slice_of_model(model, batch, model._policy_problem(batch, parameters), step, n_updates)
    return Run(name, (update,), (changes,), () if plane is None else (plane,))
