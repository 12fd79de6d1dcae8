"""What a callback does to a rollout in its midst has the effect that it has with SB3's own loop."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo import TRPO
from tests.cases import shake
from tests.promises.test_experience import collect
from tests.scenarios import Scenario, contents, replay
from tests.small_models import DISCRETE, make_env, small_model


class Wraps(BaseCallback):
    """Wraps methods of the buffer, as the rollout starts or after some steps, and notes what they are told."""

    def __init__(self, at_step: int):
        super().__init__()
        self.at_step = at_step
        self.added: list[tuple[Any, ...]] = []
        self.computed: list[dict[str, Any]] = []

    def _wrap(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        add, compute = buffer.add, buffer.compute_returns_and_advantage

        def noted_add(*args: Any) -> None:
            self.added.append(copy.deepcopy(args))
            add(*args)

        def noted_compute(**kwargs: Any) -> None:
            self.computed.append(kwargs)
            compute(**kwargs)

        buffer.add, buffer.compute_returns_and_advantage = noted_add, noted_compute

    def _on_rollout_start(self) -> None:
        if self.at_step == 0:
            self._wrap()

    def _on_step(self) -> bool:
        if self.n_calls == self.at_step:
            self._wrap()
        return True


@pytest.mark.parametrize("at_step", [0, 5])
@pytest.mark.parametrize("scenario", [Scenario(), Scenario(action_space=DISCRETE)], ids=["box", "discrete"])
def test_buffer_wrapped_by_a_callback_is_told_from_then_on(
    scenario: Scenario, at_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps and of returns, what SB3 tells it: rewards with the value at a time limit, values, log-probabilities."""
    ours, theirs = scenario.model(fast=True), scenario.model(fast=False)
    lean, plain = Wraps(at_step), Wraps(at_step)
    collect(ours, lean)
    assert ours.paths_in_use["collection"] == "lean"
    replay(theirs, [contents(ours.rollout_buffer)], monkeypatch)
    collect(theirs, plain)
    assert len(lean.added) == len(plain.added) == 20 - max(0, at_step - 1) and len(lean.computed) == len(plain.computed) == 1
    for told, expected in zip(lean.added, plain.added, strict=True):
        for part, other in zip(told, expected, strict=True):
            assert type(part) is type(other) and part.dtype == other.dtype
            np.testing.assert_allclose(part.reshape(other.shape), other, rtol=1e-4, atol=1e-5)
    for name, values in contents(theirs.rollout_buffer).items():
        np.testing.assert_allclose(contents(ours.rollout_buffer)[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


class Writes(BaseCallback):
    """Puts numbers of its own in the place of those of an earlier step."""

    def _on_step(self) -> bool:
        if self.n_calls == 6:
            self.model.rollout_buffer.values[2, 0] = 0.0  # type: ignore[attr-defined]
            self.model.rollout_buffer.log_probs[3, 1] = -7.0  # type: ignore[attr-defined]
        return True


@pytest.mark.parametrize("fast", [True, False])
def test_what_a_callback_puts_in_the_place_of_an_earlier_step_stays(fast: bool) -> None:
    """Zero is a value like others; everything else is the policy's."""
    model = small_model(env=make_env(n_envs=2), n_steps=12, fast=fast)
    shake(list(model.policy.parameters()), scale=0.2, seed=1)
    collect(model, Writes())
    buffer = model.rollout_buffer
    assert buffer.values[2, 0] == 0.0 and buffer.log_probs[3, 1] == -7.0
    assert np.isfinite(buffer.values).all() and np.isfinite(buffer.log_probs).all()
    assert np.count_nonzero(buffer.values) == buffer.values.size - 1


class StopsAt(BaseCallback):
    """Ends the rollout before its time."""

    def _on_step(self) -> bool:
        return self.n_calls < 9


def test_rollout_that_a_callback_ends_has_values_and_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the steps that are in it, rewards included, as with SB3."""
    ours, theirs = (Scenario(episode_length=3).model(fast=fast) for fast in (True, False))
    kept: list[np.ndarray] = []
    for model in (ours, theirs):
        if model is theirs:
            actions = np.concatenate([ours.rollout_buffer.actions[:8], np.zeros_like(ours.rollout_buffer.actions[:4])])
            replay(theirs, [{"actions": actions}], monkeypatch)
        _, callback = model._setup_learn(10**6, StopsAt())
        assert model.env is not None
        assert not model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        kept.append(np.stack([getattr(model.rollout_buffer, name)[:8] for name in ("values", "log_probs", "rewards")]))
    np.testing.assert_allclose(kept[0], kept[1], rtol=1e-4, atol=1e-5)


class Pickles(BaseCallback):
    """Sends what a step has in its variables elsewhere."""

    def _on_step(self) -> bool:
        variables = {key: value for key, value in self.locals.items() if key not in ("self", "callback", "env")}
        self.sent = pickle.loads(pickle.dumps(variables))
        return True


def test_variables_of_a_step_can_be_pickled() -> None:
    """They are arrays and numbers, and nothing of ours."""
    pickles = Pickles()
    small_model().learn(64, pickles)
    assert {"idx", "done", "infos", "new_obs", "rollout_buffer", "n_steps"} <= pickles.sent.keys()


class Evaluates(BaseCallback):
    """Evaluates actions with a graph at a step, and copies the policy at another one."""

    def _on_step(self) -> bool:
        policy: Any = self.model.policy
        if self.n_calls == 3:
            observations = th.as_tensor(self.locals["new_obs"])
            policy.evaluate_actions(observations, th.zeros(len(observations), 3))
        if self.n_calls == 4:
            self.copied = copy.deepcopy(policy)
        return True


@pytest.mark.parametrize("fast", [True, False])
def test_graph_that_a_callback_leaves_is_gone_at_the_next_step(fast: bool) -> None:
    """A policy with one could not be copied."""
    evaluates = Evaluates()
    small_model(fast=fast).learn(64, evaluates)
    assert evaluates.copied is not None


class InParts(RolloutBuffer):
    """Yields its transitions in several batches, whatever it is asked for."""

    def get(self, batch_size: int | None = None) -> Any:
        yield from super().get(batch_size or 24)


def test_buffer_that_yields_several_batches_is_learned_from_as_a_whole() -> None:
    """Not from the first of them alone."""
    updates = []
    for buffer in (RolloutBuffer, InParts):
        model = small_model(TRPO, env=make_env(n_envs=2), n_steps=32, fast=False, rollout_buffer_class=buffer)
        shake(list(model.policy.parameters()), scale=0.1, seed=1)
        collect(model, Writes())
        batch = model._full_batch()
        problem = model._policy_problem(batch, model._split_parameters(batch)[0])
        updates.append((len(batch.returns), problem.surrogate_gradient()[1]))
    assert updates[0][0] == updates[1][0] == 64
    assert th.allclose(updates[0][1], updates[1][1], atol=1e-6) and updates[0][1].norm() > 1e-3


@pytest.mark.parametrize("activation", [th.nn.Tanh, th.nn.Softsign])
def test_values_are_the_policys(activation: type[th.nn.Module]) -> None:
    """In NumPy or not, whatever the critic is: asked for once more, observation by observation."""
    model = small_model(env=make_env(n_envs=3), n_steps=20, policy_kwargs={"activation_fn": activation})
    shake(list(model.policy.parameters()), scale=0.3, seed=2)
    collect(model, Evaluates())
    with th.no_grad():
        rows = [model.policy.predict_values(th.as_tensor(row)).flatten() for row in model.rollout_buffer.observations]
    np.testing.assert_allclose(model.rollout_buffer.values, th.stack(rows).numpy(), rtol=1e-5, atol=1e-5)
