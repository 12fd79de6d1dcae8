"""
Draw what a run's trust-region updates did.

``python -m sb3_trpo.inspect FOLDER`` draws what ``TrustRegionRecorder`` has written there, whatever the algorithm.
``python -m sb3_trpo.inspect FOLDER FOLDER ...`` draws several runs on the same axes.
``python -m sb3_trpo.inspect model.zip --env CartPole-v1`` collects one rollout with a saved model, makes one update of its
policy without keeping it, and draws that.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import sb3_trpo
from sb3_trpo.inspect.comparison_figures import draw_comparison
from sb3_trpo.inspect.comparison_page import write_comparison
from sb3_trpo.inspect.gallery import figures_of
from sb3_trpo.inspect.health import check_health
from sb3_trpo.inspect.page import write_report
from sb3_trpo.inspect.probe import inspect_model
from sb3_trpo.inspect.run_files import UPDATES_FILE, Run, read_run
from sb3_trpo.trpo import TRPO

VARIANTS = ("RecurrentTRPO", "MaskableTRPO", "MaskableRecurrentTRPO")
MARKS = {True: "✓", False: "!", None: "?"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description, _, usage = (__doc__ or "").strip().partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m sb3_trpo.inspect",
        description=description,
        epilog=usage.replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, nargs="+", help="the recorder's folder, or the zip-file of a saved model")
    parser.add_argument("--env", help="environment for a saved model, by its name in Gymnasium")
    parser.add_argument("--vec-normalize", type=Path, help="statistics that VecNormalize.save wrote, for a saved model")
    parser.add_argument("--seed", type=int, default=0, help="of the environment for a saved model (default: 0)")
    parser.add_argument("--update", type=int, help="number of the update to look at (default: the last with pictures)")
    parser.add_argument("--output", type=Path, help="folder for the figures (default: figures in or beside RUN)")
    parser.add_argument("--html", action="store_true", help="write one page to share, report.html, instead of PNG files")
    return parser.parse_args(arguments)


def inspect_zip(path: Path, env_id: str, vec_normalize: Path | None, seed: int) -> Run:
    """Look at one update of a saved model, of TRPO or a variant, with as many environments as it was trained with."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    data, _, _ = load_from_zip_file(path, device="cpu")
    n_envs, kind = (data or {}).get("n_envs", 1), (data or {}).get("saved_kind", TRPO.kind)
    cls: type[TRPO] = getattr(sb3_trpo, kind) if kind in VARIANTS else TRPO
    env: VecEnv = make_vec_env(env_id, n_envs=n_envs, seed=seed)
    try:
        if vec_normalize is not None:
            env = VecNormalize.load(str(vec_normalize), env)
        return inspect_model(cls.load(path, env, device="cpu"), name=f"{path.stem} on {env_id}")
    finally:
        env.close()


def load(options: argparse.Namespace) -> Run:
    """
    Find what is to be looked at.

    :param options: the command line
    :raises ValueError: if options are missing or do not go together
    """
    (path,) = options.run
    zipped = Path(f"{path}.zip")
    if not path.exists() and zipped.is_file():
        path = zipped  # as ``load`` finds it
    if path.suffix == ".zip":
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        if options.env is None:
            raise ValueError(f"{path} is a saved model: say which environment with --env")
        return inspect_zip(path, options.env, options.vec_normalize, options.seed)
    if options.env is not None or options.vec_normalize is not None:
        raise ValueError(f"--env and --vec-normalize go with the zip-file of a saved model, got {path}")
    return read_run(path)


def load_several(options: argparse.Namespace) -> tuple[Path, list[Run]]:
    """
    Read several runs, each of which is called by its way from the folder that they have in common.

    :param options: the command line
    :return: that folder, and the runs
    :raises ValueError: if one of them is a saved model, or is given twice, or options do not go with several
    """
    if any(getattr(options, name) is not None for name in ("env", "vec_normalize", "update")):
        raise ValueError("--env, --vec-normalize and --update go with one run, several were given")
    folders = [(path.parent if path.name == UPDATES_FILE else path).resolve() for path in options.run]
    if any(path.suffix == ".zip" for path in folders):
        raise ValueError("a saved model is looked at by itself: several runs must be folders of TrustRegionRecorder")
    if len(set(folders)) < len(folders):
        raise ValueError(f"each run must be given once, got {[str(path) for path in options.run]}")
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return common, [read_run(folder)._replace(name=folder.relative_to(common).as_posix()) for folder in folders]


def compare(options: argparse.Namespace) -> list[Run]:
    """Draw several runs on the same axes; return them."""
    common, runs = load_several(options)
    _report_problems(runs)
    folder = options.output or common / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    if options.html:
        print(write_comparison(runs, folder / "report.html"))
    else:
        draw_comparison(runs).savefig(folder / "comparison.png", dpi=150)
        print(folder / "comparison.png")
    return runs


def draw(options: argparse.Namespace) -> list[Run]:
    """Draw one run; return it."""
    run = load(options)
    _report_problems([run])
    (path,) = options.run
    folder = options.output or (path / "figures" if path.is_dir() else path.with_name(f"{path.stem}_figures"))
    folder.mkdir(parents=True, exist_ok=True)
    if options.html:
        print(write_report(run, folder / "report.html", n_updates=options.update))
    else:
        for name, figure in figures_of(run, options.update):
            figure.savefig(folder / f"{name}.png", dpi=150)
            print(folder / f"{name}.png")
    return [run]


def _report_problems(runs: Sequence[Run]) -> None:
    for run in runs:
        for problem in run.problems:
            print(problem, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for; the exit status is 1 where that is not possible."""
    options = parse(arguments)
    try:
        runs = compare(options) if len(options.run) > 1 else draw(options)
    except (ValueError, OSError, ImportError, KeyError, gym.error.Error, UnpicklingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for run in runs:
        if len(runs) > 1:
            print(f"{run.name}:")
        for finding in check_health(run.updates):
            print(f"{MARKS[finding.healthy]} {finding.name} {finding.says} {finding.advice}".rstrip())
    return 0


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may know no check mark
    sys.exit(main())
