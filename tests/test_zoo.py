"""RL Zoo: training, playing, plotting and optimising with this TRPO, through our entry point and through RL Zoo's own."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import yaml

from benchmarks.settings import constructor_arguments
from sb3_trpo import TRPO
from sb3_trpo.zoo import linear_schedule

HYPERPARAMETERS = pathlib.Path(__file__).parent.parent / "sb3_trpo" / "zoo" / "hyperparams" / "trpo.yml"
SETTINGS: dict[str, dict[str, Any]] = yaml.safe_load(HYPERPARAMETERS.read_text(encoding="utf-8"))
# What RL Zoo keeps for itself
OF_THE_ZOO = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "frame_stack", "policy"}


def run(folder: pathlib.Path, *command: str, code: int = 0) -> str:
    """Run a module in a process of its own (RL Zoo patches Gymnasium for the whole process), and return what it says."""
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == code, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout + result.stderr


TINY = ("-n", "256", "--seed", "1", "--device", "cpu", "--num-threads", "1", "-params", "n_steps:64")


def load(path: pathlib.Path) -> TRPO:
    """Load what RL Zoo saved, without RL Zoo."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "rl_zoo3"]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "rl_zoo3", None)  # an import of it raises
        return TRPO.load(path, device="cpu")


def test_zoo_trains_with_our_hyperparameters(tmp_path: pathlib.Path) -> None:
    """Our file is the default one, schedules are strings, and the model opens without RL Zoo."""
    said = run(
        tmp_path, "sb3_trpo.zoo", "train", "--env", "CartPole-v1", *TINY, "target_kl:'lin_0.02'", "cg_damping:'lin_0.4'"
    )
    assert "sb3_trpo/zoo/hyperparams/trpo.yml" in said and "train/" in said and "update_accepted" in said
    folder = tmp_path / "logs" / "trpo" / "CartPole-v1_1"
    config = (folder / "CartPole-v1" / "config.yml").read_text()
    assert "lin_0.02" in config and "lin_0.4" in config
    model = load(folder / "CartPole-v1.zip")
    assert callable(model.target_kl) and model.target_kl(0.5) == pytest.approx(0.01)
    assert callable(model.cg_damping) and model.cg_damping(0.25) == pytest.approx(0.1)
    assert callable(model.learning_rate) and model.learning_rate(0.5) == pytest.approx(0.0005)  # lin_0.001 in our file
    assert (model.n_envs, model.n_critic_updates, model.fast) == (8, 20, True)
    assert model.num_timesteps == 512 and model._n_updates == 1


@pytest.mark.slow
def test_zoo_names_what_it_can_run(tmp_path: pathlib.Path) -> None:
    """An unknown script is refused with the list of those there are."""
    assert "plot_from_file" in run(tmp_path, "sb3_trpo.zoo", "trian", code=2)


@pytest.mark.parametrize("text, ends", [("lin_0.02", (0.02, 0.0)), ("lin_0.1_0.02", (0.1, 0.02)), ("lin_1e-3", (1e-3, 0.0))])
def test_notation_of_schedules(text: str, ends: tuple[float, float]) -> None:
    """The first number is where the schedule begins, the second, or zero, where it ends."""
    schedule = linear_schedule(text)
    assert (schedule(1.0), schedule(0.0)) == pytest.approx(ends) and schedule(0.5) == pytest.approx(sum(ends) / 2)
    assert linear_schedule(0.3) == 0.3


@pytest.mark.parametrize("text", ["lin", "lin_", "lin_a", "exp_0.5", "0.5", "lin_1_2_3", ""])
def test_notation_of_schedules_refuses(text: str) -> None:
    """Any other string is refused by an error that shows it and what was expected."""
    with pytest.raises(ValueError, match=r"lin_0\.02") as refusal:
        linear_schedule(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "default"])
def test_hyperparameters_are_ours(name: str) -> None:
    """Every entry is made of arguments that the constructor takes, in our units."""
    entry = {key: value for key, value in SETTINGS[name].items() if key not in OF_THE_ZOO}
    settings = constructor_arguments({**entry, "policy_kwargs": eval(entry.get("policy_kwargs", "{}"))})
    env = "Pendulum-v1" if settings.get("use_sde") or "std_damping" in settings else "CartPole-v1"
    model = TRPO("MlpPolicy", env, device="cpu", **settings)
    assert all(getattr(model, key) == value for key, value in settings.items() if key != "policy_kwargs")
    assert SETTINGS[name]["n_timesteps"] >= 5e4 and "policy" in SETTINGS[name]


def test_hyperparameters_cover_the_environments_of_the_field() -> None:
    """Classic control, Box2D, MuJoCo's fifth version and Atari, under the names that Gymnasium knows."""
    import gymnasium as gym

    names = SETTINGS.keys() - {"default", "atari"}
    assert all(name in gym.registry for name in names)
    mujoco = {"HalfCheetah", "Ant", "Hopper", "Walker2d", "Swimmer", "Humanoid", "Reacher"}
    assert {f"{name}-v5" for name in mujoco} | {"CartPole-v1", "Pendulum-v1", "LunarLander-v3", "BipedalWalker-v3"} <= names
    assert SETTINGS["atari"]["policy"] == "CnnPolicy"


