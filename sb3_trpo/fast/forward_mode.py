r"""
Fisher products of any policy by automatic differentiation, once: :math:`F v = E[J^T M J v]`.

As in :mod:`sb3_trpo.fast.gauss_newton`, with J the Jacobian of the tensors that the action distribution is made of. Forward
mode pushes the tangent J v through the network, one backward pass pulls :math:`M J v` back. M is the Hessian of the KL in
these tensors alone, so that the network needs no second derivative.

The plain twin is ``trust_region.fisher_vector_product``, which differentiates the KL twice.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn
from torch.autograd import forward_ad

from sb3_trpo.distributions import frozen, tensors_of, with_tensors
from sb3_trpo.guards.process import forward_mode
from sb3_trpo.objective import Batch, kl_term
from sb3_trpo.trust_region.fisher import MatrixVectorProduct, Parameters, flatten, unflatten


@contextmanager
def _in_place_of(parameters: Parameters, others: Sequence[th.Tensor], policy: nn.Module) -> Iterator[None]:
    """Let a policy compute with other tensors; not ``functional_call``, which forgets one of two names of a shared module."""
    other = dict(zip(parameters, others, strict=True))
    places = [(m._parameters, name, p) for m in policy.modules() for name, p in m._parameters.items() if p in other]
    try:
        for of_module, name, parameter in places:
            of_module[name] = other[parameter]  # type: ignore[assignment]
        yield
    finally:
        for of_module, name, parameter in places:
            of_module[name] = parameter


def forward_mode_fisher(
    policy: nn.Module,
    chunks: Sequence[Batch],
    parameters: Parameters,
    distribution_of: Callable[[Batch], Distribution],
) -> MatrixVectorProduct:
    """
    Build the product v -> F v; it raises ``RuntimeError`` where a layer has no forward mode.

    :param policy: the policy, with the parameters θ_old for as long as the product is used
    :param chunks: the transitions whose states make the Fisher matrix, in pieces; the memory needed is that of a piece
    :param parameters: the actor's trainable parameters, in the order of the vectors
    :param distribution_of: maps a batch to the action distribution that the algorithm uses
    """

    def tangents(chunk: Batch, vector: th.Tensor) -> list[th.Tensor | None]:
        """Return J v for every tensor of the distribution, ``None`` for those that do not move."""
        with th.no_grad(), forward_mode, forward_ad.dual_level():
            steps = zip(parameters, unflatten(vector, parameters), strict=True)
            duals = [forward_ad.make_dual(parameter.detach(), step) for parameter, step in steps]
            with _in_place_of(parameters, duals, policy):
                moving = tensors_of(distribution_of(chunk))
            return [forward_ad.unpack_dual(tensor).tangent for tensor in moving]

    def of_chunk(chunk: Batch, vector: th.Tensor) -> th.Tensor:
        distribution = distribution_of(chunk)
        outputs = tensors_of(distribution)
        moved = {i: tangent for i, tangent in enumerate(tangents(chunk, vector)) if tangent is not None}
        used = [i for i in moved if outputs[i].requires_grad]
        leaves = [tensor.detach().requires_grad_(i in used) for i, tensor in enumerate(outputs)]
        kl = kl_term(frozen(distribution), with_tensors(distribution, leaves), chunk)
        inputs = [leaves[i] for i in used]
        # M J v: the Hessian of the KL in the tensors of the distribution, times their tangents
        slopes = th.autograd.grad(kl, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
        along = [moved[i].to(slope) for slope, i in zip(slopes, used, strict=True)]
        cotangents = th.autograd.grad(slopes, inputs, along, allow_unused=True, materialize_grads=True)
        rows = th.autograd.grad([outputs[i] for i in used], parameters, cotangents, allow_unused=True, materialize_grads=True)
        return flatten(rows)

    def product(vector: th.Tensor) -> th.Tensor:
        total = of_chunk(chunks[0], vector)
        for chunk in chunks[1:]:
            total += of_chunk(chunk, vector)
        return total

    return product
