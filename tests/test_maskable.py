"""Impossible actions are never taken and never learned from, and the limit holds for the possible ones."""

import pathlib
import runpy
import subprocess
import sys
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO, MaskableRecurrentTRPO, kl_old_new
from sb3_trpo.maskable import MaskableTRPO, check_masks
from sb3_trpo.vec_env import as_vec_env
from tests.from_outside import joint_kl_by_hand
from tests.masked_envs import MaskedEnv, masked_env
from tests.small_models import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    MULTI_BINARY,
    MULTI_DISCRETE,
    VECTOR,
    RandomEnv,
    make_env,
    policy_state,
    small_model,
)

CASES: dict[str, tuple[str, spaces.Space, spaces.Space, dict[str, Any]]] = {
    "discrete": ("MlpPolicy", spaces.Box(-1.0, 1.0, (3,)), DISCRETE, {}),
    "multi_discrete": ("MlpPolicy", spaces.Box(-1.0, 1.0, (3,)), MULTI_DISCRETE, {}),
    "multi_binary": ("MlpPolicy", spaces.Box(-1.0, 1.0, (3,)), MULTI_BINARY, {}),
    "dict": ("MultiInputPolicy", DICT, DISCRETE, {}),
    "cnn": ("CnnPolicy", IMAGE, DISCRETE, {}),
    "cnn_shared": ("CnnPolicy", IMAGE, MULTI_DISCRETE, {"policy_kwargs": {"share_features_extractor": True}}),
    "counted_from_two": ("MlpPolicy", spaces.Discrete(5, start=2), DISCRETE, {}),
}


def masked_model(cls: type[MaskableTRPO] = MaskableTRPO, name: str = "discrete", **arguments: Any) -> MaskableTRPO:
    policy, observation_space, action_space, of_case = CASES[name]
    env = masked_env(observation_space, action_space, n_envs=2)
    model = small_model(cls, policy, env, **(of_case | arguments))
    assert isinstance(model, MaskableTRPO)
    return model


class Measured(MaskableTRPO):
    """Every update is measured with sb3-contrib's policy, one observation at a time."""

    measurements: tuple[tuple[Any, float], ...] = ()

    def train(self) -> None:
        data = next(self.rollout_buffer.get(None))
        old = self._measured(data)
        super().train()
        assert self.last_update is not None
        new = self._measured(data)
        pairs = [zip(*both, strict=True) for both in zip(old, new, strict=True)]
        kls = [float(sum(joint_kl_by_hand(a, b) for a, b in pair)) for pair in pairs]
        self.measurements += ((self.last_update.step, float(np.mean(kls))),)

    @th.no_grad()
    def _measured(self, data: Any) -> list[list[Any]]:
        result = []
        for row in range(len(data.action_masks)):
            rows = slice(row, row + 1)
            obs: Any = data.observations
            one = {key: part[rows] for key, part in obs.items()} if isinstance(obs, dict) else obs[rows]
            policy: Any = self.policy
            distribution = policy.get_distribution(one, action_masks=data.action_masks[rows])
            factors = getattr(distribution, "distributions", None) or [distribution.distribution]
            result.append([th.distributions.Categorical(logits=factor.logits.clone()) for factor in factors])
        return result


@pytest.mark.untraced
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "cnn_shared")) for name in CASES])
def test_limit_holds_for_the_possible_actions_measured_from_outside(name: str) -> None:
    """After every update the KL of the masked policies is within target_kl and as reported; no impossible action was taken."""
    model = masked_model(Measured, name, target_kl=0.02, learning_rate=1e-2)
    assert isinstance(model, Measured)
    model.learn(3 * 64)
    assert len(model.measurements) == 3 and any(step.accepted for step, _ in model.measurements)
    for step, mean_kl in model.measurements:
        assert mean_kl <= 0.02 + 1e-6
        assert mean_kl == pytest.approx(step.mean_kl, rel=1e-3, abs=1e-6)


