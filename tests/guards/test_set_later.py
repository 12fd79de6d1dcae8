"""What user code sets while a model trains is honoured, or refused by name before anything moves; set_env has its time."""

import copy
import math
import pathlib
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecCheckNan
from torch import nn

from sb3_trpo import TRPO
from tests.small_models import DISCRETE, RandomEnv, changed, make_env, policy_state, small_model

REFUSALS = (TypeError, ValueError)
HOOKS = ("training_start", "rollout_start", "step", "rollout_end")


class At(BaseCallback):
    """Does something once, in a hook, after an update has been made: the second time for hooks that come once a rollout."""

    def __init__(self, hook: str, what: Callable[[TRPO], Any]):
        super().__init__()
        self.hook, self.what, self.n_heard = hook, what, 0
        self.before: dict[str, Any] = {}

    def _init_callback(self) -> None:
        assert isinstance(self.model, TRPO)
        self.in_the_second_rollout = self.model.n_steps + 6

    def _hear(self, hook: str, turn: int) -> None:
        if hook != self.hook:
            return
        self.n_heard += 1
        if self.n_heard == turn:
            assert isinstance(self.model, TRPO)
            self.before = {"policy": policy_state(self.model), "optimizer": str(self.model.policy.optimizer.state_dict())}
            self.what(self.model)

    def _on_training_start(self) -> None:
        self._hear("training_start", 1)

    def _on_rollout_start(self) -> None:
        self._hear("rollout_start", 2)

    def _on_step(self) -> bool:
        self._hear("step", self.in_the_second_rollout)
        return True

    def _on_rollout_end(self) -> None:
        self._hear("rollout_end", 2)

    def _on_training_end(self) -> None:
        self._hear("training_end", 1)


def setting(name: str, value: Any) -> Callable[[TRPO], None]:
    return lambda model: setattr(model, name, value)


BAD: dict[str, Any] = {
    "learning_rate": [-1.0, math.nan, "1e-3"],
    "n_steps": [0, 64.5, None],
    "gamma": [1.5, math.nan, "0.99"],
    "gae_lambda": [-0.1, math.inf, None],
    "use_sde": [1, None],
    "sde_sample_freq": [0, 2.5, None],
    "normalize_advantage": [1, "yes"],
    "verbose": [-1, "loud"],
    "seed": [-1, 0.5],
    "error_if_nonfinite": [1, None],
    "policy_kwargs": [7],
    "rollout_buffer_class": [dict, 7],
    "rollout_buffer_kwargs": [7],
    "device": ["gpu:zero", 1.5],
    "tensorboard_log": [7],
    "batch_size": [0, -3, 16.0, None],
    "cg_max_steps": [0, None],
    "cg_damping": [-1.0, math.nan, "much"],
    "line_search_shrinking_factor": [0.0, 1.0, math.nan],
    "line_search_max_iter": [0, 2.5],
    "n_critic_updates": [-1, 2.5, None],
    "target_kl": [0.0, math.nan, None],
    "sub_sampling_factor": [0, 1.5],
    "fast": [1, "no"],
    "std_damping": [-1.0, math.nan, "none"],
    "critic_gae_lambda": [1.01, math.nan, "0.5"],
    "processes": [2, "two"],
}


def test_every_argument_that_is_an_attribute_is_set_below() -> None:
    """The table has whatever the constructor checks and keeps, so that a new argument is not forgotten."""
    assert set(BAD) == set(TRPO.rules) & set(vars(small_model()))


# The names in the four hooks by turns
CASES = [(name, values[0], HOOKS[index % 4]) for index, (name, values) in enumerate(BAD.items())]
# The processes are asked for between two calls too, and are looked at in a run alone
CASES += [("processes", value, "rollout_end") for value in BAD["processes"][1:]]


