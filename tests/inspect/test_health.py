"""What is wrong with a run is found and said with advice, and a healthy one is left in peace."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from sb3_trpo.inspect import PANELS, UpdateRecord, check_health
from sb3_trpo.inspect.health import (
    RULES,
    cg_converges,
    critic_explains,
    gain_is_measured,
    kl_at_limit,
    kl_far_below,
    limit_is_kept,
    policy_explores,
    steps_refused,
    update_gains,
    updates_are_even,
)
from sb3_trpo.trust_region import Candidate

# Health


Change = Callable[[UpdateRecord], UpdateRecord]
UNHEALTHY: dict[Any, Change] = {
    kl_at_limit: lambda update: update._replace(
        mean_kl=0.0095, candidates=(*[Candidate(0.8**j, 0.1, 0.02, "kl") for j in range(4)], Candidate(0.41, 0.1, 0.0095, ""))
    ),
    kl_far_below: lambda update: update._replace(mean_kl=0.001),
    steps_refused: lambda update: update._replace(status="line_search_failed", mean_kl=0.0),
    cg_converges: lambda update: update._replace(cg_residual_norms=(1.0, 0.95, 0.9)),
    gain_is_measured: lambda update: update._replace(candidates=(Candidate(1.0, 0.02, 0.009, ""),)),
    policy_explores: lambda update: update._replace(entropy=0.01 if update.n_updates > 1 else 1.0),
    critic_explains: lambda update: update._replace(explained_variance=-0.2),
}


def series(update: UpdateRecord, n: int = 30) -> list[UpdateRecord]:
    return [update._replace(n_updates=number, num_timesteps=64 * number) for number in range(1, n + 1)]


@pytest.mark.parametrize("rule", UNHEALTHY, ids=lambda rule: rule.__name__)
def test_rule_of_health_triggers_on_its_trouble_and_not_without(rule: Any, healthy: UpdateRecord) -> None:
    """What is wrong is found, with advice and a panel that shows it; a healthy run is left in peace by every rule."""
    assert all(finding.healthy and not finding.advice for finding in check_health(series(healthy)))
    updates = list(map(UNHEALTHY[rule], series(healthy)))
    finding = rule(updates)
    assert finding.healthy is False and finding.advice and finding.panel in PANELS
    # The trouble of long ago is over
    later = [update._replace(n_updates=100) for update in series(healthy)]
    assert rule([*updates[:5], *later]).healthy is True


def test_rules_judge_a_standard_deviation_where_there_is_one(healthy: UpdateRecord) -> None:
    """Entropy of a continuous policy may be negative: its standard deviation is what counts."""
    updates = series(healthy._replace(std=1.0, entropy=-3.0))
    assert policy_explores(updates).healthy is True and policy_explores(updates).panel == "std"
    updates[-1] = updates[-1]._replace(std=0.05)
    assert policy_explores(updates).healthy is False
    assert "log_std_init" in policy_explores(updates).advice and "std_damping" in policy_explores(updates).advice


def test_advice_on_exploration_names_arguments_that_do_something(healthy: UpdateRecord, of_ppo: UpdateRecord) -> None:
    """Discrete actions have no standard deviation to begin with or to damp."""
    for update, argument in ((healthy, "target_kl"), (of_ppo, "ent_coef")):
        advice = policy_explores(list(map(UNHEALTHY[policy_explores], series(update)))).advice
        assert argument in advice and "std" not in advice


@pytest.fixture()
def of_ppo(healthy: UpdateRecord) -> UpdateRecord:
    """Return an update of which only what it did is known."""
    nothing: dict[str, Any] = dict.fromkeys(("max_kl", "expected_kl", "full_step_gain", "step_fraction"), math.nan)
    nothing |= {"candidates": (), "cg_residual_norms": (), "cg_stopped_by": "", "algorithm": "PPO"}
    return healthy._replace(**nothing, clip_range=0.2, outside_clip=0.1)


UNHEALTHY_OTHERS: dict[Any, Change] = {
    updates_are_even: lambda update: update._replace(mean_kl=0.1 if update.n_updates == 25 else 0.01),
    update_gains: lambda update: update._replace(surrogate_gain=-0.01 if update.n_updates % 2 else 0.1),
    policy_explores: UNHEALTHY[policy_explores],
    critic_explains: UNHEALTHY[critic_explains],
}


@pytest.mark.parametrize("rule", UNHEALTHY_OTHERS, ids=lambda rule: rule.__name__)
def test_rule_for_an_algorithm_without_a_limit(rule: Any, of_ppo: UpdateRecord) -> None:
    """Only what applies is said: nothing of a line search, of conjugate gradients, or of arguments that PPO does not have."""
    findings = check_health(series(of_ppo._replace(observation_spread=1.0)))
    assert all(finding.healthy and not finding.advice for finding in findings) and len(findings) == 5
    finding = rule(list(map(UNHEALTHY_OTHERS[rule], series(of_ppo))))
    assert finding.healthy is False and finding.advice and finding.panel in PANELS
    said = " ".join(part for each in [*findings, finding] for part in (each.name, each.says, each.advice))
    for word in ("line search", "onjugate", "cg_", "std_damping", "n_critic_updates", "sub_sampling_factor", "δ"):
        assert word not in said


ARGUMENTS = {
    "A2C": {"learning_rate", "learning rate", "vf_coef", "ent_coef", "max_grad_norm", "log_std_init"},
    "sb3_contrib.TRPO": {"n_critic_updates", "learning_rate", "target_kl", "log_std_init"},
}


@pytest.mark.parametrize("algorithm", ARGUMENTS)
@pytest.mark.parametrize("std", [math.nan, 1.0])
def test_advice_names_arguments_that_the_algorithm_has(algorithm: str, std: float, of_ppo: UpdateRecord) -> None:
    """A2C makes one pass over a rollout, and sb3-contrib's TRPO pays for no entropy."""
    limit = 0.01 if "TRPO" in algorithm else math.nan
    said = ""
    for rule, change in UNHEALTHY_OTHERS.items():
        updates = [update._replace(std=std) for update in series(of_ppo._replace(algorithm=algorithm, max_kl=limit))]
        updates = list(map(change, updates))
        updates[-1] = updates[-1]._replace(std=0.01 * std)
        said += " ".join(finding.advice for finding in check_health(updates) if rule(updates).name == finding.name)
    theirs = ARGUMENTS[algorithm]
    others = {"n_epochs", "n_critic_updates", "ent_coef", "vf_coef", "target_kl", "std_damping", "max_grad_norm"} - theirs
    assert len(said) > 300 and not [name for name in others if name in said]


