"""Whole trainings on several processes, and everything that may go wrong in one of them."""

import copy
import hashlib
import os
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo.distributed import Processes, TorchProcesses
from tests.small_models import DICT, RandomEnv, make_env, monitored, observed, policy_state, small_model


def bits_of(model: TRPO) -> str:
    """Return a hash over policy and optimizer."""
    found = hashlib.sha256()
    for value in policy_state(model).values():
        found.update(value.numpy().tobytes())
    for memory in model.policy.optimizer.state_dict()["state"].values():
        for name in sorted(memory):
            found.update(memory[name].numpy().tobytes())
    return found.hexdigest()


class Hooked(BaseCallback):
    """Do something at a step."""

    def __init__(self, at: int, act: Callable[[Any], Any]):
        super().__init__()
        self.at, self.act = at, act
        self.seen: list[int] = []

    def _on_step(self) -> bool:
        self.seen.append(self.num_timesteps)
        return self.act(self.model) is not False if self.n_calls == self.at else True


def twenty_updates(processes: Processes) -> dict[str, Any]:
    """Train a network whose vectors are long enough for MKL to share them among threads."""
    model = small_model(
        env=make_env(n_envs=2), n_steps=8, batch_size=8, policy_kwargs={"net_arch": {"pi": [330, 330], "vf": [16]}},
        target_kl=0.05, processes=processes,
    )  # fmt: skip
    model.learn(20 * 8 * 2 * processes.size)
    actor = sum(p.numel() for name, p in model.policy.named_parameters() if "value" not in name and "vf" not in name)
    return {"bits": bits_of(model), "n_updates": model._n_updates, "n_weights": actor, "threads": th.get_num_threads()}


# What may make processes meet more often than by default
COUNTED: dict[str, tuple[type[TRPO], str, dict[str, Any]]] = {
    "default": (TRPO, "MlpPolicy", {}),
    "plain": (TRPO, "MlpPolicy", {"fast": False}),
    "no chain": (TRPO, "MlpPolicy", {"policy_kwargs": {"activation_fn": th.nn.Softsign, "net_arch": [8]}}),
    "memory": (RecurrentTRPO, "MlpLstmPolicy", {"policy_kwargs": {"lstm_hidden_size": 8}}),
    "plain memory": (RecurrentTRPO, "MlpLstmPolicy", {"policy_kwargs": {"lstm_hidden_size": 8}, "fast": False}),
}


def counted_updates(processes: Processes) -> dict[str, Any]:
    """Count how often processes meet in an update of each kind."""
    return {kind: counted_update(processes, kind) for kind in COUNTED}


def counted_update(processes: Processes, kind: str) -> dict[str, Any]:
    """Count it for the critic apart."""
    algorithm, policy, changes = COUNTED[kind]
    arguments: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_critic_updates": 5, "seed": 0, "device": "cpu"} | changes
    model = algorithm(policy, make_env(n_envs=2), processes=processes, **arguments)
    counts: Counter[str] = Counter()
    phase = ["opening"]
    meet, fit, full_batch = TorchProcesses._meet, model._fit_critic, model._full_batch

    def counting(*args: Any, **kwargs: Any) -> Any:
        counts[phase[0]] += 1
        return meet(*args, **kwargs)

    def full_batch_and_count() -> Any:
        phase[0] = "policy"
        return full_batch()

    def fit_and_count(*args: Any) -> Any:
        phase[0] = "critic"
        result = fit(*args)
        phase[0] = "after"
        return result

    train = model.train

    def train_and_count() -> None:
        with patch.object(TorchProcesses, "_meet", counting):
            train()

    model._full_batch = full_batch_and_count  # type: ignore[method-assign]
    model._fit_critic = fit_and_count  # type: ignore[method-assign, assignment]
    model.train = train_and_count  # type: ignore[method-assign]
    model.learn(1)
    update = model.last_update
    assert update is not None and update.step.conjugate_gradient is not None
    return {
        "counts": dict(counts),
        "iterations": update.step.conjugate_gradient.n_iterations,
        "candidates": len(update.step.candidates),
    }


