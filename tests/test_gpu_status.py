"""The README's table of what has been done with each GPU kernel, on made-up results."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


@pytest.fixture(scope="module")
def status() -> Iterator[ModuleType]:
    added = [str(ROOT / "bench"), str(ROOT / "tools")]
    sys.path[:0] = added
    yield importlib.import_module("gpu_status")
    for path in added:
        sys.path.remove(path)


def compiled(operation: str, kernel: str, dtype: str, arch: str, **changes: Any) -> dict[str, Any]:
    return {
        "source": "cuda",
        "operation": operation,
        "kernel": kernel,
        "variant": kernel,
        "dtype": dtype,
        "arch": arch,
        "expects": [],
        "instructions": {},
        "spills": {"store_bytes": 0, "load_bytes": 0},
        "shared_static": 0,
        "shared_dynamic": 1024,
        "shared_limit": 99 << 10,
        **changes,
    }


def run(kernel: str, arch: int) -> dict[str, Any]:
    return {"kernel": kernel, "arch": arch}


def doctor(device: str, *checks: tuple[str, str, str]) -> dict[str, Any]:
    named = [{"kernel": k, "backend": b, "status": s} for k, b, s in checks]
    return {"gpu": {"device": device, "checks": named}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two top-k kernels compiled, nothing else done."""
    rows = [
        compiled("topk", "topk_scan", "bits", "sm_80"),
        compiled("topk", "topk_scan", "int8", "sm_120"),
        compiled("topk", "topk_scan", "int8", "sm_90"),
        compiled("topk", "topk_scan", "bits", "sm_90", spills={"store_bytes": 4, "load_bytes": 4}),
        compiled("topk", "topk_merge", "keys", "sm_80"),
    ]
    write(tmp_path / "gpu_report.json", {"cuda": {"compiler": "13", "kernels": rows}})
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def cells(status: ModuleType, results: Path, kernel: str) -> list[str]:
    table = status.markdown(results, results)
    (line,) = (line for line in table.splitlines() if f"`{kernel}`" in line)
    return [cell.strip() for cell in line.strip("|").split("|")][2:]


def test_what_is_not_there_is_no(status: ModuleType, results: Path) -> None:
    compiled_for = "sm_80, sm_120; **not sm_90**"
    assert cells(status, results, "topk_scan") == ["–", "no", compiled_for, "no", "no"]
    assert cells(status, results, "topk_merge") == ["–", "no", "sm_80", "no", "no"]


def test_a_test_file_counts_when_it_exists(status: ModuleType, results: Path) -> None:
    write(results / "tests" / "test_topk.py", "")
    assert cells(status, results, "topk_scan")[1] == "`tests/test_topk.py`"


def test_executed_ptx(status: ModuleType, results: Path) -> None:
    path = results / "ptx" / "topk.json"
    runs = [run("topk_scan<Int8, 4, 8, 4>, topk_merge", 80), run("topk_scan_mma, topk_merge", 120)]
    counts = {"complete": True, "failures": [], "runs": runs}
    write(path, counts)
    assert cells(status, results, "topk_scan")[3] == "sm_80"
    assert cells(status, results, "topk_merge")[3] == "sm_80, sm_120"
    for broken in ({"failures": ["wrong"]}, {"complete": False}, {"runs": []}):
        write(path, {**counts, **broken})
        assert cells(status, results, "topk_scan")[3] == "no"


def test_run_on_a_gpu(status: ModuleType, results: Path) -> None:
    passed, failed = (("topk", "cuda", status) for status in ("passed", "failed"))
    write(results / "doctor" / "a.json", doctor("H100", passed, passed))
    write(results / "doctor" / "b.json", doctor("L4", failed, passed))
    # another operation, another backend, no GPU
    write(results / "doctor" / "c.json", doctor("T4", ("info_nce", "cuda", "passed")))
    write(results / "doctor" / "d.json", doctor("A100", ("topk", "triton", "passed")))
    write(results / "doctor" / "e.json", doctor(""))
    for kernel in ("topk_scan", "topk_merge"):
        assert cells(status, results, kernel)[4] == "H100, **failed on L4**"


def test_what_was_measured(status: ModuleType, results: Path) -> None:
    measured = importlib.import_module("gpu_measured")
    assert "Nothing has been measured" in measured.markdown(results)
    shares = [
        {"of": "memory read", "products": 1, "share": 0.1},
        {"of": "tf32 matmul", "products": 3, "share": 0.25},
        {"of": "tf32 mma.sync", "products": 3, "share": 0.9},  # published, not measured
    ]
    timing = {
        "kernel": "info_nce",
        "backend": "triton",
        "dtype": "float32 (tf32x3)",
        "sizes": "4096 x 4096 x 768",
        "what": "forward + backward",
        "median": 2e-3,
        "spread": 0.01,
        "operations_per_second": 40e12,
        "bytes_per_second": 1e9,
        "shares": shares,
    }
    small = {**timing, "sizes": "64 x 64 x 384"}
    search = {**timing, "kernel": "topk", "what": "search", "sizes": "1 x 9 x 8, k = 1"}
    names = ("torch", "triton", "CUDA module")
    report = {
        "date": "2026-01-01 00:00 UTC",
        "found": [{"name": name, "value": "1.0, more"} for name in names],
        "gpu": {
            "device": "H100, sm_90",
            "checks": [{"status": "passed"}, {"status": "failed"}],
            "peaks": [
                {"name": "memory read", "rate": 3e12, "unit": "bytes/s", "measured": True},
                {"name": "tf32 mma.sync", "rate": 3e14, "unit": "operations/s", "measured": False},
            ],
            "timings": [timing, small, {**search, "shares": shares[2:]}],
        },
    }
    write(results / "doctor" / "a.json", report)
    text = measured.markdown(results)
    assert "1 of the 2 checks on the GPU passed" in text
    step = "2.00 ms ± 1% | 40.0 Top/s | 25% of tf32 matmul at 3 products |"
    assert (
        f"| info_nce (triton), forward + backward | float32 (tf32x3) | 4096 × 4096 × 768 | {step}"
        in text
    )
    assert "| 1 × 9 × 8, k = 1 | 2.00 ms ± 1% | 0.00 TB/s | – |" in text
    assert "64 × 64" not in text
    assert "64 × 64 × 384" in measured.markdown(results, short=False)
    assert "own kernels: memory read 3.00 TB/s." in text


def test_every_kernel_of_the_stored_report_has_a_row(status: ModuleType) -> None:
    report = json.loads((RESULTS / "gpu_report.json").read_text())
    table = status.markdown(RESULTS)
    for half in report.values():
        for row in half["kernels"]:
            assert f"| {row['operation']} `{row['kernel']}` |" in table
    for test in status.TESTS.values():
        assert (ROOT / test).is_file()
        assert f"`{test}`" in table


def test_without_a_report_the_region_is_a_problem(status: ModuleType, tmp_path: Path) -> None:
    render_readme = importlib.import_module("render_readme")
    text = "<!-- bench:begin gpu_status -->\n<!-- bench:end -->\n"
    with pytest.raises(render_readme.Problem, match=r"gpu_report\.json"):
        render_readme.render(text, tmp_path)
    assert "`topk_merge`" in render_readme.render(text, RESULTS)
