"""The benchmark of returns: its protocol, its record, and what it reports."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
import yaml
from scipy.stats import trim_mean
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks import held_out, report, settings, train
from benchmarks.prototype import PrototypeTRPO, TimeLimitEnds
from benchmarks.results import CURVE_COLUMNS, HELD_OUT, RUN_COLUMNS, collect, known_arguments, read
from benchmarks.sweep import missing, parse_seeds, sweep
from benchmarks.train import Run
from sb3_trpo import TRPO
from sb3_trpo.objective import Batch, PolicyProblem

QUICK = settings.load("trpo", "quick", "CartPole-v1")


def run_json(run: Run, **changes: Any) -> dict[str, Any]:
    """Return what a run writes down, without having run it."""
    result = {"hyperparameters": QUICK, "versions": {}, "commit": "", "timesteps": 1024, "train_seconds": 1.0}
    return {**run._asdict(), **result, "train_mean_last_100": 20.0, "eval_returns": [10.0, 30.0], **changes}


def write_run(run: Run, runs: Path, **changes: Any) -> None:
    """Make a folder look as if a run had finished there."""
    folder = run.folder(runs)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run_json(run, **changes)))
    (folder / "progress.csv").write_text("time/total_timesteps,rollout/ep_rew_mean\n512,\n1024,20.0\n")


def record(returns: dict[tuple[str, str], list[float]], folder: Path) -> pd.DataFrame:
    """Put runs of the setting ``tuned`` on record: (algorithm, environment id) -> return of each seed."""
    runs = folder / "runs"
    for (algorithm, env_id), values in returns.items():
        for seed, value in enumerate(values):
            write_run(Run("tuned", env_id, algorithm, seed), runs, eval_returns=[value - 1.0, value + 1.0])
    collect(runs, folder)
    return read("runs", folder)


# Settings


@pytest.mark.skipif(importlib.util.find_spec("rl_zoo3") is None, reason="RL Zoo is not installed")
@pytest.mark.parametrize(("algorithm", "file"), [("contrib", "trpo"), ("ppo", "ppo")])
def test_settings_of_the_others_are_rl_zoos(algorithm: str, file: str) -> None:
    """Every hyperparameter of every task is the one in RL Zoo's file, but for the length of Humanoid."""
    spec = importlib.util.find_spec("rl_zoo3")
    assert spec is not None and spec.origin is not None
    zoo = yaml.safe_load((Path(spec.origin).parent / "hyperparams" / f"{file}.yml").read_text())
    for env_id in settings.environments(["mujoco", "classic", "box2d"]):
        theirs = zoo[env_id.replace("-v5", "-v4")]
        ours = settings.load(algorithm, "tuned", env_id)
        if env_id == "Humanoid-v5":
            assert ours.pop("n_timesteps") == 1_000_000 and theirs.pop("n_timesteps") > 1_000_000
        if "policy_kwargs" in theirs:
            theirs["policy_kwargs"] = eval(theirs["policy_kwargs"], {"dict": dict, "nn": th.nn})
            ours["policy_kwargs"] = settings.constructor_arguments(ours)["policy_kwargs"]
        assert ours == theirs, env_id


def test_settings_of_ours_are_one_for_mujoco() -> None:
    """All MuJoCo tasks share one setting, the discount factor of Swimmer excepted."""
    first, *others = [settings.load("trpo", "tuned", env_id) for env_id in settings.GROUPS["mujoco"] if env_id != "Swimmer-v5"]
    assert len(others) == 4 and all(other == first for other in others)
    assert settings.load("trpo", "tuned", "Swimmer-v5") == {**first, "gamma": 0.9999}


@pytest.mark.parametrize("setting", ["start", *next(iter(settings.design().values()))])
def test_settings_by_name_build_a_model(setting: str) -> None:
    """No name is misspelt and no value out of range."""
    hyperparameters = settings.load("trpo", setting, "Pendulum-v1")
    model = train.make_model("trpo", hyperparameters, env=make_vec_env("Pendulum-v1"))
    assert isinstance(model, TRPO) and isinstance(model, PrototypeTRPO) == ("prototype" in hyperparameters)


