"""Arguments that cannot work are refused at once, by an error that names them and the value; the others are taken."""

import inspect
import math
import pathlib
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, MlpPolicy, RecurrentTRPO
from sb3_trpo.hyperparameters import PER_DIMENSION
from tests.guards.refusals import REFUSALS, assert_names
from tests.small_models import DICT, IMAGE, VECTOR, RandomEnv, changed, make_env, monitored, policy_state, small_model

NOT_A_NUMBER = ["0.1", None, True, False, [1], np.array([0.5, 0.5])]
NEITHER_NUMBER_NOR_NONE = [value for value in NOT_A_NUMBER if value is not None]
BAD_VALUES: dict[str, list[Any]] = {
    "learning_rate": [-1e-3, math.nan, math.inf, *NOT_A_NUMBER],
    "n_steps": [0, -1, 64.0, *NOT_A_NUMBER],
    "batch_size": [0, -1, 32.0, *NOT_A_NUMBER],
    "gamma": [-0.1, 1.1, math.nan, math.inf, *NOT_A_NUMBER],
    "cg_max_steps": [0, -1, 1.5, *NOT_A_NUMBER],
    "cg_damping": [-1e-9, -1, math.nan, math.inf, *NEITHER_NUMBER_NOR_NONE],
    "line_search_shrinking_factor": [0, 1, 0.0, 1.0, -0.5, 1.5, math.nan, *NOT_A_NUMBER],
    "line_search_max_iter": [0, -1, 1.5, *NOT_A_NUMBER],
    "n_critic_updates": [-1, 1.5, *NOT_A_NUMBER],
    "gae_lambda": [-0.1, 1.1, math.nan, math.inf, *NOT_A_NUMBER],
    "use_sde": [1, "True", None],
    "sde_sample_freq": [0, -2, 1.5, *NOT_A_NUMBER],
    "normalize_advantage": [1, 0, "False", None],
    "target_kl": [0, 0.0, -0.01, math.nan, math.inf, -math.inf, np.float64("nan"), *NEITHER_NUMBER_NOR_NONE],
    "sub_sampling_factor": [0, -1, 1.5, *NOT_A_NUMBER],
    "stats_window_size": [0, -1, 1.5, *NOT_A_NUMBER],
    "seed": [-1, 1.5, "zero"],
    "verbose": [-1, 1.5, *(value for value in NOT_A_NUMBER if not isinstance(value, bool))],
    "fast": [1, "True", None],
    "error_if_nonfinite": [0, "False", None],
    "std_damping": [-1e-9, -1, math.nan, math.inf, *NEITHER_NUMBER_NOR_NONE],
    "critic_gae_lambda": [-0.1, 1.1, math.nan, math.inf, *NEITHER_NUMBER_NOR_NONE],
    "tensorboard_log": [1, True, [1]],
    "policy_kwargs": ["net_arch", 1, [1]],
    "rollout_buffer_class": ["RolloutBuffer", int, 1],
    "rollout_buffer_kwargs": ["gamma", 1, [1]],
    "device": ["nonsense", "cpu:x", 1.5, None, [1]],
}
BAD = [pytest.param(name, value, id=f"{name}={value!r}") for name, values in BAD_VALUES.items() for value in values]


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


@pytest.mark.untraced
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


@pytest.mark.untraced
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
            left_out = value is None and name in (*PER_DIMENSION, "std_damping", "processes")  # has a default by what is there
            no_value = (name.endswith("_class") or name.endswith("_kwargs")) and not value
            assert left_out or held is value or held == value or no_value
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
            left_out = value is None and name in (*PER_DIMENSION, "processes")  # and has a default by what is there
            assert left_out or held is value or held == value or name.endswith("_class") or name.endswith("_kwargs")


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