class Succeeding(RandomEnv):
    """Every episode says whether it succeeded, and who made it."""

    def __init__(self, rank: int):
        super().__init__(episode_length=5, termination_probability=0.0)
        self.rank = rank

    def step(self, action: Any) -> Any:
        *rest, truncated, info = super().step(action)
        return (*rest, truncated, info | ({"is_success": bool(self.rank)} if truncated else {}))


def statistics(processes: Processes) -> dict[str, Any]:
    """Train where each process has another kind of episodes, a window that is short, a progress bar and a log."""
    rank = processes.rank
    folder = Path(tempfile.mkdtemp())
    env = DummyVecEnv([lambda: Monitor(Succeeding(rank))] * 2)
    model = TRPO(
        "MlpPolicy",
        env,
        n_steps=40,
        stats_window_size=4,
        seed=3,
        device="cpu",
        verbose=1,
        tensorboard_log=str(folder),
        processes=processes,
    )
    seen = Hooked(0, lambda model: None)
    bar = ProgressBarCallback()
    evaluation = EvalCallback(
        monitored(1), eval_freq=30, n_eval_episodes=1, best_model_save_path=str(folder / "best"), verbose=0
    )
    own = [evaluation, CheckpointCallback(50, str(folder / "checkpoints"))] if rank == 0 else []
    model.learn(40 * 2 * processes.size * 2, callback=CallbackList([seen, bar, *own]), progress_bar=True)
    if rank == 0:
        model.save(folder / "model")
    assert model.ep_info_buffer is not None and model.ep_success_buffer is not None
    return {
        "num_timesteps": model.num_timesteps,
        "seen": seen.seen,
        "episodes": [episode["r"] for episode in model.ep_info_buffer],
        "successes": list(model.ep_success_buffer),
        "bar": (bar.pbar.n, bar.pbar.total),
        "files": sorted(path.name for path in folder.iterdir()),
        "checkpoints": sorted(path.name for path in folder.glob("checkpoints/*")),
        "outputs": [type(output).__name__ for output in model.logger.output_formats],
        "bits": bits_of(model),
        "seed": model.seed,
        "observations": float(model.rollout_buffer.observations.sum()),
    }


def loaded(processes: Processes) -> dict[str, Any]:
    """Save on one process, load on all, go on; a model of its own on each, but for what rank 0 has."""
    path = Path(tempfile.gettempdir()) / f"{processes.agree(os.getpid())}_model.zip"
    model = small_model(env=make_env(n_envs=2), processes=processes)
    initial = bits_of(model)
    model.learn(300)
    if processes.rank == 0:
        model.save(path)
    processes.gather(None)
    again = TRPO.load(path, make_env(n_envs=2), device="cpu", processes=processes)
    drawn = again._random.permutation(50).tolist()
    before = bits_of(again)
    if processes.rank == 1:  # whatever the others have
        with th.no_grad():
            for parameter in again.policy.parameters():
                parameter.zero_()
        again.policy.optimizer.state.clear()
    again.learn(300, reset_num_timesteps=False)
    alone = TRPO.load(path, make_env(n_envs=2), device="cpu")
    if processes.rank == 0:
        path.unlink()
    return {
        "initial": initial,
        "same as saved": before == bits_of(model),
        "drawn": drawn,
        "observations": float(again.rollout_buffer.observations.sum()),
        "bits": bits_of(again),
        "num_timesteps": again.num_timesteps,
        "seed": again.seed,
        "alone": type(alone.processes).__name__,
        "copied": type(copy.deepcopy(again).processes).__name__,
    }


