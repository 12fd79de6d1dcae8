"""The fast paths of the update beside the plain ones: Fisher products, critic fit, chunks; and what they leave alone."""

import copy
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common import policies as sb3_policies
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_trpo import TRPO, CnnPolicy, MlpPolicy, MultiInputPolicy, update
from sb3_trpo.critic import CriticFit, ValueBatch
from sb3_trpo.fast import gauss_newton, network
from sb3_trpo.fast.gauss_newton import gauss_newton_fisher
from sb3_trpo.fast.mlp_critic import MlpCritic
from sb3_trpo.fast.network import is_quicker_on_gpu, network_input, read_actor
from sb3_trpo.objective import Batch, PolicyProblem, kl_old_new
from sb3_trpo.trust_region import flatten, reached_by
from tests.cases import PolicyCase, generator, normal, sample_actions, seeded, shake
from tests.oracles import dense_fisher, relative_error
from tests.small_models import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    MULTI_BINARY,
    VECTOR,
    Case,
    changed,
    make_env,
    policy_state,
    small_model,
)

# In float32 the kernels of one processor round as those of another do not: float64 tells faults from rounding
FISHER_TOLERANCE = {th.float32: 3e-5, th.float64: 1e-9}
DTYPES = [pytest.param(th.float32, id="float32"), pytest.param(th.float64, id="float64")]
ACTIONS: dict[str, spaces.Space] = {
    "box": BOX,
    "discrete": DISCRETE,
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_binary": MULTI_BINARY,
}
# As SB3 hands them to the policy: channels first
PIXELS = spaces.Box(0, 255, (1, 36, 36), np.uint8)
PICTURE_AND_VECTOR = spaces.Dict({"picture": PIXELS, "vector": VECTOR})


@pytest.fixture(autouse=True)
def double_stays_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SB3 casts every observation to float32: what a float64 policy is given is cast back."""

    def preprocess(observations: Any, space: Any, normalize_images: bool = True) -> Any:
        processed: Any = preprocess_obs(observations, space, normalize_images=normalize_images)
        if th.get_default_dtype() is not th.float64:
            return processed
        return {k: v.double() for k, v in processed.items()} if isinstance(processed, dict) else processed.double()

    for module in (sb3_policies, network):
        monkeypatch.setattr(module, "preprocess_obs", preprocess)
    before = th.get_default_dtype()
    yield
    th.set_default_dtype(before)


def random_observations(space: spaces.Space, n: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: random_observations(part, n) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return th.randint(int(space.n), (n, 1), generator=generator(2))
    if isinstance(space, spaces.MultiDiscrete):
        return th.stack([th.randint(int(k), (n,), generator=generator(2)) for k in space.nvec], dim=1)
    assert isinstance(space, spaces.Box)
    if space.dtype == np.uint8:
        return th.randint(256, (n, *space.shape), generator=generator(2), dtype=th.uint8)
    return normal(n, *space.shape, seed=2).float()


def build(
    action: str = "box",
    dtype: th.dtype = th.float64,
    *,
    observation_space: spaces.Space = VECTOR,
    n: int = 11,
    freeze: tuple[str, ...] = (),
    weights: th.Tensor | None = None,
    **kwargs: Any,
) -> PolicyCase:
    """Build a policy away from its initial weights, and transitions of unequal weight that it made."""
    th.set_default_dtype(th.float32)
    cls = (
        MultiInputPolicy
        if isinstance(observation_space, spaces.Dict)
        else CnnPolicy
        if observation_space is PIXELS and "features_extractor_class" not in kwargs
        else MlpPolicy
    )
    with seeded(0):
        policy = cls(
            observation_space,
            ACTIONS[action],
            lambda progress: 1e-3,
            **{"net_arch": {"pi": [6, 5], "vf": [4]}, **kwargs},
        )
        # From here on observations are cast too
        th.set_default_dtype(dtype)
        policy.to(dtype)
        if policy.use_sde:
            policy.reset_noise()
    shake(list(policy.parameters()), scale=0.3 if cls is MlpPolicy else 0.02, seed=1)
    policy.set_training_mode(False)
    for name, parameter in policy.named_parameters():
        if name in freeze:
            parameter.requires_grad_(False)
    observations = random_observations(observation_space, n)
    distribution = policy.get_distribution(observations)
    with seeded(3), th.no_grad():
        actions = sample_actions(distribution)
        old_log_prob = distribution.log_prob(actions)
    if weights is None:
        weights = th.rand(n, generator=generator(4)) + 0.2
    advantages, returns = (normal(n, seed=seed).to(dtype) for seed in (5, 6))
    batch = Batch(observations, actions, old_log_prob, advantages, returns, (weights / weights.sum()).to(dtype))
    parameters = reached_by(policy.get_distribution(observations).log_prob(actions), list(policy.parameters()))
    return PolicyCase(action, policy, batch, parameters)


def vectors(case: PolicyCase) -> list[th.Tensor]:
    size = sum(parameter.numel() for parameter in case.parameters)
    return [normal(size, seed=20 + i).to(case.parameters[0].dtype) for i in range(3)]


def check_products(case: PolicyCase, *, chunk_size: int | None = None) -> None:
    """Compare Gauss-Newton products with the plain ones, several with the same tapes."""
    fast = gauss_newton_fisher(case.policy, case.batch.split(chunk_size), case.parameters, case.distribution_of)
    assert fast is not None
    plain = case.problem().fisher_vector_product()
    for vector in vectors(case):
        product, expected = fast(vector), plain(vector)
        assert product.dtype == vector.dtype == case.parameters[0].dtype
        assert relative_error(product, expected) < FISHER_TOLERANCE[vector.dtype]


# Fisher products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("action", ACTIONS)
def test_product_is_the_plain_one_for_perceptrons(action: str, activation: type[nn.Module], dtype: th.dtype) -> None:
    check_products(build(action, dtype, activation_fn=activation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("action", ACTIONS)
def test_product_is_the_plain_one_for_images(action: str, dtype: th.dtype) -> None:
    check_products(build(action, dtype, observation_space=PIXELS, n=5), chunk_size=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({"observation_space": spaces.Discrete(5)}, id="state"),
        pytest.param({"observation_space": spaces.MultiDiscrete([2, 3])}, id="states"),
        pytest.param({"observation_space": spaces.Box(-1, 1, (2, 3))}, id="matrix"),
        pytest.param({"net_arch": []}, id="no hidden layer"),
        pytest.param({"net_arch": [7, 6, 5, 4]}, id="deep"),
        pytest.param({"observation_space": PIXELS, "n": 4, "normalize_images": False, "action": "discrete"}, id="raw pixels"),
        pytest.param({"observation_space": PIXELS, "n": 4, "share_features_extractor": True}, id="shared extractor"),
    ],
)
def test_product_is_the_plain_one_for_other_chains(kwargs: dict[str, Any], dtype: th.dtype) -> None:
    check_products(build(**{"action": "multi_discrete", "dtype": dtype, **kwargs}))


@pytest.mark.parametrize("kept", [0, 300, 2**28], ids=["nothing kept", "something kept", "all kept"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("action", ["box", "multi_discrete"])
def test_product_in_chunks_is_the_plain_one(action: str, dtype: th.dtype, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the activations are kept from product to product or made anew."""
    monkeypatch.setattr(gauss_newton, "KEPT_BYTES", kept)
    case = build(action, dtype)
    check_products(case, chunk_size=3)
    product = gauss_newton_fisher(case.policy, case.batch.split(3), case.parameters, case.distribution_of)
    assert product is not None
    product(vectors(case)[0])
    n_kept = len(product.__self__.kept)  # type: ignore[attr-defined]
    assert n_kept == {0: 0, 2**28: 4}.get(kept, n_kept) and (kept != 300 or 0 < n_kept < 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("action", ACTIONS)
def test_product_does_not_see_padding(action: str, dtype: th.dtype) -> None:
    """Rows of weight zero, however far from the others, might as well not be there; whole chunks of them too."""
    weights = th.rand(12, generator=generator(6)) + 0.2
    weights[[1, 4]] = 0.0
    weights[8:] = 0.0
    case = build(action, dtype, n=12, weights=weights)
    assert isinstance(case.batch.observations, th.Tensor)
    case.batch.observations[weights == 0] = 1e3
    check_products(case, chunk_size=4)
    rows = weights.nonzero().squeeze(1)
    without = case._replace(batch=case.batch.select(rows))
    fast, expected = (gauss_newton_fisher(c.policy, [c.batch], c.parameters, c.distribution_of) for c in (case, without))
    assert fast is not None and expected is not None
    for vector in vectors(case):
        assert relative_error(fast(vector), expected(vector)) < FISHER_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "freeze",
    [
        ("mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias"),
        tuple(f"mlp_extractor.policy_net.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")),
        ("mlp_extractor.policy_net.2.weight", "mlp_extractor.policy_net.2.bias"),
        ("mlp_extractor.policy_net.0.bias",),
        ("mlp_extractor.policy_net.0.weight",),
        ("mlp_extractor.policy_net.2.weight", "action_net.bias"),
        ("action_net.weight", "action_net.bias"),
        ("log_std",),
        ("log_std", "mlp_extractor.policy_net.0.weight"),
    ],
    ids=lambda names: ", ".join(names).replace("mlp_extractor.policy_net.", ""),
)
def test_product_in_some_of_the_parameters_is_the_plain_one(freeze: tuple[str, ...], dtype: th.dtype) -> None:
    everything, some = build("box", dtype), build("box", dtype, freeze=freeze)
    assert len(some.parameters) == len(everything.parameters) - len(freeze)
    check_products(some, chunk_size=4)


