"""quantize on a GPU: memory and launches of the kernels in `kernels/quantize/triton.py`.

Nothing here waits for the device; `quantize` reads the flags.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from simtile.kernels.quantize import triton as kernels
from simtile.kernels.quantize import triton_configs as configs
from simtile.ops._triton_device import on
from simtile.quantized import PER_DIMENSION, PER_VECTOR, code_dtype, code_width


class Codes(NamedTuple):
    """Tensors on the device of the vectors."""

    codes: Tensor  # [N, W]
    scale: Tensor | None  # float32 [N], where each vector has one
    flags: Tensor | None  # int8 [N]: not 0 where a row has no codes, as `_core.quantize` says


def ranges(x: Tensor) -> Tensor:
    """Smallest and largest value of every column of x [N, D], N >= 1; float32 [2, D]."""
    rows, dim = x.shape
    number = torch.float64 if x.dtype == torch.float64 else torch.float32
    blocks = triton.cdiv(dim, configs.END_COLUMNS)
    parts = min(configs.END_PARTS, triton.cdiv(rows, configs.END_ROWS))
    found = torch.empty((2, parts * configs.END_ROWS, dim), dtype=number, device=x.device)
    with on(x.device):
        kernels.ends[(blocks, parts)](
            x,
            x.stride(0),
            rows,
            dim,
            found[0],
            found[1],
            ROWS=configs.END_ROWS,
            BLOCK=configs.END_COLUMNS,
            num_warps=configs.WARPS,
        )
        ends = torch.stack((found[0].amin(0), found[1].amax(0)))  # these pass NaN on
        return ends.float() + 0.0  # -0 becomes 0


def grid(ends: Tensor, levels: int, zero_level: int) -> tuple[Tensor, Tensor, Tensor]:
    """`simtile.quantize.grid` on a device: starts, steps and offset, float32 [D]."""
    starts = ends[0]
    # By a tensor: a GPU multiplies by the reciprocal of a number.
    width = (ends[1] - starts) / torch.full_like(starts, levels - 1)
    steps = torch.where(width == 0, 1.0, width)
    middle = starts.double() + zero_level * steps.double() + 0.5 * width.double()
    return starts, steps, middle.float()


def codes(x: Tensor, kind: str, starts: Tensor | None, steps: Tensor | None) -> Codes:
    """The codes of x [N, D], whose last axis has unit stride."""
    rows, dim = x.shape
    width = code_width(kind, dim)
    out = torch.empty((rows, width), dtype=torch.uint8, device=x.device)
    scale = flags = None
    if kind in PER_VECTOR:
        scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    if kind != "binary":
        flags = torch.zeros(rows, dtype=torch.int8, device=x.device)
    if rows:
        options = configs.code_options(kind, dim, x.element_size())
        programs = (triton.cdiv(rows, options["ROWS"] * options.get("REPEAT", 1)),)
        source = (x, x.stride(0), rows, dim)
        with on(x.device):
            if kind in PER_DIMENSION:
                kernels.by_dimension[programs](
                    *source, starts, steps, out, width, flags, **options, num_warps=configs.WARPS
                )
            elif kind in PER_VECTOR:
                kernels.by_vector[programs](
                    *source, out, width, scale, flags, **options, num_warps=configs.WARPS
                )
            else:
                kernels.signs[programs](*source, out, width, **options, num_warps=configs.WARPS)
    return Codes(out.view(getattr(torch, code_dtype(kind))), scale, flags)
