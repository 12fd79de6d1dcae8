"""Where sb3-contrib steps: one update on the same rollout, its arguments converted to ours, lands in the same place."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import sb3_contrib
import sb3_contrib.trpo.trpo
import torch as th
from gymnasium import spaces
from sb3_contrib.common.utils import conjugate_gradient_solver

from sb3_trpo import TRPO
from tests.small_models import BOX, DISCRETE, MULTI_BINARY, MULTI_DISCRETE, Case

TARGET_KL = 0.002
DAMPING = 0.05
CG_MAX_STEPS = 60

Tensors = dict[str, th.Tensor]
MatrixVectorProduct = Callable[[th.Tensor], th.Tensor]


class ContribUpdate(NamedTuple):
    """
    One update of sb3-contrib.

    :param start: the policy before it
    :param step: what it moved every parameter by
    :param full_step: the step its line search began with, flat
    :param rollout_buffer: what it learnt from
    """

    start: Tensors
    step: Tensors
    full_step: th.Tensor
    rollout_buffer: Any


def difference(after: Tensors, before: Tensors) -> Tensors:
    return {name: after[name].double() - before[name].double() for name in before}


def state(model: Any) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in model.policy.state_dict().items()}


def flat(tensors: Tensors, names: list[str]) -> th.Tensor:
    return th.cat([tensors[name].flatten().double() for name in names])


def actor_names(tensors: Tensors) -> list[str]:
    """Name the actor's parameters of SB3's MlpPolicy in the order of the flat vectors."""
    return [name for name in tensors if "value_net" not in name]


def relative_difference(ours: th.Tensor, theirs: th.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def contrib_update(case: Case, monkeypatch: pytest.MonkeyPatch) -> ContribUpdate:
    """Let sb3-contrib collect a rollout and learn from it."""
    model = sb3_contrib.TRPO(
        case.policy,
        case.env(),
        n_steps=256,
        batch_size=256,
        n_critic_updates=1,
        target_kl=TARGET_KL,
        cg_damping=DAMPING,
        cg_max_steps=CG_MAX_STEPS,
        seed=0,
        device="cpu",
        **case.arguments,
    )
    with th.no_grad():
        # Away from the initial weights, where all means are nearly zero
        generator = th.Generator().manual_seed(0)
        for parameter in model.policy.parameters():
            parameter.add_(th.randn(parameter.shape, generator=generator), alpha=0.1)
    full_steps: list[th.Tensor] = []

    def captured(product: MatrixVectorProduct, gradient: th.Tensor, max_iter: int) -> th.Tensor:
        # Its tolerance is absolute: by default it leaves a short gradient half solved
        direction = conjugate_gradient_solver(product, gradient, max_iter=max_iter, residual_tol=1e-12)
        full_steps.append((2 * TARGET_KL / (direction @ product(direction))).sqrt() * direction)
        return direction

    monkeypatch.setattr(sb3_contrib.trpo.trpo, "conjugate_gradient_solver", captured)
    kept: list[Tensors] = []
    train = model.train

    def train_and_keep() -> None:
        kept.append(state(model))
        train()

    monkeypatch.setattr(model, "train", train_and_keep)
    model.learn(256)
    (start,), (full_step,) = kept, full_steps
    return ContribUpdate(start, difference(state(model), start), full_step.double(), model.rollout_buffer)


class OurUpdate(NamedTuple):
    """
    One update of ours.

    :param full_step: the step that the line search began with, flat
    :param radius_ratio: what contrib's radius, which counts the damping, is of ours
    :param start: the policy before it
    """

    full_step: th.Tensor
    radius_ratio: float
    start: Tensors


def our_update(case: Case, contrib: ContribUpdate, *, target_kl: float, cg_damping: float) -> OurUpdate:
    """Let our TRPO learn from contrib's rollout, from contrib's weights."""
    model = case.model(
        TRPO,
        n_steps=256,
        target_kl=target_kl,
        cg_damping=cg_damping,
        cg_max_steps=CG_MAX_STEPS,
        n_critic_updates=0,
    )
    # For the logger and the learning rate that train() needs
    model._setup_learn(256)
    model.policy.load_state_dict(contrib.start)
    model.rollout_buffer = copy.copy(contrib.rollout_buffer)
    start = state(model)
    model.train()
    assert model.last_update is not None
    step = model.last_update.step
    assert step.accepted and step.conjugate_gradient is not None
    # Any multiple of the direction s will do: damping included, the radius is sqrt(sᵀFs / (sᵀFs + β sᵀs)) of ours
    direction = step.conjugate_gradient.solution.double()
    full_step = flat(difference(state(model), start), actor_names(start)) / step.step_fraction
    scale = full_step.norm() / direction.norm()
    th.testing.assert_close(full_step, scale * direction, rtol=1e-3, atol=1e-6)
    curvature = 2 * target_kl / scale**2
    ratio = (curvature / (curvature + cg_damping * direction @ direction)).sqrt()
    return OurUpdate(full_step, float(ratio), start)


GSDE = {"use_sde": True, "policy_kwargs": {"log_std_init": -1.0}}
CASES = {
    "box": (Case(), 3),
    "box_of_six": (Case(action_space=spaces.Box(-1.0, 1.0, (6,))), 6),
    "gsde": (Case(arguments=GSDE), 3),
    "multi_binary": (Case(action_space=MULTI_BINARY), 3),
    "discrete": (Case(action_space=DISCRETE), 1),
    "multi_discrete": (Case(action_space=MULTI_DISCRETE), 1),
}


@pytest.mark.parametrize("case, factor", CASES.values(), ids=CASES)
def test_update_lands_where_that_of_contrib_does(case: Case, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With limit and damping times the number of dimensions contrib averages over, and its radius, the step is the same."""
    contrib = contrib_update(case, monkeypatch)
    ours = our_update(case, contrib, target_kl=factor * TARGET_KL, cg_damping=factor * DAMPING)
    assert not [name for name in contrib.start if not th.equal(contrib.start[name], ours.start[name])]
    step = ours.radius_ratio * ours.full_step
    assert relative_difference(step, contrib.full_step) < 1e-3
    # And contrib took that step as it was, so that this is where it went
    assert relative_difference(step, flat(contrib.step, actor_names(contrib.start))) < 1e-3


@pytest.mark.parametrize("name", ["box", "box_of_six", "gsde", "multi_binary"])
def test_update_with_the_numbers_of_contrib_unconverted_lands_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers without the factor are another trust region, with another damping."""
    case, _ = CASES[name]
    contrib = contrib_update(case, monkeypatch)
    ours = our_update(case, contrib, target_kl=TARGET_KL, cg_damping=DAMPING)
    assert relative_difference(ours.radius_ratio * ours.full_step, contrib.full_step) > 0.1


def test_radius_of_contrib_counts_the_damping_and_ours_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along the same direction our step is longer than contrib's by what the damping takes from its budget."""
    contrib = contrib_update(Case(action_space=BOX), monkeypatch)
    ours = our_update(Case(action_space=BOX), contrib, target_kl=3 * TARGET_KL, cg_damping=3 * DAMPING)
    assert ours.radius_ratio < 0.99
    assert relative_difference(ours.full_step, contrib.full_step) > 0.01
