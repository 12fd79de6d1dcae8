"""What an update did, and the one table of logger keys and their meanings."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from stable_baselines3.common.logger import Logger

from sb3_trpo.critic import CriticFit
from sb3_trpo.trust_region import TrustRegionStep

# The logger gets numbers, since its readers average and plot them: words stand here, in the report and in its remark
UPDATE_STATUSES = {
    "accepted": "the policy moved",
    "parameters_not_finite": "a parameter of the policy is NaN or infinite",
    "observations_not_finite": "an observation of the rollout is NaN or infinite",
    "actions_not_finite": "an action of the rollout is NaN or infinite",
    "log_probabilities_not_finite": "a log-probability of the rollout is NaN or infinite",
    "values_not_finite": "a value of the rollout is NaN or infinite",
    "rewards_not_finite": "a reward of the rollout is NaN or infinite",
    "advantages_not_finite": "an advantage of the rollout is NaN or infinite",
    "returns_not_finite": "a return of the rollout is NaN or infinite",
    "gradient_zero": "the surrogate's gradient is zero, as with advantages that are all the same",
    "gradient_not_finite": "the surrogate's gradient is NaN or infinite",
    "limit_zero": "`target_kl` is 0: its schedule has come to its end",
    "curvature_not_positive": "the step has no length in the Fisher metric (sᵀFs is not positive), or that is not finite",
    "direction_not_ascent": "the direction found is no ascent direction (g·s ≤ 0)",
    "line_search_failed": "no candidate kept the limit and improved the surrogate",
}
CRITIC_STATUSES = {
    "fitted": "every minibatch made its step",
    "steps_skipped": "some minibatches made no step, since their loss or gradient was not finite",
    "undone": "the fit led away from the finite numbers or moved the policy: the critic is bit for bit what it was",
}
# Ways in which the conjugate gradients can end that say that something is wrong with the Fisher products
CG_FAILURES = {
    "curvature": "a direction had no positive curvature",
    "not_finite": "the next iterate was not finite",
}


def _in_words(status: str, meanings: dict[str, str]) -> str:
    return f"{status} ({meanings[status]})" if status in meanings else status


class PhaseClock:
    """Measures the wall time of phases that follow each other: each begins where the one before it ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._current: str | None = None
        self._since = 0.0

    def begin(self, phase: str) -> None:
        """End the present phase, if any, and begin another."""
        self.stop()
        self._current = phase

    def stop(self) -> None:
        """End the present phase, if any."""
        now = time.perf_counter()
        if self._current is not None:
            self.seconds[self._current] = self.seconds.get(self._current, 0.0) + now - self._since
        self._current, self._since = None, now


class UpdateReport(NamedTuple):
    """
    Everything there is to know about one call of ``train()``; the last one is ``model.last_update``.

    :param step: what the trust-region step did
    :param critic: what the value fit did, ``None`` if there was none (``n_critic_updates=0``)
    :param n_updates: number of updates so far, this one included
    :param max_kl: limit on the mean KL, in nats
    :param damping: what was added to the diagonal of the Fisher matrix
    :param explained_variance: of the returns by the values the rollout was collected with; 1 is perfect
    :param entropy: mean entropy of the policy after the update, in nats; ``None`` where it has no closed form
    :param std: mean standard deviation parameter of the policy after the update; ``None`` for discrete actions
    :param phase_seconds: wall time of each phase of the update
    :param observation_spread: largest over smallest root mean square of the numbers in the observations that are not always
        zero, as the policy sees them; ``None`` where all of them are images or choices, or under ``VecNormalize``
    :param noise_std: with gSDE, where ``std`` is that of the weights of its noise, mean standard deviation of the actions in
        the states of the rollout of this process; else ``None``
    :param is_rewarded: whether any reward of the rollout of this process was other than zero
    :param is_frozen: whether nothing of the policy was to be trained: its user has frozen it
    :param least_std: the least standard deviation of a dimension of the actions, before and after the update: a mean over the
        states of the rollout of this process; ``None`` for discrete actions
    """

    step: TrustRegionStep
    critic: CriticFit | None
    n_updates: int
    max_kl: float
    damping: float
    explained_variance: float
    entropy: float | None
    std: float | None
    phase_seconds: dict[str, float]
    observation_spread: float | None = None
    noise_std: float | None = None
    is_rewarded: bool = True
    is_frozen: bool = False
    least_std: tuple[float, float] | None = None

    def record(self, logger: Logger) -> None:
        """Hand every metric that this update has a value for to SB3's logger."""
        for key, metric in METRICS.items():
            value = metric.of(self)
            if value is not None:
                logger.record(key, value, exclude=metric.exclude)

    def remark(self) -> str | None:
        """Say in one line what was not as usual in this update, ``None`` if there is nothing to say."""
        step, critic, remarks = self.step, self.critic, []
        if not step.accepted and not self.is_frozen:
            remarks.append(f"{_in_words(step.status, UPDATE_STATUSES)}, the policy is bit for bit what it was")
        elif step.conjugate_gradient is not None and step.conjugate_gradient.stopped_by in CG_FAILURES:
            remarks.append(f"conjugate gradients stopped by {_in_words(step.conjugate_gradient.stopped_by, CG_FAILURES)}")
        if critic is not None and critic.status != "fitted":
            remarks.append(f"critic {_in_words(critic.status, CRITIC_STATUSES)}")
        return f"update {self.n_updates}: {'; '.join(remarks)}" if remarks else None


