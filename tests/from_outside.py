"""What an update did, measured from outside: no code of the package in the measurement."""

from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F

from sb3_trpo import TRPO
from sb3_trpo.trust_region import TrustRegionStep
from tests.small_models import policy_state

# What single precision costs on a mean of a few dozen KLs
ROUNDING = 1e-6


def joint_kl_by_hand(old: Any, new: Any) -> th.Tensor:
    """Return KL(old || new) of torch distributions, written out and summed over their dimensions, shape (n,)."""
    if isinstance(old, th.distributions.Categorical):
        p, log_p, log_q = old.probs.double(), old.logits.double(), new.logits.double()
        return (p * (log_p - log_q)).sum(dim=1)
    if isinstance(old, th.distributions.Bernoulli):
        on, off = ([sign * d.logits.double() for d in (old, new)] for sign in (1, -1))
        return sum((x.sigmoid() * (F.logsigmoid(x) - F.logsigmoid(y))).sum(dim=1) for x, y in (on, off))  # type: ignore
    assert isinstance(old, th.distributions.Normal)
    old_mean, old_std, new_mean, new_std = (x.double() for x in (old.mean, old.stddev, new.mean, new.stddev))
    per_dimension = (new_std / old_std).log() + (old_std**2 + (old_mean - new_mean) ** 2) / (2 * new_std**2) - 0.5
    return per_dimension.sum(dim=1)


def torch_distributions(policy: ActorCriticPolicy, observations: PyTorchObs) -> list[Any]:
    """Return the torch distributions whose product is the policy's action distribution."""
    distribution = policy.get_distribution(observations).distribution
    return list(distribution) if isinstance(distribution, list) else [distribution]


@th.no_grad()
def mean_kl_from_outside(model: TRPO, old_state: dict[str, th.Tensor]) -> float:
    """Measure the mean KL(old || new) over the rollout's states with a second policy that has the old weights."""
    assert issubclass(model.policy_class, ActorCriticPolicy)
    old_policy = model.policy_class(
        model.observation_space, model.action_space, model.lr_schedule, use_sde=model.use_sde, **model.policy_kwargs
    )
    old_policy.load_state_dict(old_state)
    old_policy.set_training_mode(False)
    observations = next(model.rollout_buffer.get(batch_size=None)).observations
    factors = zip(torch_distributions(old_policy, observations), torch_distributions(model.policy, observations), strict=True)
    return float(th.stack([joint_kl_by_hand(old, new) for old, new in factors]).sum(dim=0).mean())


class Measurement(NamedTuple):
    """One update as its report tells it, and what was measured from outside once ``train`` had returned."""

    step: TrustRegionStep
    mean_kl: float


class MeasuredTRPO(TRPO):
    """TRPO that has every update measured from outside."""

    measurements: tuple[Measurement, ...] = ()

    def train(self) -> None:
        old_state = policy_state(self)
        super().train()
        assert self.last_update is not None
        self.measurements += (Measurement(self.last_update.step, mean_kl_from_outside(self, old_state)),)


def actor_state(model: TRPO) -> dict[str, th.Tensor]:
    """Return a copy of what only the policy step may move, in a model with SB3's own MlpPolicy."""
    return {name: tensor for name, tensor in policy_state(model).items() if "value_net" not in name}
