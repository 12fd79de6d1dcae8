"""RL Zoo's scripts in each of several processes."""

import contextlib
import io
import os
import sys

from sb3_trpo.distributed import Processes


def run(processes: Processes, folder: str, arguments: list[str]) -> str:
    """Run ``python -m sb3_trpo.zoo`` in a folder, which joins by itself; return what it says here."""
    from sb3_trpo.zoo.__main__ import main

    os.chdir(folder)
    sys.argv = ["", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main()
    return said.getvalue()
