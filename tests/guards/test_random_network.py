"""A network that is random whatever its mode is noticed: one warning, a fitted critic, and no status that is not so."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

from sb3_trpo import TRPO
from sb3_trpo.guards.random_network import SameNoise, is_random
from tests.small_models import BOX, DISCRETE, changed, make_env, policy_state, small_model

N_UPDATES = 3


class NoisyLinear(nn.Module):
    """Fortunato et al. 2018, *Noisy Networks for Exploration*: weights with noise, in every mode."""

    def __init__(self, n_in: int, n_out: int, sigma: float):
        super().__init__()
        self.mean = nn.Linear(n_in, n_out)
        self.sigma = nn.Parameter(th.full((n_out, n_in), sigma))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return F.linear(x, self.mean.weight + self.sigma * th.randn_like(self.sigma), self.mean.bias)


class Extractor(BaseFeaturesExtractor):
    """Features of a kind."""

    def __init__(self, observation_space: Any, kind: str):
        super().__init__(observation_space, 16)
        self.kind = kind
        self.layer: nn.Module = NoisyLinear(3, 16, 0.05) if kind == "noisy" else nn.Linear(3, 16)
        self.dropout = nn.Dropout(0.3)
        self.n_asked = 0

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.n_asked += 1
        features = self.layer(observations).tanh()
        if self.kind == "functional dropout":
            return F.dropout(features, 0.1)
        if self.kind == "batch noise":
            return features + 0.05 * th.rand(16)
        if self.kind == "numpy":
            return features + 0.05 * float(np.random.standard_normal())
        return self.dropout(features) if self.kind == "dropout" else features.sin()


RANDOM = ["functional dropout", "noisy", "batch noise", "numpy"]
QUIET = ["dropout", "sine"]


def model_of(kind: str, **arguments: Any) -> TRPO:
    extractor = {"features_extractor_class": Extractor, "features_extractor_kwargs": {"kind": kind}}
    return small_model(policy_kwargs=extractor, **{"env": make_env(action_space=DISCRETE), **arguments})


def learn(model: TRPO, n_updates: int = N_UPDATES) -> list[str]:
    """Learn; return what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(n_updates):
            model.learn(64, reset_num_timesteps=False)
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


@pytest.mark.untraced
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("kind", RANDOM)
def test_random_network_is_warned_of_once_and_its_critic_is_fitted(kind: str, fast: bool) -> None:
    """The warning says what it means for the limit and for the critic; the status of the fit says what happened."""
    model = model_of(kind, fast=fast)
    before = policy_state(model)
    (message,) = learn(model)
    for said in ("is random", "another action distribution and other values", "target_kl", "critic is fitted"):
        assert said in message
    assert model.last_update is not None and model.last_update.critic is not None
    assert model.last_update.critic.status == "fitted"
    assert {"value_net.weight", "mlp_extractor.value_net.0.weight"} <= changed(before, policy_state(model))


@pytest.mark.parametrize("kind", QUIET)
def test_network_that_is_not_random_draws_nothing_and_is_not_warned_of(kind: str) -> None:
    """Dropout ends with training mode. An update draws no number from torch's generator, and asks a few states once more."""

    class Watched(TRPO):
        def train(self) -> None:
            state = th.get_rng_state()
            super().train()
            assert th.equal(state, th.get_rng_state())

    model = model_of(kind, cls=Watched)
    assert learn(model) == []


def test_perceptron_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of layers is what it is: it costs nothing."""
    monkeypatch.setattr("sb3_trpo.update.is_random", None)
    small_model().learn(64)
    with pytest.raises(TypeError):
        model_of("sine").learn(64)


def test_random_values_alone_are_said_to_be() -> None:
    """Of a policy that is not random the check after the critic's fit still holds."""

    class RandomValues(TRPO):
        def _values(self, batch: Any) -> th.Tensor:
            return F.dropout(self.policy.predict_values(batch.observations).flatten(), 0.5)

    model = model_of("sine", cls=RandomValues)
    (message,) = learn(model)
    assert "it gives other values. What" in message
    assert model.last_update is not None and model.last_update.critic is not None
    assert model.last_update.critic.status == "fitted"


