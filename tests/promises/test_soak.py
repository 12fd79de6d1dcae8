"""One long run in a hostile world: nothing leaves the trust region, nothing becomes NaN, nothing piles up."""

import gc
import pathlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from tests.from_outside import ROUNDING, MeasuredTRPO
from tests.small_models import VECTOR, RandomEnv, policy_state, small_model


class HostileWorld(RandomEnv):
    """Spells of spikes, of constants and of nothing at all, in rewards and observations, that change at random."""

    reward_spell, observation_spell = "", ""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        random = self.np_random
        if random.random() < 0.01:
            self.reward_spell = str(random.choice(["", "spikes", "constant", "sparse", "tiny"]))
            self.observation_spell = str(random.choice(["", "spikes", "constant", "sparse", "tiny"]))
        reward = {
            "": reward,
            "spikes": reward + 1e6 * float(random.choice([-1.0, 0.0, 0.0, 0.0, 1.0])),
            "constant": 1.0,
            "sparse": float(random.random() < 0.02),
            "tiny": 1e-30 * reward,
        }[self.reward_spell]
        observation = {
            "": observation,
            "spikes": observation * np.float32(random.choice([1.0, 1.0, 1.0, 1e6])),
            "constant": np.ones_like(observation),
            "sparse": observation * np.float32(random.random() < 0.1),
            "tiny": observation * np.float32(1e-30),
        }[self.observation_spell]
        return observation, reward, terminated, truncated, info


class Watched(MeasuredTRPO):
    """TRPO that measures every update from outside, and looks at every weight and at its own memory."""

    n_outside = n_not_finite = 0
    statuses: tuple[str, ...] = ()
    resident: tuple[int, ...] = ()

    def train(self) -> None:
        super().train()
        *_, (step, mean_kl) = self.measurements
        self.statuses += (step.status,)
        self.n_outside += abs(mean_kl) > self._now("target_kl") + ROUNDING if step.accepted else mean_kl != 0.0
        # Each has its candidates: kept, they would be taken for a leak
        self.measurements = ()
        self.n_not_finite += not all(bool(tensor.isfinite().all()) for tensor in policy_state(self).values())
        if self._n_updates % 50 == 0:
            gc.collect()
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            self.resident += (pages,)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="asks Linux for the memory in use")
def test_two_thousand_updates_in_a_hostile_world_keep_the_promise() -> None:
    """No update outside the trust region, no weight that is not finite, and memory flat over the second half."""
    env = DummyVecEnv([lambda: HostileWorld(VECTOR)] * 2)
    model = small_model(Watched, env=env, normalize_advantage=True)
    assert isinstance(model, Watched)
    model.learn(2_000 * 64, log_interval=None)  # type: ignore[arg-type]
    assert model._n_updates == 2_000
    assert model.n_outside == 0 and model.n_not_finite == 0
    # It was no quiet run, and no dead one
    counts = Counter(model.statuses)
    assert counts["accepted"] > 1_000 and len(counts) > 1
    half = len(model.resident) // 2
    print(dict(counts), model.resident[half], model.resident[-1])  # noqa: T201 - what a run with -s is for
    assert model.resident[-1] < 1.01 * model.resident[half]
