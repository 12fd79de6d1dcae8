"""Fisher products through an LSTM beside the dense matrix and the plain products."""

from typing import Any

import pytest
import torch as th
from gymnasium import spaces

from sb3_trpo import MaskableRecurrentTRPO, RecurrentTRPO
from sb3_trpo.fast import gauss_newton
from sb3_trpo.fast.lstm_fisher import lstm_fisher
from sb3_trpo.objective import PolicyProblem
from tests.cases import shake
from tests.masked_envs import masked_env
from tests.oracles import relative_error
from tests.small_models import BOX, DISCRETE, MULTI_BINARY, MULTI_DISCRETE, VECTOR, make_env, small_model

TWO_VECTORS = spaces.Dict({"one": VECTOR, "another": spaces.Box(-1.0, 1.0, (2,))})
NO_HIDDEN_LAYER: dict[str, Any] = {"net_arch": {"pi": [], "vf": []}}
CASES: dict[str, tuple[str, spaces.Space, spaces.Space, dict[str, Any]]] = {
    "box": ("MlpLstmPolicy", VECTOR, BOX, {}),
    "discrete": ("MlpLstmPolicy", VECTOR, DISCRETE, {"policy_kwargs": NO_HIDDEN_LAYER}),
    "multi_discrete": ("MlpLstmPolicy", spaces.MultiDiscrete([3, 2]), MULTI_DISCRETE, {}),
    "multi_binary": ("MlpLstmPolicy", VECTOR, MULTI_BINARY, {}),
    "shared": ("MlpLstmPolicy", VECTOR, BOX, {"policy_kwargs": {"shared_lstm": True, "enable_critic_lstm": False}}),
    "gsde": ("MlpLstmPolicy", VECTOR, BOX, {"use_sde": True}),
    "dict": ("MultiInputLstmPolicy", TWO_VECTORS, DISCRETE, {}),
    "masked": ("MlpLstmPolicy", VECTOR, DISCRETE, {}),
    "masked_multi_discrete": ("MlpLstmPolicy", VECTOR, MULTI_DISCRETE, {}),
}


def rolled_out(name: str, **policy_kwargs: Any) -> Any:
    """Return a model with a rollout, and weights away from the initial ones."""
    policy, observation_space, action_space, arguments = CASES[name]
    masked = name.startswith("masked")
    make: Any = masked_env if masked else make_env
    own = {"lstm_hidden_size": 4, "net_arch": {"pi": [5], "vf": [5]}} | arguments.get("policy_kwargs", {}) | policy_kwargs
    cls = MaskableRecurrentTRPO if masked else RecurrentTRPO
    env = make(observation_space, action_space, n_envs=2)
    model: Any = small_model(cls, policy, env, **arguments | {"policy_kwargs": own})
    shake(list(model.policy.parameters()), scale=0.3, seed=1)
    model.train = lambda: None
    return model.learn(64)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("in_double", [True, False])