@pytest.mark.parametrize("freeze", ["features_extractor", "pi_features_extractor.cnn.0", "pi_features_extractor.linear"])
def test_product_with_frozen_layers_of_a_convolution_is_the_plain_one(freeze: str) -> None:
    case = build("discrete", observation_space=PIXELS, n=4)
    for name, parameter in case.policy.named_parameters():
        if freeze in name:
            parameter.requires_grad_(False)
    check_products(case._replace(parameters=[parameter for parameter in case.parameters if parameter.requires_grad]))


def test_product_takes_the_parameters_in_any_order() -> None:
    case = build("box")
    check_products(case._replace(parameters=case.parameters[::-1]))


@pytest.mark.parametrize("action", ACTIONS)
def test_product_is_that_of_the_dense_fisher_matrix(action: str) -> None:
    """Enumerated action by action, state by state; no code of the package in it."""
    case = build(action, n=4)
    assert isinstance(case.batch.observations, th.Tensor)
    dense = dense_fisher(case.policy, case.batch.observations, case.batch.weights, case.parameters)
    fast = gauss_newton_fisher(case.policy, [case.batch], case.parameters, case.distribution_of)
    assert fast is not None
    for vector in vectors(case):
        assert relative_error(fast(vector), dense @ vector) < 1e-9


def test_product_leaves_its_vector_and_the_gradients_alone() -> None:
    case = build("box")
    fast = gauss_newton_fisher(case.policy, [case.batch], case.parameters, case.distribution_of)
    assert fast is not None
    (vector, *_) = vectors(case)
    given, first = vector.clone(), fast(vector)
    assert th.equal(vector, given) and th.equal(first, fast(vector))
    assert not first.requires_grad and all(parameter.grad is None for parameter in case.policy.parameters())


# What the fast products do not cover


class Extractor(BaseFeaturesExtractor):
    """Learns features of its own."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, features_dim=5)
        self.net = nn.Linear(3, 5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations).sin()


class OtherDistribution(MlpPolicy):
    """Has its own idea of the distribution: half the mean."""

    def get_distribution(self, obs: PyTorchObs) -> Any:
        distribution = super().get_distribution(obs)
        return self.action_dist.proba_distribution(0.5 * distribution.mode(), self.log_std)


class OwnDistribution(TRPO):
    """A variant that asks its policy in a way of its own: about the world upside down."""

    def _distribution(self, batch: Batch) -> Any:
        assert isinstance(batch.observations, th.Tensor)
        return self.policy.get_distribution(-batch.observations)


class OtherFeatures(MlpPolicy):
    """Has its own idea of what the head is given."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return super()._get_action_dist_from_latent(latent_pi.sin())