def test_settings_take_overrides_also_into_nested_ones() -> None:
    """The file's own values stay as they are."""
    changes = train.parse_overrides(["gamma=0.9", "policy_kwargs.log_std_init=-1.5", "learning_rate=lin_0.002"])
    changed = settings.load("trpo", "tuned", "Ant-v5", changes)
    assert (changed["gamma"], changed["policy_kwargs"]["log_std_init"]) == (0.9, -1.5)
    assert settings.load("trpo", "tuned", "Ant-v5")["policy_kwargs"]["log_std_init"] != -1.5
    schedule = settings.constructor_arguments(changed)["learning_rate"]
    assert [schedule(progress) for progress in (1.0, 0.5, 0.0)] == [0.002, 0.001, 0.0]


def test_settings_name_what_is_unknown() -> None:
    """A wrong name is answered with the right ones."""
    with pytest.raises(KeyError, match=r"ablations.yml has no entry 'strat', expected one of .*'start'"):
        settings.load("trpo", "strat", "Ant-v5")


# One run


@pytest.mark.parametrize("algorithm", train.ALGORITHMS)
def test_train_writes_down_what_it_ran(algorithm: str, tmp_path: Path) -> None:
    """Versions, arguments, 20 evaluation returns and a log; the setting is the one asked for, and nothing else is left."""
    run = Run("quick", "CartPole-v1", algorithm, 3)
    train.train(run, {**QUICK, "n_timesteps": 512}, tmp_path)
    (folder,) = run.folder(tmp_path).parent.iterdir()
    result = json.loads((folder / "run.json").read_text())
    assert folder == run.folder(tmp_path) and Run(*(result[name] for name in Run._fields)) == run
    arguments = result["hyperparameters"]
    assert result["timesteps"] == 512 and {**arguments, **QUICK, "n_timesteps": 512} == arguments
    # What was left to the algorithm is written down too
    assert arguments["gae_lambda"] == 0.95 and "verbose" not in arguments
    assert len(result["eval_returns"]) == 20 and result["versions"]["torch"] == th.__version__
    assert len((folder / "progress.csv").read_text().splitlines()) >= 2


def test_train_is_repeatable(tmp_path: Path) -> None:
    """The same run twice, in different folders: the same returns."""
    run = Run("quick", "CartPole-v1", "trpo", 5)
    first, second = (train.train(run, {**QUICK, "n_timesteps": 512}, tmp_path / name) for name in "ab")
    assert first["eval_returns"] == second["eval_returns"]


def test_evaluation_freezes_the_statistics_and_counts_true_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The episodes are those of the environment seeded 1000 + seed, seen through its wrappers and statistics."""
    run = Run("quick", "Pendulum-v1", "trpo", 4)
    hyperparameters = {**QUICK, "env_wrapper": {"gymnasium.wrappers.RescaleAction": {"min_action": -1, "max_action": 1}}}
    arguments = settings.constructor_arguments(hyperparameters)
    model = TRPO(env=train.make_training_env(run, hyperparameters), seed=4, **arguments).learn(512)
    training_env = model.get_env()
    assert isinstance(training_env, VecNormalize)
    statistics = training_env.obs_rms
    assert isinstance(statistics, RunningMeanStd)
    before = statistics.mean.copy()
    monkeypatch.setattr(train, "N_EVAL_EPISODES", 2)
    returns = train.evaluate(model, run, hyperparameters)

    env = make_vec_env("Pendulum-v1", seed=1004)
    observation: Any = env.reset()
    expected = [0.0, 0.0]
    for step in range(400):
        action, _ = model.predict(training_env.normalize_obs(observation), deterministic=True)
        observation, reward, _, _ = env.step(2.0 * action)
        expected[step // 200] += float(reward[0])
    np.testing.assert_allclose(returns, expected, rtol=1e-5)
    np.testing.assert_array_equal(statistics.mean, before)


def test_evaluation_of_normalized_returns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observations that training has left as they are stay so, and returns are the true ones."""
    run = Run("quick", "Pendulum-v1", "trpo", 4)
    hyperparameters = {**QUICK, "normalize": {"norm_obs": False}}
    arguments = settings.constructor_arguments(hyperparameters)
    model = TRPO(env=train.make_training_env(run, hyperparameters), seed=4, **arguments).learn(512)
    monkeypatch.setattr(train, "N_EVAL_EPISODES", 2)
    plain = make_vec_env("Pendulum-v1", seed=1004)
    expected, _ = evaluate_policy(model, plain, 2, deterministic=True, return_episode_rewards=True)
    np.testing.assert_allclose(train.evaluate(model, run, hyperparameters), expected)