def test_policy_that_becomes_random_after_its_values_is_warned_of_too() -> None:
    """What was said of the values says nothing of the limit."""

    class RandomBySteps(TRPO):
        def _values(self, batch: Any) -> th.Tensor:
            return F.dropout(self.policy.predict_values(batch.observations).flatten(), 0.5)

    model = model_of("sine", cls=RandomBySteps)
    (of_values,) = learn(model)
    model.policy.mlp_extractor.policy_net.append(AlwaysDropout())
    (of_both,) = learn(model)
    assert "gives other values" in of_values and "another action distribution and other values" in of_both
    assert learn(model) == []


class AlwaysDropout(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return F.dropout(x, 0.2)


class Entangled(Extractor):
    """Takes the critic's layer into the actor behind the back of autograd: its fit moves the policy."""

    critic_layer: Any = ()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) + 5.0 * self.critic_layer[0].bias.detach().sum()


def test_critic_that_moves_the_policy_is_still_undone() -> None:
    """As far as it can be seen, which is where the network is not random."""
    extractor = {"features_extractor_class": Entangled, "features_extractor_kwargs": {"kind": "sine"}}
    model = small_model(policy_kwargs=extractor, env=make_env(action_space=BOX), learning_rate=0.1)
    layers = model.policy.mlp_extractor.value_net
    model.policy.features_extractor.critic_layer = (layers[0],)  # type: ignore[assignment]
    assert learn(model, 1) == []
    assert model.last_update is not None and model.last_update.critic is not None
    assert model.last_update.critic.status == "undone"


def test_warning_comes_again_with_another_model(tmp_path: Any) -> None:
    """Once for each; that it was given is not saved."""
    model = model_of("noisy")
    assert len(learn(model, 1)) == 1 and len(learn(model, 1)) == 0
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", make_env(action_space=DISCRETE), device="cpu")
    assert len(learn(loaded, 1)) == 1
    assert len(learn(model_of("noisy"), 1)) == 1


def test_is_random_passes_over_rounding_and_what_is_no_number() -> None:
    """A GPU adds in any order; NaN is the same as NaN."""
    answers = iter([th.ones(3), th.ones(3) * (1 + 1e-6), th.tensor([th.nan, 1.0]), th.tensor([th.nan, 1.0])])
    assert not is_random(lambda: next(answers)) and not is_random(lambda: next(answers))
    differing = iter([th.ones(3), th.ones(3) * 1.01, th.ones(2), th.ones(3), th.ones(1), th.tensor([th.nan])])
    assert all(is_random(lambda: next(differing)) for _ in range(3))


def test_same_noise_repeats_itself_and_disturbs_nobody() -> None:
    """Inside it the numbers are those of its beginning; outside they go on as if nothing had been."""
    with th.random.fork_rng():
        th.manual_seed(3)
        expected = [th.rand(2) for _ in range(2)]
        th.manual_seed(3)
        noise = SameNoise(th.device("cpu"))
        for _ in range(2):
            with noise:
                assert th.equal(th.rand(2), expected[0])
        with pytest.raises(KeyError), noise:
            raise KeyError
        assert th.equal(th.rand(2), expected[0])
        with noise:
            assert th.equal(th.rand(2), expected[0])
        assert th.equal(th.rand(2), expected[1])


class DropsALayer(nn.Module):
    """A layer that is left out once in a while: many questions in a row are answered alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.n_asked = 0

    def forward(self, values: th.Tensor) -> th.Tensor:
        self.n_asked += 1
        return values if self.n_asked % 5 == 0 else self.layer(values).tanh()


def test_fit_is_not_undone_for_a_network_that_is_random_now_and_then() -> None:
    """What the policy seems to have become is asked twice before the critic is said to have done it."""
    model = small_model(fast=False, n_critic_updates=1)
    with th.no_grad():
        model.policy.mlp_extractor.policy_net.insert(0, DropsALayer())
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(8):
            model.learn(64, reset_num_timesteps=False)
            assert model.last_update is not None and model.last_update.critic is not None
            assert model.last_update.critic.status == "fitted"


@pytest.mark.parametrize("fast", [True, False])
def test_distribution_that_is_random_is_noticed_though_its_network_is_a_chain(fast: bool) -> None:
    """What is made of the outputs may be random too."""

    class Noisy(DiagGaussianDistribution):
        def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> Any:
            return super().proba_distribution(mean_actions + 0.1 * th.randn_like(mean_actions), log_std)

    model = small_model(fast=fast)
    model.policy.action_dist = Noisy(2)
    (message,) = learn(model)
    assert "another action distribution" in message