def double(module: nn.Module, args: Any, output: th.Tensor) -> th.Tensor:
    return 2.0 * output


class Doubling(nn.Sequential):
    """A container that does more than to apply what is in it."""

    def forward(self, values: th.Tensor) -> th.Tensor:
        return 2.0 * super().forward(values)


def layers(model: TRPO, net: str = "policy_net") -> Any:
    return getattr(model.policy.mlp_extractor, net)


def contain(model: TRPO, net: str = "policy_net") -> None:
    setattr(model.policy.mlp_extractor, net, Doubling(*layers(model, net)))


def end_in_activation(model: TRPO, net: str = "policy_net", head: str = "action_net") -> None:
    layers(model, net).append(getattr(model.policy, head))
    setattr(model.policy, head, nn.Tanh())


def change(act: Callable[[TRPO], Any], **arguments: Any) -> Callable[[], TRPO]:
    """Return a maker of models that something is done to."""

    def make() -> TRPO:
        model = small_model(**arguments)
        act(model)
        return model

    return make


def with_own_forward(layer: nn.Module) -> None:
    original = layer.forward
    layer.forward = lambda values: 2.0 * original(values)


NOT_COVERED: dict[str, Callable[[], TRPO]] = {
    "gSDE": partial(small_model, use_sde=True),
    "extractor": partial(small_model, policy_kwargs={"features_extractor_class": Extractor}),
    "get_distribution overridden": partial(small_model, policy=OtherDistribution),
    "distribution from latent overridden": partial(small_model, policy=OtherFeatures),
    "distribution of a variant": partial(small_model, cls=OwnDistribution),
    "ELU": partial(small_model, policy_kwargs={"activation_fn": nn.ELU}),
    "dict": lambda: Case("MultiInputPolicy", DICT).model(),
    "hook on a layer": change(lambda model: layers(model)[0].register_forward_hook(double)),
    "hook before a layer": change(
        lambda model: layers(model)[2].register_forward_pre_hook(lambda module, args: args[0].sin())
    ),
    "hook on the head": change(lambda model: model.policy.action_net.register_forward_hook(double)),
    "hook on the layers together": change(lambda model: layers(model).register_forward_hook(double)),
    "hook on the extractor": change(lambda model: model.policy.pi_features_extractor.register_forward_hook(double)),
    "forward of a layer replaced": change(lambda model: with_own_forward(layers(model)[0])),
    "weight norm": change(lambda model: nn.utils.parametrizations.weight_norm(layers(model)[0])),
    "no bias": change(lambda model: layers(model).__setitem__(2, nn.Linear(64, 64, bias=False))),
    "normalised": change(lambda model: layers(model).append(nn.LayerNorm(64))),
    "two activations": change(lambda model: layers(model).append(nn.ReLU())),
    "container": change(contain),
    "activation at the end": change(end_in_activation),
    "one deviation for all actions": change(lambda model: setattr(model.policy, "log_std", nn.Parameter(th.zeros(1)))),
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_what_is_not_covered_takes_the_plain_products(name: str) -> None:
    """And trains as ever."""
    model = NOT_COVERED[name]()
    before = policy_state(model)
    model.learn(64)
    assert model.paths_in_use["Fisher products"] == "plain"
    assert model.last_update is not None and model.last_update.step.accepted
    assert changed(before, policy_state(model))
    assert all(tensor.isfinite().all() for tensor in policy_state(model).values())


@pytest.mark.parametrize("name", ["extractor", "hook on a layer", "weight norm", "container", "activation at the end"])
def test_what_is_no_chain_is_not_read_as_one(name: str) -> None:
    """Else the lean collection would act on another network than the policy's."""
    assert read_actor(NOT_COVERED[name]().policy) is None


@pytest.mark.parametrize("name", ["dict", "hook on a layer", "ELU", "one deviation for all actions"])
def test_what_is_not_covered_is_none(name: str) -> None:
    model = NOT_COVERED[name]()
    model.learn(64)
    batch = model._full_batch()
    parameters, _ = model._split_parameters(batch)
    assert gauss_newton_fisher(model.policy, [batch], parameters, model._distribution) is None


def test_what_is_covered_takes_the_fast_paths_unless_told_not_to() -> None:
    fast, plain = small_model().learn(64), small_model(fast=False).learn(64)
    assert fast.paths_in_use == {"collection": "lean", "Fisher products": "Gauss-Newton", "critic fit": "written out"}
    assert plain.paths_in_use == dict.fromkeys(fast.paths_in_use, "plain")


@pytest.mark.parametrize("freeze", ["all but log_std", "log_std alone"])
def test_deviations_alone_are_left_to_the_plain_products(freeze: str) -> None:
    """Without a layer to learn there is no chain, and with a parameter of elsewhere it is not the whole."""
    case = build("box")
    stranger = nn.Parameter(th.ones(3))
    parameters = [case.policy.log_std] if freeze == "log_std alone" else [*case.parameters, stranger]
    assert gauss_newton_fisher(case.policy, [case.batch], parameters, case.distribution_of) is None


# Critic fits


def rolled_out(make: Callable[..., TRPO] = small_model, **arguments: Any) -> TRPO:
    """Return a model with one and the same rollout, collected in SB3's way; 64 transitions, 3 passes, 24 + 24 + 16 of them."""
    arguments = {"n_critic_updates": 3, "batch_size": 24, "learning_rate": 1e-2, **arguments}
    if make is small_model:
        arguments.setdefault("env", make_env(n_envs=2))
    model = make(**arguments, fast=False)
    assert model.env is not None
    with seeded(0):
        _, callback = model._setup_learn(10**6)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def fit(model: TRPO, *, fast: bool, seed: int = 0, expected: bool | None = None) -> CriticFit | None:
    """Fit the critic as ``train`` does, with the minibatches of a seed."""
    model.fast = fast
    model._update_learning_rate(model.policy.optimizer)
    np.random.seed(seed)
    batch = model._full_batch()
    batch = batch._replace(returns=batch.returns.to(th.get_default_dtype()))
    result = model._fit_critic(batch, model._split_parameters(batch)[1], lambda: True)
    in_use = fast if expected is None else expected
    assert model.paths_in_use["critic fit"] == ("written out" if in_use else "plain")
    return result


def optimizer_state(model: TRPO) -> dict[str, th.Tensor]:
    """Return what the optimizer remembers by parameter and name; nothing is the same as zeros that saw no step."""
    return {
        f"{parameter_name} {key}": value.clone()
        for parameter_name, parameter in model.policy.named_parameters()
        for key, value in model.policy.optimizer.state.get(parameter, {}).items()
        if isinstance(value, th.Tensor) and value.abs().sum() > 0
    }


def check_same(ours: dict[str, th.Tensor], theirs: dict[str, th.Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and ours[name].shape == theirs[name].shape, name
        # A bias on its way through zero is compared with the size of a weight
        assert (ours[name] - theirs[name]).norm() <= tolerance * max(float(theirs[name].norm()), 1e-2), name


def check_same_critics(ours: TRPO, theirs: TRPO) -> None:
    check_same(policy_state(ours), policy_state(theirs))
    check_same(optimizer_state(ours), optimizer_state(theirs), tolerance=1e-4)


def check_same_fits(ours: CriticFit | None, theirs: CriticFit | None) -> None:
    assert ours is not None and theirs is not None
    assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)
    assert (ours.n_optimizer_steps, ours.n_skipped) == (theirs.n_optimizer_steps, theirs.n_skipped)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="tanh"),
        pytest.param({"policy_kwargs": {"activation_fn": nn.ReLU}}, id="relu"),
        pytest.param({"policy_kwargs": {"net_arch": []}}, id="linear"),
        pytest.param({"policy_kwargs": {"net_arch": {"pi": [4], "vf": [9, 8, 7]}}}, id="deep"),
        pytest.param({"policy_kwargs": {"optimizer_kwargs": {"betas": (0.7, 0.9), "eps": 1e-3}}}, id="betas and eps"),
        pytest.param({"policy_kwargs": {"share_features_extractor": False}}, id="separate extractors"),
        pytest.param({"env": make_env(IMAGE, DISCRETE, 2), "learning_rate": 1e-3}, id="image"),
        pytest.param({"env": make_env(spaces.Discrete(5), DISCRETE, 2)}, id="discrete"),
        pytest.param({"env": make_env(spaces.MultiDiscrete([2, 3]), DISCRETE, 2)}, id="multi-discrete"),
        pytest.param({"env": make_env(spaces.MultiBinary(4), DISCRETE, 2)}, id="multi-binary"),
        pytest.param({"use_sde": True}, id="gSDE"),
        pytest.param({"batch_size": 64}, id="one minibatch"),
        pytest.param({"batch_size": 1000}, id="minibatch larger than the rollout"),
        pytest.param({"batch_size": 63}, id="last minibatch of one"),
    ],
)
def test_critic_ends_where_the_plain_fit_ends(arguments: dict[str, Any]) -> None:
    """Fit after fit with the same minibatches: the weights, the optimizer's state and the losses."""
    ours, theirs = rolled_out(**arguments), rolled_out(**arguments)
    before = policy_state(ours)
    for seed in range(4):
        check_same_fits(fit(ours, fast=True, seed=seed), fit(theirs, fast=False, seed=seed))
        check_same_critics(ours, theirs)
    moved = changed(before, policy_state(ours))
    assert moved and all("value_net" in name for name in moved)


