"""The contrastive family in NumPy float64: `contrastive.py` for sizes where lists are too slow.

It keeps whole matrices of similarities and takes care of the last digits, because it is what the
error of the kernels is measured against, as `info_nce_numpy.py` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simtile.reference.contrastive_numpy_blocks import (
    Anchors,
    Array,
    Block,
    Candidates,
    Mask,
    Vectors,
    exceeds,
    make_blocks,
    make_inputs,
    tied_products,
)
from simtile.reference.contrastive_options import (
    SIGLIP_DEFAULTS,
    WITH_POSITIVE,
    Direction,
    Options,
    check_options,
    check_siglip,
)
from simtile.reference.contrastive_statistics import Statistics
from simtile.reference.info_nce import SMALLEST_NORM
from simtile.reference.info_nce_numpy import NEGLIGIBLE, norm, unit_backward, weighted_sums


class Oracle(NamedTuple):
    """Losses of the pairs, the gradients of L = Σ_i row_weights[i] · losses[i], and their sizes.

    The scales are the sums that the gradients are with every term made positive, one number per
    vector: the size that rounding errors are relative to.
    """

    losses: Array  # [N]
    queries: Array  # [N, D]
    documents: Array  # [M, D]
    negatives: Array | None  # [N, K, D]
    temperature: float
    bias: float
    logit_scale: float  # largest size of a logit's terms: a logit's rounding is relative to it
    query_scale: Array  # [N]
    document_scale: Array  # [M]
    negative_scale: Array | None  # [N, K]
    temperature_scale: float
    bias_scale: float
    # Smallest distance of a similarity from the threshold that could mask it, over the terms of
    # both: who rounds more than this may mask something else. Infinite without thresholds.
    closest_call: float


class Coefficients(NamedTuple):
    """Losses, and their derivatives with respect to the logits."""

    losses: Array  # [N]
    positive: Array  # [N]
    negatives: Array  # [N, C]


# From the positives' count and logits [N], the negatives' logits [N, C], -inf where left out.
PairLoss = Callable[[int, Array, Array], Coefficients]


def info_nce_grad(
    queries: npt.ArrayLike,
    documents: npt.ArrayLike,
    negatives: npt.ArrayLike | None = None,
    options: Options | None = None,
    row_weights: npt.ArrayLike | None = None,
) -> Oracle:
    """What `simtile.reference.contrastive.info_nce_grad` computes, with arrays for lists."""
    options = options or Options()
    return over_widths(softmax, queries, documents, negatives, options, row_weights)


def siglip_loss_grad(
    queries: npt.ArrayLike,
    documents: npt.ArrayLike,
    negatives: npt.ArrayLike | None = None,
    options: Options | None = None,
    row_weights: npt.ArrayLike | None = None,
) -> Oracle:
    """What `simtile.reference.contrastive.siglip_loss_grad` computes, with arrays for lists."""
    options = options or SIGLIP_DEFAULTS
    check_siglip(options)
    return over_widths(sigmoid_cross_entropy, queries, documents, negatives, options, row_weights)


def softmax(copies: int, positive: Array, negatives: Array) -> Coefficients:
    logits = np.concatenate([positive[:, None], negatives], axis=1)
    rows = np.arange(len(logits))
    largest_at = np.argmax(logits, axis=1)  # a NaN counts as the largest
    largest = logits[rows, largest_at]
    exponentials = np.exp(logits - largest[:, None])
    exponentials[:, 0] *= copies
    beside_largest = exponentials.copy()
    beside_largest[rows, largest_at] -= 1.0
    beside = beside_largest.sum(axis=1)
    # The positive's share less 1 is minus the others', which keeps its digits.
    shares = exponentials[:, 1:] / (1.0 + beside)[:, None]
    return Coefficients(np.log1p(beside) + (largest - positive), -shares.sum(axis=1), shares)


def sigmoid_cross_entropy(copies: int, positive: Array, negatives: Array) -> Coefficients:
    losses = np.logaddexp(0.0, -positive) + np.logaddexp(0.0, negatives).sum(axis=1)
    return Coefficients(losses, -sigmoid(-positive), sigmoid(negatives))


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    result: Array = np.where(x >= 0.0, 1.0, e) / (1.0 + e)
    return result


class Sums:
    """Gradients and scales of one width while they are added up, by kind of vector."""

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors
        self.grads = {name: np.zeros_like(x) for name, x in vectors._asdict().items()}
        self.scales = {name: np.zeros(len(x)) for name, x in vectors._asdict().items()}
        self.temperature = self.temperature_scale = 0.0
        self.bias = self.bias_scale = self.logit_scale = 0.0

    def add_scalars(
        self, steps: Array, sizes: Array, similarities: Array, terms: Array, options: Options
    ) -> None:
        """From ∂L/∂logits and their sizes; similarities and their terms, 0 where left out."""
        self.temperature -= float((steps * similarities).sum() / options.temperature**2)
        self.temperature_scale += float((sizes * terms).sum() / options.temperature**2)
        self.bias += float(steps.sum())
        self.bias_scale += float(sizes.sum())
        largest = terms.max(initial=0.0) / options.temperature + abs(options.bias)
        self.logit_scale = max(self.logit_scale, float(largest))


def over_widths(
    pair_loss: PairLoss,
    queries: npt.ArrayLike,
    documents: npt.ArrayLike,
    negatives: npt.ArrayLike | None,
    options: Options,
    row_weights: npt.ArrayLike | None,
) -> Oracle:
    inputs = make_inputs(queries, documents, negatives, options.targets)
    n, dimensions = inputs.queries.shape
    m, nk = len(inputs.documents), len(inputs.negatives)
    check_options(options, n, m, dimensions, negatives is not None)
    weights = np.ones(n) if row_weights is None else np.asarray(row_weights, np.float64)

    losses = np.zeros(n)
    names = ("queries", "documents", "negatives")
    grads = {
        name: np.zeros((len(x), dimensions)) for name, x in zip(names, inputs[:3], strict=True)
    }
    scales = {name: np.zeros(len(x)) for name, x in grads.items()}
    scalars = np.zeros(4)
    logit_scale = 0.0
    with np.errstate(all="ignore"):  # NaN in, NaN out
        blocks, closest = make_blocks(inputs, options)
        for width, share in options.widths(dimensions):
            raw = inputs.cut(width)
            sums = Sums(raw.vectors(options.normalize))
            width_losses, close = one_width(pair_loss, blocks, sums, options, share * weights)
            losses += share * width_losses
            closest = min(closest, close)
            np.add.at(sums.grads["documents"], inputs.targets, sums.grads["own"])
            np.add.at(sums.scales["documents"], inputs.targets, sums.scales["own"])
            for name, vectors in zip(names, raw[:3], strict=True):
                grad, scale = sums.grads[name], sums.scales[name]
                if options.normalize:
                    grad = unit_backward(vectors, grad)
                    scale = scale / np.maximum(norm(vectors)[:, 0], SMALLEST_NORM)
                grads[name][:, :width] += grad
                scales[name] += scale
            scalars += (sums.temperature, sums.temperature_scale, sums.bias, sums.bias_scale)
            logit_scale = max(logit_scale, sums.logit_scale)

    def per_query(x: Array) -> Array | None:
        return None if negatives is None else x.reshape(n, nk // n, *x.shape[1:])

    return Oracle(
        losses=losses,
        queries=grads["queries"],
        documents=grads["documents"],
        negatives=per_query(grads["negatives"]),
        temperature=float(scalars[0]),
        bias=float(scalars[2]),
        logit_scale=logit_scale,
        query_scale=scales["queries"],
        document_scale=scales["documents"],
        negative_scale=per_query(scales["negatives"]),
        temperature_scale=float(scalars[1]),
        bias_scale=float(scalars[3]),
        closest_call=closest,
    )


def one_width(
    pair_loss: PairLoss,
    blocks: dict[Direction, list[Block]],
    sums: Sums,
    options: Options,
    weights: Array,
) -> tuple[Array, float]:
    """Losses [N] of one width and its closest call; gradients go to `sums`."""
    vectors = sums.vectors
    positive = (vectors.queries * vectors.own).sum(axis=1)
    positive_terms = (np.abs(vectors.queries) * np.abs(vectors.own)).sum(axis=1)
    positive_logits = positive / options.temperature + options.bias

    losses = np.zeros(len(weights))
    closest = np.inf
    groups = options.groups()
    for group in groups:
        group_blocks = [block for direction in group for block in blocks[direction]]
        similarities, kept, logits = [], [], []
        for block in group_blocks:
            s = vectors.of(block.anchors) @ vectors.of(block.candidates).T
            keep, close = kept_by_margin(block, vectors, options)
            closest = min(closest, close)
            logit = s / options.temperature + options.bias
            logit += np.where(block.hardened, options.hardness_strength * s, 0.0)
            logit[block.unknown] = np.nan
            logit[~keep] = -np.inf
            similarities.append(np.where(keep, s, 0.0))
            kept.append(keep)
            logits.append(logit)
        copies = sum(direction in WITH_POSITIVE for direction in group)
        result = pair_loss(copies, positive_logits, np.concatenate(logits, axis=1))
        losses += result.losses / len(groups)

        row_weights = weights / len(groups)
        sizes = np.abs(row_weights) * NEGLIGIBLE  # a share this small may be rounded to zero
        steps = row_weights * result.positive
        sums.add_scalars(steps, np.abs(steps) + sizes, positive, positive_terms, options)
        add_pairs(sums, steps / options.temperature, sizes / options.temperature)

        first = 0
        for block, s, keep in zip(group_blocks, similarities, kept, strict=True):
            last = first + keep.shape[1]
            shares = np.where(keep, result.negatives[:, first:last], 0.0)  # also in rows of NaN
            first = last
            steps = shares * row_weights[:, None]
            a, c = vectors.of(block.anchors), vectors.of(block.candidates)
            terms = np.where(keep, np.abs(a) @ np.abs(c).T, 0.0)
            terms[block.hardened] *= 1.0 + options.hardness_strength * options.temperature
            block_sizes = np.abs(steps) + keep * sizes[:, None]
            sums.add_scalars(steps, block_sizes, s, terms, options)
            add_products(
                sums,
                block.anchors,
                block.candidates,
                steps / options.temperature,
                keep,
                sizes / options.temperature,
            )
    return losses, closest


def kept_by_margin(block: Block, vectors: Vectors, options: Options) -> tuple[Mask, float]:
    """What the false-negative margin leaves of a block, and its closest call."""
    if options.false_negative_margin is None:
        return block.known, np.inf
    margin = options.false_negative_margin
    excess, close = exceeds(vectors, block.anchors, block.candidates, margin, False)
    return block.known & ~(excess > 0.0), float(close[block.known].min(initial=np.inf))


def add_pairs(sums: Sums, steps: Array, sizes: Array) -> None:
    """Add the gradients of Σ steps · similarity of the pairs, and the sizes of their terms."""
    terms = np.abs(steps) + sizes
    for name, other in (("queries", sums.vectors.own), ("own", sums.vectors.queries)):
        sums.grads[name] += steps[:, None] * other
        sums.scales[name] += terms * np.abs(other).max(axis=1)


def add_products(
    sums: Sums, anchors: Anchors, candidates: Candidates, steps: Array, keep: Mask, sizes: Array
) -> None:
    """Add the gradients of Σ steps · similarity, and the sizes of their terms."""
    a, c = sums.vectors.of(anchors), sums.vectors.of(candidates)
    if not len(c):
        return
    terms = np.abs(steps) + keep * sizes[:, None]
    sums.grads[anchors] += weighted_sums(steps, c, keep)
    sums.grads[candidates] += weighted_sums(steps.T, a, keep.T)
    sums.scales[anchors] += terms @ np.abs(c).max(axis=1, initial=0.0)
    sums.scales[candidates] += terms.T @ np.abs(a).max(axis=1, initial=0.0)


def statistics(
    queries: npt.ArrayLike,
    documents: npt.ArrayLike,
    negatives: npt.ArrayLike | None = None,
    options: Options | None = None,
    head_start: float = 0.0,
) -> Statistics:
    """What `simtile.reference.contrastive_statistics.statistics` computes, of arrays.

    `head_start` of the pairs, when they are compared: what rounding may make of the accuracy.
    """
    options = options or Options()
    inputs = make_inputs(queries, documents, negatives, options.targets)
    n, dimensions = inputs.queries.shape
    check_options(options, n, len(inputs.documents), dimensions, negatives is not None)
    widest = max(width for width, _ in options.widths(dimensions))
    with np.errstate(all="ignore"):
        blocks, _ = make_blocks(inputs, options)
        vectors = inputs.cut(widest).vectors(options.normalize)
        positive = tied_products(vectors.queries, vectors.own).diagonal()
        there = kept = 0
        total = 0.0
        beats = []
        for group in options.groups():
            best = np.full(n, -np.inf)
            for block in (block for direction in group for block in blocks[direction]):
                s = tied_products(vectors.of(block.anchors), vectors.of(block.candidates))
                keep, _ = kept_by_margin(block, vectors, options)
                there += int(block.there.sum())
                kept += int(keep.sum())
                total += float(s[keep].sum())
                known = np.where(block.known, s, -np.inf)
                best = np.maximum(best, known.max(axis=1, initial=-np.inf))
            beats.append(positive + head_start > best)
        return Statistics(
            positive_similarity=float(positive.mean()),
            negative_similarity=total / kept if kept else np.nan,
            accuracy=float(np.mean(beats)),
            masked=(there - kept) / there if there else np.nan,
        )
