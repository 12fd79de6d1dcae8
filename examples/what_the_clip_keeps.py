"""
What PPO's clip does to the KL, beside a limit that is kept: the runs and pictures of ``docs/what_the_clip_keeps.md``.

Trains PPO with its defaults and with RL Zoo's settings, and TRPO with its defaults, on CartPole-v1 and HalfCheetah-v5; what is
in the folder already is not trained again. Needs MuJoCo (``pip install 'gymnasium[mujoco]'``) and half an hour on one thread.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.inspect import Run, TrustRegionRecorder, draw_bubble, draw_comparison, read_run

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PANELS = ("returns", "kl", "outside_clip", "largest_kl", "gain", "entropy")
SEED = 1


class Experiment(NamedTuple):
    """
    One run.

    :param algorithm: its class
    :param env_id: name of the environment
    :param n_envs: how many of them
    :param normalize: whether their observations and rewards are normalised
    :param arguments: of the algorithm, where they are not its defaults
    :param total_timesteps: for how long to train
    """

    algorithm: Callable[..., OnPolicyAlgorithm]
    env_id: str
    total_timesteps: int
    n_envs: int = 1
    normalize: bool = False
    arguments: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it


# RL Zoo 2.9, hyperparams/ppo.yml; HalfCheetah's are those of version 4 of the environment
OF_CARTPOLE = {
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    "ent_coef": 0.0,
    "learning_rate": LinearSchedule(0.001, 0.0, 1.0),
    "clip_range": LinearSchedule(0.2, 0.0, 1.0),
}
OF_HALFCHEETAH = {
    "batch_size": 64,
    "n_steps": 512,
    "gamma": 0.98,
    "learning_rate": 2.0633e-05,
    "ent_coef": 0.000401762,
    "clip_range": 0.1,
    "n_epochs": 20,
    "gae_lambda": 0.92,
    "max_grad_norm": 0.8,
    "vf_coef": 0.58096,
    "policy_kwargs": {
        "log_std_init": -2,
        "ortho_init": False,
        "activation_fn": th.nn.ReLU,
        "net_arch": {"pi": [256, 256], "vf": [256, 256]},
    },
}
EXPERIMENTS = {
    "cartpole/TRPO, defaults": Experiment(TRPO, "CartPole-v1", 51_200),
    "cartpole/PPO, defaults": Experiment(PPO, "CartPole-v1", 51_200),
    "cartpole/PPO, RL Zoo": Experiment(PPO, "CartPole-v1", 51_200, 8, arguments=OF_CARTPOLE),
    "halfcheetah/TRPO, defaults": Experiment(TRPO, "HalfCheetah-v5", 102_400),
    "halfcheetah/PPO, defaults": Experiment(PPO, "HalfCheetah-v5", 102_400),
    "halfcheetah/PPO, RL Zoo": Experiment(PPO, "HalfCheetah-v5", 51_200, 1, True, OF_HALFCHEETAH),
}


def train(experiment: Experiment, folder: Path) -> None:
    """Train, and keep what every update did, with the pictures of the one in the middle and of the last."""
    env: VecEnv = make_vec_env(experiment.env_id, n_envs=experiment.n_envs, seed=SEED)
    if experiment.normalize:
        env = VecNormalize(env)
    model = experiment.algorithm("MlpPolicy", env, seed=SEED, device="cpu", **experiment.arguments)
    n_updates = experiment.total_timesteps // (model.n_steps * model.n_envs)
    # The folder gets its name when the run is whole
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    model.learn(experiment.total_timesteps, callback=TrustRegionRecorder(unfinished, pictures_every=n_updates // 2))
    unfinished.rename(folder)
    env.close()


def read(folder: Path, task: str) -> list[Run]:
    """Return the runs of a task, in the order of ``EXPERIMENTS``."""
    names = [name for name in EXPERIMENTS if name.startswith(f"{task}/")]
    return [read_run(folder / name) for name in names]


def table(runs: Sequence[Run]) -> str:
    """Return what the updates of each run did, as a table in Markdown."""
    lines = [
        "| run | updates | median KL | largest KL | largest / median | outside 1 ± ε | largest KL of a state | return |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        updates = run.updates
        kls = np.array([update.mean_kl for update in updates])
        outside = np.median([update.outside_clip for update in updates])
        lines.append(
            f"| {run.name} | {len(updates)} | {np.median(kls):.2g} | {kls.max():.2g} | {kls.max() / np.median(kls):.1f} "
            f"| {outside:.0%} | {max(update.largest_kl for update in updates):.2g} | {updates[-1].mean_return:,.0f} |"
        )
    return "\n".join(lines)


def bubble(run: Run) -> Figure:
    """Draw the step of the update in the middle of a run."""
    return draw_bubble(run.slices[0])


def main() -> None:
    """Train what is not there yet, draw, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/what_the_clip_keeps"), help="folder of the runs")
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where to write the pictures")
    options = parser.parse_args()
    th.set_num_threads(1)
    for name, experiment in EXPERIMENTS.items():
        if not (options.runs / name).exists():
            train(experiment, options.runs / name)
    options.folder.mkdir(parents=True, exist_ok=True)
    for task in dict.fromkeys(name.split("/")[0] for name in EXPERIMENTS):
        runs = read(options.runs, task)
        draw_comparison(runs, PANELS).savefig(options.folder / f"clip_{task}.png", dpi=100)
        bubble(runs[1]).savefig(options.folder / f"clip_bubble_{task}.png", dpi=100)
        print(f"{task}\n\n{table(runs)}\n")


if __name__ == "__main__":
    main()
