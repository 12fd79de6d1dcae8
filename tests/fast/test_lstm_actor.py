"""A policy with an LSTM that acts in NumPy beside the policy itself, step by step."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo import MaskableRecurrentTRPO, RecurrentTRPO
from sb3_trpo.maskable_recurrent import MaskableMlpLstmPolicy
from sb3_trpo.recurrent import MlpLstmPolicy
from tests.cases import shake
from tests.masked_envs import masked_env
from tests.scenarios import check_equal, collect, replay
from tests.small_models import BOX, DISCRETE, MULTI_BINARY, MULTI_DISCRETE, VECTOR, make_env, policy_state, small_model

pytestmark = pytest.mark.untraced

TWO_VECTORS = spaces.Dict({"one": VECTOR, "another": spaces.Box(-1.0, 1.0, (2,))})
CASES: dict[str, tuple[str, spaces.Space, spaces.Space, dict[str, Any]]] = {
    "box": ("MlpLstmPolicy", VECTOR, BOX, {}),
    "discrete": ("MlpLstmPolicy", VECTOR, DISCRETE, {"policy_kwargs": {"net_arch": {"pi": [], "vf": []}}}),
    "multi_discrete": ("MlpLstmPolicy", spaces.Discrete(6, start=2), MULTI_DISCRETE, {}),
    "multi_binary": ("MlpLstmPolicy", VECTOR, MULTI_BINARY, {}),
    "shared": ("MlpLstmPolicy", VECTOR, BOX, {"policy_kwargs": {"shared_lstm": True, "enable_critic_lstm": False}}),
    "no_critic_lstm": ("MlpLstmPolicy", VECTOR, DISCRETE, {"policy_kwargs": {"enable_critic_lstm": False}}),
    "gsde": ("MlpLstmPolicy", VECTOR, BOX, {"use_sde": True, "sde_sample_freq": 4}),
    "dict": ("MultiInputLstmPolicy", TWO_VECTORS, DISCRETE, {}),
    "masked": ("MlpLstmPolicy", VECTOR, DISCRETE, {}),
    "masked_multi_binary": ("MlpLstmPolicy", VECTOR, MULTI_BINARY, {}),
}
STATES = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")


def model_of(name: str = "box", **arguments: Any) -> Any:
    """Return a model with weights away from the initial ones."""
    policy, observation_space, action_space, own = CASES[name]
    is_masked = name.startswith("masked")
    make: Any = masked_env if is_masked else make_env
    env = make(observation_space, action_space, n_envs=3)
    kwargs = {"lstm_hidden_size": 6, "net_arch": {"pi": [5], "vf": [5]}}
    kwargs |= own.get("policy_kwargs", {}) | arguments.pop("policy_kwargs", {})
    cls = arguments.pop("cls", MaskableRecurrentTRPO if is_masked else RecurrentTRPO)
    model = small_model(
        cls, arguments.pop("policy", policy), env, **{"n_steps": 30, **own, "policy_kwargs": kwargs, **arguments}
    )
    shake(list(model.policy.parameters()), scale=0.3, seed=1)
    return model


@pytest.mark.parametrize("name", CASES)
def test_rollout_is_that_of_the_policy_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same actions give the same buffer over two rollouts: values, log-probabilities, bootstraps, advantages, states."""
    lean, plain = (model_of(name, fast=fast, gae_lambda=0.8) for fast in (True, False))
    collected = collect(lean)
    replay(plain, collected, monkeypatch)
    check_equal(collected, collect(plain))
    assert lean.paths_in_use["collection"] == "lean" and plain.paths_in_use["collection"] == "plain"
    for field in (*STATES, *(["action_masks"] if name.startswith("masked") else [])):
        ours, theirs = (getattr(model.rollout_buffer, field) for model in (lean, plain))
        assert np.abs(ours).max() > 0.01
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert collected[0]["episode_starts"].sum() > 3


