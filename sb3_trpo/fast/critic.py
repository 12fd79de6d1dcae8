"""The value fit with its gradient and Adam written out, for critics that are multi-layer perceptrons."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.critic import CriticFit, summarize
from sb3_trpo.fast.network import Stage, network_input, read_critic, times_slope
from sb3_trpo.trust_region.fisher import unflatten

# What the network is given is made for this many numbers at a time: a rollout of images would be four times its own size
INPUT_BLOCK = 2**22


class MlpCritic:
    """
    A working copy of a critic and of its optimizer's state, in one flat vector each; see :func:`mlp_critic`.

    :param policy: the policy whose critic it is
    :param stages: the critic's layers
    """

    def __init__(self, policy: ActorCriticPolicy, stages: list[Stage]):
        self.policy = policy
        self.stages = stages
        self.parameters = [parameter for stage in stages for parameter in (stage.weight, stage.bias)]
        group = policy.optimizer.param_groups[0]
        self.lr, (self.beta1, self.beta2), self.eps = group["lr"], group["betas"], group["eps"]
        states = [policy.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        self.n_steps = int(states[0].get("step", 0))
        self.flat = th.cat([p.detach().reshape(-1) for p in self.parameters])
        self.mean, self.square = (
            th.cat(
                [
                    state[name].reshape(-1) if state else th.zeros_like(p).reshape(-1)
                    for state, p in zip(states, self.parameters, strict=True)
                ]
            )
            for name in ("exp_avg", "exp_avg_sq")
        )
        self.gradient = th.zeros_like(self.flat)
        self.n_skipped = 0
        self.first_used: tuple[th.Tensor, th.Tensor] | None = None
        self.views = unflatten(self.flat, self.parameters)
        self.gradient_views = unflatten(self.gradient, self.parameters)

    def _differentiate(self, inputs: th.Tensor, returns: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Put the gradient of a minibatch's mean squared error in place; return the error and the gradient's square."""
        hidden = [inputs]
        for i, stage in enumerate(self.stages):
            weight, bias = self.views[2 * i : 2 * i + 2]
            values = th.addmm(bias, hidden[-1], weight.t())
            if stage.activation is not None:
                values = values.tanh_() if isinstance(stage.activation, nn.Tanh) else values.relu_()
            hidden.append(values)
        error = hidden[-1].squeeze(1).sub_(returns)
        loss = error.dot(error) / len(returns)
        cotangent = error.mul_(2.0 / len(returns)).unsqueeze(1)
        for i in reversed(range(len(self.stages))):
            cotangent = times_slope(self.stages[i].activation, cotangent, hidden[i + 1])
            th.mm(cotangent.t(), hidden[i], out=self.gradient_views[2 * i])
            th.sum(cotangent, 0, out=self.gradient_views[2 * i + 1])
            if i > 0:
                cotangent = cotangent @ self.views[2 * i]
        return loss, self.gradient.dot(self.gradient)

    def _adam_step(self) -> None:
        """Kingma & Ba 2015, *Adam*, section 2."""
        self.n_steps += 1
        self.mean.lerp_(self.gradient, 1.0 - self.beta1)
        self.square.mul_(self.beta2).addcmul_(self.gradient, self.gradient, value=1.0 - self.beta2)
        # With both bias corrections in the scalars: two passes over the parameters less
        correction = math.sqrt(1.0 - self.beta2**self.n_steps)
        denominator = self.square.sqrt().add_(self.eps * correction)
        self.flat.addcdiv_(self.mean, denominator, value=-self.lr * correction / (1.0 - self.beta1**self.n_steps))

    def _write_back(self) -> None:
        for parameter, value, mean, square in zip(
            self.parameters,
            self.views,
            unflatten(self.mean, self.parameters),
            unflatten(self.square, self.parameters),
            strict=True,
        ):
            parameter.copy_(value)
            state = self.policy.optimizer.state[parameter]
            state["step"] = th.tensor(float(self.n_steps))
            state["exp_avg"], state["exp_avg_sq"] = mean.clone(), square.clone()

    @th.no_grad()
    def fit(self, observations: th.Tensor, returns: th.Tensor, *, n_epochs: int, batch_size: int) -> CriticFit | None:
        """
        Take one Adam step on the mean squared error of each minibatch; the same steps as ``critic.fit_critic``.

        :param observations: as the buffer holds them, shape (n, *obs_shape)
        :param returns: the targets, shape (n,)
        :param n_epochs: number of passes over the data, each in an order drawn from NumPy's generator as SB3's buffer does
        :param batch_size: minibatch size
        :return: the losses, ``None`` without a pass
        """
        losses = []
        for _ in range(n_epochs):
            order = th.as_tensor(np.random.permutation(len(returns)), device=returns.device)
            losses.append(self._epoch(partial(self._minibatches, observations, returns, order, batch_size)))
        kept = all(bool(vector.isfinite().all()) for vector in (self.flat, self.mean, self.square)) and (
            self.first_used is None or all(map(math.isfinite, self._differentiate(*self.first_used)))
        )
        if kept and losses:
            self._write_back()
        return summarize(losses, self.n_skipped, undone=not kept)

    def _minibatches(
        self, observations: th.Tensor, returns: th.Tensor, order: th.Tensor, batch_size: int
    ) -> Iterator[tuple[th.Tensor, th.Tensor]]:
        """Yield what the network is given, made in blocks of a bounded size, and the returns."""
        n_per_block = max(1, INPUT_BLOCK // (self.stages[0].weight.shape[1] * batch_size)) * batch_size
        for rows in order.split(n_per_block):
            inputs = network_input(self.policy, observations[rows]).flatten(1)
            yield from zip(inputs.split(batch_size), returns[rows].split(batch_size), strict=True)

    def _epoch(self, minibatches: Callable[[], Iterator[tuple[th.Tensor, th.Tensor]]]) -> th.Tensor:
        """
        Take a step on each minibatch, and return their errors.

        Whether all was finite is asked at the end, since a GPU has to be waited for at each question; if it was not, the
        epoch is made again with care.
        """
        before = [vector.clone() for vector in (self.flat, self.mean, self.square)]
        n_steps, first_used = self.n_steps, self.first_used
        facts: list[tuple[th.Tensor, th.Tensor]] = []
        for inputs, returns in minibatches():
            facts.append(self._differentiate(inputs, returns))
            self.first_used = self.first_used or (inputs, returns)
            self._adam_step()
        errors, squares = map(th.stack, zip(*facts, strict=True))
        if not bool((errors.isfinite() & squares.isfinite()).all()):
            for vector, value in zip((self.flat, self.mean, self.square), before, strict=True):
                vector.copy_(value)
            self.n_steps, self.first_used = n_steps, first_used
            return self._careful_epoch(minibatches())
        return errors

    def _careful_epoch(self, minibatches: Iterator[tuple[th.Tensor, th.Tensor]]) -> th.Tensor:
        """Take a step on each minibatch whose error and gradient are finite, and return the errors of all."""
        errors = []
        for inputs, returns in minibatches:
            error, square = self._differentiate(inputs, returns)
            errors.append(error)
            if math.isfinite(error) and math.isfinite(square):
                self.first_used = self.first_used or (inputs, returns)
                self._adam_step()
            else:
                self.n_skipped += 1
        return th.stack(errors)


def mlp_critic(policy: ActorCriticPolicy, parameters: list[nn.Parameter]) -> MlpCritic | None:
    """
    Take a critic over, if it is a multi-layer perceptron of its own that ``torch.optim.Adam`` trains.

    :param policy: the policy
    :param parameters: what the value fit may move
    :return: ``None`` for what is not covered: other networks, shared or frozen layers, other optimizers or Adam's variants
    """
    stages = read_critic(policy)
    optimizer = policy.optimizer
    if stages is None or type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return None
    own = [parameter for stage in stages for parameter in (stage.weight, stage.bias)]
    group = optimizer.param_groups[0]
    states = [optimizer.state.get(parameter, {}) for parameter in own]
    if (
        any(isinstance(stage.affine, nn.Conv2d) for stage in stages)
        or len(set(own)) < len(own)  # layers that share their weights
        or set(own) != set(parameters)
        or any(group[flag] for flag in ("weight_decay", "amsgrad", "maximize", "differentiable", "capturable", "fused"))
        or len({int(state.get("step", 0)) for state in states}) != 1
        or "step" in vars(optimizer)  # wrapped
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
    ):
        return None
    return MlpCritic(policy, stages)
