"""The benchmark of search: its gates, counts, tables and figure."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
MACHINE = {
    "cpu": "Test CPU",
    "cpus": 2,
    "virtual_machine": False,
    "level": "avx2",
    "system": "Linux",
    "versions": {"simtile": "0", "faiss-cpu": "1"},
    "python": "3.12",
    "date": "today",
    "commit": "0123456789abcdef",
    "modified": False,
}


@pytest.fixture(scope="module", autouse=True)
def import_path() -> Iterator[None]:
    for name in ("rich", "faiss", "numkong", "usearch"):
        pytest.importorskip(name)
    added = [str(ROOT / "bench"), str(ROOT / "tools")]
    sys.path[:0] = added
    yield
    for path in added:
        sys.path.remove(path)


@pytest.fixture
def compare() -> ModuleType:
    pytest.importorskip("torch")
    return importlib.import_module("topk_compare")


@pytest.fixture
def contenders(compare: ModuleType) -> ModuleType:
    return importlib.import_module("topk_contenders")


@pytest.fixture
def topk_tables() -> ModuleType:
    return importlib.import_module("topk_tables")


def corpora(contenders: ModuleType) -> list[Any]:
    floats = contenders.normal(700, 45, 0, 2)
    return [
        contenders.Bits(700, 64, 5, 2),
        contenders.Int8(700, 45, 5, 2),
        contenders.Floats(floats, 5, 2),
        *[
            contenders.OfKind(kind, 300, dim, 5, 2)
            for kind in ("float32", "bfloat16", "int8", "int4", "bits", "packed")
            for dim in (45, 64)
        ],
    ]


def test_everybody_gives_the_same_results(compare: ModuleType, contenders: ModuleType) -> None:
    for corpus in corpora(contenders):
        for count in (1, 5):
            compare.gate(corpus, count, 10)
        for name, call in corpus.calls(5, 10).items():
            result = call()
            if name == contenders.NUMKONG:
                found = np.concatenate([np.asarray(part) for part in result], axis=1)
                assert found.shape == (5, corpus.n)
                if corpus.metric == "hamming":
                    wanted = np.bitwise_xor(corpus.queries[:, None], corpus.rows[None])
                    wanted = np.unpackbits(wanted, axis=2).sum(axis=2)
                    np.testing.assert_array_equal(found, wanted)
            elif name == contenders.USEARCH:
                assert result.keys.shape == (5, 10)
                scores, ids = corpus.simtile(5, 10)
                if corpus.metric == "hamming":
                    np.testing.assert_array_equal(result.distances, scores)
                else:
                    assert (ids == result.keys).mean() > 0.9
            else:
                scores, ids = (np.asarray(array) for array in result)
                assert scores.shape == ids.shape == (5, 10)
                compare.agree(name, *corpus.simtile(5, 10), scores, ids, corpus.tolerance)


def test_drawn_documents_do_not_depend_on_the_threads(contenders: ModuleType) -> None:
    one, two = (contenders.normal(20_000, 3, 1, threads) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert abs(one.mean()) < 0.02


@pytest.mark.parametrize("wrong", ["score", "id", "order", "one", "int8"])
def test_the_gate_stops_wrong_results(
    compare: ModuleType, contenders: ModuleType, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    corpus = contenders.Int8(700, 45, 5, 2)
    name = "int8_query" if wrong == "int8" else "simtile"
    row = -1 if wrong in ("one", "int8") else 0
    search = getattr(corpus, name)

    def changed(count: int, k: int) -> Any:
        scores, ids = (array.copy() for array in search(count, k))
        if wrong in ("score", "one", "int8"):
            scores[row, 3] = np.nextafter(scores[row, 3], np.float32(np.inf))
        elif wrong == "id":
            ids[row, 3] = (ids[row].max() + 1) % corpus.n
        else:
            scores[row, :2], ids[row, :2] = scores[row, 1::-1], ids[row, 1::-1]
        return scores, ids

    monkeypatch.setattr(corpus, name, changed)
    with pytest.raises(compare.GateFailed):
        compare.gate(corpus, 5, 10)


def test_peers_may_differ_by_rounding_only(compare: ModuleType) -> None:
    scores = np.array([[4.0, 3.0, 2.0]], np.float32)
    ids = np.array([[7, 8, 9]])
    compare.agree("x", scores, ids, scores + np.float32(1e-5), ids, 1e-4)
    compare.agree("x", scores, ids, scores, np.array([[7, 8, 5]]), 1e-4)  # a tie at the end
    with pytest.raises(compare.GateFailed, match=r"a score is 0\.5 off"):
        compare.agree("x", scores, ids, scores + np.float32(0.5), ids, 1e-4)
    with pytest.raises(compare.GateFailed, match="query 0 finds other documents"):
        compare.agree("x", scores, ids, scores, np.array([[5, 8, 9]]), 1e-4)


def test_shares_count_bytes_and_operations(compare: ModuleType, contenders: ModuleType) -> None:
    common = importlib.import_module("_common")
    corpus = contenders.OfKind("int8", 300, 45, 5, 1)
    peaks = {"read": common.Samples([1e9]), "dot_int8": common.Samples([1e10])}
    found = compare.shares(corpus, 5, 1e-3, peaks, refuse=True)
    assert found["read"] == pytest.approx(300 * 45 / 1e-3 / 1e9)
    assert found["dot_int8"] == pytest.approx(2 * 5 * 300 * 45 / 1e-3 / 1e10)
    with pytest.raises(common.ShareAbovePeak):
        compare.shares(corpus, 5, 1e-6, peaks, refuse=True)
    with pytest.raises(common.ShareAbovePeak):
        compare.shares(corpus, 1, 1e-6, peaks, refuse=True)
    bits = contenders.OfKind("packed", 300, 45, 5, 1)
    assert compare.operations(bits, 5) == 5 * 300 * 6


@pytest.mark.parametrize("level", ["avx512_amx", "avx512_bf16"])
def test_the_fma_peak_bounds_no_floats_that_are_multiplied_as_integers(
    compare: ModuleType,
    contenders: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    level: str,
) -> None:
    common = importlib.import_module("_common")
    monkeypatch.setattr(compare.simtile, "cpu_info", lambda: {"level": level})
    coded = level == "avx512_bf16"
    corpus = contenders.OfKind("float32", 300, 45, 48, 1)
    peaks = {"fma_f32": common.Samples([1e9]), "dot_int8": common.Samples([4e9])}
    if not coded:
        del peaks["dot_int8"]
    operations = 2 * 48 * 300 * 45
    above = (2e9, 5e9) if coded else (0.5e9, 2e9)
    compare.shares(corpus, 48, operations / above[0], peaks, refuse=True)
    with pytest.raises(common.ShareAbovePeak):
        compare.shares(corpus, 48, operations / above[1], peaks, refuse=True)
    with pytest.raises(common.ShareAbovePeak):  # of few queries it does
        compare.shares(corpus, 47, 2 * 47 * 300 * 45 / 5e9, peaks, refuse=True)


def made_up_results() -> dict[str, Any]:
    """A complete run in which simtile takes 10 ms and the others 25."""

    def samples(median: float) -> dict[str, Any]:
        return {"median": median, "spread": 0.02, "samples": [median], "cores": 1.9}

    def speed(kind: str, peer: str) -> dict[str, Any]:
        one = {
            "kind": kind,
            "metric": "dot",
            "n": 500_000,
            "dim": 768,
            "queries": 1,
            "k": 10,
            "threads": 2,
            "contenders": {"simtile": samples(0.01), "faiss": samples(0.025), peer: samples(0.05)},
            "share": {"read": 0.9, "read_again": 0.85},
        }
        return {"counts": {"1": one, "100": {**one, "queries": 100}}}

    pair = {
        f"{name}, k = {k}": samples(0.01 * k) for name in ("simtile", "faiss") for k in (10, 1000)
    }
    stages = {"cascade": samples(0.013), "first stage, k = 400": samples(0.01)}
    odd = {"times": {"515": samples(0.01), "512": samples(0.009)}, "ratio": 0.9}
    case = {"kind": "packed", "n": 1000, "dim": 64, "queries": 1, "k": 10, "bytes": 2e6}
    target = {"relation": "at least", "unit": "x", "met": True}
    return {
        "machine": MACHINE,
        "quick": False,
        "complete": True,
        "failures": [],
        "threads": 2,
        "entries": {
            "binary": speed("packed", "NumKong"),
            "int8": speed("int8", "NumKong"),
            "float32": speed("float32", "torch"),
            "large_k": {"n": 1000, "dim": 64, "counts": {"1": pair}},
            "cascade": {
                "n": 1000,
                "dim": 768,
                "k": 10,
                "stages": ["binary", "int8"],
                "oversample": [40.0],
                "handed_on": 400,
                "bytes": 900.0,
                "counts": {"1": stages},
            },
            "odd": {"n": 333, "dims": [515, 512], "k": 10, "kinds": {"bits": {"1": odd}}},
            "memory": {"each": 64, "fixed": 8e6, "cases": [case]},
        },
        "targets": [{"what": "times faiss's speed", "measured": 2.5, "limit": 1.3, **target}],
    }


def made_up_quality() -> dict[str, Any]:
    overlaps = {str(value): 0.9 + value / 1000 for value in (4, 10, 20, 40, 80)}
    cascade = {
        "stages": ["binary", "int8"],
        "default": [40.0],
        "bytes": 436.0,
        "overlap": overlaps,
        "most": 0.995,
    }
    entry = {
        "documents": 60_000,
        "queries": 2_000,
        "dim": 384,
        "k": 10,
        "wanted": 0.98,
        "single": [{"dtype": "int8", "metric": "cosine", "bytes": 388.0, "overlap": 0.9951}],
        "cascades": [cascade],
    }
    entries = {"few": {**entry, "documents": 10_000}, "all": entry}
    return {"machine": MACHINE, "complete": True, "quick": False, "entries": entries}


def test_every_entry_has_a_table(
    compare: ModuleType, topk_tables: ModuleType, tmp_path: Path
) -> None:
    topk = importlib.import_module("topk")
    render_readme = importlib.import_module("render_readme")
    results = made_up_results()
    assert set(results["entries"]) == set(topk.ENTRIES) == set(topk_tables.ENTRIES)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "topk.json").write_text(json.dumps(results))
    (tmp_path / "one" / "cascade_quality.json").write_text(json.dumps(made_up_quality()))

    def render(name: str) -> str:
        text = f"<!-- bench:begin {name} -->\n<!-- bench:end -->\n"
        return str(render_readme.render(text, tmp_path))

    whole = render("topk")
    assert "| faiss | 25.0 ms ± 2.0% | 2.50× | 25.0 ms ± 2.0% | 2.50× |" in whole
    assert "1 query: 90% of memory read, 85% of read of as many bytes again and again" in whole
    assert "| simtile, 1 query | 100 ms ± 2.0% | 10.0 s ± 2.0% | 100.00 |" in whole
    assert "| first stage, k = 400, 1 query | 10.0 ms ± 2.0% | 1.30 |" in whole
    assert "| bits, float query | 10.0 ms | 9.00 ms | 0.90 |" in whole
    assert "| bits, Hamming, 1,000 × 64 | 1 | 10 | 2.0 MB | 0 MB |" in whole
    assert "| **10.0 ms** | 25.0 ms (2.50×) | 50.0 ms (5.00×) |" in render("topk_short")
    assert "| times faiss's speed | 2.50 | at least 1.30 | met |" in whole
    quality = render("cascade_quality")
    assert "| ×40: **0.940** | ×80 | 0.995 |" in quality
    assert quality.index("60,000 real texts") < quality.index("10,000 real texts")
    assert "| binary → int8, ×40 | 436 | 0.940 |" in render("cascade_quality_short")


def test_the_figure_is_drawn(compare: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = importlib.import_module("plots.topk")
    path = figure.draw(made_up_results(), tmp_path / "topk.png")
    assert path.stat().st_size > 10_000


@pytest.mark.deep  # everybody's libraries, and a process for every case of memory
def test_a_quick_run_stores_what_the_tables_need(
    compare: ModuleType, topk_tables: ModuleType, tmp_path: Path
) -> None:
    only = ("binary", "cascade", "memory")
    arguments = [argument for name in only for argument in ("--only", name)]
    command = [sys.executable, str(ROOT / "bench" / "topk.py"), "--quick", *arguments]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "topk.json").read_text())
    assert results["complete"] is False
    assert results["failures"] == []
    assert set(results["entries"]) == set(only)
    assert {"faiss-cpu", "numkong", "usearch"} <= set(results["machine"]["versions"])
    one = results["entries"]["binary"]["counts"]["1"]
    assert set(one["contenders"]) == {"simtile", "faiss", "NumKong", "usearch"}
    # A matrix of scores of 100 queries and 20,000 documents would be 8 MB.
    for case in results["entries"]["memory"]["cases"]:
        assert case["bytes"] < 8e6, case
    assert "**simtile**" in topk_tables.topk(results)


@pytest.mark.slow  # indexes of all forms
def test_quality_of_made_up_texts(compare: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "texts.npy"
    texts = np.random.default_rng(0).standard_normal((1200, 384)).astype(np.float32)
    np.save(path, texts)
    script = ROOT / "bench" / "cascade_quality.py"
    command = [sys.executable, str(script), "--quick", "--texts", str(path)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "cascade_quality.json").read_text())
    assert results["complete"] is False
    entry = results["entries"]["a sixth"]
    single = {(value["dtype"], value["metric"]): value for value in entry["single"]}
    assert single["float32", "cosine"]["overlap"] == 1
    assert 0.3 < single["binary", "hamming"]["overlap"] < single["int8", "cosine"]["overlap"]
    for cascade in entry["cascades"]:
        values = list(cascade["overlap"].values())
        assert values == sorted(values) or cascade["stages"][-1] == "int8"
        assert values[-1] == pytest.approx(cascade["most"], abs=0.002)
