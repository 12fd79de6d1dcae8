"""What stands between a collection loop and the user's callback, to look at a rollout while it is made."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv

# Packages whose environments know nothing of a model
WELL_KNOWN = {"gymnasium", "stable_baselines3", "sb3_contrib", "sb3_trpo", "ale_py", "envpool", "shimmy"}
OF_A_STEP = {"step", "reset", "step_async", "step_wait"}


class PassedOn:
    """
    Everything that a collection loop tells a callback, passed on to the user's. The user's callback does not see it.

    :param callback: the user's, or what stands before it
    """

    def __init__(self, callback: "BaseCallback | PassedOn"):
        self.callback = callback

    def on_rollout_start(self) -> None:
        """Pass the start on."""
        self.callback.on_rollout_start()

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Pass on what the loop has in its variables."""
        locals_["callback"] = self.callback
        self.callback.update_locals(locals_)

    def on_step(self) -> bool:
        """Pass a step on; return whether to go on."""
        return self.callback.on_step()

    def on_rollout_end(self) -> None:
        """Pass the end on."""
        self.callback.on_rollout_end()


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


def steps_through_user_code(env: VecEnv) -> bool:
    """Whether stepping an environment runs, in this process, code of the user's own: it may know the model, and change it."""
    layers: list[Any] = [env]
    while layers:
        layer = layers.pop()
        held = vars(layer)
        # A method may be set on the object too
        if type(layer).__module__.partition(".")[0] not in WELL_KNOWN or not OF_A_STEP.isdisjoint(held):
            return True
        layers += [held[name] for name in ("venv", "env", "backend") if held.get(name) is not None]
        layers += held.get("envs", ())
    return False
