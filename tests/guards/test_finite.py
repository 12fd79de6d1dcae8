"""What is not finite is named where it first shows, and leaves nothing behind: policy, statistics, torch's settings."""

import math
import warnings
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)

from sb3_trpo import TRPO
from sb3_trpo.guards.process import unvalidated_distributions
from sb3_trpo.objective import kl_old_new
from sb3_trpo.recurrent import RecurrentTRPO
from tests.from_outside import actor_state
from tests.hostile import N_STEPS, Fault, HostileEnv
from tests.small_models import BOX, VECTOR, RandomEnv, changed, policy_state


class SilentEnv(gym.Env[Any, Any]):
    """An environment that does as it is told: the second of two gives what is planned, step after step."""

    observation_space = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2, 2)), "b": spaces.Box(0, 255, (1,), np.uint8)})
    action_space = BOX

    def __init__(self, rewards: dict[int, float], observations: dict[int, float], *, truncated: bool = False):
        self.rewards, self.observations, self.truncated = rewards, observations, truncated
        self.n_steps = 0

    def _observe(self) -> dict[str, np.ndarray]:
        observation: dict[str, np.ndarray] = {"a": np.zeros((2, 2), np.float32), "b": np.zeros(1, np.uint8)}
        observation["a"][1, 0] = self.observations.get(self.n_steps, 0.0)
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        observation = self._observe()
        ends = self.truncated and self.n_steps in self.observations
        if ends:
            self.observations = {}
        return observation, self.rewards.get(self.n_steps, float(action.sum())), False, ends, {}


def silent_model(*, fast: bool = True, **planned: Any) -> TRPO:
    def make(**arguments: Any) -> Callable[[], gym.Env[Any, Any]]:
        return lambda: SilentEnv(**({"rewards": {}, "observations": {}} | arguments))

    env = DummyVecEnv([make(), make(**planned)])
    return TRPO("MultiInputPolicy", env, n_steps=8, batch_size=8, n_critic_updates=1, seed=0, device="cpu", fast=fast)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "planned, said",
    [
        ({"rewards": {3: math.nan}}, ["the reward", "environment 1 at step 3 of the rollout", "got nan. "]),
        ({"rewards": {8: -math.inf}}, ["the reward", "environment 1 at step 8 of the rollout", "got -inf. "]),
        ({"observations": {0: math.nan}}, ["the observation", "environment 1 at step 0 of the rollout", "a[1, 0] = nan"]),
        ({"observations": {5: math.inf}}, ["the observation", "environment 1 at step 5 of the rollout", "a[1, 0] = inf"]),
        (
            {"observations": {4: math.nan}, "truncated": True},
            ["the reward (at a time limit with the last observation's value)", "environment 1 at step 4 of the rollout"],
        ),
    ],
    ids=["reward", "last reward", "reset", "observation", "time limit"],
)
def test_error_names_what_where_and_when(planned: dict[str, Any], said: list[str], fast: bool) -> None:
    """What was not finite, in which environment, at which step, what it was, and how to go on; the model still works."""
    model = silent_model(fast=fast, **planned)
    before = policy_state(model)
    with pytest.raises(ValueError) as refusal, np.errstate(all="ignore"):
        model.learn(16)
    said = [*said, "Nothing was updated", "error_if_nonfinite=False"]
    missing = [words for words in said if words not in str(refusal.value)]
    assert not missing, str(refusal.value)
    assert not changed(before, policy_state(model)) and model.last_update is None
    # The plan has had its time
    for env in model.get_env().envs:  # type: ignore[union-attr]
        env.unwrapped.rewards, env.unwrapped.observations = {}, {}
    model.learn(16, reset_num_timesteps=False)
    assert model.last_update is not None and model.last_update.step.accepted


