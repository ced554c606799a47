"""What decides whether executed PTX counts: the requirements, and that nothing is waved through."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import triton_launches

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def counts() -> Iterator[ModuleType]:
    added = [str(ROOT / "bench"), str(ROOT / "tools")]
    sys.path[:0] = added
    yield importlib.import_module("ptx_counts")
    for path in added:
        sys.path.remove(path)


def a_run(counts: ModuleType, **changes: Any) -> Any:
    counters = {
        "global_load_bytes": 900,
        "global_load_sectors": 30,
        "global_store_bytes": 100,
        "global_store_sectors": 4,
        "mma_flops": 4096,
    }
    given = {
        "name": "one",
        "kernel": "scores",
        "arch": 80,
        "sizes": {"N": 1},
        "order": 0,
        "ok": True,
        "error": 0.0,
        "counters": {**counters, **changes.pop("counters", {})},
        "expected_global_bytes": 1000,
        "expected_flops": 4096,
    }
    return counts.Run(**{**given, **changes})


def test_requirements(counts: ModuleType) -> None:
    assert a_run(counts).broken() == []
    for changes, message in (
        ({"ok": False, "error": 0.5}, "differs from the oracle's by 0.5"),
        ({"expected_global_bytes": 800}, "1.250 times the formula's bytes"),
        ({"counters": {"global_load_bytes": 600}}, "load efficiency 62%"),
        ({"counters": {"mma_flops": 8192}}, "2.000 times the algorithm's matrix operations"),
        ({"expected_flops": 0}, "inf times the algorithm's matrix operations"),
    ):
        (broken,) = a_run(counts, **changes).broken()
        assert message in broken
        # Where a size is too small for counts the result counts all the same.
        is_wrong = not changes.get("ok", True)
        assert bool(a_run(counts, requirements=False, **changes).broken()) == is_wrong


def test_what_the_interpreter_refuses_is_a_failure(counts: ModuleType) -> None:
    def runs(some: list[Any]) -> Iterator[Any]:
        yield from some
        raise RuntimeError("shared-memory race")

    for some, where in (
        ([], "stopped:\n"),
        ([a_run(counts)], "stopped after 'one', sm_80, order 0:\n"),
    ):
        done, (failure,) = counts.collect(runs(some))
        assert done == some
        assert failure.startswith(where)
        assert "shared-memory race" in failure


def test_several_orders_on_both_architectures(counts: ModuleType) -> None:
    runs = [a_run(counts, arch=arch, order=order) for arch in (80, 120) for order in (0, 1, 7)]
    assert counts.incomplete(runs) == []
    assert counts.incomplete([]) == ["nothing was run"]
    assert counts.incomplete(runs[1:]) == ["sm_80: orders [1, 7], at least 3 asked"]
    small = [*runs[:3], *(a_run(counts, arch=120, order=n, requirements=False) for n in (0, 1, 7))]
    assert counts.incomplete(small) == ["sm_120: no run is held to the requirements"]


@pytest.mark.parametrize("name", ["info_nce_contrast", "pairwise_triton", "siglip_triton"])
def test_an_interpreter_that_computes_nothing_is_found_out(
    counts: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"ptx.{name}")
    monkeypatch.setattr(module, "CALLS", module.CALLS[-1:])
    monkeypatch.setattr(triton_launches.Launch, "compile", lambda launch, arch: launch)
    interp = SimpleNamespace(
        launch_triton=lambda *_: 0,
        stats=lambda: a_run(counts).counters,
        aligned=lambda shape, dtype, fill: np.array(fill),
    )
    done, failures = counts.collect(module.runs(interp))
    assert failures
    assert not any(run.ok for run in done)
    assert all(run.expected_global_bytes > 0 for run in done)


def test_stored_results_are_complete_and_without_failures(counts: ModuleType) -> None:
    gpu_status = importlib.import_module("gpu_status")
    render_readme = importlib.import_module("render_readme")
    assert set(counts.kernels()) <= {*gpu_status.PTX.values(), "info_nce_contrast"}
    assert set(render_readme.PTX_KERNELS) == set(counts.kernels())
    readmes = "".join(path.read_text() for path in ROOT.glob("kernels/*/README.md"))
    for name in counts.kernels():
        stored = json.loads((counts.RESULTS / f"{name}.json").read_text())
        assert stored["complete"]
        assert stored["failures"] == []
        assert {run["arch"] for run in stored["runs"]} == set(counts.ARCHES)
        assert f"<!-- bench:begin ptx_{name} -->" in readmes
