"""The lean loop and what it leaves in the buffer: SB3's experience to rounding, SB3's callbacks, returns and advantages."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_trpo import TRPO, rollout
from sb3_trpo.rollout import compute_returns_and_advantage, relabel_returns
from tests.scenarios import FIELDS, GSDE, NARROW, NoiseEnv, Recorder, Scenario, check_equal, collect, contents, replay
from tests.small_models import (
    BOX,
    DICT,
    DISCRETE,
    VECTOR,
    RandomEnv,
    changed,
    make_env,
    policy_state,
    small_model,
)


def test_rewards_hold_the_discounted_value_where_time_ran_out() -> None:
    """Said from outside: reward + γ V(last observation) at a truncation, the reward alone elsewhere."""
    model = Scenario(termination_probability=0.0, episode_length=6).model(fast=True)
    given: list[np.ndarray] = []
    ends: list[tuple[int, int, np.ndarray]] = []

    class Notes(BaseCallback):
        def _on_step(self) -> bool:
            given.append(self.locals["rewards"].copy())
            for i, info in enumerate(self.locals["infos"]):
                if self.locals["dones"][i]:
                    ends.append((len(given) - 1, i, info["terminal_observation"]))
            return True

    collect(model, n_rollouts=1, callback=Notes())
    expected = np.array(given)
    for step, i, last in ends:
        with th.no_grad():
            expected[step, i] += 0.9 * float(model.policy.predict_values(th.as_tensor(last)[None]))
    assert len(ends) == 9
    np.testing.assert_allclose(model.rollout_buffer.rewards, expected, rtol=1e-5, atol=1e-5)


def test_small_blocks_are_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluating four observations at a time, the last block of a rollout smaller than the others, changes nothing."""
    scenario = Scenario(action_space=DISCRETE, n_envs=3)
    whole = collect(scenario.model(fast=True, n_steps=21))
    monkeypatch.setattr(rollout, "EVALUATION_BLOCK", 4 * 3)
    check_equal(collect(scenario.model(fast=True, n_steps=21)), whole)


class ReusingEnv(NoiseEnv):
    """Hands the same array out again and again, as environments written for speed do; a new one for each episode."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.observation, info = super().reset(**kwargs)
        return self.observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        self.observation[:] = observation
        return self.observation, *rest


def test_environment_that_reuses_its_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept until the end of the rollout must not be what the environment writes into."""

    def model(fast: bool) -> TRPO:
        env = DummyVecEnv([partial(ReusingEnv, VECTOR, BOX, episode_length=5)] * 2)
        return small_model(env=env, n_steps=20, fast=fast)

    ours, theirs = model(True), model(False)
    lean = collect(ours)
    replay(theirs, lean, monkeypatch)
    check_equal(lean, collect(theirs))


class ChannelsFirst(VecEnvWrapper):
    """Turns the observations of pictures, and leaves those in the infos as they are."""

    def __init__(self, venv: VecEnv):
        super().__init__(venv, spaces.Box(0, 255, (3, 36, 36), np.uint8))

    def reset(self) -> Any:
        return self.venv.reset().transpose(0, 3, 1, 2)  # type: ignore[union-attr]

    def step_wait(self) -> Any:
        observations, *rest = self.venv.step_wait()
        return observations.transpose(0, 3, 1, 2), *rest  # type: ignore[union-attr]


class OneInABatch(VecEnvWrapper):
    """Gives the last observation of an episode as a batch of one."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                last = info["terminal_observation"]
                batch = {k: v[None] for k, v in last.items()} if isinstance(last, dict) else np.asarray(last)[None]
                info["terminal_observation"] = batch
        return observations, rewards, dones, infos


@pytest.mark.parametrize(
    ("space", "policy", "wrapper"),
    [
        (spaces.Box(0, 255, (36, 36, 3), np.uint8), "CnnPolicy", ChannelsFirst),
        (spaces.Box(0, 255, (36, 36, 3), np.uint8), "MlpPolicy", ChannelsFirst),
        (VECTOR, "MlpPolicy", OneInABatch),
        (DICT, "MultiInputPolicy", OneInABatch),
        (spaces.Discrete(4), "MlpPolicy", OneInABatch),
    ],
)
def test_last_observation_is_read_as_the_policy_reads_it(
    space: spaces.Space, policy: str, wrapper: type[VecEnvWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Infos may have it in another layout than the space: SB3 puts it through ``obs_to_tensor``."""

    def model(fast: bool) -> TRPO:
        env = wrapper(DummyVecEnv([partial(NoiseEnv, space, BOX, episode_length=5)] * 2))
        return small_model(TRPO, policy, env, n_steps=20, fast=fast)

    ours, theirs = model(True), model(False)
    lean = collect(ours)
    replay(theirs, lean, monkeypatch)
    check_equal(lean, collect(theirs))