class Spied(RunningMeanStd):
    """Keep everything that comes in."""

    def __init__(self, of: RunningMeanStd):
        super().__init__(shape=of.mean.shape)
        vars(self).update(vars(of.copy()))
        self.came_in: list[Any] = []

    def update(self, arr: np.ndarray) -> None:
        # In double precision, as SB3 keeps its statistics: it averages the rows of a step in single
        self.came_in.append(np.array(arr, np.float64))
        super().update(self.came_in[-1])


def normalized(processes: Processes) -> dict[str, Any]:
    """Train twice with running statistics that keep what they have seen."""
    env = VecNormalize(make_env(n_envs=2))
    env.obs_rms, env.ret_rms = Spied(observed(env)), Spied(env.ret_rms)  # type: ignore[assignment]
    model = small_model(env=env, processes=processes)
    model.learn(300)
    model.learn(200, reset_num_timesteps=False)
    assert isinstance(env.obs_rms, Spied) and isinstance(env.ret_rms, Spied)
    found: dict[str, Any] = {"bits": bits_of(model)}
    for name, rms in (("observations", env.obs_rms), ("returns", env.ret_rms)):
        found[name] = (rms.mean, rms.var, rms.count)
        found[f"{name} came in"] = np.concatenate(rms.came_in)
    keyed = VecNormalize(make_env(DICT, n_envs=1), norm_obs_keys=["vector"], norm_reward=False)
    small_model(policy="MultiInputPolicy", env=keyed, n_critic_updates=1, processes=processes).learn(100)
    found["keyed"] = keyed.obs_rms["vector"].mean
    return found


def updates(processes: Processes) -> dict[str, Any]:
    """Updates alone."""
    return {part.__name__: part(processes) for part in (twenty_updates, counted_updates)}


def trainings(processes: Processes) -> dict[str, Any]:
    """What else belongs to a training."""
    return {part.__name__: part(processes) for part in (statistics, loaded, normalized)}


# What may go wrong


def attempt(model: TRPO, n: int = 300, **arguments: Any) -> str:
    """Learn; return what was raised."""
    try:
        model.learn(n, **arguments)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Failing(RandomEnv):
    """Give NaN, or die, at a step."""

    def __init__(self, at: int, how: str):
        super().__init__()
        self.at, self.how, self.taken = at, how, 0

    def step(self, action: Any) -> Any:
        self.taken += 1
        observation, reward, *rest = super().step(action)
        if self.taken == self.at:
            if self.how == "dies":
                raise OSError("the simulator has died")
            if self.how == "interrupted":
                os.kill(os.getpid(), signal.SIGINT)
            if self.how == "nan":
                reward = float("nan")
        return (observation, reward, *rest)


def ended_jointly(processes: Processes) -> dict[str, Any]:
    """End the second rollout on rank 1 in every way; then go on."""
    # Whoever runs the tests in the background has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found: dict[str, Any] = {}
    for how in ("nan", "dies", "interrupted", "stops", "callback"):
        fails = processes.rank == 1
        env = DummyVecEnv([lambda fails=fails, how=how: Failing(80 if fails else -1, how)])  # type: ignore[misc]
        model = small_model(env=env, processes=processes)
        act: dict[str, Any] = {"stops": lambda model: False, "callback": lambda model: 1 / 0}
        callback = Hooked(80 if fails else -1, act.get(how, lambda model: None))
        message = attempt(model, callback=callback)
        found[how] = {
            "message": message,
            "num_timesteps": model.num_timesteps,
            "n_updates": model._n_updates,
            "bits": bits_of(model),
        }
        found[how] |= {"again": attempt(model, 200, reset_num_timesteps=False), "after": (model.num_timesteps, bits_of(model))}
    return found


def not_finite(processes: Processes) -> dict[str, Any]:
    """Let NaN of rank 1 through."""
    env = DummyVecEnv([lambda: Failing(10 if processes.rank == 1 else -1, "nan")])
    model = small_model(env=env, error_if_nonfinite=False, processes=processes)
    before = policy_state(model)
    model.learn(1)
    update = model.last_update
    assert update is not None and update.critic is not None
    moved = [name for name, value in policy_state(model).items() if not th.equal(value, before[name])]
    first = {"status": update.step.status, "critic": update.critic.status, "moved": moved, "bits": bits_of(model)}
    model.learn(128, reset_num_timesteps=False)
    assert model.last_update is not None
    return first | {"then": model.last_update.step.status, "after": bits_of(model)}