def test_nothing_to_choose_moves_nothing() -> None:
    """All but one action masked everywhere: no gradient, and every parameter of the actor stays as it was."""
    model = small_model(MaskableTRPO, "MlpPolicy", masked_env(probability=0.0), n_critic_updates=0)
    before = policy_state(model)
    model.learn(64)
    assert model.last_update is not None and model.last_update.step.status == "gradient_zero"
    assert all(th.equal(before[name], value) for name, value in policy_state(model).items())


def test_fisher_product_gives_masked_logits_zero() -> None:
    """A logit that is masked in every state has no curvature."""
    model = masked_model()
    model.learn(64)
    batch = model._full_batch()
    assert batch.action_masks is not None
    masks = batch.action_masks.clone()
    masks[:, 1] = False
    masks[:, 2] = True
    problem = model._policy_problem(batch._replace(action_masks=masks), list(model.policy.action_net.parameters()))
    product = problem.fisher_vector_product()(th.randn(64 * 4 + 4, generator=th.Generator().manual_seed(0)))
    weight, bias = product[: 64 * 4].view(4, 64), product[64 * 4 :]
    assert weight[1].abs().max() < 1e-7 and abs(bias[1]) < 1e-7 and weight[2].abs().max() > 1e-5


def test_no_possible_action_is_an_error_that_names_environment_and_step() -> None:
    """The second environment's third step."""
    env = masked_env(n_envs=2)
    calls = 0

    def none_at_the_third() -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.zeros(4, bool) if calls == 3 else np.array([True, True, True, True])

    second: Any = env.envs[1]  # type: ignore[attr-defined]
    second.action_masks = none_at_the_third
    second.step = lambda action: super(MaskedEnv, second).step(action)
    model = small_model(MaskableTRPO, "MlpPolicy", env)
    with pytest.raises(ValueError, match="environment 1 must leave at least one action, got none at step 3"):
        model.learn(64)


def test_masks_of_another_size_are_refused() -> None:
    """With the number expected, in a rollout and in a prediction; none left is refused there too."""
    with pytest.raises(ValueError, match="must return 5 booleans"):
        check_masks([np.ones(4)], MULTI_DISCRETE, step=1)
    with pytest.raises(ValueError, match="at least one action of variable 1"):
        check_masks([np.array([1, 0, 0, 0, 0])], MULTI_DISCRETE, step=1)
    model = masked_model()
    with pytest.raises(ValueError, match="4 booleans"):
        model.predict(np.zeros(3, np.float32), action_masks=np.ones(3))
    with pytest.raises(ValueError, match=r"environment 0 must leave at least one action, got none\. An"):
        model.predict(np.zeros(3, np.float32), action_masks=np.zeros(4))


def test_predict_and_evaluation_take_possible_actions_alone() -> None:
    """Deterministic or drawn; contrib's evaluation in an environment that stops whoever does not."""
    model: Any = masked_model().learn(64)
    for deterministic in (True, False):
        for action in range(4):
            taken, _ = model.predict(np.zeros(3, np.float32), deterministic=deterministic, action_masks=np.eye(4)[action])
            assert taken == action
        evaluate_policy(model, masked_env(), n_eval_episodes=3, deterministic=deterministic, warn=False)


def test_masking_can_be_left_out_and_is_missed_where_it_is_not_supported() -> None:
    """As in MaskablePPO, and said before anything is collected."""
    env = make_env(action_space=DISCRETE)
    model: Any = small_model(MaskableTRPO, "MlpPolicy", env)
    with pytest.raises(ValueError, match="does not support action masking"):
        model.learn(64)
    assert model.num_timesteps == 0
    model.learn(64, use_masking=False)
    assert model.num_timesteps == 64 and model.rollout_buffer.action_masks.all()


