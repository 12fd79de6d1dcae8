"""Trust Region Policy Optimization for Stable-Baselines3."""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.contrib import convert_loaded, is_saved_by_contrib
from sb3_trpo.critic import Pass, ValueBatch
from sb3_trpo.distributed import Processes
from sb3_trpo.fast.actors import lean_actor
from sb3_trpo.fast.gauss_newton import gauss_newton_fisher
from sb3_trpo.guards.arguments import Rules, check_arguments
from sb3_trpo.guards.environments import AnyEnv
from sb3_trpo.hyperparameters import OF_EVERY_TRPO, TRPO_RULES, defaults_by_model
from sb3_trpo.metrics import PhaseClock, UpdateReport
from sb3_trpo.objective import Batch
from sb3_trpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.rollout import RelabelledReturns, collect_rollouts, step_weights, whole_rollout
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters
from sb3_trpo.update import TrustRegionUpdate

SelfTRPO = TypeVar("SelfTRPO", bound="TRPO")


class TRPO(TrustRegionUpdate):
    """
    Trust Region Policy Optimization (TRPO).

    Paper: Schulman et al. 2015, https://arxiv.org/abs/1502.05477. Takes the arguments of ``sb3_contrib.TRPO``; what differs
    in their meaning is said here and on the page of differences.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :type policy: str | type[ActorCriticPolicy]
    :param env: The environment to learn from (if registered in Gymnasium, can be str or EnvSpec)
    :param learning_rate: The learning rate of the value function, it can be a function of the current progress remaining
        (from 1 to 0). The policy has none: its step is as long as the trust region allows
    :param n_steps: The number of steps to run for each environment per update
        (the batch is ``n_steps * n_envs`` transitions, and at least 2 with ``normalize_advantage``)
    :param batch_size: Minibatch size of the value function fit
    :param gamma: Discount factor
    :param cg_max_steps: Largest number of conjugate gradient iterations for the direction of the step
    :param cg_damping: Added to the diagonal of the Fisher matrix for the direction; the length of the step is that of the
        undamped matrix. It can be a function of the current progress remaining (from 1 to 0). ``None`` is 0.1 for each
        dimension of a Box or MultiBinary action, and 0.1 for Discrete and MultiDiscrete ones: sb3-contrib's default. See
        ``std_damping`` for standard deviations
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
        (from 1 to 0). ``None`` is 0.01 for each dimension, counted as those of ``cg_damping``
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
        Setting it to auto, the code will be run on the GPU if possible. Small perceptrons act, and have their critic fitted,
        on the CPU even then, since it takes less time; ``fast=False`` turns this off
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param fast: Whether to use, where they cover the policy, the faster ways of collecting experience, multiplying with the
        Fisher matrix and fitting the critic; the results are those of the plain ways up to rounding and, while collecting
        with perceptrons, up to the random numbers drawn. ``verbose=1`` says which are in use
    :param error_if_nonfinite: Whether a reward, observation or action that is NaN or infinite is an error, raised at once and
        before anything is updated. Otherwise, or if a ``VecCheckNan`` wraps the environment, training goes on, and an update
        from such a rollout leaves the policy as it is
    :param std_damping: Damping for the log standard deviations of continuous actions, in place of ``cg_damping``. Their
        Fisher information is 2: at 4 they learn half as fast as at 1, and explore longer. ``None`` is 0 if ``cg_damping`` is
        ``None`` too and they are one parameter for all states (no gSDE). Otherwise, and on a model that is built, it is
        ``cg_damping``
    :param critic_gae_lambda: λ of the returns that the value function is fitted to, in place of ``gae_lambda`` (decoupled
        GAE; Yuan et al. 2025, https://arxiv.org/abs/2503.01491). Closer to 1 than that of the advantages it sees far rewards
        sooner, while the gradient keeps the small variance of short ones. ``None`` takes ``gae_lambda`` there too
    :param processes: what :func:`sb3_trpo.distributed.join` returns: the processes that make each update together, from the
        rollouts of all. ``batch_size``, ``n_steps`` and ``stats_window_size`` are those of each, time steps those of all
    :raises TypeError: naming the argument and the value received, if it is not of the right type
    :raises ValueError: naming the argument and the value received, if it cannot work
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    rules: ClassVar[Rules] = TRPO_RULES
    expected_in_zip: ClassVar[Set[str]] = OF_EVERY_TRPO
    saved_by: ClassVar[str] = "sb3_trpo.TRPO or sb3_contrib.TRPO"
    kind: ClassVar[str] = "TRPO"
    kind_of_old_files: ClassVar[str] = "TRPO"

    last_update: UpdateReport | None = None
    """What the latest call of :meth:`train` did, for whoever wants to look."""

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: AnyEnv,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float | Schedule | None = None,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | Schedule | None = None,
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
        processes: Processes | None = None,
    ):
        check_arguments(self.rules, locals())
        self.processes = processes
        if sde_sample_freq != -1 and not use_sde:
            warnings.warn(f"sde_sample_freq={sde_sample_freq} has no effect with use_sde=False", stacklevel=2)
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
            verbose=verbose if self.processes.rank == 0 else 0,
            device=device,
            seed=seed,
            error_if_nonfinite=error_if_nonfinite,
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
        self.std_damping = std_damping
        self.critic_gae_lambda = critic_gae_lambda
        self.paths_in_use: dict[str, str] = {}

        if _init_setup_model:
            self._setup_model()

    def train(self) -> None:
        """Update the policy inside the trust region, then the critic, using the current rollout buffer."""
        self._check_before_update()
        # Eval mode throughout: with dropout or batch statistics the ratio would not start at 1
        self.policy.set_training_mode(False)
        self._update_learning_rate(self.policy.optimizer)
        clock = PhaseClock()

        with self._together(), self._update_of_the_policy():
            batch = self._full_batch()
            actor_parameters, critic_parameters = self._split_parameters(batch)
            problem = self._policy_problem(batch, actor_parameters)
            step = self._trust_region_step(problem, clock.begin)
            clock.begin("critic")
            critic = self._fit_critic(batch, critic_parameters, partial(self._is_kept, problem, step))
            clock.stop()
            self._n_updates += 1
            self.last_update = self._report(problem, step, critic, clock.seconds)
        self._log(self.last_update)

    def _setup_model(self) -> None:
        super()._setup_model()
        for name, default in defaults_by_model(vars(self), self.action_space, self.policy).items():
            setattr(self, name, default)
            self._say(f"{name}={default:g}, the default for {self.action_space}")

    def _collect(self, env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        if self.critic_gae_lambda is not None:
            callback = RelabelledReturns(callback, rollout_buffer, self.critic_gae_lambda)
        collect = self._lean_collection(env, rollout_buffer) if self.fast else None
        self._note_path("collection", "plain" if collect is None else "lean")
        return (collect or self._plain_collection)(env, callback, rollout_buffer, n_rollout_steps)

    def learn(
        self: SelfTRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "TRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTRPO:
        """Train for at least a number of environment steps (see SB3's ``BaseAlgorithm.learn`` for the parameters)."""
        with self.processes.in_step():
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _finish_load(self, saved: Collection[str], given: Collection[str]) -> None:
        if is_saved_by_contrib(saved):
            convert_loaded(self, given)

    # ------------------------------------------------------------------------------------------------------------------
    # Hooks: what variants of TRPO override, and nothing else. A variant that overrides one keeps every fast path that
    # its hook does not touch.
    # ------------------------------------------------------------------------------------------------------------------

    def _lean_collection(self, env: VecEnv, rollout_buffer: RolloutBuffer) -> Callable[..., bool] | None:
        """
        Return what collects a rollout quickly.

        Called by ``collect_rollouts`` with its environment and buffer, if ``fast``. Returns a function with the parameters and
        the result of ``OnPolicyAlgorithm.collect_rollouts``, or ``None`` where the plain collection must do it.
        """
        actor = lean_actor(self, rollout_buffer, env.num_envs)
        return None if actor is None else partial(collect_rollouts, self, actor)

    def _plain_collection(self, env: VecEnv, callback: Any, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        """
        Collect a rollout as SB3 or sb3-contrib does.

        Called by ``collect_rollouts`` where there is no lean collection; parameters and result are those of
        ``OnPolicyAlgorithm.collect_rollouts``.
        """
        return super()._collect(env, callback, rollout_buffer, n_rollout_steps)

    def _full_batch(self) -> Batch:
        """
        Return the whole rollout, in any order, with the advantages that the surrogate uses.

        Called by ``train`` and by ``inspect``; it draws no random number.
        """
        data = whole_rollout(self.rollout_buffer)
        actions = data.actions
        if isinstance(self.action_space, spaces.Discrete):
            # The buffer holds them as floats
            actions = actions.long().flatten()
        weights = step_weights(self.rollout_buffer, self._wasted_steps, data.advantages, self._peers.total)
        advantages = self._normalized(data.advantages, weights)
        return Batch(data.observations, actions, data.old_log_prob, advantages, data.returns, weights, data.action_masks)

    def _distribution(self, batch: Batch) -> Distribution:
        """
        Return the action distribution of the policy for a batch, one of SB3's, with a graph to the parameters.

        Called for every gradient, Fisher product and candidate of the line search. It may be the same object each time.
        """
        return self.policy.get_distribution(batch.observations)

    def _values(self, batch: Batch | ValueBatch) -> th.Tensor:
        """
        Return the values of a minibatch, shape (n,), with a graph to the parameters.

        Called by the value fit for each minibatch, and with a few transitions to see what the values depend on.
        """
        return self.policy.predict_values(batch.observations).flatten()

    def _value_epochs(self, batch: Batch) -> Iterator[Iterable[ValueBatch]]:
        """
        Yield for each pass of the value fit its minibatches.

        Called once an update, by the value fit, with the whole rollout.
        """
        whole, counted = ValueBatch(batch.observations, batch.returns), batch.weights.nonzero().squeeze(1)
        for _ in range(self.n_critic_updates):
            if self._is_in_batch():
                # Not through the buffer: it would bring every minibatch to the device anew
                order = th.as_tensor(self._random.permutation(len(counted)), device=counted.device)
                yield Pass(whole, counted[order], self.batch_size)
            else:
                yield (ValueBatch(data.observations, data.returns) for data in self.rollout_buffer.get(self.batch_size))

    def _fast_fisher(self, chunks: Sequence[Batch], parameters: Parameters) -> MatrixVectorProduct | None:
        """
        Return the product v -> F v without differentiating twice, or ``None`` where the plain product must do it.

        Called once an update, if ``fast``, with the pieces of the rollout that make the Fisher matrix, and the variables.
        """
        product = gauss_newton_fisher(self.policy, chunks, parameters, self._distribution)
        return product if self._adds_nothing("_distribution", chunks) else None

    def _chunk_size(self) -> int:
        """
        Return how many transitions to differentiate at a time: full speed, in a few hundred megabytes.

        Called once an update.
        """
        return min(8192, max(128, 2**22 // spaces.flatdim(self.observation_space)))
