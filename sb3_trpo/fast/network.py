"""Read a policy's networks as a chain of linear maps, layer norms and elementwise functions, if that is all they are."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.fast.elementwise import TABLE, apply
from sb3_trpo.fast.masks import KNOWN_POLICIES
from sb3_trpo.policies import from_zero

# Weights times inputs up to which NumPy on the CPU is quicker than a GPU, which has to start its kernels: measured on an H100
# with a critic's minibatches, forward and back
MOST_ON_CPU = 2**23

# Methods by which SB3's modules are asked for what they give: one that is set on an object is the user's own
OWN_FORWARD = frozenset({"forward", "forward_actor", "forward_critic"})


class Stage(NamedTuple):
    """
    One link of the chain: a map that is affine in its parameters, then an elementwise function.

    :param affine: ``Linear``, ``Conv2d``, or ``LayerNorm`` of the last dimension
    :param weight: its weight
    :param bias: its bias
    :param activation: one of those in ``elementwise.TABLE``, ``None`` for the identity
    """

    affine: nn.Linear | nn.Conv2d | nn.LayerNorm
    weight: nn.Parameter
    bias: nn.Parameter
    activation: nn.Module | None


def _is_plain(module: nn.Module) -> bool:
    """Whether a module and those within do nothing beside what their classes say."""
    if nn.modules.module._has_any_global_hook():
        return False
    # Read several times a rollout: in one pass, without a call for each attribute
    for part in module.modules():
        attributes = vars(part)
        if (
            attributes["_forward_hooks"]
            or attributes["_forward_pre_hooks"]
            or attributes["_backward_hooks"]
            or attributes["_backward_pre_hooks"]
            or not OWN_FORWARD.isdisjoint(attributes)
        ):
            return False
        for parameter in attributes["_parameters"].values():
            if parameter is not None and (parameter._backward_hooks or parameter._post_accumulate_grad_hooks):
                return False
    return True


def _is_affine(module: nn.Module) -> bool:
    plain_convolution = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    norm_of_rows = type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and module.weight is not None
    return (type(module) is nn.Linear or plain_convolution or norm_of_rows) and module.bias is not None


def read_stages(modules: Iterable[nn.Module]) -> list[Stage] | None:
    """
    Read modules that are applied one after the other.

    :param modules: layers; ``Flatten`` before the first ``Linear`` is implied, and passed over
    :return: the stages, the last of which has no activation; ``None`` if there is anything else among the modules
    """
    stages: list[Stage] = []
    for module in modules:
        # Exact types: a subclass (weight norm is one) may compute anything
        kind = type(module)
        if _is_affine(module):
            stages.append(Stage(module, module.weight, module.bias, None))  # type: ignore[arg-type]
        elif kind in TABLE and stages and stages[-1].activation is None:
            stages[-1] = stages[-1]._replace(activation=module)
        elif kind is nn.Identity:
            continue
        elif kind is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
            continue
        else:
            return None
    return stages if stages and stages[-1].activation is None else None


def is_as_sb3(policy: BasePolicy, *methods: str) -> bool:
    """Whether a policy does as a class that is known does: none of these methods is overridden, and nothing hooked."""
    known = next((kind for kind in KNOWN_POLICIES if isinstance(policy, kind)), None)
    return known is not None and is_as(policy, known, *methods)


def is_as(policy: BasePolicy, known: type[BasePolicy], *methods: str) -> bool:
    """Whether a policy does as a class does: none of these methods is overridden, and nothing hooked."""
    own = type(policy)
    unchanged = (getattr(own, name) is getattr(known, name) and name not in vars(policy) for name in methods)
    return isinstance(policy, known) and all(unchanged) and _is_plain(policy)


def layers_of(net: nn.Module) -> Iterator[nn.Module]:
    """Yield what is applied one after the other; of anything but a plain container itself."""
    if type(net) is nn.Sequential:
        yield from net
    else:
        yield net


def only_joins(extractor: nn.Module) -> bool:
    """Whether an extractor makes one vector of those in a Dict, and learns nothing."""
    return type(extractor) is CombinedExtractor and all(type(part) is nn.Flatten for part in extractor.extractors.values())


def _extractor_modules(extractor: nn.Module) -> Iterator[nn.Module]:
    if type(extractor) is NatureCNN:
        yield from (*layers_of(extractor.cnn), *layers_of(extractor.linear))
    elif type(extractor) is not FlattenExtractor and not only_joins(extractor):
        yield extractor  # no stage can be read from it


def _chain(policy: ActorCriticPolicy, extractor: str, net: str, head: str) -> list[Stage] | None:
    # By name: a policy that goes its own way need not have them
    if (
        not is_as_sb3(policy, "extract_features", "get_distribution", "_get_action_dist_from_latent", "predict_values")
        or type(policy.mlp_extractor) is not MlpExtractor
    ):
        return None
    nets = (getattr(policy.mlp_extractor, net), getattr(policy, head))
    return read_stages([*_extractor_modules(getattr(policy, extractor)), *layers_of(nets[0]), nets[1]])


def read_actor(policy: ActorCriticPolicy) -> list[Stage] | None:
    """Read the network from preprocessed observations to the action distribution's mean or logits, if it is a chain."""
    return _chain(policy, "pi_features_extractor", "policy_net", "action_net")


def read_critic(policy: ActorCriticPolicy) -> list[Stage] | None:
    """Read the network from preprocessed observations to the value, if it is a chain."""
    return _chain(policy, "vf_features_extractor", "value_net", "value_net")


def is_a_chain(policy: ActorCriticPolicy) -> bool:
    """Whether actor and critic are chains, so that what they depend on is the same in every state."""
    return read_actor(policy) is not None and read_critic(policy) is not None


def is_quicker_on_gpu(parameters: list[nn.Parameter], n: int) -> bool:
    """Whether a network is on a GPU and large enough to be quicker there, for n inputs at a time."""
    return parameters[0].device.type != "cpu" and n * sum(map(th.numel, parameters)) > MOST_ON_CPU


def network_input(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """Return what the first layer is given: floats, images scaled, discrete observations one-hot, a Dict of vectors joined."""
    counted: Any = from_zero(observations, policy.observation_space)
    processed = preprocess_obs(counted, policy.observation_space, normalize_images=policy.normalize_images)
    return processed if isinstance(processed, th.Tensor) else policy.pi_features_extractor(processed)


@th.no_grad()
def run(policy: ActorCriticPolicy, stages: list[Stage], observations: PyTorchObs) -> th.Tensor:
    """Return what the chain gives for a few observations, shape (n, n_outputs)."""
    values = network_input(policy, observations)
    for stage in stages:
        values = stage.affine(as_given(stage, values))
        values = apply(stage.activation, values)
    return values


def as_given(stage: Stage, values: th.Tensor) -> th.Tensor:
    """Return what the stage before gave in the shape in which a stage takes it."""
    return values if isinstance(stage.affine, nn.Conv2d) else values.flatten(1)


def is_as_read(given: th.Tensor, read: th.Tensor) -> bool:
    """Whether what the algorithm gets from a policy is what the chain gives, up to rounding."""
    return given.shape == read.shape and th.allclose(given.to(read.dtype), read, rtol=1e-3, atol=1e-4, equal_nan=True)
