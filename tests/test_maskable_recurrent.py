"""Policies with a memory take possible actions alone, in collection and evaluation, and keep the limit."""

import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable import callbacks as contrib_callbacks
from sb3_contrib.common.maskable import evaluation as contrib_evaluation

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.inspect import inspect_model
from sb3_trpo.maskable_recurrent import (
    MaskableEvalCallback,
    MaskableMlpLstmPolicy,
    MaskableRecurrentRolloutBuffer,
    evaluate_policy,
)
from sb3_trpo.recurrent import SequenceBatch
from tests.from_outside import joint_kl_by_hand
from tests.masked_envs import MaskedEnv, masked_env
from tests.small_models import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    VECTOR,
    make_env,
    policy_state,
    small_model,
)

CASES: dict[str, tuple[str, spaces.Space, spaces.Space, dict[str, Any]]] = {
    "discrete": ("MlpLstmPolicy", VECTOR, DISCRETE, {}),
    "multi_discrete": ("MlpLstmPolicy", VECTOR, MULTI_DISCRETE, {}),
    "multi_binary": ("MlpLstmPolicy", VECTOR, MULTI_BINARY, {"n_lstm_layers": 2}),
    "shared": ("MlpLstmPolicy", spaces.MultiDiscrete([3, 2]), DISCRETE, {"shared_lstm": True, "enable_critic_lstm": False}),
    "dict": ("MultiInputLstmPolicy", DICT, DISCRETE, {"enable_critic_lstm": False}),
    "cnn": ("CnnLstmPolicy", IMAGE, MULTI_DISCRETE, {}),
}


def both_model(cls: type[MaskableRecurrentTRPO] = MaskableRecurrentTRPO, name: str = "discrete", **arguments: Any) -> Any:
    policy, observation_space, action_space, policy_kwargs = CASES[name]
    env = masked_env(observation_space, action_space, n_envs=2)
    return small_model(cls, policy, env, policy_kwargs={"lstm_hidden_size": 8} | policy_kwargs, **arguments)


class Measured(MaskableRecurrentTRPO):
    """Every update is measured with single steps of the policy, and its masks written out."""

    measurements: tuple[tuple[Any, float], ...] = ()

    def train(self) -> None:
        buffer: Any = self.rollout_buffer
        obs = buffer.observations
        observations = {k: v.copy() for k, v in obs.items()} if isinstance(obs, dict) else obs.copy()
        states = [th.tensor(s[0]) for s in (buffer.hidden_states_pi, buffer.cell_states_pi)]
        rollout = observations, buffer.episode_starts.copy(), states, buffer.action_masks.copy()
        old = self._step_by_step(*rollout)
        super().train()
        assert self.last_update is not None
        kls = [joint_kl_by_hand(a, b) for a, b in zip(old, self._step_by_step(*rollout), strict=True)]
        n_factors = len(kls) // self.n_steps
        self.measurements += ((self.last_update.step, float(th.stack(kls).mean()) * n_factors),)

    @th.no_grad()
    def _step_by_step(self, observations: Any, starts: np.ndarray, state: Any, masks: np.ndarray) -> list[Any]:
        policy: Any = self.policy
        policy.set_training_mode(False)
        result = []
        for t in range(self.n_steps):
            of_dicts = isinstance(observations, dict)
            obs = {k: th.tensor(v[t]) for k, v in observations.items()} if of_dicts else th.tensor(observations[t])
            # Everything possible, and the masks by hand
            distribution, state = policy.get_distribution(obs, tuple(state), th.tensor(starts[t]))
            factors = getattr(distribution, "distributions", None) or [distribution.distribution]
            at = 0
            for one in factors:
                possible = th.tensor(masks[t][:, at : at + one.logits.shape[1]] > 0.5)
                at += one.logits.shape[1]
                result.append(th.distributions.Categorical(logits=one.logits.masked_fill(~possible, -1e30)))
        return result


@pytest.mark.untraced
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("cnn",))) for name in CASES])
def test_limit_holds_measured_step_by_step(name: str) -> None:
    """After every update the KL of the masked policies is within target_kl and as reported."""
    model = both_model(Measured, name, target_kl=0.02, learning_rate=1e-2)
    model.learn(2 * 64)
    assert len(model.measurements) == 2 and any(step.accepted for step, _ in model.measurements)
    for step, mean_kl in model.measurements:
        assert mean_kl <= 0.02 + 1e-6
        assert mean_kl == pytest.approx(step.mean_kl, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["discrete", "dict", "multi_binary"])