@pytest.mark.untraced
@pytest.mark.parametrize("name, value, hook", CASES)
def test_value_that_cannot_work_is_refused_before_anything_moves(name: str, value: Any, hook: str) -> None:
    """By its name, whoever sets it; policy and optimizer are what they were, and once it is put right training goes on."""
    model = small_model(n_steps=32, cg_max_steps=2, fast=HOOKS.index(hook) % 2 == 0, policy_kwargs={"net_arch": [4]})
    good = getattr(model, name)
    callback = At(hook, setting(name, value))
    with pytest.raises(REFUSALS) as refusal:
        model.learn(64, callback=callback)
    assert name in str(refusal.value) and repr(value) in str(refusal.value)
    assert not changed(callback.before["policy"], policy_state(model))
    assert callback.before["optimizer"] == str(model.policy.optimizer.state_dict())
    setattr(model, name, good)
    n_updates = model._n_updates
    model.learn(32, reset_num_timesteps=False)
    assert model._n_updates == n_updates + 1


@pytest.fixture(scope="module")
def learned() -> TRPO:
    """Return a model that has learned; whoever sets something puts it back."""
    return small_model(n_steps=32).learn(32)


@pytest.mark.parametrize("name, value", [(n, value) for n, values in BAD.items() for value in values[1:] if n != "processes"])
def test_further_value_is_refused_at_the_next_call(name: str, value: Any, learned: TRPO) -> None:
    """Set between two calls of ``learn`` it is refused by the same look, before anything moves."""
    good, before = getattr(learned, name), policy_state(learned)
    setattr(learned, name, value)
    try:
        with pytest.raises(REFUSALS) as refusal:
            learned.learn(32, reset_num_timesteps=False)
    finally:
        setattr(learned, name, good)
    assert name in str(refusal.value) and repr(value) in str(refusal.value)
    assert not changed(before, policy_state(learned))


class OwnBuffer(RolloutBuffer):
    """Of a class of the user's own."""


FIXED: dict[str, tuple[Any, str]] = {
    "n_steps": (48, "48"),
    "n_steps, fewer": (16, "16"),
    "use_sde": (True, "True"),
    "policy_kwargs": ({"net_arch": [3]}, "net_arch"),
    "policy_class": (3, "3"),
    "rollout_buffer_class": (OwnBuffer, "OwnBuffer"),
    "rollout_buffer_kwargs": ({"gamma": 0.5}, "gamma"),
    "seed": (5, "set_random_seed"),
    "stats_window_size": (5, "5"),
    "observation_space": (DISCRETE, "set_env"),
    "action_space": (DISCRETE, "set_env"),
}


def test_what_is_equal_may_be_set() -> None:
    """Arguments read from a file are other objects that say the same."""
    arguments: dict[str, Any] = {"net_arch": [4], "activation_fn": nn.ELU}
    model = small_model(policy_kwargs=arguments, n_steps=32)

    def again(model: TRPO) -> None:
        model.policy_kwargs = copy.deepcopy(model.policy_kwargs)
        model.action_space, model.observation_space = copy.deepcopy((model.action_space, model.observation_space))

    model.learn(96, callback=At("step", again))
    assert model._n_updates == 3


@pytest.mark.parametrize("case, hook", [(case, HOOKS[1 + index % 2]) for index, case in enumerate(FIXED)])
def test_value_that_comes_too_late_is_refused(case: str, hook: str) -> None:
    """What policy and buffer were built from would go unheard, or crash; the error says what was there and what came."""
    name = case.split(",")[0]
    value, said = FIXED[case]
    model = small_model(fast=HOOKS.index(hook) % 2 == 0, n_steps=32, sde_sample_freq=-1)
    callback = At(hook, setting(name, value))
    with pytest.raises(ValueError, match=f"^{name} must stay") as refusal:
        model.learn(64, callback=callback)
    assert said in str(refusal.value) and not changed(callback.before["policy"], policy_state(model))


@pytest.mark.parametrize("fast", [True, False])
def test_noise_switched_on_in_the_middle_of_a_rollout_is_refused(fast: bool) -> None:
    """SB3 asks for it at each step."""

    def both(model: TRPO) -> None:
        model.sde_sample_freq, model.use_sde = 4, True

    with pytest.raises(ValueError, match="use_sde must stay False, as the policy was built, got True"):
        small_model(fast=fast).learn(128, callback=At("step", both))
    model = small_model(use_sde=True, fast=fast)
    with pytest.raises(ValueError, match="use_sde must stay True"):
        model.learn(128, callback=At("rollout_end", setting("use_sde", False)))


