"""By which of SB3's distributions a policy acts, for whatever is quick to trust."""

from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)

from sb3_trpo import TRPO, MaskableTRPO
from sb3_trpo.fast.kinds import CLOSED_FORM, kind_of
from tests.masked_envs import masked_env
from tests.small_models import DISCRETE, MULTI_BINARY, MULTI_DISCRETE, VECTOR, make_env, small_model

BOX = spaces.Box(-1.0, 1.0, (2,))
KINDS: dict[str, tuple[spaces.Space, type, dict[str, Any]]] = {
    "numbers": (BOX, DiagGaussianDistribution, {}),
    "gSDE": (BOX, StateDependentNoiseDistribution, {"use_sde": True}),
    "one of several": (DISCRETE, CategoricalDistribution, {}),
    "several of several": (MULTI_DISCRETE, MultiCategoricalDistribution, {}),
    "bits": (MULTI_BINARY, BernoulliDistribution, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_masks_do_not_change_what_a_distribution_is(name: str) -> None:
    """
    With masks and without them it is the same one of SB3's, and one of those that are written out.

    Bits are left out: sb3-contrib masks them as several of two.
    """
    space, kind, arguments = KINDS[name]
    assert kind_of(small_model(TRPO, "MlpPolicy", make_env(VECTOR, space), **arguments).policy) is kind
    assert kind in CLOSED_FORM
    if name in ("one of several", "several of several"):
        assert kind_of(small_model(MaskableTRPO, "MlpPolicy", masked_env(VECTOR, space)).policy) is kind


def test_what_a_user_has_changed_is_not_what_it_was() -> None:
    """One that only adds a method is trusted; one that overrides one, and one that is not known, are their own."""

    class Named(DiagGaussianDistribution):
        def describe(self) -> str:
            return "mine"

    class Shifted(DiagGaussianDistribution):
        def sample(self) -> th.Tensor:
            return super().sample() + 1.0

    policy = small_model(TRPO, "MlpPolicy", make_env(VECTOR, BOX)).policy
    expected = {Named: DiagGaussianDistribution, Shifted: Shifted}
    expected[SquashedDiagGaussianDistribution] = SquashedDiagGaussianDistribution
    for own, kind in expected.items():
        policy.action_dist = own(2)
        assert kind_of(policy) is kind