class NaNOnce(gym.Env):
    """Episodes of seven steps; one observation is NaN."""

    observation_space = VECTOR
    action_space = BOX

    def __init__(self, at: int):
        self.at, self.n_steps, self.n_nan_actions = at, 0, 0

    def _observation(self) -> np.ndarray:
        is_nan, self.at = self.n_steps == self.at, -1 if self.n_steps == self.at else self.at
        shape = self.observation_space.shape
        return np.full(shape, np.nan, np.float32) if is_nan else self.np_random.uniform(-1, 1, shape).astype(np.float32)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        self.n_nan_actions += int(np.isnan(action).any())
        return self._observation(), float(np.nan_to_num(action).sum()), False, self.n_steps % 7 == 0, {}


VARIANTS = {TRPO: "MlpPolicy", RecurrentTRPO: "MlpLstmPolicy"}


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("by_sb3", [True, False])
@pytest.mark.parametrize("at", [3, N_STEPS])
def test_nan_observation_that_is_let_through_is_over_with_its_episode(kind: Any, fast: bool, by_sb3: bool, at: int) -> None:
    """In the middle of a rollout or at its end: what learns from it is refused, a memory forgets it, and then all is well."""
    env = NaNOnce(at)
    venv: Any = DummyVecEnv([lambda: env])
    venv = VecCheckNan(venv, raise_exception=False, warn_once=True) if by_sb3 else venv
    model = kind(
        VARIANTS[kind], venv, n_steps=N_STEPS, batch_size=8, seed=0, fast=fast, error_if_nonfinite=by_sb3, device="cpu"
    )
    statuses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5):
            model.learn(N_STEPS, reset_num_timesteps=False)
            statuses.append(model.last_update.step.status)
    refused = [status for status in statuses if status.endswith("not_finite")]
    assert 1 <= len(refused) <= 2 and statuses[: len(refused)] == refused and set(statuses[len(refused) :]) == {"accepted"}
    assert env.n_nan_actions <= 7


def test_check_nan_of_sb3_sees_to_it_in_its_own_way() -> None:
    """With VecCheckNan among the wrappers its choice holds: a warning and no update, or its own error."""
    env = HostileEnv(VECTOR, BOX, termination_probability=0.0)
    model = TRPO("MlpPolicy", VecCheckNan(DummyVecEnv([lambda: env])), n_steps=N_STEPS, seed=0, device="cpu")
    env.fault, env.place = Fault("nan", 1), "reward"
    before = actor_state(model)
    with pytest.warns(UserWarning, match="found nan in rewards"):
        model.learn(N_STEPS)
    assert model.last_update is not None and model.last_update.step.status == "rewards_not_finite"
    assert not changed(before, actor_state(model))
    strict = TRPO("MlpPolicy", VecCheckNan(DummyVecEnv([lambda: env]), raise_exception=True), n_steps=N_STEPS, device="cpu")
    with pytest.raises(ValueError, match="Originated from the environment"):
        strict.learn(N_STEPS)


# How normalizers may lie in each other, the outermost last
NESTED: dict[str, list[Callable[[VecEnv], VecEnv]]] = {
    "one": [VecNormalize],
    "two": [VecNormalize, VecNormalize],
    "rewards outside": [VecNormalize, partial(VecNormalize, norm_obs=False)],
    "with a layer between": [VecNormalize, VecMonitor, VecNormalize],
}


