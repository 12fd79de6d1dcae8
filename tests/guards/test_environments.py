"""What no policy can learn from is refused by name: action spaces, environments of other spaces, things that are none."""

import pathlib
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_trpo import TRPO
from tests.guards.refusals import REFUSALS, assert_names
from tests.small_models import (
    BOX,
    DICT,
    DISCRETE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    VECTOR,
    RandomEnv,
    changed,
    make_env,
    policy_state,
    small_model,
)

MISMATCHED: dict[str, Any] = {
    "observation": make_env(spaces.Box(-1.0, 1.0, (4,))),
    "observation bounds": make_env(spaces.Box(-2.0, 1.0, (3,))),
    "observation kind": make_env(DICT),
    "action": make_env(VECTOR, DISCRETE),
    "action dimensions": make_env(VECTOR, spaces.Box(-1.0, 1.0, (2,))),
}


@pytest.mark.parametrize("name", MISMATCHED)
def test_environment_of_other_spaces_is_refused(name: str, saved: pathlib.Path) -> None:
    """By set_env and by load, naming both spaces; the model goes on in the environment that it has."""
    env = MISMATCHED[name]
    model = small_model()
    own, before = model.get_env(), policy_state(model)
    kind = name.split()[0]
    message = f"(?i){kind} spaces do not match"
    with pytest.raises(ValueError, match=message) as refusal:
        model.set_env(env)
    # The model may see an image of the environment's with its channels first
    expected = [str(getattr(model, f"{kind}_space"))] + [str(getattr(env, f"{kind}_space"))] * ("kind" not in name)
    assert all(space in str(refusal.value) for space in expected)
    assert model.get_env() is own and not changed(before, policy_state(model))
    model.learn(64)
    written = saved.read_bytes()
    with pytest.raises(ValueError, match=message):
        TRPO.load(saved, env, device="cpu")
    assert saved.read_bytes() == written


def test_set_env_refuses_another_number_of_environments() -> None:
    """The rollout buffer has a size: the error names both numbers and the way out."""
    model = small_model(env=make_env(n_envs=2))
    own = model.get_env()
    for n_envs, env in ((3, make_env(n_envs=3)), (1, RandomEnv())):
        with pytest.raises(ValueError, match=rf"2 environments.*got {n_envs}.*load\(path, env\)"):
            model.set_env(env)
    assert model.get_env() is own and model.n_envs == 2
    model.learn(64)


@pytest.mark.parametrize("env", [None, 3, [make_env()]], ids=["none", "number", "list"])
def test_set_env_refuses_what_is_no_environment(env: Any) -> None:
    """The error says what would be one."""
    model = small_model()
    own = model.get_env()
    with pytest.raises(TypeError, match="env must be a Gymnasium environment"):
        model.set_env(env)
    assert model.get_env() is own


def test_set_env_takes_the_name_of_an_environment() -> None:
    """As the constructor and load do."""
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=32, device="cpu")
    model.set_env("CartPole-v1")
    model.learn(32)


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


@pytest.mark.parametrize("kind", [ValueError, AssertionError])
def test_what_sb3_asserts_is_an_error_of_either_kind(kind: type[Exception]) -> None:
    """Pipelines that catch SB3's assertions catch these; with ``python -O`` there are none of SB3's."""
    with pytest.raises(kind, match="env must hold 1 environments"):
        small_model().set_env(make_env(n_envs=2))
    with pytest.raises(kind, match=r"action_space must be .* got MultiBinary"):
        small_model(env=make_env(action_space=spaces.MultiBinary((2, 3))))
    with pytest.raises(kind, match=r"n_steps \* n_envs must be at least 2"):
        small_model(n_steps=1)
