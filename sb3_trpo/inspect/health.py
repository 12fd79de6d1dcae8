"""Says in words whether the numbers of a run are healthy: one plain rule for each thing that goes wrong."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sb3_trpo.hints import EARLY, SPREAD, falls_early
from sb3_trpo.inspect.run_files import UpdateRecord, limits_in_words

# The rules judge this many of the latest updates
RECENT = 20
# How often a step is shortened because of the KL, and the share of δ that the steps kept reach nevertheless
MANY_BACKTRACKS, PINNED_SHARE = 3, 0.6
# Share of δ below which steps are short of what is allowed
FAR_BELOW_SHARE = 0.25
REFUSED_SHARE = 0.2
# Relative residual of conjugate gradients that has hardly moved from 1
CG_RESIDUAL = 0.5
# Share of the predicted gain of the full step that is measured there
GAIN_SHARE = 0.5
# Entropy or standard deviation, as a share of that of the first update of the record
ENTROPY_SHARE, STD_SHARE = 0.05, 0.1
EXPLAINED_VARIANCE = 0.1
# An update without a limit that goes so many times as far as the median one, and further than so many nats: TRPO's default
SPIKE, FAR = 5.0, 0.01


class _Arguments(NamedTuple):
    """What to try, in the arguments that an algorithm has."""

    search: str  # to go on looking for longer
    noise: str  # and with continuous actions
    fit: str  # of the critic
    shorter: str  # steps
    even: str = ""  # updates of one size
    losses: str = ""  # what else pulls at the policy's layers


OURS = _Arguments(
    search="lower target_kl, collect more per update",
    noise=", begin with more noise (log_std_init) or let it fall more slowly (std_damping)",
    fit="n_critic_updates, learning_rate",
    shorter="target_kl",
)
# sb3-contrib's TRPO
OF_A_LIMIT = OURS._replace(noise=", or begin with more noise (log_std_init)", losses="the critic's fit, with a shared network")
# PPO and its variants, and whatever a user has
OF_A_LOSS = _Arguments(
    search="pay for entropy (ent_coef), collect more per update",
    noise=", or begin with more noise (log_std_init)",
    fit="n_epochs, learning_rate, vf_coef",
    shorter="learning rate, n_epochs",
    even="Make fewer passes over a rollout (n_epochs), lower the learning rate, end an update early (target_kl of PPO)",
    losses="ent_coef, vf_coef with a shared network",
)
# A2C, which makes one
OF_ONE_PASS = OF_A_LOSS._replace(
    fit="learning_rate, vf_coef",
    shorter="learning rate, max_grad_norm",
    even="Lower the learning rate or max_grad_norm",
)


class Finding(NamedTuple):
    """
    What one rule says of a run.

    :param name: the question that was asked
    :param healthy: whether it is as it should be; ``None`` if the record cannot tell
    :param says: the numbers in words
    :param advice: what it means and what to try, ``""`` where nothing is wrong
    :param panel: name of the panel of ``draw_run`` that shows it
    """

    name: str
    healthy: bool | None
    says: str
    advice: str
    panel: str


def _share(updates: Sequence[UpdateRecord], holds: Callable[[UpdateRecord], bool]) -> float:
    return sum(map(holds, updates)) / len(updates)


def _median(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def _kl_shares(updates: Sequence[UpdateRecord]) -> list[float]:
    return [update.mean_kl / update.max_kl for update in updates if update.accepted and update.max_kl > 0]


def _latest(updates: Sequence[UpdateRecord]) -> Sequence[UpdateRecord]:
    return updates[-RECENT:]


def _over(latest: Sequence[UpdateRecord]) -> str:
    return "of one update" if len(latest) == 1 else f"median of the latest {len(latest)} updates"


def _unknown(name: str, says: str, panel: str) -> Finding:
    return Finding(name, None, says, "", panel)


def _tells_of_search(updates: Sequence[UpdateRecord]) -> bool:
    return any(update.tells_of_search for update in updates)


def _has_limit(updates: Sequence[UpdateRecord]) -> bool:
    return any(math.isfinite(update.max_kl) for update in updates)


def _arguments(updates: Sequence[UpdateRecord]) -> _Arguments:
    if _tells_of_search(updates):
        return OURS
    if _has_limit(updates):
        return OF_A_LIMIT
    return OF_ONE_PASS if updates[-1].algorithm == "A2C" else OF_A_LOSS


def kl_at_limit(updates: Sequence[UpdateRecord]) -> Finding:
    """Is the KL pinned at the limit while the line search backtracks constantly?"""
    latest = _latest(updates)
    too_far = _median([sum("kl" in candidate.refused_by for candidate in update.candidates) for update in latest])
    used = _median(_kl_shares(latest))
    wrong = too_far >= MANY_BACKTRACKS and used > PINNED_SHARE
    return Finding(
        "Does the full step fit the trust region?",
        not wrong,
        f"Steps of an update that were too long: {too_far:g} ({_over(latest)}); one or two are usual.",
        f"The KL is pinned at the limit ({used:.0%} of it, median) and the quadratic model promises less than is measured, "
        "update after update: the direction leans on the noise of one rollout. Collect more per update (n_steps or more "
        "environments), or raise cg_damping."
        if wrong
        else "",
        "step_fraction",
    )


def kl_far_below(updates: Sequence[UpdateRecord]) -> Finding:
    """Do the steps use the trust region that they are allowed?"""
    name, panel = "Do the steps use the trust region?", "kl"
    latest = _latest(updates)
    used = _median(_kl_shares(latest))
    if math.isnan(used):
        return _unknown(name, f"None of the latest {len(latest)} updates moved the policy.", panel)
    wrong = used < FAR_BELOW_SHARE
    return Finding(
        name,
        not wrong,
        f"The steps kept use {used:.0%} of the limit δ = {limits_in_words(latest)} ({_over(latest)}).",
        "The steps are much shorter than allowed. If the line search shortens them for want of gain, the advantages are "
        "noise: collect more per update. If it keeps the full step, the quadratic model overrates the KL: use all states for "
        "the Fisher matrix (sub_sampling_factor=1)."
        if wrong
        else "",
        panel,
    )


def limit_is_kept(updates: Sequence[UpdateRecord]) -> Finding:
    """Does an algorithm that has a limit keep it, as measured over the whole rollout?"""
    over = [update for update in updates if update.mean_kl > update.max_kl]
    largest = max((update.mean_kl / update.max_kl for update in updates if update.max_kl > 0), default=math.nan)
    return Finding(
        "Is the limit kept?",
        not over,
        f"{len(over)} of {len(updates)} updates went further than their limit; the longest to {largest:.2f} of it.",
        "The KL is measured over the whole rollout after the update, the critic's fit included. If the limit is checked on a "
        "part of it, or before the critic moves layers that it shares with the policy, more is left to chance than it seems."
        if over
        else "",
        "kl",
    )


def updates_are_even(updates: Sequence[UpdateRecord]) -> Finding:
    """Does an algorithm without a limit make steps of about one length?"""
    latest = [update.mean_kl for update in _latest(updates) if math.isfinite(update.mean_kl)]
    name, panel = "Are the updates of one size?", "kl"
    if not latest or not _median(latest) > 0.0:
        return _unknown(name, f"None of the latest {len(_latest(updates))} updates moved the policy.", panel)
    median, largest = _median(latest), max(latest)
    wrong = largest > max(SPIKE * median, FAR)
    outside = _median([update.outside_clip for update in _latest(updates)])
    return Finding(
        name,
        not wrong,
        f"Mean KL {median:.2g} ({_over(_latest(updates))}), the largest {largest:.2g} nats, {largest / median:.1f} times as "
        f"much. Nothing limits it; {outside:.0%} of the ratios end outside the clip.",
        f"Single updates change the policy far more than the others. {_arguments(updates).even}, or take an algorithm that "
        "keeps a limit."
        if wrong
        else "",
        panel,
    )


def steps_refused(updates: Sequence[UpdateRecord]) -> Finding:
    """Does the policy move at all?"""
    latest = _latest(updates)
    refused = [update.status for update in latest if not update.accepted]
    wrong = len(refused) / len(latest) > REFUSED_SHARE
    reasons = ", ".join(f"{reason.replace('_', ' ')} ({refused.count(reason)})" for reason in sorted(set(refused)))
    return Finding(
        "Do the updates move the policy?",
        not wrong,
        f"{len(latest) - len(refused)} of the latest {len(latest)} updates did."
        + (f" Refused: {reasons}." if refused else ""),
        "An update without gain leaves the policy as it was, which is safe and learns nothing. Gradient zero: do rewards and "
        "observations ever differ? Not finite: look for NaN in rewards and observations. Line search failed: collect more per "
        "update, or allow more candidates (line_search_max_iter)."
        if wrong
        else "",
        "step_fraction",
    )


def cg_converges(updates: Sequence[UpdateRecord]) -> Finding:
    """Do the conjugate gradients find the natural gradient?"""
    name, panel = "Do the conjugate gradients converge?", "cg_residual"
    latest = _latest(updates)
    residual = _median([update.cg_residual_norms[-1] for update in latest if update.cg_residual_norms])
    if math.isnan(residual):
        return _unknown(name, f"None of the latest {len(latest)} updates came to them.", panel)
    wrong = residual > CG_RESIDUAL
    return Finding(
        name,
        not wrong,
        f"They end with {residual:.2g} of the residual left, 1 is no progress ({_over(latest)}).",
        "The direction is still far from the natural gradient. Allow more iterations (cg_max_steps), raise cg_damping, or "
        "scale the observations (VecNormalize) so that the Fisher matrix is better conditioned."
        if wrong
        else "",
        panel,
    )


def gain_is_measured(updates: Sequence[UpdateRecord]) -> Finding:
    """Is the predicted gain of the surrogate there when it is measured?"""
    name, panel = "Is the predicted gain measured?", "gain"
    latest = [update for update in _latest(updates) if update.candidates and update.full_step_gain > 0]
    shares = [update.candidates[0].surrogate_gain / update.full_step_gain for update in latest]
    share = _median(shares)
    if math.isnan(share):
        return _unknown(name, f"None of the latest {len(_latest(updates))} updates tried a step.", panel)
    wrong = share < GAIN_SHARE
    return Finding(
        name,
        not wrong,
        f"The full step gains {share:.0%} of what the linear model predicts ({_over(latest)}).",
        "The surrogate bends within the trust region: the step goes further than the gradient can be believed. Lower "
        "target_kl, or collect more per update."
        if wrong
        else "",
        panel,
    )


def update_gains(updates: Sequence[UpdateRecord]) -> Finding:
    """Is the surrogate better after the update than before it?"""
    name, panel = "Does the update gain what it is made for?", "gain"
    latest = [update for update in _latest(updates) if math.isfinite(update.surrogate_gain)]
    if not latest:
        return _unknown(name, f"None of the latest {len(_latest(updates))} updates was measured.", panel)
    losses = _share(latest, lambda update: update.surrogate_gain <= 0.0)
    wrong = losses > REFUSED_SHARE
    return Finding(
        name,
        not wrong,
        f"The surrogate gains {_median([update.surrogate_gain for update in latest]):.2g} "
        f"{latest[-1].gain_unit} ({_over(latest)}); {losses:.0%} of the updates lost by it, or left it as it was.",
        "By its own rollout the new policy is no better than the old one. The steps are too long "
        f"({_arguments(updates).shorter}), or something else pulls at the same layers ({_arguments(updates).losses})."
        if wrong
        else "",
        panel,
    )


def _longer_search(updates: Sequence[UpdateRecord], *, continuous: bool) -> str:
    """Return what keeps a policy random for longer, in arguments that do something for its actions."""
    arguments = _arguments(updates)
    return arguments.search + (arguments.noise if continuous else "")


def _fell_early(updates: Sequence[UpdateRecord]) -> str:
    """Say that one action hardly varied any more after a tenth of the record, if that is so."""
    stds = [(n / len(updates), *update.least_std) for n, update in enumerate(updates, start=1) if update.least_std]
    fallen = [now for progress, _, now in stds if falls_early(stds[0][1], now, progress=progress)]
    if not fallen:
        return ""
    return f" That of one action fell from {stds[0][1]:.3g} to {min(fallen):.3g} in the first {EARLY:.0%} of it."


def policy_explores(updates: Sequence[UpdateRecord]) -> Finding:
    """Has the policy kept some of its randomness?"""
    continuous = math.isfinite(updates[0].std)
    name, panel = "Does the policy still explore?", "std" if continuous else "entropy"
    first, last = ((update.std if continuous else update.entropy) for update in (updates[0], updates[-1]))
    what = "standard deviation" if continuous else "entropy"
    if len(updates) < 2 or not (math.isfinite(first) and first > 0 and math.isfinite(last)):
        return _unknown(name, f"There are no two updates to compare the {what} of.", panel)
    fell = _fell_early(updates)
    wrong = bool(fell) or last / first < (STD_SHARE if continuous else ENTROPY_SHARE)
    return Finding(
        name,
        not wrong,
        f"The {what} is {last:.3g}, {last / first:.0%} of the {first:.3g} at the beginning of the record.{fell}",
        "The policy is all but deterministic and sees little that is new. If the return is where it should be, training is "
        f"done; if not, it settled too early: {_longer_search(updates, continuous=continuous)}."
        if wrong
        else "",
        panel,
    )


def critic_explains(updates: Sequence[UpdateRecord]) -> Finding:
    """Do the values tell the good states from the bad ones?"""
    name, panel = "Does the critic explain the returns?", "explained_variance"
    latest = _latest(updates)
    explained = _median([update.explained_variance for update in latest])
    if math.isnan(explained):
        return _unknown(name, "The returns do not vary, there is nothing to explain.", panel)
    wrong = explained < EXPLAINED_VARIANCE
    return Finding(
        name,
        not wrong,
        f"It explains {explained:.0%} of the variance of the returns ({_over(latest)}; less than nothing "
        "is worse than a constant).",
        f"The advantages are as noisy as the returns themselves. Fit more ({_arguments(updates).fit}), "
        "scale rewards (VecNormalize), or give the critic a larger network. Where every state is worth the same, as once a "
        "task is solved, this is as it should be."
        if wrong
        else "",
        panel,
    )


def observations_are_scaled(updates: Sequence[UpdateRecord]) -> Finding:
    """Does the network see all dimensions of the observations alike?"""
    name, panel = "Are the observations on one scale?", "norms"
    spread = updates[0].observation_spread
    if math.isnan(spread):
        return _unknown(name, "There is no record of the observations' scales, or they are no vectors of floats.", panel)
    wrong = spread > SPREAD
    return Finding(
        name,
        not wrong,
        f"The scales of their dimensions differed by a factor of {spread:,.3g} in the first update on record.",
        "The network sees little of the small ones, and steps are spent on the large ones: wrap the environment in "
        "VecNormalize."
        if wrong
        else "",
        panel,
    )


def _always(updates: Sequence[UpdateRecord]) -> bool:
    return True


# Each rule with what tells whether it applies to an algorithm
RULES: dict[Callable[[Sequence[UpdateRecord]], Finding], Callable[[Sequence[UpdateRecord]], bool]] = {
    kl_at_limit: _tells_of_search,
    kl_far_below: _has_limit,
    limit_is_kept: lambda updates: _has_limit(updates) and not _tells_of_search(updates),
    updates_are_even: lambda updates: not _has_limit(updates) and any(math.isfinite(update.mean_kl) for update in updates),
    steps_refused: _tells_of_search,
    cg_converges: _tells_of_search,
    gain_is_measured: _tells_of_search,
    update_gains: lambda updates: not _tells_of_search(updates),
    policy_explores: _always,
    critic_explains: _always,
    observations_are_scaled: _always,
}


def check_health(updates: Sequence[UpdateRecord]) -> list[Finding]:
    """
    Ask every rule that applies to the algorithm.

    :param updates: of a run, in order
    :return: what each rule says, empty without an update
    """
    return [rule(updates) for rule, applies in RULES.items() if applies(updates)] if updates else []
