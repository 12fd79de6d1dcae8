"""
Train, evaluate, save and play a policy whose actions are not always possible.

RL Zoo passes no masks, so this is what stands in its place: ``python examples/masked_actions.py``.
"""

import argparse

import numpy as np
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo import MaskableTRPO
from sb3_trpo.maskable_recurrent import MaskableEvalCallback, evaluate_policy


def make_env(n_envs: int = 1) -> VecEnv:
    """Return copies of the environment: yours has a method ``action_masks()``, or is wrapped in ``ActionMasker``."""
    return make_vec_env(InvalidActionEnvDiscrete, n_envs, env_kwargs={"dim": 20, "n_invalid_actions": 15})


def main() -> None:
    """Train, and play what was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--n-timesteps", type=int, default=8_000)
    parser.add_argument("--path", default="masked_actions.zip", help="where the model goes")
    arguments = parser.parse_args()

    model = MaskableTRPO("MlpPolicy", make_env(4), n_steps=256, gamma=0.4, target_kl=0.05, seed=0)
    model.learn(arguments.n_timesteps, callback=MaskableEvalCallback(make_env(), eval_freq=500))
    model.save(arguments.path)

    model = MaskableTRPO.load(arguments.path)
    mean, std = evaluate_policy(model, make_env(), n_eval_episodes=20)
    print(f"mean return {mean:.1f} +/- {std:.1f}, the best possible is 100")

    env = make_env()
    observations = env.reset()
    for _ in range(10):
        actions, _ = model.predict(np.asarray(observations), deterministic=True, action_masks=get_action_masks(env))
        observations, rewards, _, _ = env.step(actions)
        print(f"action {actions[0]}, reward {rewards[0]:.0f}")


if __name__ == "__main__":
    main()
