"""What is no model is refused, and says what was expected; a file is there whole or not at all."""

import io
import os
import pathlib
import stat
import zipfile
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC

from sb3_trpo import TRPO
from tests.small_models import BOX, DISCRETE, changed, make_env, policy_state, small_model

OTHERS: dict[str, tuple[Any, str, spaces.Space, dict[str, Any]]] = {
    "PPO": (PPO, "MlpPolicy", BOX, {}),
    "A2C": (A2C, "MlpPolicy", BOX, {}),
    "DQN": (DQN, "MlpPolicy", DISCRETE, {"buffer_size": 10}),
    "SAC": (SAC, "MlpPolicy", BOX, {"buffer_size": 10}),
    "RecurrentPPO": (sb3_contrib.RecurrentPPO, "MlpLstmPolicy", BOX, {}),
    "MaskablePPO": (sb3_contrib.MaskablePPO, "MlpPolicy", DISCRETE, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_load_refuses_the_zip_of_another_algorithm(name: str, tmp_path: pathlib.Path) -> None:
    """The error says that it is one, and what was expected; the file stays as it was."""
    algorithm, policy, action_space, arguments = OTHERS[name]
    path = tmp_path / "other.zip"
    algorithm(policy, make_env(action_space=action_space), device="cpu", **arguments).save(path)
    written = path.read_bytes()
    with pytest.raises(ValueError, match=r"another algorithm, expected one saved by sb3_trpo\.TRPO") as refusal:
        TRPO.load(path, device="cpu")
    assert str(path) in str(refusal.value) and "cg_max_steps" in str(refusal.value)
    assert path.read_bytes() == written


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return the path of a saved model."""
    path = tmp_path / "model.zip"
    small_model(seed=8).save(path)
    return path


def damaged(saved: pathlib.Path) -> dict[str, bytes]:
    """Return contents of files that are no models."""
    policy = io.BytesIO()
    small_model().policy.save(policy)  # type: ignore[arg-type]
    empty, garbled = io.BytesIO(), io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    with zipfile.ZipFile(garbled, "w") as archive:
        archive.writestr("data", "{")
    return {
        "text": b"a model",
        "nothing": b"",
        "half a zip": saved.read_bytes()[:-2000],
        "empty zip": empty.getvalue(),
        "garbled zip": garbled.getvalue(),
        "policy": policy.getvalue(),
    }


@pytest.mark.parametrize("name", ["text", "nothing", "half a zip", "empty zip", "garbled zip", "policy"])
def test_load_refuses_a_file_that_is_no_model(name: str, saved: pathlib.Path) -> None:
    """The error names the file and says what would be a model; the file stays as it was."""
    path = saved.parent / "file.zip"
    content = damaged(saved)[name]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no saved model.*expected a zip written by") as refusal:
        TRPO.load(path, device="cpu")
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="no saved model"):
        TRPO.load(io.BytesIO(content), device="cpu")


def test_load_of_a_file_that_is_not_there_says_so(tmp_path: pathlib.Path) -> None:
    """As everywhere in Python."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TRPO.load(tmp_path / "nowhere", device="cpu")


# Saving


@pytest.mark.parametrize("name", ["model", "model.zip", "model.v2", "folder/model"])
@pytest.mark.parametrize("as_path", [True, False])
def test_save_writes_where_sb3_does(name: str, as_path: bool, tmp_path: pathlib.Path) -> None:
    """Suffix, folders and permissions are those of SB3's own save, and nothing else is left in the folder."""
    model = small_model()
    trees = []
    for save, folder in ((model.save, tmp_path / "ours"), (super(TRPO, model).save, tmp_path / "theirs")):
        folder.mkdir()
        path = folder / name
        if "/" in name:
            with pytest.warns(UserWarning, match="does not exist. Will create it"):
                save(path if as_path else str(path))
        else:
            save(path if as_path else str(path))
        trees.append({str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*")})
    assert trees[0] == trees[1] and trees[0]


def test_save_beside_a_folder_of_the_same_name(tmp_path: pathlib.Path) -> None:
    """A folder is not replaced: as in SB3 the file goes beside it."""
    (tmp_path / "model.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder"):
        small_model().save(tmp_path / "model.zip")
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip", "model.zip_2.zip"} or (
        tmp_path / "model.zip_2"
    ).exists()


def test_save_writes_into_the_file_that_a_link_names(tmp_path: pathlib.Path) -> None:
    """As SB3's does: the link stays one, and whoever opens the file itself finds the new model."""
    model, (folder, link) = small_model(), (tmp_path / "real", tmp_path / "latest.zip")
    folder.mkdir()
    model.save(folder / "model")
    link.symlink_to(folder / "model.zip")
    model.learn(64).save(link)
    assert link.is_symlink() and [path.name for path in folder.iterdir()] == ["model.zip"]
    assert TRPO.load(folder / "model", device="cpu").num_timesteps == 64
    link.unlink()
    link.symlink_to(folder / "not there yet.zip")
    model.save(link)
    assert link.is_symlink() and (folder / "not there yet.zip").exists()


def test_link_that_leads_nowhere_is_named(tmp_path: pathlib.Path) -> None:
    """The error is of the name that was given."""
    lost, loop = tmp_path / "lost.zip", tmp_path / "loop.zip"
    lost.symlink_to(tmp_path / "no" / "folder" / "model.zip")
    loop.symlink_to(loop)
    for path in (lost, loop):
        with pytest.raises(OSError, match=path.name):
            small_model().save(path)
    assert {path.name for path in tmp_path.iterdir()} == {"lost.zip", "loop.zip"}


def test_save_keeps_the_permissions_of_the_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.zip"
    path.touch()
    path.chmod(0o640)
    small_model().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_save_refuses_a_file_that_must_not_be_written_to(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the folder then."""
    path = tmp_path / "model.zip"
    path.write_bytes(b"precious")
    opened = open

    def as_if_read_only(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        # Of the administrator, as whom tests may run, nothing is refused
        if pathlib.Path(file) == path and mode != "rb":
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", as_if_read_only)
    with pytest.raises(PermissionError):
        small_model().save(path)
    assert path.read_bytes() == b"precious" and [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_save_where_no_file_can_be_made_names_the_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the hidden one that it would have made there."""
    opened = open

    def as_if_full(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith(".tmp"):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", as_if_full)
    with pytest.raises(PermissionError) as refusal:
        small_model().save(tmp_path / "model")
    assert "model.zip" in str(refusal.value) and ".tmp" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_save_takes_a_name_as_long_as_a_file_may_have(tmp_path: pathlib.Path) -> None:
    name = "x" * (os.pathconf(tmp_path, "PC_NAME_MAX") - len(".zip"))
    small_model().save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.zip"]


def test_save_takes_an_open_file() -> None:
    """A file object is written to as it is."""
    file = io.BytesIO()
    model = small_model()
    model.save(file)
    file.seek(0)
    assert not changed(policy_state(model), policy_state(TRPO.load(file, device="cpu")))


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_save_that_fails_leaves_the_old_file(
    error: type[BaseException], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or Ctrl-C in the middle of saving: the file is the old one to the byte, and no other one is there."""
    model = small_model()
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()

    def failing(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(th, "save", failing)
    with pytest.raises(error):
        model.learn(64).save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert (tmp_path / "model.zip").read_bytes() == before


def test_files_that_are_not_whole_are_refused(saved: pathlib.Path) -> None:
    """Half a file is no model: an error says so, and a model that was to take its weights keeps its own."""
    whole = saved.read_bytes()
    model = small_model()
    before = policy_state(model)
    for size in np.linspace(0, len(whole) - 1, 12, dtype=int):
        saved.write_bytes(whole[:size])
        # Weights are zip files too: cut at the right place the last of them is found, and found to be no model
        with pytest.raises((ValueError, AssertionError), match=r"is no saved model|No data found"):
            TRPO.load(saved, device="cpu")
        with pytest.raises(ValueError, match=r"wasn't a zip-file|do not match"):
            model.set_parameters(str(saved))
    assert not changed(before, policy_state(model))
