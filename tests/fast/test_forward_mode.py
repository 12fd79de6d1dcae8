"""Networks that cannot be differentiated twice train: each way to a Fisher product beside the dense matrix, and the choice."""

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.nn import functional as F

from sb3_trpo import TRPO
from sb3_trpo.fast.forward_mode import forward_mode_fisher
from sb3_trpo.objective import N_TRIED, PolicyProblem
from sb3_trpo.trust_region import flatten
from tests.cases import PolicyCase, WithoutSecondDerivative, make_case, normal
from tests.oracles import dense_fisher, gradient_row, relative_error
from tests.small_models import BOX, DISCRETE, VECTOR, changed, make_env, policy_state, small_model
from tests.trust_region.test_fisher import matrix_of, n_params

# What torch says of itself when forward mode is asked for the first time
pytestmark = [pytest.mark.untraced, pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")]

DIFFERENCES, FORWARD, TWICE, WRITTEN_OUT = "finite differences", "Gauss-Newton by autograd", "plain", "Gauss-Newton"
# Central differences: of a float64 network to eight digits, of a float32 one to two or three
OF_DOUBLE, OF_SINGLE = 1e-7, 1e-2


def problem_of(case: PolicyCase, path: str = "", **kwargs: Any) -> PolicyProblem:
    def forward(chunks: Any, parameters: Any, distribution_of: Any) -> Any:
        return forward_mode_fisher(case.policy, chunks, parameters, distribution_of)

    return case.problem(forward_fisher=forward, fisher_path=path, **kwargs)


def bits(parameters: list[nn.Parameter]) -> th.Tensor:
    return flatten([parameter.detach().view(th.uint8) for parameter in parameters])


# Each way beside the dense matrix


def test_product_of_a_fallback_is_that_of_the_dense_matrix(case: PolicyCase) -> None:
    """For all five distributions, in one chunk and in several, with weights that are not all the same."""
    before = bits(case.parameters)
    if case.name == "gsde":
        # SB3 cuts the graph from the features to the noise: what moves there unseen is in the differences and in the tangents
        rows = th.cat([th.full((p.numel(),), p is case.policy.log_std) for p in case.parameters])
        expected = plain_matrix(case)
    else:
        assert isinstance(case.batch.observations, th.Tensor)
        rows = th.full((n_params(case),), True)
        expected = dense_fisher(case.policy, case.batch.observations, case.batch.weights, case.parameters)
    for path, tolerance, chunk_size in ((DIFFERENCES, OF_DOUBLE, None), (FORWARD, 1e-10, None), (FORWARD, 1e-10, 3)):
        problem = problem_of(case, path, chunk_size=chunk_size)
        computed = matrix_of(problem.fisher_vector_product(), n_params(case))
        assert problem.fisher_path == path
        assert th.equal(bits(case.parameters), before) and all(p.grad is None for p in case.policy.parameters())
        assert relative_error(computed[rows][:, rows], expected[rows][:, rows]) < tolerance, (path, chunk_size)


def plain_matrix(case: PolicyCase) -> th.Tensor:
    return matrix_of(problem_of(case, TWICE).fisher_vector_product(), n_params(case))


@pytest.mark.parametrize("path", [DIFFERENCES, FORWARD])
def test_product_of_a_fallback_is_of_the_thinned_states_without_padding(path: str) -> None:
    """The states that make the Fisher matrix are the same on every path; those of weight zero are not among them."""
    case = make_case("categorical", n=9)
    weights = case.batch.weights.clone()
    weights[5:] = 0.0
    padded = case._replace(batch=case.batch._replace(weights=weights))
    thin = case.batch.select(slice(0, 5))
    for batch, states in (
        (padded.batch, thin),
        (thin._replace(weights=thin.weights * 2), thin._replace(weights=thin.weights * 2)),
    ):
        problem = problem_of(case, path, fisher_batch=batch, chunk_size=4)
        expected = matrix_of(problem_of(case._replace(batch=states), TWICE).fisher_vector_product(), n_params(case))
        assert relative_error(matrix_of(problem.fisher_vector_product(), n_params(case)), expected) < OF_DOUBLE


@pytest.mark.parametrize("name", ["diag_gaussian", "categorical", "bernoulli"])
def test_central_differences_of_a_single_precision_network_have_two_digits(name: str) -> None:
    """Their honest tolerance, beside the dense matrix in float64; a short vector and a long one change nothing."""
    exact, case = make_case(name), make_case(name)
    case.policy.float()
    case.policy.features_extractor = case.policy.pi_features_extractor = FlattenExtractor(case.policy.observation_space)
    batch = case.batch._replace(**{f: getattr(case.batch, f).float() for f in ("old_log_prob", "advantages", "weights")})
    product = case._replace(batch=batch).problem(fisher_path=DIFFERENCES).fisher_vector_product()
    assert isinstance(exact.batch.observations, th.Tensor)
    dense = dense_fisher(exact.policy, exact.batch.observations, exact.batch.weights, exact.parameters)
    for seed, length in ((1, 1.0), (2, 1e-6), (3, 1e6)):
        vector = length * normal(len(dense), seed=seed)
        assert relative_error(product(vector.float()).double(), dense @ vector) < OF_SINGLE
    assert all(parameter.dtype == th.float32 for parameter in case.parameters)


# Plain numerics: a KL that is no policy's


# Networks


class WithAWrongSecondDerivative(WithoutSecondDerivative):
    """And one that says nothing."""

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return gradient.detach() * ctx.saved_tensors[0].detach().cos()


class RefusingASecondDerivative(WithoutSecondDerivative):
    """And one that refuses before it is asked."""

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled():
            raise RuntimeError("there is no second derivative")
        return gradient * ctx.saved_tensors[0].cos()


class Attention(nn.Module):
    """Lets the entries of a vector attend to each other."""

    def __init__(self, kind: str = "sdpa"):
        super().__init__()
        self.kind = kind
        self.embed = nn.Linear(1, 8)
        if kind == "encoder":
            self.net: nn.Module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        elif kind == "multihead":
            self.net = nn.MultiheadAttention(8, 2, batch_first=True)
        else:
            self.net = nn.Linear(8, 24)

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = self.embed(x[..., None]) + th.linspace(-1, 1, x.shape[-1])[:, None]
        if self.kind == "encoder":
            x = self.net(x)
        elif self.kind == "multihead":
            x, _ = self.net(x, x, x, need_weights=False)
        else:
            q, k, v = (part[:, None] for part in self.net(x).chunk(3, dim=-1))
            x = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x.flatten(1)


class Recurrent(nn.Module):
    """Reads a vector entry by entry."""

    def __init__(self, kind: type[nn.Module]):
        super().__init__()
        self.net = kind(1, 8, batch_first=True)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.net(x[..., None])[0].flatten(1)


class Applied(nn.Module):
    """A linear layer, and a function of it."""

    def __init__(self, function: Callable[[th.Tensor], th.Tensor]):
        super().__init__()
        self.linear = nn.Linear(3, 8)
        self.function = function

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.function(self.linear(x))


def after_the_first(function: Callable[[th.Tensor], th.Tensor]) -> Callable[[th.Tensor], th.Tensor]:
    """Apply a function to all states but those on which the ways are tried; on these it is a sine."""
    return lambda x: th.cat([x[:N_TRIED].sin(), function(x[N_TRIED:])]) if len(x) > N_TRIED else x.sin()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "sdpa": (Attention, {DIFFERENCES}),
    "encoder layer": (lambda: Attention("encoder"), {DIFFERENCES}),
    "multihead": (lambda: Attention("multihead"), {DIFFERENCES}),
    "lstm": (lambda: Recurrent(nn.LSTM), {TWICE, DIFFERENCES}),
    "gru": (lambda: Recurrent(nn.GRU), {TWICE, FORWARD, DIFFERENCES}),
    "hardsigmoid": (lambda: Applied(F.hardsigmoid), {FORWARD}),
    "hardswish": (lambda: Applied(F.hardswish), {TWICE}),
    "once": (lambda: Applied(WithoutSecondDerivative.apply), {DIFFERENCES}),
    "silently wrong": (lambda: Applied(WithAWrongSecondDerivative.apply), {DIFFERENCES}),
    "norm of zeros": (lambda: Applied(lambda x: x + (0.0 * x).norm(dim=1, keepdim=True)), {FORWARD}),
    "norm of zeros, not tried": (
        lambda: Applied(after_the_first(lambda x: x.sin() + (0.0 * x).norm(dim=1, keepdim=True))),
        {FORWARD},
    ),
    "refusing": (lambda: Applied(RefusingASecondDerivative.apply), {DIFFERENCES}),
    "refusing, not tried": (lambda: Applied(after_the_first(RefusingASecondDerivative.apply)), {DIFFERENCES}),
    # torch differentiates them twice from 2.14 on
    "distances": (lambda: Applied(lambda x: th.cdist(x, th.eye(8))), {TWICE, DIFFERENCES}),
    "detached on purpose": (lambda: Applied(lambda x: x.tanh() + x.sin().detach()), {TWICE}),
    "straight through": (lambda: Applied(lambda x: x + ((4 * x).round() / 4 - x).detach()), {TWICE}),
    "elu": (lambda: Applied(F.elu), {TWICE}),
    "traced": (lambda: th.jit.trace(Applied(th.tanh), th.zeros(2, 3)), {TWICE, DIFFERENCES}),
    "scripted": (lambda: th.jit.script(nn.Sequential(nn.Linear(3, 8), nn.Tanh())), {TWICE, DIFFERENCES}),
}


