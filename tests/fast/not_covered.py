"""Policies that no chain of layers describes, each for a reason of its own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo import TRPO, MlpPolicy
from sb3_trpo.objective import Batch
from tests.small_models import small_model


class Extractor(BaseFeaturesExtractor):
    """Learns features of its own."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, features_dim=5)
        self.net = nn.Linear(3, 5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations).sin()


class OtherDistribution(MlpPolicy):
    """Has its own idea of the distribution: half the mean."""

    def get_distribution(self, obs: PyTorchObs) -> Any:
        distribution = super().get_distribution(obs)
        return self.action_dist.proba_distribution(0.5 * distribution.mode(), self.log_std)


class OwnDistribution(TRPO):
    """A variant that asks its policy in a way of its own: about the world upside down."""

    def _distribution(self, batch: Batch) -> Any:
        assert isinstance(batch.observations, th.Tensor)
        return self.policy.get_distribution(-batch.observations)


class OtherFeatures(MlpPolicy):
    """Has its own idea of what the head is given."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return super()._get_action_dist_from_latent(latent_pi.sin())


def double(module: nn.Module, args: Any, output: th.Tensor) -> th.Tensor:
    return 2.0 * output


class Doubling(nn.Sequential):
    """A container that does more than to apply what is in it."""

    def forward(self, values: th.Tensor) -> th.Tensor:
        return 2.0 * super().forward(values)


def layers(model: TRPO, net: str = "policy_net") -> Any:
    return getattr(model.policy.mlp_extractor, net)


def contain(model: TRPO, net: str = "policy_net") -> None:
    setattr(model.policy.mlp_extractor, net, Doubling(*layers(model, net)))


def end_in_activation(model: TRPO, net: str = "policy_net", head: str = "action_net") -> None:
    layers(model, net).append(getattr(model.policy, head))
    setattr(model.policy, head, nn.Tanh())


def change(act: Callable[[TRPO], Any], **arguments: Any) -> Callable[[], TRPO]:
    """Return a maker of models that something is done to."""

    def make() -> TRPO:
        model = small_model(**arguments)
        act(model)
        return model

    return make


def with_own_forward(layer: nn.Module) -> None:
    original = layer.forward
    layer.forward = lambda values: 2.0 * original(values)


class TenthBack(th.autograd.Function):
    """Does nothing forward, and hands a tenth of the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return 0.1 * gradient


class ScaledGradient(Extractor):
    """A layer whose gradient is scaled."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return TenthBack.apply(self.net(observations))


def tie(model: TRPO) -> None:
    """Make the weight of a layer the transpose of another one's."""
    net = layers(model)
    net[2] = nn.Linear(64, 64)
    net.extend([nn.Linear(64, 64), nn.Tanh()])
    del net[4].weight
    net[4].weight = net[2].weight.t()


NOT_COVERED: dict[str, Callable[[], TRPO]] = {
    "gSDE that learns features": change(lambda model: setattr(model.policy.action_dist, "learn_features", True), use_sde=True),
    "extractor": partial(small_model, policy_kwargs={"features_extractor_class": Extractor}),
    "gradient of the user's own": partial(small_model, policy_kwargs={"features_extractor_class": ScaledGradient}),
    "weight made of another one": change(tie),
    "two precisions": change(lambda model: setattr(model.policy, "log_std", nn.Parameter(th.zeros(3, dtype=th.float64)))),
    "get_distribution overridden": partial(small_model, policy=OtherDistribution),
    "distribution from latent overridden": partial(small_model, policy=OtherFeatures),
    "distribution of a variant": partial(small_model, cls=OwnDistribution),
    "Softsign": partial(small_model, policy_kwargs={"activation_fn": nn.Softsign}),
    "hook on a layer": change(lambda model: layers(model)[0].register_forward_hook(double)),
    "hook before a layer": change(
        lambda model: layers(model)[2].register_forward_pre_hook(lambda module, args: args[0].sin())
    ),
    "hook on the head": change(lambda model: model.policy.action_net.register_forward_hook(double)),
    "hook on the layers together": change(lambda model: layers(model).register_forward_hook(double)),
    "hook on the extractor": change(lambda model: model.policy.pi_features_extractor.register_forward_hook(double)),
    "forward of a layer replaced": change(lambda model: with_own_forward(layers(model)[0])),
    "weight norm": change(lambda model: nn.utils.parametrizations.weight_norm(layers(model)[0])),
    "no bias": change(lambda model: layers(model).__setitem__(2, nn.Linear(64, 64, bias=False))),
    "normalised without weights": change(lambda model: layers(model).append(nn.LayerNorm(64, elementwise_affine=False))),
    "two activations": change(lambda model: layers(model).append(nn.ReLU())),
    "container": change(contain),
    "activation at the end": change(end_in_activation),
    "one deviation for all actions": change(lambda model: setattr(model.policy, "log_std", nn.Parameter(th.zeros(1)))),
}
