"""The value-function fit: least squares on the returns, in the critic's own parameters only."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F


class ValueBatch(NamedTuple):
    """
    A minibatch for the value fit.

    :param observations: tensor of shape (n, *obs_shape), or a dict of such tensors
    :param returns: the targets, shape (n,)
    """

    observations: PyTorchObs
    returns: th.Tensor


class CriticFit(NamedTuple):
    """
    What a value fit did.

    :param value_loss: mean squared error over all minibatches, each measured before its own step
    :param first_value_loss: that of the first pass over the data
    :param last_value_loss: that of the last pass
    :param n_optimizer_steps: number of optimizer steps
    :param n_skipped: number of minibatches that made no step, since their gradient was not finite
    """

    value_loss: float
    first_value_loss: float
    last_value_loss: float
    n_optimizer_steps: int
    n_skipped: int


def summarize(losses: list[th.Tensor], n_skipped: int) -> CriticFit | None:
    """
    Describe a fit.

    :param losses: for each pass over the data the mean squared error of each minibatch, shape (n_minibatches,)
    :param n_skipped: number of minibatches that made no step
    :return: ``None`` without a pass
    """
    if not losses:
        return None
    value_loss, first, last = (float(part.mean()) for part in (th.cat(losses), losses[0], losses[-1]))
    return CriticFit(value_loss, first, last, sum(map(len, losses)) - n_skipped, n_skipped)


def fit_critic(
    predict_values: Callable[[PyTorchObs], th.Tensor],
    optimizer: th.optim.Optimizer,
    parameters: list[th.nn.Parameter],
    epochs: Iterable[Iterable[ValueBatch]],
) -> CriticFit | None:
    """
    Take one optimizer step on the mean squared error of each minibatch whose gradient is finite.

    :param predict_values: maps observations to values, shape (n, 1), with a graph to the parameters
    :param optimizer: holds the parameters; what else it holds gets no gradient and stays as it is
    :param parameters: the critic's own parameters: those that the values depend on and the action distribution does not,
        so that the fit leaves a feature extractor that both share, and with it the policy, alone
    :param epochs: for each pass over the data its minibatches
    :return: the losses, ``None`` if there was nothing to fit
    """
    losses: list[th.Tensor] = []
    n_skipped = 0
    for minibatches in epochs if parameters else ():
        epoch_losses = []
        for batch in minibatches:
            loss = F.mse_loss(predict_values(batch.observations).flatten(), batch.returns)
            epoch_losses.append(loss.detach())
            optimizer.zero_grad()
            loss.backward(inputs=parameters)
            # Finite squares too, for they go into Adam's memory
            if math.isfinite(th.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])):
                optimizer.step()
            else:
                n_skipped += 1
        if epoch_losses:
            losses.append(th.stack(epoch_losses))
    optimizer.zero_grad()
    return summarize(losses, n_skipped)
