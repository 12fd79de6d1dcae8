"""The manners of a careful algorithm serve others than TRPO: here PPO, written as for SB3, with one rule of its own."""

import copy
import csv
import math
import pathlib
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.nn import functional as F

from sb3_trpo import TRPO
from sb3_trpo.checked_algorithm import CheckedOnPolicyAlgorithm
from sb3_trpo.guards.arguments import COUNT, RULES, Rule, Rules, check_arguments
from tests.cases import generator
from tests.guards.refusals import REFUSALS, assert_names
from tests.hostile import Fault, HostileEnv
from tests.small_models import BOX, DISCRETE, IMAGE, VECTOR, RandomEnv, changed, make_env, small_model

State = dict[str, th.Tensor]


class Clipped(CheckedOnPolicyAlgorithm):
    """
    PPO with a clipped objective; Schulman et al. 2017, equation 7.

    :param policy: its class or alias
    :param env: what to learn from
    :param n_epochs: passes over the rollout
    :param clip_factor: how far a probability may change, it can be a function of the current progress remaining
    :param learning_rate: of everything
    :param n_steps: of a rollout, for each environment
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ActorCriticPolicy}
    rules: ClassVar[Rules] = {
        **RULES,
        "n_epochs": COUNT,
        "clip_factor": Rule(Real, lambda value: 0 < value < 1, "a number in (0, 1) or a schedule", schedule=True),
    }
    expected_in_zip: ClassVar[frozenset[str]] = frozenset({"clip_factor"})
    saved_by: ClassVar[str] = "Clipped"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-3,
        n_steps: int = 32,
        n_epochs: int = 2,
        clip_factor: float | Schedule = 0.2,
        normalize_advantage: bool = True,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        gamma: float = 0.99,
        error_if_nonfinite: bool = True,
    ):
        check_arguments(self.rules, locals())
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=0.95,
            ent_coef=0.0,
            vf_coef=0.5,
            max_grad_norm=0.5,
            use_sde=False,
            sde_sample_freq=-1,
            rollout_buffer_class=rollout_buffer_class,
            policy_kwargs=policy_kwargs,
            seed=seed,
            device=device,
            error_if_nonfinite=error_if_nonfinite,
            _init_setup_model=False,
        )
        self.n_epochs = n_epochs
        self.clip_factor = clip_factor
        self.normalize_advantage = normalize_advantage
        if _init_setup_model:
            self._setup_model()

    def train(self) -> None:
        """Update actor and critic with the gradient of one loss."""
        clip_factor = self._now("clip_factor")
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for _ in range(self.n_epochs):
            for data in self.rollout_buffer.get(batch_size=16):
                actions = data.actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else data.actions
                values, log_prob, _ = self.policy.evaluate_actions(data.observations, actions)
                advantages = data.advantages
                if self.normalize_advantage:
                    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
                ratio = (log_prob - data.old_log_prob).exp()
                gain = th.min(ratio * advantages, ratio.clamp(1 - clip_factor, 1 + clip_factor) * advantages).mean()
                loss = self.vf_coef * F.mse_loss(values.flatten(), data.returns) - gain
                self.policy.optimizer.zero_grad()
                loss.backward()
                th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
        self._n_updates += 1
        self.logger.record("train/loss", loss.item())
        self.logger.record("train/n_updates", self._n_updates)


def clipped(env: Any = None, **arguments: Any) -> Clipped:
    return Clipped("MlpPolicy", make_env() if env is None else env, **{"seed": 0, "device": "cpu", **arguments})


def state_of(model: Clipped) -> State:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the path of a saved model, which nobody writes to."""
    path = tmp_path_factory.mktemp("clipped") / "model.zip"
    clipped().learn(32).save(path)
    return path


BAD: list[tuple[str, Any]] = [
    ("clip_factor", 0.0),
    ("clip_factor", 1.5),
    ("clip_factor", math.nan),
    ("clip_factor", "0.2"),
    ("clip_factor", None),
    ("n_epochs", 0),
    ("n_epochs", 1.5),
    ("n_steps", 0),
    ("gamma", 1.5),
    ("learning_rate", -1.0),
    ("policy_kwargs", [1]),
    ("rollout_buffer_class", int),
    ("error_if_nonfinite", 1),
    ("device", "nonsense"),
]