class Fills(gym.Env[Any, Any]):
    """Each of three fields is taken once: where none is left the episode has ended, and nothing is possible."""

    observation_space = spaces.Box(0.0, 1.0, (3,))
    action_space = spaces.Discrete(3)

    def reset(self, **kwargs: Any) -> Any:
        self.free = np.ones(3, bool)
        return self.free.astype(np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.free[action]
        self.free[action] = False
        return self.free.astype(np.float32), float(action == 0), not self.free.any(), False, {}

    def action_masks(self) -> np.ndarray:
        return self.free.copy()


@pytest.mark.parametrize("fast", [True, False])
def test_nothing_need_be_possible_in_a_step_that_is_none(fast: bool) -> None:
    """A vector wrapper around environments that spend a step on each reset: no action is taken there."""
    env: Any = RecordEpisodeStatistics(SyncVectorEnv([Fills] * 2, autoreset_mode=AutoresetMode.NEXT_STEP))
    model = small_model(MaskableTRPO, "MlpPolicy", as_vec_env(env), n_steps=32, fast=fast).learn(64)
    evaluate_policy(model, model.env, n_eval_episodes=4, warn=False)  # type: ignore[arg-type]
    assert model._wasted_steps is not None and model._wasted_steps.any()
    assert model.rollout_buffer.action_masks[model._wasted_steps].all()  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls, policy", [(MaskableTRPO, "MlpPolicy"), (MaskableRecurrentTRPO, "MlpLstmPolicy")])
@pytest.mark.parametrize("fast", [True, False])
def test_a_callback_finds_the_masks(cls: type[MaskableTRPO], policy: str, fast: bool) -> None:
    """Where MaskablePPO has them, with and without masking."""
    seen: list[Any] = []

    def look(variables: dict[str, Any], _: Any) -> bool:
        seen.append((variables["use_masking"], variables["action_masks"], variables["actions"]))
        return True

    model: Any = small_model(cls, policy, masked_env(n_envs=2), fast=fast)
    model.train = lambda: None
    model.learn(64, callback=look)
    for use_masking, masks, actions in seen:
        assert use_masking and masks.shape == (2, 4) and masks[[0, 1], actions.ravel()].all()
    assert not np.array_equal(seen[0][1], seen[1][1])
    model.set_env(make_env(action_space=DISCRETE, n_envs=2))
    model.learn(64, callback=look, use_masking=False)
    assert seen[-1][:2] == (False, None)


def test_same_seed_same_weights_and_again_after_loading(tmp_path: pathlib.Path) -> None:
    """Twice in a row, and a zip brings back the same policy."""
    one, other = (masked_model().learn(128) for _ in range(2))
    for name, value in policy_state(one).items():
        assert th.equal(value, policy_state(other)[name])
    one.save(tmp_path / "model")
    loaded = MaskableTRPO.load(tmp_path / "model", env=masked_env(n_envs=3), device="cpu")
    assert all(th.equal(value, policy_state(loaded)[name]) for name, value in policy_state(one).items())
    loaded.learn(64, reset_num_timesteps=False)


def test_other_kinds_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    """A zip, a set of parameters from one, a policy class; subclasses of the user's own are of the kind of their base."""

    class Own(MaskableTRPO):
        pass

    masked_model(Own).save(tmp_path / "masked")
    small_model(TRPO, env=make_env(action_space=DISCRETE)).save(tmp_path / "plain")
    MaskablePPO("MlpPolicy", masked_env(), n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo")
    assert isinstance(MaskableTRPO.load(tmp_path / "masked", device="cpu"), MaskableTRPO)
    with pytest.raises(ValueError, match="holds a model of MaskableTRPO, expected one of TRPO"):
        TRPO.load(tmp_path / "masked", device="cpu")
    with pytest.raises(ValueError, match="holds a model of TRPO, expected one of MaskableTRPO"):
        MaskableTRPO.load(tmp_path / "plain", device="cpu")
    with pytest.raises(ValueError, match="holds a model of TRPO, expected one of MaskableTRPO"):
        masked_model().set_parameters(str(tmp_path / "plain"), device="cpu")
    with pytest.raises(ValueError, match="another algorithm"):
        MaskableTRPO.load(tmp_path / "ppo", device="cpu")
    others: list[Any] = [MaskableActorCriticPolicy, RecurrentActorCriticPolicy]
    for policy in others:
        with pytest.raises(TypeError, match="it acts on"):
            TRPO(policy, make_env(action_space=DISCRETE), device="cpu")
    with pytest.raises(
        TypeError, match="it acts on lstm_states and episode_starts, and a policy of MaskableTRPO acts on action_"
    ):
        MaskableTRPO(RecurrentActorCriticPolicy, masked_env(), device="cpu")
    with pytest.raises(AssertionError, match="The algorithm only supports"):
        MaskableTRPO("MlpPolicy", make_env(action_space=BOX), device="cpu")
    RecurrentPPO("MlpLstmPolicy", make_env(), n_steps=8, batch_size=8, device="cpu").save(tmp_path / "recurrent")
    with pytest.raises(ValueError, match="another algorithm"):
        TRPO.load(tmp_path / "recurrent", device="cpu")


def test_kl_of_contribs_own_distributions() -> None:
    """The public function takes masked distributions of sb3-contrib as they are, of one variable and of several."""
    for name in ("discrete", "multi_discrete"):
        model = masked_model(name=name)
        policy: Any = model.policy
        n_masks = 4 if name == "discrete" else 5
        masks = np.array([[True] * (n_masks - 1) + [False]] * 2)
        old = policy.get_distribution(th.ones(2, 3), action_masks=masks)
        other: Any = masked_model(name=name, seed=1).policy
        new = other.get_distribution(th.ones(2, 3), action_masks=masks)
        kl = kl_old_new(old, new)
        assert kl.shape == (2,) and th.isfinite(kl).all() and (kl > 0).all()


@pytest.mark.untraced
@pytest.mark.filterwarnings("default")
def test_example_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What stands in the place of RL Zoo, which passes no masks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "-n", "1024", "--path", str(tmp_path / "model")])
    runpy.run_path(str(pathlib.Path(__file__).parents[1] / "examples" / "masked_actions.py"), run_name="__main__")
    assert "mean return" in capsys.readouterr().out and (tmp_path / "model.zip").exists()


