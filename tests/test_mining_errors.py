"""Every wrong argument of mining is named, with what was found and what was expected."""

import numpy as np
import pytest

import simtile
from simtile import _mining_inputs

QUERIES = np.eye(3, 4, dtype=np.float32)
DOCUMENTS = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)


def index(metric="cosine", dtype="float32"):
    made = simtile.FlatIndex(4 if dtype == "float32" else 32, dtype, metric=metric)
    if dtype == "float32":
        made.add(DOCUMENTS, 100 + np.arange(10))
    return made


def half(query, rows):
    return np.ones(len(rows), bool) if query else np.ones(len(rows), np.float32)


WRONG = {
    "k": [
        ({"k": 0}, ValueError, "k: found 0, expected at least 1"),
        ({"k": 1.5}, TypeError, "k: found 1.5, expected an int"),
        ({"k": True}, TypeError, "k: found True, expected an int"),
        ({"k": 5, "range_max": 6, "range_min": 2}, ValueError, "k: found 5, expected at most 4"),
    ],
    "range": [
        ({"range_min": -1}, ValueError, "range_min: found -1, expected at least 0"),
        ({"range_min": 4, "range_max": 4}, ValueError, "range_min: found 4, expected less than"),
        ({"range_max": 0}, ValueError, "range_max: found 0, expected at least 1"),
        ({"range_max": "9"}, TypeError, "range_max: found '9', expected an int"),
    ],
    "limits": [
        ({"max_score": "1"}, TypeError, "max_score: found '1', expected a number or None"),
        ({"min_score": float("nan")}, ValueError, "min_score: found nan, expected a number"),
        ({"absolute_margin": True}, TypeError, "absolute_margin: found True, expected a number"),
        ({"relative_margin": "x"}, TypeError, "relative_margin: found 'x', expected a number"),
        (
            {"absolute_margin": 0.1, "positives": [[1], [], [2]]},
            ValueError,
            "absolute_margin: found no positive of query 1, expected at least one",
        ),
        (
            {"relative_margin": 0.1, "positives": None},
            ValueError,
            "relative_margin: found no positive of query 0, expected at least one",
        ),
    ],
    "choices": [
        ({"sampling": "best"}, ValueError, "sampling: found 'best', expected one of 'top'"),
        ({"nan": "skip"}, ValueError, "nan: found 'skip', expected one of 'raise'"),
        ({"metric": "hamming"}, ValueError, "metric: found 'hamming', expected one of 'cosine'"),
        ({"seed": "x"}, TypeError, "seed: found 'x', expected an int"),
        ({"threads": 0}, ValueError, "threads: found 0, expected 1 to"),
        ({"block_size": 0}, ValueError, "block_size: found 0, expected at least 1"),
        ({"block_size": 1.0}, TypeError, "block_size: found 1.0, expected an int or None"),
        ({"progress": 1}, TypeError, "progress: found 1, expected True, or a function"),
    ],
    "positives": [
        ({"positives": [0, 1]}, ValueError, "positives: found 2, expected 3"),
        ({"positives": "abc"}, TypeError, "positives: found str, expected integers"),
        ({"positives": 3}, TypeError, "positives: found int, expected integers"),
        ({"positives": [0, 1, 10]}, ValueError, "positives: found 10 for query 2, expected 0 to 9"),
        ({"positives": [[0], [1, -1], [2]]}, ValueError, "positives: found -1 for query 1"),
        ({"positives": [0, -1, 2]}, ValueError, "positives: found -1 for query 1, expected a doc"),
        ({"positives": np.ones(3)}, TypeError, "positives: found float64 .3., expected integers"),
        ({"positives": [0.5, 1, 2]}, TypeError, r"positives\[0\]: found float64"),
        ({"positives": np.ones(3, bool)}, TypeError, "positives: found bool .3., expected int"),
        ({"positives": np.ones((2, 3), int)}, ValueError, "positives: found int64 .2, 3., expect"),
        ({"positives": [[0], ["a"], [1]]}, TypeError, r"positives\[1\]: found <U1 .1., expected"),
        ({"positives": ([0], [1], [2])}, ValueError, "positives: found a tuple of 3, expected"),
        ({"positives": ([0, 1, 2], [1, 2])}, ValueError, "positives: found 3 offsets and 2 rows"),
        ({"positives": ([0, 2, 1, 2], [1, 2])}, ValueError, "positives: found 4 offsets and 2"),
    ],
    "ids": [
        ({"ids": np.arange(9)}, ValueError, "ids: found int64 .9., expected integers .10."),
        ({"ids": ["a"] * 10}, ValueError, "ids: found <U1 .10., expected integers"),
        ({"allow": [0, 99]}, ValueError, "allow: found the unknown id 99"),
        ({"allow": np.ones((2, 10), bool)}, ValueError, "allow: found a mask .2, 10."),
    ],
    "candidates": [
        ({"candidates": [[0], [11], [2]]}, ValueError, "candidates: found 11 for query 1"),
        ({"candidates": [[0], [1]]}, ValueError, "candidates: found 2, expected 3"),
        (
            {"candidates": (np.ones((3, 2)), np.ones((3, 3), int))},
            ValueError,
            "candidates: found scores .3, 2. and rows .3, 3., expected",
        ),
        (
            {"candidates": (np.ones((3, 2)), np.ones((3, 2)))},
            TypeError,
            "candidates: found scores float64 and rows float64",
        ),
        (
            {"candidates": (np.ones((3, 2)), np.full((3, 2), 10))},
            ValueError,
            "candidates: found 10 for query 0, expected 0 to 9",
        ),
        (
            {"candidates": (np.ones((3, 2)), np.ones((3, 2)), 1)},
            ValueError,
            "candidates: found a tuple of 3, expected .scores, rows.",
        ),
        (
            {"candidates": (np.ones((3, 2)), np.ones((3, 2), int)), "absolute_margin": 0.1},
            ValueError,
            "absolute_margin: found it with candidates that bring their scores",
        ),
        (
            {"candidates": (np.ones((3, 2)), np.ones((3, 2), int)), "documents": 7},
            TypeError,
            "documents: found int, expected something that has a length",
        ),
        (
            {"candidates": (np.ones((3, 2)), np.ones((3, 2), int)), "documents": index()},
            TypeError,
            "candidates: found scores with a FlatIndex",
        ),
    ],
    "filter": [
        ({"filter": 3}, TypeError, "filter: found int, expected a function"),
        ({"filter": lambda q, r: r}, ValueError, "filter: found int64 .9. for query 0, expected"),
        ({"filter": lambda q, r: True}, ValueError, r"filter: found bool .. for query 0"),
        ({"filter": lambda q, r: r * np.nan}, ValueError, "filter: found NaN among the scores"),
        ({"filter": half}, TypeError, "filter: found bool for query 1 and the other"),
    ],
    "vectors": [
        ({"queries": QUERIES[0]}, ValueError, "queries: found float32 .4., expected .N, D."),
        ({"queries": QUERIES[:, :3]}, ValueError, "queries: found float32 .3, 3., expected"),
        ({"queries": QUERIES.astype(int)}, ValueError, "queries: found int64"),
        ({"documents": DOCUMENTS[0]}, ValueError, "documents: found float32 .4., expected"),
        ({"documents": index("l2"), "metric": "dot"}, ValueError, "metric: found 'dot', expected"),
        (
            {"documents": index("hamming", "binary")},
            ValueError,
            "documents: found an index with metric 'hamming'",
        ),
        (
            {"documents": simtile.CascadeIndex(4, ("binary", "float32"))},
            TypeError,
            "documents: found a CascadeIndex, expected arrays",
        ),
        ({"documents": index()}, ValueError, "positives: found 0 for query 0, expected an id"),
    ],
}


@pytest.mark.parametrize("group", WRONG)
def test_wrong_arguments(group):
    for wrong, error, message in WRONG[group]:
        arguments = {
            "queries": QUERIES,
            "documents": DOCUMENTS,
            "positives": [0, 1, 2],
            "k": 2,
            **wrong,
        }
        with pytest.raises(error, match=message):
            simtile.mine_hard_negatives(**arguments)


def test_rich_is_named_where_it_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ModuleNotFoundError, match="progress: True shows a bar with rich"):
        simtile.mine_hard_negatives(QUERIES, DOCUMENTS, [0, 1, 2], k=2, progress=True)


def test_equal_ids_are_numbered_only_where_there_are_some():
    assert _mining_inputs.read_groups(np.array([5, 3, 9]), 3) is None
    assert _mining_inputs.read_groups(np.array([5, 3, 5]), 3).tolist() == [1, 0, 1]