@pytest.mark.untraced
@pytest.mark.parametrize("action_space, best", [(BOX, th.ones(64, 3)), (DISCRETE, th.full((64,), 3))], ids=["box", "discrete"])
def test_algorithm_of_another_kind_learns(action_space: spaces.Space, best: th.Tensor) -> None:
    """It is an algorithm: what is paid for most becomes more likely."""
    model = clipped(make_env(action_space=action_space, n_envs=2), n_steps=64, n_epochs=5)
    observations = th.rand(64, 3, generator=generator(0))

    @th.no_grad()
    def log_prob_of_best() -> float:
        return float(model.policy.get_distribution(observations).log_prob(best).mean())

    before = log_prob_of_best()
    model.learn(4 * 128)
    assert log_prob_of_best() > before + 0.1


@pytest.mark.parametrize("name, value", BAD, ids=str)
def test_algorithm_refuses_a_bad_argument_at_construction(name: str, value: Any) -> None:
    """Its own rules count beside those of every algorithm."""
    with pytest.raises(REFUSALS) as refusal:
        clipped(**{name: value})
    assert_names(refusal.value, name, repr(value))


@pytest.mark.parametrize("name, value", BAD, ids=str)
def test_algorithm_refuses_a_bad_argument_at_load(name: str, value: Any, saved: pathlib.Path) -> None:
    """The same rules, for what replaces a saved argument."""
    with pytest.raises(REFUSALS) as refusal:
        Clipped.load(saved, **{"device": "cpu", name: value})
    assert_names(refusal.value, name, repr(value))


@pytest.mark.parametrize("name", ["clip_faktor", "cg_damping", "policy", "arguments"])
def test_algorithm_refuses_an_unknown_keyword_of_load(name: str, saved: pathlib.Path) -> None:
    """Known is what its own constructor takes, and nothing of TRPO."""
    unknown: dict[str, Any] = {name: 0.1}
    with pytest.raises(TypeError) as refusal:
        Clipped.load(saved, device="cpu", **unknown)
    assert_names(refusal.value, name, "clip_factor", "n_epochs")


@pytest.mark.parametrize("given", [{}, {"clip_factor": 0.3}])
def test_error_of_load_has_a_cause_that_is_not_itself(given: dict[str, Any], saved: pathlib.Path) -> None:
    """Whoever follows the causes comes to an end; what the call gave is named where it gave anything."""
    with pytest.raises(ValueError) as refusal:
        Clipped.load(saved, make_env(IMAGE), device="cpu", **given)
    error: BaseException | None = refusal.value
    causes: list[BaseException] = []
    while error is not None and len(causes) < 9:
        causes.append(error)
        error = error.__cause__
    assert len(causes) < 9 and ("clip_factor=0.3 in place of what was saved" in str(refusal.value)) is bool(given)


class Named:
    """What another class of the user's has beside an algorithm."""

    def __init__(self, *args: Any, label: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.label = label


class NamedClipped(Named, Clipped): ...


def test_argument_of_a_class_beside_the_algorithm_is_known_to_load(saved: pathlib.Path) -> None:
    """Whatever class takes it on the way to the base."""
    assert NamedClipped("MlpPolicy", make_env(), device="cpu", label="one").label == "one"
    assert NamedClipped.load(saved, device="cpu", label="other").label == "other"
    with pytest.raises(TypeError, match="label"):
        Clipped.load(saved, device="cpu", label="other")


def test_algorithm_refuses_what_a_zip_holds(tmp_path: pathlib.Path) -> None:
    """Whoever wrote it there; an argument of load repairs it."""
    model = clipped()
    model.clip_factor = math.nan
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="clip_factor"):
        Clipped.load(tmp_path / "model", device="cpu")
    assert Clipped.load(tmp_path / "model", device="cpu", clip_factor=0.3).clip_factor == 0.3


