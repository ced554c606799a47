"""The two exact searches: the definition, and the CUDA kernels on the CPU and on a device."""

from dataclasses import replace

import numpy as np
import pytest
from cuda_host import build
from hypothesis import given, settings
from hypothesis import strategies as st
from topk_cases import (
    Case,
    cases,
    check,
    draw_codes,
    run_device,
    run_host,
    run_lists,
    run_oracle,
)

METRICS = ("hamming", "int8")
ORDERS = (0, 1, 2, 3)
MULTIPROCESSORS = (1, 3, 132)

orders = st.one_of(st.sampled_from(ORDERS), st.integers(2, 2**32))


@pytest.fixture(scope="module")
def host():
    return build.load("topk")


# Every way to search. Lists take as long as they look.
BACKENDS = ("reference", "cuda-host", pytest.param("cuda", marks=pytest.mark.gpu))
SMALL = {"documents": (0, 1, 7, 33, 111), "queries": (1, 3)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@given(data=st.data(), order=orders, multiprocessors=st.sampled_from(MULTIPROCESSORS))
def test_backend_is_the_oracle(backend, metric, data, order, multiprocessors):
    case = data.draw(cases(metric, **(SMALL if backend == "reference" else {})))
    if backend == "reference":
        result = run_lists(case)
    elif backend == "cuda-host":
        result = run_host(build.load("topk"), case, order, multiprocessors)
    else:
        result = run_device(case)
    check(result, run_oracle(case))


# The definition


def test_lists_on_a_case_by_hand():
    case = Case("hamming", 1, 4, 1, 6)
    case.arrays["queries"][...] = 0b1010
    case.arrays["documents"][...] = [[0b0000], [0b1010], [0b1111], [0b1011]]
    scores, ids = run_lists(case)
    none = 2**31 - 1
    assert scores.tolist() == [[0, 1, 2, 2, none, none]]
    assert ids.tolist() == [[1, 3, 0, 2, -1, -1]]

    case = Case("int8", 1, 4, 2, 5)
    case.arrays["queries"][...] = [2, -1]
    case.arrays["documents"][...] = [[1, 1], [-128, 127], [1, 1], [127, -128]]
    scores, ids = run_lists(case)
    assert scores.tolist() == [[382, 1, 1, -383, -(2**31)]]
    assert ids.tolist() == [[3, 0, 2, 1, -1]]


# The CUDA kernels on the CPU


@pytest.mark.slow  # every case is searched twelve times more
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=4)
@given(data=st.data())
def test_neither_grid_nor_schedule_shows(host, metric, data):
    case = data.draw(cases(metric, documents=(33, 989), ks=(1, 10, 64)))
    first = run_host(host, case)
    for order in ORDERS:
        for multiprocessors in MULTIPROCESSORS:
            check(run_host(host, case, order, multiprocessors), first)


# Every instance that the dispatch can choose, and what chooses it.
INSTANCES = {
    "HammingELi16ELi2ELi1E": Case("hamming", 1, 333, 30, 10, layout="aligned rows"),
    "HammingELi16ELi2ELi8E": Case("hamming", 7, 333, 32, 10),
    "HammingELi16ELi4ELi1E": Case("hamming", 1, 333, 48, 10),
    "HammingELi16ELi4ELi8E": Case("hamming", 9, 333, 64, 10),
    "HammingELi16ELi8ELi1E": Case("hamming", 1, 333, 125, 10, layout="aligned rows"),
    "HammingELi16ELi8ELi8E": Case("hamming", 9, 333, 96, 33, allow="per query"),
    "HammingELi4ELi8ELi8E": Case("hamming", 9, 333, 100, 10, layout="word base"),
    "HammingELi1ELi8ELi8E": Case("hamming", 9, 333, 111, 10),
    "Int8DotELi16ELi8ELi1E": Case("int8", 1, 333, 384, 100, scales="both"),
    "Int8DotELi16ELi8ELi8E": Case("int8", 8, 333, 384, 10, values="few"),
    "Int8DotELi4ELi8ELi8E": Case("int8", 9, 333, 300, 10, scales="query"),
    "Int8DotELi1ELi8ELi8E": Case("int8", 9, 333, 111, 10, scales="document"),
    "topk_scan_mma": Case("int8", 17, 333, 400, 33, scales="both", allow="some"),
}


@pytest.mark.parametrize("name", INSTANCES)
def test_host_instance(host, name):
    case = INSTANCES[name]
    assert host.scan_kernel(*host_inputs(case)) == name
    expected = run_oracle(case)
    for order in ORDERS:
        check(run_host(host, case, order), expected)


# Shared memory decides: tiles of fewer queries, blocks of fewer warps, several passes.
TIGHT = {
    "few queries a block": Case("hamming", 9, 989, 96, 200),
    "few queries a block, not mma": Case("int8", 17, 989, 384, 200),
    "two warps, mma": Case("int8", 17, 989, 1024, 100),
    "two warps": Case("int8", 1, 1333, 32 << 10, 1025),
    "three passes": Case("hamming", 2, 3000, 16, 2500, values="few"),
    "three passes, few allowed": Case("int8", 9, 3000, 16, 2500, allow="few", scales="special"),
    "more places than documents": Case("int8", 9, 111, 64, 5000),
}


