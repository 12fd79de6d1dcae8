"""The promise of the package, measured from outside: no update leaves the trust region, and a refused one does nothing."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

import sb3_trpo.objective
from sb3_trpo import TRPO
from sb3_trpo.objective import Batch, PolicyProblem, log_ratio
from tests.from_outside import ROUNDING, MeasuredTRPO, actor_state
from tests.small_models import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    VECTOR,
    Case,
    RandomEnv,
    changed,
    make_env,
    policy_state,
    small_model,
)


class UnusuallyNamedPolicy(ActorCriticPolicy):
    """An actor whose head is called like a critic, and a critic called like nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        width = self.mlp_extractor.latent_dim_vf
        self.value_like_head = nn.Sequential(nn.Linear(self.mlp_extractor.latent_dim_pi, width), nn.Tanh())
        self.judgement = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.optimizer = th.optim.Adam(self.parameters(), lr=1e-2)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        return super()._get_action_dist_from_latent(self.value_like_head(latent_pi))

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        features = self.extract_features(obs, self.vf_features_extractor)
        assert isinstance(features, th.Tensor)
        return self.value_net(self.judgement(self.mlp_extractor.forward_critic(features)))


SHARED = {"policy_kwargs": {"share_features_extractor": True}}
KEPT = {
    "box": Case(n_envs=2),
    "discrete": Case(action_space=DISCRETE),
    "multi_discrete": Case(action_space=MULTI_DISCRETE),
    "multi_binary": Case(action_space=MULTI_BINARY),
    "gsde": Case(arguments={"use_sde": True, "sde_sample_freq": 4}),
    "gsde_squashed": Case(arguments={"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "cnn_shared": Case("CnnPolicy", IMAGE, arguments=SHARED),
    "cnn_separate": Case("CnnPolicy", IMAGE, DISCRETE),
    "dict_shared": Case("MultiInputPolicy", DICT, arguments=SHARED),
    "dict_separate": Case("MultiInputPolicy", DICT, MULTI_DISCRETE),
    "unusual_names": Case(UnusuallyNamedPolicy),  # type: ignore[arg-type]
}


# Long, and what they say of sharing is said of dict_shared and cnn_separate too, each of which has images
IN_PARTS = ("cnn_shared", "dict_separate")


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in IN_PARTS)) for name, case in KEPT.items()]
)
def test_train_keeps_the_limit_that_is_measured_from_outside(case: Case) -> None:
    """After every update, critic fit included, the KL over the rollout's states is within target_kl and as reported."""
    # A critic in a hurry: where it can move the policy it does
    model = case.model(MeasuredTRPO, target_kl=0.02, learning_rate=1e-2, n_critic_updates=3)
    assert isinstance(model, MeasuredTRPO)
    model.learn(3 * 64)
    assert len(model.measurements) == 3
    assert any(measured.step.accepted for measured in model.measurements)
    for step, mean_kl in model.measurements:
        assert mean_kl <= 0.02 + ROUNDING
        assert mean_kl == pytest.approx(step.mean_kl, rel=1e-3, abs=ROUNDING)
        assert step.accepted == (mean_kl > 0.0)


def test_train_keeps_the_limit_when_the_rollout_was_subsampled_for_the_fisher_matrix() -> None:
    """sub_sampling_factor thins the Fisher matrix only: the KL is measured over all states and within the limit."""
    model = small_model(MeasuredTRPO, sub_sampling_factor=4, target_kl=0.05)
    assert isinstance(model, MeasuredTRPO)
    model.learn(3 * 64)
    for step, mean_kl in model.measurements:
        assert mean_kl <= 0.05 + ROUNDING
        assert mean_kl == pytest.approx(step.mean_kl, rel=1e-3, abs=ROUNDING)


