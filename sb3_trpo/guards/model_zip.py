"""The file of a saved model: there whole or not at all, and looked into before anything of it is unpickled."""

import errno
import io
import json
import os
import pathlib
import shutil
import uuid
import warnings
import zipfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from io import BufferedWriter
from typing import Any

from stable_baselines3.common.save_util import open_path


def path_to_write(path: str | pathlib.Path, *, suffix: str) -> pathlib.Path:
    """
    Return where SB3 would write a file: with the suffix if it has none, beside a folder of the same name.

    :param path: as the user gave it; its folder is made if it is not there
    :param suffix: without the dot
    """
    path = pathlib.Path(path)
    if path.suffix == "":
        path = pathlib.Path(f"{path}.{suffix}")
    if path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2", stacklevel=3)
        return path_to_write(f"{path}_2", suffix=suffix)
    if not path.parent.exists():
        warnings.warn(f"Path '{path.parent}' does not exist. Will create it.", stacklevel=3)
        path.parent.mkdir(exist_ok=True, parents=True)
    return path


@contextmanager
def written_whole(path: pathlib.Path) -> Iterator[BufferedWriter]:
    """
    Write a file under a name of its own in the same folder, and give it its name once it is on the disk.

    Whatever happens in between, a power failure included, there is the old file or the new one. What is left of a killed
    process is a file whose name begins with a dot and ends with ``.tmp``. A link stays one, and a file keeps its permissions.

    :param path: the file's name; its folder exists
    :return: the file to write to
    :raises OSError: naming the file, if it cannot be written
    """
    try:
        target = path.resolve()
    except RuntimeError as error:  # a link to itself
        raise OSError(errno.ELOOP, str(error), str(path)) from error
    if not target.parent.exists():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {target.parent} for it to lead into", str(path))
    path, is_there = target, target.exists()
    if is_there:
        open(path, "ab").close()  # refuses what writing into the file would
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        file = open(unfinished, "xb")
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: no file can be made in {path.parent}", str(path)) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if is_there:
            shutil.copymode(path, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def saved_attributes(path: str | pathlib.Path | io.BufferedIOBase, *, expected: Set[str], kind: str) -> dict[str, Any]:
    """
    Return the attributes of a saved model by name: numbers and strings as they are, of other things a description.

    :param path: path of the zip, or an open file
    :param expected: names that every model of the right kind has
    :param kind: what saves such models, in words
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is no saved model, or one of another algorithm
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            saved = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no saved model ({error}), expected a zip written by the `save` of a model. "
            "What `policy.save` wrote is for the `load` of the policy's class"
        ) from error
    finally:
        if file is not path:
            file.close()
    if not saved.keys() >= expected:
        policy = saved.get("policy_class") or {}
        raise ValueError(
            f"{path} holds a model of another algorithm, expected one saved by {kind}: "
            f"it has no {sorted(expected - saved.keys())}, and a policy of {policy.get('__module__')}"
        )
    return saved
