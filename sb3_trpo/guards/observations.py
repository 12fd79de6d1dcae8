"""What an observation space may be. SB3 looks at most of this when the first observation comes, or the largest one."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from sb3_trpo.guards.overridden import is_of_known_package
from sb3_trpo.policies import CountsFromZero

READABLE = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
# Height and width of the smallest image that three convolutions of NatureCNN leave something of
SMALLEST_IMAGE = 36
FLATTEN = "gymnasium.wrappers.FlattenObservation(env) makes one vector of it"


def _refuse(name: str, space: spaces.Space, must: str, way_out: str) -> None:
    raise ValueError(f"{name} must {must}, got {space}: {way_out}")


def _parts(space: spaces.Space) -> Iterator[tuple[str, spaces.Space]]:
    """Yield the spaces that observations are made of, each with the name to call it by."""
    name = "env.observation_space"
    if isinstance(space, spaces.Dict):
        yield from ((f"{name}[{key!r}]", part) for key, part in space.spaces.items())
    else:
        yield name, space


def check_structure(space: spaces.Space) -> None:
    """
    Refuse observations that SB3 has no arrays for, whatever the policy.

    :param space: the observation space
    :raises ValueError: naming the space, its key in a Dict, and the way out
    """
    for name, part in _parts(space):
        inside = part.spaces if isinstance(part, spaces.Tuple) else ()
        nested = part is not space and isinstance(part, spaces.Dict | spaces.Tuple)
        if nested or any(isinstance(one, spaces.Dict | spaces.Tuple) for one in inside):
            _refuse(name, part, "have no Dict or Tuple inside of another", FLATTEN)
        if not isinstance(part, spaces.Tuple | READABLE) and getattr(part, "shape", None) is None:
            way_out = "encode it as a Box (gymnasium.wrappers.TransformObservation)"
            _refuse(name, part, "be a Box, Discrete, MultiDiscrete, MultiBinary or a Dict of them", way_out)


def _extractor_of(policy_class: type[BasePolicy], policy_kwargs: Mapping[str, Any]) -> Any:
    """Return the class of feature extractor that a policy will have, ``None`` if that is not known before it is built."""
    if "features_extractor_class" in policy_kwargs:
        return policy_kwargs["features_extractor_class"]
    for cls in policy_class.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameter = inspect.signature(vars(cls)["__init__"]).parameters.get("features_extractor_class")
        if parameter is not None and isinstance(parameter.default, type):
            return parameter.default
        if not is_of_known_package(cls):
            return None  # a constructor of the user's own passes on what it likes
    return None


def _reads_as_sb3(policy_class: type[BasePolicy]) -> bool:
    """Whether SB3's ``preprocess_obs`` is what reads the observations."""
    owner = next(cls for cls in policy_class.__mro__ if "extract_features" in vars(cls))
    return is_of_known_package(owner)


def check_observation_space(space: spaces.Space, policy_class: type[BasePolicy], policy_kwargs: Mapping[str, Any]) -> None:
    """
    Refuse observations that a policy has no network for. A policy or feature extractor of the user's own may take any.

    :param space: the observation space, with images as SB3 has transposed them
    :param policy_class: the policy's
    :param policy_kwargs: its further arguments
    :raises ValueError: naming the space, its key in a Dict, and the way out
    """
    check_structure(space)
    extractor = _extractor_of(policy_class, policy_kwargs)
    if isinstance(space, spaces.Dict) and extractor in (FlattenExtractor, NatureCNN):
        _refuse("env.observation_space", space, f"not be a Dict with a {policy_class.__name__}", "take 'MultiInputPolicy'")
    if extractor is CombinedExtractor:
        if not isinstance(space, spaces.Dict):
            raise ValueError(
                f"{policy_class.__name__} is for Dict observations, got {space}: take the policy for vectors or images"
            )
        _check_keys(space)
    for name, part in _parts(space):
        if _reads_as_sb3(policy_class):
            _check_readable(name, part, shifted=issubclass(policy_class, CountsFromZero))
        if extractor in (FlattenExtractor, NatureCNN, CombinedExtractor):
            is_image = is_image_space(part, normalized_image=not policy_kwargs.get("normalize_images", True))
            _check_network(name, part, convolutions=is_image and extractor is not FlattenExtractor)


def _check_keys(space: spaces.Dict) -> None:
    """Refuse keys that torch cannot keep a network under."""
    name = "env.observation_space"
    if not space.spaces:
        _refuse(name, space, "have at least one key", "a constant will do where there is nothing to observe")
    for key in space.spaces:
        if not isinstance(key, str) or not key or "." in key or hasattr(nn.ModuleDict(), key):
            must = f"have keys that name a torch module, {key!r} does not"
            _refuse(name, space, must, "rename it; names with a dot and those of torch's own attributes are taken")


def _check_readable(name: str, space: spaces.Space, *, shifted: bool) -> None:
    """Refuse what SB3's ``preprocess_obs`` cannot encode."""
    if not isinstance(space, READABLE):
        _refuse(name, space, "be a Box, Discrete, MultiDiscrete, MultiBinary or a Dict of them", FLATTEN)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        _refuse(name, space, "have one axis", FLATTEN)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start) and not shifted:
        way_out = (
            "take 'MlpPolicy' or 'MultiInputPolicy' by name, or derive the policy from CountsFromZero of sb3_trpo.policies"
        )
        _refuse(name, space, "start at 0 with a policy that is not sb3_trpo's", way_out)


def _check_network(name: str, space: spaces.Space, *, convolutions: bool) -> None:
    """Refuse what SB3's own feature extractors cannot take."""
    if isinstance(space, spaces.Box) and space.shape == ():
        _refuse(name, space, "have at least one axis", FLATTEN)
    if 0 in (space.shape or ()):
        _refuse(name, space, "not be empty", "leave it out, or give a constant where there is nothing to observe")
    if isinstance(space, spaces.Box) and np.isnan([space.low, space.high]).any():
        _refuse(name, space, "have bounds", "infinite ones, where there are none")
    if convolutions and min((space.shape or ())[1:]) < SMALLEST_IMAGE:
        must = f"be an image of at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE} for SB3's NatureCNN"
        way_out = (
            "enlarge it (gymnasium.wrappers.ResizeObservation), or take 'MlpPolicy' or a features_extractor_class of yours"
        )
        _refuse(name, space, must, way_out)
