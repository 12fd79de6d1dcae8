"""Lean collection: SB3's experience to rounding, SB3's callbacks, the policy's own distribution of actions."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize, VecTransposeImage

from sb3_trpo import TRPO, MlpPolicy, rollout
from sb3_trpo.fast import actors
from sb3_trpo.fast.actors import lean_actor
from sb3_trpo.rollout import compute_returns_and_advantage, relabel_returns
from tests.cases import seeded, shake
from tests.small_models import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    VECTOR,
    RandomEnv,
    changed,
    make_env,
    policy_state,
    small_model,
)

FIELDS = ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
# Bounds of which the policy knows nothing, so that clipping and squashing have something to do
NARROW = spaces.Box(np.array([-0.5, -1.0, 0.1], dtype=np.float32), np.array([0.5, 2.0, 0.3], dtype=np.float32))
GRID = spaces.MultiDiscrete([3, 2, 4])

Arrays = dict[str, np.ndarray]


class NoiseEnv(RandomEnv):
    """The random environment with finite observations too, and a reward that any part of the action changes."""

    def _noise(self, space: spaces.Space) -> Any:
        if isinstance(space, spaces.Discrete):
            return int(self.np_random.integers(space.n))
        if isinstance(space, spaces.MultiDiscrete):
            return self.np_random.integers(space.nvec).astype(space.dtype)
        return super()._noise(space)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        return observation, reward + float(np.sum(np.ravel(action) * np.arange(1, np.size(action) + 1))), *rest


class Scenario(NamedTuple):
    """
    What is collected from.

    :param observation_space: what is observed
    :param action_space: what can be done
    :param n_envs: number of environments
    :param policy: its alias
    :param arguments: what else the model gets
    :param episode_length: after so many steps an episode is truncated
    :param termination_probability: of each step to end the episode
    :param processes: whether each environment runs in a process of its own
    :param normalized: whether in ``VecNormalize``
    """

    observation_space: spaces.Space = VECTOR
    action_space: spaces.Space = BOX
    n_envs: int = 3
    policy: str = "MlpPolicy"
    arguments: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it
    episode_length: int = 7
    termination_probability: float = 0.1
    processes: bool = False
    normalized: bool = False

    def env(self) -> VecEnv:
        make: Callable[[], gym.Env] = partial(
            NoiseEnv,
            self.observation_space,
            self.action_space,
            episode_length=self.episode_length,
            termination_probability=self.termination_probability,
        )
        env: VecEnv = SubprocVecEnv([make] * self.n_envs, "fork") if self.processes else DummyVecEnv([make] * self.n_envs)
        return VecNormalize(env, gamma=0.9) if self.normalized else env

    def model(self, *, fast: bool, **arguments: Any) -> TRPO:
        """Return a model with weights away from the initial ones, where all actions are as good as equally likely."""
        settings = {"n_steps": 20, "gamma": 0.9, "gae_lambda": 0.8, "fast": fast, **self.arguments, **arguments}
        model = small_model(TRPO, self.policy, self.env(), **settings)
        # The many weights of a NatureCNN would add up to values of which rounding is no longer small
        scale = 0.2 if self.policy == "MlpPolicy" else 0.02
        shake(list(model.policy.parameters()), scale=scale, seed=1)
        return model


class Recorder(BaseCallback):
    """Writes down what a callback sees, and ends the run at a call of ``on_step`` if told to."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.stop_at = stop_at
        self.events: list[tuple[str, int, int]] = []
        self.seen: list[dict[str, Any]] = []

    def _record(self, event: str) -> None:
        self.events.append((event, self.num_timesteps, self.model.num_timesteps))
        self.seen.append(dict(self.locals))

    def _on_training_start(self) -> None:
        self._record("training_start")

    def _on_rollout_start(self) -> None:
        self._record("rollout_start")

    def _on_step(self) -> bool:
        self._record("step")
        return self.n_calls != self.stop_at

    def _on_rollout_end(self) -> None:
        self._record("rollout_end")

    def _on_training_end(self) -> None:
        self._record("training_end")


def contents(buffer: RolloutBuffer) -> Arrays:
    """Copy everything that a buffer holds."""
    stored: Any = buffer.observations
    observations = stored if isinstance(stored, dict) else {"": stored}
    return {f"observations {key}": value.copy() for key, value in observations.items()} | {
        name: getattr(buffer, name).copy() for name in FIELDS
    }


def collect(model: TRPO, *, n_rollouts: int = 2, callback: BaseCallback | None = None) -> list[Arrays]:
    """Collect one rollout after the other without an update, and return what each put into the buffer."""
    assert model.env is not None
    _, callback = model._setup_learn(10**6, callback)
    collected = []
    with seeded(0):
        for _ in range(n_rollouts):
            assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
            assert model.rollout_buffer.full and model.rollout_buffer.pos == model.n_steps
            collected.append(contents(model.rollout_buffer))
    return collected


