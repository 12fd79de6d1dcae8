"""Models that learn side by side in threads: nothing of the process is left changed, and each learns what it learns alone."""

import copy
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from threadpoolctl import threadpool_info, threadpool_limits

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from tests.small_models import BOX, DISCRETE, MULTI_BINARY, MULTI_DISCRETE, changed, make_env, policy_state, small_model


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def process_state() -> tuple[Any, ...]:
    """Everything of the process that learning could leave changed."""
    return (
        th.distributions.Distribution._validate_args,
        blas_threads(),
        np.geterr(),
        th.is_grad_enabled(),
        th.get_num_threads(),
        th.get_default_dtype(),
    )


class InStep(BaseCallback):
    """Has threads wait for each other at every step, so that each is inside whatever the other is inside of."""

    def __init__(self, barrier: threading.Barrier):
        super().__init__()
        self.barrier = barrier

    def _wait(self) -> None:
        self.barrier.wait(timeout=60)

    def _on_step(self) -> bool:
        self._wait()
        return True

    def _on_rollout_end(self) -> None:
        self._wait()


def learned(seed: int, space: Any, callback: BaseCallback | None = None, observations: Any = None, **arguments: Any) -> TRPO:
    env = make_env(
        action_space=space, n_envs=2, **({} if observations is None else {"observation_space": copy.deepcopy(observations)})
    )
    model = small_model(env=env, seed=seed, **arguments)
    without_masks: dict[str, Any] = {"use_masking": False} if isinstance(model, MaskableTRPO | MaskableRecurrentTRPO) else {}
    return model.learn(128, callback, **without_masks)


class OwnExtractor(BaseFeaturesExtractor):
    """A layer, shared by actor and critic."""

    def __init__(self, observation_space: Any):
        super().__init__(observation_space, 4)
        self.layer = th.nn.Linear(3, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.relu(self.layer(observations))


# Policies whose actions, or the noise in them, are drawn by torch
IN_TORCH: dict[str, dict[str, Any]] = {
    "states observed": {"space": DISCRETE, "observations": spaces.Discrete(4)},
    "gSDE": {"space": BOX, "use_sde": True, "sde_sample_freq": 4},
    "gSDE, expln": {"space": BOX, "use_sde": True, "policy_kwargs": {"use_expln": True}},
    "Softsign": {"space": MULTI_BINARY, "policy_kwargs": {"activation_fn": th.nn.Softsign}},
    "plain": {"space": BOX, "fast": False},
    "plain gSDE": {"space": BOX, "fast": False, "use_sde": True, "sde_sample_freq": 4},
    "with masks": {"space": DISCRETE, "cls": MaskableTRPO},
    "with a memory": {"space": BOX, "cls": RecurrentTRPO, "policy": "MlpLstmPolicy", "policy_kwargs": {"lstm_hidden_size": 4}},
    "both, plain": {
        "space": DISCRETE,
        "cls": MaskableRecurrentTRPO,
        "policy": "MlpLstmPolicy",
        "policy_kwargs": {"lstm_hidden_size": 4},
        "fast": False,
    },
    # Its Fisher products are made in forward mode, of which torch has one for the process
    "Hardsigmoid": {"space": BOX, "policy_kwargs": {"activation_fn": th.nn.Hardsigmoid}},
    # And it is run with a stand-in, to see what it does
    "own extractor": {"space": BOX, "policy_kwargs": {"features_extractor_class": OwnExtractor}},
}


class InTurns:
    """Has threads change places as often as Python can."""

    def __enter__(self) -> None:
        self.before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)

    def __exit__(self, *error: Any) -> None:
        sys.setswitchinterval(self.before)


