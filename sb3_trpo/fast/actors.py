"""
Actors that are quicker than ``policy.forward``: what samples an action while the environment waits.

The plain twin is SB3's ``ActorCriticPolicy.forward``, as ``OnPolicyAlgorithm.collect_rollouts`` calls it.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_trpo.fast.network import Stage, activate, is_as_sb3, is_quicker_on_gpu, read_actor
from sb3_trpo.rollout import Actor, Observations, is_sb3s_own, version_of

# Numbers of noise drawn at a time: enough that the call costs little per step, few enough for a short rollout
NOISE_BLOCK = 2**12


def _noise(shape: tuple[int, int], sample: Callable[[tuple[int, ...]], th.Tensor]) -> Iterator[np.ndarray]:
    """Yield noise for step after step from torch's generator, drawn in blocks."""
    n_steps = max(1, NOISE_BLOCK // (shape[0] * shape[1]))
    while True:
        yield from sample((n_steps, *shape)).numpy()


def _normal(shape: tuple[int, ...]) -> th.Tensor:
    return th.randn(shape, device="cpu")


def _gumbel(shape: tuple[int, ...]) -> th.Tensor:
    return -th.empty(shape, device="cpu").exponential_().log()


def _logistic(shape: tuple[int, ...]) -> th.Tensor:
    return th.empty(shape, device="cpu").uniform_(th.finfo(th.float32).tiny, 1.0).logit(eps=1e-7)


def _numpy(parameter: nn.Parameter) -> np.ndarray:
    """Return a parameter as an array: on the CPU its own memory, of a GPU a copy."""
    return parameter.detach().cpu().numpy()


def _up_to_date(parameters: list[nn.Parameter]) -> Callable[[], list[np.ndarray]]:
    """Return a function that gives parameters as arrays, read anew after a change: by a callback, for one."""
    arrays: list[np.ndarray] = []
    version = -1

    def read() -> list[np.ndarray]:
        nonlocal arrays, version
        if version != (now := version_of(parameters)):
            arrays, version = [_numpy(parameter) for parameter in parameters], now
        return arrays

    return read


def _mlp(stages: list[Stage]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the chain as a function of NumPy arrays."""
    weights, biases = (_up_to_date([getattr(stage, name) for stage in stages]) for name in ("weight", "bias"))
    activations = [stage.activation for stage in stages]

    def forward(values: np.ndarray) -> np.ndarray:
        for weight, bias, activation in zip(weights(), biases(), activations, strict=True):
            values = values @ weight.T + bias
            activate(activation, values)
        return values

    return forward


def _sampler(policy: ActorCriticPolicy, n_envs: int, n_outputs: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a function from the network's output to sampled actions, each shape (n_envs, ...)."""
    distribution = policy.action_dist
    shape = (n_envs, n_outputs)
    if type(distribution) is DiagGaussianDistribution:
        log_std = _up_to_date([policy.log_std])
        normal = _noise(shape, _normal)
        return lambda mean: mean + np.exp(*log_std()) * next(normal)
    if type(distribution) is CategoricalDistribution:
        # The largest of logits plus independent Gumbel noise is a sample of their softmax
        gumbel = _noise(shape, _gumbel)
        return lambda logits: (logits + next(gumbel)).argmax(axis=1)
    if type(distribution) is MultiCategoricalDistribution:
        gumbel = _noise(shape, _gumbel)
        cuts = np.cumsum(distribution.action_dims)[:-1]
        return lambda logits: np.stack([part.argmax(axis=1) for part in np.split(logits + next(gumbel), cuts, axis=1)], axis=1)
    if type(distribution) is BernoulliDistribution:
        # A uniform number is below the sigmoid of a logit where logistic noise is below the logit
        logistic = _noise(shape, _logistic)
        return lambda logits: (logits > next(logistic)).astype(np.float32)
    return None


def _numpy_actor(policy: ActorCriticPolicy, n_envs: int) -> Actor | None:
    """
    Return an actor in NumPy for a perceptron on vectors, wherever its policy is: it takes microseconds a step.

    A GPU takes a millisecond to start its kernels.
    """
    stages = read_actor(policy)
    space = policy.observation_space
    if (
        stages is None
        or not isinstance(space, spaces.Box)
        or (policy.normalize_images and is_image_space(space))
        or any(not isinstance(stage.affine, nn.Linear) for stage in stages)
        or any(p.dtype != th.float32 for p in policy.parameters())
        or is_quicker_on_gpu([stage.weight for stage in stages], n_envs)
    ):
        return None
    sample = _sampler(policy, n_envs, len(stages[-1].bias))
    if sample is None:
        return None
    forward = _mlp(stages)
    action_shape = policy.action_space.shape or ()

    def act(observations: Observations) -> tuple[np.ndarray, None]:
        assert isinstance(observations, np.ndarray)
        inputs = observations.reshape(n_envs, -1).astype(np.float32, copy=False)
        return sample(forward(inputs)).reshape(n_envs, *action_shape), None

    return act


def _torch_actor(policy: ActorCriticPolicy) -> Actor | None:
    """Return an actor that asks the policy for its distribution, and spares the critic; the actions are SB3's to the bit."""
    shared = policy.pi_features_extractor is policy.vf_features_extractor
    if shared and any(True for _ in policy.pi_features_extractor.parameters()):
        # The critic is a read-out of features that are there at each step: later they would have to be made again
        return None
    action_shape = policy.action_space.shape or ()

    @th.no_grad()
    def act(observations: Observations) -> tuple[np.ndarray, np.ndarray]:
        distribution = policy.get_distribution(obs_as_tensor(observations, policy.device))
        actions = distribution.get_actions()
        return actions.reshape(-1, *action_shape).cpu().numpy(), distribution.log_prob(actions).cpu().numpy()

    return act


def lean_actor(policy: ActorCriticPolicy, rollout_buffer: RolloutBuffer, n_envs: int) -> Actor | None:
    """
    Return the quickest way to sample actions that covers a policy.

    :param policy: the policy, whose parameters may change only between rollouts
    :param rollout_buffer: where the experience goes
    :param n_envs: number of environments
    :return: maps observations to actions of shape (n_envs, *action_shape) and their log-probabilities or ``None``; ``None``
        where lean collection does not apply: buffers of the user's own, policies that act in a way of their own, and those
        whose actor and critic share features that are learned
    """
    # Of these SB3's forward does the work in ways of its own
    own_ways = ("forward", "extract_features", "get_distribution", "predict_values")
    if not is_sb3s_own(rollout_buffer) or not is_as_sb3(policy, *own_ways):
        return None
    return _numpy_actor(policy, n_envs) or _torch_actor(policy)
