"""The GPU's half of `simtile doctor` on a device that is none: the CPU's memory and results.

What no GPU has run is tested here as far as that goes: which checks there are, that a right result
passes each of them and a wrong one fails, and what breaks.
"""

import json
import os
import subprocess
import sys
import types

import pytest
from doctor_reports import raises

from simtile.doctor import found

torch = pytest.importorskip("torch")

from doctor_device import (  # noqa: E402 - they need torch
    Device,
    fake_device,
    info_nce_by_cpu,
    names,
    reports_of,
)

from simtile.doctor import (  # noqa: E402
    gpu,
    info_nce_family,
    maxsim,
    maxsim_topk,
    pairwise,
    pool,
    siglip,
    topk,
)


@pytest.fixture
def fake(monkeypatch):
    return fake_device(monkeypatch)


@pytest.fixture
def report_of(fake, monkeypatch, tmp_path, capsys):
    return reports_of(fake, monkeypatch, tmp_path, capsys)


EVERY_FAMILY = {("info_nce_family", "triton", dtype) for dtype in info_nce_family.DTYPES}
EVERY = {
    ("info_nce", "triton", "float32"),
    ("info_nce", "triton", "float32 (tf32x3)"),
    ("info_nce", "triton", "float32 (tf32)"),
    ("info_nce", "triton", "bfloat16"),
    ("info_nce", "triton", "float16"),
    ("info_nce", "cuda", "bfloat16"),
    *(("topk", "cuda", kind) for kind in topk.KINDS),
}


MAXSIM = {
    *(("maxsim", backend, dtype) for backend in ("triton", "cuda") for dtype in maxsim.DTYPES),
    *(("maxsim_topk", "cuda", kind) for kind in maxsim_topk.KINDS),
}
ALL_PAIRS = {
    *((loss, "triton", dtype) for loss in pairwise.LOSSES for dtype in pairwise.DTYPES),
    *(("siglip", "triton", dtype) for dtype in siglip.DTYPES),
    *(("pool", "triton", dtype) for dtype in pool.DTYPES),
}


def test_a_whole_run(report_of):
    status, shown, stored = report_of()
    assert stored["failures"] == []
    assert status == 0
    half = stored["gpu"]
    assert half["device"] == "Fake, sm_90, 132 multiprocessors, 80 GiB, L2 0 MiB"
    assert names(half["checks"]) == EVERY | EVERY_FAMILY | MAXSIM | ALL_PAIRS
    assert names(half["timings"]) == EVERY
    whats = {(check["kernel"], check["what"]) for check in half["checks"]}
    assert whats == {
        ("info_nce", "values"),
        ("info_nce", "beside the CPU's float64 kernel"),
        ("info_nce", "same bits"),
        ("info_nce", "beyond 2^31 elements"),
        ("info_nce_family", "beside the CPU's float64 kernel"),
        ("info_nce_family", "same bits"),
        ("topk", "equal to NumPy's"),
        ("topk", "beyond 2^31 bytes"),
        ("maxsim", "values"),
        ("maxsim", "same bits"),
        ("maxsim_topk", "the best of all scores"),
        *((loss, what) for loss in pairwise.LOSSES for what in ("values", "same bits")),
        *((kernel, what) for kernel in ("siglip", "pool") for what in ("values", "same bits")),
    }
    for check in half["checks"]:
        outputs = " ".join(c["output"] for c in check["comparisons"])
        if check["kernel"] in (*pairwise.LOSSES, "siglip"):
            assert "loss" in outputs, check
            assert "grad" in outputs, check
        elif check["kernel"] == "pool":
            assert outputs.startswith("vectors"), check
            assert "grad_tokens" in outputs, check
        elif check["kernel"] == "info_nce_family":
            assert "losses" in outputs, check
            assert "grad_queries" in outputs, check
            assert "grad_documents" in outputs, check
        elif check["kernel"] == "maxsim_topk":
            assert outputs == "scores, differing ids, differing", check
        elif check["kernel"] == "maxsim":
            assert "token_scores" in outputs, check
            assert ("grad_documents" in outputs) == (check["backend"] == "triton"), check
        elif check["backend"] == "triton" and not check["what"].startswith("beyond"):
            assert "losses" in outputs, check
            for reduction in ("none", "mean"):
                for name in ("queries", "documents", "temperature"):
                    assert f"{reduction}.grad_{name}" in outputs, check
        elif check["kernel"] == "info_nce":
            assert "grad" not in outputs, check
    assert stored["not_checked"] == []
    assert "info_nce (triton)" in shown
    assert "topk (cuda)" in shown