@pytest.mark.parametrize("action_space", [Case().action_space, DISCRETE], ids=["box", "discrete"])
def test_train_spends_most_of_a_small_limit(action_space: gym.Space) -> None:
    """A small limit, where the quadratic model is good, is spent and not merely respected, whatever the damping."""
    env = make_env(action_space=action_space)
    model = small_model(MeasuredTRPO, env=env, target_kl=1e-3, cg_damping=10.0, n_steps=256)
    assert isinstance(model, MeasuredTRPO)
    model.learn(256)
    (measured,) = model.measurements
    assert measured.step.accepted
    # Half of the limit: one backtrack (0.64) passes, a radius that counts the damping does not
    assert measured.mean_kl > 0.5e-3


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("CnnPolicy", IMAGE, arguments=SHARED), id="cnn", marks=pytest.mark.slow),
        pytest.param(Case("MultiInputPolicy", DICT, DISCRETE, 2, SHARED), id="dict"),
    ],
)
def test_critic_fit_leaves_a_shared_extractor_where_the_step_left_it(case: Case) -> None:
    """With a shared extractor the critic moves weights of its own only, bit for bit, and moves those."""
    start = policy_state(case.model())
    without, fitted = (case.model(n_critic_updates=n).learn(64) for n in (0, 4))
    moved_by_critic = changed(policy_state(without), policy_state(fitted))
    assert moved_by_critic == {"value_net.weight", "value_net.bias"} | {
        name for name in start if name.startswith("mlp_extractor.value_net")
    }
    moved_by_step = changed(start, policy_state(without))
    assert any(name.startswith("features_extractor") for name in moved_by_step)


def test_critic_fit_leaves_an_actor_with_unusual_names_alone() -> None:
    """Whose a parameter is says the autograd graph, not its name."""
    case = Case(UnusuallyNamedPolicy)  # type: ignore[arg-type]
    start = policy_state(case.model())
    without, fitted = (case.model(n_critic_updates=n).learn(64) for n in (0, 4))
    moved_by_critic = changed(policy_state(without), policy_state(fitted))
    moved_by_step = changed(start, policy_state(without))
    assert {"judgement.0.weight", "judgement.0.bias", "value_net.weight"} <= moved_by_critic
    assert {"value_like_head.0.weight", "value_like_head.0.bias", "action_net.weight"} <= moved_by_step
    assert not moved_by_critic & moved_by_step


def test_critic_fit_leaves_the_actor_alone_whatever_the_optimizer_does_on_its_own() -> None:
    """Weight decay and momentum of the critic's optimizer do not reach the actor."""
    arguments = {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.5}}
    model = small_model(MeasuredTRPO, policy_kwargs=arguments, learning_rate=1e-2)
    assert isinstance(model, MeasuredTRPO)
    model.learn(3 * 64)
    for step, mean_kl in model.measurements:
        assert mean_kl == pytest.approx(step.mean_kl, rel=1e-3, abs=ROUNDING)


class DetachedActor(ActorCriticPolicy):
    """Its actor reads the critic's features without a gradient to them, so that no graph shows whose they are."""

    def get_distribution(self, obs: Any) -> Any:
        features = self.extract_features(obs, self.vf_features_extractor)
        assert isinstance(features, th.Tensor)
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_critic(features).detach())


def test_critic_fit_that_would_move_the_policy_unseen_is_undone() -> None:
    """The graph cannot tell, the measured KL can: after the fit it must be that of the step."""
    model = small_model(MeasuredTRPO, policy=DetachedActor, learning_rate=0.1, n_critic_updates=5)
    assert isinstance(model, MeasuredTRPO)
    model.learn(3 * 64)
    assert model.last_update is not None and model.last_update.critic is not None
    assert model.last_update.critic.status == "undone"
    for step, mean_kl in model.measurements:
        assert step.accepted and mean_kl == pytest.approx(step.mean_kl, rel=1e-3, abs=ROUNDING)


@pytest.mark.parametrize("use_sde", [False, True])
def test_report_is_of_the_policy_that_stays_where_the_critic_fit_was_undone(use_sde: bool) -> None:
    """Not of the one that the fit had led to: entropy, and with gSDE the deviations, depend on what the critic moves."""
    env = make_env(action_space=BOX if use_sde else DISCRETE)
    model = small_model(policy=DetachedActor, env=env, learning_rate=1.0, n_critic_updates=5, use_sde=use_sde).learn(64)
    update = model.last_update
    assert update is not None and update.critic is not None and update.critic.status == "undone"
    with th.no_grad():
        policy: Any = model._distribution(model._full_batch()).distribution
    assert update.entropy == pytest.approx(float(policy.entropy().reshape(64, -1).sum(dim=1).mean()), rel=1e-4)
    if use_sde:
        assert update.least_std is not None and update.noise_std == pytest.approx(float(policy.stddev.mean()), rel=1e-4)
        assert update.least_std[1] == pytest.approx(float(policy.stddev.mean(dim=0).min()), rel=1e-4)