def test_train_that_fails_leaves_no_run(tmp_path: Path) -> None:
    """What ended early is neither finished nor in the way."""
    run = Run("quick", "CartPole-v1", "trpo", 0)
    with pytest.raises(ValueError, match="gamma"):
        train.train(run, {**QUICK, "gamma": 2.0}, tmp_path)
    assert list(run.folder(tmp_path).parent.iterdir()) == []


# The sweep and its record


def test_sweep_runs_what_is_missing_and_goes_on_after_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seeds and one that cannot run: the good ones are on record, and a second sweep on another machine skips them."""
    jobs = [Run("quick", "CartPole-v1", "trpo", seed) for seed in (0, 1)]
    broken = Run("quick", "CartPole-v1", "trpo", -1)
    results = tmp_path / "results"
    assert sweep([broken, *jobs], workers=2, runs=tmp_path / "runs", results=results) == [broken]
    assert "quick/CartPole-v1/trpo/-1 failed" in capsys.readouterr().out
    assert set(known_arguments(results)) == set(jobs)
    before = {path.name: path.read_text() for path in results.iterdir()}
    assert sweep(jobs, runs=tmp_path / "elsewhere", results=results) == []
    assert "2 runs, 2 of them finished before" in capsys.readouterr().out
    assert {path.name: path.read_text() for path in results.iterdir()} == before
    assert set(read("curves", results)["seed"]) == {0, 1}


def test_record_keeps_every_digit_that_matters_and_adds_only_what_is_new(tmp_path: Path) -> None:
    """Rows on record stay as they are when a folder of runs is collected again."""
    runs = tmp_path / "runs"
    write_run(Run("quick", "CartPole-v1", "trpo", 0), runs, eval_returns=[100.25, 300.75])
    assert collect(runs, tmp_path) == 1
    write_run(Run("quick", "CartPole-v1", "ppo", 0), runs)
    assert collect(runs, tmp_path) == 1 and collect(runs, tmp_path) == 0
    frame = read("runs", tmp_path)
    assert list(frame.columns) == RUN_COLUMNS and list(read("curves", tmp_path).columns) == CURVE_COLUMNS
    row = frame[frame["algorithm"] == "trpo"].iloc[0]
    assert (row["eval_mean"], row["eval_std"], json.loads(row["eval_returns"])) == (200.5, 100.25, [100.25, 300.75])
    assert json.loads(row["hyperparameters"]) == QUICK
    # The line of the log without a finished episode is left out
    assert list(read("curves", tmp_path)["timesteps"]) == [1024, 1024]


def test_record_of_a_deleted_run_is_made_anew(tmp_path: Path) -> None:
    """Who deletes a row of runs.csv gets no second learning curve with the next run."""
    write_run(Run("quick", "CartPole-v1", "trpo", 0), tmp_path / "runs")
    collect(tmp_path / "runs", tmp_path)
    path = tmp_path / "runs.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert collect(tmp_path / "runs", tmp_path) == 1
    assert len(read("runs", tmp_path)) == len(read("curves", tmp_path)) == 1


def test_record_leaves_out_what_is_under_way_and_names_of_ones_own(tmp_path: Path) -> None:
    """A run whose folder still has its scratch name may be half written, and a private name means nothing to others."""
    runs = tmp_path / "runs"
    write_run(Run("quick", "CartPole-v1", "trpo", 0), runs)
    folder = Run("quick", "CartPole-v1", "trpo", 0).folder(runs)
    folder.rename(folder.with_name(".0-abc"))
    write_run(Run("mine", "CartPole-v1", "trpo", 0), runs)
    assert collect(runs, tmp_path) == 0 and known_arguments(tmp_path) == {}


@pytest.mark.parametrize("name", ["tuned", "quick", "design-03"])
def test_train_refuses_the_name_of_a_setting(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed setting under the name of another would go on record as that."""
    words = ["train", "CartPole-v1", "0", "trpo", "--set", "gamma=0.5", "--name", name]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        train.main()
    assert f"--name {name} is a setting already" in capsys.readouterr().err


def test_sweep_that_is_told_to_end_leaves_nothing_half_done(tmp_path: Path) -> None:
    """SIGTERM ends the workers too, and their folders go."""
    words = [*"--envs CartPole-v1 --algorithms trpo --settings classic --seeds 100 --runs".split(), str(tmp_path / "runs")]
    command = [sys.executable, "-m", "benchmarks.sweep", *words, "--results", str(tmp_path / "results")]
    with subprocess.Popen(command) as process:
        folder = Run("classic", "CartPole-v1", "trpo", 100).folder(tmp_path / "runs").parent
        for _ in range(600):
            if list(folder.glob(".100-*/progress.csv")):
                break
            time.sleep(0.1)
        else:
            pytest.fail("the run did not begin")
        process.terminate()
        assert process.wait(60) == 1
    assert list(folder.iterdir()) == []


