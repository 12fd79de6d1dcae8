"""Files that are there whole or not at all."""

import os
import pathlib
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter


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
    process is a file whose name begins with a dot and ends with ``.tmp``.

    :param path: the file's name; its folder exists
    :return: the file to write to
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(unfinished, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
