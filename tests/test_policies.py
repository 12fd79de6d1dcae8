"""Policies of every make: what the user may choose, name, freeze or bring along."""

import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn

from sb3_trpo import TRPO, CnnPolicy, MlpPolicy, MultiInputPolicy
from tests.small_models import BOX, DICT, DISCRETE, IMAGE, VECTOR, Case, changed, make_env, policy_state, small_model

pytestmark = pytest.mark.untraced


class Halved(BaseFeaturesExtractor):
    """An extractor of the user's own."""

    def __init__(self, observation_space: spaces.Space, features_dim: int = 6):
        super().__init__(observation_space, features_dim)
        self.inner = nn.Sequential(
            nn.Flatten(), nn.Linear(int(np.prod(observation_space.shape or ())), features_dim), nn.Tanh()
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.inner(observations)
        return features / 2


POLICY_KWARGS: dict[str, dict[str, Any]] = {
    "one list of layers": {"net_arch": [8, 8]},
    "no layer": {"net_arch": []},
    "layers of each": {"net_arch": {"pi": [8], "vf": [16, 16]}},
    "actor alone": {"net_arch": {"pi": [8], "vf": []}},
    "ReLU": {"activation_fn": nn.ReLU},
    "ELU": {"activation_fn": nn.ELU},
    "not orthogonal": {"ortho_init": False},
    "small deviation": {"log_std_init": -1.0},
    "extractor": {"features_extractor_class": Halved},
    "extractor of each": {"features_extractor_class": Halved, "share_features_extractor": False},
    "extractor with arguments": {"features_extractor_class": Halved, "features_extractor_kwargs": {"features_dim": 3}},
    "SB3's own extractor": {"features_extractor_class": FlattenExtractor},
    "SGD": {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
    "RMSprop": {"optimizer_class": th.optim.RMSprop},
    "AdamW": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}},
    "Adam with arguments": {"optimizer_kwargs": {"betas": (0.8, 0.9), "eps": 1e-4, "amsgrad": True}},
    "gSDE": {"use_sde": True},
    "gSDE, one deviation": {"use_sde": True, "full_std": False},
    "gSDE, expln": {"use_sde": True, "use_expln": True},
    "gSDE, squashed": {"use_sde": True, "squash_output": True},
    "gSDE, all": {"use_sde": True, "full_std": False, "use_expln": True, "squash_output": True, "log_std_init": -2.0},
    "gSDE, extractor": {"use_sde": True, "features_extractor_class": Halved},
}


def built(kwargs: dict[str, Any], **arguments: Any) -> TRPO:
    """Return a small model; gSDE is an argument of the algorithm."""
    kwargs = dict(kwargs)
    return small_model(use_sde=kwargs.pop("use_sde", False), policy_kwargs=kwargs, **arguments)


