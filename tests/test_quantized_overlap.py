"""What bench/quantized_overlap.py counts and shows, and what tools/embed_texts.py reads."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from simtile.demo.corpus import load_corpus

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def import_path() -> Iterator[None]:
    added = [str(ROOT / "bench"), str(ROOT / "tools")]
    sys.path[:0] = added
    yield
    for path in added:
        sys.path.remove(path)


@pytest.fixture(scope="module")
def bench(import_path: None) -> ModuleType:
    with warnings.catch_warnings():
        # SWIG's types without __module__, on Python 3.12 and newer
        warnings.filterwarnings("ignore", "builtin type .*[Ss]wig", DeprecationWarning)
        module = importlib.import_module("quantized_overlap")
        importlib.import_module("faiss")
    return module


def test_overlap_counts_what_was_found(bench: ModuleType) -> None:
    exact = np.array([[0, 1], [2, 3]])
    assert bench.overlap(exact, np.array([[1, 0], [9, 8]])) == 0.5
    assert bench.overlap(exact, np.array([[1, 7], [2, 8]])) == 0.5
    assert bench.overlap(exact, exact[:, ::-1]) == 1


def test_measured_and_shown(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = load_corpus()
    monkeypatch.setattr(logging.getLogger(bench.original.__name__), "level", logging.ERROR)
    said: list[str] = []
    entry = bench.measure(corpus.queries[:20], corpus.documents[:300], said.append)
    assert len(said) == 3 * (1 + 1 + 2) + len(bench.OWN_KINDS)
    for precision, row in entry["precisions"].items():
        found = [*row["original"].values(), row["simtile"]]
        # that each finds more than the one before holds on average, for bits not in so few queries
        in_order = sorted(found) if precision != "ubinary" else [min(found), *found[1:]]
        assert found == in_order, precision
        assert 0.4 < found[0] < found[-1] <= 1
    assert entry["precisions"]["int8"]["simtile"] > 0.98
    assert entry["kinds"]["int8"]["overlap"] == entry["precisions"]["int8"]["simtile"]
    assert entry["kinds"]["binary"]["bytes"] == entry["precisions"]["ubinary"]["bytes"] == 48

    versions = dict.fromkeys(("simtile", *bench.PACKAGES), "1.0")
    results = {
        "machine": {"versions": versions, "date": "today", "commit": None},
        "complete": True,
        "entries": {"docstrings": entry},
    }
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "quantized_overlap.json").write_text(json.dumps(results))
    render = importlib.import_module("render_readme").render
    for region in ("quantized_overlap", "quantized_overlap_short"):
        text = render(f"<!-- bench:begin {region} -->\n<!-- bench:end -->\n", tmp_path)
        assert "| overlap@10 with exact search | documents |" in text
        assert "| int8, `semantic_search_usearch` | 300 |" in text
        int8 = entry["precisions"]["int8"]
        assert f"| {int8['original']['×2']:.3f} | " in text
        assert f"| **{int8['simtile']:.3f}** |" in text
        assert ("| `int4` | " in text) == (region == "quantized_overlap")


LISTING = """\
Package: one
Description: A short line
Homepage: https://example.org/

Package: two
Description: Another line
 with more of it.
 .
 A second paragraph.
Section: misc

Package: three
Section: misc

Package: four
Description: A short line
"""


def test_descriptions_of_packages() -> None:
    embed_texts = importlib.import_module("embed_texts")
    assert list(embed_texts.descriptions(LISTING)) == [
        "A short line",
        "Another line with more of it. A second paragraph.",
        "A short line",
    ]
    assert embed_texts.distinct(["A short line", "tiny", "Another line", "A short line"]) == [
        "A short line",
        "Another line",
    ]
