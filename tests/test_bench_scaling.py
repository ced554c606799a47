"""bench/scaling.py: which sizes it takes, that it times nothing that is wrong, what it shows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import simtile

ROOT = Path(__file__).resolve().parent.parent

for package in ("rich", "torch", "matplotlib"):
    pytest.importorskip(package)


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    common = importlib.import_module("_common")
    # here nobody looks at the times
    monkeypatch.setattr(common, "SHORTEST_SAMPLE", 0.0)
    monkeypatch.setattr(common.gc, "collect", lambda: 0)
    return importlib.import_module("scaling")


def first_changed(result: Any) -> Any:
    first, *rest = result
    return [first + 1, *rest]


def doubled(result: Any) -> Any:
    return result * 2


def one_code_changed(result: Any) -> Any:
    codes = np.array(result.codes)
    codes[0, 0] += 1
    return simtile.Quantized(codes, result.scale, result.offset, result.dim, result.kind)


def test_sizes_are_off_the_round_numbers(scaling: ModuleType) -> None:
    assert scaling.thread_counts(1) == (1,)
    assert scaling.thread_counts(6) == (1, 2, 4, 6)
    for operation in scaling.OPERATIONS.values():
        assert operation.axes.keys() <= operation.base.keys()
        for axis, values in operation.axes.items():
            assert operation.base[axis] in values
            large = [value for value in values if value > 16]
            assert all(value % 16 for value in large), axis


@pytest.mark.parametrize(
    ("name", "function", "change"),
    [
        ("info_nce_grad", "info_nce_grad", first_changed),
        ("maxsim", "maxsim_packed", doubled),
        ("topk_float32", "topk", first_changed),
        ("topk_int8", "topk", first_changed),
        ("topk_bits", "topk", first_changed),
        ("pool", "pool", doubled),
        ("quantize", "quantize", one_code_changed),
    ],
)
def test_growth_of_a_wrong_result_is_not_measured(
    scaling: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    function: str,
    change: Callable[[Any], Any],
) -> None:
    right = getattr(simtile, function)
    monkeypatch.setattr(simtile, function, lambda *a, **options: change(right(*a, **options)))
    with pytest.raises(importlib.import_module("_common").GateFailed):
        scaling.ENTRIES[name](scaling.Run(1, True))


def test_growth_is_measured_tabled_and_drawn(scaling: ModuleType, tmp_path: Path) -> None:
    run = scaling.Run(2, True)
    found = {name: measure(run)[0] for name, measure in scaling.ENTRIES.items()}
    for name, entry in found.items():
        assert list(entry["axes"]["threads"]["times"]) == ["1", "2"], name
        text = importlib.import_module("scaling_tables").entry(name, entry)
        sizes = sum(len(axis["times"]) for axis in entry["axes"].values())
        assert text.count(" = ") >= sizes
    machine = {"cpu": "a", "level": "b"}
    results = {"machine": machine, "threads": 2, "entries": found}
    path = importlib.import_module("plots.scaling").draw(results, tmp_path / "scaling.png")
    assert path.stat().st_size > 10_000
