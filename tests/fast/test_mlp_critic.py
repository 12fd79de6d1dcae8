"""The written-out critic fit beside the plain one: where it ends, what it skips and undoes, and what it leaves alone."""

import copy
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_trpo import TRPO, MlpPolicy
from sb3_trpo.critic import CriticFit, ValueBatch
from sb3_trpo.fast.mlp_critic import MlpCritic
from sb3_trpo.fast.network import network_input
from sb3_trpo.objective import Batch
from tests.fast.covered import ACTIVATIONS, TWO_VECTORS, NormedPolicy, StepByStep, Trunk
from tests.fast.not_covered import Extractor, contain, double, end_in_activation, layers
from tests.one_rollout import rolled_out
from tests.small_models import DICT, DISCRETE, IMAGE, Case, changed, make_env, policy_state

pytestmark = pytest.mark.untraced


def fit(model: TRPO, *, fast: bool, seed: int = 0, expected: bool | None = None) -> CriticFit | None:
    """Fit the critic as ``train`` does, with the minibatches of a seed."""
    model.fast = fast
    model._update_learning_rate(model.policy.optimizer)
    model.set_random_seed(None)
    np.random.seed(seed)
    batch = model._full_batch()
    batch = batch._replace(returns=batch.returns.to(th.get_default_dtype()))
    result = model._fit_critic(batch, model._split_parameters(batch)[1], lambda: True)
    in_use = fast if expected is None else expected
    assert model.paths_in_use["critic fit"] == ("written out" if in_use else "plain")
    return result


def optimizer_state(model: TRPO) -> dict[str, th.Tensor]:
    """Return what the optimizer remembers by parameter and name; nothing is the same as zeros that saw no step."""
    return {
        f"{parameter_name} {key}": value.clone()
        for parameter_name, parameter in model.policy.named_parameters()
        for key, value in model.policy.optimizer.state.get(parameter, {}).items()
        if isinstance(value, th.Tensor) and value.abs().sum() > 0
    }


