"""Arguments of `mine_hard_negatives`: lists of rows for each query, ranks, margins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _search_call, _tensors

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

SAMPLINGS = ("top", "random")
# Where candidates may be refused, this many times as many are looked at, as sentence-transformers
# does.
SPARE = 10


class Ragged(NamedTuple):
    """Some rows for each query: those of query i are ``rows[offsets[i]:offsets[i + 1]]``."""

    offsets: Int64s
    rows: Int64s

    @property
    def counts(self) -> Int64s:
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        return int(self.counts.max(initial=0))

    def part(self, begin: int, end: int) -> Ragged:
        """Those of the queries from `begin` to `end`."""
        offsets = self.offsets[begin : end + 1]
        return Ragged(offsets - offsets[0], self.rows[offsets[0] : offsets[-1]])

    def owners(self) -> Int64s:
        """The query of each of the rows."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    def padded(self) -> Int64s:
        """[N, longest], -1 for none."""
        whole = np.full((len(self.offsets) - 1, self.longest), -1, np.int64)
        places = np.arange(len(self.rows)) - np.repeat(self.offsets[:-1], self.counts)
        whole[self.owners(), places] = self.rows
        return whole


@dataclass(frozen=True)
class Options:
    """What is taken of what is found."""

    k: int
    range_min: int
    range_max: int
    window: int  # this many candidates are looked at, the positives among them
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling: str = "top"
    exclude: bool = True  # the positives

    @property
    def has_margin(self) -> bool:
        return self.absolute_margin is not None or self.relative_margin is not None


def check_options(
    k: object,
    range_min: object,
    range_max: object,
    max_score: object,
    min_score: object,
    absolute_margin: object,
    relative_margin: object,
    sampling: str,
    *,
    longest: int,
    listed: int | None,
    filtered: bool,
) -> Options:
    """Checked, with sentence-transformers' default for `range_max`.

    `longest`: of the lists of positives; `listed`: candidates of a query, where they are given;
    `filtered`: whether there is a filter.
    """
    count = _check_count("k", k, 1)
    first = _check_count("range_min", range_min, 0)
    limits: dict[str, Any] = {
        "max_score": _check_limit("max_score", max_score),
        "min_score": _check_limit("min_score", min_score),
        "absolute_margin": _check_limit("absolute_margin", absolute_margin),
        "relative_margin": _check_limit("relative_margin", relative_margin),
    }
    _inputs.check_choice("sampling", sampling, SAMPLINGS)
    if range_max is not None:
        last = _check_count("range_max", range_max, 1)
    elif listed is not None:
        last = max(first + count, listed)
    else:
        refusing = filtered or any(
            limits[name] is not None for name in ("max_score", "absolute_margin", "relative_margin")
        )
        last = first + count * (SPARE if refusing else 1) + longest
    if first >= last:
        raise ValueError(f"range_min: found {first}, expected less than range_max, which is {last}")
    if count > last - first:
        raise ValueError(
            f"k: found {count}, expected at most {last - first}: the ranks from "
            f"range_min={first} to range_max={last} are no more"
        )
    return Options(count, first, last, last + longest, sampling=sampling, **limits)


def _check_count(name: str, value: object, least: int) -> int:
    count = _inputs.to_int(name, value)
    if count < least:
        raise ValueError(f"{name}: found {count}, expected at least {least}")
    if count > _search_call.MOST_RESULTS:
        raise ValueError(f"{name}: found {count}, expected at most {_search_call.MOST_RESULTS}")
    return count


def _check_limit(name: str, value: object) -> float | None:
    if value is None:
        return None
    limit = _inputs.to_float(name, value, "a number or None")
    if math.isnan(limit):
        raise ValueError(f"{name}: found nan, expected a number or None")
    return limit


def read_lists(name: str, given: Any, queries: int) -> Ragged:
    """Rows of documents, some for each query.

    Parameters
    ----------
    name : str
        The argument's.
    given : int [N]; int [N, P], -1 for none; N sequences of ints; (offsets [N + 1], rows)
    queries : int
        N.
    """
    if given is None:
        return Ragged(np.zeros(queries + 1, np.int64), np.empty(0, np.int64))
    if isinstance(given, tuple):
        return _of_offsets(name, given, queries)
    if _tensors.is_tensor(given) or isinstance(given, np.ndarray):
        return _of_array(name, _tensors.as_array(given), queries)
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise TypeError(
            f"{name}: found {type(given).__name__}, expected integers [{queries}] or "
            f"[{queries}, P], {queries} lists, or a tuple (offsets, rows)"
        )
    if len(given) != queries:
        raise ValueError(
            f"{name}: found {len(given)}, expected {queries}, one or a list of them for each query"
        )
    if all(hasattr(x, "__index__") and np.ndim(x) == 0 for x in given):
        return _of_array(name, np.asarray(given, dtype=None if given else np.int64), queries)
    lists = [_integers(f"{name}[{i}]", x) for i, x in enumerate(given)]
    offsets = np.zeros(queries + 1, np.int64)
    np.cumsum([len(x) for x in lists], out=offsets[1:])
    rows = np.concatenate([x.astype(np.int64) for x in lists])
    return Ragged(offsets, rows)


