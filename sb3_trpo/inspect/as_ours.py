"""The rollout and the policy of any on-policy algorithm of SB3, seen as those of one of ours."""

import inspect
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_trpo.hyperparameters import OF_EVERY_TRPO, PER_DIMENSION, defaults_by_model, n_averaged_dimensions
from sb3_trpo.inspect.run_files import OF_ADVANTAGE, OF_RETURN
from sb3_trpo.randomness import RandomNumbers
from sb3_trpo.trpo import TRPO

# PPO's default. What an algorithm without a clip does to the ratios is counted by the same measure
CLIP_RANGE = 0.2


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Give the generators of the process back as they were: a policy or buffer of the user's own may draw when it is asked."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with th.random.fork_rng(devices=range(th.cuda.device_count()) if th.cuda.is_initialized() else []):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _kind(model: OnPolicyAlgorithm) -> type[TRPO]:
    """Return which of our algorithms reads a model's rollout: that for its kind of policy."""
    if isinstance(model, TRPO):
        return type(model)
    if "sb3_contrib" in sys.modules:
        from sb3_trpo.maskable import MaskableTRPO
        from sb3_trpo.recurrent import RecurrentTRPO

        for kind in (MaskableTRPO, RecurrentTRPO):
            if isinstance(model.policy, kind.policy_base):
                return kind
    return TRPO


def is_a_trpo(model: OnPolicyAlgorithm) -> bool:
    """Whether a model has a trust region: ours, sb3-contrib's, and what is made of them."""
    return all(hasattr(model, name) for name in (*OF_EVERY_TRPO, "target_kl"))


def limit_of(model: OnPolicyAlgorithm) -> float:
    """Return the limit δ on the mean KL that a model keeps, in nats for the whole action; NaN where it keeps none."""
    if isinstance(model, TRPO):
        return model._now("target_kl")
    if not is_a_trpo(model):
        return float("nan")
    # sb3-contrib averages over the dimensions of an action
    return n_averaged_dimensions(model.action_space) * float(vars(model)["target_kl"])


def name_of(model: OnPolicyAlgorithm) -> str:
    """Return what to call an algorithm: its class, and sb3-contrib's TRPO by its full name."""
    kind = type(model)
    return "sb3_contrib.TRPO" if kind.__name__ == "TRPO" and not isinstance(model, TRPO) else kind.__name__


def gain_unit_of(model: TRPO) -> str:
    """Return what the gains of a model of ours are counted in."""
    return OF_ADVANTAGE if model.normalize_advantage else OF_RETURN


def clip_range_of(model: OnPolicyAlgorithm) -> float:
    """Return ε of the clip that a model's last update had; where it has none, PPO's default."""
    clip_range = getattr(model, "clip_range", CLIP_RANGE)
    return float(clip_range(model._current_progress_remaining) if callable(clip_range) else clip_range)


def _arguments_of_ours(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """Return what every argument of TRPO is for another algorithm: its own where it means the same, else the default."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(TRPO.__init__).parameters.items()
        if parameter.default is not parameter.empty
    }
    arguments = defaults | vars(model)
    if is_a_trpo(model):
        n_dimensions = n_averaged_dimensions(model.action_space)
        arguments |= {name: n_dimensions * getattr(model, name) for name in PER_DIMENSION}
    else:
        # PPO's target_kl is another thing
        arguments |= defaults_by_model({}, model.action_space, model.policy)
    # The gain in one unit for all of them; one number alone has no standard deviation
    arguments["normalize_advantage"] = model.n_steps * model.n_envs > 1
    return arguments | {"sub_sampling_factor": 1, "verbose": 0, "paths_in_use": {}, "_random": RandomNumbers(0)}


def seen_as_ours(model: OnPolicyAlgorithm, policy: BasePolicy) -> TRPO:
    """
    Return one of our algorithms with the rollout of a model and a policy of its kind: to be asked, never to be trained.

    Its hooks read the rollout in the order that the model's buffer has, with masks and states of an LSTM, and ask the policy
    for its distribution. Nothing of the model is changed by that.

    :param model: of SB3, sb3-contrib or the user, with a rollout in its buffer
    :param policy: a copy of the model's
    """
    kind = _kind(model)
    twin = object.__new__(kind)
    vars(twin).update(vars(model) if isinstance(model, TRPO) else _arguments_of_ours(model))
    twin.policy = policy  # type: ignore[assignment]
    return twin
