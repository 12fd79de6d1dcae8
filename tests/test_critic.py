"""The value fit: the optimizer's own steps on the critic's own parameters, and the losses it saw."""

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_trpo.critic import CriticFit, Pass, PooledMinibatches, ValueBatch, fit_critic
from sb3_trpo.objective import kl_old_new
from sb3_trpo.trust_region import reached_by
from tests.cases import DoubleExtractor, PolicyCase, make_case, normal
from tests.oracles import adam_on_squared_error, relative_error

SIZES = [4, 4, 2]


def epochs(n_epochs: int) -> list[list[ValueBatch]]:
    """Minibatches of unequal size, other ones for each pass."""
    return [
        [ValueBatch(normal(size, 3, seed=10 * e + i), normal(size, seed=100 + 10 * e + i)) for i, size in enumerate(SIZES)]
        for e in range(n_epochs)
    ]


def test_rows_of_a_batch_keep_what_belongs_together() -> None:
    observations, returns, rows = normal(5, 3, seed=0), normal(5, seed=1), th.tensor([4, 0, 2])
    for batch in (ValueBatch(observations, returns), ValueBatch({"a": observations, "b": 2.0 * observations}, returns)):
        selected = batch.select(rows)
        assert th.equal(selected.returns, returns[[4, 0, 2]])
        parts = selected.observations if isinstance(selected.observations, dict) else {"a": selected.observations}
        assert parts.keys() == (batch.observations.keys() if isinstance(batch.observations, dict) else {"a"})
        assert all(th.equal(part, observations[[4, 0, 2]] * {"a": 1.0, "b": 2.0}[key]) for key, part in parts.items())


@pytest.mark.parametrize("keys", [None, ("a", "b")])
def test_pass_gives_each_row_once_in_its_order(keys: tuple[str, ...] | None) -> None:
    """In minibatches, of which the last is smaller; it may be gone through again."""
    rows = th.arange(5.0)
    order = th.tensor([3, 1, 4, 0, 2])
    one_pass = Pass(ValueBatch({key: rows for key in keys} if keys else rows, 10.0 * rows), order, batch_size=2)
    for _ in range(2):
        minibatches = list(one_pass)
        assert [batch.returns.tolist() for batch in minibatches] == [[30.0, 10.0], [40.0, 0.0], [20.0]]
        for observations, returns in minibatches:
            for part in observations.values() if isinstance(observations, dict) else [observations]:
                assert th.equal(10.0 * part, returns)
            assert (tuple(observations) if isinstance(observations, dict) else None) == keys


def test_batch_moves_to_a_device_with_all_that_it_has() -> None:
    """A device without numbers stands for one that this machine may lack."""
    for observations in (th.ones(5, 3), {"a": th.ones(5, 3), "b": th.ones(5)}):
        moved = ValueBatch(observations, th.ones(5)).to("meta")
        parts = moved.observations.values() if isinstance(moved.observations, dict) else [moved.observations]
        assert [part.shape[0] for part in (*parts, moved.returns)] == [5] * (len(parts) + 1)
        assert all(part.is_meta for part in (*parts, moved.returns))


def linear(weights: th.Tensor) -> th.nn.Parameter:
    return th.nn.Parameter(weights.clone()[:, None])


def linear_critic(parameter: th.nn.Parameter) -> Callable[[ValueBatch], th.Tensor]:
    return lambda batch: (plain(batch.observations) @ parameter).flatten()


def critic_of(case: PolicyCase) -> Callable[[ValueBatch], th.Tensor]:
    return lambda batch: case.policy.predict_values(batch.observations).flatten()


def plain(observations: PyTorchObs) -> th.Tensor:
    assert isinstance(observations, th.Tensor)
    return observations


