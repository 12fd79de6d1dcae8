"""``python -m sb3_trpo.zoo``: RL Zoo's scripts with this TRPO, through our entry point and through RL Zoo's own."""

import os
import pathlib
import subprocess
import sys

import pytest

from sb3_trpo import TRPO, RecurrentTRPO


def run(folder: pathlib.Path, *command: str, code: int = 0) -> str:
    """Run a module in a process of its own (RL Zoo patches Gymnasium for the whole process), and return what it says."""
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == code, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout + result.stderr


TINY = ("-n", "256", "--seed", "1", "--device", "cpu", "--num-threads", "1", "-params", "n_steps:64")


def load(path: pathlib.Path, cls: type[TRPO] = TRPO) -> TRPO:
    """Load what RL Zoo saved, without RL Zoo."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "rl_zoo3"]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "rl_zoo3", None)  # an import of it raises
        return cls.load(path, device="cpu")


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
def test_zoo_knows_policies_with_a_memory(tmp_path: pathlib.Path) -> None:
    """``--algo trpo_lstm`` trains, evaluates, plays, films and optimises, with our settings."""
    task = ("--algo", "trpo_lstm", "--env", "CartPoleNoVel-v1")
    said = run(tmp_path, "sb3_trpo.zoo", "train", *task, "--eval-freq", "128", "--eval-episodes", "1", *TINY)
    assert "sb3_trpo/zoo/hyperparams/trpo_lstm.yml" in said and "update_accepted" in said
    model = load(tmp_path / "logs" / "trpo_lstm" / "CartPoleNoVel-v1_1" / "CartPoleNoVel-v1.zip", RecurrentTRPO)
    assert callable(model.target_kl) and model.target_kl(1.0) == 0.05
    assert model.policy.lstm_actor.hidden_size == 64  # type: ignore[union-attr]
    for arguments in ((), ("--load-best",)):
        said = run(tmp_path, "sb3_trpo.zoo", "enjoy", *task, "--no-render", "-n", "300", *arguments)
        assert "Mean reward" in said
    run(tmp_path, "sb3_trpo.zoo", "record_video", *task, "-n", "20")
    assert list(tmp_path.glob("logs/trpo_lstm/CartPoleNoVel-v1_1/videos/*.mp4"))
    tiny = ("-n", "512", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots", "--seed", "0")
    run(tmp_path, "sb3_trpo.zoo", "train", "-optimize", *task, *tiny)
    (report,) = tmp_path.glob("logs/trpo_lstm/report_CartPoleNoVel-v1_*.csv")
    assert "params_lstm_hidden_size" in report.read_text()


@pytest.mark.slow
def test_zoo_names_what_it_can_run(tmp_path: pathlib.Path) -> None:
    """An unknown script is refused with the list of those there are."""
    assert "plot_from_file" in run(tmp_path, "sb3_trpo.zoo", "trian", code=2)


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
@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "BipedalWalker-v3", "HalfCheetah-v5"])
def test_zoo_builds_the_pipelines_of_the_field(env_id: str, tmp_path: pathlib.Path) -> None:
    """Atari with its wrappers and frame stack, Box2D and MuJoCo with normalisation."""
    name = env_id.replace("/", "-")
    run(tmp_path, "sb3_trpo.zoo", "train", "--env", env_id, "--eval-freq", "-1", *TINY, "n_critic_updates:1")
    assert load(tmp_path / "logs" / "trpo" / f"{name}_1" / f"{name}.zip")._n_updates >= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lean", "pool", "envpool"])
def test_zoo_trains_in_the_vector_environments_of_this_package(kind: str, tmp_path: pathlib.Path) -> None:
    """``--vector-env`` is taken out of what RL Zoo reads; evaluation goes by it too."""
    if kind == "envpool":
        pytest.importorskip("envpool")
    arguments = ("--env", "CartPole-v1", "--vector-env", kind, "--eval-freq", "128", "--eval-episodes", "1")
    said = run(tmp_path, "sb3_trpo.zoo", "train", *arguments, *TINY)
    assert "update_accepted" in said and "has no effect" not in said
    assert load(tmp_path / "logs" / "trpo" / "CartPole-v1_1" / "CartPole-v1.zip").num_timesteps == 512
    assert "invalid choice" in run(tmp_path, "sb3_trpo.zoo", "train", "--vector-env", "quick", code=2)


@pytest.mark.parametrize("spelling", [("--alg", "ppo"), ("--algo=ppo",), ("--algo", "ppo")])
def test_what_is_given_counts_in_every_spelling(spelling: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """Also those that argparse alone knows: abbreviated, or with the value behind it."""
    said = run(
        tmp_path, "sb3_trpo.zoo", "train", *spelling, "--env", "CartPole-v1", "-n", "64", "-params", "n_steps:64", "n_envs:1"
    )
    assert "Saving to logs/ppo/CartPole-v1_1" in said


def test_videos_of_a_training_are_made_by_this_command() -> None:
    """RL Zoo starts itself for each of them, which knows nothing of this package; other commands are left alone."""
    from sb3_trpo.zoo.__main__ import _videos_with_this_package

    before = subprocess.call
    with _videos_with_this_package():
        assert subprocess.call(["python", "-m", "rl_zoo3.record_video", "--help"], stdout=subprocess.DEVNULL) == 0
        assert subprocess.call([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert subprocess.call is before
