"""Compile GPU kernels without a GPU: CUDA with nvcc, Triton with its own compiler.

Compiled Triton kernels are kept in build/triton, never in the user's cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# what `#include "topk/cuda.cuh"` and `#include "cuda/topk_dispatch.hpp"` are found under
INCLUDES = (ROOT / "kernels", ROOT / "csrc", ROOT / "tools" / "gpu_launches")
TRITON_CACHE = ROOT / "build" / "triton"


class CompilerMissing(Exception):
    """nvcc or Triton is not installed."""


class CompileFailed(Exception):
    """What the compiler said."""


def nvcc() -> Path:
    """CUDACXX, CUDA_HOME, PATH, then the place where NVIDIA's installer puts it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for candidate in (
        os.environ.get("CUDACXX"),
        f"{home}/bin/nvcc" if home else None,
        shutil.which("nvcc"),
        "/usr/local/cuda/bin/nvcc",
    ):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise CompilerMissing("nvcc: not found; install the CUDA toolkit, or set CUDACXX to its nvcc")


def nvcc_version() -> str:
    said = _run([str(nvcc()), "--version"])
    match = re.search(r"release [\d.]+, V([\d.]+)", said)
    if match is None:
        raise CompileFailed(f"nvcc --version: no version in {said!r}")
    return match[1]


def compile_cuda(source: str, target: str, suffix: str, *options: str) -> bytes:
    """A CUDA translation unit as PTX (`"compute_80", "ptx"`) or a cubin (`"sm_80", "cubin"`)."""
    with tempfile.TemporaryDirectory() as folder:
        unit, out = Path(folder) / "unit.cu", Path(folder) / f"unit.{suffix}"
        unit.write_text(source)
        includes = [f"-I{path}" for path in INCLUDES]
        command = [str(nvcc()), "-std=c++17", f"-{suffix}", f"-arch={target}"]
        _run([*command, *includes, *options, "-o", str(out), str(unit)])
        return out.read_bytes()


def link_cuda(source: str, target: str, program: Path, *options: str) -> None:
    """A CUDA translation unit as a program for the host."""
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder) / "unit.cu"
        unit.write_text(source)
        includes = [f"-I{path}" for path in INCLUDES]
        command = [str(nvcc()), "-std=c++17", f"-arch={target}", *options, *includes]
        _run([*command, "-o", str(program), str(unit)])


def triton_version() -> str:
    return str(_triton().__version__)


def compile_triton(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    family: str,
    *,
    num_warps: int,
    num_stages: int,
) -> Any:
    """A Triton kernel for "sm80", "sm120", … or "gfx942"; `.asm` and `.metadata` of the result.

    `signature` has the types of the arguments that are not constexpr, such as "*bf16:16": ":16" as
    in triton.tools.compile, an address or a number that 16 divides, which a launch finds out itself
    and which decides whether rows are loaded 16 bytes at a time.
    """
    triton = _triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if family.startswith("gfx"):
        target = GPUTarget("hip", family, 64)
    else:
        target = GPUTarget("cuda", int(family.removeprefix("sm")), 32)
    given = {**signature, **dict.fromkeys(constexprs, "constexpr")}
    if set(given) != set(kernel.arg_names):
        raise CompileFailed(
            f"{kernel.__name__}: arguments {sorted(kernel.arg_names)}, types of {sorted(given)}"
        )
    # Triton numbers the types by their position: the order is the kernel's
    source = ASTSource(
        fn=kernel,
        signature={name: given[name].partition(":")[0] for name in kernel.arg_names},
        constexprs=dict(constexprs),
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(kernel.arg_names)
            if given[name].endswith(":16")
        },
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    with triton_cache():
        return triton.compile(source, target=target, options=options)


@contextmanager
def triton_cache() -> Iterator[None]:
    """Within it, what Triton compiles is kept in build/triton."""
    before = os.environ.get("TRITON_CACHE_DIR")
    os.environ["TRITON_CACHE_DIR"] = str(TRITON_CACHE)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRITON_CACHE_DIR"]
        else:
            os.environ["TRITON_CACHE_DIR"] = before


def triton_tool(name: str) -> Path:
    """A program that Triton's wheel carries: cuobjdump, ptxas."""
    path = Path(_triton().__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.is_file():
        raise CompilerMissing(f"{name}: this Triton has none at {path}")
    return path


def _triton() -> Any:
    try:
        import triton
    except ModuleNotFoundError as error:
        raise CompilerMissing("triton: not installed; pip install triton") from error
    return triton


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileFailed(f"{' '.join(command)}\n{done.stderr}{done.stdout}")
    return done.stdout