def test_curves_are_thinned_and_keep_both_ends(tmp_path: Path) -> None:
    """At most fifty points a run."""
    runs = tmp_path / "runs"
    run = Run("quick", "CartPole-v1", "trpo", 0)
    write_run(run, runs)
    lines = [f"{512 * i},{i}" for i in range(1, 501)]
    (run.folder(runs) / "progress.csv").write_text("\n".join(["time/total_timesteps,rollout/ep_rew_mean", *lines]))
    collect(runs, tmp_path)
    steps = read("curves", tmp_path)["timesteps"]
    assert len(steps) == 50 and (steps.iloc[0], steps.iloc[-1]) == (512, 256_000)


def test_updates_are_summed_up(tmp_path: Path) -> None:
    """First and last tenth, mean and minimum of what was logged; lines before the first update do not count."""
    runs = tmp_path / "runs"
    run = Run("quick", "CartPole-v1", "trpo", 0)
    write_run(run, runs)
    lines = ["100,9.0,,,"] + [f"{100 * i},9.0,{i},2.0,{i}" for i in range(1, 21)]
    header = "time/total_timesteps,rollout/ep_rew_mean,train/surrogate_gain,train/surrogate_gain_expected,train/std"
    (run.folder(runs) / "progress.csv").write_text("\n".join([header, *lines]))
    collect(runs, tmp_path)
    summary = json.loads(read("runs", tmp_path)["updates"].iloc[0])
    assert summary == {
        "surrogate_gain_ratio": {"mean": 5.25, "first": 0.75, "last": 9.75, "min": 0.5},
        "std": {"mean": 10.5, "first": 1.5, "last": 19.5, "min": 1.0},
    }


def test_sweep_refuses_a_record_made_with_other_hyperparameters(tmp_path: Path) -> None:
    """A setting that changed under its name would pass old runs off as its own."""
    run = Run("quick", "CartPole-v1", "trpo", 0)
    write_run(run, tmp_path / "runs", hyperparameters={**QUICK, "gamma": 0.5})
    collect(tmp_path / "runs", tmp_path)
    with pytest.raises(ValueError, match=r"quick/CartPole-v1/trpo/0 is on record with another gamma than its setting has now"):
        missing([run], tmp_path)


def test_seeds_are_numbers_and_ranges() -> None:
    """Both ends are included."""
    assert parse_seeds(["0-4", "100", "7-7"]) == [0, 1, 2, 3, 4, 100, 7]


def test_sweep_refuses_a_record_made_with_another_default(tmp_path: Path) -> None:
    """A default that changes in the library changes every setting that leaves it out; one that is new changes none."""
    run = Run("quick", "CartPole-v1", "trpo", 0)
    write_run(run, tmp_path / "runs", hyperparameters={**QUICK, "target_kl": 0.5})
    collect(tmp_path / "runs", tmp_path)
    with pytest.raises(ValueError, match="another target_kl than its setting has now"):
        missing([run], tmp_path)
    arguments = settings.with_defaults(TRPO, QUICK)
    del arguments["cg_damping"]
    write_run(run, tmp_path / "again", hyperparameters=arguments)
    collect(tmp_path / "again", tmp_path / "other")
    assert missing([run], tmp_path / "other") == []


def test_committed_record_is_of_the_settings_as_they_are() -> None:
    """Nobody edited a setting that has runs on record, and every row adds up."""
    jobs = list(known_arguments())
    assert missing(jobs) == []
    for _, row in read("runs").iterrows():
        returns = json.loads(row["eval_returns"])
        # The first runs of sb3_contrib's kept their mean only
        assert len(returns) == 20 or (row["algorithm"] == "contrib" and not returns)
        assert not returns or abs(np.mean(returns) - row["eval_mean"]) < 0.02


# The report


