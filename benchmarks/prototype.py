"""What is not in the library and may never be: features that an ablation asks about."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th

from sb3_trpo import TRPO
from sb3_trpo.critic import CriticFit
from sb3_trpo.objective import Batch, PolicyProblem, normalize_advantages
from sb3_trpo.trust_region import flat_gradient
from sb3_trpo.trust_region.fisher import Parameters, flatten


class TimeLimitEnds(gym.Wrapper):
    """An environment in which an episode cut off by its time limit is one that ended: nothing is taken to follow."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Return what the environment does, with truncation told as termination."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info


class PastRollout(NamedTuple):
    """
    What a rollout leaves behind, each with a leading (n_steps, n_envs).

    :param observations: with those after the last step: n_steps + 1 of them
    :param actions: that were taken
    :param log_probs: under the policy that took them
    :param rewards: with the values at time limits
    :param goes_on: whether the next observation is of the same episode
    """

    observations: th.Tensor
    actions: th.Tensor
    log_probs: th.Tensor
    rewards: th.Tensor
    goes_on: th.Tensor


class EntropyBonus(PolicyProblem):
    """
    The trust-region problem with a multiple of the entropy added to the surrogate, for Gaussians with one std for all states.

    :param problem: without the bonus
    :param coefficient: of the entropy in nats, with advantages of standard deviation one
    :param log_std: shape (action_dim,), one of the parameters
    """

    def __init__(self, problem: PolicyProblem, coefficient: float, log_std: th.Tensor):
        vars(self).update(vars(problem))  # built by the algorithm, around the same old policy
        self.coefficient = coefficient
        self.log_std = log_std

    def surrogate_gradient(self) -> tuple[float, th.Tensor]:
        """Return L(θ_old) and its gradient, with the bonus."""
        surrogate, gradient = super().surrogate_gradient()
        bonus = self.coefficient * self.log_std.sum()
        return surrogate + bonus.item(), gradient + flat_gradient(bonus, self.parameters)

    def evaluate(self) -> tuple[float, float]:
        """Return (L(θ) with the bonus, mean KL) at the present parameters."""
        surrogate, mean_kl = super().evaluate()
        return surrogate + self.coefficient * self.log_std.sum().item(), mean_kl


class ChangedGradient(PolicyProblem):
    """
    The trust-region problem with another gradient than its own.

    :param problem: with its own gradient
    :param change: maps that, shape (n_params,), to the one to use
    """

    def __init__(self, problem: PolicyProblem, change: Callable[[th.Tensor], th.Tensor]):
        vars(self).update(vars(problem))  # built by the algorithm, around the same old policy
        self.change = change

    def surrogate_gradient(self) -> tuple[float, th.Tensor]:
        """Return L(θ_old) and the changed gradient."""
        surrogate, gradient = super().surrogate_gradient()
        return surrogate, self.change(gradient)