def test_critic_follows_a_schedule_of_learning_rates() -> None:
    ours, theirs = (rolled_out(learning_rate=lambda progress: 1e-2 * progress) for _ in range(2))
    for seed, progress in enumerate((1.0, 0.5, 0.01, 0.0)):
        before = policy_state(ours)
        for model in (ours, theirs):
            model._current_progress_remaining = progress
        check_same_fits(fit(ours, fast=True, seed=seed), fit(theirs, fast=False, seed=seed))
        check_same_critics(ours, theirs)
        assert bool(changed(before, policy_state(ours))) == (progress > 0)


def test_critic_may_change_paths_between_updates() -> None:
    """Each path takes the optimizer's state over from the other."""
    ours, theirs = rolled_out(), rolled_out()
    for seed, fast in enumerate((True, False, False, True, True, False)):
        check_same_fits(fit(ours, fast=fast, seed=seed), fit(theirs, fast=False, seed=seed))
        check_same_critics(ours, theirs)


@pytest.mark.parametrize("fast_after", [True, False])
@pytest.mark.parametrize("fast_before", [True, False])
def test_critic_goes_on_from_a_file(fast_before: bool, fast_after: bool, tmp_path: pathlib.Path) -> None:
    """Saved after one path, loaded and gone on with the other."""
    ours, theirs = rolled_out(), rolled_out()
    for seed in range(2):
        fit(ours, fast=fast_before, seed=seed)
        fit(theirs, fast=False, seed=seed)
    ours.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=make_env(n_envs=2), device="cpu")
    loaded._logger = ours.logger
    loaded.rollout_buffer = ours.rollout_buffer
    for seed in range(2, 4):
        check_same_fits(fit(loaded, fast=fast_after, seed=seed), fit(theirs, fast=False, seed=seed))
    check_same_critics(loaded, theirs)


