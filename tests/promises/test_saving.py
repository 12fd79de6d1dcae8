"""Saving and loading: everything comes back, training goes on as if nothing had happened, and nothing replaceable is kept."""

import copy
import io
import json
import pathlib
import random
import zipfile
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize, VecTransposeImage

from sb3_trpo import TRPO, MlpPolicy
from tests.small_models import DICT, DISCRETE, IMAGE, Case, RandomEnv, changed, make_env, policy_state, small_model


def saved_data(path: pathlib.Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        data: dict[str, Any] = json.loads(archive.read("data"))
    return data


@pytest.mark.parametrize("kind", ["str", "path", "without suffix", "bytes", "file"])
def test_model_is_saved_to_and_loaded_from(kind: str, tmp_path: pathlib.Path) -> None:
    """A path in any form, or an open file."""
    model = small_model().learn(64)
    path = tmp_path / "model.zip"
    if kind == "bytes":
        memory = io.BytesIO()
        model.save(memory)
        memory.seek(0)
        loaded = TRPO.load(memory, device="cpu")
    elif kind == "file":
        with open(path, "wb") as file:
            model.save(file)
        with open(path, "rb") as file:
            loaded = TRPO.load(file, device="cpu")
    else:
        target: Any = {"str": str(path), "path": path, "without suffix": tmp_path / "model"}[kind]
        model.save(target)
        assert path.exists()
        loaded = TRPO.load(target, device="cpu")
    assert not changed(policy_state(model), policy_state(loaded))
    assert (loaded.num_timesteps, loaded._n_updates) == (64, 1)


def test_load_keeps_every_argument_of_the_constructor(tmp_path: pathlib.Path) -> None:
    """What a model was built with is what it comes back with."""
    arguments: dict[str, Any] = {
        "learning_rate": 2e-3,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "cg_max_steps": 4,
        "cg_damping": 0.2,
        "line_search_shrinking_factor": 0.7,
        "line_search_max_iter": 5,
        "n_critic_updates": 3,
        "normalize_advantage": False,
        "target_kl": 0.02,
        "sub_sampling_factor": 2,
        "fast": False,
        "critic_gae_lambda": 0.95,
        "policy_kwargs": {"net_arch": [8], "activation_fn": th.nn.ELU},
        "use_sde": True,
        "sde_sample_freq": 4,
    }
    small_model(**arguments).save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    for name, value in arguments.items():
        found = {**vars(loaded), "policy_kwargs": {k: loaded.policy_kwargs[k] for k in arguments["policy_kwargs"]}}[name]
        assert found == value, name


def test_custom_objects_replace_what_cannot_be_read(tmp_path: pathlib.Path) -> None:
    """As for models from other versions of Python: what is given is not unpickled."""
    small_model(learning_rate=lambda remaining: 1e-3 * remaining).save(tmp_path / "model.zip")
    data = saved_data(tmp_path / "model.zip")
    for name in ("learning_rate", "lr_schedule"):
        data[name][":serialized:"] = "bm90IGEgcGlja2xl"  # not a pickle
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "spoiled.zip", "w") as archive:
        for name, content in (contents | {"data": json.dumps(data).encode()}).items():
            archive.writestr(name, content)
    objects = {"learning_rate": 5e-4, "lr_schedule": lambda _: 5e-4}
    loaded = TRPO.load(tmp_path / "spoiled", make_env(), device="cpu", custom_objects=objects)
    loaded.learn(64)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 5e-4


def test_zip_holds_what_contribs_holds_and_nothing_replaceable(tmp_path: pathlib.Path) -> None:
    """Its attributes are contrib's and our arguments: no report, cache, logger or environment. Weights need no pickle."""
    env = SubprocVecEnv([RandomEnv] * 2, "fork")
    model = small_model(env=env, tensorboard_log=str(tmp_path / "tensorboard")).learn(64)
    assert model.last_update is not None and model.paths_in_use
    model.save(tmp_path / "ours.zip")
    env.close()
    theirs = sb3_contrib.TRPO("MlpPolicy", make_env(), n_steps=64, batch_size=64, device="cpu")
    theirs.learn(64)
    theirs.save(tmp_path / "theirs.zip")
    assert saved_data(tmp_path / "ours.zip").keys() == saved_data(tmp_path / "theirs.zip").keys() | {
        "error_if_nonfinite",
        "fast",
        "std_damping",
        "critic_gae_lambda",
        "_random",
    }
    with zipfile.ZipFile(tmp_path / "ours.zip") as archive:
        for name in ("policy.pth", "policy.optimizer.pth"):
            assert th.load(io.BytesIO(archive.read(name)), weights_only=True)


def test_zip_does_not_grow_with_training(tmp_path: pathlib.Path) -> None:
    """Nothing piles up in a model: after more updates the zip has the size that it had."""
    model = small_model(stats_window_size=1)
    sizes = []
    for _ in range(3):
        model.learn(128, reset_num_timesteps=False)
        model.save(tmp_path / "model.zip")
        sizes.append((tmp_path / "model.zip").stat().st_size)
    assert max(sizes) - min(sizes) < 512


def test_model_with_an_open_logger_and_a_compiled_policy_is_saved(tmp_path: pathlib.Path) -> None:
    """Compiled, a policy trains by the plain paths and is saved by its own names (SB3 issue 2137)."""
    model = small_model()
    before = policy_state(model)
    policy = model.policy
    model.policy = th.compile(policy, backend="eager")  # type: ignore[assignment]
    model.set_logger(configure(str(tmp_path / "log"), ["csv", "json", "tensorboard"]))
    model.learn(128)
    assert set(model.paths_in_use.values()) == {"plain"}
    model.save(tmp_path / "model")
    model.logger.close()
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert type(loaded.policy) is MlpPolicy
    assert changed(before, policy_state(loaded)).issuperset(before)
    assert all(th.equal(tensor, policy.state_dict()[name]) for name, tensor in loaded.policy.state_dict().items())


