"""The gradients of MaxSim in Triton, from what the kernels of triton.py found.

The kernels in the order in which they run, with `finish` of info_nce after them where rows are
normalised. The rules are those of triton.py:

    query_gradients          a query row's gradient, from the document rows that it matched
    smooth_query_gradients   the same of a smooth maximum, to which all rows contribute
    document_gradients       a document's gradient, from what its queries matched
"""

import triton
import triton.language as tl
from simtile.kernels.maxsim.triton import products
from simtile.kernels.tile.triton import dot, narrow

_SIZES = [
    "rows",
    "group_rows",
    "query_length",
    "document_length",
    "document_count",
    "candidate_count",
    "tiles",
    "has_document_mask",
    "has_candidates",
    "normalize",
    "length_normalize",
    "temperature",
    "pairs",
]
# As in triton.py.
_UNALIGNED = ["document_mask", "candidates", "grad_scores", "argmax", "token_scores"]


@triton.jit
def weight(grad_scores, query_counts, pair, query, mask, length_normalize):
    """What multiplies the gradients of a pair's token scores."""
    grad = tl.load(grad_scores + pair, mask=mask, other=0.0)
    count = tl.load(query_counts + query, mask=mask & (length_normalize != 0), other=1)
    return grad / tl.maximum(count, 1).to(tl.float32)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def query_gradients(
    documents,
    document_stride_b,
    document_stride_r,
    document_factor,
    candidates,
    query_counts,
    grad_scores,  # float32 [Q, candidate_count]
    argmax,  # int32 [Q, candidate_count, query_length]
    grad,  # float32 [rows, grad_stride]
    grad_stride,
    rows,  # Q * query_length
    query_length,
    document_length,
    candidate_count,
    dim,
    has_candidates,
    normalize,
    length_normalize,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < rows
    query, i = row // query_length, row % query_length
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for c in range(candidate_count):
        pair = query * candidate_count + c
        j = tl.load(argmax + pair * query_length + i, mask=inside, other=-1)
        matched = inside & (j >= 0)
        n = tl.load(candidates + pair, mask=matched & (has_candidates != 0), other=0)
        n = tl.where(has_candidates != 0, n, c)
        scale = weight(grad_scores, query_counts, pair, query, matched, length_normalize)
        at = n * document_length + j
        factor = tl.load(document_factor + at, mask=matched & (normalize != 0), other=1.0)
        source = documents + n * document_stride_b + j.to(tl.int64) * document_stride_r
        values = tl.load(
            source[:, None] + d[None, :],
            mask=matched[:, None] & (d < dim)[None, :],
            other=0.0,
        )
        sums += values.to(tl.float32) * (scale * factor)[:, None]
    place = grad + row[:, None] * grad_stride + d[None, :]
    tl.store(place, sums, mask=inside[:, None] & (d < dim)[None, :])


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def smooth_query_gradients(
    queries,
    query_stride_b,
    query_stride_r,
    query_factor,
    documents,
    document_stride_b,
    document_stride_r,
    document_factor,
    document_mask,
    document_ends,
    candidates,
    query_counts,
    grad_scores,
    argmax,
    token_scores,  # the smooth maxima
    grad,  # float32 [Q * query_length, grad_stride]
    grad_stride,
    group_rows,
    query_length,
    document_length,
    document_count,
    candidate_count,
    dim,
    tiles,
    has_document_mask,
    has_candidates,
    normalize,
    length_normalize,
    temperature,
    SPLIT: tl.constexpr,
    BJ: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    BO: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    group = tl.program_id(0) // tiles
    local = tl.program_id(0) % tiles * BQ + tl.arange(0, BQ)
    row_inside = local < group_rows
    row = group * group_rows + local
    query, i = row // query_length, row % query_length
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    query_rows = queries + query.to(tl.int64) * query_stride_b + i.to(tl.int64) * query_stride_r
    of_query = tl.load(query_factor + row, mask=row_inside & (normalize != 0), other=1.0)
    # With the shares of 16-bit types on the left: on the right their products were wrong on sm_90.
    # Without a matrix unit that would spill.
    if SPLIT:  # noqa: SIM108
        result = tl.zeros((BQ, BO), tl.float32)
    else:
        result = tl.zeros((BO, BQ), tl.float32)
    for c in range(candidate_count):
        at_pair = group.to(tl.int64) * candidate_count + c
        chosen = tl.load(candidates + at_pair, mask=has_candidates != 0, other=0)
        n = tl.where(has_candidates != 0, chosen, c)
        is_document = (n >= 0) & (n < document_count)
        n = tl.where(is_document, n, 0)
        end = tl.load(document_ends + n, mask=is_document, other=0)
        pair = query.to(tl.int64) * candidate_count + c
        out = pair * query_length + i
        matched = row_inside & (tl.load(argmax + out, mask=row_inside, other=-1) >= 0)
        smooth = tl.load(token_scores + out, mask=matched, other=0.0)
        scale = weight(grad_scores, query_counts, pair, query, matched, length_normalize)
        sums = tl.zeros_like(result)
        for start in range(0, end, BJ):
            j = start + tl.arange(0, BJ)
            inside = j < end
            at = n * document_length + j
            theirs = tl.load(document_mask + at, mask=inside & (has_document_mask != 0), other=1)
            there = inside & (theirs != 0)
            of_document = tl.load(document_factor + at, mask=there & (normalize != 0), other=1.0)
            document_rows = documents + n * document_stride_b + j.to(tl.int64) * document_stride_r
            # Rows that are no tokens may hold NaN, which times 0 would be NaN.
            logits = products(
                document_rows,
                there,
                query_rows,
                matched,
                dim,
                BJ,
                BQ,
                BK,
                PRECISION,
                EMULATE,
            )
            logits = logits * of_document[:, None] * of_query[None, :] - smooth[None, :]
            shares = tl.exp(logits / temperature)
            shares = tl.where(there[:, None] & matched[None, :], shares, 0.0)
            d = tl.load(
                document_rows[:, None] + o[None, :],
                mask=there[:, None] & (o < dim)[None, :],
                other=0.0,
            )
            shares *= of_document[:, None]
            if SPLIT:  # to the element type in two parts
                shares = tl.trans(shares)
                high = narrow(shares, d.dtype, EMULATE)
                sums = dot(high, d, sums, PRECISION, EMULATE)
                low = narrow(shares - high.to(tl.float32), d.dtype, EMULATE)
                sums = dot(low, d, sums, PRECISION, EMULATE)
            else:
                sums = dot(tl.trans(d), shares, sums, PRECISION, EMULATE)
        if SPLIT:
            result += sums * scale[:, None]
        else:
            result += sums * scale[None, :]
    place = grad + row[:, None] * grad_stride + o[None, :]
    if not SPLIT:
        result = tl.trans(result)
    tl.store(place, result, mask=row_inside[:, None] & (o < dim)[None, :])


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def document_gradients(
    queries,
    query_stride_b,
    query_stride_r,
    query_factor,
    documents,
    document_stride_b,
    document_stride_r,
    document_factor,
    document_mask,
    order,  # int64: pairs by their documents, read if has_candidates
    bounds,  # int64 [N + 1]: those of each document in `order`
    query_counts,
    grad_scores,
    argmax,
    token_scores,  # the smooth maxima, read if SMOOTH
    grad,  # float32 [N * document_length, grad_stride]
    grad_stride,
    pairs,  # of each document without candidates: Q
    query_length,
    document_length,
    candidate_count,
    dim,
    tiles,  # of a document
    has_document_mask,
    has_candidates,
    normalize,
    length_normalize,
    temperature,
    SMOOTH: tl.constexpr,
    SPLIT: tl.constexpr,
    BJ: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    BO: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    n = (tl.program_id(0) // tiles).to(tl.int64)
    j = tl.program_id(0) % tiles * BJ + tl.arange(0, BJ)
    inside = j < document_length
    at = n * document_length + j
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    theirs = tl.load(document_mask + at, mask=inside & (has_document_mask != 0), other=1)
    there = inside & (theirs != 0)
    if SMOOTH:
        of_document = tl.load(document_factor + at, mask=inside & (normalize != 0), other=1.0)
        document_rows = documents + n * document_stride_b + j.to(tl.int64) * document_stride_r
    first = tl.load(bounds + n, mask=has_candidates != 0, other=0)
    last = tl.load(bounds + n + 1, mask=has_candidates != 0, other=0)
    last = tl.where(has_candidates != 0, last, pairs)
    result = tl.zeros((BJ, BO), tl.float32)
    for turn in range(first, last):
        pair = tl.load(order + turn, mask=has_candidates != 0, other=0)
        pair = tl.where(has_candidates != 0, pair, turn * candidate_count + n)
        query = pair // candidate_count
        scale = weight(grad_scores, query_counts, pair, query, query >= 0, length_normalize)
        sums = tl.zeros((BJ, BO), tl.float32)
        for start in range(0, query_length, BQ):
            i = start + tl.arange(0, BQ)
            row_inside = i < query_length
            out = pair * query_length + i
            matched_row = tl.load(argmax + out, mask=row_inside, other=-1)
            matched = matched_row >= 0
            query_rows = queries + query * query_stride_b + i.to(tl.int64) * query_stride_r
            of_query = tl.load(
                query_factor + query * query_length + i,
                mask=matched & (normalize != 0),
                other=1.0,
            )
            if SMOOTH:
                logits = products(
                    document_rows,
                    there,
                    query_rows,
                    matched,
                    dim,
                    BJ,
                    BQ,
                    BK,
                    PRECISION,
                    EMULATE,
                )
                smooth = tl.load(token_scores + out, mask=matched, other=0.0)
                logits = logits * of_document[:, None] * of_query[None, :] - smooth[None, :]
                shares = tl.exp(logits / temperature)
                shares = tl.where(there[:, None] & matched[None, :], shares, 0.0)
            else:
                shares = (matched_row[None, :] == j[:, None]).to(tl.float32)
            q = tl.load(
                query_rows[:, None] + o[None, :],
                mask=matched[:, None] & (o < dim)[None, :],
                other=0.0,
            )
            shares *= of_query[None, :]
            high = narrow(shares, q.dtype, EMULATE)
            sums = dot(high, q, sums, PRECISION, EMULATE)
            if SPLIT:
                low = narrow(shares - high.to(tl.float32), q.dtype, EMULATE)
                sums = dot(low, q, sums, PRECISION, EMULATE)
        result += sums * scale
    place = grad + at[:, None] * grad_stride + o[None, :]
    tl.store(place, result, mask=inside[:, None] & (o < dim)[None, :])
