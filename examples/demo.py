"""Train TRPO on CartPole-v1 and show that it learned and that every step stayed inside its trust region."""

import sys
import time
from pathlib import Path

import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO
from sb3_trpo.inspect import TrustRegionRecorder, draw_run, read_run, write_report

ENV_ID = "CartPole-v1"
TOTAL_TIMESTEPS = 40_000
REQUIRED_RETURN = 475.0
FOLDER = Path("demo")


def main() -> int:
    """Train, save, load, draw; the exit status says whether the task was learned."""
    # Networks of this size gain nothing from a second thread
    th.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    model = TRPO("MlpPolicy", make_vec_env(ENV_ID, n_envs=4), n_steps=512, gae_lambda=0.98, seed=1, device="cpu")
    recorder = TrustRegionRecorder(FOLDER / "record", pictures_every=5)
    start = time.perf_counter()
    model.learn(TOTAL_TIMESTEPS, callback=recorder, progress_bar=True)
    seconds = time.perf_counter() - start

    path = FOLDER / "trpo_cartpole.zip"
    model.save(path)
    evaluation_env = make_vec_env(ENV_ID, n_envs=20, seed=1_000)
    loaded = TRPO.load(path, device="cpu")
    returns, _ = evaluate_policy(loaded, evaluation_env, n_eval_episodes=100, return_episode_rewards=True)
    mean_return = float(np.mean(returns))
    run = read_run(FOLDER / "record")._replace(name=f"TRPO on {ENV_ID}")
    draw_run(run).savefig(path.with_suffix(".png"))
    report = write_report(run, path.with_suffix(".html"))

    table = Table(title=f"TRPO on {ENV_ID}, {model.num_timesteps:,} steps", show_header=False)
    table.add_row("return over 100 deterministic episodes", f"{mean_return:.1f} ± {np.std(returns):.1f}")
    # What the pictures took is in no phase
    without = sum(sum(update.phase_seconds.values()) for update in run.updates)
    table.add_row("environment steps per second, pictures and all", f"{model.num_timesteps / seconds:,.0f}")
    table.add_row("the same without the pictures", f"{model.num_timesteps / without:,.0f}")
    largest_kl = max(update.mean_kl for update in run.updates)
    table.add_row("largest KL of any update", f"{largest_kl:.5f} (limit {run.updates[-1].max_kl:g})")
    table.add_row("accepted updates", f"{np.mean([update.accepted for update in run.updates]):.0%}")
    table.add_row("model, loaded back for the evaluation", str(path))
    table.add_row("picture", str(path.with_suffix(".png")))
    table.add_row("report: what happened inside the trust region", str(report))
    Console().print(table)
    if mean_return < REQUIRED_RETURN:
        print(f"the mean return is below {REQUIRED_RETURN:g}: the task was not learned")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
