"""How the documentation is built: ``make docs``, and Read the Docs."""

import os
import re
import sys
import urllib.request
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sb3_trpo.about import __version__

project = "sb3_trpo"
author = "the authors of sb3_trpo"
copyright = f"2026, {author}"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
# What names something of ours leads to it; what others are called is not always known, without a network above all
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!sb3_trpo\.).*"),
    # Behind the public names, and described by them
    ("py:class", r"sb3_trpo\.(update\.TrustRegionUpdate|maskable\.(Masking|SelfMaskable))"),
    ("py:class", r"sb3_trpo\.inspect\.run_files\.ActionDistribution"),
]

# Markdown as GitHub shows it, too: formulas between dollars, <img> with a width, an anchor for every heading
myst_enable_extensions = ["amsmath", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 4
suppress_warnings = [
    # Tables of options begin below a page's own headings
    "myst.header",
]

# As SB3's own documentation
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
python_use_unqualified_type_names = True

OTHERS = {
    "python": "https://docs.python.org/3/",
    "stable_baselines3": "https://stable-baselines3.readthedocs.io/en/master/",
    "gymnasium": "https://gymnasium.farama.org/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
}


def is_reachable(url: str) -> bool:
    """Whether the site answers; where it does not, as without a network, its names are no links."""
    try:
        with urllib.request.urlopen(f"{url}objects.inv", timeout=10):
            return True
    except OSError:
        print(f"no answer from {url}: its names are no links")
        return False


intersphinx_mapping = {name: (url, None) for name, url in OTHERS.items() if "READTHEDOCS" in os.environ or is_reachable(url)}

# What is in the repository is checked by a test, anchors too. Its owner is a placeholder until it is published
linkcheck_ignore = [r"https://github\.com/OW[N]ER/"]
linkcheck_anchors_ignore_for_url = [r"https://github\.com/"]

# Only what is typed is copied, not what is answered
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
copybutton_exclude = ".linenos, .gp, .go"

# Its fonts come with it
mathjax_path = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"

html_theme = "furo"
html_title = f"sb3_trpo {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}


def escape_stars(app, what, name, obj, options, lines):
    """Shapes are written as in Python, ``(n, *obs_shape)``, where reST would begin to emphasize."""
    lines[:] = [re.sub(r"(?<=[\s(,])\*(?=\w+[),])", r"\\*", line) for line in lines]


def skip_fields(app, what, name, obj, skip, options):
    """Fields of named tuples are described as parameters; on their own they say nothing."""
    return True if type(obj).__name__ == "_tuplegetter" else None


# By the heading of their first column, tables that have a form of their own: ``custom.css``
KINDS_OF_TABLES = {
    "You see": ["stacked", "symptoms"],
    "Looks at": ["stacked", "checks"],
    "You have": ["stacked", "choices"],
    "What": ["stacked", "differences"],
    "PPO": ["stacked", "arguments"],
    "Key": ["stacked"],
    "argument": ["stacked"],
    "In Python": ["stacked"],
    "Equation": ["equations"],
}


def name_tables(app, doctree):
    """Give a table the class of its kind."""
    for table in doctree.findall(nodes.table):
        table["classes"] += KINDS_OF_TABLES.get(table.next_node(nodes.entry).astext(), [])


def setup(app):
    """Called by Sphinx."""
    app.connect("doctree-read", name_tables)
    app.connect("autodoc-process-docstring", escape_stars)
    app.connect("autodoc-skip-member", skip_fields)
