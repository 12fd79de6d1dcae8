"""A variant of TRPO in one hook: an entropy bonus, as PPO has one. ``python examples/entropy_trpo.py`` compares."""

import math
from numbers import Real
from typing import Any, ClassVar

from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO
from sb3_trpo.guards.arguments import Rule, Rules, check_arguments
from sb3_trpo.objective import Batch


class EntropyTRPO(TRPO):
    """
    TRPO with a bonus for entropy.

    The gradient of the entropy is a policy gradient: that of E[log π(a|s) · surprise] with the surprise −log π(a|s) held
    fixed. So the surprise of each action is added to its advantage, and everything else stays TRPO's: limit, line search,
    fast paths, saving, pictures.

    :param policy: as TRPO's
    :param env: as TRPO's
    :param entropy_bonus: what a nat of surprise is worth, in standard deviations of the advantage
    :param kwargs: as TRPO's
    """

    # With this, load(path, entropy_bonus=-1) and model.entropy_bonus = -1 are refused by name, as a wrong gamma is
    rules: ClassVar[Rules] = {
        **TRPO.rules,
        "entropy_bonus": Rule(Real, lambda value: 0 <= value < math.inf, "a finite number >= 0"),
    }

    def __init__(self, policy: Any, env: Any, *, entropy_bonus: float = 0.01, **kwargs: Any):
        check_arguments(self.rules, {"entropy_bonus": entropy_bonus})
        self.entropy_bonus = entropy_bonus
        super().__init__(policy, env, **kwargs)

    def _full_batch(self) -> Batch:
        batch = super()._full_batch()
        surprise = -batch.old_log_prob
        # A constant changes no gradient; without it the bonus does not count as a gain either
        surprise = surprise - self._mean(surprise, batch.weights)
        return batch._replace(advantages=batch.advantages + self.entropy_bonus * surprise)


def entropy_after(bonus: float, total_timesteps: int) -> float:
    """Train on CartPole-v1, and return the entropy of the policy in nats; that of a fair coin is 0.693."""
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    model = EntropyTRPO("MlpPolicy", env, entropy_bonus=bonus, n_steps=512, seed=0, device="cpu")
    model.learn(total_timesteps)
    assert model.last_update is not None and model.last_update.entropy is not None
    return model.last_update.entropy


if __name__ == "__main__":
    for given in (0.0, 0.3, 1.0):
        print(f"entropy_bonus={given:g}: {entropy_after(given, 20_480):.3f} nats after 20,480 steps")
