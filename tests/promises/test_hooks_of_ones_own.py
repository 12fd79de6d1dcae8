"""Hooks that a variant overrides: whatever they do, and wherever, the update is that of the plain ways."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.recurrent import RecurrentTRPO
from tests.one_rollout import check_same_steps, check_update, rolled_out
from tests.small_models import RandomEnv, policy_state, small_model

# So many steps of a rollout are like each other; what is looked at quickly is among them
EARLY = 40


class Flagged(RandomEnv):
    """The last number of an observation says whether it is late."""

    n_seen = 0

    def _noise(self, space: Any) -> Any:
        noise = super()._noise(space)
        noise[-1] = 1.0 if self.n_seen >= EARLY else -1.0
        self.n_seen += 1
        return noise


def is_late(batch: Any) -> th.Tensor:
    return batch.observations[:, -1] > 0.0


def flagged_model(cls: type[TRPO] = TRPO, policy: Any = "MlpPolicy", **arguments: Any) -> TRPO:
    return small_model(cls, policy, DummyVecEnv([Flagged]), **arguments)


class ClippedValues(TRPO):
    """PPO's value clipping: agrees with the critic everywhere, before the first step of the fit."""

    before: Any = None

    def train(self) -> None:
        self.before = copy.deepcopy(self.policy).requires_grad_(False)
        super().train()

    def _values(self, batch: Any) -> th.Tensor:
        old = self.before.predict_values(batch.observations).flatten()
        return old + (super()._values(batch) - old).clamp(-0.01, 0.01)


class ZeroLate(TRPO):
    """Nothing is to be had in some states, none of which comes early."""

    def _values(self, batch: Any) -> th.Tensor:
        return super()._values(batch) * (~is_late(batch))


class NarrowPolicy(ActorCriticPolicy):
    """Acts with less noise in late states."""

    def narrowed(self, distribution: Any, observations: th.Tensor) -> Any:
        new = copy.copy(distribution)
        stddev = distribution.distribution.stddev * th.where(observations[:, -1:] > 0.0, 0.2, 1.0)
        new.distribution = th.distributions.Normal(distribution.distribution.mean, stddev)
        return new

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        distribution = self.narrowed(self.get_distribution(obs), obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)


class Narrow(TRPO):
    """And learns as it acts."""

    def _distribution(self, batch: Any) -> Any:
        policy: Any = self.policy
        return policy.narrowed(super()._distribution(batch), batch.observations)


PATHS = {
    "values clipped": (partial(flagged_model, ClippedValues), "Gauss-Newton", "plain"),
    "values of late states": (partial(flagged_model, ZeroLate), "Gauss-Newton", "plain"),
    "distribution of late states": (partial(flagged_model, Narrow, NarrowPolicy), "plain", "written out"),
}


@pytest.mark.parametrize(("make", "fisher", "critic"), PATHS.values(), ids=PATHS)
def test_update_with_a_hook_that_differs_somewhere_is_that_of_the_plain_ways(
    make: Callable[..., TRPO], fisher: str, critic: str
) -> None:
    ours, theirs = (rolled_out(make) for _ in range(2))
    check_update(ours, fast=True)
    check_update(theirs, fast=False)
    assert ours.paths_in_use["Fisher products"] == fisher and ours.paths_in_use["critic fit"] == critic
    check_same_steps(ours, theirs)


class TwoHeadsPolicy(ActorCriticPolicy):
    """A second head of each kind, which the policy itself does not use."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.second_value, self.second_action = nn.Linear(64, 1), nn.Linear(64, 3)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))  # type: ignore[call-arg]


class TwoHeads(TRPO):
    """The heads of late states are the second ones, where there are any."""

    def _values(self, batch: Any) -> th.Tensor:
        policy: Any = self.policy
        values, late = super()._values(batch), is_late(batch)
        if late.any():
            latent = policy.mlp_extractor.forward_critic(
                policy.extract_features(batch.observations, policy.vf_features_extractor)
            )
            values = th.where(late, policy.second_value(latent).flatten(), values)
        return values

    def _distribution(self, batch: Any) -> Any:
        distribution: Any = copy.copy(super()._distribution(batch))
        policy: Any = self.policy
        late = is_late(batch)[:, None]
        if late.any():
            latent = policy.mlp_extractor.forward_actor(
                policy.extract_features(batch.observations, policy.pi_features_extractor)
            )
            mean = th.where(late, policy.second_action(latent), distribution.distribution.mean)
            distribution.distribution = th.distributions.Normal(mean, distribution.distribution.stddev)
        return distribution


class LateBranch(BaseFeaturesExtractor):
    """Has a layer that is for late states alone."""

    def __init__(self, observation_space: Any):
        super().__init__(observation_space, 8)
        self.first, self.second = nn.Linear(3, 8), nn.Linear(3, 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        late = observations[:, -1:] > 0.0
        features = self.first(observations)
        return th.where(late, self.second(observations), features) if late.any() else features


@pytest.mark.parametrize("fast", [True, False])
def test_what_only_some_states_depend_on_is_trained(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a hook, and by a policy whose rollout is looked at in pieces."""
    monkeypatch.setattr(TRPO, "_chunk_size", lambda self: 16)
    of_hook = flagged_model(TwoHeads, TwoHeadsPolicy, fast=fast)
    of_policy = flagged_model(
        fast=fast, policy_kwargs={"features_extractor_class": LateBranch, "share_features_extractor": False}
    )
    for model in (of_hook, of_policy):
        before = policy_state(model)
        model.learn(64)
        assert model.last_update is not None and model.last_update.step.accepted
        after = policy_state(model)
        seconds = [name for name in before if "second" in name and "features_extractor.second" not in name.partition(".")[0]]
        used = [name for name in seconds if not name.startswith("features_extractor")]
        assert used and not any(th.equal(before[name], after[name]) for name in used)


