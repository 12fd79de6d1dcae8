"""
How much of what a step gains on the rollout that it is made from it gains on others too.

``python -m benchmarks.held_out HalfCheetah-v5 --steps 100000`` trains to there, collects rollouts with that policy,
and makes steps of the same length with other dampings and GAE lambdas, each from one rollout. Where a setting fits the noise
of its rollout, its own gain is large and that on the held-out rollouts small. Two minutes of this tell settings apart for
which twenty training runs are too few.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks import settings
from benchmarks.results import HELD_OUT, RESULTS
from benchmarks.train import Run, make_model, make_training_env
from sb3_trpo import TRPO
from sb3_trpo.critic import Origin
from sb3_trpo.objective import Batch, normalize_advantages

SEED = 200  # no run on record has it
HELD_OUT_LAMBDA = 0.97  # less noise than 1, and next to none of the critic's bias
MAX_KL = 0.02
DAMPINGS = (0.01, 0.1, 1.0, 10.0)
LAMBDAS = (0.5, 0.7, 0.9, 0.95)
COLUMNS = (
    "env",
    "steps",
    "setting",
    "std",
    "damping",
    "gae_lambda",
    "own_gain",
    "held_out_gain",
    "standard_error",
    "held_out_kl",
)


class Rollout(NamedTuple):
    """
    A rollout that can be looked at with any GAE lambda.

    :param buffer: full
    :param last_values: of the observations after its last step, shape (n_envs,)
    :param dones: whether an episode ended with that step, shape (n_envs,)
    """

    buffer: RolloutBuffer
    last_values: th.Tensor
    dones: np.ndarray


class StopAt(BaseCallback):
    """Ends training within the schedules of a longer one."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps <= self.steps


def trained(env_id: str, setting: str, steps: int) -> TRPO:
    """Return a model as a setting has made it after a number of steps, with the statistics of its environments frozen."""
    hyperparameters = settings.load("trpo", setting, env_id)
    env = make_training_env(Run(setting, env_id, "trpo", SEED), hyperparameters)
    model = make_model("trpo", hyperparameters, env=env, seed=SEED)
    assert isinstance(model, TRPO)
    model.learn(int(hyperparameters["n_timesteps"]), callback=StopAt(steps))
    if isinstance(env, VecNormalize):
        env.training = False
    return model


def collect(model: TRPO, n_rollouts: int) -> list[Rollout]:
    """Return rollouts of the present policy."""
    _, callback = model._setup_learn(model.num_timesteps, callback=None, reset_num_timesteps=False)
    rollouts = []
    for _ in range(n_rollouts):
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        observations = model._last_obs
        assert observations is not None
        with th.no_grad():
            values = model.policy.predict_values(model.policy.obs_to_tensor(observations)[0]).flatten()
        rollouts.append(Rollout(copy.deepcopy(model.rollout_buffer), values, np.array(model._last_episode_starts)))
    return rollouts


def batch_of(model: TRPO, rollouts: Iterable[Rollout], gae_lambda: float) -> Batch:
    """Return the transitions of rollouts, their advantages estimated with this lambda and normalized over all of them."""
    model.normalize_advantage = False
    parts = []
    for rollout in rollouts:
        model.rollout_buffer = copy.deepcopy(rollout.buffer)
        model.rollout_buffer.gae_lambda = gae_lambda
        model.rollout_buffer.compute_returns_and_advantage(rollout.last_values, rollout.dones)
        parts.append(model._full_batch())
    names = ("observations", "actions", "old_log_prob", "advantages", "returns", "weights")
    whole = Batch(*(th.cat([getattr(part, name) for part in parts]) for name in names))
    weights = whole.weights / len(parts)
    return whole._replace(weights=weights, advantages=normalize_advantages(whole.advantages, weights))


def measure(model: TRPO, own: list[Rollout], held_out: list[Rollout], *, hold_std: bool) -> list[dict[str, float]]:
    """
    Make a step from each of a model's rollouts with every damping and lambda, and take it back.

    :param model: whose policy collected the rollouts
    :param own: a step is made from each
    :param held_out: what all steps are measured on
    :param hold_std: whether the step moves the means of the actions alone. A smaller standard deviation is a gain that is
        easy to estimate, and hides how well the means do
    :return: a row for each damping and lambda
    """
    test = batch_of(model, held_out, HELD_OUT_LAMBDA)
    parameters = [
        parameter
        for parameter in model._split_parameters(test)[0]
        if not (hold_std and parameter is getattr(model.policy, "log_std", None))
    ]
    origin = Origin(model.policy.optimizer, parameters)
    batches = {gae_lambda: [batch_of(model, [rollout], gae_lambda) for rollout in own] for gae_lambda in LAMBDAS}
    problem = model._policy_problem(test, parameters)
    before, _ = problem.evaluate()
    model.target_kl, model.line_search_shrinking_factor, model.line_search_max_iter = MAX_KL, 0.95, 20
    rows = []
    for damping in DAMPINGS:
        model.cg_damping = damping
        for gae_lambda in LAMBDAS:
            seen = []
            for batch in batches[gae_lambda]:
                step = model._trust_region_step(model._policy_problem(batch, parameters))
                surrogate, mean_kl = problem.evaluate()
                seen.append((step.surrogate_gain, surrogate - before, mean_kl))
                origin.restore()
            own_gain, held_out_gain, held_out_kl = np.mean(seen, axis=0)
            error = np.std([gain for _, gain, _ in seen], ddof=1) / len(seen) ** 0.5
            rows.append(
                {
                    "damping": damping,
                    "gae_lambda": gae_lambda,
                    "own_gain": own_gain,
                    "held_out_gain": held_out_gain,
                    "standard_error": error,
                    "held_out_kl": held_out_kl,
                }
            )
    return rows


def main() -> None:
    """Measure at one point of a training, and put it on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--steps", type=int, default=100_000, help="of training before")
    parser.add_argument("--setting", default="third-std-50", help="of the training")
    parser.add_argument("--own", type=int, default=8, help="rollouts that a step is made from")
    parser.add_argument("--held-out", type=int, default=32, help="rollouts that the steps are measured on")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    model = trained(arguments.env, arguments.setting, arguments.steps)
    rollouts = collect(model, arguments.own + arguments.held_out)
    own, held_out = rollouts[: arguments.own], rollouts[arguments.own :]
    where = {"env": arguments.env, "steps": arguments.steps, "setting": arguments.setting}
    rows = [
        {**where, "std": "held" if hold_std else "learned", **row}
        for hold_std in (False, True)
        for row in measure(model, own, held_out, hold_std=hold_std)
    ]
    found = pd.DataFrame(rows, columns=COLUMNS).round(5)
    table = Table(*(name.replace("_", " ") for name in COLUMNS[3:]))
    for row in found[list(COLUMNS[3:])].itertuples(index=False):
        table.add_row(*map(str, row))
    Console().print(table)
    path = arguments.results / HELD_OUT
    if path.exists():
        record = pd.read_csv(path)
        same = (record[list(where)] == pd.Series(where)).all(axis=1)
        found = pd.concat([record[~same], found])
    found.to_csv(path, index=False)


if __name__ == "__main__":
    main()
