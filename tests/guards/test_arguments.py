"""Bad input is refused at once, by an error that names the argument and the value, and changes nothing."""

import copy
import inspect
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo import TRPO
from tests.small_models import (
    BOX,
    DISCRETE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    Case,
    RandomEnv,
    changed,
    make_env,
    policy_state,
    small_model,
)

REFUSALS = (TypeError, ValueError)

NOT_A_NUMBER = ["0.1", None, True, False, [1], np.array([0.5, 0.5])]
BAD_VALUES: dict[str, list[Any]] = {
    "learning_rate": [-1e-3, math.nan, math.inf, *NOT_A_NUMBER],
    "n_steps": [0, -1, 64.0, *NOT_A_NUMBER],
    "batch_size": [0, -1, 32.0, *NOT_A_NUMBER],
    "gamma": [-0.1, 1.1, math.nan, math.inf, *NOT_A_NUMBER],
    "cg_max_steps": [0, -1, 1.5, *NOT_A_NUMBER],
    "cg_damping": [-1e-9, -1, math.nan, math.inf, *NOT_A_NUMBER],
    "line_search_shrinking_factor": [0, 1, 0.0, 1.0, -0.5, 1.5, math.nan, *NOT_A_NUMBER],
    "line_search_max_iter": [0, -1, 1.5, *NOT_A_NUMBER],
    "n_critic_updates": [-1, 1.5, *NOT_A_NUMBER],
    "gae_lambda": [-0.1, 1.1, math.nan, math.inf, *NOT_A_NUMBER],
    "use_sde": [1, "True", None],
    "sde_sample_freq": [0, -2, 1.5, *NOT_A_NUMBER],
    "normalize_advantage": [1, 0, "False", None],
    "target_kl": [0, 0.0, -0.01, math.nan, math.inf, -math.inf, np.float64("nan"), *NOT_A_NUMBER],
    "sub_sampling_factor": [0, -1, 1.5, *NOT_A_NUMBER],
    "stats_window_size": [0, -1, 1.5, *NOT_A_NUMBER],
    "seed": [-1, 1.5, "zero"],
    "verbose": [-1, 1.5, *(value for value in NOT_A_NUMBER if not isinstance(value, bool))],
    "fast": [1, "True", None],
    "error_if_nonfinite": [0, "False", None],
    "std_damping": [-1e-9, -1, math.nan, math.inf, *(value for value in NOT_A_NUMBER if value is not None)],
    "critic_gae_lambda": [-0.1, 1.1, math.nan, math.inf, *(value for value in NOT_A_NUMBER if value is not None)],
    "tensorboard_log": [1, True, [1]],
    "policy_kwargs": ["net_arch", 1, [1]],
    "rollout_buffer_class": ["RolloutBuffer", int, 1],
    "rollout_buffer_kwargs": ["gamma", 1, [1]],
    "device": ["nonsense", "cpu:x", 1.5, None, [1]],
}
BAD = [pytest.param(name, value, id=f"{name}={value!r}") for name, values in BAD_VALUES.items() for value in values]


def assert_names(error: Exception, *words: Any) -> None:
    """Fail unless the message of an error has all of the words."""
    missing = [word for word in map(str, words) if word not in str(error)]
    assert not missing, f"the message does not name {missing}: {error}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the path of a saved model."""
    path = tmp_path_factory.mktemp("saved") / "model.zip"
    small_model().learn(64).save(path)
    return path


@pytest.mark.parametrize("name, value", BAD)
def test_constructor_refuses(name: str, value: Any) -> None:
    """A value that cannot work is refused at construction."""
    with pytest.raises(REFUSALS) as refusal:
        small_model(**{name: value})
    assert_names(refusal.value, name, repr(value))


@pytest.mark.parametrize("name", [name for name in BAD_VALUES if name != "seed"])
def test_constructor_refuses_before_it_builds(name: str) -> None:
    """The check does not wait for the networks: it holds without them too."""
    value = BAD_VALUES[name][0]
    with pytest.raises(REFUSALS) as refusal:
        small_model(**{"_init_setup_model": False, name: value})
    assert_names(refusal.value, name, repr(value))


@pytest.mark.parametrize("name, value", BAD)
def test_load_refuses(name: str, value: Any, saved: pathlib.Path) -> None:
    """The same value is refused as a keyword of load."""
    with pytest.raises(REFUSALS) as refusal:
        TRPO.load(saved, **{"device": "cpu", name: value})
    assert_names(refusal.value, name, repr(value))


# Of these SB3 keeps another thing than the argument, or puts its own in place
REPLACED = ("stats_window_size", "seed", "device", "policy_kwargs", "rollout_buffer_class")


