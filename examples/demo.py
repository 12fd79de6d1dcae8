"""Train TRPO on CartPole-v1 and show that it learned and that every step stayed inside its trust region."""

import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch as th
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO

matplotlib.use("Agg")

ENV_ID = "CartPole-v1"
TOTAL_TIMESTEPS = 40_000
REQUIRED_RETURN = 475.0
FOLDER = Path("demo")


class UpdateHistory(BaseCallback):
    """Keep the report of every update and the return of every episode."""

    def __init__(self) -> None:
        super().__init__()
        self.model: TRPO
        self.updates: list[tuple[int, float, bool]] = []  # environment steps, measured KL, accepted
        self.episodes: list[tuple[int, float]] = []  # environment steps, return

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, info["episode"]["r"]))
        return True

    def _keep_last_update(self) -> None:
        if self.model.last_update is not None:
            step = self.model.last_update.step
            self.updates.append((self.num_timesteps, step.mean_kl, step.accepted))

    # SB3 calls no callback after train(): an update is seen when the next rollout starts, the last one at the end
    def _on_rollout_start(self) -> None:
        self._keep_last_update()

    def _on_training_end(self) -> None:
        self._keep_last_update()


def draw(history: UpdateHistory, target_kl: float, path: Path) -> None:
    """Draw the learning curve and the KL of every update against its limit."""
    figure, (returns, kls) = plt.subplots(2, 1, figsize=(8, 6.4), sharex=True, layout="constrained")
    steps, episode_returns = np.array(history.episodes).T
    window = min(20, len(episode_returns))
    mean_returns = np.convolve(episode_returns, np.ones(window) / window, mode="valid")
    returns.plot(steps, episode_returns, ".", color="0.75", label="one episode")
    returns.plot(steps[window - 1 :], mean_returns, color="tab:blue", label=f"mean of {window} episodes")
    returns.set(ylabel="return of a training episode", title=f"TRPO on {ENV_ID}")
    returns.legend(loc="upper left")

    steps, mean_kls, accepted = np.array(history.updates).T
    kls.axhline(target_kl, color="tab:orange", linestyle="--", label=f"limit target_kl = {target_kl:g}")
    kls.plot(steps, mean_kls, color="0.8", zorder=1)
    kls.plot(steps[accepted == 1], mean_kls[accepted == 1], "o", color="tab:blue", label="step kept")
    if not accepted.all():
        kls.plot(steps[accepted == 0], mean_kls[accepted == 0], "x", color="black", label="step refused")
    kls.set(xlabel="environment steps", ylabel="mean KL(old ‖ new) of an update [nats]", ylim=(0, 1.35 * target_kl))
    kls.legend(loc="upper left", ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Train, evaluate, save, load, draw; the exit status says whether the task was learned."""
    # Networks of this size gain nothing from a second thread
    th.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    model = TRPO("MlpPolicy", make_vec_env(ENV_ID, n_envs=4), n_steps=512, gae_lambda=0.98, seed=1, device="cpu")
    history = UpdateHistory()
    start = time.perf_counter()
    model.learn(TOTAL_TIMESTEPS, callback=history, progress_bar=True)
    steps_per_second = model.num_timesteps / (time.perf_counter() - start)

    path = FOLDER / "trpo_cartpole.zip"
    model.save(path)
    evaluation_env = make_vec_env(ENV_ID, n_envs=20, seed=1_000)
    loaded = TRPO.load(path, device="cpu")
    returns, _ = evaluate_policy(loaded, evaluation_env, n_eval_episodes=100, return_episode_rewards=True)
    mean_return = float(np.mean(returns))
    assert model.last_update is not None
    limit = model.last_update.max_kl
    draw(history, limit, FOLDER / "trpo_cartpole.png")

    table = Table(title=f"TRPO on {ENV_ID}, {model.num_timesteps:,} steps", show_header=False)
    table.add_row("return over 100 deterministic episodes", f"{mean_return:.1f} ± {np.std(returns):.1f}")
    table.add_row("environment steps per second", f"{steps_per_second:,.0f}")
    table.add_row("largest KL of any update", f"{max(kl for _, kl, _ in history.updates):.5f} (limit {limit:g})")
    table.add_row("accepted updates", f"{np.mean([accepted for *_, accepted in history.updates]):.0%}")
    table.add_row("model, loaded back for the evaluation", str(path))
    table.add_row("picture", str(path.with_suffix(".png")))
    Console().print(table)
    if mean_return < REQUIRED_RETURN:
        print(f"the mean return is below {REQUIRED_RETURN:g}: the task was not learned")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
