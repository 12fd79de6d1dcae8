"""The value-function fit: least squares on the returns, in the critic's own parameters only."""

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
    :param n_steps: number of optimizer steps
    """

    value_loss: float
    first_value_loss: float
    last_value_loss: float
    n_steps: int


def fit_critic(
    predict_values: Callable[[PyTorchObs], th.Tensor],
    optimizer: th.optim.Optimizer,
    parameters: list[th.nn.Parameter],
    epochs: Iterable[Iterable[ValueBatch]],
) -> CriticFit | None:
    """
    Take one optimizer step on the mean squared error of each minibatch.

    :param predict_values: maps observations to values, shape (n, 1), with a graph to the parameters
    :param optimizer: holds the parameters; what else it holds gets no gradient and stays as it is
    :param parameters: the critic's own parameters: those that the values depend on and the action distribution does not,
        so that the fit leaves a feature extractor that both share, and with it the policy, alone
    :param epochs: for each pass over the data its minibatches
    :return: the losses before and after, ``None`` if there was nothing to fit
    """
    losses: list[th.Tensor] = []
    if not parameters:
        return None
    for minibatches in epochs:
        epoch_losses = []
        for batch in minibatches:
            loss = F.mse_loss(predict_values(batch.observations).flatten(), batch.returns)
            optimizer.zero_grad()
            loss.backward(inputs=parameters)
            optimizer.step()
            epoch_losses.append(loss.detach())
        losses.append(th.stack(epoch_losses))
    if not losses:
        return None
    return CriticFit(
        value_loss=float(th.cat(losses).mean()),
        first_value_loss=float(losses[0].mean()),
        last_value_loss=float(losses[-1].mean()),
        n_steps=sum(map(len, losses)),
    )
