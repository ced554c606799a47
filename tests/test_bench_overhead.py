"""bench/overhead.py: that no public function is left out, that wrong results are not timed."""

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

import simtile

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("rich")
pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield
    simtile.set_num_threads(None)


@pytest.fixture
def overhead() -> ModuleType:
    return importlib.import_module("overhead")


@pytest.fixture
def calls() -> ModuleType:
    return importlib.import_module("overhead_calls")


def test_every_public_function_is_timed(calls: ModuleType) -> None:
    assert calls.public_functions() == calls.functions(1).keys()


def test_a_public_function_that_is_added_must_be_timed(
    overhead: ModuleType, calls: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simtile, "added", lambda: None, raising=False)
    monkeypatch.setattr(simtile, "__all__", [*simtile.__all__, "added"])
    assert calls.public_functions() - calls.functions(1).keys() == {"added"}
    with pytest.raises(overhead.GateFailed, match="without a call here: added"):
        overhead.functions(overhead.Run(1, True))


def test_arrays_and_tensors_give_the_same(overhead: ModuleType, calls: ModuleType) -> None:
    table = {**calls.functions(1), **calls.objects(1)}
    for name, variants in table.items():
        overhead.check(name, variants)
    # what is compared is there; of these nothing is returned that could be
    without = {name for name, v in table.items() if not calls.numbers(next(iter(v.values()))())}
    assert without == {"cpu_info", "set_num_threads", "FlatIndex.remove and add"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: [x[0] * 1.001, *x[1:]], "gives something else"),
        (lambda x: [x[0], x[1] * 0, *x[2:]], "a gradient is 0"),
        (lambda x: [x[0], x[1] * np.nan, *x[2:]], "a gradient is 0 or no number"),
    ],
)
def test_a_wrong_result_is_not_timed(
    overhead: ModuleType, calls: ModuleType, change: object, message: str
) -> None:
    variants = dict(calls.functions(1)["siglip_loss"])
    right = variants[calls.BACKWARD]
    variants[calls.BACKWARD] = lambda: change(right())  # type: ignore[operator]
    with pytest.raises(overhead.GateFailed, match=message):
        overhead.check("siglip_loss", variants)


def test_the_slowest_modules_are_found(overhead: ModuleType) -> None:
    report = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       250 |        250 |   fast\n"
        "import time:      9000 |       9250 | slow.module\n"
    )
    assert overhead.slowest(report) == {"slow.module": 0.009, "fast": 0.00025}


def samples(median: float) -> dict[str, object]:
    return {"median": median, "spread": 0.01, "samples": [median]}


def test_the_page_has_a_row_for_each_call(overhead: ModuleType, calls: ModuleType) -> None:
    sizes = {"n": 4, "dim": 8, "threads": 2}
    peers = {"peers": {"x + y": {"NumPy": samples(5e-7)}}}
    both = {calls.NUMPY: samples(2e-5), calls.BACKWARD: samples(2.5e-4)}
    entries = {
        "functions": {**sizes, **peers, "calls": {"pool": both}},
        "objects": {**sizes, **peers, "calls": {"nn.InfoNCE": {calls.BACKWARD: samples(3e-4)}}},
        "imports": {"times": {"simtile": samples(0.1)}, "slowest": {"a.b": 0.009}},
    }
    facts = overhead._common.machine()
    tables = importlib.import_module("overhead_tables")
    text = tables.overhead({"machine": facts, "entries": entries})
    assert "| `pool` | 20.0 µs ± 1.0% |  | 250 µs ± 1.0% |" in text
    assert "| `nn.InfoNCE` |  |  | 300 µs ± 1.0% |" in text
    assert text.count("| `x + y` | 0.50 µs ± 1.0% |  |  |") == 1
    assert "| `import simtile` | 100 ms ± 1.0% |" in text
    assert "`a.b` 9.00 ms" in text


@pytest.mark.deep  # every call, and a process for every import, most of which import torch
def test_a_quick_run_fills_the_page(tmp_path: Path) -> None:
    script = ROOT / "bench" / "overhead.py"
    command = [sys.executable, str(script), "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "overhead.json").read_text())
    assert results["complete"]
    text = importlib.import_module("overhead_tables").overhead(results)
    assert "| `topk` |" in text
    assert "| `nn.InfoNCE` |" in text
    assert "| `x + y` |" in text
    assert "| `import simtile` |" in text
    assert text.count(" µs ± ") > 60
