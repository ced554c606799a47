"""Tile shapes of the Triton kernels measured instead of pinned: SIMTILE_AUTOTUNE=1.

Off unless asked for: the pinned tiles give the same bits on every run; measured ones may differ
from process to process, and with them the last digits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch

from simtile.kernels.info_nce import triton_configs as configs
from simtile.kernels.info_nce.triton_configs import Config

# Rows of the batch that is timed: a training batch's work on a large GPU, in some milliseconds.
BATCH = 8192

_found: dict[tuple[torch.device, str, str, int], Config] = {}


def wanted() -> bool:
    """Whether the environment asks for it."""
    value = os.environ.get("SIMTILE_AUTOTUNE", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"SIMTILE_AUTOTUNE: found {value!r}, expected '0' or '1'")
    return value == "1"


def fastest(pinned: Config, milliseconds: Callable[[Config], float]) -> Config:
    """The pinned configuration, or a faster one: first other scores are tried, then products.

    `milliseconds` is the time of a configuration, infinite where the GPU has no room for it.
    """
    best, best_time = pinned, milliseconds(pinned)
    for part in Config._fields:
        for tile in configs.alternatives(getattr(pinned, part)):
            candidate = best._replace(**{part: tile})
            time = milliseconds(candidate)
            if time < best_time:
                best, best_time = candidate, time
    if math.isinf(best_time):
        raise RuntimeError(
            f"SIMTILE_AUTOTUNE: no tile shape ran, not even the pinned {pinned}; unset it and "
            "report what `simtile doctor` says"
        )
    return best


def tiles(
    device: torch.device,
    dtype: torch.dtype,
    precision: str,
    dim: int,
    pinned: Config,
    timed: Callable[[torch.Tensor, Config], None],
) -> Config:
    """What is fastest here for an element type, a precision and D; measured when first asked.

    `timed(rows, tiles)` runs forward and backward on rows [BATCH, dim]. While a CUDA graph is
    captured nothing can be measured, and the pinned tiles serve.
    """
    key = (device, str(dtype), precision, configs.operand_stride(dim))
    if key in _found:
        return _found[key]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return pinned
    rows = torch.randn(BATCH, dim, device=device).to(dtype)
    _found[key] = fastest(pinned, lambda tile: _milliseconds(lambda: timed(rows, tile)))
    return _found[key]


def _milliseconds(call: Callable[[], None]) -> float:
    import triton

    try:
        time: float = triton.testing.do_bench(call, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return math.inf
    return time
