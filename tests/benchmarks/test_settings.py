"""The settings are what they are said to be: RL Zoo's, one for MuJoCo, a design that tells effects apart."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.env_util import make_vec_env

from benchmarks import settings, train
from benchmarks.results import known_arguments
from sb3_trpo import TRPO

# Where RL Zoo plans for more steps than there are here
SHORTER = {("ppo", "Humanoid-v5"): 2_000_000, ("ppo", "PongNoFrameskip-v4"): 400_000}


@pytest.mark.skipif(importlib.util.find_spec("rl_zoo3") is None, reason="RL Zoo is not installed")
@pytest.mark.parametrize(("algorithm", "file"), [("contrib", "trpo"), ("ppo", "ppo")])
def test_settings_of_the_others_are_rl_zoos(algorithm: str, file: str) -> None:
    """Every hyperparameter of every task is the one in RL Zoo's file, but for the length of PPO's Humanoid and Pong."""
    spec = importlib.util.find_spec("rl_zoo3")
    assert spec is not None and spec.origin is not None
    zoo = yaml.safe_load((Path(spec.origin).parent / "hyperparams" / f"{file}.yml").read_text())
    for env_id in settings.environments(["mujoco", "classic", "box2d", "atari"]):
        theirs = zoo.get("atari" if env_id in settings.GROUPS["atari"] else env_id.replace("-v5", "-v4"))
        if theirs is None:
            assert (algorithm, env_id) == ("contrib", "PongNoFrameskip-v4")
            continue
        ours = settings.load(algorithm, "tuned", env_id)
        if (algorithm, env_id) in SHORTER:
            assert ours.pop("n_timesteps") == SHORTER[algorithm, env_id] < theirs.pop("n_timesteps")
        if "policy_kwargs" in theirs:
            theirs["policy_kwargs"] = eval(theirs["policy_kwargs"], {"dict": dict, "nn": th.nn})
            ours["policy_kwargs"] = settings.constructor_arguments(ours)["policy_kwargs"]
        assert ours == theirs, env_id


def test_settings_of_ours_are_one_for_mujoco() -> None:
    """Robots share one setting, but for a discount and Humanoid's steps; two have their own. All were tried by name."""
    tried = {"HalfCheetah-v5": "gamma-98", "Hopper-v5": "hopper-plain-995", "Swimmer-v5": "swimmer-long-rollouts"}
    tried |= {"Humanoid-v5": "humanoid-2M"}
    for env_id in settings.GROUPS["mujoco"]:
        tuned, other = (settings.load("trpo", name, env_id) for name in ("tuned", tried.get(env_id, "first-round")))
        assert settings.with_defaults(TRPO, tuned) == settings.with_defaults(TRPO, other)


DESIGN = next(iter(settings.design().values()))


@pytest.mark.parametrize("setting", ["start", *DESIGN])
def test_settings_by_name_build_a_model(setting: str) -> None:
    """No name is misspelt and no value out of range; of what was given up the error says where its code is."""
    hyperparameters = settings.load("trpo", setting, "Pendulum-v1")
    if "prototype" in hyperparameters:
        assert settings.design()["value targets normalized"][setting]
        with pytest.raises(ValueError, match=r"given up: benchmarks/README\.md says where"):
            train.make_model("trpo", hyperparameters, env=make_vec_env("Pendulum-v1"))
        return
    assert isinstance(train.make_model("trpo", hyperparameters, env=make_vec_env("Pendulum-v1")), TRPO)


def test_settings_are_of_code_that_there_is() -> None:
    """What was tried with code of its own and given up is on record, and in the design of the screening, and nowhere else."""
    written = settings.FOLDER / "ablations.yml"
    assert "prototype" not in written.read_text(encoding="utf-8")
    given_up = {run.setting for run in known_arguments()} - settings.names()
    assert {"third-past-1", "ninth-schedule", "tenth-limit-ends"} <= given_up


def test_settings_take_overrides_also_into_nested_ones() -> None:
    """The file's own values stay as they are."""
    changes = train.parse_overrides(["gamma=0.9", "policy_kwargs.log_std_init=-1.5", "learning_rate=lin_0.002"])
    changed = settings.load("trpo", "tuned", "Ant-v5", changes)
    assert (changed["gamma"], changed["policy_kwargs"]["log_std_init"]) == (0.9, -1.5)
    assert settings.load("trpo", "tuned", "Ant-v5")["policy_kwargs"]["log_std_init"] != -1.5
    schedule = settings.constructor_arguments(changed)["learning_rate"]
    assert [schedule(progress) for progress in (1.0, 0.5, 0.0)] == [0.002, 0.001, 0.0]


def test_settings_name_what_is_unknown() -> None:
    """A wrong name is answered with the right ones."""
    with pytest.raises(KeyError, match=r"ablations.yml has no entry 'strat', expected one of .*'start'"):
        settings.load("trpo", "strat", "Ant-v5")


def test_design_is_orthogonal_and_starts_from_screen() -> None:
    """Each change is made by half of the settings, any two of them together by a quarter; one of them changes what it says."""
    signs = np.array([list(made.values()) for made in settings.design().values()]) * 2 - 1
    np.testing.assert_array_equal(signs @ signs.T, 12 * np.eye(11))
    screen = settings.load("trpo", "screen", "Ant-v5")
    for number in range(1, 12):
        name = f"design-{number:02d}"
        changed = settings.load("trpo", name, "Ant-v5")
        makes = {change.split(" ")[0] for change, made in settings.design().items() if made[name]}
        assert (changed["target_kl"] != screen["target_kl"]) == ("KL" in makes)
        assert (changed["gae_lambda"] != screen["gae_lambda"]) == ("GAE" in makes)
        assert ("prototype" in changed) == ("value" in makes)


@pytest.mark.parametrize("env_id", settings.GROUPS["no-velocities"])
def test_policies_with_a_memory_are_compared_over_the_same_steps(env_id: str) -> None:
    """Ours by our file, RecurrentPPO by that of RL Zoo, which knows LunarLander by the name it had."""
    ours, others = (settings.load(algorithm, "tuned", env_id) for algorithm in ("trpo_lstm", "ppo_lstm"))
    assert ours["n_timesteps"] == others["n_timesteps"] == (500_000 if env_id.startswith("Lunar") else 100_000)
    built = settings.constructor_arguments(others)
    assert built["policy"] == "MlpLstmPolicy" and built["policy_kwargs"]["activation_fn"] is th.nn.ReLU