@pytest.mark.parametrize("name", [name for name in BAD_VALUES if name not in REPLACED])
def test_load_refuses_what_a_zip_holds(name: str, tmp_path: pathlib.Path) -> None:
    """A zip with a stored value that cannot work is refused, whoever wrote it."""
    model = small_model()
    value = BAD_VALUES[name][0]
    setattr(model, name, value)
    model.save(tmp_path / "model")
    with pytest.raises(REFUSALS) as refusal:
        TRPO.load(tmp_path / "model", device="cpu")
    assert_names(refusal.value, name, repr(value))


def test_load_repairs_what_a_zip_holds(tmp_path: pathlib.Path) -> None:
    """A keyword of load replaces the stored value before it is checked."""
    model = small_model()
    model.target_kl = math.nan
    model.save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model", device="cpu", target_kl=0.02).target_kl == 0.02


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_load_refuses_a_custom_object(value: float, saved: pathlib.Path) -> None:
    """What custom_objects puts in place is checked as well."""
    with pytest.raises(ValueError) as refusal:
        TRPO.load(saved, device="cpu", custom_objects={"target_kl": value})
    assert_names(refusal.value, "target_kl", value)


def falling(remaining: float) -> float:
    """Return a learning rate."""
    return 1e-3 * remaining


GOOD_VALUES: dict[str, list[Any]] = {
    "learning_rate": [0, np.float32(1e-3), np.float64(1e-3), falling],
    "n_steps": [np.int64(32)],
    "batch_size": [1, np.int32(16), 10**6],
    "gamma": [0, 1, np.float32(0.9)],
    "cg_max_steps": [1, np.int64(3)],
    "cg_damping": [0, 0.0, np.float64(0.1)],
    "line_search_shrinking_factor": [1e-3, 0.999, np.float32(0.5)],
    "line_search_max_iter": [1, np.int64(3)],
    "n_critic_updates": [0, np.int64(1)],
    "gae_lambda": [0, 1, np.float32(0.9)],
    "sde_sample_freq": [-1],
    "normalize_advantage": [False],
    "target_kl": [1e-4, 1, np.float32(0.02), np.float64(0.02)],
    "sub_sampling_factor": [3, 10**6, np.int64(2)],
    "stats_window_size": [1, np.int64(5)],
    "seed": [None, 0, np.int64(3)],
    "std_damping": [None, 0, 1e3, np.float32(0.5)],
    "critic_gae_lambda": [None, 0, 1, np.float32(0.9)],
}


GOOD = [
    pytest.param(name, value, id=f"{name}={getattr(value, '__name__', repr(value))}")
    for name, values in GOOD_VALUES.items()
    for value in values
]


@pytest.mark.parametrize("name, value", GOOD)
def test_constructor_takes(name: str, value: Any, tmp_path: pathlib.Path) -> None:
    """The ends of each range and numpy's numbers work, through an update and through a zip."""
    model = small_model(**({"n_steps": 32, "n_critic_updates": 1} | {name: value}))
    model.learn(model.n_steps)
    assert model.last_update is not None
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", make_env(), device="cpu")
    assert not changed(policy_state(model), policy_state(loaded))


def test_constructor_takes_the_positions_of_contrib() -> None:
    """Arguments given by position end where contrib's do."""
    model = TRPO("MlpPolicy", RandomEnv(), 1e-4, 32, 16, 0.9, 5, 0.2, 0.7, 6, 3, 0.8, False, -1, None, None, False, 0.03, 2)
    assert (model.n_steps, model.batch_size, model.gamma, model.cg_max_steps, model.cg_damping) == (32, 16, 0.9, 5, 0.2)
    assert (model.line_search_shrinking_factor, model.line_search_max_iter, model.n_critic_updates) == (0.7, 6, 3)
    assert (model.gae_lambda, model.normalize_advantage, model.target_kl, model.sub_sampling_factor) == (0.8, False, 0.03, 2)


def test_constructor_refuses_an_unknown_keyword() -> None:
    """A typing error in a keyword does not go unnoticed."""
    with pytest.raises(TypeError) as refusal:
        small_model(taget_kl=0.01)
    assert_names(refusal.value, "taget_kl")


@pytest.mark.parametrize("name", ["taget_kl", "self", "policy", "_init_setup_model", "n_envs", "__dict__"])
def test_load_refuses_an_unknown_keyword(name: str, saved: pathlib.Path) -> None:
    """SB3 would write any keyword of load into the model; what the constructor does not know is refused."""
    unknown: dict[str, Any] = {name: 0.125}
    with pytest.raises(TypeError) as refusal:
        TRPO.load(saved, device="cpu", **unknown)
    assert_names(refusal.value, name, *([0.125] if name != "self" else []))


