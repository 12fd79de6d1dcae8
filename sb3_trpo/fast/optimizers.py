"""
Steps of torch's optimizers written out in NumPy, on all parameters in one vector.

The plain twin of each is the class of ``torch.optim`` of the same name.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import torch as th


class VectorOptimizer(Protocol):
    """
    An optimizer of one flat vector.

    Its class names in ``MEMORY`` what torch's keeps for each parameter, in vectors of the same shape.
    """

    MEMORY: ClassVar[tuple[str, ...]]
    # Flags of the group that must be off, for another algorithm would follow from them
    OFF: ClassVar[tuple[str, ...]]

    def __init__(self, group: Mapping[str, Any]):
        """Take the settings of a parameter group."""

    def step(self, flat: np.ndarray, gradient: np.ndarray, memory: list[np.ndarray], n_steps: int) -> None:
        """Take a step in place; it is the ``n_steps``-th one."""


class Adam:
    """Kingma & Ba 2015, *Adam*, section 2, with both bias corrections in the scalars."""

    MEMORY: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    OFF: ClassVar[tuple[str, ...]] = ("weight_decay", "amsgrad", "maximize", "differentiable", "capturable", "fused")

    def __init__(self, group: Mapping[str, Any]):
        self.lr, (self.beta1, self.beta2), self.eps = float(group["lr"]), group["betas"], group["eps"]
        self.scratch: np.ndarray | None = None

    def step(self, flat: np.ndarray, gradient: np.ndarray, memory: list[np.ndarray], n_steps: int) -> None:
        """Take a step in place."""
        if self.scratch is None:
            self.scratch = np.empty_like(flat)
        (mean, square), scratch = memory, self.scratch
        np.multiply(gradient, 1.0 - self.beta1, out=scratch)
        mean *= self.beta1
        mean += scratch
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1.0 - self.beta2
        square *= self.beta2
        square += scratch
        correction = math.sqrt(1.0 - self.beta2**n_steps)
        np.sqrt(square, out=scratch)
        scratch += self.eps * correction
        np.divide(mean, scratch, out=scratch)
        scratch *= self.lr * correction / (1.0 - self.beta1**n_steps)
        flat -= scratch


class AdamW(Adam):
    """Loshchilov & Hutter 2019, *Decoupled Weight Decay Regularization*, algorithm 2."""

    OFF: ClassVar[tuple[str, ...]] = ("amsgrad", "maximize", "differentiable", "capturable", "fused")

    def __init__(self, group: Mapping[str, Any]):
        super().__init__(group)
        self.kept = 1.0 - self.lr * float(group["weight_decay"])

    def step(self, flat: np.ndarray, gradient: np.ndarray, memory: list[np.ndarray], n_steps: int) -> None:
        """Take a step in place."""
        flat *= self.kept
        super().step(flat, gradient, memory, n_steps)


class RMSprop:
    """Tieleman & Hinton 2012, *Lecture 6.5 - RMSprop*, as torch has it."""

    MEMORY: ClassVar[tuple[str, ...]] = ("square_avg",)
    OFF: ClassVar[tuple[str, ...]] = ("weight_decay", "momentum", "centered", "maximize", "differentiable", "capturable")

    def __init__(self, group: Mapping[str, Any]):
        self.lr, self.alpha, self.eps = float(group["lr"]), group["alpha"], group["eps"]

    def step(self, flat: np.ndarray, gradient: np.ndarray, memory: list[np.ndarray], n_steps: int) -> None:
        """Take a step in place."""
        (square,) = memory
        square *= self.alpha
        square += (1.0 - self.alpha) * gradient * gradient
        flat -= self.lr * gradient / (np.sqrt(square) + self.eps)


# By exact class: a subclass may do anything
WRITTEN_OUT: dict[type[th.optim.Optimizer], type[VectorOptimizer]] = {
    th.optim.Adam: Adam,
    th.optim.AdamW: AdamW,
    th.optim.RMSprop: RMSprop,
}