def test_fit_critic_takes_the_optimizer_s_steps() -> None:
    """On a linear critic it ends where Adam written out by hand on the mean squared error ends."""
    start, data = normal(3, seed=0), epochs(4)
    parameter = linear(start)
    optimizer = th.optim.Adam([parameter], lr=0.05)
    fit = fit_critic(linear_critic(parameter), optimizer, [parameter], data)
    flat = [(plain(batch.observations), batch.returns) for epoch in data for batch in epoch]
    expected, losses = adam_on_squared_error(start, flat, learning_rate=0.05)
    assert th.allclose(parameter.detach()[:, 0], expected, rtol=1e-10, atol=0)
    assert fit is not None and fit.n_optimizer_steps == 12
    assert fit.value_loss == pytest.approx(sum(losses) / 12, rel=1e-10)
    assert fit.first_value_loss == pytest.approx(sum(losses[:3]) / 3, rel=1e-10)
    assert fit.last_value_loss == pytest.approx(sum(losses[-3:]) / 3, rel=1e-10)


def test_fit_critic_measures_each_loss_before_its_step() -> None:
    """With a learning rate of zero all passes see the same loss, that of the critic as it was."""
    start, data = normal(3, seed=0), epochs(1) * 3
    parameter = linear(start)
    fit = fit_critic(linear_critic(parameter), th.optim.SGD([parameter], lr=0.0), [parameter], data)
    losses = [float((plain(batch.observations) @ start - batch.returns).square().mean()) for batch in data[0]]
    assert fit is not None
    assert (fit.value_loss, fit.first_value_loss, fit.last_value_loss) == pytest.approx((sum(losses) / 3,) * 3, rel=1e-12)
    assert th.equal(parameter.detach()[:, 0], start)


def test_fit_critic_consumes_generators() -> None:
    """Passes and minibatches may be made as they are needed, each once."""
    parameter = linear(normal(3, seed=0))
    other = linear(normal(3, seed=0))

    def lazily() -> Iterator[Iterator[ValueBatch]]:
        for epoch in epochs(3):
            yield iter(epoch)

    lazy = fit_critic(linear_critic(parameter), th.optim.Adam([parameter]), [parameter], lazily())
    eager = fit_critic(linear_critic(other), th.optim.Adam([other]), [other], epochs(3))
    assert lazy == eager and th.equal(parameter, other)


def test_fit_critic_improves() -> None:
    """On returns that the critic can explain the last pass is better than the first."""
    truth, parameter = normal(3, seed=1), linear(normal(3, seed=0))
    inputs = normal(50, 3, seed=2)
    data = [[ValueBatch(inputs, inputs @ truth)]] * 50
    fit = fit_critic(linear_critic(parameter), th.optim.Adam([parameter], lr=0.1), [parameter], data)
    assert fit is not None and fit.last_value_loss < 0.1 * fit.first_value_loss


def critic_parameters(case: PolicyCase) -> list[th.nn.Parameter]:
    observations = case.batch.observations
    actors = set(map(id, case.parameters))
    values = reached_by(case.policy.predict_values(observations), list(case.policy.parameters()))
    return [parameter for parameter in values if id(parameter) not in actors]


@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.AdamW, th.optim.RMSprop])
def test_fit_critic_moves_only_the_given_parameters(case: PolicyCase, optimizer_class: type[th.optim.Optimizer]) -> None:
    """What else the optimizer holds is bit for bit the same, also where it has gradients or weight decay of its own."""
    policy, batch = case.policy, case.batch
    optimizer = optimizer_class(policy.parameters(), lr=1e-2, weight_decay=0.1)  # type: ignore[call-arg]
    for parameter in policy.parameters():
        parameter.grad = th.ones_like(parameter)
    own = critic_parameters(case)
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    fit = fit_critic(critic_of(case), optimizer, own, [[ValueBatch(batch.observations, batch.advantages)]] * 3)
    assert fit is not None and fit.n_optimizer_steps == 3
    moved = {id(p) for name, p in policy.named_parameters() if not th.equal(p, before[name])}
    assert moved == set(map(id, own)) and moved


