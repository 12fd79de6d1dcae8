"""What user code sets while a model trains: looked at where it is used, and refused before anything moves."""

from collections.abc import Iterable
from operator import is_
from typing import Any

from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

# What a model is built from, and what to do instead of setting it
FIXED = {
    "policy_class": "the policy is built already",
    "policy_kwargs": "the policy is built already",
    "rollout_buffer_class": "`load(path, env, rollout_buffer_class=...)` gives a saved model another one",
    "rollout_buffer_kwargs": "`load(path, env, rollout_buffer_kwargs=...)` gives a saved model another buffer",
    "stats_window_size": "`load(path, env, stats_window_size=...)` gives a saved model another one",
    "device": "`load(path, env, device=...)` puts a saved model elsewhere",
    "seed": "`set_random_seed(seed)` seeds a model that is built",
    "observation_space": "`set_env` gives a model another environment with the same spaces",
    "action_space": "`set_env` gives a model another environment with the same spaces",
}
# What the rollout buffer holds copies of
COPIED = ("gamma", "gae_lambda")


def _is_same(one: Any, other: Any) -> bool:
    # Numbers and dicts are not the same object any more once a model was pickled
    if one is other:
        return True
    if type(one) is not type(other) and not (isinstance(one, int | float) and isinstance(other, int | float)):
        return False
    try:
        return bool(one == other)
    except Exception:
        return False  # of other things nobody knows what `==` does


def _check_parts(model: OnPolicyAlgorithm) -> None:
    """Refuse what is no policy or no buffer."""
    for name, kind in (("policy", nn.Module), ("rollout_buffer", BaseBuffer)):
        if not isinstance(getattr(model, name), kind):
            raise TypeError(f"{name} must be a {kind.__name__} once the model is built, got {getattr(model, name)!r}")


class AsBuilt:
    """
    What a model was built from, to tell later what has been set since.

    :param model: as it was just built
    """

    def __init__(self, model: OnPolicyAlgorithm):
        self.values = {name: getattr(model, name, None) for name in (*FIXED, *COPIED, "learning_rate", "lr_schedule")}
        self.noted: list[Any] | None = None
        # A buffer or a policy of the user's own may have ways of its own
        self.buffer_has_n_steps = model.rollout_buffer.buffer_size == model.n_steps
        self.use_sde = model.use_sde

    def agree(self, name: str, value: Any) -> None:
        """Take a value for that which the model was built with."""
        self.values[name] = value

    def is_anything_set(self, model: OnPolicyAlgorithm, names: Iterable[str]) -> bool:
        """Whether an attribute is another object than when they were noted last; most times none is, and nothing to check."""
        return self.noted is None or not all(map(is_, map(vars(model).get, names), self.noted))

    def note(self, model: OnPolicyAlgorithm, names: Iterable[str]) -> None:
        """Keep the attributes as they are, found to be good."""
        self.noted = list(map(vars(model).get, names))

    def _is_set(self, model: OnPolicyAlgorithm, name: str) -> bool:
        return not _is_same(getattr(model, name, None), self.values[name])

    def take_over(self, model: OnPolicyAlgorithm) -> None:
        """
        Give what has been set to those who hold copies of it, and refuse what the model cannot take over any more.

        :param model: whose attributes may have been set; they are numbers and flags that can work
        :raises TypeError: naming the attribute and its value, where it is no policy or no buffer
        :raises ValueError: naming the attribute and its value
        """
        _check_parts(model)
        n_stored = model.rollout_buffer.buffer_size
        if self.buffer_has_n_steps and n_stored != model.n_steps:
            raise ValueError(
                f"n_steps must stay {n_stored}, which the rollout buffer was built for, got {model.n_steps}: "
                "`load(path, env, n_steps=...)` gives a saved model another buffer"
            )
        if model.use_sde != self.use_sde:
            raise ValueError(f"use_sde must stay {self.use_sde}, as the policy was built, got {model.use_sde}")
        for name, way_out in FIXED.items():
            if self._is_set(model, name):
                raise ValueError(
                    f"{name} must stay {self.values[name]!r} once the model is built, got {getattr(model, name)!r}: {way_out}"
                )
        for name in COPIED:
            # A buffer that was given a value of its own keeps it
            if self._is_set(model, name):
                self.values[name] = getattr(model, name)
                setattr(model.rollout_buffer, name, self.values[name])
        if self._is_set(model, "learning_rate"):
            if not self._is_set(model, "lr_schedule"):
                model._setup_lr_schedule()
            self.values.update(learning_rate=model.learning_rate, lr_schedule=model.lr_schedule)
