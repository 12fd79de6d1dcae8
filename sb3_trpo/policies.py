"""
SB3's actor-critic policies, with two additions.

Those for images and Dict observations have a feature extractor of its own for the critic, and discrete observations may start
elsewhere than at 0.
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs


def n_observations(observations: Any) -> int:
    """Return how many observations there are in an array or tensor, or in each of a dict of such."""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def rows_of(values: Any, rows: slice | th.Tensor) -> Any:
    """Return some of the rows of an array or tensor, or of each in a dict; of nothing nothing."""
    if isinstance(values, dict):
        return {key: part[rows] for key, part in values.items()}
    return None if values is None else values[rows]


def from_zero(observations: PyTorchObs, space: spaces.Space) -> PyTorchObs:
    """
    Return observations with those of Discrete and MultiDiscrete spaces counted from 0, as SB3's one-hot encoding takes them.

    :param observations: as the environment gives them, in a tensor or a dict of tensors
    :param space: the observation space
    :return: the same object where there is nothing to shift
    """
    if isinstance(observations, dict):
        assert isinstance(space, spaces.Dict)
        return {key: from_zero(part, space[key]) for key, part in observations.items()}  # type: ignore[misc]
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete) or not np.any(space.start):
        return observations
    # Integers first: those of a buffer may be unsigned, or floats
    return observations.long() - th.as_tensor(space.start, dtype=th.long, device=observations.device)


class CountsFromZero(BasePolicy):
    """
    What lets a policy take Discrete and MultiDiscrete observations that start elsewhere than at 0.

    SB3 encodes them one-hot by their value, whatever the space starts at. Put it *after* SB3's class among the bases of a
    policy, ``class MyPolicy(ActorCriticPolicy, CountsFromZero)``: every method of SB3's that reads observations comes by here.
    It is done in the policy and not in the environment, since people evaluate it in environments of their own.
    """

    def extract_features(  # type: ignore[override]
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None
    ) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        """Preprocess observations and extract features (see SB3's ``BaseModel.extract_features`` for the parameters)."""
        counted = from_zero(obs, self.observation_space)
        return super().extract_features(counted, features_extractor)  # type: ignore[arg-type]


class SeparateExtractors(BasePolicy):
    """
    What makes ``share_features_extractor`` ``False`` by default, unless actor and critic share an LSTM.

    The trust region allows no one but the policy step to move what the policy depends on. What actor and critic share is
    therefore never fitted to the returns: with a shared extractor, a critic without hidden layers of its own, as of images, is
    no more than a linear read-out of the actor's features.

    Put it *before* SB3's class among the bases of a policy, ``class MyPolicy(SeparateExtractors, MlpPolicy)``.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"share_features_extractor": kwargs.get("shared_lstm", False), **kwargs})


class MlpPolicy(ActorCriticPolicy, CountsFromZero):
    """SB3's ``ActorCriticPolicy``, saved with all of its arguments (see there for them)."""

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3 leaves this one out: a policy saved with separate extractors would come back with a shared one
        return super()._get_constructor_parameters() | {"share_features_extractor": self.share_features_extractor}


class CnnPolicy(SeparateExtractors, MlpPolicy, ActorCriticCnnPolicy):
    """SB3's ``ActorCriticCnnPolicy`` for images; ``share_features_extractor`` is ``False`` by default."""


class MultiInputPolicy(SeparateExtractors, MlpPolicy, MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy`` for Dict observations; ``share_features_extractor`` is ``False`` by default."""
