"""Triton kernels of the GPU report: the variants that an operation has, and one of them compiled.

variants(family) of kernels/<operation>/triton*.py yields them: name, kernel, signature, constexprs,
num_warps, num_stages, dtype, what is expected of the machine code (see `meant`), and the arguments
that 16 divides.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ahead_of_time
import gpu_code
from gpu_jobs import ROOT, SHARED_LIMIT, Job, Json, kernels_of

FAMILIES = ("sm80", "sm90", "sm100", "sm120", "gfx942")

# How an instruction of 16-bit and TF32 products ends: HMMA.16816.F32 multiplies float16.
SUFFIX = {"bfloat16": "BF16", "float16": "F32", "float32": "TF32"}


def meant(kind: str | None, dtype: str, arch: str) -> tuple[str, ...]:
    """Opcodes for what a Variant expects: "mma", "mma of warps", "fma", an opcode, or None.

    "mma of warps": some products are too narrow for the instruction of four warps, others are not.
    """
    if kind is None:
        return ()
    if kind == "fma":
        # AMD's matrix unit multiplies float32 as it is.
        return ("v_mfma_f32_*f32",) if arch == "gfx942" else ("FFMA*",)
    if kind == "mma of warps":
        own = f"HMMA.*.{SUFFIX[dtype]}"
        return (*meant("mma", dtype, arch), *((own,) if arch in ("sm_90", "sm_100") else ()))
    if kind == "mma":
        return {
            "sm_80": (f"HMMA.*.{SUFFIX[dtype]}",),
            "sm_90": (f"HGMMA.*.{SUFFIX[dtype]}",),
            "sm_100": ("UTC*MMA",),  # the element type is in a descriptor
            "sm_120": (f"HMMA.*.{SUFFIX[dtype]}",),
            "gfx942": ("MFMA",),
        }[arch]
    return (kind,)


def jobs(files: Mapping[str, Path] | None = None) -> list[Job]:
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


def rows(job: Job) -> list[Json]:
    variant = _variants(Path(job.file), job.arch)[job.index]
    types = {
        name: f"{kind}:16" if name in variant.divisible else kind
        for name, kind in variant.signature.items()
        if name not in variant.constexprs
    }
    compiled = ahead_of_time.compile_triton(
        variant.kernel,
        types,
        variant.constexprs,
        job.arch,
        num_warps=variant.num_warps,
        num_stages=variant.num_stages,
    )
    if job.arch.startswith("gfx"):
        code = gpu_code.of_amdgcn(compiled.asm["amdgcn"])
    else:
        code = kernels_of(compiled.asm["cubin"])[compiled.metadata.name]
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
