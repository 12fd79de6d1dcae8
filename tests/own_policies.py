"""Policies with action distributions of the user's own, made of whatever torch has. For the tests only."""

from collections.abc import Callable, Iterator
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from torch.nn import functional as F

from tests.cases import DoubleExtractor, PolicyCase, seeded, shake

TorchDistribution = th.distributions.Distribution
# Maps the network's outputs, shape (n, 2d), to one of torch's distributions over d dimensions, or to several
Build = Callable[[th.Tensor], Any]


def halves(outputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    first, second = outputs.chunk(2, dim=-1)
    return first, second


def positive(values: th.Tensor) -> th.Tensor:
    return F.softplus(values) + 0.1


def leaves(distribution: Any) -> Iterator[TorchDistribution]:
    if isinstance(distribution, TorchDistribution):
        yield distribution
    else:
        for part in distribution.values() if isinstance(distribution, dict) else distribution:
            yield from leaves(part)


def rows(values: th.Tensor) -> th.Tensor:
    return values.flatten(1).sum(dim=1) if values.dim() > 1 else values


class Built(Distribution):
    """An SB3 distribution around whatever ``build`` makes of the network's outputs; several share the actions' columns."""

    def __init__(self, build: Build, n_outputs: int):
        super().__init__()
        self.build = build
        self.n_outputs = n_outputs

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return nn.Linear(latent_dim, self.n_outputs)

    def proba_distribution(self, outputs: th.Tensor) -> "Built":
        self.distribution = self.build(outputs)
        return self

    def _parts(self, actions: th.Tensor) -> Iterator[tuple[TorchDistribution, th.Tensor]]:
        start = 0
        for factor in leaves(self.distribution):
            shape = factor.batch_shape[1:] + factor.event_shape
            width = max(1, shape.numel())
            yield factor, actions[:, start : start + width].reshape(-1, *shape)
            start += width

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return th.stack([rows(factor.log_prob(part)) for factor, part in self._parts(actions)]).sum(dim=0)

    def entropy(self) -> th.Tensor:
        return th.stack([rows(factor.entropy()) for factor in leaves(self.distribution)]).sum(dim=0)

    def sample(self) -> th.Tensor:
        return th.cat([factor.sample().flatten(1).float() for factor in leaves(self.distribution)], dim=1)

    def mode(self) -> th.Tensor:
        return self.sample()

    def actions_from_params(self, outputs: th.Tensor, deterministic: bool = False) -> th.Tensor:
        return self.proba_distribution(outputs).get_actions(deterministic)

    def log_prob_from_params(self, outputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        actions = self.actions_from_params(outputs)
        return actions, self.log_prob(actions)


class OwnPolicy(ActorCriticPolicy):
    """SB3's policy with a distribution of one's own; SB3 makes heads for its own ones only."""

    def __init__(self, *args: Any, build: Build, n_outputs: int = 4, **kwargs: Any):
        self.own = build, n_outputs
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        self.action_dist = Built(*self.own)
        self.action_net = self.action_dist.proba_distribution_net(self.mlp_extractor.latent_dim_pi)
        self.value_net = nn.Linear(self.mlp_extractor.latent_dim_vf, 1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        distribution = self.action_dist.proba_distribution(self.action_net(latent_pi))
        assert isinstance(distribution, Distribution)
        return distribution


def own_case(build: Build, *, n: int = 5, n_outputs: int = 4, scale: float = 0.3) -> PolicyCase:
    """Build a float64 policy with a distribution of one's own, away from its initial weights, and a batch that it made."""
    from sb3_trpo.objective import Batch
    from sb3_trpo.trust_region import reached_by
    from tests.cases import generator, normal

    with seeded(0):
        policy = OwnPolicy(
            spaces.Box(-10.0, 10.0, (4,)),
            spaces.Box(-1.0, 1.0, (2,)),
            lambda progress: 1e-3,
            build=build,
            n_outputs=n_outputs,
            net_arch={"pi": [4], "vf": [3]},
            features_extractor_class=DoubleExtractor,
        ).double()
    shake(list(policy.parameters()), scale=scale, seed=1)
    observations = normal(n, 4, seed=2).float().double()
    distribution = policy.get_distribution(observations)
    with seeded(3), th.no_grad():
        actions = distribution.sample().double()
        old_log_prob = distribution.log_prob(actions)
    weights = th.rand(n, generator=generator(4), dtype=th.float64) + 0.5
    batch = Batch(observations, actions, old_log_prob, normal(n, seed=5), normal(n, seed=6), weights / weights.sum())
    parameters = reached_by(policy.get_distribution(observations).log_prob(actions), list(policy.parameters()))
    return PolicyCase("own", policy, batch, parameters)
