"""What stands between a collection loop and the user's callback, to look at a rollout while it is made."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv

# Packages whose environments know nothing of a model
WELL_KNOWN = {"gymnasium", "stable_baselines3", "sb3_contrib", "sb3_trpo", "rl_zoo3", "ale_py", "envpool", "shimmy", "numpy"}
OF_A_STEP = {"step", "reset", "step_async", "step_wait"}


class PassedOn:
    """
    Everything that a collection loop tells a callback, passed on to the user's. The user's callback does not see it.

    :param callback: the user's, or what stands before it
    """

    def __init__(self, callback: "BaseCallback | PassedOn"):
        self.callback = callback

    def on_training_start(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """Pass the start of the training on."""
        locals_["callback"] = self.callback
        self.callback.on_training_start(locals_, globals_)

    def on_training_end(self) -> None:
        """Pass the end of the training on."""
        self.callback.on_training_end()

    def on_rollout_start(self) -> None:
        """Pass the start of a rollout on."""
        self.callback.on_rollout_start()

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Pass on what the loop has in its variables."""
        locals_["callback"] = self.callback
        self.callback.update_locals(locals_)

    def on_step(self) -> bool:
        """Pass a step on; return whether to go on."""
        return self.callback.on_step()

    def on_rollout_end(self) -> None:
        """Pass the end of a rollout on."""
        self.callback.on_rollout_end()


class BeforeTheEnd(PassedOn, BaseCallback):
    """
    Do something once training has ended, before the user's callback hears of it.

    It is a callback itself, for subclasses of an algorithm that are handed it in place of the user's.

    :param callback: the user's, or what stands before it
    :param finish: what is to be done
    """

    def __init__(self, callback: "BaseCallback | PassedOn", finish: Callable[[], object]):
        PassedOn.__init__(self, callback)  # whatever else a callback has is the user's
        self.finish = finish

    def __getattr__(self, name: str) -> Any:
        if "callback" not in vars(self):  # while it is copied
            raise AttributeError(name)
        return getattr(self.callback, name)

    def init_callback(self, model: Any) -> None:
        """Pass the model on."""
        self.callback.init_callback(model)  # type: ignore[union-attr]

    def _on_step(self) -> bool:
        return self.callback._on_step()  # type: ignore[union-attr]

    def on_training_end(self) -> None:
        """Do it, and pass the end on."""
        self.finish()
        super().on_training_end()


class AsGiven(PassedOn):
    """
    Let a callback find in its ``locals`` what the user gave, and not what stands before it, and what another loop has there.

    :param callback: the user's, or what stands before it
    :param given: by the names of the variables
    """

    def __init__(self, callback: "BaseCallback | PassedOn", given: dict[str, Any]):
        super().__init__(callback)
        self.given = given

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Pass on what the loop has in its variables."""
        super().update_locals(locals_ | self.given)


class StandIn:
    """
    Something that stands in the place of another thing: what is asked of it, or set, is that of the thing itself.

    :param thing: the other thing
    :param own: attributes that are its own
    """

    def __init__(self, thing: Any, **own: Any):
        vars(self).update(own, thing=thing)

    def __getattr__(self, name: str) -> Any:
        if "thing" not in vars(self):  # while it is copied
            raise AttributeError(name)
        return getattr(vars(self)["thing"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["thing"], name, value)


def runs_user_code(callback: "BaseCallback | PassedOn") -> bool:
    """Whether anything but SB3's own code runs in a callback: it does not where the user gave none, or a progress bar."""
    if isinstance(callback, PassedOn):
        return runs_user_code(callback.callback)
    if type(callback) is CallbackList:
        return any(map(runs_user_code, callback.callbacks))
    if type(callback) is ConvertCallback:
        return callback.callback is not None
    return type(callback) is not ProgressBarCallback


def _is_well_known(thing: Any) -> bool:
    """Whether a class or a function is of a package that knows nothing of a model."""
    return isinstance(thing, np.ufunc) or str(getattr(thing, "__module__", None)).partition(".")[0] in WELL_KNOWN


def is_of_users_own(thing: Any, name: str) -> bool:
    """Whether a method is of the user's own: set on the object, or of a class of theirs."""
    return name in vars(thing) or not _is_well_known(getattr(type(thing), name, None))


def steps_through_user_code(env: VecEnv) -> bool:
    """Whether stepping an environment runs, in this process, code of the user's own: it may know the model, and change it."""
    layers: list[Any] = [env]
    seen: set[int] = set()
    while layers:
        layer = layers.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        held = vars(layer)
        # A method may be set on the object too, and a wrapper may be made of a function
        functions = [value.func if isinstance(value, partial) else value for value in held.values() if callable(value)]
        if not _is_well_known(type(layer)) or not OF_A_STEP.isdisjoint(held) or not all(map(_is_well_known, functions)):
            return True
        layers += [value for name, value in held.items() if name == "backend" or hasattr(type(value), "step")]
        layers += held.get("envs", ())
    return False
