"""No public call crashes, hangs or errs without a word: those that did, and new ones."""

import itertools
import re
from contextlib import suppress

import fuzz_arguments
import fuzz_calls
import numpy as np
import pytest
from fuzz_calls import Function, Wrong, fuzz, make

import simtile


def check(folder, **until):
    failures, said = fuzz(keep=folder, **until)
    assert not failures, "\n".join(failures)
    assert "calls" in said


@pytest.mark.slow  # fewer find nothing
def test_calls(tmp_path):
    check(tmp_path, seconds=60, calls=1200)


@pytest.mark.deep
def test_more_calls(tmp_path):
    check(tmp_path, seconds=15, seed=1)


def test_both_ways_are_taken():
    """Of the calls that are drawn many are refused, many answered, and all functions are made."""
    ended = {}
    for number in range(400):
        line = fuzz_calls.drawn(2, number)
        with suppress(fuzz_calls.Unmade):
            ended.setdefault(make(line), set()).add(line.split("'")[1])
    assert ended["answered"] == set(fuzz_calls.FUNCTIONS)
    assert len(ended["refused"]) > 15


LAYOUTS = ("padded", "odd", "far", "same", "frozen", "turned", "fortran")


@pytest.mark.parametrize("name", sorted(fuzz_calls.FUNCTIONS))
def test_every_layout_of_every_argument(name):
    """In several element types beside the others'; of calls that are right."""
    wrong = []
    for seed in range(14):
        draw = fuzz_arguments.Draw(np.random.default_rng([seed, 7]))
        given = fuzz_calls.FUNCTIONS[name].draw(draw)
        arrays = [key for key, source in given.items() if source.startswith(("f(", "array(["))]
        for key in arrays:
            types = ("float32", "float64") if given[key].startswith("f(") else (None,)
            for layout, dtype in itertools.product(LAYOUTS, types):
                source = re.sub(r"dtype='\w+'", f"dtype={dtype!r}", given[key])
                line = fuzz_calls.written(name, {**given, key: f"{layout}({source})"})
                try:
                    make(line)
                except fuzz_calls.Unmade:
                    continue
                except Exception as error:
                    wrong.append(f"{line}\n    {error}")
    assert not wrong, "\n".join(wrong[:5])


def wrong_result(queries, documents, k):
    scores, ids = simtile.topk(queries, documents, k)
    return scores + (not documents.flags.c_contiguous), ids


def writes(queries, documents, k):
    documents[0, 0] = 0
    return simtile.topk(queries, documents, k)


def no_name(queries, documents, k):
    raise ValueError("wrong")


def strange(queries, documents, k):
    raise KeyError("queries")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (wrong_result, Wrong, "(?s)found .*, expected"),
        (writes, Wrong, "an argument was written to"),
        (no_name, Wrong, "ValueError names no argument: wrong"),
        (strange, KeyError, "queries"),
    ],
)
def test_what_is_wrong_is_found(monkeypatch, function, error, message):
    monkeypatch.setitem(fuzz_calls.FUNCTIONS, "topk", Function(function, None, exact=True))
    with pytest.raises(error, match=message):
        make("call('topk', queries=f(2, 5), documents=padded(f(9, 5, seed=1)), k=3)")


def test_a_refusal_that_changes_an_index_is_found(monkeypatch):
    def half(self, x, ids=None):
        add(self, x[:1], ids[:1])
        raise ValueError("x: found more than one")

    add = simtile.FlatIndex.add
    function = fuzz_calls.FUNCTIONS["FlatIndex.add"]
    made = fuzz_calls.index()
    monkeypatch.setattr(simtile.FlatIndex, "add", half)
    monkeypatch.setattr(fuzz_calls, "index", lambda kind: made)
    with pytest.raises(Wrong, match="what was refused has changed the index"):
        function.call(x=np.ones((2, 7), np.float32), ids=np.array([50, 51]))


def test_calls_that_crash_are_kept(tmp_path, monkeypatch):
    crashing = tmp_path / "sitecustomize.py"
    crashing.write_text(
        "import os, simtile\n"
        "topk = simtile.topk\n"
        "def crash(*arguments, **options):\n"
        "    if type(options.get('k')) is int and options['k'] > 2: os.abort()\n"
        "    return topk(*arguments, **options)\n"
        "crash.__signature__ = __import__('inspect').signature(topk)\n"
        "simtile.topk = crash\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    failures, said = fuzz(60, calls=270, keep=tmp_path)
    assert failures
    (first, *_) = sorted(tmp_path.glob("call-*"))
    assert "k=" in first.read_text()
    assert "-6: call('topk'" in failures[0]
    assert "10 calls" in said  # those after it are made by another process
