"""What only a CUDA device can show: a model collects and learns there what it does on the CPU, and seldom waits."""

import copy
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch as th

from sb3_trpo import TRPO
from tests.one_rollout import UPDATES, check_same_steps, check_update, rolled_out
from tests.small_models import DISCRETE, MULTI_BINARY, MULTI_DISCRETE, Case, make_env, small_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def _in_full_precision() -> Iterator[None]:
    """Torch lets convolutions round to 10 bits, where the CPU has 23."""
    allowed = th.backends.cudnn.allow_tf32
    th.backends.cudnn.allow_tf32 = False
    yield
    th.backends.cudnn.allow_tf32 = allowed


def on_gpu(model: TRPO, folder: pathlib.Path) -> TRPO:
    """Return the model on the GPU, with the same rollout."""
    model.save(folder / "model")
    moved = TRPO.load(folder / "model", model.get_env(), device="cuda")
    moved.set_logger(model.logger)
    moved.rollout_buffer = copy.deepcopy(model.rollout_buffer)
    moved.rollout_buffer.device = moved.device
    return moved


def on_cpu(model: TRPO) -> TRPO:
    """Bring where an update started and ended to the CPU, where ``check_same_steps`` compares."""
    model.policy.cpu()
    model.start = model.start.cpu()  # type: ignore[attr-defined]
    return model


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("name", UPDATES)
def test_update_ends_where_that_of_the_cpu_ends(name: str, fast: bool, tmp_path: pathlib.Path) -> None:
    """On the same rollout, by the same paths."""
    expected = UPDATES[name]()
    model = on_gpu(expected, tmp_path)
    check_update(model, fast=fast)
    check_update(expected, fast=fast)
    assert all(expected.paths_in_use[phase] == path for phase, path in model.paths_in_use.items())
    assert model.last_update is not None and expected.last_update is not None
    assert len(model.last_update.step.candidates) == len(expected.last_update.step.candidates)
    assert model.last_update.step.mean_kl == pytest.approx(expected.last_update.step.mean_kl, rel=1e-3)
    check_same_steps(on_cpu(model), expected)


@pytest.mark.parametrize(
    "case",
    [Case(), Case(action_space=DISCRETE), Case(action_space=MULTI_DISCRETE), Case(action_space=MULTI_BINARY)],
    ids=["box", "discrete", "multi discrete", "multi binary"],
)
def test_rollout_is_that_of_the_cpu(case: Case) -> None:
    """A perceptron acts on the CPU, with its random numbers, after an update on the GPU too."""
    models = [case.model(device=device).learn(128) for device in ("cpu", "cuda")]
    cpu, gpu = (model.rollout_buffer for model in models)
    assert next(models[1].policy.parameters()).is_cuda
    for name in ("observations", "actions", "rewards", "values", "log_probs", "returns"):
        np.testing.assert_allclose(getattr(gpu, name), getattr(cpu, name), rtol=1e-2, atol=1e-2, err_msg=name)


def test_large_critic_is_fitted_on_the_gpu(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a size in the plain way, to the same end."""
    expected = rolled_out()
    model = on_gpu(expected, tmp_path)
    monkeypatch.setattr("sb3_trpo.fast.network.MOST_ON_CPU", 1)
    for each in (model, expected):
        check_update(each, fast=True)
    assert [each.paths_in_use["critic fit"] for each in (model, expected)] == ["plain", "written out"]
    check_same_steps(on_cpu(model), expected)


def test_memory_of_the_optimizer_is_where_adam_keeps_it(tmp_path: pathlib.Path) -> None:
    """The written-out fit leaves moments on the GPU and the number of steps on the CPU."""
    model = on_gpu(rolled_out(), tmp_path)
    check_update(model, fast=True)
    assert model.paths_in_use["critic fit"] == "written out"
    states = [state for state in model.policy.optimizer.state.values() if state]
    assert len(states) == 6
    for state in states:
        assert state["exp_avg"].is_cuda and state["exp_avg_sq"].is_cuda and not state["step"].is_cuda


@pytest.mark.parametrize("use_sde", [False, True], ids=["box", "gSDE"])
def test_model_moves_between_devices(use_sde: bool, tmp_path: pathlib.Path) -> None:
    """Trained on one device, loaded on the other: the same actions to rounding, and training goes on."""
    cpu = small_model(use_sde=use_sde).learn(64)
    cpu.save(tmp_path / "cpu")
    gpu = TRPO.load(tmp_path / "cpu", make_env(), device="cuda")
    assert next(gpu.policy.parameters()).is_cuda
    gpu.learn(128)
    assert gpu.last_update is not None and gpu.last_update.step.accepted
    gpu.save(tmp_path / "gpu")
    back = TRPO.load(tmp_path / "gpu", make_env(), device="cpu")
    observations = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    for name, tensor in gpu.policy.state_dict().items():
        assert th.equal(tensor.cpu(), back.policy.state_dict()[name])
    np.testing.assert_allclose(
        gpu.predict(observations, deterministic=True)[0], back.predict(observations, deterministic=True)[0], atol=1e-5
    )
    back.learn(64)


def waits(model: TRPO) -> int:
    """Count the times that a plain update waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        th.cuda.set_sync_debug_mode("warn")
        try:
            check_update(model, fast=False)
        finally:
            th.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def test_update_waits_once_for_each_iteration_and_minibatch(tmp_path: pathlib.Path) -> None:
    """As the CPU's counters say: for each iteration of the solver, and for each minibatch and the order of each pass."""
    n_iterations = [waits(on_gpu(rolled_out(cg_max_steps=n), tmp_path)) for n in (3, 6)]
    n_passes = [waits(on_gpu(rolled_out(n_critic_updates=n), tmp_path)) for n in (1, 3)]
    assert 0 < n_iterations[1] - n_iterations[0] <= 3
    assert n_passes[1] - n_passes[0] == 2 * (3 + 1)