@pytest.mark.parametrize("name", TIGHT)
def test_host_where_memory_is_tight(host, name):
    case = TIGHT[name]
    check(run_host(host, case, order=2), run_oracle(case))


def test_extreme_codes_do_not_overflow(host):
    case = Case("int8", 1, 33, 32 << 10, 33)
    for array in (case["queries"], case["documents"]):
        array[...] = -128
    case["documents"][7:] = 127
    scores, ids = run_host(host, case)
    assert scores[0, 0] == 2**14 * 2**15
    assert scores[0, -1] == -(2**7) * 127 * 2**15
    check((scores, ids), run_oracle(case))


def test_no_queries(host):
    scores, ids = run_host(host, Case("hamming", 0, 7, 16, 5))
    assert scores.shape == ids.shape == (0, 5)


def host_inputs(case, **changed):
    names = ("metric", "queries", "documents", "k", "query_scale", "document_scale", "allow")
    given = {"metric": case.metric, "k": case.k, "multiprocessors": 3, **case.arrays, **changed}
    return [given[name] for name in (*names, "multiprocessors")]


def many_rows(rows):
    return np.broadcast_to(np.zeros(16, np.uint8), (rows, 16))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "k = 0; expected at least 1"),
        ({"documents": many_rows(2**32)}, "documents: 4294967296 rows; expected fewer than 2"),
        ({"queries": many_rows(2**31)}, "queries: 2147483648 rows; expected fewer than 2"),
        ({"documents": np.zeros((3, 32769), np.uint8)}, "rows of 32769 bytes; expected 1 to 32768"),
        ({"documents": np.zeros((3, 0), np.uint8)}, "rows of 0 bytes; expected 1 to 32768"),
        ({"document_scale": np.ones(7, np.float32)}, "scales; Hamming distances have none"),
    ],
)
def test_dispatch_refuses(host, changed, message):
    with pytest.raises(ValueError, match=message):
        host.workspace_bytes(*host_inputs(Case("hamming", 2, 7, 16, 5), **changed))


def test_dispatch_says_what_it_could_place(host):
    """All 2^32 - 1 documents and 64-bit addresses: no count in the launch has wrapped."""
    documents = many_rows(2**32 - 1)
    inputs = host_inputs(Case("hamming", 1, 1, 16, 10), documents=documents, multiprocessors=132)
    tile, splits = host.division(*inputs)
    assert (tile, splits) == (1, 132 * 4)
    assert host.workspace_bytes(*inputs) == 10 * splits * 8


# Planted mistakes: every one must be seen.

SELECT, SCAN = "kernels/topk/select.cuh", "kernels/topk/scan.cuh"
MMA, BLOCK = "kernels/topk/scan_mma.cuh", "kernels/topk/block.cuh"
SCORE, MERGE = "kernels/topk/score.cuh", "kernels/topk/merge.cuh"

MUTANTS = [
    build.Mutation(name, file, old, new)
    for name, file, old, new in (
        (
            "buffer sorted before it is filled",
            SELECT,
            "buffer[i] = no_key;\n  __syncwarp();",
            "buffer[i] = no_key;",
        ),
        (
            "sorting steps run into each other",
            SELECT,
            "order_pair(keys[first], keys[first + distance]);\n  }\n  __syncwarp();",
            "order_pair(keys[first], keys[first + distance]);\n  }",
        ),
        (
            "warps merged before they are done",
            SELECT,
            "  __syncthreads();\n  for (int apart",
            "  for (int apart",
        ),
        (
            "queries used before they are there",
            BLOCK,
            "  __syncthreads();\n  return block;",
            "  return block;",
        ),
        (
            "ties to the higher index",
            SELECT,
            "if (b < a) {",
            "if ((b ^ 0xffffffffu) < (a ^ 0xffffffffu)) {",
        ),
        (
            "last document of a split left out",
            BLOCK,
            "block.begin + args.documents_per_split, args",
            "block.begin + args.documents_per_split - 1, args",
        ),
        (
            "one document too many",
            BLOCK,
            "args.documents_per_split, args.document_count)",
            "args.documents_per_split + 1, args.document_count)",
        ),
        (
            "mask of another query",
            SCAN,
            "args.allow_each[query * args.allow_stride",
            "args.allow_each[q * args.allow_stride",
        ),
        (
            "butterfly keeps the wrong half",
            SCAN,
            "const bool upper = lane_index() & apart;",
            "const bool upper = lane_index() & 1;",
        ),
        (
            "threshold one place too early",
            SCAN,
            "put(threshold, q, static_cast<unsigned>(list[args.keys - 1] >> 32));",
            "put(threshold, q, static_cast<unsigned>(list[args.keys - 2] >> 32));",
        ),
        (
            "last keys not flushed",
            SCAN,
            "args.list, __shfl_sync(full_warp, buffered, q));",
            "args.list, 0 * __shfl_sync(full_warp, buffered, q));",
        ),
        (
            "lanes race for a place",
            SCAN,
            "count + __popc(takers & lanes_below())] = key;",
            "count] = key;",
        ),
        (
            "buffer overflows",
            SCAN,
            "if (count + __popc(takers) > args.list.buffer) {",
            "if (count > args.list.buffer) {",
        ),
        (
            "pass begins with the last key of the one before",
            SCAN,
            "key > args.after[query]",
            "key >= args.after[query]",
        ),
        (
            "end of a row left out",
            SCAN,
            "block, whole_pieces, args.row_bytes);",
            "block, whole_pieces, whole_pieces);",
        ),
        ("NaN is found", SCORE, "return 0xffffffffu;", "return 0xfffffffeu;"),
        ("-0 is not 0", SCORE, "if (bits == 0x80000000u) bits = 0;", ""),
        (
            "words of a fragment swapped",
            MMA,
            "{documents[tile].word[half], documents[tile].word[half + 1]}",
            "{documents[tile].word[half + 1], documents[tile].word[half]}",
        ),
        (
            "accumulators of other documents",
            MMA,
            "2 * (lane_index() % 4) + i % 2",
            "lane_index() % 4 + i % 2 * 4",
        ),
        (
            "lanes of a group share a place",
            MMA,
            "if (other < lane % 4) before += theirs;",
            "",
        ),
        (
            "a list is left while some lanes are below the threshold",
            MERGE,
            "if (takers == 0) break;",
            "if (takers != full_warp) break;",
        ),
    )
]


