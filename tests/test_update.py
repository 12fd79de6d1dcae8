"""A whole update: by the fast ways where it ends by the plain ones, in chunks, thinned, and seldom waiting for a device."""

import copy
from functools import partial
from typing import Any

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_trpo import TRPO, update
from sb3_trpo.critic import ValueBatch
from sb3_trpo.objective import Batch, PolicyProblem, kl_old_new
from tests.one_rollout import UPDATES, check_same_steps, check_update, rolled_out
from tests.oracles import relative_error
from tests.small_models import DICT, DISCRETE, IMAGE, Case, make_env, small_model

pytestmark = pytest.mark.untraced


def test_what_is_covered_takes_the_fast_paths_unless_told_not_to() -> None:
    fast, plain = small_model().learn(64), small_model(fast=False).learn(64)
    assert fast.paths_in_use == {"collection": "lean", "Fisher products": "Gauss-Newton", "critic fit": "written out"}
    assert plain.paths_in_use == dict.fromkeys(fast.paths_in_use, "plain")


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

    def _values(self, batch: Batch | ValueBatch) -> th.Tensor:
        return super()._values(batch)

    def _value_epochs(self, batch: Batch) -> Any:
        return super()._value_epochs(batch)


class DoubledValues(TRPO):
    """Other values than the policy's own."""

    def _values(self, batch: Batch | ValueBatch) -> th.Tensor:
        return 2.0 * super()._values(batch)


@pytest.mark.parametrize(
    ("cls", "fisher", "critic"),
    [(SameAgain, "Gauss-Newton", "written out"), (Cooled, "plain", "written out"), (DoubledValues, "Gauss-Newton", "plain")],
)
def test_fast_paths_are_asked_of_what_they_cover_and_not_of_the_class(cls: type[TRPO], fisher: str, critic: str) -> None:
    """A subclass keeps each path that its hooks leave right, and each update is that of the plain ways."""
    model = small_model(cls=cls, env=make_env(action_space=DISCRETE)).learn(64)
    assert model.paths_in_use == {"collection": "lean", "Fisher products": fisher, "critic fit": critic}


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


def test_update_in_chunks_ends_where_the_whole_update_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [rolled_out() for _ in range(2)]
    for model, size in zip(models, (10, 10_000), strict=True):
        monkeypatch.setattr(TRPO, "_chunk_size", lambda self, size=size: size)
        check_update(model, fast=True)
    check_same_steps(*models)


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
    "image": Case("CnnPolicy", IMAGE, DISCRETE, arguments={"cg_max_steps": 2}),
    "dict": Case("MultiInputPolicy", DICT, arguments={"cg_max_steps": 2}),
}


# Whether the rollout is one chunk does not depend on what is observed
@pytest.mark.parametrize(
    "name, chunk_size", [*((name, 24) for name in THINNED), ("vector", 10_000), ("discrete", 10_000)], ids=str
)
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
        kept.append((spy.gradients[0], model.last_update.step.step_norm))
    (thinned_gradient, thinned_length), (gradient, length) = kept
    assert relative_error(thinned_gradient, gradient) < 1e-5
    assert thinned_length != pytest.approx(length, rel=1e-4)


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
