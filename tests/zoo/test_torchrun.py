"""RL Zoo's ``train`` in several processes."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from sb3_trpo import TRPO
from sb3_trpo.distributed import Processes
from tests.spawned import ROOT, spawn, values_of


def test_one_process_changes_nothing() -> None:
    """Neither the command line nor what an algorithm's name stands for."""
    import rl_zoo3

    from sb3_trpo.zoo.torchrun import train_together

    before, arguments = dict(rl_zoo3.ALGOS), ["--env", "CartPole-v1"]
    assert train_together(Processes(), arguments) is arguments and before == rl_zoo3.ALGOS


class Second(Processes):
    """The second of two."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.size = 1, 2


@pytest.mark.parametrize("option", ["-optimize", "--optimize-hyperparameters", "--optimize", "-optim"])
def test_search_in_several_processes_is_refused(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would try something else."""
    import rl_zoo3

    from sb3_trpo.zoo.torchrun import train_together

    monkeypatch.setattr(rl_zoo3, "ALGOS", dict(rl_zoo3.ALGOS))
    with pytest.raises(SystemExit, match="-optimize must be left out under torchrun"):
        train_together(Second(), ["--env", "CartPole-v1", option])


def test_one_process_alone_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would each begin a run of their own."""
    import rl_zoo3

    from sb3_trpo.zoo.torchrun import train_together

    monkeypatch.setattr(rl_zoo3, "ALGOS", dict(rl_zoo3.ALGOS))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    arguments = train_together(Second(), ["--env", "CartPole-v1", "--track", "--trac"])
    sys.stdout.close()
    assert arguments[:2] == ["--env", "CartPole-v1"] and not {"--track", "--trac"} & {*arguments}


ARGUMENTS = (
    "train --env CartPole-v1 -n 512 --seed 1 --device cpu --num-threads 1 --eval-freq 200 -params n_steps:64 n_envs:2".split()
)


def check(folder: pathlib.Path, said: str) -> None:
    """Fail unless there is one training, told once."""
    assert [path.name for path in (folder / "logs" / "trpo").iterdir()] == ["CartPole-v1_1"]
    model = TRPO.load(folder / "logs" / "trpo" / "CartPole-v1_1" / "CartPole-v1.zip", device="cpu")
    assert model.num_timesteps == 512 and model._n_updates == 2
    assert re.search(r"total_timesteps +\| 512", said) and said.count("Saving to") == 1


def test_processes_make_one_training(tmp_path: pathlib.Path) -> None:
    """Rank 0 alone writes a folder; the steps in the log and in the saved model are those of both."""
    said, of_the_other = values_of(spawn("zoo.run", 2, str(tmp_path), ARGUMENTS))
    assert of_the_other == ""
    check(tmp_path, said)


@pytest.mark.slow
def test_torchrun_makes_one_training(tmp_path: pathlib.Path) -> None:
    """By its own launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "sb3_trpo.zoo"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *launcher, *ARGUMENTS],
        cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    check(tmp_path, result.stdout)
