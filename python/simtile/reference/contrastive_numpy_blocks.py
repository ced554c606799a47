"""The candidates of the contrastive losses as whole matrices: `contrastive_candidates.py` in NumPy.

Float64 throughout, for sizes where lists are too slow.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile.reference.contrastive_options import Direction, Options
from simtile.reference.info_nce_numpy import unit

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Anchors = Literal["queries", "own"]
Candidates = Literal["queries", "documents", "negatives"]


class Vectors(NamedTuple):
    """The vectors of one width, or the guide's."""

    queries: Array  # [N, D]
    own: Array  # [N, D], the document of each query
    documents: Array  # [M, D]
    negatives: Array  # [N K, D]

    def of(self, name: Anchors | Candidates) -> Array:
        vectors: Array = getattr(self, name)
        return vectors


class Block(NamedTuple):
    """One kind of candidates in one direction, for all pairs: what does not depend on the width."""

    anchors: Anchors
    candidates: Candidates
    there: Mask  # [N, C], negatives before ids, guide and margin
    known: Mask  # [N, C], of these what ids and the guide leave
    unknown: Mask  # [N, C], of these where the guide is NaN
    hardened: Mask  # [N, C]


class Inputs(NamedTuple):
    """The arguments as arrays."""

    queries: Array  # [N, D]
    documents: Array  # [M, D]
    negatives: Array  # [N K, D]
    targets: npt.NDArray[np.int64]  # [N]

    def cut(self, width: int) -> Inputs:
        q, d, n = (x[:, :width] for x in self[:3])
        return self._replace(queries=q, documents=d, negatives=n)

    def vectors(self, normalize: bool) -> Vectors:
        q, d, n = (unit(x) if normalize else x for x in self[:3])
        return Vectors(q, d[self.targets], d, n)


def make_inputs(
    queries: npt.ArrayLike,
    documents: npt.ArrayLike,
    negatives: npt.ArrayLike | None,
    targets: npt.ArrayLike | None,
) -> Inputs:
    q, d = np.asarray(queries, np.float64), np.asarray(documents, np.float64)
    flat = np.empty((0, q.shape[1])) if negatives is None else np.asarray(negatives, np.float64)
    own = np.arange(len(q)) if targets is None else np.asarray(targets, np.int64)
    return Inputs(q, d, flat.reshape(-1, q.shape[1]), own)


def make_blocks(inputs: Inputs, options: Options) -> tuple[dict[Direction, list[Block]], float]:
    """The blocks of every direction in the options, and how close the guide's closest call was."""
    n, m = len(inputs.queries), len(inputs.documents)
    k = len(inputs.negatives) // n
    eye = np.eye(n, dtype=bool)
    mine = np.repeat(eye, k, axis=1)  # [N, N K]
    pair = np.zeros((n, m), bool)
    pair[np.arange(n), inputs.targets] = True

    hardness, scope = options.hardness, options.negatives_scope
    nothing = np.zeros_like
    harden_others = hardness in ("in_batch_negatives", "all_negatives")
    harden_own = hardness in ("hard_negatives", "all_negatives")
    hardened = {
        "documents": np.full((n, m), harden_others),
        "negatives": np.where(mine, harden_own, harden_others),
    }
    for_queries = mine if scope == "own" else ~nothing(mine)
    for_documents = ~mine if scope == "all" else nothing(mine)
    shapes: dict[Direction, list[tuple[Anchors, Candidates, Mask]]] = {
        "query_to_doc": [
            ("queries", "documents", ~pair),
            ("queries", "negatives", for_queries),
        ],
        "query_to_query": [("queries", "queries", ~eye)],
        "doc_to_query": [("own", "queries", ~eye)],
        "doc_to_doc": [("own", "documents", ~pair), ("own", "negatives", for_documents)],
    }
    ids: dict[str, Any] = {}
    if options.query_ids is not None and options.document_ids is not None:
        ids["queries"] = np.asarray(options.query_ids)
        ids["documents"] = np.asarray(options.document_ids)
        ids["own"] = ids["documents"][inputs.targets]
    guide = None
    if options.guide is not None:
        negatives = options.guide[2] if len(options.guide) == 3 else None
        raw = make_inputs(options.guide[0], options.guide[1], negatives, inputs.targets)
        guide = raw.vectors(True)

    blocks: dict[Direction, list[Block]] = {}
    closest = np.inf
    for direction in options.directions:
        blocks[direction] = []
        for anchors, candidates, there in shapes[direction]:
            known = there.copy()
            unknown = nothing(there)
            if candidates in ids:
                known &= np.not_equal.outer(ids[anchors], ids[candidates])
            if guide is not None:
                scaled = options.guide_margin_strategy == "relative"
                excess, close = exceeds(guide, anchors, candidates, options.guide_margin, scaled)
                closest = min(closest, close[known].min(initial=np.inf))
                unknown = known & np.isnan(excess)
                known &= ~(excess > 0.0)
            hard = hardened[candidates] if direction == "query_to_doc" else nothing(there)
            blocks[direction].append(Block(anchors, candidates, there, known, unknown, hard))
    return blocks, float(closest)


def exceeds(
    vectors: Vectors, anchors: Anchors, candidates: Candidates, margin: float, relative: bool
) -> tuple[Array, Array]:
    """By how much similarities are above the pairs' less the margin; the same over its terms.

    The latter says how close a call is, and leaves out exact ties: equal vectors give the same
    number in any arithmetic that sums up every pair of vectors alike.
    """
    a, c = vectors.of(anchors), vectors.of(candidates)
    pairs = tied_products(vectors.queries, vectors.own).diagonal()[:, None]
    slack = margin * np.abs(pairs) if relative else np.full_like(pairs, margin)
    excess = tied_products(a, c) - (pairs - slack)
    terms = np.abs(a) @ np.abs(c).T + np.abs(slack)
    terms += (np.abs(vectors.queries) * np.abs(vectors.own)).sum(axis=1, keepdims=True)
    close = np.full_like(excess, np.inf)
    np.divide(np.abs(excess), terms, out=close, where=(np.abs(excess) > 0.0) & (terms > 0.0))
    return excess, close


def tied_products(a: Array, b: Array) -> Array:
    """a bᵀ in which equal vectors give equal numbers, wherever they are.

    BLAS gives no such promise: its sums differ between the inside and the edge of a tile.
    """
    result: Array = np.einsum("id,jd->ij", a, b, optimize=False)
    return result
