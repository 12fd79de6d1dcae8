"""The value-function fit: least squares on the returns, in the critic's own parameters only."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F

from sb3_trpo.policies import rows_of
from sb3_trpo.trust_region import flatten, unflatten

Minibatch = TypeVar("Minibatch")


class ValueBatch(NamedTuple):
    """
    A minibatch for the value fit.

    :param observations: tensor of shape (n, *obs_shape), or a dict of such tensors
    :param returns: the targets, shape (n,)
    """

    observations: PyTorchObs
    returns: th.Tensor

    def select(self, rows: th.Tensor) -> "ValueBatch":
        """Return some of the rows."""
        return ValueBatch(rows_of(self.observations, rows), self.returns[rows])

    def to(self, device: str) -> "ValueBatch":
        """Return the same on a device."""
        observations = self.observations
        moved = (
            observations.to(device)
            if isinstance(observations, th.Tensor)
            else {k: v.to(device) for k, v in observations.items()}
        )
        return ValueBatch(moved, self.returns.to(device))


class Pass:
    """
    One pass of the value fit over transitions: minibatches of them, in an order.

    :param whole: the transitions
    :param order: their numbers, shape (n,)
    :param batch_size: size of a minibatch; the last may be smaller
    """

    def __init__(self, whole: ValueBatch, order: th.Tensor, batch_size: int):
        self.whole = whole
        self.order = order
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[ValueBatch]:
        # Torch splits nothing into one part
        return map(self.whole.select, self.order.split(self.batch_size) if len(self.order) else ())


class PooledMinibatches(Generic[Minibatch]):
    """
    The minibatches of several processes as one: the mean over all of their transitions.

    Each process takes its own in its own order, and has as many turns as the one with the most.

    :param total: sums a tensor over all processes
    """

    def __init__(self, total: Callable[[th.Tensor], th.Tensor]):
        self.total = total
        self.has_more = self.others_have_more = False

    def turns(self, minibatches: Iterable[Minibatch]) -> Iterator[Minibatch | None]:
        """Yield each minibatch, and then ``None`` for as long as another process has any; :meth:`mean` ends each turn."""
        rest = iter(minibatches)
        now, self.others_have_more = next(rest, None), True
        while self.others_have_more:
            then = next(rest, None)
            self.has_more = then is not None
            yield now
            now = then

    def mean(self, own: th.Tensor, n: int) -> th.Tensor:
        """
        Return the mean over the transitions of all processes.

        :param own: means over those of this one, and two places more for what else the others must know, shape (n_means + 2,);
            its numbers are lost
        :param n: how many they are, zero where it has none in this turn
        :return: shape (n_means,)
        """
        own.mul_(n)
        own[-2], own[-1] = n, self.has_more
        whole = self.total(own)
        self.others_have_more = bool(whole[-1])
        return whole[:-2] / whole[-2]


class CriticFit(NamedTuple):
    """
    What a value fit did.

    :param value_loss: mean squared error over all minibatches, each measured before its own step
    :param first_value_loss: that of the first pass over the data
    :param last_value_loss: that of the last pass
    :param n_optimizer_steps: number of optimizer steps
    :param n_skipped: number of minibatches that made no step, since their loss or gradient was not finite
    :param undone: whether the steps led away from the finite numbers, or moved the policy, and the fit was undone: the
        critic's weights and the optimizer's memory of them are bit for bit what they were before it
    """

    value_loss: float
    first_value_loss: float
    last_value_loss: float
    n_optimizer_steps: int
    n_skipped: int
    undone: bool

    @property
    def status(self) -> str:
        """``"fitted"``, ``"steps_skipped"`` or ``"undone"``."""
        return "undone" if self.undone else "steps_skipped" if self.n_skipped else "fitted"


def summarize(losses: list[th.Tensor], n_skipped: int, *, undone: bool) -> CriticFit | None:
    """
    Describe a fit.

    :param losses: for each pass over the data the mean squared error of each minibatch, shape (n_minibatches,)
    :param n_skipped: number of minibatches that made no step
    :param undone: whether the fit was undone
    :return: ``None`` without a pass
    """
    if not losses:
        return None
    value_loss, first, last = (float(part.mean()) for part in (th.cat(losses), losses[0], losses[-1]))
    return CriticFit(value_loss, first, last, sum(map(len, losses)) - n_skipped, n_skipped, undone)


class Origin:
    """
    The weights and the optimizer's memory of them before a fit, and what else the optimizer holds.

    :param optimizer: holds the parameters
    :param parameters: those that the fit may move
    """

    def __init__(self, optimizer: th.optim.Optimizer, parameters: list[th.nn.Parameter]):
        self.optimizer = optimizer
        self.parameters = parameters
        self.weights = [parameter.detach().clone() for parameter in parameters]
        # What stands around another optimizer may have no memory of its own
        self.memory = getattr(optimizer, "state", {})
        self.states = [copy.deepcopy(self.memory.get(parameter)) for parameter in parameters]
        own = set(parameters)
        others = (parameter for group in optimizer.param_groups for parameter in group["params"] if parameter not in own)
        self.others = [(parameter, parameter.detach().clone()) for parameter in others]

    def is_left_finite(self) -> bool:
        """Whether every weight and every tensor of the optimizer's memory is finite now."""
        memory = [value for p in self.parameters for value in self.memory.get(p, {}).values()]
        return all(bool(t.isfinite().all()) for t in (*self.parameters, *memory) if isinstance(t, th.Tensor))

    @th.no_grad()
    def restore_others(self) -> None:
        """Put back what the fit may not move: an optimizer that decays or averages moves parameters without a gradient too."""
        for parameter, weight in self.others:
            if not th.equal(parameter, weight):
                parameter.copy_(weight)

    @th.no_grad()
    def restore(self) -> None:
        """Put everything back in place."""
        self.restore_others()
        for parameter, weight, state in zip(self.parameters, self.weights, self.states, strict=True):
            parameter.copy_(weight)
            if state is None:
                self.memory.pop(parameter, None)
            else:
                self.memory[parameter] = state


