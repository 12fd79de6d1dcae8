"""The problems that the tests are about, as data: small policies of every kind, toy problems, matrices."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trpo.objective import Batch, PolicyProblem
from sb3_trpo.policies import MlpPolicy
from sb3_trpo.trust_region import flatten, reached_by, unflatten

ACTION_SPACES: dict[str, spaces.Space] = {
    "diag_gaussian": spaces.Box(-1.0, 1.0, (3,)),
    "gsde": spaces.Box(-1.0, 1.0, (2,)),
    "categorical": spaces.Discrete(4),
    "multi_categorical": spaces.MultiDiscrete([3, 2, 4]),
    "bernoulli": spaces.MultiBinary(4),
}


class WithoutSecondDerivative(th.autograd.Function):
    """A sine the backward pass of which says that it cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class DoubleExtractor(BaseFeaturesExtractor):
    """Back to float64: SB3's ``preprocess_obs`` casts every observation to float32."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, features_dim=int(np.prod(observation_space.shape or ())))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations.flatten(1).double()


class PolicyCase(NamedTuple):
    """A policy, transitions that it made, and those of its parameters that make the action distribution."""

    name: str
    policy: ActorCriticPolicy
    batch: Batch
    parameters: list[th.nn.Parameter]

    def distribution_of(self, batch: Batch) -> Distribution:
        return self.policy.get_distribution(batch.observations)

    def frozen_distribution(self) -> Distribution:
        with th.no_grad():
            return copy.copy(self.distribution_of(self.batch))

    def problem(self, **kwargs: Any) -> PolicyProblem:
        return PolicyProblem(self.distribution_of, self.batch, self.parameters, **kwargs)


def generator(seed: int) -> th.Generator:
    return th.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> th.Tensor:
    """Standard normal float64 numbers that disturb no one else's random numbers."""
    return th.randn(*shape, generator=generator(seed), dtype=th.float64)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, which its distributions sample from, and give it back as it was."""
    with th.random.fork_rng():
        th.manual_seed(seed)
        yield


@th.no_grad()
def shake(parameters: list[th.nn.Parameter], *, scale: float, seed: int) -> None:
    """Add normal noise to every parameter."""
    noise = scale * normal(sum(parameter.numel() for parameter in parameters), seed=seed)
    for parameter, part in zip(parameters, unflatten(noise, parameters), strict=True):
        parameter.add_(part)


def sample_actions(distribution: Distribution) -> th.Tensor:
    """Sample an action for each state. SB3's gSDE would take one and the same noise matrix for all of them."""
    inner = distribution.distribution
    if isinstance(inner, list):
        return th.stack([factor.sample() for factor in inner], dim=1)
    actions = inner.sample()
    if isinstance(distribution, StateDependentNoiseDistribution) and distribution.bijector is not None:
        actions = distribution.bijector.forward(actions)
    return actions


def make_policy(name: str, **kwargs: Any) -> ActorCriticPolicy:
    """Build a float64 policy with the named action distribution, its weights moved away from the initial ones."""
    with seeded(0):
        policy = MlpPolicy(
            spaces.Box(-10.0, 10.0, (4,)),
            ACTION_SPACES[name],
            lambda progress: 1e-3,
            **{
                "net_arch": {"pi": [5], "vf": [4]},
                "use_sde": name == "gsde",
                "features_extractor_class": DoubleExtractor,
                **kwargs,
            },
        ).double()
        if policy.use_sde:
            # The noise matrices are no parameters: `double` leaves them behind
            policy.reset_noise()
    shake(list(policy.parameters()), scale=0.3, seed=1)
    return policy


def make_case(name: str, *, n: int = 7, **kwargs: Any) -> PolicyCase:
    """Build a policy and a batch of n transitions with weights that are not all the same."""
    policy = make_policy(name, **kwargs)
    # Rounded to what survives float32
    observations = normal(n, 4, seed=2).float().double()
    distribution = policy.get_distribution(observations)
    with seeded(3), th.no_grad():
        actions = sample_actions(distribution)
        old_log_prob = distribution.log_prob(actions)
    weights = th.rand(n, generator=generator(4), dtype=th.float64) + 0.5
    batch = Batch(observations, actions, old_log_prob, normal(n, seed=5), normal(n, seed=6), weights / weights.sum())
    parameters = reached_by(policy.get_distribution(observations).log_prob(actions), list(policy.parameters()))
    return PolicyCase(name, policy, batch, parameters)


def spd_matrix(eigenvalues: th.Tensor, *, seed: int) -> th.Tensor:
    """Make a symmetric matrix with these eigenvalues, and with them its condition number, in a random basis."""
    basis, _ = th.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed))
    matrix = basis @ th.diag(eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2


class QuadraticProblem:
    """L(θ) = L₀ + g·d - ½c|d|² and KL(θ) = ½ dᵀFd with d = θ - θ_old, for which the quadratic models are exact."""

    def __init__(self, fisher: th.Tensor, gradient: th.Tensor, *, bend: float = 0.0, surrogate_origin: float = 0.7):
        self.fisher = fisher
        self.gradient = gradient
        self.bend = bend
        self.surrogate_origin = surrogate_origin
        split = len(gradient) // 3
        start = normal(len(gradient), seed=11)
        # Two parameters of different shapes, so that the flat view is part of the test
        self.parameters = [th.nn.Parameter(start[:split].clone()), th.nn.Parameter(start[split:].clone().reshape(-1, 1))]
        self.start = start
        self.visited: list[th.Tensor] = []

    def displacement(self) -> th.Tensor:
        return flatten([parameter.detach() for parameter in self.parameters]) - self.start

    def surrogate_gradient(self) -> tuple[float, th.Tensor]:
        return self.surrogate_origin, self.gradient.clone()

    def fisher_vector_product(self) -> Any:
        return lambda vector: self.fisher @ vector

    def measure(self) -> tuple[float, float]:
        d = self.displacement()
        surrogate = self.surrogate_origin + float(self.gradient @ d) - 0.5 * self.bend * float(d @ d)
        return surrogate, 0.5 * float(d @ self.fisher @ d)

    def evaluate(self) -> tuple[float, float]:
        self.visited.append(self.displacement())
        return self.measure()
