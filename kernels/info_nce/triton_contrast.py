"""The contrastive family in Triton: scores of a block of the matrix, with what is left out of it.

A block is rows (queries, or their documents) times columns (documents and hard negatives, or
queries); README.md has the list, section The family. The blocks of one log-sum-exp lie side by
side, and what follows their scores is the kernels of the plain loss:

    pair_scores         logits of the pairs, and how similar to their anchor negatives may be
    block_scores        a tile of logits of one block -> exponentials, row maxima and sums
    own_block_scores    logits of a query's own hard negatives, where it sees no others

What is compared with a threshold must round as the pair did: equal vectors are never above it. So
pair_scores multiplies tiles as block_scores does, by the same instructions, and own_block_scores
adds up the pair again in its own way; both factors of a product are multiplied first, which is
the same whichever vector is the row.
"""

import triton
import triton.language as tl
from simtile.kernels.tile.triton import dot, grouped, narrow

_SIZES = [
    "row0",
    "rows",
    "candidates",
    "documents",
    "dim",
    "guide_dim",
    "tiles",
    "tile_stride",
    "has_targets",
    "has_ids",
    "has_margin",
    "relative",
    "own",
    "hardened",
    "own_out",
    "needs_pair",
]
_UNALIGNED = [
    "targets",
    "row_ids",
    "column_ids",
    "row_factor",
    "column_factor",
    "guide_row_factor",
    "guide_column_factor",
    "tile_max",
    "tile_sum",
    "tile_weighted",
    "tile_similarity",
    "tile_kept",
    "tile_peak",
    "own_similarity",
    "own_kept",
    "own_ahead",
]


@triton.jit
def tile_products(
    a,  # [BM, BK]
    b,  # [BN, BK]
    size,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, size, BK):
        sums = dot(tl.load(a + start), tl.trans(tl.load(b + start)), sums, PRECISION, EMULATE)
    return sums


@triton.jit
def between(column, first, count):
    return (column >= first) & (column < first + count)


