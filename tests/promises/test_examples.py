"""The scripts that people copy: they run, and show what they say."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch as th
from gymnasium import spaces

from sb3_trpo.objective import Batch
from sb3_trpo.trust_region import flat_gradient
from tests.in_threads import InThreads, Table, together
from tests.small_models import VECTOR, make_env, small_model

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def example(name: str) -> ModuleType:
    """Import a script from its file."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder: Path, *command: str, seconds: float = 300.0) -> str:
    """Run a script as its reader would, in an empty folder, and return what it prints."""
    # The scripts are run from a checkout
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, str(EXAMPLES / command[0]), *command[1:]]
    result = subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.usefixtures("coarse")
def test_clip_is_looked_at_in_runs_of_both_algorithms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script trains what is not there, draws, and prints a row of the table for each run."""
    script: Any = example("what_the_clip_keeps")
    short = {
        name: experiment._replace(total_timesteps=2 * 256, arguments={"n_steps": 256})
        for name, experiment in script.EXPERIMENTS.items()
        if name.startswith("cartpole") and "Zoo" not in name
    }
    monkeypatch.setattr(script, "EXPERIMENTS", short)
    monkeypatch.setattr(sys, "argv", ["", "--runs", str(tmp_path / "runs"), "--folder", str(tmp_path / "images")])
    script.main()
    trained = {path: path.stat().st_mtime for path in (tmp_path / "runs").rglob("updates.jsonl")}
    assert len(trained) == 2 and {path.name for path in (tmp_path / "images").iterdir()} == {
        "clip_cartpole.png",
        "clip_bubble_cartpole.png",
    }
    script.main()
    assert {path: path.stat().st_mtime for path in trained} == trained
    rows = script.table(script.read(tmp_path / "runs", "cartpole")).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["TRPO, defaults", "PPO, defaults"]


def test_settings_of_rl_zoo_are_rl_zoos() -> None:
    """The numbers in the script are those of its file."""
    yaml: Any = pytest.importorskip("yaml")
    zoo: Any = pytest.importorskip("rl_zoo3")
    text = (Path(zoo.__file__).parent / "hyperparams" / "ppo.yml").read_text()
    script: Any = example("what_the_clip_keeps")
    for task, given in (("CartPole-v1", script.OF_CARTPOLE), ("HalfCheetah-v4", script.OF_HALFCHEETAH)):
        of_zoo = yaml.safe_load(text)[task]
        for name, value in given.items():
            if name == "policy_kwargs":
                continue
            expected = of_zoo[name]
            if isinstance(expected, str) and expected.startswith("lin_"):
                assert [value(1.0), value(0.0)] == [float(expected.removeprefix("lin_")), 0.0]
            else:
                assert value == float(expected), name


@pytest.mark.parametrize("bonus", [0.0, 0.3])
def test_variant_adds_the_gradient_of_the_entropy(bonus: float) -> None:
    """What the hook adds to the policy gradient is the bonus times that of the entropy, by sampling many actions."""
    variant = example("entropy_trpo").EntropyTRPO
    env = make_env(VECTOR, spaces.Discrete(3), 4)
    model: Any = small_model(variant, "MlpPolicy", env, entropy_bonus=bonus)
    model.learn(64)
    with th.no_grad():
        # Away from the uniform policy, where the entropy has no slope
        model.policy.action_net.bias.copy_(th.tensor([1.0, 0.0, -1.0]))
    batch = model._full_batch().few(1)
    observations = batch.observations.repeat(60_000, *[1] * (batch.observations.dim() - 1))
    bias = [model.policy.action_net.bias]
    distribution = model.policy.get_distribution(observations)
    th.manual_seed(0)
    actions = distribution.get_actions()
    log_prob = distribution.log_prob(actions)
    surprise = -log_prob.detach()
    surprise = surprise - surprise.mean()
    sampled = flat_gradient((log_prob * surprise).mean(), bias)
    exact = flat_gradient(model.policy.get_distribution(observations[:1]).entropy().mean(), bias)
    th.testing.assert_close(sampled, exact, atol=0.01, rtol=0.05)
    # And that is what the hook adds
    with_bonus = model._full_batch()
    model.entropy_bonus = 0.0
    without = model._full_batch()
    expected = -with_bonus.old_log_prob
    expected = bonus * (expected - (expected * with_bonus.weights).sum())
    th.testing.assert_close(with_bonus.advantages - without.advantages, expected, atol=1e-5, rtol=1e-4)


def test_bonus_of_the_variant_has_mean_zero_over_all_processes() -> None:
    """Each has another part of the rollout, whose own mean is another one."""
    table = Table()
    batches: list[Batch] = []

    class Seen(example("entropy_trpo").EntropyTRPO):  # type: ignore[misc]
        def _full_batch(self) -> Batch:
            batches.append(super()._full_batch())
            return batches[-1]

    models = [
        small_model(
            Seen, "MlpPolicy", make_env(VECTOR, spaces.Discrete(3), 2), entropy_bonus=3.0, processes=InThreads(table, rank)
        )
        for rank in range(2)
    ]
    assert together([partial(model.learn, 128) for model in models]) == models
    sums = [float((batch.advantages * batch.weights).sum()) for batch in batches]
    assert len(sums) == 2 and sum(sums) == pytest.approx(0.0, abs=1e-5) and abs(sums[0]) > 1e-3


def test_variant_is_a_whole_algorithm(tmp_path: Path) -> None:
    """Saved with its argument, checked by name, on the fast paths; and short enough to be read."""
    variant = example("entropy_trpo").EntropyTRPO
    model = variant("MlpPolicy", "CartPole-v1", n_steps=64, entropy_bonus=0.2, device="cpu").learn(64)
    model.save(tmp_path / "model")
    assert variant.load(tmp_path / "model", device="cpu").entropy_bonus == 0.2
    assert model.last_update.step.mean_kl <= model.target_kl and set(model.paths_in_use.values()).isdisjoint({"plain"})
    with pytest.raises(ValueError, match=r"entropy_bonus must be a finite number >= 0, got -1"):
        variant.load(tmp_path / "model", entropy_bonus=-1)
    with pytest.raises(ValueError, match=r"entropy_bonus must be"):
        variant("MlpPolicy", "CartPole-v1", entropy_bonus=float("nan"))
    assert len((EXAMPLES / "entropy_trpo.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.examples
def test_entropy_variant_keeps_its_entropy(tmp_path: Path) -> None:
    """More bonus, more entropy."""
    lines = run(tmp_path, "entropy_trpo.py").splitlines()
    entropies = [float(line.split(":")[1].split()[0]) for line in lines]
    assert len(entropies) == 3 and entropies[0] < entropies[-1] <= 0.6932


@pytest.mark.examples
def test_robot_learns_and_is_reported_on(tmp_path: Path) -> None:
    """Saved with its statistics and loaded; a fifth of its steps are enough to move on."""
    printed = run(tmp_path, "robot.py", "--steps", "40000", seconds=900.0)
    mean = re.search(r"return over 10 deterministic episodes: (-?[\d,]+)", printed)
    # A robot that stands still has zero
    assert mean is not None and int(mean[1].replace(",", "")) > 300
    files = {path.name for path in (tmp_path / "robot").iterdir()}
    assert {"model.zip", "statistics.pkl", "best_model.zip", "report.html", "record"} <= files


@pytest.mark.examples
@pytest.mark.parametrize("option", [(), ("--cloned",)], ids=["loaded", "cloned"])
def test_fine_tuning_does_no_harm(option: tuple[str, ...], tmp_path: Path) -> None:
    """The critic learns alone first, then no update goes beyond the limit, and the policy is better in the end."""
    printed = run(tmp_path, "fine_tune.py", *option, seconds=900.0)
    updates = re.findall(r"^update +\d+: (\w+) +KL ([\d.]+)", printed, flags=re.MULTILINE)
    limits = [float(kl) for _, kl in updates]
    assert [status for status, _ in updates][:2] == ["limit_zero"] * 2 and limits[:2] == [0.0] * 2
    assert "accepted" in dict(updates) and max(limits) <= 0.005
    before, after = map(float, re.findall(r"([\d.]+) before, ([\d.]+) after", printed)[0])
    assert after >= max(before, 475.0)


@pytest.mark.examples
def test_search_finds_something_and_doubts_it(tmp_path: Path) -> None:
    """Each trial is reported, and the best is trained again with other seeds."""
    printed = run(tmp_path, "optuna_search.py", "--trials", "3", "--steps", "16000", seconds=900.0)
    assert len(re.findall(r"^trial +\d: +-[\d.]+", printed, flags=re.MULTILINE)) == 3
    assert re.search(r"found with -[\d.]+, with three other seeds -[\d.]+", printed)
