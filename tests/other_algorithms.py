"""Small models of the on-policy algorithms of SB3, sb3-contrib and a user, each the same one every time it is made."""

from collections.abc import Callable
from typing import Any

import sb3_contrib
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from tests.masked_envs import masked_env
from tests.small_models import DICT, DISCRETE, IMAGE, MULTI_BINARY, MULTI_DISCRETE, make_env, monitored


class TwoOptimizers(OnPolicyAlgorithm):
    """A policy gradient of the user's own, with an optimizer for the actor and one for the critic."""

    def __init__(self, _: Any, env: Any, n_steps: int = 32, **kwargs: Any):
        kwargs.pop("batch_size")
        rest: dict[str, Any] = {"gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 1.0}
        rest |= {"use_sde": False, "sde_sample_freq": -1} | kwargs
        super().__init__(ActorCriticPolicy, env, learning_rate=0.01, n_steps=n_steps, **rest)

    def _setup_model(self) -> None:
        super()._setup_model()
        policy: Any = self.policy
        critic = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
        known = set(critic)
        policy.of_actor = th.optim.Adam([p for p in policy.parameters() if p not in known], lr=0.01)
        policy.of_critic = th.optim.SGD(critic, lr=0.01)

    def train(self) -> None:
        policy: Any = self.policy
        policy.set_training_mode(True)
        for data in self.rollout_buffer.get(16):
            values, log_prob, _ = policy.evaluate_actions(data.observations, data.actions)
            loss = -(log_prob * data.advantages).mean() + (values.flatten() - data.returns).square().mean()
            for optimizer in (policy.of_actor, policy.of_critic):
                optimizer.zero_grad()
            loss.backward()
            for optimizer in (policy.of_actor, policy.of_critic):
                optimizer.step()


Maker = Callable[..., OnPolicyAlgorithm]


def _model(kind: Any, policy: str = "MlpPolicy", make: Callable[[], Any] = monitored, **of_case: Any) -> Maker:
    def made(**arguments: Any) -> OnPolicyAlgorithm:
        env = make()
        of_kind: dict[str, Any] = {"n_steps": 64 // env.num_envs, "seed": 0, "device": "cpu"}
        if kind is not A2C:
            of_kind["batch_size"] = 16
        if issubclass(kind, PPO | sb3_contrib.MaskablePPO | sb3_contrib.RecurrentPPO):
            of_kind["n_epochs"] = 2
        return kind(policy, env, **(of_kind | of_case | arguments))

    return made


LSTM: dict[str, Any] = {"policy_kwargs": {"lstm_hidden_size": 8}}
OTHERS: dict[str, Maker] = {
    "ppo": _model(PPO),
    "ppo-discrete": _model(PPO, make=lambda: make_env(action_space=DISCRETE)),
    "ppo-multi_discrete": _model(PPO, make=lambda: make_env(action_space=MULTI_DISCRETE, n_envs=2)),
    "ppo-dict": _model(PPO, "MultiInputPolicy", lambda: make_env(DICT, DISCRETE)),
    "ppo-image": _model(PPO, "CnnPolicy", lambda: make_env(IMAGE)),
    "ppo-gsde": _model(PPO, use_sde=True, sde_sample_freq=4),
    "ppo-gsde-squashed": _model(PPO, use_sde=True, policy_kwargs={"squash_output": True}),
    "ppo-normalized": _model(PPO, make=lambda: VecNormalize(monitored())),
    "ppo-limited": _model(PPO, target_kl=0.001, clip_range=lambda remaining: 0.3 * remaining),
    "a2c": _model(A2C),
    "a2c-one_step": _model(A2C, n_steps=1, make=lambda: monitored(1)),
    "contrib-trpo": _model(sb3_contrib.TRPO),
    "contrib-trpo-multi_binary": _model(sb3_contrib.TRPO, make=lambda: make_env(action_space=MULTI_BINARY)),
    "maskable-ppo": _model(sb3_contrib.MaskablePPO, make=lambda: masked_env(n_envs=2)),
    "maskable-ppo-multi_discrete": _model(
        sb3_contrib.MaskablePPO, make=lambda: masked_env(action_space=MULTI_DISCRETE, n_envs=2)
    ),
    "recurrent-ppo": _model(sb3_contrib.RecurrentPPO, "MlpLstmPolicy", **LSTM),
    "recurrent-ppo-dict": _model(
        sb3_contrib.RecurrentPPO, "MultiInputLstmPolicy", lambda: make_env(DICT, DISCRETE, 2), **LSTM
    ),
    "two-optimizers": _model(TwoOptimizers),
}
