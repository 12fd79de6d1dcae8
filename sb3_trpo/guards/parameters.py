"""What the parameters of a model may be replaced by."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy


class MisfitError(ValueError, RuntimeError):
    """A tensor has not the shape of what it is for: torch says ``RuntimeError`` to that."""


def check_parameters(
    given: Mapping[str, Any], own: Mapping[str, Any], policy: BasePolicy, *, exact_match: bool = True
) -> None:
    """
    Refuse parameters that do not fit a model or that no training could start from.

    :param given: state dictionaries by object name (``"policy"``, ``"policy.optimizer"``), as a model's ``get_parameters``
    :param own: those of the model that they are for
    :param policy: the model's
    :param exact_match: whether a tensor that the model does not have is refused, or passed over as SB3 does
    :raises TypeError: if an entry is not a dictionary
    :raises ValueError: naming the object or tensor, if it is unknown, of another shape, trained and not finite, or not what is
        given for the same tensor under another name
    """
    for name, state in given.items():
        if name not in own:
            raise ValueError(f"{name!r} is not an object with parameters, expected one of {sorted(own)}")
        if not isinstance(state, Mapping):
            raise TypeError(f"the parameters of {name!r} must be a dictionary, got {state!r}")
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    for key, value in given.get("policy", {}).items():
        if key not in own["policy"]:
            if exact_match:
                raise ValueError(f"policy parameter {key!r} is not one of this model's")
        elif isinstance(own["policy"][key], th.Tensor):
            # A buffer, and a parameter that is not trained, may hold infinities: masks do
            _check_tensor(f"policy parameter {key!r}", value, own["policy"][key].shape, finite=key in trained)
    _check_names_of_one(given.get("policy", {}), own["policy"])
    if "policy.optimizer" in given:
        _check_optimizer(given["policy.optimizer"], policy.optimizer)
    for name in given.keys() - {"policy", "policy.optimizer"}:
        _check_other(name, given[name], own[name])


def _check_names_of_one(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse two values for a tensor that has two names, as those of a feature extractor that actor and critic share."""
    first: dict[Any, str] = {}
    for name, tensor in own.items():
        if name in given and isinstance(tensor, th.Tensor) and tensor.numel() > 0:
            other = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
            if other != name and not np.array_equal(_as_array(given[name]), _as_array(given[other]), equal_nan=True):
                raise ValueError(
                    f"policy parameters {other!r} and {name!r} are one tensor in this model and must have one value, got two. "
                    "Separate feature extractors do not fit into a shared one: a model with separate ones is made with "
                    "policy_kwargs={'share_features_extractor': False}"
                )


def _as_array(tensor: th.Tensor) -> np.ndarray:
    # Half precision has a type that NumPy lacks
    return tensor.detach().cpu().to(th.float64).numpy()


def _check_other(name: str, state: Any, own: Any) -> None:
    """Refuse what is not finite in the state of an object of the algorithm's own, where what it replaces is."""
    if isinstance(state, Mapping):
        for key, part in state.items():
            _check_other(f"{name}[{key!r}]", part, own.get(key) if isinstance(own, Mapping) else None)
    elif isinstance(state, th.Tensor) and not (isinstance(own, th.Tensor) and not bool(own.isfinite().all())):
        _check_tensor(name, state, state.shape, finite=True)


def _check_optimizer(state: Mapping[str, Any], optimizer: th.optim.Optimizer) -> None:
    if not {"param_groups", "state"} <= state.keys():
        raise ValueError(f"policy.optimizer must have the keys 'param_groups' and 'state', got {sorted(state)}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, memory in state["state"].items():
        if not (isinstance(index, int) and 0 <= index < len(parameters)):
            raise ValueError(f"policy.optimizer's state is of {len(parameters)} parameters, got one of parameter {index!r}")
        missing = {"step", "exp_avg", "exp_avg_sq"} - memory.keys() if isinstance(optimizer, th.optim.Adam) else set()
        if missing:
            raise ValueError(
                f"policy.optimizer's state of parameter {index} must have {sorted(missing)}, got {sorted(memory)}"
            )
        for key, value in memory.items():
            if isinstance(value, th.Tensor):
                shape = parameters[index].shape if key.startswith("exp_avg") else value.shape
                _check_tensor(f"policy.optimizer's {key!r} of parameter {index}", value, shape, finite=True)


def _check_tensor(name: str, tensor: Any, shape: th.Size, *, finite: bool) -> None:
    if not isinstance(tensor, th.Tensor):
        got = f"an array of shape {tensor.shape}" if isinstance(tensor, np.ndarray) else repr(tensor)
        raise TypeError(f"{name} must be a tensor, got {got}")
    if tensor.shape != shape:
        raise MisfitError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if finite and not bool(th.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got {tensor}")