def test_report_averages_over_seeds_with_their_standard_error(tmp_path: Path) -> None:
    """Mean ± s/√n over seeds, the number of seeds, and each of them."""
    runs = record({("trpo", "Hopper-v5"): [1000.0, 2000.0, 3000.0], ("ppo", "Hopper-v5"): [500.0]}, tmp_path)
    longer = runs["algorithm"].map({"trpo": '{"n_timesteps": 1000000}', "ppo": '{"n_timesteps": 300000}'})
    assert "| Hopper-v5 | 1M / 300k |" in report.table_of_returns(runs.assign(hyperparameters=longer))
    error = np.std([1000, 2000, 3000], ddof=1) / np.sqrt(3)
    assert f"| Hopper-v5 | 1.024k | 2,000 ± {error:.1f} (3) | 500.0 (1) | 3,372 |" in report.table_of_returns(runs)
    assert "0: 1,000 ± 1.0, 1: 2,000 ± 1.0, 2: 3,000 ± 1.0" in report.table_of_seeds(runs)


def test_scores_are_of_tasks_and_seeds_that_are_complete(tmp_path: Path) -> None:
    """A task that one algorithm has not run, and a seed that has not run every task, do not enter an average."""
    returns = {
        ("trpo", "Hopper-v5"): [3372.0, 1686.0, 0.0],
        ("trpo", "Acrobot-v1"): [-73.5, -500.0],
        ("trpo", "Ant-v5"): [1.0, 1.0, 1.0],
        ("ppo", "Acrobot-v1"): [-500.0, -73.5],
        ("ppo", "Hopper-v5"): [0.0, 3372.0],
    }
    scores = report.complete_scores(record(returns, tmp_path))
    assert scores.tasks == ["Hopper-v5", "Acrobot-v1"]
    np.testing.assert_allclose(scores.matrices["trpo"], [[1.0, 1.0], [0.5, 0.0]], atol=1e-9)
    np.testing.assert_allclose(scores.matrices["ppo"], [[0.0, 0.0], [1.0, 1.0]], atol=1e-9)


def test_scores_are_aggregated_with_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interquartile mean is the mean of the middle half, the intervals hold it; who is always better is so with p = 1."""
    monkeypatch.setattr(report, "BOOTSTRAP_RESAMPLES", 200)
    generator = np.random.default_rng(0)
    ours, theirs = generator.uniform(1, 2, (5, 3)), generator.uniform(0, 1, (3, 3))
    scores = report.Scores(["a", "b", "c"], {"trpo": ours, "ppo": theirs})
    points, intervals = report.aggregate(scores)
    np.testing.assert_allclose(points["trpo"], [trim_mean(ours.flatten(), 0.25), ours.mean()])
    low, high = intervals["trpo"]
    assert np.all(low < points["trpo"]) and np.all(points["trpo"] < high) and np.all(low > 1.0)
    chances, _ = report.improvement(scores)
    assert chances["trpo,ppo"] == 1.0
    text = report.table_of_scores(scores)
    assert f"| sb3_trpo.TRPO | 5 | {points['trpo'][0]:.3f} [{low[0]:.3f}, {high[0]:.3f}]" in text
    assert "| stable_baselines3.PPO | 1.00 [1.00, 1.00] |" in text


def test_curves_are_averaged_with_bootstrap_intervals() -> None:
    """Seeds on different grids are read at the same steps; the interval lies within them and has the bootstrap's width."""
    ends = {seed: float(np.random.default_rng(seed).normal()) for seed in range(20)}
    parts = [
        pd.DataFrame({"seed": seed, "timesteps": np.arange(0, 1001, 50 + seed), "train_mean_last_100": end})
        for seed, end in ends.items()
    ]
    steps, mean, low, high = report.mean_curve(pd.concat(parts))
    values = np.array(list(ends.values()))
    np.testing.assert_allclose(mean, values.mean())
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std() / np.sqrt(20), rtol=0.1)
    assert steps[0] == 0 and steps[-1] <= 1000
    alone = report.mean_curve(parts[0])
    assert np.array_equal(alone[1], alone[2]) and np.array_equal(alone[1], alone[3])


def test_ablations_are_held_against_the_same_tasks_and_seeds(tmp_path: Path) -> None:
    """A seed that only one of two settings has run says nothing about their difference, nor does one with more steps."""
    for setting, seeds in {"screen": {100: 0.0, 101: 3372.0}, "third": {100: 1686.0, 102: 9999.0}}.items():
        for seed, value in seeds.items():
            write_run(Run(setting, "Hopper-v5", "trpo", seed), tmp_path / "runs", eval_returns=[value])
    twice = {**QUICK, "n_timesteps": 2048}
    write_run(Run("fourth", "Hopper-v5", "trpo", 100), tmp_path / "runs", eval_returns=[3372.0], hyperparameters=twice)
    collect(tmp_path / "runs", tmp_path)
    lines = report.table_of_ablations(read("runs", tmp_path)).splitlines()
    assert lines[2:] == [
        "| `screen` | 1.024k | 100: 0.0, 101: 3,372 | +0.000 (2) |",
        "| `fourth` | 2.048k | 100: 3,372 |  |",
        "| `third` | 1.024k | 100: 1,686, 102: 9,999 | +0.500 (1) |",
    ]


