"""Parameters that do not fit, or that no training could start from, are refused by name, and change nothing."""

import copy
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn

from sb3_trpo import TRPO, MaskableTRPO, RecurrentTRPO
from tests.guards.refusals import REFUSALS, assert_names
from tests.small_models import Case, changed, make_env, policy_state, small_model


def optimizer_state(model: TRPO) -> list[th.Tensor]:
    """Return a copy of every tensor that the optimizer remembers."""
    return [
        value.clone()
        for state in model.policy.optimizer.state_dict()["state"].values()
        for value in state.values()
        if isinstance(value, th.Tensor)
    ]


def parameters_with(policy: Mapping[str, Any], model: TRPO) -> dict[str, Any]:
    """Return the parameters of a model, each of the policy's a bit off, with some of the policy's replaced."""
    parameters = model.get_parameters()
    shifted = {name: tensor + 1.0 for name, tensor in parameters["policy"].items()}
    return {"policy": shifted | dict(policy), "policy.optimizer": parameters["policy.optimizer"]}


BAD_TENSORS: dict[str, tuple[str, Any]] = {
    "unknown_key": ("no_such_layer.weight", th.zeros(1)),
    "wrong_shape": ("log_std", th.zeros(4)),
    "scalar": ("log_std", th.tensor(0.0)),
    "nan": ("value_net.bias", th.tensor([math.nan])),
    "infinite": ("value_net.bias", th.tensor([math.inf])),
    "a_float": ("log_std", 5.0),
    "none": ("log_std", None),
    "text": ("log_std", "zeros"),
    "array": ("log_std", np.zeros(3)),
}


