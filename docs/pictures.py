"""
Draw the pictures of *How TRPO works* and *Tune it* from real updates; the others are ``examples/trust_region_pictures.py``'s.

Needs MuJoCo (``pip install 'gymnasium[mujoco]'``) and, on one thread, some minutes: ``python docs/pictures.py``.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO
from sb3_trpo.inspect import TrustRegionRecorder, UpdateRecord, change_of_probabilities, read_run
from sb3_trpo.inspect.style import BLACK, BLUE, GREY, ORANGE, VERMILLION, new_figure, styled
from sb3_trpo.objective import PolicyProblem, kl_old_new, log_ratio, weighted_mean
from sb3_trpo.trust_region import flatten, unflatten

IMAGES = Path(__file__).parent / "images"
LIMIT = 0.01
GALLERY_ENV, GALLERY_STEPS = "HalfCheetah-v5", 102_400


def trained(env_id: str, total_timesteps: int, *, callback: Any = None, n_envs: int = 4, **arguments: Any) -> TRPO:
    """Train with 2,048 steps to an update, unless told otherwise."""
    env = make_vec_env(env_id, n_envs=n_envs, seed=1)
    model = TRPO("MlpPolicy", env, **{"n_steps": 512, "seed": 1, "device": "cpu"} | arguments)
    return model.learn(total_timesteps, callback=callback)


# The ratio shock


class Shock(NamedTuple):
    """What a step does to the actions that were taken: their ratios, and the mean KL."""

    ratios: np.ndarray
    mean_kl: float


class BeforeTheUpdate(BaseCallback):
    """Keeps the batch and the parameters of the old policy."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, TRPO)
        self.batch = self.model._full_batch()
        self.actor, _ = self.model._split_parameters(self.batch)
        self.old = flatten(self.actor).detach().clone()


def shocks_of_one_update(env_id: str, n_updates: int) -> tuple[Shock, Shock]:
    """Return what the last update does, and what a plain gradient step of the same length would do."""
    model = trained(env_id, 2048 * (n_updates - 1), gae_lambda=0.98, target_kl=LIMIT)
    before = BeforeTheUpdate()
    model.learn(2048, callback=before, reset_num_timesteps=False)
    batch, actor = before.batch, before.actor
    step = flatten(actor).detach() - before.old

    @th.no_grad()
    def go_to(parameters: th.Tensor) -> None:
        for parameter, value in zip(actor, unflatten(parameters, actor), strict=True):
            parameter.copy_(value)

    go_to(before.old)
    problem = PolicyProblem(model._distribution, batch, actor)
    gradient = problem.surrogate_gradient()[1]
    old = problem.frozen_distribution(batch)

    @th.no_grad()
    def shock(change: th.Tensor) -> Shock:
        go_to(before.old + change)
        new = problem.frozen_distribution(batch)
        mean_kl = float(weighted_mean(kl_old_new(old, new), batch.weights))
        return Shock(log_ratio(new, batch).exp().numpy(), mean_kl)

    return shock(step), shock(step.norm() / gradient.norm() * gradient)


@styled
def draw_shocks(env_id: str, n_updates: int) -> Figure:
    """Draw how much more or less likely the actions taken become, by both steps."""
    natural, plain = shocks_of_one_update(env_id, n_updates)
    figure = new_figure(7.0, 3.2)
    axes = figure.subplots()
    reach = max(1.0, float(np.abs(np.log2(plain.ratios)).max()))
    bins = np.linspace(-reach, reach, 81)
    for shock, name, colour in ((plain, "plain gradient", ORANGE), (natural, "TRPO", BLUE)):
        label = f"{name}: mean KL {shock.mean_kl:.4f}, ratios {shock.ratios.min():.2f} to {shock.ratios.max():.2f}"
        axes.hist(np.log2(shock.ratios), bins, color=colour, alpha=0.75, label=label)
    axes.set_yscale("log")
    ticks = np.arange(-math.floor(reach), math.floor(reach) + 1)
    axes.set_xticks(ticks, [f"{2.0**tick:g}" for tick in ticks])
    axes.set(
        title=f"Two steps of the same length from one policy of {env_id}",
        xlabel="ratio π_new(a|s) / π_old(a|s) of the actions taken",
        ylabel="actions",
    )
    figure.legend(loc="outside lower center")
    return figure


@styled
def draw_kl_of_a_change() -> Figure:
    """Draw the KL from [0.2, 0.8] to every other policy over two actions, and what δ lets through."""
    old = 0.2
    new = np.linspace(0.01, 0.9, 400)
    kl = np.array([change_of_probabilities([old, 1 - old], [p, 1 - p]).kl for p in new])
    figure = new_figure(7.0, 3.2)
    axes = figure.subplots()
    axes.plot(new, kl, color=BLUE)
    axes.axhline(LIMIT, color=BLACK, linestyle="--", linewidth=1.2, label=f"limit δ = {LIMIT:g}")
    inside = new[kl <= LIMIT]
    axes.axvspan(inside[0], inside[-1], color=BLUE, alpha=0.12, label=f"allowed: {inside[0]:.2f} to {inside[-1]:.2f}")
    # Beside the curve, above it
    for p, colour, offset, side in ((0.25, BLUE, (0, 26), "center"), (0.6, VERMILLION, (-10, 8), "right")):
        value = change_of_probabilities([old, 1 - old], [p, 1 - p]).kl
        axes.plot(p, value, "o", color=colour)
        text = f"[{p:g}, {1 - p:g}]: {value:.4f}"
        axes.annotate(text, (p, value), xytext=offset, textcoords="offset points", color=colour, ha=side)
    axes.axvline(old, ymax=0.12, color=GREY, linewidth=1.0, label="old policy")
    axes.set(
        title="KL from the policy [0.2, 0.8]", xlabel="new probability of the first action", ylabel="KL(old ‖ new) [nats]",
        ylim=(-0.01, 0.6),
    )  # fmt: skip
    axes.legend(loc=(0.36, 0.72))
    return figure