def test_effects_of_the_design_are_told_apart(tmp_path: Path) -> None:
    """Where returns are a sum of what each change does, the effects come out as they went in, for every complete block."""
    design = settings.design()
    true = {change: 100.0 * index for index, change in enumerate(design)}
    for setting in next(iter(design.values())):
        value = 5000.0 + sum(true[change] for change, made in design.items() if made[setting])
        write_run(Run(setting, "Hopper-v5", "trpo", 100), tmp_path / "runs", eval_returns=[value])
    write_run(Run("screen", "Hopper-v5", "trpo", 101), tmp_path / "runs")
    collect(tmp_path / "runs", tmp_path)
    runs = read("runs", tmp_path)
    effects = report.main_effects(report.with_scores(runs))
    assert list(effects.columns) == [("Hopper-v5", 100)]
    np.testing.assert_allclose(effects["Hopper-v5", 100] * 3372.0, list(true.values()), atol=0.01)
    assert f"| {list(design)[1]} | +0.030 | +0.030 |" in report.table_of_effects(runs)


def test_design_is_orthogonal_and_starts_from_screen() -> None:
    """Each change is made by half of the settings, any two of them together by a quarter; one of them changes what it says."""
    signs = np.array([list(made.values()) for made in settings.design().values()]) * 2 - 1
    np.testing.assert_array_equal(signs @ signs.T, 12 * np.eye(11))
    screen = settings.load("trpo", "screen", "Ant-v5")
    for number in range(1, 12):
        name = f"design-{number:02d}"
        changed = settings.load("trpo", name, "Ant-v5")
        makes = {change.split(" ")[0] for change, made in settings.design().items() if made[name]}
        assert (changed["target_kl"] != screen["target_kl"]) == ("KL" in makes)
        assert (changed["gae_lambda"] != screen["gae_lambda"]) == ("GAE" in makes)
        assert ("prototype" in changed) == ("value" in makes)


def test_normalized_value_targets_leave_the_values_in_their_units() -> None:
    """Without a pass the values are what they were; a fit reaches returns that are far from zero, in their own units."""

    def learned(*, normalize_value_targets: bool, n_critic_updates: int) -> PrototypeTRPO:
        env = make_vec_env("Pendulum-v1", seed=0)
        options: dict[str, Any] = {"n_critic_updates": n_critic_updates, "normalize_value_targets": normalize_value_targets}
        return PrototypeTRPO("MlpPolicy", env, n_steps=256, gamma=0.999, seed=0, **options).learn(256)

    def value_loss(model: PrototypeTRPO) -> float:
        buffer = model.rollout_buffer
        values = model.policy.predict_values(th.as_tensor(buffer.observations).reshape(-1, 3)).detach().numpy()
        return float(np.mean((values.flatten() - buffer.returns.flatten()) ** 2))

    untouched = value_loss(learned(normalize_value_targets=True, n_critic_updates=0))
    assert untouched == pytest.approx(value_loss(learned(normalize_value_targets=False, n_critic_updates=0)), rel=1e-4)
    normalized, plain = (learned(normalize_value_targets=flag, n_critic_updates=40) for flag in (True, False))
    assert value_loss(normalized) < 0.3 * value_loss(plain)
    assert normalized.last_update is not None and normalized.last_update.critic is not None
    assert normalized.last_update.critic.last_value_loss == pytest.approx(value_loss(normalized), rel=0.2)