def replay(model: TRPO, collected: list[Arrays], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a policy take actions taken before instead of sampling its own."""
    shape = (model.n_envs, *(model.action_space.shape or ()))
    kind = th.float32 if isinstance(model.action_space, spaces.Box | spaces.MultiBinary) else th.int64
    actions = (th.as_tensor(row).reshape(shape).to(kind) for arrays in collected for row in arrays["actions"])
    monkeypatch.setattr(model.policy.action_dist, "get_actions", lambda deterministic=False: next(actions))


def check_equal(lean: list[Arrays], plain: list[Arrays]) -> None:
    """Observations, actions and episode starts are the same to the bit, what was computed from them is so to rounding."""
    for ours, theirs in zip(lean, plain, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].shape == theirs[name].shape and ours[name].dtype == theirs[name].dtype, name
            exact = name.startswith(("observations", "actions", "episode_starts"))
            np.testing.assert_allclose(ours[name], theirs[name], **({"rtol": 0} if exact else {"rtol": 1e-5, "atol": 1e-5}))


GSDE: dict[str, Any] = {"use_sde": True}

# The NumPy actor draws its own random numbers: SB3 is given its actions
NUMPY_ACTOR = {
    "box": Scenario(),
    "box, clipped": Scenario(action_space=NARROW),
    "box, 1 env": Scenario(n_envs=1),
    "discrete": Scenario(action_space=DISCRETE),
    "discrete, 1 env": Scenario(action_space=DISCRETE, n_envs=1),
    "multi discrete": Scenario(action_space=GRID),
    "multi discrete, 1 env": Scenario(action_space=GRID, n_envs=1),
    "multi binary": Scenario(action_space=MULTI_BINARY),
    "multi binary, 1 env": Scenario(action_space=MULTI_BINARY, n_envs=1),
    "truncated only": Scenario(termination_probability=0.0),
    "terminated only": Scenario(episode_length=10**6),
    "every step truncated": Scenario(episode_length=1, termination_probability=0.3),
    "normalized": Scenario(normalized=True),
    "normalized, discrete, 1 env": Scenario(action_space=DISCRETE, n_envs=1, normalized=True),
    "processes": Scenario(n_envs=2, processes=True),
    "matrix observed": Scenario(observation_space=spaces.Box(-1.0, 1.0, (2, 3))),
    "double precision observed": Scenario(observation_space=spaces.Box(-1.0, 1.0, (3,), np.float64)),
    "ReLU, several layers": Scenario(arguments={"policy_kwargs": {"activation_fn": th.nn.ReLU, "net_arch": [8, 7, 6]}}),
    "no hidden layer": Scenario(arguments={"policy_kwargs": {"net_arch": []}}),
}

# The torch actor draws SB3's numbers: the seed is enough
TORCH_ACTOR = {
    "gSDE": Scenario(arguments=GSDE),
    "gSDE, 1 env": Scenario(n_envs=1, arguments=GSDE),
    "gSDE resampled": Scenario(arguments=GSDE | {"sde_sample_freq": 3}),
    "gSDE squashed": Scenario(
        action_space=NARROW, arguments=GSDE | {"sde_sample_freq": 4, "policy_kwargs": {"squash_output": True}}
    ),
    "state observed": Scenario(observation_space=spaces.Discrete(5)),
    "state observed, discrete, 1 env": Scenario(observation_space=spaces.Discrete(5), action_space=DISCRETE, n_envs=1),
    "states observed": Scenario(observation_space=spaces.MultiDiscrete([4, 3]), action_space=GRID),
    "image": Scenario(observation_space=IMAGE, action_space=DISCRETE, n_envs=2, policy="CnnPolicy"),
    "image, 1 env": Scenario(observation_space=IMAGE, n_envs=1, policy="CnnPolicy"),
    "image, perceptron": Scenario(observation_space=IMAGE, action_space=MULTI_BINARY),
    "dict": Scenario(observation_space=DICT, action_space=MULTI_DISCRETE, n_envs=2, policy="MultiInputPolicy"),
    "dict, gSDE, 1 env": Scenario(observation_space=DICT, n_envs=1, policy="MultiInputPolicy", arguments=GSDE),
    "dict with a state": Scenario(
        observation_space=spaces.Dict({"state": spaces.Discrete(4), "vector": VECTOR}),
        action_space=MULTI_BINARY,
        policy="MultiInputPolicy",
    ),
    "dict, normalized": Scenario(
        observation_space=spaces.Dict({"one": VECTOR, "other": VECTOR}), policy="MultiInputPolicy", normalized=True
    ),
    "dict, processes": Scenario(
        observation_space=spaces.Dict({"one": VECTOR, "other": VECTOR}),
        n_envs=2,
        policy="MultiInputPolicy",
        processes=True,
    ),
    "ELU": Scenario(arguments={"policy_kwargs": {"activation_fn": th.nn.ELU}}),
}


def check_that_the_scenario_is_one(scenario: Scenario, plain: list[Arrays]) -> None:
    """Episodes ended, or there would have been nothing to bootstrap or to cut advantages at."""
    assert all(arrays["episode_starts"].sum() > 0 for arrays in plain)
    first, second = (arrays["episode_starts"] for arrays in plain)
    assert not np.array_equal(first, second) or scenario.termination_probability == 0.0


@pytest.mark.parametrize("name", NUMPY_ACTOR)
def test_lean_collection_given_the_actions_fills_the_buffer_as_sb3(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rollouts in a row; what the NumPy actor did is what SB3 does."""
    scenario = NUMPY_ACTOR[name]
    ours, theirs = scenario.model(fast=True), scenario.model(fast=False)
    lean = collect(ours)
    assert actors._numpy_actor(ours.policy, scenario.n_envs) is not None
    replay(theirs, lean, monkeypatch)
    plain = collect(theirs)
    check_equal(lean, plain)
    if scenario.episode_length > 1:
        check_that_the_scenario_is_one(scenario, plain)
    for model in (ours, theirs):
        model.get_env().close()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", TORCH_ACTOR)
def test_lean_collection_with_the_seed_of_sb3_fills_the_buffer_as_sb3(name: str) -> None:
    """Where the policy itself is asked for its distribution, the same seed gives the same actions to the bit."""
    scenario = TORCH_ACTOR[name]
    ours, theirs = scenario.model(fast=True), scenario.model(fast=False)
    assert actors._numpy_actor(ours.policy, scenario.n_envs) is None
    assert lean_actor(ours.policy, ours.rollout_buffer, scenario.n_envs) is not None
    lean, plain = collect(ours), collect(theirs)
    check_equal(lean, plain)
    check_that_the_scenario_is_one(scenario, plain)
    for model in (ours, theirs):
        model.get_env().close()  # type: ignore[union-attr]


def test_rewards_hold_the_discounted_value_where_time_ran_out() -> None:
    """Said from outside: reward + γ V(last observation) at a truncation, the reward alone elsewhere."""
    model = Scenario(termination_probability=0.0, episode_length=6).model(fast=True)
    given: list[np.ndarray] = []
    ends: list[tuple[int, int, np.ndarray]] = []

    class Notes(BaseCallback):
        def _on_step(self) -> bool:
            given.append(self.locals["rewards"].copy())
            for i, info in enumerate(self.locals["infos"]):
                if self.locals["dones"][i]:
                    ends.append((len(given) - 1, i, info["terminal_observation"]))
            return True

    collect(model, n_rollouts=1, callback=Notes())
    expected = np.array(given)
    for step, i, last in ends:
        with th.no_grad():
            expected[step, i] += 0.9 * float(model.policy.predict_values(th.as_tensor(last)[None]))
    assert len(ends) == 9
    np.testing.assert_allclose(model.rollout_buffer.rewards, expected, rtol=1e-5, atol=1e-5)


def test_small_blocks_are_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluating four observations at a time, the last block of a rollout smaller than the others, changes nothing."""
    scenario = Scenario(action_space=DISCRETE, n_envs=3)
    whole = collect(scenario.model(fast=True, n_steps=21))
    monkeypatch.setattr(rollout, "EVALUATION_BLOCK", 4 * 3)
    check_equal(collect(scenario.model(fast=True, n_steps=21)), whole)


class ReusingEnv(NoiseEnv):
    """Hands the same array out again and again, as environments written for speed do; a new one for each episode."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.observation, info = super().reset(**kwargs)
        return self.observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        self.observation[:] = observation
        return self.observation, *rest


def test_environment_that_reuses_its_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept until the end of the rollout must not be what the environment writes into."""

    def model(fast: bool) -> TRPO:
        env = DummyVecEnv([partial(ReusingEnv, VECTOR, BOX, episode_length=5)] * 2)
        return small_model(env=env, n_steps=20, fast=fast)

    ours, theirs = model(True), model(False)
    lean = collect(ours)
    replay(theirs, lean, monkeypatch)
    check_equal(lean, collect(theirs))


def test_gamma_of_the_bootstrap_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 bootstraps with the model's own discount factor, also where a user changed it after the buffer was made."""
    ours, theirs = (Scenario().model(fast=fast) for fast in (True, False))
    ours.gamma = theirs.gamma = 0.5
    lean = collect(ours)
    replay(theirs, lean, monkeypatch)
    check_equal(lean, collect(theirs))


# Callbacks


CALLBACK_CASES = [
    pytest.param(Scenario(n_envs=1), id="box, 1 env"),
    pytest.param(Scenario(action_space=DISCRETE), id="discrete, 3 envs"),
    pytest.param(Scenario(arguments=GSDE), id="gSDE"),
    pytest.param(
        Scenario(observation_space=DICT, policy="MultiInputPolicy", arguments={"n_critic_updates": 1, "cg_max_steps": 2}),
        id="dict",
    ),
]


def learn(scenario: Scenario, *, fast: bool, stop_at: int | None = None, total: int = 100) -> tuple[TRPO, Recorder]:
    model = scenario.model(fast=fast, n_steps=10)
    recorder = Recorder(stop_at)
    model.learn(total, recorder)
    return model, recorder


@pytest.mark.parametrize("scenario", CALLBACK_CASES)
def test_callbacks_are_called_as_by_sb3(scenario: Scenario) -> None:
    """The same calls in the same order, at the same number of timesteps."""
    ours, theirs = learn(scenario, fast=True)[1], learn(scenario, fast=False)[1]
    assert ours.events == theirs.events
    assert [event for event, *_ in ours.events].count("rollout_end") == -(-100 // (10 * scenario.n_envs))


@pytest.mark.parametrize("scenario", CALLBACK_CASES)
def test_callbacks_find_the_locals_of_sb3(scenario: Scenario) -> None:
    """Everything but what is not known at a step; what is there has the same type, shape and, where it counts, value."""
    ours, theirs = (learn(scenario, fast=fast) for fast in (True, False))
    late = {"values", "log_probs", "obs_tensor"}
    bootstrap = {"idx", "done", "terminal_obs", "terminal_value"}
    for (event, *_), found, expected in zip(ours[1].events, ours[1].seen, theirs[1].seen, strict=True):
        missing = expected.keys() - found.keys() - late - bootstrap
        assert not missing, f"{event}: {missing}"
        if event != "step":
            continue
        assert found["self"] is ours[0] and found["env"] is ours[0].env and found["rollout_buffer"] is ours[0].rollout_buffer
        assert found["callback"] is not None
        for name in ("n_steps", "n_rollout_steps"):
            assert found[name] == expected[name], name
        for name in ("actions", "clipped_actions", "rewards", "dones"):
            assert (found[name].shape, found[name].dtype) == (expected[name].shape, expected[name].dtype), name
        assert np.array_equal(found["dones"], expected["dones"])
        assert [info.keys() for info in found["infos"]] == [info.keys() for info in expected["infos"]]
        np.testing.assert_equal(found["new_obs"], expected["new_obs"])


def test_callbacks_find_no_values_of_a_rollout_before() -> None:
    """What is not known yet is ``None`` at every step, also once a rollout has been through."""
    model, recorder = Scenario().model(fast=True), Recorder()
    model.learn(120, recorder)
    steps = [seen for (event, *_), seen in zip(recorder.events, recorder.seen, strict=True) if event == "step"]
    assert len(steps) > model.n_steps
    assert all(seen["values"] is None and seen["obs_tensor"] is None for seen in steps)


class Anneal(BaseCallback):
    """Sets the standard deviation at the beginning of each rollout, or in the middle of it."""

    def __init__(self, at_step: int | None = None):
        super().__init__()
        self.at_step = at_step

    def _anneal(self) -> None:
        with th.no_grad():
            dict(self.model.policy.named_parameters())["log_std"].fill_(-3.0)

    def _on_rollout_start(self) -> None:
        if self.at_step is None:
            self._anneal()

    def _on_step(self) -> bool:
        if self.n_calls == self.at_step:
            self._anneal()
        return True


def copied(parameter: th.nn.Parameter) -> np.ndarray:
    """Read a parameter as one on a GPU is."""
    return parameter.detach().numpy().copy()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_deviation_that_a_callback_sets_before_a_rollout_is_in_force(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions are sampled with it, and their log-probabilities are those under it: the noise is a standard normal one."""
    if on_gpu:
        monkeypatch.setattr(actors, "_numpy", copied)
    model = Scenario(n_envs=2).model(fast=True)
    model.n_steps = model.rollout_buffer.buffer_size = 400
    model.learn(800, Anneal())
    assert model.paths_in_use["collection"] == "lean"
    n_actions = model.action_space.shape[0]  # type: ignore[index]
    # Minus the entropy of a Gaussian with a deviation of exp(-3)
    expected = n_actions * (3.0 - 0.5 * np.log(2 * np.pi * np.e))
    assert model.rollout_buffer.log_probs.mean() == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_actor_acts_with_the_weights_of_the_moment(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are loaded, by a callback at the start of a rollout for one, after the actor was made and has acted."""
    if on_gpu:
        monkeypatch.setattr(actors, "_numpy", copied)
    model, other = (Scenario().model(fast=True, seed=seed) for seed in (0, 1))
    for each in (model, other):
        with th.no_grad():
            each.policy.log_std.fill_(-30.0)
    actor = lean_actor(model.policy, model.rollout_buffer, 3)
    assert actor is not None
    observations = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
    before = actor(observations)[0]
    model.policy.load_state_dict(other.policy.state_dict())
    after = actor(observations)[0]
    expected = other.policy.get_distribution(th.from_numpy(observations)).mode().detach().numpy()
    np.testing.assert_allclose(after, expected, atol=1e-5)
    assert np.abs(before - after).max() > 1e-2


def test_default_device_of_torch_is_not_asked_for() -> None:
    """Of a rollout with its noise in NumPy: where a user makes tensors by default is the user's."""
    rollouts = []
    for device in ("cpu", "meta"):
        model = Scenario().model(fast=True, seed=0)
        assert model.env is not None
        _, callback = model._setup_learn(60)
        with th.device(device):
            model.collect_rollouts(model.env, callback, model.rollout_buffer, 20)
        assert model.paths_in_use["collection"] == "lean"
        rollouts.append(contents(model.rollout_buffer))
    for name in FIELDS:
        np.testing.assert_array_equal(rollouts[0][name], rollouts[1][name])


def test_parameters_that_a_callback_changes_in_a_rollout_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="changed while a rollout was collected.*fast=False"):
        Scenario().model(fast=True).learn(20, Anneal(at_step=3))


def test_callback_at_the_end_of_the_rollout_finds_the_buffer_filled() -> None:
    """As with SB3 the advantages are there by then, and so are the values of the last observation."""
    model = Scenario().model(fast=True)
    found: dict[str, Any] = {}

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            found.update(contents(model.rollout_buffer), last_values=self.locals["values"])

    model.learn(60, Look())
    assert all(np.abs(found[name]).sum() > 0 for name in FIELDS)
    assert found["last_values"].shape == (3, 1)


@pytest.mark.parametrize("stop_at", [1, 10, 13])
@pytest.mark.parametrize("scenario", CALLBACK_CASES)
def test_callback_ends_the_run_where_it_does_with_sb3(scenario: Scenario, stop_at: int) -> None:
    """At the first step of a rollout, at its last one, in the middle of the second."""
    (ours, our_calls), (theirs, their_calls) = (learn(scenario, fast=fast, stop_at=stop_at) for fast in (True, False))
    assert our_calls.events == their_calls.events
    assert our_calls.events[-1][0] == "training_end"
    assert ours.num_timesteps == theirs.num_timesteps == stop_at * scenario.n_envs
    assert ours._n_updates == theirs._n_updates == (stop_at > 10)
    assert ours.rollout_buffer.pos == theirs.rollout_buffer.pos
    assert ours.rollout_buffer.full == theirs.rollout_buffer.full
    np.testing.assert_equal(ours._last_obs, theirs._last_obs)


# The distribution of the sampled actions


N_STATES = 4
N_PER_STATE = 5000
OBSERVATIONS = np.random.default_rng(3).uniform(-1, 1, (N_STATES, 3)).astype(np.float32)


def policy_with_preferences(action_space: spaces.Space) -> MlpPolicy:
    """Return a policy whose probabilities are far from uniform and differ from state to state."""
    with seeded(0):
        policy = MlpPolicy(VECTOR, action_space, lambda progress: 1e-3)
    shake(list(policy.parameters()), scale=0.25, seed=7)
    return policy


def samples(policy: MlpPolicy, monkeypatch: pytest.MonkeyPatch, *, n_calls: int = 50) -> np.ndarray:
    """Return the NumPy actor's actions, shape (N_STATES, N_PER_STATE, *action_shape)."""
    # Blocks of noise that end in the midst of it
    monkeypatch.setattr(actors, "NOISE_BLOCK", 10_000)
    n = N_PER_STATE // n_calls
    act = actors._numpy_actor(policy, N_STATES * n)
    assert act is not None
    with seeded(5):
        actions = np.stack([act(np.repeat(OBSERVATIONS, n, axis=0))[0] for _ in range(n_calls)])
    shape = policy.action_space.shape or ()
    return actions.reshape(n_calls, N_STATES, n, *shape).swapaxes(0, 1).reshape(N_STATES, N_PER_STATE, *shape)


def check_frequencies(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square of each state within four standard deviations of what it is expected to be."""
    assert probabilities.max() > 2 * probabilities.min()
    for observed, p in zip(counts, probabilities, strict=True):
        expected = p * observed.sum()
        assert expected.min() > 5
        statistic, df = float(((observed - expected) ** 2 / expected).sum()), len(p) - 1
        assert statistic < df + 4 * np.sqrt(2 * df) + 4


def joint_actions(space: spaces.Space) -> np.ndarray:
    """List all actions, shape (n_actions, *action_shape)."""
    if isinstance(space, spaces.Discrete):
        return np.arange(space.n)
    sizes = space.nvec if isinstance(space, spaces.MultiDiscrete) else [2] * space.shape[0]  # type: ignore[index]
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1).reshape(-1, len(sizes))


@pytest.mark.parametrize("space", [DISCRETE, MULTI_DISCRETE, MULTI_BINARY, GRID], ids=str)
def test_frequencies_of_finite_actions_are_the_policys(space: spaces.Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of joint actions: each part could have its own probabilities and still hang together with another."""
    policy = policy_with_preferences(space)
    all_actions = joint_actions(space)
    with th.no_grad():
        log_probs = [
            policy.get_distribution(th.as_tensor(OBSERVATIONS)).log_prob(
                th.as_tensor(np.repeat(action[None], N_STATES, axis=0)).float()
            )
            for action in all_actions
        ]
    probabilities = th.stack(log_probs, dim=1).double().exp().numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    drawn = samples(policy, monkeypatch).reshape(N_STATES, N_PER_STATE, -1)
    same = drawn[:, :, None, :] == all_actions.reshape(1, 1, len(all_actions), -1)
    counts = same.all(axis=3).sum(axis=1)
    assert (counts.sum(axis=1) == N_PER_STATE).all()
    check_frequencies(counts, probabilities)


def test_gaussian_actions_are_the_policys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean, deviation, shape and independence of dimensions and of steps; not clipped on the way into the buffer."""
    policy = policy_with_preferences(BOX)
    with th.no_grad():
        policy.log_std.copy_(th.tensor([-1.0, 0.0, 0.7]))
        mean = policy.get_distribution(th.as_tensor(OBSERVATIONS)).mode().numpy()
    z = (samples(policy, monkeypatch) - mean[:, None]) / np.exp([-1.0, 0.0, 0.7])
    tolerance = 4 / np.sqrt(N_PER_STATE)
    assert np.abs(z.mean(axis=1)).max() < tolerance
    assert np.abs(z.std(axis=1) - 1).max() < tolerance / np.sqrt(2)
    for of_state in z:
        assert np.abs(np.corrcoef(of_state.T) - np.eye(3)).max() < tolerance
        assert abs(np.mean(of_state[1:] * of_state[:-1])) < tolerance
    # Quantiles of a normal distribution
    probabilities = np.array([0.02275, 0.13591, 0.34134, 0.34134, 0.13591, 0.02275])
    for dimension in range(3):
        counts = np.stack([np.histogram(of_state[:, dimension], [-99, -2, -1, 0, 1, 2, 99])[0] for of_state in z])
        check_frequencies(counts, np.tile(probabilities, (N_STATES, 1)))


@pytest.mark.parametrize("space", [BOX, DISCRETE, MULTI_DISCRETE, MULTI_BINARY], ids=str)
def test_environments_do_not_share_their_noise(space: spaces.Space) -> None:
    """Two environments in the same state act differently, and so does one at two steps."""
    policy = policy_with_preferences(space)
    act = actors._numpy_actor(policy, 2)
    assert act is not None
    with seeded(5):
        drawn = np.stack([act(OBSERVATIONS[[0, 0]])[0] for _ in range(300)]).reshape(300, 2, -1)
    assert 0.1 < (drawn[:, 0] != drawn[:, 1]).any(axis=1).mean()
    assert 0.1 < (drawn[1:] != drawn[:-1]).any(axis=2).mean()


@pytest.mark.parametrize("space", [DISCRETE, MULTI_DISCRETE, MULTI_BINARY], ids=str)
def test_certain_actions_are_certain(space: spaces.Space) -> None:
    """With logits that are at least 50 apart, and as far from zero, the most likely action is taken every time."""
    policy = policy_with_preferences(space)
    with th.no_grad():
        policy.action_net.weight.zero_()  # type: ignore[operator]
        bias: Any = policy.action_net.bias
        bias.copy_(50.0 * th.tensor([3.0, -2.0, 1.0, -4.0, 2.0])[: bias.numel()])
        expected = policy.get_distribution(th.zeros(2, 3)).mode().numpy()
    act = actors._numpy_actor(policy, 2)
    assert act is not None
    with seeded(5):
        assert all(np.array_equal(act(OBSERVATIONS[:2])[0], expected) for _ in range(200))


def test_environment_gets_clipped_actions_and_the_buffer_what_was_sampled() -> None:
    """As with SB3: the log-probability is that of the action before clipping."""
    model, recorder = Scenario(action_space=NARROW).model(fast=True), Recorder()
    collect(model, n_rollouts=1, callback=recorder)
    given = np.stack([seen["clipped_actions"] for seen in recorder.seen[1:-1]])
    sampled = model.rollout_buffer.actions
    assert not model.action_space.contains(sampled[0, 0])
    assert np.array_equal(given, np.clip(sampled, NARROW.low, NARROW.high))


def test_squashed_actions_reach_the_bounds_of_the_environment() -> None:
    """gSDE with ``squash_output``: the buffer holds actions in [-1, 1], the environment gets them in its own bounds."""
    model, recorder = TORCH_ACTOR["gSDE squashed"].model(fast=True), Recorder()
    collect(model, n_rollouts=1, callback=recorder)
    given = np.stack([seen["clipped_actions"] for seen in recorder.seen[1:-1]])
    expected = NARROW.low + 0.5 * (model.rollout_buffer.actions + 1.0) * (NARROW.high - NARROW.low)
    np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)


# A run as a whole


@pytest.mark.parametrize("space", [BOX, DISCRETE, MULTI_DISCRETE, MULTI_BINARY], ids=str)
def test_seed_reproduces_a_run(space: spaces.Space) -> None:
    """To the last bit of the weights; another seed is another run."""
    runs = [small_model(env=make_env(VECTOR, space, 2), seed=seed).learn(192) for seed in (0, 0, 1)]
    first, again, other = map(policy_state, runs)
    assert not changed(first, again)
    assert changed(first, other)


def test_counters_and_episodes_go_on_as_with_sb3() -> None:
    """Timesteps, iterations, ends of episodes in the monitor and the last observation, over several updates and two calls."""
    ours, theirs = (TRPO("MlpPolicy", RandomEnv(), n_steps=64, seed=0, device="cpu", fast=fast) for fast in (True, False))
    for model in (ours, theirs):
        model.learn(150).learn(70, reset_num_timesteps=False)
    assert ours.num_timesteps == theirs.num_timesteps == 192 + 128
    assert ours._n_updates == theirs._n_updates == 5
    assert ours.ep_info_buffer is not None and theirs.ep_info_buffer is not None
    assert [info["l"] for info in ours.ep_info_buffer] == [info["l"] for info in theirs.ep_info_buffer] != []
    np.testing.assert_equal(ours._last_obs, theirs._last_obs)
    np.testing.assert_equal(ours._last_episode_starts, theirs._last_episode_starts)


def test_training_mode_is_left_off() -> None:
    """Dropout would make the old policy one that never acted."""
    model = small_model(fast=True)
    model.policy.set_training_mode(True)
    collect(model, n_rollouts=1)
    assert not model.policy.training


# What is not covered


class CountingBuffer(RolloutBuffer):
    """A buffer of the user's own, that wants to be told of every step."""

    n_added = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.n_added += 1
        super().add(*args, **kwargs)


class ForwardPolicy(MlpPolicy):
    """Acts in a way of its own: always the same."""

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        actions = th.full((len(obs), 3), 0.25)
        return actions, self.predict_values(obs), self.get_distribution(obs).log_prob(actions)


class FeaturesPolicy(MlpPolicy):
    """Sees the world upside down whenever SB3's ``forward`` asks what it sees."""

    def extract_features(self, obs: PyTorchObs, features_extractor: Any = None) -> Any:
        return -super().extract_features(obs, features_extractor)  # type: ignore[operator]


class DistributionPolicy(MlpPolicy):
    """Answers ``get_distribution`` with something else than what SB3's ``forward`` samples from."""

    def get_distribution(self, obs: PyTorchObs) -> Any:
        return super().get_distribution(-obs)  # type: ignore[operator]


class ValuesPolicy(MlpPolicy):
    """Answers ``predict_values`` with something else than the values of SB3's ``forward``."""

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        return 2.0 * super().predict_values(obs)


@pytest.fixture
def sb3_collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count how often SB3's own collection runs."""
    calls: list[int] = []
    original = OnPolicyAlgorithm.collect_rollouts

    def counted(self: OnPolicyAlgorithm, *args: Any, **kwargs: Any) -> bool:
        calls.append(self.num_timesteps)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(OnPolicyAlgorithm, "collect_rollouts", counted)
    yield calls


def test_default_is_the_lean_collection(sb3_collections: list[int]) -> None:
    model = small_model().learn(64)
    assert not sb3_collections and model.fast and model._n_updates == 1


def test_without_fast_the_collection_is_sb3s(sb3_collections: list[int]) -> None:
    small_model(fast=False).learn(128)
    assert sb3_collections == [0, 64]


def test_buffer_of_the_users_own_is_filled_by_sb3(sb3_collections: list[int]) -> None:
    model = small_model(rollout_buffer_class=CountingBuffer).learn(128)
    assert lean_actor(model.policy, model.rollout_buffer, 1) is None
    assert sb3_collections == [0, 64]
    assert isinstance(model.rollout_buffer, CountingBuffer) and model.rollout_buffer.n_added == 128


def test_policy_that_acts_in_a_way_of_its_own_is_asked_by_sb3(sb3_collections: list[int]) -> None:
    model = small_model(policy=ForwardPolicy).learn(128)
    assert lean_actor(model.policy, model.rollout_buffer, 1) is None
    assert sb3_collections == [0, 64]
    assert (model.rollout_buffer.actions == 0.25).all()


@pytest.mark.parametrize("policy", [FeaturesPolicy, DistributionPolicy, ValuesPolicy])
def test_policy_that_overrides_another_method_is_collected_from_as_by_sb3(policy: type[MlpPolicy]) -> None:
    """SB3's ``forward`` uses some of a policy's methods and not others: what it makes of them is the experience."""
    ours, theirs = (
        small_model(policy=policy, env=make_env(n_envs=2), fast=fast, policy_kwargs={"activation_fn": th.nn.ELU})
        for fast in (True, False)
    )
    for model in (ours, theirs):
        shake(list(model.policy.parameters()), scale=0.2, seed=1)
    check_equal(collect(ours), collect(theirs))


def test_policy_with_a_hook_of_its_own_is_collected_from_as_by_sb3() -> None:
    """A hook on the policy as a whole sees every call, and what it returns is what the environment gets."""
    ours, theirs = (small_model(env=make_env(n_envs=2), fast=fast) for fast in (True, False))
    for model in (ours, theirs):
        model.policy.register_forward_hook(lambda module, args, output: (0.0 * output[0], *output[1:]))
    lean, plain = collect(ours), collect(theirs)
    assert (plain[0]["actions"] == 0).all()
    check_equal(lean, plain)


def test_shared_features_that_are_learned_are_sb3s_to_make(sb3_collections: list[int]) -> None:
    env = VecTransposeImage(make_env(IMAGE, DISCRETE, 2))
    model = small_model(policy="CnnPolicy", env=env, policy_kwargs={"share_features_extractor": True})
    collect(model, n_rollouts=1)
    assert sb3_collections == [0]


# Advantages and returns


@pytest.mark.parametrize("n_envs", [1, 5])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 1.0), (0.8, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("n_steps", [1, 50])
def test_returns_and_advantages_are_the_buffers_own(n_envs: int, gamma: float, gae_lambda: float, n_steps: int) -> None:
    """On random numbers with random ends of episodes."""
    rng = np.random.default_rng(n_envs)
    buffer = RolloutBuffer(n_steps, VECTOR, BOX, "cpu", gamma=gamma, gae_lambda=gae_lambda, n_envs=n_envs)
    buffer.rewards, buffer.values = rng.normal(size=(2, n_steps, n_envs)).astype(np.float32)
    buffer.episode_starts = (rng.random((n_steps, n_envs)) < 0.2).astype(np.float32)
    last_values = rng.normal(size=n_envs).astype(np.float32)
    for dones in (rng.random(n_envs) < 0.5, np.zeros(n_envs, dtype=bool), np.ones(n_envs, dtype=bool)):
        buffer.compute_returns_and_advantage(th.as_tensor(last_values), dones)
        expected = buffer.advantages.copy(), buffer.returns.copy()
        compute_returns_and_advantage(buffer, last_values, dones)
        for ours, theirs in zip((buffer.advantages, buffer.returns), expected, strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("critic_gae_lambda", [0.0, 0.97, 1.0])
def test_returns_of_another_lambda_are_what_the_buffer_makes_of_it(gae_lambda: float, critic_gae_lambda: float) -> None:
    """On random numbers with random ends of episodes; the advantages stay to the bit."""
    rng = np.random.default_rng(0)
    buffer = RolloutBuffer(50, VECTOR, BOX, "cpu", gamma=0.9, gae_lambda=critic_gae_lambda, n_envs=5)
    buffer.rewards, buffer.values = rng.normal(size=(2, 50, 5)).astype(np.float32)
    buffer.episode_starts = (rng.random((50, 5)) < 0.2).astype(np.float32)
    last_values, dones = th.as_tensor(rng.normal(size=5), dtype=th.float32), rng.random(5) < 0.5
    buffer.compute_returns_and_advantage(last_values, dones)
    expected = buffer.returns.copy()
    buffer.gae_lambda = gae_lambda
    buffer.compute_returns_and_advantage(last_values, dones)
    advantages = buffer.advantages.copy()
    relabel_returns(buffer, critic_gae_lambda)
    assert np.array_equal(buffer.advantages, advantages)
    assert buffer.returns.dtype == expected.dtype
    np.testing.assert_allclose(buffer.returns, expected, rtol=1e-5, atol=1e-5)


class UsersBuffer(RolloutBuffer):
    """What a user may write: SB3 collects into it, and the critic is fitted to minibatches that it draws."""


@pytest.mark.parametrize(
    "arguments",
    [{"fast": True}, {"fast": False}, {"rollout_buffer_class": UsersBuffer}],
    ids=["fast", "plain", "a user's buffer"],
)
def test_critic_is_fitted_to_returns_of_a_lambda_of_its_own(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With λ = 1 they are the rewards that came, discounted, where every episode ends with the rollout; the policy's step
    does not change with it."""
    seen: list[Any] = []
    fit = TRPO._fit_critic

    def noted(self: TRPO, batch: Any, *rest: Any) -> Any:
        seen.append(batch)
        values_seen = np.concatenate([minibatch.returns.numpy() for minibatch in next(iter(self._value_epochs(batch)))])
        np.testing.assert_array_equal(np.sort(values_seen), np.sort(batch.returns.numpy()))
        return fit(self, batch, *rest)

    monkeypatch.setattr(TRPO, "_fit_critic", noted)

    def learned(critic_gae_lambda: float | None) -> tuple[TRPO, np.ndarray]:
        env = DummyVecEnv([lambda: NoiseEnv(VECTOR, BOX, episode_length=10**6, termination_probability=0.0)] * 2)
        model = small_model(
            TRPO, "MlpPolicy", env, n_steps=16, gae_lambda=0.5, critic_gae_lambda=critic_gae_lambda, **arguments
        )
        rewards: list[np.ndarray] = []
        step = model.env.step_wait  # type: ignore[union-attr]

        def last_ends() -> Any:
            observations, reward, dones, infos = step()
            rewards.append(reward.copy())
            return observations, reward, np.full_like(dones, len(rewards) % 16 == 0), infos

        monkeypatch.setattr(model.env, "step_wait", last_ends)
        model.learn(32)
        return model, np.array(rewards)

    (model, rewards), (shorter, _) = learned(1.0), learned(None)
    powers = np.array([[model.gamma ** (later - step) * (later >= step) for later in range(16)] for step in range(16)])
    returns, others = (batch.returns.numpy() for batch in seen)
    np.testing.assert_allclose(np.sort(returns), np.sort((powers @ rewards).ravel()), rtol=1e-4, atol=1e-5)
    assert not np.allclose(np.sort(returns), np.sort(others), rtol=1e-2)
    np.testing.assert_array_equal(np.sort(seen[0].advantages), np.sort(seen[1].advantages))
    assert changed(policy_state(model), policy_state(shorter))
    assert all("value" in name or "vf" in name for name in changed(policy_state(model), policy_state(shorter)))
