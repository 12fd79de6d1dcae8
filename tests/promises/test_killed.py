"""What is on the disk survives the process, what comes from elsewhere runs nothing, and a seed is a seed in any process."""

import base64
import io
import json
import os
import pathlib
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from typing import Any

import cloudpickle
import pytest
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_trpo import TRPO
from tests.small_models import RandomEnv, changed, make_env, policy_state, small_model
from tests.spawned import FORKS

ROOT = pathlib.Path(__file__).parents[2]


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start Python in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=variables)


def killed_while_saving(path: pathlib.Path) -> None:
    """Save, train, and be killed as it is saved again."""
    model = small_model()
    model.save(path)
    shutil.copy(path, path.with_suffix(".before"))
    save = th.save

    def half(state: Any, file: Any) -> None:
        save(state, file)
        os.kill(os.getpid(), signal.SIGKILL)

    th.save = half  # type: ignore[assignment]
    model.learn(64).save(path)


def test_save_that_is_killed_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    """kill -9 when half of the zip is written: under the final name there is the model of before."""
    process = FORKS.Process(target=killed_while_saving, args=(tmp_path / "model.zip",))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert {path.suffix for path in tmp_path.iterdir()} == {".zip", ".tmp", ".before"}
    assert (tmp_path / "model.zip").read_bytes() == (tmp_path / "model.before").read_bytes()
    assert TRPO.load(tmp_path / "model", device="cpu").num_timesteps == 0


TRAIN = """
import pathlib, sys
from stable_baselines3.common.callbacks import CheckpointCallback
from sb3_trpo import TRPO
from tests.small_models import make_env, small_model
folder = pathlib.Path(sys.argv[1])
newest = max(folder.glob("*.zip"), key=lambda path: int(path.stem.split("_")[-2]), default=None)
if newest is None:
    model = small_model(policy_kwargs={"net_arch": [128, 128]})
else:
    model = TRPO.load(newest, make_env(), device="cpu")
print(model.num_timesteps, flush=True)
model.learn(10**9, CheckpointCallback(3, str(folder), "run"), reset_num_timesteps=newest is None, log_interval=None)
"""


def steps_of(path: pathlib.Path) -> int:
    """Return how far a checkpoint is: ``run_123_steps.zip``."""
    return int(path.stem.split("_")[-2])


@pytest.mark.slow
def test_training_killed_twenty_times_goes_on_from_its_newest_checkpoint(tmp_path: pathlib.Path) -> None:
    """kill -9 at random moments: whatever has a checkpoint's name loads, and the next run goes on from the newest."""
    dice = random.Random(0)
    newest, n_unfinished = 0, 0
    seen: set[pathlib.Path] = set()
    for _ in range(20):
        process = python(TRAIN, str(tmp_path))
        assert process.stdout is not None
        # It starts where the one before it was killed
        assert int(process.stdout.readline()) == newest
        n_before = len(list(tmp_path.glob("*.zip")))
        while len(list(tmp_path.glob("*.zip"))) == n_before:
            assert process.poll() is None
            time.sleep(1e-3)
        time.sleep(dice.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in set(tmp_path.glob("*.zip")) - seen:
            model = TRPO.load(path, device="cpu")
            assert model.num_timesteps == steps_of(path)
            assert all(bool(tensor.isfinite().all()) for tensor in policy_state(model).values())
            seen.add(path)
        n_unfinished += len(list(tmp_path.glob(".*.tmp")))
        reached = max(map(steps_of, tmp_path.glob("*.zip")))
        assert reached > newest
        newest = reached
    # The dice did hit files that were being written
    assert n_unfinished > 0
    last = max(tmp_path.glob("*.zip"), key=steps_of)
    model = TRPO.load(last, make_env(), device="cpu").learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == newest + 64 and model.last_update is not None


def test_checkpoint_callback_saves_whole_files(tmp_path: pathlib.Path) -> None:
    """SB3's CheckpointCallback goes through save, and its files are models."""
    model = small_model().learn(128, CheckpointCallback(64, str(tmp_path), "run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run_128_steps.zip", "run_64_steps.zip"]
    # Saved before the update that the rollout is for
    loaded = TRPO.load(tmp_path / "run_128_steps", device="cpu")
    assert loaded.num_timesteps == 128 and changed(policy_state(model), policy_state(loaded))


# The same seed, the same weights; in another process: tests/promises/test_variants.py


@pytest.mark.parametrize("fast", [True, False])
def test_same_seed_with_environments_in_processes_ends_with_the_same_weights(fast: bool) -> None:
    """DummyVecEnv and SubprocVecEnv are one and the same to training."""
    here = small_model(env=DummyVecEnv([RandomEnv] * 2), seed=5, fast=fast).learn(192)
    env = SubprocVecEnv([RandomEnv] * 2, start_method="fork")
    try:
        apart = small_model(env=env, seed=5, fast=fast).learn(192)
    finally:
        env.close()
    assert not changed(policy_state(here), policy_state(apart))


@pytest.mark.parametrize("fast", [True, False])
def test_same_seed_across_save_and_load_ends_with_the_same_weights(fast: bool, tmp_path: pathlib.Path) -> None:
    """A run that was saved, loaded and seeded goes on to the same weights as one that was only seeded, every time."""
    ends = []
    for round_trip in (False, True, True):
        model = small_model(seed=3, fast=fast).learn(128)
        if round_trip:
            model.save(tmp_path / "model")
            model = TRPO.load(tmp_path / "model", make_env(), device="cpu")
        else:
            model.set_env(make_env())
        model.set_random_seed(7)
        ends.append(policy_state(model.learn(128, reset_num_timesteps=False)))
    assert not changed(ends[0], ends[1]) and not changed(ends[1], ends[2])


# Files from elsewhere


class Mine:
    """What a hostile file holds: unpickling it calls a function of the attacker's choice, here a harmless one."""

    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.Path.touch, (self.marker,)


def rewritten(path: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
    """Return a copy of a zip with one of its files replaced."""
    hostile = path.with_name("hostile.zip")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(hostile, "w") as target:
        for entry in source.namelist():
            target.writestr(entry, content if entry == name else source.read(entry))
    return hostile


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a model's file."""
    small_model(seed=8).learn(64).save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def test_set_parameters_runs_nothing_that_a_file_holds(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Weights of an untrusted zip, into a model built by the caller: load would run its code, set_parameters does not."""
    marker = tmp_path / "marker"
    with zipfile.ZipFile(saved) as archive:
        data = json.loads(archive.read("data"))
    pickled = base64.b64encode(cloudpickle.dumps(Mine(marker))).decode()
    data["learning_rate"] = {":type:": "harmless", ":serialized:": pickled}
    hostile = rewritten(saved, "data", json.dumps(data).encode())

    model = small_model()
    model.set_parameters(str(hostile), device="cpu")
    assert not marker.exists()
    assert not changed(policy_state(TRPO.load(saved, device="cpu")), policy_state(model))
    assert model.learn(64).last_update is not None
    # The danger is real
    with pytest.raises((TypeError, ValueError)):
        TRPO.load(hostile, device="cpu")
    assert marker.exists()


def test_set_parameters_refuses_weights_that_are_code(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A pickle in place of tensors is refused before it runs, and no parameter is changed."""
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    th.save({"log_std": Mine(marker)}, buffer)
    model = small_model()
    before = policy_state(model)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        model.set_parameters(str(rewritten(saved, "policy.pth", buffer.getvalue())), device="cpu")
    assert not marker.exists() and not changed(before, policy_state(model))