def check_same(ours: dict[str, th.Tensor], theirs: dict[str, th.Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and ours[name].shape == theirs[name].shape, name
        # A bias on its way through zero is compared with the size of a weight
        assert (ours[name] - theirs[name]).norm() <= tolerance * max(float(theirs[name].norm()), 1e-2), name


def check_same_critics(ours: TRPO, theirs: TRPO) -> None:
    check_same(policy_state(ours), policy_state(theirs))
    check_same(optimizer_state(ours), optimizer_state(theirs), tolerance=1e-4)


def check_same_fits(ours: CriticFit | None, theirs: CriticFit | None) -> None:
    assert ours is not None and theirs is not None
    assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)
    assert (ours.n_optimizer_steps, ours.n_skipped) == (theirs.n_optimizer_steps, theirs.n_skipped)


SHARED: dict[str, Any] = {"policy_kwargs": {"share_features_extractor": True}}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="tanh"),
        pytest.param({"policy_kwargs": {"activation_fn": nn.ReLU}}, id="relu"),
        pytest.param({"policy_kwargs": {"net_arch": []}}, id="linear"),
        pytest.param({"policy_kwargs": {"net_arch": {"pi": [4], "vf": [9, 8, 7]}}}, id="deep"),
        pytest.param({"policy_kwargs": {"optimizer_kwargs": {"betas": (0.7, 0.9), "eps": 1e-3}}}, id="betas and eps"),
        pytest.param({"policy_kwargs": {"share_features_extractor": False}}, id="separate extractors"),
        pytest.param({"env": make_env(IMAGE, DISCRETE, 2), "learning_rate": 1e-3}, id="image"),
        pytest.param({"env": make_env(spaces.Discrete(5), DISCRETE, 2)}, id="discrete"),
        pytest.param({"env": make_env(spaces.MultiDiscrete([2, 3]), DISCRETE, 2)}, id="multi-discrete"),
        pytest.param({"env": make_env(spaces.MultiBinary(4), DISCRETE, 2)}, id="multi-binary"),
        pytest.param({"use_sde": True}, id="gSDE"),
        *(pytest.param({"policy_kwargs": {"activation_fn": kind}}, id=name) for name, kind in ACTIVATIONS.items()),
        pytest.param({"policy": NormedPolicy, "policy_kwargs": {"activation_fn": nn.SiLU}}, id="layer norms"),
        pytest.param({"policy": "MultiInputPolicy", "env": make_env(TWO_VECTORS, n_envs=2)}, id="dict of vectors"),
        pytest.param({"policy_kwargs": {"optimizer_class": th.optim.AdamW}}, id="AdamW"),
        pytest.param(
            {"policy_kwargs": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.3}}},
            id="AdamW, large decay",
        ),
        pytest.param({"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}, id="RMSprop"),
        pytest.param(
            {"policy_kwargs": {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.8, "eps": 1e-3}}},
            id="RMSprop, alpha and eps",
        ),
        *(
            pytest.param({"policy_kwargs": {"features_extractor_class": kind, "share_features_extractor": shared}}, id=name)
            for kind in (Trunk, StepByStep)
            for shared, name in ((True, f"shared {kind.__name__}"), (False, f"{kind.__name__} of its own"))
        ),
        pytest.param({"policy": "CnnPolicy", "env": make_env(IMAGE, DISCRETE, 2), **SHARED}, id="shared convolution"),
        pytest.param({"policy": "MultiInputPolicy", "env": make_env(DICT, DISCRETE, 2), **SHARED}, id="shared, in a dict"),
        pytest.param({"batch_size": 64}, id="one minibatch"),
        pytest.param({"batch_size": 1000}, id="minibatch larger than the rollout"),
        pytest.param({"batch_size": 63}, id="last minibatch of one"),
    ],
)
def test_critic_ends_where_the_plain_fit_ends(arguments: dict[str, Any]) -> None:
    """Fit after fit with the same minibatches: the weights, the optimizer's state and the losses."""
    ours, theirs = rolled_out(**arguments), rolled_out(**arguments)
    before = policy_state(ours)
    for seed in range(3):
        check_same_fits(fit(ours, fast=True, seed=seed), fit(theirs, fast=False, seed=seed))
        check_same_critics(ours, theirs)
    moved = changed(before, policy_state(ours))
    assert moved and all("value_net" in name or "vf_features_extractor" in name for name in moved)


def test_critic_follows_a_schedule_of_learning_rates() -> None:
    ours, theirs = (rolled_out(learning_rate=lambda progress: 1e-2 * progress) for _ in range(2))
    for seed, progress in enumerate((1.0, 0.5, 0.01, 0.0)):
        before = policy_state(ours)
        for model in (ours, theirs):
            model._current_progress_remaining = progress
        check_same_fits(fit(ours, fast=True, seed=seed), fit(theirs, fast=False, seed=seed))
        check_same_critics(ours, theirs)
        assert bool(changed(before, policy_state(ours))) == (progress > 0)


def test_critic_may_change_paths_between_updates() -> None:
    """Each path takes the optimizer's state over from the other."""
    ours, theirs = rolled_out(), rolled_out()
    for seed, fast in enumerate((True, False, False, True, True, False)):
        check_same_fits(fit(ours, fast=fast, seed=seed), fit(theirs, fast=False, seed=seed))
        check_same_critics(ours, theirs)


@pytest.mark.parametrize("fast_after", [True, False])
@pytest.mark.parametrize("fast_before", [True, False])
def test_critic_goes_on_from_a_file(fast_before: bool, fast_after: bool, tmp_path: pathlib.Path) -> None:
    """Saved after one path, loaded and gone on with the other."""
    ours, theirs = rolled_out(), rolled_out()
    for seed in range(2):
        fit(ours, fast=fast_before, seed=seed)
        fit(theirs, fast=False, seed=seed)
    ours.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=make_env(n_envs=2), device="cpu")
    loaded._logger = ours.logger
    loaded.rollout_buffer = ours.rollout_buffer
    loaded.set_random_seed(None)
    for seed in range(2, 4):
        check_same_fits(fit(loaded, fast=fast_after, seed=seed), fit(theirs, fast=False, seed=seed))
    check_same_critics(loaded, theirs)


