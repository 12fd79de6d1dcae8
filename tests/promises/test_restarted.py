"""The example of many processes goes on where a killed process has left it."""

import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import time

import pytest
from stable_baselines3.common.vec_env import VecNormalize

from tests.spawned import ROOT


def children(pid: int) -> list[int]:
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_example_goes_on_from_its_last_checkpoint(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process: begun again it loads the newest model with its statistics, and makes the steps that are left."""
    for n_steps, said in (("2048", "from 0 to 2048 steps on 1 process"), ("3072", "from 1024 to 3072 steps on 1 process")):
        monkeypatch.setattr(sys, "argv", ["", "--folder", str(tmp_path), "--timesteps", n_steps])
        runpy.run_path(str(ROOT / "examples" / "many_processes.py"), run_name="__main__")
        assert said in capsys.readouterr().out


def test_example_is_killed_as_it_begins_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it writes the first statistics of its second life: what it has gone on from is whole, and it can go on again."""
    script = str(ROOT / "examples" / "many_processes.py")

    def runs(n_steps: int) -> str:
        monkeypatch.setattr(sys, "argv", ["", "--folder", str(tmp_path), "--timesteps", str(n_steps)])
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    runs(2048)

    def dies(self: VecNormalize, path: str) -> None:
        pathlib.Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(VecNormalize, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            runs(4096)
    assert "from 1024 to 4096 steps" in runs(4096)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="asks Linux")
def test_example_goes_on_after_a_kill(tmp_path: pathlib.Path) -> None:
    """torchrun starts all processes again; they load the last checkpoint, and end with the steps that were asked for."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2"]
    options = [str(ROOT / "examples" / "many_processes.py"), "--folder", str(tmp_path), "--timesteps", "40960"]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    said = tmp_path / "said.txt"
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *launcher, *options], env=os.environ | variables, stdout=output, stderr=output
        )
    until = time.monotonic() + 60 * max(1.0, os.getloadavg()[0])
    try:
        while len(list(tmp_path.glob("*.zip"))) < 3 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        workers = children(process.pid)
        assert len(workers) == 2, said.read_text()[-2000:]
        os.kill(workers[1], signal.SIGKILL)
        code = process.wait(timeout=max(1.0, until - time.monotonic()))
    finally:
        for worker in children(process.pid) if process.poll() is None else []:
            os.kill(worker, signal.SIGKILL)
        process.kill()
        process.wait()
    assert code == 0, said.read_text()[-2000:]
    found = re.search(r"from (\d+) to 40960 steps on 2 processes", said.read_text())
    assert found and int(found[1]) >= 2048
    assert (tmp_path / "final" / "model.zip").exists()
