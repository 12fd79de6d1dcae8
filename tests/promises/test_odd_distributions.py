"""Action distributions that keep what they are made of in odd places: the KL that is reported is that of the policy."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn import functional as F

from sb3_trpo import TRPO
from sb3_trpo.objective import NotFrozenError
from tests.small_models import changed, policy_state, small_model

td = th.distributions


class Scale(nn.Module):
    """Learns one standard deviation for everything."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(th.zeros(1))

    def forward(self, loc: th.Tensor) -> th.Tensor:
        return F.softplus(self.raw).expand_as(loc) + 0.1


class LateNormal(td.Distribution):
    """Asks for its scale when it needs it."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, loc: th.Tensor, scale_of: Callable[[th.Tensor], th.Tensor]):
        super().__init__(loc.shape, validate_args=False)
        self.loc, self.scale_of = loc, scale_of

    def normal(self) -> td.Normal:
        return td.Normal(self.loc, self.scale_of(self.loc))

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        return self.normal().log_prob(value)

    def rsample(self, sample_shape: Any = ()) -> th.Tensor:
        return self.normal().rsample(sample_shape)

    def entropy(self) -> th.Tensor:
        return self.normal().entropy()

    @property
    def mean(self) -> th.Tensor:
        return self.loc


class ModuleNormal(nn.Module, LateNormal):
    """The same, and a module."""

    def __init__(self, loc: th.Tensor, scale_of: Any):
        nn.Module.__init__(self)
        LateNormal.__init__(self, loc, scale_of)


@td.register_kl(LateNormal, LateNormal)  # type: ignore[untyped-decorator]
def _kl_of_late_normals(p: LateNormal, q: LateNormal) -> th.Tensor:
    return td.kl_divergence(p.normal(), q.normal())


def late(given: Callable[[Any], Any], *, kind: type = LateNormal, known: bool = False) -> type[ActorCriticPolicy]:
    """
    Return a policy class whose distributions are handed the scale.

    :param given: maps the module to what they are given
    :param kind: of distribution
    :param known: whether SB3's distribution holds the module too
    """

    class Late(DiagGaussianDistribution):
        policy: Any
        scale: Any

        def proba_distribution(self, mean_actions: th.Tensor, log_std: Any) -> "Late":
            self.distribution = kind(mean_actions, given(self.policy().scale))
            return self

    class LatePolicy(ActorCriticPolicy):
        def _build(self, lr_schedule: Any) -> None:
            self.action_dist = late_one = Late(3)
            super()._build(lr_schedule)
            self.scale = Scale()
            late_one.policy = lambda: self
            if known:
                late_one.scale = self.scale
            self.optimizer = th.optim.Adam(self.parameters(), lr=lr_schedule(1))

        def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
            return self.action_dist.proba_distribution(self.action_net(latent_pi), None)

    return LatePolicy


class Measure(BaseCallback):
    """Measures the KL of an update from the numbers of the policy."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.observations = th.as_tensor(self.model.rollout_buffer.observations).flatten(0, 1)  # type: ignore[attr-defined]
        self.old = self.now()

    @th.no_grad()
    def now(self) -> td.Normal:
        normal = self.model.policy.get_distribution(self.observations).distribution.normal()  # type: ignore[operator]
        return td.Normal(normal.loc.clone(), normal.scale.clone())

    def kl(self) -> float:
        return float(td.kl_divergence(self.old, self.now()).sum(1).mean())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(late(lambda module: module), id="module"),
        pytest.param(late(lambda module: module, known=True), id="module that SB3's distribution holds too"),
        pytest.param(late(lambda module: module, kind=ModuleNormal), id="distribution that is a module"),
    ],
)
def test_kl_is_that_of_the_policy(policy: type[ActorCriticPolicy], fast: bool) -> None:
    measure = Measure()
    step = small_model(TRPO, policy, target_kl=0.01, fast=fast).learn(64, measure).last_update.step  # type: ignore[union-attr]
    assert step.accepted
    assert step.mean_kl == pytest.approx(measure.kl(), rel=1e-3)
    assert measure.kl() <= 0.01


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "given",
    [
        pytest.param(lambda module: module.forward, id="method"),
        pytest.param(lambda module: partial(module), id="partial"),
        pytest.param(lambda module: lambda loc: module(loc), id="closure"),
    ],
)
def test_old_policy_that_would_move_is_refused_before_anything_does(given: Callable[[Any], Any], fast: bool) -> None:
    """What a function holds cannot be copied: the KL would be measured from a policy that follows."""
    model = small_model(TRPO, late(given), fast=fast)
    before = policy_state(model)
    with pytest.raises(NotFrozenError, match=r"LateNormal.*function or a method"):
        model.learn(64)
    assert not changed(before, policy_state(model))


