"""The limit holds for policies with a memory, measured step by step; states and observations belong together."""

import pathlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo import TRPO, MaskableRecurrentTRPO
from sb3_trpo.inspect import TrustRegionRecorder, inspect_model, read_run
from sb3_trpo.recurrent import RecurrentTRPO, SequenceBatch, torchs_own_lstm
from sb3_trpo.vec_env import as_vec_env
from tests.from_outside import joint_kl_by_hand
from tests.masked_envs import masked_env
from tests.small_models import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    VECTOR,
    Case,
    RandomEnv,
    policy_state,
    small_model,
)

SMALL = {"lstm_hidden_size": 8}


def case(
    policy: str = "MlpLstmPolicy",
    observation_space: spaces.Space = VECTOR,
    action_space: spaces.Space = BOX,
    *,
    use_sde: bool = False,
    **policy_kwargs: Any,
) -> Case:
    arguments = {"policy_kwargs": SMALL | policy_kwargs, "use_sde": use_sde}
    return Case(policy, observation_space, action_space, 2, arguments)


CASES = {
    "box": case(),
    "discrete": case("MlpLstmPolicy", VECTOR, DISCRETE),
    "multi_discrete": case("MlpLstmPolicy", spaces.MultiDiscrete([3, 2]), MULTI_DISCRETE),
    "multi_binary": case("MlpLstmPolicy", VECTOR, MULTI_BINARY),
    "shared": case(shared_lstm=True, enable_critic_lstm=False),
    "no_critic_lstm": case(enable_critic_lstm=False),
    "two_layers_dropout": case(n_lstm_layers=2, lstm_kwargs={"dropout": 0.5}),
    "dict": case("MultiInputLstmPolicy", DICT, DISCRETE),
    "cnn": case("CnnLstmPolicy", IMAGE, BOX),
    "cnn_shared": case("CnnLstmPolicy", IMAGE, DISCRETE, share_features_extractor=True),
    "gsde": case(use_sde=True),
}


class Measured(RecurrentTRPO):
    """Every update is measured with sb3-contrib's single-step calls."""

    measurements: tuple[tuple[Any, float], ...] = ()

    def train(self) -> None:
        rollout = self._copied()
        old = self._step_by_step(rollout)
        super().train()
        assert self.last_update is not None
        kls = [joint_kl_by_hand(a, b) for a, b in zip(old, self._step_by_step(rollout), strict=True)]
        n_factors = len(kls) // self.n_steps
        self.measurements += ((self.last_update.step, float(th.stack(kls).mean()) * n_factors),)

    def _copied(self) -> Any:
        buffer: Any = self.rollout_buffer
        obs = buffer.observations
        observations = {k: v.copy() for k, v in obs.items()} if isinstance(obs, dict) else obs.copy()
        states = [th.tensor(s[0]) for s in (buffer.hidden_states_pi, buffer.cell_states_pi)]
        return observations, buffer.episode_starts.copy(), states

    @th.no_grad()
    def _step_by_step(self, rollout: Any) -> list[Any]:
        observations, starts, state = rollout
        policy: Any = self.policy
        policy.set_training_mode(False)
        result = []
        for t in range(self.n_steps):
            is_dict = isinstance(observations, dict)
            obs = {k: th.tensor(v[t]) for k, v in observations.items()} if is_dict else th.tensor(observations[t])
            distribution, state = policy.get_distribution(obs, tuple(state), th.tensor(starts[t]))
            inner = distribution.distribution
            for one in inner if isinstance(inner, list) else [inner]:
                if isinstance(one, th.distributions.Normal):
                    result.append(th.distributions.Normal(one.mean.clone(), one.stddev.clone()))
                else:
                    result.append(type(one)(logits=one.logits.clone()))
        return result


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("cnn")) for name in CASES])
def test_limit_holds_measured_step_by_step(name: str) -> None:
    """After every update the KL over the rollout's steps, each asked alone, is within target_kl and as reported."""
    model = CASES[name].model(Measured, target_kl=0.02, learning_rate=1e-2)
    assert isinstance(model, Measured)
    model.learn(2 * 64)
    assert len(model.measurements) == 2 and any(step.accepted for step, _ in model.measurements)
    for step, mean_kl in model.measurements:
        assert mean_kl <= 0.02 + 1e-6
        assert mean_kl == pytest.approx(step.mean_kl, rel=1e-3, abs=1e-6)


