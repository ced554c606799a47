"""The GPU report: machine code is read rightly, and what is worse or not meant is found."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOY = Path(__file__).with_name("gpu_report_kernels.py")


@pytest.fixture(scope="module", autouse=True)
def import_path() -> Iterator[None]:
    added = [str(ROOT / "bench"), str(ROOT / "tools")]
    sys.path[:0] = added
    yield
    for path in added:
        sys.path.remove(path)


@pytest.fixture
def code() -> ModuleType:
    return importlib.import_module("gpu_code")


@pytest.fixture
def triton_half() -> ModuleType:
    return importlib.import_module("gpu_triton")


@pytest.fixture
def cuda_half() -> ModuleType:
    return importlib.import_module("gpu_cuda")


@pytest.fixture
def report() -> ModuleType:
    return importlib.import_module("gpu_report")


def row(**changes: Any) -> dict[str, Any]:
    return {
        "source": "triton",
        "operation": "info_nce",
        "kernel": "scores",
        "variant": "scores 64",
        "dtype": "bfloat16",
        "arch": "sm_90",
        "threads": 128,
        "config": {"num_warps": 4, "num_stages": 3},
        "expects": ["HGMMA.*.BF16"],
        "registers": 128,
        "stack": 0,
        "spills": {"store_bytes": 0, "load_bytes": 0},
        "shared_static": 0,
        "shared_dynamic": 48 << 10,
        "shared_limit": 227 << 10,
        "instructions": {"HGMMA.64x64x16.F32.BF16": 4, "FFMA": 17},
        **changes,
    }


def test_a_kernel_as_meant_has_no_faults(report: ModuleType) -> None:
    assert report.faults(row()) == []
    assert report.faults(row(shared_dynamic=227 << 10)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spills": {"store_bytes": 0, "load_bytes": 8}}, "spills load_bytes 8"),
        ({"spills": {"vector_registers": 1, "scalar_registers": 0}}, "spills vector_registers 1"),
        ({"shared_static": 1, "shared_dynamic": 227 << 10}, "232449 bytes of shared memory"),
        ({"instructions": {"FFMA": 512}}, "no HGMMA.*.BF16; there are: FFMA"),
        ({"instructions": {}}, "no HGMMA.*.BF16; there are: none"),
        (
            {"instructions": {"HGMMA.64x64x16.F32.BF16": 4, "HMMA.16816.F32.BF16": 2}},
            "HMMA.16816.F32.BF16 is not among what is meant",
        ),
        ({"instructions": {"HGMMA.64x64x16.F32.F16": 4}}, "no HGMMA"),
    ],
)
def test_faults_are_found(report: ModuleType, changes: dict[str, Any], message: str) -> None:
    found = report.faults(row(**changes))
    assert len(found) == 1
    assert found[0].startswith("triton info_nce scores 64 bfloat16 sm_90: ")
    assert message in found[0]


@pytest.mark.parametrize(
    ("kind", "dtype", "arch", "opcode", "other"),
    [
        ("mma", "bfloat16", "sm_80", "HMMA.16816.F32.BF16", "HMMA.16816.F32"),
        ("mma", "float16", "sm_120", "HMMA.16816.F32", "HMMA.1688.F32.TF32"),
        ("mma", "float32", "sm_80", "HMMA.1688.F32.TF32", "HMMA.16816.F32"),
        ("mma", "bfloat16", "sm_90", "HGMMA.64x64x16.F32.BF16", "HMMA.16816.F32.BF16"),
        ("mma", "float16", "sm_100", "UTCHMMA", "HMMA.16816.F32"),
        ("mma", "bfloat16", "gfx942", "v_mfma_f32_32x32x8_bf16", "v_fma_f32"),
        ("fma", "float32", "sm_90", "FFMA", "HGMMA.64x64x8.F32.TF32"),
        ("fma", "float32", "sm_100", "FFMA2", "UTCHMMA"),
        ("fma", "float32", "gfx942", "v_mfma_f32_32x32x2_f32", "v_mfma_f32_32x32x8_bf16"),
        ("IMMA", "int8", "sm_80", "IMMA.16832.S8.S8", "IDP"),
        (None, "float32", "sm_80", "FFMA", "HMMA.1688.F32.TF32"),
    ],
)
def test_what_is_meant_depends_on_architecture_and_elements(
    code: ModuleType,
    triton_half: ModuleType,
    kind: str | None,
    dtype: str,
    arch: str,
    opcode: str,
    other: str,
) -> None:
    expects = triton_half.meant(kind, dtype, arch)
    assert code.problem({opcode: 1}, expects) is None
    assert code.problem({other: 1}, expects) is not None


def test_half_precision_constants_are_no_matrix_instruction(code: ModuleType) -> None:
    assert not code.is_matrix("HFMA2.MMA")
    assert code.is_matrix("HMMA.16816.F32.BF16")
    assert code.is_matrix("UTCQMMA.2CTA")
    assert code.is_matrix("v_mfma_f32_32x32x8_bf16")


def test_worse_than_stored(report: ModuleType) -> None:
    tolerated = row(registers=row()["registers"] + report.REGISTER_TOLERANCE)
    assert report.compare([tolerated], [row()]) == []
    assert report.compare([row(registers=64, instructions={"HGMMA.x.BF16": 1})], [row()]) == []
    grown = row(registers=tolerated["registers"] + 1)
    assert report.compare([grown], [row()]) == [
        "triton info_nce scores 64 bfloat16 sm_90: 137 registers, 128 stored"
    ]
    assert "8 bytes of stack, 0 stored" in report.compare([row(stack=8)], [row()])[0]
    spilled = row(spills={"store_bytes": 4, "load_bytes": 0})
    assert "spills store_bytes 4, 0 stored" in report.compare([spilled], [row()])[0]


def test_kernels_missing_on_either_side(report: ModuleType) -> None:
    new = row(variant="scores 128")
    assert report.compare([row(), new], [row()]) == [
        "triton info_nce scores 128 bfloat16 sm_90: not in the stored report"
    ]
    assert report.compare([row()], [row(), new]) == [
        "triton info_nce scores 128 bfloat16 sm_90: in the stored report, but not compiled"
    ]


def half(*rows: dict[str, Any], compiler: str = "3.7") -> dict[str, Any]:
    return {"compiler": compiler, "kernels": list(rows)}


def test_another_compiler_is_compared_and_named(
    report: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = {"triton": half(row())}
    assert report.check("triton", half(row(stack=8), compiler="3.8"), stored)
    assert "compiled by 3.8, the stored report by 3.7" in capsys.readouterr().out
    assert report.check("triton", half(row()), stored) == []
    assert capsys.readouterr().out == ""
    assert "no such half" in report.check("cuda", half(row()), stored)[0]


@pytest.fixture
def stored(report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for the report and its page."""
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "REPORT", tmp_path / "report.json")
    monkeypatch.setattr(report, "PAGE", tmp_path / "docs" / "page.md")
    return tmp_path