@pytest.mark.parametrize("exact_match", [True, False])
@pytest.mark.parametrize("key, tensor", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_set_parameters_refuses_a_tensor(key: str, tensor: Any, exact_match: bool) -> None:
    """A tensor that does not fit or that no training could start from is named, and no parameter is changed."""
    model = small_model().learn(64)
    before = policy_state(model)
    if key == "no_such_layer.weight" and not exact_match:
        # As SB3 does: a part of another model's parameters may be taken over
        model.set_parameters(parameters_with({key: tensor}, model), exact_match=False)
        assert len(changed(before, policy_state(model))) == len(before)
        return
    with pytest.raises(REFUSALS) as refusal:
        model.set_parameters(parameters_with({key: tensor}, model), exact_match=exact_match)
    assert_names(refusal.value, key)
    assert not changed(before, policy_state(model))


BAD_OBJECTS: dict[str, tuple[dict[Any, Any], str]] = {
    "unknown_object": ({"no_such_object": {}}, "no_such_object"),
    "attribute_that_is_no_module": ({"target_kl": {}}, "target_kl"),
    "number_as_name": ({7: {}}, "7"),
    "policy_is_a_number": ({"policy": 125}, "125"),
    "policy_is_none": ({"policy": None}, "policy"),
    "policy_is_a_tensor": ({"policy": th.zeros(3)}, "policy"),
    "optimizer_is_a_list": ({"policy.optimizer": [125]}, "125"),
    "optimizer_without_groups": ({"policy.optimizer": {"state": {}}}, "policy.optimizer"),
}


@pytest.mark.parametrize("given, named", BAD_OBJECTS.values(), ids=BAD_OBJECTS)
def test_set_parameters_refuses_an_object(given: dict[Any, Any], named: str) -> None:
    """An object that the model does not have, or that is no dictionary of parameters, is named, and none is changed."""
    model = small_model().learn(64)
    before, optimizer_before = policy_state(model), optimizer_state(model)
    with pytest.raises(REFUSALS) as refusal:
        model.set_parameters(parameters_with({}, model) | given)
    assert_names(refusal.value, named)
    assert not changed(before, policy_state(model))
    assert all(map(th.equal, optimizer_before, optimizer_state(model)))


@pytest.mark.parametrize("missing", ["policy", "policy.optimizer"])
def test_set_parameters_refuses_what_is_not_whole(missing: str) -> None:
    """exact_match asks for every object, and nothing is changed where one is missing."""
    model = small_model().learn(64)
    before, optimizer_before = policy_state(model), optimizer_state(model)
    given = parameters_with({}, model)
    given.pop(missing)
    with pytest.raises(ValueError) as refusal:
        model.set_parameters(given)
    assert_names(refusal.value, missing)
    assert not changed(before, policy_state(model))
    assert all(map(th.equal, optimizer_before, optimizer_state(model)))


def test_set_parameters_refuses_an_optimizer_that_would_spoil_the_critic() -> None:
    """Moments of the optimizer that are not finite would make every weight of the critic NaN with the next fit."""
    model = small_model().learn(64)
    before, optimizer_before = policy_state(model), optimizer_state(model)
    given = copy.deepcopy(parameters_with({}, model))
    (first, *_) = given["policy.optimizer"]["state"].values()
    first["exp_avg"] = th.full_like(first["exp_avg"], math.nan)
    with pytest.raises(ValueError) as refusal:
        model.set_parameters(given)
    assert_names(refusal.value, "policy.optimizer")
    assert not changed(before, policy_state(model))
    assert all(map(th.equal, optimizer_before, optimizer_state(model)))


@pytest.mark.parametrize("given", [125, None, [1]], ids=str)
def test_set_parameters_refuses_what_is_neither_a_dictionary_nor_a_file(given: Any) -> None:
    """It names what it got."""
    model = small_model()
    before = policy_state(model)
    with pytest.raises(REFUSALS) as refusal:
        model.set_parameters(given)
    assert_names(refusal.value, given)
    assert not changed(before, policy_state(model))


def test_set_parameters_refuses_a_file_with_weights_that_are_not_numbers(tmp_path: pathlib.Path) -> None:
    """A spoilt zip is refused by set_parameters and by load, and names the tensor."""
    spoilt = small_model()
    with th.no_grad():
        spoilt.policy.value_net.bias.fill_(math.nan)
    spoilt.save(tmp_path / "model")
    model = small_model()
    before = policy_state(model)
    with pytest.raises(ValueError) as refusal:
        model.set_parameters(str(tmp_path / "model"))
    assert_names(refusal.value, "value_net.bias", "nan")
    assert not changed(before, policy_state(model))
    with pytest.raises(ValueError) as refusal:
        TRPO.load(tmp_path / "model", device="cpu")
    assert_names(refusal.value, "value_net.bias", "nan")


def test_set_parameters_takes_what_get_parameters_gave(saved: pathlib.Path) -> None:
    """From a dictionary or from a file, all of it or a part."""
    source = TRPO.load(saved, device="cpu")
    from_dict, from_file, in_part = (small_model(seed=9) for _ in range(3))
    parameters: dict[str, Any] = source.get_parameters()
    from_dict.set_parameters(parameters)
    from_file.set_parameters(str(saved))
    assert not changed(policy_state(source), policy_state(from_dict))
    assert not changed(policy_state(source), policy_state(from_file))
    assert all(map(th.equal, optimizer_state(source), optimizer_state(from_dict)))
    before = policy_state(in_part)
    part: dict[str, Any] = {"policy": {"log_std": th.ones(3)}}
    in_part.set_parameters(part, exact_match=False)
    assert changed(before, policy_state(in_part)) == {"log_std"}


def test_model_refused_by_set_parameters_still_trains() -> None:
    """A refusal leaves a model that works, optimizer included."""
    model = Case().model().learn(64)
    spoilt: dict[str, Any] = {"policy": {"log_std": th.full((3,), math.nan)}}
    with pytest.raises(ValueError):
        model.set_parameters(spoilt, exact_match=False)
    model.learn(64, reset_num_timesteps=False)
    assert model.last_update is not None and model.last_update.step.accepted


class MaskedExtractor(FlattenExtractor):
    """Holds what is no parameter: a mask of infinities, and state that is no tensor."""

    def __init__(self, observation_space: gymnasium.Space):
        super().__init__(observation_space)
        self.register_buffer("mask", th.tensor([0.0, -math.inf]))

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 3}


def test_load_takes_what_is_no_parameter_as_it_is(tmp_path: pathlib.Path) -> None:
    model = small_model(policy_kwargs={"features_extractor_class": MaskedExtractor}).learn(64)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert not changed(policy_state(model), policy_state(loaded))
    loaded.set_parameters(model.get_parameters())


