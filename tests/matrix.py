"""
The tests with other Pythons, and with the oldest versions that setup.cfg allows: ``make test-matrix``.

For each interpreter from 3.10 to 3.13 on the path, or under pyenv, an environment is made in ``.matrix/`` once. The quick part
of the tests runs there: numerics, guards, fast paths, vector environments and modules, without the promises and
without what needs RL Zoo. ``--whole`` runs everything.
"""

import argparse
import configparser
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".matrix"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# What the quick part needs beside the package; SB3's recorder of videos asks for moviepy
FOR_TESTS = ("pytest", "hypothesis", "moviepy", "pandas", "tensorboard", "tqdm", "rich")
QUICK = ("tests/trust_region", "tests/fast", "tests/guards", "tests/vec_env", *(f"tests/test_{name}.py" for name in (
    "about", "checked_algorithm", "contrib", "critic", "distributions", "gradients", "hints", "hyperparameters", "layers",
    "metrics", "objective", "policies", "randomness", "rollout", "trpo", "update",
)))  # fmt: skip

# The adapters of vector environments need Gymnasium 1.1, and refuse what is older
NOT_WITH_THE_LOWEST = ("tests/vec_env",)


def requirements(*extras: str) -> list[str]:
    """Return what setup.cfg asks for, with that of extras, those of others that they name included."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].split("\n")
    for extra in extras:
        lines += config["options.extras_require"][extra].split("\n")
    return [line for line in lines if line.strip() and not line.startswith(("#", "sb3_trpo["))]


def lowest(wanted: Sequence[str]) -> list[str]:
    """Return each requirement with the oldest version that it allows, and as it is where it names none."""
    return [re.sub(r">=([\w.]+).*", r"==\1", requirement) for requirement in wanted]


def interpreters() -> Iterator[tuple[str, str]]:
    """Yield version and path of each Python that is there."""
    for version in PYTHONS:
        under_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        path = str(under_pyenv[-1]) if under_pyenv else shutil.which(f"python{version}")
        if path:
            yield version, path


def environment(name: str, python: str, packages: Sequence[str]) -> Path:
    """Return the Python of an environment, which is made if it is not whole; the package is the one in the tree."""
    folder = FOLDER / name
    stamp = folder / "packages"
    if not stamp.exists() or stamp.read_text(encoding="utf-8").split("\n") != list(packages):
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages], check=True)
        stamp.write_text("\n".join(packages), encoding="utf-8")
    return folder / "bin" / "python"


def main() -> int:
    """Test with each, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="versions of Python, or 'lowest'")
    parser.add_argument("--whole", action="store_true", help="everything that make test runs")
    arguments = parser.parse_args()
    found = dict(interpreters())
    if not found:
        print("no Python from 3.10 to 3.13 was found")
        return 1
    wanted = [*requirements("contrib", "plots"), *FOR_TESTS]
    rows = {version: (path, wanted) for version, path in found.items()}
    oldest = next(iter(found))
    rows["lowest"] = (found[oldest], [*lowest(requirements("contrib", "plots")), *FOR_TESTS])
    results = {}
    for name, (path, packages) in rows.items():
        if arguments.only and name not in arguments.only:
            continue
        print(f"== {name}: {path}", flush=True)
        whole = [f"{ROOT}[tests,benchmarks]"] if arguments.whole and name != "lowest" else packages
        python = environment(f"{name}-whole" if whole is not packages else name, path, whole)
        tests = (
            [] if whole is not packages else [path for path in QUICK if name != "lowest" or path not in NOT_WITH_THE_LOWEST]
        )
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        results[name] = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}).returncode
    for name, code in results.items():
        print(f"{name}: {'passed' if code == 0 else 'FAILED'}")
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
