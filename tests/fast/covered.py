"""Networks beyond perceptrons of tanh and ReLU that are read as chains of layers."""

from typing import Any

from gymnasium import spaces
from torch import nn

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