@pytest.mark.parametrize("layers", NESTED.values(), ids=NESTED.keys())
@pytest.mark.parametrize("error_if_nonfinite", [True, False])
@pytest.mark.parametrize("place", ["observation", "reward"])
def test_statistics_of_vec_normalize_survive(place: str, error_if_nonfinite: bool, layers: Any) -> None:
    """One NaN would stay in VecNormalize's running statistics for ever, and with it every later update would be refused."""
    env = HostileEnv(VECTOR, BOX, termination_probability=0.0)
    normalizer = reduce(lambda inner, layer: layer(inner), layers, DummyVecEnv([lambda: env]))
    arguments: dict[str, Any] = {"n_steps": N_STEPS, "seed": 0, "device": "cpu", "error_if_nonfinite": error_if_nonfinite}
    model = TRPO("MlpPolicy", normalizer, **arguments).learn(N_STEPS)
    env.fault, env.place = Fault("nan", 1), place
    with np.errstate(all="ignore"):
        if error_if_nonfinite:
            with pytest.raises(ValueError, match=place):
                model.learn(N_STEPS, reset_num_timesteps=False)
        else:
            model.learn(N_STEPS, reset_num_timesteps=False)
            assert model.last_update is not None and model.last_update.step.status == f"{place}s_not_finite"
    env.fault = None
    assert len(statistics := statistics_of(normalizer)) == 2 * sum("VecNormalize" in str(layer) for layer in layers)
    assert all(np.isfinite([*np.ravel(s.mean), *np.ravel(s.var)]).all() for s in statistics)
    model.learn(N_STEPS, reset_num_timesteps=False)
    assert model.last_update is not None and model.last_update.step.accepted


def statistics_of(env: Any) -> list[Any]:
    if not isinstance(env, VecEnvWrapper):
        return []
    own = [env.obs_rms, env.ret_rms] if isinstance(env, VecNormalize) else []
    return own + statistics_of(env.venv)


# Distributions that are not finite


def bad_gaussian() -> DiagGaussianDistribution:
    return DiagGaussianDistribution(2).proba_distribution(th.full((1, 2), math.nan).double(), th.zeros(2).double())


def test_unvalidated_distributions_yield_nan_instead_of_raising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside, a distribution of NaN has a KL of NaN; outside, torch refuses to make it, before and after."""
    # Torch's compiler switches it off for good, in whatever test ran before
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)
    with pytest.raises(ValueError, match="Expected parameter loc"):
        bad_gaussian()
    with unvalidated_distributions():
        old = DiagGaussianDistribution(2).proba_distribution(th.zeros(1, 2).double(), th.zeros(2).double())
        assert math.isnan(float(kl_old_new(old, bad_gaussian())))
    with pytest.raises(ValueError, match="Expected parameter loc"):
        bad_gaussian()


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_unvalidated_distributions_restore_torchs_setting(validated: bool, error: type[BaseException]) -> None:
    """The process-wide flag is what it was, whatever it was and however the block was left."""
    before = th.distributions.Distribution._validate_args
    try:
        th.distributions.Distribution.set_default_validate_args(validated)
        with unvalidated_distributions():
            assert th.distributions.Distribution._validate_args is False
        assert th.distributions.Distribution._validate_args is validated
        with pytest.raises(error), unvalidated_distributions():
            raise error
        assert th.distributions.Distribution._validate_args is validated
    finally:
        th.distributions.Distribution.set_default_validate_args(before)


@pytest.mark.parametrize(
    "layers", [NESTED["one"], NESTED["two"], NESTED["rewards outside"]], ids=["1", "2", "rewards outside"]
)
@pytest.mark.parametrize("space", [VECTOR, spaces.Dict({"one": VECTOR, "two": VECTOR})], ids=["box", "dict"])
def test_normalised_observation_that_is_not_finite_costs_one_rollout(space: Any, layers: Any) -> None:
    """The last one, which the next rollout begins with, is normalised anew."""

    class Once(RandomEnv):
        n_seen = 0

        def _noise(self, space: Any) -> Any:
            noise = super()._noise(space)
            if not isinstance(space, spaces.Dict):
                self.n_seen += 1
                noise[0] = math.nan if self.n_seen == 40 else noise[0]
            return noise

    env = reduce(lambda inner, layer: layer(inner), layers, DummyVecEnv([lambda: Once(space, BOX)]))
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    statuses: list[str] = []
    model = TRPO(policy, env, n_steps=16, seed=0, device="cpu", error_if_nonfinite=False)
    with np.errstate(all="ignore"):
        for _ in range(5):
            model.learn(16, reset_num_timesteps=False)
            assert model.last_update is not None
            statuses.append(model.last_update.step.status)
    assert statuses.count("observations_not_finite") == 1, statuses