@pytest.mark.parametrize("other", [lambda: PPO("MlpPolicy", make_env(), device="cpu"), small_model], ids=["PPO", "TRPO"])
def test_algorithm_refuses_the_zip_of_another(other: Any, saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """It says who should have saved it; TRPO does not open its zips either."""
    other().save(tmp_path / "other")
    with pytest.raises(ValueError, match="another algorithm, expected one saved by Clipped"):
        Clipped.load(tmp_path / "other", device="cpu")
    with pytest.raises(ValueError, match="another algorithm"):
        TRPO.load(saved, device="cpu")


class Bare(Clipped):
    """An algorithm that says nothing of its zips."""

    kind = ""
    expected_in_zip: ClassVar[frozenset[str]] = frozenset()


class Derived(Bare): ...


def test_algorithm_that_says_nothing_of_its_zips_is_of_a_kind_of_its_own(tmp_path: pathlib.Path) -> None:
    """It reads its own and those of its subclasses, and no other's; the error says whose they are, where that is known."""
    for kind in (Bare, Derived):
        kind("MlpPolicy", make_env(), device="cpu").save(tmp_path / "own")
        assert Bare.load(tmp_path / "own", device="cpu").n_epochs == Derived.load(tmp_path / "own", device="cpu").n_epochs == 2
    others = {"another algorithm": PPO("MlpPolicy", make_env(), device="cpu"), "Clipped": clipped()}
    for name, other in others.items():
        other.save(tmp_path / "other")
        with pytest.raises(ValueError, match=f"holds a model of {name}, expected one of Bare"):
            Bare.load(tmp_path / "other", device="cpu")
    small_model().save(tmp_path / "other")
    with pytest.raises(ValueError, match="expected one of Bare"):
        Bare.load(tmp_path / "other", device="cpu")


@pytest.mark.parametrize("policy", ["CnnPolicy", int, 3])
def test_algorithm_refuses_a_policy_that_it_does_not_have(policy: Any) -> None:
    """The names are those of its own aliases."""
    with pytest.raises(REFUSALS, match=r"policy must be one of \['MlpPolicy'\]"):
        Clipped(policy, make_env(), device="cpu")


def test_algorithm_refuses_environments_that_it_cannot_learn_from() -> None:
    """Things that are none, action spaces without a distribution, and other spaces than its own."""
    with pytest.raises(TypeError, match="env must be"):
        clipped(3)
    with pytest.raises(ValueError, match=r"env\.action_space must be"):
        clipped(RandomEnv(action_space=spaces.Text(3)))
    with pytest.raises(ValueError, match="ction spaces do not match"):
        clipped().set_env(make_env(action_space=DISCRETE))


def test_algorithm_without_an_environment_says_so(saved: pathlib.Path) -> None:
    """Where it would learn: a model that was loaded to act needs none."""
    model = Clipped.load(saved, device="cpu")
    with pytest.raises(ValueError, match=r"no environment to learn in.*set_env"):
        model.learn(32)
    model.set_env(make_env())
    assert model.learn(32).num_timesteps == 32


def test_schedule_that_cannot_work_is_refused_when_it_is_used() -> None:
    """At the update, before anything moves: the error names the argument and what it was."""
    model = clipped(clip_factor=lambda remaining: 0.2 if remaining > 0.4 else math.nan)
    with pytest.raises(ValueError, match="clip_factor must be a finite number >= 0, got nan"):
        model.learn(64)
    assert model._n_updates == 1
    with pytest.raises(ValueError, match="clip_factor"):
        clipped(clip_factor=lambda remaining: -1.0)


def test_algorithm_comes_back_from_its_zip_and_goes_on(tmp_path: pathlib.Path) -> None:
    """Weights, optimizer and arguments are those that were saved: the next update is that of one that was not saved."""
    model = clipped(clip_factor=0.3, n_epochs=3).learn(64)
    model.save(tmp_path / "model")
    loaded = Clipped.load(tmp_path / "model", make_env(), device="cpu")
    assert (loaded.clip_factor, loaded.n_epochs) == (0.3, 3) and not changed(state_of(model), state_of(loaded))
    model.set_env(make_env())
    for each in (model, loaded):
        each.set_random_seed(7)
        each.learn(32, reset_num_timesteps=False)
    assert loaded.num_timesteps == 96 and not changed(state_of(model), state_of(loaded))


def test_algorithm_leaves_a_whole_file_when_it_cannot_save(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one to the byte, and no other."""
    model = clipped()
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()

    def failing(*_: Any) -> None:
        raise OSError

    monkeypatch.setattr(th, "save", failing)
    with pytest.raises(OSError):
        model.save(tmp_path / "model")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize(
    "given", [{"policy": {"log_std": th.full((3,), math.nan)}}, {"policy": {"log_std": th.zeros(4)}}, {"nothing": {}}], ids=str
)
def test_algorithm_refuses_parameters_that_do_not_fit(given: Mapping[str, Any]) -> None:
    """By name, and with every parameter as it was."""
    model = clipped()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"log_std|nothing"):
        model.set_parameters(dict(given), exact_match=False)
    assert not changed(before, state_of(model))


class TwoOptimizers(Clipped):
    """Has an optimizer of its own for the head of its critic, and an argument for that."""

    def __init__(self, *args: Any, head_lr: float = 1e-2, **kwargs: Any):
        self.head_lr = head_lr
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.head_optimizer = th.optim.Adam(self.policy.value_net.parameters(), lr=self.head_lr)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, "head_optimizer"], tensors

    def train(self) -> None:
        super().train()
        self.head_optimizer.step()  # with the last gradient


def test_second_optimizer_is_saved_and_its_memory_looked_at(tmp_path: pathlib.Path) -> None:
    """What an algorithm has beside its policy comes back, with other environments too; what is not finite is refused."""
    model = TwoOptimizers("MlpPolicy", make_env(), device="cpu").learn(32)
    model.save(tmp_path / "model")
    loaded = TwoOptimizers.load(tmp_path / "model", make_env(n_envs=3), device="cpu", head_lr=1e-3)
    assert str(loaded.head_optimizer.state_dict()["state"]) == str(model.head_optimizer.state_dict()["state"])
    assert loaded.learn(96).head_lr == 1e-3
    parameters = copy.deepcopy(model.get_parameters())
    parameters["head_optimizer"]["state"][0]["exp_avg"].fill_(math.nan)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"head_optimizer\['state'\]\[0\]\['exp_avg'\] must be finite"):
        model.set_parameters({name: parameters[name] for name in ("policy", "head_optimizer")}, exact_match=False)
    assert not changed(before, state_of(model))


@pytest.mark.parametrize("place", ["observation", "reward"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_algorithm_learns_from_finite_rollouts_only(place: str, value: str) -> None:
    """The error names the environment and the step, nothing was updated, and without the fault training goes on."""
    env = HostileEnv(VECTOR, termination_probability=0.0)
    model = clipped(DummyVecEnv([lambda: env]))
    env.fault, env.place = Fault(value, 1), place
    before = state_of(model)
    got = rf"environment 0 at step 5 of the rollout must be finite, got (\[\d\] = )?{value}\. Nothing"
    with pytest.raises(ValueError, match=rf"{place} .*{got}"):
        with np.errstate(all="ignore"):
            model.learn(64)
    assert model._n_updates == 0 and not changed(before, state_of(model))
    # The next run does not go on in the middle of an episode like that
    assert model._last_obs is None
    env.fault = None
    assert model.learn(64)._n_updates == 2


def test_algorithm_does_not_act_with_weights_that_are_not_finite() -> None:
    """Before an environment is given what they make of it: the error names the parameter."""
    env = RandomEnv()
    model = clipped(env).learn(32)
    with th.no_grad():
        model.policy.value_net.bias.fill_(math.inf)
    n_steps = env.n_steps
    with pytest.raises(ValueError, match=r"value_net\.bias"):
        model.learn(32, reset_num_timesteps=False)
    assert env.n_steps == n_steps


@pytest.mark.parametrize("log_interval, rows", [(1, ["1", "2", "3"]), (2, ["1", "3"]), (None, [])])
def test_log_has_the_row_of_the_last_update(log_interval: int | None, rows: list[str], tmp_path: pathlib.Path) -> None:
    """SB3 writes a row before each update: the last one would never be told."""
    model = clipped()
    logger = configure(str(tmp_path), ["csv"])
    model.set_logger(logger)
    model.learn(3 * 32, log_interval=log_interval)  # type: ignore[arg-type]
    logger.close()
    with open(tmp_path / "progress.csv", newline="") as file:
        assert [row["train/n_updates"] for row in csv.DictReader(file) if row["train/n_updates"]] == rows


class AtTheEnd(BaseCallback):
    """Does something with the logger when training has ended."""

    def __init__(self, act: Callable[[Any], Any]):
        super().__init__()
        self.act = act

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.act(self.logger)


def test_log_is_complete_when_a_callback_hears_of_the_end(tmp_path: pathlib.Path) -> None:
    """It may read the log then, and close it."""
    found: list[str] = []

    def close(logger: Any) -> None:
        logger.close()
        with open(tmp_path / "progress.csv", newline="") as file:
            found.extend(row["train/n_updates"] for row in csv.DictReader(file))

    model = clipped()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(3 * 32, callback=AtTheEnd(close))
    assert found == ["", "1", "2", "3"] or found == ["1", "2", "3"]


def test_numbers_of_the_last_row_are_in_the_logger_still(tmp_path: pathlib.Path) -> None:
    """For whoever reads them when training has ended, as with SB3; the next run does not write them once more."""
    found: list[Any] = []
    model = clipped()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(2 * 32, callback=AtTheEnd(lambda logger: found.append(logger.name_to_value["train/n_updates"])))
    assert found == [2] and model.logger.name_to_value["train/n_updates"] == 2
    model.logger.record("mine", 1.0)
    model.learn(32, reset_num_timesteps=False)
    model.logger.close()
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["train/n_updates"] for row in rows if row["train/n_updates"]] == ["1", "2", "3"]
    assert [row["mine"] for row in rows if row["mine"]] == ["1.0"]


class OwnLogger:
    """Has what SB3 asks of a logger, and no more."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.now: dict[str, Any] = {}

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.now[key] = value

    record_mean = record

    def dump(self, step: int = 0) -> None:
        self.rows.append((step, self.now))
        self.now = {}

    def log(self, *args: Any, level: int = 20) -> None: ...


@pytest.mark.parametrize("verbose", [0, 1])
def test_logger_of_the_users_own_is_enough(verbose: int) -> None:
    model, logger = small_model(verbose=verbose), OwnLogger()
    model.set_logger(logger)  # type: ignore[arg-type]
    model.learn(128)
    assert [step for step, _ in logger.rows] == [64, 128] and logger.now["train/n_updates"] == 2


class OwnLoop(TRPO):
    """Learns in a loop of its own, as SB3 writes it, and looks at the callback that it is handed."""

    def learn(self, total_timesteps: int, callback: Any = None, *args: Any, **kwargs: Any) -> Any:
        total_timesteps, callback = self._setup_learn(total_timesteps, callback)
        assert isinstance(callback, BaseCallback) and callback.n_calls == 0
        callback = CallbackList([callback, ConvertCallback(None)])
        callback.init_callback(self)
        callback.on_training_start(locals(), globals())
        assert self.env is not None
        while self.num_timesteps < total_timesteps:
            self.collect_rollouts(self.env, callback, self.rollout_buffer, self.n_steps)
            self.train()
        callback.on_training_end()
        return self


def test_subclass_with_a_loop_of_its_own_learns() -> None:
    """What ``_setup_learn`` returns is a callback, and its end needs nothing of our ``learn``."""
    heard: list[str] = []

    class Hears(BaseCallback):
        def _on_step(self) -> bool:
            heard.append("step")
            return True

        def _on_training_end(self) -> None:
            heard.append("end")

    model = small_model(OwnLoop)
    model.learn(128, Hears())
    assert heard == [*["step"] * 128, "end"] and model._n_updates == 2


@pytest.mark.parametrize("seed", [-1, 2**40, True, 1.5])
def test_seed_that_cannot_work_is_refused_before_anything_is_seeded(seed: Any) -> None:
    model = small_model(seed=3)
    state = th.get_rng_state()
    with pytest.raises((TypeError, ValueError), match="seed must be"):
        model.set_random_seed(seed)
    assert model.seed == 3 and th.equal(state, th.get_rng_state())
    model.learn(64)


class OneNumberMore(Clipped):
    """Writes a number of its own into each row."""

    def dump_logs(self, iteration: int) -> None:  # type: ignore[override]
        self.logger.record("mine", 1.0)
        super().dump_logs(iteration)


def test_last_row_is_written_by_the_method_of_the_subclass(tmp_path: pathlib.Path) -> None:
    model = OneNumberMore("MlpPolicy", make_env(), n_steps=32, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(2 * 32)
    model.logger.close()
    with open(tmp_path / "progress.csv", newline="") as file:
        assert [row["mine"] for row in csv.DictReader(file)] == ["1.0"] * 3


@pytest.mark.parametrize("value", [1, True, None, "easy", 10**9], ids=str)
def test_value_that_is_recorded_anew_is_written_though_it_is_the_same(value: Any, tmp_path: pathlib.Path) -> None:
    """As a level of a curriculum that has not changed; what nobody has recorded anew is in one row."""
    model = small_model(n_steps=32)
    model.set_logger(configure(str(tmp_path), ["csv"]))

    class Level(BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record("level", value)
            self.logger.record("once", value)
            return True

    model.learn(32, Level(), log_interval=4)
    model.logger.record("level", value)
    model.learn(32, reset_num_timesteps=False)
    model.logger.close()
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    written = "" if value is None else str(value)
    assert [row["level"] for row in rows] == [written, written, ""]
    assert [row["once"] for row in rows] == [written, "", ""]
