"""
Run a script of RL Zoo with TRPO: ``python -m sb3_trpo.zoo train --env CartPole-v1``.

The arguments are RL Zoo's own, see ``python -m sb3_trpo.zoo train --help``. Left out, ``--algo`` is ``trpo`` and the folder to
read from is ``logs``, where ``train`` writes. One argument is ours: ``--vector-env lean``, ``pool`` or ``envpool``, the vector
environments of ``docs/vector_environments.md``. Under ``torchrun`` all processes make one training.
"""

import argparse
import importlib
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

# For each script the options that it gets before the user's
Defaults = dict[str, str]
_PLAYED: Defaults = {"--algo": "trpo", "--folder": "logs"}
SCRIPTS: dict[str, Defaults] = {
    "train": {"--algo": "trpo"},
    "enjoy": _PLAYED,
    "record_video": _PLAYED,
    "record_training": _PLAYED,
    "plot_train": {"--algo": "trpo", "--exp-folder": "logs"},
    "all_plots": {"--algos": "trpo", "--exp-folders": "logs"},
    "plot_from_file": {},
}
# These are no functions, but what their modules do when they are run
_MODULES = ("record_video", "record_training")


def with_defaults(arguments: list[str], defaults: Defaults) -> list[str]:
    """
    Put options before those that are there: of an option that is given twice, in whatever spelling, the last one counts.

    :param arguments: the command line
    :param defaults: value by the name of the option
    :return: the command line with all of the options
    """
    return [*chain.from_iterable(defaults.items()), *arguments]


@contextmanager
def _videos_with_this_package() -> Iterator[None]:
    """Let what ``record_training`` starts for each video be this command, which knows TRPO, in the Python that runs now."""
    original = subprocess.call

    def call(command: Any, *args: Any, **kwargs: Any) -> int:
        if list(command[1:3]) == ["-m", "rl_zoo3.record_video"]:
            command = [sys.executable, "-m", "sb3_trpo.zoo", "record_video", *command[3:]]
        return original(command, *args, **kwargs)

    subprocess.call = call  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.call = original


def main() -> None:
    """Find the script and hand it its arguments."""
    parser = argparse.ArgumentParser(
        "python -m sb3_trpo.zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("script", choices=SCRIPTS)
    script = parser.parse_args(sys.argv[1:2]).script

    from rl_zoo3.exp_manager import ExperimentManager

    import sb3_trpo.zoo  # noqa: F401 - registers TRPO
    from sb3_trpo.distributed import join
    from sb3_trpo.zoo.quick_envs import QUICK_ENVS
    from sb3_trpo.zoo.torchrun import train_together

    ours = argparse.ArgumentParser(f"{parser.prog} {script}", add_help=False, allow_abbrev=False)
    ours.add_argument("--vector-env", choices=QUICK_ENVS, help="the vector environment to train in")
    chosen, arguments = ours.parse_known_args(sys.argv[2:])
    if {"-h", "--help"} & {*arguments}:
        ours.print_help()  # and below it RL Zoo's script tells its own
    if chosen.vector_env is not None:
        made: Any = staticmethod(QUICK_ENVS[chosen.vector_env])
        ExperimentManager.default_vec_env_cls = made
    if script == "train":
        arguments = train_together(join(), arguments)
    sys.argv[:] = [f"{parser.prog} {script}", *with_defaults(arguments, SCRIPTS[script])]
    if script in _MODULES:
        with _videos_with_this_package():
            runpy.run_module(f"rl_zoo3.{script}", run_name="__main__")
    else:
        # Not before they are asked for: the plots need more packages than the rest
        package = "rl_zoo3.plots" if "plot" in script else f"rl_zoo3.{script}"
        getattr(importlib.import_module(package), script)()


if __name__ == "__main__":
    main()
