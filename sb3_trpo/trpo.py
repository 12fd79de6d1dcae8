"""Trust Region Policy Optimization for Stable-Baselines3."""

import copy
import inspect
import io
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.arguments import (
    SCHEDULES,
    check_arguments,
    check_parameters,
    check_policy,
    check_policy_fits,
    checked_env,
    value_at,
)
from sb3_trpo.contrib import convert_loaded, is_saved_by_contrib
from sb3_trpo.critic import CriticFit, ValueBatch, fit_critic
from sb3_trpo.fast.critic import mlp_critic
from sb3_trpo.fast.gauss_newton import gauss_newton_fisher
from sb3_trpo.fast.network import read_actor, read_critic
from sb3_trpo.files import path_to_write, written_whole
from sb3_trpo.finite import NonFiniteError, finite_rollout, finite_statistics, unusable
from sb3_trpo.objective import Batch, PolicyProblem, normalize_advantages, unvalidated_distributions
from sb3_trpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.report import PhaseClock, UpdateReport, dump_pending
from sb3_trpo.rollout import (
    collect_rollouts,
    explained_by_values,
    is_sb3s_own,
    lean_actor,
    relabel_returns,
    whole_rollout,
)
from sb3_trpo.saved import saved_names
from sb3_trpo.trust_region import TrustRegionStep, reached_by, refused_step, trust_region_step
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters, flatten

SelfTRPO = TypeVar("SelfTRPO", bound="TRPO")


