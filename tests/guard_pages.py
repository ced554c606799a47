"""Public calls with arrays that end at a page nobody may touch, or begin behind one.

A process of its own: `python guard_pages.py quick` names each call on stdout before making it, so
that the last name is the call that a crash came from. SIMTILE_ISA chooses the level.
"""

import ctypes
import mmap
import sys
from typing import NamedTuple

import ml_dtypes
import numpy as np

import simtile

PAGE = mmap.PAGESIZE
FLOATS = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Vectors, dimensions: below, at and above the widths of registers, tiles and panels.
SIZES = {
    "quick": [(1, 7), (5, 31), (33, 129)],
    "deep": [(n, d) for n in (1, 2, 9, 16, 35) for d in (1, 15, 24, 65, 127, 257)],
}

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def guarded(array, at):
    """A copy of an array whose last byte is the last before a forbidden page, or its first byte the
    first behind one; at: "end" or "start".
    """
    array = np.ascontiguousarray(array)
    pages = -(-array.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, pages + PAGE)
    whole = np.frombuffer(memory, np.uint8)  # keeps the mapping alive
    forbidden = pages if at == "end" else 0
    first = pages - array.nbytes if at == "end" else PAGE
    if libc.mprotect(whole.ctypes.data + forbidden, PAGE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = whole[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Call(NamedTuple):
    name: str
    function: object
    arrays: tuple  # its first arguments
    options: dict


def losses(n, d, kind, floats):
    x, y = floats(n, d), floats(n, d)
    grad = simtile.info_nce_grad
    yield Call(f"info_nce_grad {kind}", grad, (x, y), {})
    both = {"directions": ("query_to_doc", "doc_to_query"), "normalize": False}
    yield Call(f"info_nce_grad negatives {kind}", grad, (x, y, floats(n, 3, d)), {})
    yield Call(f"info_nce_grad both {kind}", grad, (x, y), both)
    if d > 4:
        widths = {"matryoshka_dims": (d // 2, d)}
        yield Call(f"info_nce_grad matryoshka {kind}", grad, (x, y), widths)
    yield Call(f"siglip_loss {kind}", simtile.siglip_loss, (x, y), {})
    yield Call(f"alignment {kind}", simtile.alignment, (x, y), {})
    labels = np.arange(n) % 2
    for metric in ("euclidean", "squared_euclidean", "cosine"):
        name, hard = f"{metric} {kind}", simtile.batch_hard_triplet_loss
        triplets = (x, y, floats(n, d))
        yield Call(f"triplet_loss {name}", simtile.triplet_loss, triplets, {"metric": metric})
        yield Call(f"batch_hard_triplet_loss {name}", hard, (x, labels), {"metric": metric})
    if n > 1:
        yield Call(f"anisotropy {kind}", simtile.anisotropy, (x,), {})
        yield Call(f"uniformity {kind}", simtile.uniformity, (x,), {})


def scores(n, d, kind, floats):
    """MaxSim: padded, in pairs, packed."""
    queries, documents = floats(2, n, d), floats(n, 5, d)
    masks = np.ones((2, n), bool), np.arange(n * 5).reshape(n, 5) % 3 != 1
    yield Call(f"maxsim {kind}", simtile.maxsim, (queries, documents, *masks), {})
    argmax = {"return_argmax": True, "normalize": True}
    yield Call(f"maxsim argmax {kind}", simtile.maxsim, (queries, documents), argmax)
    yield Call(f"maxsim_pairwise {kind}", simtile.maxsim_pairwise, (queries, floats(2, 3, d)), {})
    offsets = np.r_[0, 1, 1, n].astype(np.int64)
    packed = simtile.maxsim_packed
    yield Call(f"maxsim_packed {kind}", packed, (queries, floats(n, d), offsets), {})
    yield Call(f"maxsim_packed k {kind}", packed, (queries, floats(n, d), offsets), {"k": 2})


def of_codes(function, kind):
    """A call whose second argument is made of the arrays of a Quantized."""

    def call(queries, codes, *rest, dim, **options):
        count = {"int8_vector": 1, "int4_vector": 1, "binary": 0}.get(kind, 2)
        scale, offset = (*rest[:count], None, None)[:2]
        documents = simtile.Quantized(codes, scale, offset, dim, kind)
        return function(queries, documents, *rest[count:], **options)

    return call


def quantized(x, kind, ranges=None):
    """Codes by given ranges, which one vector has not."""
    needed = kind in ("int8", "uint8", "int4")
    return simtile.quantize(x, kind, ranges=ranges if needed else None)


def ranges_of(d):
    return np.stack([np.full(d, -2, np.float32), np.full(d, 2, np.float32)])


def parts_of(quantized):
    """The arrays of which `of_codes` makes it again."""
    return tuple(x for x in (quantized.codes, quantized.scale, quantized.offset) if x is not None)


def maxsim_of_codes(n, d, floats):
    offsets = np.r_[0, 1, 1, n].astype(np.int64)
    for kind in ("int8", "uint8", "int8_vector", "binary"):
        codes = parts_of(quantized(floats(n, d), kind, ranges_of(d)))
        packed = of_codes(simtile.maxsim_packed, kind)
        arrays = floats(2, 3, d), *codes, offsets
        yield Call(f"maxsim_packed of {kind}", packed, arrays, {"dim": d})
        yield Call(f"maxsim_packed k of {kind}", packed, arrays, {"dim": d, "k": 2})
    codec = {"centroids": floats(3, d), "weights": floats(4), "cutoffs": np.sort(floats(3))}
    own = simtile.ResidualCodec(*codec.values(), bits=2).encode(floats(n, d))

    def residual(queries, codes, residuals, norms, offsets, centroids, weights, cutoffs):
        shared = simtile.ResidualCodec(centroids, weights, cutoffs, bits=2)
        tokens = simtile.ResidualTokens(shared, codes, residuals, norms)
        return simtile.maxsim_packed(queries, tokens, offsets)

    arrays = (
        floats(2, 3, d),
        own.centroid_ids,
        own.residuals,
        own.inverse_norms,
        offsets,
        *codec.values(),
    )
    yield Call("maxsim_packed of residual2", residual, arrays, {})


def searches(n, d, kind, floats, queries):
    q, x = floats(queries, d), floats(n, d)
    allow = np.arange(n) % 3 != 1
    for metric in ("cosine", "dot", "l2"):
        name = f"{metric} of {queries} queries {kind}"
        yield Call(f"topk {name}", simtile.topk, (q, x), {"k": 4, "metric": metric})
        yield Call(f"range_search {name}", simtile.range_search, (q, x, 0.1), {"metric": metric})
    yield Call(
        f"topk allow {kind}", lambda q, x, a: simtile.topk(q, x, 4, allow=a), (q, x, allow), {}
    )


def searches_of_codes(n, d, floats, queries):
    q, x = floats(queries, d), floats(n, d)
    for kind in ("int8", "uint8", "int4", "int8_vector", "int4_vector", "binary"):
        arrays = (q, *parts_of(quantized(x, kind, ranges_of(d))))
        for metric in ("cosine", "dot", "l2") if kind != "binary" else ("cosine",):
            name, options = f"{metric} of {queries} queries of {kind}", {"dim": d, "metric": metric}
            topk, within = of_codes(simtile.topk, kind), of_codes(simtile.range_search, kind)
            yield Call(f"topk {name}", topk, arrays, {**options, "k": 4})
            yield Call(f"range_search {name}", within, arrays, {**options, "threshold": 0.1})
    bits = simtile.quantize(q, "binary").codes, simtile.quantize(x, "binary").codes

    def hamming(a, b):
        queries, documents = (simtile.Quantized(y, None, None, d, "binary") for y in (a, b))
        near = simtile.range_search(queries, documents, d // 2, metric="hamming")
        return (*simtile.topk(queries, documents, 4, metric="hamming"), *near)

    yield Call(f"topk, range_search hamming of {queries} queries", hamming, bits, {})


def codes(n, d, kind, floats):
    for to in ("int8", "uint8", "int4", "int8_vector", "int4_vector", "binary"):
        yield Call(f"quantize to {to} {kind}", quantized, (floats(n, d), to, ranges_of(d)), {})


def pools(n, d, kind, floats):
    mask = np.arange(n * 5).reshape(n, 5) % 3 != 1
    mask[:, 0] = True
    for how in ("mean", "cls", "max", "last"):
        options = {"how": how, "normalize": True}
        yield Call(f"pool {how} {kind}", simtile.pool, (floats(n, 5, d), mask), options)
    offsets = np.r_[0, n // 2 or n, n].astype(np.int64)

    def packed(x, offsets):
        return simtile.pool(x, None, offsets=offsets, kind="int8_vector")

    yield Call(f"pool packed {kind}", packed, (floats(n, d), offsets), {})


def calls(n, d, seed):
    """All of them, at one size."""
    rng = np.random.default_rng(seed)
    for kind, dtype in FLOATS.items():

        def floats(*shape, dtype=dtype):
            return rng.standard_normal(shape).astype(dtype)

        yield from losses(n, d, kind, floats)
        yield from scores(n, d, kind, floats)
        yield from searches(n, d, kind, floats, 3)
        yield from codes(n, d, kind, floats)
        yield from pools(n, d, kind, floats)
        if kind == "float32":
            yield from searches(n, d, kind, floats, 64)  # screened in small integers
            yield from searches_of_codes(n, d, floats, 3)
            yield from searches_of_codes(n, d, floats, 64)
            yield from maxsim_of_codes(n, d, floats)


def numbers(found):
    """What a call returned, as arrays."""
    if isinstance(found, simtile.Quantized):
        return [np.asarray(x) for x in parts_of(found)]
    if isinstance(found, tuple):
        return [array for part in found for array in numbers(part)]
    return [np.asarray(found)]


def make(call, at, size):
    print(f"{call.name}, size {size}, guard at the {at}", flush=True)
    own = [guarded(x, at) if isinstance(x, np.ndarray) else x for x in call.arrays]
    found = numbers(call.function(*own, **call.options))
    # Not only without a crash: where an array lies changes no bit.
    expected = numbers(call.function(*call.arrays, **call.options))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def read_past():
    """What a kernel's mistake would do, with one row too many."""
    x = guarded(np.ones((3, 1024), np.float32), "end")
    longer = np.lib.stride_tricks.as_strided(x, (4, 1024), x.strides)
    make_of = Call("a planted row too many", simtile.quantize, (longer,), {"kind": "binary"})
    print(make_of.name, flush=True)
    make_of.function(*make_of.arrays, **make_of.options)


def main(what):
    if what == "planted":
        read_past()
        return
    for seed, (n, d) in enumerate(SIZES[what]):
        for call in calls(n, d, seed):
            for at in ("end", "start"):
                make(call, at, (n, d))
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
