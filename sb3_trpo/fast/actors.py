"""
Actors that are quicker than ``policy.forward``: what samples an action while the environment waits.

The plain twin is SB3's ``ActorCriticPolicy.forward``, as ``OnPolicyAlgorithm.collect_rollouts`` calls it. It is also what acts
once a callback has made something of the policy, in the middle of a rollout, that no quick actor covers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_trpo.checked_algorithm import CheckedOnPolicyAlgorithm
from sb3_trpo.fast.elementwise import in_place
from sb3_trpo.fast.gauss_newton import N_COMPARED, agrees, learns_features
from sb3_trpo.fast.kinds import is_patched, kind_of
from sb3_trpo.fast.masks import masked_array
from sb3_trpo.fast.network import Network, is_as_read, is_as_sb3, is_quicker_on_gpu, read_actor, read_critic, run
from sb3_trpo.fast.numpy_layers import forward
from sb3_trpo.fast.places import Places
from sb3_trpo.guards.left_graphs import drop_graphs, views_of_parameters
from sb3_trpo.guards.overridden import known_kind
from sb3_trpo.policies import n_observations, rows_of
from sb3_trpo.rollout import EVALUATION_ROWS, Acted, Critic, Observations, is_sb3s_own, keeps_numbers
from sb3_trpo.trust_region.fisher import flatten, unflatten

# Numbers of noise drawn at a time: enough that the call costs little per step, few enough for a short rollout
NOISE_BLOCK = 2**12
# Numbers of outputs whose log-probabilities are computed at a time
LOG_PROB_BLOCK = 2**15


class _PolicyActor(Protocol):
    """One way to act as a policy, for as long as the policy is made of what it was made of."""

    draws_in_torch: bool

    def is_current(self) -> bool:
        """Whether what was read of the policy is still in place; weights need not be what they were."""

    def __call__(self, observations: Observations, action_masks: np.ndarray | None = None) -> Acted:
        """Act; of what is impossible nothing is done."""

    def log_probs(self) -> np.ndarray:
        """Return the log-probabilities of everything done so far, shape (n_steps, n_envs)."""


class LeanActor:
    """
    Act as a model's policy of the moment, in the quickest way that covers it.

    Callbacks may change weights, replace parameters or layers, and the policy itself, at any step.

    :param model: whose policy acts
    :param n_envs: number of environments
    :param masks_now: tells at each step which actions are possible, shape (n_envs, n_masks), where not all of them are
    """

    def __init__(self, model: CheckedOnPolicyAlgorithm, n_envs: int, masks_now: Callable[[], np.ndarray] | None = None):
        self.model = model
        self.n_envs = n_envs
        self.masks_now = masks_now
        self.random: np.random.Generator | None = None
        self.policy: ActorCriticPolicy | None = None
        self.actors: list[_PolicyActor] = []
        self.actor: Any = None  # the last of them

    def __call__(self, observations: Observations) -> Acted:
        """Return what the policy does, whatever became of it since the last step."""
        policy = self.model.policy
        if policy is not self.policy or not self.actor.is_current():
            # Not before the first step: a callback may seed the model as a rollout starts
            self.random = self.random or self.model._random.for_actions()
            quick = quickest_actor(policy, self.n_envs, self.random, observations)
            self.policy, self.actor = policy, quick or _PlainActor(policy, self.model.device)
            self.actors.append(self.actor)
        return self._act(observations)

    def _act(self, observations: Observations) -> Acted:
        masks = () if self.masks_now is None else (self.masks_now(),)
        if not self.actor.draws_in_torch:
            return self.actor(observations, *masks)
        with self.model._random.in_torch(self.model.device):
            return self.actor(observations, *masks)

    def go_on(self, observations: Observations) -> Acted:
        """Return what the policy does, where nobody can have replaced anything in it since the last step."""
        return self._act(observations) if self.actors else self(observations)

    @th.no_grad()
    def reset_noise(self) -> None:
        """Draw the noise of gSDE anew; without a graph, which would keep a callback from copying the policy."""
        with self.model._random.in_torch(self.model.device):
            self.model.policy.reset_noise(self.n_envs)

    def log_probs(self) -> np.ndarray:
        """Return those of everything done so far, each under the policy that did it, shape (n_steps, n_envs)."""
        return np.concatenate([actor.log_probs() for actor in self.actors])

    def critic(self, observations: Observations) -> Critic:
        """Return what gives values, of the policy of now; some of the observations that it will be given are looked at."""
        return _numpy_critic(self.model.policy, observations) or self._plain_values

    @th.no_grad()
    def _plain_values(self, observations: Observations) -> np.ndarray:
        tensors: Any = obs_as_tensor(observations, self.model.device)
        with self.model._random.in_torch(self.model.device):  # a network that is random draws too
            return self.model.policy.predict_values(tensors).flatten().cpu().numpy()


def _places_of(policy: ActorCriticPolicy) -> Places:
    """Return where a policy holds what its actor, a chain of layers, was read from."""
    extractor, net = policy.pi_features_extractor, policy.mlp_extractor.policy_net
    layers = [*net, policy.action_net] if type(net) is nn.Sequential else [policy.action_net]
    return Places([policy, policy.mlp_extractor, net, *layers, *extractor.modules()], policy, [extractor])


def _is_shared_with_numpy(parameter: th.Tensor) -> bool:
    return parameter.device.type == "cpu"


def _reader(parameters: list[nn.Parameter]) -> Callable[[], list[np.ndarray]]:
    """Return a function that gives parameters as arrays of the moment: their own memory, or of a GPU a copy each time."""
    if all(map(_is_shared_with_numpy, parameters)):
        arrays = [parameter.detach().numpy() for parameter in parameters]
        return lambda: arrays
    # One transfer for all of them. A change in place leaves no trace that could be asked for (Tensor.data)
    return lambda: [part.numpy() for part in unflatten(flatten([p.detach() for p in parameters]).cpu(), parameters)]


def _noise(shape: tuple[int, int], sample: Callable[[tuple[int, ...]], np.ndarray]) -> Iterator[np.ndarray]:
    """Yield noise for step after step, drawn in blocks."""
    n_steps = max(1, NOISE_BLOCK // (shape[0] * shape[1]))
    while True:
        yield from sample((n_steps, *shape))


class _Gaussian:
    """
    Independent Gaussian dimensions.

    :param shape: (n_envs, number of dimensions)
    :param random: what the noise is drawn from
    """

    def __init__(self, shape: tuple[int, int], random: np.random.Generator):
        self.noise = _noise(shape, lambda block: random.standard_normal(block, dtype=np.float32))

    def sample(self, latent: np.ndarray, mean: np.ndarray, log_std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return actions, of the mean's shape, and the logarithms of their deviations."""
        # A copy: the deviation may be changed in place
        return mean + np.exp(log_std) * next(self.noise), log_std.copy()

    def log_probs(self, means: np.ndarray, log_stds: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the log-probabilities of actions as they are stored, which is rounded, shape (n_steps, n_envs)."""
        return _normal_log_probs(means, log_stds[:, None], actions)


def _normal_log_probs(means: np.ndarray, log_stds: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return log-probabilities of independent Gaussian dimensions; one deviation may be that of several."""
    deviations = actions - means
    deviations /= np.exp(log_stds)
    # The last axis is short: einsum adds it up without a loop over rows for each operation
    squares = np.einsum("seu,seu->se", deviations, deviations)
    dimensions = means.shape[2]
    constant = log_stds.sum(axis=2) * (dimensions / log_stds.shape[2]) + 0.5 * dimensions * math.log(2.0 * math.pi)
    return -0.5 * squares - constant


class _StateDependent:
    """
    Gaussian dimensions whose noise is linear in the last hidden layer (gSDE), by the matrices that the policy has drawn.

    They may be squashed by a tanh.

    :param distribution: the policy's
    """

    def __init__(self, distribution: StateDependentNoiseDistribution):
        self.distribution = distribution

    def _std(self, log_std: np.ndarray) -> np.ndarray:
        """Return the deviation of each weight's noise."""
        if not self.distribution.use_expln:
            return np.exp(log_std)
        above = np.log1p(np.maximum(log_std, 0.0) + self.distribution.epsilon) + 1.0
        return np.where(log_std > 0.0, above, np.exp(np.minimum(log_std, 0.0)))

    def sample(self, latent: np.ndarray, mean: np.ndarray, log_std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return actions, of the mean's shape, and the logarithms of their deviations, the same."""
        variances = np.square(self._std(log_std))
        variance = np.dot(np.square(latent), np.broadcast_to(variances, (latent.shape[1], mean.shape[1])))
        # Where SB3 has the matrices: drawn anew they are other tensors
        matrices = self.distribution.exploration_matrices
        if len(latent) == 1 or len(latent) != len(matrices):
            noise = np.dot(latent, self.distribution.exploration_mat.detach().cpu().numpy())
        else:
            noise = np.matmul(latent[:, None], matrices.detach().cpu().numpy())[:, 0]
        actions = mean + noise
        return np.tanh(actions) if self.distribution.bijector else actions, 0.5 * np.log(variance + self.distribution.epsilon)

    def log_probs(self, means: np.ndarray, log_stds: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the log-probabilities of actions, shape (n_steps, n_envs)."""
        if self.distribution.bijector is None:
            return _normal_log_probs(means, log_stds, actions)
        # As SB3 finds out again what was squashed
        least = np.finfo(actions.dtype).eps
        inside = np.clip(actions, -1.0 + least, 1.0 - least)
        before = 0.5 * (np.log1p(inside) - np.log1p(-inside))
        stretched = np.log(1.0 - np.square(np.tanh(before)) + self.distribution.bijector.epsilon)
        return _normal_log_probs(means, log_stds, before) - stretched.sum(axis=2)


class _Categorical:
    """
    Categorical variables, whose logits stand side by side.

    :param shape: (n_envs, number of logits)
    :param sizes: number of logits of each variable; ``None`` for a single one, whose actions have no dimension
    :param random: what the noise is drawn from
    """

    def __init__(self, shape: tuple[int, int], sizes: list[int] | None, random: np.random.Generator):
        self.single = sizes is None
        self.cuts = [] if sizes is None else np.cumsum(sizes)[:-1].tolist()
        tiny = np.finfo(np.float32).tiny
        # The largest of logits plus independent Gumbel noise is a sample of their softmax
        self.noise = _noise(
            shape, lambda block: -np.log(np.maximum(random.standard_exponential(block, dtype=np.float32), tiny))
        )

    def sample(self, latent: np.ndarray, logits: np.ndarray, log_std: None) -> tuple[np.ndarray, None]:
        """Return actions, shape (n_envs,) or (n_envs, number of variables)."""
        noisy = logits + next(self.noise)
        if self.single:
            return noisy.argmax(axis=1), None
        return np.stack([part.argmax(axis=1) for part in np.split(noisy, self.cuts, axis=1)], axis=1), None

    def log_probs(self, logits: np.ndarray, log_stds: None, actions: np.ndarray) -> np.ndarray:
        """Return the log-probabilities of actions, shape (n_steps, n_envs)."""
        parts = [part - part.max(axis=2, keepdims=True) for part in np.split(logits, self.cuts, axis=2)]
        chosen = np.split(actions.reshape(*logits.shape[:2], -1).astype(int), len(parts), axis=2)
        at = (np.take_along_axis(part, index, axis=2)[..., 0] for part, index in zip(parts, chosen, strict=True))
        return sum(value - np.log(np.exp(part).sum(axis=2)) for value, part in zip(at, parts, strict=True))


class _Bernoulli:
    """
    Independent binary dimensions.

    :param shape: (n_envs, number of dimensions)
    :param random: what the noise is drawn from
    """

    def __init__(self, shape: tuple[int, int], random: np.random.Generator):
        def logistic(block: tuple[int, ...]) -> np.ndarray:
            uniform = np.clip(random.random(block, dtype=np.float32), 1e-7, 1.0 - 1e-7)
            return np.log(uniform) - np.log1p(-uniform)

        # A uniform number is below the sigmoid of a logit where logistic noise is below the logit
        self.noise = _noise(shape, logistic)

    def sample(self, latent: np.ndarray, logits: np.ndarray, log_std: None) -> tuple[np.ndarray, None]:
        """Return actions, of the logits' shape."""
        return (logits > next(self.noise)).astype(np.float32), None

    def log_probs(self, logits: np.ndarray, log_stds: None, actions: np.ndarray) -> np.ndarray:
        """Return the log-probabilities of actions, shape (n_steps, n_envs)."""
        return -np.logaddexp(0.0, (1.0 - 2.0 * actions) * logits).sum(axis=2)


def sampler_of(policy: ActorCriticPolicy, shape: tuple[int, int], random: np.random.Generator) -> Any:
    """Return how actions are drawn from the network's outputs, or ``None`` for a distribution that is not known here."""
    kind = kind_of(policy)
    if kind is DiagGaussianDistribution:
        return _Gaussian(shape, random)
    if kind is CategoricalDistribution:
        return _Categorical(shape, None, random)
    if kind is MultiCategoricalDistribution:
        sizes: Any = policy.action_dist
        return _Categorical(shape, [int(size) for size in sizes.action_dims], random)
    if kind is StateDependentNoiseDistribution:
        gsde: Any = policy.action_dist
        return None if learns_features(policy) else _StateDependent(gsde)
    return _Bernoulli(shape, random) if kind is BernoulliDistribution else None


class Forward:
    """
    A perceptron in NumPy, in the memory of its torch twin.

    :param network: the layers
    :param more: other parameters that are read along with them
    """

    def __init__(self, network: Network, more: Sequence[nn.Parameter] = ()):
        stages = network.stages
        self.layers = [(stage.affine, in_place(stage.activation)) for stage in stages]
        self.read = _reader([parameter for stage in stages for parameter in (stage.weight, stage.bias)] + [*more])

    def __call__(self, inputs: np.ndarray, arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """
        Return what the last layer is given, shape (n, n_latent), and what it gives, shape (n, n_outputs).

        :param inputs: float32, shape (n, n_inputs)
        :param arrays: what ``read`` returned
        """
        if len(inputs) <= EVALUATION_ROWS:
            return self._block(inputs, arrays)
        starts = range(0, len(inputs), EVALUATION_ROWS)
        latents, outputs = zip(*(self._block(inputs[at : at + EVALUATION_ROWS], arrays) for at in starts), strict=True)
        return np.concatenate(latents), np.concatenate(outputs)

    def _block(self, inputs: np.ndarray, arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Do it for as many as stay in the cache."""
        latent = outputs = inputs
        parameters = iter(arrays)
        for affine, activate in self.layers:
            latent = outputs
            outputs = forward(affine, latent, next(parameters), next(parameters), once=True)
            activate(outputs)
        return latent, np.ascontiguousarray(outputs)


class _NumpyActor:
    """
    A perceptron on vectors in NumPy, wherever its policy is: it takes microseconds a step.

    A GPU takes a millisecond to start its kernels.

    :param policy: the policy
    :param network: its actor
    :param n_envs: number of environments
    :param distribution: how actions are drawn from the outputs
    """

    draws_in_torch = False

    def __init__(self, policy: ActorCriticPolicy, network: Network, n_envs: int, distribution: Any):
        self.policy = policy
        self.places = _places_of(policy)
        self.n_envs = n_envs
        self.shape = (n_envs, *(policy.action_space.shape or ()))
        self.distribution = distribution
        self.has_std = isinstance(distribution, _Gaussian | _StateDependent)
        self.encode = encoder(policy, network)
        # Asking NumPy at each step would take a part of what a step takes
        self.is_quiet = {*np.geterr().values()} <= {"ignore", "warn"}
        self.forward = Forward(network, [policy.log_std] if self.has_std else [])
        # Outputs, log_std and actions of steps whose log-probabilities are not computed yet: as many as stay in the cache
        self.acted: list[tuple[np.ndarray, np.ndarray | None, np.ndarray]] = []
        self.most_acted = max(1, LOG_PROB_BLOCK // (n_envs * len(network.stages[-1].bias)))
        self.known: list[np.ndarray] = []
        self.distribution_left = vars(policy.action_dist)
        self.left = self.distribution_left.get("distribution")

    def is_current(self) -> bool:
        """Whether what was read of the policy is still in place; weights need not be what they were."""
        if self.distribution_left.get("distribution") is not self.left:
            # A callback has evaluated the policy: SB3's own next step would drop the graph that this may have left
            drop_graphs(self.policy, views_of_parameters(self.policy))
            self.left = self.distribution_left.get("distribution")
        return self.places.are_as_they_were()

    def __call__(self, observations: Observations, action_masks: np.ndarray | None = None) -> Acted:
        if self.is_quiet:
            return self._act(observations, action_masks)
        with np.errstate(all="ignore"):  # as torch does, whatever the process has set
            return self._act(observations, action_masks)

    def _act(self, observations: Observations, action_masks: np.ndarray | None) -> Acted:
        arrays = self.forward.read()
        latent, outputs = self.forward(self.encode(observations, self.n_envs), arrays)
        outputs = masked_array(outputs, action_masks)
        actions, log_std = self.distribution.sample(latent, outputs, arrays[-1] if self.has_std else None)
        # A copy: what becomes of the actions is the callbacks' affair
        self.acted.append((outputs, log_std, actions.copy()))
        if len(self.acted) == self.most_acted:
            self._settle()
        return Acted(actions.reshape(self.shape), None, None)

    def _settle(self) -> None:
        """Compute the log-probabilities of the last steps: together they cost next to nothing."""
        outputs, log_stds, actions = zip(*self.acted, strict=True)
        self.acted.clear()
        # A deviation may have come to zero; what is not finite is asked for afterwards
        with np.errstate(all="ignore"):
            stacked = np.stack(log_stds) if self.has_std else None
            self.known.append(self.distribution.log_probs(np.stack(outputs), stacked, np.stack(actions)))

    def log_probs(self) -> np.ndarray:
        """Return those of everything done so far."""
        if self.acted:
            self._settle()
        return np.concatenate(self.known) if self.known else np.empty((0, self.n_envs), np.float32)


def encoder(policy: ActorCriticPolicy, network: Network) -> Callable[[Observations, int], np.ndarray]:
    """Return what makes of n observations what the first layer is given, float32, shape (n, n_inputs)."""
    space = policy.observation_space
    if isinstance(space, spaces.Discrete):
        start, size = int(space.start), int(space.n)

        def encoded(observations: Any, n: int) -> np.ndarray:
            numbers = observations.reshape(n).astype(np.int64) - start
            if numbers.min() < 0:  # NumPy would count from the end
                raise IndexError(f"observations must be of {space}, got {observations}")
            one_hot = np.zeros((n, size), np.float32)
            one_hot[np.arange(n), numbers] = 1.0
            return one_hot

        return encoded
    keys = list(network.branches)

    def joined(observations: Any, n: int) -> np.ndarray:
        if isinstance(observations, np.ndarray):
            return observations.reshape(n, -1).astype(np.float32, copy=False)
        return np.concatenate([observations[key].reshape(n, -1) for key in keys], axis=1, dtype=np.float32)

    return joined


def covers_in_numpy(policy: ActorCriticPolicy, network: Network | None, n: int) -> bool:
    """Whether a network is a perceptron on vectors or numbers of states, and quicker in NumPy for n inputs at a time."""
    if network is None or network.learns_before_joint():
        return False
    space, stages = policy.observation_space, network.stages
    parts = [space[key] for key in network.branches] if isinstance(space, spaces.Dict) else [space]
    return (
        (isinstance(space, spaces.Discrete) or all(isinstance(part, spaces.Box) for part in parts))
        and not (policy.normalize_images and any(map(is_image_space, parts)))
        and not any(isinstance(stage.affine, nn.Conv2d) for stage in stages)
        and all(stage.weight.dtype == stage.bias.dtype == th.float32 for stage in stages)
        and not is_quicker_on_gpu([stage.weight for stage in stages], n)
    )


@th.no_grad()
def _numpy_critic(policy: ActorCriticPolicy, observations: Observations) -> Critic | None:
    """Return what gives values, ``None`` where the critic is not covered, or is not what was read of it."""
    network = read_critic(policy)
    if network is None or not covers_in_numpy(policy, network, min(n_observations(observations), EVALUATION_ROWS)):
        return None
    few: Any = obs_as_tensor(rows_of(observations, slice(N_COMPARED)), policy.device)
    if not is_as_read(policy.predict_values(few), run(policy, network, few)):
        return None
    evaluate, encode = Forward(network), encoder(policy, network)
    arrays = evaluate.read()

    def values(rows: Observations) -> np.ndarray:
        with np.errstate(all="ignore"):
            return evaluate(encode(rows, n_observations(rows)), arrays)[1].ravel()

    return values


@th.no_grad()
def _acts_as_sb3(policy: ActorCriticPolicy, network: Network, observations: Observations | None) -> bool:
    """Whether the policy makes its distribution of the chain's output, and samples it, as SB3 does."""
    if is_patched(policy.action_dist):
        return False
    if observations is None:
        return True
    few: Any = obs_as_tensor(rows_of(observations, slice(N_COMPARED)), policy.device)
    return agrees(policy, network, few, policy.get_distribution(few))


def _are_parameters(network: Network, log_std: th.Tensor | None) -> bool:
    """Whether the numbers of an actor are parameters, which are looked at as it acts; a buffer may be replaced unseen."""
    chains = [network.stages, *network.branches.values()]
    held = [tensor for chain in chains for stage in chain for tensor in (stage.weight, stage.bias)]
    return all(isinstance(tensor, nn.Parameter) for tensor in (held if log_std is None else [*held, log_std]))


def _numpy_actor(
    policy: ActorCriticPolicy, n_envs: int, random: np.random.Generator, observations: Observations | None = None
) -> _NumpyActor | None:
    network = read_actor(policy)
    log_std = getattr(policy, "log_std", None)
    is_covered = covers_in_numpy(policy, network, n_envs) and (log_std is None or log_std.dtype == th.float32)
    if network is None or not is_covered or not _are_parameters(network, log_std):
        return None
    distribution = sampler_of(policy, (n_envs, len(network.stages[-1].bias)), random)
    if distribution is None or not _acts_as_sb3(policy, network, observations):
        return None
    return _NumpyActor(policy, network, n_envs, distribution)


class _TorchActor:
    """
    Ask the policy for its distribution, and spare the critic; the actions are SB3's to the bit.

    :param policy: the policy
    """

    draws_in_torch = True

    def __init__(self, policy: ActorCriticPolicy):
        self.policy = policy
        self.kinds = [(type(module), len(vars(module))) for module in self._asked_as_a_whole()]
        self.done: list[np.ndarray] = []

    def _asked_as_a_whole(self) -> list[nn.Module]:
        """Return whose ``forward`` SB3 calls, in place of which their parts are asked here."""
        return [self.policy, *([self.policy.mlp_extractor] if self.policy.share_features_extractor else [])]

    def is_current(self) -> bool:
        """Whether their methods are their own; what they are made of is asked anew at each step."""
        modules = self._asked_as_a_whole()
        return self.kinds == [(type(module), len(vars(module))) for module in modules] and not any(
            module._forward_hooks or module._forward_pre_hooks for module in modules
        )

    @th.no_grad()
    def __call__(self, observations: Observations, action_masks: np.ndarray | None = None) -> Acted:
        masks: dict[str, Any] = {} if action_masks is None else {"action_masks": action_masks}
        distribution = self.policy.get_distribution(obs_as_tensor(observations, self.policy.device), **masks)
        actions = distribution.get_actions()
        log_probs = distribution.log_prob(actions).cpu().numpy()
        self.done.append(log_probs)
        return Acted(actions.reshape(-1, *(self.policy.action_space.shape or ())).cpu().numpy(), log_probs, None)

    def log_probs(self) -> np.ndarray:
        """Return those of each step."""
        return np.stack(self.done)


class _PlainActor:
    """
    Call the policy as SB3 does, values included.

    :param policy: the policy, or what stands in its place
    :param device: the model's
    """

    draws_in_torch = True

    def __init__(self, policy: ActorCriticPolicy, device: th.device):
        self.policy = policy
        self.device = device
        self.done: list[np.ndarray] = []

    def is_current(self) -> bool:
        """Whether the policy is what it was: whatever becomes of it, it is asked anew at each step."""
        return True

    @th.no_grad()
    def __call__(self, observations: Observations, action_masks: np.ndarray | None = None) -> Acted:
        masks = {} if action_masks is None else {"action_masks": action_masks}
        actions, values, log_probs = self.policy(obs_as_tensor(observations, self.device), **masks)
        self.done.append(log_probs.cpu().numpy())
        return Acted(actions.cpu().numpy(), self.done[-1], values.flatten().cpu().numpy())

    def log_probs(self) -> np.ndarray:
        """Return those of each step."""
        return np.stack(self.done)


def _is_covered(policy: ActorCriticPolicy) -> bool:
    """Whether there is a quicker way than SB3's ``forward``: it does the work of these in ways of its own."""
    return is_as_sb3(policy, "forward", "extract_features", "get_distribution", "predict_values")


def quickest_actor(
    policy: ActorCriticPolicy, n_envs: int, random: np.random.Generator, observations: Observations | None = None
) -> _PolicyActor | None:
    """
    Return the quickest way to act that covers a policy.

    :param policy: the policy
    :param n_envs: number of environments
    :param random: what the noise is drawn from
    :param observations: those of one step, with which it is asked whether what was read of the policy is all of it
    :return: ``None`` for policies that act in a way of their own
    """
    if not _is_covered(policy):
        return None
    if policy.share_features_extractor and known_kind(policy.mlp_extractor, {MlpExtractor}) is None:
        # What it makes of features as a whole need not be what its parts make of them
        return _PlainActor(policy, policy.device)
    shared = policy.pi_features_extractor is policy.vf_features_extractor
    # The critic is a read-out of features that are there at each step, and later they would have to be made again
    reads_out = shared and any(True for _ in policy.pi_features_extractor.parameters())
    in_torch = _PlainActor(policy, policy.device) if reads_out else _TorchActor(policy)
    return _numpy_actor(policy, n_envs, random, observations) or in_torch


def lean_actor(
    model: CheckedOnPolicyAlgorithm,
    rollout_buffer: RolloutBuffer,
    n_envs: int,
    masks_now: Callable[[], np.ndarray] | None = None,
) -> LeanActor | None:
    """
    Return an actor for a lean collection.

    :param model: whose policy acts
    :param rollout_buffer: where the experience goes
    :param n_envs: number of environments
    :param masks_now: as for :class:`LeanActor`
    :return: ``None`` where lean collection does not apply: buffers of the user's own, or that round what is observed, and
        policies that no quick actor covers
    """
    is_kept = is_sb3s_own(rollout_buffer) and keeps_numbers(rollout_buffer, model._last_obs)
    return LeanActor(model, n_envs, masks_now) if is_kept and _is_covered(model.policy) else None