def test_parameters_go_round() -> None:
    """What get_parameters gives, set_parameters takes, optimizer included; another model then learns the same."""
    model, other = small_model().learn(128), small_model(seed=9)
    other.set_parameters(copy.deepcopy(model.get_parameters()))
    assert not changed(policy_state(model), policy_state(other))
    model.set_env(make_env())
    for each in (model, other):
        each.set_random_seed(3)
        each.learn(64)
    assert not changed(policy_state(model), policy_state(other))


RandomState = tuple[Any, Any, th.Tensor]


def random_state() -> RandomState:
    return random.getstate(), np.random.get_state(), th.get_rng_state()


def set_random_state(state: RandomState) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    th.set_rng_state(state[2])


CONTINUED = {
    "box": Case(),
    "discrete, 2 envs": Case(action_space=DISCRETE, n_envs=2),
    "gSDE": Case(arguments={"use_sde": True, "sde_sample_freq": 4}),
    "image": Case("CnnPolicy", IMAGE, DISCRETE),
    "RMSprop": Case(arguments={"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}),
    "schedules": Case(arguments={"learning_rate": lambda remaining: 1e-3 * remaining, "target_kl": lambda r: 0.01 + 0.01 * r}),
}


def copied(env: VecEnv) -> VecEnv:
    """Return a copy of an environment, in the state that it is in. SB3's wrappers do not copy: they are put on again."""
    if isinstance(env, VecNormalize):
        normalize = copy.deepcopy(env)
        normalize.set_venv(copied(env.venv))
        normalize.returns = env.returns.copy()
        return normalize
    return copied(env.venv) if isinstance(env, VecTransposeImage) else copy.deepcopy(env)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("seed", [None, 1])
def test_seed_that_is_set_later_is_kept(seed: int | None, fast: bool, tmp_path: pathlib.Path) -> None:
    """``set_random_seed`` makes the numbers the model's own, whatever the process draws, and its zip holds where they are."""
    ends = []
    for saved in (False, True):
        th.manual_seed(0)
        model = small_model(seed=seed, fast=fast, policy_kwargs={"activation_fn": th.nn.Softsign})
        model.set_random_seed(2)
        model.learn(64)
        if saved:
            model.save(tmp_path / "model")
            model = TRPO.load(tmp_path / "model", make_env(), device="cpu")
            th.rand(3)
        else:
            model.set_env(make_env())
            model.env.seed(2)  # type: ignore[union-attr]
        model.learn(64, reset_num_timesteps=False)
        ends.append(policy_state(model))
        assert model.seed == 2
    assert not changed(*ends)


@pytest.mark.parametrize("name", [*CONTINUED, "normalized", pytest.param("dict", marks=pytest.mark.slow)])
def test_saved_model_goes_on_exactly_as_one_that_was_not(name: str, tmp_path: pathlib.Path) -> None:
    """With environment and random numbers where they were, weights and optimizer agree to the bit two updates later."""
    case = CONTINUED.get(name, Case("MultiInputPolicy", DICT) if name == "dict" else Case(n_envs=2))
    env: VecEnv = VecNormalize(case.env()) if name == "normalized" else case.env()
    model = small_model(TRPO, case.policy, env, **case.arguments)
    model.learn(128)
    model.save(tmp_path / "model")
    # In the middle of an episode
    assert model.env is not None and not np.all(model._last_episode_starts)
    world, state, last_observation = copied(model.env), random_state(), model._last_obs
    model.learn(128, reset_num_timesteps=False)

    loaded = TRPO.load(tmp_path / "model", world, device="cpu", force_reset=False)
    # The environment's own array: of an image that is laid out otherwise a convolution makes features that differ by rounding
    np.testing.assert_equal(loaded._last_obs, last_observation)
    loaded._last_obs = last_observation
    set_random_state(state)
    loaded.learn(128, reset_num_timesteps=False)
    assert not changed(policy_state(model), policy_state(loaded))
    assert str(model.policy.optimizer.state_dict()) == str(loaded.policy.optimizer.state_dict())
    assert (loaded.num_timesteps, loaded._n_updates) == (256, 4)


def test_training_goes_on_without_resetting_the_counters() -> None:
    """reset_num_timesteps=False counts on, keeps the episode under way and asks for so many more steps."""
    env = DummyVecEnv([lambda: RandomEnv(termination_probability=0.0, episode_length=10**6)])
    model = small_model(env=env).learn(64)
    inner = env.envs[0]
    assert isinstance(inner, RandomEnv) and inner.n_steps == 64
    model.learn(64, reset_num_timesteps=False)
    assert inner.n_steps == 128 and model.num_timesteps == 128
    model.learn(64)
    assert inner.n_steps == 64 and model.num_timesteps == 64


def test_model_loaded_without_an_environment_predicts() -> None:
    """And says what is missing when it is asked to learn."""
    memory = io.BytesIO()
    small_model().save(memory)
    loaded = TRPO.load(memory, device="cpu")
    assert loaded.get_env() is None
    loaded.predict(np.zeros(3, np.float32))
    with pytest.raises((AssertionError, ValueError)):
        loaded.learn(64)