class FrozenMask(BaseFeaturesExtractor):
    """Holds a mask as a parameter that is not trained."""

    def __init__(self, observation_space: Any):
        super().__init__(observation_space, 3)
        self.mask = nn.Parameter(th.triu(th.full((3, 3), float("-inf")), 1), requires_grad=False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations @ self.mask.softmax(dim=1)


def test_parameter_that_is_not_trained_may_be_infinite(tmp_path: pathlib.Path) -> None:
    """What a mask of attention is made of: such a policy acts, learns and is loaded."""
    model = small_model(policy_kwargs={"features_extractor_class": FrozenMask}).learn(64)
    assert model.last_update is not None and model.last_update.step.accepted
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert not changed(policy_state(model), policy_state(loaded))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"exp_avg": th.zeros(4303)}, id="shape of a moment"),
        pytest.param({"exp_avg_sq": None}, id="moment missing"),
    ],
)
def test_set_parameters_refuses_an_optimizer_state_that_cannot_work(change: dict[str, th.Tensor | None]) -> None:
    """It would raise in the middle of a training that began; refused at once, nothing is changed."""
    model = small_model().learn(64)
    parameters: dict[str, Any] = copy.deepcopy(model.get_parameters())
    index, state = next(iter(parameters["policy.optimizer"]["state"].items()))
    state.update(change)
    for key in [key for key, value in change.items() if value is None]:
        del state[key]
    before = policy_state(model)
    with pytest.raises(ValueError, match=f"{next(iter(change))}.*"):
        model.set_parameters(parameters)
    assert not changed(before, policy_state(model)) and isinstance(index, int)
    model.learn(64)


@pytest.mark.parametrize(
    ("theirs", "ours", "policy"),
    [
        (PPO, TRPO, "MlpPolicy"),
        (A2C, TRPO, "MlpPolicy"),
        (sb3_contrib.RecurrentPPO, RecurrentTRPO, "MlpLstmPolicy"),
        (sb3_contrib.MaskablePPO, MaskableTRPO, "MlpPolicy"),
    ],
)
def test_weights_of_another_algorithm_are_taken(theirs: Any, ours: Any, policy: str) -> None:
    """Where the networks are the same."""
    env = make_env(action_space=spaces.Discrete(3))
    before = theirs(policy, env, n_steps=64, seed=1, device="cpu").policy.state_dict()
    model = small_model(ours, policy, env)
    model.set_parameters({"policy": before}, exact_match=False)
    assert not changed(before, policy_state(model))


def test_shape_that_does_not_fit_is_an_error_of_either_kind() -> None:
    """Torch, and with it SB3, raises ``RuntimeError``."""
    model = small_model()
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind, match="log_std"):
            model.set_parameters(parameters_with({"log_std": th.zeros(7)}, model))


class Learned(FlattenExtractor):
    """An extractor that learns."""

    def __init__(self, observation_space: gymnasium.Space):
        super().__init__(observation_space)
        self.layer = nn.Linear(self.features_dim, self.features_dim)
        self.register_buffer("unseen", th.full((2,), math.nan))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(super().forward(observations))


@pytest.mark.parametrize("exact_match", [True, False])
def test_names_of_one_tensor_are_given_one_value(exact_match: bool) -> None:
    """Of two extractors a shared one would take the last, without a word; one into two fits."""
    one, two = (
        small_model(seed=seed, policy_kwargs={"features_extractor_class": Learned, "share_features_extractor": share})
        for seed, share in enumerate([True, False])
    )
    before = policy_state(one)
    given = parameters_with(two.policy.state_dict(), one)
    with pytest.raises(ValueError, match=r"'features_extractor.layer.weight' and 'vf_.*.layer.weight' are one"):
        one.set_parameters(given, exact_match=exact_match)
    assert all("unseen" in name for name in changed(before, policy_state(one)))
    one.set_parameters(one.get_parameters(), exact_match=exact_match)
    two.set_parameters({"policy": before}, exact_match=False)
    assert all("unseen" in name for name in changed(before, policy_state(two)))