class Widened(td.transforms.AffineTransform):
    """Widens by what a function gives."""

    def __init__(self, width_of: Callable[[], th.Tensor]):
        super().__init__(0.0, 1.0)
        self.width_of = width_of

    def _call(self, x: th.Tensor) -> th.Tensor:
        return x * self.width_of()

    def _inverse(self, y: th.Tensor) -> th.Tensor:
        return y / self.width_of()

    def log_abs_det_jacobian(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        return self.width_of().log().expand_as(x)


def test_transform_that_would_move_is_refused_though_the_kl_knows_nothing_of_it() -> None:
    """Torch takes the transform of both policies for the same, since it is one object."""

    class Wide(DiagGaussianDistribution):
        width: Widened

        def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "Wide":
            normal = td.Normal(mean_actions, th.ones_like(mean_actions))
            self.distribution = td.TransformedDistribution(normal, [self.width])  # type: ignore[assignment]
            return self

    model = small_model(TRPO, of_kind(Wide))
    wide: Any = model.policy.action_dist
    wide.width = Widened(model.policy.log_std.exp)
    with pytest.raises(NotFrozenError, match="function or a method"):
        model.learn(64)


class OwnsItsSpread(nn.Module, DiagGaussianDistribution):
    """A distribution of SB3's with a parameter, and so a module."""

    def __init__(self, action_dim: int):
        nn.Module.__init__(self)
        self.action_dim = action_dim
        self.spread = nn.Parameter(th.zeros(action_dim))

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "OwnsItsSpread":
        self.distribution = td.Normal(mean_actions, self.spread.exp())
        return self


class HandsOn(td.Distribution):
    """Answers for another distribution."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base: td.Normal):
        self.base = base
        super().__init__(base.batch_shape, validate_args=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        return self.base.log_prob(value)

    def rsample(self, sample_shape: Any = ()) -> th.Tensor:
        return self.base.rsample(sample_shape)

    def entropy(self) -> th.Tensor:
        return self.base.entropy()


@td.register_kl(HandsOn, HandsOn)  # type: ignore[untyped-decorator]
def _kl_of_those_that_hand_on(p: HandsOn, q: HandsOn) -> th.Tensor:
    return td.kl_divergence(p.base, q.base)


class Answered(DiagGaussianDistribution):
    """Holds one that answers for another."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "Answered":
        self.distribution = HandsOn(td.Normal(mean_actions, log_std.exp()))  # type: ignore[assignment]
        return self


class InSlots(DiagGaussianDistribution):
    """Keeps its distribution in a slot."""

    __slots__ = ("distribution",)


class Natural(td.ExponentialFamily):
    """Gaussians of deviation one as an exponential family: torch makes their KL from the log-normalizer, by autograd."""

    arg_constraints = {}  # noqa: RUF012
    _mean_carrier_measure = 0.0

    def __init__(self, loc: th.Tensor):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        return td.Normal(self.loc, 1.0).log_prob(value)

    def rsample(self, sample_shape: Any = ()) -> th.Tensor:
        return td.Normal(self.loc, 1.0).rsample(sample_shape)

    @property
    def mean(self) -> th.Tensor:
        return self.loc

    @property
    def _natural_params(self) -> tuple[th.Tensor, ...]:
        return (self.loc,)

    def _log_normalizer(self, *natural_params: th.Tensor) -> th.Tensor:
        return natural_params[0] ** 2 / 2


class Family(DiagGaussianDistribution):
    """Holds one of an exponential family."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "Family":
        self.distribution = Natural(mean_actions)  # type: ignore[assignment]
        return self


def of_kind(kind: type[DiagGaussianDistribution]) -> type[ActorCriticPolicy]:
    class Policy(ActorCriticPolicy):
        def _build(self, lr_schedule: Any) -> None:
            self.action_dist = kind(3)
            super()._build(lr_schedule)

    return Policy


@pytest.mark.parametrize("kind", [OwnsItsSpread, Answered, InSlots, Family])
def test_policy_of_an_odd_distribution_learns_as_a_gaussian_does(kind: type[DiagGaussianDistribution]) -> None:
    """Whatever holds the numbers: the steps are those of the same Gaussian, to rounding."""
    steps = []
    for each in (kind, DiagGaussianDistribution):
        model = small_model(TRPO, of_kind(each), fast=False, std_damping=0.1, cg_damping=0.1, normalize_advantage=False)
        if kind is Family:
            model.policy.log_std.requires_grad_(False)
        steps.append(model.learn(64).last_update.step)  # type: ignore[union-attr]
    ours, theirs = steps
    assert ours.accepted and theirs.accepted
    assert ours.mean_kl == pytest.approx(theirs.mean_kl, rel=1e-2)
    assert ours.surrogate == pytest.approx(theirs.surrogate, rel=1e-2)


class Flow(DiagGaussianDistribution):
    """Learns to shift and to stretch its actions, where the torch distribution in it does not see it."""

    shift: th.Tensor

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return super().log_prob(actions - self.shift)

    def sample(self) -> th.Tensor:
        return super().sample() + self.shift


class FlowPolicy(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist = Flow(3)
        self.shift = nn.Parameter(th.zeros(3))

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        assert isinstance(self.action_dist, Flow)
        self.action_dist.shift = self.shift
        return super()._get_action_dist_from_latent(latent_pi)


@pytest.mark.parametrize("fast", [True, False])
def test_log_prob_that_knows_more_than_the_kl_is_refused_before_anything_moves(fast: bool) -> None:
    """The limit would not hold for what the KL does not depend on."""
    model = small_model(policy=FlowPolicy, fast=fast)
    before = policy_state(model)
    with pytest.raises(ValueError, match=r"KL of Flow of Normal .*log_prob depends on parameters .*\(3,\)"):
        model.learn(64)
    assert not changed(before, policy_state(model))
