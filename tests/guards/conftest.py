"""A model on the disk, that nobody writes to."""

import pathlib

import pytest

from tests.small_models import small_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the path of a saved model."""
    path = tmp_path_factory.mktemp("saved") / "model.zip"
    small_model().learn(64).save(path)
    return path
