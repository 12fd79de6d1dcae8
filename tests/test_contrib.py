"""Coming from sb3-contrib: its numbers in our units, its zips in our hands."""

import pathlib
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo import TRPO, kl_old_new
from sb3_trpo.contrib import from_contrib, n_averaged_dimensions, to_contrib
from tests.cases import ACTION_SPACES, PolicyCase, shake
from tests.small_models import BOX, DICT, DISCRETE, IMAGE, MULTI_BINARY, MULTI_DISCRETE, Case, changed, make_env, policy_state

FACTORS = [
    (BOX, 3),
    (spaces.Box(-1.0, 1.0, (17,)), 17),
    (spaces.Box(-1.0, 1.0, (2, 2)), 4),
    (MULTI_BINARY, 3),
    (DISCRETE, 1),
    (MULTI_DISCRETE, 1),
]


@pytest.mark.parametrize("action_space, factor", FACTORS, ids=str)
def test_units_of_contrib_are_converted_for_an_action_space(action_space: spaces.Space, factor: int) -> None:
    """Limit and damping are multiplied with what contrib averages over, everything else is passed on."""
    given = {"target_kl": 0.02, "cg_damping": 0.05, "n_steps": 512, "seed": 3}
    ours = from_contrib(given, action_space)
    assert ours == pytest.approx(given | {"target_kl": factor * 0.02, "cg_damping": factor * 0.05})
    assert to_contrib(ours, action_space) == pytest.approx(given)
    assert given["target_kl"] == 0.02
    assert n_averaged_dimensions(action_space) == factor


def test_defaults_are_converted_too() -> None:
    """What is not given is contrib's default, in our units: the same numbers would mean another trust region."""
    assert from_contrib({}, BOX) == pytest.approx({"target_kl": 0.03, "cg_damping": 0.3})
    assert from_contrib({"target_kl": 0.02}, BOX) == pytest.approx({"target_kl": 0.06, "cg_damping": 0.3})
    assert from_contrib({"cg_damping": 0.1}, BOX)["cg_damping"] == 0.3 == from_contrib({}, BOX)["cg_damping"]  # as it is read
    assert to_contrib({}, BOX) == pytest.approx({"target_kl": 0.01, "cg_damping": 0.1})


def test_schedules_are_converted(tmp_path: pathlib.Path) -> None:
    """A converted schedule is the schedule times the factor, trains, and survives the zip."""
    arguments = from_contrib({"target_kl": LinearSchedule(0.02, 0.01, 1.0), "cg_damping": lambda remaining: remaining}, BOX)
    assert [arguments["target_kl"](remaining) for remaining in (1.0, 0.5, 0.0)] == pytest.approx([0.06, 0.045, 0.03])
    assert arguments["cg_damping"](0.5) == 1.5
    model = Case().model(**arguments).learn(64)
    assert model.last_update is not None and model.last_update.max_kl == pytest.approx(0.03)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert callable(loaded.target_kl) and loaded.target_kl(0.5) == pytest.approx(0.045)
    assert "LinearSchedule" in repr(loaded.target_kl)


@pytest.mark.parametrize("bad", [{"target_kl": -0.01}, {"cg_damping": "lin_0.1"}, {"gamma": 2.0}], ids=str)
def test_arguments_that_cannot_work_are_not_converted(bad: dict[str, Any]) -> None:
    """The error names the argument."""
    with pytest.raises((TypeError, ValueError), match=next(iter(bad))):
        from_contrib(bad, BOX)
    with pytest.raises(ValueError, match="action_space"):
        from_contrib({}, spaces.Dict({"a": BOX}))


def test_factor_is_that_between_the_means_of_both_libraries(case: PolicyCase) -> None:
    """Contrib's mean KL of two policies, as its line search takes it, times the factor is ours."""
    old = case.frozen_distribution()
    shake(case.parameters, scale=0.2, seed=9)
    new = case.frozen_distribution()
    theirs = kl_divergence(new, old).mean()
    ours = kl_old_new(new, old).mean()
    th.testing.assert_close(ours, n_averaged_dimensions(ACTION_SPACES[case.name]) * theirs)


GSDE = {"use_sde": True}
ZIPS = {
    "box": Case(),
    "box-2": Case(n_envs=2),
    "gsde": Case(arguments=GSDE),
    "multi_binary": Case(action_space=MULTI_BINARY),
    "discrete": Case(action_space=DISCRETE),
    "multi_discrete": Case(action_space=MULTI_DISCRETE),
    "image": Case("CnnPolicy", IMAGE),
    "dict": Case("MultiInputPolicy", DICT, DISCRETE),
}


def contrib_zip(case: Case, path: pathlib.Path, **arguments: Any) -> sb3_contrib.TRPO:
    """Train contrib's TRPO for an update and save it."""
    n_steps = 64 // case.n_envs
    defaults: dict[str, Any] = {"n_steps": n_steps, "batch_size": 64, "n_critic_updates": 1, "seed": 0, "device": "cpu"}
    model = sb3_contrib.TRPO(case.policy, case.env(), **(defaults | arguments | case.arguments))
    model.learn(64)
    model.save(path)
    return model