def test_critic_fit_leaves_the_actor_and_all_gradients_alone() -> None:
    """Bit for bit, also where the optimizer has a state for the actor's parameters that would move them."""
    model = rolled_out()
    optimizer = model.policy.optimizer
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    before, state = policy_state(model), optimizer_state(model)
    fit(model, fast=True)
    assert all("value_net" in name for name in changed(before, policy_state(model)))
    after = optimizer_state(model)
    assert all("value_net" in name for name in state if not th.equal(state[name], after[name]))
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def spoil(model: TRPO, value: float, rows: slice) -> None:
    model.rollout_buffer.returns[rows, 0] = value


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("rows", [slice(3, 4), slice(None)], ids=["one", "all of an environment"])
def test_critic_skips_the_minibatches_that_the_plain_fit_skips(value: float, rows: slice) -> None:
    """Returns that are not finite, or of which the gradient is not: the weights stay finite and go on afterwards."""
    ours, theirs = rolled_out(batch_size=8), rolled_out(batch_size=8)
    clean = [model.rollout_buffer.returns.copy() for model in (ours, theirs)]
    assert np.array_equal(*clean)  # type: ignore[arg-type]
    for model in (ours, theirs):
        spoil(model, value, rows)
    our_fit, their_fit = fit(ours, fast=True), fit(theirs, fast=False)
    assert our_fit is not None and their_fit is not None
    assert (our_fit.n_optimizer_steps, our_fit.n_skipped) == (their_fit.n_optimizer_steps, their_fit.n_skipped)
    assert our_fit.n_skipped == 3 if rows == slice(3, 4) else our_fit.n_skipped > 20
    assert all(tensor.isfinite().all() for tensor in policy_state(ours).values())
    check_same_critics(ours, theirs)


def test_critic_without_a_finite_return_stays_as_it_is() -> None:
    """Every minibatch skipped: the next fit is as if there had been none."""
    ours, theirs, fresh = rolled_out(), rolled_out(), rolled_out()
    before = policy_state(ours)
    for model, fast in ((ours, True), (theirs, False)):
        model.rollout_buffer.returns[:] = np.nan
        result = fit(model, fast=fast)
        assert result is not None and (result.n_optimizer_steps, result.n_skipped) == (0, 9)
        assert not changed(before, policy_state(model))
        model.rollout_buffer.returns = fresh.rollout_buffer.returns.reshape(model.rollout_buffer.returns.shape, order="F")
    fit(fresh, fast=False, seed=1)
    for model, fast in ((ours, False), (theirs, True)):
        model.rollout_buffer = fresh.rollout_buffer
        fit(model, fast=fast, seed=1)
        check_same_critics(model, fresh)


def test_critic_without_a_pass_is_none() -> None:
    model = rolled_out(n_critic_updates=0)
    before = policy_state(model)
    assert fit(model, fast=True) is None
    assert not changed(before, policy_state(model))


class HalvingBuffer(RolloutBuffer):
    """Hands out minibatches of its own making: half the returns."""

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        data = super()._get_samples(batch_inds, env)
        return data._replace(returns=0.5 * data.returns)


class OwnEpochs(TRPO):
    """A variant that reads its buffer in a way of its own."""

    def _value_epochs(self, batch: Batch) -> Iterator[Iterator[ValueBatch]]:
        for epoch in super()._value_epochs(batch):
            yield (minibatch._replace(returns=0.5 * minibatch.returns) for minibatch in epoch)


class OtherValues(MlpPolicy):
    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        return 2.0 * super().predict_values(obs)


def zero_bias(model: TRPO) -> None:
    with th.no_grad():
        model.policy.value_net.bias.zero_()


def of_policy(**kwargs: Any) -> Callable[[], TRPO]:
    return partial(rolled_out, policy_kwargs=kwargs)


