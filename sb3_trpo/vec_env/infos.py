"""The infos of a step: a list of dicts for whoever asks, and no work for those that nobody asks for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

Info = dict[str, Any]
# What Gymnasium's arrays make of Python's numbers
AS_PYTHONS = (np.bool_, np.int64, np.float64)


def info_of(infos: Mapping[str, Any], index: int, n: int) -> Info:
    """
    Pick what Gymnasium's dict of arrays says of one environment.

    :param infos: by key an array with a row for each environment, ``_key`` tells who has one; dicts hold such arrays again
    :param index: of the environment
    :param n: number of rows; what has not as many is the same for every environment
    :return: a dict of its own, whose arrays are copies and whose numbers are Python's, as environments give them
    """
    info: Info = {}
    for key, value in infos.items():
        # The mask of another key, or a key that this environment has not
        if (isinstance(key, str) and key.startswith("_") and key[1:] in infos) or not infos.get(f"_{key}", _ALL)[index]:
            continue
        if isinstance(value, dict):
            info[key] = info_of(value, index, n)
            continue
        has_rows = isinstance(value, np.ndarray | list | tuple) and np.ndim(value) > 0 and len(value) == n
        row = value[index] if has_rows else value
        if isinstance(row, AS_PYTHONS):
            row = row.item()
        info[key] = row.copy() if isinstance(row, np.ndarray) else row
    return info


class _All:
    """The mask of what everyone has."""

    def __getitem__(self, index: int) -> bool:
        return True


_ALL = _All()


class LazyInfos(Sequence[Info]):
    """
    One info for each environment, made when it is first asked for and the same dict from then on.

    It pickles as a list.

    :param n_envs: number of environments
    :param infos: what the vector environment said of all of them, as Gymnasium has it
    :param ended: by environment the info of each one whose episode ended; complete but for ``TimeLimit.truncated``
    :param truncated: whether an episode ended by its time limit alone, shape (n_envs,)
    :param marks: by key who has it set to True, shape (n_envs,)
    """

    def __init__(
        self,
        n_envs: int,
        infos: Mapping[str, Any],
        *,
        ended: Mapping[int, Info],
        truncated: np.ndarray,
        marks: Mapping[str, np.ndarray] | None = None,
    ):
        self._infos = infos
        self._ended = ended
        self._truncated = truncated
        self._marks = marks or {}
        self._made: list[Info | None] = [None] * n_envs

    def _get(self, index: int) -> Info:
        info = self._made[index]
        if info is None:
            index %= len(self._made)
            info = self._ended[index] if index in self._ended else info_of(self._infos, index, len(self._made))
            info["TimeLimit.truncated"] = bool(self._truncated[index])
            info.update({key: True for key, who in self._marks.items() if who[index]})
            self._made[index] = info
        return info

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Info: ...

    @overload
    def __getitem__(self, index: slice) -> list[Info]: ...

    def __getitem__(self, index: int | slice) -> Info | list[Info]:
        if isinstance(index, slice):
            return [self._get(i) for i in range(*index.indices(len(self._made)))]
        return self._get(index)

    def __setitem__(self, index: int, info: Info) -> None:
        self._made[index] = info

    def __iter__(self) -> Iterator[Info]:
        return map(self._get, range(len(self._made)))

    def __reduce__(self) -> Any:
        return list, (list(self),)

    def __repr__(self) -> str:
        return repr(list(self))