def test_report_draws_and_writes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and figures from the record alone, without a folder of runs."""
    monkeypatch.setattr(report, "BOOTSTRAP_RESAMPLES", 50)
    cases = [(name, env_id) for name in train.ALGORITHMS for env_id in ("CartPole-v1", "Acrobot-v1")]
    record({case: [-100.0 - index, -80.0] for index, case in enumerate(cases)}, tmp_path)
    write_run(Run("screen", "Hopper-v5", "trpo", 100), tmp_path / "more")
    collect(tmp_path / "more", tmp_path)
    report.report(tmp_path)
    for name in ("curves.png", "scores.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG") and (tmp_path / name).stat().st_size > 10_000
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert all(label in tables for label in report.LABELS.values()) and "Scores over 2 tasks" in tables
    assert "`screen`" in (tmp_path / "ablations.md").read_text(encoding="utf-8")


def test_report_says_nothing_of_an_empty_record(tmp_path: Path) -> None:
    """No runs, no files."""
    report.report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_prototype_of_past_rollouts_begins_as_trpo_and_corrects_for_the_older_policy() -> None:
    """The first batch is that of one rollout; in the third, older actions keep their probability and move by their ratio."""

    def batches(n_past_rollouts: int) -> list[Batch]:
        class Recording(PrototypeTRPO):
            def _full_batch(self) -> Batch:
                seen.append(super()._full_batch())
                return seen[-1]

        seen: list[Batch] = []
        env = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
        Recording("MlpPolicy", env, n_steps=300, seed=0, n_past_rollouts=n_past_rollouts).learn(1800)
        return seen

    plain, past = batches(0), batches(1)
    th.testing.assert_close(past[0], plain[0], rtol=1e-4, atol=1e-4)
    assert [len(batch.weights) for batch in past] == [600, 1200, 1200]
    th.testing.assert_close(past[2].weights.sum(), th.ones(()))
    th.testing.assert_close(past[2].old_log_prob[:600], past[1].old_log_prob[600:])
    assert not th.allclose(past[2].returns[:600], past[1].returns[600:])  # seen with the values and policy of now


def test_held_out_gains_are_those_of_steps_that_are_taken_back() -> None:
    """On its own rollout a step gains what the same step gains in training; on others less; and it leaves nothing behind."""
    model = held_out.trained("Pendulum-v1", "quick", steps=512)
    rollouts = held_out.collect(model, 4)
    assert not np.array_equal(rollouts[0].buffer.rewards, rollouts[1].buffer.rewards)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    own, other = (
        held_out.measure(model, rollouts[:2], measured_on, hold_std=False) for measured_on in (rollouts[:2], rollouts)
    )
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert len(own) == len(held_out.DAMPINGS) * len(held_out.LAMBDAS)
    assert all(row["own_gain"] > 0.0 and 0.0 < row["held_out_kl"] < 3 * held_out.MAX_KL for row in own)
    assert [row["own_gain"] for row in own] == [row["own_gain"] for row in other]
    assert np.mean([row["held_out_gain"] for row in other]) < np.mean([row["held_out_gain"] for row in own])


def test_held_out_figure_is_drawn(tmp_path: Path) -> None:
    """A panel per task and moment, from the record."""
    cases = [
        (env, steps, damping, lam)
        for env in ("Ant-v5", "Hopper-v5")
        for steps in (10, 20)
        for damping in (0.1, 1)
        for lam in (0.5, 1)
    ]
    rows = [(env, steps, "x", "held", damping, lam, 0.1, damping * lam, 0.01, 0.02) for env, steps, damping, lam in cases]
    pd.DataFrame(rows, columns=held_out.COLUMNS).to_csv(tmp_path / HELD_OUT, index=False)
    report.report(tmp_path)
    assert (tmp_path / "held_out.png").read_bytes().startswith(b"\x89PNG")


def test_held_out_batch_has_the_advantages_of_sb3() -> None:
    """With the lambda of training it is the batch of training; another lambda changes what depends on it."""
    model = held_out.trained("Pendulum-v1", "quick", steps=512)
    (rollout,) = held_out.collect(model, 1)
    batch = held_out.batch_of(model, [rollout], model.gae_lambda)
    th.testing.assert_close(batch.returns.sum(), th.as_tensor(rollout.buffer.returns.sum()), rtol=1e-5, atol=1e-3)
    changed = held_out.batch_of(model, [rollout, rollout], 0.5)
    assert len(changed.weights) == 2 * len(batch.weights) and not th.allclose(
        changed.returns[: len(batch.returns)], batch.returns
    )
    th.testing.assert_close(changed.actions[: len(batch.returns)], batch.actions)
    th.testing.assert_close(changed.weights.sum(), th.ones(()))


def test_prototype_with_an_entropy_bonus_keeps_more_of_the_standard_deviation() -> None:
    """The larger the bonus, the larger the standard deviation after the same rollouts; without one it is TRPO's."""

    def log_std(algorithm: type[TRPO], **options: Any) -> float:
        env = make_vec_env("Pendulum-v1", seed=0)
        return float(algorithm("MlpPolicy", env, n_steps=256, seed=0, **options).learn(256).policy.log_std.detach())

    values = [log_std(PrototypeTRPO, ent_coef=coefficient) for coefficient in (0.0, 0.05, 0.5)]
    assert values[0] == log_std(TRPO) and values == sorted(values) and values[0] < values[-1]