@pytest.mark.parametrize("of_class", [True, False])
def test_model_that_looks_at_infos_gets_those_of_all(of_class: bool) -> None:
    """An override of what SB3 hands every info to, of a class or on the object."""
    seen: list[int] = []

    def look(model: Any, infos: Any, dones: Any = None) -> None:
        seen.append(len(infos))
        TRPO._update_info_buffer(model, infos, dones)

    kind = type("Looking", (TRPO,), {"_update_info_buffer": look}) if of_class else TRPO
    model = small_model(kind, env=make_env(n_envs=2))
    if not of_class:
        model._update_info_buffer = partial(look, model)  # type: ignore[method-assign]
    model.learn(64)
    assert seen == [2] * 32


def test_gamma_of_the_bootstrap_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 bootstraps with the model's own discount factor, also where a user changed it after the buffer was made."""
    ours, theirs = (Scenario().model(fast=fast) for fast in (True, False))
    ours.gamma = theirs.gamma = 0.5
    lean = collect(ours)
    replay(theirs, lean, monkeypatch)
    check_equal(lean, collect(theirs))


# Callbacks


CALLBACK_CASES = [
    pytest.param(Scenario(n_envs=1), id="box, 1 env"),
    pytest.param(Scenario(action_space=DISCRETE), id="discrete, 3 envs"),
    pytest.param(Scenario(arguments=GSDE), id="gSDE"),
    pytest.param(
        Scenario(observation_space=DICT, policy="MultiInputPolicy", arguments={"n_critic_updates": 1, "cg_max_steps": 2}),
        id="dict",
    ),
    pytest.param(
        Scenario(
            observation_space=DICT,
            policy="MultiInputPolicy",
            arguments={"n_critic_updates": 1, "cg_max_steps": 2, "policy_kwargs": {"share_features_extractor": True}},
        ),
        id="dict, shared features",
    ),
    pytest.param(Scenario(arguments={"policy_kwargs": {"activation_fn": th.nn.Softsign}}), id="another activation"),
]


def learn(scenario: Scenario, *, fast: bool, stop_at: int | None = None, total: int = 100) -> tuple[TRPO, Recorder]:
    model = scenario.model(fast=fast, n_steps=10)
    recorder = Recorder(stop_at)
    model.learn(total, recorder)
    return model, recorder


