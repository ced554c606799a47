"""info_nce by every backend that can be tested: what it takes, and how it is run.

`reference` is the lists of Python; `cpu[...]` every level of this machine; `triton-interpreter` the
Triton kernels in Python; `cuda-host` the CUDA kernel compiled for the CPU. `triton` and `cuda` want
a GPU. All are compared with the float64 oracle in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import info_nce_cuda_host
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from info_nce_cases import DTYPES, as_tensor, cases, check_case, run_kernel, run_lists
from tolerances import CPU, CUDA_ON_GPU, TRITON, TRITON_ON_GPU, Arithmetic
from triton_worker import Interpreter
from triton_worker import info_nce as triton_info_nce

from simtile import _core

ALL = (True, True, True, True)


@dataclass(frozen=True)
class Backend:
    """`run(case)` is the losses and those gradients that the backend has, None for the others."""

    name: str
    run: Callable[[Any], tuple[Any, ...]]
    dtypes: tuple[str, ...] = DTYPES
    sizes: tuple[int, ...] = (1, 7, 33, 111, 200)
    dimensions: tuple[int, ...] = (1, 3, 7, 64, 111, 515)
    share: float = 1.0  # of the profile's examples: what is slow gets fewer
    arithmetic: Arithmetic = CPU

    def search(self, test: Callable[[Any], None]) -> None:
        """`test(case)` for as many cases of any kind as the profile and the backend's share ask."""
        sizes, dimensions = st.sampled_from(self.sizes), st.sampled_from(self.dimensions)
        examples = max(3, round(settings.default.max_examples * self.share))
        drawn = given(cases(sizes, dimensions, dtypes=self.dtypes))
        settings(max_examples=examples)(drawn(test))()

    def check(self, case: Any) -> None:
        """Compare what it computes with the oracle."""
        check_case(case, self.run(case), arithmetic=self.arithmetic)


@contextmanager
def cpu_level(level):
    """Kernels of this level, in this process."""
    _core._use_level(level)
    try:
        yield
    finally:
        _core._use_level(None)


def on_level(level):
    def run(case):
        with cpu_level(level):
            return run_kernel(case, threads=2)

    return run


def triton_arguments(case, need, precision):
    options = {
        **case.options,
        "own_negatives": case.options["negatives_scope"] == "own",
        "row_weights": case["row_weights"],
        "precision": precision,
    }
    del options["negatives_scope"]
    return case.inputs, case.dtype, options, need


def as_result(case, arrays):
    """What run_kernel returns, of the arrays of triton_worker.info_nce."""
    losses, *grads, grad_temperature = arrays
    number = None if grad_temperature is None else float(grad_temperature)
    return losses, *grads, number


def run_triton(case, *, need=ALL, precision="ieee", device="cpu", tiles=None):
    """The Triton kernels in this process, on outputs full of NaN."""
    arguments = triton_arguments(case, need, precision)
    return as_result(case, triton_info_nce(*arguments, device=device, tiles=tiles))


interpreter = Interpreter()


def run_interpreter(case, *, need=ALL, small_tiles=True, chunk_bytes=None):
    arguments = triton_arguments(case, need, "ieee")
    return as_result(case, interpreter(triton_info_nce, *arguments, small_tiles, chunk_bytes))


def run_cuda_host(case, *, order=0):
    """Losses of the CUDA kernel on the CPU; it has no gradients."""
    return info_nce_cuda_host.run(case, order=order).losses, None, None, None, None


def run_cuda(case):
    """The CUDA kernel on a GPU."""
    import torch

    from simtile.ops import info_nce_cuda

    on_gpu = partial(as_tensor, device="cuda")
    losses = info_nce_cuda.info_nce_losses(
        *map(on_gpu, case.inputs),
        dtype=torch.bfloat16,
        temperature=case.temperature,
        normalize=case.normalize,
        targets=on_gpu(case["targets"]),
        query_ids=on_gpu(case["query_ids"]),
        document_ids=on_gpu(case["document_ids"]),
        own_negatives=case.own,
    )
    return losses.numpy(force=True), None, None, None, None


ON_GPU = ("float32", "float16", "bfloat16")
# Lists take as long as they look, and the interpreter some seconds a case.
BACKENDS = [
    Backend("reference", run_lists, ("float64",), (1, 7, 16), (1, 3, 16)),
    *(Backend(f"cpu[{level}]", on_level(level)) for level in _core.cpu_info()["detected"]),
    Backend(
        "triton-interpreter",
        run_interpreter,
        ON_GPU,
        sizes=(1, 7, 33, 50),
        dimensions=(1, 3, 7, 64, 111),
        share=0.15,
        arithmetic=TRITON,
    ),
    Backend("cuda-host", run_cuda_host, ("bfloat16",), share=0.4),
    Backend("triton", partial(run_triton, device="cuda"), ON_GPU, arithmetic=TRITON_ON_GPU),
    Backend("cuda", run_cuda, ("bfloat16",), arithmetic=CUDA_ON_GPU),
]
NEEDS_GPU = ("triton", "cuda")


def every_backend(*, without=()):
    """Parametrises a test by `backend`."""
    return pytest.mark.parametrize(
        "backend",
        [
            pytest.param(b, id=b.name, marks=[pytest.mark.gpu] * (b.name in NEEDS_GPU))
            for b in BACKENDS
            if b.name not in without
        ],
    )
