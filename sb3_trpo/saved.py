"""What a file says about the model in it, before anything of it is unpickled."""

import io
import json
import pathlib
import zipfile

from stable_baselines3.common.save_util import open_path

# Every TRPO has these, sb3-contrib's too, and no other algorithm of SB3 or sb3-contrib
OF_TRPO = {"cg_max_steps", "cg_damping", "line_search_shrinking_factor", "line_search_max_iter"}


def saved_names(path: str | pathlib.Path | io.BufferedIOBase) -> set[str]:
    """
    Return the names of the attributes of a saved TRPO.

    :param path: path of the zip, or an open file
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is no saved model, or one of another algorithm
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            saved = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no saved model ({error}), expected a zip written by the `save` of a model. "
            "What `policy.save` wrote is for the `load` of the policy's class"
        ) from error
    finally:
        if file is not path:
            file.close()
    if not saved.keys() >= OF_TRPO:
        policy = saved.get("policy_class") or {}
        raise ValueError(
            f"{path} holds a model of another algorithm, expected one saved by sb3_trpo.TRPO or sb3_contrib.TRPO: "
            f"it has no {sorted(OF_TRPO - saved.keys())}, and a policy of {policy.get('__module__')}"
        )
    return set(saved)