def test_runs_and_what_they_return(
    report: ModuleType,
    stored: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = {"triton": half(row()), "cuda": half(row(source="cuda"), compiler="13.0")}
    monkeypatch.setattr(report, "make_half", lambda name, *_, **__: made[name] and (made[name], []))
    assert report.main(["--check"]) == 1  # nothing is stored yet
    assert report.main([]) == 0
    assert json.loads(report.REPORT.read_text()) == made
    assert "| HGMMA.64x64x16.F32.BF16 ×4 |" in report.PAGE.read_text()
    assert report.main(["--check"]) == 0

    made["triton"] = half(row(registers=200))
    assert report.main(["--check"]) == 1
    assert "200 registers, 128 stored" in capsys.readouterr().err
    assert report.main(["--check", "--only", "cuda"]) == 0

    # without nvcc: the stored half stays, and only --require makes it an error
    made["triton"], made["cuda"] = half(row(registers=90)), None
    assert report.main([]) == 0
    kept = json.loads(report.REPORT.read_text())
    assert kept["triton"]["kernels"][0]["registers"] == 90
    assert kept["cuda"]["compiler"] == "13.0"
    assert report.main(["--check"]) == 0
    assert report.main(["--check", "--require", "triton"]) == 0
    assert report.main(["--check", "--require", "triton,cuda"]) == 1
    assert "cuda: required, but not made" in capsys.readouterr().err


def test_a_fault_fails_although_it_is_stored(
    report: ModuleType, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spilled = half(row(spills={"store_bytes": 4, "load_bytes": 4}))
    monkeypatch.setattr(report, "make_half", lambda name, *_, **__: (spilled, []))
    assert report.main(["--only", "triton"]) == 1
    assert "**store_bytes 4, load_bytes 4**" in report.PAGE.read_text()
    assert report.main(["--check", "--only", "triton"]) == 1


def test_without_nvcc_the_message_says_so(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compilers = importlib.import_module("ahead_of_time")

    def missing() -> Path:
        raise compilers.CompilerMissing("nvcc: not found; install it")

    monkeypatch.setattr(compilers, "nvcc", missing)
    assert report.make_half("cuda", 1, {}) is None
    assert capsys.readouterr().out == ("the cuda half was not made: nvcc: not found; install it\n")


def test_a_real_triton_kernel(triton_half: ModuleType, report: ModuleType) -> None:
    pytest.importorskip("triton")
    jobs = [job for job in triton_half.jobs({"toy": TOY}) if job.arch in ("sm80", "sm90", "gfx942")]
    made = {(row["variant"], row["arch"]): row for job in jobs for row in triton_half.rows(job)}
    assert len(made) == 4
    ampere, hopper, amd = (made["fits", arch] for arch in ("sm_80", "sm_90", "gfx942"))
    # 64 x 64 x 64 in pieces of 16 x 8 x 16, by 4 warps
    assert ampere["instructions"]["HMMA.16816.F32.BF16"] == 4 * 8 * 4 / 4
    assert "HGMMA.64x64x16.F32.BF16" in hopper["instructions"]
    for fitting in (ampere, hopper, amd):
        assert report.faults(fitting) == []
        assert 16 < fitting["registers"] < 255
        assert fitting["shared_static"] == 0
        assert 0 < fitting["shared_dynamic"] < fitting["shared_limit"]
    assert (hopper["threads"], amd["threads"]) == (128, 256)

    spilling = made["spills", "sm_80"]
    assert spilling["spills"]["store_bytes"] > 0
    assert spilling["spills"]["load_bytes"] > 0
    assert "spills store_bytes" in report.faults(spilling)[0]


def test_a_cubin_is_read_once(
    code: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = importlib.import_module("gpu_jobs")
    made = code.Code(40, 0, {"store_bytes": 0}, 16, {"HMMA.16816.F32": 3})
    read = []

    def of_cubin(cubin: bytes, _: Path) -> dict[str, Any]:
        read.append(cubin)
        return {"scores": made}

    monkeypatch.setattr(jobs, "READ", tmp_path)
    monkeypatch.setattr(jobs, "cuobjdump", lambda: TOY)  # any file
    monkeypatch.setattr(code, "of_cubin", of_cubin)
    assert jobs.kernels_of(b"one") == {"scores": made}
    assert jobs.kernels_of(b"one") == {"scores": made}
    assert jobs.kernels_of(b"two") == {"scores": made}
    assert read == [b"one", b"two"]
    monkeypatch.setattr(jobs, "cuobjdump", lambda: Path(__file__))  # another cuobjdump
    jobs.kernels_of(b"one")
    assert read == [b"one", b"two", b"one"]


CUDA_SOURCE = """
#include "record.hpp"

namespace simtile::cuda {

template <int Words>
__global__ void distance(const unsigned* x, int* y) {
  __shared__ int sums[32 * Words];
  sums[threadIdx.x] = __popc(x[threadIdx.x]);
  __syncthreads();
  y[threadIdx.x] = sums[31 - threadIdx.x] * Words;
}
template __global__ void distance<5>(const unsigned*, int*);  // which nothing launches

void record(const Device& device, const RecordLaunch& launch) {
  const size_t shared = device.compute_capability == 120 ? 1000 : 2000;
  launch(distance<3>, dim3(7), dim3(32), shared, nullptr, nullptr);
  launch(distance<3>, dim3(7), dim3(16), shared + 10, nullptr, nullptr);
}

}  // namespace simtile::cuda

int main() { simtile::cuda::for_each_architecture(simtile::cuda::record); }
"""


def test_a_real_cuda_kernel(cuda_half: ModuleType, report: ModuleType, tmp_path: Path) -> None:
    compilers = importlib.import_module("ahead_of_time")
    try:
        compilers.nvcc()
    except compilers.CompilerMissing as error:
        pytest.skip(str(error))
    path = tmp_path / "toy.cu"
    path.write_text(CUDA_SOURCE)
    expects = [cuda_half.Expected("toy", "distance<", "bits", ("POPC",))]
    made = []
    for job in cuda_half.jobs({"toy": path}):
        if job.source == "launches":
            made += cuda_half.launches(job)
        elif job.arch in ("sm_80", "sm_120"):
            made += cuda_half.rows(job, expects)
            with pytest.raises(Exception, match=r"nothing says what distance<\d> should compute"):
                cuda_half.rows(job, [])
    rows = {(row["variant"], row["arch"]): row for row in cuda_half.merge(made)}
    assert len(rows) == 4
    for arch, shared in (("sm_80", 2010), ("sm_120", 1010)):
        launched, other = rows["distance<3>", arch], rows["distance<5>", arch]
        assert launched["kernel"] == "distance"
        assert launched["instructions"] == {"POPC": 1}
        assert launched["shared_static"] == 32 * 3 * 4  # not what the driver keeps on sm_120
        assert (launched["threads"], launched["shared_dynamic"]) == (32, shared)
        assert report.faults(launched) == []
        assert report.faults({**launched, "expects": ["IMMA"]}) != []
        assert "no arguments in tools/gpu_launches/toy.cu launch it" in report.faults(other)[0]


def test_only_what_changed_and_an_eighth_of_the_rest_is_compiled(
    report: ModuleType, triton_half: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = importlib.import_module("gpu_sources")
    jobs = triton_half.jobs()
    digests = sources.digests(jobs)
    everything = {(job.operation, sources.arch(job)) for job in jobs}
    stored = {"compiler": "3.7.1", "sources": digests, "kernels": []}
    kept = sources.skipped(jobs, "3.7.1", digests, stored)
    assert 0 < len(kept) < len(everything)
    assert sources.skipped(jobs, "3.8", digests, stored) == set()
    assert sources.skipped(jobs, "3.7.1", digests, {}) == set()
    changed = {**stored, "sources": {**digests, "maxsim": "other"}}
    again = sources.skipped(jobs, "3.7.1", digests, changed)
    assert again == {(operation, arch) for operation, arch in kept if operation != "maxsim"}

    # What was not compiled is in the report as it is stored.
    kernels = [row(operation=operation, arch=arch) for operation, arch in kept]
    compiled: list[Any] = []
    monkeypatch.setattr(report, "make", lambda jobs, _: (compiled.extend(jobs) or [], []))
    monkeypatch.setitem(report.HALVES, "triton", (triton_half.jobs, lambda: "3.7.1"))
    made, failed = report.make_half("triton", 1, {**stored, "kernels": kernels})
    assert made["kernels"] == sorted(kernels, key=report.place)
    assert failed == []
    assert {(job.operation, sources.arch(job)) for job in compiled} == everything - kept


def test_sources_are_what_is_imported_and_included(
    triton_half: ModuleType, cuda_half: ModuleType
) -> None:
    sources = importlib.import_module("gpu_sources")
    names = {
        job.operation: {path.relative_to(ROOT).as_posix() for path in sources.files(job)}
        for job in triton_half.jobs()
    }
    assert "kernels/info_nce/triton_configs.py" in names["maxsim"]
    assert "kernels/tile/triton.py" in names["pairwise"]
    assert "kernels/maxsim/triton.py" not in names["pairwise"]
    topk = next(job for job in cuda_half.jobs() if job.operation == "topk")
    found = {path.relative_to(ROOT).as_posix() for path in sources.files(topk)}
    assert {"kernels/topk/scan_mma.cuh", "csrc/cuda/topk_plan.hpp", "tools/gpu_cuda.py"} <= found
    assert "kernels/maxsim/cuda_tile.cuh" not in found