def test_critic_fit_leaves_the_actor_and_all_gradients_alone() -> None:
    """Bit for bit, also where the optimizer has a state for the actor's parameters that would move them."""
    model = rolled_out()
    optimizer = model.policy.optimizer
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    before, state = policy_state(model), optimizer_state(model)
    fit(model, fast=True)
    assert all("value_net" in name for name in changed(before, policy_state(model)))
    after = optimizer_state(model)
    assert all("value_net" in name for name in state if not th.equal(state[name], after[name]))
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def spoil(model: TRPO, value: float, rows: slice) -> None:
    model.rollout_buffer.returns[rows, 0] = value


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("rows", [slice(3, 4), slice(None)], ids=["one", "all of an environment"])
def test_critic_skips_the_minibatches_that_the_plain_fit_skips(value: float, rows: slice) -> None:
    """Returns that are not finite, or of which the gradient is not: the weights stay finite and go on afterwards."""
    ours, theirs = rolled_out(batch_size=8), rolled_out(batch_size=8)
    clean = [model.rollout_buffer.returns.copy() for model in (ours, theirs)]
    assert np.array_equal(*clean)  # type: ignore[arg-type]
    for model in (ours, theirs):
        spoil(model, value, rows)
    our_fit, their_fit = fit(ours, fast=True), fit(theirs, fast=False)
    assert our_fit is not None and their_fit is not None
    assert (our_fit.n_optimizer_steps, our_fit.n_skipped) == (their_fit.n_optimizer_steps, their_fit.n_skipped)
    assert our_fit.n_skipped == 3 if rows == slice(3, 4) else our_fit.n_skipped > 20
    assert all(tensor.isfinite().all() for tensor in policy_state(ours).values())
    check_same_critics(ours, theirs)


def test_critic_without_a_finite_return_stays_as_it_is() -> None:
    """Every minibatch skipped: the next fit is as if there had been none."""
    ours, theirs, fresh = rolled_out(), rolled_out(), rolled_out()
    before = policy_state(ours)
    for model, fast in ((ours, True), (theirs, False)):
        model.rollout_buffer.returns[:] = np.nan
        result = fit(model, fast=fast)
        assert result is not None and (result.n_optimizer_steps, result.n_skipped) == (0, 9)
        assert not changed(before, policy_state(model))
        model.rollout_buffer.returns = fresh.rollout_buffer.returns.reshape(model.rollout_buffer.returns.shape, order="F")
    fit(fresh, fast=False, seed=1)
    for model, fast in ((ours, False), (theirs, True)):
        model.rollout_buffer = fresh.rollout_buffer
        fit(model, fast=fast, seed=1)
        check_same_critics(model, fresh)


def test_critic_without_a_pass_is_none() -> None:
    model = rolled_out(n_critic_updates=0)
    before = policy_state(model)
    assert fit(model, fast=True) is None
    assert not changed(before, policy_state(model))


class HalvingBuffer(RolloutBuffer):
    """Hands out minibatches of its own making: half the returns."""

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        data = super()._get_samples(batch_inds, env)
        return data._replace(returns=0.5 * data.returns)


class OwnEpochs(TRPO):
    """A variant that reads its buffer in a way of its own."""

    def _value_epochs(self, batch: Batch) -> Iterator[Iterator[ValueBatch]]:
        for epoch in super()._value_epochs(batch):
            yield (minibatch._replace(returns=0.5 * minibatch.returns) for minibatch in epoch)


class OtherValues(MlpPolicy):
    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        return 2.0 * super().predict_values(obs)


def zero_bias(model: TRPO) -> None:
    with th.no_grad():
        model.policy.value_net.bias.zero_()


def of_policy(**kwargs: Any) -> Callable[[], TRPO]:
    return partial(rolled_out, policy_kwargs=kwargs)


def afterwards(act: Callable[[TRPO], Any]) -> Callable[[], TRPO]:
    def make() -> TRPO:
        model = rolled_out()
        act(model)
        return model

    return make


def tie(layers: nn.Module) -> None:
    assert isinstance(layers, nn.Sequential)
    layers.append(layers[2])
    layers.append(nn.Tanh())


def wrap_step(optimizer: th.optim.Optimizer) -> None:
    """Clip gradients as users do who cannot reach the call."""
    step = optimizer.step

    def clipped_step() -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 0.01)
        step()

    optimizer.step = clipped_step  # type: ignore[method-assign,assignment]


def halve(gradient: th.Tensor) -> th.Tensor:
    return 0.5 * gradient


def share_memory(model: TRPO) -> None:
    layers(model, "value_net")[2].weight.data = layers(model)[2].weight.data


def replace_head(model: TRPO) -> None:
    model.policy.value_net = nn.Linear(64, 1)
    nn.init.constant_(model.policy.value_net.weight, 0.01)
    zero_bias(model)


NO_MLP_CRITIC: dict[str, Callable[[], TRPO]] = {
    "weight decay": of_policy(optimizer_kwargs={"weight_decay": 0.1}),
    "amsgrad": of_policy(optimizer_kwargs={"amsgrad": True}),
    "maximize": of_policy(optimizer_kwargs={"maximize": True}),
    "AdamW": of_policy(optimizer_class=th.optim.AdamW),
    "SGD": of_policy(optimizer_class=th.optim.SGD),
    "RMSprop": of_policy(optimizer_class=th.optim.RMSprop),
    "shared extractor": of_policy(features_extractor_class=Extractor, share_features_extractor=True),
    "own extractor": of_policy(features_extractor_class=Extractor, share_features_extractor=False),
    "ELU": of_policy(activation_fn=nn.ELU),
    "predict_values overridden": partial(rolled_out, policy=OtherValues),
    "convolution": lambda: rolled_out(Case("CnnPolicy", IMAGE, DISCRETE, 2).model),
    "dict": lambda: rolled_out(Case("MultiInputPolicy", DICT, DISCRETE, 2).model),
    "frozen weight": afterwards(lambda model: layers(model, "value_net")[0].weight.requires_grad_(False)),
    "frozen bias": afterwards(lambda model: model.policy.value_net.bias.requires_grad_(False)),
    "two groups": afterwards(lambda model: model.policy.optimizer.add_param_group({"params": [nn.Parameter(th.ones(1))]})),
    "hook on a layer": afterwards(lambda model: layers(model, "value_net")[0].register_forward_hook(double)),
    "hook on the layers together": afterwards(lambda model: layers(model, "value_net").register_forward_hook(double)),
    "hook after steps": afterwards(lambda model: model.policy.optimizer.register_step_post_hook(lambda *_: zero_bias(model))),
    "hook on a gradient": afterwards(lambda model: model.policy.value_net.weight.register_hook(halve)),
    "layers that share their weights": afterwards(lambda model: tie(layers(model, "value_net"))),
    "container": afterwards(lambda model: contain(model, "value_net")),
    "activation at the end": afterwards(lambda model: end_in_activation(model, "value_net", "value_net")),
    "head that the optimizer does not hold": afterwards(replace_head),
    "memory shared with the actor": afterwards(share_memory),
    "betas that are tensors": of_policy(optimizer_kwargs={"betas": (th.tensor(0.9), th.tensor(0.999)), "foreach": False}),
    "wrapped step": afterwards(lambda model: wrap_step(model.policy.optimizer)),
    "weight norm": afterwards(lambda model: nn.utils.parametrizations.weight_norm(layers(model, "value_net")[0])),
}


