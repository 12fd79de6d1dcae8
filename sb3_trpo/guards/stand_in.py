"""What stands in the place of a model or a policy where a loop of SB3 or sb3-contrib asks it for one thing too little."""

from typing import Any


class StandIn:
    """
    Something of which nothing is known: whatever is asked for, or set, is that of the thing itself.

    :param thing: what it stands for
    """

    def __init__(self, thing: Any):
        vars(self)["_thing"] = thing

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_thing"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_thing"], name, value)
