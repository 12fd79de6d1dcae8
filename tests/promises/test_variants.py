"""What holds for each of the variants: memory and observations stay together, a refused update moves nothing, seeds decide."""

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.guards.passed_on import PassedOn
from tests.masked_envs import MaskedEnv, masked_env
from tests.small_models import DISCRETE, VECTOR, make_env, policy_state, small_model

SMALL: dict[str, Any] = {"policy_kwargs": {"lstm_hidden_size": 8}}
VARIANTS: dict[str, tuple[type[TRPO], str, dict[str, Any]]] = {
    "masked": (MaskableTRPO, "MlpPolicy", {}),
    "recurrent": (RecurrentTRPO, "MlpLstmPolicy", SMALL),
    "both": (MaskableRecurrentTRPO, "MlpLstmPolicy", SMALL),
}
WITH_MEMORY = ("recurrent", "both")


class OnlyCounted(MaskedEnv):
    """The environment with masks, which does not stop whoever takes an impossible action."""

    def step(self, action: Any) -> Any:
        result = super(MaskedEnv, self).step(action)
        self._draw()
        return result


def env_of(name: str, n_envs: int = 2) -> Any:
    return masked_env(n_envs=n_envs) if name != "recurrent" else DummyVecEnv([lambda: OnlyCounted(VECTOR, DISCRETE)] * n_envs)


def variant(name: str, cls: type[TRPO] | None = None, env: Any = None, **arguments: Any) -> Any:
    kind, policy, own = VARIANTS[name]
    return small_model(cls or kind, policy, env or env_of(name), **own | arguments)


# Seeds


def digests() -> list[str]:
    """Return what the weights of TRPO and of each variant come to after a few updates."""
    models = [small_model(env=make_env(n_envs=2), seed=5).learn(192), *(variant(name).learn(128) for name in VARIANTS)]
    states = [b"".join(value.numpy().tobytes() for value in policy_state(model).values()) for model in models]
    return [hashlib.sha256(state).hexdigest() for state in states]


def test_same_seed_same_weights_in_another_process() -> None:
    """Bit for bit: nothing that differs between two processes gets into the weights, nor does the order of a set."""
    program = "import torch; torch.set_num_threads(1); from tests.promises.test_variants import digests; print(*digests())"
    variables = os.environ | {"PYTHONHASHSEED": "123"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root, env=variables)
    assert done.stdout.split() == digests()


# Refused updates


@pytest.mark.parametrize("name", VARIANTS)
def test_refused_update_leaves_every_parameter(name: str) -> None:
    """A limit so wide that the only candidate of the line search gains nothing, and a reward that is not finite."""
    model = variant(name, n_critic_updates=0, target_kl=1e6, cg_damping=0.0, line_search_max_iter=1)
    before = policy_state(model)
    model.learn(64)
    assert model.last_update is not None and not model.last_update.step.accepted
    assert all(th.equal(before[key], value) for key, value in policy_state(model).items())
    model = variant(name, error_if_nonfinite=False)
    before = policy_state(model)
    model.env.envs[0].step = lambda action: (np.zeros(3, np.float32), float("nan"), False, False, {})
    model.learn(64)
    assert model.last_update is not None and not model.last_update.step.accepted
    assert all(th.equal(before[key], value) for key, value in policy_state(model).items())


# Memory