def test_environment_starts_anew_after_a_refusal_in_the_middle_of_a_step() -> None:
    """The observation that the model holds is one step behind the environment."""
    model = small_model()
    with pytest.raises(ValueError, match="gamma"):
        model.learn(128, callback=At("step", setting("gamma", 2.0)))
    assert model._last_obs is None
    model.gamma = 0.9
    model.learn(64, reset_num_timesteps=False)
    assert model.rollout_buffer.episode_starts[0].all()


@pytest.mark.parametrize("fast", [True, False])
def test_number_of_steps_with_a_buffer_for_it_is_taken(fast: bool) -> None:
    """Both may be replaced between two calls of learn; a buffer alone is refused as well."""
    model = small_model(fast=fast).learn(64)
    model.rollout_buffer = RolloutBuffer(
        48, model.observation_space, model.action_space, "cpu", gamma=model.gamma, gae_lambda=model.gae_lambda
    )
    with pytest.raises(ValueError, match="n_steps must stay 48"):
        model.learn(64)
    model.n_steps = 48
    assert model.learn(96).num_timesteps == 96 and model.rollout_buffer.full


def slow_returns(model: TRPO, gamma: float, gae_lambda: float) -> np.ndarray:
    """Return the returns of a rollout of one environment by the definition, a sum over all later steps of its episode."""
    buffer = model.rollout_buffer
    assert model._last_obs is not None and isinstance(model._last_obs, np.ndarray)
    with th.no_grad():
        last = model.policy.predict_values(th.as_tensor(model._last_obs)).numpy().ravel()
    values = np.append(buffer.values.ravel(), last)
    assert model._last_episode_starts is not None
    starts = np.append(buffer.episode_starts.ravel(), model._last_episode_starts)
    n = len(values) - 1
    errors = buffer.rewards.ravel() + gamma * values[1:] * (1 - starts[1:]) - values[:-1]
    returns = np.zeros(n)
    for start in range(n):
        weight = 1.0
        for step in range(start, n):
            returns[start] += weight * errors[step]
            weight *= gamma * gae_lambda * (1 - starts[step + 1])
    return returns + values[:-1]


class Returns(BaseCallback):
    """Keeps the returns of each rollout, with those of the definition for what the model then says."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, TRPO)
        expected = slow_returns(self.model, self.model.gamma, self.model.gae_lambda)
        self.kept.append((self.model.rollout_buffer.returns.ravel().copy(), expected))


@pytest.mark.untraced
@pytest.mark.parametrize(
    "name, value, fast, hook",
    [
        ("gamma", 0.5, True, "rollout_start"),
        ("gamma", 0.5, True, "step"),
        ("gae_lambda", 0.2, True, "rollout_end"),
        ("gamma", 0.5, False, "rollout_start"),
        ("gae_lambda", 0.2, False, "step"),
        ("gamma", np.float32(0.25), False, "rollout_end"),
    ],
)
def test_discount_set_later_is_that_of_the_returns(name: str, value: Any, fast: bool, hook: str) -> None:
    """SB3's buffer holds a copy of its own: without being told it would go on with the old one."""
    model = small_model(fast=fast, n_steps=40)
    returns = Returns()
    # `returns` looks before the change of the end of a rollout, which is for the next one
    model.learn(120, callback=[returns, At(hook, setting(name, value))])
    assert len(returns.kept) == 3 and type(getattr(model, name)) is float
    assert getattr(model.rollout_buffer, name) == getattr(model, name) == pytest.approx(float(value))
    for found, expected in returns.kept:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_discount_that_the_buffer_was_given_stays() -> None:
    """Who knows SB3 sets it there: it is not overridden by a model that says nothing new."""
    model = small_model()
    model.rollout_buffer.gae_lambda = 0.4
    model.learn(128)
    assert model.rollout_buffer.gae_lambda == 0.4 and model.gae_lambda == 0.95
    model.gae_lambda = 0.8
    model.learn(64)
    assert model.rollout_buffer.gae_lambda == 0.8


