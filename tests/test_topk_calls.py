"""`simtile.ops.topk` from arrays to the addresses that kernels get, and what it refuses.

The kernels are those of the shim, the arrays say that they are on a device.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from cuda_host import build
from device_fakes import FakeCuda, InterfaceArray, aligned, at, cuda_tensor, pretend_cuda
from hypothesis import given, settings
from search_cases import Case, cases
from topk_cases import check
from topk_cuda import KINDS, Host, to_device

from simtile import _gpu
from simtile.ops import topk
from simtile.reference import topk_numpy as oracle

BITS = {"packed": 1, "bits": 1, "int4": 4, "int8": 8, "uint8": 8, "float32": 32}


class Module(FakeCuda):
    """simtile._cuda whose kernels are the shim's."""

    class TopkArgs:
        def __init__(self, **arguments):
            self.__dict__.update(arguments)

    def topk_workspace_bytes(self, args, device, scores_only):
        return host().module.workspace_bytes(arrays_at(args), scores_only)

    def topk(self, args, device, stream, workspace, workspace_bytes, scores_only):
        self.log.append(("topk", device, stream))
        memory = at(workspace, (workspace_bytes,), (1,), np.uint8)
        host().module.run(arrays_at(args), memory, scores_only, 0)

    def topk_merge(self, *, device, stream, **lists):
        q, k = lists["queries"], lists["k"]
        dtype = np.int32 if lists["metric"] == "hamming" else np.float32
        made = {"metric": lists["metric"], "k": k}
        names = {"first": (0, lists["first_count"]), "second": (1, lists["second_count"])}
        for name, (place, n) in names.items():
            scores, ids = lists[f"{name}_scores"], lists[f"{name}_ids"]
            made[f"scores{place}"] = at(scores, (q, n), (4 * n, 4), dtype)
            made[f"ids{place}"] = at(ids, (q, n), (8 * n, 8), np.int64)
        made["scores"] = at(lists["scores"], (q, k), (4 * k, 4), dtype)
        made["ids"] = at(lists["ids"], (q, k), (8 * k, 8), np.int64)
        host().module.merge(made, 0)


def host():
    return Host(build.load("topk"))


