"""What cannot be seen is not taken for nothing to do: gradients that are off, and actors that are detached."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_trpo import TRPO, MlpPolicy
from sb3_trpo.gradients import NoGradientError, is_same_function
from sb3_trpo.inspect import inspect_model
from tests.small_models import DISCRETE, changed, make_env, policy_state, small_model


class Off:
    """Gradients switched off for good, as another library may have done."""

    def __enter__(self) -> None:
        th.set_grad_enabled(False)

    def __exit__(self, *error: Any) -> None:
        th.set_grad_enabled(True)


SWITCHED_OFF: dict[str, tuple[Callable[[], Any], str]] = {
    "set_grad_enabled": (Off, r"set_grad_enabled\(False\)"),
    "no_grad": (th.no_grad, r"torch\.no_grad\(\)"),
    "inference_mode": (th.inference_mode, r"inside torch\.inference_mode\(\)"),
}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("name", SWITCHED_OFF)
def test_gradients_that_are_off_are_an_error_that_names_the_cause(name: str, fast: bool) -> None:
    """Before a step in the environment, and before anything moves; with gradients on again the model is as good as new."""
    context, cause = SWITCHED_OFF[name]
    model = small_model(fast=fast)
    before = policy_state(model)
    with context(), pytest.raises(RuntimeError, match=cause) as refusal:
        model.learn(64)
    assert isinstance(refusal.value, ValueError)
    assert model.num_timesteps == 0 and model.last_update is None and not changed(before, policy_state(model))
    model.learn(64)
    assert model.last_update is not None and model.last_update.step.accepted


@pytest.mark.parametrize("name", SWITCHED_OFF)
def test_update_alone_and_its_picture_want_gradients_too(name: str) -> None:
    context, cause = SWITCHED_OFF[name]
    model = small_model().learn(64)
    before = policy_state(model)
    with context():
        for update in (model.train, lambda: inspect_model(model)):
            with pytest.raises(RuntimeError, match=cause):
                update()
    assert not changed(before, policy_state(model))


class SwitchingOff(BaseCallback):
    """Switches gradients off in the middle of a rollout."""

    def _on_step(self) -> bool:
        if self.n_calls == 70:
            th.set_grad_enabled(False)
        return True


def test_gradients_that_a_callback_switches_off_are_an_error() -> None:
    """The update that comes next does not pass for one without a gradient."""
    model = small_model()
    try:
        with pytest.raises(RuntimeError, match="set_grad_enabled"):
            model.learn(128, callback=SwitchingOff())
    finally:
        th.set_grad_enabled(True)
    assert model._n_updates == 1


@pytest.mark.parametrize("name", ["set_grad_enabled", "no_grad"])
def test_model_is_made_loaded_and_asked_without_gradients(name: str, tmp_path: Any) -> None:
    """Only learning needs them."""
    with SWITCHED_OFF[name][0]():
        model = small_model()
        model.save(tmp_path / "model")
        model = TRPO.load(tmp_path / "model", make_env(), device="cpu")
        model.predict(np.zeros((1, 3), np.float32))
    model.learn(64)
    assert model.last_update is not None and model.last_update.step.accepted


def test_policy_made_in_inference_mode_cannot_be_trained() -> None:
    with th.inference_mode():
        model = small_model()
    with pytest.raises(RuntimeError, match=r"made or loaded inside torch\.inference_mode\(\)"):
        model.learn(64)


# Actors that are not seen


class Detached(MlpPolicy):
    """What it acts by is cut from what made it."""

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        distribution = super().get_distribution(obs)
        inner: Any = distribution.distribution
        return self.action_dist.proba_distribution(inner.logits.detach())


class WithoutGradients(MlpPolicy):
    """Computes its distribution as one does to predict."""

    @th.no_grad()
    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        return super().get_distribution(obs)


class OutsideOfTorch(MlpPolicy):
    """Passes through NumPy."""

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        inner: Any = super().get_distribution(obs).distribution
        return self.action_dist.proba_distribution(th.from_numpy(inner.logits.detach().numpy() * 2))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("policy", [Detached, WithoutGradients, OutsideOfTorch])
def test_actor_that_is_not_frozen_and_not_seen_is_an_error(policy: type[MlpPolicy], share: bool) -> None:
    """That names what could be trained, and what may be in the way; before anything moves, the critic included."""
    model = small_model(policy=policy, env=make_env(action_space=DISCRETE), policy_kwargs={"share_features_extractor": share})
    before = policy_state(model)
    with pytest.raises(ValueError, match=r"action_net\.weight.*detached.*freeze") as refusal:
        model.learn(64)
    assert "value_net" not in str(refusal.value).replace("mlp_extractor.value_net", "value_net")
    assert not changed(before, policy_state(model)) and model.last_update is None
    assert all(parameter.requires_grad for parameter in model.policy.parameters())


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("with_another_head", [True, False])
def test_actor_frozen_on_purpose_leaves_the_critic_to_train(share: bool, with_another_head: bool) -> None:
    """Also beside a head that neither actor nor critic use, which nobody froze."""
    model = small_model(policy_kwargs={"share_features_extractor": share})
    if with_another_head:
        model.policy.auxiliary = th.nn.Linear(2, 2)
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_("value" in name or "auxiliary" in name)
    trainable = [parameter.requires_grad for parameter in model.policy.parameters()]
    before = policy_state(model)
    model.learn(128)
    assert model.last_update is not None and model.last_update.step.status == "gradient_zero"
    assert model.last_update.is_frozen and model.last_update.remark() is None  # as its user wants it
    assert model.last_update.critic is not None and model.last_update.critic.status == "fitted"
    moved = changed(before, policy_state(model))
    assert moved and all("value" in name for name in moved)
    assert [parameter.requires_grad for parameter in model.policy.parameters()] == trainable


@pytest.mark.parametrize("policy", [Detached, WithoutGradients])
def test_detached_actor_that_is_frozen_too_goes_on(policy: type[MlpPolicy]) -> None:
    """To train the critic alone is what somebody asked for."""
    model = small_model(policy=policy, env=make_env(action_space=DISCRETE))
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_("value" in name)
    with nullcontext():
        model.learn(64)
    assert model.last_update is not None and model.last_update.critic is not None
    assert model.last_update.critic.status == "fitted"


def test_part_of_an_actor_may_be_detached() -> None:
    """What is seen is trained."""

    class Partly(MlpPolicy):
        def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
            return super()._get_action_dist_from_latent(latent_pi.detach())

    model = small_model(policy=Partly)
    before = policy_state(model)
    model.learn(64)
    assert model.last_update is not None and model.last_update.step.accepted
    assert not any("policy_net" in name for name in changed(before, policy_state(model)))


@pytest.mark.parametrize("fast", [True, False])
def test_actor_without_a_layer_of_its_own_that_is_detached_is_an_error(fast: bool) -> None:
    """Everything that can be trained is the critic's too, and nobody froze anything."""

    class ReadOut(MlpPolicy):
        def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
            return self.action_dist.proba_distribution(latent_pi.detach()[:, :3])

        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            self.action_net = th.nn.Identity()
            self.mlp_extractor.policy_net = self.mlp_extractor.value_net
            self.optimizer = self.optimizer_class(self.parameters(), lr=1e-3)  # type: ignore[call-arg]

    model = small_model(policy=ReadOut, env=make_env(action_space=DISCRETE), fast=fast)
    with pytest.raises(NoGradientError, match="detached"):
        model.learn(64)


