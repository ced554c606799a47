"""InfoNCE in Triton: tiles of similarities, and the losses of rows.

The formulas, the byte and operation counts and the reasons for this division are in README.md,
section Triton. The kernels in the order in which they run; triton_gradients.py has what follows:

    prepare       rows to padded operands scaled by a power of two, and their norms
    scores        a tile of logits -> exponentials, row maxima and sums, the positive's logit
    own_scores    logits of a query's own hard negatives
    row_losses    tile sums of a row -> its loss, and a factor for each of its tiles

Every output element is written by one program, so there are no atomics and the same inputs give the
same bits. Operands are padded with zeros to whole tiles: no kernel masks inside its loop over the
dimensions. Addresses are 64-bit. Sizes and the presence of masks are plain arguments that are never
specialised; a kernel is compiled anew only for another element type or precision, or for D that is
at most 64 or no multiple of 16.
"""

import triton
import triton.language as tl
from simtile.kernels.tile.triton import dot, exponent, grouped, log1p, narrow, power

# torch.nn.functional.normalize divides a shorter vector by this.
NORM_FLOOR = tl.constexpr(1e-12)
# A row below the floor is scaled by 2^40, which is 1.0995 / NORM_FLOOR: its direction keeps its
# length (at most 1) to within 1.1, and the factor that is left is near 1.
FLOOR_SCALE = tl.constexpr(2.0**40)

_SIZES = [
    "row0",
    "rows",
    "candidates",
    "documents",
    "dim",
    "tiles",
    "has_targets",
    "has_ids",
    "own",
    "normalize",
    "inner",
]
# Parts of larger arrays, or the caller's: where they begin compiles nothing anew.
_UNALIGNED = ["factor", "inverse", "targets", "query_ids", "document_ids", "row_weights"]


