"""Measures of a ranking against what is known to be relevant; ir-measures computes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from simtile import _tensors
from simtile.metrics._optional import optional

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# By the field's names, the measures of ir-measures.
MEASURES = {
    "recall": "R",
    "precision": "P",
    "mrr": "RR",
    "map": "AP",
    "ndcg": "nDCG",
    "hit": "Success",
    "accuracy": "Success",
}
DEFAULT = ("recall@10", "mrr@10", "map@10", "ndcg@10")


@overload
def evaluate(
    ids: Any,
    relevant: Any,
    measures: Sequence[str] = DEFAULT,
    *,
    per_query: Literal[False] = False,
) -> dict[str, float]: ...


@overload
def evaluate(
    ids: Any, relevant: Any, measures: Sequence[str] = DEFAULT, *, per_query: Literal[True]
) -> dict[str, Floats]: ...


def evaluate(
    ids: Any, relevant: Any, measures: Sequence[str] = DEFAULT, *, per_query: bool = False
) -> dict[str, float] | dict[str, Floats]:
    """Measures of what a search found, as trec_eval defines them.

    Parameters
    ----------
    ids : int [N, k], array or Tensor
        What was found for each query, best first, as :func:`simtile.topk` and the indexes return
        it. -1 is a place where nothing was found; it keeps its rank.
    relevant : int [N] or [N, R], or a list of N lists, sets or dictionaries
        The relevant documents of each query: one, at most R with -1 for none, any number of equally
        relevant ones, or {id: grade} with grades that are integers from 0. Grade 0 is not relevant.
    measures : sequence of str
        "recall@K", "precision@K", "mrr@K", "map@K", "ndcg@K", and "hit@K" or "accuracy@K", which
        are one measure: whether anything relevant is among the first K. K is at most k.
    per_query : bool
        Return float64 [N] for each measure in place of the mean; NaN for a query without relevant
        documents.

    Returns
    -------
    dict
        The mean of each measure over the queries that have a relevant document.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape or value; an id is twice in a row of ``ids``; no query
        has a relevant document.
    ModuleNotFoundError
        ir-measures is not installed.

    Notes
    -----
    With g the grade of the document at rank i, R the number of relevant documents: nDCG@K divides
    Σ g / log2(i + 1) by its largest possible value; MAP@K divides the sum of the precisions at
    relevant documents by R, as trec_eval's map_cut, where sentence-transformers divides by
    min(K, R); all others count grades of at least 1 as relevant.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> found = np.array([[7, 3, 9], [4, 8, -1]])
    >>> simtile.metrics.evaluate(found, [[3], [5, 4]], ["recall@3", "mrr@3"])
    {'recall@3': 0.75, 'mrr@3': 0.75}
    >>> simtile.metrics.evaluate(found, [{3: 2, 9: 1}, {8: 1}], ["hit@1"], per_query=True)
    {'hit@1': array([0., 0.])}
    """
    found = _check_ids(ids)
    grades = _check_relevant(relevant, len(found))
    wanted = _check_measures(measures, found.shape[1])
    judged = [i for i, of_query in enumerate(grades) if any(of_query.values())]
    if not judged:
        raise ValueError(
            f"relevant: found no relevant document for any of {len(found)} queries, expected one "
            "for at least one query"
        )
    library = optional("ir_measures", "ir-measures", "evaluate")
    by_measure = {
        name: getattr(library, MEASURES[kind]) @ cutoff for name, (kind, cutoff) in wanted.items()
    }
    qrels = {str(i): {str(id): grade for id, grade in grades[i].items()} for i in judged}
    run = {str(i): _run_of(found[i].tolist()) for i in judged}
    values = {str(measure): np.full(len(found), np.nan) for measure in by_measure.values()}
    for one in library.iter_calc(list(set(by_measure.values())), qrels, run):
        values[str(one.measure)][int(one.query_id)] = one.value
    results = {name: values[str(measure)] for name, measure in by_measure.items()}
    if per_query:
        return {name: value.copy() for name, value in results.items()}
    return {name: float(value[judged].mean()) for name, value in results.items()}


def _run_of(row: list[int]) -> dict[str, float]:
    """Scores that fall with the rank; a name that no document has where nothing was found."""
    return {(str(id) if id >= 0 else f"none at {i}"): -float(i) for i, id in enumerate(row)}


def _check_ids(ids: Any) -> Array:
    array = _tensors.as_array(ids)
    if array.dtype.kind not in "iu":
        raise TypeError(f"ids: found {array.dtype} {list(array.shape)}, expected integers [N, k]")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"ids: found shape {list(array.shape)}, expected [N, k] with k at least 1")
    if len(array) == 0:
        raise ValueError(f"ids: found shape {list(array.shape)}, expected at least one query")
    ordered = np.sort(array, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row = int(twice.any(axis=1).argmax())
        id = int(ordered[row, 1:][twice[row]][0])
        raise ValueError(f"ids: found {id} more than once in row {row}, expected it once")
    return array


def _check_relevant(relevant: Any, count: int) -> list[dict[int, int]]:
    """The grade of every judged document, for each query."""
    if isinstance(relevant, np.ndarray) or _tensors.is_tensor(relevant):
        array = _tensors.as_array(relevant)
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or len(array) != count:
            raise ValueError(
                f"relevant: found {array.dtype} {list(array.shape)}, expected integers [{count}] "
                f"or [{count}, R] because ids have {count} rows"
            )
        rows = array.reshape(count, -1).tolist()
        return [{id: 1 for id in row if id >= 0} for row in rows]
    if isinstance(relevant, (str, bytes, Mapping)) or not isinstance(relevant, Sequence):
        raise TypeError(
            f"relevant: found {type(relevant).__name__}, expected an integer array, or a list with "
            "a list, set or dictionary for each query"
        )
    if len(relevant) != count:
        raise ValueError(
            f"relevant: found {len(relevant)} queries, expected {count} because ids have {count} "
            "rows"
        )
    return [_grades(i, of_query) for i, of_query in enumerate(relevant)]


def _grades(i: int, of_query: Any) -> dict[int, int]:
    if isinstance(of_query, Mapping):
        pairs = list(of_query.items())
    elif isinstance(of_query, (int, np.integer)) and not isinstance(of_query, bool):
        pairs = [(of_query, 1)]
    elif isinstance(of_query, Iterable) and not isinstance(of_query, (str, bytes)):
        pairs = [(id, 1) for id in of_query]
    else:
        raise TypeError(
            f"relevant[{i}]: found {type(of_query).__name__}, expected ids or {{id: grade}}"
        )
    for id, grade in pairs:
        if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in (id, grade)):
            raise ValueError(
                f"relevant[{i}]: found id {id!r} with grade {grade!r}, expected integers from 0"
            )
    return {int(id): int(grade) for id, grade in pairs}


def _check_measures(measures: Sequence[str], k: int) -> dict[str, tuple[str, int]]:
    """Name and cutoff by the name as it was given."""
    if isinstance(measures, str):
        measures = [measures]
    wanted: dict[str, tuple[str, int]] = {}
    for name in measures:
        match = re.fullmatch(r"(\w+)@([1-9]\d*)", str(name))
        if match is None or match[1] not in MEASURES:
            known = ", ".join(f"{known}@K" for known in MEASURES)
            raise ValueError(f"measures: found {name!r}, expected {known}, with K from 1")
        if int(match[2]) > k:
            raise ValueError(
                f"measures: found {name!r} for ids [N, {k}], expected a cutoff of at most {k}: "
                "what comes after was not searched for"
            )
        wanted[str(name)] = match[1], int(match[2])
    if not wanted:
        raise ValueError("measures: found none, expected at least one")
    return wanted
