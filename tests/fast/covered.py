"""Networks beyond perceptrons of tanh and ReLU that are read as chains of layers."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

from sb3_trpo import MlpPolicy
from sb3_trpo.fast.elementwise import TABLE
from tests.small_models import VECTOR

TWO_VECTORS = spaces.Dict({"one": VECTOR, "another": spaces.Box(-1.0, 1.0, (2, 2))})


def wide(kind: type[nn.Module]) -> Any:
    """Return a maker of a function with settings that are not the default ones, where it has settings."""
    settings: dict[Any, dict[str, Any]] = {
        nn.ELU: {"alpha": 0.7},
        nn.GELU: {"approximate": "tanh"},
        nn.LeakyReLU: {"negative_slope": 0.3},
        nn.Softplus: {"beta": 2.0, "threshold": 1.0},
    }
    return lambda: kind(**settings.get(kind, {}))


ACTIVATIONS: dict[str, Any] = {
    **{kind.__name__: kind for kind in TABLE},
    **{f"{kind.__name__}, set": wide(kind) for kind in (nn.ELU, nn.GELU, nn.LeakyReLU, nn.Softplus)},
    "ELU in place": lambda: nn.ELU(inplace=True),
}


class NormedPolicy(MlpPolicy):
    """Has a layer norm before its first layer, and one between each layer and its activation."""

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        for name in ("policy_net", "value_net"):
            layers: list[nn.Module] = [nn.LayerNorm(self.features_dim)]
            for layer in getattr(self.mlp_extractor, name):
                layers.append(layer)
                if isinstance(layer, nn.Linear):
                    layers.append(nn.LayerNorm(layer.out_features, eps=1e-3))
            setattr(self.mlp_extractor, name, nn.Sequential(*layers))


class Trunk(BaseFeaturesExtractor):
    """A perceptron before actor and critic part, as users write it."""

    def __init__(self, observation_space: spaces.Space, features_dim: int = 5):
        super().__init__(observation_space, features_dim)
        (size,) = observation_space.shape or (0,)
        self.net = nn.Sequential(nn.Linear(size, 6), nn.LayerNorm(6), nn.ELU(), nn.Linear(6, features_dim), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


class StepByStep(BaseFeaturesExtractor):
    """The same with functions in place of modules."""

    def __init__(self, observation_space: spaces.Space, features_dim: int = 5):
        super().__init__(observation_space, features_dim)
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = F.relu(self.first(observations.flatten(1)))
        return th.tanh(self.second(hidden))


class OwnCombined(BaseFeaturesExtractor):
    """For a Dict of a picture and a vector, in the manner of SB3's documentation."""

    def __init__(self, observation_space: spaces.Dict, features_dim: int = 9):
        super().__init__(observation_space, features_dim)
        extractors: dict[str, nn.Module] = {}
        for key, part in observation_space.spaces.items():
            assert part.shape is not None
            if len(part.shape) == 3:
                extractors[key] = nn.Sequential(nn.Conv2d(1, 2, 9, stride=9), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
            else:
                extractors[key] = nn.Linear(part.shape[0], 4)
        self.extractors = nn.ModuleDict(extractors)

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        return th.cat([extractor(observations[key]) for key, extractor in self.extractors.items()], dim=1)