def afterwards(act: Callable[[TRPO], Any]) -> Callable[[], TRPO]:
    def make() -> TRPO:
        model = rolled_out()
        act(model)
        return model

    return make


def tie(layers: nn.Module) -> None:
    assert isinstance(layers, nn.Sequential)
    layers.append(layers[2])
    layers.append(nn.Tanh())


def wrap_step(optimizer: th.optim.Optimizer) -> None:
    """Clip gradients as users do who cannot reach the call."""
    step = optimizer.step

    def clipped_step() -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 0.01)
        step()

    optimizer.step = clipped_step  # type: ignore[method-assign,assignment]


def halve(gradient: th.Tensor) -> th.Tensor:
    return 0.5 * gradient


def share_memory(model: TRPO) -> None:
    layers(model, "value_net")[2].weight.data = layers(model)[2].weight.data


def split_groups(model: TRPO, *modules: nn.Module) -> None:
    """Give some modules a parameter group of their own, with a learning rate of its own."""
    optimizer = model.policy.optimizer
    apart = [parameter for module in modules for parameter in module.parameters()]
    (group,) = optimizer.param_groups
    group["params"] = [parameter for parameter in group["params"] if all(parameter is not other for other in apart)]
    optimizer.add_param_group({"params": apart})


def replace_head(model: TRPO) -> None:
    model.policy.value_net = nn.Linear(64, 1)
    nn.init.constant_(model.policy.value_net.weight, 0.01)
    zero_bias(model)


NO_MLP_CRITIC: dict[str, Callable[[], TRPO]] = {
    "weight decay": of_policy(optimizer_kwargs={"weight_decay": 0.1}),
    "amsgrad": of_policy(optimizer_kwargs={"amsgrad": True}),
    "maximize": of_policy(optimizer_kwargs={"maximize": True}),
    "AdamW, amsgrad": of_policy(optimizer_class=th.optim.AdamW, optimizer_kwargs={"amsgrad": True}),
    "SGD": of_policy(optimizer_class=th.optim.SGD),
    "RMSprop, momentum": of_policy(optimizer_class=th.optim.RMSprop, optimizer_kwargs={"momentum": 0.5}),
    "RMSprop, centered": of_policy(optimizer_class=th.optim.RMSprop, optimizer_kwargs={"centered": True}),
    "RMSprop, weight decay": of_policy(optimizer_class=th.optim.RMSprop, optimizer_kwargs={"weight_decay": 0.1}),
    "shared extractor": of_policy(features_extractor_class=Extractor, share_features_extractor=True),
    "own extractor": of_policy(features_extractor_class=Extractor, share_features_extractor=False),
    "Softsign": of_policy(activation_fn=nn.Softsign),
    "predict_values overridden": partial(rolled_out, policy=OtherValues),
    "convolution": lambda: rolled_out(Case("CnnPolicy", IMAGE, DISCRETE, 2).model),
    "dict": lambda: rolled_out(Case("MultiInputPolicy", DICT, DISCRETE, 2).model),
    "frozen weight": afterwards(lambda model: layers(model, "value_net")[0].weight.requires_grad_(False)),
    "frozen bias": afterwards(lambda model: model.policy.value_net.bias.requires_grad_(False)),
    "in two groups": afterwards(lambda model: split_groups(model, model.policy.value_net)),
    "hook on a layer": afterwards(lambda model: layers(model, "value_net")[0].register_forward_hook(double)),
    "hook on the layers together": afterwards(lambda model: layers(model, "value_net").register_forward_hook(double)),
    "hook after steps": afterwards(lambda model: model.policy.optimizer.register_step_post_hook(lambda *_: zero_bias(model))),
    "hook on a gradient": afterwards(lambda model: model.policy.value_net.weight.register_hook(halve)),
    "layers that share their weights": afterwards(lambda model: tie(layers(model, "value_net"))),
    "container": afterwards(lambda model: contain(model, "value_net")),
    "activation at the end": afterwards(lambda model: end_in_activation(model, "value_net", "value_net")),
    "head that the optimizer does not hold": afterwards(replace_head),
    "memory shared with the actor": afterwards(share_memory),
    "betas that are tensors": of_policy(optimizer_kwargs={"betas": (th.tensor(0.9), th.tensor(0.999)), "foreach": False}),
    "wrapped step": afterwards(lambda model: wrap_step(model.policy.optimizer)),
    "weight norm": afterwards(lambda model: nn.utils.parametrizations.weight_norm(layers(model, "value_net")[0])),
}


