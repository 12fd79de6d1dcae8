"""Quick ways of policies with masks beside the plain ones: collection, Fisher products, critic."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from stable_baselines3.common.distributions import DiagGaussianDistribution
from torch.nn import functional as F

from sb3_trpo import TRPO, MaskableTRPO, MlpPolicy
from sb3_trpo.fast.gauss_newton import gauss_newton_fisher
from sb3_trpo.fast.masks import IMPOSSIBLE, masked, masked_array
from sb3_trpo.maskable import MaskableMlpPolicy
from sb3_trpo.objective import PolicyProblem
from tests.cases import shake
from tests.masked_envs import masked_env
from tests.one_rollout import check_same_steps, check_update, rolled_out
from tests.oracles import relative_error
from tests.scenarios import check_equal, collect, replay
from tests.small_models import DICT, DISCRETE, IMAGE, MULTI_BINARY, MULTI_DISCRETE, VECTOR, make_env, policy_state, small_model

TWO_VECTORS = spaces.Dict({"one": VECTOR, "another": spaces.Box(-1.0, 1.0, (2,))})
CASES: dict[str, tuple[str, spaces.Space, spaces.Space]] = {
    "discrete": ("MlpPolicy", VECTOR, DISCRETE),
    "multi_discrete": ("MlpPolicy", VECTOR, MULTI_DISCRETE),
    "multi_binary": ("MlpPolicy", VECTOR, MULTI_BINARY),
    "numbers": ("MlpPolicy", spaces.Discrete(6, start=2), DISCRETE),
    "dict": ("MultiInputPolicy", TWO_VECTORS, DISCRETE),
    "image": ("CnnPolicy", IMAGE, DISCRETE),
    "dict_with_image": ("MultiInputPolicy", DICT, MULTI_DISCRETE),
}


def model_of(name: str = "discrete", **arguments: Any) -> Any:
    policy, observation_space, action_space = CASES[name]
    env = masked_env(observation_space, action_space, n_envs=2)
    model = small_model(MaskableTRPO, policy, env, **arguments)
    # Away from the initial weights, where all actions are as good as equally likely
    shake(list(model.policy.parameters()), scale=0.02 if "image" in name else 0.2, seed=1)
    return model


def test_impossible_logits_have_no_probability() -> None:
    """Exactly none, in torch and in NumPy."""
    logits, masks = th.tensor([[1.0, 2.0, -3.0]]), th.tensor([[True, False, True]])
    assert masked(logits, masks).softmax(dim=1)[0, 1] == 0.0
    np.testing.assert_array_equal(masked_array(logits.numpy(), masks.numpy()), [[1.0, IMPOSSIBLE, -3.0]])
    assert masked(logits, None) is logits


@pytest.mark.parametrize("name", CASES)
def test_rollout_is_that_of_the_plain_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same actions give the same buffer, masks included, in an environment that stops whoever takes an impossible one."""
    lean, plain = (model_of(name, fast=fast, n_steps=20, gae_lambda=0.8) for fast in (True, False))
    collected = collect(lean)
    replay(plain, collected, monkeypatch)
    check_equal(collected, collect(plain))
    assert lean.paths_in_use["collection"] == "lean" and plain.paths_in_use["collection"] == "plain"
    np.testing.assert_array_equal(lean.rollout_buffer.action_masks, plain.rollout_buffer.action_masks)
    assert not lean.rollout_buffer.action_masks.all()


@pytest.mark.untraced
@pytest.mark.parametrize("name", [name for name in CASES if "image" not in name])
def test_update_is_that_of_the_plain_ways(name: str) -> None:
    """Written-out products and critic lead where the plain ones do."""
    fast, plain = (rolled_out(lambda **arguments: model_of(name, **arguments)) for _ in range(2))
    check_update(fast, fast=True)
    check_update(plain, fast=False)
    assert (fast.paths_in_use["Fisher products"], fast.paths_in_use["critic fit"]) == ("Gauss-Newton", "written out")
    check_same_steps(fast, plain)


