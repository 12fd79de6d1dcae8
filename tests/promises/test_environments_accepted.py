"""
What SB3 takes for an environment is taken by constructor, load and set_env; what is refused is refused once converted.

The old Gym is no requirement of any extra. ``make test-gym`` installs it in a folder of its own, and runs this file with it;
without it SB3's conversion is run with stand-ins for Gym and Shimmy.
"""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import stable_baselines3.common.vec_env.patch_gym as patch_gym
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage, is_vecenv_wrapped

from sb3_trpo import TRPO
from tests.small_models import BOX, DISCRETE, IMAGE, VECTOR, RandomEnv, changed, make_env, policy_state, small_model


class Counted(RandomEnv):
    """Counts how many of it are made and closed."""

    metadata: dict[str, Any] = {  # noqa: RUF012 - as Gymnasium declares it
        "render_modes": ["rgb_array", "human"]
    }
    made: ClassVar[list[str | None]] = []
    n_closed: ClassVar[int] = 0

    def __init__(self, render_mode: str | None = None, **arguments: Any):
        super().__init__(**arguments)
        self.render_mode = render_mode
        Counted.made.append(render_mode)

    def close(self) -> None:
        Counted.n_closed += 1


class Unrenderable(RandomEnv):
    """Takes no render mode, whatever it says."""

    metadata: dict[str, Any] = {  # noqa: RUF012 - as Gymnasium declares it
        "render_modes": ["rgb_array"]
    }

    def __init__(self) -> None:
        super().__init__()


OTHER = "CountedOther-v0"
REFUSED = "CountedRefused-v0"
REFUSED_SEEN = "CountedRefusedSeen-v0"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register the environments for one test, and count from nothing."""
    Counted.made, Counted.n_closed = [], 0
    kinds: dict[str, dict[str, Any]] = {
        "Counted-v0": {},
        OTHER: {"action_space": DISCRETE},
        REFUSED: {"action_space": spaces.Box(0.0, np.inf, (2,))},
        REFUSED_SEEN: {"observation_space": spaces.Box(-1.0, 1.0, ())},
    }
    for name, arguments in kinds.items():
        gymnasium.register(name, entry_point=Counted, kwargs=arguments, disable_env_checker=True)
    gymnasium.register("Unrenderable-v0", entry_point=f"{__name__}:Unrenderable", disable_env_checker=True)
    yield
    for name in (*kinds, "Unrenderable-v0"):
        del gymnasium.registry[name]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a model of VECTOR observations and BOX actions."""
    path = tmp_path_factory.mktemp("saved") / "model.zip"
    small_model().save(path)
    return path


def constructed(env: Any, saved: Path, **arguments: Any) -> TRPO:
    return TRPO("MlpPolicy", env, n_steps=32, n_critic_updates=1, cg_max_steps=4, device="cpu", seed=0, **arguments)


def loaded(env: Any, saved: Path, **arguments: Any) -> TRPO:
    return TRPO.load(saved, env, device="cpu", **arguments)


def with_env_set(env: Any, saved: Path) -> TRPO:
    model = TRPO.load(saved, device="cpu")
    model.set_env(env)
    return model


WAYS: dict[str, Callable[..., TRPO]] = {"constructor": constructed, "load": loaded, "set_env": with_env_set}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@every_way
@pytest.mark.parametrize(
    "kind", ["id", "spec", "spec of an environment", "environment", "vectorised", "normalised", "monitored"]
)
def test_environment_of_any_kind_is_taken(way: Callable[..., TRPO], kind: str, saved: Path) -> None:
    """An id and a specification are made once, with pictures as SB3's; all of them end up in a Monitor at most once."""
    makers: dict[str, Callable[[], Any]] = {
        "id": lambda: "Counted-v0",
        "spec": lambda: gymnasium.spec("Counted-v0"),
        "spec of an environment": lambda: gymnasium.make("Counted-v0", episode_length=7).spec,
        "environment": lambda: Counted(),
        "vectorised": lambda: DummyVecEnv([Counted]),
        "normalised": lambda: VecNormalize(DummyVecEnv([Counted])),
        "monitored": lambda: Monitor(Counted()),
    }
    env = makers[kind]()
    n_before = len(Counted.made)
    model = way(env, saved)
    n_made = {"id": 1, "spec": 1, "spec of an environment": 1}.get(kind, 0)
    assert len(Counted.made) - n_before == n_made and Counted.made[-1] == ("rgb_array" if n_made else None)
    assert model.learn(model.n_steps).num_timesteps == model.n_steps and Counted.n_closed == 0
    assert model.env is not None
    monitored = model.env.env_is_wrapped(Monitor)
    # SB3 leaves vectorised environments alone
    assert monitored == [kind not in ("vectorised", "normalised")]