def test_prototype_with_momentum_averages_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update is TRPO's; each later one uses the average of its gradient with those before."""
    gradients = []
    plain = PolicyProblem.surrogate_gradient

    def noted(self: PolicyProblem) -> tuple[float, th.Tensor]:
        surrogate, gradient = plain(self)
        gradients.append(gradient.clone())
        return surrogate, gradient

    monkeypatch.setattr(PolicyProblem, "surrogate_gradient", noted)
    model = PrototypeTRPO("MlpPolicy", make_vec_env("Pendulum-v1", seed=0), n_steps=64, momentum=0.8, seed=0)
    norms = []
    for _ in range(5):
        model.learn(64, reset_num_timesteps=False)
        assert model.last_update is not None
        norms.append(model.last_update.step.gradient_norm)
    average = gradients[0]
    for norm, gradient in zip(norms, gradients, strict=True):
        average = 0.8 * average + 0.2 * gradient
        assert norm == pytest.approx(float(average.norm()), rel=1e-5)


def test_prototype_refuses_two_changes_of_the_gradient() -> None:
    """The second would hide the first."""
    with pytest.raises(ValueError, match="one at a time"):
        PrototypeTRPO("MlpPolicy", "Pendulum-v1", std_rate=0.5, momentum=0.5)


def test_prototype_with_slow_standard_deviations() -> None:
    """The first step of the standard deviation is the shorter the lower the rate, and with a rate of zero there is none."""

    def log_std(algorithm: type[TRPO], **options: Any) -> float:
        env = make_vec_env("Pendulum-v1", seed=0)
        return abs(float(algorithm("MlpPolicy", env, n_steps=256, seed=0, **options).learn(256).policy.log_std.detach()))

    values = [log_std(PrototypeTRPO, std_rate=rate) for rate in (0.0, 0.1, 1.0)]
    assert values[0] == 0.0 and values == sorted(values) and values[1] < values[2] == log_std(TRPO)


def test_prototype_with_a_schedule_of_the_standard_deviation() -> None:
    """Every rollout has the standard deviation that is due when it begins."""
    model = PrototypeTRPO("MlpPolicy", make_vec_env("Pendulum-v1", seed=0), n_steps=64, std_range=[0.4, 0.2], seed=0)
    stds: list[float] = []

    def note(*_: Any) -> bool:
        stds.append(model.policy.log_std.exp().item())
        return True

    model.learn(4 * 64, callback=note)
    assert stds[::64] == pytest.approx([0.4, 0.35, 0.3, 0.25]) and model.last_update is not None


def test_prototype_fits_its_critic_to_several_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The critic sees the last rollouts, and the policy step the present one alone."""
    sizes = []
    fit = TRPO._fit_critic

    def counted(self: TRPO, batch: Any, *arguments: Any) -> Any:
        sizes.append(len(batch.returns))
        return fit(self, batch, *arguments)

    monkeypatch.setattr(TRPO, "_fit_critic", counted)
    model = PrototypeTRPO("MlpPolicy", make_vec_env("Pendulum-v1", seed=0), n_steps=64, n_critic_rollouts=3, seed=0)
    model.learn(5 * 64)
    assert sizes == [64, 128, 192, 192, 192]
    assert model.last_update is not None and model.last_update.critic is not None


def test_a_time_limit_that_ends_has_nothing_to_follow() -> None:
    """The episode is as long as without the wrapper, and SB3 adds no value to its last reward."""

    def added(wrapper: type[TimeLimitEnds] | None) -> float:
        env = make_vec_env("Pendulum-v1", wrapper_class=wrapper, env_kwargs={"max_episode_steps": 3}, seed=0)
        model = TRPO("MlpPolicy", env, n_steps=3, batch_size=3, seed=0).learn(3)
        assert model.ep_info_buffer
        episode = model.ep_info_buffer[0]
        assert episode["l"] == 3
        return abs(model.rollout_buffer.rewards.sum() - episode["r"])

    assert added(None) > 1e-3
    assert added(TimeLimitEnds) < 1e-5
