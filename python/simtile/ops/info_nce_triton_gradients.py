"""info_nce on a GPU: gradients of the plain loss, by launches of `triton_gradients.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
from torch import Tensor

from simtile.kernels.info_nce import triton_configs as configs
from simtile.kernels.info_nce import triton_gradients as kernels
from simtile.ops._triton_device import INTERPRETED
from simtile.ops.info_nce_triton_call import Call, Rows


class Inputs(NamedTuple):
    """The vectors of a call as the kernels take them, and what goes with them."""

    queries: Rows
    candidates: Rows  # documents, then hard negatives unless they are each query's own
    own_negatives: Rows
    n: int  # queries
    m: int  # documents
    candidate_count: int
    k: int  # hard negatives of each query
    own: int  # those that no other query sees: k or 0
    has_own: bool
    temperature: Tensor  # one float32
    targets: Tensor  # int64 [n], read if has_targets
    has_targets: int


class Gradients:
    """Those that are wanted, chunk by chunk of the rows."""

    def __init__(
        self, call: Call, inputs: Inputs, total: Tensor, need_grad: Sequence[bool]
    ) -> None:
        self.call, self.inputs = call, inputs
        self.total = total  # one float32, which multiplies all
        self.need_documents, self.need_negatives = need_grad[1:3]
        self.out_rows = inputs.m if self.need_documents else 0
        if self.need_negatives and not inputs.has_own:
            self.out_rows = inputs.candidate_count
        self.queries = call.floats(inputs.n, call.stride) if need_grad[0] else None
        self.candidates = call.floats(self.out_rows, call.stride) if self.out_rows else None
        self.own_negatives: Tensor | None = None
        if self.need_negatives and inputs.has_own:
            self.own_negatives = call.floats(inputs.n * inputs.own, call.stride)

    @property
    def products(self) -> bool:
        """Whether coefficients are multiplied, and so must be there."""
        return self.queries is not None or self.candidates is not None

    def add(
        self,
        exponentials: Tensor,  # [chunk, padded candidates]; coefficients on return
        factors: Tensor,  # [chunk, tiles]
        positive_coefficient: Tensor,  # [n]
        row0: int,
        rows: int,
    ) -> None:
        """What a chunk of rows adds, its own negatives aside."""
        call, inputs, emulate = self.call, self.inputs, {"EMULATE": INTERPRETED}
        q, c = inputs.queries, inputs.candidates
        scores, product = call.tiles
        columns, tile_count = exponentials.shape[1], factors.shape[1]
        coefficients = exponentials.view(call.dtype)
        parts_down = triton.cdiv(rows, scores.rows) * scores.rows // configs.COEFFICIENT_ROWS
        kernels.coefficients[(parts_down * tile_count,)](
            exponentials,
            coefficients,
            columns,
            factors,
            positive_coefficient,
            c.factor,
            inputs.targets,
            row0,
            inputs.n,
            tile_count,
            inputs.has_targets,
            BM=configs.COEFFICIENT_ROWS,
            BN=scores.columns,
            **emulate,
            num_warps=4,
        )
        options = configs.product_options(product, call.name, call.precision, call.dim)
        across = triton.cdiv(call.dim, options["BD"])
        query_tiles = 0 if self.queries is None else triton.cdiv(rows, product.rows) * across
        document_tiles = triton.cdiv(self.out_rows, product.rows) * across
        kernels.products[(query_tiles + document_tiles,)](
            coefficients,
            columns,
            q.operand[row0:],
            q.factor[row0:],
            c.operand,
            c.factor,
            call.stride,
            inputs.temperature,
            self.total,
            self.total if self.queries is None else self.queries[row0:],
            self.total if self.candidates is None else self.candidates,
            query_tiles,
            rows,
            inputs.candidate_count,
            self.out_rows,
            call.dim,
            int(row0 > 0),
            **options,
            **emulate,
            num_warps=product.warps,
            num_stages=product.stages,
        )

    def add_own(self, own_coefficients: Tensor) -> None:
        """What own negatives [n, own] add."""
        inputs = self.inputs
        if not inputs.own or (self.own_negatives is None and self.queries is None):
            return
        add_own(
            self.call,
            inputs.queries,
            inputs.own_negatives,
            own_coefficients,
            inputs.temperature,
            self.total,
            self.queries,
            self.own_negatives,
        )

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of queries, documents and negatives, in the inputs' shapes."""
        call, inputs = self.call, self.inputs
        queries = documents = negatives = None
        if self.candidates is not None:
            finished = call.finished(self.candidates, inputs.candidates)
            documents = finished[: inputs.m] if self.need_documents else None
            if self.need_negatives and not inputs.has_own:
                negatives = finished[inputs.m :].view(inputs.n, inputs.k, call.dim)
        if self.own_negatives is not None:
            finished = call.finished(self.own_negatives, inputs.own_negatives)
            negatives = finished.view(inputs.n, inputs.k, call.dim)
        if self.queries is not None:
            queries = call.finished(self.queries, inputs.queries)
        return queries, documents, negatives


def add_own(
    call: Call,
    queries: Rows,
    negatives: Rows,
    own_coefficients: Tensor,  # [n, own]
    temperature: Tensor,
    total: Tensor,
    grad_queries: Tensor | None,  # added to
    grad_negatives: Tensor | None,  # written
) -> None:
    """What each query's own hard negatives add to its gradient, and their own."""
    n, own = own_coefficients.shape
    kernels.own_gradients[(n, triton.cdiv(call.stride, call.block.elements))](
        queries.operand,
        queries.factor,
        negatives.operand,
        negatives.factor,
        call.stride,
        own_coefficients,
        temperature,
        total,
        total if grad_queries is None else grad_queries,
        total if grad_negatives is None else grad_negatives,
        own,
        QUERIES=grad_queries is not None,
        NEGATIVES=grad_negatives is not None,
        BLOCK=call.block.elements,
        num_warps=call.block.warps,
    )