def test_without_contrib_the_error_says_what_to_install() -> None:
    """In a process of its own, where there is none; what needs none is there."""
    program = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from sb3_trpo import *\n"
        "assert TRPO\n"
        "try:\n    from sb3_trpo import MaskableTRPO\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'sb3_trpo[contrib]'" in done.stdout


class LateMasks(RandomEnv):
    """Has masks once it has been reset."""

    def reset(self, **kwargs: Any) -> Any:
        self.action_masks = lambda: np.array([True, False, True, True])
        return super().reset(**kwargs)


@pytest.mark.parametrize(("cls", "policy"), [(MaskableTRPO, "MlpPolicy"), (MaskableRecurrentTRPO, "MlpLstmPolicy")])
def test_masks_may_come_with_the_first_reset(cls: Any, policy: str) -> None:
    """As in MaskablePPO, which asks for them after it."""
    model: Any = small_model(cls, policy, DummyVecEnv([lambda: LateMasks(VECTOR, DISCRETE)])).learn(64)
    assert not (model.rollout_buffer.actions == 1).any()


def test_collection_may_be_told_not_to_ask_for_masks() -> None:
    """With MaskablePPO's argument, by a loop or a subclass of the user's own; ``learn`` has the last word."""
    found: list[bool] = []

    class Own(MaskableTRPO):
        def collect_rollouts(
            self, env: Any, callback: Any, rollout_buffer: Any, n_rollout_steps: int, use_masking: bool = True
        ) -> bool:
            result = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps, use_masking)
            found.append(bool(rollout_buffer.action_masks.all()))
            return result

    Own("MlpPolicy", masked_env(), n_steps=32, seed=0, device="cpu").learn(32)
    Own("MlpPolicy", make_env(action_space=DISCRETE), n_steps=32, seed=0, device="cpu").learn(32, use_masking=False)
    model = Own("MlpPolicy", make_env(action_space=DISCRETE), n_steps=32, seed=0, device="cpu")
    model._use_masking = False
    _, callback = model._setup_learn(32)
    model._use_masking = True
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 32, use_masking=False)
    assert found == [False, True, True] and model._use_masking


