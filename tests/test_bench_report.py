"""`simtile bench --report`: what it finds in results, what lies under a roof, and the page."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from simtile import cli
from simtile.bench import report
from simtile.bench.groups import groups, without_times
from simtile.bench.roofline import points, roofs

ROOT = Path(__file__).resolve().parent.parent
# without counts, and reports of the doctor: those are of no run of `simtile bench`
STORED = sorted({path.parent for path in (ROOT / "bench" / "results").glob("*cpu/*.json")})
MACHINE = {"cpu": "A <CPU> & more", "cpus": 2, "level": "avx2", "threads": 2, "versions": {}}


def samples(median, spread=0.01, **more):
    return {"median": median, "spread": spread, "samples": [median], **more}


def result(bench, **more):
    return {"bench": bench, "machine": MACHINE, "threads": 2, "quick": False, **more}


TOPK = result(
    "topk",
    failures=["int8: other <scores>"],
    targets=[
        {"what": "times faiss's speed", "measured": 3.0, "relation": "at least", "limit": 2.0}
        | {"unit": "x", "met": True},
        {"what": "missed <one>", "measured": 1.0, "relation": "at least", "limit": 2.0}
        | {"unit": "x", "met": False},
    ],
    entries={
        "float32": {
            "counts": {
                "100": {
                    "kind": "float32",
                    "metric": "dot",
                    "n": 1000,
                    "dim": 50,
                    "queries": 100,
                    "bytes": 200_000,
                    "contenders": {
                        "simtile": samples(1e-3, cores=1.98),
                        "faiss": samples(4e-3),
                        "simtile, int8": samples(5e-4),
                    },
                    "peaks": {"fma_f32": samples(4e10)},
                    "share": {"fma_f32": 0.25},
                    "errors": {"simtile": {"scores": 1e-7, "ids": 2e-7}, "faiss": 3e-7},
                    "memory": {"simtile": 0, "faiss": 2_500_000},
                }
            }
        },
        "large": {"n": 7, "memory": 5, "read_peak": samples(1e10), "times": {"7": samples(2.0)}},
        "memory": {"cases": [{"bytes": 12345}]},
    },
)
PEAK = result(
    "peak",
    peaks={
        "fma_f32": {"1": samples(3e10), "2": samples(4e10)},
        "read": {"1": samples(5e9), "2": samples(1e10)},
    },
)
SCALING = result(
    "scaling",
    entries={
        "maxsim": {
            "base": {"N": 7},
            "unit": "operations",
            "axes": {
                "N": {"work": {"5": 1.0, "9": 2.0}, "times": {"5": samples(1), "9": samples(2)}},
                "threads": {"work": {"1": 1, "2": 1}, "times": {"1": samples(2), "2": samples(1)}},
            },
        }
    },
)
OVERHEAD = result(
    "overhead",
    entries={
        "functions": {
            "n": 4,
            "calls": {"topk": {"simtile, NumPy": samples(2e-5), "simtile, torch": samples(4e-5)}},
            "peers": {"x + y": {"NumPy": samples(1e-6)}},
        },
        "imports": {"times": {"simtile": samples(0.1), "numpy": samples(0.08)}},
    },
)
CACHED = result("cached", times={"loss": samples(1.0)}, share=0.5)


def test_contenders_are_found_with_what_is_known_of_them():
    found = {group.title: group for group in groups(TOPK)}
    assert [group.title for group in groups(TOPK)] == list(found)
    assert list(found) == ["float32, 100 queries", "large"]
    group = found["float32, 100 queries"]
    assert list(group.samples) == ["simtile", "faiss", "simtile, int8"]
    assert group.ours == "simtile"
    assert group.ratio("faiss") == 4
    assert group.ratio("simtile") is None
    assert group.facts["n"] == 1000
    assert group.errors == {"simtile": 2e-7, "faiss": 3e-7}
    assert group.memory == {"simtile": 0, "faiss": 2_500_000}
    assert group.shares == {"fma_f32": 0.25}
    assert list(found["large"].samples) == ["7"]  # the peak is none of them
    assert found["large"].ours is None
    assert found["large"].memory == {}
    assert list(without_times(TOPK)) == ["memory"]
    assert [group.path for group in groups(CACHED)] == [("", "times")]


def test_a_unit_that_multiplies_more_often_has_its_own_share():
    share = {"unit": "matrix_bf16", "products": 6, "of": {"fma_f32": 1.2, "matrix_bf16": 0.1}}
    entry = {"share": share, "contenders": {"simtile": samples(1)}}
    (group,) = groups(result("info_nce", entries={"float32": entry}))
    assert group.shares == {"matrix_bf16": pytest.approx(0.6)}


def test_a_call_under_its_roofs():
    (point,) = points(TOPK)
    under = roofs(PEAK, 2)
    assert point.operations == 2 * 100 * 1000 * 50
    assert point.intensity == pytest.approx(1e7 / 2e5)
    assert point.rate == pytest.approx(1e10)
    assert under.bound(point) == 4e10  # of 50 operations a byte memory would allow 5e11
    assert roofs(PEAK, 1).units == {"fma_f32": 3e10}
    assert roofs(PEAK, 4) is None


@pytest.mark.parametrize(
    ("bench", "entry", "operations", "moved"),
    [
        (
            "info_nce",
            {"n": 10, "dim": 3, "dtype": "bfloat16", "arithmetic": "bf16"},
            6 * 100 * 3,
            4 * 10 * 3 * 2,
        ),
        (
            "topk",
            {"kind": "packed", "metric": "hamming", "n": 10, "dim": 64, "queries": 3, "bytes": 80},
            3 * 80,
            80,
        ),
        (
            "maxsim",
            {"queries": 2, "query_length": 3, "documents": 4, "tokens": 20, "dim": 8},
            2 * 2 * 3 * 20 * 8,
            4 * 20 * 8,
        ),
        ("quantize", {"bytes_read": 400, "bytes_written": 100}, 200, 500),
    ],
)
def test_operations_and_bytes_of_a_benchmark(bench, entry, operations, moved):
    entry = {**entry, "contenders": {"simtile": samples(0.5)}}
    (point,) = points(result(bench, entries={"one": entry}))
    assert (point.operations, point.bytes) == (operations, moved)
    # forced levels have other roofs, and a peer alone is nobody's point
    assert not points(result(bench, entries={"levels": entry}))
    entry["contenders"] = {"faiss": samples(0.5)}
    assert not points(result(bench, entries={"one": entry}))


@pytest.fixture
def folder(tmp_path):
    for stored in (TOPK, PEAK, SCALING, OVERHEAD, CACHED):
        (tmp_path / f"{stored['bench']}.json").write_text(json.dumps(stored))
    return tmp_path


def parsed(path):
    """The page as XML: every element is closed and every character escaped."""
    text = path.read_text(encoding="utf-8")
    # it shows without a network: nothing is named that would be fetched
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "@import" not in text
    return ET.fromstring(text.removeprefix("<!DOCTYPE html>"))


def rows(page):
    return [["".join(cell.itertext()) for cell in row] for row in page.iter("tr")]


def test_the_page_says_what_was_measured(folder, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["bench", "--report", str(folder)]) == 0
    path = folder / "report.html"
    assert str(path) in capsys.readouterr().out
    page = parsed(path)
    text = "".join(page.itertext())
    assert "simtile on A <CPU> & more" in text
    assert "FAILED: int8: other <scores>" in text
    found = rows(page)
    header = ["", "time", "spread", "simtile is"]
    assert [*header, "cores", "memory", "error", "share of a peak"] in found
    share = "25% of fma_f32"
    assert ["simtile", "1 ms", "± 1.0%", "", "1.98", "0.0 MB", "2.0e-07", share] in found
    assert ["faiss", "4 ms", "± 1.0%", "4.00×", "", "2.5 MB", "3.0e-07", ""] in found
    assert ["topk", "missed <one>", "1 x", "at least 2", "NOT met"] in found
    assert "1 of 2 met" in text
    assert ["1 topk: float32, 100 queries", "50", "10 G/s", "40 G/s", "25%"] in found
    assert ["fma_f32", "30.0 G/s ± 1.0%", "40.0 G/s ± 1.0%"] in found
    assert ["a call", "NumPy", "torch"] in found
    assert ["topk", "20 µs ± 1.0%", "40 µs ± 1.0%"] in found
    assert ["x + y", "1 µs ± 1.0%", ""] in found
    assert "12345" in text  # of the entry in which nothing was timed
    # a roofline, lines of one operation, bars of topk and of the imports
    assert len(list(page.iter("{http://www.w3.org/2000/svg}svg"))) == 4


def test_the_same_results_give_the_same_page(folder):
    pytest.importorskip("matplotlib")
    assert report.run(folder) == 0
    first = (folder / "report.html").read_bytes()
    assert report.run(folder) == 0
    assert (folder / "report.html").read_bytes() == first


@pytest.mark.slow  # figures of every stored run
@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.name)
def test_stored_results_are_reported(stored, tmp_path):
    pytest.importorskip("matplotlib")
    files = list(stored.glob("*.json"))
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert report.run(tmp_path) == 0
    headings = {element.text for element in parsed(tmp_path / "report.html").iter("h2")}
    assert headings >= {path.stem for path in files}


def test_a_roofline_needs_the_peaks_of_its_threads(folder):
    pytest.importorskip("matplotlib")
    (folder / "peak.json").unlink()
    report.run(folder)
    assert "simtile bench --only peak" in (folder / "report.html").read_text()
    (folder / "peak.json").write_text(json.dumps(PEAK))
    (folder / "topk.json").write_text(json.dumps({**TOPK, "threads": 16}))
    report.run(folder)
    text = (folder / "report.html").read_text()
    assert "No call here has known operations and the peaks of its threads" in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "found no folder, expected one with stored results"),
        (lambda path: path.mkdir(), "no results of `simtile bench` there"),
    ],
)
def test_nothing_to_report_on(make, message, tmp_path, capsys):
    make(tmp_path / "there")
    assert cli.main(["bench", "--report", str(tmp_path / "there")]) == 1
    assert message in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(folder, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "simtile.bench.charts", raising=False)
    monkeypatch.delattr("simtile.bench.charts", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["bench", "--report", str(folder)]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("others", [["--quick"], ["--only", "topk"], ["--compare", "a", "b"]])
def test_reporting_runs_nothing(others, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--report", "a", *others])
    assert stopped.value.code == 2
    assert "runs nothing, so no other option goes with it" in capsys.readouterr().err
