"""Documents under ids: what every index says of them, and what its file says of their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from simtile import _files
from simtile._snapshot import Snapshot
from simtile._storage import Storage

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]


class NumberedDocuments:
    """The documents of an index, whose `_storage` has a row for each."""

    _storage: Storage

    @property
    def ids(self) -> Int64s:
        """The ids, int64 [N], in the order in which documents were first added. Read-only.

        It is the order of a mask for ``allow``. An updated document keeps its place.
        """
        return self._storage.snapshot.ids

    def __len__(self) -> int:
        return len(self._storage.snapshot)

    def __contains__(self, document_id: object) -> bool:
        if isinstance(document_id, (bool, np.bool_)) or not hasattr(document_id, "__index__"):
            return False
        value = document_id.__index__()
        if not 0 <= value < 2**63:
            return False
        return bool(self._storage.snapshot.find(np.array([value], np.int64))[0] >= 0)

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{self!r} is not a sequence; its ids are .ids")

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} is not pickled or copied; save it, and load the file")


def counters(snapshot: Snapshot) -> dict[str, Any]:
    """The attributes of a file that say how many documents there are and how they are numbered."""
    return {
        "documents": len(snapshot),
        "automatic_ids": snapshot.automatic,
        "next_id": snapshot.next_id,
    }


def id_sections(snapshot: Snapshot) -> list[_files.Section]:
    """The section of ids, unless they are 0, 1, 2, …"""
    ids = snapshot.ids
    counting = len(ids) == 0 or (ids[0] == 0 and ids[-1] == len(ids) - 1)
    if counting and bool((ids[1:] - ids[:-1] == 1).all()):
        return []
    return [_files.section("ids", ids)]


def count_of(path: _files.PathLike, attributes: Mapping[str, Any]) -> int:
    """How many documents a file has; raises where its counters cannot be."""
    count, next_id = attributes.get("documents"), attributes.get("next_id")
    if type(count) is not int or type(next_id) is not int:
        raise damaged(path, f"{count!r} documents, next id {next_id!r}")
    if min(count, next_id) < 0 or max(count, next_id) >= 2**63:  # ids are int64
        raise damaged(path, f"{count!r} documents, next id {next_id!r}")
    automatic = attributes.get("automatic_ids")
    if automatic not in (None, True, False) or (automatic is None and count):
        raise damaged(path, f"automatic ids: {automatic!r}")
    return count


def check_sections(
    path: _files.PathLike,
    arrays: Mapping[str, Array],
    expected: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
) -> None:
    """Raise unless these, and `ids` of as many documents, are the sections of a file."""
    found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    if found != expected:
        raise damaged(path, f"it has the sections {found}, expected {dict(expected)}")


def stored(
    path: _files.PathLike,
    columns: Mapping[str, Array],
    ids: Int64s | None,
    attributes: Mapping[str, Any],
    whole: bool,
) -> Storage:
    """The documents of a file. `whole`: whether to check also what must be read in full for it."""
    count = count_of(path, attributes)
    automatic, next_id = attributes["automatic_ids"], attributes["next_id"]
    if automatic and next_id < (count if ids is None else int(ids.max(initial=-1)) + 1):
        raise damaged(path, f"{next_id} is the next id")
    storage = Storage.of_file(columns, count, ids, automatic, next_id)
    if whole:
        storage.snapshot.id_map.check()
        if ids is not None and (ids < 0).any():
            raise damaged(path, "an id below 0")
    return storage


def damaged(path: _files.PathLike, what: str) -> ValueError:
    return ValueError(f"{path}: the file is damaged: {what}")
