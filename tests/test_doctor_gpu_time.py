"""Times, shares, and arrays of `simtile doctor` on a device that is none."""

import numpy as np
import pytest
from doctor_reports import raises

torch = pytest.importorskip("torch")

from doctor_device import SECOND, TINY, fake_device  # noqa: E402 - it needs torch

from simtile.doctor import device as devices  # noqa: E402
from simtile.doctor import gpu, info_nce  # noqa: E402


@pytest.fixture
def fake(monkeypatch):
    return fake_device(monkeypatch)


def test_a_call_finds_cold_caches_and_no_launch_in_its_time(fake):
    calls = []
    samples = fake.seconds(lambda: calls.append(len(fake.log)), 3)
    assert samples == [SECOND] * 3
    assert len(calls) == 2 + 1 + 3
    assert fake.log == ["write"] * 5 + ["call"] * 3
    assert fake._flush.numel() >= 2 * fake.l2_bytes


def test_shares_follow_from_times_and_peaks(fake):
    variant = gpu.INFO_NCE[1]  # tf32x3
    timing = gpu._step(fake, variant, info_nce.Case(10, 20, 30))
    operations = 2 * 3 * 10 * 20 * 30
    traffic = 2 * 4 * (10 + 20) * 30
    assert (timing.operations, timing.traffic) == (operations, traffic)
    peaks = [
        {"name": name, "rate": rate, "unit": "", "measured": True, "how": ""}
        for name, rate in (("memory read", 1e9), ("tf32 matmul", 1e8), ("tf32 mma.sync", None))
    ]
    result = gpu.measure(fake, timing, peaks)
    assert result["median"] == SECOND
    assert result["shares"] == [
        {"of": "memory read", "products": 1, "share": pytest.approx(traffic / SECOND / 1e9)},
        {"of": "tf32 matmul", "products": 3, "share": pytest.approx(3 * operations / SECOND / 1e8)},
    ]


@pytest.mark.parametrize(
    ("major", "mma_sync", "how"),
    [(8, False, "(cuBLAS)"), (9, True, "(cuBLAS, by wgmma)"), (10, True, "(cuBLAS, by tcgen05)")],
)
def test_peaks(major, mma_sync, how, fake, monkeypatch):
    monkeypatch.setattr(fake.facts, "major", major)
    peaks = {peak["name"]: peak for peak in fake.peaks()}
    assert peaks["memory copy"]["rate"] == pytest.approx(2 * 4096 / SECOND)
    assert peaks["memory read"]["rate"] == pytest.approx(4096 / SECOND)
    for name in ("float32", "tf32", "float16", "bfloat16", "int8"):
        peak = peaks[f"{name} matmul"]
        assert peak["measured"], peak["how"]
        assert peak["rate"] == pytest.approx(2 * 32**3 / SECOND)
    assert peaks["bfloat16 matmul"]["how"].endswith(how)
    assert peaks["float32 matmul"]["how"].endswith("(cuBLAS)")
    assert ("bfloat16 mma.sync" in peaks) == mma_sync
    if mma_sync:
        peak = peaks["bfloat16 mma.sync"]
        assert not peak["measured"]
        assert peak["how"].startswith("not measured")
        expected = 0.629 * 4096 * 132 * 1e9 if major == 9 else None
        assert peak["rate"] == (None if expected is None else pytest.approx(expected))


def test_a_peak_that_cannot_be_measured_says_why(fake, monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", raises(RuntimeError("no int8 here")))
    peaks = {peak["name"]: peak for peak in fake.peaks()}
    assert peaks["int8 matmul"]["rate"] is None
    assert not peaks["int8 matmul"]["measured"]
    assert "RuntimeError: no int8 here" in peaks["int8 matmul"]["how"]
    assert peaks["tf32 matmul"]["measured"]


def test_amd_has_other_names(fake):
    fake.cuda = False
    assert "gfx942" in fake.description()
    peaks = {peak["name"]: peak for peak in fake.peaks()}
    assert "(hipBLASLt or rocBLAS)" in peaks["bfloat16 matmul"]["how"]
    assert not any("mma.sync" in name for name in peaks)


def test_older_torch_tells_less_of_a_device(fake, monkeypatch):
    for name in ("L2_cache_size", "clock_rate"):
        monkeypatch.delattr(fake.facts, name)
    assert "L2 0 MiB" in fake.description()
    assert [p["rate"] for p in fake.peaks() if "mma.sync" in p["name"]] == [None] * 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_go_there_and_back(dtype, fake):
    inputs = info_nce.make_inputs(TINY[0], dtype)
    for name, stored in inputs.stored.items():
        tensor = fake.upload(stored)
        assert str(tensor.dtype) == f"torch.{dtype}"
        np.testing.assert_array_equal(fake.download(tensor), inputs.values[name])


def test_memory_is_poisoned(monkeypatch):
    filled = []
    empty = torch.empty

    def recorded(*arguments, **options):
        filled.append(empty(64, **options))
        return filled[-1]

    monkeypatch.setattr(torch, "empty", recorded)
    devices.TorchDevice("cpu").poison()
    assert len(filled) > 1
    assert all((block == 0xFF).all() for block in filled)
