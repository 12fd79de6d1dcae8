"""What callbacks and users do to buffers, distributions and policies is noticed: learned from as it is, or refused by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from tests.cases import shake
from tests.promises.test_experience import AtTheEnd, Changes, collect, expected_log_probs
from tests.small_models import DISCRETE, changed, make_env, policy_state, small_model


class Acts(BaseCallback):
    """Does something in one of the hooks."""

    def __init__(self, hook: str, act: Callable[[Any], Any], at_step: int = 3):
        super().__init__()
        self.hook, self.act, self.at_step = hook, act, at_step

    def _on_rollout_start(self) -> None:
        if self.hook == "start":
            self.act(self.model)

    def _on_step(self) -> bool:
        if self.hook == "step" and self.n_calls == self.at_step:
            self.act(self.model)
        return True

    def _on_rollout_end(self) -> None:
        if self.hook == "end":
            self.act(self.model)


def empty_buffer(model: TRPO) -> None:
    old = model.rollout_buffer
    model.rollout_buffer = RolloutBuffer(old.buffer_size, old.observation_space, old.action_space, n_envs=old.n_envs)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("hook", "act"),
    [
        ("end", lambda model: model.rollout_buffer.reset()),
        ("step", lambda model: model.rollout_buffer.reset()),
        ("end", empty_buffer),
        ("start", empty_buffer),
        ("step", lambda model: model.train()),
    ],
    ids=["reset at the end", "reset in a step", "another at the end", "another at the start", "train in a step"],
)
def test_buffer_that_is_not_full_is_refused(hook: str, act: Callable[[Any], Any], fast: bool) -> None:
    """As SB3 does, and nothing moves: there is no rollout in it."""
    model = small_model(fast=fast)
    before = policy_state(model)
    with pytest.raises(ValueError, match="rollout_buffer must be full"):
        model.learn(64, Acts(hook, act))
    assert not changed(before, policy_state(model))


def test_array_put_back_after_reading_belongs_to_the_same_transitions() -> None:
    """``get`` turns the arrays of the buffer round: one in the shape of before is turned round with them."""
    advantages = []
    for reads in (False, True):

        def weigh(buffer: Any, reads: bool = reads) -> None:
            weighed = buffer.advantages * np.arange(1.0, 1.0 + buffer.advantages.size).reshape(buffer.advantages.shape)
            if reads:
                next(buffer.get(None))
            buffer.advantages = weighed

        model = small_model(env=make_env(n_envs=3), n_steps=16, normalize_advantage=False)
        collect(model, AtTheEnd(weigh))
        batch = model._full_batch()
        rows = np.lexsort(batch.actions.numpy().T)
        advantages.append(batch.advantages.numpy()[rows])
    np.testing.assert_array_equal(advantages[0], advantages[1])


@pytest.mark.parametrize("fast", [True, False])
def test_advantages_of_another_precision_are_learned_from(fast: bool) -> None:
    """A product with NumPy's float64 is one."""

    def weigh(buffer: Any) -> None:
        buffer.advantages = buffer.advantages * np.linspace(0.5, 1.5, buffer.advantages.size).reshape(buffer.advantages.shape)
        assert buffer.advantages.dtype == np.float64

    model = small_model(env=make_env(n_envs=2), fast=fast).learn(64, AtTheEnd(weigh))
    assert model.last_update is not None and model.last_update.step.accepted


def narrow(policy: Any) -> None:
    """Have the distribution made with a deviation of an eighth."""
    made = policy.action_dist.proba_distribution
    policy.action_dist.proba_distribution = lambda mean, log_std: made(mean, log_std - np.log(8.0))


def certain(policy: Any) -> None:
    policy.action_dist.sample = policy.action_dist.mode


@pytest.mark.parametrize("at_step", [None, 0, 5])
@pytest.mark.parametrize("patch", [narrow, certain])
def test_distribution_that_is_patched_is_acted_with(patch: Callable[[Any], None], at_step: int | None) -> None:
    """Before learning, before the rollout, in its midst: the log-probability is that of what acted."""
    model = small_model(env=make_env(n_envs=2), n_steps=12)
    shake(list(model.policy.parameters()), scale=0.2, seed=1)
    if at_step is None:
        patch(model.policy)
        collect(model, Acts("none", patch))
    else:
        collect(model, Acts("start" if at_step == 0 else "step", lambda model: patch(model.policy), at_step))
    buffer = model.rollout_buffer
    acted = slice(at_step or 0, None)
    with th.no_grad():
        rows = [
            model.policy.get_distribution(th.as_tensor(o)).log_prob(th.as_tensor(a))
            for o, a in zip(buffer.observations, buffer.actions, strict=True)
        ]
        modes = [model.policy.get_distribution(th.as_tensor(o)).mode() for o in buffer.observations]
    np.testing.assert_allclose(buffer.log_probs[acted], th.stack(rows).numpy()[acted], rtol=1e-4, atol=1e-4)
    if patch is certain:
        np.testing.assert_allclose(buffer.actions[acted], th.stack(modes).numpy()[acted], rtol=1e-5, atol=1e-5)


