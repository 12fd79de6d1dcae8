"""Faults put in everywhere: after each call the policy is improved inside the limit, or bit for bit what it was."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.nn import functional as F

from sb3_trpo import TRPO
from sb3_trpo.metrics import CRITIC_STATUSES, UPDATE_STATUSES
from sb3_trpo.objective import PolicyProblem
from tests.from_outside import ROUNDING, actor_state, mean_kl_from_outside
from tests.hostile import N_STEPS, VALUES, Fault, HostileEnv
from tests.small_models import BOX, DISCRETE, MULTI_BINARY, MULTI_DISCRETE, VECTOR, changed, policy_state

TARGET_KL = 0.01
KINDS: dict[str, tuple[spaces.Space, dict[str, Any]]] = {
    "box": (BOX, {}),
    "discrete": (DISCRETE, {}),
    "multi_discrete": (MULTI_DISCRETE, {}),
    "multi_binary": (MULTI_BINARY, {}),
    "gsde": (BOX, {"use_sde": True}),
}
PLACES = ["observation", "reward", "advantage", "log_prob", "weight", "log_std"]
# A fault may make SB3's or torch's own error out of collection; nothing else may come out of it
ERRORS = (ValueError, RuntimeError)


class HostileTRPO(TRPO):
    """TRPO whose rollouts are spoilt before the update as long as there is a fault."""

    fault: Fault | None = None
    place = ""

    def train(self) -> None:
        if self.fault is not None and self.place == "advantage":
            self.fault.put(self.rollout_buffer.advantages)
        elif self.fault is not None and self.place == "log_prob":
            self.fault.put(self.rollout_buffer.log_probs)
        super().train()


def hostile_model(kind: str, **arguments: Any) -> tuple[HostileTRPO, HostileEnv]:
    action_space, of_kind = KINDS[kind]
    env = HostileEnv(VECTOR, action_space, termination_probability=0.0)
    defaults: dict[str, Any] = {
        "n_steps": N_STEPS,
        "batch_size": 8,
        "n_critic_updates": 2,
        "cg_max_steps": 4,
        "target_kl": TARGET_KL,
        "policy_kwargs": {"net_arch": [4]},
        "seed": 0,
        "device": "cpu",
    }
    return HostileTRPO("MlpPolicy", DummyVecEnv([lambda: env]), **(defaults | of_kind | arguments)), env


def inject(model: HostileTRPO, env: HostileEnv, place: str, fault: Fault) -> None:
    """Put a fault in place."""
    if place in ("weight", "log_std"):
        parameter = model.policy.action_net.weight if place == "weight" else model.policy.log_std
        assert isinstance(parameter, th.nn.Parameter)
        fault.put(parameter.detach().numpy())
    elif place in ("observation", "reward"):
        env.fault, env.place = fault, place
    else:
        model.fault, model.place = fault, place


def check_promise(model: TRPO, before: dict[str, th.Tensor]) -> None:
    """Fail unless the last update was inside the limit and an improvement, or none; the critic is finite either way."""
    assert model.last_update is not None
    step, critic = model.last_update.step, model.last_update.critic
    after = policy_state(model)
    assert step.status in UPDATE_STATUSES
    if step.accepted:
        assert all(bool(tensor.isfinite().all()) for tensor in after.values())
        assert step.surrogate_gain > 0.0
        kl = mean_kl_from_outside(model, before)
        assert abs(kl) <= TARGET_KL + ROUNDING
        assert kl == pytest.approx(step.mean_kl, rel=1e-3, abs=ROUNDING)
    else:
        same_bits = {name: tensor.view(th.int32) for name, tensor in before.items() if "value_net" not in name}
        assert not changed(same_bits, {name: after[name].view(th.int32) for name in same_bits})
        assert (step.surrogate_gain, step.mean_kl, step.step_norm) == (0.0, 0.0, 0.0)
    assert all(bool(tensor.isfinite().all()) for name, tensor in after.items() if "value_net" in name)
    assert critic is not None and critic.status in CRITIC_STATUSES


def learn(model: TRPO) -> None:
    """Run one more update, and check the promise for it."""
    before = policy_state(model)
    n_updates = model._n_updates
    try:
        model.learn(N_STEPS, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
    except ERRORS:
        assert model._n_updates == n_updates
        bits = [{name: t.view(th.int32) for name, t in state.items()} for state in (before, policy_state(model))]
        assert not changed(*bits)
        raise
    check_promise(model, before)


WITH_DEVIATION = ("box", "gsde")
# A third of all there are, in which every two of kind, place and value come together that can
CASES = [
    *(
        (kind, place, value)
        for (i, kind), (j, place), (k, value) in itertools.product(*map(enumerate, (KINDS, PLACES, VALUES)))
        if (i + j + k) % 3 == 0 and place != "log_std"
    ),
    *((WITH_DEVIATION[k % 2], "log_std", value) for k, value in enumerate(VALUES)),
]


def test_every_two_of_kind_place_and_value_come_together() -> None:
    """A fault that only one pair of them lets through is found."""
    for parts in ((0, 1), (0, 2), (1, 2)):
        met = {tuple(case[part] for part in parts) for case in CASES}
        lists = [[*(KINDS, PLACES, VALUES)[part]] for part in parts]
        alone = set(itertools.product(*lists)) - met
        assert all("log_std" in pair and not {*pair} & {*WITH_DEVIATION, *VALUES} for pair in alone)


@pytest.mark.parametrize(
    "seed, kind, place, value", [(seed, *case) for seed, case in enumerate(CASES)], ids=["-".join(case) for case in CASES]
)
def test_fault_leaves_a_policy_that_is_improved_or_untouched(seed: int, kind: str, place: str, value: str) -> None:
    """Refused by an error before the update, or by a status in it, or harmless; afterwards training goes on."""
    # Fast and plain ways, one number and all of them: over the cases every place sees each of the four
    model, env = hostile_model(kind, fast=seed % 4 < 2)
    good = policy_state(model)
    inject(model, env, place, Fault(value, seed))
    is_bad = not math.isfinite(VALUES[value])
    if is_bad and place in ("observation", "reward", "weight", "log_std"):
        # The default: an error that says where
        with pytest.raises(ValueError, match="must be finite, got") as refusal, np.errstate(all="ignore"):
            learn(model)
        named = {"weight": "action_net.weight", "log_std": "log_std"}.get(place, f"{place} ")
        assert named.strip() in str(refusal.value)
        if place in ("observation", "reward"):
            assert "environment 0 at step" in str(refusal.value)
            assert not changed(good, policy_state(model))
    # And the setting to go on, as far as the policy can act
    model.error_if_nonfinite = False
    with np.errstate(all="ignore"):
        try:
            learn(model)
        except ERRORS:
            assert place in ("observation", "weight", "log_std")
        else:
            assert model.last_update is not None
            if is_bad:
                assert not model.last_update.step.accepted
                assert model.last_update.step.status.endswith("_not_finite")
    # Without the fault the model is as good as before
    model.error_if_nonfinite = True
    env.fault = model.fault = None
    if place in ("weight", "log_std"):
        model.policy.load_state_dict(good)
    model._last_obs = None
    learn(model)
    assert model.last_update is not None and model.last_update.step.status == "accepted"


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("log_std", [-1e3, -60.0, 60.0, 88.0, 1e3])
@pytest.mark.parametrize("kind", ["box", "gsde"])
def test_standard_deviation_at_the_ends_of_what_a_float_holds_keeps_the_promise(kind: str, log_std: float, fast: bool) -> None:
    """Deviations from zero to infinity: what cannot be measured is not accepted."""
    model, _ = hostile_model(kind, fast=fast, error_if_nonfinite=False)
    with th.no_grad():
        model.policy.log_std.fill_(log_std)
    with np.errstate(all="ignore"):
        try:
            learn(model)
        except ERRORS as error:
            assert log_std in (-1e3, 1e3) and ("constraint" in str(error) or "support" in str(error))


def altered(stage: str, value: float) -> tuple[str, Callable[..., Any]]:
    """Return which method of the problem a stage is, and that method with its answer replaced."""
    name = {"gradient": "surrogate_gradient", "product": "fisher_vector_product"}.get(stage, "evaluate")
    original: Any = getattr(PolicyProblem, name)

    def gradient(problem: PolicyProblem) -> tuple[float, th.Tensor]:
        surrogate, vector = original(problem)
        return surrogate, th.full_like(vector, value)

    def product(problem: PolicyProblem) -> Callable[[th.Tensor], th.Tensor]:
        original(problem)
        return lambda vector: value * vector

    def surrogate(problem: PolicyProblem) -> tuple[float, float]:
        return value, original(problem)[1]

    def kl(problem: PolicyProblem) -> tuple[float, float]:
        return original(problem)[0], value

    return name, {"gradient": gradient, "product": product, "surrogate": surrogate, "kl": kl}[stage]


# What each stage may answer, and what comes of it; "accepted" where only the measurement decides
OUTCOMES = {
    "gradient": dict.fromkeys([math.nan, math.inf, -math.inf], "gradient_not_finite") | {0.0: "gradient_zero"},
    "product": dict.fromkeys([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e30, 1e-30], ""),
    "surrogate": dict.fromkeys([math.nan, math.inf, -math.inf, -1.0, -1e30], "line_search_failed"),
    "kl": dict.fromkeys([math.nan, math.inf, -math.inf, 1.0, 1e30, -1.0], "line_search_failed"),
}


STAGES = [(stage, value) for stage, outcomes in OUTCOMES.items() for value in outcomes]


# What is altered is plain numerics, which knows no kind of action: each fault with two of the five, by turns
@pytest.mark.parametrize(
    "kind, stage, value",
    [([*KINDS][(2 * i + j) % 5], stage, value) for i, (stage, value) in enumerate(STAGES) for j in range(2)],
    ids=str,
)
def test_fault_in_a_stage_of_the_update_has_a_name(
    kind: str, stage: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a stage answers, the policy is improved inside the limit or untouched, and the report says so."""
    model, _ = hostile_model(kind)
    monkeypatch.setattr(PolicyProblem, *altered(stage, value))
    learn(model)
    assert model.last_update is not None
    status = model.last_update.step.status
    if stage == "product":
        bad = not value > 0.0 or math.isinf(value)
        assert status == "curvature_not_positive" if bad else status in ("accepted", "line_search_failed")
    else:
        assert status == OUTCOMES[stage][value]
    monkeypatch.undo()
    learn(model)
    assert model.last_update.step.accepted


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ZeroDivisionError])
@pytest.mark.parametrize(
    "stage, n_before",
    [("surrogate_gradient", 0), ("fisher_vector_product", 0), ("evaluate", 0), ("evaluate", 2), ("values", 0), ("values", 2)],
)
def test_exception_in_the_update_leaves_the_model_usable(
    stage: str, n_before: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C or an exception anywhere: a policy step that was not finished was not begun, nor was a critic fit."""
    model, _ = hostile_model("box", fast=False)
    original = getattr(PolicyProblem, stage, F.mse_loss)
    n_calls = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls > n_before:
            raise error
        result = original(*args, **kwargs)
        return (0.0, 1.0) if stage == "evaluate" else result

    before = actor_state(model)
    critic = {name: tensor for name, tensor in policy_state(model).items() if "value_net" in name}
    if stage == "values":
        monkeypatch.setattr(F, "mse_loss", failing)
    else:
        monkeypatch.setattr(PolicyProblem, stage, failing)
    with pytest.raises(error):
        model.learn(N_STEPS)
    after = policy_state(model)
    assert not changed(critic, {name: after[name] for name in critic})
    # An error of the critic's comes when the policy has made its step
    assert bool(changed(before, actor_state(model))) == (stage == "values")
    monkeypatch.undo()
    learn(model)
    assert model.last_update is not None and model.last_update.step.accepted