class TRPO(OnPolicyAlgorithm):
    """
    Trust Region Policy Optimization (TRPO).

    Paper: Schulman et al. 2015, https://arxiv.org/abs/1502.05477. Takes the arguments of ``sb3_contrib.TRPO``; what differs
    in their meaning is said here and in the README.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: The learning rate of the value function, it can be a function of the current progress remaining
        (from 1 to 0). The policy has none: its step is as long as the trust region allows
    :param n_steps: The number of steps to run for each environment per update
        (the batch is ``n_steps * n_envs`` transitions, and at least 2 with ``normalize_advantage``)
    :param batch_size: Minibatch size of the value function fit
    :param gamma: Discount factor
    :param cg_max_steps: Largest number of conjugate gradient iterations for the direction of the step
    :param cg_damping: Added to the diagonal of the Fisher matrix for the direction; the length of the step is that of the
        undamped matrix. It can be a function of the current progress remaining (from 1 to 0)
    :param line_search_shrinking_factor: Step-size reduction factor α of the line search (the candidates are
        ``theta_old + α^j * full_step``)
    :param line_search_max_iter: Largest number of candidates of the line search
    :param n_critic_updates: Number of passes over the rollout of the value function fit, per policy update
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE;
        -1 means only at the beginning of the rollout
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param normalize_advantage: Whether to normalize the advantages over the rollout
    :param target_kl: The limit δ on the mean over states of KL(old policy ‖ new policy), in nats, summed over action
        dimensions. Measured after every step, and never exceeded. It can be a function of the current progress remaining
        (from 1 to 0)
    :param sub_sampling_factor: Use one state in n, drawn at random, for the Fisher matrix; gradient, KL and line search see
        all of them. See p. 40-42 of John Schulman's thesis, http://joschu.net/docs/thesis.pdf
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: The log location for tensorboard (if None, no logging)
    :param policy_kwargs: Additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for debug
        messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible. A small perceptron acts and its critic is fitted on
        the CPU all the same, unless ``fast=False``: that takes less time
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param fast: Whether to use, where they cover the policy, the faster ways of collecting experience, multiplying with the
        Fisher matrix and fitting the critic; the results are those of the plain ways up to rounding and, while collecting
        with perceptrons, up to the random numbers drawn. ``verbose=1`` says which are in use
    :param error_if_nonfinite: Whether a reward, observation or action that is NaN or infinite is an error, raised at once and
        before anything is updated. Otherwise, or if a ``VecCheckNan`` wraps the environment, training goes on, and an update
        from such a rollout leaves the policy as it is
    :param std_damping: What is added to the Fisher matrix for the standard deviations of continuous actions, in place of
        ``cg_damping``. That of a Gaussian is 2 there: at 4 they learn half as fast as at 1, and explore longer. ``None`` adds
        ``cg_damping`` there too
    :param critic_gae_lambda: λ of the returns that the value function is fitted to, in place of ``gae_lambda`` (decoupled
        GAE; Yuan et al. 2025, https://arxiv.org/abs/2503.01491). Closer to 1 than that of the advantages it sees far rewards
        sooner, while the gradient keeps the small variance of short ones. ``None`` takes ``gae_lambda`` there too
    :raises TypeError: naming the argument and the value received, if it is not of the right type
    :raises ValueError: naming the argument and the value received, if it cannot work
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    last_update: UpdateReport | None = None
    """What the latest call of :meth:`train` did, for whoever wants to look."""

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float | Schedule = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | Schedule = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        fast: bool = True,
        error_if_nonfinite: bool = True,
        std_damping: float | None = None,
        critic_gae_lambda: float | None = None,
    ):
        check_arguments(locals())
        check_policy(policy, self.policy_aliases)
        if sde_sample_freq != -1 and not use_sde:
            warnings.warn(f"sde_sample_freq={sde_sample_freq} has no effect with use_sde=False", stacklevel=2)
        if env is not None or _init_setup_model:
            env = checked_env(env, verbose)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            # SB3's weights of a joint loss: TRPO has none
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=0.0,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.sub_sampling_factor = sub_sampling_factor
        self.fast = fast
        self.error_if_nonfinite = error_if_nonfinite
        self.std_damping = std_damping
        self.critic_gae_lambda = critic_gae_lambda
        self.paths_in_use: dict[str, str] = {}

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        # Also what `load` calls once it has put saved and given arguments in place
        check_arguments(vars(self))
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                # Not all of SB3 and torch takes NumPy's numbers, and they keep a zip from being loaded with weights only
                setattr(self, name, value.item())
        if self.normalize_advantage and self.n_steps * self.n_envs < 2:
            raise ValueError(
                f"n_steps * n_envs must be at least 2 with normalize_advantage=True, "
                f"got n_steps={self.n_steps} and n_envs={self.n_envs}"
            )
        check_policy_fits(self.policy_class, self.observation_space, self.policy_kwargs)
        super()._setup_model()
        if self.std_damping is not None and not hasattr(self.policy, "log_std"):
            raise ValueError(
                f"std_damping is for actions with a standard deviation, those of a Box, got {self.std_damping} for "
                f"{self.action_space}"
            )

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout may go beyond the end, and schedules are functions from 1 to 0
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect experience with the current policy (see SB3's ``OnPolicyAlgorithm.collect_rollouts`` for the parameters).

        With ``fast``, callbacks find ``None`` for ``values``, ``obs_tensor`` and maybe ``log_probs`` in their ``locals``.

        :raises ValueError: with ``error_if_nonfinite``, naming the environment and the step of the rollout, or the parameter
        """
        actor = lean_actor(self.policy, rollout_buffer, env.num_envs) if self.fast else None
        self._note_path("collection", "plain" if actor is None else "lean")
        if self.error_if_nonfinite:
            check_parameters({"policy": self.policy.state_dict()}, {"policy": self.policy.state_dict()}, self.policy)
            guard: Any = finite_rollout(env, self._last_obs, rollout_buffer)
        else:
            guard = unvalidated_distributions()
        try:
            with finite_statistics(self), guard as finite_env:
                stepped = finite_env or env
                if actor is None:
                    is_full = super().collect_rollouts(stepped, callback, rollout_buffer, n_rollout_steps)
                else:
                    is_full = collect_rollouts(self, actor, env, stepped.step, callback, rollout_buffer, n_rollout_steps)
        except NonFiniteError:
            # The next call of `learn` is not to go on in the middle of it
            self._last_obs = None
            raise
        if is_full and self.critic_gae_lambda is not None:
            relabel_returns(rollout_buffer, self.critic_gae_lambda)
        return is_full

    def train(self) -> None:
        """Update the policy inside the trust region, then the critic, using the current rollout buffer."""
        for name in SCHEDULES:
            self._now(name)  # before anything moves: a schedule may return what cannot work
        # Eval mode throughout: with dropout or batch statistics the ratio would not start at 1
        self.policy.set_training_mode(False)
        self._update_learning_rate(self.policy.optimizer)
        clock = PhaseClock()

        batch = self._full_batch()
        with unvalidated_distributions():
            actor_parameters, critic_parameters = self._split_parameters(batch)
            problem = self._policy_problem(batch, actor_parameters)
            step = self._trust_region_step(problem, clock.begin)
            clock.begin("critic")
            critic = self._fit_critic(batch, critic_parameters, partial(self._is_kept, problem, step))
        clock.stop()

        self._n_updates += 1
        self.last_update = self._report(problem, step, critic, clock.seconds)
        self.last_update.record(self.logger)

    def _now(self, name: str) -> float:
        """Return what an argument that may be a schedule is at this point of the training."""
        return value_at(name, getattr(self, name), progress_remaining=self._current_progress_remaining)

    def _policy_problem(self, batch: Batch, parameters: Parameters) -> PolicyProblem:
        """Return the trust-region problem of a rollout, around the present policy."""
        return PolicyProblem(
            self._distribution,
            batch,
            parameters,
            fisher_batch=batch.thinned(self.sub_sampling_factor),
            chunk_size=self._chunk_size(),
            fast_fisher=self._fast_fisher,
        )

    def _trust_region_step(self, problem: PolicyProblem, phase: Callable[[str], None] = lambda name: None) -> TrustRegionStep:
        """Move the policy's parameters as far as the arguments of this model allow; ``phase`` hears what begins."""
        status = unusable(self.rollout_buffer, problem.parameters)
        if status:
            return refused_step(status)
        return trust_region_step(
            problem,
            max_kl=self._now("target_kl"),
            damping=self._damping(problem.parameters),
            cg_max_iterations=self.cg_max_steps,
            shrinking_factor=self.line_search_shrinking_factor,
            max_candidates=self.line_search_max_iter,
            phase=phase,
        )

    def _damping(self, parameters: Parameters) -> float | th.Tensor:
        """Return what to add to the diagonal of the Fisher matrix: a number, or one for each variable, shape (n_params,)."""
        damping = self._now("cg_damping")
        if self.std_damping is None:
            return damping
        log_std = self.policy.log_std
        return flatten([th.full_like(p, self.std_damping if p is log_std else damping) for p in parameters])

    def _is_kept(self, problem: PolicyProblem, step: TrustRegionStep) -> bool:
        """Whether the policy is still what the step made of it: a critic may move what no graph shows (detached features)."""
        _, mean_kl = problem.evaluate()
        max_kl = self._now("target_kl")
        return (mean_kl <= max_kl or not step.accepted) and not abs(mean_kl - step.mean_kl) > 1e-3 * max_kl

    def _report(
        self, problem: PolicyProblem, step: TrustRegionStep, critic: CriticFit | None, phase_seconds: dict[str, float]
    ) -> UpdateReport:
        """Describe the update that led to the present policy."""
        log_std = getattr(self.policy, "log_std", None)
        return UpdateReport(
            step=step,
            critic=critic,
            n_updates=self._n_updates,
            max_kl=self._now("target_kl"),
            damping=self._now("cg_damping"),
            explained_variance=explained_by_values(self.rollout_buffer),
            entropy=problem.entropy(of_new=step.accepted),
            std=None if log_std is None else log_std.exp().mean().item(),
            phase_seconds=phase_seconds,
        )

    # What variants of TRPO override: how to read their buffer, and how to ask their policy

    def _full_batch(self) -> Batch:
        """Return the whole rollout in any order, with the advantages that the surrogate uses."""
        data = whole_rollout(self.rollout_buffer)
        actions = data.actions
        if isinstance(self.action_space, spaces.Discrete):
            # The buffer holds them as floats
            actions = actions.long().flatten()
        weights = th.full_like(data.advantages, 1.0 / len(data.advantages))
        advantages = normalize_advantages(data.advantages, weights) if self.normalize_advantage else data.advantages
        return Batch(data.observations, actions, data.old_log_prob, advantages, data.returns, weights)

    def _distribution(self, batch: Batch) -> Distribution:
        """Return the action distribution of the policy at the observations of a batch."""
        return self.policy.get_distribution(batch.observations)

    def _value_epochs(self, batch: Batch) -> Iterator[Iterator[ValueBatch]]:
        """Yield for each pass of the value fit over the rollout its minibatches."""
        whole = ValueBatch(batch.observations, batch.returns)
        for _ in range(self.n_critic_updates):
            if is_sb3s_own(self.rollout_buffer):
                # Not through the buffer: it would bring every minibatch to the device anew
                order = th.as_tensor(np.random.permutation(len(batch.returns)), device=batch.returns.device)
                yield map(whole.select, order.split(self.batch_size))
            else:
                yield (ValueBatch(data.observations, data.returns) for data in self.rollout_buffer.get(self.batch_size))

    def _fast_fisher(self, chunks: Sequence[Batch], parameters: Parameters) -> MatrixVectorProduct | None:
        covered = self.fast and type(self)._distribution is TRPO._distribution
        product = gauss_newton_fisher(self.policy, chunks, parameters) if covered else None
        self._note_path("Fisher products", "plain" if product is None else "Gauss-Newton")
        return product

    def _fit_critic(
        self, batch: Batch, parameters: list[th.nn.Parameter], is_policy_kept: Callable[[], bool]
    ) -> CriticFit | None:
        """Fit the values to the returns of the rollout, moving these parameters only."""
        covered = self.fast and is_sb3s_own(self.rollout_buffer) and type(self)._value_epochs is TRPO._value_epochs
        covered = covered and read_actor(self.policy) is not None  # else the policy could depend on the critic unseen
        batch_size = min(self.batch_size, len(batch.returns))
        mlp = mlp_critic(self.policy, parameters, batch_size) if covered else None
        self._note_path("critic fit", "plain" if mlp is None else "written out")
        if mlp is None:
            return fit_critic(
                self.policy.predict_values,
                self.policy.optimizer,
                parameters,
                self._value_epochs(batch),
                holds=is_policy_kept,
            )
        assert isinstance(batch.observations, th.Tensor)
        return mlp.fit(batch.observations, batch.returns, n_epochs=self.n_critic_updates, batch_size=batch_size)

    def _note_path(self, phase: str, path: str) -> None:
        """Keep which way a phase is going, and say so when it changes."""
        if self.paths_in_use.get(phase) != path:
            self.paths_in_use[phase] = path
            if self.verbose >= 1:
                self.logger.info(f"{phase}: {path} path")

    def _chunk_size(self) -> int:
        """Return how many transitions to differentiate at a time: full speed, in a few hundred megabytes."""
        return min(8192, max(128, 2**22 // spaces.flatdim(self.observation_space)))

    def _split_parameters(self, batch: Batch) -> tuple[list[th.nn.Parameter], list[th.nn.Parameter]]:
        """
        Ask the autograd graph which parameters make the action distribution, and which the values alone.

        A parameter of both is the actor's: if the value fit moved it, the policy would leave the trust region.
        """
        # What a chain of layers depends on does not depend on the state; other networks may take a branch
        is_chain = read_actor(self.policy) is not None and read_critic(self.policy) is not None
        probe = batch.select(slice(0, 1 if is_chain else self._chunk_size()))
        everything = list(self.policy.parameters())
        actor = reached_by(self._distribution(probe).log_prob(probe.actions), everything)
        values = reached_by(self.policy.predict_values(probe.observations), everything)
        actors = set(actor)
        return actor, [parameter for parameter in values if parameter not in actors]

    def learn(
        self: SelfTRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "TRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTRPO:
        """
        Train for at least a number of environment steps (see SB3's ``BaseAlgorithm.learn`` for the parameters).

        SB3 writes its log before each update; here what the last one did is written too, once training has ended.
        """
        self._logs_anything = log_interval is not None
        super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        if self._logs_anything:
            dump_pending(self.logger, self.num_timesteps)
        return self

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the log (see SB3's ``OnPolicyAlgorithm.dump_logs``); callbacks call it too, whatever the interval."""
        self._logs_anything = True
        super().dump_logs(iteration)

    @classmethod
    def load(
        cls: type[SelfTRPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfTRPO:
        """
        Load the model from a zip-file (see SB3's ``BaseAlgorithm.load`` for the parameters).

        A zip of ``sb3_contrib.TRPO`` is opened too, its ``target_kl`` and ``cg_damping`` converted with a warning; what is
        given here is in our units.

        :raises TypeError: if a further keyword is not an argument of the constructor
        :raises ValueError: if the file holds no TRPO, or one for other spaces than those of the environment
        """
        names = saved_names(path)
        constructors = [parent.__init__ for parent in cls.__mro__ if issubclass(parent, TRPO)]
        known = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
        known -= {"self", "policy", "_init_setup_model", "args", "kwargs"}
        for name, value in kwargs.items():
            if name not in known:
                raise TypeError(f"load() got an unexpected keyword argument {name}={value!r}, expected one of {sorted(known)}")
        given = {"device": device, "custom_objects": custom_objects}
        check_arguments(kwargs | given | {"print_system_info": print_system_info, "force_reset": force_reset})
        if env is not None:
            env = checked_env(env)
        if "stats_window_size" in kwargs:
            # SB3 keeps it under another name, and the buffer that it sizes apart
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
            kwargs["ep_info_buffer"] = kwargs["ep_success_buffer"] = None
        for name in {"policy_kwargs", "rollout_buffer_kwargs"} & kwargs.keys():
            kwargs[name] = kwargs[name] or {}
        try:
            model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        except (TypeError, ValueError) as error:
            # SB3 and the networks name what does not fit, not whose doing it is
            in_place = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise (kind(f"{error} (with {in_place} in place of what was saved)") if kwargs else error) from error
        if is_saved_by_contrib(names):
            convert_loaded(model, {*kwargs, *(custom_objects or {})})
        return model

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """
        Set the environment to learn from (see SB3's ``BaseAlgorithm.set_env`` for the parameters).

        :raises ValueError: if its spaces or the number of its copies are not those of the model, which stays as it is
        """
        env = checked_env(env, self.verbose)
        n_envs = env.num_envs if isinstance(env, VecEnv) else 1
        if n_envs != self.n_envs:
            raise ValueError(
                f"env must hold {self.n_envs} environments as the model's own does, got {n_envs}; "
                "`load(path, env)` takes a model to another number of them"
            )
        super().set_env(env, force_reset)

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
        check_parameters(params, self.get_parameters(), self.policy, exact_match=exact_match)
        before: dict[str, Any] = copy.deepcopy(self.get_parameters())
        try:
            super().set_parameters(params, exact_match, device)
        except Exception:
            super().set_parameters(before)
            raise

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "last_update", "paths_in_use", "_logs_anything"]