@pytest.mark.parametrize("masks", [[], np.zeros((0, 4))])
def test_prediction_of_no_masks_is_refused(masks: Any) -> None:
    with pytest.raises(ValueError, match="must hold 4 booleans for each observation"):
        masked_model().predict(np.zeros(3, np.float32), action_masks=masks)


@pytest.mark.parametrize(
    ("n", "masks"),
    [
        (4, np.ones(4)),
        (1, np.ones((2, 4))),
        (2, np.ones((4, 2))),
        (2, np.ones((1, 4))),
        (1, [[1, 1, 1, 1], [1]]),
        (3, np.ones(8)),
    ],
)
def test_prediction_of_another_number_of_masks_is_refused(n: int, masks: Any) -> None:
    """Turned round they would be read as others."""
    with pytest.raises(ValueError, match=f"must hold 4 booleans for each observation, of {n}, got "):
        masked_model().predict(np.zeros((n, 3), np.float32), action_masks=masks)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_prediction_takes_a_row_of_masks_for_each_observation(n: int) -> None:
    masks = np.eye(4, dtype=bool)[np.arange(n) % 4]
    for given in (masks, masks.tolist(), masks.reshape(-1)):
        actions, _ = masked_model().predict(np.zeros((n, 3), np.float32), action_masks=given)
        assert actions.tolist() == [i % 4 for i in range(n)]
    assert masked_model().predict(np.zeros(3, np.float32), action_masks=np.array([0, 0, 1, 0]))[0] == 2


def test_masks_that_make_no_array_are_refused_by_environment_and_step() -> None:
    space = spaces.MultiDiscrete([2, 3])
    with pytest.raises(ValueError, match=r"of environment 1 must return 5 booleans.*no array.*at step 7"):
        check_masks([np.ones(5), [[True, False], [True, True, False]]], space, step=7)


def test_wrapped_add_of_the_buffer_is_told_the_masks() -> None:
    """As by MaskablePPO, wherever in a rollout a callback wraps it."""
    told: list[Any] = []

    class Wraps(BaseCallback):
        def _on_step(self) -> bool:
            buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
            if self.n_calls == 10:
                buffer.add = partial(tell, buffer.add)
            return True

    def tell(add: Any, *args: Any, **kwargs: Any) -> None:
        told.append(kwargs["action_masks"].copy())
        add(*args, **kwargs)

    model: Any = masked_model(n_steps=32)
    model.train = lambda: None
    model.learn(32, callback=Wraps())
    assert len(told) == 23
    np.testing.assert_array_equal(np.stack(told), model.rollout_buffer.action_masks[-23:])


class Cautious(MaskableCategoricalDistribution):
    """Mixes its probabilities with equal ones, where it samples and where it is asked."""

    def mixed(self) -> th.distributions.Categorical:
        assert self.distribution is not None
        probs = self.distribution.probs
        possible = (probs > 0.0).to(probs)
        return th.distributions.Categorical(probs=0.5 * probs + 0.5 * possible / possible.sum(1, keepdim=True))

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.mixed().log_prob(actions)

    def sample(self) -> th.Tensor:
        return self.mixed().sample()


class CautiousPolicy(MaskableActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist = Cautious(4)


def test_masked_distribution_of_the_users_own_is_asked_itself() -> None:
    """The ratio begins at one by what the policy acts by."""
    env = masked_env(VECTOR, DISCRETE, n_envs=2)
    model = small_model(MaskableTRPO, CautiousPolicy, env, fast=False)
    assert model.env is not None
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    batch = model._full_batch()
    assert (model._distribution(batch).log_prob(batch.actions) - batch.old_log_prob).abs().max() < 1e-5
    model.train()
    assert model.last_update is not None and model.last_update.step.accepted
