"""What is measured of an update from outside is what ours reports of it, and what follows from the definitions."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo.inspect.as_ours import seen_as_ours
from sb3_trpo.inspect.measure import Means, Spread, measure
from sb3_trpo.inspect.policy_copies import copy_of
from sb3_trpo.inspect.run_files import QUANTILES
from tests.from_outside import joint_kl_by_hand
from tests.other_algorithms import OTHERS
from tests.small_models import EVERY_CASE, LONG_CASES
from tests.test_maskable import masked_model
from tests.test_recurrent import CASES as RECURRENT

pytestmark = pytest.mark.untraced


class Outside(BaseCallback):
    """Measures every update with copies of the policy, as is done with an algorithm that reports nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Any = None
        self.batch: Any = None
        self.after: Any = None
        self.measured: list[tuple[Means, Spread]] = []

    def _on_step(self) -> bool:
        return True

    def _seen(self) -> Any:
        return seen_as_ours(self.model, copy_of(self.model.policy))  # type: ignore[arg-type]

    def _on_rollout_end(self) -> None:
        self.before = self._seen()
        self.batch = self.before._full_batch()

    def _on_rollout_start(self) -> None:
        if self.before is not None:
            self.after = self._seen()
            self.measured.append(measure(self.before, self.after, self.batch, 0.2))

    _on_training_end = _on_rollout_start


def own_models() -> dict[str, Any]:
    return (
        {name: case.model for name, case in EVERY_CASE.items()}
        | {f"masked-{name}": lambda name=name: masked_model(name=name) for name in ("discrete", "multi_discrete", "dict")}
        | {f"recurrent-{name}": lambda name=name: _recurrent(name) for name in ("box", "discrete", "gsde", "shared")}
    )


def _recurrent(name: str) -> Any:
    from sb3_trpo.recurrent import RecurrentTRPO

    return RECURRENT[name].model(RecurrentTRPO)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG_CASES)) for n in own_models()])
def test_numbers_from_outside_are_those_that_ours_reports(name: str) -> None:
    """Mean KL, gain, its linear model, entropy and norms to a millionth, for every kind of action, policy and variant."""
    model, outside = own_models()[name](), Outside()
    model.learn(2 * 64, callback=outside)
    means, report = outside.measured[-1][0], model.last_update
    assert report.step.accepted and report.step.mean_kl > 1e-5
    for field in ("mean_kl", "surrogate_gain", "expected_gain", "step_norm", "gradient_norm"):
        expected = getattr(report.step, field)
        assert getattr(means, field) == pytest.approx(expected, abs=1e-6 * max(1.0, abs(expected))), field
    if report.entropy is None:
        assert math.isnan(means.entropy)
    else:
        assert means.entropy == pytest.approx(report.entropy, abs=1e-6 * max(1.0, abs(report.entropy)))


def by_hand(outside: Outside) -> dict[str, np.ndarray]:
    """Return KL, reverse KL and ratio of each state, from torch's distributions of both policies, in float64."""
    observations, actions = outside.batch.observations, outside.batch.actions
    old, new = (view.policy.get_distribution(observations) for view in (outside.before, outside.after))
    kl, reverse = joint_kl_by_hand(old.distribution, new.distribution), joint_kl_by_hand(new.distribution, old.distribution)
    ratio = (new.log_prob(actions).double() - old.log_prob(actions).double()).exp()
    return {"kl": kl.detach().numpy(), "reverse": reverse.detach().numpy(), "ratio": ratio.detach().numpy()}


@pytest.mark.parametrize("name", ["ppo", "ppo-discrete", "a2c", "contrib-trpo", "ppo-dict", "two-optimizers"])
def test_spread_follows_from_the_definitions(name: str) -> None:
    """KL both ways, its quantiles, those of the ratio and the share outside the clip, against NumPy on each state."""
    outside = Outside()
    arguments: dict[str, Any] = {} if name == "two-optimizers" else {"learning_rate": 0.03}
    OTHERS[name](**arguments).learn(64, callback=outside)
    (means, spread), hand = outside.measured[-1], by_hand(outside)
    near: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-6}
    assert means.mean_kl > 1e-4 or name == "contrib-trpo"
    np.testing.assert_allclose(means.mean_kl, hand["kl"].mean(), **near)
    np.testing.assert_allclose(spread.reverse_kl, hand["reverse"].mean(), **near)
    np.testing.assert_allclose(spread.largest_kl, hand["kl"].max(), **near)
    np.testing.assert_allclose(spread.kl_quantiles, np.quantile(hand["kl"], QUANTILES), **near)
    np.testing.assert_allclose(spread.ratio_quantiles, np.quantile(hand["ratio"], QUANTILES), **near)
    assert spread.outside_clip == pytest.approx(np.mean(np.abs(hand["ratio"] - 1.0) > 0.2), abs=1e-6)
    gain = float(np.mean((hand["ratio"] - 1.0) * outside.batch.advantages.numpy()))
    assert means.surrogate_gain == pytest.approx(gain, rel=1e-3, abs=1e-6) and spread.n_states == 64


@pytest.mark.parametrize("name", ["ppo", "ppo-discrete", "recurrent-ppo", "maskable-ppo"])
def test_linear_model_is_the_slope_of_the_surrogate_along_the_step(name: str) -> None:
    """A thousandth of the step gains a thousandth of what the linear model expects of all of it."""
    outside = Outside()
    OTHERS[name]().learn(64, callback=outside)
    before, batch = outside.before, outside.batch
    means = measure(before, outside.after, batch, 0.2)[0]
    with th.no_grad():
        for old, new in zip(before.policy.parameters(), outside.after.policy.parameters(), strict=True):
            new.copy_(old + 1e-2 * (new - old))
    assert means.expected_gain == pytest.approx(100.0 * measure(before, outside.after, batch, 0.2)[0].surrogate_gain, rel=0.05)


@pytest.mark.parametrize("name", ["ppo", "maskable-ppo", "recurrent-ppo"])
def test_chunks_add_up_to_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of ten transitions the numbers are those of one piece."""
    outside = Outside()
    OTHERS[name]().learn(64, callback=outside)
    whole: tuple[Any, Any] = outside.measured[-1]
    monkeypatch.setattr(type(outside.before), "_chunk_size", lambda self: 10)
    for expected, pieces in zip(whole, measure(outside.before, outside.after, outside.batch, 0.2), strict=True):
        for field, value in expected._asdict().items():
            np.testing.assert_allclose(getattr(pieces, field), value, rtol=1e-4, atol=1e-6, err_msg=field)


def test_an_update_that_changes_nothing_is_measured_as_nothing() -> None:
    """A learning rate of zero: no KL, no gain, no step, every ratio one."""
    outside = Outside()
    OTHERS["ppo"](learning_rate=0.0).learn(64, callback=outside)
    means, spread = outside.measured[-1]
    assert means.mean_kl == means.surrogate_gain == means.expected_gain == means.step_norm == spread.largest_kl == 0.0
    assert set(spread.ratio_quantiles) == {1.0} and spread.outside_clip == 0.0
