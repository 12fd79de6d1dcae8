"""What RL Zoo gets from us: its notation of schedules, and hyperparameters in our units."""

from typing import Any

import pytest
import yaml

from benchmarks.settings import TUNED, constructor_arguments, load
from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo.zoo import HYPERPARAMETERS, linear_schedule

SETTINGS: dict[str, dict[str, Any]] = yaml.safe_load(HYPERPARAMETERS["trpo"].read_text(encoding="utf-8"))
WITH_MEMORY: dict[str, dict[str, Any]] = yaml.safe_load(HYPERPARAMETERS["trpo_lstm"].read_text(encoding="utf-8"))
# What RL Zoo keeps for itself
OF_THE_ZOO = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "frame_stack", "policy"}


@pytest.mark.parametrize("text, ends", [("lin_0.02", (0.02, 0.0)), ("lin_0.1_0.02", (0.1, 0.02)), ("lin_1e-3", (1e-3, 0.0))])
def test_notation_of_schedules(text: str, ends: tuple[float, float]) -> None:
    """The first number is where the schedule begins, the second, or zero, where it ends."""
    schedule = linear_schedule(text)
    assert (schedule(1.0), schedule(0.0)) == pytest.approx(ends) and schedule(0.5) == pytest.approx(sum(ends) / 2)
    assert linear_schedule(0.3) == 0.3


@pytest.mark.parametrize("text", ["lin", "lin_", "lin_a", "exp_0.5", "0.5", "lin_1_2_3", ""])
def test_notation_of_schedules_refuses(text: str) -> None:
    """Any other string is refused by an error that shows it and what was expected."""
    with pytest.raises(ValueError, match=r"lin_0\.02") as refusal:
        linear_schedule(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "default"])
def test_hyperparameters_are_ours(name: str) -> None:
    """Every entry is made of arguments that the constructor takes, in our units."""
    entry = {key: value for key, value in SETTINGS[name].items() if key not in OF_THE_ZOO}
    settings = constructor_arguments({**entry, "policy_kwargs": eval(entry.get("policy_kwargs", "{}"))})
    env = "Pendulum-v1" if settings.get("use_sde") or "std_damping" in settings else "CartPole-v1"
    model = TRPO("MlpPolicy", env, device="cpu", **settings)
    assert all(getattr(model, key) == value for key, value in settings.items() if key != "policy_kwargs")
    assert SETTINGS[name]["n_timesteps"] >= 5e4 and "policy" in SETTINGS[name]


@pytest.mark.parametrize("name", [name for name in WITH_MEMORY if name != "default"])
def test_hyperparameters_of_policies_with_a_memory_are_ours(name: str) -> None:
    """Every entry is made of arguments that the constructor takes, the policy's among them."""
    entry = load("trpo_lstm", TUNED, name).items()
    settings = constructor_arguments({key: value for key, value in entry if key not in OF_THE_ZOO})
    env = "Pendulum-v1" if settings.get("use_sde") else "CartPole-v1"
    model = RecurrentTRPO("MlpLstmPolicy", env, device="cpu", **settings)
    assert all(getattr(model, key) == value for key, value in settings.items() if key != "policy_kwargs")
    assert WITH_MEMORY[name]["n_timesteps"] >= 5e4 and "Lstm" in WITH_MEMORY[name]["policy"]


def test_hyperparameters_cover_the_tasks_without_velocities() -> None:
    """Those that RL Zoo makes."""
    from rl_zoo3.wrappers import MaskVelocityWrapper

    tasks = {name.replace("-v", "NoVel-v") for name in MaskVelocityWrapper.velocity_indices}
    assert tasks == WITH_MEMORY.keys() - {"default"}


def test_hyperparameters_cover_the_environments_of_the_field() -> None:
    """Classic control, Box2D, MuJoCo's fifth version and Atari, under the names that Gymnasium knows."""
    import gymnasium as gym

    names = SETTINGS.keys() - {"default", "atari"}
    assert all(name in gym.registry for name in names)
    mujoco = {"HalfCheetah", "Ant", "Hopper", "Walker2d", "Swimmer", "Humanoid", "Reacher"}
    assert {f"{name}-v5" for name in mujoco} | {"CartPole-v1", "Pendulum-v1", "LunarLander-v3", "BipedalWalker-v3"} <= names
    assert SETTINGS["atari"]["policy"] == "CnnPolicy"