class Metric(NamedTuple):
    """
    One row of the table of metrics.

    :param meaning: what the number says, with its unit
    :param of: takes it out of a report: a number whose mean over several updates says something, ``None`` where there is none
    :param exclude: SB3's logger formats that do not get it
    """

    meaning: str
    of: Callable[[UpdateReport], Any]
    exclude: str | None = None


METRICS: dict[str, Metric] = {
    "train/update_accepted": Metric(
        "1 if the policy moved, 0 if it is bit for bit what it was; why it is, is in `model.last_update.step.status`",
        lambda report: int(report.step.accepted),
    ),
    "train/is_line_search_success": Metric("the same, under contrib's name", lambda report: int(report.step.accepted)),
    "train/kl_divergence_loss": Metric(
        "measured mean KL(old ‖ new) of the step kept, in nats, summed over action dimensions; 0 if none was kept",
        lambda report: report.step.mean_kl,
    ),
    "train/kl_limit": Metric("`target_kl` as it was for this update, in the same unit", lambda report: report.max_kl),
    "train/kl_expected": Metric(
        "what the quadratic model ½ stepᵀF step expected of the step kept", lambda report: report.step.expected_kl
    ),
    "train/policy_objective": Metric(
        "the surrogate L(θ), mean of ratio times advantage, at the policy kept", lambda report: report.step.surrogate
    ),
    "train/surrogate_gain": Metric(
        "measured L(θ) − L(θ_old) of the step kept, in standard deviations of the advantage where it is normalised",
        lambda report: report.step.surrogate_gain,
    ),
    "train/surrogate_gain_expected": Metric(
        "what the linear model gᵀstep expected of it", lambda report: report.step.expected_gain
    ),
    "train/step_fraction": Metric(
        "share αʲ of the full step that was kept; 0 if none was", lambda report: report.step.step_fraction
    ),
    "train/n_backtracks": Metric(
        "how many longer steps the line search refused", lambda report: sum(bool(c.refused_by) for c in report.step.candidates)
    ),
    "train/gradient_norm": Metric("length of the surrogate's gradient g", lambda report: report.step.gradient_norm),
    "train/step_norm": Metric("length of the step kept in parameter space", lambda report: report.step.step_norm),
    "train/cg_iterations": Metric(
        "conjugate gradient iterations that made the direction",
        lambda report: report.step.conjugate_gradient and report.step.conjugate_gradient.n_iterations,
    ),
    "train/cg_damping": Metric("β, `cg_damping` as it was for this update", lambda report: report.damping),
    "train/cg_converged": Metric(
        "1 if they reached their tolerance, 0 if they were stopped before, mostly by `cg_max_steps`",
        lambda report: report.step.conjugate_gradient and int(report.step.conjugate_gradient.stopped_by == "converged"),
    ),
    "train/cg_residual": Metric(
        "‖g − (F + βI)s‖ / ‖g‖ when they stopped; 1 means no progress",
        lambda report: report.step.conjugate_gradient and report.step.conjugate_gradient.residual_norms[-1],
    ),
    "train/critic_fitted": Metric(
        "1 if every minibatch of the critic's fit made its step, 0 if some were skipped or the fit was undone: "
        "`model.last_update.critic.status`",
        lambda report: report.critic and int(report.critic.status == "fitted"),
    ),
    "train/value_loss": Metric(
        "mean squared error of the critic over all of its minibatches",
        lambda report: report.critic and report.critic.value_loss,
    ),
    "train/value_loss_first": Metric(
        "the same over its first pass over the rollout", lambda report: report.critic and report.critic.first_value_loss
    ),
    "train/value_loss_last": Metric("and over its last pass", lambda report: report.critic and report.critic.last_value_loss),
    "train/n_critic_steps_skipped": Metric(
        "minibatches of the critic's fit that made no step, since their loss or gradient was not finite",
        lambda report: report.critic and report.critic.n_skipped,
    ),
    "train/explained_variance": Metric(
        "share of the returns' variance that the values before the update explain: 1 is perfect, 0 no better than a constant",
        lambda report: report.explained_variance,
    ),
    "train/entropy_loss": Metric(
        "minus the mean entropy of the policy after the update, in nats; left out where it has no closed form",
        lambda report: None if report.entropy is None else -report.entropy,
    ),
    "train/std": Metric("mean standard deviation parameter of the policy; continuous actions only", lambda report: report.std),
    "train/n_updates": Metric("updates so far, refused ones included", lambda report: report.n_updates, exclude="tensorboard"),
    "time/gradient_seconds": Metric(
        "wall time of the surrogate's gradient", lambda report: report.phase_seconds.get("gradient")
    ),
    "time/direction_seconds": Metric(
        "wall time of the conjugate gradients with their Fisher products", lambda report: report.phase_seconds.get("direction")
    ),
    "time/line_search_seconds": Metric("wall time of the line search", lambda report: report.phase_seconds.get("line_search")),
    "time/critic_seconds": Metric("wall time of the value fit", lambda report: report.phase_seconds.get("critic")),
}
