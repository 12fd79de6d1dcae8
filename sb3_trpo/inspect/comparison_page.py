"""One self-contained page on which several runs stand side by side."""

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sb3_trpo.inspect.comparison_figures import (
    COMPARED,
    compared_panels_of,
    draw_comparison,
    look_of,
    seconds_per_1000_steps,
)
from sb3_trpo.inspect.health import check_health
from sb3_trpo.inspect.page import MARKS, caption_of, embedded, section, write_page
from sb3_trpo.inspect.run_files import Run, UpdateRecord, limits_in_words
from sb3_trpo.inspect.style import new_figure, styled
from sb3_trpo.inspect.update_figures import draw_bubble

TABLE_STYLE = """
body { max-width: 84rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .95rem; min-width: 100%; }
th, td { text-align: right; padding: .35rem .5rem; border-bottom: 1px solid #ccc; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
th { color: #555; font-weight: 500; font-size: .85rem; vertical-align: bottom; }
td img { display: inline-block; width: 3rem; vertical-align: middle; margin-right: .5rem; }
ul.health { list-style: none; padding: 0; margin: 0; }
.health li { margin: .3rem 0; padding-left: 2rem; text-indent: -2rem; } .health .mark { text-indent: 0; }
"""


@styled
def _swatch(number: int) -> str:
    """Return the line of a run, as an image for the table."""
    figure = new_figure(0.9, 0.25)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.plot([0.0, 0.5, 1.0], [0.0, 0.0, 0.0], markevery=[1], **look_of(number))
    axes.set(xlim=(0.0, 1.0), ylim=(-1.0, 1.0))
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return f'<img alt="" src="data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _median(updates: Sequence[UpdateRecord], name: str) -> float:
    values = [value for update in updates if math.isfinite(value := getattr(update, name))]
    return float(np.median(values)) if values else math.nan


def _number(value: float, form: str = ",.3g") -> str:
    """Write a number, or a dash where there is none."""
    return format(value, form) if math.isfinite(value) else "–"


def _row(run: Run) -> dict[str, str]:
    """Return what the table says of a run."""
    updates, last = run.updates, run.updates[-1]
    kls = [update.mean_kl for update in updates if math.isfinite(update.mean_kl)]
    return {
        "algorithm": last.algorithm,
        "steps": f"{last.num_timesteps:,}",
        "updates": f"{len(updates):,}",
        "return": _number(last.mean_return, ",.4g"),
        "median KL": _number(_median(updates, "mean_kl")),
        "largest KL": _number(max(kls, default=math.nan)),
        "limit": limits_in_words(updates),
        "outside 1 ± ε": _number(_median(updates, "outside_clip"), ".0%"),
        "ε": _number(last.clip_range),
        "median gain": _number(_median(updates, "surrogate_gain"), ",.2g"),
        "entropy": _number(last.entropy),
        "s per 1,000 steps": _number(seconds_per_1000_steps(run), ",.2g"),
    }


def _table(runs: Sequence[Run]) -> str:
    rows = [_row(run) for run in runs]
    # A column in which nobody has a number says nothing
    columns = [name for name in rows[0] if any(row[name] != "–" for row in rows)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><td>{_swatch(number)}{html.escape(run.name)}</td>"
        + "".join(f"<td>{html.escape(row[name])}</td>" for name in columns)
        + "</tr>"
        for number, (run, row) in enumerate(zip(runs, rows, strict=True))
    )
    legend = (
        "<p>Return: SB3's mean over the latest episodes. KL(old ‖ new) in nats, gain and the share of ratios outside "
        "the clip: medians over the updates on record. Entropy: at the end.</p>"
    )
    return f'{legend}<div class="wide"><table><thead><tr><th>run</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _health(run: Run) -> str:
    items = []
    for finding in sorted(check_health(run.updates), key=lambda finding: finding.healthy is not False):
        mark, kind = MARKS[finding.healthy]
        advice = f" <strong>What to try:</strong> {html.escape(finding.advice)}" if finding.advice else ""
        items.append(
            f'<li class="{kind}"><span class="mark">{mark}</span><strong>{html.escape(finding.name)}</strong> '
            f"{html.escape(finding.says)}{advice}</li>"
        )
    return f'<article><h3>{html.escape(run.name)}</h3><ul class="health">{"".join(items)}</ul></article>'


def _bubble(run: Run) -> str:
    plane = run.slices[-1]
    caption = f"{run.name}, update {plane.n_updates}. {caption_of('bubble', run)}"
    return embedded(draw_bubble(plane), run.name, caption)


def write_comparison(runs: Sequence[Run], path: str | Path) -> Path:
    """
    Write one HTML page on which runs stand side by side, on the same axes; it loads nothing from anywhere.

    :param runs: from ``read_run``, with names of their own
    :param path: of the page
    :return: the path
    :raises ValueError: if there is no run, or one without an update
    """
    figures = [
        embedded(draw_comparison(runs, [name]), COMPARED[name].title, COMPARED[name].caption)
        for name in compared_panels_of(runs)
    ]
    bubbles = [_bubble(run) for run in runs if run.slices]
    body = _table(runs) + section("Side by side", figures) + section("One update of each", bubbles)
    return write_page(path, runs, body + section("Are they healthy?", map(_health, runs)), style=TABLE_STYLE)