def test_small_updates_may_differ_as_they_like(of_ppo: UpdateRecord) -> None:
    """At the end of a schedule the KL is of the order of rounding: seventeen times as much is nothing."""
    updates = series(of_ppo._replace(mean_kl=1e-5))
    updates[-1] = updates[-1]._replace(mean_kl=2e-4)
    assert updates_are_even(updates).healthy is True


def test_limit_of_another_algorithm_is_held_against_what_it_did(of_ppo: UpdateRecord) -> None:
    """sb3-contrib's limit is measured from outside; so is whether it is used."""
    updates = series(of_ppo._replace(max_kl=0.01, algorithm="sb3_contrib.TRPO"))
    assert limit_is_kept(updates).healthy is True and kl_far_below in RULES and updates_are_even(updates).healthy is True
    asked = {finding.name for finding in check_health(updates)}
    assert limit_is_kept(updates).name in asked and updates_are_even(updates).name not in asked
    updates[3] = updates[3]._replace(mean_kl=0.02)
    finding = limit_is_kept(updates)
    assert finding.healthy is False and "1 of 30" in finding.says and "2.00" in finding.says and finding.advice


def test_run_that_was_not_measured_is_not_judged(of_ppo: UpdateRecord) -> None:
    """Nothing is made up where a policy could not be copied."""
    nothing = dict.fromkeys(("mean_kl", "surrogate_gain", "entropy", "outside_clip", "explained_variance"), math.nan)
    findings = check_health(series(of_ppo._replace(status="not_measured", **nothing)))  # type: ignore[arg-type]
    assert all(finding.healthy is None or finding.panel == "norms" for finding in findings)


def test_rules_say_when_they_cannot_tell(healthy: UpdateRecord) -> None:
    """Without the numbers a rule is silent on health instead of guessing, and none fails."""
    nothing = healthy._replace(
        status="gradient_not_finite", candidates=(), cg_residual_norms=(), entropy=math.nan, explained_variance=math.nan
    )
    by_name = {finding.panel: finding.healthy for finding in check_health([nothing])}
    assert by_name["kl"] is by_name["cg_residual"] is by_name["gain"] is by_name["entropy"] is None
    assert by_name["explained_variance"] is None and steps_refused([nothing]).healthy is False
    assert check_health([]) == []