def transposed(model: TRPO, other: Any) -> None:
    layers: Any = model.policy.mlp_extractor.policy_net
    layers[2].weight.data = layers[2].weight.data.T


def own_forward(model: TRPO, other: Any) -> None:
    layer: Any = model.policy.action_net
    layer.forward = lambda values: 0.5 * th.nn.functional.linear(values, layer.weight, layer.bias)


class Halved(th.nn.Linear):
    """A layer that gives half of what a linear one gives."""

    def forward(self, input: th.Tensor) -> th.Tensor:
        return 0.5 * super().forward(input)


def another_class(model: TRPO, other: Any) -> None:
    model.policy.action_net.__class__ = Halved


@pytest.mark.parametrize("at_step", [0, 5])
@pytest.mark.parametrize("idiom", [transposed, own_forward, another_class])
def test_changes_within_the_same_storage_and_the_same_objects_are_noticed(
    idiom: Callable[[TRPO, Any], None], at_step: int
) -> None:
    """The array, method or class of before is not acted with."""
    model, changes = small_model(env=make_env(n_envs=2), n_steps=12), Changes(idiom, at_step)
    shake(list(model.policy.parameters()), scale=0.2, seed=1)
    collect(model, changes)
    np.testing.assert_allclose(
        model.rollout_buffer.log_probs, expected_log_probs(model, changes.policies), rtol=1e-4, atol=1e-4
    )


class Wrapped(th.nn.Module):
    """Stands in a policy's place, with no more than what SB3 asks of it."""

    def __init__(self, policy: Any):
        super().__init__()
        self.inner = policy
        self.optimizer = policy.optimizer
        self.squash_output = False

    def __getattr__(self, name: str) -> Any:
        if name in ("device", "use_sde", "observation_space", "action_space"):
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("hook", ["start", "step"])
@pytest.mark.parametrize("fast", [True, False])
def test_wrapped_policy_learns(hook: str, fast: bool) -> None:
    """One that has what SB3 reads of a policy, and nothing else."""

    def wrap(model: Any) -> None:
        if not isinstance(model.policy, Wrapped):
            model.policy = Wrapped(model.policy)

    model = small_model(fast=fast).learn(128, Acts(hook, wrap))
    assert isinstance(model.policy, Wrapped)
    assert model.last_update is not None and model.last_update.step.accepted


def test_environment_that_a_callback_replaces_is_refused_by_name() -> None:
    """A rollout is of one environment; what to do is said, and nothing moved."""
    for hook in ("start", "end"):
        model = small_model()
        before = policy_state(model)
        with pytest.raises(ValueError, match=r"env must stay.*set_env between two calls of learn"):
            model.learn(128, Acts(hook, lambda model: setattr(model, "env", make_env())))
        assert not changed(before, policy_state(model))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("hook", ["start", "step", "end"])
def test_normalisation_that_a_callback_switches_goes_on(hook: str, fast: bool) -> None:
    """Statistics that come or go in the midst of a rollout are no reason to stop."""
    env = VecNormalize(make_env(n_envs=2))

    def switch(model: Any) -> None:
        env.norm_obs = not env.norm_obs

    model = small_model(env=env, fast=fast).learn(192, Acts(hook, switch))
    assert model._n_updates == 3


def test_seed_that_a_callback_sets_as_a_rollout_starts_is_in_force() -> None:
    """Two models with other seeds act alike from then on."""
    actions = []
    for seed in (0, 1):
        model = small_model(env=make_env(action_space=DISCRETE), seed=seed)
        with th.no_grad():
            model.policy.action_net.weight.zero_()  # type: ignore[operator]
        collect(model, Acts("start", lambda model: model.set_random_seed(7)))
        actions.append(model.rollout_buffer.actions.copy())
    np.testing.assert_array_equal(actions[0], actions[1])
