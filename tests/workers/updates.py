"""Updates from the rollouts of several processes, and the same from all of them in one."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.distributed import Processes
from sb3_trpo.randomness import RandomNumbers
from sb3_trpo.trust_region import flatten
from tests.cases import DoubleExtractor, seeded
from tests.masked_envs import masked_env
from tests.small_models import BOX, DISCRETE, MULTI_BINARY, VECTOR, make_env

N_STEPS, N_ENVS = 32, 2
DOUBLE: dict[str, Any] = {"policy_kwargs": {"features_extractor_class": DoubleExtractor}}
IN_ONE_GO: dict[str, Any] = {"batch_size": 10_000}

LSTM: dict[str, Any] = {"policy_kwargs": {"lstm_hidden_size": 8}}

# Class, action space and arguments
KINDS: dict[str, tuple[type[TRPO], spaces.Space, dict[str, Any]]] = {
    "box": (TRPO, BOX, {}),
    "box plain": (TRPO, BOX, {"fast": False}),
    "box double": (TRPO, BOX, DOUBLE),
    "box double plain": (TRPO, BOX, DOUBLE | {"fast": False}),
    "box as it is": (TRPO, BOX, {"normalize_advantage": False}),
    "discrete": (TRPO, DISCRETE, {}),
    "discrete double": (TRPO, DISCRETE, DOUBLE),
    "binary double": (TRPO, MULTI_BINARY, DOUBLE),
    "gsde": (TRPO, BOX, {"use_sde": True}),
    "thinned": (TRPO, BOX, {"sub_sampling_factor": 4}),
    "masked": (MaskableTRPO, DISCRETE, {}),
    "recurrent": (RecurrentTRPO, BOX, IN_ONE_GO | LSTM),
    "recurrent plain": (RecurrentTRPO, BOX, IN_ONE_GO | LSTM | {"fast": False}),
    "masked recurrent": (MaskableRecurrentTRPO, DISCRETE, IN_ONE_GO | LSTM),
}


def build(kind: str, n_envs: int = N_ENVS, processes: Processes | None = None) -> TRPO:
    """Return a model; its updates are far from a single minibatch, and cut the rollout where it does not come out even."""
    cls, actions, arguments = KINDS[kind]
    env = (masked_env if "masked" in kind else make_env)(VECTOR, actions, n_envs)
    policy = "MlpLstmPolicy" if "recurrent" in kind else "MlpPolicy"
    defaults: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 24, "n_critic_updates": 3, "learning_rate": 1e-2, "seed": 7}
    # Damped: the conjugate gradients of an ill-conditioned matrix enlarge the rounding ten thousandfold, on one process too
    defaults |= {"cg_damping": 1.0}
    model = cls(policy, env, **(defaults | {"device": "cpu"} | arguments), processes=processes)
    if "double" in kind:
        model.policy.double()
    with th.no_grad(), seeded(3):
        for parameter in model.policy.parameters():
            # Instead of the initial ones, which are drawn with the seed of the process
            parameter.copy_(0.5 * th.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return model


def arrays_of(buffer: Any) -> dict[str, np.ndarray]:
    """Return everything that a rollout has left in a buffer, by name."""
    return {name: value.copy() for name, value in vars(buffer).items() if isinstance(value, np.ndarray)}


def numbers_of(rank: int) -> RandomNumbers:
    return RandomNumbers(100 + rank)


class InOrder(RandomNumbers):
    """Nothing is drawn: for what depends on where a rollout is cut."""

    def permutation(self, n: int) -> np.ndarray:
        return np.arange(n)


def weights_of(model: TRPO) -> th.Tensor:
    return flatten([parameter.detach().clone() for parameter in model.policy.parameters()])


def facts_of(model: TRPO) -> dict[str, Any]:
    """Return what the last update says of itself, in numbers and words that do not depend on the time."""
    update = model.last_update
    assert update is not None and update.critic is not None
    step = update.step
    return {
        "status": step.status,
        "refused": [candidate.refused_by for candidate in step.candidates],
        "numbers": [step.surrogate, step.surrogate_gain, step.mean_kl, step.gradient_norm, step.step_fraction],
        "critic": list(update.critic[:3]),
        "explained_variance": update.explained_variance,
        "entropy": update.entropy,
        "paths": {phase: path for phase, path in model.paths_in_use.items() if phase != "collection"},
    }


def update(model: TRPO, numbers: RandomNumbers, chunk_size: int | None = None) -> dict[str, Any]:
    """Make one update from what is in the buffer."""
    model._random = numbers
    if chunk_size is not None:
        model._chunk_size = lambda: chunk_size  # type: ignore[method-assign]
    before = weights_of(model)
    model.train()
    return {"before": before, "after": weights_of(model)} | facts_of(model)


def collected(model: TRPO, rank: int) -> TRPO:
    """Fill the buffer with a rollout of this rank's own."""
    assert model.env is not None
    model.env.seed(1000 * rank)
    _, callback = model._setup_learn(10**6)
    with seeded(rank):
        model._random = RandomNumbers(rank)
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
    return model


def updates(processes: Processes, kinds: list[str]) -> dict[str, Any]:
    """Make an update of each kind, in chunks whose number is another one on each process."""
    found = {}
    for kind in kinds:
        model = collected(build(kind, processes=processes), processes.rank)
        rollout = arrays_of(model.rollout_buffer)
        numbers = InOrder(0) if "recurrent" in kind else numbers_of(processes.rank)
        found[kind] = {"rollout": rollout, "num_timesteps": model.num_timesteps} | update(
            model, numbers, chunk_size=[None, 10, 25][processes.rank]
        )
    return found
