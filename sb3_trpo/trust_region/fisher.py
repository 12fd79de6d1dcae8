"""Products with the Fisher information matrix of a policy, and the flat view of its parameters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch as th

Parameters = Sequence[th.nn.Parameter]
MatrixVectorProduct = Callable[[th.Tensor], th.Tensor]


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """Join tensors into one vector, shape (n_params,)."""
    return th.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else th.zeros(0, device="cpu")


def unflatten(vector: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """Cut a vector of shape (n_params,) into views with the shapes of ``like``."""
    return [part.view_as(tensor) for part, tensor in zip(vector.split([t.numel() for t in like]), like, strict=True)]


def copies_of(tensors: Iterable[th.Tensor]) -> list[th.Tensor]:
    """Return the numbers that tensors hold now, in memory of their own and without a graph."""
    return [tensor.detach().clone() for tensor in tensors]


@th.no_grad()
def put(parameters: Parameters, values: Iterable[th.Tensor]) -> None:
    """Overwrite parameters with values of the same shapes, bit for bit."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def nodes_of(output: th.Tensor) -> Iterator[Any]:
    """Yield each node of the autograd graph behind an output once, in an order that the graph decides."""
    seen, to_visit = set(), [output.grad_fn]
    while to_visit:
        node = to_visit.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        to_visit.extend(function for function, _ in node.next_functions)


def reached_by(output: th.Tensor, parameters: Parameters) -> list[th.nn.Parameter]:
    """
    Ask the autograd graph which parameters an output depends on; frozen ones never count.

    :param output: tensor of any shape, with a graph
    :param parameters: the candidates
    :return: those of the candidates that are trainable and that the output depends on, in their order
    """
    # The leaves of the graph are the nodes that hold a variable to put a gradient in
    reached = {getattr(node, "variable", None) for node in nodes_of(output)}
    return [parameter for parameter in parameters if parameter in reached]


def flat_gradient(scalar: th.Tensor, parameters: Parameters, *, create_graph: bool = False) -> th.Tensor:
    """
    Differentiate a scalar with respect to all parameters at once.

    :param scalar: shape ()
    :param parameters: the variables; one that the scalar does not depend on gets zeros
    :param create_graph: whether the gradient will be differentiated again
    :return: the gradient, shape (n_params,)
    """
    if not parameters:
        return scalar.new_zeros(0)
    gradients = th.autograd.grad(scalar, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return flatten(gradients)


def fisher_vector_product(kl_terms: Sequence[Callable[[], th.Tensor]], parameters: Parameters) -> MatrixVectorProduct:
    r"""
    Build the product v -> F v, :math:`F = \nabla^2_\theta \bar D_{KL}(\theta_{old} \| \theta)` at
    :math:`\theta = \theta_{old}`, where this Hessian is the Fisher information matrix.

    Schulman et al., *Trust Region Policy Optimization*, appendix C.1. Pearlmutter's trick: the Hessian is never formed,
    :math:`F v = \nabla_\theta (v^T \nabla_\theta \bar D_{KL})`.

    :param kl_terms: functions without argument that sum to the mean KL, one for each chunk of the batch. With a single one
        its graph is kept between products; with several each graph is rebuilt and freed, so that memory is that of a chunk
    :param parameters: the parameters θ, with the values θ_old for as long as the product is used
    :return: maps a vector of shape (n_params,) to F times it
    """
    if len(kl_terms) == 1:
        kept_gradient = flat_gradient(kl_terms[0](), parameters, create_graph=True)

    def product(vector: th.Tensor) -> th.Tensor:
        result = th.zeros_like(vector)
        for kl_term in kl_terms:
            single = len(kl_terms) == 1
            kl_gradient = kept_gradient if single else flat_gradient(kl_term(), parameters, create_graph=True)
            rows = th.autograd.grad(
                kl_gradient @ vector, parameters, retain_graph=single, allow_unused=True, materialize_grads=True
            )
            result += flatten(rows)
        return result

    return product
