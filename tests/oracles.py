"""Slow and obvious: what the package computes, by another definition. For the tests only."""

import itertools
import math
from collections.abc import Sequence

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Normal

Parameters = Sequence[th.nn.Parameter]


def relative_error(value: th.Tensor, expected: th.Tensor) -> float:
    """Return ‖value - expected‖ / ‖expected‖."""
    return float((value - expected).norm() / expected.norm())


def gradient_row(scalar: th.Tensor, parameters: Parameters) -> th.Tensor:
    """Differentiate with respect to one parameter after the other."""
    row = []
    for parameter in parameters:
        (gradient,) = th.autograd.grad(scalar, parameter, retain_graph=True, allow_unused=True)
        row.append(th.zeros(parameter.numel(), dtype=parameter.dtype) if gradient is None else gradient.flatten())
    return th.cat(row)


def all_actions(action_space: spaces.Space) -> list[th.Tensor]:
    """List every action of a finite space, joint ones for several dimensions."""
    if isinstance(action_space, spaces.Discrete):
        return [th.tensor(action) for action in range(int(action_space.n))]
    if isinstance(action_space, spaces.MultiDiscrete):
        return [th.tensor(action) for action in itertools.product(*map(range, action_space.nvec.tolist()))]
    assert isinstance(action_space, spaces.MultiBinary)
    (n,) = action_space.shape
    return [th.tensor(action, dtype=th.float64) for action in itertools.product((0, 1), repeat=n)]


def enumerated_fisher(policy: ActorCriticPolicy, observation: th.Tensor, parameters: Parameters) -> th.Tensor:
    """Σ_a π(a|s) ∇log π(a|s) ∇log π(a|s)ᵀ over every action a, for one state."""
    n_params = sum(parameter.numel() for parameter in parameters)
    fisher = th.zeros(n_params, n_params, dtype=th.float64)
    total_probability = 0.0
    for action in all_actions(policy.action_space):
        log_prob = policy.get_distribution(observation[None]).log_prob(action[None])[0]
        score = gradient_row(log_prob, parameters)
        probability = math.exp(float(log_prob.detach()))
        fisher += probability * th.outer(score, score)
        total_probability += probability
    assert math.isclose(total_probability, 1.0, rel_tol=1e-12)
    return fisher


def mean_and_std(policy: ActorCriticPolicy, observation: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Write the Gaussian's mean and standard deviation out by layers, shape (action_dim,) each."""
    latent = policy.mlp_extractor.forward_actor(observation[None].double())
    mean = policy.action_net(latent)[0]
    if not policy.use_sde:
        return mean, policy.log_std.exp()
    # gSDE: a = μ + latent·ε with ε_ij ~ N(0, σ_ij²), SB3 cuts the graph at the latent and adds 1e-6 to the variance
    variance = (latent.detach()[0][:, None] * policy.log_std.exp()).square().sum(dim=0)
    return mean, (variance + 1e-6).sqrt()


def gaussian_fisher(policy: ActorCriticPolicy, observation: th.Tensor, parameters: Parameters) -> th.Tensor:
    """JᵀMJ with the Fisher matrix M of (μ, σ), diag(1/σ², 2/σ²), and the Jacobian J of (μ, σ) row by row, for one state."""
    mean, std = mean_and_std(policy, observation)
    jacobian = th.stack([gradient_row(output, parameters) for output in (*mean, *std)])
    inner = th.cat([1 / std**2, 2 / std**2]).detach()
    return jacobian.T @ th.diag(inner) @ jacobian


def dense_fisher(policy: ActorCriticPolicy, observations: th.Tensor, weights: th.Tensor, parameters: Parameters) -> th.Tensor:
    """Average the Fisher matrix over states, one state after the other."""
    of_one_state = gaussian_fisher if isinstance(policy.action_space, spaces.Box) else enumerated_fisher
    return th.stack(
        [
            float(weight) * of_one_state(policy, observation, parameters)
            for observation, weight in zip(observations, weights, strict=True)
        ]
    ).sum(dim=0)


def log_density(policy: ActorCriticPolicy, observation: th.Tensor, action: th.Tensor) -> th.Tensor:
    """Write log π(a|s) out from the outputs of the network, for one state, shape ()."""
    if isinstance(policy.action_space, spaces.Box):
        mean, std = mean_and_std(policy, observation)
        return (-0.5 * ((action - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)).sum()
    logits = policy.action_net(policy.mlp_extractor.forward_actor(observation[None].double()))[0]
    if isinstance(policy.action_space, spaces.Discrete):
        return logits[int(action)] - th.log(logits.exp().sum())
    if isinstance(policy.action_space, spaces.MultiDiscrete):
        parts = logits.split(policy.action_space.nvec.tolist())
        return th.stack([part[int(a)] - th.log(part.exp().sum()) for part, a in zip(parts, action, strict=True)]).sum()
    ones = th.sigmoid(logits)
    return th.where(action == 1, ones, 1 - ones).log().sum()


def policy_gradient(
    policy: ActorCriticPolicy,
    observations: th.Tensor,
    actions: th.Tensor,
    advantages: th.Tensor,
    weights: th.Tensor,
    parameters: Parameters,
) -> th.Tensor:
    """Σ_i w_i A_i ∇log π(a_i|s_i), one transition after the other: no ratio, no old policy."""
    total = th.zeros(sum(parameter.numel() for parameter in parameters), dtype=th.float64)
    for observation, action, advantage, weight in zip(observations, actions, advantages, weights, strict=True):
        total += float(weight) * float(advantage) * gradient_row(log_density(policy, observation, action), parameters)
    return total


def normal_kl(old_mean: float, old_std: float, new_mean: float, new_std: float) -> float:
    """KL(old ‖ new) of two Gaussians in one dimension by quadrature of its definition."""
    old, new = Normal(th.tensor(old_mean).double(), old_std), Normal(th.tensor(new_mean).double(), new_std)
    x = th.linspace(old_mean - 12 * old_std, old_mean + 12 * old_std, 20001, dtype=th.float64)
    return float(th.trapezoid(old.log_prob(x).exp() * (old.log_prob(x) - new.log_prob(x)), x))


def first_acceptable(measured: Sequence[tuple[float, float]], max_kl: float) -> int | None:
    """Return the index of the first (gain, KL) that a trust region allows, ``None`` if there is none."""
    for j, (gain, kl) in enumerate(measured):
        if 0 < gain < math.inf and -max_kl <= kl <= max_kl:
            return j
    return None


def adam_on_squared_error(
    weights: th.Tensor,
    minibatches: Sequence[tuple[th.Tensor, th.Tensor]],
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[th.Tensor, list[float]]:
    """Kingma & Ba, algorithm 1, on the mean squared error of X w, its gradient by hand; also each loss before its step."""
    first_moment, second_moment, losses = th.zeros_like(weights), th.zeros_like(weights), []
    for t, (inputs, targets) in enumerate(minibatches, start=1):
        error = inputs @ weights - targets
        losses.append(float((error**2).sum() / len(error)))
        gradient = 2 / len(error) * inputs.T @ error
        first_moment = betas[0] * first_moment + (1 - betas[0]) * gradient
        second_moment = betas[1] * second_moment + (1 - betas[1]) * gradient**2
        corrected_first = first_moment / (1 - betas[0] ** t)
        corrected_second = second_moment / (1 - betas[1] ** t)
        weights = weights - learning_rate * corrected_first / (corrected_second.sqrt() + eps)
    return weights, losses