@pytest.mark.parametrize("verbose", [True, False])
def test_verbose_may_be_a_flag(verbose: bool) -> None:
    assert small_model(verbose=verbose).verbose == verbose


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "mlppolicy", ""])
def test_policy_name_that_is_unknown_is_refused(policy: str) -> None:
    """The error lists the names there are."""
    with pytest.raises(ValueError, match=r"'CnnPolicy', 'MlpPolicy', 'MultiInputPolicy'") as refusal:
        small_model(policy=policy)
    assert repr(policy) in str(refusal.value)


@pytest.mark.parametrize("policy", [DQN.policy_aliases["MlpPolicy"], object, 3, None])
def test_policy_that_is_no_actor_critic_is_refused(policy: Any) -> None:
    """The error says of which kind a class must be."""
    with pytest.raises(TypeError, match="subclass of ActorCriticPolicy"):
        small_model(policy=policy)


@pytest.mark.parametrize(
    "policy, env, hint",
    [
        ("MlpPolicy", make_env(DICT), "MultiInputPolicy"),
        ("CnnPolicy", make_env(DICT), "MultiInputPolicy"),
        ("CnnPolicy", make_env(VECTOR), "image"),
        ("MultiInputPolicy", make_env(VECTOR), "MultiInputPolicy is for Dict observations, got Box"),
        ("MultiInputPolicy", make_env(IMAGE), "MultiInputPolicy is for Dict observations, got Box"),
    ],
    ids=["mlp-dict", "cnn-dict", "cnn-vector", "multi-vector", "multi-image"],
)
def test_policy_that_does_not_fit_the_observations_is_refused(policy: str, env: Any, hint: str) -> None:
    """The error says which policy would, or what it expected to see."""
    with pytest.raises((ValueError, AssertionError), match=hint):
        small_model(policy=policy, env=env)


@pytest.mark.parametrize(("cls", "policy"), [(MaskableTRPO, "MultiInputPolicy"), (RecurrentTRPO, "MultiInputLstmPolicy")])
def test_policy_of_a_variant_for_dicts_is_refused_where_there_are_none(cls: Any, policy: str) -> None:
    """By the same words as that of TRPO."""
    with pytest.raises(ValueError, match="is for Dict observations, got Box"):
        small_model(cls, policy, make_env(VECTOR, spaces.Discrete(3)))


class FlattensDicts(MultiInputActorCriticPolicy):
    """Hands an extractor of its own on, whatever its base class has."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "features_extractor_class": FlattenExtractor})


def test_policy_that_hands_its_own_extractor_on_is_taken_as_sb3_takes_it() -> None:
    """What its base class is for says nothing of it."""
    model = small_model(policy=FlattensDicts, env=make_env(VECTOR)).learn(64)
    assert model.last_update is not None and model.last_update.step.accepted


CANNOT_BUILD: dict[str, dict[str, Any]] = {
    "no class": {"activation_fn": "tanh"},
    "no list": {"net_arch": 64},
    "text for numbers": {"net_arch": "64"},
    "negative": {"net_arch": [-3]},
    "given twice": {"optimizer_kwargs": {"lr": 1e-3}},
    "no extractor": {"features_extractor_class": int},
    "of gSDE": {"squash_output": True},
    "unknown": {"hidden_size": 64},
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kwargs", CANNOT_BUILD.values(), ids=CANNOT_BUILD.keys())
def test_policy_kwargs_that_build_nothing_are_named(kwargs: dict[str, Any], fast: bool) -> None:
    """What torch and SB3 say of their insides stands behind it, and is the cause."""
    with pytest.raises((TypeError, ValueError, RuntimeError)) as refusal:
        small_model(policy_kwargs=kwargs, fast=fast)
    assert_names(refusal.value, "MlpPolicy", "policy_kwargs", repr(kwargs), refusal.value.__cause__)


@pytest.mark.parametrize(
    ("cls", "policy", "kwargs"),
    [
        (RecurrentTRPO, "MlpLstmPolicy", {"lstm_hidden_size": -1}),
        (RecurrentTRPO, "MlpLstmPolicy", {"shared_lstm": True, "enable_critic_lstm": True}),
        (MaskableTRPO, "MlpPolicy", {"activation_fn": "tanh"}),
        (MaskableTRPO, "CnnPolicy", {}),
    ],
)
def test_policy_kwargs_of_a_variant_that_build_nothing_are_named(cls: Any, policy: str, kwargs: dict[str, Any]) -> None:
    """The policy class too, which may be what does not fit."""
    with pytest.raises((TypeError, ValueError, RuntimeError)) as refusal:
        small_model(cls, policy, make_env(VECTOR, spaces.Discrete(3)), policy_kwargs=kwargs)
    assert_names(refusal.value, policy, "policy_kwargs", repr(kwargs))


@pytest.mark.parametrize(
    ("cls", "policy"), [(TRPO, "MlpPolicy"), (RecurrentTRPO, "MlpLstmPolicy"), (MaskableTRPO, "MlpPolicy")]
)
def test_buffer_kwargs_that_build_nothing_are_named(cls: Any, policy: str) -> None:
    with pytest.raises(TypeError, match=r"RolloutBuffer cannot be built with rollout_buffer_kwargs=\{'size': 3\}: "):
        small_model(cls, policy, make_env(VECTOR, spaces.Discrete(3)), rollout_buffer_kwargs={"size": 3})


class LostWeightsError(ValueError):
    """Of the user's own."""


