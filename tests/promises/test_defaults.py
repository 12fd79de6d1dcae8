"""Whoever changes the import line and nothing else gets the trust region that sb3-contrib's default means."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.policies import ActorCriticPolicy

import sb3_trpo
from sb3_trpo import TRPO
from sb3_trpo.contrib import from_contrib, to_contrib
from sb3_trpo.hyperparameters import PER_DIMENSION, default_of
from tests.small_models import make_env

# contrib's quick start, with an environment in place of a Pendulum
QUICK_START = """
from sb3_contrib import TRPO

model = TRPO("MlpPolicy", env, verbose=0)
model.learn(total_timesteps=2048, log_interval=4)
model.save(file)
del model
model = TRPO.load(file)
"""

SPACES: dict[str, tuple[spaces.Space, int]] = {
    "one dimension": (spaces.Box(-1.0, 1.0, (1,)), 1),
    "six dimensions": (spaces.Box(-1.0, 1.0, (6,)), 6),
    "seventeen dimensions": (spaces.Box(-1.0, 1.0, (17,)), 17),
    "two by three": (spaces.Box(-1.0, 1.0, (2, 3)), 6),
    "binary": (spaces.MultiBinary(5), 5),
    "discrete": (spaces.Discrete(7), 1),
    "several discrete": (spaces.MultiDiscrete([3, 2, 4]), 1),
}


def quick_start(package: str, space: spaces.Space, *, learns: bool) -> Any:
    variables: dict[str, Any] = {"env": make_env(action_space=space), "file": io.BytesIO()}
    lines = [line for line in QUICK_START.splitlines() if learns or ".learn(" not in line]
    exec("\n".join(lines).replace("sb3_contrib", package), variables)
    return variables["model"]


@pytest.mark.parametrize("name", SPACES)
def test_quick_start_of_contrib_has_the_same_limit_here(name: str) -> None:
    """Limit and damping are contrib's, times the dimensions that it averages over, as numbers, also after load; one learns."""
    space, n_dimensions = SPACES[name]
    theirs, ours = (quick_start(package, space, learns=name == "two by three") for package in ("sb3_contrib", "sb3_trpo"))
    assert type(theirs) is sb3_contrib.TRPO and type(ours) is sb3_trpo.TRPO
    for argument in PER_DIMENSION:
        assert type(getattr(ours, argument)) is float
        assert getattr(ours, argument) == pytest.approx(n_dimensions * getattr(theirs, argument), rel=1e-12)


@pytest.mark.parametrize("name", SPACES)
def test_default_is_what_contribs_defaults_are_converted_to(name: str) -> None:
    """Both ways, with the arguments left out and with ``None``."""
    space, n_dimensions = SPACES[name]
    cases: list[dict[str, Any]] = [{}, dict.fromkeys(PER_DIMENSION)]
    for nothing in cases:
        assert from_contrib(nothing, space) == pytest.approx({k: n_dimensions * v for k, v in PER_DIMENSION.items()})
        assert to_contrib(nothing, space) == pytest.approx(PER_DIMENSION)
        model = TRPO("MlpPolicy", make_env(action_space=space), device="cpu", **nothing)
        assert {k: getattr(model, k) for k in PER_DIMENSION} == pytest.approx(from_contrib(nothing, space))


def test_default_reads_as_a_person_would_write_it() -> None:
    """Not 0.6000000000000001."""
    for n_dimensions in range(1, 100):
        space = spaces.Box(-1.0, 1.0, (n_dimensions,))
        defaults = {name: default_of(name, space) for name in PER_DIMENSION}
        assert max(len(repr(default)) for default in defaults.values()) <= 4
        assert from_contrib({}, space) == defaults and to_contrib({}, space) == PER_DIMENSION


def test_limit_by_default_is_kept_and_logged_and_saved() -> None:
    """The measured KL uses it, the log has it, and the zip holds a number, which another space's default is not taken for."""

    class Writer(KVWriter):
        limits: list[float]

        def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
            self.limits.append(key_values.get("train/kl_limit", 0.06))

        def close(self) -> None: ...

    writer = Writer()
    writer.limits = []
    model = TRPO("MlpPolicy", make_env(action_space=SPACES["six dimensions"][0]), n_steps=256, seed=0, device="cpu")
    model.set_logger(Logger(None, [writer]))
    model.learn(768)
    assert len(writer.limits) == 4 and writer.limits == pytest.approx([0.06] * 4)
    assert model.last_update is not None and 0.03 < model.last_update.step.mean_kl <= 0.06
    file = io.BytesIO()
    model.save(file)
    assert TRPO.load(file).target_kl == model.target_kl
    assert TRPO.load(file, target_kl=0.02).target_kl == 0.02
    assert TRPO.load(file, target_kl=None).target_kl == pytest.approx(0.06)


