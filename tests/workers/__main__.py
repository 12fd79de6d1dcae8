"""Join, do one's part, and write down how it ended: ``python -m tests.workers module.function folder``."""

import importlib
import os
import pickle
import sys
import traceback
from pathlib import Path

import torch as th

from sb3_trpo.distributed import join


def main() -> None:
    part, folder = sys.argv[1], Path(sys.argv[2])
    module, function = part.rsplit(".", 1)
    arguments = pickle.loads((folder / "arguments").read_bytes())
    th.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    value, error = None, ""
    try:
        processes = join(timeout=float(os.environ.get("JOIN_TIMEOUT", "50")))
        value = getattr(importlib.import_module(f"tests.workers.{module}"), function)(processes, *arguments)
    except BaseException as raised:
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"
    unfinished = folder / f"unfinished_{os.environ['RANK']}"
    unfinished.write_bytes(pickle.dumps((value, error)))
    unfinished.rename(folder / f"outcome_{os.environ['RANK']}")


main()