@pytest.mark.slow
def test_zoo_of_rl_zoo_itself_trains_with_ours(tmp_path: pathlib.Path) -> None:
    """RL Zoo's train with our plugin among its gym packages: our class, our file, in processes too; training goes on."""
    plugin = ("--algo", "trpo", "--gym-packages", "sb3_trpo.zoo")
    said = run(tmp_path, "rl_zoo3.train", *plugin, "--env", "Pendulum-v1", "--vec-env", "subproc", *TINY)
    assert "sb3_trpo/zoo/hyperparams/trpo.yml" in said and "update_accepted" in said
    path = tmp_path / "logs" / "trpo" / "Pendulum-v1_1" / "Pendulum-v1.zip"
    assert load(path).sde_sample_freq == 4
    run(tmp_path, "rl_zoo3.train", *plugin, "--env", "Pendulum-v1", "-i", str(path), *TINY)
    assert load(tmp_path / "logs" / "trpo" / "Pendulum-v1_2" / "Pendulum-v1.zip")._n_updates >= 2
    said = run(tmp_path, "rl_zoo3.enjoy", *plugin, "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "250")
    assert "Mean reward" in said
    # Other algorithms are RL Zoo's own, with its own files
    plugin = ("--algo", "ppo", "--gym-packages", "sb3_trpo.zoo")
    said = run(tmp_path, "rl_zoo3.train", *plugin, "--env", "CartPole-v1", "-n", "64", "-params", "n_steps:32")
    assert "rl_zoo3/hyperparams/ppo.yml" in said


@pytest.mark.slow
def test_zoo_reads_the_file_that_it_is_given(tmp_path: pathlib.Path) -> None:
    """-conf is the user's choice; a schedule that is none is refused."""
    (tmp_path / "own.yml").write_text("CartPole-v1: {n_timesteps: 64, policy: MlpPolicy, n_steps: 32, target_kl: lin_0.5}\n")
    run(tmp_path, "sb3_trpo.zoo", "train", "-conf", "own.yml")
    model = load(tmp_path / "logs" / "trpo" / "CartPole-v1_1" / "CartPole-v1.zip")
    assert callable(model.target_kl) and model.target_kl(1.0) == 0.5 and model.n_steps == 32
    (tmp_path / "own.yml").write_text("CartPole-v1: {n_timesteps: 64, policy: MlpPolicy, target_kl: exp_0.5}\n")
    said = run(tmp_path, "sb3_trpo.zoo", "train", "-conf", "own.yml", code=1)
    assert "lin_0.02" in said and "exp_0.5" in said


@pytest.mark.slow
def test_zoo_plays_records_and_plots(tmp_path: pathlib.Path) -> None:
    """What was trained is played, filmed and drawn, all from the folder that train writes to."""
    for _ in range(2):
        run(tmp_path, "sb3_trpo.zoo", "train", "--env", "CartPole-v1", "--eval-freq", "100", "--save-freq", "100", "-P", *TINY)
    said = run(tmp_path, "sb3_trpo.zoo", "enjoy", "--env", "CartPole-v1", "--no-render", "-n", "300")
    assert "CartPole-v1_2" in said and "Mean reward" in said
    run(tmp_path, "sb3_trpo.zoo", "enjoy", "--env", "CartPole-v1", "--no-render", "-n", "10", "--load-best")
    run(tmp_path, "sb3_trpo.zoo", "enjoy", "--env", "CartPole-v1", "--no-render", "-n", "10", "--load-last-checkpoint")
    run(tmp_path, "sb3_trpo.zoo", "record_video", "--env", "CartPole-v1", "-n", "20")
    assert list(tmp_path.glob("logs/trpo/CartPole-v1_2/videos/*.mp4"))
    run(tmp_path, "sb3_trpo.zoo", "plot_train", "--env", "CartPole-v1")
    said = run(tmp_path, "sb3_trpo.zoo", "all_plots", "--env", "CartPole-v1", "--no-display", "-o", "results")
    assert "TRPO" in said
    run(tmp_path, "sb3_trpo.zoo", "plot_from_file", "-i", "results.pkl", "-o", "curve.svg")
    assert (tmp_path / "curve.svg").stat().st_size > 1000


@pytest.mark.slow
def test_zoo_optimises_hyperparameters_in_our_units(tmp_path: pathlib.Path) -> None:
    """Optuna's trials draw from our ranges, are pruned or finished, and the best one trains from the study."""
    study = ("--storage", "study.log", "--study-name", "ours")
    tiny = ("-n", "1000", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots", "--seed", "0")
    run(tmp_path, "sb3_trpo.zoo", "train", "-optimize", "--env", "CartPole-v1", "--n-trials", "3", *study, *tiny)
    (report,) = tmp_path.glob("logs/trpo/report_CartPole-v1_*.csv")
    header, *rows = report.read_text().splitlines()
    assert len(rows) == 3 and all("COMPLETE" in row or "PRUNED" in row for row in rows)
    assert {"params_target_kl", "params_cg_damping", "params_cg_max_steps"} <= {*header.split(",")}
    run(tmp_path, "sb3_trpo.zoo", "train", "--env", "CartPole-v1", "-n", "64", "--trial-id", "1", *study)
    model = load(sorted(tmp_path.glob("logs/trpo/CartPole-v1_*/CartPole-v1.zip"))[-1])
    assert isinstance(model.target_kl, float) and 0.002 <= model.target_kl <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "BipedalWalker-v3", "HalfCheetah-v5"])
def test_zoo_builds_the_pipelines_of_the_field(env_id: str, tmp_path: pathlib.Path) -> None:
    """Atari with its wrappers and frame stack, Box2D and MuJoCo with normalisation."""
    name = env_id.replace("/", "-")
    run(tmp_path, "sb3_trpo.zoo", "train", "--env", env_id, "--eval-freq", "-1", *TINY, "n_critic_updates:1")
    assert load(tmp_path / "logs" / "trpo" / f"{name}_1" / f"{name}.zip")._n_updates >= 1
