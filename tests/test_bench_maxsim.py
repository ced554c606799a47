"""The benchmark of late interaction: its gate, contenders and tables."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def import_path() -> Iterator[None]:
    for name in ("rich", "maxsim_cpu", "numkong", "torch", "sentence_transformers"):
        pytest.importorskip(name)
    added = [str(ROOT / "bench"), str(ROOT / "tools")]
    sys.path[:0] = added
    yield
    for path in added:
        sys.path.remove(path)


@pytest.fixture
def bench() -> ModuleType:
    return importlib.import_module("maxsim")


@pytest.fixture
def contenders() -> ModuleType:
    return importlib.import_module("maxsim_contenders")


def scenes(contenders: ModuleType):
    return [
        contenders.Scene(1, 7, np.full(9, 5), 33, 2),
        contenders.Scene(3, 4, np.array([1, 9, 4, 2, 7]), 16, 2),
    ]


def test_everybody_scores_the_same(bench: ModuleType, contenders: ModuleType) -> None:
    everybody = (
        contenders.SIMTILE,
        contenders.MAXSIM_CPU,
        contenders.NUMKONG,
        contenders.EINSUM,
        contenders.SENTENCE_TRANSFORMERS,
    )
    for scene in scenes(contenders):
        exact = scene.oracle()
        for name, call in scene.calls(everybody).items():
            bench.gate(name, scene, call(), exact, bench.LOOSE.get(name, bench.TOLERANCE))


def test_the_gate_stops_a_wrong_score(bench: ModuleType, contenders: ModuleType) -> None:
    common = importlib.import_module("_common")
    scene = scenes(contenders)[1]
    exact = scene.oracle()
    for wrong in (1e-3, np.nan):
        scores = exact.copy()
        scores[2, 4] += wrong
        with pytest.raises(common.GateFailed, match="off the definition"):
            bench.gate("x", scene, scores, exact)


def test_products_count_tokens_that_are_there(contenders: ModuleType) -> None:
    scene = scenes(contenders)[1]
    assert scene.products == 3 * 4 * 23 * 16
    batch, mask = scene.padded()
    assert batch.shape == (5, 9, 16)
    np.testing.assert_array_equal(batch[mask], scene.tokens)


@pytest.mark.deep  # every entry, with NumPy's float64 for the gate
def test_a_quick_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/maxsim.py"), "--quick", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "maxsim.json").read_text())
    assert results["failures"] == []
    bench = importlib.import_module("maxsim")
    assert list(results["entries"]) == list(bench.ENTRIES)
    tables = importlib.import_module("maxsim_tables")
    assert tables.maxsim(results).count("\n\n") > len(bench.ENTRIES)
    assert "**" in tables.short(results)