def test_quick_leaves_out_the_largest_and_says_so(report_of):
    status, shown, stored = report_of("--quick")
    assert status == 0
    assert names(stored["gpu"]["checks"]) == EVERY | EVERY_FAMILY | MAXSIM | ALL_PAIRS
    assert not any("beyond" in check["what"] for check in stored["gpu"]["checks"])
    assert "sizes beyond 2^31 elements on the GPU: --quick" in shown


def test_a_device_with_little_memory(report_of, fake):
    fake.free = 8 << 30
    status, shown, stored = report_of()
    assert status == 0
    assert not any("beyond" in check["what"] for check in stored["gpu"]["checks"])
    assert "8.0 GiB of its memory are free, 16 GiB are needed" in shown


def test_a_kernel_that_cannot_run_fails_alone(report_of, monkeypatch):
    def broken(queries, documents, **options):
        if options["backend"] == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available")
        return info_nce_by_cpu(queries, documents, **options)

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=broken))
    status, _, stored = report_of("--quick")
    assert status == 1
    assert all("no kernel image" in failure for failure in stored["failures"])
    failed = [check for check in stored["gpu"]["checks"] if check["status"] == "failed"]
    assert names(failed) == {("info_nce", "cuda", "bfloat16")}
    assert any("no kernel image" in item["why"] for item in stored["not_checked"])


def test_a_device_that_cannot_be_asked_is_a_failure(report_of, fake, monkeypatch):
    monkeypatch.setattr(Device, "description", raises(RuntimeError("unplugged")))
    status, _, stored = report_of()
    assert status == 1
    assert "RuntimeError: unplugged" in stored["failures"][0]


def test_a_backend_that_is_not_there_is_left_out(report_of, monkeypatch):
    monkeypatch.setattr(found, "why_no_cuda", lambda: "no CUDA module")
    status, shown, stored = report_of("--quick")
    assert status == 0
    assert {check["backend"] for check in stored["gpu"]["checks"]} == {"triton"}
    assert "backend 'cuda': no CUDA module" in shown


# -- time --


# -- arrays --


# -- the kernels themselves, in Triton's interpreter --

INTERPRETED = """
import json
from simtile.doctor import gpu, info_nce, info_nce_family, maxsim, pairwise, pool, siglip
from simtile.doctor.device import TorchDevice
from simtile.doctor.results import run_check
from simtile.kernels.info_nce import triton_configs as configs
from simtile.ops import info_nce_triton
tile = configs.Tile(32, 64, 32, 1, 1)  # the pinned ones take minutes
info_nce_triton._pinned = lambda *arguments: configs.Config(tile, tile)
configs.ROW_PADDING = 64
info_nce.SMALL = (info_nce.Case(5, 6, 7, 1, own=True, targets=True, ids=True),)
gpu.LARGE, gpu.REPEATED, gpu.REPEATS = (), info_nce.SMALL[0], 1
options = {"directions": info_nce_family.EVERY, "false_negative_margin": 0.1}
info_nce_family.CASES = (info_nce_family.Case("guide", 5, 6, options, True, 1),)
info_nce_family.REPEATED = info_nce_family.Case("plain", 3, 6, {"directions": ("doc_to_query",)})
maxsim.SMALL = (maxsim.Case(2, 5, 3, 7, 9, normalize=True),)
maxsim.SMOOTH = maxsim.Case(2, 5, 3, 7, 9, temperature=0.5)
maxsim.REPEATED, maxsim.REPEATS = maxsim.SMALL[0], 1
pairwise.CASES, pairwise.REPEATED = (pairwise.Case(20, 7, 4),), pairwise.Case(9, 5, 2)
siglip.CASES, siglip.REPEATED = (siglip.Case(9, 11, 7),), siglip.Case(5, 5, 3)
pool.CASES = (pool.CASES[0], pool.Case(3, 9, 40, 33, "max"))
pool.REPEATED = pool.Case(3, 5, 4, 4)
checks = gpu.checks(TorchDevice("cpu"), ("triton",), quick=True)
checks = [c for c in checks if c.what != "same bits"]  # the interpreter has one order
print(json.dumps([run_check(check) for check in checks]))
"""


@pytest.mark.deep
def test_the_triton_kernels_pass_in_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checks = json.loads(done.stdout.splitlines()[-1])
    assert [check["message"] for check in checks if check["status"] != "passed"] == []
    assert names(checks) == {
        name for name in EVERY | EVERY_FAMILY | MAXSIM | ALL_PAIRS if name[1] == "triton"
    }
    # of info_nce, its family, MaxSim (two checks), all pairs, the sigmoid loss, pooling (two)
    assert len(checks) == 5 + 3 + 3 * 2 + 6 + 3 + 2 * 3
