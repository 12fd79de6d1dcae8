"""One update from before it to after it."""

import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.inspect import TrustRegionRecorder, read_run, watched_update
from sb3_trpo.inspect.watched_update import OtherUpdate, OwnUpdate, record_from_outside
from sb3_trpo.trust_region import unflatten
from tests.other_algorithms import OTHERS
from tests.small_models import RandomEnv, small_model

NO_TIMES: dict[str, Any] = {"phase_seconds": {"collect": 1.0, "update": 2.0}, "mean_return": 0.0, "episode_returns": ()}


def test_other_update_is_what_happened_between_prepare_and_measure() -> None:
    """The length of the step is that by which the parameters of the distribution moved, and no other counts."""
    model: Any = OTHERS["ppo"]().learn(64)
    update = OtherUpdate(model, 2)
    update.prepare()
    with th.no_grad():
        model.policy.action_net.bias.add_(0.3)
        model.policy.value_net.bias.add_(7.0)
    update.measure()
    record = update.record(**NO_TIMES)
    assert record.step_norm == pytest.approx(0.3 * 3**0.5, rel=1e-5) and record.n_updates == 2 and record.accepted
    # Each mean by 0.3 at a standard deviation of nearly one
    assert record.mean_kl == pytest.approx(3 * 0.3**2 / 2 / record.std**2, rel=1e-2)


def test_plane_is_that_of_the_step_that_ours_would_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With our default damping: none for the standard deviation, 0.1 for each of three dimensions for the means."""
    found: list[tuple[Any, th.Tensor]] = []

    def spy(problem: Any, step: th.Tensor, *, damping: th.Tensor, **others: Any) -> None:
        found.append((problem, damping))

    monkeypatch.setattr(watched_update, "slice_with_step", spy)
    model: Any = OTHERS["ppo"]()
    assert next(model.policy.named_parameters())[0] == "log_std"
    model.learn(64, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    assert len(found) >= 1
    for problem, damping in found:
        first, *others = unflatten(damping, problem.parameters)
        assert first.shape == (3,) and not first.any()
        for part in others:
            th.testing.assert_close(part, th.full_like(part, 0.3))


class WithFunction(ActorCriticPolicy):
    """The same as its base, by way of a function that knows the policy."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.head = lambda latent: self.action_net(latent)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(self.head(latent_pi), self.log_std)


class WithReference(WithFunction):
    """By way of a weak reference."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        me = weakref.ref(self)
        self.me = me
        self.head = partial(_of_reference, me)


def _of_reference(me: Any, latent: th.Tensor) -> th.Tensor:
    return me().action_net(latent)


@pytest.mark.parametrize("policy", [WithFunction, WithReference])
def test_copy_that_changes_with_the_policy_is_refused(policy: Any, tmp_path: Path) -> None:
    """The KL would be that of some other change; one warning says so, and training goes on as it does without."""
    plain = PPO(ActorCriticPolicy, RandomEnv(), n_steps=64, seed=0, device="cpu")
    plain.learn(128, callback=TrustRegionRecorder(tmp_path / "plain"))
    odd = PPO(policy, RandomEnv(), n_steps=64, seed=0, device="cpu")
    with pytest.warns(UserWarning, match="cannot be copied: its copy changes when it does") as said:
        odd.learn(128, callback=TrustRegionRecorder(tmp_path / "odd"))
    assert len(said) == 1
    assert [update.status for update in read_run(tmp_path / "plain").updates] == ["accepted"] * 2
    assert [update.status for update in read_run(tmp_path / "odd").updates] == ["not_measured"] * 2
    for one, other in zip(plain.policy.parameters(), odd.policy.parameters(), strict=True):
        assert th.equal(one, other)


def test_own_update_is_none_until_it_is_made() -> None:
    """What is left of its time beside the phases of the report is other."""
    model = small_model().learn(64)
    update = OwnUpdate(model, pictures=False)
    update.prepare()
    update.measure()
    assert update.record(num_timesteps=64, **NO_TIMES) is None and update.pictures() == ((), ())
    model.train()
    update.measure()
    record = update.record(num_timesteps=64, **NO_TIMES)
    assert record is not None and model.last_update is not None and record.n_states == 64
    told = sum(model.last_update.phase_seconds.values())
    assert record.phase_seconds["other"] == pytest.approx(2.0 - told) and "update" not in record.phase_seconds


def test_record_from_outside_says_only_what_is_known() -> None:
    """The algorithm and what is given; every other number is NaN, which is no claim."""
    assert record_from_outside(OTHERS["a2c"](), 3, **NO_TIMES).algorithm == "A2C"