class CooledMemory(RecurrentTRPO):
    """A policy with a memory, with less noise in late states."""

    def _distribution(self, batch: Any) -> Any:
        distribution: Any = copy.copy(super()._distribution(batch))
        stddev = distribution.distribution.stddev * th.where(batch.observations[:, -1:] > 0.0, 0.5, 1.0)
        distribution.distribution = th.distributions.Normal(distribution.distribution.mean, stddev)
        return distribution


def test_fisher_products_of_a_memory_are_those_of_the_hook() -> None:
    model = rolled_out(partial(flagged_model, CooledMemory, "MlpLstmPolicy"), policy_kwargs={"lstm_hidden_size": 8})
    check_update(model, fast=True)
    assert model.paths_in_use["Fisher products"] == "plain"


class Patched(TRPO):
    """A hook that is replaced on the object, as a mock is."""

    def train(self) -> None:
        values = self._values
        vars(self)["_values"] = lambda batch: 0.5 * values(batch)
        super().train()


def test_hook_that_is_replaced_on_the_object_counts() -> None:
    model = rolled_out(partial(small_model, Patched))
    check_update(model, fast=True)
    assert model.paths_in_use["critic fit"] == "plain"


class UsersBuffer(RolloutBuffer):
    """A buffer of the user's own."""

    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **kwargs)


class SmallReturns(TRPO):
    """Learns returns in units of a thousand."""

    def _full_batch(self) -> Any:
        batch = super()._full_batch()
        return batch._replace(returns=batch.returns / 1_000.0)


@pytest.mark.parametrize("fast", [True, False])
def test_critic_learns_from_the_batch_of_a_variant_whatever_the_buffer(fast: bool) -> None:
    losses = []
    for buffer in (RolloutBuffer, UsersBuffer):
        model = small_model(SmallReturns, rollout_buffer_class=buffer, fast=fast).learn(64)
        assert model.last_update is not None and model.last_update.critic is not None
        losses.append(model.last_update.critic.first_value_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.5)


class Pieces(TRPO):
    """Minibatches that are pieces of the batch, with all of its fields."""

    def _value_epochs(self, batch: Any) -> Any:
        for _ in range(self.n_critic_updates):
            yield batch.split(self.batch_size)


class FromTheBuffer(TRPO):
    """SB3's own minibatches."""

    def _value_epochs(self, batch: Any) -> Any:
        for _ in range(self.n_critic_updates):
            yield self.rollout_buffer.get(self.batch_size)


@pytest.mark.parametrize("variant", [Pieces, FromTheBuffer])
def test_minibatches_of_a_variant_may_have_more_fields(variant: type[TRPO]) -> None:
    ours, theirs = (rolled_out(partial(small_model, variant)) for _ in range(2))
    check_update(ours, fast=True)
    check_update(theirs, fast=False)
    assert ours.paths_in_use["critic fit"] == "written out"
    check_same_steps(ours, theirs)


class Bonus(TRPO):
    """A variant that is mixed into others."""


class BonusOfMemory(Bonus, RecurrentTRPO):
    """As with the example's entropy bonus."""


def test_variant_of_two_is_saved_as_what_its_policy_is(tmp_path: Any) -> None:
    model = BonusOfMemory("MlpLstmPolicy", DummyVecEnv([RandomEnv]), n_steps=16, device="cpu")
    model.save(tmp_path / "model")
    assert BonusOfMemory.kind == RecurrentTRPO.kind
    RecurrentTRPO.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match=r"RecurrentTRPO\.load reads it"):
        TRPO.load(tmp_path / "model", device="cpu")