class RestlessExtractor(BaseFeaturesExtractor):
    """Features that in training mode are different each time they are asked for."""

    def __init__(self, observation_space: gym.spaces.Box):
        super().__init__(observation_space, features_dim=16)
        n_inputs = int(np.prod(observation_space.shape))
        self.layers = nn.Sequential(nn.Linear(n_inputs, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5))
        self.modes: list[bool] = []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.modes.append(self.training)
        return self.layers(observations)


def restless_model(cls: type[TRPO] = TRPO) -> TRPO:
    """Return a model with dropout and batch normalisation, the latter with statistics that are not those of any rollout."""
    model = small_model(cls, policy_kwargs={"features_extractor_class": RestlessExtractor})
    for name, buffer in model.policy.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.3)
        elif name.endswith("running_var"):
            buffer.fill_(0.7)
    return model


def test_ratio_starts_at_one_with_dropout_and_batch_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ratio of the update is 1 for every sample: the policy is asked in the mode in which it collected."""
    ratios: list[th.Tensor] = []

    def recorded(distribution: Distribution, batch: Batch) -> th.Tensor:
        result = log_ratio(distribution, batch)
        ratios.append(result.detach().exp())
        return result

    monkeypatch.setattr(sb3_trpo.objective, "log_ratio", recorded)
    restless_model().learn(64)
    th.testing.assert_close(ratios[0].float(), th.ones(64), rtol=0.0, atol=1e-5)
    assert len(ratios) > 1 and not th.allclose(ratios[-1].float(), th.ones(64), rtol=0.0, atol=1e-3)


def test_train_runs_in_evaluation_mode_and_keeps_running_statistics() -> None:
    """No forward pass of an update, the critic's included, is in training mode, and batch statistics stay as they are."""
    model = restless_model()
    before = {name: buffer.clone() for name, buffer in model.policy.named_buffers()}
    model.learn(2 * 64)
    extractor = model.policy.features_extractor
    assert isinstance(extractor, RestlessExtractor)
    assert len(extractor.modes) > 2 * 64 and not any(extractor.modes)
    assert not model.policy.training
    assert before and not changed(before, dict(model.policy.named_buffers()))


def test_evaluation_of_a_candidate_is_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout and batch normalisation a candidate's surrogate and KL are the same however often they are asked for."""
    pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
    evaluate = PolicyProblem.evaluate

    def evaluate_twice(problem: PolicyProblem) -> tuple[float, float]:
        pairs.append((evaluate(problem), evaluate(problem)))
        return pairs[-1][0]

    monkeypatch.setattr(PolicyProblem, "evaluate", evaluate_twice)
    restless_model().learn(64)
    assert pairs
    assert all(first == second for first, second in pairs)


def test_train_keeps_the_limit_with_dropout_and_batch_normalisation() -> None:
    """Also with layers that know two modes the limit holds, measured from outside."""
    model = restless_model(MeasuredTRPO)
    assert isinstance(model, MeasuredTRPO)
    model.learn(3 * 64)
    assert any(measured.step.accepted for measured in model.measurements)
    for step, mean_kl in model.measurements:
        assert model.last_update is not None and mean_kl <= model.last_update.max_kl + ROUNDING
        assert mean_kl == pytest.approx(step.mean_kl, rel=1e-3, abs=ROUNDING)


class FilledBuffer(RolloutBuffer):
    """A rollout buffer that replaces its advantages for as long as there is a filling."""

    filling: float | None = None

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        if self.filling is not None:
            self.advantages[:] = self.filling


