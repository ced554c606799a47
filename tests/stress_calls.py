"""Calls of every kernel at one size, for tests that make them from many threads, after a fork, with
little memory or a million times.
"""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import simtile

FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
CODES = ("int8", "uint8", "int4", "int8_vector", "int4_vector", "binary")
Calls = dict[str, Callable[[], Any]]


def losses(rng, n, d, threads) -> Calls:
    x, y = (rng.standard_normal((n, d)).astype(np.float32) for _ in range(2))
    negatives = rng.standard_normal((n, 2, d)).astype(np.float32)
    labels = np.arange(n) % 5
    both = ("query_to_doc", "doc_to_query")
    typed = {np.dtype(t).name: (x.astype(t), y.astype(t)) for t in FLOATS}
    found: Calls = {
        f"info_nce_grad {name}": lambda own=own: simtile.info_nce_grad(*own, threads=threads)
        for name, own in typed.items()
    }
    return found | {
        "info_nce_grad negatives": lambda: simtile.info_nce_grad(
            x, y, negatives, directions=both, threads=threads
        ),
        "siglip_loss": lambda: simtile.siglip_loss(x, y, threads=threads),
        "triplet_loss": lambda: simtile.triplet_loss(x, y, negatives[:, 0]),
        "batch_hard_triplet_loss": lambda: simtile.batch_hard_triplet_loss(
            x, labels, threads=threads
        ),
        "uniformity": lambda: simtile.uniformity(x, threads=threads),
        "alignment": lambda: simtile.alignment(x, y),
        "anisotropy": lambda: simtile.anisotropy(x),
    }


def searches(rng, n, d, threads) -> Calls:
    queries = rng.standard_normal((7, d)).astype(np.float32)
    documents = rng.standard_normal((max(n, 100), d)).astype(np.float32)
    found: Calls = {}
    for dtype in FLOATS:
        own = documents.astype(dtype)
        found[f"topk {np.dtype(dtype).name}"] = lambda own=own: simtile.topk(
            queries, own, 9, threads=threads
        )
    for kind in CODES:
        codes = simtile.quantize(documents, kind)
        metric = "cosine" if kind == "binary" else "l2"
        found[f"topk {kind}"] = lambda codes=codes, metric=metric: simtile.topk(
            queries, codes, 9, metric=metric, threads=threads
        )
        found[f"quantize {kind}"] = lambda kind=kind: arrays_of(
            simtile.quantize(documents, kind, threads=threads)
        )
    bits = simtile.quantize(queries, "binary"), simtile.quantize(documents, "binary")
    mask = np.arange(len(documents)) % 3 != 0
    parts = [simtile.topk(queries, documents, 5)] * 2
    return found | {
        "topk hamming": lambda: simtile.topk(*bits, 9, metric="hamming", threads=threads),
        "topk allow": lambda: simtile.topk(queries, documents, 9, allow=mask, threads=threads),
        "range_search": lambda: simtile.range_search(queries, documents, 0.1, threads=threads),
        "merge_topk": lambda: simtile.merge_topk(parts),
        "mine_hard_negatives": lambda: simtile.mine_hard_negatives(
            queries, documents, np.arange(len(queries)), k=3, threads=threads
        ),
    }


def scores(rng, n, d, threads) -> Calls:
    queries = rng.standard_normal((3, 5, d)).astype(np.float32)
    tokens = rng.standard_normal((n, 4, d)).astype(np.float32)
    packed, offsets = tokens.reshape(-1, d), np.arange(0, 4 * n + 1, 4)
    mask = np.arange(4 * n).reshape(n, 4) % 5 != 2
    codec = simtile.ResidualCodec.train(packed, centroids=4)
    stored = {kind: simtile.quantize(packed, kind) for kind in ("int8_vector", "binary")}
    ranges = np.repeat(np.float32([[-3], [3]]), d, axis=1)
    stored["int8"] = simtile.quantize(packed, "int8", ranges=ranges)
    stored["residual2"] = codec.encode(packed)

    def of_codes(codes, **options):
        return simtile.maxsim_packed(queries, codes, offsets, threads=threads, **options)

    found: Calls = {
        f"maxsim_packed {kind}": lambda x=x: of_codes(x, k=3) for kind, x in stored.items()
    }
    for how in ("mean", "max", "last"):
        found[f"pool {how}"] = lambda how=how: simtile.pool(tokens, mask, how, threads=threads)
    return found | {
        "maxsim": lambda: simtile.maxsim(queries, tokens, None, mask, threads=threads),
        "maxsim argmax": lambda: simtile.maxsim(
            queries, tokens, normalize=True, return_argmax=True, threads=threads
        ),
        "maxsim_pairwise": lambda: simtile.maxsim_pairwise(queries, tokens[:3], threads=threads),
        "maxsim_packed": lambda: of_codes(packed),
        "xtr_scores": lambda: simtile.xtr_scores(queries, tokens, top_k=9, threads=threads),
    }


def calls(n=200, d=48, threads=2) -> Calls:
    """By name; each returns an array, a number, or a tuple of them, and always the same bits."""
    rng = np.random.default_rng(0)
    return {
        **losses(rng, n, d, threads),
        **searches(rng, n, d, threads),
        **scores(rng, n, d, threads),
    }


def arrays_of(quantized):
    parts = quantized.codes, quantized.scale, quantized.offset
    return tuple(x for x in parts if x is not None)


def same(found, expected) -> bool:
    """Whether two results have the same bits."""
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    a, b = np.asarray(found), np.asarray(expected)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