def test_number_that_is_given_means_the_whole_action() -> None:
    """Whatever the space."""
    for space, _ in SPACES.values():
        model = TRPO("MlpPolicy", make_env(action_space=space), target_kl=0.01, cg_damping=0.1, device="cpu")
        assert (model.target_kl, model.cg_damping) == (0.01, 0.1)


def test_default_in_force_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """With ``verbose=1``, and only where it was left out."""
    space = SPACES["six dimensions"][0]
    TRPO("MlpPolicy", make_env(action_space=space), verbose=1, cg_damping=0.3, device="cpu")
    said = capsys.readouterr().out
    assert "target_kl=0.06" in said and "cg_damping" not in said
    TRPO("MlpPolicy", make_env(action_space=space), device="cpu")
    assert not capsys.readouterr().out


def test_model_that_is_built_later_knows_its_default_then() -> None:
    model = TRPO("MlpPolicy", make_env(), device="cpu", _init_setup_model=False)
    assert model.target_kl is None
    model._setup_model()
    assert model.target_kl == pytest.approx(0.03)


def test_default_depends_on_nothing_but_the_action_space() -> None:
    """Not on bounds, observations or the policy."""
    wide = spaces.Box(-np.arange(1, 7, dtype=np.float32), np.arange(1, 7, dtype=np.float32))
    for arguments in ({}, {"use_sde": True}, {"policy_kwargs": {"activation_fn": th.nn.ReLU}}):
        assert TRPO("MlpPolicy", make_env(action_space=wide), device="cpu", **arguments).target_kl == pytest.approx(0.06)


def test_standard_deviation_is_damped_only_where_somebody_asks(tmp_path: Path) -> None:
    """Left out with ``cg_damping``, it is 0 for a Gaussian and nothing for what has none of its own, also after load."""
    box = make_env(action_space=SPACES["six dimensions"][0])
    cases: list[tuple[Any, dict[str, Any], float | None]] = [
        (box, {}, 0.0),
        (box, {"target_kl": 0.02}, 0.0),
        (box, {"std_damping": 4.0}, 4.0),
        (box, {"cg_damping": 0.6}, None),  # sb3-contrib's direction, as converted
        (box, {"cg_damping": 0.6, "std_damping": 0.0}, 0.0),
        (box, {"use_sde": True}, None),
        *((make_env(action_space=SPACES[name][0]), {}, None) for name in ("binary", "discrete", "several discrete")),
    ]
    for env, arguments, expected in cases:
        model = TRPO("MlpPolicy", env, device="cpu", **arguments)
        assert model.std_damping == expected, arguments
        model.save(tmp_path / "model")
        assert TRPO.load(tmp_path / "model", device="cpu").std_damping == expected, arguments
        # What is in force is what was decided when the model was built
        assert TRPO.load(tmp_path / "model", device="cpu", cg_damping=1.0).std_damping == expected, arguments


def test_zip_of_contrib_goes_on_in_contribs_direction(tmp_path: Path) -> None:
    """Its damping is that of everything, as it was."""
    sb3_contrib.TRPO("MlpPolicy", make_env(action_space=SPACES["six dimensions"][0]), device="cpu").save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"cg_damping=0\.1 is 0\.6 here"):
        model = TRPO.load(tmp_path / "model", device="cpu")
    assert model.cg_damping == pytest.approx(0.6) and model.std_damping is None


def test_default_of_the_standard_deviation_goes_with_another_policy() -> None:
    """A policy without one takes the place of the first: nobody has asked for anything that it lacks."""

    class Wide(ActorCriticPolicy):
        """The layer gives means and logarithms of standard deviations."""

        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            del self.log_std
            self.action_net = th.nn.Linear(self.mlp_extractor.latent_dim_pi, 2 * spaces.flatdim(self.action_space))

        def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
            means, log_std = self.action_net(latent_pi).chunk(2, dim=-1)
            return self.action_dist.proba_distribution(means, log_std)

    env = make_env()
    model = TRPO("MlpPolicy", env, n_steps=64, device="cpu")
    assert model.std_damping == 0.0
    model.policy = TRPO(Wide, env, n_steps=64, device="cpu").policy
    model.learn(64)
    assert model.last_update is not None and model.last_update.step.accepted
