"""Compile the Triton kernels with Triton 3.2, the oldest that is supported, and see that it can:
`python tools/oldest_triton.py sm80 sm90`. No GPU is needed.

Its compiler is called in another way than that of newer ones, for which gpu_report.py does more.
float16 is left out, which compiles as bfloat16 does.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import ahead_of_time
import gpu_triton
from gpu_jobs import Job


def compiles(job: Job) -> bool:
    """Whether there was something to compile; it raises where that fails."""
    import triton
    from triton.backends.compiler import AttrsDescriptor, GPUTarget
    from triton.compiler import ASTSource

    variant = gpu_triton._variants(Path(job.file), job.arch)[job.index]
    if variant.dtype == "float16":
        return False
    names = variant.kernel.arg_names
    source = ASTSource(
        variant.kernel,
        {name: variant.signature[name] for name in names if name not in variant.constexprs},
        dict(variant.constexprs),
        AttrsDescriptor.from_hints({names.index(name): 16 for name in variant.divisible}),
    )
    target = GPUTarget("cuda", int(job.arch.removeprefix("sm")), 32)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    try:
        with ahead_of_time.triton_cache():
            triton.compile(source, target=target, options=options)
    except Exception as error:
        raise ahead_of_time.CompileFailed(f"{job} {variant.name}: {error}") from error
    return True


def main(families: Sequence[str]) -> None:
    jobs = [job for job in gpu_triton.jobs() if job.arch in families]
    # spawn: neither Triton nor its LLVM is made to be forked
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        compiled = sum(pool.map(compiles, jobs))
    if not compiled:
        sys.exit(f"no kernels for {' '.join(families) or 'no family'}")
    print(f"Triton {ahead_of_time.triton_version()}: {compiled} kernels for {' '.join(families)}")


if __name__ == "__main__":
    main(sys.argv[1:])
