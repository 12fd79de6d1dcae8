"""What a report of a problem is asked for."""

import platform
from importlib.metadata import version

import pytest
import stable_baselines3 as sb3
import torch as th

import sb3_trpo
from sb3_trpo import about


def test_system_info_tells_the_versions_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours, SB3's, torch's and Python's, printed line by line and handed back."""
    info = sb3_trpo.system_info()
    assert info["sb3_trpo"] == sb3_trpo.__version__ == about.__version__
    assert (info["Stable-Baselines3"], info["PyTorch"]) == (sb3.__version__, th.__version__)
    assert info["Python"] == platform.python_version() and info["sb3_contrib"] == version("sb3_contrib")
    assert capsys.readouterr().out.splitlines() == [f"- {name}: {fact}" for name, fact in info.items()]


def test_system_info_is_silent_where_asked_to(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And says of a package that is not there that it is not; with a GPU it names it."""
    monkeypatch.setattr(about, "OPTIONAL", ("no_such_package",))
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "get_device_name", lambda: "a GPU")
    info = sb3_trpo.system_info(print_info=False)
    assert info["no_such_package"] == "not installed" and info["GPU"] == "a GPU"
    assert capsys.readouterr().out == ""
