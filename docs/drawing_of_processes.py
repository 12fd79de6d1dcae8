"""Draw what processes do alone and where they meet, in one update: ``python docs/drawing_of_processes.py``."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from sb3_trpo.inspect.style import BLACK, BLUE, GREY, ORANGE, new_figure, styled

IMAGE = Path(__file__).parent / "images" / "many_processes.png"
# What each does alone, and what then goes from all to all
PHASES = [
    ("rollout\nof its own\nenvironments", "ended, steps,\nepisodes,\nrunning statistics", BLUE),
    ("are we\nthe same?", "checksum,\nschedules,\nstatus", ORANGE),
    ("advantages", "mean and\nvariance", BLUE),
    ("gradient of\nits own data", "sum of\nL and ∇L", BLUE),
    ("F·v of\nits own data", "sum; rank 0's\nα and β\n× 15 at most", BLUE),
    ("a candidate\nof the\nline search", "sum of\nL and KL\n× 1 to 10", BLUE),
    ("a minibatch\nof the critic", "sum of\ngradients\n× minibatches", BLUE),
    ("report", "entropy and\nvariances;\nrank 0's bits", ORANGE),
]


def box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Draw what one process does."""
    style = {"boxstyle": "round,pad=0.03", "facecolor": "white", "edgecolor": colour, "linewidth": 1.4}
    axes.add_patch(FancyBboxPatch((x - 0.4, y - 0.3), 0.8, 0.6, **style))
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color=BLACK)


@styled
def drawing() -> Figure:
    """Return the figure: a row for each process, a column for each phase, time from left to right."""
    figure = new_figure(11.0, 3.9)
    axes = figure.add_subplot()
    for column, (alone, together, colour) in enumerate(PHASES):
        for row in range(2):
            box(axes, 1.15 * column, 2.0 - 1.6 * row, alone, BLUE)
        arrow = {"arrowstyle": "<->", "color": colour, "lw": 1.6}
        axes.annotate("", (1.15 * column, 0.74), (1.15 * column, 1.66), arrowprops=arrow)
        axes.text(
            1.15 * column, 1.2, together, ha="center", va="center", fontsize=8, color=BLACK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    for row, name in enumerate(("process 0", "process 1")):
        axes.text(-0.62, 2.0 - 1.6 * row, name, ha="right", va="center", fontsize=9, color=GREY)
    time = "time: one update from left to right; every column may repeat as it says"
    axes.text(4.0, -0.18, time, ha="center", fontsize=8, color=GREY)
    axes.set(xlim=(-1.35, 1.15 * len(PHASES) - 0.6), ylim=(-0.3, 2.45))
    axes.axis("off")
    return figure


if __name__ == "__main__":
    drawing().savefig(IMAGE)
