"""
Train on several processes, survive whatever ends them, and go on from the last checkpoint.

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --nproc_per_node=2 --max-restarts=3 examples/many_processes.py

When a process dies, ``torchrun`` ends the others and starts them all again. The variable is needed for that: without it torch
2.13 could not connect processes anew with gloo. Without ``torchrun`` it is one process that trains.
"""

import argparse
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.distributed import Processes, join


class Checkpoint(BaseCallback):
    """Save model and running statistics before every rollout, on rank 0: the others' are the same."""

    def __init__(self, folder: Path, env: VecNormalize):
        super().__init__()
        self.folder = folder
        self.env = env

    def _on_rollout_start(self) -> None:
        checkpoint = self.folder / f"{self.num_timesteps}.zip"
        if checkpoint.exists():
            return  # it is where this run goes on from: whoever is killed now must find it whole
        # The statistics first: whoever finds a model finds those that belong to it
        self.env.save(str(checkpoint.with_suffix(".pkl")))
        self.model.save(checkpoint)

    def _on_step(self) -> bool:
        return True


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest model, if there is one: a zip is there as a whole or not at all."""
    return max(folder.glob("*.zip"), key=lambda path: int(path.stem), default=None)


def build(processes: Processes, folder: Path, env_id: str) -> tuple[TRPO, VecNormalize]:
    """Make a model, or load the last one; all processes take the same, which rank 0 looks for."""
    env = make_vec_env(env_id, n_envs=4)
    found = processes.agree(last_checkpoint(folder))
    if found is None:
        normalized = VecNormalize(env)
        return TRPO(
            "MlpPolicy", normalized, n_steps=256, batch_size=256, seed=0, device="cpu", processes=processes
        ), normalized
    normalized = VecNormalize.load(str(found.with_suffix(".pkl")), env)
    return TRPO.load(found, normalized, device="cpu", processes=processes), normalized


def main() -> None:
    """Join, load if there is something to load, learn what is left to learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("many_processes"))
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--timesteps", type=int, default=100_000)
    arguments = parser.parse_args()
    processes = join(timeout=300.0)
    (arguments.folder / "final").mkdir(exist_ok=True, parents=True)
    model, env = build(processes, arguments.folder, arguments.env)
    begun = model.num_timesteps
    callback = Checkpoint(arguments.folder, env) if processes.rank == 0 else None
    if begun < arguments.timesteps:
        model.learn(arguments.timesteps - begun, callback, reset_num_timesteps=begun == 0)
    if processes.rank == 0:
        model.save(arguments.folder / "final" / "model.zip")
        print(f"from {begun} to {model.num_timesteps} steps on {processes.size} processes")


if __name__ == "__main__":
    main()
