"""
The hyperparameters of every run, as data in RL Zoo's format: environment id -> hyperparameters.

``contrib.yml`` and ``ppo.yml`` hold the setting ``tuned`` of these; ours are the files that the package ships for RL Zoo, and
those of RecurrentPPO (``ppo_lstm``) are RL Zoo's own.
``ablations.yml`` holds further settings of ours by name, each for every environment; ``design.yml`` holds what the settings
``design-01`` to ``design-11`` are made of; ``scores.yml`` is the scale on which tasks are averaged.
"""

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import rl_zoo3
import torch as th
import yaml

from sb3_trpo.hyperparameters import SCHEDULES as OF_TRPO
from sb3_trpo.zoo import HYPERPARAMETERS, linear_schedule

FOLDER = Path(__file__).parent
# Files that are read as RL Zoo reads them
OF_RL_ZOO = {**HYPERPARAMETERS, "ppo_lstm": Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo_lstm.yml"}
TUNED = "tuned"
# What shipped when it was held against the other algorithms, and does not ship any more
SHIPPED_BEFORE = ("first-round", "swimmer", "tuned-1M", "second-round")
# What may be a schedule: PPO's clip_range too
SCHEDULES = {*OF_TRPO, "clip_range"}

GROUPS = {
    "mujoco": ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5", "Humanoid-v5"),
    "classic": ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"),
    "box2d": ("LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3"),
    "more-mujoco": ("InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Pusher-v5", "HumanoidStandup-v5"),
    "atari": ("PongNoFrameskip-v4",),
    "no-velocities": ("CartPoleNoVel-v1", "PendulumNoVel-v1", "LunarLanderNoVel-v3"),
    "more-no-velocities": ("MountainCarNoVel-v0", "MountainCarContinuousNoVel-v0", "LunarLanderContinuousNoVel-v3"),
}
# Where the comparison has another number than the file for RL Zoo
STEPS = {"LunarLanderNoVel-v3": 500_000, "PongNoFrameskip-v4": 400_000}


def environments(names: list[str]) -> list[str]:
    """Return environment ids, with the names of groups replaced by what is in them."""
    return [env_id for name in names for env_id in GROUPS.get(name, (name,))]


@cache
def _read(name: str) -> dict[str, dict[str, Any]]:
    """Return what is in a file, not to be written to. A sweep asks for hundreds of entries, and parsing is slow."""
    path = OF_RL_ZOO.get(name, FOLDER / f"{name}.yml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _of_rl_zoo(entry: dict[str, Any], env_id: str) -> dict[str, Any]:
    """Return an entry of a file for RL Zoo as data, with the number of steps of the comparison."""
    entry["n_timesteps"] = STEPS.get(env_id, int(entry["n_timesteps"]))
    if "policy_kwargs" in entry:
        # Python, as RL Zoo has it
        entry["policy_kwargs"] = eval(entry["policy_kwargs"], {"dict": dict, "nn": th.nn})
        if "activation_fn" in entry["policy_kwargs"]:
            entry["policy_kwargs"]["activation_fn"] = entry["policy_kwargs"]["activation_fn"].__name__
    return entry


def scale() -> dict[str, tuple[float, float]]:
    """Return for each environment id the returns that score 0 and 1."""
    return {env_id: (ends["zero"], ends["one"]) for env_id, ends in _read("scores").items()}


def design() -> dict[str, dict[str, bool]]:
    """
    Return for each change in ``design.yml`` which settings make it: name of the setting -> whether it does.

    Plackett & Burman 1946, *The design of optimum multifactorial experiments*: the eleven shifts of one row, and ``screen``
    without any change. Of the twelve, three make any two of the changes together, three each alone, and three neither.
    """
    row = [sign == "+" for sign in "++-+++---+-"]
    numbers = range(1, len(row) + 1)
    return {
        change: {f"design-{number:02d}": row[(index + number) % len(row)] for number in numbers} | {"screen": False}
        for index, change in enumerate(_read("design"))
    }


def names() -> set[str]:
    """Return the name of every setting."""
    return {TUNED, *_read("ablations"), *next(iter(design().values()))}


def load(algorithm: str, setting: str, env_id: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """
    Return the hyperparameters of a run, as they are written down.

    :param algorithm: key of ``benchmarks.train.ALGORITHMS``
    :param setting: ``tuned``, or one of ours: a name in ``ablations.yml``, or ``design-01`` to ``design-11``
    :param env_id: environment id
    :param overrides: values by name, with a dot into a nested one (``policy_kwargs.log_std_init``)
    :raises KeyError: if there is no such setting
    """
    if setting.startswith("design-"):
        made = [_read("design")[change] for change, settings in design().items() if settings[setting]]
        changes = {name: value for change in made for name, value in change.items()}
        return load(algorithm, "screen", env_id, {**changes, **(overrides or {})})
    entry = "atari" if env_id in GROUPS["atari"] else env_id  # one for every game
    file, key = (algorithm, entry) if setting == TUNED else ("ablations", setting)
    entries = _read(file)
    if file == "ppo_lstm":
        entries = {name.replace("LanderNoVel-v2", "LanderNoVel-v3"): entry for name, entry in entries.items()}
    if key not in entries:
        raise KeyError(f"{file}.yml has no entry {key!r}, expected one of {sorted(entries)}")
    hyperparameters = deepcopy(entries[key])
    if file in OF_RL_ZOO:
        hyperparameters = _of_rl_zoo(hyperparameters, env_id)
    for name, value in (overrides or {}).items():
        *parents, last = name.split(".")
        target = hyperparameters
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return hyperparameters


def with_defaults(algorithm: Callable[..., Any], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return hyperparameters with those that are not written down: the numbers and flags that the algorithm takes by default.

    :param algorithm: its class
    :param hyperparameters: as :func:`load` returns them
    """
    parameters = inspect.signature(algorithm).parameters.items()
    defaults = {name: parameter.default for name, parameter in parameters if isinstance(parameter.default, int | float)}
    # No part of what is learned
    for name in ("verbose", "stats_window_size", "fast", "_init_setup_model"):
        defaults.pop(name, None)
    return {**defaults, **hyperparameters}


def constructor_arguments(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return what the constructor of the algorithm takes, built from what is written down.

    :param hyperparameters: as :func:`load` returns them
    :return: without those that are about the environments and the length of the run
    """
    arguments = {name: linear_schedule(value) if name in SCHEDULES else value for name, value in hyperparameters.items()}
    for name in ("n_timesteps", "n_envs", "normalize", "env_wrapper", "frame_stack"):
        arguments.pop(name, None)
    policy_kwargs = dict(arguments.pop("policy_kwargs", {}))
    if "activation_fn" in policy_kwargs:
        policy_kwargs["activation_fn"] = getattr(th.nn, policy_kwargs["activation_fn"])
    return {**arguments, "policy_kwargs": policy_kwargs}