class LearnedExtractor(DoubleExtractor):
    """A feature extractor with something to learn, which actor and critic share."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space)
        self.layer = th.nn.Linear(4, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(super().forward(observations)).tanh()


def test_fit_critic_leaves_a_shared_extractor_alone(case: PolicyCase) -> None:
    """Of a policy with a shared extractor only the critic's own layers are fitted: the KL stays exactly what it was."""
    shared = make_case(case.name, features_extractor_class=LearnedExtractor, share_features_extractor=True)
    extractor = list(shared.policy.features_extractor.parameters())
    reached = reached_by(shared.policy.predict_values(shared.batch.observations), list(shared.policy.parameters()))
    assert len(extractor) == 2 and set(map(id, extractor)) < set(map(id, reached))
    old = shared.frozen_distribution()
    before = [parameter.detach().clone() for parameter in shared.parameters]
    own = critic_parameters(shared)
    own_before = [parameter.detach().clone() for parameter in own]
    data = [[ValueBatch(shared.batch.observations, shared.batch.advantages)]] * 3
    assert fit_critic(critic_of(shared), th.optim.Adam(shared.policy.parameters(), lr=1e-2), own, data)
    assert all(th.equal(parameter, start) for parameter, start in zip(shared.parameters, before, strict=True))
    assert not any(th.equal(parameter, start) for parameter, start in zip(own, own_before, strict=True))
    assert all(parameter.grad is None for parameter in shared.parameters)
    assert kl_old_new(old, shared.frozen_distribution()).abs().max() < 1e-14


def test_fit_critic_without_anything_to_fit_is_none() -> None:
    """No parameters, or no pass over the data, make no fit: nothing is predicted, nothing moves."""
    parameter = linear(normal(3, seed=0))
    optimizer = th.optim.Adam([parameter])

    def no_prediction(observations: object) -> th.Tensor:
        raise AssertionError("there is nothing to fit")

    assert fit_critic(no_prediction, optimizer, [], epochs(2)) is None
    assert fit_critic(no_prediction, optimizer, [parameter], [], holds=lambda: no_prediction(None) is None) is None
    assert th.equal(parameter.detach()[:, 0], normal(3, seed=0))


def test_fit_critic_compares_values_and_returns_row_by_row() -> None:
    """Values of shape (n, 1) and returns of shape (n,) are paired, not broadcast into each other."""
    parameter = linear(th.ones(1, dtype=th.float64))
    returns = th.tensor([1.0, 2.0, 4.0], dtype=th.float64)
    data = [[ValueBatch(returns[:, None], returns)]]
    fit = fit_critic(linear_critic(parameter), th.optim.SGD([parameter], lr=0.1), [parameter], data)
    assert fit is not None and fit.value_loss == 0.0


class Failure(Exception):
    """What goes wrong in the middle of a fit."""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_fit_critic_skips_what_is_not_finite(value: float) -> None:
    """A minibatch whose loss or gradient is not finite makes no step, and the others make theirs."""
    parameter, other = linear(normal(3, seed=0)), linear(normal(3, seed=0))
    clean = epochs(1)[0]
    spoilt = [clean[0], ValueBatch(clean[1].observations, clean[1].returns + value), clean[2]]
    fit = fit_critic(linear_critic(parameter), th.optim.Adam([parameter]), [parameter], [spoilt])
    fit_critic(linear_critic(other), th.optim.Adam([other]), [other], [[clean[0], clean[2]]])
    assert fit is not None and (fit.n_optimizer_steps, fit.n_skipped, fit.undone) == (2, 1, False)
    assert fit.status == "steps_skipped"
    assert th.equal(parameter, other)


def test_fit_critic_skips_a_loss_that_overflows_where_its_gradient_does_not() -> None:
    """Both are looked at: inputs so small hide an infinite loss from the gradient."""
    parameter = linear(th.ones(1, dtype=th.float64))
    data = [[ValueBatch(th.full((2, 1), 1e-200, dtype=th.float64), th.full((2,), 1e200, dtype=th.float64))]]
    fit = fit_critic(linear_critic(parameter), th.optim.SGD([parameter], lr=1.0), [parameter], data)
    assert fit is not None and (fit.n_optimizer_steps, fit.n_skipped) == (0, 1)
    assert th.equal(parameter, th.ones(1, 1, dtype=th.float64))


