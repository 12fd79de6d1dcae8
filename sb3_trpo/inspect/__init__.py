"""
See the trust region: a recorder for training, and pictures of what it recorded.

``python -m sb3_trpo.inspect`` draws from the command line. Only what draws needs Matplotlib.
"""

from sb3_trpo.inspect.callback import TrustRegionRecorder
from sb3_trpo.inspect.comparison_figures import COMPARED, draw_comparison
from sb3_trpo.inspect.comparison_page import write_comparison
from sb3_trpo.inspect.gallery import figures_of, figures_of_update
from sb3_trpo.inspect.health import Finding, check_health
from sb3_trpo.inspect.page import write_report
from sb3_trpo.inspect.planes import slice_of
from sb3_trpo.inspect.probe import change_of_probabilities, inspect_model
from sb3_trpo.inspect.run_figures import PANELS, draw_run
from sb3_trpo.inspect.run_files import Run, SliceRecord, StateChange, StatesRecord, UpdateRecord, read_run
from sb3_trpo.inspect.update_figures import draw_bars, draw_bubble, draw_convergence, draw_kl_histogram, draw_ladder

__all__ = [
    "COMPARED",
    "PANELS",
    "Finding",
    "Run",
    "SliceRecord",
    "StateChange",
    "StatesRecord",
    "TrustRegionRecorder",
    "UpdateRecord",
    "change_of_probabilities",
    "check_health",
    "draw_bars",
    "draw_bubble",
    "draw_comparison",
    "draw_convergence",
    "draw_kl_histogram",
    "draw_ladder",
    "draw_run",
    "figures_of",
    "figures_of_update",
    "inspect_model",
    "read_run",
    "slice_of",
    "write_comparison",
    "write_report",
]
