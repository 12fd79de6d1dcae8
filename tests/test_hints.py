"""What a newcomer misses is said once a run, with the way out, and never without being asked."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.hints import Hints
from sb3_trpo.inspect import check_health
from sb3_trpo.inspect.run_files import UpdateRecord, record_of
from sb3_trpo.metrics import UpdateReport
from sb3_trpo.rollout import observation_spread
from tests.small_models import RandomEnv, make_env, small_model

REPORT = small_model().learn(64).last_update
assert REPORT is not None


def update(*, mean_kl: float = 0.009, max_kl: float = 0.01, **changes: Any) -> UpdateReport:
    assert REPORT is not None
    healthy: dict[str, Any] = {"least_std": (1.0, 1.0), "explained_variance": 0.9, "observation_spread": 3.0}
    return REPORT._replace(step=REPORT.step._replace(mean_kl=mean_kl), max_kl=max_kl, **(healthy | changes))


def said(updates: list[UpdateReport], *, of: int = 1000) -> list[list[str]]:
    hints = Hints()
    return [hints.after(each, progress=(n + 1) / of) for n, each in enumerate(updates)]


def count(lines: list[list[str]], word: str) -> int:
    return sum(word in line for each in lines for line in each)


def test_healthy_run_is_told_nothing() -> None:
    assert not any(said([update()] * 200))


@pytest.mark.parametrize(("spread", "n_hints"), [(999.0, 0), (1001.0, 1), (None, 0)])
def test_scales_a_thousandfold_apart_are_told_of_once(spread: float | None, n_hints: int) -> None:
    lines = said([update(observation_spread=spread)] * 30)
    assert count(lines, "VecNormalize") == sum(map(len, lines)) == n_hints
    assert not n_hints or lines[0]


@pytest.mark.parametrize(
    ("stds", "n_hints"),
    [
        ([1.0, 0.5, 0.09], 1),
        ([0.12, 0.09], 1),  # with the first update
        ([1.0, 0.11], 0),
        ([0.05, 0.04], 0),  # as the user wanted it
        ([1.0] * 150 + [0.09], 0),  # after the first tenth
        ([math.nan] * 20, 0),
    ],
)
def test_deviation_that_falls_early_is_told_of(stds: list[float], n_hints: int) -> None:
    """While training, and on the page of a record that ends there, if a tenth of it was not the beginning."""
    updates = [update(least_std=pair) for pair in pairwise(stds)]
    assert count(said(updates), "std_damping") == n_hints
    whole = updates + updates[-1:] * (1000 - len(updates))
    finding = next(finding for finding in check_health(list(map(recorded, whole))) if "explore" in finding.name)
    assert (finding.healthy is False) is ("in the first 10% of it" in finding.says) is bool(n_hints)


@pytest.mark.parametrize(("progress", "words"), [(0.001, "first 1%"), (0.01, "first 1%"), (0.05, "first 5%")])
def test_part_of_the_training_is_never_none_of_it(progress: float, words: str) -> None:
    """A long training has hardly begun when the deviation falls."""
    hints = Hints()
    lines = [line for std in pairwise([1.0, 0.01, 0.01]) for line in hints.after(update(least_std=std), progress=progress)]
    assert len(lines) == 1 and words in lines[0]


def recorded(report: UpdateReport) -> UpdateRecord:
    return record_of(report, num_timesteps=64, phase_seconds={}, mean_return=0.0, episode_returns=())


class Quiet(RandomEnv):
    """The noise of the first action costs."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return (observation, -100.0 * float(action[0]) ** 2, *rest)


@pytest.mark.parametrize("use_sde", [False, True])
def test_deviation_is_that_of_the_action_that_varies_least(use_sde: bool) -> None:
    """Before the update and after it, with gSDE over the states of the rollout."""
    env = DummyVecEnv([lambda: Quiet(action_space=spaces.Box(-1.0, 1.0, (2,)))])
    model = small_model(env=env, use_sde=use_sde, gamma=0.0, target_kl=0.2).learn(64)
    report = model.last_update
    assert report is not None and report.least_std is not None
    now: Any = model.policy.get_distribution(model._full_batch().observations).distribution
    assert report.least_std[1] == pytest.approx(float(now.stddev.mean(dim=0).min().detach()), rel=1e-4)
    if not use_sde:
        first = model.policy_kwargs.get("log_std_init", 0.0)
        assert report.least_std[0] == pytest.approx(math.exp(first), rel=1e-6) and report.std > report.least_std[1]  # type: ignore[operator]
    assert small_model(env=make_env(action_space=spaces.Discrete(3))).learn(64).last_update.least_std is None  # type: ignore[union-attr]