@pytest.mark.parametrize("n_envs, n_steps", [(1, 1)])
def test_constructor_refuses_to_normalise_a_single_advantage(n_envs: int, n_steps: int) -> None:
    """One transition has no standard deviation."""
    with pytest.raises(ValueError) as refusal:
        small_model(env=make_env(n_envs=n_envs), n_steps=n_steps)
    assert_names(refusal.value, "n_steps", "n_envs", "normalize_advantage", 1)


def test_load_refuses_to_normalise_a_single_advantage(saved: pathlib.Path) -> None:
    """One transition has no standard deviation, after loading neither."""
    with pytest.raises(ValueError) as refusal:
        TRPO.load(saved, make_env(), device="cpu", n_steps=1)
    assert_names(refusal.value, "n_steps", "n_envs", "normalize_advantage", 1)


@pytest.mark.parametrize("n_envs, n_steps, normalize_advantage", [(1, 2, True), (2, 1, True), (1, 1, False)])
def test_constructor_takes_the_smallest_rollout(n_envs: int, n_steps: int, normalize_advantage: bool) -> None:
    """Two transitions are enough, one is without normalisation."""
    model = small_model(env=make_env(n_envs=n_envs), n_steps=n_steps, normalize_advantage=normalize_advantage)
    model.learn(4)
    assert all(bool(tensor.isfinite().all()) for tensor in policy_state(model).values())


UNSUPPORTED: dict[str, spaces.Space] = {
    "dict": spaces.Dict({"a": DISCRETE}),
    "tuple": spaces.Tuple([DISCRETE, BOX]),
    "text": spaces.Text(3),
    "multi_binary_of_two_axes": spaces.MultiBinary([2, 3]),
    "multi_binary_of_a_list": spaces.MultiBinary([4]),
    "multi_discrete_of_two_axes": spaces.MultiDiscrete(np.array([[2, 3], [2, 3]])),
    "box_without_bounds": spaces.Box(-np.inf, np.inf, (2,)),
    "box_with_one_bound": spaces.Box(0.0, np.inf, (2,)),
}


@pytest.mark.parametrize("action_space", UNSUPPORTED.values(), ids=UNSUPPORTED)
@pytest.mark.parametrize("vectorised", [False, True])
def test_constructor_refuses_an_action_space(action_space: spaces.Space, vectorised: bool) -> None:
    """An action space without a distribution is refused by its name, in a single environment and in a vectorised one."""
    env = make_env(action_space=action_space) if vectorised else RandomEnv(action_space=action_space)
    with pytest.raises(REFUSALS) as refusal:
        TRPO("MlpPolicy", env, device="cpu")
    assert_names(refusal.value, "action_space", action_space)