@triton.jit(
    do_not_specialize=[name for name in _SIZES if name != "dim"],
    do_not_specialize_on_alignment=_UNALIGNED,
)
def prepare(
    x,  # [rows / inner, inner, dim], any strides
    stride_0,
    stride_1,
    stride_d,
    inner,
    rows,
    dim,
    normalize,
    operand,  # [padded rows, operand_stride]: x times a power of two, zeros around it
    operand_stride,
    factor,  # [padded rows]: unit vector = operand row * factor (x itself without normalize)
    inverse,  # [padded rows]: 1 / max(norm, floor)
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    source = x + row // inner * stride_0 + row % inner * stride_1
    there = row < rows

    # Sum of squares of the row times power(top): top is the exponent of its largest element so far.
    top = exponent(tl.full((), 0.0, tl.float32))
    squares = 0.0
    for start in range(0, dim, BLOCK):
        inside = (start + columns < dim) & there
        values = tl.load(source + (start + columns).to(tl.int64) * stride_d, mask=inside, other=0.0)
        values = values.to(tl.float32)
        grown = tl.maximum(top, exponent(tl.max(tl.abs(values), 0)))
        down = power(grown) / power(top)
        scaled = values * power(grown)
        squares = squares * (down * down) + tl.sum(scaled * scaled, 0)
        top = grown
    scaled_norm = tl.sqrt(squares)
    floored = scaled_norm / power(top) <= NORM_FLOOR
    # The operand's norm is in [1, 2), if a power of two can do that: coefficients, which hold the
    # factors of two rows, then stay near the probabilities, where float16 has its digits.
    longer = tl.maximum(exponent(scaled_norm), 127) - 127
    scale = power(tl.minimum(top + longer, 253))
    scaled_norm *= scale / power(top)
    scale = tl.where(floored, FLOOR_SCALE, scale)
    unit = 1.0 / tl.where(floored, NORM_FLOOR * FLOOR_SCALE, scaled_norm)
    scale = tl.where(normalize != 0, scale, 1.0)
    unit = tl.where(normalize != 0, unit, 1.0)
    tl.store(factor + row, tl.where(there, unit, 1.0))
    tl.store(inverse + row, unit * scale)
    for start in range(0, operand_stride, BLOCK):
        inside = (start + columns < dim) & there
        values = tl.load(source + (start + columns).to(tl.int64) * stride_d, mask=inside, other=0.0)
        values = (values.to(tl.float32) * scale).to(operand.dtype.element_ty)
        tl.store(
            operand + row * operand_stride + start + columns,
            values,
            mask=start + columns < operand_stride,
        )


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def scores(
    queries,  # operands [padded rows, operand_stride]
    query_factor,
    candidates_operand,  # documents, then hard negatives
    candidate_factor,
    temperature,  # one float32
    targets,  # int64 [rows], read if has_targets
    query_ids,  # int64, read if has_ids
    document_ids,
    exponentials,  # [rows of the chunk, score_stride]: E_SCALE exp(s - maximum of the tile's row)
    score_stride,
    tile_max,  # [rows of the chunk, tiles]; without the positive, as the next two
    tile_sum,  # sum of e = exp(s - max)
    tile_weighted,  # sum of e (s - max)
    positive,  # [rows]: logit of the query's own document
    row0,  # first row of the chunk
    rows,
    candidates,
    documents,
    dim,
    operand_stride,
    tiles,
    has_targets,
    has_ids,
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

    q = queries + row[:, None] * operand_stride + k[None, :]  # [BM, BK]
    c = candidates_operand + column[:, None] * operand_stride + k[None, :]  # [BN, BK]
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, dim, BK):
        sums = dot(tl.load(q + start), tl.trans(tl.load(c + start)), sums, PRECISION, EMULATE)

    row_there = row < rows
    query_scale = tl.load(query_factor + row) / tl.load(temperature)
    logits = sums * query_scale[:, None] * tl.load(candidate_factor + column)[None, :]

    target = tl.load(targets + row, mask=row_there & (has_targets != 0), other=0)
    target = tl.where(has_targets != 0, target, row)
    is_target = column[None, :] == target[:, None]  # [BM, BN]
    # The positive's logit comes from the same sums as the others.
    of_target = tl.sum(tl.where(is_target, logits, 0.0), 1)
    first = tile_n * BN
    tl.store(positive + row, of_target, mask=row_there & (target >= first) & (target < first + BN))

    padding = tl.where(column < candidates, 0.0, float("-inf"))
    shifted = tl.where(is_target, float("-inf"), logits + padding[None, :])
    if has_ids != 0:
        query_id = tl.load(query_ids + row, mask=row_there, other=0)
        document_id = tl.load(document_ids + column, mask=column < documents, other=0)
        is_same = (query_id[:, None] == document_id[None, :]) & (column < documents)[None, :]
        shifted = tl.where(is_same, float("-inf"), shifted)
    largest = tl.max(shifted, 1)
    shifted -= tl.where(largest == float("-inf"), 0.0, largest)[:, None]
    e = tl.exp(shifted)
    at = local * tiles + tile_n
    tl.store(tile_max + at, largest, mask=row_there)
    tl.store(tile_sum + at, tl.sum(e, 1), mask=row_there)
    # Clipped, so that a candidate that is left out adds 0, not 0 times infinity.
    tl.store(tile_weighted + at, tl.sum(e * tl.maximum(shifted, -1e30), 1), mask=row_there)
    if STORE:
        # Rows beyond the last are all zeros: their exponentials are finite, and multiplied by 0.
        place = exponentials + local[:, None] * score_stride + column[None, :]
        tl.store(place, narrow(e * E_SCALE, exponentials.dtype.element_ty, EMULATE))


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def own_scores(
    queries,
    query_factor,
    negatives,  # operands [rows * own, operand_stride]
    negative_factor,
    temperature,
    logits,  # float32 [rows, own]
    own,
    operand_stride,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    negative = row * own + k
    sums = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in range(0, operand_stride, BLOCK_D):
        inside = start + d < operand_stride
        q = tl.load(queries + row * operand_stride + start + d, mask=inside, other=0.0)
        n = tl.load(
            negatives + negative[:, None] * operand_stride + start + d[None, :],
            mask=(k < own)[:, None] & inside[None, :],
            other=0.0,
        )
        sums += n.to(tl.float32) * q.to(tl.float32)[None, :]
    query_scale = tl.load(query_factor + row) / tl.load(temperature)
    scale = query_scale * tl.load(negative_factor + negative, mask=k < own, other=0.0)
    tl.store(logits + negative, tl.sum(sums, 1) * scale, mask=k < own)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def row_losses(
    tile_max,  # [rows of the chunk, tiles]; with GRAD, factors of the coefficients on return
    tile_sum,
    tile_weighted,
    positive,
    own_logits,  # [rows, own]; with GRAD, coefficients on return
    query_factor,
    temperature,
    targets,
    row_weights,  # float32 [rows], at most 1 in size
    losses,  # float32 [rows]
    positive_coefficient,  # [rows]
    temperature_gradient,  # [rows]: a row's share of it
    row0,
    rows,
    documents,
    tiles,
    own,
    has_targets,
    own_strength,  # what hardness added to own logits, times a similarity; 0 unless FAMILY
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    E_SCALE: tl.constexpr,
    COPIES: tl.constexpr = 1,  # how often the positive is a candidate
    FAMILY: tl.constexpr = False,  # whether own negatives may be hardened or left out
):
    local = tl.program_id(0).to(tl.int64)
    row = row0 + local
    lane = tl.arange(0, BLOCK)
    maxima = tile_max + local * tiles
    own_row = own_logits + row * own
    target = tl.load(targets + row, mask=has_targets != 0, other=0)
    target = tl.where(has_targets != 0, target, row)
    # A target that is no document has no logit.
    target_there = (target >= 0) & (target < documents)
    positive_logit = tl.load(positive + row, mask=target_there, other=float("nan"))

    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, tiles, BLOCK):
        inside = start + lane < tiles
        value = tl.load(maxima + start + lane, mask=inside, other=float("-inf"))
        highest = tl.maximum(highest, value)
    for start in range(0, own, BLOCK):
        inside = start + lane < own
        value = tl.load(own_row + start + lane, mask=inside, other=float("-inf"))
        highest = tl.maximum(highest, value)
    others_max = tl.max(highest, 0)
    largest = tl.maximum(others_max, positive_logit)

    rest_parts = tl.zeros((BLOCK,), tl.float32)
    weighted_parts = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, tiles, BLOCK):
        inside = start + lane < tiles
        value = tl.load(maxima + start + lane, mask=inside, other=float("-inf"))
        sums = tl.load(tile_sum + local * tiles + start + lane, mask=inside, other=0.0)
        weighted = tl.load(tile_weighted + local * tiles + start + lane, mask=inside, other=0.0)
        shift = tl.where(value == float("-inf"), 0.0, value - largest)
        rest_parts += sums * tl.exp(shift)
        weighted_parts += (weighted + sums * shift) * tl.exp(shift)
    for start in range(0, own, BLOCK):
        inside = start + lane < own
        value = tl.load(own_row + start + lane, mask=inside, other=0.0)
        e = tl.where(inside, tl.exp(value - largest), 0.0)
        rest_parts += e
        if FAMILY:
            value /= 1.0 + tl.load(temperature) * own_strength
            value = tl.maximum(value, -1e30)
        weighted_parts += tl.where(inside, e * (value - largest), 0.0)
    rest = tl.sum(rest_parts, 0)
    weighted_rest = tl.sum(weighted_parts, 0)

    # rest is exact to its last digit when the positive is the largest; else it is at least 1.
    below = positive_logit - largest
    if COPIES == 1:
        total = rest + tl.exp(below)
        of_rest = log1p(rest)
    else:
        total = rest + COPIES * tl.exp(below)
        of_rest = log1p(rest + (COPIES - 1))
    loss = tl.where(positive_logit >= others_max, of_rest, tl.log(total) - below)
    tl.store(losses + row, loss)
    if GRAD:
        tau = tl.load(temperature)
        weight = tl.load(row_weights + row)
        scale = weight * tl.load(query_factor + row)
        share = rest / total  # of all candidates but the positive: 1 - p without cancellation
        tl.store(positive_coefficient + row, -share * scale * E_SCALE)
        # The sum over the others of p (s - positive's s); nothing, not 0 * inf, without others.
        moved = weighted_rest / total - tl.where(rest == 0.0, 0.0, share * below)
        tl.store(temperature_gradient + row, -weight * moved / tau)
        for start in range(0, tiles, BLOCK):
            inside = start + lane < tiles
            value = tl.load(maxima + start + lane, mask=inside, other=float("-inf"))
            shift = tl.where(value == float("-inf"), 0.0, value - largest)
            tl.store(maxima + start + lane, tl.exp(shift) / total * scale, mask=inside)
        for start in range(0, own, BLOCK):
            inside = start + lane < own
            value = tl.load(own_row + start + lane, mask=inside, other=0.0)
            tl.store(own_row + start + lane, tl.exp(value - largest) / total * weight, mask=inside)
