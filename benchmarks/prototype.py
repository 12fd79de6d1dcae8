"""What is not in the library and may never be: features that an ablation asks about."""

from typing import Any

import torch as th

from sb3_trpo import TRPO
from sb3_trpo.critic import CriticFit
from sb3_trpo.objective import Batch


class PrototypeTRPO(TRPO):
    """
    TRPO with the features on trial.

    :param normalize_value_targets: whether to fit the critic to returns of mean zero and standard deviation one. Its last
        layer is rescaled before and after, so that its values are those of the returns as they are; van Hasselt et al. 2016,
        https://arxiv.org/abs/1602.07714, with the moments of the present rollout
    """

    def __init__(self, *args: Any, normalize_value_targets: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.normalize_value_targets = normalize_value_targets

    def _fit_critic(self, batch: Batch, *arguments: Any) -> CriticFit | None:
        if not self.normalize_value_targets:
            return super()._fit_critic(batch, *arguments)
        last_layer, returns = self.policy.value_net, batch.returns
        mean, std = float(returns.mean()), max(float(returns.std()), 1e-8)
        with th.no_grad():
            last_layer.weight.div_(std)
            last_layer.bias.sub_(mean).div_(std)
        fit = super()._fit_critic(batch._replace(returns=(returns - mean) / std), *arguments)
        with th.no_grad():
            last_layer.weight.mul_(std)
            last_layer.bias.mul_(std).add_(mean)
        if fit is None:
            return None
        losses = {name: getattr(fit, name) * std**2 for name in ("value_loss", "first_value_loss", "last_value_loss")}
        return fit._replace(**losses)