class ValuesWithoutGradient(MlpPolicy):
    """PPO trains its critic through ``evaluate_actions``."""

    @th.no_grad()
    def predict_values(self, obs: Any) -> th.Tensor:
        return super().predict_values(obs)


class NoCritic(MlpPolicy):
    """Has none to train."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        for part in (self.value_net, self.mlp_extractor.value_net):
            part.requires_grad_(False)

    def predict_values(self, obs: Any) -> th.Tensor:
        return th.zeros(len(obs), 1)


def test_critic_that_gets_no_gradient_is_told_once() -> None:
    """Otherwise it would stay as it is, and nobody would know."""
    model = small_model(TRPO, ValuesWithoutGradient)
    with pytest.warns(UserWarning, match=r"value_net\.weight.*predict_values") as told:
        model.learn(128)
    assert len(told) == 1
    assert model.last_update is not None and model.last_update.critic is None and model.last_update.step.accepted


class NoCriticButMore(NoCritic):
    """Has another part, which the user trains."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.auxiliary = th.nn.Linear(3, 1)


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [(NoCritic, {}), (NoCriticButMore, {}), (ValuesWithoutGradient, {"n_critic_updates": 0}), (MlpPolicy, {})],
)
def test_nothing_is_told_where_no_critic_is_to_be_trained(policy: Any, arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_model(TRPO, policy, **arguments).learn(64)


def test_same_function_is_of_the_same_values_by_the_same_operations() -> None:
    x = th.tensor([1.0, 2.0], requires_grad=True)
    y = th.tensor([1.0, 2.0], requires_grad=True)
    assert is_same_function(2.0 * x, 2.0 * x) and is_same_function((x * x).sum(), (x * x).sum())
    assert not is_same_function(2.0 * x, 3.0 * x)
    assert not is_same_function(x + 0.0 * y.detach(), x.clamp(-9.0, 9.0))
    assert not is_same_function(2.0 * x, 2.0 * y)
    assert not is_same_function(x * x, x * y)
