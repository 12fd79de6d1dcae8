"""Gauss-Newton Fisher products beside the plain ones and the dense matrix, in one piece, in chunks and of some states."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_trpo import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.fast import gauss_newton
from sb3_trpo.fast.gauss_newton import gauss_newton_fisher
from sb3_trpo.objective import Batch, PolicyProblem
from sb3_trpo.trust_region import reached_by
from tests.cases import PolicyCase, generator, normal, sample_actions, seeded, shake
from tests.fast.covered import ACTIVATIONS, TWO_VECTORS, NormedPolicy, OwnCombined, StepByStep, Trunk
from tests.fast.not_covered import NOT_COVERED, ScaledGradient
from tests.one_rollout import check_update, rolled_out
from tests.oracles import dense_fisher, relative_error
from tests.small_models import BOX, DISCRETE, MULTI_BINARY, VECTOR, changed, make_env, policy_state, small_model

pytestmark = pytest.mark.untraced

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
    policy_class: type[MlpPolicy] = MlpPolicy,
    **kwargs: Any,
) -> PolicyCase:
    """Build a policy away from its initial weights, and transitions of unequal weight that it made."""
    th.set_default_dtype(th.float32)
    cls = (
        MultiInputPolicy
        if isinstance(observation_space, spaces.Dict)
        else CnnPolicy
        if observation_space is PIXELS and "features_extractor_class" not in kwargs
        else policy_class
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
    shake(list(policy.parameters()), scale=0.3 if cls is policy_class else 0.02, seed=1)
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
    plain = case.problem(fisher_path="plain").fisher_vector_product()
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
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_product_is_the_plain_one_for_every_elementwise_function(name: str, dtype: th.dtype) -> None:
    check_products(build("box", dtype, activation_fn=ACTIVATIONS[name]), chunk_size=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
@pytest.mark.parametrize("frozen", ["", "policy_net.0.", "policy_net.2.", "policy_net.2.weight"])
def test_product_is_the_plain_one_with_layer_norms(frozen: str, activation: type[nn.Module], dtype: th.dtype) -> None:
    """Whose weights are frozen or not: the first one is before the first layer, the second one behind it."""
    freeze = tuple(f"mlp_extractor.{frozen}{p}" for p in (("",) if frozen.endswith("weight") else ("weight", "bias")))
    case = build("discrete", dtype, policy_class=NormedPolicy, activation_fn=activation, freeze=freeze if frozen else ())
    check_products(case, chunk_size=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("freeze", [(), ("log_std",), ("action_net.weight", "action_net.bias")])
@pytest.mark.parametrize(
    "kwargs", [{}, {"full_std": False}, {"squash_output": True}, {"net_arch": []}, {"use_expln": True}], ids=str
)
def test_product_is_the_plain_one_for_gsde(kwargs: dict[str, Any], freeze: tuple[str, ...], dtype: th.dtype) -> None:
    """Whose noise depends on the state, and whose deviations are parameters of their own."""
    if freeze != () and kwargs.get("net_arch") == []:
        freeze = ("log_std",)
    case = build("box", dtype, use_sde=True, freeze=freeze, log_std_init=-0.1, **kwargs)
    # Both halves of expln, but for one that has few
    assert kwargs.get("full_std") is False or ((case.policy.log_std > 0.0).any() and (case.policy.log_std < 0.0).any())
    check_products(case, chunk_size=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [True, False])
def test_product_is_the_plain_one_for_a_dict_of_vectors(shared: bool, dtype: th.dtype) -> None:
    """And of states, which become vectors."""
    space = spaces.Dict({**TWO_VECTORS.spaces, "state": spaces.Discrete(3)})
    check_products(build("box", dtype, observation_space=space, share_features_extractor=shared), chunk_size=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("shared", [True, False])
def test_product_is_the_plain_one_for_a_dict_with_a_picture(shared: bool, action: str, dtype: th.dtype) -> None:
    kwargs: dict[str, Any] = {"observation_space": PICTURE_AND_VECTOR, "share_features_extractor": shared}
    check_products(build(action, dtype, n=5, **kwargs), chunk_size=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("freeze", [".", ".extractors.picture.cnn.0", ".extractors.picture.linear"])
def test_product_is_the_plain_one_with_a_frozen_picture(freeze: str, dtype: th.dtype) -> None:
    """Of the part that learns before the joint nothing moves, or some of it, or all but its last layer."""
    everything = dict(build(observation_space=PICTURE_AND_VECTOR).policy.named_parameters())
    names = tuple(name for name in everything if name.startswith(f"pi_features_extractor{freeze}"))
    case = build("box", dtype, observation_space=PICTURE_AND_VECTOR, n=5, freeze=names)
    check_products(case, chunk_size=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("extractor", [Trunk, StepByStep, OwnCombined])
def test_product_is_the_plain_one_for_extractors_of_the_users_own(extractor: Any, shared: bool, dtype: th.dtype) -> None:
    """That apply layers one after the other, and nothing else."""
    space = PICTURE_AND_VECTOR if extractor is OwnCombined else VECTOR
    kwargs: dict[str, Any] = {"features_extractor_class": extractor, "share_features_extractor": shared}
    check_products(build("box", dtype, observation_space=space, n=7, **kwargs), chunk_size=3)


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


def test_gradient_of_the_users_own_is_that_of_the_plain_way() -> None:
    """A function with a derivative of its own, before actor and critic: the update is to the bit that of the plain way."""
    kwargs = {"features_extractor_class": ScaledGradient, "share_features_extractor": False}
    ours, theirs = (rolled_out(policy_kwargs=kwargs) for _ in range(2))
    for model, fast in ((ours, True), (theirs, False)):
        check_update(model, fast=fast)
    assert not changed(policy_state(ours), policy_state(theirs))


def test_network_in_another_memory_layout_is_covered() -> None:
    """Channels last, as for speed: maps and what is made of them are not in the order of their shape."""
    image = spaces.Box(0, 255, (3, 84, 84), np.uint8)
    model = small_model(policy="CnnPolicy", env=make_env(image, DISCRETE), n_steps=8, batch_size=8)
    model.policy.to(memory_format=th.channels_last)  # type: ignore[call-overload]
    model.learn(8)
    assert model.paths_in_use["Fisher products"] == "Gauss-Newton"
    batch = model._full_batch()
    parameters, _ = model._split_parameters(batch)
    fast = gauss_newton_fisher(model.policy, [batch], parameters, model._distribution)
    vector = th.linspace(-1, 1, sum(p.numel() for p in parameters))
    assert fast is not None
    plain = PolicyProblem(model._distribution, batch, parameters, fisher_path="plain").fisher_vector_product()(vector)
    assert (fast(vector) - plain).norm() <= 1e-3 * plain.norm()


@pytest.mark.parametrize("name", ["extractor", "hook on a layer", "Softsign", "one deviation for all actions"])
def test_what_is_not_covered_is_none(name: str) -> None:
    model = NOT_COVERED[name]()
    model.learn(64)
    batch = model._full_batch()
    parameters, _ = model._split_parameters(batch)
    assert gauss_newton_fisher(model.policy, [batch], parameters, model._distribution) is None


@pytest.mark.parametrize("freeze", ["all but log_std", "log_std alone"])
def test_deviations_alone_are_left_to_the_plain_products(freeze: str) -> None:
    """Without a layer to learn there is no chain, and with a parameter of elsewhere it is not the whole."""
    case = build("box")
    stranger = nn.Parameter(th.ones(3))
    parameters = [case.policy.log_std] if freeze == "log_std alone" else [*case.parameters, stranger]
    assert gauss_newton_fisher(case.policy, [case.batch], parameters, case.distribution_of) is None


# A whole problem, in chunks and thinned


CHUNK_CASES: dict[str, dict[str, Any]] = {
    **{action: {"action": action} for action in ACTIONS},
    "gSDE": {"use_sde": True},
    "image": {"observation_space": PIXELS, "action": "discrete"},
    "dict": {"observation_space": PICTURE_AND_VECTOR, "action": "multi_discrete"},
    "dict, box": {"observation_space": PICTURE_AND_VECTOR},
}
# The fast products cover the others no more than the plain ones do: there is one way
QUICK = (*ACTIONS, "gSDE", "image")
CHUNKED = [(name, fast) for name in CHUNK_CASES for fast in (True, False) if not fast or name in QUICK]


@pytest.mark.parametrize("name, fast", CHUNKED, ids=[f"{name}-{'fast' if fast else 'plain'}" for name, fast in CHUNKED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_problem_in_chunks_is_the_whole_problem(name: str, dtype: th.dtype, fast: bool) -> None:
    """Surrogate, gradient, Fisher products, KL and entropy, for chunks that do not divide the batch."""
    case = build(dtype=dtype, n=7, **CHUNK_CASES[name])
    tolerance = {th.float32: 1e-5, th.float64: 1e-10}[dtype]
    fast_fisher = partial(gauss_newton_fisher, case.policy, distribution_of=case.distribution_of) if fast else None
    plain = partial(case.problem, fisher_path="plain")
    whole, chunked = plain(), plain(chunk_size=3, fast_fisher=fast_fisher)
    assert fast_fisher is None or fast_fisher(chunked.fisher_chunks, case.parameters) is not None
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
    expected = case._replace(batch=thin).problem(fisher_path="plain").fisher_vector_product()
    assert len(thin.weights) == 4
    product = problem.fisher_vector_product()
    for vector in vectors(case):
        assert relative_error(product(vector), expected(vector)) < FISHER_TOLERANCE[dtype]