@pytest.mark.parametrize("kwargs", POLICY_KWARGS.values(), ids=POLICY_KWARGS)
def test_policy_of_every_make_trains_and_comes_back(kwargs: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """The step moves the actor within its limit, the fit the rest, and the zip holds what was chosen."""
    start = policy_state(built(kwargs))
    # Each is seeded as it is built
    still, model = (built(kwargs, n_critic_updates=n).learn(64) for n in (0, 2))
    for each in (still, model):
        assert each.last_update is not None and each.last_update.step.accepted
        assert 0.0 < each.last_update.step.mean_kl <= each.last_update.max_kl
    # After the same step only the fit tells the two apart; together they move everything, and nothing twice
    by_step, by_fit = changed(start, policy_state(still)), changed(policy_state(still), policy_state(model))
    trainable = {name for name, _ in model.policy.named_parameters()}
    aliases = {name for name in start if name.startswith(("features_extractor", "pi_features", "vf_features"))}
    assert by_step | by_fit >= trainable and not by_step & by_fit - aliases
    assert {"value_net.weight", "value_net.bias"} <= by_fit and {"action_net.weight", "log_std"} <= by_step
    model.learn(64)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert not changed(policy_state(model), policy_state(loaded))
    observations = np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    assert np.all(np.abs(expected) <= 1.0)


class Misnamed(ActorCriticPolicy):
    """
    A policy whose actor's layers are called like values and whose critic's are not.

    Its networks are no attributes of SB3's; forward and evaluation are the user's own.
    """

    def _build(self, lr_schedule: Any) -> None:
        optimizer_class: Any = self.optimizer_class
        self.value_of_actions = nn.Sequential(nn.Linear(self.features_dim, 16), nn.Tanh())
        self.value_logits = nn.Linear(16, int(self.action_space.n))  # type: ignore[attr-defined]
        self.policy_judge = nn.Sequential(nn.Linear(self.features_dim, 16), nn.Tanh(), nn.Linear(16, 1))
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _distribution_of(self, features: Any) -> Any:
        return self.action_dist.proba_distribution(self.value_logits(self.value_of_actions(features)))

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> Any:
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def get_distribution(self, obs: Any) -> Any:
        return self._distribution_of(self.extract_features(obs, self.features_extractor))

    def predict_values(self, obs: Any) -> th.Tensor:
        values: th.Tensor = self.policy_judge(self.extract_features(obs, self.features_extractor))
        return values


def test_policy_of_a_users_own_may_call_its_layers_what_it_likes(tmp_path: pathlib.Path) -> None:
    """What the distribution depends on is the actor, what only the values depend on is the critic, whatever the names."""

    def model(n_critic_updates: int) -> TRPO:
        env = make_env(action_space=DISCRETE)
        return small_model(policy=Misnamed, env=env, policy_kwargs={"ortho_init": False}, n_critic_updates=n_critic_updates)

    start = policy_state(model(0))
    still, fitted = (model(n).learn(64) for n in (0, 2))
    by_step, by_fit = changed(start, policy_state(still)), changed(policy_state(still), policy_state(fitted))
    assert by_step == {name for name in start if name.startswith("value")}
    assert by_fit == {name for name in start if name.startswith("policy_judge")}
    fitted.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert type(loaded.policy) is Misnamed and not changed(policy_state(fitted), policy_state(loaded))


@pytest.mark.parametrize("key, share", [("value_map", True), ("value_map", False), ("log_std", True)])
def test_dict_observation_may_call_its_keys_what_it_likes(key: str, share: bool) -> None:
    """The extractor of a key belongs to the actor, and with sharing to the actor alone, whatever the key is called."""
    space = spaces.Dict({key: IMAGE, "vector": VECTOR})
    case = Case("MultiInputPolicy", space, arguments={"policy_kwargs": {"share_features_extractor": share}})
    start = policy_state(case.model())
    still, fitted = (case.model(n_critic_updates=n).learn(64) for n in (0, 1))
    of_key = {name for name in start if name.startswith(f"pi_features_extractor.extractors.{key}.")}
    assert of_key and of_key <= changed(start, policy_state(still))
    assert not of_key & changed(policy_state(still), policy_state(fitted))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, th.Tensor]:
    """Return the extractor of a policy that was trained before, by name."""
    path = tmp_path_factory.mktemp("pretrained") / "policy.pth"
    model = small_model(policy_kwargs={"features_extractor_class": Halved}, seed=5).learn(128)
    model.policy.save(str(path))
    policy = MlpPolicy.load(str(path), device="cpu")
    return {name: tensor.clone() for name, tensor in policy.features_extractor.state_dict().items()}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_pretrained_extractor_is_taken_in(
    frozen: bool, share: bool, pretrained: dict[str, th.Tensor], tmp_path: pathlib.Path
) -> None:
    """Loaded into a new model it stays as it is while frozen, through update and zip, and trains otherwise."""
    model = small_model(policy_kwargs={"features_extractor_class": Halved, "share_features_extractor": share})
    for extractor in {model.policy.pi_features_extractor, model.policy.vf_features_extractor}:
        extractor.load_state_dict(pretrained)
        extractor.requires_grad_(not frozen)
    model.learn(128)
    assert model.last_update is not None and model.last_update.step.accepted
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    for policy in (model.policy, loaded.policy):
        kept = [th.equal(tensor, pretrained[name]) for name, tensor in policy.pi_features_extractor.state_dict().items()]
        assert all(kept) if frozen else not any(kept)


