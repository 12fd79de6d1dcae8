"""One self-contained page to share: what is healthy in words, beside the figures that show it."""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sb3_trpo.inspect.gallery import choose_update, figures_of_update
from sb3_trpo.inspect.health import Finding, check_health
from sb3_trpo.inspect.run_figures import PANELS, draw_run, panels_of
from sb3_trpo.inspect.run_files import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "returns": "What the policy earns in an episode. The episodes that ended in each rollout, and SB3's mean over the latest "
    "ones.",
    "kl": "The mean KL of every step is measured after it was made, over the states of its rollout; predicted is what the "
    "quadratic model expected.",
    "ratio": "The ratio of the probability that the new policy gives to each action taken to that of the old one. Where an "
    "algorithm has no clip, the bounds are those that PPO would have.",
    "outside_clip": "Beyond its clip PPO's objective gives a ratio no reason to go further, and nothing that holds it back.",
    "gain": "The surrogate is the return that the rollout promises for the new policy. Measured should follow predicted.",
    "step_fraction": "The share of the full step that kept the limit and gained something. 0 is an update that was refused.",
    "cg_iterations": "Products with the Fisher matrix that were spent on the direction.",
    "cg_residual": "How much of the equation for the natural gradient was left unsolved; lower is better.",
    "norms": "In the space of the policy's parameters. The step's length is what the limit on the KL makes of it.",
    "entropy": "How random the policy is. It falls as the policy learns, and should not fall at once.",
    "std": "How far actions are scattered around their mean.",
    "explained_variance": "How much of the variation of the returns the values knew beforehand. Clipped at −1.",
    "value_loss": "The error of the values in the first and in the last pass over each rollout.",
    "time": "Where the wall time of an update goes.",
    "ladder": "The line search tries the full step and shortens it until the measured KL is within the limit and the "
    "surrogate gains. The grey mark is the KL that the quadratic model expects.",
    "convergence": "What is left of the equation for the natural gradient after each product with the Fisher matrix.",
    "bubble": "A plane through the old policy in parameter space. The thick line is the measured edge of the trust region, "
    "the dotted circle what the quadratic model takes it for; blue is gain, red is loss.",
    "step": "The plane of the natural gradient and the step that was taken. The thick line is where the measured KL is δ, the "
    "dotted circle where the quadratic model expects it; blue is gain, red is loss. By both models no step of as much KL "
    "gains more than the natural one, but for its damping.",
    "bars": "The policy before and after the update in single states, with the ratio new / old for discrete actions.",
    "kl_per_state": "The limit is on the mean: single states may change more.",
}

ALT = "Plot: {}. {}"

MARKS = {True: ("✓", "good"), False: ("!", "look"), None: ("?", "unknown")}

STYLE_SHEET = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a;
  background: #fff; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #bbb; }
