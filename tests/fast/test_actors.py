"""The quick actors beside the policy: SB3's experience to rounding, and the policy's own distribution of actions."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO, MaskableTRPO, MlpPolicy, RecurrentTRPO
from sb3_trpo.fast import actors
from sb3_trpo.fast.actors import lean_actor
from sb3_trpo.fast.network import read_actor
from tests.cases import seeded, shake
from tests.fast.covered import TWO_VECTORS, NormedPolicy, StepByStep, Trunk
from tests.fast.not_covered import Extractor
from tests.masked_envs import masked_env
from tests.scenarios import FIELDS, GRID, GSDE, NARROW, Arrays, Recorder, Scenario, check_equal, collect, contents, replay
from tests.small_models import BOX, DICT, DISCRETE, IMAGE, MULTI_BINARY, MULTI_DISCRETE, VECTOR, make_env, small_model

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
    "ELU": Scenario(arguments={"policy_kwargs": {"activation_fn": th.nn.ELU}}),
    "SiLU, 1 env": Scenario(n_envs=1, arguments={"policy_kwargs": {"activation_fn": th.nn.SiLU}}),
    "layer norms": Scenario(policy=NormedPolicy),
    "extractor of layers, shared": Scenario(arguments={"policy_kwargs": {"features_extractor_class": Trunk}}),
    "extractor of layers, step by step": Scenario(
        action_space=DISCRETE,
        arguments={"policy_kwargs": {"features_extractor_class": StepByStep, "share_features_extractor": False}},
    ),
    "gSDE": Scenario(arguments=GSDE),
    "gSDE, 1 env": Scenario(n_envs=1, arguments=GSDE),
    "gSDE resampled": Scenario(arguments=GSDE | {"sde_sample_freq": 3}),
    "gSDE, expln": Scenario(arguments=GSDE | {"policy_kwargs": {"use_expln": True}}),
    "gSDE, expln, large": Scenario(arguments=GSDE | {"policy_kwargs": {"use_expln": True, "log_std_init": 0.2}}),
    "gSDE squashed": Scenario(
        action_space=NARROW, arguments=GSDE | {"sde_sample_freq": 4, "policy_kwargs": {"squash_output": True}}
    ),
    "gSDE, one deviation for all actions": Scenario(arguments=GSDE | {"policy_kwargs": {"full_std": False}}),
    "dict of vectors": Scenario(observation_space=TWO_VECTORS, policy="MultiInputPolicy"),
    "dict of vectors, discrete, 1 env": Scenario(
        observation_space=TWO_VECTORS, action_space=DISCRETE, n_envs=1, policy="MultiInputPolicy"
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
    "state observed": Scenario(observation_space=spaces.Discrete(5)),
    "state observed, discrete, 1 env": Scenario(observation_space=spaces.Discrete(5), action_space=DISCRETE, n_envs=1),
}

# The torch actor draws SB3's numbers: the seed is enough
TORCH_ACTOR = {
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
    "Softsign": Scenario(arguments={"policy_kwargs": {"activation_fn": th.nn.Softsign}}),
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
    assert numpy_actor(ours.policy, scenario.n_envs) is not None
    replay(theirs, lean, monkeypatch)
    plain = collect(theirs)
    check_equal(lean, plain)
    if scenario.episode_length > 1:
        check_that_the_scenario_is_one(scenario, plain)
    for model in (ours, theirs):
        model.get_env().close()  # type: ignore[union-attr]


@pytest.mark.untraced
@pytest.mark.parametrize("name", TORCH_ACTOR)
def test_lean_collection_with_the_seed_of_sb3_fills_the_buffer_as_sb3(name: str) -> None:
    """Where the policy itself is asked for its distribution, the same seed gives the same actions to the bit."""
    scenario = TORCH_ACTOR[name]
    ours, theirs = scenario.model(fast=True), scenario.model(fast=False)
    assert numpy_actor(ours.policy, scenario.n_envs) is None
    assert lean_actor(ours, ours.rollout_buffer, scenario.n_envs) is not None
    lean, plain = collect(ours), collect(theirs)
    # Thousands of pixels are added up in an order of each one's own
    check_equal(lean, plain, rounding=1e-5 if name == "image, perceptron" else 1e-6)
    check_that_the_scenario_is_one(scenario, plain)
    for model in (ours, theirs):
        model.get_env().close()  # type: ignore[union-attr]


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


def numpy_actor(policy: Any, n_envs: int) -> Any:
    return actors._numpy_actor(policy, n_envs, np.random.default_rng(0))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_deviation_that_a_callback_sets_before_a_rollout_is_in_force(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions are sampled with it, and their log-probabilities are those under it: the noise is a standard normal one."""
    if on_gpu:
        monkeypatch.setattr(actors, "_is_shared_with_numpy", lambda parameter: False)
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
        monkeypatch.setattr(actors, "_is_shared_with_numpy", lambda parameter: False)
    model, other = (Scenario().model(fast=True, seed=seed) for seed in (0, 1))
    for each in (model, other):
        with th.no_grad():
            each.policy.log_std.fill_(-30.0)
    actor = lean_actor(model, model.rollout_buffer, 3)
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


