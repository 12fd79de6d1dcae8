"""What Optuna may choose: arguments that the constructor takes, in our units."""

import inspect
import pathlib

import optuna
import pytest

from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo.zoo.sampler import convert_lstm_params, sample_trpo_lstm_params, sample_trpo_params
from tests.zoo.test_zoo_command import load, run


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
    assert isinstance(model.target_kl, float) and 0.002 <= model.target_kl <= 0.5


def test_sampler_draws_what_the_constructor_takes() -> None:
    """The ends of the ranges and what is between them, each a model; RL Zoo finds what it writes down of a trial."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        drawn = sample_trpo_params(trial, n_actions=1, n_envs=1, additional_args={})
        model = TRPO("MlpPolicy", "Pendulum-v1", device="cpu", **drawn)
        assert drawn["target_kl"] == model.target_kl and 0.002 <= drawn["target_kl"] <= 0.5
        assert 5 <= drawn["cg_max_steps"] == model.cg_max_steps <= 30
        assert trial.user_attrs["n_steps"] == drawn["n_steps"] == model.n_steps
        assert inspect.signature(TRPO).parameters.keys() >= drawn.keys()


def test_sampler_draws_what_a_policy_with_a_memory_takes() -> None:
    """Each draw is a model, and made again of what Optuna has noted of the trial."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sizes = set()
    for _ in range(10):
        trial = study.ask()
        drawn = sample_trpo_lstm_params(trial, n_actions=1, n_envs=1, additional_args={})
        assert convert_lstm_params(trial.params) == drawn
        model = RecurrentTRPO("MlpLstmPolicy", "Pendulum-v1", device="cpu", **drawn | {"n_steps": 64})
        sizes.add(model.policy.lstm_actor.hidden_size)  # type: ignore[union-attr]
        assert trial.user_attrs["n_steps"] == drawn["n_steps"]
    assert len(sizes) > 1