@pytest.mark.parametrize("scenario", CALLBACK_CASES)
def test_callbacks_are_called_as_by_sb3_and_find_its_locals(scenario: Scenario) -> None:
    """
    The same calls in the same order, at the same number of timesteps.

    They find everything but what is not known at a step; what is there has the same type, shape and, where it counts, value.
    """
    ours, theirs = (learn(scenario, fast=fast) for fast in (True, False))
    assert ours[1].events == theirs[1].events
    assert [event for event, *_ in ours[1].events].count("rollout_end") == -(-100 // (10 * scenario.n_envs))
    late = {"values", "log_probs", "obs_tensor"}
    for (event, *_), found, expected in zip(ours[1].events, ours[1].seen, theirs[1].seen, strict=True):
        missing = expected.keys() - found.keys() - late
        assert not missing, f"{event}: {missing}"
        if event != "step":
            continue
        assert found["self"] is ours[0] and found["env"] is ours[0].env and found["rollout_buffer"] is ours[0].rollout_buffer
        assert found["callback"] is not None
        for name in ("n_steps", "n_rollout_steps"):
            assert found[name] == expected[name], name
        for name in ("actions", "clipped_actions", "rewards", "dones"):
            assert (found[name].shape, found[name].dtype) == (expected[name].shape, expected[name].dtype), name
        for name in ("values", "log_probs"):
            if found[name] is not None:
                assert type(found[name]) is type(expected[name]) and found[name].shape == expected[name].shape, name
        assert np.array_equal(found["dones"], expected["dones"])
        assert [info.keys() for info in found["infos"]] == [info.keys() for info in expected["infos"]]
        np.testing.assert_equal(found["new_obs"], expected["new_obs"])


def test_callbacks_find_no_values_of_a_rollout_before() -> None:
    """What is not known yet is ``None`` at every step, also once a rollout has been through."""
    model, recorder = Scenario().model(fast=True), Recorder()
    model.learn(120, recorder)
    steps = [seen for (event, *_), seen in zip(recorder.events, recorder.seen, strict=True) if event == "step"]
    assert len(steps) > model.n_steps
    assert all(seen["values"] is None and seen["obs_tensor"] is None for seen in steps)


def test_callback_at_the_end_of_the_rollout_finds_the_buffer_filled() -> None:
    """As with SB3 the advantages are there by then, and so are the values of the last observation."""
    model = Scenario().model(fast=True)
    found: dict[str, Any] = {}

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            found.update(contents(model.rollout_buffer), last_values=self.locals["values"])

    model.learn(60, Look())
    assert all(np.abs(found[name]).sum() > 0 for name in FIELDS)
    assert found["last_values"].shape == (3, 1)


@pytest.mark.parametrize("stop_at", [1, 10, 13])
@pytest.mark.parametrize("scenario", CALLBACK_CASES)
def test_callback_ends_the_run_where_it_does_with_sb3(scenario: Scenario, stop_at: int) -> None:
    """At the first step of a rollout, at its last one, in the middle of the second."""
    (ours, our_calls), (theirs, their_calls) = (learn(scenario, fast=fast, stop_at=stop_at) for fast in (True, False))
    assert our_calls.events == their_calls.events
    assert our_calls.events[-1][0] == "training_end"
    assert ours.num_timesteps == theirs.num_timesteps == stop_at * scenario.n_envs
    assert ours._n_updates == theirs._n_updates == (stop_at > 10)
    assert ours.rollout_buffer.pos == theirs.rollout_buffer.pos
    assert ours.rollout_buffer.full == theirs.rollout_buffer.full
    np.testing.assert_equal(ours._last_obs, theirs._last_obs)


def test_environment_gets_clipped_actions_and_the_buffer_what_was_sampled() -> None:
    """As with SB3: the log-probability is that of the action before clipping."""
    model, recorder = Scenario(action_space=NARROW).model(fast=True), Recorder()
    collect(model, n_rollouts=1, callback=recorder)
    given = np.stack([seen["clipped_actions"] for seen in recorder.seen[1:-1]])
    sampled = model.rollout_buffer.actions
    assert not model.action_space.contains(sampled[0, 0])
    assert np.array_equal(given, np.clip(sampled, NARROW.low, NARROW.high))


# A run as a whole


def test_counters_and_episodes_go_on_as_with_sb3() -> None:
    """Timesteps, iterations, ends of episodes in the monitor and the last observation, over several updates and two calls."""
    ours, theirs = (TRPO("MlpPolicy", RandomEnv(), n_steps=64, seed=0, device="cpu", fast=fast) for fast in (True, False))
    for model in (ours, theirs):
        model.learn(150).learn(70, reset_num_timesteps=False)
    assert ours.num_timesteps == theirs.num_timesteps == 192 + 128
    assert ours._n_updates == theirs._n_updates == 5
    assert ours.ep_info_buffer is not None and theirs.ep_info_buffer is not None
    assert [info["l"] for info in ours.ep_info_buffer] == [info["l"] for info in theirs.ep_info_buffer] != []
    np.testing.assert_equal(ours._last_obs, theirs._last_obs)
    np.testing.assert_equal(ours._last_episode_starts, theirs._last_episode_starts)


def test_training_mode_is_left_off() -> None:
    """Dropout would make the old policy one that never acted."""
    model = small_model(fast=True)
    model.policy.set_training_mode(True)
    collect(model, n_rollouts=1)
    assert not model.policy.training


# Advantages and returns


@pytest.mark.parametrize("n_envs", [1, 5])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 1.0), (0.8, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("n_steps", [1, 50])
def test_returns_and_advantages_are_the_buffers_own(n_envs: int, gamma: float, gae_lambda: float, n_steps: int) -> None:
    """On random numbers with random ends of episodes."""
    rng = np.random.default_rng(n_envs)
    buffer = RolloutBuffer(n_steps, VECTOR, BOX, "cpu", gamma=gamma, gae_lambda=gae_lambda, n_envs=n_envs)
    buffer.rewards, buffer.values = rng.normal(size=(2, n_steps, n_envs)).astype(np.float32)
    buffer.episode_starts = (rng.random((n_steps, n_envs)) < 0.2).astype(np.float32)
    last_values = rng.normal(size=n_envs).astype(np.float32)
    for dones in (rng.random(n_envs) < 0.5, np.zeros(n_envs, dtype=bool), np.ones(n_envs, dtype=bool)):
        buffer.compute_returns_and_advantage(th.as_tensor(last_values), dones)
        expected = buffer.advantages.copy(), buffer.returns.copy()
        compute_returns_and_advantage(buffer, last_values, dones)
        for ours, theirs in zip((buffer.advantages, buffer.returns), expected, strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("critic_gae_lambda", [0.0, 0.97, 1.0])
def test_returns_of_another_lambda_are_what_the_buffer_makes_of_it(gae_lambda: float, critic_gae_lambda: float) -> None:
    """On random numbers with random ends of episodes; the advantages stay to the bit."""
    rng = np.random.default_rng(0)
    buffer = RolloutBuffer(50, VECTOR, BOX, "cpu", gamma=0.9, gae_lambda=critic_gae_lambda, n_envs=5)
    buffer.rewards, buffer.values = rng.normal(size=(2, 50, 5)).astype(np.float32)
    buffer.episode_starts = (rng.random((50, 5)) < 0.2).astype(np.float32)
    last_values, dones = th.as_tensor(rng.normal(size=5), dtype=th.float32), rng.random(5) < 0.5
    buffer.compute_returns_and_advantage(last_values, dones)
    expected = buffer.returns.copy()
    buffer.gae_lambda = gae_lambda
    buffer.compute_returns_and_advantage(last_values, dones)
    advantages = buffer.advantages.copy()
    relabel_returns(buffer, critic_gae_lambda)
    assert np.array_equal(buffer.advantages, advantages)
    assert buffer.returns.dtype == expected.dtype
    np.testing.assert_allclose(buffer.returns, expected, rtol=1e-5, atol=1e-5)


class UsersBuffer(RolloutBuffer):
    """What a user may write: SB3 collects into it, and the critic is fitted to minibatches that it draws."""


@pytest.mark.parametrize(
    "arguments",
    [{"fast": True}, {"fast": False}, {"rollout_buffer_class": UsersBuffer}],
    ids=["fast", "plain", "a user's buffer"],
)
def test_critic_is_fitted_to_returns_of_a_lambda_of_its_own(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With λ = 1 they are the rewards that came, discounted, where every episode ends with the rollout; the policy's step
    does not change with it."""
    seen: list[Any] = []
    fit = TRPO._fit_critic

    def noted(self: TRPO, batch: Any, *rest: Any) -> Any:
        seen.append(batch)
        values_seen = np.concatenate([minibatch.returns.numpy() for minibatch in next(iter(self._value_epochs(batch)))])
        np.testing.assert_array_equal(np.sort(values_seen), np.sort(batch.returns.numpy()))
        return fit(self, batch, *rest)

    monkeypatch.setattr(TRPO, "_fit_critic", noted)

    def learned(critic_gae_lambda: float | None) -> tuple[TRPO, np.ndarray]:
        env = DummyVecEnv([lambda: NoiseEnv(VECTOR, BOX, episode_length=10**6, termination_probability=0.0)] * 2)
        model = small_model(
            TRPO, "MlpPolicy", env, n_steps=16, gae_lambda=0.5, critic_gae_lambda=critic_gae_lambda, **arguments
        )
        rewards: list[np.ndarray] = []
        step = model.env.step_wait  # type: ignore[union-attr]

        def last_ends() -> Any:
            observations, reward, dones, infos = step()
            rewards.append(reward.copy())
            return observations, reward, np.full_like(dones, len(rewards) % 16 == 0), infos

        monkeypatch.setattr(model.env, "step_wait", last_ends)
        model.learn(32)
        return model, np.array(rewards)

    (model, rewards), (shorter, _) = learned(1.0), learned(None)
    powers = np.array([[model.gamma ** (later - step) * (later >= step) for later in range(16)] for step in range(16)])
    returns, others = (batch.returns.numpy() for batch in seen)
    np.testing.assert_allclose(np.sort(returns), np.sort((powers @ rewards).ravel()), rtol=1e-4, atol=1e-5)
    assert not np.allclose(np.sort(returns), np.sort(others), rtol=1e-2)
    np.testing.assert_array_equal(np.sort(seen[0].advantages), np.sort(seen[1].advantages))
    assert changed(policy_state(model), policy_state(shorter))
    assert all("value" in name or "vf" in name for name in changed(policy_state(model), policy_state(shorter)))


class OwnReturns(RolloutBuffer):
    """Computes returns in a way of its own."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.returns = self.rewards + self.values


def test_lambda_of_the_critic_does_not_replace_returns_of_the_users_own() -> None:
    model = small_model(rollout_buffer_class=OwnReturns, critic_gae_lambda=0.5)
    with pytest.raises(ValueError, match=r"critic_gae_lambda must be None .*got 0\.5 and OwnReturns"):
        model.learn(64)
    model.critic_gae_lambda = None
    model.learn(64)
