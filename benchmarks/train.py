"""
Train one agent and evaluate it: environment, seed, algorithm and a named setting of its hyperparameters.

``python -m benchmarks.train HalfCheetah-v5 0 trpo`` writes ``runs/tuned/HalfCheetah-v5/trpo/0/``: ``run.json`` with versions,
git commit, every argument, wall time and the return of each evaluation episode, and ``progress.csv``, SB3's log of every
update. A run is finished when its ``run.json`` is there; one that was interrupted leaves nothing that looks like it.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rl_zoo3.import_envs  # noqa: F401 - registers the tasks without velocities
import sb3_contrib
import torch as th
import yaml
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, unwrap_vec_normalize

import sb3_trpo
from benchmarks import settings

ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {
    "trpo": sb3_trpo.TRPO,
    "contrib": sb3_contrib.TRPO,
    "ppo": PPO,
    "trpo_lstm": sb3_trpo.RecurrentTRPO,
    "ppo_lstm": sb3_contrib.RecurrentPPO,
}
PACKAGES = ("stable_baselines3", "sb3_contrib", "torch", "gymnasium", "mujoco", "numpy")
N_EVAL_EPISODES = 20
RUNS = Path("runs")


class Run(NamedTuple):
    """
    What tells one run from another.

    :param setting: name of its hyperparameters
    :param env: environment id
    :param algorithm: key of ``ALGORITHMS``
    :param seed: of the training; evaluation uses 1000 more
    """

    setting: str
    env: str
    algorithm: str
    seed: int

    def folder(self, runs: Path) -> Path:
        """Return where its files are, once it is finished."""
        return runs / self.setting / self.env / self.algorithm / str(self.seed)


def git_commit() -> str:
    """Return the commit of the code, with ``+`` if the package or the benchmarks differ from it; empty without git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "../sb3_trpo", "*.py")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def provenance() -> dict[str, Any]:
    """Return what made a run, besides its arguments."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"versions": {**versions, "sb3_trpo": sb3_trpo.__version__}, "commit": git_commit()}


def make_envs(env_id: str, n_envs: int, seed: int, hyperparameters: Mapping[str, Any]) -> VecEnv:
    """Build seeded environments, with the wrappers and the stacked frames that the hyperparameters ask for."""
    env = make_vec_env(env_id, n_envs=n_envs, seed=seed, wrapper_class=get_wrapper_class(dict(hyperparameters)))
    n_frames = hyperparameters.get("frame_stack", 1)
    return VecFrameStack(env, n_frames) if n_frames > 1 else env


def make_training_env(run: Run, hyperparameters: Mapping[str, Any]) -> VecEnv:
    """Build the seeded environments, wrapped and normalised as the hyperparameters say."""
    env = make_envs(run.env, hyperparameters.get("n_envs", 1), run.seed, hyperparameters)
    normalize = hyperparameters.get("normalize", False)
    if normalize:
        options = normalize if isinstance(normalize, dict) else {}
        env = VecNormalize(env, gamma=hyperparameters.get("gamma", 0.99), **options)
    return env


def make_model(algorithm: str, hyperparameters: Mapping[str, Any], **kwargs: Any) -> OnPolicyAlgorithm:
    """
    Build the algorithm.

    :param algorithm: key of ``ALGORITHMS``
    :param hyperparameters: as ``settings.load`` returns them
    :param kwargs: further arguments of the constructor
    :raises ValueError: if they are of what was tried and given up
    """
    if "prototype" in hyperparameters:
        raise ValueError(f"{hyperparameters['prototype']} was tried and given up: benchmarks/README.md says where its code is")
    return ALGORITHMS[algorithm](device="cpu", **settings.constructor_arguments(hyperparameters), **kwargs)


def evaluate(model: OnPolicyAlgorithm, run: Run, hyperparameters: Mapping[str, Any]) -> list[float]:
    """Return the returns of 20 deterministic episodes, with the statistics of training frozen and rewards as they are."""
    env = make_envs(run.env, 1, 1000 + run.seed, hyperparameters)
    training_env = model.get_env()
    statistics = unwrap_vec_normalize(training_env) if training_env is not None else None
    if statistics is not None and statistics.norm_obs:
        env = VecNormalize(env, training=False, norm_reward=False, clip_obs=statistics.clip_obs)
        env.obs_rms = statistics.obs_rms
    returns, _ = evaluate_policy(model, env, N_EVAL_EPISODES, deterministic=True, return_episode_rewards=True)
    env.close()
    assert isinstance(returns, list)
    return [float(episode_return) for episode_return in returns]


def train(run: Run, hyperparameters: Mapping[str, Any], runs: Path = RUNS) -> dict[str, Any]:
    """
    Train, evaluate, and write the run's folder.

    :param run: which
    :param hyperparameters: as ``settings.load`` returns them
    :param runs: folder of all runs
    :return: the contents of ``run.json``
    """
    th.set_num_threads(1)
    final = run.folder(runs)
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{run.seed}-", dir=final.parent))
    try:
        arguments = settings.with_defaults(ALGORITHMS[run.algorithm], hyperparameters)
        result = {**run._asdict(), "hyperparameters": arguments, **provenance()}
        env = make_training_env(run, hyperparameters)
        model = make_model(run.algorithm, hyperparameters, env=env, seed=run.seed)
        start = time.perf_counter()
        with closing(configure(str(folder), ["csv"])) as logger:
            model.set_logger(logger)
            model.learn(int(hyperparameters["n_timesteps"]))
        result |= {"timesteps": model.num_timesteps, "train_seconds": round(time.perf_counter() - start, 1)}
        last_episodes = [episode["r"] for episode in model.ep_info_buffer or ()]
        result["train_mean_last_100"] = float(np.mean(last_episodes)) if last_episodes else None
        result["eval_returns"] = evaluate(model, run, hyperparameters)
        env.close()
        (folder / "run.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Read ``name=value`` with the value in YAML."""
    pairs = [assignment.partition("=") for assignment in assignments]
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def main() -> None:
    """Train the agent that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("seed", type=int)
    parser.add_argument("algorithm", choices=ALGORITHMS)
    parser.add_argument("--setting", default=settings.TUNED, help="name of the hyperparameters")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="hyperparameters to change; needs --name")
    parser.add_argument("--name", help="setting to file the run under, if not --setting")
    parser.add_argument("--runs", type=Path, default=RUNS)
    arguments = parser.parse_args()

    if arguments.set and not arguments.name:
        parser.error("--set changes the setting: give the changed one a --name")
    if arguments.name in settings.names():
        parser.error(f"--name {arguments.name} is a setting already: give the changed one a name of its own")
    # Nothing half done is left behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    hyperparameters = settings.load(arguments.algorithm, arguments.setting, arguments.env, parse_overrides(arguments.set))
    run = Run(arguments.name or arguments.setting, arguments.env, arguments.algorithm, arguments.seed)
    result = train(run, hyperparameters, arguments.runs)
    print(f"{'/'.join(map(str, run))}: {np.mean(result['eval_returns']):.1f} after {result['train_seconds']:.0f} s")


if __name__ == "__main__":
    main()
