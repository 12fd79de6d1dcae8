"""Which version this is, and what it runs with."""

from importlib.metadata import PackageNotFoundError, version

import torch as th
from stable_baselines3.common.utils import get_system_info

__version__ = "0.1.0"

# What changes the behaviour where it is installed
OPTIONAL = ("sb3_contrib", "rl_zoo3", "envpool", "matplotlib", "threadpoolctl")


def system_info(print_info: bool = True) -> dict[str, str]:
    """
    Say what a report of a problem needs: system, versions and devices. Nothing of it names the machine or its user.

    SB3's ``get_system_info`` with what concerns this package.

    :param print_info: Whether to print it, one line each
    :return: name -> version or fact; a package that is not there is ``"not installed"``
    """
    info = {"sb3_trpo": __version__, **get_system_info(print_info=False)[0]}
    for package in OPTIONAL:
        try:
            info[package] = version(package)
        except PackageNotFoundError:
            info[package] = "not installed"
    info["Threads of torch"] = str(th.get_num_threads())
    if th.cuda.is_available():
        info["GPU"] = th.cuda.get_device_name()
    if print_info:
        print("\n".join(f"- {name}: {fact}" for name, fact in info.items()))  # noqa: T201
    return info
