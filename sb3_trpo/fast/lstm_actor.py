"""
A policy with an LSTM in NumPy, to act step by step: torch takes milliseconds for it, and this dozens of microseconds.

Actor and critic each take one step. The plain twin is the policy itself, which sb3-contrib's loop asks for the same.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_trpo.fast import lstm
from sb3_trpo.fast.actors import Forward, covers_in_numpy, encoder, sampler_of
from sb3_trpo.fast.gauss_newton import is_made_of
from sb3_trpo.fast.kinds import CLOSED_FORM, is_patched, kind_of
from sb3_trpo.fast.lstm_fisher import read_around
from sb3_trpo.fast.masks import masked_array
from sb3_trpo.fast.network import OF_CRITIC, Network, is_as_read, read_network, read_stages
from sb3_trpo.fast.places import Places
from sb3_trpo.guards.passed_on import StandIn, runs_user_code, steps_through_user_code
from sb3_trpo.policies import n_observations

# What of a policy is asked for here
METHODS = ("forward", "predict_values")


class _Read(NamedTuple):
    """
    What a policy is made of.

    :param actor: what is around the actor's LSTM
    :param critic: what is around the critic's LSTM, or after the layer in its place
    :param critic_lstm: the LSTM that the critic reads from, the actor's where they share it; ``None`` where there is none
    """

    actor: Network
    critic: Network
    critic_lstm: nn.LSTM | None


def _read(policy: Any, n_envs: int) -> _Read | None:
    """Read a policy, ``None`` if it is not covered."""
    actor = read_around(policy)
    critic = read_network(policy, *OF_CRITIC)
    if actor is None or critic is None or any(True for _ in policy.vf_features_extractor.parameters()):
        return None
    own = policy.lstm_critic
    if own is None and not policy.shared_lstm:
        before = read_stages([policy.critic])
        if before is None:
            return None
        critic = critic._replace(stages=[*before, *critic.stages])
    shared = policy.lstm_actor if policy.shared_lstm else None
    weights = [p for lstm_ in (policy.lstm_actor, own) if lstm_ is not None for p in lstm_.parameters()]
    if (
        kind_of(policy) not in CLOSED_FORM
        or is_patched(policy.action_dist)
        or (own is not None and not lstm.is_covered(own))
        or any(parameter.dtype != th.float32 for parameter in weights)
        or not all(covers_in_numpy(policy, network, n_envs) for network in (actor, critic))
        or any(parameter.device.type != "cpu" for parameter in policy.parameters())
    ):
        return None
    return _Read(actor, critic, own if own is not None else shared)


class _LateGenerator:
    """
    A generator that is made when it is first drawn from: a callback may seed the model as a rollout starts.

    :param make: makes it
    """

    def __init__(self, make: Callable[[], np.random.Generator]):
        self.make = make

    @cached_property
    def generator(self) -> np.random.Generator:
        """Return it."""
        return self.make()

    def __getattr__(self, name: str) -> Any:
        if "make" not in vars(self):  # while it is copied
            raise AttributeError(name)
        return getattr(self.generator, name)


class QuickPolicy(StandIn):
    """
    A policy as sb3-contrib's loop takes it, in NumPy; whatever else is asked of it is the policy's.

    :param policy: the policy
    :param read: what it is made of
    :param n_envs: number of environments
    :param random: what the noise is drawn from
    :param plain: the policy as the plain twin has it, which draws the noise of gSDE
    """

    def __init__(self, policy: Any, read: _Read, n_envs: int, random: Any, plain: Any):
        sampler: Any = sampler_of(policy, (n_envs, len(read.actor.stages[-1].bias)), random)
        has_std = hasattr(policy, "log_std")
        # In their own memory: what is changed in place changes here, and what is replaced is seen
        of_actor, own = lstm.weights_of(policy.lstm_actor), read.critic_lstm
        # One that is the actor's, and yet the critic's own, has states of its own
        of_critic = None if own is None else of_actor if policy.lstm_critic is None else lstm.weights_of(own)
        super().__init__(
            policy,
            plain=plain,
            read=read,
            of_actor=of_actor,
            of_critic=of_critic,
            sampler=sampler,
            has_std=has_std,
            places=Places(list(policy.modules()), policy, [policy.pi_features_extractor, policy.vf_features_extractor]),
            shape=(n_envs, *policy.action_space.shape),
            encode=encoder(policy, read.actor),
            actor=Forward(read.actor, [policy.log_std] if has_std else []),
            critic_head=Forward(read.critic),
        )

    def is_current(self) -> bool:
        """Whether what was read of the policy is still in place."""
        return self.places.are_as_they_were()

    @th.no_grad()
    def reset_noise(self, n_envs: int = 1) -> None:
        """Draw the noise of gSDE anew; without a graph, which would keep a callback from copying the policy."""
        self.plain.reset_noise(n_envs)

    @th.no_grad()
    def __call__(self, obs: Any, lstm_states: Any, episode_starts: th.Tensor, action_masks: np.ndarray | None = None) -> Any:
        """Return actions, values, log-probabilities and the states after the step, as the policy does."""
        with np.errstate(all="ignore"):  # what is not finite is asked for afterwards
            return self._act(obs, lstm_states, episode_starts, action_masks)

    def _act(self, obs: Any, lstm_states: Any, episode_starts: th.Tensor, action_masks: np.ndarray | None) -> Any:
        inputs = self._encoded(obs)
        goes_on = _goes_on(episode_starts)
        after = _stepped(self.of_actor, inputs, lstm_states.pi, goes_on)
        arrays = self.actor.read()
        latent, outputs = self.actor(after[0], arrays)
        outputs = masked_array(outputs, action_masks)
        actions, log_std = self.sampler.sample(latent, outputs, arrays[-1] if self.has_std else None)
        stacked = None if log_std is None else log_std[None]
        log_probs = self.sampler.log_probs(outputs[None], stacked, actions[None])[0]
        # A critic without an LSTM of its own is handed the actor's states
        of_critic = after
        if self.of_critic is not None and self.of_critic is not self.of_actor:
            of_critic = _stepped(self.of_critic, inputs, lstm_states.vf, goes_on)
        values = self._head(inputs if self.of_critic is None else of_critic[0])
        pi, vf = (tuple(th.from_numpy(part[None]) for part in pair) for pair in (after, of_critic))
        taken = th.from_numpy(np.ascontiguousarray(actions.reshape(self.shape)))
        return taken, values, th.from_numpy(np.asarray(log_probs, np.float32)), type(lstm_states)(pi, vf)

    @th.no_grad()
    def predict_values(self, obs: Any, lstm_states: Any, episode_starts: th.Tensor) -> th.Tensor:
        """Return values, shape (n, 1), as the policy does."""
        with np.errstate(all="ignore"):
            inputs = self._encoded(obs)
            if self.of_critic is not None:
                inputs = _stepped(self.of_critic, inputs, lstm_states, _goes_on(episode_starts))[0]
            return self._head(inputs)

    def _head(self, latent: np.ndarray) -> th.Tensor:
        return th.from_numpy(np.ascontiguousarray(self.critic_head(latent, self.critic_head.read())[1]))

    def _encoded(self, obs: Any) -> np.ndarray:
        arrays = {key: part.numpy() for key, part in obs.items()} if isinstance(obs, dict) else obs.numpy()
        return self.encode(arrays, n_observations(arrays))

    @th.no_grad()
    def agrees(self, obs: Any, lstm_states: Any, episode_starts: th.Tensor) -> bool:
        """Whether the policy itself gives the same here: whatever it does that was not read would show."""
        policy = self.thing
        with np.errstate(all="ignore"):
            after = _stepped(self.of_actor, self._encoded(obs), lstm_states.pi, _goes_on(episode_starts))
        distribution, _ = policy.get_distribution(obs, lstm_states.pi, episode_starts)
        return is_made_of(policy, self.read.actor, th.from_numpy(after[0]), distribution, None) and is_as_read(
            policy.predict_values(obs, lstm_states.vf, episode_starts),
            self.predict_values(obs, lstm_states.vf, episode_starts),
        )


def _goes_on(episode_starts: th.Tensor) -> np.ndarray | None:
    """Return zero where an episode starts and one where it goes on, shape (n_envs, 1); ``None`` where all of them go on."""
    starts = episode_starts.numpy()
    return (1.0 - starts)[:, None] if starts.any() else None


def _stepped(weights: lstm.Weights, inputs: np.ndarray, states: Any, goes_on: np.ndarray | None) -> lstm.State:
    """Return the state after a step; where an episode starts it is zeros before."""
    hidden, cell = states[0].numpy()[0], states[1].numpy()[0]
    if goes_on is not None:
        hidden, cell = hidden * goes_on, cell * goes_on
    return lstm.step(weights, inputs, (hidden, cell))


class QuickModel(StandIn):
    """
    A model as sb3-contrib's loop takes it, whose policy of the moment acts in NumPy for as long as that covers it.

    :param model: the model
    :param n_envs: number of environments
    :param acts_as_known: whether methods of the model's policy are those that are known
    """

    def __init__(self, model: Any, n_envs: int, acts_as_known: Callable[..., bool]):
        random = _LateGenerator(lambda: model._random.for_actions())
        own: dict[str, Any] = {"quick": None, "seen": None, "random": random, "is_looked_after": True}
        super().__init__(model, n_of_envs=n_envs, acts_as_known=acts_as_known, **own)

    def knows(self, callback: Any, env: Any) -> None:
        """Note who is called at each step: where that is no user code, nothing is replaced, and nothing is looked after."""
        vars(self)["is_looked_after"] = runs_user_code(callback) or steps_through_user_code(env)

    def is_covered(self) -> bool:
        """Whether the policy is, as far as can be seen before it acts."""
        policy = self.thing.policy
        if not self.acts_as_known(*METHODS) or _read(policy, self.n_of_envs) is None:
            return False
        n_outputs = policy.action_net.out_features
        return sampler_of(policy, (self.n_of_envs, n_outputs), np.random.default_rng(0)) is not None

    @property
    def policy(self) -> Any:
        """Return the policy of the moment, or its quick twin."""
        own = vars(self)
        policy = self.thing.policy
        quick = own["quick"]
        if own["seen"] is not policy or (quick is not None and own["is_looked_after"] and not quick.is_current()):
            own["seen"], own["quick"] = policy, self._twin(policy)
        return own["quick"] or self.thing._drawing_own_numbers().policy

    def _twin(self, policy: Any) -> QuickPolicy | None:
        model, own = self.thing, vars(self)
        read = _read(policy, self.n_of_envs) if self.is_covered() else None
        if read is None:
            return None
        twin = QuickPolicy(policy, read, self.n_of_envs, own["random"], model._drawing_own_numbers().policy)
        last: Any = model._last_obs
        on_cpu = partial(th.as_tensor, device="cpu")  # whatever torch's default is
        obs = {key: on_cpu(part) for key, part in last.items()} if isinstance(last, dict) else on_cpu(last)
        starts = on_cpu(model._last_episode_starts, dtype=th.float32)
        return twin if twin.agrees(obs, model._last_lstm_states, starts) else None
