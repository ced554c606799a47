"""Whatever is raised at whatever line of a change: the index is as before it, or as after it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from stress_calls import same

import simtile
from simtile import _storage, _token_storage

PACKAGE = str(Path(simtile.__file__).parent)
DIM = 16
x = np.random.default_rng(0).standard_normal((240, DIM)).astype(np.float32)
x[120:] *= 3  # so that ranges learnt from what comes later would differ


class Planted(BaseException):
    """As KeyboardInterrupt, it can be raised anywhere."""


def raised_at(line, call, index):
    """Change an index with an error at a line, counted by running; whether so many run."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            count += 1
            if count == line:
                raise Planted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(index)
    except Planted:
        return True
    finally:
        sys.settrace(before)
    return False


def documents(index, rows):
    return rows.reshape(-1, 2, DIM) if isinstance(index, simtile.MultiVectorIndex) else rows


def observed(index):
    """Everything that a user sees."""
    if not len(index):
        return (np.asarray(0),)
    queries = documents(index, x[:4])
    every = np.tile(index.ids, (len(queries), 1))
    return (index.ids, *index.search(queries, 7), index.score(queries, every))


MAKE = {
    "FlatIndex int8": lambda: simtile.FlatIndex(DIM, "int8"),
    "CascadeIndex": lambda: simtile.CascadeIndex(DIM, ("binary", "int8", "float32")),
    "MultiVectorIndex int8": lambda: simtile.MultiVectorIndex(DIM, "int8"),
    "MultiVectorIndex residual2": lambda: simtile.MultiVectorIndex(DIM, "residual2", centroids=4),
}


def filled(name, ids=True):
    index = MAKE[name]()
    first = documents(index, x[:120])
    index.add(first, np.arange(len(first))[::-1] * 3 if ids else None)
    return index


def add_first(index):
    first = documents(index, x[:120])
    index.add(first, np.arange(len(first))[::-1] * 3)


def add(index):
    more = documents(index, x[120:])
    index.add(more, np.arange(len(more)) * 3 + 1)


def add_numbered(index):
    index.add(documents(index, x[120:]))


def update(index):
    others = documents(index, x[120:160])
    index.update(others, index.ids[: len(others)])


def remove(index):
    """Most of them: what is left is copied."""
    index.remove(index.ids[5:])


CHANGES = {
    "first add": (lambda name: MAKE[name](), add_first),
    "add": (filled, add),
    "numbered add": (lambda name: filled(name, ids=False), add_numbered),
    "update": (filled, update),
    "remove": (filled, remove),
}


# A codec is learnt with the first documents, in many lines; the rest is as with other codes.
CASES = [
    pytest.param(name, change, marks=pytest.mark.deep if "residual" in name else ())
    for name in MAKE
    for change in CHANGES
    if "residual" not in name or change == "first add"
]


@pytest.mark.parametrize(("name", "change"), CASES)
def test_all_or_nothing_at_every_line(monkeypatch, name, change):
    monkeypatch.setattr(_storage, "COMPACTED_ROWS", 8)
    monkeypatch.setattr(_token_storage, "COMPACTED_TOKENS", 8)
    make, do = CHANGES[change]
    index = make(name)
    before = observed(index)
    do(index)
    after = observed(index)
    line, seen, index = 1, [0, 0], make(name)
    while raised_at(line, do, index):
        found = observed(index)
        is_after = same(found, after)
        assert is_after or same(found, before), f"line {line} left something in between"
        seen[is_after] += 1
        if not is_after:  # and it can be done again
            do(index)
            assert same(observed(index), after), f"line {line}: not the same the second time"
        line, index = line + 1, make(name)
    assert seen[0] > 20


def test_what_is_left_in_between_is_found(monkeypatch):
    """An index that publishes its documents in two steps."""
    whole = _storage.Storage.add

    def halves(self, columns, ids):
        for part in (slice(60), slice(60, None)):
            whole(self, {name: array[part] for name, array in columns.items()}, ids[part])

    monkeypatch.setattr(_storage.Storage, "add", halves)
    line, sizes, index = 1, set(), filled("FlatIndex int8")
    while raised_at(line, add, index):
        sizes.add(len(index))
        line, index = line + 1, filled("FlatIndex int8")
    assert sizes == {120, 180, 240}