# The gallery


class Panel(NamedTuple):
    """One number of each update, over the steps of training."""

    title: str
    of: Callable[[UpdateRecord], float]
    log: bool = False


KL = Panel("KL kept / limit", lambda update: update.mean_kl / update.max_kl)
GAIN = Panel("gain / predicted, full step", lambda update: update.candidates[0].surrogate_gain / update.full_step_gain)
TRIED = Panel("KL of the full step / limit", lambda update: update.candidates[0].mean_kl / update.max_kl)
RESIDUAL = Panel("CG residual left", lambda update: update.cg_residual_norms[-1], log=True)
PREDICTED = Panel("gain that the full step promises", lambda update: update.full_step_gain)
EXPLAINED = Panel("explained variance of the critic", lambda update: max(-0.5, update.explained_variance))
STD = Panel("standard deviation", lambda update: update.std)
RETURN = Panel("return", lambda update: update.mean_return)

# Argument -> its values, the default in the middle of most, and what to look at
GALLERY: dict[str, tuple[tuple[Any, ...], tuple[Panel, ...]]] = {
    "target_kl": ((0.006, 0.06, 0.6), (TRIED, KL, GAIN, RETURN)),
    "n_steps": ((64, 512, 2048), (TRIED, PREDICTED, EXPLAINED, RETURN)),
    "cg_damping": ((0.006, 0.6, 6.0), (RESIDUAL, TRIED, STD, RETURN)),
    "cg_max_steps": ((3, 15, 50), (RESIDUAL, PREDICTED, TRIED, RETURN)),
    "std_damping": ((0.0, 4.0, 20.0), (STD, KL, PREDICTED, RETURN)),
    "n_critic_updates": ((1, 10, 50), (EXPLAINED, PREDICTED, STD, RETURN)),
    "learning_rate": ((1e-5, 1e-3, 3e-2), (EXPLAINED, PREDICTED, STD, RETURN)),
    "gae_lambda": ((0.5, 0.95, 1.0), (EXPLAINED, PREDICTED, STD, RETURN)),
}
RUNS: dict[tuple[tuple[str, Any], ...], Sequence[UpdateRecord]] = {}
DEFAULTS = {"target_kl": 0.06, "n_steps": 512, "cg_damping": 0.6, "cg_max_steps": 15, "std_damping": 0.0}
DEFAULTS |= {"n_critic_updates": 10, "learning_rate": 1e-3, "gae_lambda": 0.95}


def updates_of(**arguments: Any) -> Sequence[UpdateRecord]:
    """Train once with each combination of arguments; a default is left out, since it may depend on what else is given."""
    arguments = {name: value for name, value in arguments.items() if value != DEFAULTS[name]}
    key = tuple(sorted(arguments.items()))
    if key not in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            trained(GALLERY_ENV, GALLERY_STEPS, callback=TrustRegionRecorder(folder), **arguments)
            RUNS[key] = read_run(folder).updates
    return RUNS[key]


@styled
def draw_gallery(name: str) -> Figure:
    """Draw runs that differ in one argument side by side."""
    values, panels = GALLERY[name]
    figure = new_figure(8.3, 4.5)
    grid = figure.subplots(2, 2, squeeze=True)
    for value, colour in zip(values, (ORANGE, BLUE, VERMILLION), strict=True):
        updates = updates_of(**{name: value})
        steps = [update.num_timesteps for update in updates]
        label = f"{name} = {value}" + (" (default)" if value == DEFAULTS[name] else "")
        for axes, panel in zip(grid.flat, panels, strict=True):
            draw_panel(axes, panel, steps, [number_of(panel, update) for update in updates], colour, label)
    for axes in grid[1]:
        axes.set_xlabel("steps of training")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def number_of(panel: Panel, update: UpdateRecord) -> float:
    """Return what a panel shows of an update; where no step was tried there is nothing."""
    try:
        return panel.of(update)
    except (IndexError, ZeroDivisionError):
        return math.nan


def draw_panel(axes: Axes, panel: Panel, steps: Sequence[int], values: Sequence[float], colour: str, label: str) -> None:
    """Draw one line."""
    axes.plot(steps, values, color=colour, linewidth=1.4, label=label)
    axes.set_title(panel.title)
    if panel.log:
        axes.set_yscale("log")
    axes.set_xticks([0, 50_000, 100_000], ["0", "50,000", "100,000"])


def main() -> None:
    """Train, and write every picture, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where to write")
    parser.add_argument("--only", nargs="*", help="pictures to draw, by name")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    pictures: dict[str, Callable[[], Figure]] = {
        "ratio_shock": lambda: draw_shocks("CartPole-v1", 10),
        "kl_of_a_change": draw_kl_of_a_change,
        **{f"tune_{name}": lambda name=name: draw_gallery(name) for name in GALLERY},  # type: ignore[misc]
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or pictures:
        pictures[name]().savefig(arguments.folder / f"{name}.png", dpi=100)
        print(arguments.folder / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
