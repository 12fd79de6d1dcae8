"""The logger gets numbers, and nothing else: its readers average, plot and send them. The words are elsewhere."""

import math
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import KVWriter, Logger, configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import Normal

from sb3_trpo import TRPO, UpdateReport
from sb3_trpo.critic import CriticFit
from sb3_trpo.guards.finite import ROLLOUT
from sb3_trpo.inspect import TrustRegionRecorder, figures_of, gallery, read_run
from sb3_trpo.metrics import CRITIC_STATUSES, METRICS, UPDATE_STATUSES
from tests.small_models import DICT, DISCRETE, MULTI_BINARY, Case, RandomEnv, small_model

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


class Ledger(KVWriter):
    """A user's writer that takes every value for a number, those too that are excluded from SB3's own formats."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.kinds: set[type] = set()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows.append({key: float(value) for key, value in key_values.items()})
        self.kinds |= {type(value) for value in key_values.values()}

    def close(self) -> None:
        """Nothing to close."""

    def of(self, key: str) -> list[float]:
        return [row[key] for row in self.rows if key in row]


class Averaging(Logger):
    """A logger that averages whatever is recorded, as imitation's and many a sweep's do."""

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.record_mean(key, value, exclude)

    def dump(self, step: int = 0) -> None:
        """Only at the end of the run."""


class WithoutReward(RandomEnv):
    """Pays NaN from some step on."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.after -= 1
        observation, reward, *rest = super().step(action)
        return (observation, reward if self.after >= 0 else math.nan, *rest)


def with_ledger(model: TRPO) -> Ledger:
    ledger = Ledger()
    model.set_logger(Logger(folder=None, output_formats=[ledger]))
    return ledger


class NoEntropy(Normal):
    """A normal distribution whose entropy has no closed form."""

    def entropy(self) -> th.Tensor:
        raise NotImplementedError


RUNS: dict[str, Any] = {
    "box": lambda: small_model(),
    "discrete": lambda: Case(action_space=DISCRETE).model(),
    "binary, plain": lambda: Case(action_space=MULTI_BINARY).model(fast=False),
    "dict": lambda: Case("MultiInputPolicy", observation_space=DICT).model(),
    "gsde": lambda: small_model(use_sde=True, sde_sample_freq=4),
    "no critic": lambda: small_model(n_critic_updates=0),
    "no limit left": lambda: small_model(target_kl=lambda remaining: 0.02 * (remaining > 0.5)),
    "not finite": lambda: small_model(env=None, error_if_nonfinite=False),
    "numpy's numbers": lambda: small_model(target_kl=np.float32(0.02), cg_damping=lambda _: np.float64(0.1)),
    "schedules of tensors": lambda: small_model(target_kl=lambda _: th.tensor(0.02), learning_rate=lambda _: 1e-3),
}


@pytest.mark.parametrize("name", RUNS)
def test_writer_that_takes_everything_for_a_number(name: str) -> None:
    """Whatever the policy and the outcome, every value is a plain number, and no key stands for nothing."""
    model: TRPO = RUNS[name]()
    if name == "not finite":
        model = TRPO("MlpPolicy", WithoutReward(70), n_steps=64, error_if_nonfinite=False, seed=0, device="cpu")
    ledger = with_ledger(model)
    model.learn(192)
    assert len(ledger.rows) == 4 and ledger.of("train/n_updates") == [1, 2, 3]
    assert ledger.kinds <= {int, float, np.float32, np.float64, np.int64}, ledger.kinds
    assert ("train/critic_fitted" in ledger.rows[-1]) == (name != "no critic")


def test_averages_are_shares() -> None:
    """A mean over a run says which share of the updates was accepted, and which share of the fits stands."""
    model = small_model(target_kl=lambda remaining: 0.02 * (remaining > 0.3))
    model.set_logger(Averaging(folder=None, output_formats=[]))
    model.learn(256)
    means = model.logger.name_to_value
    assert means["train/update_accepted"] == means["train/is_line_search_success"] == 0.5
    assert means["train/critic_fitted"] == 1.0 and 0.0 <= means["train/cg_converged"] <= 1.0
    assert means["train/n_updates"] == 2.5


@pytest.fixture(scope="module")
def report() -> UpdateReport:
    """Return what an update did that went as usual."""
    report = small_model().learn(64).last_update
    assert report is not None and report.step.accepted
    assert report.remark() is None
    return report


def recorded(report: UpdateReport) -> dict[str, Any]:
    logger = Logger(folder=None, output_formats=[])
    report.record(logger)
    return logger.name_to_value


def of_critic(report: UpdateReport, status: str) -> UpdateReport:
    assert report.critic is not None
    how: dict[str, dict[str, Any]] = {"fitted": {}, "steps_skipped": {"n_skipped": 2}, "undone": {"undone": True}}
    return report._replace(critic=report.critic._replace(**how[status]))


@pytest.mark.parametrize("status", UPDATE_STATUSES)
def test_status_of_an_update_is_a_number_in_the_log_and_words_in_the_remark(report: UpdateReport, status: str) -> None:
    """1 for what moved the policy, 0 for every other outcome; the remark has the number of the update, status and meaning."""
    this = report._replace(step=report.step._replace(status=status), n_updates=31)
    accepted = status == "accepted"
    assert recorded(this)["train/update_accepted"] == recorded(this)["train/is_line_search_success"] == int(accepted)
    remark = this.remark()
    assert (remark is None) == accepted
    assert remark is None or ("update 31: " in remark and f"{status} ({UPDATE_STATUSES[status]})" in remark)