def assert_refuses_then_goes_on(model: TRPO, status: str, repair: Callable[[], None]) -> None:
    """Run an update that must be refused and leave the actor bit for bit as it is, then one that is not."""
    before = actor_state(model)
    model.learn(64)
    assert model.last_update is not None
    assert model.last_update.step.status == status
    assert not changed(before, actor_state(model))
    assert model.last_update.step.mean_kl == model.last_update.step.step_norm == 0.0
    repair()
    model.learn(64, reset_num_timesteps=False)
    assert model.last_update.step.accepted and model.last_update.n_updates == 2
    assert changed(before, actor_state(model))


@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize(
    "filling, status",
    [(0.0, "gradient_zero"), (math.nan, "advantages_not_finite"), (math.inf, "advantages_not_finite")],
)
def test_train_without_usable_advantages_leaves_the_actor_as_it_was(
    filling: float, status: str, normalize_advantage: bool
) -> None:
    """Advantages that are all zero or not finite are reported, move nothing in the actor, and training goes on."""
    model = small_model(rollout_buffer_class=FilledBuffer, normalize_advantage=normalize_advantage)
    buffer = model.rollout_buffer
    assert isinstance(buffer, FilledBuffer)
    buffer.filling = filling

    def repair() -> None:
        buffer.filling = None

    assert_refuses_then_goes_on(model, status, repair)


@pytest.mark.parametrize(
    "case, result",
    [
        pytest.param(Case("CnnPolicy", IMAGE, arguments=SHARED), (1e9, math.inf), id="cnn_shared"),
        *(
            pytest.param(Case(), result, id=f"mlp-{result}")
            for result in [(1e9, math.inf), (1e9, math.nan), (1e9, 1e-2 + 1e-6), (-1e9, 0.0), (math.nan, 0.0)]
        ),
    ],
)
def test_train_whose_line_search_fails_leaves_the_actor_as_it_was(
    case: Case, result: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no candidate is within the limit and better, every actor parameter is bit for bit restored and training goes on."""
    tried: list[tuple[float, float]] = []
    evaluate = PolicyProblem.evaluate

    def refused(problem: PolicyProblem) -> tuple[float, float]:
        tried.append(evaluate(problem))
        return result

    monkeypatch.setattr(PolicyProblem, "evaluate", refused)
    model = case.model(line_search_max_iter=3, target_kl=1e-2)
    assert_refuses_then_goes_on(model, "line_search_failed", monkeypatch.undo)
    # The policy had been somewhere else; the plain critic fit asks once or twice more, and finds it back
    assert all(mean_kl > 0.0 for _, mean_kl in tried[:3]) and {mean_kl for _, mean_kl in tried[3:]} <= {0.0}


def test_train_that_raises_leaves_the_policy_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the middle of the line search leaves every parameter bit for bit as it was."""

    def broken(problem: PolicyProblem) -> tuple[float, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(PolicyProblem, "evaluate", broken)
    model = small_model()
    before = policy_state(model)
    with pytest.raises(KeyboardInterrupt):
        model.learn(64)
    assert not changed(before, policy_state(model))


class NanRewardEnv(RandomEnv):
    """An environment whose simulator fails once."""

    failed = False

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if not self.failed:
            reward, self.failed = math.nan, True
        return observation, reward, terminated, truncated, info


def test_train_on_a_reward_that_is_not_a_number_leaves_every_parameter_finite() -> None:
    """One NaN reward costs one update: neither actor nor critic is spoilt by it, and the next update is accepted."""
    model = small_model(env=DummyVecEnv([lambda: NanRewardEnv(VECTOR)]), error_if_nonfinite=False)
    model.learn(64)
    assert model.last_update is not None and not model.last_update.step.accepted
    assert all(bool(tensor.isfinite().all()) for tensor in policy_state(model).values())
    model.learn(64, reset_num_timesteps=False)
    assert model.last_update.step.accepted


def test_gsde_kl_is_measured_on_the_state_dependent_distribution() -> None:
    """The outside measurement above saw gSDE's own distribution, whose spread depends on the state."""
    model = KEPT["gsde"].model().learn(64)
    distribution = model.policy.get_distribution(next(model.rollout_buffer.get(batch_size=None)).observations)
    assert isinstance(distribution, StateDependentNoiseDistribution)
    assert float(distribution.distribution.stddev.std(dim=0).min().detach()) > 0.0
