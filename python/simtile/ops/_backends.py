"""Which backend runs a call on tensors: a named one is never replaced by another."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from simtile import _inputs

_GPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_available(backend: str) -> None:
    """Raise unless a backend can run somewhere on this machine."""
    _inputs.check_choice("backend", backend, _inputs.BACKENDS)
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            raise RuntimeError(
                "backend: 'triton' is not available, triton is not installed: "
                "pip install 'simtile[gpu]'"
            )
        from simtile.ops._triton_device import INTERPRETED

        if not (INTERPRETED or torch.cuda.is_available()):
            raise RuntimeError(
                "backend: 'triton' is not available, torch finds no GPU (simtile doctor says what "
                "it does find); use 'cpu' (or 'auto')"
            )
    elif backend == "cuda":
        if importlib.util.find_spec("simtile._cuda") is None:
            raise RuntimeError(
                "backend: 'cuda' is not available, this simtile was built without its CUDA module "
                "(SIMTILE_CUDA=ON builds it, or says what is missing); use 'auto'"
            )
        if not torch.cuda.is_available():
            raise RuntimeError(
                "backend: 'cuda' is not available, torch finds no GPU (simtile doctor says what it "
                "does find); use 'cpu' (or 'auto')"
            )


def choose(backend: str, name: str, tensor: Tensor, dtype: torch.dtype) -> str:
    """The backend for inputs like `tensor`, all of which become `dtype`."""
    _inputs.check_choice("backend", backend, _inputs.BACKENDS)
    device = tensor.device
    if device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name}: found a tensor on {device}, expected the CPU or a GPU (cuda)")
    if backend == "auto":
        backend = "triton" if device.type == "cuda" else "cpu"
    if backend in ("cpu", "reference"):
        if device.type == "cuda":
            raise ValueError(
                f"{name}: found a tensor on {device}, expected the CPU because backend is "
                f"{backend!r}; use 'triton' (or 'auto'), or x.cpu(), which gradients pass"
            )
        return backend
    if not torch.compiler.is_compiling():  # which cannot look for modules; the operator will
        check_available(backend)
    if device.type == "cpu":
        from simtile.ops._triton_device import INTERPRETED

        if backend != "triton" or not INTERPRETED:
            raise ValueError(
                f"{name}: found a tensor on the CPU, expected a GPU because backend is "
                f"{backend!r}; use 'cpu' (or 'auto'), or x.cuda()"
            )
    if dtype not in _GPU_TYPES:
        raise ValueError(
            f"{name}: found {dtype} on {device}, expected float32, bfloat16 or float16: the GPU "
            "kernels have no float64; use x.float(), or x.cpu()"
        )
    return backend
