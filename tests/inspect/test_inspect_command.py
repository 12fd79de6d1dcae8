"""``python -m sb3_trpo.inspect``: draws a record or a saved model, and says what is wrong."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.image import imread

from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo.inspect import Run, figures_of, read_run
from sb3_trpo.inspect.__main__ import main
from sb3_trpo.inspect.run_files import append

# The command line


def test_command_draws_a_record_and_reports_what_is_damaged(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures where they are wanted, with the health in words; damaged lines by file and line on the error stream."""
    folder, out = tmp_path / "damaged", tmp_path / "out"
    shutil.copytree(recorded, folder)
    for name, line in (("updates.jsonl", 3), ("slices.jsonl", 1)):
        lines = (folder / name).read_text().splitlines()
        lines[line - 1] = lines[line - 1][:100]
        (folder / name).write_text("\n".join(lines) + "\n")
    assert main([str(folder / "updates.jsonl"), "--output", str(out)]) == 0
    output, error = capsys.readouterr()
    assert f"{folder / 'updates.jsonl'}:3: " in error and f"{folder / 'slices.jsonl'}:1: " in error
    names = {"run", "ladder", "convergence", "bubble", "bars", "kl_per_state"}
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in names}
    assert all(imread(path).std() > 0.01 for path in out.iterdir())
    assert str(out / "bubble.png") in output and "✓ Do the conjugate gradients converge?" in output


def test_command_inspects_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A zip and the name of an environment are enough; the file is what it was."""
    path = tmp_path / "model.zip"
    TRPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu").learn(128).save(path)
    before = path.read_bytes()
    assert main([str(path), "--env", "CartPole-v1", "--html"]) == 0
    assert path.read_bytes() == before
    page = (tmp_path / "model_figures" / "report.html").read_text(encoding="utf-8")
    # Of a single update there is no run to draw
    assert "model on CartPole-v1" in page and "<h2>One update</h2>" in page and "<h2>The run</h2>" not in page
    assert "✓ Do the conjugate gradients converge?" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], r"updates\.jsonl does not exist"),
        (["model.zip"], "model.zip is a saved model: .*--env"),
        (["nowhere.zip"], "there is no file nowhere.zip"),
        (["folder", "--env", "CartPole-v1"], "saved model"),
        (["nowhere.zip", "--env", "CartPole-v1"], "nowhere"),
        (["empty"], "no update"),
        (["empty", "--html"], "no update"),
    ],
)
def test_command_says_what_is_wrong(
    arguments: Sequence[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing records, models and options: one line that names them, and status 1."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "updates.jsonl").write_text("")
    (tmp_path / "model.zip").write_text("")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(message, error)


@pytest.fixture()
def two(recorded: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return the folders of two runs."""
    folders = tmp_path / "runs" / "cartpole" / "trpo", tmp_path / "runs" / "ppo"
    for folder in folders:
        shutil.copytree(recorded, folder)
    return folders


def test_command_compares_runs_by_the_names_of_their_folders(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """One page beside the runs, or one picture, and the health of each under its name."""
    assert main([*map(str, two), "--html"]) == 0
    output = capsys.readouterr().out
    report = two[1].parent / "comparison" / "report.html"
    assert str(report) in output and "\ncartpole/trpo:\n" in output and "\nppo:\n" in output
    page = report.read_text(encoding="utf-8")
    assert "Trust region report: cartpole/trpo, ppo" in page
    assert main([str(two[0]), str(two[1] / "updates.jsonl"), "--output", str(two[0] / "here")]) == 0
    assert imread(two[0] / "here" / "comparison.png").std() > 0.01


def test_command_says_what_does_not_go_with_several_runs(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Saved models, the same run twice, options for one."""
    trpo, ppo = map(str, two)
    for arguments, message in (
        ([trpo, "model.zip"], "saved model"),
        ([trpo, ppo, trpo], "given once"),
        ([trpo, ppo, "--update", "3"], "--update"),
        ([trpo, f"{ppo}s"], r"updates\.jsonl does not exist"),
    ):
        assert main(arguments) == 1
        assert re.search(message, capsys.readouterr().err)


def test_command_names_an_update_that_there_is_not(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The updates that there are stand in the message."""
    assert main([str(recorded), "--update", "77"]) == 1
    assert "update 77" in capsys.readouterr().err


def test_figures_of_an_update_whose_line_is_damaged_are_still_drawn(run: Run, tmp_path: Path) -> None:
    """The plane of an update is drawn though its record is lost."""
    append(tmp_path / "slices.jsonl", run.slices[-1])
    (tmp_path / "updates.jsonl").write_text("garbage\n")
    assert [name for name, _ in figures_of(read_run(tmp_path))] == ["bubble"]


def test_command_inspects_saved_models_of_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.zip"
    RecurrentTRPO("MlpLstmPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").save(path)
    # As ``load`` does, it finds the file without its ending
    assert main([str(path.with_suffix("")), "--env", "CartPole-v1"]) == 0
    assert "✓ Do the conjugate gradients converge?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "CartPole-v17"], "CartPole"),
        (["--env", ""], "error: "),
        (["--env", "CartPole-v1", "--seed", "-1"], "error: "),
        (["--env", "CartPole-v1", "--vec-normalize", "model.zip"], "error: "),
    ],
)
def test_command_says_in_a_line_what_cannot_be(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, numbers and files that are none, of a saved model."""
    monkeypatch.chdir(tmp_path)
    TRPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").save("model")
    assert main(["model.zip", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_command_writes_to_a_pipe_that_knows_no_check_mark(recorded: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sb3_trpo.inspect", str(recorded), "--output", str(tmp_path)]
    result = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"? Do the conjugate gradients converge?" in result.stdout
