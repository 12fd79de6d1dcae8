"""The Fisher matrix, never formed, is the one that its definition gives; and the flat view of the parameters."""

from collections.abc import Callable

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_trpo.objective import TWICE, Batch, kl_old_new, weighted_mean
from sb3_trpo.trust_region import fisher_vector_product, flat_gradient, flatten, reached_by, unflatten
from tests.cases import PolicyCase, make_case, normal
from tests.oracles import dense_fisher, gradient_row, relative_error


def matrix_of(product: Callable[[th.Tensor], th.Tensor], n: int) -> th.Tensor:
    return th.stack([product(unit) for unit in th.eye(n, dtype=th.float64)], dim=1)


def n_params(case: PolicyCase) -> int:
    return sum(parameter.numel() for parameter in case.parameters)


def oracle(case: PolicyCase, batch: Batch) -> th.Tensor:
    assert isinstance(batch.observations, th.Tensor)
    return dense_fisher(case.policy, batch.observations, batch.weights, case.parameters)


def kl_term(case: PolicyCase, batch: Batch) -> Callable[[], th.Tensor]:
    old = case.problem().frozen_distribution(batch)
    return lambda: weighted_mean(kl_old_new(old, case.distribution_of(batch)), batch.weights)


@pytest.mark.untraced
def test_fisher_product_equals_the_dense_matrix(case: PolicyCase) -> None:
    """Every column of the matrix is that of the expected outer product of the score, for all five distributions."""
    computed = matrix_of(case.problem().fisher_vector_product(), n_params(case))
    expected = oracle(case, case.batch)
    assert relative_error(computed, expected) < 1e-6
    # Nor is a small block wrong behind a large one
    assert float((computed - expected).abs().max()) < 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["diag_gaussian", "gsde"])
def test_fisher_matrix_knows_the_standard_deviation(name: str) -> None:
    """The block of the standard deviation is not zero: a Gaussian's Fisher matrix has two parts."""
    case = make_case(name)
    expected = oracle(case, case.batch)
    rows = th.cat([th.full((p.numel(),), p is case.policy.log_std) for p in case.parameters])
    assert float(expected[rows][:, rows].abs().max()) > 0.1
    computed = matrix_of(case.problem().fisher_vector_product(), n_params(case))
    assert relative_error(computed[rows][:, rows], expected[rows][:, rows]) < 1e-6


def test_fisher_matrix_is_symmetric_and_positive_semidefinite(case: PolicyCase) -> None:
    """What conjugate gradients ask of a matrix holds."""
    computed = matrix_of(case.problem().fisher_vector_product(), n_params(case))
    assert relative_error(computed.T, computed) < 1e-10
    eigenvalues = th.linalg.eigvalsh((computed + computed.T) / 2)
    assert float(eigenvalues[0]) > -1e-10 * float(eigenvalues[-1]) and float(eigenvalues[-1]) > 0


def test_fisher_product_is_the_same_twice(case: PolicyCase) -> None:
    """A product is linear, and leaves nothing behind that would change the next one."""
    product = case.problem().fisher_vector_product()
    u, v = normal(n_params(case), seed=1), normal(n_params(case), seed=2)
    first = product(u)
    assert relative_error(product(2 * u - 3 * v), 2 * first - 3 * product(v)) < 1e-10
    assert th.equal(product(u), first)
    assert all(parameter.grad is None for parameter in case.policy.parameters())


@pytest.mark.parametrize("size", [1, 3])
def test_fisher_product_in_chunks_equals_that_of_the_whole(case: PolicyCase, size: int) -> None:
    """Several chunks of the batch sum to the same product, also when it is asked for again."""
    n = len(case.batch.weights)
    terms = [kl_term(case, case.batch.select(slice(start, start + size))) for start in range(0, n, size)]
    assert len(terms) > 1
    whole = fisher_vector_product([kl_term(case, case.batch)], case.parameters)
    chunked = fisher_vector_product(terms, case.parameters)
    for seed in (1, 2):
        vector = normal(n_params(case), seed=seed)
        assert relative_error(chunked(vector), whole(vector)) < 1e-12


def test_fisher_product_of_some_states_equals_the_dense_matrix_of_them(case: PolicyCase) -> None:
    """With a batch of its own the Fisher matrix is that of those states, on the scale of a mean over all of them."""
    thin = case.batch.thinned(2)
    computed = matrix_of(case.problem(fisher_batch=thin).fisher_vector_product(), n_params(case))
    assert len(thin.weights) == 4
    assert relative_error(computed, oracle(case, thin)) < 1e-6


def test_gradient_that_is_kept_from_the_features_is_so_for_whatever_states() -> None:
    """The noise of gSDE depends on features that it does not train: a measurement may by chance not notice that."""
    case = make_case("gsde")
    paths = set()
    for seed in range(60):
        problem = case.problem(fisher_batch=case.batch.thinned(2, np.random.default_rng(seed).permutation))
        problem.fisher_vector_product()
        paths.add(problem.fisher_path)
    assert paths == {TWICE}


def test_fisher_product_counts_states_by_their_weight() -> None:
    """A state with all of the weight makes the matrix alone."""
    case = make_case("categorical")
    weights = th.zeros_like(case.batch.weights)
    weights[2] = 1.0
    alone = case._replace(batch=case.batch._replace(weights=weights))
    computed = matrix_of(alone.problem().fisher_vector_product(), n_params(case))
    assert relative_error(computed, oracle(case, case.batch.select(slice(2, 3))._replace(weights=th.ones(1).double()))) < 1e-6