@pytest.mark.untraced
@pytest.mark.parametrize("name", ["box", "multi_discrete", "shared", "dict"])
def test_batch_is_the_policy_that_acted_in_either_layout(name: str) -> None:
    """The log-probabilities of whole sequences are those stored, before and after ``get``, which draws; reading does not."""
    model = CASES[name].model(RecurrentTRPO)
    model.learn(64)
    model.collect_rollouts(model.env, _silent(model), model.rollout_buffer, model.n_steps)  # type: ignore[arg-type]
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    batch = model._full_batch()
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]
    next(model.rollout_buffer.get(None))
    for one in (batch, model._full_batch()):
        assert isinstance(one, SequenceBatch) and int(one.lengths.sum()) == 64
        for chunk in [one, *one.split(24), one.thinned(2, np.random.default_rng(0).permutation)]:
            with th.no_grad():
                log_prob = model._distribution(chunk).log_prob(chunk.actions)
            th.testing.assert_close(log_prob, chunk.old_log_prob, rtol=1e-6, atol=1e-6)
    assert sum(float(chunk.weights.sum()) for chunk in batch.split(24)) == pytest.approx(1.0)
    values = model._by_environment(model.rollout_buffer.values)  # type: ignore[attr-defined]
    with th.no_grad():
        th.testing.assert_close(model._values(batch).numpy(), values, rtol=1e-6, atol=1e-6)


