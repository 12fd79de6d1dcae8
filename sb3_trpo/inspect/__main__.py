"""
Draw what a run's trust-region updates did.

``python -m sb3_trpo.inspect FOLDER`` draws what ``TrustRegionRecorder`` has written there.
``python -m sb3_trpo.inspect model.zip --env CartPole-v1`` collects one rollout with a saved model, makes one update of its
policy without keeping it, and draws that.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo.inspect.gallery import figures_of
from sb3_trpo.inspect.health import check_health
from sb3_trpo.inspect.page import write_report
from sb3_trpo.inspect.probe import inspect_model
from sb3_trpo.inspect.run_files import Run, read_run
from sb3_trpo.trpo import TRPO

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
    parser.add_argument("run", type=Path, help="the recorder's folder, or the zip-file of a saved model")
    parser.add_argument("--env", help="environment for a saved model, by its name in Gymnasium")
    parser.add_argument("--vec-normalize", type=Path, help="statistics that VecNormalize.save wrote, for a saved model")
    parser.add_argument("--seed", type=int, default=0, help="of the environment for a saved model (default: 0)")
    parser.add_argument("--update", type=int, help="number of the update to look at (default: the last with pictures)")
    parser.add_argument("--output", type=Path, help="folder for the figures (default: figures in or beside RUN)")
    parser.add_argument("--html", action="store_true", help="write one page to share, report.html, instead of PNG files")
    return parser.parse_args(arguments)


def inspect_zip(path: Path, env_id: str, vec_normalize: Path | None, seed: int) -> Run:
    """Look at one update of a saved model, with as many environments as it was trained with."""
    data, _, _ = load_from_zip_file(path, device="cpu")
    n_envs = (data or {}).get("n_envs", 1)
    env: VecEnv = make_vec_env(env_id, n_envs=n_envs, seed=seed)
    if vec_normalize is not None:
        env = VecNormalize.load(str(vec_normalize), env)
    try:
        return inspect_model(TRPO.load(path, env, device="cpu"), name=f"{path.stem} on {env_id}")
    finally:
        env.close()


def load(options: argparse.Namespace) -> Run:
    """
    Find what is to be looked at.

    :param options: the command line
    :raises ValueError: if options are missing or do not go together
    """
    if options.run.suffix == ".zip":
        if options.env is None:
            raise ValueError(f"{options.run} is a saved model: say which environment with --env")
        return inspect_zip(options.run, options.env, options.vec_normalize, options.seed)
    if options.env is not None or options.vec_normalize is not None:
        raise ValueError(f"--env and --vec-normalize go with the zip-file of a saved model, got {options.run}")
    return read_run(options.run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for; the exit status is 1 where that is not possible."""
    options = parse(arguments)
    try:
        run = load(options)
        for problem in run.problems:
            print(problem, file=sys.stderr)
        beside = options.run.with_name(f"{options.run.stem}_figures")
        folder = options.output or (options.run / "figures" if options.run.is_dir() else beside)
        folder.mkdir(parents=True, exist_ok=True)
        if options.html:
            print(write_report(run, folder / "report.html", n_updates=options.update))
        else:
            for name, figure in figures_of(run, options.update):
                figure.savefig(folder / f"{name}.png", dpi=150)
                print(folder / f"{name}.png")
    except (ValueError, OSError, ImportError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for finding in check_health(run.updates):
        print(f"{MARKS[finding.healthy]} {finding.name} {finding.says} {finding.advice}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
