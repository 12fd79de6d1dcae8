"""What a user gets wrong is said clearly, with what was expected, and leaves model and file as they were."""

import io
import pathlib
import zipfile
from typing import Any

import pytest
import sb3_contrib
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC

from sb3_trpo import TRPO
from tests.small_models import BOX, DICT, DISCRETE, IMAGE, VECTOR, RandomEnv, changed, make_env, policy_state, small_model

OTHERS: dict[str, tuple[Any, str, spaces.Space, dict[str, Any]]] = {
    "PPO": (PPO, "MlpPolicy", BOX, {}),
    "A2C": (A2C, "MlpPolicy", BOX, {}),
    "DQN": (DQN, "MlpPolicy", DISCRETE, {"buffer_size": 10}),
    "SAC": (SAC, "MlpPolicy", BOX, {"buffer_size": 10}),
    "RecurrentPPO": (sb3_contrib.RecurrentPPO, "MlpLstmPolicy", BOX, {}),
    "MaskablePPO": (sb3_contrib.MaskablePPO, "MlpPolicy", DISCRETE, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_load_refuses_the_zip_of_another_algorithm(name: str, tmp_path: pathlib.Path) -> None:
    """The error says that it is one, and what was expected; the file stays as it was."""
    algorithm, policy, action_space, arguments = OTHERS[name]
    path = tmp_path / "other.zip"
    algorithm(policy, make_env(action_space=action_space), device="cpu", **arguments).save(path)
    written = path.read_bytes()
    with pytest.raises(ValueError, match=r"another algorithm, expected one saved by sb3_trpo\.TRPO") as refusal:
        TRPO.load(path, device="cpu")
    assert str(path) in str(refusal.value) and "cg_max_steps" in str(refusal.value)
    assert path.read_bytes() == written


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return the path of a saved model."""
    path = tmp_path / "model.zip"
    small_model().save(path)
    return path


def damaged(saved: pathlib.Path) -> dict[str, bytes]:
    """Return contents of files that are no models."""
    policy = io.BytesIO()
    small_model().policy.save(policy)  # type: ignore[arg-type]
    empty, garbled = io.BytesIO(), io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    with zipfile.ZipFile(garbled, "w") as archive:
        archive.writestr("data", "{")
    return {
        "text": b"a model",
        "nothing": b"",
        "half a zip": saved.read_bytes()[:-2000],
        "empty zip": empty.getvalue(),
        "garbled zip": garbled.getvalue(),
        "policy": policy.getvalue(),
    }


@pytest.mark.parametrize("name", ["text", "nothing", "half a zip", "empty zip", "garbled zip", "policy"])
def test_load_refuses_a_file_that_is_no_model(name: str, saved: pathlib.Path) -> None:
    """The error names the file and says what would be a model; the file stays as it was."""
    path = saved.parent / "file.zip"
    content = damaged(saved)[name]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no saved model.*expected a zip written by") as refusal:
        TRPO.load(path, device="cpu")
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="no saved model"):
        TRPO.load(io.BytesIO(content), device="cpu")


def test_load_of_a_file_that_is_not_there_says_so(tmp_path: pathlib.Path) -> None:
    """As everywhere in Python."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TRPO.load(tmp_path / "nowhere", device="cpu")


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