def test_critic_lambda_set_in_a_rollout_is_in_force_in_it() -> None:
    """It is used after the end of the rollout, which may still set it."""
    model = small_model().learn(64, callback=At("training_start", setting("critic_gae_lambda", 1.0)))
    other = small_model(critic_gae_lambda=1.0).learn(64)
    assert not changed(policy_state(model), policy_state(other))


@pytest.mark.parametrize("value", [np.int64(16), np.int32(16)])
def test_numbers_of_numpy_set_later_are_taken(value: Any) -> None:
    model = small_model(batch_size=16, n_critic_updates=1).learn(128)
    other = small_model(n_critic_updates=7)
    for name, given in {"batch_size": value, "n_critic_updates": np.int64(1), "normalize_advantage": np.bool_(True)}.items():
        setattr(other, name, given)
    assert not changed(policy_state(model), policy_state(other.learn(128)))
    assert type(other.batch_size) is int and other.normalize_advantage is True


def test_damping_of_a_standard_deviation_that_is_not_there_is_refused() -> None:
    model = small_model(env=make_env(action_space=DISCRETE))
    with pytest.raises(ValueError, match=r"std_damping .* got 4.0 for Discrete\(4\)"):
        model.learn(192, callback=At("rollout_end", setting("std_damping", 4.0)))


def test_single_advantage_is_not_normalised_later() -> None:
    model = small_model(n_steps=1, normalize_advantage=False)
    with pytest.raises(ValueError, match="n_steps=1 and n_envs=1"):
        model.learn(8, callback=At("rollout_start", setting("normalize_advantage", True)))


# The learning rate


def learning_rate(model: TRPO) -> float:
    return model.policy.optimizer.param_groups[0]["lr"]


@pytest.mark.untraced
@pytest.mark.parametrize("hook", HOOKS)
def test_learning_rate_set_later_is_the_critics(hook: str, tmp_path: pathlib.Path) -> None:
    """SB3 reads the attribute at construction only: here the next update follows it, and so does a saved model."""
    model = small_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(128, callback=At(hook, setting("learning_rate", 5e-4)))
    assert learning_rate(model) == 5e-4
    model.learning_rate = LinearSchedule(1e-2, 0.0, 1.0)
    model.learn(128)
    assert learning_rate(model) == 0.0
    model.learn(64 * 2, callback=At("step", lambda m: m.save(tmp_path / "model")))
    assert callable(TRPO.load(tmp_path / "model", device="cpu").learning_rate)
    model.logger.close()


def test_schedule_that_the_user_put_in_place_is_followed() -> None:
    """The idiom of SB3's users, with and without the number beside it; a number that is set later counts again."""
    model = small_model()
    model.lr_schedule = lambda _: 0.25e-3
    assert learning_rate(model.learn(64)) == 0.25e-3
    model.learning_rate, model.lr_schedule = 7e-4, LinearSchedule(6e-4, 6e-4, 1.0)
    assert learning_rate(model.learn(64)) == 6e-4
    model.learning_rate = 9e-4
    assert learning_rate(model.learn(64)) == 9e-4


@pytest.mark.parametrize("value", [lambda _: math.nan, lambda _: -1e-3, 1e-3, None])
def test_schedule_of_the_user_that_cannot_work_is_refused(value: Any) -> None:
    model = small_model()
    callback = At("rollout_end", setting("lr_schedule", value))
    with pytest.raises(REFUSALS, match="lr_schedule"):
        model.learn(256, callback=callback)
    assert not changed(callback.before["policy"], policy_state(model))


# What the looking costs, and what it does not disturb


def test_looking_takes_microseconds_and_asks_no_schedule() -> None:
    asked: list[float] = []

    def schedule(remaining: float) -> float:
        asked.append(remaining)
        return 0.01

    model = small_model(target_kl=schedule)
    n_asked = len(asked)
    seconds = min(timeit.repeat(model._check_attributes, number=100, repeat=5)) / 100
    assert seconds < 5e-4 and len(asked) == n_asked


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("guarded", [True, False])
def test_callback_finds_itself(fast: bool, guarded: bool) -> None:
    """What SB3 hands to callbacks as `callback` is the user's, whatever is around it."""
    found: set[Any] = set()

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            found.add(self.locals["callback"])
            return True

    look = Look()
    small_model(env=VecCheckNan(make_env()) if guarded else None, error_if_nonfinite=not guarded, fast=fast).learn(64, look)
    assert found == {look}