@pytest.mark.parametrize("optimizer_class", [th.optim.SGD, th.optim.Adam])
@pytest.mark.parametrize("n_before", [0, 1])
def test_fit_critic_that_leaves_the_finite_numbers_is_undone(optimizer_class: type[th.optim.Optimizer], n_before: int) -> None:
    """Steps from finite gradients to weights that are not: weights and optimizer come back bit for bit, and it says so."""
    parameter, other = linear(normal(3, seed=0)), linear(normal(3, seed=0))
    optimizer = optimizer_class([parameter, other], lr=1e-3)  # type: ignore[call-arg]
    for _ in range(n_before):
        fit_critic(linear_critic(parameter), optimizer, [parameter], epochs(1))
    before, state = parameter.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.param_groups[0]["lr"] = 1e308
    fit = fit_critic(linear_critic(parameter), optimizer, [parameter], epochs(2))
    assert fit is not None and fit.undone and fit.status == "undone" and fit.n_optimizer_steps > 0
    assert th.equal(parameter, before)
    after = optimizer.state_dict()["state"]
    assert after.keys() == state.keys()
    for index in after:
        assert all(th.equal(after[index][k], state[index][k]) for k in state[index] if isinstance(state[index][k], th.Tensor))
    # And it goes on
    optimizer.param_groups[0]["lr"] = 1e-3
    fit = fit_critic(linear_critic(parameter), optimizer, [parameter], epochs(1))
    assert fit is not None and fit.status == "fitted" and not th.equal(parameter, before)


@pytest.mark.parametrize("rate", [1e-3, 1e308])
def test_fit_critic_that_raises_is_undone(rate: float) -> None:
    """An exception passes through and leaves the critic bit for bit as it was, however good the steps before it were."""
    parameter = linear(normal(3, seed=0))
    before = parameter.detach().clone()
    optimizer = th.optim.SGD([parameter], lr=rate)
    predict, n_calls = linear_critic(parameter), 0

    def failing(batch: ValueBatch) -> th.Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise Failure
        return predict(batch)

    with pytest.raises(Failure):
        fit_critic(failing, optimizer, [parameter], epochs(1))
    assert n_calls == 3 and th.equal(parameter, before) and parameter.grad is None


def test_fit_critic_too_far_away_to_be_fitted_again_is_undone() -> None:
    """Weights that are finite but for which no loss is would never move again: the fit that led there is undone."""
    parameter = linear(normal(3, seed=0))
    before = parameter.detach().clone()
    fit = fit_critic(linear_critic(parameter), th.optim.Adam([parameter], lr=1e200), [parameter], epochs(2))
    assert fit is not None and (fit.n_optimizer_steps, fit.n_skipped, fit.status) == (1, 5, "undone")
    assert th.equal(parameter, before)


def test_fit_critic_skips_a_gradient_that_overflows_where_its_loss_does_not() -> None:
    """Inputs so large that the square of the gradient has no place: Adam's memory must not see it."""
    parameter = linear(th.zeros(1, dtype=th.float64))
    data = [[ValueBatch(th.full((2, 1), 1e200, dtype=th.float64), th.ones(2, dtype=th.float64))]]
    fit = fit_critic(linear_critic(parameter), th.optim.Adam([parameter]), [parameter], data)
    assert fit is not None and (fit.value_loss, fit.n_optimizer_steps, fit.n_skipped) == (1.0, 0, 1)
    assert th.equal(parameter, th.zeros(1, 1, dtype=th.float64))


