"""
The value fit with its gradient and its optimizer written out, for critics that are multi-layer perceptrons.

The plain twin is ``critic.fit_critic``.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sb3_trpo.critic import CriticFit, Origin, Pass, PooledMinibatches, ValueBatch, step_on_minibatches, summarize
from sb3_trpo.fast.elementwise import in_place, keeps_input, times_slope_in_place
from sb3_trpo.fast.gauss_newton import N_COMPARED
from sb3_trpo.fast.network import Network, is_as_read, is_quicker_on_gpu, network_input, read_critic, run, through
from sb3_trpo.fast.numpy_layers import forward, pull_back
from sb3_trpo.fast.optimizers import WRITTEN_OUT
from sb3_trpo.guards.overridden import is_as_written
from sb3_trpo.guards.process import one_blas_thread
from sb3_trpo.objective import Batch
from sb3_trpo.trust_region.fisher import flatten, unflatten

# What the network is given is made for this many numbers at a time: a rollout of images would be four times its own size
INPUT_BLOCK = 2**22
# Observations whose features are made at a time
FEATURES_BLOCK = 2**9

# What the network is given, shape (n, n_inputs), and the returns, shape (n,)
Arrays = tuple[np.ndarray, np.ndarray]


class MlpCritic:
    """
    A working copy of a critic and of its optimizer's state, in one flat vector each; see :func:`mlp_critic`.

    In NumPy: at the size of a minibatch a step costs half of what it does in torch.

    :param policy: the policy whose critic it is
    :param network: the critic
    :param n_fixed: how many of its stages are the actor's too, and stay as they are: what they give is made once
    """

    pool: PooledMinibatches[Arrays] | None = None
    """What makes one minibatch of those of several processes."""

    def __init__(self, policy: ActorCriticPolicy, network: Network, n_fixed: int = 0):
        self.policy = policy
        self.network = network
        self.fixed, self.stages = network.stages[:n_fixed], network.stages[n_fixed:]
        self.is_given_features = n_fixed > 0 or network.learns_before_joint()
        self.features: tuple[ValueBatch, np.ndarray] | None = None
        stages = self.stages
        self.activate = [in_place(stage.activation) for stage in stages]
        self.parameters = [parameter for stage in stages for parameter in (stage.weight, stage.bias)]
        group = _group_of(policy.optimizer, self.parameters)
        assert group is not None
        self.optimizer = WRITTEN_OUT[type(policy.optimizer)](group)
        states = [policy.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        self.n_steps = int(states[0].get("step", 0))
        self.flat = self._flat(self.parameters)
        self.memory = [
            self._flat([state.get(name, th.zeros_like(p)) for state, p in zip(states, self.parameters, strict=True)])
            for name in self.optimizer.MEMORY
        ]
        # With places behind it for what several processes tell one another
        self.shared = np.zeros(len(self.flat) + 3, self.flat.dtype)
        self.gradient = self.shared[: len(self.flat)]
        self.views = self._views(self.flat)
        self.gradient_views = self._views(self.gradient)

    @staticmethod
    def _flat(tensors: Sequence[th.Tensor]) -> np.ndarray:
        return flatten([tensor.detach() for tensor in tensors]).cpu().numpy()

    def _views(self, vector: np.ndarray) -> list[np.ndarray]:
        return [part.numpy() for part in unflatten(th.from_numpy(vector), self.parameters)]

    def _differentiate(self, minibatch: Arrays | None) -> tuple[th.Tensor, bool]:
        """Put the gradient of a minibatch's mean squared error in place; return the error, and whether both are finite."""
        loss = 0.0 if minibatch is None else self._differentiate_own(*minibatch)
        if self.pool is not None:
            loss = self._take_mean(self.pool, loss, 0 if minibatch is None else len(minibatch[1]))
        # The optimizer's memory holds the squares
        squared_norm = self.gradient.dot(self.gradient)
        return th.scalar_tensor(loss, dtype=th.float64, device="cpu"), math.isfinite(loss) and math.isfinite(squared_norm)

    def _take_mean(self, pool: PooledMinibatches[Arrays], loss: float, n: int) -> float:
        """Put the gradient of a pooled minibatch in place of that of one's own ``n`` transitions, and return its error."""
        if n == 0:
            self.gradient[:] = 0.0
        self.shared[-3] = loss
        whole = pool.mean(th.from_numpy(self.shared), n).numpy()
        self.gradient[:] = whole[:-1]
        return float(whole[-1])

    def _differentiate_own(self, inputs: np.ndarray, returns: np.ndarray) -> float:
        """Put the gradient of the minibatch of this process in place; return its mean squared error."""
        given, kept = [inputs], []  # to each stage, and what the derivative of its elementwise function is made from
        for i, stage in enumerate(self.stages):
            values = forward(stage.affine, given[-1], *self.views[2 * i : 2 * i + 2])
            kept.append(values.copy() if keeps_input(stage.activation) else values)
            self.activate[i](values)
            given.append(values)
        cotangent = given.pop()
        error = cotangent[:, 0]
        error -= returns
        loss = error.dot(error) / len(returns)
        error *= 2.0 / len(returns)
        for i in reversed(range(len(self.stages))):
            weight, gradients = self.views[2 * i], (self.gradient_views[2 * i], self.gradient_views[2 * i + 1])
            pulled = pull_back(self.stages[i].affine, given[i], cotangent, weight, gradients, to_inputs=i > 0)
            if i > 0:
                assert pulled is not None
                cotangent = pulled
                times_slope_in_place(self.stages[i - 1].activation, cotangent, kept[i - 1])
        return loss

    def _step(self) -> None:
        self.n_steps += 1
        self.optimizer.step(self.flat, self.gradient, self.memory, self.n_steps)

    @th.no_grad()
    def _write_back(self, holds: Callable[[], bool]) -> bool:
        """Put weights and memory in place, if something holds then; return whether it does."""
        kept = False
        origin = Origin(self.policy.optimizer, self.parameters)
        try:
            for parameter, value in zip(self.parameters, self._views(self.flat), strict=True):
                parameter.copy_(th.from_numpy(value))
                # Where torch's optimizers keep it
                self.policy.optimizer.state[parameter]["step"] = th.tensor(float(self.n_steps), device="cpu")
            for name, vector in zip(self.optimizer.MEMORY, self.memory, strict=True):
                for parameter, value in zip(self.parameters, self._views(vector), strict=True):
                    self.policy.optimizer.state[parameter][name] = th.tensor(value, device=parameter.device)
            kept = holds()
        finally:
            if not kept:
                origin.restore()  # after Ctrl-C too
        return kept

    def fit(self, epochs: Iterable[Iterable[ValueBatch]], *, holds: Callable[[], bool] = lambda: True) -> CriticFit | None:
        """
        Take one optimizer step on the mean squared error of each minibatch; the same steps as ``critic.fit_critic``.

        :param epochs: for each pass over the data its minibatches
        :param holds: whether what must be true after the fit is true
        :return: the losses, ``None`` without a pass
        """
        # A minibatch is too small to share among threads. What is not finite is asked for
        with one_blas_thread(), np.errstate(all="ignore"):
            arrays: Any = map(self._arrays, epochs)
            minibatches = arrays if self.pool is None else map(self.pool.turns, arrays)
            losses, n_skipped, still_finite = step_on_minibatches(minibatches, self._differentiate, self._step)
            kept = all(np.isfinite(vector).all() for vector in (self.flat, *self.memory)) and (
                still_finite is None or still_finite()
            )
        if kept and losses:
            kept = self._write_back(holds)
        return summarize(losses, n_skipped, undone=not kept)

    def _arrays(self, minibatches: Iterable[ValueBatch]) -> Iterator[Arrays]:
        """Yield what the network is given and the returns of each minibatch, made in blocks of a bounded size."""
        if not isinstance(minibatches, Pass):
            yield from map(self._array, minibatches)
            return
        batch_size = minibatches.batch_size
        n_per_block = max(1, INPUT_BLOCK // (self.stages[0].weight.shape[-1] * batch_size)) * batch_size
        whole = minibatches.whole
        features = self._features_of(whole) if self.is_given_features else None
        whole = whole.to("cpu")
        for rows in minibatches.order.cpu().split(n_per_block):
            if features is None:
                inputs, targets = self._array(whole.select(rows))
            else:
                inputs, targets = features[rows.numpy()], self._targets(whole.returns[rows])
            for start in range(0, len(rows), batch_size):
                yield inputs[start : start + batch_size], targets[start : start + batch_size]

    def _features_of(self, whole: ValueBatch) -> np.ndarray:
        """Return what the fixed stages make of all observations: once, for they are the same in every pass."""
        if self.features is None or self.features[0] is not whole:
            rows = th.arange(len(whole.returns), device=whole.returns.device).split(FEATURES_BLOCK)
            self.features = whole, np.concatenate([self._inputs(whole.select(some)) for some in rows])
        return self.features[1]

    @th.no_grad()
    def _inputs(self, batch: ValueBatch) -> np.ndarray:
        values = through(self.fixed, network_input(self.policy, self.network, batch.observations))
        return values.flatten(1).cpu().numpy().astype(self.flat.dtype, copy=False)

    def _targets(self, returns: th.Tensor) -> np.ndarray:
        return returns.cpu().numpy().astype(self.flat.dtype, copy=False)

    def _array(self, batch: ValueBatch) -> Arrays:
        batch = ValueBatch(batch.observations, batch.returns)  # of a variant it may be more
        batch = batch if self.is_given_features else batch.to("cpu")
        return self._inputs(batch), self._targets(batch.returns)


def _group_of(optimizer: th.optim.Optimizer, parameters: list[nn.Parameter]) -> dict[str, Any] | None:
    """Return the group of an optimizer that holds all of these parameters, if one does."""
    return next((group for group in optimizer.param_groups if set(parameters) <= set(group["params"])), None)


def mlp_critic(
    policy: ActorCriticPolicy,
    parameters: list[nn.Parameter],
    batch: Batch,
    values_of: Callable[[Batch | ValueBatch], th.Tensor],
    batch_size: int,
) -> MlpCritic | None:
    """
    Take a critic over, if it is a multi-layer perceptron of its own whose optimizer is written out here.

    That of a policy on a GPU is fitted on the CPU, unless it is so large that the GPU takes less time.

    :param policy: the policy
    :param parameters: what the value fit may move
    :param batch: transitions, a few of which are looked at
    :param values_of: maps a minibatch to the values that the algorithm uses
    :param batch_size: minibatch size of the fit
    :return: ``None`` for what is not covered: other networks, large ones on a GPU, frozen layers among those that are fitted,
        other optimizers or variants of these
    """
    network = read_critic(policy)
    optimizer = policy.optimizer
    if network is None or type(optimizer) not in WRITTEN_OUT or not is_as_written(type(optimizer), "step", "zero_grad"):
        return None
    fitted = set(parameters)
    # What is the actor's too comes first, and stays as it is
    is_fixed = [fitted.isdisjoint((stage.weight, stage.bias)) for stage in network.stages]
    n_fixed = is_fixed.index(False) if False in is_fixed else 0
    stages = network.stages[n_fixed:]
    own = [parameter for stage in stages for parameter in (stage.weight, stage.bias)]
    memory = [parameter.untyped_storage().data_ptr() for parameter in own]
    others = {parameter.untyped_storage().data_ptr() for parameter in {*policy.parameters()} - {*own}}
    group = _group_of(optimizer, own)
    states = [optimizer.state.get(parameter, {}) for parameter in own]
    if (
        any(isinstance(stage.affine, nn.Conv2d) for stage in stages)
        or any(parameter.dtype not in (th.float32, th.float64) for parameter in own)
        or is_quicker_on_gpu(own, batch_size)
        or len(set(memory)) < len(own)  # layers that share their weights
        or not others.isdisjoint(memory)  # with the actor, unseen by autograd
        or set(own) != fitted
        or group is None
        or any(isinstance(setting, th.Tensor) for setting in (*group.get("betas", ()), group.get("weight_decay")))
        or any(group.get(flag) for flag in WRITTEN_OUT[type(optimizer)].OFF)
        or len({int(state.get("step", 0)) for state in states}) != 1
        or "step" in vars(optimizer)  # wrapped
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or not _agrees(policy, network, batch, values_of)
    ):
        return None
    return MlpCritic(policy, network, n_fixed)


def _agrees(
    policy: ActorCriticPolicy, network: Network, batch: Batch, values_of: Callable[[Batch | ValueBatch], th.Tensor]
) -> bool:
    """Whether what the algorithm takes for the values is what the chain gives, up to rounding."""
    few = batch.few(N_COMPARED)
    # With a graph, which is looked at too
    given = values_of(few)
    return is_as_read(given, run(policy, network, few.observations).flatten())