@pytest.mark.parametrize(
    "action_space",
    [spaces.Discrete(3, start=1), spaces.MultiDiscrete([3, 2], start=[1, 1])],
    ids=["discrete", "multi_discrete"],
)
def test_action_space_that_does_not_start_at_zero_is_refused_or_respected(action_space: spaces.Space) -> None:
    """SB3's categorical distributions count from zero: an environment must not be sent actions that it does not have."""
    seen: list[Any] = []

    class Recording(RandomEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            seen.append(action)
            return super().step(action)

    try:
        model = TRPO("MlpPolicy", Recording(action_space=action_space), n_steps=64, seed=0, device="cpu")
    except ValueError as refusal:
        assert_names(refusal, "action_space", action_space)
    else:
        model.learn(64)
        assert all(action_space.contains(action) for action in seen)


@pytest.mark.parametrize("action_space", [DISCRETE, MULTI_DISCRETE, MULTI_BINARY])
def test_constructor_refuses_gsde_without_continuous_actions(action_space: spaces.Space) -> None:
    """gSDE is a Gaussian."""
    with pytest.raises(ValueError) as refusal:
        small_model(env=make_env(action_space=action_space), use_sde=True)
    assert_names(refusal.value, "gSDE")


@pytest.mark.parametrize("action_space", [DISCRETE, MULTI_DISCRETE, MULTI_BINARY])
def test_constructor_refuses_damping_of_a_standard_deviation_that_is_not_there(action_space: spaces.Space) -> None:
    """The error names the space."""
    with pytest.raises(ValueError) as refusal:
        small_model(env=make_env(action_space=action_space), std_damping=4.0)
    assert_names(refusal.value, "std_damping", 4.0, action_space)


def test_load_refuses_an_environment_of_other_spaces(saved: pathlib.Path) -> None:
    """A model does not come back in an environment that it does not fit."""
    with pytest.raises(ValueError) as refusal:
        TRPO.load(saved, make_env(action_space=DISCRETE), device="cpu")
    assert_names(refusal.value, "ction space", DISCRETE)


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


# Strange things, for every argument: each is refused by name or works

ANYTHING: list[Any] = [
    None, True, 0, 1, -1, 2**70, 0.5, 1e300, math.nan, 1j, "", "auto", "MlpPolicy", b"1", [], (), {}, {"a": 1}, object(), int,
    RandomEnv, math.sqrt, np.float32(0.5), np.int8(3), np.zeros(2), th.tensor(1.0), pathlib.Path("x"), th.device("cpu"),
]  # fmt: skip
ARGUMENTS = [name for name in inspect.signature(TRPO.__init__).parameters if name != "self"]


@pytest.mark.filterwarnings("ignore:sde_sample_freq")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_constructor_refuses_by_name_or_takes(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is given: an error that names the argument or its key, or a model that holds it and trains."""
    monkeypatch.chdir(tmp_path)
    n_taken = 0
    for value in ANYTHING:
        arguments = {"policy": "MlpPolicy", "env": RandomEnv(), "n_steps": 4, "n_critic_updates": 1, "device": "cpu"}
        try:
            model = TRPO(**(arguments | {name: value}))  # type: ignore[arg-type]
        except (*REFUSALS, gymnasium.error.Error) as refusal:
            if name == "env" and isinstance(value, str):
                # An id that Gymnasium does not know
                assert "environment" in str(refusal).lower()
                continue
            key = next(iter(value), name) if isinstance(value, dict) else name
            assert name in str(refusal) or str(key) in str(refusal), f"{name}={value!r}: {refusal}"
            continue
        n_taken += 1
        if name not in ("policy", "env", "device", "_init_setup_model"):
            held = getattr(model, "_stats_window_size" if name == "stats_window_size" else name)
            assert held is value or held == value or ((name.endswith("_class") or name.endswith("_kwargs")) and not value)
    assert n_taken >= 1 or name == "env"
    if name != "_init_setup_model" and n_taken:
        model.learn(model.n_steps, log_interval=None)  # type: ignore[arg-type]
        assert model.last_update is not None


OF_LOAD = ["path", "env", "device", "custom_objects", "print_system_info", "force_reset"]


@pytest.mark.filterwarnings("ignore:sde_sample_freq")
@pytest.mark.parametrize("name", [*OF_LOAD, *(name for name in ARGUMENTS[2:] if name not in ("device", "_init_setup_model"))])
def test_load_refuses_by_name_or_takes(name: str, saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The same for what load is given."""
    for value in ANYTHING:
        try:
            arguments: dict[str, Any] = {"path": saved, "device": "cpu", name: value}
            model = TRPO.load(**arguments)
        except (*REFUSALS, OSError, gymnasium.error.Error) as refusal:
            key = next(iter(value), name) if isinstance(value, dict) else name
            assert any(word in str(refusal) for word in (name, name.capitalize(), str(key), str(value))), (
                f"{value!r}: {refusal}"
            )
            continue
        if name not in OF_LOAD:
            held = getattr(model, "_stats_window_size" if name == "stats_window_size" else name)
            assert held is value or held == value or name.endswith("_class") or name.endswith("_kwargs")


def test_constructor_says_what_has_no_effect() -> None:
    """An argument that another one switches off is not passed over in silence."""
    with pytest.warns(UserWarning, match="sde_sample_freq=4 has no effect with use_sde=False"):
        small_model(sde_sample_freq=4)
    assert small_model(use_sde=True, sde_sample_freq=np.int64(4)).sde_sample_freq == 4


@pytest.mark.parametrize("rate", [math.nan, -1.0, math.inf])
def test_schedule_that_gives_no_learning_rate_is_refused_before_the_update(rate: float) -> None:
    """A schedule is asked at every update: what it cannot mean changes nothing."""
    model = small_model(learning_rate=lambda remaining: rate if remaining < 1.0 else 1e-3)
    before = policy_state(model)
    with pytest.raises(ValueError) as refusal:
        model.learn(64)
    assert_names(refusal.value, "learning_rate", rate)
    assert not changed(before, policy_state(model))


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


@pytest.mark.parametrize("verbose", [True, False])
def test_verbose_may_be_a_flag(verbose: bool) -> None:
    assert small_model(verbose=verbose).verbose == verbose