def arrays_at(args):
    """The call with its arrays, from their addresses."""
    q, n, dim = args.queries, args.documents, args.dim
    made = {"kind": args.kind, "metric": args.metric, "dim": dim, "multiprocessors": 3}
    width = -(-dim * BITS.get(args.kind, 16) // 8)
    made["documents"] = at(args.documents_data, (n, width), (args.documents_stride, 1), np.uint8)
    of_query = np.uint8 if args.kind == "packed" else np.int8 if args.query_scale else np.float32
    size = np.dtype(of_query).itemsize
    columns = width if args.kind == "packed" else dim
    made["queries"] = at(args.queries_data, (q, columns), (args.queries_stride, size), of_query)
    vectors = {"scale": dim, "offset": dim, "factor": n, "addend": n, "query_scale": q}
    for name, count in vectors.items():
        if address := getattr(args, name):
            made[name] = at(address, (count,), (4,), np.float32)
    if args.rank:
        made["rank"] = at(args.rank, (n,), (4,), np.uint32)
    if args.candidates:
        count = args.candidate_count
        made["candidates"] = at(args.candidates, (q, count), (8 * count, 8), np.int64)
    for address, dtype, step in (
        (args.allow, np.dtype(bool), 1),
        (args.allow_bits, np.dtype(np.uint32), 4),
    ):
        if address:
            size = n if step == 1 else -(-n // 32)
            shape, strides = (size,), (step,)
            if args.allow_stride:
                shape, strides = (q, size), (args.allow_stride * step, step)
            made["allow"] = at(address, shape, strides, dtype)
    places = args.candidate_count if not args.ids else args.k
    of_score = np.int32 if args.metric == "hamming" else np.float32
    if args.scores:
        made["scores"] = at(args.scores, (q, places), (4 * places, 4), of_score)
    if args.ids:
        made["ids"] = at(args.ids, (q, args.k), (8 * args.k, 8), np.int64)
    return {**made, "k": args.k, "first_id": args.first_id}


@pytest.fixture
def module(monkeypatch):
    pretend_cuda(monkeypatch)
    made = Module()
    monkeypatch.setattr(_gpu, "cuda_module", lambda: made)
    return made


def moved(x):
    return cuda_tensor(to_device(x, "cpu")) if isinstance(x, np.ndarray) else x


class Tensors:
    """`simtile.ops.topk` behind the functions of `_core`."""

    def topk(self, *arguments):
        *operands, k, allow, rank, candidates, _, scores, ids = arguments
        given_masks = [moved(x) for x in (allow, rank, candidates)]
        found = topk.search(*map(moved, operands), k, *given_masks)
        scores[...], ids[...] = (x.numpy() for x in found)

    def score_rows(self, *arguments):
        *operands, candidates, _, scores = arguments
        scores[...] = topk.score_rows(*map(moved, operands), moved(candidates)).numpy()


@given(case=cases(KINDS, documents=(0, 1, 33, 111), ks=(1, 10)))
@settings(max_examples=30)
def test_tensors_reach_the_kernels(case):
    with pytest.MonkeyPatch.context() as patch:
        pretend_cuda(patch)
        patch.setattr(_gpu, "cuda_module", Module)
        check(case.topk(Tensors()), case.topk(oracle))
        if case["candidates"] is not None:
            ours, theirs = (case.score_rows(m) for m in (Tensors(), oracle))
            np.testing.assert_array_equal(ours, theirs)


def test_parts_are_merged(module):
    case = Case("int8", "dot", 3, 50, 33, k=20)
    kind, metric, queries, documents, *rest = map(moved, case.operands)
    found = [
        topk.search(kind, metric, queries, documents[rows], *rest, 20, first_id=rows.start)
        for rows in (slice(0, 19), slice(19, 50))
    ]
    check([x.numpy() for x in topk.merge(metric, *found, 20)], case.topk(oracle))
    with pytest.raises(ValueError, match=r"^second: found results of 3 queries and k = 41"):
        topk.merge(metric, *found, 41)
    with pytest.raises(ValueError, match=r"^second: ids: found int32 .*, expected int64 \[Q, k\]"):
        topk.merge(metric, found[0], (found[1][0], found[1][1].int()), 5)


def test_masks_of_numpy_and_of_words(module):
    case = Case("packed", "hamming", 2, 70, 64, allow="some")
    operands = [moved(x) for x in case.operands]
    expected = case.topk(oracle)
    words = np.zeros(96, bool)
    words[:70] = case["allow"]
    packed = np.packbits(words, bitorder="little").view(np.uint32)
    for allow in (case["allow"], packed, moved(packed)):
        found = topk.search(*operands, case.k, allow)
        check([x.numpy() for x in found], expected)


def test_memory_of_the_caller(module):
    """Arrays of libraries that cannot allocate need `out` and `workspace`, and keep to them."""
    case = Case("packed", "hamming", 2, 70, 64, k=5)
    operands = [InterfaceArray(x) if isinstance(x, np.ndarray) else x for x in case.operands]
    with pytest.raises(ValueError, match=r"^out: found None, expected int32 \[2, 5\] and int64"):
        topk.search(*operands, 5)
    out = [aligned((2, 5), dtype) for dtype in (np.int32, np.int64)]
    given_out = tuple(map(InterfaceArray, out))
    with pytest.raises(ValueError, match=r"^workspace: found None, expected \d+ bytes on cuda:0"):
        topk.search(*operands, 5, out=given_out)
    needed = topk.search_workspace_bytes(*operands, 5)
    memory = InterfaceArray(aligned((needed,), np.uint8))
    topk.search(*operands, 5, out=given_out, workspace=memory)
    check(out, case.topk(oracle))
    short = InterfaceArray(aligned((needed - 1,), np.uint8))
    with pytest.raises(ValueError, match=rf"^workspace: .*expected at least {needed} bytes"):
        topk.search(*operands, 5, out=given_out, workspace=short)


NAMES = ("kind", "metric", "queries", "documents", "dim")
SCALES = ("scale", "offset", "factor", "addend", "query_scale")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"kind": "float64"}, ValueError, "kind: found 'float64', expected one of"),
        ({"metric": "hamming"}, ValueError, "metric: found 'hamming' for int8 documents"),
        ({"k": 0}, ValueError, "k: found 0, expected 1 to 65536"),
        ({"k": 65537}, ValueError, "k: found 65537, expected 1 to 65536; search on the CPU"),
        ({"k": 1.0}, TypeError, "k: found 1.0, expected an int"),
        ({"dim": 32769}, ValueError, "dim: found 32769, expected 1 to 32768"),
        ({"dim": 17}, ValueError, "queries: found float32 [2, 16] on cuda:0, expected [Q, 17]"),
        ({"first_id": -1}, ValueError, "first_id: found -1"),
        (
            {"queries": np.zeros((2, 16), np.float64)},
            ValueError,
            "queries: found float64 [2, 16] on cuda:0, expected float32 [Q, 16]",
        ),
        (
            {"documents": np.zeros((5, 16), np.uint8)},
            ValueError,
            "documents: found uint8 [5, 16] on cuda:0, expected int8 [N, 16]",
        ),
        (
            {"documents": np.zeros((5, 32), np.int8)[:, ::2]},
            ValueError,
            "documents: found strides [32, 2] bytes, expected 1 in the last axis",
        ),
        (
            {"scale": np.zeros(5, np.float32)},
            ValueError,
            "scale: found float32 [5] on cuda:0 with strides [4] bytes, expected float32 [16]",
        ),
        (
            {"rank": np.zeros(5, np.int32)},
            ValueError,
            "rank: found int32 [5] on cuda:0 with strides [4] bytes, expected uint32 [5]",
        ),
        (
            {"allow": np.zeros(5, np.int64)},
            ValueError,
            "allow: found int64 [5] on cuda:0, expected a mask of bool [5] or [2, 5]",
        ),
        (
            {"allow": np.zeros(4, bool)},
            ValueError,
            "allow: found bool [4] on cuda:0, expected [5], one value per document",
        ),
        (
            {"candidates": np.zeros((3, 2), np.int64)},
            ValueError,
            "candidates: found int64 [3, 2] on cuda:0, expected int64 [2, C]",
        ),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_is_refused(changed, error, message):
    case = Case("int8", "dot", 2, 5, 16)
    call = dict(zip((*NAMES, *SCALES), case.operands, strict=True))
    options = {"k": 3, "allow": None, "rank": None, "candidates": None, **changed}
    call = {name: options.pop(name, x) for name, x in call.items()}
    masks = [options.pop(name) for name in ("k", "allow", "rank", "candidates")]
    arguments = [as_given(x) for x in (*call.values(), *masks)]
    with pytest.raises(error, match="^" + re.escape(message)):
        topk.search(*arguments, **options)


def as_given(x):
    """Strides as they are."""
    import torch

    return cuda_tensor(torch.from_numpy(x)) if isinstance(x, np.ndarray) else x