def test_batch_is_the_policy_that_acted_in_either_layout(name: str) -> None:
    """Log-probabilities and masks of whole sequences are those stored; the buffer yields masks beside them."""
    model = both_model(name=name, n_critic_updates=0)
    model.train = lambda: None
    model.learn(64)
    batch = model._full_batch()
    sampled = next(model.rollout_buffer.get(None))
    for one in (batch, model._full_batch()):
        assert isinstance(one, SequenceBatch) and one.action_masks is not None and not one.action_masks.all()
        for chunk in [one, *one.split(24), one.thinned(2, np.random.default_rng(0).permutation)]:
            with th.no_grad():
                log_prob = model._distribution(chunk).log_prob(chunk.actions)
            th.testing.assert_close(log_prob, chunk.old_log_prob, rtol=1e-6, atol=1e-6)
    with th.no_grad():
        masks = sampled.action_masks
        _, log_prob, _ = model.policy.evaluate_actions(
            sampled.observations, sampled.actions.squeeze(1), sampled.lstm_states, sampled.episode_starts, masks
        )
    real = sampled.mask > 0.5
    assert masks.shape[0] == len(real) and masks[~real].all()
    th.testing.assert_close(log_prob[real], sampled.old_log_prob[real], rtol=1e-4, atol=1e-5)


def test_same_seed_same_weights_and_its_kind_stands_in_the_zip(tmp_path: pathlib.Path) -> None:
    """Twice in a row; loaded with another number of environments; no other algorithm reads it, and it no other's."""
    one, other = (both_model().learn(128) for _ in range(2))
    assert all(th.equal(value, policy_state(other)[name]) for name, value in policy_state(one).items())
    one.save(tmp_path / "both")
    loaded = MaskableRecurrentTRPO.load(tmp_path / "both", env=masked_env(n_envs=3), device="cpu")
    assert all(th.equal(value, policy_state(loaded)[name]) for name, value in policy_state(one).items())
    loaded.learn(64, reset_num_timesteps=False)
    small_model(MaskableTRPO, "MlpPolicy", masked_env()).save(tmp_path / "masked")
    small_model(RecurrentTRPO, "MlpLstmPolicy", make_env(action_space=DISCRETE)).save(tmp_path / "recurrent")
    for cls in (TRPO, MaskableTRPO, RecurrentTRPO):
        with pytest.raises(ValueError, match=f"holds a model of MaskableRecurrentTRPO, expected one of {cls.__name__}"):
            cls.load(tmp_path / "both", device="cpu")
    for path, kind in (("masked", "MaskableTRPO"), ("recurrent", "RecurrentTRPO")):
        with pytest.raises(ValueError, match=f"holds a model of {kind}, expected one of MaskableRecurrentTRPO"):
            MaskableRecurrentTRPO.load(tmp_path / path, device="cpu")


def test_other_policies_buffers_and_actions_are_refused() -> None:
    """A policy of only one of the two kinds, in either direction; a buffer without masks; actions without."""
    masked, recurrent = MaskableTRPO.policy_aliases["MlpPolicy"], RecurrentTRPO.policy_aliases["MlpLstmPolicy"]
    refused: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (MaskableRecurrentTRPO, (masked, recurrent)),
        (MaskableTRPO, (MaskableMlpLstmPolicy,)),
        (RecurrentTRPO, (MaskableMlpLstmPolicy, masked)),
        (TRPO, (MaskableMlpLstmPolicy,)),
    )
    for cls, policies in refused:
        for policy in policies:
            with pytest.raises(TypeError, match=f"it acts on .* a policy of {cls.__name__} acts on"):
                cls(policy, masked_env(), device="cpu")
    with pytest.raises(TypeError, match="must derive from MaskableRecurrentRolloutBuffer"):
        both_model(rollout_buffer_class=RecurrentTRPO.buffers[0])
    assert issubclass(MaskableRecurrentRolloutBuffer, RecurrentTRPO.buffers[0])
    with pytest.raises(AssertionError, match="The algorithm only supports"):
        MaskableRecurrentTRPO("MlpLstmPolicy", make_env(action_space=BOX), device="cpu")


