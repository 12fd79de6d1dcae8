"""
Read a policy's networks as a chain of linear maps, layer norms and elementwise functions, if that is all they are.

The plain twin of a chain is the policy itself: its ``get_distribution`` and ``predict_values``.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.fast.elementwise import TABLE, apply
from sb3_trpo.fast.kinds import KNOWN_POLICIES
from sb3_trpo.fast.traced import Layers, traced_layers
from sb3_trpo.guards.overridden import is_as_written, known_kind
from sb3_trpo.policies import from_zero
from sb3_trpo.trust_region.fisher import nodes_of

# Weights times inputs up to which NumPy on the CPU is quicker than a GPU, which has to start its kernels: measured on an H100
# with a critic's minibatches, forward and back
MOST_ON_CPU = 2**23

# Methods by which SB3's modules are asked for what they give: one that is set on an object is the user's own
OWN_FORWARD = frozenset({"forward", "forward_actor", "forward_critic"})

# The names of an extractor, of what follows it in ``mlp_extractor``, and of the last layer
OF_ACTOR = ("pi_features_extractor", "policy_net", "action_net")
OF_CRITIC = ("vf_features_extractor", "value_net", "value_net")


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
    kinds = set()
    # Read several times a rollout: in one pass, without a call for each attribute
    for part in module.modules():
        attributes = vars(part)
        if isinstance(part, th.jit.ScriptModule):
            return False  # nothing of what it is stands in it
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
        kinds.add(type(part))
    return all(is_as_written(kind, "__call__", *OWN_FORWARD) for kind in kinds)


def _is_affine(module: nn.Module) -> bool:
    plain_convolution = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    norm_of_rows = type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and module.weight is not None
    if not (type(module) is nn.Linear or plain_convolution or norm_of_rows) or module.bias is None:
        return False
    # What is made from another parameter has a derivative of its own
    return all(isinstance(tensor, th.Tensor) and tensor.is_leaf for tensor in (module.weight, module.bias))


def read_stages(modules: Iterable[nn.Module], *, to_the_end: bool = True) -> list[Stage] | None:
    """
    Read modules that are applied one after the other.

    :param modules: layers; ``Flatten`` before the first ``Linear`` is implied, and passed over
    :param to_the_end: whether the last one gives the outputs, and must have no activation
    :return: the stages; ``None`` if there is anything else among the modules
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
    if not to_the_end:
        return stages
    return stages if stages and stages[-1].activation is None else None


def is_as_sb3(policy: BasePolicy, *methods: str) -> bool:
    """Whether a policy does as a class that is known does: none of these methods is overridden, and nothing hooked."""
    known = next((kind for kind in KNOWN_POLICIES if isinstance(policy, kind)), None)
    return known is not None and is_as(policy, known, *methods)


def is_as(policy: BasePolicy, known: type[BasePolicy], *methods: str) -> bool:
    """Whether a policy does as a class does: none of these methods is overridden, and nothing hooked."""
    own = type(policy)
    unchanged = (getattr(own, name) is getattr(known, name) and name not in vars(policy) for name in methods)
    return isinstance(policy, known) and all(unchanged) and is_as_written(known, *methods) and _is_plain(policy)


def _layers(net: nn.Module) -> Iterator[nn.Module]:
    """Yield what is applied one after the other; of anything but a plain container itself."""
    if type(net) is nn.Sequential:
        yield from net
    else:
        yield net


class Network(NamedTuple):
    """
    A network as chains: one for each part of a Dict, joined to one vector, and one from there to the outputs.

    :param branches: the stages of each part by its key, in the order in which they are joined; empty where there is no Dict
    :param stages: from the joint vector, or the observation, to the outputs
    """

    branches: dict[str, list[Stage]]
    stages: list[Stage]

    def learns_before_joint(self) -> bool:
        """Whether there is anything but flattening before the parts of a Dict are joined."""
        return any(self.branches.values())


def _extractor_modules(extractor: nn.Module) -> Layers | None:
    if type(extractor) is FlattenExtractor:
        return {}, []
    if type(extractor) is NatureCNN:
        return {}, [*_layers(extractor.cnn), *_layers(extractor.linear)]
    if type(extractor) is CombinedExtractor:
        of_parts = {}
        for key, part in extractor.extractors.items():
            inner = ({}, [part]) if type(part) is nn.Flatten else _extractor_modules(part)
            if inner is None or inner[0]:
                return None
            of_parts[key] = inner[1]
        return of_parts, []
    return traced_layers(extractor)