@pytest.mark.parametrize("name", NO_MLP_CRITIC)
def test_what_the_critic_does_not_cover_is_fitted_in_the_plain_way(name: str) -> None:
    """The same to the bit with ``fast`` and without."""
    ours, theirs = NO_MLP_CRITIC[name](), NO_MLP_CRITIC[name]()
    before = policy_state(theirs)
    for seed in range(2):
        our_fit, their_fit = fit(ours, fast=True, seed=seed, expected=False), fit(theirs, fast=False, seed=seed)
        assert our_fit == their_fit is not None
    assert changed(before, policy_state(theirs))
    assert not changed(policy_state(ours), policy_state(theirs))


@pytest.mark.parametrize(
    "of_the_user", [{"rollout_buffer_class": HalvingBuffer}, {"cls": OwnEpochs}], ids=["buffer", "epochs"]
)
def test_minibatches_of_the_users_own_are_fitted_quickly(of_the_user: dict[str, Any]) -> None:
    """Neither a buffer nor a hook that makes other minibatches is a reason to go the plain way."""
    ours, theirs = rolled_out(**of_the_user), rolled_out(**of_the_user)
    check_same_fits(fit(ours, fast=True), fit(theirs, fast=False))
    check_same(policy_state(ours), policy_state(theirs))


class Cooled(TRPO):
    """Another distribution than the policy's own: one hook, overridden."""

    def _distribution(self, batch: Batch) -> Any:
        distribution = super()._distribution(batch)
        assert isinstance(distribution.distribution, th.distributions.Categorical)
        return copy.copy(distribution).proba_distribution(2.0 * distribution.distribution.logits)


class SameAgain(TRPO):
    """The same distribution, values and minibatches from overridden hooks."""

    def _distribution(self, batch: Batch) -> Any:
        return super()._distribution(batch)

    def _values(self, batch: ValueBatch) -> th.Tensor:
        return super()._values(batch)

    def _value_epochs(self, batch: Batch) -> Any:
        return super()._value_epochs(batch)


class DoubledValues(TRPO):
    """Other values than the policy's own."""

    def _values(self, batch: ValueBatch) -> th.Tensor:
        return 2.0 * super()._values(batch)


@pytest.mark.parametrize(
    ("cls", "fisher", "critic"),
    [(SameAgain, "Gauss-Newton", "written out"), (Cooled, "plain", "plain"), (DoubledValues, "Gauss-Newton", "plain")],
)
def test_fast_paths_are_asked_of_what_they_cover_and_not_of_the_class(cls: type[TRPO], fisher: str, critic: str) -> None:
    """A subclass keeps each path that its hooks leave right, and each update is that of the plain ways."""
    model = small_model(cls=cls, env=make_env(action_space=DISCRETE)).learn(64)
    assert model.paths_in_use == {"collection": "lean", "Fisher products": fisher, "critic fit": critic}


def test_hooks_on_everything_take_the_plain_paths() -> None:
    """Those that torch keeps for every module, and for every optimizer."""
    for register in (nn.modules.module.register_module_forward_hook, register_optimizer_step_post_hook):
        model = rolled_out()
        handle = register(lambda *_: None)
        try:
            fit(model, fast=True, expected=False)
        finally:
            handle.remove()
        fit(model, fast=True)


def test_critic_in_double_ends_where_the_plain_fit_ends() -> None:
    """Of weights in an order of their own in memory, and in float64 to its precision."""
    ours, theirs = rolled_out(), rolled_out()
    th.set_default_dtype(th.float64)
    for model in (ours, theirs):
        model.policy.double()
        weight = layers(model, "value_net")[0].weight
        weight.data = weight.data.t().contiguous().t()
    check_same_fits(fit(ours, fast=True), fit(theirs, fast=False))
    check_same(policy_state(ours), policy_state(theirs), tolerance=1e-9)


def test_critic_fit_keeps_to_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is set NumPy takes a thread for each core, and they would wait for each other."""
    model = rolled_out()
    seen: list[set[int]] = []
    differentiate = MlpCritic._differentiate

    def spy(self: MlpCritic, minibatch: Any) -> tuple[th.Tensor, bool]:
        seen.append(blas_threads())
        return differentiate(self, minibatch)

    def blas_threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    monkeypatch.setattr(MlpCritic, "_differentiate", spy)
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        fit(model, fast=True)
        assert blas_threads() == before
    assert seen and all(threads == {1} for threads in seen)


def test_interrupt_while_the_critic_is_written_back_undoes_its_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when some of the layers are new: none is, nor is the optimizer's memory."""
    model = rolled_out()
    fit(model, fast=True)
    before, state = policy_state(model), optimizer_state(model)
    n_calls, tensor = 0, th.tensor

    def failing(*args: Any, **kwargs: Any) -> th.Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 4:
            raise KeyboardInterrupt
        return tensor(*args, **kwargs)

    monkeypatch.setattr(th, "tensor", failing)
    with pytest.raises(KeyboardInterrupt):
        fit(model, fast=True)
    monkeypatch.undo()
    assert not changed(before, policy_state(model))
    assert all(th.equal(value, state[name]) for name, value in optimizer_state(model).items())
    fit(model, fast=True)


@pytest.mark.parametrize(("device", "n", "expected"), [("cpu", 2**24, False), ("meta", 2**13, False), ("meta", 2**14, True)])
def test_large_network_is_left_where_it_is_unless_that_is_the_cpu(device: str, n: int, expected: bool) -> None:
    """A thousand weights at n inputs at a time."""
    parameters = [nn.Parameter(th.empty(size, device=device)) for size in (1000, 24)]
    assert is_quicker_on_gpu(parameters, n) == expected


