"""What each hyperparameter may be is said for every argument of the constructor, once."""

import inspect
from typing import get_args

import pytest
import sb3_contrib
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import Schedule

from sb3_trpo import TRPO
from sb3_trpo.guards.arguments import RULES, check_arguments
from sb3_trpo.hyperparameters import OF_EVERY_TRPO, SCHEDULES, TRPO_RULES
from tests.small_models import make_env, small_model

ARGUMENTS = {
    name: p for name, p in inspect.signature(TRPO.__init__).parameters.items() if name not in ("self", "policy", "env")
}
OTHERS = [PPO, A2C, DQN, DDPG, SAC, TD3, sb3_contrib.MaskablePPO, sb3_contrib.RecurrentPPO, sb3_contrib.ARS, sb3_contrib.TQC]


def test_rules_are_there_for_every_argument() -> None:
    """None is left out, and there is none for what is no argument; those of every algorithm are taken over as they are."""
    of_methods = {"custom_objects", "print_system_info", "force_reset"}
    assert TRPO_RULES.keys() - of_methods == ARGUMENTS.keys()
    assert all(TRPO_RULES[name] is rule for name, rule in RULES.items())


def test_rules_let_the_defaults_through() -> None:
    """What a user gets who says nothing is never refused."""
    check_arguments(TRPO_RULES, {name: parameter.default for name, parameter in ARGUMENTS.items()})


def test_schedules_are_the_arguments_that_say_so() -> None:
    """Where the signature takes a schedule the rule does, and nowhere else."""
    assert SCHEDULES == [name for name, parameter in ARGUMENTS.items() if Schedule in get_args(parameter.annotation)]


@pytest.mark.parametrize("model", [small_model, lambda: sb3_contrib.TRPO("MlpPolicy", make_env())], ids=["ours", "contrib"])
def test_every_trpo_has_what_tells_it_from_others(model: type) -> None:
    """Ours and sb3-contrib's: their zips are known by it."""
    assert vars(model()).keys() >= OF_EVERY_TRPO


@pytest.mark.parametrize("algorithm", OTHERS, ids=lambda algorithm: algorithm.__name__)
def test_no_other_algorithm_has_what_tells_a_trpo(algorithm: type[BaseAlgorithm]) -> None:
    """Else its zip would be opened as one."""
    assert not inspect.signature(algorithm).parameters.keys() & OF_EVERY_TRPO
