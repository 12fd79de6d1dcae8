"""What an update must be able to see: gradients that torch keeps, and the parameters behind the action distribution."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch as th
from torch import nn

from sb3_trpo.trust_region import reached_by
from sb3_trpo.trust_region.fisher import nodes_of

# Parts of names of what SB3's and sb3-contrib's policies make the values from
OF_CRITIC = ("value_net", "vf_features_extractor", "lstm_critic", "critic.")


class NoGradientError(RuntimeError, ValueError):
    """There is something to train, and no gradient that would show how."""


def check_gradients(policy: nn.Module) -> None:
    """
    Fail where torch keeps no gradients, before anything moves.

    :param policy: the policy to train
    :raises NoGradientError: naming what switched them off
    """
    cause = ""
    if th.is_inference_mode_enabled():
        cause = "learn() was called inside torch.inference_mode()"
    elif not th.is_grad_enabled():
        cause = "they are off: torch.set_grad_enabled(False) was called, or learn() inside torch.no_grad()"
    elif any(parameter.is_inference() for parameter in policy.parameters()):
        cause = "the policy was made or loaded inside torch.inference_mode(), and such parameters can never be trained"
    if cause:
        raise NoGradientError(
            f"TRPO needs the gradients of torch to learn, and {cause}. Nothing was updated; torch.enable_grad() around "
            "learn(), or torch.set_grad_enabled(True), switches them on"
        )


def _operations(output: th.Tensor) -> list[tuple[str, int, list[int | None]]]:
    """List what an output was made by: each operation with its variable, if it is a leaf, and with what it was made from."""
    nodes = list(nodes_of(output))
    number = {node: i for i, node in enumerate(nodes)}
    return [
        (node.name(), id(getattr(node, "variable", None)), [number.get(before) for before, _ in node.next_functions])
        for node in nodes
    ]


def is_same_function(given: th.Tensor, expected: th.Tensor) -> bool:
    """Whether two outputs have the same values, and were made by the same operations from the same parameters."""
    return th.equal(given, expected) and _operations(given) == _operations(expected)


@contextmanager
def _thawed(policy: nn.Module) -> Iterator[None]:
    """Let every parameter be trainable for a moment."""
    frozen = [p for p in policy.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def untrained(policy: nn.Module, actor: Iterable[nn.Parameter], values: list[nn.Parameter]) -> list[str]:
    """
    Name the parameters that a critic would be fitted by, if its values had a gradient.

    :param policy: the policy
    :param actor: the trainable parameters that the action distribution depends on
    :param values: those that the values were seen to depend on
    :return: nothing where the values depend on any, or where nothing else is left to be trained
    """
    if values:
        return []
    of_actor = set(actor)
    left = [name for name, p in policy.named_parameters() if p.requires_grad and p not in of_actor]
    return [name for name in left if any(part in name for part in OF_CRITIC)]


def check_actor(
    policy: nn.Module, actor: list[nn.Parameter], values: Iterable[nn.Parameter], log_prob: Callable[[], th.Tensor]
) -> None:
    """
    Fail if a policy has no actor to train although nobody froze it.

    A policy is frozen on purpose if the graph of its action distribution leads to parameters, and none of them is trainable.

    :param policy: the policy
    :param actor: the trainable parameters that the action distribution was seen to depend on
    :param values: those of the values
    :param log_prob: asks for log-probabilities of a few actions once more
    :raises NoGradientError: naming the parameters that could be trained
    """
    if actor:
        return
    of_values = set(values)
    trainable = [name for name, p in policy.named_parameters() if p.requires_grad]
    unseen = [name for name, p in policy.named_parameters() if p.requires_grad and p not in of_values]
    nobody_froze_anything = len(trainable) == len(list(policy.parameters()))
    if not unseen and not nobody_froze_anything:
        return
    with _thawed(policy):
        is_frozen = bool(reached_by(log_prob(), list(policy.parameters())))
    if not is_frozen:
        raise NoGradientError(
            "policy must have an action distribution that depends on its parameters in a way that torch can differentiate, "
            f"got log-probabilities without a gradient although {', '.join(unseen or trainable)} can be trained: something on "
            "the way is detached, computed without gradients (torch.no_grad) or outside of torch. To train the critic alone, "
            "freeze the actor's parameters with requires_grad_(False)"
        )