class Forgetful(th.optim.SGD):
    """An optimizer that remembers infinity."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["memory"] = th.full_like(parameter, float("inf"))


def test_fit_critic_that_spoils_the_memory_of_the_optimizer_is_undone() -> None:
    """Finite weights are not enough: what the optimizer remembers of them decides on the next ones."""
    parameter = linear(normal(3, seed=0))
    optimizer = Forgetful([parameter], lr=1e-3)
    fit = fit_critic(linear_critic(parameter), optimizer, [parameter], epochs(1))
    assert fit is not None and fit.undone
    assert th.equal(parameter.detach()[:, 0], normal(3, seed=0)) and not optimizer.state.get(parameter)


class Decays(th.optim.SGD):
    """An optimizer that shrinks all that it holds, gradient or not."""

    @th.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.9)


class Around:
    """Stands around an optimizer, and remembers nothing itself."""

    def __init__(self, optimizer: th.optim.Optimizer):
        self.zero_grad, self.step, self.param_groups = optimizer.zero_grad, optimizer.step, optimizer.param_groups


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, Around])
def test_fit_critic_with_an_optimizer_that_moves_everything_moves_the_critic(wrap: Callable[[Any], Any]) -> None:
    """The policy is what it was when it is asked whether it is kept, and the fit is good."""
    parameter, of_actor = linear(normal(3, seed=0)), linear(normal(3, seed=1))
    optimizer = wrap(Decays([parameter, of_actor], lr=1e-2))
    is_kept = lambda: th.equal(of_actor.detach()[:, 0], normal(3, seed=1))  # noqa: E731
    fit = fit_critic(linear_critic(parameter), optimizer, [parameter], epochs(1), holds=is_kept)
    assert fit is not None and fit.status == "fitted" and is_kept()
    assert not th.equal(parameter.detach()[:, 0], normal(3, seed=0))


def test_fit_critic_passes_over_parameters_that_get_no_gradient() -> None:
    """A parameter that the values do not depend on in these states is no obstacle."""
    parameter, idle = linear(normal(3, seed=0)), linear(normal(3, seed=1))
    fit = fit_critic(linear_critic(parameter), th.optim.Adam([parameter, idle]), [parameter, idle], epochs(1))
    assert fit is not None and fit.status == "fitted" and fit.n_optimizer_steps == 3
    assert th.equal(idle.detach()[:, 0], normal(3, seed=1))


def test_pool_gives_turns_to_who_has_nothing() -> None:
    """As many as the others have; the mean is that of theirs."""
    of_others = iter([(6.0, 3.0, 1.0), (10.0, 2.0, 0.0)])
    pool = PooledMinibatches[ValueBatch](lambda own: own + th.tensor(next(of_others)))
    means = [float(pool.mean(th.zeros(3), 0)) for minibatch in pool.turns(()) if minibatch is None]
    assert means == [2.0, 5.0]


class Together:
    """Two threads in the place of two processes: sums of what both bring, in the order of their numbers."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30.0)
        self.brought: list[th.Tensor] = [th.zeros(()), th.zeros(())]

    def total(self, rank: int, part: th.Tensor) -> th.Tensor:
        self.barrier.wait()
        self.brought[rank] = part
        self.barrier.wait()
        return self.brought[0] + self.brought[1]


def test_fit_critic_pools_minibatches_of_unequal_number_and_size() -> None:
    """It is the fit of one process to the unions; who has no minibatch left in a pass takes part in the others' steps."""
    own = [
        [[4, 3, 2], [4, 3, 2]],
        [[5], [5]],
    ]

    def minibatch(n: int, seed: int) -> ValueBatch:
        return ValueBatch(normal(n, 3, seed=seed), normal(n, seed=seed + 1))

    minibatches = [
        [[minibatch(n, 1000 * rank + 100 * e + 10 * i) for i, n in enumerate(sizes)] for e, sizes in enumerate(of_rank)]
        for rank, of_rank in enumerate(own)
    ]
    start = normal(3, seed=5)
    # The second weight of each is of no account to anything: it has no gradient, and Adam's memory of it stays empty
    weights = [[linear(start), th.nn.Parameter(th.ones(1, dtype=th.float64))] for _ in range(3)]
    optimizers = [th.optim.Adam(parameters, lr=0.05) for parameters in weights]
    together = Together()

    def fit(rank: int) -> CriticFit | None:
        pool: PooledMinibatches[ValueBatch] = PooledMinibatches(partial(together.total, rank))
        return fit_critic(linear_critic(weights[rank][0]), optimizers[rank], weights[rank], minibatches[rank], pool=pool)

    with ThreadPoolExecutor(2) as threads:
        fits = list(threads.map(fit, range(2)))
    union = [
        [
            ValueBatch(*(th.cat(parts) for parts in zip(*found, strict=True)))
            for i in range(3)
            if (found := [of_rank[e][i] for of_rank in minibatches if i < len(of_rank[e])])
        ]
        for e in range(2)
    ]
    alone = fit_critic(linear_critic(weights[2][0]), optimizers[2], weights[2], union)
    assert alone is not None and alone.n_optimizer_steps == 6
    for rank in range(2):
        assert fits[rank] == pytest.approx(alone, rel=1e-12)
        assert th.equal(weights[rank][0], weights[0][0])
        assert relative_error(weights[rank][0].detach() - start[:, None], weights[2][0].detach() - start[:, None]) < 1e-12
        assert optimizers[rank].state.keys() == {weights[rank][0]}