def test_ten_short_steps_in_a_row_are_told_of() -> None:
    """Nine are not, nor are ten that are interrupted; where the limit is zero nothing is expected of a step."""
    short, full = update(mean_kl=0.0024), update()
    assert not any(said([short] * 9 + [full] + [short] * 9))
    lines = said([full] + [short] * 40)
    assert [bool(line) for line in lines].index(True) == 10 and count(lines, "target_kl") == 1
    assert not any(said([update(mean_kl=0.0, max_kl=0.0)] * 20))


def test_critic_that_explains_nothing_is_told_of_after_fifty_updates() -> None:
    useless = update(explained_variance=-0.1)
    lines = said([useless] * 60)
    assert [bool(line) for line in lines].index(True) == 49 and count(lines, "critic") == 1
    assert not any(said([useless] * 45 + [update()] * 20))
    assert not any(said([update(explained_variance=math.nan)] * 60))


class Uneven(RandomEnv):
    """Observes one number in millions and one that is always zero."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        return (observation * np.array([1e6, 1.0, 0.0], np.float32), *rest)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        return observation * np.array([1e6, 1.0, 0.0], np.float32), info


def uneven_env() -> Any:
    env = make_env()
    env.envs = [Uneven()]  # type: ignore[attr-defined]
    return env


def test_deviation_of_gsde_is_that_of_the_actions() -> None:
    """Its parameter is the deviation of weights, of which each action adds up many."""
    model = small_model(use_sde=True).learn(64)
    assert model.last_update is not None and model.last_update.noise_std is not None
    with th.no_grad():
        noise: Any = model.policy.get_distribution(model._full_batch().observations).distribution
    assert model.last_update.noise_std == pytest.approx(float(noise.stddev.mean()), rel=1e-3)
    assert small_model().learn(64).last_update.noise_std is None  # type: ignore[union-attr]


class Unrewarded(RandomEnv):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return (observation, 0.0, *rest)


@pytest.mark.parametrize(("kind", "n_hints"), [(Unrewarded, 0), (RandomEnv, 1)])
@pytest.mark.parametrize("fast", [True, False])
def test_critic_is_not_blamed_where_there_are_no_rewards(kind: type[RandomEnv], n_hints: int, fast: bool) -> None:
    """Returns are then what it gave itself at time limits, and there is nothing to explain."""
    env = DummyVecEnv([lambda: kind(episode_length=4)])
    model = small_model(env=env, fast=fast).learn(64)
    assert model.last_update is not None and model.last_update.is_rewarded is (kind is RandomEnv)
    useless = model.last_update._replace(explained_variance=-1.0)
    assert count(said([useless] * 60), "the critic explains nothing") == n_hints


def test_run_begins_where_learn_is_told_to_begin_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Also if a callback ends it in its first rollout; calls of train that nobody counts steps for are one run."""
    model = small_model(env=uneven_env(), verbose=1).learn(64)
    model.learn(64, callback=lambda *_: False)
    model.learn(128, reset_num_timesteps=False)
    assert capsys.readouterr().out.count("scales of the observations") == 2
    model.num_timesteps = 0
    model.train()
    assert "scales of the observations" not in capsys.readouterr().out


def test_what_nobody_was_told_is_told_once_somebody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model(env=uneven_env(), verbose=0).learn(64)
    model.verbose = 1
    model.learn(128, reset_num_timesteps=False)
    assert capsys.readouterr().out.count("scales of the observations") == 1


