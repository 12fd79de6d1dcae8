"""What a newcomer misses: one line for each thing, with the way out, and never more than once a run."""

import math
from collections.abc import Iterator

from sb3_trpo.metrics import UpdateReport

# Largest over smallest scale of the observations' dimensions
SPREAD = 1e3
# A standard deviation below this hardly explores any more; it should not be there in this share of the training
SMALL_STD, EARLY = 0.1, 0.1
# Share of the limit, and how many updates in a row may use less
LITTLE_USED, IN_A_ROW = 0.25, 10
# By this update a critic explains something
CRITIC_BY = 50


def falls_early(first: float, now: float, *, progress: float) -> bool:
    """Whether a standard deviation that began at ``first`` is so small so early that the policy hardly explores any more."""
    return progress <= EARLY and now < SMALL_STD <= first


class Hints:
    """The hints of one run: what has been seen of it, and what has been said."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._first_std = math.nan
        self._n_updates = self._n_little_used = self._n_unexplained = 0

    def after(self, update: UpdateReport, *, progress: float) -> list[str]:
        """
        Return what is to be said after an update, mostly nothing.

        :param update: what the update did
        :param progress: share of the training that is done
        """
        self._n_updates += 1
        new = {name: line for name, line in self._due(update, progress) if name not in self._said}
        self._said.update(new)
        return list(new.values())

    def _due(self, update: UpdateReport, progress: float) -> Iterator[tuple[str, str]]:
        if update.observation_spread is not None and update.observation_spread > SPREAD:
            yield (
                "spread",
                f"Hint: the scales of the observations differ by a factor of {update.observation_spread:,.0f}. The network "
                "sees little of the small ones: wrap the environment in VecNormalize, with norm_obs=True.",
            )
        if update.least_std is not None:
            before, std = update.least_std
            self._first_std = before if math.isnan(self._first_std) else self._first_std
            if falls_early(self._first_std, std, progress=progress):
                yield (
                    "std",
                    f"Hint: the standard deviation of an action fell from {self._first_std:.2g} to {std:.2g} in the "
                    f"first {max(progress, 0.01):.0%} of the training, which ends the exploration: give std_damping, say 4.",
                )
        step = update.step
        searched = step.accepted or step.status == "line_search_failed"
        self._n_little_used = self._n_little_used + 1 if searched and step.mean_kl < LITTLE_USED * update.max_kl else 0
        if self._n_little_used >= IN_A_ROW:
            yield (
                "limit",
                f"Hint: {IN_A_ROW} updates in a row used less than a quarter of target_kl. The gradient is mostly noise, or "
                "there is little left to gain: collect more per update (n_steps, or more environments).",
            )
        explained = update.explained_variance
        # Without a reward the returns are what the critic itself gives
        useless = update.critic is not None and update.is_rewarded and math.isfinite(explained) and explained <= 0.0
        self._n_unexplained = self._n_unexplained + 1 if useless else 0
        if self._n_updates >= CRITIC_BY and self._n_unexplained >= IN_A_ROW:
            yield (
                "critic",
                f"Hint: after {self._n_updates} updates the critic explains nothing of the returns. Scale the rewards "
                "(VecNormalize), or fit it more (n_critic_updates, learning_rate). Once a task is solved, and every state is "
                "worth the same, this is as it should be.",
            )
