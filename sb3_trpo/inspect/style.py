"""How every figure looks. Matplotlib is imported when the first one is made, and its pyplot never."""

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sb3_trpo.guards.process import new_lock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which readers of every kind of colour vision can tell apart
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"

# Panels of a figure that stand side by side
COLUMNS = 3

# What became of a step, and how that is drawn wherever it is: colour and marker say the same
KEPT = {"color": BLUE, "marker": "o"}
BACKTRACKED = {"color": ORANGE, "marker": "^"}
REFUSED = {"color": VERMILLION, "marker": "X"}

STYLE = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "figure.dpi": 100.0,
    "savefig.dpi": 150.0,
    # Text as outlines: the same on every machine, with no font to be found there
    "svg.fonttype": "path",
}

_one_at_a_time = new_lock(threading.RLock)

Drawing = TypeVar("Drawing", bound=Callable[..., Any])


class Titled(Protocol):
    """What a plot of a figure is called, and the unit of what is drawn in it."""

    @property
    def title(self) -> str:
        """Return what stands above the plot."""

    @property
    def unit(self) -> str:
        """Return what stands beside its vertical axis."""


def styled(function: Drawing) -> Drawing:
    """
    Draw in the style of this package whatever the user's own is, and leave that as it was.

    :param function: draws something
    :raises ImportError: saying what to install, when the function is called where there is no Matplotlib
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            import matplotlib.style
        except ImportError:
            raise ImportError("drawing needs Matplotlib: pip install 'sb3_trpo[plots]'") from None
        # What is put back is of the whole process
        with _one_at_a_time, matplotlib.style.context(["default", STYLE]):
            return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def as_label(name: str) -> str:
    """Return a name as Matplotlib writes it out: dollars are no mathematics, and an underscore in front hides nothing."""
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def shortened(name: str, most: int) -> str:
    """Return a name of at most so many letters, with its beginning and its end, where names differ."""
    if len(name) <= most:
        return name
    end = (most - 1) // 2
    return f"{name[: most - 1 - end]}…{name[len(name) - end :]}"


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure of a size in inches that belongs to no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def figure_of_panels(panels: Sequence[Titled]) -> "tuple[Figure, list[Axes]]":
    """Make a figure with a plot against environment steps for each panel, in rows of ``COLUMNS``."""
    from matplotlib.ticker import EngFormatter

    n_columns = min(COLUMNS, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = new_figure(4.6 * n_columns, 3.1 * n_rows)
    every_axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flatten())
    for axes, panel in zip(every_axes, panels, strict=False):
        axes.set(title=panel.title, ylabel=panel.unit, xlabel="environment steps")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.locator_params(axis="x", nbins=6)
    for axes in every_axes[len(panels) :]:
        axes.remove()
    return figure, every_axes[: len(panels)]


def gain_colours() -> "Colormap":
    """Return colours for losses and gains that meet in white at zero."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("gain", [VERMILLION, "#FBE3D6", "#FFFFFF", "#D6E6F2", BLUE])


def plain_log_scale(axes: "Axes") -> None:
    """Make the vertical axis logarithmic, with numbers as one says them: 0.3, not 3 × 10⁻¹."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 5.0 * low:
        # Of 1, 2 and 5 there may be a single one
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    else:
        # Over several decades the powers of ten are enough
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300.0 * low else (1.0,), numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}" if 1e-4 <= value < 1e6 else f"{value:.3g}"))


def write_in(axes: "Axes", text: str) -> None:
    """Say in an empty plot why it is empty."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY, wrap=True)
    axes.set(xticks=[], yticks=[])
