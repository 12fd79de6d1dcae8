"""
Fine-tune a policy that works already inside a trust region: PPO's, or one that was cloned from demonstrations.

One minute on one core: ``python examples/fine_tune.py`` or ``python examples/fine_tune.py --cloned``.
"""

import argparse
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo import TRPO

ENV_ID = "CartPole-v1"
LIMIT = 0.005
# Of so many updates these are for the critic alone: that of a clone knows nothing yet
N_UPDATES, N_FOR_THE_CRITIC = 13, 2


def demonstrations(expert: PPO, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return observations and what the expert does there; yours may come from a file."""
    env = make_vec_env(ENV_ID, n_envs=4, seed=100)
    observations, actions = [], []
    now: Any = env.reset()
    for _ in range(n_steps // 4):
        action, _ = expert.predict(now)
        observations.append(now)
        actions.append(action)
        now, *_ = env.step(action)
    return np.concatenate(observations), np.concatenate(actions)


def clone(policy: ActorCriticPolicy, observations: np.ndarray, actions: np.ndarray, n_epochs: int = 10) -> None:
    """Make the actions that were demonstrated likely."""
    optimizer = th.optim.Adam(policy.parameters(), lr=1e-3)
    inputs, targets = policy.obs_to_tensor(observations)[0], th.as_tensor(actions)
    assert isinstance(inputs, th.Tensor)
    for _ in range(n_epochs):
        for rows in th.randperm(len(targets)).split(64):
            _, log_prob, _ = policy.evaluate_actions(inputs[rows], targets[rows])
            optimizer.zero_grad()
            (-log_prob.mean()).backward()
            optimizer.step()


class Progress(BaseCallback):
    """Prints the return as training sees it, and how far the last update went."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, TRPO)
        update, episodes = self.model.last_update, list(self.model.ep_info_buffer or [])[-20:]
        if update is not None:
            mean = np.mean([episode["r"] for episode in episodes])
            print(f"update {update.n_updates:2}: {update.step.status:10} KL {update.step.mean_kl:.4f}, return {mean:5.1f}")


def limit(progress_remaining: float) -> float:
    """Hold the policy while the critic learns, then let it move."""
    n_done = N_UPDATES * (1.0 - progress_remaining)
    return 0.0 if n_done < N_FOR_THE_CRITIC + 0.5 else LIMIT


def main() -> None:
    """Train PPO for a while, hand its policy over, and go on with TRPO."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cloned", action="store_true", help="clone PPO's behaviour, in place of loading its weights")
    cloned = parser.parse_args().cloned
    th.set_num_threads(1)
    th.manual_seed(0)

    ppo = PPO("MlpPolicy", make_vec_env(ENV_ID, n_envs=4, seed=0), n_steps=256, seed=0, device="cpu").learn(16_384)
    model = TRPO(
        "MlpPolicy",
        make_vec_env(ENV_ID, n_envs=4, seed=1),
        n_steps=512,
        target_kl=limit,
        gae_lambda=0.98,
        seed=0,
        device="cpu",
    )
    if cloned:
        clone(model.policy, *demonstrations(ppo, 4_000))
    else:
        # Names, shapes and numbers are checked; the optimizer of the critic stays as it is
        model.set_parameters({"policy": ppo.policy.state_dict()}, exact_match=False)

    test_env = make_vec_env(ENV_ID, n_envs=10, seed=1_000)
    before, _ = evaluate_policy(model, test_env, n_eval_episodes=50)
    model.learn(N_UPDATES * 2_048, callback=Progress())
    after, _ = evaluate_policy(model, test_env, n_eval_episodes=50)
    print(f"return over 50 deterministic episodes: {before:.1f} before, {after:.1f} after")


if __name__ == "__main__":
    main()