@triton.jit
def guide_limit(cosine, margin, relative):
    """What a candidate's cosine with its anchor may be, from the pair's."""
    return cosine - tl.where(relative != 0, margin * tl.abs(cosine), margin)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def pair_scores(
    rows_operand,  # operands [padded rows, operand_stride]: queries, or the guide's
    row_factor,
    columns_operand,  # documents first, or the guide's
    column_factor,
    temperature,  # one float32, read without GUIDE
    targets,  # int64 [rows], read if has_targets
    positive,  # float32 [rows]: the logit of a query's own document; not written with GUIDE
    threshold,  # [rows]: logits, or the guide's cosines, above are left out; infinite without any
    margin,  # a similarity
    rows,
    documents,
    dim,
    operand_stride,
    has_targets,
    has_margin,
    relative,
    GUIDE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BM
    row = first + tl.arange(0, BM)
    k = tl.arange(0, BK)
    row_there = row < rows
    a = rows_operand + row[:, None] * operand_stride + k[None, :]
    found = tl.zeros((BM,), tl.float32)
    # The documents of BN of the rows at a time; the pairs are on a diagonal of the tile.
    for part in range(0, BM, BN):
        mate = first + part + tl.arange(0, BN)
        is_pair = row[:, None] == mate[None, :]
        target = tl.load(targets + mate, mask=(mate < rows) & (has_targets != 0), other=0)
        target = tl.where(has_targets != 0, target, mate)
        # A target that is no document has no logit, which row_losses makes NaN.
        target = tl.where((target >= 0) & (target < documents), target, 0)
        b = columns_operand + target[:, None] * operand_stride + k[None, :]
        sums = tile_products(a, b, dim, BM, BN, BK, PRECISION, EMULATE)
        scale = tl.load(row_factor + row)[:, None] * tl.load(column_factor + target)[None, :]
        found += tl.sum(tl.where(is_pair, sums * scale, 0.0), 1)
    if GUIDE:
        tl.store(threshold + row, guide_limit(found, margin, relative), mask=row_there)
    else:
        inverse = 1.0 / tl.load(temperature)
        logit = found * inverse
        tl.store(positive + row, logit, mask=row_there)
        limit = tl.where(has_margin != 0, logit - margin * inverse, float("inf"))
        tl.store(threshold + row, limit, mask=row_there)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def block_scores(
    rows_operand,  # operands [padded rows, operand_stride]: queries, or their documents
    row_factor,
    columns_operand,  # documents, then hard negatives; or queries
    column_factor,
    guide_rows,  # the same by the guide, [., guide_stride], read if GUIDE
    guide_row_factor,
    guide_columns,
    guide_column_factor,
    temperature,  # one float32
    targets,  # int64 [rows], read if has_targets: the column of a row's own pair; else its number
    row_ids,  # int64, read if has_ids
    column_ids,
    threshold,  # float32 [rows], from pair_scores
    guide_threshold,
    exponentials,  # [rows of the chunk, score_stride]: E_SCALE exp(s - maximum of the tile's row)
    score_stride,
    tile_max,  # [rows of the chunk, tile_stride], as the next two
    tile_sum,  # sum of e = exp(s - max)
    tile_weighted,  # sum of e (s' - max), s' without what hardness added
    tile_similarity,  # written with STATISTICS, of negatives: sums of the logits in the loss
    tile_kept,  # how many those are
    tile_peak,  # the largest logit, of those that only the threshold leaves out too
    tile_stride,
    harden_others,  # times a similarity, added to its logit if `hardened`
    harden_own,  # the same for the row's own hard negatives
    row0,  # first row of the chunk
    rows,
    candidates,  # columns
    documents,  # of these in front of the hard negatives
    own,  # hard negatives of each row among the columns
    dim,
    operand_stride,
    guide_dim,
    guide_stride,
    tiles,
    has_targets,
    has_ids,
    hardened,
    own_out,  # whether the row's own hard negatives are left out
    GUIDE: tl.constexpr,
    STATISTICS: tl.constexpr,
    STORE: tl.constexpr,  # whether gradients follow
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    E_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    tiles_m = tl.num_programs(0) // tiles
    tile_m, tile_n = grouped(tl.program_id(0), tiles_m, tiles, GROUP)
    local = (tile_m * BM + tl.arange(0, BM)).to(tl.int64)
    row = row0 + local
    column = (tile_n * BN + tl.arange(0, BN)).to(tl.int64)
    k = tl.arange(0, BK)
    row_there = row < rows

    if GUIDE:
        a = guide_rows + row[:, None] * guide_stride + k[None, :]
        b = guide_columns + column[:, None] * guide_stride + k[None, :]
        cosines = tile_products(a, b, guide_dim, BM, BN, BK, PRECISION, EMULATE)
        scale = tl.load(guide_row_factor + row)[:, None]
        cosines *= scale * tl.load(guide_column_factor + column)[None, :]
        limit = tl.load(guide_threshold + row, mask=row_there, other=float("inf"))[:, None]
        # 0 for a negative, -inf for what is none; where the guide has NaN nobody knows: NaN.
        penalty = tl.where(cosines > limit, float("-inf"), limit - cosines)
        penalty = tl.where(cosines <= limit, 0.0, penalty)
    a = rows_operand + row[:, None] * operand_stride + k[None, :]
    b = columns_operand + column[:, None] * operand_stride + k[None, :]
    sums = tile_products(a, b, dim, BM, BN, BK, PRECISION, EMULATE)
    tau = tl.load(temperature)
    scale = tl.load(row_factor + row)[:, None] * tl.load(column_factor + column)[None, :]
    logits = sums * scale * (1.0 / tau)

    # The pair itself is added by row_losses, where it is a candidate.
    candidate = tile_n * BN + tl.arange(0, BN)  # there are fewer than 2^31 columns
    mate = tl.load(targets + row, mask=row_there & (has_targets != 0), other=0)
    mate = tl.where(has_targets != 0, mate, row).to(tl.int32)
    limit = tl.load(threshold + row, mask=row_there, other=float("inf"))
    shifted = logits
    if GUIDE:
        shifted = tl.where(penalty == float("-inf"), float("-inf"), logits + penalty)
    shifted = tl.where(candidate[None, :] == mate[:, None], float("-inf"), shifted)
    shifted = tl.where((candidate < candidates)[None, :], shifted, float("-inf"))
    if has_ids != 0:
        row_id = tl.load(row_ids + row, mask=row_there, other=0)
        column_id = tl.load(column_ids + column, mask=candidate < documents, other=0)
        is_same = (row_id[:, None] == column_id[None, :]) & (candidate < documents)[None, :]
        shifted = tl.where(is_same, float("-inf"), shifted)
    first_own = documents + row.to(tl.int32) * own
    if own_out != 0:
        is_own = between(candidate[None, :], first_own[:, None], own)
        shifted = tl.where(is_own, float("-inf"), shifted)
    at = local * tile_stride + tile_n
    if STATISTICS:
        known = tl.where(shifted == float("-inf"), float("-inf"), logits)
        tl.store(tile_peak + at, tl.max(known, 1), mask=row_there)
    shifted = tl.where(logits > limit[:, None], float("-inf"), shifted)
    if STATISTICS:
        kept = shifted != float("-inf")
        tl.store(tile_kept + at, tl.sum(kept.to(tl.float32), 1), mask=row_there)
        tl.store(tile_similarity + at, tl.sum(tl.where(kept, logits, 0.0), 1), mask=row_there)
    if hardened != 0:
        is_own = between(candidate[None, :], first_own[:, None], own)
        shifted *= tl.where(is_own, 1.0 + tau * harden_own, 1.0 + tau * harden_others)
    largest = tl.max(shifted, 1)
    base = tl.where(largest == float("-inf"), 0.0, largest)[:, None]
    shifted -= base
    e = tl.exp(shifted)
    tl.store(tile_max + at, largest, mask=row_there)
    tl.store(tile_sum + at, tl.sum(e, 1), mask=row_there)
    if hardened != 0:
        is_own = between(candidate[None, :], first_own[:, None], own)
        softer = tl.where(is_own, 1.0 / (1.0 + tau * harden_own), 1.0 / (1.0 + tau * harden_others))
        shifted = (shifted + base) * softer - base
    # Clipped, so that a candidate that is left out adds 0, not 0 times infinity.
    tl.store(tile_weighted + at, tl.sum(e * tl.maximum(shifted, -1e30), 1), mask=row_there)
    if STORE:
        # Rows beyond the last are all zeros: their exponentials are finite, and multiplied by 0.
        place = exponentials + local[:, None] * score_stride + column[None, :]
        tl.store(place, narrow(e * E_SCALE, exponentials.dtype.element_ty, EMULATE))


@triton.jit
def row_products(
    vector,  # one row
    others,  # [BLOCK_K] rows
    there,
    stride,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in range(0, stride, BLOCK_D):
        inside = start + d < stride
        v = tl.load(vector + start + d, mask=inside, other=0.0)
        x = tl.load(
            others[:, None] + start + d[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        sums += x.to(tl.float32) * v.to(tl.float32)[None, :]
    return tl.sum(sums, 1)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def own_block_scores(
    queries,
    query_factor,
    negatives,  # operands [rows * own, operand_stride]
    negative_factor,
    candidates_operand,  # documents first
    candidate_factor,
    guide_rows,
    guide_row_factor,
    guide_negatives,
    guide_negative_factor,
    guide_columns,
    guide_column_factor,
    temperature,
    targets,
    logits,  # float32 [rows, own]
    own_similarity,  # written with STATISTICS, [rows, programs]: as tile_similarity
    own_kept,
    own_ahead,  # how many are at least as similar as the pair
    margin,
    guide_margin,
    harden_own,
    documents,
    own,
    operand_stride,
    guide_stride,
    has_targets,
    has_margin,
    relative,
    needs_pair,
    GUIDE: tl.constexpr,
    STATISTICS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    there = k < own
    negative = row * own + k
    tau = tl.load(temperature)
    inverse = 1.0 / tau
    target = tl.load(targets + row, mask=has_targets != 0, other=0)
    target = tl.where(has_targets != 0, target, row)
    target = tl.where((target >= 0) & (target < documents), target, 0)
    mate = target + tl.zeros((BLOCK_K,), tl.int64)  # the pair, as often as there are lanes

    q = queries + row * operand_stride
    x = negatives + negative * operand_stride
    scale = tl.load(query_factor + row)
    sums = row_products(q, x, there, operand_stride, BLOCK_K, BLOCK_D)
    value = sums * (scale * tl.load(negative_factor + negative, mask=there, other=0.0)) * inverse
    logit = value
    pair_logit = tl.full((BLOCK_K,), float("inf"), tl.float32)
    if needs_pair != 0:
        x = candidates_operand + mate * operand_stride
        sums = row_products(q, x, there, operand_stride, BLOCK_K, BLOCK_D)
        pair_logit = sums * (scale * tl.load(candidate_factor + mate)) * inverse
    known_false = tl.zeros((BLOCK_K,), tl.int32) != 0
    if GUIDE:
        q = guide_rows + row * guide_stride
        x = guide_negatives + negative * guide_stride
        scale = tl.load(guide_row_factor + row)
        cosine = row_products(q, x, there, guide_stride, BLOCK_K, BLOCK_D)
        cosine *= scale * tl.load(guide_negative_factor + negative, mask=there, other=0.0)
        x = guide_columns + mate * guide_stride
        pair = row_products(q, x, there, guide_stride, BLOCK_K, BLOCK_D)
        pair *= scale * tl.load(guide_column_factor + mate)
        limit = guide_limit(pair, guide_margin, relative)
        known_false = cosine > limit
        value = tl.where(cosine <= limit, value, value + (cosine - limit))
    looks_false = (has_margin != 0) & (logit > pair_logit - margin * inverse)
    if STATISTICS:
        at = row * tl.num_programs(1) + tl.program_id(1)
        known = there & (known_false == 0)
        kept = known & (looks_false == 0)
        tl.store(own_similarity + at, tl.sum(tl.where(kept, logit, 0.0), 0))
        tl.store(own_kept + at, tl.sum(kept.to(tl.float32), 0))
        ahead = known & ((pair_logit > logit) == 0)
        tl.store(own_ahead + at, tl.sum(ahead.to(tl.float32), 0))
    value = tl.where(known_false | looks_false, float("-inf"), value * (1.0 + tau * harden_own))
    tl.store(logits + negative, value, mask=there)