def test_critic_fit_does_not_ask_for_the_default_device_of_torch() -> None:
    """The fit and what the optimizer remembers are the same wherever a user makes tensors by default."""
    expected, model = rolled_out(), rolled_out()
    fit(expected, fast=True)
    with th.device("meta"):
        fit(model, fast=True)
    assert not changed(policy_state(expected), policy_state(model))
    for name, value in optimizer_state(expected).items():
        assert th.equal(value, optimizer_state(model)[name])


@pytest.mark.parametrize("block", [1, 200, 2**22])
def test_critic_is_given_its_inputs_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever size, the fit is the same to the bit, and no block is larger than the limit and one minibatch."""
    expected = rolled_out()
    fit(expected, fast=True)
    sizes: list[int] = []

    def noted(policy: Any, observations: th.Tensor) -> th.Tensor:
        sizes.append(len(observations))
        return network_input(policy, observations)

    monkeypatch.setattr("sb3_trpo.fast.mlp_critic.INPUT_BLOCK", block)
    monkeypatch.setattr("sb3_trpo.fast.mlp_critic.network_input", noted)
    model = rolled_out()
    fit(model, fast=True)
    assert not changed(policy_state(expected), policy_state(model))
    assert sum(sizes) == 3 * 64 and max(sizes) == {1: 24, 200: 48, 2**22: 64}[block]


class Waits(TorchDispatchMode):
    """Counts the times that a GPU would have to be waited for."""

    n = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += function is th.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def waits(*, fast: bool = True, **arguments: Any) -> int:
    model = rolled_out(**{"batch_size": 8, "n_critic_updates": 2, **arguments})
    model.fast = fast
    with Waits() as counter:
        model.train()
    assert model.last_update is not None and model.last_update.step.accepted
    return counter.n


def test_plain_critic_fit_waits_once_for_each_minibatch() -> None:
    """Whether to step at all: loss and gradient of every layer are brought over together."""
    plain = partial(waits, fast=False, policy_kwargs={"optimizer_class": th.optim.SGD})  # Adam counts its steps on the CPU
    assert plain(batch_size=8) - plain(batch_size=32) == 2 * (8 - 2)


def test_update_waits_once_for_each_iteration_of_the_solver() -> None:
    """What decides whether and how to go on is brought over together."""
    assert waits(cg_max_steps=6) - waits(cg_max_steps=3) <= 3


# Chunks


CHUNK_CASES: dict[str, dict[str, Any]] = {
    **{action: {"action": action} for action in ACTIONS},
    "gSDE": {"use_sde": True},
    "image": {"observation_space": PIXELS, "action": "discrete"},
    "dict": {"observation_space": PICTURE_AND_VECTOR, "action": "multi_discrete"},
    "dict, box": {"observation_space": PICTURE_AND_VECTOR},
}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CHUNK_CASES)
def test_problem_in_chunks_is_the_whole_problem(name: str, dtype: th.dtype, fast: bool) -> None:
    """Surrogate, gradient, Fisher products, KL and entropy, for chunks that do not divide the batch."""
    case = build(dtype=dtype, n=7, **CHUNK_CASES[name])
    tolerance = {th.float32: 1e-5, th.float64: 1e-10}[dtype]
    fast_fisher = partial(gauss_newton_fisher, case.policy, distribution_of=case.distribution_of) if fast else None
    whole, chunked = case.problem(), case.problem(chunk_size=3, fast_fisher=fast_fisher)
    assert [len(chunk.weights) for chunk in chunked.chunks] == [3, 3, 1] and len(whole.chunks) == 1
    (surrogate, gradient), (expected_surrogate, expected_gradient) = chunked.surrogate_gradient(), whole.surrogate_gradient()
    assert surrogate == pytest.approx(expected_surrogate, rel=tolerance, abs=tolerance)
    assert relative_error(gradient, expected_gradient) < tolerance
    products = chunked.fisher_vector_product(), whole.fisher_vector_product()
    for vector in vectors(case):
        assert relative_error(*(product(vector) for product in products)) < tolerance
    shake(case.parameters, scale=0.03 if name == "image" else 0.05, seed=30)
    (surrogate, kl), (expected_surrogate, expected_kl) = chunked.evaluate(), whole.evaluate()
    assert expected_kl > 1e-4
    assert surrogate == pytest.approx(expected_surrogate, rel=tolerance, abs=tolerance)
    assert kl == pytest.approx(expected_kl, rel=tolerance, abs=0.1 * tolerance)
    for of_new in (True, False):
        assert chunked.entropy(of_new=of_new) == pytest.approx(whole.entropy(of_new=of_new), rel=tolerance, abs=tolerance)


def test_update_in_chunks_ends_where_the_whole_update_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [rolled_out() for _ in range(2)]
    for model, size in zip(models, (10, 10_000), strict=True):
        monkeypatch.setattr(TRPO, "_chunk_size", lambda self, size=size: size)
        check_update(model, fast=True)
    check_same_steps(*models)


# Thinning


class Spy(PolicyProblem):
    """Remembers every problem, and what it was asked."""

    made: list["Spy"]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.made.append(self)
        self.gradients: list[th.Tensor] = []

    def surrogate_gradient(self) -> tuple[float, th.Tensor]:
        result = super().surrogate_gradient()
        self.gradients.append(result[1])
        return result


THINNED = {
    "vector": Case(n_envs=2),
    "discrete": Case(action_space=DISCRETE),
    "image": Case("CnnPolicy", IMAGE, DISCRETE),
    "dict": Case("MultiInputPolicy", DICT),
}


@pytest.mark.parametrize("chunk_size", [24, 10_000], ids=["chunks", "whole"])
@pytest.mark.parametrize("name", THINNED)
def test_sub_sampling_thins_the_fisher_matrix_only(name: str, chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient, KL and surrogate are those of all 64 states, measured from outside; the products are made of 16."""
    spies: list[Spy] = []
    monkeypatch.setattr(Spy, "made", spies, raising=False)
    monkeypatch.setattr(update, "PolicyProblem", Spy)
    monkeypatch.setattr(TRPO, "_chunk_size", lambda self: chunk_size)
    kept: list[Any] = []
    for factor in (4, 1):
        model = rolled_out(THINNED[name].model, n_critic_updates=0, sub_sampling_factor=factor)
        old, batch = copy.deepcopy(model.policy), model._full_batch()
        check_update(model, fast=True)
        assert model.last_update is not None
        with th.no_grad():
            before, after = (copy.copy(policy.get_distribution(batch.observations)) for policy in (old, model.policy))
            mean_kl = float(kl_old_new(before, after).mean())
            ratio = (after.log_prob(batch.actions) - batch.old_log_prob).exp()
            surrogate = float((ratio * batch.advantages).mean())
        assert len(batch.weights) == 64
        assert model.last_update.step.mean_kl == pytest.approx(mean_kl, rel=1e-3, abs=1e-7)
        assert model.last_update.step.surrogate == pytest.approx(surrogate, rel=1e-3, abs=1e-6)
        spy = spies[-1]
        assert sum(len(chunk.weights) for chunk in spy.chunks) == 64
        assert sum(len(chunk.weights) for chunk in spy.fisher_chunks) == 64 // factor
        assert float(sum(chunk.weights.sum() for chunk in spy.fisher_chunks)) == pytest.approx(1.0, rel=1e-5)
        kept.append((spy.gradients[0], model.last_update.step.expected_kl))
    (thinned_gradient, thinned_kl), (gradient, kl) = kept
    assert relative_error(thinned_gradient, gradient) < 1e-5
    assert thinned_kl != pytest.approx(kl, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_thinned_products_are_those_of_the_thinned_states(dtype: th.dtype) -> None:
    case = build("multi_discrete", dtype, n=12)
    np.random.seed(0)
    thin = case.batch.thinned(3)
    problem = case.problem(
        fisher_batch=thin,
        chunk_size=3,
        fast_fisher=partial(gauss_newton_fisher, case.policy, distribution_of=case.distribution_of),
    )
    expected = case._replace(batch=thin).problem().fisher_vector_product()
    assert len(thin.weights) == 4
    product = problem.fisher_vector_product()
    for vector in vectors(case):
        assert relative_error(product(vector), expected(vector)) < FISHER_TOLERANCE[dtype]


# A whole update


def check_update(model: TRPO, *, fast: bool) -> None:
    """Train on the rollout, with the random choices of one and the same seed."""
    model.fast = fast
    model.start = flatten([parameter.detach().clone() for parameter in model.policy.parameters()])  # type: ignore[attr-defined]
    np.random.seed(0)
    model.train()
    assert model.last_update is not None and model.last_update.step.accepted


def check_same_steps(ours: TRPO, theirs: TRPO) -> None:
    """Compare where two updates went, relative to how far, for actor and critic apart."""
    names = [name for name, _ in ours.policy.named_parameters()]
    assert th.equal(ours.start, theirs.start)  # type: ignore[attr-defined]
    starts = ours.start.split([parameter.numel() for parameter in ours.policy.parameters()])  # type: ignore[attr-defined]
    for of_critic in (False, True):
        steps = [
            th.cat(
                [
                    parameter.detach().flatten() - start
                    for name, parameter, start in zip(names, model.policy.parameters(), starts, strict=True)
                    if ("value_net" in name or name.startswith("vf_")) == of_critic
                ]
            )
            for model in (ours, theirs)
        ]
        assert steps[1].norm() > 1e-3
        assert relative_error(*steps) < 1e-4


UPDATES = {
    "box": partial(rolled_out),
    "box, normalised advantages off": partial(rolled_out, normalize_advantage=False),
    # Damped: the conjugate gradients of this ill-conditioned one would enlarge the rounding a hundredfold
    "relu": partial(rolled_out, policy_kwargs={"activation_fn": nn.ReLU}, cg_damping=1.0),
    "discrete": partial(rolled_out, Case(action_space=DISCRETE, n_envs=2).model),
    "multi binary": partial(rolled_out, Case(action_space=MULTI_BINARY, n_envs=2).model),
    "multi discrete": partial(rolled_out, Case(action_space=ACTIONS["multi_discrete"]).model),
    "image": partial(rolled_out, Case("CnnPolicy", IMAGE, DISCRETE).model, n_critic_updates=1, learning_rate=1e-4),
    "dict": partial(rolled_out, Case("MultiInputPolicy", DICT).model, n_critic_updates=1, learning_rate=1e-4),
    "thinned": partial(rolled_out, sub_sampling_factor=4),
}


@pytest.mark.parametrize("name", UPDATES)
def test_update_ends_where_the_plain_update_ends(name: str) -> None:
    """On the same rollout, with all fast paths and with none."""
    ours, theirs = UPDATES[name](), UPDATES[name]()
    check_update(ours, fast=True)
    check_update(theirs, fast=False)
    assert ours.last_update is not None and theirs.last_update is not None
    assert len(ours.last_update.step.candidates) == len(theirs.last_update.step.candidates)
    assert ours.last_update.step.mean_kl == pytest.approx(theirs.last_update.step.mean_kl, rel=1e-3)
    check_same_steps(ours, theirs)


@pytest.mark.parametrize("rate", [1e37, 1e38])
def test_critic_undoes_what_the_plain_fit_undoes(rate: float) -> None:
    """Steps so long that weights overflow: either fit leaves weights and optimizer as they were, and the next agrees."""
    ours, theirs = rolled_out(), rolled_out()
    for model, fast in ((ours, True), (theirs, False)):
        fit(model, fast=fast)
        before, state = policy_state(model), optimizer_state(model)
        model.lr_schedule = lambda remaining: rate
        result = fit(model, fast=fast)
        assert result is not None and result.undone and result.n_optimizer_steps > 0
        assert not changed(before, policy_state(model))
        assert all(th.equal(tensor, state[name]) for name, tensor in optimizer_state(model).items())
        model.lr_schedule = lambda remaining: 1e-3
        fit(model, fast=fast)
    check_same_critics(ours, theirs)
