"""Experience is that of the policy and the observation that acted, whatever a callback does."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.fast import actors
from tests.cases import shake
from tests.small_models import BOX, DISCRETE, MULTI_BINARY, MULTI_DISCRETE, VECTOR, make_env, small_model

N_STEPS = 12


def other_policy(model: TRPO) -> Any:
    other = copy.deepcopy(model.policy)
    shake(list(other.parameters()), scale=0.5, seed=3)
    return other


def in_place(model: TRPO, other: Any) -> None:
    with th.no_grad():
        for parameter, value in zip(model.policy.parameters(), other.parameters(), strict=True):
            parameter.copy_(value)


def data_in_place(model: TRPO, other: Any) -> None:
    for parameter, value in zip(model.policy.parameters(), other.parameters(), strict=True):
        parameter.data.copy_(value.data)


def new_data(model: TRPO, other: Any) -> None:
    for parameter, value in zip(model.policy.parameters(), other.parameters(), strict=True):
        parameter.data = value.data.clone()


def new_parameters(model: TRPO, other: Any) -> None:
    for module, source in zip(model.policy.modules(), other.modules(), strict=True):
        for name, value in source._parameters.items():
            setattr(module, name, None if value is None else th.nn.Parameter(value.detach().clone()))


def new_layers(model: TRPO, other: Any) -> None:
    model.policy.mlp_extractor.policy_net = copy.deepcopy(other.mlp_extractor.policy_net)
    model.policy.action_net = copy.deepcopy(other.action_net)


def new_layer(model: TRPO, other: Any) -> None:
    net: Any = model.policy.mlp_extractor.policy_net
    net[0] = copy.deepcopy(other.mlp_extractor.policy_net[0])


def one_layer_more(model: TRPO, other: Any) -> None:
    net: Any = model.policy.mlp_extractor.policy_net
    net.append(th.nn.ReLU())


def new_extractor(model: TRPO, other: Any) -> None:
    model.policy.mlp_extractor = copy.deepcopy(other.mlp_extractor)


def assigned(model: TRPO, other: Any) -> None:
    model.policy.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)


def from_vector(model: TRPO, other: Any) -> None:
    model.policy.load_from_vector(other.parameters_to_vector())


def new_policy(model: TRPO, other: Any) -> None:
    model.policy = copy.deepcopy(other)


def own_distribution(model: TRPO, other: Any) -> None:
    model.policy.get_distribution = other.get_distribution  # type: ignore[method-assign]
    model.policy.forward = other.forward  # type: ignore[method-assign]


def hook(model: TRPO, other: Any) -> None:
    model.policy.action_net.register_forward_hook(lambda module, args, output: 0.5 * output)


def in_double(model: TRPO, other: Any) -> None:
    other.features_extractor.register_forward_hook(lambda module, args, output: output.double())
    model.policy = other.double()


IDIOMS: dict[str, Callable[[TRPO, Any], None]] = {
    function.__name__: function
    for function in (
        in_place,
        data_in_place,
        new_data,
        new_parameters,
        new_layers,
        new_layer,
        one_layer_more,
        new_extractor,
        assigned,
        from_vector,
        new_policy,
        own_distribution,
        hook,
        in_double,
    )
}


class Changes(BaseCallback):
    """Changes the policy by an idiom before the first step or after some, and keeps the policy that acts at each step."""

    def __init__(self, idiom: Callable[[TRPO, Any], None], at_step: int):
        super().__init__()
        self.idiom = idiom
        self.at_step = at_step

    def _change_if(self, due: bool) -> None:
        if due:
            self.idiom(self.model, other_policy(self.model))  # type: ignore[arg-type]
            self.acting = copy.deepcopy(self.model.policy)
            # Bound methods are copied with the object that they are bound to
            vars(self.acting).update({k: v for k, v in vars(self.model.policy).items() if callable(v)})

    def _on_rollout_start(self) -> None:
        self.policies: list[Any] = []
        self.acting = copy.deepcopy(self.model.policy)
        self._change_if(self.at_step == 0)

    def _on_step(self) -> bool:
        self.policies.append(self.acting)
        self._change_if(self.n_calls == self.at_step)
        return True


@th.no_grad()
def expected_log_probs(model: TRPO, policies: list[Any]) -> np.ndarray:
    """Ask the policy of each step for the log-probability of what is in the buffer."""
    buffer, rows = model.rollout_buffer, []
    for step, policy in enumerate(policies):
        actions = th.as_tensor(buffer.actions[step])
        if isinstance(model.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        rows.append(policy.get_distribution(th.as_tensor(buffer.observations[step])).log_prob(actions))
    return th.stack(rows).double().numpy()


@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "as on a gpu"])
@pytest.mark.parametrize("at_step", [0, 5, N_STEPS - 1])
@pytest.mark.parametrize("idiom", IDIOMS)
def test_log_probabilities_are_those_of_the_policy_that_acted(
    idiom: str, at_step: int, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place or by replacement, before the rollout or in its midst, and on a device whose weights have to be copied."""
    if on_gpu:
        monkeypatch.setattr(actors, "_is_shared_with_numpy", lambda parameter: False)
    model, changes = small_model(env=make_env(n_envs=2), n_steps=N_STEPS), Changes(IDIOMS[idiom], at_step)
    shake(list(model.policy.parameters()), scale=0.2, seed=1)
    collect(model, changes)
    assert model.paths_in_use["collection"] == "lean"
    expected = expected_log_probs(model, changes.policies)
    np.testing.assert_allclose(model.rollout_buffer.log_probs, expected, rtol=1e-4, atol=1e-4)


