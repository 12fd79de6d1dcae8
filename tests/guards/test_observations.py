"""Observation spaces: what SB3 would stumble over hours later works from the start, or is refused by name with the way out."""

import pathlib
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.inspect import inspect_model
from sb3_trpo.policies import CountsFromZero, MlpPolicy, MultiInputPolicy, from_zero
from tests.small_models import BOX, DISCRETE, RandomEnv, changed, make_env, policy_state, small_model

VECTOR = spaces.Box(-1.0, 1.0, (2,))
FROM_ZERO: dict[str, Any] = {
    "discrete": (spaces.Discrete(5, start=7), spaces.Discrete(5)),
    "below zero": (spaces.Discrete(4, start=-3), spaces.Discrete(4)),
    "multi discrete": (spaces.MultiDiscrete([3, 4], start=[2, -1]), spaces.MultiDiscrete([3, 4])),
    "dict": (
        spaces.Dict(place=spaces.Discrete(5, start=1), pair=spaces.MultiDiscrete([3, 2], start=[0, 9]), where=VECTOR),
        spaces.Dict(place=spaces.Discrete(5), pair=spaces.MultiDiscrete([3, 2]), where=VECTOR),
    ),
}


class Labelled(gymnasium.ObservationWrapper):
    """The same states under other numbers."""

    def __init__(self, env: gymnasium.Env, space: spaces.Space):
        super().__init__(env)
        self.observation_space = space

    def observation(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {key: self._shifted(value, self.observation_space[key]) for key, value in observation.items()}  # type: ignore[index]
        return self._shifted(observation, self.observation_space)

    def _shifted(self, value: Any, space: spaces.Space) -> Any:
        return value + space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else value


def pair_of_envs(name: str, n_envs: int = 1) -> tuple[DummyVecEnv, DummyVecEnv]:
    """Return environments that differ in the labels of their states alone, the one with labels from zero first."""
    labelled, plain = FROM_ZERO[name]

    def make() -> gymnasium.Env:
        return RandomEnv(plain, DISCRETE)

    return DummyVecEnv([make] * n_envs), DummyVecEnv([lambda: Monitor(Labelled(make(), labelled))] * n_envs)


def policy_of(name: str) -> str:
    return "MultiInputPolicy" if name == "dict" else "MlpPolicy"


def trained(env: Any, name: str, **arguments: Any) -> TRPO:
    return small_model(TRPO, policy_of(name), env, **arguments).learn(128)


@pytest.mark.untraced
@pytest.mark.parametrize("fast, n_envs", [(True, 1), (True, 2), (False, 2)])
@pytest.mark.parametrize("name", FROM_ZERO)
def test_states_that_start_elsewhere_train_as_those_from_zero(name: str, fast: bool, n_envs: int) -> None:
    """The same weights to the bit, by the same paths, with the observations in the buffer as the environment gave them."""
    from_zero_env, labelled_env = pair_of_envs(name, n_envs)
    ours, theirs = (trained(env, name, fast=fast) for env in (labelled_env, from_zero_env))
    assert not changed(policy_state(theirs), policy_state(ours)) and ours.paths_in_use == theirs.paths_in_use
    stored: Any = ours.rollout_buffer.observations
    space = ours.observation_space
    if not isinstance(space, spaces.Dict):
        stored, space = {"": stored}, spaces.Dict({"": space})
    for key, part in space.spaces.items():
        if not isinstance(part, spaces.Box):
            n = part.n if isinstance(part, spaces.Discrete) else part.nvec  # type: ignore[attr-defined]
            assert (stored[key] >= part.start).all() and (stored[key] < part.start + n).all()  # type: ignore[attr-defined]


def samples(space: spaces.Space, n: int = 12) -> list[Any]:
    space.seed(5)
    return [space.sample() for _ in range(n)]


@pytest.mark.untraced
@pytest.mark.parametrize("name", FROM_ZERO)
def test_prediction_is_of_the_state_and_not_of_its_label(name: str, tmp_path: pathlib.Path) -> None:
    """Each state predicts what it does from zero: alone and in a batch, saved as a model, as a policy, and pickled."""
    from_zero_env, labelled_env = pair_of_envs(name)
    theirs, ours = trained(from_zero_env, name), trained(labelled_env, name)
    ours.save(tmp_path / "model")
    ours.policy.save(str(tmp_path / "policy.pt"))
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    alone = type(ours.policy).load(str(tmp_path / "policy.pt"), device="cpu")
    labels, plain = samples(ours.observation_space), samples(theirs.observation_space)
    assert str(labels) != str(plain)
    for label, state in zip(labels, plain, strict=True):
        expected, _ = theirs.predict(state, deterministic=True)
        for each in (ours, loaded, alone):
            found, _ = each.predict(label, deterministic=True)
            assert found == expected and found.shape == ()
    if name != "dict":
        batch, _ = ours.predict(np.stack(labels), deterministic=True)
        np.testing.assert_array_equal(batch, theirs.predict(np.stack(plain), deterministic=True)[0])
    tensors = [model.policy.obs_to_tensor(one)[0] for model, one in ((ours, labels[0]), (theirs, plain[0]))]
    for ask in ("predict_values", "extract_features"):
        values = [getattr(model.policy, ask)(one) for model, one in zip((ours, theirs), tensors, strict=True)]
        np.testing.assert_array_equal(*[part[0].detach().numpy() for part in values])
    logits: list[Any] = []
    for model, one in zip((ours, theirs), tensors, strict=True):
        distribution: Any = model.policy.get_distribution(one).distribution
        logits.append(distribution.logits)
    assert th.equal(*logits)


def test_prediction_of_python_numbers() -> None:
    """A state may be an int, as an environment of a user's own gives it."""
    _, env = pair_of_envs("below zero")
    predict: Any = trained(env, "below zero").predict
    for state in range(-3, 1):
        assert predict(state, deterministic=True)[0] == predict(np.array(state), deterministic=True)[0]


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("name", ["discrete", "dict"])
def test_evaluation_in_an_environment_of_the_users(name: str, tmp_path: pathlib.Path) -> None:
    """EvalCallback, evaluate_policy, set_env, load with an environment, running statistics and pictures."""
    _, env = pair_of_envs(name)
    _, evaluated = pair_of_envs(name)
    model = small_model(TRPO, policy_of(name), VecNormalize(env, norm_obs=name == "dict", norm_obs_keys=["where"]))
    evaluated_as = VecNormalize(evaluated, norm_obs=name == "dict", norm_obs_keys=["where"], training=False)
    callback = EvalCallback(evaluated_as, eval_freq=40, n_eval_episodes=1, best_model_save_path=str(tmp_path), verbose=0)
    model.learn(128, callback=callback)
    assert np.isfinite(callback.best_mean_reward)
    evaluate_policy(model, evaluated_as, n_eval_episodes=2)
    evaluate_policy(TRPO.load(tmp_path / "best_model", evaluated, device="cpu"), evaluated, n_eval_episodes=2)
    model.set_env(evaluated)
    assert len(inspect_model(model.learn(64)).updates) == 1


# What is refused


class Own(BaseFeaturesExtractor):
    """Reads whatever it is given."""

    def __init__(self, space: spaces.Space):
        super().__init__(space, features_dim=1)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations.reshape(len(observations), -1).sum(dim=1, keepdim=True)


SMALL_IMAGE = spaces.Box(0, 255, (12, 40, 3), np.uint8)
# Observation space, what the message names, words of the way out
REFUSED: dict[str, tuple[spaces.Space, str, str]] = {
    "scalar": (spaces.Box(0.0, 5.0, ()), "env.observation_space", "FlattenObservation"),
    "empty": (spaces.Box(0.0, 5.0, (0,)), "env.observation_space", "constant"),
    "empty axis": (spaces.Box(0.0, 5.0, (4, 0)), "env.observation_space", "constant"),
    "no factors": (spaces.MultiDiscrete(np.zeros(0, dtype=np.int64)), "env.observation_space", "constant"),
    "two axes": (spaces.MultiDiscrete(np.array([[4, 5]])), "env.observation_space", "FlattenObservation"),
    "tuple": (spaces.Tuple([spaces.Discrete(3), VECTOR]), "env.observation_space", "FlattenObservation"),
    "nested tuple": (spaces.Tuple([spaces.Dict(a=VECTOR)]), "env.observation_space", "FlattenObservation"),
    "text": (spaces.Text(4), "env.observation_space", "encode it as a Box"),
    "sequence": (spaces.Sequence(VECTOR), "env.observation_space", "encode it as a Box"),
    "graph": (spaces.Graph(VECTOR, None), "env.observation_space", "encode it as a Box"),
    "no keys": (spaces.Dict({}), "env.observation_space", "constant"),
    "key with a dot": (spaces.Dict({"left.hand": VECTOR}), "env.observation_space", "rename"),
    "key of torch": (spaces.Dict({"type": VECTOR, "a": VECTOR}), "env.observation_space", "rename"),
    "scalar in a dict": (spaces.Dict(a=VECTOR, speed=spaces.Box(0.0, 5.0, ())), "env.observation_space['speed']", "axis"),
    "empty in a dict": (
        spaces.Dict(a=VECTOR, none=spaces.Box(0.0, 5.0, (0,))),
        "env.observation_space['none']",
        "leave it out",
    ),
    "two axes in a dict": (
        spaces.Dict(b=spaces.MultiDiscrete(np.array([[4, 5]]))),
        "env.observation_space['b']",
        "FlattenObservation",
    ),
    "dict in a dict": (spaces.Dict(a=VECTOR, arm=spaces.Dict(b=VECTOR)), "env.observation_space['arm']", "FlattenObservation"),
    "tuple in a dict": (spaces.Dict(hand=spaces.Tuple([VECTOR])), "env.observation_space['hand']", "FlattenObservation"),
    "text in a dict": (spaces.Dict(a=VECTOR, said=spaces.Text(4)), "env.observation_space['said']", "encode it as a Box"),
    "small image in a dict": (
        spaces.Dict(eye=spaces.Box(0, 255, (3, 12, 40), np.uint8)),
        "env.observation_space['eye']",
        "36 x 36",
    ),
}


def policy_for(space: spaces.Space) -> str:
    return "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"


def assert_refused(refusal: Exception, name: str, words: str, space: spaces.Space) -> None:
    key = name.removeprefix("env.observation_space").strip("[]'")
    part = space[key] if isinstance(space, spaces.Dict) and key else space
    assert f"{name} must" in str(refusal) and words in str(refusal) and str(part) in str(refusal)


@pytest.mark.parametrize("space, name, words", REFUSED.values(), ids=REFUSED)
def test_space_without_a_network_is_refused_at_construction(space: spaces.Space, name: str, words: str) -> None:
    """The message has the space or its key, what came, and what to do about it."""
    with pytest.raises(ValueError) as refusal:
        TRPO(policy_for(space), RandomEnv(space), device="cpu")
    assert_refused(refusal.value, name, words, space)


@pytest.mark.parametrize("space, name, words", REFUSED.values(), ids=REFUSED)
def test_space_without_a_network_is_refused_by_load_and_set_env(
    space: spaces.Space, name: str, words: str, tmp_path: pathlib.Path
) -> None:
    """In the file it is named as at construction; an environment that has it is not that of the model."""
    model = small_model()
    with pytest.raises(ValueError, match=r"[Oo]bservation.space"):
        model.set_env(RandomEnv(space))
    model.observation_space = space
    model.policy_class = {"MlpPolicy": MlpPolicy, "MultiInputPolicy": MultiInputPolicy}[policy_for(space)]
    model.save(tmp_path / "model")
    with pytest.raises(ValueError) as refusal:
        TRPO.load(tmp_path / "model", device="cpu")
    assert_refused(refusal.value, name, words, space)
    with pytest.raises(ValueError, match=r"[Oo]bservation.space"):
        TRPO.load(tmp_path / "model", make_env(), device="cpu")


def test_small_image_is_refused_for_convolutions_only() -> None:
    """In either order of the channels; a perceptron takes it."""
    for space in (SMALL_IMAGE, spaces.Box(0, 255, (3, 35, 60), np.uint8)):
        with pytest.raises(ValueError, match=r"env\.observation_space must be an image of at least 36 x 36.*MlpPolicy"):
            TRPO("CnnPolicy", RandomEnv(space), device="cpu")
        assert small_model(env=DummyVecEnv([lambda space=space: RandomEnv(space)])).learn(64)._n_updates == 1  # type: ignore[misc]


def test_dict_is_refused_for_a_perceptron_given_as_a_class() -> None:
    """SB3 itself looks at the name only."""
    with pytest.raises(ValueError, match=r"not be a Dict with a MlpPolicy.*MultiInputPolicy"):
        TRPO(MlpPolicy, RandomEnv(spaces.Dict(a=VECTOR)), device="cpu")


WAYS_OUT: dict[str, Any] = {
    "scalar": (spaces.Box(0.0, 5.0, ()), FlattenObservation),
    "two axes": (spaces.MultiDiscrete(np.array([[4, 5], [2, 2]])), FlattenObservation),
    "tuple": (spaces.Tuple([spaces.Discrete(3), VECTOR]), FlattenObservation),
    "dict in a dict": (spaces.Dict(a=VECTOR, arm=spaces.Dict(b=VECTOR)), FlattenObservation),
}


class Sampling(RandomEnv):
    """Observes samples of whatever space it is given."""

    def _noise(self, space: spaces.Space) -> Any:
        return space.sample()


@pytest.mark.parametrize("space, way_out", WAYS_OUT.values(), ids=WAYS_OUT)
def test_way_out_leads_out(space: spaces.Space, way_out: Any) -> None:
    """What a message tells to do is done, and trains."""
    assert TRPO("MlpPolicy", way_out(Sampling(space)), n_steps=64, device="cpu").learn(128)._n_updates == 2


TAKEN: dict[str, spaces.Space] = {
    "integers": spaces.Box(-9, 9, (2, 3), np.int32),
    "flags": spaces.Box(0, 1, (4,), np.bool_),
    "half precision": spaces.Box(-1.0, 1.0, (3,), np.float16),
    "without bounds": spaces.Box(-np.inf, np.inf, (3,)),
    "film": spaces.Box(0, 255, (2, 8, 8, 3), np.uint8),
    "bits in two axes": spaces.MultiBinary([2, 3]),
    "one choice": spaces.Discrete(1),
    "unsigned factors": spaces.MultiDiscrete([3, 4], dtype=np.uint8, start=[250, 1]),
    "dict of everything": spaces.Dict(
        bits=spaces.MultiBinary((2, 2)), one=spaces.Discrete(2, start=4), plane=spaces.Box(0, 1, (3, 3))
    ),
}


@pytest.mark.untraced
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("space", TAKEN.values(), ids=TAKEN)
def test_unusual_space_that_sb3_takes_is_taken(space: spaces.Space, fast: bool, tmp_path: pathlib.Path) -> None:
    """Trained, saved and loaded with its environment."""
    model = small_model(TRPO, policy_for(space), DummyVecEnv([lambda: Sampling(space)]), fast=fast).learn(64)
    assert model._n_updates == 1
    model.save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model", Sampling(space), device="cpu").learn(64)._n_updates == 2


# Policies of the user's own


def test_policy_that_counts_from_zero_is_asked_for_when_states_do_not() -> None:
    """SB3's own policies are refused by name with the way out, which works; from zero they are welcome."""

    class Mine(ActorCriticPolicy):
        """Has a loss of its own, say."""

    class MineCounting(ActorCriticPolicy, CountsFromZero):
        """Derived as the message says."""

    env = Sampling(spaces.Discrete(3, start=1), DISCRETE)
    inside = Sampling(spaces.Dict(a=spaces.Discrete(3, start=1)), DISCRETE)
    for policy, one, name in (
        (ActorCriticPolicy, env, r"env\.observation_space"),
        (Mine, env, r"env\.observation_space"),
        (MultiInputActorCriticPolicy, inside, r"env\.observation_space\['a'\]"),
    ):
        with pytest.raises(ValueError, match=f"{name} must start at 0 .*CountsFromZero"):
            TRPO(policy, one, device="cpu")
    assert TRPO(MineCounting, env, n_steps=64, device="cpu").learn(128)._n_updates == 2
    assert TRPO(Mine, Sampling(spaces.Discrete(3), DISCRETE), n_steps=64, device="cpu").learn(64)._n_updates == 1


def test_policy_or_extractor_of_the_users_own_may_take_anything() -> None:
    """Only SB3's own networks are known to fail."""

    class Reading(ActorCriticPolicy):
        def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
            return super().extract_features(obs, features_extractor)

    class Constructing(ActorCriticPolicy):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{**kwargs, "features_extractor_class": Own})

    scalar = Sampling(spaces.Box(0.0, 5.0, ()), BOX)
    own = {"features_extractor_class": Own}
    assert TRPO("MlpPolicy", scalar, n_steps=64, policy_kwargs=own, device="cpu", fast=False).learn(64)._n_updates == 1
    assert TRPO(Constructing, scalar, n_steps=64, device="cpu", fast=False).learn(64)._n_updates == 1
    TRPO(Reading, Sampling(spaces.Discrete(3, start=1)), device="cpu")
    with pytest.raises(ValueError, match="at least one axis"):
        TRPO(Reading, scalar, policy_kwargs={"features_extractor_class": FlattenExtractor}, device="cpu")


@pytest.mark.parametrize("dtype", [th.int64, th.int32, th.uint8, th.float32])
def test_from_zero_shifts_numbers_of_any_kind(dtype: th.dtype) -> None:
    """Integers come out, below zero too, and what starts at zero is passed on as it is."""
    observations = th.tensor([[3, 0], [5, 1]]).to(dtype)
    shifted = from_zero(observations, spaces.MultiDiscrete([9, 2], start=[4, 0]))
    assert isinstance(shifted, th.Tensor) and shifted.dtype == th.long and shifted.tolist() == [[-1, 0], [1, 1]]
    for space in (spaces.MultiDiscrete([9, 9]), spaces.Discrete(9), spaces.Box(0, 9, (2,)), spaces.MultiBinary(2)):
        assert from_zero(observations, space) is observations