@pytest.mark.parametrize("name", NO_MLP_CRITIC)
def test_what_the_critic_does_not_cover_is_fitted_in_the_plain_way(name: str) -> None:
    """The same to the bit with ``fast`` and without."""
    ours, theirs = NO_MLP_CRITIC[name](), NO_MLP_CRITIC[name]()
    before = policy_state(theirs)
    for seed in range(2):
        our_fit, their_fit = fit(ours, fast=True, seed=seed, expected=False), fit(theirs, fast=False, seed=seed)
        assert our_fit == their_fit is not None
    assert changed(before, policy_state(theirs))
    assert not changed(policy_state(ours), policy_state(theirs))


@pytest.mark.parametrize(
    "of_the_user", [{"rollout_buffer_class": HalvingBuffer}, {"cls": OwnEpochs}], ids=["buffer", "epochs"]
)
def test_minibatches_of_the_users_own_are_fitted_quickly(of_the_user: dict[str, Any]) -> None:
    """Neither a buffer nor a hook that makes other minibatches is a reason to go the plain way."""
    ours, theirs = rolled_out(**of_the_user), rolled_out(**of_the_user)
    check_same_fits(fit(ours, fast=True), fit(theirs, fast=False))
    check_same(policy_state(ours), policy_state(theirs))


def test_critic_with_a_parameter_group_of_its_own_ends_where_the_plain_fit_ends() -> None:
    """Its settings are those of its group, and not of the first one."""
    ours, theirs = rolled_out(), rolled_out()
    for model in (ours, theirs):
        split_groups(model, model.policy.mlp_extractor.value_net, model.policy.value_net)
        model.policy.optimizer.param_groups[1]["eps"] = 1e-2
    for seed in range(2):
        check_same_fits(fit(ours, fast=True, seed=seed), fit(theirs, fast=False, seed=seed))
        check_same_critics(ours, theirs)


def test_hooks_on_everything_take_the_plain_paths() -> None:
    """Those that torch keeps for every module, and for every optimizer."""
    for register in (nn.modules.module.register_module_forward_hook, register_optimizer_step_post_hook):
        model = rolled_out()
        handle = register(lambda *_: None)
        try:
            fit(model, fast=True, expected=False)
        finally:
            handle.remove()
        fit(model, fast=True)


def test_critic_in_double_ends_where_the_plain_fit_ends() -> None:
    """Of weights in an order of their own in memory, and in float64 to its precision."""
    ours, theirs = rolled_out(), rolled_out()
    th.set_default_dtype(th.float64)
    for model in (ours, theirs):
        model.policy.double()
        weight = layers(model, "value_net")[0].weight
        weight.data = weight.data.t().contiguous().t()
    check_same_fits(fit(ours, fast=True), fit(theirs, fast=False))
    check_same(policy_state(ours), policy_state(theirs), tolerance=1e-9)


