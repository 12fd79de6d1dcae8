"""The benchmark of vector environments: what it prints."""

import argparse
import importlib.util

import pytest

from benchmarks.vector_envs import compare, compare_normalization

QUICK = argparse.Namespace(steps=64, rounds=3, workers=0, cpu=True)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.filterwarnings("ignore::UserWarning")  # EnvPool's spaces
def test_steps_are_compared_kind_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """Relative to DummyVecEnv, and the adapter's relative to what it is around."""
    compare("CartPole-v1", 4, QUICK)
    lines = capsys.readouterr().out.splitlines()
    rows = {
        cells(line)[0]: list(map(float, cells(line)[1:]))
        for line in lines
        if line.startswith("|") and cells(line)[-1][:1].isdigit()
    }
    assert (
        rows["DummyVecEnv"][1] == 1.0
        and {"LeanVecEnv", "SyncVectorEnv", "Gymnasium's own", "Gymnasium's own, bare"} <= rows.keys()
    )
    assert all(figure > 0.0 for row in rows.values() for figure in row)
    of_adapter = [line for line in lines if line.startswith("The adapter adds") and line.endswith(" %")]
    assert len(of_adapter) == 1 + (importlib.util.find_spec("envpool") is not None)


def test_normalisation_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """One row for a number of environments."""
    compare_normalization(64, QUICK)
    assert cells(capsys.readouterr().out.strip())[0] == "64"
