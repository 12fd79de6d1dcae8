"""Join, do one's part, and write down how it ended: what each process of ``tests/spawned.py`` runs."""

import importlib
import os
import pickle
import sys
import traceback
from pathlib import Path

import torch as th

from sb3_trpo.distributed import join


def run(part: str, folder: Path, variables: dict[str, str]) -> None:
    """
    Run a function of this package with what ``join()`` returns.

    :param part: ``module.function``
    :param folder: where its arguments are, and what it says and returns is left
    :param variables: of the environment
    """
    os.environ.update(variables)
    with (folder / f"said_{variables['RANK']}").open("w") as said:
        os.dup2(said.fileno(), sys.stdout.fileno())
        os.dup2(said.fileno(), sys.stderr.fileno())
    module, function = part.rsplit(".", 1)
    arguments = pickle.loads((folder / "arguments").read_bytes())
    th.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    value, error = None, ""
    try:
        processes = join(timeout=float(variables.get("JOIN_TIMEOUT", "50")))
        value = getattr(importlib.import_module(f"tests.workers.{module}"), function)(processes, *arguments)
    except BaseException as raised:
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"
    unfinished = folder / f"unfinished_{variables['RANK']}"
    unfinished.write_bytes(pickle.dumps((value, error)))
    unfinished.rename(folder / f"outcome_{variables['RANK']}")