def _of_array(name: str, array: Array, queries: int) -> Ragged:
    shape = list(array.shape)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: found {array.dtype} {shape}, expected integers")
    if array.ndim not in (1, 2) or len(array) != queries:
        raise ValueError(
            f"{name}: found {array.dtype} {shape}, expected [{queries}], one for each query, or "
            f"[{queries}, P] with -1 for none"
        )
    rows = array.astype(np.int64)
    if rows.ndim == 1:
        if (rows < 0).any():
            raise ValueError(
                f"{name}: found {rows[(rows < 0).argmax()]} for query {int((rows < 0).argmax())}, "
                "expected a document; a query without one has an empty list, or -1 in [N, P]"
            )
        return Ragged(np.arange(queries + 1), rows)
    given = rows != -1
    offsets = np.zeros(queries + 1, np.int64)
    np.cumsum(given.sum(axis=1), out=offsets[1:])
    return Ragged(offsets, rows[given])


def _of_offsets(name: str, given: tuple[Any, ...], queries: int) -> Ragged:
    if len(given) != 2:
        raise ValueError(
            f"{name}: found a tuple of {len(given)}, expected (offsets [{queries + 1}], rows); "
            "lists of rows are given in a list"
        )
    offsets = _integers(f"{name}: offsets", given[0]).astype(np.int64)
    rows = _integers(f"{name}: rows", given[1]).astype(np.int64)
    right = len(offsets) == queries + 1 and offsets[0] == 0 and offsets[-1] == len(rows)
    if not right or bool((np.diff(offsets) < 0).any()):
        raise ValueError(
            f"{name}: found {len(offsets)} offsets and {len(rows)} rows, expected {queries + 1} "
            f"offsets that rise from 0 to {len(rows)}"
        )
    return Ragged(offsets, rows)


def _integers(name: str, x: Any) -> Array:
    array = _tensors.as_array(x, name)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(
            f"{name}: found {array.dtype} {list(array.shape)}, expected a list of integers"
        )
    return array


def check_known(name: str, lists: Ragged, rows: Int64s, where: str) -> Ragged:
    """The lists with `rows` in the place of theirs; raises where one of these is -1.

    `where` says what is known.
    """
    unknown = rows < 0
    if unknown.any():
        place = int(unknown.argmax())
        raise ValueError(
            f"{name}: found {lists.rows[place]} for query {int(lists.owners()[place])}, expected "
            f"{where}"
        )
    return Ragged(lists.offsets, rows)


def read_groups(ids: Any, documents: int) -> Int64s | None:
    """Equal numbers, from 0 on, for equal ids; None where all ids differ, or there are none."""
    if ids is None:
        return None
    array = _tensors.as_array(ids, "ids")
    if array.dtype.kind not in "iu" or array.shape != (documents,):
        raise ValueError(
            f"ids: found {array.dtype} {list(array.shape)}, expected integers [{documents}], one "
            "for each document; numpy.unique(texts, return_inverse=True)[1] numbers any values"
        )
    names, groups = np.unique(array, return_inverse=True)
    return None if len(names) == documents else groups.astype(np.int64)


class Scored(NamedTuple):
    """Candidates that bring their scores: [N, C], best first, -inf and -1 for none."""

    scores: npt.NDArray[np.float32]
    rows: Int64s


def read_scored(candidates: tuple[Any, ...], queries: int) -> Scored:
    """Candidates (scores, rows), as `simtile.topk` returns, in order."""
    if len(candidates) != 2:
        raise ValueError(f"candidates: found a tuple of {len(candidates)}, expected (scores, rows)")
    scores, rows = (_tensors.as_array(x, "candidates") for x in candidates)
    if rows.dtype.kind not in "iu" or scores.dtype.kind not in "fiu":
        raise TypeError(
            f"candidates: found scores {scores.dtype} and rows {rows.dtype}, expected floats and "
            "integers"
        )
    if rows.ndim != 2 or rows.shape != scores.shape or len(rows) != queries:
        raise ValueError(
            f"candidates: found scores {list(scores.shape)} and rows {list(rows.shape)}, expected "
            f"both [{queries}, C]"
        )
    values, numbers = scores.astype(np.float32), rows.astype(np.int64)
    numbers[np.isnan(values)] = -1
    values[numbers == -1] = -np.inf
    order = np.lexsort((numbers, -values, numbers == -1), axis=1)
    return Scored(
        np.take_along_axis(values, order, axis=1), np.take_along_axis(numbers, order, axis=1)
    )


def call_filter(filter: Callable[[int, Int64s], Any], query: int, documents: Int64s) -> Array:
    """What the caller's function says of some documents: bool or float32 [C]."""
    answer = _tensors.as_array(filter(query, documents), "filter")
    shape = list(answer.shape)
    if answer.dtype.kind not in "bf" or answer.shape != documents.shape:
        raise ValueError(
            f"filter: found {answer.dtype} {shape} for query {query}, expected [{len(documents)}] "
            "of bools, which candidates to keep, or of floats, their scores"
        )
    if answer.dtype == np.bool_:
        return answer
    if np.isnan(answer).any():
        raise ValueError(f"filter: found NaN among the scores for query {query}, expected numbers")
    return answer.astype(np.float32)