@pytest.mark.parametrize(("verbose", "normalized", "n_hints"), [(1, False, 1), (0, False, 0), (1, True, 0)])
def test_first_run_tells_a_newcomer(verbose: int, normalized: bool, n_hints: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Once a run, not once an update, and again in a run of its own; with ``verbose=0`` never."""
    env = VecNormalize(uneven_env()) if normalized else uneven_env()
    model = small_model(env=env, verbose=verbose)
    for n_runs in (1, 2):
        model.learn(192)
        model.learn(64, reset_num_timesteps=False)
        assert capsys.readouterr().out.count("scales of the observations") == n_hints, n_runs


def test_page_has_the_scales_too() -> None:
    """Of the same numbers, also once they have been through a file."""
    model = small_model(env=uneven_env()).learn(64)
    assert model.last_update is not None
    record = recorded(model.last_update)
    finding = next(finding for finding in check_health([record]) if "scale" in finding.name)
    assert finding.healthy is False and "VecNormalize" in finding.advice
    finding = next(f for f in check_health([record._replace(observation_spread=math.nan)]) if "scale" in f.name)
    assert finding.healthy is None


FAR_AND_NEAR = spaces.Dict({"far": spaces.Box(-1e6, 1e6, (2,)), "near": spaces.Box(-1.0, 1.0, (2, 2))})


def with_scales(space: spaces.Space, scales: Any) -> RolloutBuffer:
    """Return a full buffer of such observations, each number of them on a scale of its own."""
    kind: Any = DictRolloutBuffer if isinstance(space, spaces.Dict) else RolloutBuffer
    buffer = kind(64, space, spaces.Discrete(2), n_envs=2)
    random = np.random.default_rng(0)
    for name, scale in scales.items():
        part: Any = buffer.observations[name] if name else buffer.observations
        part[:] = random.choice([-1, 1], part.shape) * np.asarray(scale)
    buffer.pos, buffer.full = 64, True
    return buffer


@pytest.mark.parametrize(
    ("space", "scales", "expected"),
    {
        "vector": (spaces.Box(-1e9, 1e9, (3,)), {"": [1.0, 2000.0, 0.0]}, 2000.0),
        "matrix": (spaces.Box(-1e9, 1e9, (2, 2)), {"": [[1.0, 5.0], [50.0, 3000.0]]}, 3000.0),
        "integers": (spaces.Box(-(10**9), 10**9, (2,), np.int64), {"": [1, 10**7]}, 1e7),
        "dictionary": (FAR_AND_NEAR, {"far": [1e5, 10.0], "near": 0.5}, 2e5),
        "image": (spaces.Box(0.0, 1e9, (1, 2, 2)), {"": [[[1.0, 5.0], [50.0, 3000.0]]]}, None),
        "image among others": (
            spaces.Dict({"image": spaces.Box(0, 255, (3, 8, 8), np.uint8), "vector": spaces.Box(-9.0, 9.0, (2,))}),
            {"image": 1, "vector": [8.0, 2.0]},
            4.0,
        ),
        "choices": (spaces.MultiDiscrete([1000, 2]), {"": [900, 1]}, None),
        "zeros": (spaces.Box(-1.0, 1.0, (3,)), {"": 0.0}, None),
        "not finite": (spaces.Box(-1.0, 1.0, (2,)), {"": [1.0, math.nan]}, None),
    }.values(),
)
def test_spread_is_that_of_all_numbers(space: spaces.Space, scales: dict[str, Any], expected: float | None) -> None:
    """Of vectors, matrices, integers and what a Dict has of them; images are scaled, and choices no numbers."""
    found = observation_spread(with_scales(space, scales))
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-6))


def test_spread_is_not_that_of_what_is_normalized(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a Dict some keys may be."""
    buffer = with_scales(FAR_AND_NEAR, {"far": [1e5, 1e5], "near": 0.5})
    assert observation_spread(buffer) == pytest.approx(2e5)
    assert observation_spread(buffer, ["far"]) == pytest.approx(2.0)
    assert observation_spread(buffer, ["near"]) == pytest.approx(1e5)
    for keys, n_hints in ((["far"], 0), (["near"], 1), (None, 0)):
        env = VecNormalize(DummyVecEnv([lambda: RandomEnv(FAR_AND_NEAR)]), norm_obs_keys=keys)
        # One for the rewards around it changes nothing
        for layers in (env, VecNormalize(env, norm_obs=False)):
            TRPO("MultiInputPolicy", layers, n_steps=64, verbose=1, seed=0, device="cpu").learn(64)
            assert capsys.readouterr().out.count("scales of the observations") == n_hints