def step_on_minibatches(
    epochs: Iterable[Iterable[Minibatch]],
    differentiate: Callable[[Minibatch], tuple[th.Tensor, bool]],
    step: Callable[[], object],
) -> tuple[list[th.Tensor], int, Callable[[], bool] | None]:
    """
    Take a step on each minibatch whose loss and gradient are finite.

    :param epochs: for each pass over the data its minibatches
    :param differentiate: puts the gradient of a minibatch in place; returns the loss, and whether both are finite
    :param step: takes the step of the gradient in place
    :return: the losses as :func:`summarize` takes them, how many minibatches made no step, and what says whether loss and
        gradient of the first one that made one are finite still; ``None`` where none did
    """
    losses: list[th.Tensor] = []
    n_skipped = 0
    still_finite: Callable[[], bool] | None = None
    for minibatches in epochs:
        epoch_losses = []
        for minibatch in minibatches:
            loss, is_finite = differentiate(minibatch)
            epoch_losses.append(loss)
            if is_finite:
                still_finite = still_finite or partial(_is_finite, differentiate, minibatch)
                step()
            else:
                n_skipped += 1
        if epoch_losses:
            losses.append(th.stack(epoch_losses))
    return losses, n_skipped, still_finite


def _is_finite(differentiate: Callable[[Minibatch], tuple[th.Tensor, bool]], minibatch: Minibatch) -> bool:
    return differentiate(minibatch)[1]


def fit_critic(
    values_of: Callable[[ValueBatch], th.Tensor],
    optimizer: th.optim.Optimizer,
    parameters: list[th.nn.Parameter],
    epochs: Iterable[Iterable[ValueBatch]],
    *,
    holds: Callable[[], bool] = lambda: True,
    pool: PooledMinibatches[ValueBatch] | None = None,
) -> CriticFit | None:
    """
    Take one optimizer step on the mean squared error of each minibatch whose loss and gradient are finite.

    If that leads to a weight or a moment of the optimizer that is not finite, or so far away that the first minibatch used has
    no finite gradient any more, if something must hold that does not any more, or if an exception leaves this function, all of
    it is undone.

    :param values_of: maps a minibatch to its values, shape (n,), with a graph to the parameters
    :param optimizer: holds the parameters; what else it holds gets no gradient and stays as it is
    :param parameters: the critic's own parameters: those that the values depend on and the action distribution does not,
        so that the fit leaves a feature extractor that both share, and with it the policy, alone
    :param epochs: for each pass over the data its minibatches
    :param holds: whether what must be true after the fit is true
    :param pool: what makes one minibatch of those of several processes
    :return: the losses, ``None`` if there was nothing to fit
    """
    kept = False
    origin = Origin(optimizer, parameters)

    def differentiate(batch: ValueBatch | None) -> tuple[th.Tensor, bool]:
        """Put the gradients in place; return the loss, and whether both are finite."""
        loss = parameters[0].new_zeros(()) if batch is None else F.mse_loss(values_of(batch), batch.returns)
        optimizer.zero_grad()
        if batch is not None:
            loss.backward(inputs=parameters)
        if pool is not None:
            loss = _take_mean(pool, loss.detach(), parameters, 0 if batch is None else len(batch.returns))
        # The squares, for they go into Adam's memory; all in one go, for a GPU has to be waited for each time
        facts = [loss.detach(), *(p.grad.square().sum() for p in parameters if p.grad is not None)]
        return facts[0], bool(th.stack(facts).isfinite().all())

    minibatches = epochs if pool is None else map(pool.turns, epochs)
    try:
        losses, n_skipped, still_finite = step_on_minibatches(minibatches if parameters else (), differentiate, optimizer.step)
        origin.restore_others()
        # Weights may be finite and yet too large to ever be fitted again
        kept = origin.is_left_finite() and (still_finite is None or (still_finite() and holds()))
    finally:
        optimizer.zero_grad()
        if not kept:
            origin.restore()
    return summarize(losses, n_skipped, undone=not kept)


def _take_mean(pool: PooledMinibatches[ValueBatch], loss: th.Tensor, parameters: list[th.nn.Parameter], n: int) -> th.Tensor:
    """Put the gradients of a pooled minibatch in place of those of one's own, and return its loss."""
    reached = loss.new_tensor([p.grad is not None for p in parameters])
    own = flatten([th.zeros_like(p) if p.grad is None else p.grad for p in parameters])
    whole = pool.mean(th.cat((loss[None], reached, own, loss.new_zeros(2))), n)
    loss, n_reached, gradient = whole.split((1, len(parameters), len(own)))
    for parameter, of_all, is_reached in zip(parameters, unflatten(gradient, parameters), n_reached, strict=True):
        parameter.grad = of_all.to(parameter) if is_reached != 0 else None
    return loss[0]
