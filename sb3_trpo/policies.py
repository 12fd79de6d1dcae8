"""SB3's actor-critic policies, with a feature extractor of its own for the critic where there is one to learn."""

from typing import Any

from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy


class MlpPolicy(ActorCriticPolicy):
    """
    SB3's ``ActorCriticPolicy``, saved with all of its arguments.

    :param args: see there
    :param fixed_std: Whether the standard deviation of Gaussian actions stays what ``log_std_init`` makes it. Where it is
        learned it falls, and with it the step of the means that the same KL allows
    :param kwargs: see there
    :raises ValueError: with ``fixed_std``, if the actions have no standard deviation
    """

    def __init__(self, *args: Any, fixed_std: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.fixed_std = fixed_std
        if fixed_std:
            if not hasattr(self, "log_std"):
                raise ValueError(
                    f"fixed_std is for actions with a standard deviation, those of a Box, got {self.action_space}"
                )
            self.log_std.requires_grad_(False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3 leaves this one out: a policy saved with separate extractors would come back with a shared one
        extractors = {"share_features_extractor": self.share_features_extractor}
        return super()._get_constructor_parameters() | extractors | {"fixed_std": self.fixed_std}


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
