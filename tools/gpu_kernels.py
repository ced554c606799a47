"""Which GPU kernels there are, for whom, and one of them compiled: what gpu_report.py asks for.

A Triton kernel is a `Variant` that variants(family) yields, a function of one of the files
kernels/<operation>/triton*.py. A CUDA kernel is what csrc/cuda/<operation>.cu instantiates;
CUDA_EXPECTS says what it should compute with.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ahead_of_time
import gpu_code

ROOT = Path(__file__).resolve().parent.parent
Json = dict[str, Any]

FAMILIES = ("sm80", "sm90", "sm100", "sm120", "gfx942")
ARCHES = ("sm_80", "sm_90", "sm_100", "sm_120")

# Shared memory that one block can have, bytes: CUDA C++ Programming Guide, technical specifications
# per compute capability; AMD CDNA 3 ISA reference, LDS.
SHARED_LIMIT = {
    "sm_80": 163 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}


# How an instruction of 16-bit and TF32 products ends: HMMA.16816.F32 multiplies float16.
SUFFIX = {"bfloat16": "BF16", "float16": "F32", "float32": "TF32"}


def meant(kind: str | None, dtype: str, arch: str) -> tuple[str, ...]:
    """Opcodes for what a Variant expects: "mma", "fma", an opcode, or None without products."""
    if kind is None:
        return ()
    if kind == "fma":
        # AMD's matrix unit multiplies float32 as it is.
        return ("v_mfma_f32_*f32",) if arch == "gfx942" else ("FFMA*",)
    if kind == "mma":
        return {
            "sm_80": (f"HMMA.*.{SUFFIX[dtype]}",),
            "sm_90": (f"HGMMA.*.{SUFFIX[dtype]}",),
            "sm_100": ("UTC*MMA",),  # the element type is in a descriptor
            "sm_120": (f"HMMA.*.{SUFFIX[dtype]}",),
            "gfx942": ("MFMA",),
        }[arch]
    return (kind,)


@dataclass(frozen=True)
class Expected:
    """What CUDA kernels of one operation, whose demangled name has `name` in it, compute with."""

    operation: str
    name: str
    dtype: str
    instructions: tuple[str, ...]


# The first that fits.
CUDA_EXPECTS: tuple[Expected, ...] = ()


@dataclass(frozen=True)
class Job:
    """One compilation: small, because it is sent to another process."""

    source: str  # triton or cuda
    operation: str
    file: str  # a Triton module's file, or a .cu file
    arch: str  # of FAMILIES or ARCHES
    index: int = 0  # of variants(family)

    def __str__(self) -> str:
        return f"{self.source} {self.operation} {self.arch}"


def triton_jobs(files: Mapping[str, Path] | None = None) -> list[Job]:
    """A job for each variant; `files` are those of kernels/ when not given."""
    if files is None:
        files = {
            path.parent.name: path
            for path in sorted(ROOT.glob("kernels/*/triton*.py"))
            if "\ndef variants(" in path.read_text()
        }
    return [
        Job("triton", operation, str(path), family, index)
        for operation, path in files.items()
        for family in FAMILIES
        for index in range(len(_variants(path, family)))
    ]


def cuda_jobs(files: Mapping[str, Path] | None = None) -> list[Job]:
    """A job for each .cu file and architecture; `files` are those of csrc/cuda when not given."""
    if files is None:
        files = {path.stem: path for path in sorted(ROOT.glob("csrc/cuda/*.cu"))}
    return [
        Job("cuda", operation, str(path), arch)
        for operation, path in files.items()
        for arch in ARCHES
    ]


def compile_job(job: Job) -> list[Json]:
    """The report's rows of one compilation."""
    return _triton_rows(job) if job.source == "triton" else _cuda_rows(job)


def _triton_rows(job: Job) -> list[Json]:
    variant = _variants(Path(job.file), job.arch)[job.index]
    compiled = ahead_of_time.compile_triton(
        variant.kernel,
        variant.signature,
        variant.constexprs,
        job.arch,
        num_warps=variant.num_warps,
        num_stages=variant.num_stages,
    )
    if job.arch.startswith("gfx"):
        code = gpu_code.of_amdgcn(compiled.asm["amdgcn"])
    else:
        kernels = gpu_code.of_cubin(compiled.asm["cubin"], cuobjdump())
        code = kernels[compiled.metadata.name]
    arch = job.arch.replace("sm", "sm_")
    constants = {name: _plain(value) for name, value in variant.constexprs.items()}
    row = {
        "source": "triton",
        "operation": job.operation,
        "kernel": compiled.metadata.name,
        "variant": variant.name,
        "dtype": variant.dtype,
        "arch": arch,
        "threads": compiled.metadata.num_warps * (64 if job.arch.startswith("gfx") else 32),
        "config": {**constants, "num_warps": variant.num_warps, "num_stages": variant.num_stages},
        "expects": list(meant(variant.expects, variant.dtype, arch)),
        **code.json(),
        # also what Triton keeps for barriers; its kernels have no static shared memory
        "shared_dynamic": compiled.metadata.shared,
        "shared_limit": SHARED_LIMIT[arch],
    }
    if tensor_memory := getattr(compiled.metadata, "tmem_size", 0):
        row["tensor_memory_columns"] = tensor_memory
    return [row]


def _cuda_rows(job: Job) -> list[Json]:
    cubin = ahead_of_time.compile_cuda(Path(job.file).read_text(), job.arch, "cubin")
    rows = []
    for mangled, code in gpu_code.of_cubin(cubin, cuobjdump()).items():
        name = demangle(mangled)
        expected = _expected(job.operation, name)
        rows.append(
            {
                "source": "cuda",
                "operation": job.operation,
                "kernel": name.partition("<")[0],
                "variant": name,
                "dtype": expected.dtype,
                "arch": job.arch,
                "expects": list(expected.instructions),
                **code.json(),
                "shared_limit": SHARED_LIMIT[job.arch],
            }
        )
    return rows


def _expected(operation: str, name: str) -> Expected:
    for expected in CUDA_EXPECTS:
        if expected.operation == operation and expected.name in name:
            return expected
    raise gpu_code.Unreadable(
        f"{operation}: nothing in tools/gpu_kernels.py says what {name} should compute with; "
        "add it to CUDA_EXPECTS"
    )


def demangle(name: str) -> str:
    """`topk_scan<10, 4>` of its mangled name: no namespace, no return type, no parameters."""
    done = subprocess.run(["c++filt", "-p", name], capture_output=True, text=True, check=True)
    return re.sub(r"^void |\(anonymous namespace\)::|simtile::cuda::", "", done.stdout.strip())


def cuobjdump() -> Path:
    """The toolkit's, or the one in Triton's wheel."""
    try:
        beside = ahead_of_time.nvcc().with_name("cuobjdump")
        if beside.is_file():
            return beside
    except ahead_of_time.CompilerMissing:
        pass
    found = shutil.which("cuobjdump")
    return Path(found) if found else ahead_of_time.triton_tool("cuobjdump")


def _variants(path: Path, family: str) -> list[Any]:
    return list(_module(path).variants(family))


def _module(path: Path) -> Any:
    # The interpreter's kernels cannot be compiled, and the flag is read when they are defined.
    os.environ.pop("TRITON_INTERPRET", None)
    if path.is_relative_to(ROOT / "kernels"):
        return importlib.import_module(f"simtile.kernels.{path.parent.name}.{path.stem}")
    name = f"triton_kernels_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)  # of a constexpr
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