def improving():
    """Every document is better than those before, and one of every 32 is not allowed."""
    case = Case("int8", 1, 3000, 64, 10, allow="all")
    documents = case["documents"].astype(np.int64)
    order = np.argsort(documents @ case["queries"][0])
    case["documents"][...] = case["documents"][order]
    case["allow"][::32] = False
    return case


def one_warp_has_the_best():
    """The best documents, first the best and last the second, where one warp meets them all."""
    case = Case("int8", 1, 3000, 64, 2)
    documents = case["documents"].astype(np.int64)
    order = np.argsort(documents @ case["queries"][0])
    places = np.flatnonzero(np.arange(3000) // 32 % 4 == 0)[:160]
    best = np.roll(order[-160:], 1)
    others = np.delete(np.arange(3000), places)
    moved = np.empty_like(order)
    moved[places], moved[others] = best, order[:-160]
    case["documents"][...] = case["documents"][moved]
    return case


# Together they see every mutant: ties, masks, several splits, tiles and passes, tails, lists that
# fill up and improve, every other document found, both scan kernels.
REVEALING = [
    Case("hamming", 9, 989, 48, 33, values="few", allow="per query"),
    Case("hamming", 1, 989, 18, 10, layout="aligned rows"),
    Case("hamming", 1, 1900, 16, 1000),
    Case("hamming", 1, 3000, 16, 1033, values="few"),
    Case("int8", 1, 3000, 64, 100),
    one_warp_has_the_best(),
    improving(),
    Case("int8", 17, 989, 80, 10, scales="special"),
    Case("int8", 17, 989, 128, 10, allow="per query", values="few"),
    Case("int8", 2, 111, 64, 120, scales="special"),
]


def faults(module):
    """What the revealing cases find: wrong results, and what the shim forbids."""
    for case in REVEALING:
        expected = run_oracle(case)
        for order in ORDERS:
            try:
                # one multiprocessor: many documents for every list
                check(run_host(module, case, order, multiprocessors=1), expected)
            except (AssertionError, RuntimeError) as error:
                return f"{case}, order {order}: {error}"
    return None


def test_no_mutant_no_fault(host):
    assert faults(host) is None


@pytest.mark.deep
@pytest.mark.parametrize("mutation", MUTANTS, ids=lambda mutation: mutation.name)
def test_mutant_is_caught(mutation):
    assert faults(build.load("topk", mutation=mutation)) is not None


# On a device


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*INSTANCES, *TIGHT])
def test_device_instance(name):
    case = {**INSTANCES, **TIGHT}[name]
    expected = run_oracle(case)
    for _ in range(3):
        check(run_device(case), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
def test_device_finds_planted_documents_among_many(metric):
    """More documents than one block's range by far: what was planted comes back in its order."""
    rng = np.random.default_rng(1)  # not the case's: its first draw is the queries
    width, n, places = 96, 1_000_003, 10
    case = replace(Case(metric, 9, 1, width, places), documents=0)
    documents = draw_codes(rng, n, width, "random").view(case["documents"].dtype)
    planted = rng.choice(n, places, replace=False)
    documents[planted] = case["queries"][0]
    case.arrays["documents"] = documents
    _, ids = run_device(case)
    assert ids[0].tolist() == sorted(planted.tolist())