def together(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


@pytest.mark.parametrize("space", [BOX, DISCRETE, MULTI_DISCRETE, MULTI_BINARY], ids=str)
def test_models_in_threads_learn_what_they_learn_alone(space: Any) -> None:
    """Made, trained and thinned at the same time, with steps that alternate: bit for bit the same."""
    arguments: dict[str, Any] = {"sub_sampling_factor": 2, "n_critic_updates": 5}
    alone = [policy_state(learned(seed, space, **arguments)) for seed in range(2)]
    barrier = threading.Barrier(2)
    jobs = [partial(learned, seed, space, InStep(barrier), **arguments) for seed in range(2)]
    for state, model in zip(alone, together(jobs), strict=True):
        assert not changed(state, policy_state(model))
    assert changed(alone[0], alone[1])


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(given, id=name, marks=[pytest.mark.slow] * (name == "both, plain")) for name, given in IN_TORCH.items()],
)
def test_models_whose_actions_are_drawn_in_torch_learn_in_threads_what_they_learn_alone(arguments: dict[str, Any]) -> None:
    """Torch draws from generators of the process; each model has its own numbers all the same."""
    alone = [policy_state(learned(seed, **arguments)) for seed in range(2)]
    barrier = threading.Barrier(2)
    before = th.get_rng_state()
    jobs = [partial(learned, seed, callback=InStep(barrier), **arguments) for seed in range(2)]
    with InTurns():
        models = together(jobs)
    for state, model in zip(alone, models, strict=True):
        assert not changed(state, policy_state(model))
    assert changed(alone[0], alone[1])
    th.set_rng_state(before)


class Dropping(BaseFeaturesExtractor):
    """A layer of which a part is left out at random, whatever the mode."""

    def __init__(self, observation_space: Any):
        super().__init__(observation_space, 8)
        self.layer = th.nn.Linear(3, 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.nn.functional.dropout(th.tanh(self.layer(observations)), 0.2)


class RandomValues(ActorCriticPolicy):
    """Only its values are random."""

    def predict_values(self, obs: Any) -> th.Tensor:
        return super().predict_values(obs) + 0.1 * th.randn(())


RANDOM: dict[str, dict[str, Any]] = {
    "fast": {"policy_kwargs": {"features_extractor_class": Dropping}},
    "plain": {"policy_kwargs": {"features_extractor_class": Dropping}, "fast": False},
    "apart": {"policy_kwargs": {"features_extractor_class": Dropping, "share_features_extractor": False}},
    "values": {"policy": RandomValues},
    "memory": {
        "cls": RecurrentTRPO, "policy": "MlpLstmPolicy",
        "policy_kwargs": {"features_extractor_class": Dropping, "lstm_hidden_size": 4},
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The policy's network is random")
@pytest.mark.parametrize("arguments", RANDOM.values(), ids=RANDOM)
def test_random_network_draws_numbers_of_the_models_own(arguments: dict[str, Any], tmp_path: Path) -> None:
    """In threads, whatever else is drawn in the process, and on from a file; nothing of the process is moved on."""
    before = th.get_rng_state()
    alone = [policy_state(learned(seed, BOX, **arguments)) for seed in range(2)]
    barrier = threading.Barrier(2)
    with InTurns():
        models = together([partial(learned, seed, BOX, InStep(barrier), **arguments) for seed in range(2)])
    for state, model in zip(alone, models, strict=True):
        assert not changed(state, policy_state(model))

    model = learned(0, BOX, **arguments)
    model.save(tmp_path / "model")
    other = type(model).load(tmp_path / "model", make_env(action_space=BOX, n_envs=2), device="cpu")
    th.rand(1)
    drawn = th.get_rng_state()
    for each in (model, other):
        each._last_obs = None
        env: Any = each.env
        env.seed(7)
        each.learn(128, reset_num_timesteps=False)
    assert not changed(policy_state(model), policy_state(other))
    assert th.equal(th.get_rng_state(), drawn)
    th.set_rng_state(before)


def test_process_is_as_before_when_threads_have_learned() -> None:
    """Also with another number of BLAS threads than one, and when one of the threads ends in an error."""

    class Failing(InStep):
        def _on_rollout_end(self) -> None:
            self.barrier.abort()
            raise RuntimeError("on purpose")

    with threadpool_limits(2, user_api="blas"):
        before = process_state()
        barrier = threading.Barrier(2)
        together([partial(learned, seed, BOX, InStep(barrier), error_if_nonfinite=False) for seed in range(2)])
        assert process_state() == before
        failing = threading.Barrier(2)
        with pytest.raises((RuntimeError, threading.BrokenBarrierError)):
            together([partial(learned, seed, BOX, Failing(failing), error_if_nonfinite=False) for seed in range(2)])
        assert process_state() == before