@pytest.mark.parametrize("cls, policy", [(TRPO, "MlpPolicy"), (RecurrentTRPO, "MlpLstmPolicy")])
def test_training_does_not_ask_for_the_default_device_of_torch(cls: Any, policy: str) -> None:
    model = small_model(cls, policy, make_env(action_space=DISCRETE))
    with th.device("meta"):
        model.learn(64)
    assert model.paths_in_use["collection"] == "lean" and model.last_update is not None


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
    act = numpy_actor(policy, N_STATES * n)
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
    act = numpy_actor(policy, 2)
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
    act = numpy_actor(policy, 2)
    assert act is not None
    with seeded(5):
        assert all(np.array_equal(act(OBSERVATIONS[:2])[0], expected) for _ in range(200))


def test_squashed_actions_reach_the_bounds_of_the_environment() -> None:
    """gSDE with ``squash_output``: the buffer holds actions in [-1, 1], the environment gets them in its own bounds."""
    model, recorder = NUMPY_ACTOR["gSDE squashed"].model(fast=True), Recorder()
    collect(model, n_rollouts=1, callback=recorder)
    given = np.stack([seen["clipped_actions"] for seen in recorder.seen[1:-1]])
    expected = NARROW.low + 0.5 * (model.rollout_buffer.actions + 1.0) * (NARROW.high - NARROW.low)
    np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_noise_of_gsde_is_that_of_the_matrices_that_the_policy_has_drawn(n_envs: int) -> None:
    """Mean and noise of each environment are SB3's to rounding, also once the noise is drawn anew."""
    model = Scenario(n_envs=n_envs, arguments=GSDE).model(fast=True)
    policy = model.policy
    act = numpy_actor(policy, n_envs)
    assert act is not None
    for row in np.random.default_rng(1).uniform(-1, 1, (4, n_envs, 3)).astype(np.float32):
        policy.reset_noise(n_envs)
        with th.no_grad():
            expected = policy(th.as_tensor(row))[0].numpy()
        np.testing.assert_allclose(act(row)[0], expected, rtol=1e-5, atol=1e-5)


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
    assert lean_actor(model, model.rollout_buffer, 1) is None
    assert sb3_collections == [0, 64]
    assert isinstance(model.rollout_buffer, CountingBuffer) and model.rollout_buffer.n_added == 128


def test_policy_that_acts_in_a_way_of_its_own_is_asked_by_sb3(sb3_collections: list[int]) -> None:
    model = small_model(policy=ForwardPolicy).learn(128)
    assert lean_actor(model, model.rollout_buffer, 1) is None
    assert sb3_collections == [0, 64]
    assert (model.rollout_buffer.actions == 0.25).all()