@pytest.mark.parametrize("name", ["discrete", "multi_discrete", "multi_binary"])
def test_products_are_the_plain_ones_in_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding; without masks they are others."""
    model = rolled_out(lambda **arguments: model_of(name, **arguments))
    model.policy.double()
    for module in ("stable_baselines3.common.policies", "sb3_trpo.fast.network"):  # SB3 makes float32 of everything
        monkeypatch.setattr(f"{module}.preprocess_obs", lambda observations, *args, **kwargs: observations.double())
    batch: Any = model._full_batch()
    batch = batch._replace(weights=batch.weights.double())
    policy: Any = model.policy
    parameters = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    vector = th.randn(sum(p.numel() for p in parameters), generator=th.Generator().manual_seed(0), dtype=th.float64)
    plain = PolicyProblem(model._distribution, batch, parameters).fisher_vector_product()(vector)
    fast = gauss_newton_fisher(policy, batch.split(24), parameters, model._distribution)
    assert fast is not None and relative_error(fast(vector), plain) < 1e-9
    free = gauss_newton_fisher(policy, [batch._replace(action_masks=None)], parameters, model._distribution)
    assert free is not None and relative_error(free(vector), plain) > 0.01


@pytest.mark.untraced
def test_actions_are_drawn_with_the_probabilities_of_the_policy() -> None:
    """Each possible action as often as its probability says, over many draws."""
    model = model_of()
    masks = np.array([[True, False, True, True]] * 2)
    model.env.env_method = lambda name, *args, **kwargs: list(masks)
    for env in model.env.envs:
        env.step = lambda action: (np.zeros(3, np.float32), 0.0, False, False, {})
        env.reset = lambda **kwargs: (np.zeros(3, np.float32), {})
    model._last_obs = None
    counts = np.zeros(4)
    model.train = lambda: None
    model.learn(6_000, callback=lambda variables, _: counts.__iadd__(np.bincount(variables["actions"], minlength=4)).any())
    with th.no_grad():
        probabilities = model._distribution(model._full_batch()).distribution.probs[0].numpy()
    assert counts[1] == 0 and probabilities[1] == 0
    np.testing.assert_allclose(counts / counts.sum(), probabilities, atol=0.03)


def test_a_policy_of_the_users_own_takes_the_plain_ways() -> None:
    """Whoever overrides what makes the distribution is asked for it."""

    class Own(MaskableMlpPolicy):
        def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
            return super()._get_action_dist_from_latent(F.relu(latent_pi))

    model: Any = small_model(MaskableTRPO, Own, masked_env(n_envs=2)).learn(64)
    assert model.paths_in_use["Fisher products"] == "plain"
    assert model.last_update.step.accepted
    before = policy_state(model)
    assert all(th.isfinite(value).all() for value in before.values())


def test_numbers_of_states_below_the_first_are_refused() -> None:
    """NumPy would count them from the end."""
    model = model_of("numbers")

    def below(variables: dict[str, Any], _: Any) -> bool:
        variables["new_obs"][:] = 1
        return True

    with pytest.raises(IndexError, match="must be of Discrete"):
        model.learn(64, callback=below)


class Larger(DiagGaussianDistribution):
    """Has a method more than SB3's."""

    def width(self) -> th.Tensor:
        return self.distribution.stddev.sum()


class Narrower(Larger):
    """Samples in a way of its own."""

    def sample(self) -> th.Tensor:
        return super().sample().clamp(-0.1, 0.1)


class MaskedLarger(MaskableCategoricalDistribution):
    def n_possible(self) -> int:
        return int((self.distribution.probs > 0).sum())


@pytest.mark.parametrize(
    ("policy", "kind", "fisher"),
    [
        (MlpPolicy, Larger, "Gauss-Newton"),
        (MlpPolicy, Narrower, "plain"),
        (MaskableMlpPolicy, MaskedLarger, "Gauss-Newton"),
    ],
)
def test_distribution_of_the_users_own_is_covered_where_it_only_adds_something(policy: Any, kind: Any, fisher: str) -> None:
    """One that overrides a method samples by it, and is differentiated in the plain way; the critic is fitted quickly."""

    class Own(policy):
        def _build(self, lr_schedule: Any) -> None:
            self.action_dist = kind(vars(self)["action_dist"].action_dim)
            super()._build(lr_schedule)

    is_masked = policy is MaskableMlpPolicy
    env = masked_env() if is_masked else make_env()
    model = small_model(MaskableTRPO if is_masked else TRPO, Own, env).learn(128)
    assert model.paths_in_use == {"collection": "lean", "Fisher products": fisher, "critic fit": "written out"}
    assert bool(np.abs(model.rollout_buffer.actions).max() < 0.11) == (kind is Narrower)