def test_fisher_product_with_an_unused_parameter_is_zero_there() -> None:
    """A parameter that the policy does not depend on gets a zero, in one chunk and in several."""
    case = make_case("diag_gaussian")
    unused = nn.Parameter(th.ones(3, dtype=th.float64))
    parameters = [*case.parameters, unused]
    for terms in ([kl_term(case, case.batch)], [kl_term(case, case.batch.select(slice(i, i + 4))) for i in (0, 4)]):
        product = fisher_vector_product(terms, parameters)(normal(n_params(case) + 3, seed=1))
        assert th.equal(product[-3:], th.zeros(3, dtype=th.float64))
        assert bool((product[:-3] != 0).any())


class Head(nn.Module):
    """An actor whose parameters have the names of a critic's, and the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 4)
        self.value_like_head = nn.Linear(4, 2)
        self.policy_critic = nn.Linear(4, 1)
        self.value_unused = nn.Parameter(th.zeros(2))

    def actor(self, x: th.Tensor) -> th.Tensor:
        return self.value_like_head(self.shared(x).tanh())

    def critic(self, x: th.Tensor) -> th.Tensor:
        return self.policy_critic(self.shared(x).tanh())


def same(found: list[nn.Parameter], expected: list[nn.Parameter]) -> bool:
    return [id(parameter) for parameter in found] == [id(parameter) for parameter in expected]


def test_reached_by_asks_the_graph() -> None:
    """What a parameter is called does not matter, only what the output depends on."""
    head, x = Head(), th.ones(5, 3)
    shared, value_like, critic = (list(m.parameters()) for m in (head.shared, head.value_like_head, head.policy_critic))
    assert same(reached_by(head.actor(x), list(head.parameters())), [*shared, *value_like])
    assert same(reached_by(head.critic(x), list(head.parameters())), [*shared, *critic])


def test_reached_by_passes_over_frozen_parameters() -> None:
    """A parameter that is not trainable is not reached, and one behind it still is."""
    head, x = Head(), th.ones(5, 3)
    head.value_like_head.requires_grad_(False)
    assert same(reached_by(head.actor(x), list(head.parameters())), list(head.shared.parameters()))
    head.requires_grad_(False)
    assert reached_by(head.actor(x), list(head.parameters())) == []


def test_reached_by_of_an_output_without_a_graph_is_empty() -> None:
    """A constant depends on nothing, and no candidates are none."""
    head, x = Head(), th.ones(5, 3)
    assert reached_by(head.actor(x).detach(), list(head.parameters())) == []
    assert reached_by(head.actor(x), []) == []


def test_reached_by_counts_a_gradient_of_zero() -> None:
    """A parameter whose gradient happens to be zero is still one that the output depends on."""
    parameter = nn.Parameter(th.zeros(3))
    assert same(reached_by(th.softmax(parameter, dim=0), [parameter]), [parameter])
    assert same(reached_by((parameter * 0.0).sum(), [parameter]), [parameter])


def test_reached_by_keeps_the_order_and_the_graph() -> None:
    """The parameters come back in the order given, and the output can still be differentiated."""
    head, x = Head(), th.ones(5, 3)
    output = head.actor(x)
    backwards = list(head.parameters())[::-1]
    found = reached_by(output, backwards)
    assert same(found, [parameter for parameter in backwards if id(parameter) in set(map(id, found))])
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in found)


def test_reached_by_finds_the_actor_of_every_policy(case: PolicyCase) -> None:
    """The parameters of the action distribution are found without the critic's, standard deviations included."""
    critic = [*case.policy.mlp_extractor.value_net.parameters(), *case.policy.value_net.parameters()]
    expected = [p for p in case.policy.parameters() if id(p) not in set(map(id, critic))]
    assert same(case.parameters, expected)


def test_flat_gradient_is_that_of_one_parameter_after_the_other(case: PolicyCase) -> None:
    """The joint gradient is the parameters' own gradients in their order, with zeros for what is not reached."""
    unused = nn.Parameter(th.ones(2, 2, dtype=th.float64))
    parameters = [unused, *case.parameters]
    scalar = case.distribution_of(case.batch).log_prob(case.batch.actions).sum()
    expected = gradient_row(scalar, parameters)
    assert th.equal(expected[:4], th.zeros(4, dtype=th.float64))
    assert th.allclose(flat_gradient(scalar, parameters), expected, rtol=1e-12, atol=1e-14)


def test_flat_gradient_with_respect_to_nothing_is_empty() -> None:
    """No parameters make a vector of length zero in the scalar's type."""
    gradient = flat_gradient(th.ones((), dtype=th.float64, requires_grad=True) * 2, [])
    assert gradient.shape == (0,) and gradient.dtype == th.float64


def test_unflatten_undoes_flatten() -> None:
    """Tensors of any shape come back bit for bit from the vector that they were joined to, and the vector from them."""
    tensors = [normal(2, 3, seed=0), normal(4, seed=1), th.tensor(1.5, dtype=th.float64), normal(3, 2, seed=2).T]
    vector = flatten(tensors)
    assert vector.shape == (17,)
    parts = unflatten(vector, tensors)
    assert all(th.equal(part, tensor) for part, tensor in zip(parts, tensors, strict=True))
    assert th.equal(flatten(parts), vector)


def test_unflatten_refuses_another_length() -> None:
    """A vector that is too short or too long for the shapes is an error, not a silent cut."""
    tensors = [th.zeros(2, 3), th.zeros(4)]
    for n in (9, 11):
        with pytest.raises(RuntimeError, match="split"):
            unflatten(th.zeros(n), tensors)