def with_network(network: nn.Module, action_space: spaces.Space = BOX, **arguments: Any) -> TRPO:
    """Return a model whose actor looks through a network; the critic keeps its own."""
    model = small_model(env=make_env(VECTOR, action_space), policy_kwargs={"net_arch": {"pi": [8], "vf": [8]}}, **arguments)
    width = len(network(th.zeros(2, 3))[0])
    layers = model.policy.mlp_extractor.policy_net
    model.policy.mlp_extractor.policy_net = nn.Sequential(network, nn.Linear(width, 8), nn.Tanh())
    assert len(list(layers)) == 2
    model.policy.optimizer = model.policy.optimizer_class(model.policy.parameters(), lr=1e-3)  # type: ignore[call-arg]
    return model


def learn_counting(model: TRPO, n_updates: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Learn; return how often a way to the Fisher product was looked for."""
    n_asked = 0
    original: Any = PolicyProblem._path_that_works

    def counted(problem: PolicyProblem) -> str:
        nonlocal n_asked
        n_asked += 1
        return original(problem)

    monkeypatch.setattr(PolicyProblem, "_path_that_works", counted)
    model.learn(64 * n_updates)
    return n_asked


# Each with actions of one kind, and a few with the other
@pytest.mark.parametrize(
    ("name", "action_space", "fast"),
    [
        *(pytest.param(name, BOX, True, id=f"{name}-box") for name in NETWORKS),
        *(
            pytest.param(n, DISCRETE, False, id=f"{n}-discrete")
            for n in ("sdpa", "lstm", "hardsigmoid", "once", "elu", "traced")
        ),
    ],
)
def test_network_trains_whatever_it_can_be_differentiated_by(
    name: str, action_space: spaces.Space, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the limit and as the quadratic model says; which way is in use is said, and looked for once."""
    make, paths = NETWORKS[name]
    with th.random.fork_rng():
        th.manual_seed(0)
        model = with_network(make(), action_space, fast=fast)
    before = policy_state(model)
    assert learn_counting(model, 2, monkeypatch) == 1
    assert model.paths_in_use["Fisher products"] in paths
    assert model.last_update is not None
    step = model.last_update.step
    assert step.status == "accepted" and 0.0 < step.mean_kl <= model.last_update.max_kl
    if name not in ("straight through", "detached on purpose"):
        assert 0.3 < step.mean_kl / step.expected_kl < 3.0
    assert {name for name, p in model.policy.named_parameters() if "value" not in name} <= changed(before, policy_state(model))


@pytest.mark.parametrize("name", ["sdpa", "encoder layer", "lstm", "gru", "hardsigmoid", "once", "silently wrong", "elu"])
def test_product_of_a_network_is_that_of_its_jacobian(name: str) -> None:
    """Whichever way was found, in float32: Jᵀ M J of Gaussian means, J row by row by first derivatives."""
    with th.random.fork_rng():
        th.manual_seed(1)
        model = with_network(NETWORKS[name][0](), n_critic_updates=0)
        model.learn(64)
    batch = model._full_batch().select(slice(0, 12))
    batch = batch._replace(weights=batch.weights / batch.weights.sum())
    parameters, _ = model._split_parameters(batch)
    product = model._policy_problem(batch, parameters).fisher_vector_product()
    vectors = [normal(sum(p.numel() for p in parameters), seed=seed).float() for seed in (1, 2)]
    inner: Any = model._distribution(batch).distribution
    std = model.policy.log_std.exp().detach()
    means = [gradient_row(mean, parameters) for mean in inner.mean.flatten()]
    deviations = [gradient_row(std, parameters) for std in inner.stddev.flatten()]
    precision = (std**-2).repeat(len(batch.weights)) * batch.weights.repeat_interleave(len(std))
    for vector in vectors:
        expected = sum(
            w * ((m @ vector) * m + 2 * (s @ vector) * s) for w, m, s in zip(precision, means, deviations, strict=True)
        )
        assert isinstance(expected, th.Tensor)
        assert relative_error(product(vector), expected) < OF_SINGLE


def test_way_is_looked_for_again_when_the_policy_has_other_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that a callback replaced may be differentiated in another way."""
    model = with_network(Applied(F.elu))
    model.learn(64)
    assert model.paths_in_use["Fisher products"] == TWICE
    with th.random.fork_rng():
        network = Attention()
        model.policy.mlp_extractor.policy_net[0] = network
        model.policy.mlp_extractor.policy_net[1] = nn.Linear(24, 8)
    model.learn(64)
    assert model.paths_in_use["Fisher products"] == DIFFERENCES
    assert model.last_update is not None and model.last_update.step.accepted


def test_shared_modules_keep_their_parameters_after_forward_mode() -> None:
    """SB3 holds an extractor under two names."""
    model = with_network(Applied(F.hardsigmoid))
    before = list(model.policy.parameters())
    model.learn(128)
    assert model.paths_in_use["Fisher products"] == FORWARD
    assert all(p is q and isinstance(p, nn.Parameter) for p, q in zip(before, model.policy.parameters(), strict=True))


def test_differences_of_a_random_network_are_of_one_noise() -> None:
    """Else the noise, over a small distance, would be the product."""

    class Noisy(Attention):
        def forward(self, x: th.Tensor) -> th.Tensor:
            return F.dropout(super().forward(x), 0.3)

    with th.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        th.manual_seed(0)
        model = with_network(Noisy())
        model.learn(64)
        assert model.paths_in_use["Fisher products"] == DIFFERENCES
        batch = model._full_batch()
        parameters, _ = model._split_parameters(batch)
        product = model._policy_problem(batch, parameters).fisher_vector_product()
        state = th.get_rng_state()
        u, v = (normal(sum(p.numel() for p in parameters), seed=seed).float() for seed in (1, 2))
        of_u, of_v = product(u), product(v)
        assert th.equal(th.get_rng_state(), state)
        assert float(v @ of_u) == pytest.approx(float(u @ of_v), rel=0.02, abs=1e-3)
        assert relative_error(product(u + v), of_u + of_v) < 0.02


def compiled_model(what: str, backend: str) -> TRPO:
    th._dynamo.reset()
    model = small_model(policy_kwargs={"net_arch": [8]})
    policy = model.policy
    if what == "policy":
        model.policy = th.compile(policy, backend=backend)  # type: ignore[assignment]
    elif what == "policy.compile":
        policy.compile(backend=backend)
    elif what == "get_distribution":
        policy.get_distribution = th.compile(policy.get_distribution, backend=backend)  # type: ignore[method-assign]
    elif what == "mlp_extractor":
        policy.mlp_extractor = th.compile(policy.mlp_extractor, backend=backend)  # type: ignore[assignment]
    else:
        policy.mlp_extractor.policy_net = th.compile(policy.mlp_extractor.policy_net, backend=backend)  # type: ignore[assignment]
    return model


def check_compiled(what: str, backend: str) -> None:
    model = compiled_model(what, backend)
    before = policy_state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(128)
    assert model.last_update is not None and model.last_update.step.accepted
    assert model.last_update.step.mean_kl <= model.last_update.max_kl
    assert changed(before, policy_state(model))


@pytest.mark.parametrize(
    "what",
    [
        "policy",
        *(pytest.param(part, marks=pytest.mark.slow) for part in ("policy.compile", "mlp_extractor", "policy_net")),
        "get_distribution",
    ],
)
def test_compiled_policy_trains(what: str) -> None:
    """Its backward pass cannot be differentiated again."""
    check_compiled(what, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("what", ["policy_net", "get_distribution"])
def test_policy_compiled_by_inductor_trains(what: str) -> None:
    check_compiled(what, "inductor")