h3 { font-size: 1.05rem; margin: 0; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: 1rem 0; }
dt { color: #555; font-size: .85rem; } dd { margin: 0; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; align-items: start; }
article, figure { margin: 0; padding: .8rem; border: 1px solid #ccc; border-radius: .4rem; }
article { border-left: .4rem solid #767676; }
article.good { border-left-color: #009E73; } article.look { border-left-color: #D55E00; }
article figure { border: 0; padding: .5rem 0 0; }
.mark { display: inline-block; width: 1.5rem; height: 1.5rem; margin-right: .4rem; border-radius: 50%; color: #fff;
  text-align: center; line-height: 1.5rem; font-weight: 700; background: #767676; }
.good .mark { background: #00795A; } .look .mark { background: #B84E00; }
.advice { border-top: 1px dotted #999; padding-top: .4rem; }
figcaption { font-size: .9rem; color: #444; }
img { display: block; width: 100%; height: auto; }
@media print { body { max-width: none; padding: 0; } article, figure { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def embedded(figure: "Figure", title: str, caption: str) -> str:
    """Return a figure as an HTML element that holds the picture itself."""
    buffer = io.BytesIO()
    # Without a date the same run makes the same page
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = html.escape(ALT.format(title, caption))
    return (
        f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def section(heading: str, elements: Iterable[str]) -> str:
    """Return a part of a page with elements in columns, or nothing where there are none."""
    content = "".join(elements)
    return f'<h2>{heading}</h2><div class="grid">{content}</div>' if content else ""


def write_page(path: str | Path, runs: Sequence[Run], body: str, *, style: str = "") -> Path:
    """
    Write a page about runs, which loads nothing from anywhere.

    :param path: of the page
    :param runs: whose names its title has, and what could not be read of them its end
    :param body: what stands between
    :param style: CSS besides that of every page
    :return: the path
    """
    names = ", ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    title = html.escape(f"Trust region report: {names}")
    problems = "".join(f"<li>{html.escape(problem)}</li>" for run in runs for problem in run.problems)
    path = Path(path)
    path.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE_SHEET}{style}</style></head><body><h1>{title}</h1>{body}"
        + (f"<h2>What could not be read</h2><ul>{problems}</ul>" if problems else "")
        + "</body></html>\n",
        encoding="utf-8",
    )
    return path


def caption_of(name: str, run: Run) -> str:
    """Return what to say below a figure; the plane of an algorithm that is not ours is that of its step."""
    is_step = name == "bubble" and bool(run.slices[-1].step)
    return CAPTIONS["step" if is_step else name]


def _in_words(value: str) -> str:
    """Return text of a page in which the name of an algorithm may end its line between its words."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "<wbr>", html.escape(value))


def _panel(run: Run, name: str) -> str:
    return embedded(draw_run(run, [name]), PANELS[name].title, CAPTIONS[name])


def _finding(run: Run, finding: Finding) -> str:
    mark, kind = MARKS[finding.healthy]
    advice = f'<p class="advice"><strong>What to try:</strong> {html.escape(finding.advice)}</p>' if finding.advice else ""
    return (
        f'<article class="{kind}"><h3><span class="mark">{mark}</span>{html.escape(finding.name)}</h3>'
        f"<p>{html.escape(finding.says)}</p>{advice}{_panel(run, finding.panel)}</article>"
    )


def _kl_in_words(run: Run) -> dict[str, str]:
    measured = [update for update in run.updates if math.isfinite(update.mean_kl)]
    if not measured:
        return {}
    largest = max(measured, key=lambda update: update.mean_kl)
    if math.isnan(largest.max_kl):
        median = np.median([update.mean_kl for update in measured])
        return {"median and largest KL of an update": f"{median:.3g} / {largest.mean_kl:.3g}"}
    return {"largest KL of any update, and its limit": f"{largest.mean_kl:.3g} / {largest.max_kl:.3g}"}


def _summary(run: Run) -> str:
    last = run.updates[-1]
    rows = {
        "algorithm": last.algorithm,
        "updates": f"{last.n_updates:,}",
        "environment steps": f"{last.num_timesteps:,}",
        "mean return of the latest episodes": f"{last.mean_return:,.4g}" if math.isfinite(last.mean_return) else "–",
        **_kl_in_words(run),
        "updates that moved the policy": f"{sum(u.accepted for u in run.updates)} of {len(run.updates)} on record",
    }
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{_in_words(value)}</dd></div>" for name, value in rows.items()) + "</dl>"


def _health(run: Run) -> str:
    findings = check_health(run.updates)
    wrong = [finding for finding in findings if finding.healthy is False]
    verdict = (
        f"{len(wrong)} of {len(findings)} checks ask for a look." if wrong else "Nothing of what was checked asks for a look."
    )
    cards = "".join(_finding(run, finding) for finding in sorted(findings, key=lambda finding: finding.healthy is not False))
    return f'<h2>Is it healthy?</h2><p>{verdict}</p><div class="grid">{cards}</div>'


def write_report(run: Run, path: str | Path, *, n_updates: int | None = None) -> Path:
    """
    Write one HTML page with the findings in words and every figure inside it; it loads nothing from anywhere.

    :param run: from ``read_run`` or ``inspect_model``
    :param path: of the page
    :param n_updates: number of the update to look at; the last one that pictures were kept of by default
    :return: the path
    :raises ValueError: if the run has no update, or not this one
    """
    if not run.updates:
        raise ValueError(f"run {run.name!r} has no update to report on")
    n_updates = choose_update(run, n_updates)
    shown = {finding.panel for finding in check_health(run.updates)}
    # Of a single update its own pictures say more than a dot in each panel
    others = [_panel(run, name) for name in panels_of(run) if name not in shown and len(run.updates) > 1]
    of_update = [
        embedded(figure, name.replace("_", " "), caption_of(name, run)) for name, figure in figures_of_update(run, n_updates)
    ]
    body = _summary(run) + _health(run) + section("The run", others) + section("One update", of_update)
    return write_page(path, [run], body)