def _is_as_read(policy: ActorCriticPolicy) -> bool:
    """Whether a policy does nothing beside what its networks do."""
    return is_as_sb3(policy, "extract_features", "get_distribution", "_get_action_dist_from_latent", "predict_values")


def read_network(policy: ActorCriticPolicy, extractor: str, net: str, head: str) -> Network | None:
    """
    Read what a policy is made of, whatever it does with it.

    :param policy: the policy
    :param extractor: name of its feature extractor
    :param net: name of what follows, in its ``mlp_extractor``
    :param head: name of the last layer
    """
    # By name: a policy that goes its own way need not have them
    if known_kind(policy.mlp_extractor, {MlpExtractor}) is None:
        return None
    before = _extractor_modules(getattr(policy, extractor))
    if before is None:
        return None
    of_parts = {key: read_stages(modules, to_the_end=False) for key, modules in before[0].items()}
    stages = read_stages([*before[1], *_layers(getattr(policy.mlp_extractor, net)), getattr(policy, head)])
    if stages is None or any(part is None for part in of_parts.values()):
        return None
    return Network(of_parts, stages)  # type: ignore[arg-type]


def read_actor(policy: ActorCriticPolicy) -> Network | None:
    """Read the network from preprocessed observations to the action distribution's mean or logits, if chains are all it is."""
    return read_network(policy, *OF_ACTOR) if _is_as_read(policy) else None


def read_critic(policy: ActorCriticPolicy) -> Network | None:
    """Read the network from preprocessed observations to the value, if chains are all it is."""
    return read_network(policy, *OF_CRITIC) if _is_as_read(policy) else None


def is_a_chain(policy: ActorCriticPolicy) -> bool:
    """Whether actor and critic are chains, so that what they depend on is the same in every state."""
    return _is_as_read(policy) and all(read_network(policy, *names) is not None for names in (OF_ACTOR, OF_CRITIC))


def is_quicker_on_gpu(parameters: list[nn.Parameter], n: int) -> bool:
    """Whether a network is on a GPU and large enough to be quicker there, for n inputs at a time."""
    return parameters[0].device.type != "cpu" and n * sum(map(th.numel, parameters)) > MOST_ON_CPU


def inputs_of(policy: ActorCriticPolicy, network: Network, observations: PyTorchObs) -> dict[str, th.Tensor]:
    """Return what each branch is given, under ``""`` where there is no Dict: floats, images scaled, discrete ones one-hot."""
    counted: Any = from_zero(observations, policy.observation_space)
    processed = preprocess_obs(counted, policy.observation_space, normalize_images=policy.normalize_images)
    return {"": processed} if isinstance(processed, th.Tensor) else {key: processed[key] for key in network.branches}


def network_input(policy: ActorCriticPolicy, network: Network, observations: PyTorchObs) -> th.Tensor:
    """Return what the first stage is given: the observation, or the parts of a Dict joined to one vector."""
    given = inputs_of(policy, network, observations)
    if not network.branches:
        return given[""]
    return th.cat([through(stages, given[key]).flatten(1) for key, stages in network.branches.items()], dim=1)


def through(stages: list[Stage], values: th.Tensor) -> th.Tensor:
    """Return what stages make of values, one after the other."""
    for stage in stages:
        values = apply(stage.activation, stage.affine(as_given(stage, values)))
    return values


@th.no_grad()
def run(policy: ActorCriticPolicy, network: Network, observations: PyTorchObs) -> th.Tensor:
    """Return what a network gives for a few observations, shape (n, n_outputs)."""
    return through(network.stages, network_input(policy, network, observations))


def as_given(stage: Stage, values: th.Tensor) -> th.Tensor:
    """Return what the stage before gave in the shape in which a stage takes it."""
    return values if isinstance(stage.affine, nn.Conv2d) else values.flatten(1)


def is_differentiated_by_torch(output: th.Tensor) -> bool:
    """Whether no function of the user's own, with a derivative of its own, is on the way to an output."""
    return not any(isinstance(node, th.autograd.function.BackwardCFunction) for node in nodes_of(output))


def is_as_read(given: th.Tensor, read: th.Tensor) -> bool:
    """Whether what the algorithm gets from a policy is what the chain gives, up to rounding, and differentiated as that is."""
    if not is_differentiated_by_torch(given):
        return False
    return given.shape == read.shape and th.allclose(given.to(read.dtype), read, rtol=1e-3, atol=1e-4, equal_nan=True)
