"""A vector environment that spends a step on each reset: that step is not learned from."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.vec_env import GymnasiumVecEnv, make_vector_env
from tests.cases import shake
from tests.small_models import changed, policy_state, small_model


class Marked(BaseCallback):
    """Keeps which steps the infos call wasted."""

    def _on_rollout_start(self) -> None:
        self.marks: list[list[bool]] = []

    def _on_step(self) -> bool:
        self.marks.append([info.get("wasted_step", False) for info in self.locals["infos"]])
        return True


def collected(*, fast: bool = True, normalized: bool = False, **arguments: Any) -> tuple[TRPO, np.ndarray]:
    """Return a model whose second rollout is in its buffer, and which of its steps were wasted."""
    env: Any = make_vector_env("CartPole-v1", 4, seed=0, backend="vector")
    assert isinstance(env, GymnasiumVecEnv) and env.wastes_steps
    model = small_model(env=VecNormalize(env) if normalized else env, n_steps=50, fast=fast, **arguments)
    shake(list(model.policy.parameters()), scale=0.2, seed=1)
    marked = Marked()
    _, callback = model._setup_learn(10**6, marked)
    for _ in range(2):
        assert model.env is not None
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model, np.array(marked.marks)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_update_is_the_one_without_the_wasted_steps(fast: bool, normalized: bool) -> None:
    """Weight zero in gradient, Fisher matrix and KL, also once the buffer has been read: leaving them out is the same."""
    model, wasted = collected(fast=fast, normalized=normalized)
    assert 5 < wasted.sum() < wasted.size / 3
    np.testing.assert_array_equal(model._wasted_steps, wasted)
    for reads in (False, True):
        if reads:
            next(model.rollout_buffer.get(None))
        batch = model._full_batch()
        assert th.count_nonzero(batch.weights) == (~wasted).sum()
        kept = batch.weights.nonzero().squeeze(1)
        without = batch.select(kept)
        assert float(without.weights.sum()) == pytest.approx(1.0)
        parameters = model._split_parameters(batch)[0]
        vector = th.linspace(-1, 1, sum(p.numel() for p in parameters))
        answers = []
        for each in (batch, without):
            problem = model._policy_problem(each, parameters)
            answers.append((problem.surrogate_gradient()[1], problem.fisher_vector_product()(vector)))
        for with_them, without_them in zip(*answers, strict=True):
            assert th.allclose(with_them, without_them, rtol=1e-4, atol=1e-6) and with_them.norm() > 1e-3
        assert float((without.weights * without.advantages).sum()) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_critic_never_sees_a_wasted_step(fast: bool) -> None:
    """Every other transition once in each pass; nor is it in the variance that the values explain."""
    model, wasted = collected(fast=fast, batch_size=32)
    model.rollout_buffer.returns[wasted] = 1e6
    batch = model._full_batch()
    for minibatches in model._value_epochs(batch):
        seen = th.cat([minibatch.returns for minibatch in minibatches])
        assert len(seen) == (~wasted).sum() and seen.max() < 1e5
    model.train()
    assert model.last_update is not None and model.last_update.critic is not None
    assert model.last_update.critic.value_loss < 1e5 and abs(model.last_update.explained_variance) < 1e3


class OneStep(gym.Env[np.ndarray, Any]):
    """Episodes of one step."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,))
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], float(action == 1), True, False, {}


@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("n_steps", "n_envs"), [(1, 4), (2, 1)])
def test_rollout_in_which_hardly_a_step_counts(n_steps: int, n_envs: int, fast: bool, normalize_advantage: bool) -> None:
    """Every second step only resets: nothing is learned from it, and no number is none."""
    vector_env = gym.vector.SyncVectorEnv([OneStep] * n_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
    env = GymnasiumVecEnv(RecordEpisodeStatistics(vector_env))
    model = small_model(env=env, n_steps=n_steps, batch_size=4, fast=fast, normalize_advantage=normalize_advantage)
    for i in range(4):
        before = policy_state(model)
        model.learn(n_steps * n_envs, reset_num_timesteps=i == 0)
        update = model.last_update
        assert update is not None and np.isfinite([update.step.mean_kl, float(update.entropy or 0.0)]).all()
        assert update.step.status in ("accepted", "gradient_zero")
        assert model._wasted_steps is not None
        if model._wasted_steps.all():
            assert not changed(before, policy_state(model)) and update.critic is None


class OwnBuffer(RolloutBuffer):
    """Yields its transitions in an order of its own, for all that is known."""

    def get(self, batch_size: int | None = None) -> Any:
        yield from super().get(batch_size)


def test_buffer_of_the_users_own_is_refused_before_a_step_is_made() -> None:
    """With the way out."""
    env = make_vector_env("CartPole-v1", 2, backend="vector")
    model = small_model(env=env, rollout_buffer_class=OwnBuffer)
    with pytest.raises(ValueError, match=r"rollout_buffer_class must be SB3's own.*SAME_STEP"):
        model.learn(64)


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False])
def test_task_is_learned(fast: bool) -> None:
    """Gymnasium's own vectorised CartPole, given as it is."""
    model = TRPO("MlpPolicy", gym.make_vec("CartPole-v1", 8, "vector_entry_point"), n_steps=128, seed=0, fast=fast)
    model.learn(40_000)
    assert model.ep_info_buffer is not None
    assert np.mean([info["r"] for info in model.ep_info_buffer]) > 150
