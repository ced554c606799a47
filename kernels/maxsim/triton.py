"""MaxSim in Triton: scores of batches of queries and documents.

The formulas and counts are in README.md, section Triton. The kernels in the order in which they
run, after `prepare` of info_nce where rows are normalised; triton_gradients.py has what follows:

    tokens        which rows are tokens
    scan          a tile of query rows through a document: what each row matches
    sum_tokens    what a query's rows matched -> its score

Every output element is written by one program, which adds in a fixed order: no atomics, and the
same inputs give the same bits. Rows are read where they lie, through two strides. Addresses are
64-bit. Lengths, counts and the presence of masks are plain arguments that are never specialised.
"""

import triton
import triton.language as tl
from simtile.kernels.tile.triton import dot

# No row yet: more than any index, so that the least of several is the first row.
NO_ROW = tl.constexpr(2**31 - 1)

_SIZES = [
    "rows",
    "length",
    "group_rows",
    "query_length",
    "document_length",
    "document_count",
    "candidate_count",
    "tiles",
    "has_mask",
    "has_query_mask",
    "has_document_mask",
    "has_candidates",
    "normalize",
    "length_normalize",
    "empty_score",
    "temperature",
    "pairs",
]
# The caller's, or parts of larger arrays: where they begin compiles nothing anew.
_UNALIGNED = [
    "mask",
    "query_mask",
    "document_mask",
    "candidates",
    "argmax",
    "token_scores",
    "scores",
]


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def tokens(
    x,  # [rows / length, length, dim]
    stride_b,
    stride_r,
    length,
    rows,
    dim,
    mask,  # uint8 [rows], read if has_mask
    has_mask,
    there,  # uint8 [rows]: the mask, and no row of zeros
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < rows
    source = x + row // length * stride_b + row % length * stride_r
    d = tl.arange(0, BLOCK)
    found = tl.zeros((ROWS, BLOCK), tl.int32)
    for start in range(0, dim, BLOCK):
        values = tl.load(
            source[:, None] + start + d[None, :],
            mask=inside[:, None] & (start + d < dim)[None, :],
            other=0.0,
        )
        found |= (values.to(tl.float32) != 0.0).to(tl.int32)
    own = tl.load(mask + row, mask=inside & (has_mask != 0), other=1)
    is_token = (tl.max(found, 1) != 0) & (own != 0)
    tl.store(there + row, is_token.to(tl.uint8), mask=inside)


@triton.jit
def products(
    document_rows,  # pointers [BJ]
    document_inside,
    query_rows,  # pointers [BQ]
    query_inside,
    dim,
    BJ: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Rows of a document times rows of queries: float32 [BJ, BQ]."""
    k = tl.arange(0, BK)
    sums = tl.zeros((BJ, BQ), tl.float32)
    for start in range(0, dim, BK):
        inside = start + k < dim
        d = tl.load(
            document_rows[:, None] + start + k[None, :],
            mask=document_inside[:, None] & inside[None, :],
            other=0.0,
        )
        q = tl.load(
            query_rows[:, None] + start + k[None, :],
            mask=query_inside[:, None] & inside[None, :],
            other=0.0,
        )
        sums = dot(d, tl.trans(q), sums, PRECISION, EMULATE)
    return sums


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def scan(
    queries,  # [Q, query_length, dim]
    query_stride_b,
    query_stride_r,
    query_factor,  # float32 [Q * query_length]: unit vector = row * factor, read if normalize
    query_mask,  # uint8 [Q * query_length], read if has_query_mask
    documents,  # [N, document_length, dim]
    document_stride_b,
    document_stride_r,
    document_factor,
    document_mask,
    document_ends,  # int32 [N]: one more than the last token of each
    candidates,  # int64 [Q, candidate_count], read if has_candidates
    argmax,  # int32 [Q, candidate_count, query_length]: -1 is none
    token_scores,  # float32, of the same shape
    group_rows,  # query rows that share their documents: all, or those of one query
    query_length,
    document_length,
    document_count,
    candidate_count,
    dim,
    tiles,  # of a group
    has_query_mask,
    has_document_mask,
    has_candidates,
    normalize,
    temperature,
    SMOOTH: tl.constexpr,
    WHOLE: tl.constexpr,  # BK is at least dim: query rows are read once
    BJ: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    # Programs of one document are neighbours: it comes from L2 for all but the first.
    pid = tl.program_id(0)
    group = pid // (tiles * candidate_count)
    c = pid // tiles % candidate_count
    local = pid % tiles * BQ + tl.arange(0, BQ)
    row_inside = local < group_rows
    # Indices of rows are 32-bit: vectors of them stand in registers several times.
    row = group * group_rows + local
    query, i = row // query_length, row % query_length
    first = group.to(tl.int64) * candidate_count
    chosen = tl.load(candidates + first + c, mask=has_candidates != 0, other=0)
    n = tl.where(has_candidates != 0, chosen, c.to(tl.int64))
    is_document = (n >= 0) & (n < document_count)
    n = tl.where(is_document, n, 0)
    end = tl.load(document_ends + n, mask=is_document, other=0)

    query_rows = queries + query.to(tl.int64) * query_stride_b + i.to(tl.int64) * query_stride_r
    own = tl.load(query_mask + row, mask=row_inside & (has_query_mask != 0), other=1)
    row_there = row_inside & (own != 0)
    of_query = tl.load(query_factor + row, mask=row_inside & (normalize != 0), other=1.0)
    k = tl.arange(0, BK)
    if WHOLE:
        q = tl.load(
            query_rows[:, None] + k[None, :],
            mask=row_inside[:, None] & (k < dim)[None, :],
            other=0.0,
        )
    # Elementwise over the tiles of the document; across its rows once, at the end.
    best = tl.full((BJ, BQ), float("-inf"), tl.float32)
    place = tl.full((BJ, BQ), NO_ROW, tl.int32)
    if SMOOTH:
        total = tl.zeros((BJ, BQ), tl.float32)
    for start in range(0, end, BJ):
        j = start + tl.arange(0, BJ)
        inside = j < end
        document_rows = documents + n * document_stride_b + j.to(tl.int64) * document_stride_r
        if WHOLE:
            d = tl.load(
                document_rows[:, None] + k[None, :],
                mask=inside[:, None] & (k < dim)[None, :],
                other=0.0,
            )
            sums = tl.zeros((BJ, BQ), tl.float32)
            sums = dot(d, tl.trans(q), sums, PRECISION, EMULATE)
        else:
            sums = products(
                document_rows,
                inside,
                query_rows,
                row_inside,
                dim,
                BJ,
                BQ,
                BK,
                PRECISION,
                EMULATE,
            )
        at = n * document_length + j
        theirs = tl.load(document_mask + at, mask=inside & (has_document_mask != 0), other=1)
        there = (inside & (theirs != 0))[:, None]
        of_document = tl.load(document_factor + at, mask=inside & (normalize != 0), other=1.0)
        sums = sums * of_document[:, None] * of_query[None, :]
        sums = tl.where(there, sums, float("-inf"))
        if SMOOTH:
            # Infinite or NaN maxima stay what they are, whatever the total becomes.
            largest = tl.maximum(best, sums)
            shift = tl.where(tl.abs(largest) < float("inf"), largest, 0.0)
            total *= tl.exp((best - shift) / temperature)
            total += tl.exp((sums - shift) / temperature)
        is_nan = (sums != sums) & (best == best)
        take = (sums > best) | is_nan | (there & (place == NO_ROW))
        best = tl.where(take, sums, best)
        place = tl.where(take, j[:, None], place)

    is_nan = best != best
    has_nan = tl.max(is_nan.to(tl.int32), 0) != 0
    largest = tl.max(tl.where(is_nan, float("-inf"), best), 0)
    equal = tl.where(has_nan[None, :], is_nan, best == largest[None, :])
    first = tl.min(tl.where(equal, place, NO_ROW), 0)
    value = tl.where(has_nan, float("nan"), largest)
    if SMOOTH:
        known = tl.abs(value) < float("inf")
        shift = tl.where(known, value, 0.0)
        whole = tl.sum(total * tl.exp((best - shift[None, :]) / temperature), 0)
        value = tl.where(known, value + temperature * tl.log(whole), value)
    is_matched = row_there & (first != NO_ROW)
    out = (query.to(tl.int64) * candidate_count + c) * query_length + i
    tl.store(argmax + out, tl.where(is_matched, first, -1), mask=row_inside)
    tl.store(token_scores + out, tl.where(is_matched, value, 0.0), mask=row_inside)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def sum_tokens(
    token_scores,  # float32 [Q, candidate_count, query_length]
    query_counts,  # int32 [Q]: tokens
    document_ends,  # int32 [N]: 0 of a document without tokens
    candidates,
    scores,  # float32 [Q, candidate_count]
    pairs,  # Q * candidate_count
    query_length,
    document_count,
    candidate_count,
    has_candidates,
    length_normalize,
    empty_score,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = (tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)).to(tl.int64)
    inside = pair < pairs
    query, c = pair // candidate_count, pair % candidate_count
    i = tl.arange(0, BLOCK)
    sums = tl.zeros((PAIRS,), tl.float64)
    for start in range(0, query_length, BLOCK):
        values = tl.load(
            token_scores + pair[:, None] * query_length + start + i[None, :],
            mask=inside[:, None] & (start + i < query_length)[None, :],
            other=0.0,
        )
        sums += tl.sum(values.to(tl.float64), 1)
    count = tl.load(query_counts + query, mask=inside & (length_normalize != 0), other=1)
    sums = sums / tl.maximum(count, 1).to(tl.float64)
    n = tl.load(candidates + pair, mask=inside & (has_candidates != 0), other=-1)
    n = tl.where(has_candidates != 0, n, c)
    is_document = inside & (n >= 0) & (n < document_count)
    end = tl.load(document_ends + n, mask=is_document, other=0)
    tl.store(scores + pair, tl.where(end > 0, sums.to(tl.float32), empty_score), mask=inside)
