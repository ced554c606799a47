"""`allow`: which documents a search may return.

It is a boundary of authorisation. Whatever cannot be applied exactly as it was meant raises; no
case is left in which a search goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile._tensors import as_array, is_tensor

Mask = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


def resolve(
    allow: object, queries: int, documents: int, find: Callable[[Int64s], Int64s] | None = None
) -> Mask | None:
    """A mask of the documents that may be found, or None where all may.

    Parameters
    ----------
    allow : None, or bool [N] or [Q, N], or integers [A]
        A mask, for all queries or for each one, or the ids of the documents that may be found, in
        any order and any number of times. Arrays, tensors on the CPU or a GPU, lists, sets. An
        empty list allows nothing.
    queries, documents : int
        Q and N.
    find : callable, optional
        The places in the mask of an array of ids, -1 for an unknown id. Without it the ids are
        0 to N - 1.

    Returns
    -------
    bool [N] or [Q, N], the elements of a row side by side; or None

    Raises
    ------
    TypeError, ValueError
        ``allow`` is neither mask nor ids, has another length, names a document that is not there,
        or is one of [N] zeros and ones, which could be meant as either.
    """
    if allow is None:
        return None
    array = _as_array(allow)
    if array.dtype == np.bool_:
        if array.shape not in ((documents,), (queries, documents)):
            raise ValueError(
                f"allow: found a mask {list(array.shape)}, expected [{documents}], one bool for "
                f"each document, or [{queries}, {documents}], one row for each query"
            )
        beside = array.strides[-1] == 1 and array.strides[0] >= 0
        return array if beside else np.ascontiguousarray(array)
    return _mask_of_ids(array, documents, find)


def _as_array(allow: object) -> npt.NDArray[Any]:
    """As an array of bools or integers."""
    if isinstance(allow, np.ma.MaskedArray):
        raise TypeError(
            "allow: found a numpy.ma.MaskedArray, expected a plain array; allow.filled(False) is "
            "a mask without masked places"
        )
    if isinstance(allow, (set, frozenset)):
        allow = list(allow)
    if isinstance(allow, (list, tuple, range)):
        if len(allow) == 0:
            return np.empty(0, np.int64)
        bools = sum(isinstance(x, (bool, np.bool_)) for x in allow)
        if bools not in (0, len(allow)):
            raise TypeError(
                f"allow: found {bools} bools among {len(allow)} values, expected only bools (a "
                "mask) or only integers (ids)"
            )
    if is_tensor(allow):
        if str(allow.dtype) == "torch.bfloat16":  # type: ignore[attr-defined]
            raise _neither("torch.bfloat16", allow.shape)  # type: ignore[attr-defined]
        allow = as_array(allow)
    try:
        array = np.asarray(allow)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"allow: found {type(allow).__name__} that is no array ({error}), expected bool [N] or "
            "[Q, N], or integer ids"
        ) from None
    if array.dtype.kind not in "biu":
        raise _neither(array.dtype, array.shape)
    return array


def _neither(dtype: object, shape: Any) -> TypeError:
    return TypeError(
        f"allow: found {dtype} {list(shape)}, expected bool (a mask, [N] or [Q, N]) or integers "
        "(ids)"
    )


def _mask_of_ids(
    ids: npt.NDArray[Any], documents: int, find: Callable[[Int64s], Int64s] | None
) -> Mask:
    if ids.ndim != 1:
        raise ValueError(
            f"allow: found {ids.dtype} {list(ids.shape)}, expected ids [A] for all queries; for "
            f"each query its own, pass a bool mask [Q, {documents}]"
        )
    mask = np.zeros(documents, bool)
    if len(ids) == 0:
        return mask
    if len(ids) == documents and bool(((ids == 0) | (ids == 1)).all()):
        raise ValueError(
            f"allow: found {ids.dtype} [{documents}] of zeros and ones, one for each document, "
            "which could be a mask or ids: pass allow.astype(bool) for a mask; for ids pass a mask "
            "that is True at their documents"
        )
    beyond = ids > np.iinfo(np.int64).max if ids.dtype == np.uint64 else np.zeros(len(ids), bool)
    known = ids.astype(np.int64)
    if find is None:
        rows = np.where((known >= 0) & (known < documents), known, -1)
    else:
        rows = np.asarray(find(known))
    unknown = beyond | (rows < 0) | (rows >= documents)
    if unknown.any():
        where = f"0 to {documents - 1}" if find is None else "ids of the index"
        raise ValueError(
            f"allow: found the unknown id {ids[unknown.argmax()]} ({int(unknown.sum())} of "
            f"{len(ids)} are unknown), expected {where}"
        )
    mask[rows] = True
    return mask
