"""What is looked at while a rollout is made, around the user's callback: one layer, since it costs at every step."""

from operator import attrgetter
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo.guards.environments import spends_steps_on_resets
from sb3_trpo.guards.finite import FinitePart, check_policy_is_finite, is_finite, refuse_nonfinite
from sb3_trpo.guards.passed_on import PassedOn

# What each step of a rollout uses
_used_at_a_step = attrgetter("gamma", "gae_lambda", "use_sde", "sde_sample_freq", "device")


class WatchedRollout(PassedOn):
    """
    Look at the numbers that a rollout is made of, and at the attributes of the model that a callback may set.

    SB3's loops tell a callback of what an environment gave before the policy sees it, and the policy must not see what is not
    finite: an action made from NaN may crash a simulator for good. The environment is left alone: callbacks look at it, and
    pickle it.

    :param callback: the user's
    :param model: the algorithm that collects; its ``_check_attributes`` looks at the attributes
    :param finite: what must be finite
    """

    def __init__(self, callback: BaseCallback, model: Any, finite: FinitePart):
        super().__init__(callback)
        self.model = model
        self.env = model.env
        self.finite = finite
        self.looks_at_observations = finite.observations
        self.used = _used_at_a_step(model)
        self.wasteful = spends_steps_on_resets(self.env)
        self.wasted: list[np.ndarray] = []
        # Whether any reward was other than zero
        self.is_rewarded = False
        # What the loop has in its variables
        self.told: dict[str, Any] = {}
        # Whether the policy acts, or the environment makes a step
        self.is_between_callbacks = False

    def wasted_steps(self) -> np.ndarray | None:
        """Return which steps were none, since an environment only reset in them, shape (n_steps, n_envs); or ``None``."""
        return np.stack(self.wasted) if self.wasted else None

    def on_rollout_start(self) -> None:
        """Look at what the callback has left for the first step."""
        super().on_rollout_start()
        self._look()
        if self.finite.policy:
            check_policy_is_finite(self.model.policy)
        if self.finite.observations and self.model._last_obs is not None:  # else the loop says it
            refuse_nonfinite("the observation of", self.model._last_obs, step=0)
        self.is_between_callbacks = True

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Look at what a step gave."""
        self.is_between_callbacks = False
        if self.looks_at_observations and not is_finite(locals_["new_obs"]):
            refuse_nonfinite("the observation of", locals_["new_obs"], step=locals_["n_steps"] + 1)
        self.is_rewarded = self.is_rewarded or bool(np.any(locals_.get("rewards")))
        self.told = locals_
        locals_["callback"], locals_["self"] = self.callback, self.model
        self.callback.update_locals(locals_)

    def on_step(self) -> bool:
        """Pass the step on, and look again if what the next one uses was set."""
        if self.wasteful is not None:
            self.wasted.append(self.wasteful.wasted_steps.copy())
        goes_on = False
        try:
            goes_on = self.callback.on_step()
        finally:
            if not goes_on:
                self._go_on_after_this_step()
        model, (gamma, gae_lambda, use_sde, sde_sample_freq, device) = self.model, self.used
        # By identity and one by one, since this is done at every step
        if goes_on and not (
            model.gamma is gamma
            and model.gae_lambda is gae_lambda
            and model.use_sde is use_sde
            and model.sde_sample_freq is sde_sample_freq
            and model.device is device
        ):
            try:
                self._look()
            except (TypeError, ValueError):
                # In the middle of a step: the environment is further on
                self.model._last_obs = None
                raise
        self.is_between_callbacks = goes_on
        return goes_on

    def _go_on_after_this_step(self) -> None:
        """
        Let the next call of ``learn`` go on from where the environment is.

        A loop that is left in the middle of a step leaves what was observed before it. A policy would act on that, a memory
        would miss what came after it or last across the end of an episode, and masks would be those of something else.
        """
        if self.model._last_obs is None or not self.told:
            return
        self.model._last_obs, self.model._last_episode_starts = self.told["new_obs"], self.told["dones"]
        if "lstm_states" in self.told:
            self.model._last_lstm_states = self.told["lstm_states"]

    def on_rollout_end(self) -> None:
        """Look at what the returns and the update use; what a callback looks at now is that of this rollout."""
        self.is_between_callbacks = False
        self.model._wasted_steps, self.model._is_rewarded = self.wasted_steps(), self.is_rewarded
        super().on_rollout_end()
        self._look()

    def _look(self) -> None:
        if self.model.env is not self.env:
            raise ValueError(
                f"env must stay {self.env!r} while the model learns, got {self.model.env!r}: "
                "call set_env between two calls of learn"
            )
        self.model._check_attributes()
        self.used = _used_at_a_step(self.model)
