"""What Optuna may choose for TRPO, in our units."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params


def sample_trpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Draw hyperparameters for a trial of RL Zoo's optimisation (``-optimize``).

    :param trial: Optuna's
    :param n_actions: number of action dimensions, which a limit on the KL of the whole action need not know
    :param n_envs: number of environments
    :param additional_args: RL Zoo's, for algorithms with a replay buffer
    :return: keyword arguments of TRPO
    """
    return _noted(trial, convert_onpolicy_params(_sampled(trial)))


def sample_trpo_lstm_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw hyperparameters for a trial of RecurrentTRPO.

    :param trial: Optuna's
    :param n_actions: as for :func:`sample_trpo_params`
    :param n_envs: number of environments
    :param additional_args: as for :func:`sample_trpo_params`
    :return: keyword arguments of RecurrentTRPO
    """
    of_lstm = {
        "lstm_hidden_size": trial.suggest_categorical("lstm_hidden_size", [16, 32, 64, 128]),
        "enable_critic_lstm": trial.suggest_categorical("enable_critic_lstm", [False, True]),
    }
    return _noted(trial, convert_lstm_params(_sampled(trial) | of_lstm))


def convert_lstm_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn what a trial of RecurrentTRPO has drawn into keyword arguments.

    :param sampled_params: value by the name that Optuna knows it by
    """
    of_lstm = {name: sampled_params[name] for name in ("lstm_hidden_size", "enable_critic_lstm")}
    hyperparameters = convert_onpolicy_params({name: value for name, value in sampled_params.items() if name not in of_lstm})
    hyperparameters["policy_kwargs"].update(of_lstm)
    return hyperparameters


def _sampled(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "n_steps_pow": trial.suggest_int("n_steps_pow", 6, 12),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 9),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.05, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 0.001, 0.1, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
        "target_kl": trial.suggest_float("target_kl", 0.002, 0.5, log=True),
        "cg_damping": trial.suggest_float("cg_damping", 1e-3, 5.0, log=True),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }


def _noted(trial: optuna.Trial, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Write down with a trial what RL Zoo tells of it; return the keyword arguments."""
    for name in ("gamma", "gae_lambda", "n_steps", "batch_size"):
        trial.set_user_attr(name, hyperparameters[name])
    return hyperparameters