@pytest.mark.parametrize("status", CRITIC_STATUSES)
def test_status_of_a_fit_is_a_number_in_the_log_and_words_in_the_remark(report: UpdateReport, status: str) -> None:
    """1 for a fit in which every minibatch made its step."""
    this = of_critic(report, status)
    assert isinstance(this.critic, CriticFit) and this.critic.status == status
    assert recorded(this)["train/critic_fitted"] == int(status == "fitted")
    remark = this.remark()
    assert (remark is None) == (status == "fitted")
    assert remark is None or f"critic {status} ({CRITIC_STATUSES[status]})" in remark


@pytest.mark.parametrize(
    "stopped_by, usual", [("converged", True), ("max_iterations", True), ("curvature", False), ("not_finite", False)]
)
def test_end_of_the_conjugate_gradients_is_a_number(report: UpdateReport, stopped_by: Any, usual: bool) -> None:
    """1 where they converged; what speaks of wrong products is in the remark."""
    assert report.step.conjugate_gradient is not None
    solve = report.step.conjugate_gradient._replace(stopped_by=stopped_by)
    this = report._replace(step=report.step._replace(conjugate_gradient=solve))
    assert recorded(this)["train/cg_converged"] == int(stopped_by == "converged")
    assert (this.remark() is None) == usual and (usual or stopped_by in str(this.remark()))


def test_what_there_is_none_of_has_no_key(report: UpdateReport) -> None:
    """Neither None nor a stand-in for it reaches the logger."""
    step = report.step._replace(status="gradient_zero", conjugate_gradient=None)
    values = recorded(report._replace(step=step, critic=None, entropy=None, std=None, phase_seconds={}))
    absent = {"cg_converged", "cg_iterations", "cg_residual", "critic_fitted", "value_loss", "entropy_loss", "std"}
    assert not {f"train/{name}" for name in absent} & values.keys() and None not in values.values()
    assert not [key for key in values if key.startswith("time/")]


@pytest.mark.parametrize("verbose", [0, 1])
def test_line_says_what_was_not_as_usual(verbose: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each update that was refused, through the logger; silence for the others, and with verbose=0."""
    env = WithoutReward(70)
    model = TRPO(
        "MlpPolicy", env, n_steps=64, n_critic_updates=2, error_if_nonfinite=False, seed=0, device="cpu", verbose=verbose
    )
    # A logger of the user's own that prints, whatever the verbosity
    model.set_logger(configure(None, ["stdout"]))
    model.learn(192, log_interval=None)  # type: ignore[arg-type]
    assert model.last_update is not None and model.last_update.critic is not None
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"update \d+: ", line)]
    assert [line.split(" (")[0] for line in lines] == ["update 2: rewards_not_finite", "update 3: rewards_not_finite"][
        : 2 * verbose
    ]
    assert all(f"critic {model.last_update.critic.status}" in line for line in lines[1:])


def test_words_are_in_the_recorder(tmp_path: Path) -> None:
    """What the log no longer says in words the record does."""
    small_model(target_kl=lambda remaining: 0.02 * (remaining > 0.3)).learn(128, callback=TrustRegionRecorder(tmp_path))
    updates = read_run(tmp_path).updates
    assert [update.status for update in updates] == ["accepted", "limit_zero"]
    assert updates[0].cg_stopped_by in ("converged", "max_iterations")


@pytest.mark.usefixtures("coarse")
def test_figures_of_the_recorder_go_to_tensorboard_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a user's writer beside TensorBoard nor an averaging logger is handed a picture: one is enough to see it."""
    monkeypatch.setattr(gallery, "figures_of", lambda run: islice(figures_of(run), 1))
    ledger = Ledger()
    model = small_model()
    model.set_logger(configure(str(tmp_path / "log"), ["tensorboard"]))
    model.logger.output_formats.append(ledger)
    model.learn(128, callback=TrustRegionRecorder(tmp_path / "run", pictures_every=2))
    assert len(ledger.rows) == 3 and not [key for row in ledger.rows for key in row if key.startswith("trust_region/")]
    model.set_logger(Averaging(folder=None, output_formats=[*model.logger.output_formats]))
    model.learn(64, callback=TrustRegionRecorder(tmp_path / "run", pictures_every=1))
    assert all(isinstance(value, int | float) for value in model.logger.name_to_value.values())
    model.logger.close()
    events = EventAccumulator(str(tmp_path / "log"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["trust_region/run", "trust_region/ladder"]


def test_entropy_without_a_closed_form_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3's distributions give None then, and torch's raise: neither reaches the log."""
    model = small_model(fast=False)
    make: Any = type(model.policy.action_dist)

    def proba_distribution(self: Any, mean: th.Tensor, log_std: th.Tensor) -> Any:
        self.distribution = NoEntropy(mean, th.ones_like(mean) * log_std.exp())
        return self

    monkeypatch.setattr(make, "proba_distribution", proba_distribution)
    monkeypatch.setattr(make, "entropy", lambda self: None)
    assert issubclass(NoEntropy, TorchDistribution)
    ledger = with_ledger(model)
    model.learn(128)
    assert ledger.of("train/update_accepted") and not ledger.of("train/entropy_loss")


def test_every_status_is_explained_in_the_documentation() -> None:
    """The two tables of statuses are those of the code, and every reason that a rollout can give is among them."""
    for title, table in (("Status of an update", UPDATE_STATUSES), ("Status of the critic's fit", CRITIC_STATUSES)):
        section = PAGE.split(f"| {title} | Meaning |")[1].split("\n\n")[0]
        assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, flags=re.MULTILINE)) == table
    assert set(ROLLOUT.values()) | {"parameters_not_finite"} <= set(UPDATE_STATUSES)
    assert not [key for key in METRICS if key.endswith(("status", "stopped_by"))]