def test_critic_fit_keeps_to_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is set NumPy takes a thread for each core, and they would wait for each other."""
    model = rolled_out()
    seen: list[set[int]] = []
    differentiate = MlpCritic._differentiate

    def spy(self: MlpCritic, minibatch: Any) -> tuple[th.Tensor, bool]:
        seen.append(blas_threads())
        return differentiate(self, minibatch)

    def blas_threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    monkeypatch.setattr(MlpCritic, "_differentiate", spy)
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        fit(model, fast=True)
        assert blas_threads() == before
    assert seen and all(threads == {1} for threads in seen)


def test_interrupt_while_the_critic_is_written_back_undoes_its_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when some of the layers are new: none is, nor is the optimizer's memory."""
    model = rolled_out()
    fit(model, fast=True)
    before, state = policy_state(model), optimizer_state(model)
    n_calls, tensor = 0, th.tensor

    def failing(*args: Any, **kwargs: Any) -> th.Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 4:
            raise KeyboardInterrupt
        return tensor(*args, **kwargs)

    monkeypatch.setattr(th, "tensor", failing)
    with pytest.raises(KeyboardInterrupt):
        fit(model, fast=True)
    monkeypatch.undo()
    assert not changed(before, policy_state(model))
    assert all(th.equal(value, state[name]) for name, value in optimizer_state(model).items())
    fit(model, fast=True)


def test_critic_fit_does_not_ask_for_the_default_device_of_torch() -> None:
    """The fit and what the optimizer remembers are the same wherever a user makes tensors by default."""
    expected, model = rolled_out(), rolled_out()
    fit(expected, fast=True)
    with th.device("meta"):
        fit(model, fast=True)
    assert not changed(policy_state(expected), policy_state(model))
    for name, value in optimizer_state(expected).items():
        assert th.equal(value, optimizer_state(model)[name])


@pytest.mark.parametrize("block", [1, 200, 2**22])
def test_critic_is_given_its_inputs_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever size, the fit is the same to the bit, and no block is larger than the limit and one minibatch."""
    expected = rolled_out()
    fit(expected, fast=True)
    sizes: list[int] = []

    def noted(policy: Any, network: Any, observations: th.Tensor) -> th.Tensor:
        sizes.append(len(observations))
        return network_input(policy, network, observations)

    monkeypatch.setattr("sb3_trpo.fast.mlp_critic.INPUT_BLOCK", block)
    monkeypatch.setattr("sb3_trpo.fast.mlp_critic.network_input", noted)
    model = rolled_out()
    fit(model, fast=True)
    assert not changed(policy_state(expected), policy_state(model))
    assert sum(sizes) == 3 * 64 and max(sizes) == {1: 24, 200: 48, 2**22: 64}[block]


@pytest.mark.parametrize("rate", [1e37, 1e38])
def test_critic_undoes_what_the_plain_fit_undoes(rate: float) -> None:
    """Steps so long that weights overflow: either fit leaves weights and optimizer as they were, and the next agrees."""
    ours, theirs = rolled_out(), rolled_out()
    for model, fast in ((ours, True), (theirs, False)):
        fit(model, fast=fast)
        before, state = policy_state(model), optimizer_state(model)
        model.lr_schedule = lambda remaining: rate
        result = fit(model, fast=fast)
        assert result is not None and result.undone and result.n_optimizer_steps > 0
        assert not changed(before, policy_state(model))
        assert all(th.equal(tensor, state[name]) for name, tensor in optimizer_state(model).items())
        model.lr_schedule = lambda remaining: 1e-3
        fit(model, fast=fast)
    check_same_critics(ours, theirs)


class Peeking(TRPO):
    """Takes the critic into its distribution behind the back of autograd."""

    def _distribution(self, batch: Batch) -> Any:
        distribution: Any = copy.copy(super()._distribution(batch))
        moved = distribution.distribution.mean + 5.0 * self.policy.value_net.bias.detach()
        return distribution.proba_distribution(moved, self.policy.log_std)


@pytest.mark.parametrize("fast", [True, False])
def test_critic_whose_fit_moves_the_policy_is_undone(fast: bool) -> None:
    """Of an algorithm whose distribution nobody can read, what became of it is measured, as on the plain path."""
    model = rolled_out(cls=Peeking, learning_rate=0.1)
    model.fast = fast
    before, state = model.policy.value_net.bias.clone(), optimizer_state(model)
    model.train()
    assert model.paths_in_use["critic fit"] == ("written out" if fast else "plain")
    assert model.last_update is not None and model.last_update.critic is not None
    assert model.last_update.critic.status == "undone" and th.equal(model.policy.value_net.bias, before)
    assert optimizer_state(model) == state