@every_way
def test_render_mode_of_a_specification_is_kept(way: Callable[..., TRPO], saved: Path) -> None:
    """A specification may say itself how to render."""
    env = gymnasium.make("Counted-v0", render_mode="human")
    assert env.spec is not None
    way(env.spec, saved)
    assert Counted.made[-1] == "human"


@every_way
@pytest.mark.parametrize("kind", ["id", "spec"])
def test_environment_that_takes_no_render_mode_is_made_without(way: Callable[..., TRPO], kind: str, saved: Path) -> None:
    """As SB3 does with an id."""
    model = way("Unrenderable-v0" if kind == "id" else gymnasium.spec("Unrenderable-v0"), saved)
    assert model.env is not None and model.env.num_envs == 1


@pytest.mark.parametrize("verbose", [0, 1])
def test_wrapping_is_said_once(verbose: int, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What SB3 prints of its wrappers is printed once, and what it wraps an image in is there."""
    env = RandomEnv(observation_space=IMAGE)
    model = TRPO("CnnPolicy", env, n_steps=32, verbose=verbose, device="cpu")
    model.set_env(RandomEnv(observation_space=IMAGE))
    printed = capsys.readouterr().out
    for line in (
        "Wrapping the env with a `Monitor`",
        "Wrapping the env in a DummyVecEnv",
        "Wrapping the env in a VecTranspose",
    ):
        assert printed.count(line) == 2 * verbose
    assert model.env is not None and is_vecenv_wrapped(model.env, VecTransposeImage)


NOT_ENVIRONMENTS: dict[str, Any] = {
    "number": 42,
    "class": RandomEnv,
    "space": VECTOR,
    "list": [1, 2],
    "function": lambda: RandomEnv(),
}


@every_way
@pytest.mark.parametrize("env", NOT_ENVIRONMENTS.values(), ids=NOT_ENVIRONMENTS)
def test_what_is_no_environment_is_refused_by_name(way: Callable[..., TRPO], env: Any, saved: Path) -> None:
    """PPO refuses it as well; the error here names the argument and what was given."""
    with pytest.raises((ValueError, AttributeError)):
        PPO("MlpPolicy", env, device="cpu")
    with pytest.raises(TypeError, match=r"env must be .* EnvSpec.* got ") as refusal:
        way(env, saved)
    assert repr(env) in str(refusal.value)


@every_way
@pytest.mark.parametrize("as_spec", [False, True])
@pytest.mark.parametrize("env_id", [REFUSED, REFUSED_SEEN])
def test_environment_that_we_made_is_closed_if_it_is_refused(
    way: Callable[..., TRPO], as_spec: bool, env_id: str, saved: Path
) -> None:
    """Nobody else could close it: made once, closed once."""
    with pytest.raises(ValueError, match=r"[Oo]bservation.space|[Aa]ction.space"):
        way(gymnasium.spec(env_id) if as_spec else env_id, saved)
    assert len(Counted.made) == Counted.n_closed == 1


REFUSALS: dict[str, Callable[[Path], Any]] = {
    "spaces of load": lambda saved: TRPO.load(saved, OTHER, device="cpu"),
    "spaces of set_env": lambda saved: TRPO.load(saved, device="cpu").set_env(OTHER),
    "number of environments": lambda saved: small_model(env=make_env(n_envs=2)).set_env("Counted-v0"),
    "policy": lambda saved: TRPO("MultiInputPolicy", "Counted-v0", device="cpu"),
    "smallest rollout": lambda saved: TRPO("MlpPolicy", "Counted-v0", n_steps=1, device="cpu"),
    "standard deviation": lambda saved: TRPO("MlpPolicy", OTHER, std_damping=2.0, device="cpu"),
    "networks": lambda saved: TRPO("MlpPolicy", "Counted-v0", policy_kwargs={"net_arch": "nonsense"}, device="cpu"),
    "gsde": lambda saved: TRPO("MlpPolicy", OTHER, use_sde=True, device="cpu"),
    "stored value": lambda saved: TRPO.load(saved, "Counted-v0", custom_objects={"gamma": 7.0}, device="cpu"),
}


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
def test_environment_that_we_made_is_closed_whatever_is_refused(refused: Callable[[Path], Any], saved: Path) -> None:
    """Whoever finds the fault, and however late."""
    with pytest.raises((TypeError, ValueError, AssertionError)):
        refused(saved)
    assert len(Counted.made) == Counted.n_closed == 1


BEFORE: dict[str, Callable[[Path], Any]] = {
    "argument": lambda saved: TRPO("MlpPolicy", "Counted-v0", gamma=7.0, device="cpu"),
    "policy": lambda saved: TRPO("NoPolicy", "Counted-v0", device="cpu"),
    "keyword of load": lambda saved: TRPO.load(saved, "Counted-v0", target_kl=-1.0, device="cpu"),
    "file": lambda saved: TRPO.load(saved.parent / "none.zip", "Counted-v0", device="cpu"),
}


@pytest.mark.parametrize("refused", BEFORE.values(), ids=BEFORE)
def test_environment_is_not_made_for_an_argument_that_is_refused(refused: Callable[[Path], Any], saved: Path) -> None:
    with pytest.raises((TypeError, ValueError, FileNotFoundError)):
        refused(saved)
    assert Counted.made == []


@every_way
def test_environment_of_the_user_is_not_closed(way: Callable[..., TRPO], saved: Path) -> None:
    """Whoever made it closes it."""
    with pytest.raises(ValueError, match="action_space"):
        way(Counted(action_space=spaces.Box(0.0, np.inf, (2,))), saved)
    assert Counted.n_closed == 0


# The old Gym


def imitated_gym(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Put stand-ins for Gym and Shimmy in place, which SB3's conversion finds; return Gym's base class and Box."""
    gym, shimmy = types.ModuleType("gym"), types.ModuleType("shimmy")

    class OldEnv:
        observation_space = VECTOR
        action_space = BOX

        @property
        def unwrapped(self) -> Any:
            return self

    class Compatible(gymnasium.Env):
        def __init__(self, env: Any):
            self.env, self.observation_space, self.action_space = env, env.observation_space, env.action_space

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return self.env.reset(seed=seed)

        def step(self, action: Any) -> Any:
            return self.env.step(action)

    gym.Env = OldEnv  # type: ignore[attr-defined]
    shimmy.GymV26CompatibilityV0 = Compatible  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shimmy", shimmy)
    monkeypatch.setattr(patch_gym, "gym", gym, raising=False)
    monkeypatch.setattr(patch_gym, "gym_installed", True)
    return OldEnv, lambda shape: spaces.Box(-1.0, 1.0, shape)


def real_gym(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    if importlib.util.find_spec("gym") is None:
        pytest.skip("needs the old Gym: make test-gym")
    import gym

    return gym.Env, lambda shape: gym.spaces.Box(-1.0, 1.0, shape, np.float32)


def old_envs(base: Any, box: Any, action_shape: tuple[int, ...] = (3,)) -> tuple[Any, Any]:
    """Return environments of Gym 0.26 and of Gym 0.21, which differ in what reset and step give."""

    class Old26(base):
        observation_space = box((3,))
        action_space = box(action_shape)
        n_steps = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(3, dtype=np.float32), {}

        def step(self, action: Any) -> Any:
            self.n_steps += 1
            observation = np.sin(np.arange(3, dtype=np.float32) + self.n_steps)
            return observation, float(action[0]), self.n_steps % 7 == 0, self.n_steps % 5 == 0, {}

    class Old21(base):
        observation_space = box((3,))
        action_space = box(action_shape)
        n_steps = 0

        def reset(self) -> Any:
            return np.zeros(3, dtype=np.float32)

        def step(self, action: Any) -> Any:
            self.n_steps += 1
            return np.cos(np.arange(3, dtype=np.float32) + self.n_steps), float(action[0]), self.n_steps % 7 == 0, {}

        def seed(self, seed: int | None = None) -> None:
            """Nothing to seed."""

        def render(self, mode: str = "human") -> None:
            """Nothing to see."""

    return Old26, Old21


OLD_WARNING = "You provided an OpenAI Gym environment"
GYMS = {"stand-in": imitated_gym, "gym": real_gym}


@every_way
@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("gym", GYMS.values(), ids=GYMS)
def test_environment_of_the_old_gym_is_taken(
    gym: Any, vectorised: bool, way: Callable[..., TRPO], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SB3's own warning, trained and evaluated as any other."""
    old, _ = old_envs(*gym(monkeypatch))
    with pytest.warns(UserWarning, match=OLD_WARNING):
        model = way(DummyVecEnv([old]) if vectorised else old(), saved)
    assert isinstance(model.env, VecEnv) and model.learn(2 * model.n_steps)._n_updates == 2


@every_way
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_environment_of_an_older_gym_is_taken(way: Callable[..., TRPO], saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of Gym 0.21 has another step and reset."""
    _, old = old_envs(*real_gym(monkeypatch))
    with pytest.warns(UserWarning, match=OLD_WARNING):
        model = way(old(), saved)
    assert model.learn(model.n_steps)._n_updates == 1


@every_way
@pytest.mark.parametrize("gym", GYMS.values(), ids=GYMS)
def test_environment_of_the_old_gym_is_looked_at_once_converted(
    gym: Any, way: Callable[..., TRPO], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its spaces are checked as those of any other."""
    base, box = gym(monkeypatch)
    old, _ = old_envs(base, box, (2,))
    old.action_space = box((2,))
    old.action_space.high[:] = np.inf
    with pytest.warns(UserWarning, match=OLD_WARNING), pytest.raises(ValueError, match=r"env\.action_space must be a Box"):
        way(old(), saved)


@every_way
@pytest.mark.parametrize("gym", GYMS.values(), ids=GYMS)
def test_missing_shimmy_is_said_as_sb3_says_it(
    gym: Any, way: Callable[..., TRPO], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = old_envs(*gym(monkeypatch))
    monkeypatch.setitem(sys.modules, "shimmy", None)
    with pytest.raises(ImportError, match=r"install shimmy"):
        way(old(), saved)


@pytest.mark.parametrize("mode", [gymnasium.vector.AutoresetMode.SAME_STEP, gymnasium.vector.AutoresetMode.NEXT_STEP])
def test_vector_environment_of_gymnasium_is_taken(mode: Any, tmp_path: Path) -> None:
    """By the constructor, ``load`` and ``set_env``, and it gives what SB3's own vector of the same environments gives."""

    def vector() -> Any:
        return gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})

    ours = small_model(env=vector(), n_steps=32).learn(3 * 64)
    theirs = small_model(env=make_vec_env("CartPole-v1", n_envs=3, seed=0), n_steps=32).learn(3 * 64)
    assert not changed(policy_state(ours), policy_state(theirs))
    ours.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=vector(), device="cpu")
    loaded.set_env(vector())
    assert loaded.learn(96).num_timesteps == 96