@pytest.mark.parametrize("name", WITH_MEMORY)
@pytest.mark.parametrize("fast", [True, False])
def test_no_step_is_a_loop_in_python(name: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """sb3-contrib's policies loop over the steps once an episode starts among them: ours never ask them to."""
    plain = RecurrentActorCriticPolicy._process_sequence
    lengths = []

    def watched(features: Any, lstm_states: Any, episode_starts: th.Tensor, lstm: Any) -> Any:
        length = len(episode_starts) // lstm_states[0].shape[1]
        lengths.append(length)
        assert length == 1 or not episode_starts.any()
        return plain(features, lstm_states, episode_starts, lstm)

    monkeypatch.setattr(RecurrentActorCriticPolicy, "_process_sequence", staticmethod(watched))
    model = variant(name, fast=fast).learn(128)
    starts = model._starts()
    assert max(lengths) > 4 and starts.sum() > 4


class Acted(PassedOn):
    """Keeps what each step of a rollout was acted on: the last one is not stored where a callback ends it there."""

    def __init__(self, callback: Any, model: Any):
        super().__init__(callback)
        self.model = model
        self.steps: list[tuple[Any, ...]] = []

    def on_step(self) -> bool:
        self.steps.append((self.model._last_obs, self.model._last_episode_starts, self.model._last_lstm_states.pi[0].numpy()))
        return super().on_step()


def remembering(cls: type) -> type:
    """Return a subclass that learns nothing, and keeps the steps of each rollout, whole or not, one after the other."""

    class Remembering(cls):
        def __init__(self, *args: Any, **kwargs: Any):
            self.seen: list[tuple[np.ndarray, ...]] = []
            super().__init__(*args, **kwargs)

        def collect_rollouts(self, env: Any, callback: Any, *args: Any, **kwargs: Any) -> bool:
            acted = Acted(callback, self)
            try:
                return super().collect_rollouts(env, acted, *args, **kwargs)
            finally:
                buffer = self.rollout_buffer
                arrays = (buffer.observations, buffer.episode_starts, buffer.hidden_states_pi)
                self.seen.append(tuple(array[: buffer.pos].copy() for array in arrays))
                self.seen += [tuple(np.asarray(part)[None] for part in step) for step in acted.steps[buffer.pos :]]

        def train(self) -> None:
            pass

        def _excluded_save_params(self) -> list[str]:
            return [*super()._excluded_save_params(), "seen"]

    return Remembering


@th.no_grad()
def check_memory(model: Any) -> int:
    """Run the LSTM over everything that was seen, step by step from zeros; return how many states were compared."""
    observations, starts, stored = (np.concatenate(parts) for parts in zip(*model.seen, strict=True))
    assert starts[0].all()
    state = tuple(th.zeros(1, observations.shape[1], 8) for _ in range(2))
    for obs, start, hidden in zip(observations, starts, stored, strict=True):
        goes_on = start < 0.5
        np.testing.assert_allclose(hidden[:, goes_on], state[0].numpy()[:, goes_on], rtol=1e-4, atol=1e-6)
        _, state = model.policy.get_distribution(th.as_tensor(obs), state, th.as_tensor(start))
    return int((starts < 0.5).sum())


def ended_early(model: Any, tmp_path: Path) -> Any:
    model.learn(256, callback=lambda locals_, globals_: model.num_timesteps < 90)
    return model.learn(64, reset_num_timesteps=False)


def after_an_exception(model: Any, tmp_path: Path) -> Any:
    def fail(locals_: Any, globals_: Any) -> bool:
        if model.num_timesteps >= 90:
            raise RuntimeError("of the user's")
        return True

    with pytest.raises(RuntimeError, match="of the user's"):
        model.learn(256, callback=fail)
    return model.learn(64, reset_num_timesteps=False)


def in_a_second_learn(model: Any, tmp_path: Path) -> Any:
    return model.learn(64).learn(64)


def in_one_that_goes_on(model: Any, tmp_path: Path) -> Any:
    return model.learn(64).learn(64, reset_num_timesteps=False)


def after_loading(model: Any, tmp_path: Path) -> Any:
    model.learn(64).save(tmp_path / "model")
    model = type(model).load(tmp_path / "model", env=env_of("recurrent", 3), device="cpu")
    model.seen = []
    return model.learn(126, reset_num_timesteps=False)


def after_loading_in_the_midst(model: Any, tmp_path: Path) -> Any:
    model.learn(64).save(tmp_path / "model")
    model = type(model).load(tmp_path / "model", env=model.env, device="cpu", force_reset=False)
    model.seen = []
    return model.learn(128, reset_num_timesteps=False)


def in_another_env(model: Any, tmp_path: Path) -> Any:
    model.learn(64).set_env(env_of("recurrent"))
    return model.learn(64, reset_num_timesteps=False)


SITUATIONS: list[Callable[[Any, Path], Any]] = [
    ended_early,
    after_an_exception,
    in_a_second_learn,
    in_one_that_goes_on,
    after_loading,
    after_loading_in_the_midst,
    in_another_env,
]


# Each situation with either variant and in either way, not every variant in every way
@pytest.mark.parametrize(
    "situation, name, fast",
    [
        (situation, name, (i + j) % 2 == 0)
        for (i, situation), (j, name) in itertools.product(enumerate(SITUATIONS), enumerate(WITH_MEMORY))
    ],
)
def test_memory_is_that_of_what_was_seen(situation: Callable[[Any, Path], Any], name: str, fast: bool, tmp_path: Path) -> None:
    """Whatever came between two steps, the state before each is that of the episode's observations until then."""
    model = situation(variant(name, remembering(VARIANTS[name][0]), fast=fast), tmp_path)
    assert check_memory(model) > 64


class Numbered(OnlyCounted):
    """Observations tell the number of the episode."""

    n_episodes = 0

    def reset(self, **kwargs: Any) -> Any:
        self.n_episodes += 1
        return super().reset(**kwargs)

    def _noise(self, space: Any) -> Any:
        return np.full(3, self.n_episodes, np.float32)


@pytest.mark.parametrize("how", ["returns", "raises", "environment"])
@pytest.mark.parametrize("cls, policy", [(TRPO, "MlpPolicy"), (RecurrentTRPO, "MlpLstmPolicy")])
def test_rollout_left_at_the_end_of_an_episode_goes_on_with_the_next(cls: type[TRPO], policy: str, how: str) -> None:
    """
    Neither a memory nor an advantage lasts across the end, whether the callback returned False or raised.

    Where the second environment raises, the first is further on: all begin anew.
    """

    def leave(variables: dict[str, Any], _: Any) -> bool:
        if how == "raises" and variables["dones"].any():
            raise KeyboardInterrupt
        return not variables["dones"].any()

    env = DummyVecEnv([lambda length=length: Numbered(VECTOR, DISCRETE, episode_length=length) for length in (9, 12)])  # type: ignore[misc]
    second: Any = env.envs[1]
    if how == "environment":
        step = second.step
        second.step = lambda action: step(action) if second.n_steps < 8 else _interrupt()
    model: Any = small_model(cls, policy, env, fast=how == "raises")
    model.train = lambda: None
    with nullcontext() if how == "returns" else pytest.raises(KeyboardInterrupt):
        model.learn(256, callback=leave)
    if how == "environment":
        del second.step
    model.learn(64, reset_num_timesteps=False)
    numbers, starts = model.rollout_buffer.observations[..., 0], model.rollout_buffer.episode_starts
    np.testing.assert_array_equal(starts[1:] > 0.5, numbers[1:] != numbers[:-1])
    assert starts[0].any() and starts[0].all() == (how == "environment")


def _interrupt() -> Any:
    raise KeyboardInterrupt


# Environments of Gymnasium


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_memory_learns_without_velocities() -> None:
    """A short run of CartPole without its velocities, which nobody holds up without a memory: it gets better."""

    class NoVelocities(gym.ObservationWrapper):
        def observation(self, observation: np.ndarray) -> np.ndarray:
            return observation * np.array([1, 0, 1, 0], np.float32)

    def make() -> gym.Env:
        return NoVelocities(gym.make("CartPole-v1"))

    model = RecurrentTRPO(
        "MlpLstmPolicy",
        DummyVecEnv([make] * 4),
        n_steps=256,
        target_kl=0.05,
        cg_damping=0.01,
        policy_kwargs={"lstm_hidden_size": 16},
        seed=0,
        device="cpu",
    )
    lengths: list[float] = []

    def note(variables: dict[str, Any], _: Any) -> bool:
        lengths.append(float(variables["dones"].mean()))
        return True

    model.learn(8 * 1024, callback=note)
    first, last = np.mean(lengths[:256]), np.mean(lengths[-256:])
    assert last < 0.7 * first