def not_the_same(processes: Processes) -> dict[str, Any]:
    """Have something else on rank 1: as learning begins, and in its midst."""
    odd = processes.rank == 1
    found: dict[str, Any] = {}
    model = small_model(batch_size=16 if odd else 32, processes=processes)
    found["argument"] = attempt(model)
    model.batch_size = 32
    found["then"] = attempt(model)
    found["total"] = attempt(model, 500 if odd else 600)
    found["schedule"] = attempt(small_model(target_kl=(lambda left: 0.02 + 0.01 * left) if odd else 0.02, processes=processes))
    found["environments"] = attempt(small_model(env=make_env(n_envs=2 if odd else 1), n_steps=32, processes=processes))
    found["space"] = attempt(
        small_model(env=make_env(action_space=spaces.Box(-1.0, 1.0, (2 if odd else 3,))), processes=processes)
    )

    def shift(model: Any) -> None:
        with th.no_grad():
            model.policy.value_net.bias += 1e-7

    model = small_model(processes=processes)
    before = policy_state(model)
    found["weights"] = attempt(model, callback=Hooked(30 if odd else -1, shift))
    found["moved"] = sorted(name for name, value in policy_state(model).items() if not th.equal(value, before[name]))
    found["again"] = attempt(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = small_model(seed=None, processes=processes)
        model.set_random_seed = lambda seed=None: None  # type: ignore[method-assign]
        assert model.env is not None
        np.random.seed(0)
        th.manual_seed(0)
        model.env.seed(0)
        model.learn(200)
    found["warned"] = [str(warning.message) for warning in caught if "same rollout" in str(warning.message)]
    found["logger"] = _with_a_logger(processes)
    return found


def parameters_not_finite(processes: Processes) -> dict[str, Any]:
    """Learn with a policy that has become NaN."""
    model = small_model(error_if_nonfinite=False, processes=processes)
    with th.no_grad():
        next(model.policy.action_net.parameters()).fill_(th.nan)
    model.learn(1)
    assert model.last_update is not None
    return {"status": model.last_update.step.status}


def _with_a_logger(processes: Processes) -> int:
    model = small_model(processes=processes)
    logger = Logger(None, [])
    model.set_logger(logger)
    model.learn(1)
    return int(model.logger is logger)


def faults(processes: Processes) -> dict[str, Any]:
    """All that leaves the processes together."""
    return {part.__name__: part(processes) for part in (ended_jointly, not_finite, parameters_not_finite, not_the_same)}


def lost_in_an_update(processes: Processes, how: str, where: str) -> dict[str, Any]:
    """Lose the last process in the midst of the second update."""
    model = small_model(processes=processes, fast=where != "critic")
    kept: dict[str, Any] = {}
    original = getattr(model, {"policy": "_fast_fisher", "critic": "_value_epochs"}[where])

    def fail(*args: Any) -> Any:
        if model._n_updates == 1:
            kept["bits"] = started["bits"]
            if processes.rank == processes.size - 1:
                if how == "memory":
                    raise MemoryError("no more of it")
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "interrupted":
                    raise KeyboardInterrupt
        return original(*args)

    setattr(model, {"policy": "_fast_fisher", "critic": "_value_epochs"}[where], fail)
    started: dict[str, str] = {}
    train = model.train

    def train_from_here() -> None:
        started["bits"] = bits_of(model)
        train()

    model.train = train_from_here  # type: ignore[method-assign]
    message = attempt(model)
    return {
        "message": message,
        "is as before": kept["bits"] == bits_of(model),
        "n_updates": model._n_updates,
        "again": attempt(model),
    }
