"""info_nce on a GPU: workspaces and launches of the kernels in `kernels/info_nce/triton.py`.

Nothing here waits for the device or reads from it, so a call can be captured in a CUDA graph. What
could only be checked by reading (the values of targets and of a temperature tensor) makes the
result NaN where it is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from simtile.kernels.info_nce import triton as kernels
from simtile.kernels.info_nce import triton_configs as configs
from simtile.kernels.info_nce.triton_configs import Config
from simtile.ops import info_nce_autotune as autotune
from simtile.ops._tensors import as_index, complete_ids, temperature_on

# The one matrix of coefficients that there is: a chunk of rows by all candidates. Larger chunks
# pass less often over the documents' gradient, which is read and written once a chunk; this one
# keeps training with 65,536 pairs of 768 bfloat16 numbers, inputs and gradients included, below
# 1 GB.
CHUNK_BYTES = 168 * 2**20

# TRITON_INTERPRET=1, set before the first import: kernels run in Python, on tensors of the CPU.
INTERPRETED = not isinstance(kernels.prepare, triton.JITFunction)


class Result(NamedTuple):
    """Tensors on the inputs' device; gradients that were not asked for are None."""

    losses: Tensor  # float32 [N]
    grad_queries: Tensor | None  # float32, of the inputs' shapes
    grad_documents: Tensor | None
    grad_negatives: Tensor | None
    grad_temperature: Tensor | None  # float64 scalar
    tally: Tensor | None = None  # float64 [7]: simtile._statistics.Tally


