"""
RL Zoo plugin: importing it makes ``--algo trpo`` of ``rl_zoo3`` this package's TRPO, in this package's units.

``--algo trpo_lstm`` is RecurrentTRPO. RL Zoo passes no masks, so there is nothing here for environments that have them.

Run RL Zoo's scripts with ``python -m sb3_trpo.zoo``, or pass ``--gym-packages sb3_trpo.zoo`` to RL Zoo's own.
"""

from pathlib import Path
from typing import Any

try:
    import rl_zoo3
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params
except ImportError as error:
    raise ImportError(f"sb3_trpo.zoo needs RL Zoo: pip install 'sb3_trpo[zoo]' ({error})") from error
from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo.hyperparameters import SCHEDULES
from sb3_trpo.recurrent import RecurrentTRPO
from sb3_trpo.trpo import TRPO
from sb3_trpo.zoo.sampler import convert_lstm_params, sample_trpo_lstm_params, sample_trpo_params

HYPERPARAMETERS = {name: Path(__file__).parent / "hyperparams" / f"{name}.yml" for name in ("trpo", "trpo_lstm")}
"""The files that are read where the user names none: RL Zoo's own for TRPO is in the units of sb3-contrib."""

_RL_ZOO_HYPERPARAMETERS = Path(rl_zoo3.__file__).parent / "hyperparams"
_read_hyperparameters = ExperimentManager.read_hyperparameters
_preprocess_schedules = ExperimentManager._preprocess_schedules


def linear_schedule(value: Any) -> Any:
    """
    Turn RL Zoo's notation for a schedule that falls to zero, such as ``"lin_0.02"``, or to another value, such as
    ``"lin_0.1_0.02"``, into one.

    :param value: what a hyperparameter file holds
    :return: the schedule, or what was given if it is not a string
    :raises ValueError: if it is a string of another form
    """
    if not isinstance(value, str):
        return value
    kind, *ends = value.split("_")
    try:
        start, end = (float(number) for number in (*ends, "0")[:2])
        is_linear = kind == "lin" and len(ends) in (1, 2)
    except ValueError:
        is_linear = False
    if not is_linear:
        raise ValueError(
            "a schedule must be given as 'lin_' and its first value, or its first and its last, such as 'lin_0.02' or "
            f"'lin_0.1_0.02', got {value!r}"
        )
    # SB3's, so that a model that is saved with it opens without RL Zoo
    return LinearSchedule(start, end, 1.0)


def read_hyperparameters(self: ExperimentManager) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read hyperparameters as RL Zoo does, those of TRPO from our files and with their schedules made."""
    if self.algo not in HYPERPARAMETERS:
        return _read_hyperparameters(self)
    if Path(self.config) == _RL_ZOO_HYPERPARAMETERS / f"{self.algo}.yml":
        self.config = str(HYPERPARAMETERS[self.algo])
    hyperparameters, saved = _read_hyperparameters(self)
    for name in hyperparameters.keys() & set(SCHEDULES):
        hyperparameters[name] = linear_schedule(hyperparameters[name])
    return hyperparameters, saved


def preprocess_schedules(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Make the schedules that RL Zoo makes, whose class a saved model could not be opened without, of what is none yet."""
    made = {name: value for name, value in hyperparameters.items() if isinstance(value, LinearSchedule)}
    return _preprocess_schedules({name: value for name, value in hyperparameters.items() if name not in made}) | made


rl_zoo3.ALGOS["trpo"] = TRPO
HYPERPARAMS_SAMPLER["trpo"] = sample_trpo_params
HYPERPARAMS_CONVERTER["trpo"] = convert_onpolicy_params
rl_zoo3.ALGOS["trpo_lstm"] = RecurrentTRPO
HYPERPARAMS_SAMPLER["trpo_lstm"] = sample_trpo_lstm_params
HYPERPARAMS_CONVERTER["trpo_lstm"] = convert_lstm_params
ExperimentManager.read_hyperparameters = read_hyperparameters  # type: ignore[method-assign]
ExperimentManager._preprocess_schedules = staticmethod(preprocess_schedules)  # type: ignore[assignment]