@pytest.mark.parametrize("case", ZIPS.values(), ids=ZIPS)
def test_zip_of_contrib_opens_in_our_units(case: Case, tmp_path: pathlib.Path) -> None:
    """The same actions and values, the same sharing of features; limit and damping converted, which is said once."""
    path = tmp_path / "contrib.zip"
    theirs = contrib_zip(case, path, target_kl=0.02, cg_damping=0.05)
    written = path.read_bytes()
    factor = n_averaged_dimensions(case.action_space)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = TRPO.load(path, case.env(), device="cpu")
    said = [warning for warning in caught if "sb3_contrib" in str(warning.message)]
    if factor == 1:
        assert said == []
    else:
        (warning,) = said
        assert issubclass(warning.category, UserWarning) and warning.filename == __file__
        for part in ("target_kl=0.02", f"{factor * 0.02:g}", "cg_damping=0.05", f"{factor * 0.05:g}", str(factor)):
            assert part in str(warning.message)
    assert (ours.target_kl, ours.cg_damping) == pytest.approx((factor * 0.02, factor * 0.05))

    assert not changed(policy_state_of(theirs), policy_state(ours))
    assert ours.policy.share_features_extractor is theirs.policy.share_features_extractor is True
    observations: Any = case.env().reset()
    np.testing.assert_array_equal(
        ours.predict(observations, deterministic=True)[0], theirs.predict(observations, deterministic=True)[0]
    )
    ours.learn(64, reset_num_timesteps=False)
    assert ours.num_timesteps == 128 and ours.last_update is not None
    assert ours.last_update.max_kl == pytest.approx(factor * 0.02)
    assert path.read_bytes() == written

    ours.save(tmp_path / "ours")
    again = TRPO.load(tmp_path / "ours", device="cpu")
    assert (again.target_kl, again.cg_damping) == (ours.target_kl, ours.cg_damping)


def policy_state_of(model: Any) -> dict[str, th.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.policy.state_dict().items()}


def test_what_load_is_given_is_in_our_units_already(tmp_path: pathlib.Path) -> None:
    """Keywords and custom objects are taken as they are, and with both of them given there is nothing to say."""
    contrib_zip(Case(), tmp_path / "contrib.zip")
    with pytest.warns(UserWarning, match="cg_damping=0.1 is 0.3 here"):
        model = TRPO.load(tmp_path / "contrib.zip", make_env(n_envs=4), device="cpu", target_kl=0.02, n_steps=16)
    assert (model.target_kl, model.n_envs, model.n_steps) == (0.02, 4, 16)
    model = TRPO.load(tmp_path / "contrib.zip", device="cpu", cg_damping=0.2, custom_objects={"target_kl": 0.04})
    assert (model.target_kl, model.cg_damping) == (0.04, 0.2)


def test_zip_of_contrib_opens_from_a_file_object(tmp_path: pathlib.Path) -> None:
    """An open file is read as well, and left open."""
    contrib_zip(Case(), tmp_path / "contrib.zip")
    with open(tmp_path / "contrib.zip", "rb") as file:
        with pytest.warns(UserWarning, match="sb3_contrib"):
            model = TRPO.load(file, device="cpu")
        assert model.target_kl == pytest.approx(0.03) and not file.closed


def test_zip_of_contrib_with_settings_that_cannot_work_is_refused(tmp_path: pathlib.Path) -> None:
    """Contrib accepts a limit of zero and saves it; here the error names it."""
    contrib_zip(Case(), tmp_path / "contrib.zip", target_kl=0.0)
    with pytest.raises(ValueError, match=r"target_kl.*0\.0"):
        TRPO.load(tmp_path / "contrib.zip", device="cpu")


def test_zip_of_contrib_opens_where_contrib_is_not_installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package does not need sb3-contrib to read what it wrote."""
    contrib_zip(Case(), tmp_path / "contrib.zip")
    for name in [name for name in sys.modules if name.split(".")[0] == "sb3_contrib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import sb3_contrib.trpo  # noqa: F401
    with pytest.warns(UserWarning, match="sb3_contrib"):
        assert TRPO.load(tmp_path / "contrib.zip", device="cpu").target_kl == pytest.approx(0.03)


def test_parameters_of_contrib_are_taken_into_a_model(tmp_path: pathlib.Path) -> None:
    """set_parameters takes the weights of a contrib zip, or of a model, and leaves the settings as they are."""
    theirs = contrib_zip(Case(), tmp_path / "contrib.zip")
    model = Case().model(target_kl=0.07)
    model.set_parameters(str(tmp_path / "contrib.zip"), device="cpu")
    assert not changed(policy_state_of(theirs), policy_state(model)) and model.target_kl == 0.07
    other = Case().model(seed=8)
    other.set_parameters(theirs.get_parameters())
    assert not changed(policy_state_of(theirs), policy_state(other))