def test_actions_are_drawn_with_the_probabilities_of_the_policy() -> None:
    """As often as the mean of the probabilities at each step says."""
    model = model_of("discrete", n_steps=2000)
    model.train = lambda: None
    model.learn(6000)
    batch = model._full_batch()
    with th.no_grad():
        expected = model._distribution(batch).distribution.probs.mean(dim=0).numpy()
    counts = np.bincount(batch.actions.numpy(), minlength=4)
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.03)


def test_noise_of_gsde_is_the_models_own() -> None:
    """The same seed gives the same weights whatever else draws from the generators of the process."""
    one, other = model_of("gsde").learn(180), model_of("gsde").learn(180, callback=lambda *_: th.randn(1).isfinite().item())
    state = policy_state(one)
    assert all(th.equal(value, state[name]) for name, value in policy_state(other).items())


def consistent(model: Any) -> None:
    """Check the log-probabilities of the second half of a rollout against the policy of now, from the states stored."""
    policy, buffer = model.policy, model.rollout_buffer
    half = model.n_steps // 2
    for t in range(half + 1, model.n_steps):
        states = tuple(th.as_tensor(getattr(buffer, name)[t]) for name in STATES[:2])
        starts = th.as_tensor(buffer.episode_starts[t])
        with th.no_grad():
            distribution, _ = policy.get_distribution(th.as_tensor(buffer.observations[t]), states, starts)
            log_prob = distribution.log_prob(th.as_tensor(buffer.actions[t]))
        np.testing.assert_allclose(buffer.log_probs[t], log_prob.numpy(), rtol=1e-6, atol=1e-6)


def changed_in_place(model: Any) -> None:
    shake(list(model.policy.parameters()), scale=0.3, seed=2)


def another_policy(model: Any) -> None:
    model.policy = model_of().policy
    changed_in_place(model)


def another_layer(model: Any) -> None:
    model.policy.lstm_actor = th.nn.LSTM(3, 6)


def another_parameter(model: Any) -> None:
    model.policy.lstm_actor.weight_hh_l0 = th.nn.Parameter(th.randn(24, 6))


def a_hook(model: Any) -> None:
    model.policy.lstm_actor.register_forward_hook(lambda module, given, result: (2.0 * result[0], result[1]))


def a_method(model: Any) -> None:
    policy = model.policy
    made = policy._get_action_dist_from_latent
    policy._get_action_dist_from_latent = lambda latent: made(2.0 * latent)


def two_layers(model: Any) -> None:
    # Of the same states: the second passes on what it is given
    model.policy.mlp_extractor.policy_net.append(th.nn.Softsign())


def transposed(model: Any) -> None:
    layer = model.policy.mlp_extractor.policy_net[2]
    layer.weight.data = layer.weight.data.t()


def another_temperature(model: Any) -> None:
    distribution = model.policy.action_dist
    made = distribution.proba_distribution
    distribution.proba_distribution = lambda mean, log_std: made(2.0 * mean, log_std)


class Blindable(FlattenExtractor):
    """Sees nothing when it is told to."""

    is_blind = False

    def __init__(self, observation_space: Any):
        super().__init__(observation_space)
        self.is_blind = False

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = self.flatten(observations)
        return 0.0 * features if self.is_blind else features


def blinded(model: Any) -> None:
    for extractor in (model.policy.pi_features_extractor, model.policy.vf_features_extractor):
        extractor.is_blind = True


