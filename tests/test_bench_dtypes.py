"""bench/dtypes.py: a type whose results are off by more than its rounding is not timed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import simtile

ROOT = Path(__file__).resolve().parent.parent

for package in ("rich", "torch"):
    pytest.importorskip(package)


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    common = importlib.import_module("_common")
    # here nobody looks at the times
    monkeypatch.setattr(common, "SHORTEST_SAMPLE", 0.0)
    monkeypatch.setattr(common.gc, "collect", lambda: 0)
    return importlib.import_module("dtypes")


@pytest.mark.slow  # float16 in torch, of which there are few kernels
def test_every_type_is_measured_and_shown(dtypes: ModuleType) -> None:
    for name, measure in dtypes.ENTRIES.items():
        entry, _ = measure(dtypes.Run(1, True))
        types = dtypes.KINDS if name == "topk" else dtypes.FLOATS
        with_torch = name not in ("topk", "quantize")
        expected = [f"simtile, {kind}" for kind in types]
        expected += [f"torch, {kind}" for kind in types if with_torch]
        assert list(entry["times"]) == expected, name
        text = dtypes.dtypes_tables.entry(name, entry)
        assert all(f"\n| {kind} | " in text for kind in types)
        assert text.count("×)") == with_torch * len(types)


FUNCTIONS = {"info_nce": "info_nce", "siglip": "siglip_loss", "uniformity": "uniformity"} | {
    name: name for name in ("maxsim", "pool")
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("kind", "factor"),
    [("float32", 1.0001), ("float64", 1 + 1e-8), ("bfloat16", 1.02), ("float16", 1.004)],
)
def test_a_wrong_result_of_one_type_is_not_timed(
    dtypes: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, factor: float
) -> None:
    right = getattr(simtile, FUNCTIONS[name])

    def wrong(x: Any, *args: Any, **options: Any) -> Any:
        found = right(x, *args, **options)
        return found * factor if str(x.dtype) == f"torch.{kind}" else found

    monkeypatch.setattr(simtile, FUNCTIONS[name], wrong)
    with pytest.raises(importlib.import_module("_common").GateFailed, match=f"{kind}: error"):
        dtypes.ENTRIES[name](dtypes.Run(1, True))


def test_other_codes_are_not_timed(dtypes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = simtile.quantize

    def wrong(*args: Any, **options: Any) -> Any:
        found = right(*args, **options)
        return SimpleNamespace(codes=found.codes, scale=found.scale * 2)

    monkeypatch.setattr(simtile, "quantize", wrong)
    with pytest.raises(importlib.import_module("_common").GateFailed, match="other codes"):
        dtypes.quantize(dtypes.Run(1, True))


def test_other_documents_are_not_timed(dtypes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = simtile.topk
    monkeypatch.setattr(simtile, "topk", lambda *a, **o: [x[:, ::-1] for x in right(*a, **o)])
    with pytest.raises(importlib.import_module("_common").GateFailed, match="other documents"):
        dtypes.topk(dtypes.Run(1, True))