def test_products_are_those_of_the_dense_matrix(name: str, in_double: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, in many, and of some of the sequences; to 1e-9 in float64, and to 1e-5 of the plain ones in float32."""
    model = rolled_out(name)
    batch = model._full_batch()
    if in_double:
        model.policy.double()
        for module in ("stable_baselines3.common.policies", "sb3_trpo.fast.network"):  # SB3 makes float32 of everything
            monkeypatch.setattr(f"{module}.preprocess_obs", _preprocessed_in_double)
        states = type(batch.states)(*(tuple(part.double() for part in pair) for pair in batch.states))
        batch = batch._replace(states=states, weights=batch.weights.double())
    parameters, _ = model._split_parameters(batch)
    thin = batch.thinned(2, lambda n: th.randperm(n, generator=th.Generator().manual_seed(0)).numpy())
    for pieces in ([batch], batch.split(20), [thin]):
        product = model._fast_fisher(pieces, parameters)
        assert product is not None
        n_params = sum(parameter.numel() for parameter in parameters)
        vector = th.randn(n_params, generator=th.Generator().manual_seed(2)).to(parameters[0])
        plain = PolicyProblem(model._distribution, thin if pieces[0] is thin else batch, parameters, fisher_path="plain")
        assert relative_error(product(vector), plain.fisher_vector_product()(vector)) < (1e-9 if in_double else 1e-5)


def _preprocessed_in_double(observations: Any, space: Any, **kwargs: Any) -> Any:
    from stable_baselines3.common.preprocessing import preprocess_obs

    processed: Any = preprocess_obs(observations, space, **kwargs)
    return {key: part.double() for key, part in processed.items()} if isinstance(processed, dict) else processed.double()


def test_products_are_those_of_a_dense_matrix_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its definition, the mean over states and actions of the outer product of the score."""
    model = rolled_out("discrete")
    model.policy.double()
    for module in ("stable_baselines3.common.policies", "sb3_trpo.fast.network"):
        monkeypatch.setattr(f"{module}.preprocess_obs", _preprocessed_in_double)
    batch = model._full_batch()
    states = type(batch.states)(*(tuple(part.double() for part in pair) for pair in batch.states))
    batch = batch._replace(states=states, weights=batch.weights.double())
    parameters, _ = model._split_parameters(batch)
    n_params = sum(parameter.numel() for parameter in parameters)
    matrix = th.zeros(n_params, n_params, dtype=th.float64)
    distribution = model._distribution(batch).distribution
    for row in range(len(batch.weights)):
        for action in range(4):
            gradient = th.autograd.grad(distribution.logits[row, action], parameters, retain_graph=True, allow_unused=True)
            score = th.cat([g.flatten() for g in gradient if g is not None])
            matrix += (batch.weights[row] * distribution.probs[row, action].detach()) * th.outer(score, score)
    product = model._fast_fisher(batch.split(20), parameters)
    vector = th.randn(n_params, generator=th.Generator().manual_seed(2), dtype=th.float64)
    assert relative_error(product(vector), matrix @ vector) < 1e-9


def test_memory_that_does_not_last_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made anew where they do not fit."""
    model = rolled_out("box")
    batch = model._full_batch()
    parameters, _ = model._split_parameters(batch)
    vector = th.randn(sum(p.numel() for p in parameters), generator=th.Generator().manual_seed(2))
    kept = model._fast_fisher(batch.split(20), parameters)(vector)
    monkeypatch.setattr(gauss_newton, "KEPT_BYTES", 0)
    th.testing.assert_close(model._fast_fisher(batch.split(20), parameters)(vector), kept)


def test_frozen_lstm_and_frozen_head_are_covered() -> None:
    """Whatever part of the actor may move."""
    for frozen in ("lstm_actor", "action_net"):
        model = rolled_out("box")
        for parameter in getattr(model.policy, frozen).parameters():
            parameter.requires_grad_(False)
        batch = model._full_batch()
        parameters, _ = model._split_parameters(batch)
        vector = th.randn(sum(p.numel() for p in parameters), generator=th.Generator().manual_seed(2))
        plain = PolicyProblem(model._distribution, batch, parameters, fisher_path="plain").fisher_vector_product()(vector)
        assert relative_error(model._fast_fisher([batch], parameters)(vector), plain) < 1e-5


@pytest.mark.parametrize("kwargs", [{"n_lstm_layers": 2}, {"lstm_kwargs": {"bias": False}}, {"activation_fn": th.nn.Softsign}])
def test_what_is_not_covered_takes_the_plain_ways(kwargs: dict[str, Any]) -> None:
    """Several layers, no biases, other functions; hooks and methods of the user's own."""
    model = rolled_out("box", **kwargs)
    batch = model._full_batch()
    parameters, _ = model._split_parameters(batch)
    assert model._fast_fisher([batch], parameters) is None


def test_hooks_and_own_methods_take_the_plain_ways() -> None:
    """Whatever may change what the LSTM gives."""
    model = rolled_out("box")
    batch = model._full_batch()
    parameters, _ = model._split_parameters(batch)
    assert model._fast_fisher([batch], parameters) is not None
    hook = model.policy.lstm_actor.register_forward_hook(lambda *args: None)
    assert model._fast_fisher([batch], parameters) is None
    hook.remove()
    model.policy.get_distribution = lambda *args: type(model.policy).get_distribution(model.policy, *args)
    assert model._fast_fisher([batch], parameters) is None


def test_other_distribution_is_seen() -> None:
    """One that is not what was read of the policy."""
    model, other = rolled_out("box"), rolled_out("box")
    shake(list(other.policy.parameters()), scale=0.3, seed=5)
    batch = model._full_batch()
    parameters, _ = model._split_parameters(batch)
    assert lstm_fisher(model.policy, [batch], parameters, other._distribution) is None
