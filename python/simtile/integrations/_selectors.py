"""The ids that a search may return, as faiss says it: selectors and `SearchParameters`.

A selector is anything with ``is_member(id)``, faiss's own among them. Those here also give the mask
of all ids at once; a foreign selector is asked id by id, which is slow for large indexes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


class Selector(Protocol):
    """What a search needs of a selector."""

    def is_member(self, id: int, /) -> bool: ...


class SearchParameters:
    """The parameters of one search: ``sel`` selects the ids that may be found, None all of them."""

    def __init__(self, sel: Selector | None = None) -> None:
        if sel is not None and not hasattr(sel, "is_member"):
            raise TypeError(
                f"sel: found {type(sel).__name__}, expected an IDSelector, such as "
                "IDSelectorBatch(ids)"
            )
        self.sel = sel


class IDSelector:
    """Base of the selectors: a subclass has ``mask(count)``, bool [count] of the ids below it."""

    def mask(self, count: int) -> Mask:
        raise NotImplementedError

    def is_member(self, id: int) -> bool:
        return id >= 0 and bool(self.mask(id + 1)[id])


class IDSelectorAll(IDSelector):
    """Every id."""

    def mask(self, count: int) -> Mask:
        return np.ones(count, bool)


class IDSelectorRange(IDSelector):
    """The ids from `imin` up to, and without, `imax`."""

    def __init__(self, imin: int, imax: int, assume_sorted: bool = False) -> None:
        self.imin, self.imax, self.assume_sorted = int(imin), int(imax), assume_sorted

    def mask(self, count: int) -> Mask:
        selected = np.zeros(count, bool)
        selected[max(self.imin, 0) : max(self.imax, 0)] = True
        return selected


class IDSelectorBatch(IDSelector):
    """The ids of an integer array [n]; as in faiss, those that no vector has are ignored."""

    def __init__(self, ids: npt.ArrayLike) -> None:
        array = np.asarray(ids)
        if array.size == 0:
            array = array.astype(np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(
                f"ids: found {array.dtype} {list(array.shape)}, expected integers [n]; for a mask "
                "use IDSelectorBitmap(np.packbits(mask, bitorder='little'))"
            )
        self.ids = array

    def mask(self, count: int) -> Mask:
        selected = np.zeros(count, bool)
        selected[self.ids[(self.ids >= 0) & (self.ids < count)].astype(np.int64)] = True
        return selected


class IDSelectorArray(IDSelectorBatch):
    """The same as `IDSelectorBatch`, which in faiss are two ways to look up an id."""


class IDSelectorBitmap(IDSelector):
    """The ids whose bit is set in a uint8 array [ceil(N / 8)], the lowest bit of a byte first."""

    def __init__(self, bitmap: npt.NDArray[np.uint8]) -> None:
        array = np.asarray(bitmap)
        if array.ndim != 1 or array.dtype != np.uint8:
            raise TypeError(
                f"bitmap: found {array.dtype} {list(array.shape)}, expected uint8 [ceil(N / 8)]: "
                "np.packbits(mask, bitorder='little')"
            )
        self.bitmap = array

    def mask(self, count: int) -> Mask:
        bits = np.unpackbits(self.bitmap[: (count + 7) // 8], bitorder="little")[:count]
        selected = np.zeros(count, bool)
        selected[: len(bits)] = bits
        return selected


class IDSelectorNot(IDSelector):
    """The ids that another selector does not select."""

    def __init__(self, sel: Selector) -> None:
        self.sel = sel

    def mask(self, count: int) -> Mask:
        return ~mask_of(self.sel, count)


class _Pair(IDSelector):
    def __init__(self, lhs: Selector, rhs: Selector) -> None:
        self.lhs, self.rhs = lhs, rhs

    def masks(self, count: int) -> tuple[Mask, Mask]:
        return mask_of(self.lhs, count), mask_of(self.rhs, count)


class IDSelectorAnd(_Pair):
    """The ids that both select."""

    def mask(self, count: int) -> Mask:
        lhs, rhs = self.masks(count)
        return lhs & rhs


class IDSelectorOr(_Pair):
    """The ids that one of them selects."""

    def mask(self, count: int) -> Mask:
        lhs, rhs = self.masks(count)
        return lhs | rhs


class IDSelectorXOr(_Pair):
    """The ids that exactly one of them selects."""

    def mask(self, count: int) -> Mask:
        lhs, rhs = self.masks(count)
        return lhs ^ rhs


def mask_of(selector: Selector, count: int) -> Mask:
    """Which of the ids 0 to count - 1 are selected, bool [count]."""
    if isinstance(selector, IDSelector):
        return selector.mask(count)
    is_member = getattr(selector, "is_member", None)
    if is_member is None:
        raise TypeError(
            f"sel: found {type(selector).__name__}, expected an IDSelector, such as "
            "IDSelectorBatch(ids), or anything with is_member(id)"
        )
    return np.fromiter((bool(is_member(i)) for i in range(count)), bool, count)


def allowed(params: Any, count: int) -> Mask | None:
    """The mask that a search's ``params`` ask for; None where every id may be found."""
    if params is None:
        return None
    if not hasattr(params, "sel"):
        raise TypeError(
            f"params: found {type(params).__name__}, expected SearchParameters(sel=...)"
        )
    return None if params.sel is None else mask_of(params.sel, count)
