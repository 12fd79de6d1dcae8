"""What a fall costs under a discount, and the paths that show it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import discount, settings
from benchmarks.results import collect
from benchmarks.train import Run
from tests.benchmarks.fake_runs import write_run


@pytest.mark.parametrize("length, factor", [(1, 0.9), (269, 0.99), (999, 0.995)])
def test_discounted_return_is_the_sum_over_the_episode(length: int, factor: float) -> None:
    """Term by term; an episode that the time limit ends goes on for ever."""
    terms = 3.5 * factor ** np.arange(length)
    assert discount.discounted_return(3.5, length, factor) == pytest.approx(terms.sum())
    assert discount.discounted_return(3.5, discount.TIME_LIMIT, factor) == pytest.approx(3.5 / (1 - factor))


def test_paths_are_those_of_the_record(tmp_path: Path) -> None:
    """Length, reward per step and discount of each run on Hopper. One without lengths, or of another setting, has no path."""
    runs = tmp_path / "runs"
    arguments = settings.load("trpo", "gamma-98", "Hopper-v5")
    for seed, header, other in ((0, ",rollout/ep_len_mean", {}), (1, "", {}), (2, ",rollout/ep_len_mean", {"target_kl": 1.0})):
        run = Run("quick", "Hopper-v5", "trpo", seed)
        write_run(run, runs, hyperparameters={**arguments, **other})
        lines = [f"time/total_timesteps,rollout/ep_rew_mean{header}"]
        lines += [f"{512 * i},{300.0 * i}{',100.0' if header else ''}" for i in (1, 2)]
        (run.folder(runs) / "progress.csv").write_text("\n".join(lines))
    collect(runs, tmp_path)
    curves = discount.paths(tmp_path)
    assert list(curves["seed"]) == [0, 0] and list(curves["reward"]) == [3.0, 6.0] and set(curves["discount"]) == {0.98}
    expected = discount.discounted_return(6.0, 100.0, 0.98)
    assert f"| 0.98 | 0 | 100 | 6.00 | {expected:.0f} | 20.0 |" in discount.table(curves)
    discount.draw(pd.concat([curves, curves.assign(discount=0.99)]), tmp_path / "discount.png")
    assert (tmp_path / "discount.png").stat().st_size > 10_000
