"""SB3's actor-critic policies, with a feature extractor of its own for the critic where there is one to learn."""

from typing import Any

from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy


class MlpPolicy(ActorCriticPolicy):
    """SB3's ``ActorCriticPolicy``, saved with all of its arguments (see there for them)."""

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3 leaves this one out: a policy saved with separate extractors would come back with a shared one
        return super()._get_constructor_parameters() | {"share_features_extractor": self.share_features_extractor}


class CnnPolicy(MlpPolicy, ActorCriticCnnPolicy):
    """
    SB3's ``ActorCriticCnnPolicy`` for images; ``share_features_extractor`` is ``False`` by default.

    The trust region allows no one but the policy step to move what the policy depends on, so with a shared extractor the
    critic is no more than a linear read-out of the actor's features.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"share_features_extractor": False, **kwargs})


class MultiInputPolicy(MlpPolicy, MultiInputActorCriticPolicy):
    """SB3's ``MultiInputActorCriticPolicy`` for Dict observations; ``share_features_extractor`` is ``False`` by default."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"share_features_extractor": False, **kwargs})
