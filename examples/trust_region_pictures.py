"""
Draw the pictures of ``docs/trust_region.md``: a run on HalfCheetah-v5, updates of it and of CartPole-v1, and two by hand.

Needs MuJoCo (``pip install 'gymnasium[mujoco]'``) and a few minutes.
"""

import argparse
import tempfile
from pathlib import Path

import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO
from sb3_trpo.inspect import (
    PANELS,
    Run,
    TrustRegionRecorder,
    change_of_probabilities,
    draw_bars,
    draw_bubble,
    draw_kl_histogram,
    draw_ladder,
    draw_run,
    read_run,
)

IMAGES = Path(__file__).parent.parent / "docs" / "images"
LIMIT = 0.01


def train(env_id: str, n_updates: int, pictures_every: int, *, target_kl: float = LIMIT) -> Run:
    """Train on one thread with 2,048 steps to an update."""
    th.set_num_threads(1)
    env = make_vec_env(env_id, n_envs=4, seed=1)
    model = TRPO("MlpPolicy", env, n_steps=512, gae_lambda=0.98, target_kl=target_kl, seed=1, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        model.learn(n_updates * 2048, callback=TrustRegionRecorder(folder, pictures_every=pictures_every), progress_bar=True)
        return read_run(folder)


def two_by_hand() -> Figure:
    """Draw a change that is too big for a trust region, and one that fits in."""
    changes = [
        change_of_probabilities([0.2, 0.8], [0.6, 0.4], "too big a change"),
        change_of_probabilities([0.2, 0.8], [0.25, 0.75], "a small one"),
    ]
    return draw_bars(changes, LIMIT, title=f"Two changes of one policy, δ = {LIMIT:g}", action_names=["left", "right"])


def main() -> None:
    """Train, and write every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where to write")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    cheetah, pole = train("HalfCheetah-v5", 50, 50), train("CartPole-v1", 10, 10)
    wide = train("CartPole-v1", 10, 10, target_kl=0.3)
    figures = {
        # The times of the machine that draws say little of the reader's
        "run": draw_run(cheetah, [name for name in PANELS if name != "time"]),
        "ladder": draw_ladder(max(wide.updates, key=lambda update: len(update.candidates))),
        "bubble": draw_bubble(pole.slices[-1]),
        "bubble_wide": draw_bubble(wide.slices[-1]),
        "bars": draw_bars(pole.states[-1].changes, LIMIT, action_names=["left", "right"]),
        "densities": draw_bars(cheetah.states[-1].changes, LIMIT),
        "kl_per_state": draw_kl_histogram(pole.states[-1]),
        "by_hand": two_by_hand(),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=100)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