def collect(model: TRPO, callback: BaseCallback) -> None:
    """Fill the buffer, as ``learn`` does, without an update."""
    assert model.env is not None
    _, listed = model._setup_learn(10**6, callback)
    assert model.collect_rollouts(model.env, listed, model.rollout_buffer, model.n_steps)


@pytest.mark.parametrize("space", [BOX, DISCRETE, MULTI_DISCRETE, MULTI_BINARY], ids=str)
@pytest.mark.parametrize("idiom", ["data_in_place", "new_data", "new_parameters", "new_policy"])
def test_actions_are_those_of_the_policy_of_the_moment(idiom: str, space: spaces.Space) -> None:
    """Policies that are nearly certain, so that each step's action tells which of the two acted."""
    model = small_model(env=make_env(action_space=space, n_envs=3), n_steps=N_STEPS)
    changes = Changes(IDIOMS[idiom], 6)
    with th.no_grad():
        for parameter in model.policy.action_net.parameters():
            parameter.mul_(3e3)
        if isinstance(space, spaces.Box):
            model.policy.log_std.fill_(-12.0)
    collect(model, changes)
    buffer = model.rollout_buffer
    for step, policy in enumerate(changes.policies):
        with th.no_grad():
            expected = policy.get_distribution(th.as_tensor(buffer.observations[step])).mode().numpy()
        if isinstance(space, spaces.Box) and step >= 6:
            continue  # its deviation is another one now: the log-probabilities above say the rest
        agree = np.isclose(buffer.actions[step].reshape(expected.shape), expected, atol=1e-3)
        assert agree.mean() > 0.6, step
    assert len({id(policy) for policy in changes.policies}) == 2


