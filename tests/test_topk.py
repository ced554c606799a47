"""The CUDA search, on the CPU and on a device, against the NumPy oracle: equal to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import build
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import Case, cases, lay_out
from topk_cases import check
from topk_cuda import KINDS, Device, Host, masks

from simtile.reference import topk_numpy as oracle

ORDERS = (0, 1, 2, 3)
MULTIPROCESSORS = (1, 3, 132)
DIMS = (1, 7, 8, 31, 33, 111, 128, 200, 256, 384, 512)

orders = st.one_of(st.sampled_from(ORDERS), st.integers(2, 2**32))


@pytest.fixture(scope="module")
def host():
    return build.load("topk")


def backends(test):
    device = pytest.param("cuda", marks=pytest.mark.gpu)
    return pytest.mark.parametrize("backend", ["cuda-host", device])(test)


def backend_of(name, order=0, multiprocessors=3):
    if name == "cuda":
        return Device()
    return Host(build.load("topk"), order, multiprocessors)


@backends
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), order=orders, multiprocessors=st.sampled_from(MULTIPROCESSORS))
def test_search_is_the_oracle(backend, kind, data, order, multiprocessors):
    case = data.draw(cases((kind,), dims=DIMS))
    module = backend_of(backend, order, multiprocessors)
    check(case.topk(module), case.topk(oracle))


@backends
@given(case=cases(KINDS, dims=DIMS, candidates=40, allow="absent"), order=orders)
@settings(max_examples=10)
def test_scores_of_rows_are_the_oracle(backend, case, order):
    ours, theirs = (case.score_rows(m) for m in (backend_of(backend, order), oracle))
    np.testing.assert_array_equal(ours, theirs)


@backends
@given(
    case=cases(KINDS, documents=(1, 64, 111), candidates=None, rank=False),
    cut=st.floats(0, 1),
    order=orders,
)
@settings(max_examples=10)
def test_parts_merged_are_the_whole(backend, case, cut, order):
    module = backend_of(backend, order)
    middle = round(cut * case.documents)
    found = []
    for rows in (slice(0, middle), slice(middle, None)):
        part = part_of(case, rows)
        given_more = {"first_id": rows.start}
        search = Part(module, given_more)
        found.append(part.topk(search))
    check(module.merge(case.metric, *found, case.k), case.topk(oracle))


class Part:
    """A module whose ids begin elsewhere."""

    def __init__(self, module, more):
        self.module, self.more = module, more

    def topk(self, *arguments):
        self.module.topk(*arguments, **self.more)


def part_of(case, rows):
    part = Case(case.kind, case.metric, case.queries, len(range(case.documents)[rows]), case.dim)
    object.__setattr__(part, "k", case.k)
    part.arrays.update(case.arrays)
    for name in ("documents", "factor", "addend"):
        if case[name] is not None:
            part.arrays[name] = np.ascontiguousarray(case[name][rows])
    if case["allow"] is not None:
        part.arrays["allow"] = np.ascontiguousarray(case["allow"][..., rows])
    return part


@pytest.mark.slow  # every case is searched twelve times
@settings(max_examples=4)
@given(case=cases(KINDS, documents=(33, 989), ks=(1, 10, 64), candidates=None))
def test_neither_grid_nor_schedule_shows(host, case):
    first = case.topk(Host(host))
    for order in ORDERS:
        for multiprocessors in MULTIPROCESSORS:
            check(case.topk(Host(host, order, multiprocessors)), first)


def aligned(case):
    """The documents, and packed queries, in rows of whole pieces of 16 bytes."""
    for name in ("queries", "documents"):
        x = case[name]
        width = x.shape[1] * x.itemsize
        wide = np.zeros((len(x), width + -width % 16), np.uint8)
        wide[:, :width] = x.view(np.uint8)
        case.arrays[name] = lay_out(wide, "contiguous")[:, :width].view(x.dtype)
    return case


def word_base(case):
    for name in ("queries", "documents"):
        x = case[name]
        width = x.shape[1] * x.itemsize
        raw = np.full(x.size * x.itemsize + 128, 0x5A, np.uint8)
        start = -raw.ctypes.data % 64 + 4
        block = raw[start : start + len(x) * width].reshape(len(x), width)
        block[...] = x.view(np.uint8)
        case.arrays[name] = block.view(x.dtype)
    return case


# Every instance that the dispatch can choose, and what chooses it.
INSTANCES = {
    "topk_scanINS1_6PackedELi16ELi2ELi1E": aligned(Case("packed", "hamming", 1, 333, 240)),
    "topk_scanINS1_6PackedELi16ELi2ELi8E": Case("packed", "hamming", 7, 333, 256),
    "topk_scanINS1_6PackedELi16ELi4ELi1E": Case("packed", "hamming", 1, 333, 384, rank=True),
    "topk_scanINS1_6PackedELi16ELi4ELi8E": Case("packed", "hamming", 8, 333, 512),
    "topk_scanINS1_6PackedELi16ELi8ELi1E": aligned(Case("packed", "hamming", 1, 333, 1000)),
    "topk_scanINS1_6PackedELi16ELi8ELi8E": Case(
        "packed", "hamming", 8, 333, 768, k=33, allow="per query"
    ),
    "topk_scanINS1_6PackedELi4ELi8ELi8E": word_base(Case("packed", "hamming", 9, 333, 800)),
    "topk_scanINS1_6PackedELi1ELi8ELi8E": Case("packed", "hamming", 9, 333, 888),
    "topk_scan_mmaINS1_6PackedELi1E": Case(
        "packed", "hamming", 17, 333, 768, k=33, values="few", allow="per query"
    ),
    "topk_scanINS1_4BitsELi16ELi8ELi1E": Case("bits", "cosine", 1, 333, 384),
    "topk_scanINS1_4BitsELi16ELi8ELi4E": Case("bits", "l2", 4, 333, 512, values="few"),
    "topk_scanINS1_4BitsELi4ELi8ELi4E": word_base(Case("bits", "dot", 3, 333, 800)),
    "topk_scanINS1_4BitsELi1ELi8ELi4E": Case("bits", "cosine", 5, 333, 201),
    "topk_scan_mmaINS1_4BitsELi2E": Case("bits", "cosine", 9, 333, 384, allow="some"),
    "topk_scanINS1_4Int4ELi16ELi8ELi1E": Case("int4", "cosine", 1, 333, 384, k=100),
    "topk_scanINS1_4Int4ELi16ELi8ELi4E": aligned(Case("int4", "dot", 4, 333, 299)),
    "topk_scanINS1_4Int4ELi4ELi8ELi4E": word_base(Case("int4_vector", "l2", 5, 333, 296)),
    "topk_scanINS1_4Int4ELi1ELi8ELi4E": Case("int4", "l2", 5, 333, 113),
    "topk_scan_mmaINS1_4Int4ELi2E": Case("int4", "l2", 9, 333, 384),
    "topk_scan_mmaINS1_4Int4ELi1E": Case(
        "int4_vector", "cosine", 9, 333, 384, integer_queries=True
    ),
    "topk_scanINS1_4Int8ELi16ELi8ELi1E": Case("int8", "cosine", 1, 333, 384, k=100),
    "topk_scanINS1_4Int8ELi16ELi8ELi4E": aligned(
        Case("int8_vector", "dot", 3, 333, 300, integer_queries=True, values="few")
    ),
    "topk_scanINS1_4Int8ELi4ELi8ELi4E": word_base(Case("int8", "l2", 9, 333, 300)),
    "topk_scanINS1_4Int8ELi1ELi8ELi4E": Case("int8", "dot", 9, 333, 111),
    "topk_scan_mmaINS1_4Int8ELi2E": Case("int8", "l2", 17, 333, 400, k=33, allow="some", rank=True),
    "topk_scan_mmaINS1_4Int8ELi1E": Case(
        "int8_vector", "l2", 17, 333, 400, k=33, integer_queries=True
    ),
    "topk_scanINS1_5Uint8ELi16ELi8ELi1E": Case("uint8", "dot", 1, 333, 384),
    "topk_scanINS1_5Uint8ELi16ELi8ELi4E": Case("uint8", "cosine", 2, 333, 96, values="few"),
    "topk_scanINS1_5Uint8ELi4ELi8ELi4E": word_base(Case("uint8", "l2", 4, 333, 100)),
    "topk_scanINS1_5Uint8ELi1ELi8ELi4E": Case("uint8", "cosine", 4, 333, 33),
    "topk_scan_mmaINS1_5Uint8ELi2E": Case("uint8", "cosine", 9, 333, 400, k=33),
    "topk_scan_floatINS1_7Float32ELi16ELi1E": Case("float32", "cosine", 1, 333, 384, k=33),
    "topk_scan_floatINS1_7Float32ELi16ELi4E": Case("float32", "l2", 6, 333, 96, rank=True),
    "topk_scan_floatINS1_7Float32ELi4ELi4E": Case("float32", "dot", 3, 333, 111, values="few"),
    "topk_scan_floatINS1_7Float16ELi16ELi1E": aligned(Case("float16", "dot", 1, 333, 201)),
    "topk_scan_floatINS1_7Float16ELi16ELi4E": Case("float16", "cosine", 4, 333, 64, allow="some"),
    "topk_scan_floatINS1_7Float16ELi2ELi4E": Case("float16", "l2", 5, 333, 33, values="tiny"),
    "topk_scan_floatINS1_8BFloat16ELi16ELi1E": Case("bfloat16", "l2", 1, 333, 384),
    "topk_scan_floatINS1_8BFloat16ELi16ELi4E": Case(
        "bfloat16", "cosine", 9, 333, 128, allow="per query", values="few"
    ),
    "topk_scan_floatINS1_8BFloat16ELi2ELi4E": Case("bfloat16", "dot", 3, 333, 33, values="huge"),
}


@pytest.mark.parametrize("name", INSTANCES)
def test_host_instance(host, name):
    case = INSTANCES[name]
    assert Host(host).scan_kernel(case) == name
    expected = case.topk(oracle)
    for order in ORDERS:
        check(case.topk(Host(host, order)), expected)


# Memory decides, or k: tiles of fewer queries, blocks of fewer warps, selection from scores.
TIGHT = {
    "few queries a block": Case("packed", "hamming", 9, 989, 760, k=800),
    "few queries a block, not mma": Case("int8", "dot", 9, 989, 2048, k=100),
    "two warps, mma": Case("int8", "cosine", 17, 989, 1024, k=64),
    "the longest rows": Case("int8", "l2", 1, 333, 32 << 10, k=33),
    "the most bits": Case("packed", "hamming", 2, 33, 256 << 10, k=33),
    "selected": Case("packed", "hamming", 2, 6000, 128, k=1025, values="few", rank=True),
    "selected, few allowed": Case("int8", "l2", 3, 6000, 16, k=1900, allow="few"),
    "selected, a mask each": Case("int4", "dot", 5, 6000, 33, k=1025, allow="per query"),
    "more places than documents": Case("uint8", "cosine", 9, 111, 64, k=5000),
    "floats, selected": Case("float16", "cosine", 2, 5000, 8, k=1500, allow="some", rank=True),
    "floats, few dimensions fit": Case("float32", "dot", 3, 111, 8192, k=33),
    "floats, candidates": Case("float32", "l2", 3, 989, 33, k=100, candidates=200),
    "many candidates": Case("bits", "dot", 2, 6000, 40, k=100, candidates=5000, rank=True),
}


@pytest.mark.parametrize("name", TIGHT)
def test_host_where_memory_is_tight(host, name):
    case = TIGHT[name]
    check(case.topk(Host(host, order=2)), case.topk(oracle))


def words_of(allow, bits):
    """The mask as words of 32 or 64 documents."""
    width = -(-allow.shape[-1] // bits) * bits
    padded = np.ones((*allow.shape[:-1], width), bool)  # beyond N nothing is there to allow
    padded[..., : allow.shape[-1]] = allow
    packed = np.packbits(padded, axis=-1, bitorder="little")
    return packed.view(np.uint32 if bits == 32 else np.uint64)


@pytest.mark.parametrize("allow", ["few", "some", "per query"])
def test_masks_of_words(host, allow):
    case = Case("int8", "dot", 3, 989, 64, allow=allow)
    expected = case.topk(oracle)
    case.arrays["allow"] = words_of(case["allow"], 32)
    check(case.topk(Host(host)), expected)


def test_extreme_codes_do_not_overflow(host):
    case = Case("int8", "dot", 1, 33, 32 << 10, k=33)
    case["queries"][...] = -1
    case["documents"][...] = -128
    case["documents"][7:] = 127
    case["scale"][...], case["offset"][...] = 1, 0
    scores, ids = case.topk(Host(host))
    assert scores[0, 0] == 128 * (32 << 10)
    check((scores, ids), case.topk(oracle))


def test_no_queries(host):
    scores, ids = Case("packed", "hamming", 0, 7, 128, k=5).topk(Host(host))
    assert scores.shape == ids.shape == (0, 5)


def many_rows(rows):
    return np.broadcast_to(np.zeros(16, np.uint8), (rows, 16))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "k = 0; expected at least 1"),
        ({"k": 65537}, "k = 65537; expected at most 65536 on a CUDA device; search on the CPU"),
        ({"documents": many_rows(2**32)}, "documents: 4294967296 rows; expected fewer than 2"),
        ({"queries": many_rows(2**31)}, "queries: 2147483648 rows; expected fewer than 2"),
        ({"dim": 262145}, "dim = 262145; expected 1 to 262144"),
        ({"dim": 0}, "dim = 0; expected 1 to"),
        ({"metric": "dot"}, "metric: hamming is that of packed bits"),
        ({"factor": np.ones(7, np.float32)}, "only codes have them"),
        (
            {"kind": "float32", "metric": "dot", "dim": 30000},
            "dim = 30000 with k = 5 needs .* bytes of shared memory a block; this device allows",
        ),
    ],
)
def test_dispatch_refuses(host, changed, message):
    case = Case("packed", "hamming", 2, 7, 128, k=5)
    given_ = Host(host).given(case.operands, k=5, **masks(case))
    with pytest.raises(ValueError, match=message):
        host.workspace_bytes({**given_, **changed}, False)


def test_dispatch_says_what_it_could_place(host):
    """All 2^32 - 1 documents and 64-bit addresses: no count in the launch has wrapped."""
    case = Case("packed", "hamming", 1, 1, 128, k=10)
    documents = {"documents": many_rows(2**32 - 1)}
    inputs = {**Host(host, 0, 132).given(case.operands, k=10), **documents}
    tile, splits = host.division(inputs)
    assert (tile, splits) == (1, 132 * 4)
    assert host.workspace_bytes(inputs, False) == 10 * splits * 8


# On a device


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*INSTANCES, *TIGHT])
def test_device_instance(name):
    case = {**INSTANCES, **TIGHT}[name]
    expected = case.topk(oracle)
    for _ in range(3):
        check(case.topk(Device()), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("allow", ["few", "per query"])
def test_device_masks_of_words(allow, bits):
    case = Case("int8", "dot", 3, 989, 64, allow=allow)
    expected = case.topk(oracle)
    case.arrays["allow"] = words_of(case["allow"], bits)
    check(case.topk(Device()), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["packed", "int8"])
def test_device_finds_planted_documents_among_many(kind):
    """More documents than one block's range by far: what was planted comes back in its order."""
    rng = np.random.default_rng(1)  # not the case's: that drew the queries
    n, places = 1_000_003, 10
    metric = "hamming" if kind == "packed" else "dot"
    case = Case(kind, metric, 9, 1, 768 if kind == "packed" else 96, places)
    documents = rng.integers(256, size=(n, 96), dtype=np.uint8).view(case["documents"].dtype)
    planted = rng.choice(n, places, replace=False)
    if kind == "packed":
        documents[planted] = case["queries"][0]
    else:
        case["scale"][...] = 1
        documents[planted] = np.where(case["queries"][0] > 0, 127, -128)
    case.arrays["documents"] = documents
    object.__setattr__(case, "documents", n)
    _, ids = case.topk(Device())
    assert ids[0].tolist() == sorted(planted.tolist())