@pytest.mark.parametrize(
    "part", ["log_std", "action_net", "mlp_extractor.policy_net", "mlp_extractor.policy_net.0", "value_net"]
)
@pytest.mark.parametrize("fast", [True, False])
def test_any_part_may_be_frozen(part: str, fast: bool) -> None:
    """What does not require a gradient stays, everything else moves, on the fast paths and the plain ones."""
    model = small_model(fast=fast)
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad = not name.startswith(part)
    start = policy_state(model)
    model.learn(128)
    assert model.last_update is not None and model.last_update.step.accepted
    frozen = {name for name, parameter in model.policy.named_parameters() if not parameter.requires_grad}
    assert frozen and changed(start, policy_state(model)) == start.keys() - frozen


@pytest.mark.parametrize(
    "case", [Case("CnnPolicy", IMAGE), Case("MultiInputPolicy", DICT, DISCRETE)], ids=["cnn", "multi_input"]
)
def test_extractor_of_the_critic_is_its_own_by_default(case: Case) -> None:
    """With image and Dict observations actor and critic share no parameter, and both extractors train."""
    model = case.model()
    assert model.policy.pi_features_extractor is not model.policy.vf_features_extractor
    before = policy_state(model)
    model.learn(64)
    moved = changed(before, policy_state(model))
    for extractor in ("pi_features_extractor", "vf_features_extractor"):
        assert {name for name in before if name.startswith(extractor)} <= moved


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "case, policy_class",
    [(Case(), MlpPolicy), (Case("CnnPolicy", IMAGE), CnnPolicy), (Case("MultiInputPolicy", DICT), MultiInputPolicy)],
    ids=["mlp", "cnn", "multi_input"],
)
def test_policy_comes_back_from_its_file_with_the_sharing_it_had(
    case: Case, policy_class: type[ActorCriticPolicy], share: bool, tmp_path: pathlib.Path
) -> None:
    """policy.save and load keep share_features_extractor, hence the distribution and the values."""
    model = case.model(policy_kwargs={"share_features_extractor": share}).learn(64)
    assert isinstance(model.policy, policy_class)
    model.policy.save(str(tmp_path / "policy.pth"))
    loaded = policy_class.load(str(tmp_path / "policy.pth"), device="cpu")
    assert loaded.share_features_extractor is share
    observations = next(model.rollout_buffer.get(batch_size=None)).observations
    actions = th.zeros(64, *BOX.shape) if case.action_space is BOX else th.zeros(64)
    with th.no_grad():
        for ours, theirs in zip(
            model.policy.evaluate_actions(observations, actions), loaded.evaluate_actions(observations, actions), strict=True
        ):
            assert ours is not None and theirs is not None
            th.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)


def test_model_of_a_shared_extractor_comes_back_from_its_zip_shared(tmp_path: pathlib.Path) -> None:
    """model.save and load keep the choice of policy_kwargs."""
    model = small_model(policy="CnnPolicy", env=make_env(IMAGE), policy_kwargs={"share_features_extractor": True})
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert loaded.policy.pi_features_extractor is loaded.policy.vf_features_extractor
    assert not changed(policy_state(model), policy_state(loaded))


def test_extractor_of_a_dict_key_named_like_a_value_is_the_actors() -> None:
    """The extractor of the key "value_map" belongs to the actor: the step moves it, the critic fit does not."""
    case = Case("MultiInputPolicy", DICT, arguments={"policy_kwargs": {"share_features_extractor": True}})
    start = policy_state(case.model())
    without, fitted = (case.model(n_critic_updates=n).learn(64) for n in (0, 3))
    named = {name for name in start if name.startswith("features_extractor.extractors.value_map")}
    assert named and named <= changed(start, policy_state(without))
    assert not named & changed(policy_state(without), policy_state(fitted))


def test_class_may_be_given_instead_of_an_alias() -> None:
    """SB3's own policy classes work as well as ours."""
    model = small_model(policy=ActorCriticPolicy).learn(64)
    assert type(model.policy) is ActorCriticPolicy
    assert model.last_update is not None and model.last_update.step.accepted
