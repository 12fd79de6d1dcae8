"""RL Zoo's ``train`` in several processes: ``torchrun --nproc_per_node=4 -m sb3_trpo.zoo train --env HalfCheetah-v5``."""

import argparse
import atexit
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import rl_zoo3

from sb3_trpo.distributed import Processes
from sb3_trpo.trpo import TRPO


def learning_with(processes: Processes, cls: type[TRPO]) -> type[TRPO]:
    """Return an algorithm whose models learn with other processes: RL Zoo makes them without a word of that."""

    class Joint(cls):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, processes=processes, **kwargs)

    Joint.__name__, Joint.__qualname__ = cls.__name__, cls.__qualname__
    return Joint


def train_together(processes: Processes, arguments: list[str]) -> list[str]:
    """
    Have RL Zoo's ``train`` make one training of all processes.

    Rank 0 writes, evaluates and talks; what the others write goes to a folder that is gone when they end.

    :param processes: of this training; with a single one nothing changes
    :param arguments: the command line of ``train``
    :return: that of this process
    :raises SystemExit: if a search is asked for, in which each process would choose for itself
    """
    if processes.size == 1:
        return arguments
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    options.add_argument("--track", action="store_true")
    chosen, untracked = options.parse_known_args(arguments)
    if chosen.optimize_hyperparameters:
        sys.exit("-optimize must be left out under torchrun: each process would try hyperparameters of its own")
    for name, cls in rl_zoo3.ALGOS.items():
        if issubclass(cls, TRPO):
            rl_zoo3.ALGOS[name] = learning_with(processes, cls)
    if processes.rank == 0:
        return arguments
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.stdout = (folder / "said").open("w")
    quiet = ["--log-folder", str(folder), "--tensorboard-log", "", "--eval-freq", "-1", "--save-freq", "-1", "--verbose", "0"]
    return [*untracked, *quiet]