class Countdown(gym.Env[np.ndarray, np.ndarray]):
    """Observes how many steps are left of ever so many, in memory that it uses again."""

    observation_space = spaces.Box(0.0, 1e3, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.memory = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.memory[:] = 100.0
        return self.memory, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.memory -= 1.0
        return self.memory, 0.0, False, False, {}


class Restarts(BaseCallback):
    """Begins each rollout with an episode of its own."""

    def _on_rollout_start(self) -> None:
        self.model._last_obs = self.training_env.reset()  # type: ignore[assignment]
        self.model._last_episode_starts = np.ones(self.training_env.num_envs, dtype=bool)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("fast", [True, False])
def test_rollout_begins_where_a_callback_has_put_it(fast: bool) -> None:
    """The first observation and the first episode start of the second rollout are those that the callback left."""
    model = small_model(env=DummyVecEnv([Countdown]), fast=fast, n_steps=8, batch_size=8)
    model.learn(16, Restarts())
    assert model.rollout_buffer.observations[:, 0, 0].tolist() == [100.0 - step for step in range(8)]
    assert model.rollout_buffer.episode_starts[:, 0].tolist() == [1.0] + [0.0] * 7


class ReusesMemory(DummyVecEnv):
    """Hands out one array for all observations."""

    def _obs_from_buf(self) -> Any:
        return self.buf_obs[None]  # type: ignore[index]


def test_observation_in_the_buffer_is_the_one_that_was_acted_on() -> None:
    """Also where the environment has written the next one into its memory by the time of the callback."""
    model = small_model(env=ReusesMemory([Countdown]), n_steps=8, batch_size=8).learn(8)
    assert model.rollout_buffer.observations[:, 0, 0].tolist() == [100.0 - step for step in range(8)]


class Sees(BaseCallback):
    """Keeps what a callback finds in its variables, at a step and at the end of the rollout."""

    def _on_step(self) -> bool:
        self.at_step = dict(self.locals)
        return True

    def _on_rollout_end(self) -> None:
        self.at_end = dict(self.locals)


@pytest.mark.parametrize("error_if_nonfinite", [True, False])
@pytest.mark.parametrize("critic_gae_lambda", [None, 1.0])
@pytest.mark.parametrize("fast", [True, False])
def test_callbacks_see_the_environment_itself_and_themselves(
    fast: bool, critic_gae_lambda: float | None, error_if_nonfinite: bool
) -> None:
    """No stand-in, on any path: the very objects that the user gave."""
    env: VecEnv = VecNormalize(make_env(n_envs=2))
    sees = Sees()
    together = CallbackList([sees])
    arguments: dict[str, Any] = {"critic_gae_lambda": critic_gae_lambda, "error_if_nonfinite": error_if_nonfinite}
    model = small_model(env=env, fast=fast, **arguments).learn(64, together)
    for variables in (sees.at_step, sees.at_end):
        assert variables["env"] is env is sees.training_env
        assert variables["self"] is model
        assert variables["callback"] is together
        assert isinstance(copy.deepcopy(variables["env"]), VecNormalize)


class AtTheEnd(BaseCallback):
    """Does something with the buffer at the end of each rollout."""

    def __init__(self, act: Callable[[Any], Any]):
        super().__init__()
        self.act = act

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.act(self.model.rollout_buffer)  # type: ignore[attr-defined]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("critic_gae_lambda", [None, 0.3, 1.0])
def test_reading_the_buffer_in_a_callback_changes_nothing(fast: bool, critic_gae_lambda: float | None) -> None:
    """``get`` brings it into another shape; the update is the one without, to the order of its sums."""
    states = []
    for act in (lambda buffer: None, lambda buffer: next(buffer.get(None)), lambda buffer: list(buffer.get(7))):
        model = small_model(env=make_env(n_envs=3), n_steps=20, batch_size=60, fast=fast, critic_gae_lambda=critic_gae_lambda)
        shake(list(model.policy.parameters()), scale=0.1, seed=1)
        model.learn(60, AtTheEnd(act))
        assert model.last_update is not None
        states.append((np.sort(model.rollout_buffer.returns.ravel()), model.last_update))
    for returns, update in states[1:]:
        np.testing.assert_array_equal(returns, states[0][0])
        assert update.step.surrogate_gain == pytest.approx(states[0][1].step.surrogate_gain, rel=1e-3)
        assert update.explained_variance == pytest.approx(states[0][1].explained_variance, rel=1e-6)


def negate(buffer: Any) -> None:
    buffer.advantages = -buffer.advantages


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("critic_gae_lambda", [None, 0.3])
def test_what_a_callback_leaves_in_the_buffer_is_learned_from(fast: bool, critic_gae_lambda: float | None) -> None:
    """Advantages turned round turn the gradient round, and leave the returns alone; returns that are put there are fitted."""
    kept: list[tuple[th.Tensor, np.ndarray]] = []
    for act in (lambda buffer: None, negate):
        model = small_model(env=make_env(n_envs=2), fast=fast, critic_gae_lambda=critic_gae_lambda, n_critic_updates=0)
        collect(model, AtTheEnd(act))
        batch = model._full_batch()
        problem = model._policy_problem(batch, model._split_parameters(batch)[0])
        kept.append((problem.surrogate_gradient()[1], model.rollout_buffer.returns.copy()))
    assert th.allclose(kept[0][0], -kept[1][0], atol=1e-6) and kept[0][0].norm() > 1e-3
    np.testing.assert_array_equal(kept[0][1], kept[1][1])

    model = small_model(
        env=make_env(), fast=fast, critic_gae_lambda=critic_gae_lambda, learning_rate=1e-2, n_critic_updates=60
    )
    model.learn(64, AtTheEnd(lambda buffer: buffer.returns.fill(7.0)))
    with th.no_grad():
        values = model.policy.predict_values(th.as_tensor(model.rollout_buffer.observations[:, 0]))
    assert np.abs(values.numpy() - 7.0).max() < 1.5


class TakesOff(BaseCallback):
    """Puts a wrapper around a method of the buffer, and takes it off in the midst of the rollout."""

    def __init__(self, name: str, on: int, off: int):
        super().__init__()
        self.name, self.on, self.off = name, on, off

    def _on_rollout_start(self) -> None:
        self.n_steps = 0
        self._put_on_or_off()

    def _put_on_or_off(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        if self.n_steps == self.on:
            method = getattr(buffer, self.name)
            setattr(buffer, self.name, lambda *args, **kwargs: method(*args, **kwargs))
        elif self.n_steps == self.off:
            delattr(buffer, self.name)

    def _on_step(self) -> bool:
        self.n_steps += 1
        self._put_on_or_off()
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        self.seen = {name: getattr(buffer, name).copy() for name in ("observations", "rewards", "episode_starts")}


@pytest.mark.parametrize("name", ["add", "compute_returns_and_advantage"])
@pytest.mark.parametrize(("on", "off"), [(0, 1), (0, 4), (2, 5), (3, N_STEPS - 1)])
def test_buffer_is_complete_when_a_callback_takes_its_wrapper_off(name: str, on: int, off: int) -> None:
    """Each step is stored, by whatever way, while the wrapper is there and after it has gone."""
    callbacks = {}
    for fast in (True, False):
        callbacks[fast] = TakesOff(name, on, off)
        env = DummyVecEnv([Countdown])
        small_model(env=env, n_steps=N_STEPS, batch_size=N_STEPS, fast=fast).learn(N_STEPS, callbacks[fast])
    quick, plain = (callbacks[fast].seen for fast in (True, False))
    for part in quick:
        np.testing.assert_array_equal(quick[part], plain[part])
    assert plain["observations"][:, 0, 0].tolist() == [100.0 - step for step in range(N_STEPS)]


def test_vector_space_is_what_the_tests_act_on() -> None:
    """The quick actor is there, or nothing above was tested of it."""
    model = small_model(env=make_env(VECTOR))
    assert isinstance(actors.quickest_actor(model.policy, 1, np.random.default_rng(0)), actors._NumpyActor)


@pytest.mark.parametrize("as_buffer", [True, False], ids=["buffer", "attribute"])
@pytest.mark.parametrize("fast", [True, False])
def test_numbers_that_are_no_parameters_may_be_replaced_at_any_step(fast: bool, as_buffer: bool) -> None:
    """A deviation that is annealed is often a buffer, or a tensor that is an attribute."""
    model = small_model(fast=fast, n_steps=N_STEPS, batch_size=N_STEPS)
    policy: Any = model.policy
    n_dimensions = len(policy.log_std)
    del policy.log_std
    if as_buffer:
        policy.register_buffer("log_std", th.zeros(n_dimensions))
    else:
        policy.log_std = th.zeros(n_dimensions)
    stds: list[float] = []

    class Anneals(BaseCallback):
        def _on_step(self) -> bool:
            stds.append(float(policy.log_std[0]))
            policy.log_std = th.full((n_dimensions,), -0.5 * len(stds))
            return True

    collect(model, Anneals())
    buffer = model.rollout_buffer
    observations = th.as_tensor(buffer.observations[:, 0])
    with th.no_grad():
        means = policy.get_distribution(observations).distribution.mean
    expected = th.distributions.Normal(means, th.tensor(stds).exp()[:, None]).log_prob(th.as_tensor(buffer.actions[:, 0]))
    np.testing.assert_allclose(buffer.log_probs[:, 0], expected.sum(dim=1), rtol=1e-4, atol=1e-4)


class KnowsTheModel(gym.Wrapper[Any, Any, Any, Any]):
    """Perturbs the policy that acts in it, as parameter-space noise and self-play do."""

    model: Any = None
    change: Any = None

    def step(self, action: Any) -> Any:
        result = super().step(action)
        if self.model is not None:
            self.change(self.model)
        return result


def shift(model: Any) -> None:
    model.policy.action_net.bias = th.nn.Parameter(model.policy.action_net.bias.detach() + 1.0)


def another_policy(model: Any) -> None:
    model.policy = copy.deepcopy(model.policy)
    with th.no_grad():
        model.policy.action_net.bias.add_(1.0)


@pytest.mark.parametrize("change", [shift, another_policy])
@pytest.mark.parametrize("fast", [True, False])
def test_environment_that_changes_the_policy_is_as_welcome_as_a_callback(change: Any, fast: bool) -> None:
    """Without any callback: each step is that of the policy of its moment."""
    inner = make_env().envs[0]  # type: ignore[attr-defined]
    wrapper = KnowsTheModel(inner)
    model = small_model(env=DummyVecEnv([lambda: wrapper]), fast=fast, n_steps=N_STEPS, batch_size=N_STEPS)
    first = copy.deepcopy(model.policy)
    wrapper.model, wrapper.change = model, change
    _, callback = model._setup_learn(N_STEPS)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
    buffer = model.rollout_buffer
    with th.no_grad():
        gaussian: Any = first.get_distribution(th.as_tensor(buffer.observations[:, 0])).distribution
    means = gaussian.mean + th.arange(N_STEPS)[:, None]
    expected = th.distributions.Normal(means, gaussian.stddev).log_prob(th.as_tensor(buffer.actions[:, 0])).sum(dim=1)
    np.testing.assert_allclose(buffer.log_probs[:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_log_probability_is_that_of_the_action_taken_whatever_a_callback_makes_of_it(fast: bool) -> None:
    """The array in ``locals`` may be written to."""

    class Doubles(BaseCallback):
        def _on_step(self) -> bool:
            self.locals["actions"] *= 2.0
            return True

    model, alone = (small_model(fast=fast, n_steps=N_STEPS, batch_size=N_STEPS) for _ in range(2))
    collect(alone, Sees())
    collect(model, Doubles())
    np.testing.assert_array_equal(model.rollout_buffer.actions[0], 2.0 * alone.rollout_buffer.actions[0])
    np.testing.assert_allclose(model.rollout_buffer.log_probs[0], alone.rollout_buffer.log_probs[0], rtol=1e-5)
