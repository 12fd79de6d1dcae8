"""The parts of one update of TRPO, in the order in which ``TRPO.train`` calls them."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.checked_algorithm import CheckedOnPolicyAlgorithm
from sb3_trpo.critic import CriticFit, PooledMinibatches, ValueBatch, fit_critic
from sb3_trpo.distributed import Processes
from sb3_trpo.distributions import factors_of, has_noise_by_state, mean_stds
from sb3_trpo.fast.forward_mode import forward_mode_fisher
from sb3_trpo.fast.gauss_newton import actor_of
from sb3_trpo.fast.kinds import CLOSED_FORM, MASKED_KINDS
from sb3_trpo.fast.mlp_critic import MlpCritic, mlp_critic
from sb3_trpo.fast.network import is_a_chain
from sb3_trpo.gradients import check_actor, check_gradients, is_same_function, untrained
from sb3_trpo.guards.arguments import check_arguments
from sb3_trpo.guards.finite import first_cause, normalizers_of, unusable_rollout
from sb3_trpo.guards.left_graphs import drop_graphs, views_of_parameters
from sb3_trpo.guards.overridden import as_in_package, is_as_in_package, known_kind
from sb3_trpo.guards.process import full_precision, unvalidated_distributions
from sb3_trpo.guards.random_network import N_ASKED, N_DOUBTS, OF_ACTOR, OF_VALUES, is_random
from sb3_trpo.hints import Hints
from sb3_trpo.metrics import UpdateReport
from sb3_trpo.objective import Batch, PolicyProblem, check_kl, normalize_advantages, weighted_mean
from sb3_trpo.policies import n_observations
from sb3_trpo.randomness import RandomNumbers
from sb3_trpo.replicas import (
    CHECKSUM,
    JointRollout,
    ToldJointly,
    arguments_of,
    check_same,
    checksum,
    make_same,
    quiet,
    settings_of,
    share,
    unmoved_if_it_fails,
)
from sb3_trpo.rollout import (
    check_critic_lambda,
    check_wasted_steps,
    explained_by_values,
    is_sb3s_own,
    observation_spread,
)
from sb3_trpo.trust_region import TrustRegionStep, are_finite, flatten, reached_by, trust_region_step
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters

# Distributions, of SB3's policies, between which torch knows the KL
KNOWN_KL = (th.distributions.Normal, th.distributions.Categorical, th.distributions.Bernoulli)

RANDOM_NETWORK = (
    "The policy's network is random: asked twice about the same states it gives {what}. What is measured of it differs from "
    "draw to draw. target_kl limits the KL between two draws, their noise included: steps are shorter than they could be, or "
    "refused, and the limit holds for these draws. The critic is fitted, but whether its fit has moved the policy cannot be "
    "seen. Noise that ends in evaluation mode (nn.Dropout, or F.dropout(..., training=self.training)) has none of this"
)
UNTRAINED_CRITIC = (
    "The critic is not trained, although {names} can be: the values have no gradient. TRPO fits what predict_values gives, "
    "where PPO fits what evaluate_actions does; something on the way is detached, or computed without gradients "
    "(torch.no_grad). If that is meant, set n_critic_updates=0"
)


def _indices_of(some: Iterable[th.nn.Parameter], everything: Iterable[th.nn.Parameter]) -> list[int]:
    """Return the indices of some parameters among all."""
    wanted = set(some)
    return [i for i, parameter in enumerate(everything) if parameter in wanted]


class TrustRegionUpdate(CheckedOnPolicyAlgorithm):
    """
    What an update is made of. It reads the arguments of the algorithm, and asks its hooks: see :class:`sb3_trpo.trpo.TRPO`.

    Whoever looks at an update from outside makes it of the same parts.
    """

    batch_size: int
    cg_max_steps: int
    line_search_shrinking_factor: float
    line_search_max_iter: int
    normalize_advantage: bool
    sub_sampling_factor: int
    fast: bool
    std_damping: float | None
    critic_gae_lambda: float | None
    paths_in_use: dict[str, str]
    _hints: Hints | None = None
    # The processes while an update is made with them. Who looks at an update from outside looks at this one's share of it
    _peers = Processes()
    # Of several processes: the rollout that they make, statistics as they were when all had the same, what has been said
    _joint_rollout: JointRollout | None = None
    _agreed_statistics: Sequence[Any] = ()
    _status_of_all: str | None = None
    _all_are_chains = False
    _warned_of_same_rollouts = False

    # What was found out about the policy: whether its distribution is random, and how Fisher products are made for which parts
    _is_random = False
    _warned_of_randomness: frozenset[str] = frozenset()
    _known_fisher_path: tuple[Any, str] | None = None
    _warned_of_untrained_critic = False

    n_critic_updates: int
    _distribution: Callable[[Batch], Distribution]
    _values: Callable[[Batch | ValueBatch], th.Tensor]
    _value_epochs: Callable[[Batch], Iterator[Iterable[ValueBatch]]]
    _fast_fisher: Callable[[Sequence[Batch], Parameters], MatrixVectorProduct | None]
    _chunk_size: Callable[[], int]

    @property
    def processes(self) -> Processes:
        """The processes that make each update together: one alone where there is none, as ``load`` may be told."""
        return vars(self).get("processes") or Processes()

    @processes.setter
    def processes(self, processes: Processes | None) -> None:
        vars(self)["processes"] = processes

    @contextmanager
    def _update_of_the_policy(self) -> Iterator[None]:
        """
        Make an update, or try one: with gradients that are seen, and numbers that are not finite as no error.

        However it ends, no graph stays behind on the policy, which can be copied and sent to another process as before.
        """
        check_gradients(self.policy)
        kept = views_of_parameters(self.policy)
        try:
            with unvalidated_distributions(), full_precision():
                yield
        finally:
            drop_graphs(self.policy, kept)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Make an update with all processes; one that does not come to its end moves nothing."""
        with self.processes.in_step(), unmoved_if_it_fails(self):
            self._peers = self.processes
            try:
                yield
                make_same(self)
            finally:
                del self._peers

    def _on_any(self, flag: bool) -> bool:
        """Whether something is so on any of the processes that make an update."""
        return bool(self._peers.largest(th.tensor(float(flag), device="cpu")))

    def _mean(self, values: th.Tensor, weights: th.Tensor) -> th.Tensor:
        """Return the mean of a number of each transition, shape (n,), over the rollouts of all processes, shape ()."""
        return self._peers.total(weighted_mean(values, weights))

    def _own_seed(self, seed: int | None) -> int | None:
        # Behind those of the environments of the process before it
        return None if seed is None else (seed + self.processes.rank * self.n_envs) % 2**32

    def _go_on_drawing(self, saved: RandomNumbers) -> None:
        super()._go_on_drawing(saved if self.processes.rank == 0 else saved.of_process(self.processes.rank))

    def _update_info_buffer(self, infos: Any, dones: Any = None) -> None:
        super()._update_info_buffer(infos, dones)
        if self._joint_rollout is not None:
            self._joint_rollout.note(infos, dones)

    def collect_rollouts(self, env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        """
        Collect experience with the current policy (see SB3's ``OnPolicyAlgorithm.collect_rollouts`` for the parameters).

        :raises PeerError: if that failed on another process
        """
        collect = super().collect_rollouts
        check_arguments({"processes": self.rules["processes"]}, vars(self))  # asked before anything else is
        if self.processes.size == 1:
            return collect(env, callback, rollout_buffer, n_rollout_steps)
        if isinstance(callback, ToldJointly):
            callback = callback.callback
        self._joint_rollout = JointRollout(self)
        try:
            goes_on = self._joint_rollout.collect(lambda own: collect(env, own, rollout_buffer, n_rollout_steps), callback)
        finally:
            self._joint_rollout = None
        if not goes_on:
            self._learning = None
        return goes_on

    def _check_before_update(self) -> None:
        told: dict[str, Any] = {}
        found: dict[str, Any] = {}

        def settle(reports: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
            check_same([facts for facts, _ in reports])
            self._status_of_all = first_cause(own.get("status") for _, own in reports)
            self._all_are_chains = all(own.get("is_a_chain") for _, own in reports)

        with self.processes.jointly(lambda: (told, found), settle):
            super()._check_before_update()
            if self.processes.size > 1:
                # What a callback has set on one process alone would have it meet the others for something else than they do
                told |= arguments_of(self, ask_schedules=False)
                told |= {name: self._now(name) for name in ("target_kl", "cg_damping")}
                told["learning_rate"] = self.lr_schedule(self._current_progress_remaining)
                told["the settings of the optimizer"] = settings_of(self.policy.optimizer)
                told[CHECKSUM] = checksum(self)
                # A module may have a hook on one process alone, where somebody looks at it
                found |= {"status": unusable_rollout(self.rollout_buffer), "is_a_chain": self._is_a_chain()}

    def _check_attributes(self) -> None:
        super()._check_attributes()
        # Nothing to damp, and nothing added: a default goes with whatever policy takes the place of the one that it was for
        if self.std_damping and not hasattr(self.policy, "log_std"):
            raise ValueError(
                f"std_damping is for actions with a standard deviation, those of a Box, got {self.std_damping} for "
                f"{self.action_space}"
            )

    def _check_before_learning(self, *, begins: bool) -> None:
        super()._check_before_learning(begins=begins)
        check_wasted_steps(self.env, self.rollout_buffer)
        check_critic_lambda(self.critic_gae_lambda, self.rollout_buffer)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Any:
        told: dict[str, Any] = {}
        if reset_num_timesteps:
            self._hints = None  # a run begins
        with self.processes.jointly(lambda: told, check_same):
            # Before processes are compared, of which one may have no environment
            self._check_before_learning(begins=reset_num_timesteps or self._last_obs is None)
            check_gradients(self.policy)  # before a rollout is collected for nothing
            if self.processes.size > 1:
                told |= arguments_of(self, total_timesteps=total_timesteps, reset_num_timesteps=reset_num_timesteps)
        share(self)
        with self.processes.jointly(), quiet(self):
            bar = progress_bar and self.processes.rank == 0
            total_timesteps, callback = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, bar)
        if self.processes.size > 1:
            callback = ToldJointly(callback, self)
            # The episodes of one process would fill a window that is as large as that of one
            size = self._stats_window_size * self.processes.size
            self.ep_info_buffer = deque(self.ep_info_buffer or (), maxlen=size)
            self.ep_success_buffer = deque(self.ep_success_buffer or (), maxlen=size)
        return total_timesteps, callback

    @classmethod
    def _in_place_of_saved(cls, given: dict[str, Any]) -> dict[str, Any]:
        # Ranks above 0 are quiet, as the constructor makes them
        return {"verbose": 0} if getattr(given.get("processes"), "rank", 0) > 0 else {}

    def _excluded_save_params(self) -> list[str]:
        found_out = ["_is_random", "_known_fisher_path", "last_update", "paths_in_use", "_hints"]
        warned = ["_warned_of_randomness", "_warned_of_untrained_critic"]
        of_all = ["_agreed_statistics", "_status_of_all", "_all_are_chains", "_warned_of_same_rollouts"]
        return [*super()._excluded_save_params(), *found_out, *warned, "processes", "_joint_rollout", *of_all]

    def _own_noise(self, *, may_be_random: bool) -> AbstractContextManager[None]:
        """Have a network that draws random numbers draw the model's own: in threads it has the noise that it has alone."""
        return self._random.in_torch(self.device) if may_be_random else nullcontext()

    def _split_parameters(self, batch: Batch) -> tuple[list[th.nn.Parameter], list[th.nn.Parameter]]:
        """
        Ask the autograd graph which parameters make the action distribution, and which the values alone.

        A parameter of both is the actor's: if the value fit moved it, the policy would leave the trust region.
        """
        # What a chain of layers depends on does not depend on the state; other networks may take a branch
        is_chain = self._is_a_chain() if self._peers.size == 1 else self._all_are_chains
        probes = [batch.few(1)] if is_chain else batch.split(self._chunk_size())
        everything = list(self.policy.parameters())
        with self._own_noise(may_be_random=not is_chain):
            actor, values = self._reached(probes, everything)
            self._check_split(probes[0], actor, values)
            # For good: a network that drops a layer now and then is the same many times
            is_random_here = (not is_chain and self._notice_randomness(batch.few(N_ASKED))) or self._is_random
        if not is_chain:
            numbers = [_indices_of(found, everything) for found in (actor, values)]
            are_random, *reached = zip(*self._peers.gather((is_random_here, *numbers)), strict=True)
            self._is_random = any(are_random)
            actor, values = ([everything[i] for i in sorted(set().union(*found))] for found in reached)
        actors = set(actor)
        return actor, [parameter for parameter in values if parameter not in actors]

    def _check_split(self, probe: Batch, actor: list[th.nn.Parameter], values: list[th.nn.Parameter]) -> None:
        """Refuse a policy whose KL cannot be known or cannot be limited; ``probe`` is a few transitions."""
        distribution = self._distribution(probe)
        is_sb3s = known_kind(distribution, (*CLOSED_FORM, *MASKED_KINDS)) is not None
        if not is_sb3s or any(type(factor) not in KNOWN_KL for factor in factors_of(distribution)):
            check_kl(distribution, probe.actions, actor)
        check_actor(self.policy, actor, values, lambda: self._distribution(probe).log_prob(probe.actions))
        self._warn_of_untrained_critic(untrained(self.policy, actor, values))

    def _reached(self, probes: Sequence[Batch], everything: Parameters) -> list[list[th.nn.Parameter]]:
        """Return the parameters that the action distribution depends on in any transition, and those of the values."""
        of_actor = [set(reached_by(self._distribution(probe).log_prob(probe.actions), everything)) for probe in probes]
        of_values = [set(reached_by(self._values(probe), everything)) for probe in probes]
        return [[p for p in everything if any(p in found for found in each)] for each in (of_actor, of_values)]

    def _is_a_chain(self) -> bool:
        """Whether the action distribution and the values come from the same parameters in every state."""
        return is_a_chain(self.policy) and all(is_as_in_package(self, hook) for hook in ("_distribution", "_values"))

    def _adds_nothing(self, hook: str, batches: Sequence[Batch]) -> bool:
        """
        Whether a hook is one of this package's, or does no more than that with a policy.

        :param hook: ``_distribution`` or ``_values``
        :param batches: transitions; for all of them one of the user's own must give the same by the same operations
        """
        if is_as_in_package(self, hook):
            return True
        ours = as_in_package(self, hook)

        def look(ask: Callable[[Batch], Any], batch: Batch) -> th.Tensor:
            given = ask(batch)
            return given if isinstance(given, th.Tensor) else given.log_prob(batch.actions)

        return ours is not None and all(
            is_same_function(look(getattr(self, hook), batch), look(partial(ours, self), batch)) for batch in batches
        )

    def _is_in_batch(self) -> bool:
        """Whether the critic learns from the batch: what a buffer of the user's own yields may be different each time."""
        return is_sb3s_own(self.rollout_buffer) or not is_as_in_package(self, "_full_batch")

    def _notice_randomness(self, few: Batch) -> bool:
        """Return whether the action distribution is random; warn once of it, and once of the values."""
        of_actor = is_random(lambda: self._distribution(few).log_prob(few.actions))
        of_values = is_random(lambda: self._values(few))
        both = {OF_ACTOR: of_actor, OF_VALUES: of_values}
        found = [what for what, differs in both.items() if differs]
        self._warn_of_randomness(found)
        return of_actor

    def _warn_of_randomness(self, found: Sequence[str]) -> None:
        # Values that are random too are no news; a policy that is, after its values, is
        if found and (not self._warned_of_randomness or OF_ACTOR in set(found) - self._warned_of_randomness):
            self._warned_of_randomness |= frozenset(found)
            warnings.warn(RANDOM_NETWORK.format(what=" and ".join(found)), stacklevel=3)

    def _warn_of_untrained_critic(self, names: Sequence[str]) -> None:
        if names and self.n_critic_updates > 0 and not self._warned_of_untrained_critic:
            self._warned_of_untrained_critic = True
            warnings.warn(UNTRAINED_CRITIC.format(names=", ".join(names)), stacklevel=3)

    def _normalized(self, advantages: th.Tensor, weights: th.Tensor) -> th.Tensor:
        """Return the advantages as the surrogate uses them, shape (n,)."""
        if not self.normalize_advantage:
            return advantages
        # A policy in double precision shall not have the rounding of a single one in its mean
        precision = th.promote_types(advantages.dtype, next(self.policy.parameters()).dtype)
        # Squares of single precision are within double precision in any unit: one meeting of the processes less
        any_unit = self._peers.size > 1 and precision != th.float64
        largest = th.ones_like if any_unit else self._peers.largest
        return normalize_advantages(advantages.to(precision), weights, total=self._peers.total, largest=largest)

    def _chosen_states(self, states: Any) -> Batch:
        """Return observations that somebody wants to look at as a batch of which nothing else is known."""
        observations = self.policy.obs_to_tensor(states)[0]
        n = n_observations(observations)
        return Batch(observations, *[th.zeros(n, device=self.device)] * 5)

    def _policy_problem(self, batch: Batch, parameters: Parameters) -> PolicyProblem:
        """Return the trust-region problem of a rollout, around the present policy."""
        with self._own_noise(may_be_random=self._is_random):
            return PolicyProblem(
                self._distribution,
                batch,
                parameters,
                fisher_batch=batch.thinned(self.sub_sampling_factor, self._random.permutation),
                chunk_size=self._chunk_size(),
                fast_fisher=self._fast_fisher if self.fast else None,
                forward_fisher=partial(forward_mode_fisher, self.policy),
                fisher_path=self._known_path(parameters),
                is_random=self._is_random,
                total=self._peers.total,
                largest=self._peers.largest,
            )

    def _known_path(self, parameters: Parameters) -> str:
        """Return how Fisher products were made for this policy the last time, if it still has the same parts."""
        parts = tuple((id(module), type(module), *vars(module)) for module in self.policy.modules())
        kinds = tuple((id(p), p.shape, p.dtype, p.device) for p in parameters)
        if self._known_fisher_path is None or self._known_fisher_path[0] != (parts, kinds):
            self._known_fisher_path = (parts, kinds), ""
        return self._known_fisher_path[1]

    def _note_fisher_path(self, problem: PolicyProblem) -> None:
        if problem.fisher_path:
            self._note_path("Fisher products", problem.fisher_path)
        if self._known_fisher_path is not None:
            self._known_fisher_path = self._known_fisher_path[0], problem.known_path

    def _trust_region_step(self, problem: PolicyProblem, phase: Callable[[str], None] = lambda name: None) -> TrustRegionStep:
        """Move the policy's parameters as far as the arguments of this model allow; ``phase`` hears what begins."""
        # Of several processes parameters are the same, and a rollout is as good as its worst part
        alone = self._peers.size == 1
        unusable = unusable_rollout(self.rollout_buffer) if alone else self._status_of_all
        # Parameters that are not finite are what made the rollout so, and the step says it of them
        if unusable and are_finite(problem.parameters):
            return TrustRegionStep(unusable)
        with self._own_noise(may_be_random=self._is_random):
            step = trust_region_step(
                problem,
                max_kl=self._now("target_kl"),
                damping=self._damping(problem.parameters),
                cg_max_iterations=self.cg_max_steps,
                shrinking_factor=self.line_search_shrinking_factor,
                max_candidates=self.line_search_max_iter,
                agree=None if self._peers.size == 1 else self._peers.agree,
                phase=phase,
            )
        self._note_fisher_path(problem)
        return step

    def _damping(self, parameters: Parameters) -> float | th.Tensor:
        """Return what to add to the diagonal of the Fisher matrix: a number, or one for each variable, shape (n_params,)."""
        damping = self._now("cg_damping")
        log_std = getattr(self.policy, "log_std", None)
        if self.std_damping is None or not any(p is log_std for p in parameters):
            return damping
        # Larger than any number of a parameter's type is infinite
        each = [(p, self.std_damping if p is log_std else damping) for p in parameters]
        return flatten([th.full_like(p, min(value, th.finfo(p.dtype).max)) for p, value in each])

    def _fit_critic(
        self, batch: Batch, parameters: list[th.nn.Parameter], is_policy_kept: Callable[[], bool]
    ) -> CriticFit | None:
        """Fit the values to the returns of the rollout, moving these parameters only."""
        quick = self._quick_critic(batch, parameters) if self.fast else None
        if self._on_any(quick is None):
            quick = None
        alone = self._peers.size == 1
        self._note_path("critic fit", "plain" if quick is None else "written out")
        epochs = self._value_epochs(batch)
        pool: PooledMinibatches | None = None if alone else PooledMinibatches(self._peers.total)
        if quick is not None:
            quick.pool = pool
            return quick.fit(epochs, holds=lambda: not alone or self._is_of_layers_alone(batch) or is_policy_kept())
        with self._own_noise(may_be_random=bool(self._warned_of_randomness)):
            return fit_critic(self._values, self.policy.optimizer, parameters, epochs, holds=is_policy_kept, pool=pool)

    def _quick_critic(self, batch: Batch, parameters: list[th.nn.Parameter]) -> MlpCritic | None:
        """Return the fit of the critic written out, ``None`` where the plain one must do it."""
        quick = mlp_critic(self.policy, parameters, batch, self._values, min(self.batch_size, len(batch.returns)))
        if quick is None or not self._adds_nothing("_values", batch.split(self._chunk_size())):
            return None
        # What became of the policy is measured after the fit; of several processes that would be one more collective
        return quick if self._peers.size == 1 or self._is_of_layers_alone(batch) else None

    def _is_of_layers_alone(self, batch: Batch) -> bool:
        """Whether the policy is what the actor's own layers give: then it depends on nothing else, seen or unseen."""
        is_read = actor_of(self.policy, batch, self._distribution) is not None
        return is_read and self._adds_nothing("_distribution", batch.split(self._chunk_size()))

    def _is_kept(self, problem: PolicyProblem, step: TrustRegionStep) -> bool:
        """Whether the policy is still what the step made of it: a critic may move what no graph shows (detached features)."""
        if self._is_random:
            return True  # as far as can be seen: it is another one each time
        max_kl, kept_distributions = self._now("target_kl"), problem.new_distributions
        _, mean_kl = problem.evaluate()
        kept = (mean_kl <= max_kl or not step.accepted) and not abs(mean_kl - step.mean_kl) > 1e-3 * max_kl
        if not kept:
            # Before it is said of the critic: a network that is random now and then would be another one again
            again = (problem.evaluate()[1] for _ in range(N_DOUBTS))
            self._is_random = any(abs(kl - mean_kl) > 1e-3 * max_kl for kl in again)
            self._warn_of_randomness([OF_ACTOR] if self._is_random else [])
        kept = kept or self._is_random
        if not kept:
            # The fit will be undone, and the report is of the policy that stays
            problem.new_distributions = kept_distributions
        return kept

    def _report(
        self, problem: PolicyProblem, step: TrustRegionStep, critic: CriticFit | None, phase_seconds: dict[str, float]
    ) -> UpdateReport:
        """Describe the update that led to the present policy."""
        log_std = getattr(self.policy, "log_std", None)
        policies = (problem.old_distributions, problem.new_distributions if step.accepted else problem.old_distributions)
        before, after = (None, None) if log_std is None else map(mean_stds, policies)
        return UpdateReport(
            step=step,
            critic=critic,
            n_updates=self._n_updates,
            max_kl=self._now("target_kl"),
            damping=self._now("cg_damping"),
            explained_variance=explained_by_values(self.rollout_buffer, self._wasted_steps, self._peers.total),
            entropy=problem.entropy(of_new=step.accepted),
            std=None if log_std is None else log_std.exp().mean().item(),
            least_std=None if before is None or after is None else (float(before.min()), float(after.min())),
            phase_seconds=phase_seconds,
            is_frozen=not problem.parameters,
            observation_spread=self._observation_spread(),
            noise_std=float(after.mean()) if after is not None and has_noise_by_state(self.policy) else None,
            is_rewarded=self._is_rewarded,
        )

    def _observation_spread(self) -> float | None:
        """Return how far apart the scales of the observations are that no ``VecNormalize`` sees to."""
        keys = [normalizer.norm_obs_keys for normalizer in normalizers_of(self.env) if normalizer.norm_obs]
        # One that names none sees to everything
        return observation_spread(self.rollout_buffer, set().union(*filter(None, keys))) if all(keys) else None

    def _log(self, report: UpdateReport) -> None:
        """Hand the numbers of an update to the logger, and say in words what was not as usual."""
        report.record(self.logger)
        if self.verbose == 0:
            return
        self._hints = self._hints or Hints()
        hints = self._hints.after(report, progress=1.0 - self._current_progress_remaining)
        for line in filter(None, (report.remark(), *hints)):
            self.logger.log(line)

    def _note_path(self, phase: str, path: str) -> None:
        """Keep which way a phase is going, and say so when it changes."""
        if self.paths_in_use.get(phase) != path:
            self.paths_in_use[phase] = path
            if self.verbose >= 1:
                self.logger.log(f"{phase}: {path} path")