def test_pieces_share_the_memory_of_the_rollout() -> None:
    """Observations stay where the buffer has them, and the states of a few steps are looked up without copying all of them."""
    model: Any = CASES["discrete"].model(RecurrentTRPO, n_steps=500)
    model.train = lambda: None
    model.learn(1000)
    batch = model._full_batch()
    stored = model.rollout_buffer.observations
    for piece in [batch, *batch.split(100), batch.thinned(2), batch.few(16)]:
        assert piece.observations.values.data_ptr() == stored.ctypes.data
    in_order = stored.swapaxes(0, 1).reshape(-1, 3)
    np.testing.assert_array_equal(batch.observations[:], in_order)
    tracemalloc.start()
    try:
        states = model._states_at(np.array([1, 700]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    expected = model.rollout_buffer.hidden_states_pi[[1, 200], :, [0, 1]] * ~model._starts()[[1, 700], None, None]
    np.testing.assert_array_equal(states.pi[0].numpy(), expected.swapaxes(0, 1))
    assert peak < model.rollout_buffer.hidden_states_pi.nbytes / 2


@pytest.mark.parametrize("kwargs", [{"batch_first": True}, {"bidirectional": True}, {"proj_size": 4}])
def test_lstm_of_another_layout_is_refused(kwargs: dict[str, Any]) -> None:
    """With as many sequences as steps in each, time and sequences would be taken for each other."""
    with pytest.raises(ValueError, match=f"lstm_kwargs.*got {{'{next(iter(kwargs))}'"):
        case(lstm_kwargs=kwargs).model(RecurrentTRPO)


def test_arguments_of_the_lstm_are_a_dict() -> None:
    with pytest.raises(TypeError, match=r"lstm_kwargs'\] must be a dict.*got \[1\]"):
        case(lstm_kwargs=[1]).model(RecurrentTRPO)


class Double(FlattenExtractor):
    """In double precision."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


@pytest.mark.parametrize("kind", [RecurrentTRPO, MaskableRecurrentTRPO])
@pytest.mark.parametrize("fast", [True, False])
def test_policy_in_double_precision_learns_acts_and_is_looked_at(kind: Any, fast: bool) -> None:
    """The states of the buffer, of ``predict`` and of whoever looks are of single precision."""
    env = masked_env(probability=1.0)
    model = kind("MlpLstmPolicy", env, n_steps=32, seed=0, fast=fast, policy_kwargs={"features_extractor_class": Double})
    model.policy.double()
    model.learn(64)
    assert model.last_update.step.accepted and model._last_lstm_states.pi[0].dtype == th.float64
    observation = np.zeros((1, 3), np.float32)
    _, state = model.predict(observation)
    assert state[0].dtype == np.float64
    model._distribution(model._chosen_states((observation, state)))


@pytest.mark.parametrize("kind", [RecurrentTRPO, MaskableRecurrentTRPO])
def test_state_that_is_no_number_is_over_with_its_episode(kind: Any) -> None:
    """``predict`` begins an episode from nothing, whatever the one before has left."""
    model = kind("MlpLstmPolicy", masked_env(), n_steps=32, seed=0)
    observation = np.zeros((1, 3), np.float32)
    action, state = model.predict(observation, deterministic=True)
    lost = tuple(np.full_like(part, np.nan) for part in state)
    again, after = model.predict(observation, lost, np.ones(1, bool), deterministic=True)
    assert action == again
    np.testing.assert_array_equal(after, state)


def _silent(model: TRPO) -> Any:
    _, callback = model._setup_learn(64, None, False)
    return callback


def test_one_chunk_and_many_make_the_same_step() -> None:
    """Sorting by length does not mix rows."""
    states = []
    for size in (10_000, 16):
        model = CASES["discrete"].model(RecurrentTRPO, n_critic_updates=0)
        model._chunk_size = lambda size=size: size  # type: ignore[method-assign,misc]
        model.learn(64)
        assert model.last_update is not None and model.last_update.step.accepted
        states.append(policy_state(model))
    for name, value in states[0].items():
        th.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-5)


def test_same_seed_same_weights_and_a_zip_is_of_its_kind(tmp_path: pathlib.Path) -> None:
    """Twice in a row; loaded with another number of environments; refused by TRPO, which refuses the policy too."""
    one, other = (CASES["box"].model(RecurrentTRPO).learn(128) for _ in range(2))
    assert all(th.equal(value, policy_state(other)[name]) for name, value in policy_state(one).items())
    one.save(tmp_path / "model")
    for force_reset in (True, False):
        loaded = RecurrentTRPO.load(tmp_path / "model", env=Case(n_envs=3).env(), device="cpu", force_reset=force_reset)
        loaded.learn(64, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="holds a model of RecurrentTRPO, expected one of TRPO"):
        TRPO.load(tmp_path / "model", device="cpu")
    small_model().save(tmp_path / "plain")
    with pytest.raises(ValueError, match="holds a model of TRPO, expected one of RecurrentTRPO"):
        RecurrentTRPO.load(tmp_path / "plain", device="cpu")


@pytest.mark.parametrize("name", ["shared", "no_critic_lstm", "two_layers_dropout"])
def test_policy_is_saved_with_every_argument(name: str, tmp_path: pathlib.Path) -> None:
    """sb3-contrib forgets those of the LSTM."""
    policy: Any = CASES[name].model(RecurrentTRPO).policy
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy", device="cpu")
    assert all(th.equal(value, loaded.state_dict()[key]) for key, value in policy.state_dict().items())


@pytest.mark.untraced
@pytest.mark.usefixtures("coarse")
def test_recorder_draws_the_updates(tmp_path: pathlib.Path) -> None:
    """States and slice of each update are measured on sequences."""
    model = CASES["discrete"].model(RecurrentTRPO)
    model.learn(128, callback=TrustRegionRecorder(tmp_path, pictures_every=1))
    run = read_run(tmp_path)
    assert len(run.states) == len(run.slices) == 2


@pytest.mark.usefixtures("coarse")
def test_chosen_states_come_with_the_state_before_them() -> None:
    """As ``predict`` returns it; without one they are looked at as the first of an episode."""
    model = CASES["discrete"].model(RecurrentTRPO)
    model.learn(64)
    observations = np.full((2, 3), 0.5, np.float32)
    state: Any = model.predict(observations)[1]
    at_start, later = (inspect_model(model, states=s).states[0].changes[2:] for s in (observations, (observations, state)))
    assert len(at_start) == len(later) == 2
    policy: Any = model.policy
    with th.no_grad():
        tensors = tuple(th.as_tensor(part) for part in state)
        expected, _ = policy.get_distribution(th.as_tensor(observations), tensors, th.zeros(2))
    for row in range(2):
        assert later[row].old.probabilities[0] == pytest.approx(expected.distribution.probs[row].tolist(), abs=1e-6)
        assert later[row].old.probabilities[0] != pytest.approx(at_start[row].old.probabilities[0], abs=1e-6)
    with pytest.raises(ValueError, match=r"state of shape \(1, 2, 8\), got \(1, 1, 8\)"):
        inspect_model(model, states=(observations, [part[:, :1] for part in state]))


class Telling(RecurrentRolloutBuffer):
    """Hears of each step, and has something more."""

    n = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        Telling.n += 1
        super().add(*args, **kwargs)

    def total(self) -> float:
        return float(self.rewards.sum())


class Unpaid(RecurrentRolloutBuffer):
    """Hands out what it does not hold."""

    def get(self, batch_size: int | None = None) -> Any:
        for data in super().get(batch_size):
            yield data._replace(advantages=0.0 * data.advantages)


def test_buffer_of_the_users_own_is_told_of_steps_or_refused() -> None:
    """What ``get`` makes of a rollout would be passed over without a word, since whole sequences are read."""
    model = CASES["box"].model(RecurrentTRPO, rollout_buffer_class=Telling).learn(64)
    assert Telling.n == model.n_steps
    with pytest.raises(TypeError, match=r"rollout_buffer_class must leave get .*Unpaid.*_full_batch"):
        CASES["box"].model(RecurrentTRPO, rollout_buffer_class=Unpaid)


def test_cudnn_is_left_as_it_was() -> None:
    """Turned off for LSTMs on a GPU alone, and on again afterwards; on the CPU nobody touches it."""
    before = th.backends.cudnn.enabled
    with torchs_own_lstm(th.device("cpu")):
        assert th.backends.cudnn.enabled == before
    with torchs_own_lstm(th.device("cuda")):
        assert not th.backends.cudnn.enabled
    assert th.backends.cudnn.enabled == before


@pytest.mark.gpu
@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["box", "discrete", "shared", "two_layers_dropout"])
def test_limit_holds_on_a_gpu(name: str) -> None:
    """cuDNN has no backward pass in eval mode and no second one: gradients, products and critic do without it."""
    model = CASES[name].model(RecurrentTRPO, device="cuda", target_kl=0.02)
    model.learn(3 * 64)
    assert model.last_update is not None and model.last_update.step.accepted
    assert model.last_update.step.mean_kl <= 0.02 and model.last_update.critic is not None


class Duck(th.nn.Module):
    """A feature extractor that is none of SB3's: it has what they are asked for."""

    def __init__(self, observation_space: Any):
        super().__init__()
        self.features_dim = 3
        self.layer = th.nn.Linear(3, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations)


def test_extractor_that_is_none_of_sb3s_is_taken() -> None:
    model: Any = small_model(RecurrentTRPO, "MlpLstmPolicy", policy_kwargs={"features_extractor_class": Duck}).learn(64)
    assert model.last_update.step.accepted


def test_environment_that_spends_a_step_on_each_reset_is_refused() -> None:
    """By its name, and with the way out."""
    env: Any = RecordEpisodeStatistics(SyncVectorEnv([RandomEnv] * 2, autoreset_mode=AutoresetMode.NEXT_STEP))
    model = small_model(RecurrentTRPO, "MlpLstmPolicy", as_vec_env(env))
    with pytest.raises(ValueError, match=r"env must not spend a step.*memory.*SAME_STEP"):
        model.learn(64)
    assert model.num_timesteps == 0


def test_memory_is_of_the_precision_of_its_weights_whatever_the_default_is() -> None:
    model = small_model(RecurrentTRPO, "MlpLstmPolicy")
    before = th.get_default_dtype()
    th.set_default_dtype(th.float64)
    try:
        model.learn(64)
    finally:
        th.set_default_dtype(before)
    assert model._last_lstm_states.pi[0].dtype == th.float32  # type: ignore[attr-defined]
