"""The gain on held-out rollouts is that of steps that are taken back."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch as th

from benchmarks import held_out, report
from benchmarks.results import HELD_OUT


def test_held_out_gains_are_those_of_steps_that_are_taken_back() -> None:
    """On its own rollout a step gains what the same step gains in training; on others less; and it leaves nothing behind."""
    model = held_out.trained("Pendulum-v1", "quick", steps=512)
    rollouts = held_out.collect(model, 4)
    assert not np.array_equal(rollouts[0].buffer.rewards, rollouts[1].buffer.rewards)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    own, other = (
        held_out.measure(model, rollouts[:2], measured_on, hold_std=False) for measured_on in (rollouts[:2], rollouts)
    )
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert len(own) == len(held_out.DAMPINGS) * len(held_out.LAMBDAS)
    assert all(row["own_gain"] > 0.0 and 0.0 < row["held_out_kl"] < 3 * held_out.MAX_KL for row in own)
    assert [row["own_gain"] for row in own] == [row["own_gain"] for row in other]
    assert np.mean([row["held_out_gain"] for row in other]) < np.mean([row["own_gain"] for row in own])


def test_held_out_figure_is_drawn(tmp_path: Path) -> None:
    """A panel per task and moment, from the record."""
    cases = [
        (env, steps, damping, lam)
        for env in ("Ant-v5", "Hopper-v5")
        for steps in (10, 20)
        for damping in (0.1, 1)
        for lam in (0.5, 1)
    ]
    rows = [(env, steps, "x", "held", damping, lam, 0.1, damping * lam, 0.01, 0.02) for env, steps, damping, lam in cases]
    pd.DataFrame(rows, columns=held_out.COLUMNS).to_csv(tmp_path / HELD_OUT, index=False)
    report.report(tmp_path)
    assert (tmp_path / "held_out.png").read_bytes().startswith(b"\x89PNG")


def test_held_out_batch_has_the_advantages_of_sb3() -> None:
    """With the lambda of training it is the batch of training; another lambda changes what depends on it."""
    model = held_out.trained("Pendulum-v1", "quick", steps=512)
    (rollout,) = held_out.collect(model, 1)
    batch = held_out.batch_of(model, [rollout], model.gae_lambda)
    th.testing.assert_close(batch.returns.sum(), th.as_tensor(rollout.buffer.returns.sum()), rtol=1e-5, atol=1e-3)
    changed = held_out.batch_of(model, [rollout, rollout], 0.5)
    assert len(changed.weights) == 2 * len(batch.weights) and not th.allclose(
        changed.returns[: len(batch.returns)], batch.returns
    )
    th.testing.assert_close(changed.actions[: len(batch.returns)], batch.actions)
    th.testing.assert_close(changed.weights.sum(), th.ones(()))