def test_no_possible_action_is_an_error_that_names_environment_and_step() -> None:
    """The second environment's third step; observation and state are those of the step before, together."""
    env = masked_env(n_envs=2)
    calls = 0

    def none_at_the_third() -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.zeros(4, bool) if calls == 3 else np.ones(4, bool)

    second: Any = env.envs[1]  # type: ignore[attr-defined]
    second.action_masks = none_at_the_third
    second.step = lambda action: super(MaskedEnv, second).step(action)
    model = small_model(MaskableRecurrentTRPO, "MlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 8})
    with pytest.raises(ValueError, match="environment 1 must leave at least one action, got none at step 3"):
        model.learn(64)


def test_a_callback_finds_model_and_environment() -> None:
    """And not what stands before them; a policy that it replaces acts by masks at the next step."""
    found: list[bool] = []

    def look(variables: dict[str, Any], _: Any) -> bool:
        found.append(variables["self"] is model and variables["env"] is model.env)
        if len(found) == 5:
            policy = both_model(seed=1).policy
            model.policy = policy
        return True

    model = both_model()
    model.learn(64, callback=look)
    assert len(found) == 32 and all(found)


def test_masking_can_be_left_out() -> None:
    """As in MaskablePPO; without a word it is missed before anything is collected."""
    env = make_env(action_space=DISCRETE)
    model: Any = small_model(MaskableRecurrentTRPO, "MlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 8})
    with pytest.raises(ValueError, match="does not support action masking"):
        model.learn(64)
    model.learn(64, use_masking=False)
    assert model.num_timesteps == 64 and model.rollout_buffer.action_masks.all()


def by_hand(model: Any, env: Any, n_episodes: int) -> list[float]:
    """Return the returns of episodes of one environment, state and masks kept."""
    observations, state, start = env.reset(), None, np.ones(1, bool)
    returns: list[float] = []
    total = 0.0
    while len(returns) < n_episodes:
        masks = np.stack(env.env_method("action_masks"))
        actions, state = model.predict(observations, state, start, deterministic=True, action_masks=masks)
        observations, rewards, start, _ = env.step(actions)
        total += rewards[0]
        if start[0]:
            returns.append(total)
            total = 0.0
    return returns


def seeded(env: Any) -> Any:
    env.seed(7)
    return env


def test_evaluation_keeps_state_and_masks() -> None:
    """As done by hand, in an environment that stops whoever takes what is impossible; without the state it is another."""
    model = both_model().learn(128)
    # A memory that matters: the actions are large, and the last layer's
    with th.no_grad():
        model.policy.action_net.weight.mul_(100.0)
    expected = by_hand(model, seeded(masked_env()), 5)
    kept, _ = evaluate_policy(model, seeded(masked_env()), 5, return_episode_rewards=True, warn=False)
    assert kept == pytest.approx(expected)
    lost, _ = evaluate_policy(Forgetful(model), seeded(masked_env()), 5, return_episode_rewards=True, warn=False)
    assert lost != pytest.approx(expected)


class Forgetful:
    """A model that is asked as sb3-contrib's evaluation asks."""

    def __init__(self, model: Any):
        self.model = model

    def predict(self, observation: Any, state: Any, episode_start: Any, **kwargs: Any) -> Any:
        actions, _ = self.model.predict(observation, None, np.ones_like(episode_start), **kwargs)
        return actions, None


def test_contribs_evaluation_is_refused_and_ours_takes_its_place(tmp_path: pathlib.Path) -> None:
    """It loses the state, and says so; ours, and our callback, with the same arguments."""
    model = both_model()
    with pytest.raises(ValueError, match=r"sb3_trpo\.maskable_recurrent keep it"):
        contrib_evaluation.evaluate_policy(model, masked_env(), 3, warn=False)
    with pytest.raises(ValueError, match=r"sb3_trpo\.maskable_recurrent keep it"):
        model.learn(64, callback=contrib_callbacks.MaskableEvalCallback(masked_env(), eval_freq=16, warn=False))
    arguments: dict[str, Any] = {"eval_freq": 16, "n_eval_episodes": 3, "warn": False, "verbose": 0}
    callback = MaskableEvalCallback(
        seeded(masked_env()), log_path=str(tmp_path), best_model_save_path=str(tmp_path), **arguments
    )
    model.learn(64, callback=callback)
    assert callback.model is model
    results = np.load(tmp_path / "evaluations.npz")["results"]
    assert results.shape == (2, 3)
    first = both_model()
    first.env = None
    assert results[0].tolist() == pytest.approx(by_hand(first, seeded(masked_env()), 3))
    assert MaskableRecurrentTRPO.load(tmp_path / "best_model", device="cpu").num_timesteps in (32, 64)
    # Without a memory too
    masked = small_model(MaskableTRPO, "MlpPolicy", masked_env())
    ours = evaluate_policy(masked, seeded(masked_env()), 3, warn=False)
    assert ours == contrib_evaluation.evaluate_policy(masked, seeded(masked_env()), 3, warn=False)  # type: ignore[arg-type]


def test_masks_of_predict_reach_the_policy_and_leave_nothing_behind() -> None:
    """Each action in turn, deterministic or drawn; without masks everything is possible again."""
    model = both_model().learn(64)
    state = None
    for deterministic in (True, False):
        for action in range(4):
            taken, state = model.predict(
                np.zeros(3, np.float32), state, np.zeros(1) if state else None, deterministic, np.eye(4)[action]
            )
            assert taken == action
    free = {int(model.predict(np.zeros(3, np.float32))[0]) for _ in range(60)}
    assert len(free) > 1


@pytest.mark.usefixtures("coarse")
def test_inspect_looks_at_it() -> None:
    """One update in pictures, which leaves the model as it was."""
    model = both_model()
    before = policy_state(model)
    run = inspect_model(model)
    assert len(run.states) == len(run.slices) == 1
    assert all(th.equal(value, before[name]) for name, value in policy_state(model).items())