# Another environment


@pytest.fixture(scope="module")
def undisturbed() -> dict[bool, dict[str, th.Tensor]]:
    """Return where a run ends that nobody interferes with, fast and plain."""
    return {fast: policy_state(small_model(fast=fast).learn(128)) for fast in (True, False)}


@pytest.mark.parametrize("hook, fast", [(hook, index % 2 == 0) for index, hook in enumerate(HOOKS)])
def test_environment_set_while_the_model_learns_is_refused(hook: str, fast: bool, undisturbed: dict[bool, Any]) -> None:
    """The error says what to do instead, and if it is caught the run goes on as if nothing had been."""
    said: list[RuntimeError] = []
    model = small_model(fast=fast)
    env = model.env

    def attempt(model: TRPO) -> None:
        with pytest.raises(RuntimeError, match=r"set_env.* between two calls of learn") as refusal:
            model.set_env(RandomEnv())
        said.append(refusal.value)

    model.learn(128, callback=At(hook, attempt))
    assert len(said) == 1 and model.env is env and not changed(policy_state(model), undisturbed[fast])
    with pytest.raises(RuntimeError, match="set_env"):
        model.learn(128, callback=At(hook, lambda model: model.set_env(RandomEnv())))
    model.set_env(RandomEnv())
    assert model.env is not env and model.learn(64).num_timesteps == 64


@pytest.mark.untraced
@pytest.mark.parametrize("hook, error", [*zip(HOOKS, [KeyboardInterrupt, ZeroDivisionError] * 2, strict=True)])
def test_environment_may_be_set_after_an_exception_has_left_learn(hook: str, error: type[BaseException]) -> None:
    def fail(model: TRPO) -> None:
        raise error

    model = small_model()
    with pytest.raises(error):
        model.learn(128, callback=At(hook, fail))
    model.set_env(make_env())
    model.learn(64, reset_num_timesteps=False)


def test_environment_may_be_set_when_training_has_ended(tmp_path: pathlib.Path) -> None:
    """By the last call of a callback too, at the end of the run or where a callback ended it."""

    class StopAndSet(BaseCallback):
        def __init__(self, steps: float):
            super().__init__()
            self.steps = steps

        def _on_step(self) -> bool:
            return self.num_timesteps < self.steps

        def _on_training_end(self) -> None:
            self.model.set_env(make_env())

    model = small_model()
    for steps in (100, math.inf):
        env = model.env
        model.learn(128, callback=StopAndSet(steps))
        assert model.env is not env
    model.learn(64, reset_num_timesteps=False)


def test_copy_that_a_callback_makes_is_not_learning(tmp_path: pathlib.Path) -> None:
    """A checkpoint and a copy are models of their own."""
    made: list[TRPO] = []

    def duplicate(model: TRPO) -> None:
        model.save(tmp_path / "model")
        made.extend([TRPO.load(tmp_path / "model", device="cpu"), copy.deepcopy(model)])

    small_model().learn(128, callback=At("step", duplicate))
    for model in made:
        model.set_env(make_env())
        assert model.learn(64).num_timesteps == 64


@pytest.mark.parametrize(
    "name, value, hook",
    [
        ("policy", "MlpPolicy", "rollout_start"),
        ("policy", None, "rollout_end"),
        ("rollout_buffer", None, "rollout_start"),
        ("rollout_buffer", [], "rollout_end"),
    ],
)
def test_what_is_no_policy_or_no_buffer_is_refused_by_name(name: str, value: Any, hook: str) -> None:
    """A string makes a policy at construction only."""
    callback = At(hook, setting(name, value))
    with pytest.raises(TypeError, match=f"^{name} must be a "):
        small_model(n_steps=32).learn(64, callback=callback)
