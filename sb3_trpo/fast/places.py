"""
Where a policy holds its parts: what was read of it is of use for as long as each of them is where it was.

The plain twin is to read the policy anew at each step.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn


class Places:
    """
    Modules and what they hold, to see later whether anything was replaced, added or hooked. Numbers may change.

    :param modules: what was read, and what holds it
    :param policy: whose they are; its distribution is one of its parts
    :param extractors: modules whose ``forward`` may look at any of their attributes
    """

    def __init__(self, modules: Sequence[nn.Module], policy: Any, extractors: Sequence[nn.Module]):
        held = [(m._parameters, name, p) for m in modules for name, p in m._parameters.items()]
        self.places: list[tuple[Any, str, object]] = [(vars(policy), "action_dist", policy.action_dist)]
        self.places += [(m._modules, name, child) for m in modules for name, child in m._modules.items()]
        self.places += held
        self.places += [(vars(extractor), name, value) for extractor in extractors for name, value in vars(extractor).items()]
        self.memory = [(p, p.data_ptr(), p.numel(), p.stride()) for _, _, p in held if p is not None]
        # Methods that are set on an object, and another class of it
        objects = (*modules, policy.action_dist)
        self.kinds = [(thing, type(thing), vars(thing), len(vars(thing))) for thing in objects]
        self.sizes = [(modules_in, len(modules_in)) for modules_in in (module._modules for module in modules)]
        self.hooks: list[dict[int, Any]] = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.hooks += [nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks]

    def are_as_they_were(self) -> bool:
        """Whether nothing was replaced, added or hooked, wherever the numbers come from."""
        for modules, n_modules in self.sizes:
            if len(modules) != n_modules:
                return False
        for thing, kind, attributes, n_attributes in self.kinds:
            if type(thing) is not kind or len(attributes) != n_attributes:
                return False
        for owner, name, thing in self.places:
            if owner.get(name) is not thing:
                return False
        for parameter, address, size, stride in self.memory:
            if parameter.data_ptr() != address or parameter.numel() != size or parameter.stride() != stride:
                return False
        return not any(self.hooks)
