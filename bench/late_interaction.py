"""Late interaction in its other forms: `python bench/late_interaction.py [--quick] [--only NAME]`.

What bench/maxsim.py does not time: padded batches, matching pairs alone, XTR's scores with their
gradients, residual codes, and the index. Beside them sentence-transformers, torch's einsum and
NumPy; everything is compared first and not timed unless it agrees. Results of a complete run go to
bench/results/<machine>/.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import _beside
import _common
import numpy as np
import tables
import torch
from _beside import SIMTILE
from _common import GateFailed, Json, Run, Target
from maxsim_contenders import EINSUM, SENTENCE_TRANSFORMERS, TOLERANCE, Scene, limit_threads

import simtile
from simtile.reference import maxsim_numpy

QUERY, DOCUMENT, DIM, K = 31, 173, 129, 10
CLOSE = 1e-5  # of gradients, relative to the largest

Result = tuple[Json, list[Target]]


def tokens(count: int, length: int, seed: int) -> Any:
    """Unit vectors, float32 [count, length, DIM]."""
    x = np.random.default_rng(seed).standard_normal((count, length, DIM), dtype=np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def check(name: str, scores: Any, exact: Any) -> float:
    error = float(np.abs(np.asarray(scores, np.float64) - exact).max())
    if not error <= TOLERANCE * QUERY:
        raise GateFailed(f"{name}: a score is {error:.2g} off, allowed {TOLERANCE * QUERY:.2g}")
    return error


def padded(run: Run) -> Result:
    """`maxsim` of a padded batch with its mask."""
    from sentence_transformers.util import maxsim

    count, queries = run.size(501, 31), tokens(3, QUERY, 0)
    documents = tokens(count, DOCUMENT, 1)
    mask = np.arange(DOCUMENT) < np.random.default_rng(2).integers(60, DOCUMENT + 1, (count, 1))
    q, d, kept = (torch.from_numpy(x) for x in (queries, documents, mask))

    def einsum() -> Any:
        similarity = torch.einsum("qid,njd->qnij", q, d)
        return similarity.masked_fill(~kept[None, :, None], -torch.inf).amax(-1).sum(-1)

    calls: dict[str, Callable[[], Any]] = {
        SIMTILE: lambda: simtile.maxsim(queries, documents, None, mask, threads=run.threads),
        EINSUM: einsum,
        SENTENCE_TRANSFORMERS: lambda: maxsim(q, d, b_mask=kept),
    }
    each = [document[own] for document, own in zip(documents, mask, strict=True)]
    exact = maxsim_numpy.maxsim(queries, each).scores
    errors = {who: check(f"padded, {who}", call(), exact) for who, call in calls.items()}
    return _beside.beside(
        run, calls, 9, errors, what="float32", queries=3, documents=count, dim=DIM
    ), []


def pairs(run: Run) -> Result:
    """`maxsim_pairwise`: query i with document i."""
    from sentence_transformers.util import maxsim_pairwise

    count = run.size(501, 31)
    queries, documents = tokens(count, QUERY, 0), tokens(count, DOCUMENT, 1)
    q, d = (torch.from_numpy(x) for x in (queries, documents))
    calls: dict[str, Callable[[], Any]] = {
        SIMTILE: lambda: simtile.maxsim_pairwise(queries, documents, threads=run.threads),
        EINSUM: lambda: torch.einsum("nid,njd->nij", q, d).amax(-1).sum(-1),
        SENTENCE_TRANSFORMERS: lambda: maxsim_pairwise(q, d),
    }
    wide = np.einsum("nid,njd->nij", queries.astype(np.float64), documents.astype(np.float64))
    exact = wide.max(axis=-1).sum(axis=-1)
    errors = {who: check(f"pairs, {who}", call(), exact) for who, call in calls.items()}
    return _beside.beside(run, calls, 9, errors, what="float32", pairs=count, dim=DIM), []


def xtr(run: Run) -> Result:
    """`xtr_scores` of a batch, forward and backward."""
    from sentence_transformers.multi_vector_encoder.scoring.xtr import xtr_scores

    count, top_k = run.size(33, 9), run.size(257, 33)
    queries, documents = (
        torch.from_numpy(tokens(count, length, seed)).requires_grad_()
        for length, seed in ((QUERY, 0), (DOCUMENT, 1))
    )

    def step(score: Callable[..., Any]) -> Callable[[], list[Any]]:
        def call() -> list[Any]:
            scores = score(queries, documents)
            grads = torch.autograd.grad(scores.square().sum(), (queries, documents))
            return [scores.detach(), *grads]

        return call

    calls = {
        SIMTILE: step(lambda q, d: simtile.xtr_scores(q, d, top_k=top_k, threads=run.threads)),
        SENTENCE_TRANSFORMERS: step(lambda q, d: xtr_scores(q, d[None], top_k=top_k)),
    }
    ours, theirs = (call() for call in calls.values())
    off = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    if not off <= CLOSE:
        raise GateFailed(f"xtr: differs by {off:.2g} from sentence-transformers', allowed {CLOSE}")
    return _beside.beside(
        run,
        calls,
        5,
        {},
        what="float32, forward and backward",
        queries=count,
        documents=count,
        top_k=top_k,
        difference=off,
    ), []


def residual(run: Run) -> Result:
    """`ResidualCodec.encode` beside the same in NumPy: nearest centroid, bucket of each rest."""
    rows = tokens(run.size(50_021, 2_003), 1, 0)[:, 0]
    codec = simtile.ResidualCodec.train(rows[:2_000], 2, centroids=run.size(1_021, 61))

    def theirs() -> tuple[Any, Any]:
        nearest = (rows @ codec.centroids.T).argmax(axis=1)
        rest = rows - codec.centroids[nearest]
        return nearest, np.searchsorted(codec.bucket_cutoffs, rest, side="left")

    ours = codec.encode(rows, threads=run.threads)
    nearest, buckets = theirs()
    # rows were divided by their lengths twice: what lies at an edge may fall on either side
    where = ours.centroid_ids == nearest
    same = (ours.codes() == buckets)[where]
    if not (where.mean() > 0.999 and same.mean() > 0.999):
        raise GateFailed(
            f"residual: {where.sum()} of {len(rows)} centroids and {same.sum()} of {same.size} "
            "codes agree"
        )
    calls: dict[str, Callable[[], Any]] = {
        SIMTILE: lambda: codec.encode(rows, threads=run.threads),
        "NumPy": theirs,
    }
    return _beside.beside(
        run, calls, 5, {}, bits=2, tokens=len(rows), centroids=len(codec.centroids), dim=DIM
    ), []


def index_add(run: Run) -> Result:
    """A new `MultiVectorIndex` of all documents, beside a copy of their tokens."""
    scene = Scene(1, QUERY, np.full(run.size(501, 31), DOCUMENT), DIM, run.threads)
    documents = scene.documents

    def ours() -> Any:
        index = simtile.MultiVectorIndex(DIM)
        index.add(documents)
        return index

    check("index_add", ours().score(scene.queries), scene.oracle())
    calls = {SIMTILE: ours, "NumPy, concatenate": lambda: np.concatenate(documents)}
    return _beside.beside(run, calls, 9, {}, what="float32", documents=len(documents), dim=DIM), []


def index_search(run: Run) -> Result:
    """`MultiVectorIndex.search` of one query: all documents, or those that their means choose."""
    scene = Scene(1, QUERY, np.full(run.size(1_003, 101), DOCUMENT), DIM, run.threads)
    index = simtile.MultiVectorIndex(DIM)
    index.add(scene.documents)
    some = len(scene.lengths) // 10
    queries, batch = (torch.from_numpy(x) for x in (scene.queries, scene.padded()[0]))

    def theirs() -> Any:
        scores = torch.einsum("qid,njd->qnij", queries, batch).amax(-1).sum(-1)
        return torch.topk(scores, K)

    def search(**options: Any) -> Callable[[], Any]:
        return lambda: index.search(scene.queries, K, threads=run.threads, **options)

    exact = scene.oracle()
    scores, ids = search()()
    error = check("index_search", scores, -np.sort(-exact, axis=1)[:, :K])
    check("index_search, ids", scores, np.take_along_axis(exact, ids, axis=1))
    scores, ids = search(prefilter=some)()
    check("index_search, prefilter", scores, np.take_along_axis(exact, ids, axis=1))
    calls = {SIMTILE: search(), f"simtile, prefilter={some}": search(prefilter=some)}
    calls[f"{EINSUM}, topk"] = theirs
    return _beside.beside(
        run,
        calls,
        9,
        {SIMTILE: error},
        what="float32, one query",
        documents=len(scene.lengths),
        dim=DIM,
        k=K,
    ), []


ENTRIES = {
    "padded": padded,
    "pairs": pairs,
    "xtr": xtr,
    "residual": residual,
    "index_add": index_add,
    "index_search": index_search,
}


def main() -> int:
    arguments = _common.parser("Benchmark other late interaction.", ENTRIES).parse_args()
    limit_threads(arguments.threads)
    _common.limit_blas(arguments.threads)
    return _common.run_entries(
        "late_interaction",
        ENTRIES,
        arguments,
        _common.machine(),
        _beside.markdown,
        tables.targets,
    )


if __name__ == "__main__":
    sys.exit(main())