def test_error_of_a_policy_of_ones_own_says_what_it_says() -> None:
    """Its class is what the user waits for."""

    class Pretrained(MlpPolicy):
        def __init__(self, *args: Any, **kwargs: Any):
            raise LostWeightsError("no weights at s3://here")

    with pytest.raises(LostWeightsError, match=r"^no weights at s3://here$"):
        small_model(policy=Pretrained)


@pytest.mark.parametrize(
    ("cls", "policy"), [(MaskableTRPO, "MlpPolicy"), (MaskableRecurrentTRPO, "MlpLstmPolicy"), (MaskableTRPO, "CnnPolicy")]
)
def test_actions_that_have_no_masks_are_refused(cls: Any, policy: str) -> None:
    """As SB3 does, and where Python makes no assertions too."""
    for kind in (ValueError, AssertionError):
        with pytest.raises(kind, match=r"only supports Discrete, MultiDiscrete, MultiBinary as action spaces but Box"):
            small_model(cls, policy, make_env(VECTOR))


BAD_OF_LEARN: dict[str, list[Any]] = {
    "total_timesteps": ["100", None, math.nan, True, [64]],
    "log_interval": [0, "1", 0.3, math.nan],
    "callback": ["x", 3, [print], [BaseCallback]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_OF_LEARN.items() for value in values], ids=str
)
def test_learn_refuses_what_cannot_work_and_leaves_the_run_as_it_was(name: str, value: Any) -> None:
    model = small_model(env=monitored())
    model.learn(128)
    before = model.num_timesteps, model._n_updates, [*model.ep_info_buffer], policy_state(model)  # type: ignore[misc]
    kind = TypeError if isinstance(value, str | int | None) and name != "log_interval" else (TypeError, ValueError)
    with pytest.raises(kind, match=f"{name} must be .* got "):
        model.learn(**{"total_timesteps": 64} | {name: value})
    assert (model.num_timesteps, model._n_updates, [*model.ep_info_buffer]) == before[:3]  # type: ignore[misc]
    assert not changed(before[3], policy_state(model))
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 192


@pytest.mark.parametrize("total_timesteps", [0, -5, 64.5, np.int64(64), np.float32(64.0)])
@pytest.mark.parametrize("log_interval", [None, -1, np.int64(2)])
def test_learn_takes_what_sb3_takes(total_timesteps: Any, log_interval: Any) -> None:
    model = small_model()
    callbacks: list[Any] = [None, [], lambda *_: True, CallbackList([])]
    for callback in callbacks:
        model.learn(total_timesteps, callback, log_interval)
    assert model.num_timesteps in (0, 64, 128)