def family(device: torch.device) -> str:
    """The row of CONFIGS for a device."""
    if INTERPRETED:
        return "sm80"
    if torch.version.hip is not None:
        name = str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
        if name.startswith("gfx9"):
            return "gfx942"
        raise RuntimeError(
            f"backend: 'triton' found the AMD device {name}, expected gfx942 or another gfx9"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise RuntimeError(
            f"backend: 'triton' found compute capability {major}.{minor}, expected 8.0 or newer"
        )
    if major == 8:
        return "sm80" if minor == 0 else "sm120"  # sm86, sm89: as little shared memory as sm120
    return {9: "sm90", 10: "sm100"}.get(major, "sm120")


class _Rows(NamedTuple):
    """Vectors as the products take them."""

    operand: Tensor  # [padded rows, stride]
    factor: Tensor  # float32 [padded rows]
    inverse: Tensor

    def from_row(self, row: int) -> _Rows:
        return _Rows(*(x[row:] for x in self))


class _Call:
    """One call: the inputs, the prepared operands and the launches on them."""

    def __init__(
        self,
        dtype: torch.dtype,
        dim: int,
        normalize: bool,
        device: torch.device,
        precision: str,
        tiles: Config,
    ) -> None:
        self.dtype, self.dim, self.normalize, self.device = dtype, dim, normalize, device
        self.name = str(dtype).removeprefix("torch.")
        self.precision, self.tiles = precision, tiles
        self.stride = configs.operand_stride(dim)
        self.block = configs.row_block(dim)

    def floats(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def room(self, rows: int) -> _Rows:
        operand = torch.empty((rows, self.stride), dtype=self.dtype, device=self.device)
        return _Rows(operand, self.floats(rows), self.floats(rows))

    def prepare(self, x: Tensor, into: _Rows, programs: int) -> None:
        """Fill `programs` rows: those of x [rows, D] or [N, K, D], then zeros."""
        inner = x.shape[1] if x.ndim == 3 else 1
        strides = x.stride() if x.ndim == 3 else (x.stride(0), 0, x.stride(1))
        aligned = (
            x.data_ptr() % 16 == 0
            and strides[2] == 1
            and not any(size % 16 for size in (*strides[:2], self.dim))
        )
        block = configs.row_block(self.dim, aligned)
        kernels.prepare[(programs,)](
            x,
            *strides,
            inner,
            x.shape[0] * inner,
            self.dim,
            int(self.normalize),
            into.operand,
            self.stride,
            into.factor,
            into.inverse,
            BLOCK=block.elements,
            num_warps=block.warps,
        )

    def prepared(self, *parts: Tensor) -> _Rows:
        """Several inputs, one after the other, padded to whole tiles."""
        counts = [x.shape[0] * (x.shape[1] if x.ndim == 3 else 1) for x in parts]
        rows = self.room(configs.padded_rows(sum(counts)))
        first = 0
        for x, count in zip(parts, counts, strict=True):
            is_last = first + count == sum(counts)
            programs = rows.operand.shape[0] - first if is_last else count
            if programs:
                self.prepare(x, rows.from_row(first), programs)
            first += count
        return rows

    def finished(self, grad: Tensor, rows: _Rows) -> Tensor:
        """Gradients of unit vectors [n, stride] to those of the inputs [n, D]."""
        if self.normalize and grad.shape[0]:
            kernels.finish[(grad.shape[0],)](
                grad,
                rows.operand,
                self.stride,
                rows.factor,
                rows.inverse,
                triton.cdiv(self.dim, 16) * 16,
                BLOCK=self.block.elements,
                num_warps=self.block.warps,
            )
        return grad if self.stride == self.dim else grad[:, : self.dim].contiguous()


def run(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    *,
    dtype: torch.dtype,
    temperature: float | Tensor,
    normalize: bool = True,
    targets: Tensor | None = None,
    query_ids: Tensor | None = None,
    document_ids: Tensor | None = None,
    own_negatives: bool = False,
    weight: float = 1.0,
    row_weights: Tensor | None = None,
    need_grad: Sequence[bool] = (False, False, False, False),
    precision: str = "ieee",
    tiles: Config | None = None,
) -> Result:
    """The losses [N], and the gradients of Σ_i weight · row_weights[i] · losses[i].

    Shapes and element types have been checked; `need_grad` is of queries, documents, negatives and
    temperature. `tiles` replaces the pinned configuration.
    """
    call = _call_for(queries, dtype, normalize, precision, tiles)
    device = queries.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return _run(
            call,
            queries.detach(),
            documents.detach(),
            None if negatives is None else negatives.detach(),
            _on_device(temperature, device),
            as_index(targets, device),
            *complete_ids(query_ids, document_ids, targets, queries.shape[0], device),
            own_negatives,
            weight,
            row_weights,
            need_grad,
        )


def _call_for(
    queries: Tensor, dtype: torch.dtype, normalize: bool, precision: str, tiles: Config | None
) -> _Call:
    device, dim = queries.device, queries.shape[1]
    if tiles is None:
        tiles = _pinned(device, str(dtype).removeprefix("torch."), precision)
        if autotune.wanted():
            training = _training(dtype, precision)
            tiles = autotune.tiles(device, dtype, precision, dim, tiles, training)
    return _Call(dtype, dim, normalize, device, precision, tiles)


def _run(
    call: _Call,
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: Tensor,
    targets: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    own_negatives: bool,
    weight: float,
    row_weights: Tensor | None,
    need_grad: Sequence[bool],
) -> Result:
    n, m = queries.shape[0], documents.shape[0]
    k = 0 if negatives is None else negatives.shape[1]
    own = k if own_negatives else 0
    in_candidates = [documents] if negatives is None or own_negatives else [documents, negatives]
    count = m + (0 if own_negatives else n * k)

    q = call.prepared(queries.to(call.dtype))
    c = call.prepared(*(x.to(call.dtype) for x in in_candidates))
    own_rows = call.room(0)
    own_logits = call.floats(n, own)
    if own and negatives is not None:
        own_rows = call.prepared(negatives.to(call.dtype))
        kernels.own_scores[(n, triton.cdiv(own, configs.OWN_BLOCK))](
            q.operand,
            q.factor,
            own_rows.operand,
            own_rows.factor,
            temperature,
            own_logits,
            own,
            call.stride,
            BLOCK_K=configs.OWN_BLOCK,
            BLOCK_D=configs.OWN_DIMS,
            num_warps=4,
        )

    need_negatives = need_grad[2] and negatives is not None
    gradients = any(need_grad)
    total, weights = _weights(call, n if gradients else 0, weight, row_weights)

    losses = call.floats(n)
    positive, positive_coefficient = call.floats(n), call.floats(n if gradients else 0)
    row_temperature = call.floats(n if gradients else 0)
    out_rows = count if need_negatives and not own_negatives else m if need_grad[1] else 0
    grad_candidates = call.floats(out_rows, call.stride) if out_rows else None
    grad_queries = call.floats(n, call.stride) if need_grad[0] else None
    products = grad_queries is not None or grad_candidates is not None

    scores, product = call.tiles
    columns = configs.padded_rows(count)
    tile_count = triton.cdiv(count, scores.columns)
    chunk = _chunk_rows(
        n, columns * (4 if call.dtype == torch.float32 else 2), tile_count, products
    )
    sums = [call.floats(chunk, tile_count) for _ in range(3)]
    kept = torch.float32 if call.dtype == torch.float32 else torch.float16
    shape = (chunk, columns) if products else (0, columns)
    exponentials = torch.empty(shape, dtype=kept, device=call.device)
    coefficients = exponentials.view(call.dtype)
    absent = torch.empty(1, dtype=torch.int64, device=call.device)
    indices = [absent if x is None else x for x in (targets, query_ids, document_ids)]
    has_targets, has_ids = int(targets is not None), int(query_ids is not None)
    emulate = {"EMULATE": INTERPRETED}

    for row0 in range(0, n, chunk):
        rows = min(chunk, n - row0)
        tiles_down = triton.cdiv(rows, scores.rows)
        kernels.scores[(tiles_down * tile_count,)](
            q.operand,
            q.factor,
            c.operand,
            c.factor,
            temperature,
            *indices,
            exponentials,
            columns,
            *sums,
            positive,
            row0,
            n,
            count,
            m,
            call.dim,
            call.stride,
            tile_count,
            has_targets,
            has_ids,
            **configs.score_options(scores, call.name, call.precision, products),
            **emulate,
            num_warps=scores.warps,
            num_stages=scores.stages,
        )
        kernels.row_losses[(rows,)](
            *sums,
            positive,
            own_logits,
            q.factor,
            temperature,
            indices[0],
            weights,
            losses,
            positive_coefficient,
            row_temperature,
            row0,
            n,
            m,
            tile_count,
            own,
            has_targets,
            0.0,
            **configs.loss_options(call.name, gradients),
            num_warps=1,
        )
        if not products:
            continue
        parts_down = tiles_down * scores.rows // configs.COEFFICIENT_ROWS
        kernels.coefficients[(parts_down * tile_count,)](
            exponentials,
            coefficients,
            columns,
            sums[0],
            positive_coefficient,
            c.factor,
            indices[0],
            row0,
            n,
            tile_count,
            has_targets,
            BM=configs.COEFFICIENT_ROWS,
            BN=scores.columns,
            **emulate,
            num_warps=4,
        )
        options = configs.product_options(product, call.name, call.precision, call.dim)
        across = triton.cdiv(call.dim, options["BD"])
        query_tiles = 0 if grad_queries is None else triton.cdiv(rows, product.rows) * across
        document_tiles = triton.cdiv(out_rows, product.rows) * across
        kernels.products[(query_tiles + document_tiles,)](
            coefficients,
            columns,
            q.operand[row0:],
            q.factor[row0:],
            c.operand,
            c.factor,
            call.stride,
            temperature,
            total,
            losses if grad_queries is None else grad_queries[row0:],
            losses if grad_candidates is None else grad_candidates,
            query_tiles,
            rows,
            count,
            out_rows,
            call.dim,
            int(row0 > 0),
            **options,
            **emulate,
            num_warps=product.warps,
            num_stages=product.stages,
        )

    grad_own = call.floats(n * own, call.stride) if own and need_negatives else None
    if own and (grad_own is not None or grad_queries is not None):
        kernels.own_gradients[(n, triton.cdiv(call.stride, call.block.elements))](
            q.operand,
            q.factor,
            own_rows.operand,
            own_rows.factor,
            call.stride,
            own_logits,
            temperature,
            total,
            losses if grad_queries is None else grad_queries,
            losses if grad_own is None else grad_own,
            own,
            QUERIES=grad_queries is not None,
            NEGATIVES=grad_own is not None,
            BLOCK=call.block.elements,
            num_warps=call.block.warps,
        )

    grad_documents = grad_negatives = None
    if grad_candidates is not None:
        finished = call.finished(grad_candidates, c)
        grad_documents = finished[:m] if need_grad[1] else None
        if need_negatives and not own_negatives:
            grad_negatives = finished[m:].view(n, k, call.dim)
    if need_negatives and own_negatives:
        grad_own = call.floats(0, call.stride) if grad_own is None else grad_own
        grad_negatives = call.finished(grad_own, own_rows).view(n, k, call.dim)
    return Result(
        losses,
        None if grad_queries is None else call.finished(grad_queries, q),
        grad_documents,
        grad_negatives,
        row_temperature.sum(dtype=torch.float64) * total[0] if need_grad[3] else None,
    )


def _weights(
    call: _Call, rows: int, weight: float, row_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One number [1] and, for each of `rows`, one of at most 1: their product weighs the row.

    Weights of any size, as a loss scaler makes them, become at most 1 in the coefficients.
    """
    total = torch.full((1,), weight, dtype=torch.float32, device=call.device)
    if row_weights is None:
        return total, torch.ones(rows, dtype=torch.float32, device=call.device)
    largest = row_weights.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    weights = (row_weights / largest).to(torch.float32).contiguous()
    return (total * largest).to(torch.float32), weights


def _chunk_rows(n: int, row_bytes: int, tile_count: int, products: bool) -> int:
    """Rows whose coefficients, or whose tile sums without gradients, fit in CHUNK_BYTES."""
    row_bytes = row_bytes * products + 12 * tile_count
    rows = CHUNK_BYTES // row_bytes // configs.ROW_PADDING * configs.ROW_PADDING
    return int(min(configs.padded_rows(n), max(rows, configs.ROW_PADDING)))


def _on_device(temperature: float | Tensor, device: torch.device) -> Tensor:
    if isinstance(temperature, Tensor):
        return temperature_on(temperature, device)
    return torch.full((1,), temperature, dtype=torch.float32, device=device)


def _training(dtype: torch.dtype, precision: str) -> Callable[[Tensor, Config], None]:
    """What the tiles are measured by: forward and backward of a batch."""

    def call(rows: Tensor, tiles: Config) -> None:
        run(
            rows,
            rows,
            None,
            dtype=dtype,
            temperature=0.05,
            precision=precision,
            need_grad=(True, True, False, False),
            tiles=tiles,
        )

    return call


def _pinned(device: torch.device, name: str, precision: str) -> Config:
    row = family(device)
    try:
        return configs.config(row, name, precision)
    except KeyError:
        raise ValueError(
            f"precision: found {precision!r} on {row}, expected one of "
            + ", ".join(repr(p) for p in configs.PRECISIONS if p in configs.CONFIGS[row])
        ) from None