class PrototypeTRPO(TRPO):
    """
    TRPO with the features on trial.

    :param normalize_value_targets: whether to fit the critic to returns of mean zero and standard deviation one. Its last
        layer is rescaled before and after, so that its values are those of the returns as they are; van Hasselt et al. 2016,
        https://arxiv.org/abs/1602.07714, with the moments of the present rollout
    :param n_past_rollouts: how many rollouts before the present one each update uses too, their actions weighted by how
        likely the present policy would take them; Queeney et al. 2021, https://arxiv.org/abs/2111.00072, with uniform
        weights. Boxes only
    :param ent_coef: what an entropy of one nat adds to the surrogate. Boxes only
    :param std_rate: how fast standard deviations learn, beside the natural gradient's 1. Boxes only
    :param momentum: share of the gradients before in the gradient of an update
    :param std_range: the standard deviation of all actions, which is not learned then: at the beginning and at the end of
        training, linear in between. Set between updates, where the trust region does not see it
    :param n_critic_rollouts: how many rollouts the critic is fitted to, the present one and those before it
    :param fixed_std: what the policies' own argument of this name does, for the settings on record that came before it
    """

    def __init__(
        self,
        *args: Any,
        normalize_value_targets: bool = False,
        n_past_rollouts: int = 0,
        fixed_std: bool = False,
        ent_coef: float = 0.0,
        std_rate: float = 1.0,
        std_range: Sequence[float] = (),
        momentum: float = 0.0,
        n_critic_rollouts: int = 1,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.policy.log_std.requires_grad_(not fixed_std)
        if (ent_coef != 0.0) + (std_rate != 1.0) + (momentum != 0.0) > 1:
            # Each wraps the problem, and would hide what another did to it
            raise ValueError(f"one at a time of ent_coef, std_rate and momentum, got {ent_coef}, {std_rate} and {momentum}")
        self.normalize_value_targets = normalize_value_targets
        self.entropy_coefficient = ent_coef
        self.std_rate = std_rate
        self.std_range = std_range
        self.momentum = momentum
        self.average_gradient: th.Tensor | None = None
        self.fitted_to: deque[tuple[th.Tensor, th.Tensor]] = deque(maxlen=n_critic_rollouts)
        self.past: deque[PastRollout] = deque(maxlen=n_past_rollouts + 1)

    def _policy_problem(self, batch: Batch, parameters: Parameters) -> PolicyProblem:
        problem = super()._policy_problem(batch, parameters)
        if self.entropy_coefficient != 0.0:
            problem = EntropyBonus(problem, self.entropy_coefficient, self.policy.log_std)
        if self.std_rate != 1.0:
            # The Fisher matrix couples no std with anything else: this multiplies its share of the direction too
            rates = flatten([th.full_like(p, self.std_rate if p is self.policy.log_std else 1.0) for p in parameters])
            problem = ChangedGradient(problem, rates.mul)
        if self.momentum != 0.0:
            problem = ChangedGradient(problem, self._averaged)
        return problem

    def _averaged(self, gradient: th.Tensor) -> th.Tensor:
        """Return the average of a gradient with those before."""
        before = gradient if self.average_gradient is None else self.average_gradient
        self.average_gradient = before.lerp(gradient, 1.0 - self.momentum)
        return self.average_gradient

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Collect with the standard deviation that is due, where there is a schedule of it."""
        if self.std_range:
            first, last = self.std_range
            std = last + (first - last) * self._current_progress_remaining
            self.policy.log_std.requires_grad_(False).fill_(np.log(std))
        return super().collect_rollouts(*args, **kwargs)

    def _full_batch(self) -> Batch:
        if self.past.maxlen == 1:
            return super()._full_batch()
        buffer, last_obs, last_starts = self.rollout_buffer, self._last_obs, self._last_episode_starts
        assert isinstance(last_obs, np.ndarray) and last_starts is not None
        observations = np.concatenate([buffer.observations, last_obs[None]]).astype(np.float32)
        goes_on = 1.0 - np.concatenate([buffer.episode_starts[1:], last_starts[None].astype(np.float32)])
        arrays = (observations, buffer.actions, buffer.log_probs, buffer.rewards, goes_on)
        self.past.append(PastRollout(*(th.as_tensor(array.copy(), device=self.device) for array in arrays)))
        parts = [self._seen_from_here(rollout) for rollout in self.past]
        whole = Batch(*map(th.cat, zip(*parts, strict=True)))
        weights = whole.weights / len(parts)
        advantages = normalize_advantages(whole.advantages, weights) if self.normalize_advantage else whole.advantages
        return whole._replace(weights=weights, advantages=advantages)

    @th.no_grad()
    def _seen_from_here(self, rollout: PastRollout) -> Batch:
        """Estimate the present policy's advantages and returns; Espeholt et al. 2018, equation 1, with λ in the traces."""
        n_steps, n_envs = rollout.rewards.shape
        observations, actions = rollout.observations[:-1].flatten(0, 1), rollout.actions.flatten(0, 1)
        log_ratio = self.policy.get_distribution(observations).log_prob(actions).view(n_steps, n_envs) - rollout.log_probs
        trace = log_ratio.exp().clamp(max=1.0)
        values = self.policy.predict_values(rollout.observations.flatten(0, 1)).view(n_steps + 1, n_envs)
        advantages = rollout.rewards + self.gamma * values[1:] * rollout.goes_on - values[:-1]
        decay = self.gamma * self.gae_lambda * rollout.goes_on[:-1] * trace[1:]
        for step in reversed(range(n_steps - 1)):
            advantages[step] += decay[step] * advantages[step + 1]
        returns = (values[:-1] + trace * advantages).flatten()
        weights = th.full_like(returns, 1.0 / len(returns))
        return Batch(observations, actions, rollout.log_probs.flatten(), advantages.flatten(), returns, weights)

    def _fit_critic(self, batch: Batch, *arguments: Any) -> CriticFit | None:
        if self.fitted_to.maxlen != 1:
            assert isinstance(batch.observations, th.Tensor)
            self.fitted_to.append((batch.observations, batch.returns))
            observations, returns = map(th.cat, zip(*self.fitted_to, strict=True))
            batch = batch._replace(observations=observations, returns=returns)
        if not self.normalize_value_targets:
            return super()._fit_critic(batch, *arguments)
        last_layer, returns = self.policy.value_net, batch.returns
        mean, std = float(returns.mean()), max(float(returns.std()), 1e-8)
        with th.no_grad():
            last_layer.weight.div_(std)
            last_layer.bias.sub_(mean).div_(std)
        fit = super()._fit_critic(batch._replace(returns=(returns - mean) / std), *arguments)
        with th.no_grad():
            last_layer.weight.mul_(std)
            last_layer.bias.mul_(std).add_(mean)
        if fit is None:
            return None
        losses = {name: getattr(fit, name) * std**2 for name in ("value_loss", "first_value_loss", "last_value_loss")}
        return fit._replace(**losses)
