"""What keeps the copies of a model the same, one piece at a time; whole trainings are in promises/test_many_processes.py."""

import copy
import pathlib
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_trpo import TRPO, MaskableTRPO
from sb3_trpo.distributed import PeerError
from sb3_trpo.inspect import inspect_model
from sb3_trpo.replicas import arguments_of, check_same, checksum, digest, since
from tests.in_threads import InThreads, Table, together
from tests.masked_envs import masked_env
from tests.small_models import RandomEnv, make_env, observed, small_model


def test_check_same_names_the_first_difference() -> None:
    """On the first process that has another value; one that has failed tells nothing."""
    check_same([{"a": 1, "b": 2}, {}, {"a": 1, "b": 2}])
    with pytest.raises(PeerError, match="b must be the same on all processes, got 2 on process 0 and 3 on 2"):
        check_same([{"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1, "b": 3}])


def test_arguments_are_told_in_the_same_words_by_models_that_are_alike() -> None:
    """Where functions lie in memory is of no account; a schedule is what it returns."""

    def told(**arguments: Any) -> dict[str, str]:
        return arguments_of(small_model(policy_kwargs={"activation_fn": lambda: th.nn.Tanh()}, **arguments), total_timesteps=5)

    assert told(seed=1, verbose=0) == told(seed=2, device="cpu")
    assert told(target_kl=lambda left: 0.01 + left)["target_kl"] == "[1.01, 0.51, 0.01]"
    assert told()["total_timesteps"] == "5" and told()["VecNormalize"] == "None"
    assert {name for name, value in told(gamma=0.9).items() if value != told()[name]} == {"gamma"}


def test_order_of_a_set_says_nothing() -> None:
    """It is another one in each process."""
    told = [
        arguments_of(small_model(), policy_kwargs={"features_extractor_kwargs": {"keys": keys}})["policy_kwargs"]
        for keys in ({"one", "two", "three"}, frozenset(["three", "two", "one"]))
    ]
    assert told[0] == told[1] == "{'features_extractor_kwargs': {'keys': ['one', 'three', 'two']}}"


def test_order_of_a_dictionary_says_nothing() -> None:
    """Made from a set it is another one in each process."""
    told = [
        arguments_of(small_model(), policy_kwargs={"net_arch": {name: [8] for name in names}})["policy_kwargs"]
        for names in (("pi", "vf"), ("vf", "pi"))
    ]
    assert told[0] == told[1] == "{'net_arch': {'pi': [8], 'vf': [8]}}"


@dataclass
class Config:
    """What somebody keeps the settings of a network in."""

    keys: frozenset[str]
    size: int = 3


def test_order_of_a_set_says_nothing_at_any_depth() -> None:
    for wrap in (Config, lambda keys: (1, keys), lambda keys: {"deep": [Config(keys)]}):
        told = [
            arguments_of(small_model(), policy_kwargs={"config": wrap(frozenset(keys))})["policy_kwargs"]
            for keys in (["one", "two", "three"], ["three", "two", "one"])
        ]
        assert told[0] == told[1] and "['one', 'three', 'two']" in told[0]
    told = [arguments_of(small_model(), policy_kwargs={"config": Config(frozenset(), n)})["policy_kwargs"] for n in (3, 4)]
    assert told[0] != told[1] and "Config" in told[0]


def test_processes_are_told_whether_masks_are_asked_for() -> None:
    """One that masks and one that does not would make one update of two different policies."""
    told = []

    class Told(BaseCallback):
        def _on_rollout_start(self) -> None:
            told.append(arguments_of(self.model)["use_masking"])

        def _on_step(self) -> bool:
            return False

    model = MaskableTRPO("MlpPolicy", masked_env(probability=1.0), n_steps=64, device="cpu")
    for use_masking in (True, False):
        model.learn(64, Told(), use_masking=use_masking)
    assert told == ["True", "False"]


def test_checksum_sees_a_bit_of_everything() -> None:
    """Of weights, of the optimizer's memory and of running statistics; it is the same while nothing changes."""
    env = VecNormalize(make_env())
    model = small_model(env=env).learn(64)
    sums = [checksum(model)]
    assert checksum(model) == sums[0]
    with th.no_grad():
        model.policy.log_std.view(th.int32)[0] ^= 1
    sums.append(checksum(model))
    next(iter(model.policy.optimizer.state.values()))["exp_avg"].view(-1)[0] += 1.0
    sums.append(checksum(model))
    observed(env).var[1] *= 1 + 1e-15
    sums.append(checksum(model))
    env.ret_rms.count += 1
    assert len({*sums, checksum(model)}) == 5


def test_digest_is_of_actions_rewards_and_observations() -> None:
    model = small_model().learn(64)
    found = {digest(model.rollout_buffer)}
    for array in (model.rollout_buffer.actions, model.rollout_buffer.rewards, model.rollout_buffer.observations):
        array[0] += 1.0
        found.add(digest(model.rollout_buffer))
    assert len(found) == 4


@pytest.mark.parametrize("n_before", [0, 100, 1_000_000])
def test_since_is_what_came_in(n_before: int) -> None:
    """Also after so much that it hardly moves them, and far from zero; nothing where nothing came."""
    random = np.random.default_rng(0)
    before, rows = random.normal(7.0, 2.0, (n_before, 3)), random.normal(8.0, 0.1, (20, 3))
    agreed = RunningMeanStd(shape=(3,))
    if n_before:
        agreed.update(before)
    now = agreed.copy()
    assert since(now, agreed)[2] == 0.0
    now.update(rows)
    mean, var, count = since(now, agreed)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(var, rows.var(axis=0), rtol=1e-4)
    assert count == pytest.approx(20)


def pair(**arguments: Any) -> list[TRPO]:
    """Return two models that learn together, each with environments of its own."""
    table = Table()
    made = []
    for rank in range(2):
        env = VecNormalize(DummyVecEnv([lambda: Monitor(RandomEnv())] * 2))
        made.append(small_model(env=env, processes=InThreads(table, rank), **arguments))
    return made


def learn(models: list[TRPO], n: int, callbacks: Any = (None, None), **arguments: Any) -> list[Any]:
    """Learn together; return what each call of learn did."""
    calls = [partial(model.learn, n, callback, **arguments) for model, callback in zip(models, callbacks, strict=True)]
    return together(calls)


class Bar(ProgressBarCallback):
    """Counts, and shows nothing."""

    def __init__(self) -> None:
        BaseCallback.__init__(self)
        self.n = 0
        self.pbar: Any = self

    def _on_training_start(self) -> None:
        pass

    def update(self, n: int) -> None:
        self.n += n

    def _on_training_end(self) -> None:
        pass


def test_models_that_learn_together_stay_the_same() -> None:
    """Whatever they were before: weights, the optimizer's memory, running statistics, counters and episodes."""
    models = pair()
    assert checksum(models[0]) != checksum(models[1])
    bar = Bar()
    assert learn(models, 400, (CallbackList([bar]), None)) == models
    assert models[0].num_timesteps == models[1].num_timesteps == bar.n == 512
    assert checksum(models[0]) == checksum(models[1])
    assert models[0].ep_info_buffer == models[1].ep_info_buffer and models[0].ep_info_buffer
    assert learn(models, 100, reset_num_timesteps=False) == models
    assert models[0].num_timesteps == 640 and checksum(models[0]) == checksum(models[1])


@pytest.mark.parametrize("fast", [True, False])
def test_rollout_that_fails_on_one_is_an_error_on_both(fast: bool) -> None:
    """The other names it; both count the steps of both, and can go on."""
    models = pair(fast=fast)

    def fails(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        if models[1].num_timesteps > 150:
            raise ArithmeticError("one too many")
        return True

    here, there = learn(models, 400, (None, fails))
    assert isinstance(here, PeerError) and str(here) == "process 1 of 2: ArithmeticError: one too many"
    assert isinstance(there, ArithmeticError)
    assert models[0].num_timesteps == models[1].num_timesteps and models[0]._n_updates == 1
    assert learn(models, 100) == models and checksum(models[0]) == checksum(models[1])


@pytest.mark.parametrize("when, n", {"_on_training_start": 0, "_on_training_end": 256}.items())
def test_callback_that_fails_around_the_rollouts_is_an_error_on_both(when: str, n: int) -> None:
    """They count the same steps, and can go on: nothing is lost."""
    models = pair()
    callback = CallbackList([])

    def fails() -> None:
        assert callback.locals["callback"] is callback
        raise ArithmeticError("one too many")

    setattr(callback, when, fails)
    here, there = learn(models, 256, (None, callback))
    assert isinstance(here, PeerError) and str(here) == "process 1 of 2: ArithmeticError: one too many"
    assert isinstance(there, ArithmeticError)
    assert models[0].num_timesteps == models[1].num_timesteps == n
    assert learn(models, 100) == models and checksum(models[0]) == checksum(models[1])


def test_callback_that_ends_one_ends_both() -> None:
    models = pair()
    assert learn(models, 400, (lambda *_: models[0].num_timesteps < 150, None)) == models
    assert models[0]._n_updates == models[1]._n_updates == 1
    assert models[0].num_timesteps == models[1].num_timesteps < 256


def test_update_that_fails_on_one_moves_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor its optimizer; and both refuse to go on."""
    models = pair()
    assert learn(models, 128) == models
    before = checksum_of_weights(models[0])

    def fails(*_: Any) -> None:
        raise MemoryError("no more of it")

    monkeypatch.setattr(models[1], "_report", fails)
    here, there = learn(models, 128)
    assert isinstance(here, PeerError) and isinstance(there, MemoryError)
    assert checksum_of_weights(models[0]) == checksum_of_weights(models[1]) == before
    assert models[0]._n_updates == models[1]._n_updates == 1
    here, there = learn(models, 128)
    assert "begin again with join() on all" in str(here) and isinstance(there, PeerError)


def checksum_of_weights(model: TRPO) -> float:
    return float(sum(parameter.detach().double().sum() for parameter in model.policy.parameters()))


def test_what_differs_is_refused_before_anything_moves() -> None:
    """An argument as learning begins, a bit of a weight before an update."""
    models = pair()
    models[1].batch_size = 16
    for outcome in learn(models, 128):
        assert isinstance(outcome, PeerError) and "batch_size must be the same on all processes, got 32" in str(outcome)
    models[1].batch_size = 32

    def shift(*_: Any) -> bool:
        with th.no_grad():
            models[1].policy.value_net.bias.add_(1e-6)
        return True

    for outcome in learn(models, 128, (None, shift)):
        assert isinstance(outcome, PeerError) and "the checksum of weights, optimizer and running" in str(outcome)
    assert models[0]._n_updates == 0 and learn(models, 128) == models


@pytest.mark.parametrize("name, value", {"cg_max_steps": 2, "sub_sampling_factor": 2}.items())
def test_argument_that_a_callback_sets_on_one_is_refused_before_anything_moves(name: str, value: int) -> None:
    """Else the processes would meet for different things, which ends them without a word."""
    models = pair()

    def sets(*_: Any) -> bool:
        setattr(models[1], name, value)
        return True

    for outcome in learn(models, 128, (None, sets)):
        assert isinstance(outcome, PeerError) and f"{name} must be the same on all processes" in str(outcome)
    assert models[0]._n_updates == models[1]._n_updates == 0


@pytest.mark.parametrize("change", [lambda layer: layer.requires_grad_(False), lambda layer: layer.double()])
def test_parameters_of_another_kind_are_refused(change: Any) -> None:
    """Frozen, or of another precision."""
    models = pair()
    change(models[1].policy.action_net)
    for outcome in learn(models, 128):
        assert isinstance(outcome, PeerError) and "parameters must be the same on all processes" in str(outcome)
        assert "action_net.weight" in str(outcome) and "value_net" not in str(outcome)  # not all that are alike too
    assert models[0].num_timesteps == models[1].num_timesteps == 0


def test_hook_on_one_process_changes_nothing() -> None:
    """Whoever watches the networks of rank 0 alone does not have it meet the others more often than they do."""
    models = pair()
    seen: list[Any] = []
    models[0].policy.mlp_extractor.register_forward_hook(lambda *of_call: seen.append(of_call))
    assert learn(models, 256) == models and seen
    assert models[0]._n_updates == models[1]._n_updates == 2 and checksum(models[0]) == checksum(models[1])


def test_model_can_be_copied_in_the_midst_of_a_rollout() -> None:
    """By a callback, and for another process too; the copy is alone, and its episodes are its own."""
    models = pair()
    copies: list[TRPO] = []

    def copies_it(*_: Any) -> bool:
        if models[0].num_timesteps == 100:
            copies.extend((copy.deepcopy(models[0]), cloudpickle.loads(cloudpickle.dumps(models[0]))))
        return True

    assert learn(models, 128, (copies_it, None)) == models
    assert all(one.processes.size == 1 and one._joint_rollout is None for one in copies)
    assert len(copies) == 2 and checksum(models[0]) == checksum(models[1])


def test_model_can_be_inspected_on_one_process_alone() -> None:
    """The others do not wait, and nothing of the model is another afterwards."""
    models = pair()
    assert learn(models, 256) == models
    before = checksum(models[0]), models[0].num_timesteps, list(models[0].ep_info_buffer or ())
    (update,) = inspect_model(models[0]).updates
    assert update.status == "accepted"
    assert before == (checksum(models[0]), models[0].num_timesteps, list(models[0].ep_info_buffer or ()))
    assert models[0].processes.size == 2 and learn(models, 128, reset_num_timesteps=False) == models
    assert checksum(models[0]) == checksum(models[1])


def test_every_layer_of_running_statistics_is_that_of_all() -> None:
    """There may be several in a stack, and other layers around and between."""
    models = pair()
    for model in models:
        model.env = VecNormalize(VecFrameStack(model.env, 1), norm_reward=False)  # type: ignore[arg-type]
        model._vec_normalize_env = model.env
    assert learn(models, 256) == models
    for one, other in zip(*([env, env.venv.venv] for env in (model.env for model in models)), strict=True):  # type: ignore[union-attr]
        np.testing.assert_array_equal(one.obs_rms.mean, other.obs_rms.mean)
        assert one.obs_rms.count == other.obs_rms.count > 256


@pytest.mark.parametrize(
    ("when", "at", "n_seen"),
    # At which call, and how many steps of all the statistics have seen by then
    [("_on_training_start", 1, 0), ("_on_rollout_start", 2, 128), ("_on_step", 40, 160), ("_on_rollout_end", 1, 128)],
)
@pytest.mark.parametrize("count", [10_000.0, 1e-4])
def test_statistics_that_a_callback_puts_in_place_are_no_data(when: str, at: int, n_seen: int, count: float) -> None:
    """Loaded or reset on all: what comes in afterwards is merged into them, once."""
    models = pair()

    def putting(model: TRPO) -> Any:
        calls = iter(range(1, 1000))

        def put() -> bool:
            if next(calls) == at:
                loaded = RunningMeanStd(shape=(3,))
                loaded.mean, loaded.count = np.full(3, 0.5), count
                model.env.obs_rms = loaded  # type: ignore[union-attr]
            return True

        callback = CallbackList([])
        setattr(callback, when, put)
        return callback

    assert learn(models, 256, list(map(putting, models))) == models and models[0]._n_updates == 2
    one, other = (observed(model.env) for model in models)  # type: ignore[arg-type]
    np.testing.assert_array_equal(one.mean, other.mean)
    assert one.count == other.count == pytest.approx(count + 256 - n_seen)


def test_settings_of_the_optimizer_that_a_callback_changes_on_one_are_refused() -> None:
    """Each would follow the gradients of all from weights of its own within the critic's fit."""
    models = pair()

    def sets(*_: Any) -> bool:
        models[1].policy.optimizer.param_groups[0]["betas"] = (0.5, 0.5)
        return True

    for outcome in learn(models, 128, (None, sets)):
        assert isinstance(outcome, PeerError) and "the settings of the optimizer must be the same on all" in str(outcome)
    assert models[0]._n_updates == 0 and learn(models, 128) == models  # those of rank 0 hold from the start


def test_loading_is_quiet_above_rank_0(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever was saved, and whatever is given."""
    small_model(verbose=1).save(tmp_path / "model")
    given: list[tuple[int, dict[str, Any]]] = [(1, {}), (1, {"verbose": 2}), (0, {})]
    for rank, verbose in given:
        capsys.readouterr()
        model = TRPO.load(tmp_path / "model", RandomEnv(), device="cpu", processes=InThreads(Table(), rank), **verbose)
        assert bool(capsys.readouterr().out) is (rank == 0) and model.verbose == 1 - rank


def test_window_of_one_process_is_that_of_one_again(tmp_path: pathlib.Path) -> None:
    """A model that was saved among two goes on alone; one that the user sets is theirs."""
    model = small_model(stats_window_size=10).learn(64)
    model.ep_info_buffer = deque(model.ep_info_buffer or (), maxlen=20)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", make_env(), device="cpu").learn(64, reset_num_timesteps=False)
    assert loaded.ep_info_buffer is not None and loaded.ep_info_buffer.maxlen == 10
    model.learn(64, reset_num_timesteps=False)
    assert model.ep_info_buffer.maxlen == 20


def test_environment_that_is_missing_is_told_to_all_and_can_be_given() -> None:
    """Nobody leaves for what is refused before anything begins."""
    models = pair()
    env, models[1].env = models[1].env, None
    here, there = learn(models, 128)
    assert isinstance(there, ValueError) and "the model has no environment" in str(there)
    assert isinstance(here, PeerError) and "process 1 of 2: ValueError: the model has no environment" in str(here)
    models[1].env = env
    assert learn(models, 128) == models and models[0]._n_updates == 1


def test_optimizers_of_other_kinds_are_refused_by_name() -> None:
    models = pair()
    models[1].policy.optimizer = th.optim.SGD(models[1].policy.parameters(), lr=1e-3)
    for outcome in learn(models, 128):
        assert isinstance(outcome, PeerError) and "optimizer must be the same on all processes, got Adam" in str(outcome)
