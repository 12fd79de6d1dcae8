"""The page on what is quick: each line of its table is run."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn

from sb3_trpo import TRPO
from tests.fast.covered import TWO_VECTORS, Trunk
from tests.fast.not_covered import Extractor, OtherDistribution
from tests.fast.test_actors import ForwardPolicy
from tests.small_models import BOX, DICT, IMAGE, VECTOR, make_env, small_model

PAGE = (Path(__file__).parents[2] / "docs" / "fast_paths.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)


class OwnBuffer(RolloutBuffer):
    """A user's, which overrides what is told of each step."""

    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **kwargs)


class LargerBuffer(RolloutBuffer):
    """A user's, which has something more, and leaves the rest as it is."""

    def __init__(self, *args: Any, of_rewards: float = 0.5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.of_rewards = of_rewards

    def quantile(self) -> float:
        return float(np.quantile(self.rewards, self.of_rewards))


NAMES: dict[str, Any] = {
    "VECTOR": VECTOR,
    "DICT_OF_VECTORS": TWO_VECTORS,
    "STATE": spaces.Discrete(5),
    "IMAGE": IMAGE,
    "DICT_WITH_IMAGE": DICT,
    "nn": nn,
    "SGD": th.optim.SGD,
    "AdamW": th.optim.AdamW,
    "RMSprop": th.optim.RMSprop,
    "OwnLayers": Trunk,
    "OwnExtractor": Extractor,
    "OwnBuffer": OwnBuffer,
    "LargerBuffer": LargerBuffer,
    "OwnForward": ForwardPolicy,
    "OwnDistribution": OtherDistribution,
}


def made(policy: Any, observation_space: spaces.Space, **arguments: Any) -> TRPO:
    return small_model(TRPO, policy, make_env(observation_space, BOX, 2), n_critic_updates=1, **arguments)


@pytest.mark.parametrize(("arguments", "collection", "fisher", "critic"), LINES, ids=[line[0] for line in LINES])
def test_line_of_the_table_is_so(arguments: str, collection: str, fisher: str, critic: str) -> None:
    """After an update of the model of this line."""
    model: TRPO = eval(f"made({arguments})", {"made": made, **NAMES})
    model.learn(64)
    assert model.paths_in_use == {"collection": collection, "Fisher products": fisher, "critic fit": critic}


def test_table_is_there() -> None:
    """And says of quick ways and plain ones alike."""
    assert len(LINES) > 12
    for column in (1, 2, 3):
        assert len({line[column] for line in LINES}) == 2