@pytest.mark.parametrize("policy", [FeaturesPolicy, DistributionPolicy, ValuesPolicy])
def test_policy_that_overrides_another_method_is_collected_from_as_by_sb3(policy: type[MlpPolicy]) -> None:
    """SB3's ``forward`` uses some of a policy's methods and not others: what it makes of them is the experience."""
    ours, theirs = (
        small_model(policy=policy, env=make_env(n_envs=2), fast=fast, policy_kwargs={"activation_fn": th.nn.Softsign})
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


class Blind(MlpExtractor):
    """Makes nothing of the features for the actor, if it is asked as a whole."""

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        latent_pi, latent_vf = super().forward(features)
        return 0.0 * latent_pi, latent_vf


def blind_by_hook(policy: Any) -> None:
    policy.mlp_extractor.register_forward_hook(lambda module, given, output: (0.0 * output[0], output[1]))


def blind_by_method(policy: Any) -> None:
    whole = policy.mlp_extractor.forward
    policy.mlp_extractor.forward = lambda features: (0.0 * whole(features)[0], whole(features)[1])


def blind_by_module(policy: Any) -> None:
    policy.mlp_extractor = copy.deepcopy(policy.mlp_extractor)
    policy.mlp_extractor.__class__ = Blind


@pytest.mark.parametrize("activation", [th.nn.Tanh, th.nn.Softsign])
@pytest.mark.parametrize("at", [0, 20])
@pytest.mark.parametrize("blind", [blind_by_hook, blind_by_method, blind_by_module])
def test_shared_extractor_is_asked_as_a_whole(blind: Callable[[Any], None], at: int, activation: Any) -> None:
    """As SB3 asks it, from the start or from any step on: what its parts would say to the actor is of no account."""

    class Blinding(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == at:
                blind(self.model.policy)
            return True

    kwargs = {"activation_fn": activation, "net_arch": [8], "log_std_init": -7.0, "ortho_init": False}
    model = small_model(env=make_env(n_envs=2), policy_kwargs=kwargs)
    if at == 0:
        blind(model.policy)
    (collected,) = collect(model, n_rollouts=1, callback=Blinding())
    head: Any = model.policy.action_net
    off = np.abs(collected["actions"] - head.bias.detach().numpy()).max(axis=(1, 2))
    assert off[at:].max() < 0.01 and (at == 0 or off[:at].min() > 0.01)


def test_shared_extractor_is_asked_as_a_whole_with_masks_too() -> None:
    model = small_model(MaskableTRPO, env=masked_env(n_envs=2, probability=1.0), policy_kwargs={"net_arch": [8]})
    shake(list(model.policy.parameters()), scale=30.0, seed=1)
    blind_by_module(model.policy)
    with th.no_grad():
        head: Any = model.policy.action_net
        head.bias.zero_()[1] = 100.0
    (collected,) = collect(model, n_rollouts=1)
    assert (collected["actions"] == 1.0).all()


@pytest.mark.parametrize("policy", ["CnnPolicy", "MlpPolicy"])
def test_shared_features_that_are_learned_are_made_once(policy: str, sb3_collections: list[int]) -> None:
    """By SB3's ``forward``, which gives the values along with the actions."""
    kwargs: dict[str, Any] = {"share_features_extractor": True}
    if policy == "MlpPolicy":
        kwargs |= {"features_extractor_class": Extractor}
    space = IMAGE if policy == "CnnPolicy" else VECTOR

    def made(fast: bool) -> Any:
        env = make_env(space, DISCRETE, 2)
        return small_model(policy=policy, env=env, fast=fast, policy_kwargs=kwargs)

    lean = collect(made(True))
    assert not sb3_collections
    check_equal(lean, collect(made(False)))


def test_large_number_of_states_is_encoded_in_the_memory_of_a_few_rows() -> None:
    """A table of all states by all states would be 40 gigabytes."""
    policy = MlpPolicy(spaces.Discrete(100_000), DISCRETE, lambda _: 1e-3, net_arch=[1])
    network = read_actor(policy)
    assert network is not None
    encoded = actors.encoder(policy, network)(np.array([3, 99_999]), 2)
    assert encoded.shape == (2, 100_000) and encoded.dtype == np.float32
    assert encoded.nonzero()[1].tolist() == [3, 99_999] and encoded.sum() == 2.0


def test_values_are_those_of_what_was_observed_where_the_buffer_rounds_it() -> None:
    """A space of integers whose observations are normalised: SB3's buffer keeps integers."""
    found: list[float] = []

    class Compare(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.seen: list[th.Tensor] = []

        def _on_step(self) -> bool:
            model: Any = self.model
            with th.no_grad():
                self.seen.append(model.policy.predict_values(th.as_tensor(model._last_obs)).flatten())
            return True

        def _on_rollout_end(self) -> None:
            values = th.as_tensor(self.model.rollout_buffer.values)  # type: ignore[attr-defined]
            found.append(float((values - th.stack(self.seen)).abs().max()))

    env = VecNormalize(make_env(spaces.Box(-5, 5, (3,), np.int64), n_envs=2))
    model = small_model(env=env).learn(2 * 64, callback=Compare())
    assert model.paths_in_use["collection"] == "plain" and max(found) < 1e-5