@pytest.mark.parametrize(
    "change",
    [
        changed_in_place,
        another_policy,
        another_layer,
        another_parameter,
        a_hook,
        a_method,
        two_layers,
        transposed,
        another_temperature,
        blinded,
    ],
)
def test_what_a_callback_makes_of_the_policy_acts_at_the_next_step(change: Any) -> None:
    """Weights, parameters, layers, the whole policy, hooks and methods; in the midst of a rollout."""
    kwargs: dict[str, Any] = {"features_extractor_class": Blindable} if change is blinded else {}
    model = model_of(policy_kwargs=kwargs | {"net_arch": {"pi": [5, 5], "vf": [5]}})
    model.train = lambda: None

    def at_half(variables: dict[str, Any], _: Any) -> bool:
        if model.num_timesteps == 3 * (model.n_steps // 2):
            change(model)
        return True

    model.learn(3 * model.n_steps, callback=at_half)
    assert model.paths_in_use["collection"] == "lean"
    consistent(model)


@pytest.mark.parametrize("name", ["discrete", "masked"])
@pytest.mark.parametrize("on_class", [True, False])
def test_distribution_that_is_patched_is_acted_with(name: str, on_class: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What samples is asked for, on the object or on the class."""
    model = model_of(name)
    distribution = model.policy.action_dist

    def greedy(self: Any, deterministic: bool = False) -> Any:
        return self.mode()

    if on_class:
        monkeypatch.setattr(type(distribution), "get_actions", greedy)
    else:
        distribution.get_actions = partial(greedy, distribution)
    model.train = lambda: None
    model.learn(90)
    batch = model._full_batch()
    with th.no_grad():
        distribution = model._distribution(batch)
    assert th.equal(distribution.mode().flatten(), batch.actions.flatten().long())


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("name", ["discrete", "masked"])
def test_seed_that_a_callback_sets_as_a_rollout_starts_is_in_force(name: str, seed: int | None) -> None:
    """The model's own, or that of the process."""

    class Seeds(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.model.set_random_seed(7) if seed is not None else th.manual_seed(7)

        def _on_step(self) -> bool:
            return True

    actions = []
    for first in (0, 1):
        model = model_of(name, seed=None if seed is None else first)
        shake(list(model.policy.parameters()), scale=0.0, seed=1)
        model.train = lambda: None
        with th.no_grad():
            for parameter in model.policy.parameters():
                parameter.zero_()
        model.env.seed(3)
        model.learn(90, callback=Seeds())
        actions.append(model.rollout_buffer.actions.copy())
    np.testing.assert_array_equal(*actions)


def test_critic_whose_lstm_is_the_actors_has_states_of_its_own() -> None:
    """Tied between two rollouts, when the two states differ."""
    model = model_of()
    model.train = lambda: None
    model.learn(90)
    model.policy.lstm_critic = model.policy.lstm_actor
    model.learn(90, reset_num_timesteps=False)
    buffer = model.rollout_buffer
    for t in range(model.n_steps):
        states = tuple(th.as_tensor(getattr(buffer, name)[t]) for name in STATES[2:])
        with th.no_grad():
            values = model.policy.predict_values(
                th.as_tensor(buffer.observations[t]), states, th.as_tensor(buffer.episode_starts[t])
            )
        np.testing.assert_allclose(buffer.values[t], values.flatten().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [{"n_lstm_layers": 2}, {"activation_fn": th.nn.Softsign}, {"lstm_kwargs": {"bias": False}}],
)
def test_what_is_not_covered_is_asked_itself(kwargs: dict[str, Any]) -> None:
    """Several layers, other functions, no biases."""
    model = model_of(policy_kwargs=kwargs).learn(90)
    assert model.paths_in_use["collection"] == "plain"


@pytest.mark.parametrize(("cls", "policy"), [(RecurrentTRPO, MlpLstmPolicy), (MaskableRecurrentTRPO, MaskableMlpLstmPolicy)])
def test_policy_of_an_algorithm_of_ones_own_is_asked_for_what_it_overrides(cls: Any, policy: Any) -> None:
    """What is known is known of the policy: an algorithm may be for a class of policies that overrides methods."""

    class Counting(policy):
        n = 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            Counting.n += 1
            return super().forward(*args, **kwargs)

    class Own(cls):
        policy_base = Counting

    model = model_of("masked" if cls is MaskableRecurrentTRPO else "box", cls=Own, policy=Counting)
    model.learn(model.n_steps * model.n_envs)
    assert model.paths_in_use["collection"] == "plain" and Counting.n == model.n_steps


def test_training_goes_on_as_on_the_plain_path() -> None:
    """Updates are accepted and everything stays finite; the same seed gives the same weights."""
    one, other = (model_of("masked").learn(360) for _ in range(2))
    assert one.last_update.step.accepted and set(one.paths_in_use.values()) == {"lean", "Gauss-Newton", "plain"}
    state = policy_state(one)
    assert all(th.equal(value, state[name]) and th.isfinite(value).all() for name, value in policy_state(other).items())
