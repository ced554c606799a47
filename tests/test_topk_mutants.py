"""Planted mistakes in the CUDA search: every one must be seen."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import build
from search_cases import Case
from topk_cases import check
from topk_cuda import Host

from simtile.reference import topk_numpy as oracle

ORDERS = (0, 1, 2, 3)

FOLDER = "kernels/topk/"

# name, file, what was, what is
PLANTED = (
    (
        "buffer sorted before it is filled",
        "select.cuh",
        "buffer[i] = no_key;\n  __syncwarp();",
        "buffer[i] = no_key;",
    ),
    (
        "sorting steps run into each other",
        "select.cuh",
        "order_pair(keys[first], keys[first + distance]);\n  }\n  __syncwarp();",
        "order_pair(keys[first], keys[first + distance]);\n  }",
    ),
    (
        "warps merged before they are done",
        "select.cuh",
        "  __syncthreads();\n  for (int apart",
        "  for (int apart",
    ),
    (
        "queries used before they are there",
        "block.cuh",
        "  __syncthreads();\n  return block;",
        "  return block;",
    ),
    (
        "ties to the higher index",
        "select.cuh",
        "if (b < a) {",
        "if ((b ^ 0xffffffffu) < (a ^ 0xffffffffu)) {",
    ),
    (
        "last document of a split left out",
        "block.cuh",
        "block.begin + args.documents_per_split, args",
        "block.begin + args.documents_per_split - 1, args",
    ),
    (
        "one document too many",
        "block.cuh",
        "(1u << left) - 1 : 0;",
        "(2u << left) - 1 : 0;",
    ),
    (
        "masks of the block's first query alone",
        "block.cuh",
        "for (int q = 1; q < count; ++q) allowed",
        "for (int q = 1; q < count - count; ++q) allowed",
    ),
    (
        "mask of another query",
        "scan.cuh",
        "allowed_word(corpus, base, query, 1)",
        "allowed_word(corpus, base, q, 1)",
    ),
    (
        "mask of another query, mma",
        "scan_mma.cuh",
        "allowed_word(corpus, base, block.first_query + q, 1)",
        "allowed_word(corpus, base, block.first_query + group, 1)",
    ),
    (
        "butterfly keeps the wrong half",
        "scan.cuh",
        "const bool upper = lane_index() & apart;",
        "const bool upper = lane_index() & 1;",
    ),
    (
        "threshold one place too early",
        "scan.cuh",
        "put(threshold, q, threshold_of<Codes>(corpus, list[args.keys - 1]));",
        "put(threshold, q, threshold_of<Codes>(corpus, list[args.keys - 2]));",
    ),
    (
        "last keys not flushed",
        "scan.cuh",
        "args.list, __shfl_sync(full_warp, buffered, q));",
        "args.list, 0 * __shfl_sync(full_warp, buffered, q));",
    ),
    (
        "lanes race for a place",
        "select.cuh",
        "count + __popc(takers & lanes_below())] = key;",
        "count] = key;",
    ),
    (
        "buffer overflows",
        "select.cuh",
        "if (count + __popc(takers) <= shape.buffer) return false;",
        "if (count <= shape.buffer) return false;",
    ),
    (
        "end of a row left out",
        "scan.cuh",
        "block, whole_pieces, corpus.row_bytes);",
        "block, whole_pieces, whole_pieces);",
    ),
    (
        "equal scores of a lower rank are too late",
        "scan.cuh",
        "ordered + (corpus.rank && last != no_key ? 1 : 0)",
        "ordered",
    ),
    ("NaN is found", "score.cuh", "return 0xffffffffu;", "return 0xfffffffeu;"),
    ("-0 is not 0", "score.cuh", "__float_as_uint(cost + 0.0f)", "__float_as_uint(cost)"),
    (
        "bound above the cost",
        "score.cuh",
        "fmaf(-0x1p-19f, most, cost)",
        "fmaf(0x1p-19f, most, cost)",
    ),
    ("l2 below zero", "score.cuh", "score < 0 ? 0 : score", "score"),
    ("shift of uint8 left out", "score.cuh", "256ll * hi + lo + terms.shift", "256ll * hi + lo"),
    (
        "product and sum fused",
        "score.cuh",
        "__dadd_rn(__dmul_rn(terms.slope, dot), terms.level)",
        "fma(terms.slope, dot, terms.level)",
    ),
    (
        "halves of int4 swapped",
        "score.cuh",
        "word << 4 * (1 - part)",
        "word << 4 * part",
    ),
    ("bits from the other end", "fold.cuh", "7 - part : part", "part : part"),
    ("carry of the low byte lost", "fold.cuh", "(z - lo) / 256", "z / 256"),
    (
        "sums read before they are there",
        "fold.cuh",
        "  __syncthreads();\n  for (int w = 0; w < warps; ++w) largest",
        "  for (int w = 0; w < warps; ++w) largest",
    ),
    (
        "largest weight overwritten while it is read",
        "fold.cuh",
        "largest = __longlong_as_double(largest_bits);\n  __syncthreads();",
        "largest = __longlong_as_double(largest_bits);",
    ),
    (
        "sum in another order",
        "fold.cuh",
        "apart = warp_size / 2; apart > 0; apart /= 2) sum = __dadd_rn",
        "apart = 1; apart < warp_size; apart *= 2) sum = __dadd_rn",
    ),
    (
        "words of a fragment swapped",
        "scan_mma.cuh",
        "{documents[tile].word[half], documents[tile].word[half + 1]}",
        "{documents[tile].word[half + 1], documents[tile].word[half]}",
    ),
    (
        "accumulators of other documents",
        "scan_mma.cuh",
        "2 * (lane_index() % 4) + slot % 2",
        "lane_index() % 4 + slot % 2 * 4",
    ),
    (
        "planes swapped",
        "scan_mma.cuh",
        "slot % 4 / 2][slot / 4][slot % 2 + 2];",
        "slot % 4 / 2][slot / 4][slot % 2];",
    ),
    (
        "ones of another document",
        "scan_mma.cuh",
        "document % mma_columns * 4);",
        "document % mma_columns);",
    ),
    (
        "lanes of a group share a place",
        "scan_mma.cuh",
        "if (other < lane % 4) before += theirs;",
        "",
    ),
    ("error of sums forgotten", "float_score.cuh", "* 0x1.1p-24f", "* 0.0f"),
    ("bound of another sign", "float_score.cuh", "return -dot - fmaf", "return -dot + fmaf"),
    ("differences fused", "float_score.cuh", "__dmul_rn(difference, difference)", "difference"),
    ("zero rows divided", "float_score.cuh", "norms == 0 ? 0 : ", ""),
    (
        "squares out of range",
        "float_score.cuh",
        "if (!(squares > 0x1p-60f && squares < 0x1p120f)) return __uint_as_float(0x7fffffffu);",
        "",
    ),
    (
        "documents of another lane",
        "scan_float.cuh",
        "source % lanes * documents_per_pass + source / lanes",
        "source",
    ),
    (
        "end of a float row left out",
        "scan_float.cuh",
        "whole_pieces, corpus.row_bytes);",
        "whole_pieces, whole_pieces);",
    ),
    (
        "a list is left while some lanes are below the threshold",
        "merge.cuh",
        "if (takers == 0) break;",
        "if (takers != full_warp) break;",
    ),
    ("merged with the wrong order of ties", "combine.cuh", "other_id < id ||", "other_id > id ||"),
    (
        "an empty place before a result",
        "combine.cuh",
        "before = other_id < 0 ? list && id < 0 : true;",
        "before = true;",
    ),
    (
        "twice the same candidate",
        "rows.cuh",
        "if (place > 0 && keys[place - 1] == keys[place]) document = no_document;",
        "",
    ),
    (
        "candidates that are not allowed",
        "rows.cuh",
        "document % warp_size & 1 ? document : no_document;",
        "document % warp_size & 1 ? document : document;",
    ),
    (
        "candidates of NaN scores",
        "rows.cuh",
        "missing ? missing_score_bits(metric) : score_bits",
        "ordered == no_order ? missing_score_bits(metric) : score_bits",
    ),
    (
        "counts of the pass before",
        "radix.cuh",
        "    histogram[i] = 0;\n    sum",
        "    sum",
    ),
    (
        "digits before are not compared",
        "radix.cuh",
        "if (((key ^ prefix) >> shift >> digit_bits) == 0) atomic",
        "atomic",
    ),
    (
        "counted before cleared",
        "radix.cuh",
        "counts[i] = 0;\n  __syncthreads();",
        "counts[i] = 0;",
    ),
    ("k-th key left out", "radix.cuh", "taken = key <= last", "taken = key < last"),
    (
        "rank not in a key",
        "radix.cuh",
        "args.rank ? args.rank[document] : static_cast",
        "static_cast",
    ),
    (
        "sorting steps of a block run into each other",
        "sort.cuh",
        "order_pair_of(shared, pair, distance, flip);\n      __syncthreads();",
        "order_pair_of(shared, pair, distance, flip);",
    ),
    (
        "runs met from the same end",
        "sort.cuh",
        "flip ? 2 * distance - 1 - within : distance + within",
        "distance + within",
    ),
)
MUTANTS = [
    build.Mutation(name, FOLDER + file, before, after) for name, file, before, after in PLANTED
]


def improving():
    """Every document is better than those before, and one of every 32 is not allowed."""
    case = Case("int8", "dot", 1, 3000, 64, 10, allow="all")
    order = np.argsort(oracle.scores_of(*operands_of_first(case)))
    case["documents"][...] = case["documents"][order]
    case["allow"][::32] = False
    return case


def one_warp_has_the_best():
    """The best documents, first the best and last the second, where one warp meets them all."""
    case = Case("int8", "dot", 1, 3000, 64, 2)
    order = np.argsort(oracle.scores_of(*operands_of_first(case)))
    places = np.flatnonzero(np.arange(3000) // 32 % 4 == 0)[:160]
    best = np.roll(order[-160:], 1)
    others = np.delete(np.arange(3000), places)
    moved = np.empty_like(order)
    moved[places], moved[others] = best, order[:-160]
    case["documents"][...] = case["documents"][moved]
    return case


def operands_of_first(case):
    kind, metric, queries, documents, dim, *scales, query_scale = case.operands
    return (kind, metric, queries[0], oracle.wide(kind, documents, dim), dim, *scales, query_scale)


def near_zero():
    """Product and offset cancel: of the score, little more than the rounding of doubles is left."""
    case = Case("int8", "dot", 1, 111, 3, 5)
    case["documents"][...] = 100, 0, 0
    case["queries"][...] = 1, 2**-20, 0
    left = 100 * case["scale"][0].astype(np.float64)
    for i in (0, 1):
        query = case["queries"][0, i].astype(np.float64)
        case["offset"][i] = -left / query
        left += query * case["offset"][i]
    return case


def order_of_a_sum():
    """The squared norm of the query less 1, of which hardly more than its rounding is left."""
    case = Case("int8", "l2", 17, 111, 200, 20)
    case["queries"][...] *= np.float32(2.0**-22)
    case["queries"][:, 3] = 1
    case["factor"] = np.zeros(111, np.float32)
    case["addend"][...] = -1
    case["addend"][::2] = 0
    return case


def nearly_equal_codes():
    """Codes whose scores differ in their last places, the last the best."""
    case = Case("int8", "dot", 1, 3000, 64, 5)
    case["documents"][...] = 100
    case["documents"][:, 0] = np.arange(3000) * 256 // 3000 - 128
    case["scale"][:], case["offset"][:] = 1, 0
    case["queries"][...] = 1
    case["queries"][0, 0] = 1 / 32000
    return case


def nearly_equal():
    """Floats whose products differ by less than float32 sums can tell."""
    case = Case("float32", "dot", 1, 3000, 256, 5)
    case["queries"][0, -1] = 1
    query = case["queries"][0, :-1].astype(np.float64)
    case["documents"][:, -1] = -(case["documents"][:, :-1] @ query)
    return case


def small_squares():
    """Nearly equal rows whose squares round up in float32, to its smallest number."""
    case = Case("float32", "cosine", 1, 3000, 24, 5)
    noise = 1 + 0.05 * case["documents"]
    case["documents"][...] = 3e-23 * noise * np.sign(case["queries"][0])
    return case


def ends_alone():
    """Floats of which only the last two of a row are not 0."""
    case = apart(Case("float32", "dot", 3, 3000, 50, 5))
    case["documents"][:, :-2] = 0
    return case


def apart(case):
    """The documents further apart than they are wide: loads of 16 bytes, and an end to each row."""
    documents = case["documents"]
    row = documents.shape[1] * documents.itemsize
    memory = np.full(len(documents) * (row // 64 + 1) * 64 + 64, 0xA5, np.uint8)
    start = -memory.ctypes.data % 64
    rows = memory[start : len(memory) - 64 + start].reshape(len(documents), -1)[:, :row]
    case["documents"] = rows.view(documents.dtype)
    case["documents"][...] = documents
    return case


# Together they see every mutant: ties, masks, several splits and tiles, tails, lists that fill up
# and improve, every other document found, all scan kernels, selection from scores.
REVEALING = [
    apart(Case("int8", "dot", 3, 989, 50, 33)),
    ends_alone(),
    Case("packed", "hamming", 1, 6000, 144, 10, rank=True, values="few"),
    Case("int8", "l2", 3, 111, 33, 20, values="copies"),
    Case("int8", "l2", 3, 111, 33, 20, values="special"),
    Case("int8_vector", "dot", 2, 111, 80, 50, values="tiny"),
    Case("int8_vector", "dot", 2, 111, 40, 30, candidates=30, values="special", allow="some"),
    order_of_a_sum(),
    nearly_equal_codes(),
    small_squares(),
    Case("packed", "hamming", 9, 989, 392, 33, values="few", allow="per query"),
    Case("packed", "hamming", 1, 989, 144, 10, rank=True, values="few"),
    Case("packed", "hamming", 1, 989, 150, 10),
    Case("packed", "hamming", 1, 1900, 128, 1000),
    Case("packed", "hamming", 17, 989, 384, 10),
    Case("int8", "dot", 1, 3000, 64, 100),
    one_warp_has_the_best(),
    improving(),
    near_zero(),
    Case("int8_vector", "dot", 4, 989, 80, 10, values="special"),
    Case("int8", "cosine", 9, 989, 128, 10, allow="per query", values="few"),
    Case("uint8", "dot", 5, 989, 96, 50, values="zeros"),
    Case("int4", "l2", 2, 989, 111, 120),
    Case("bits", "cosine", 3, 989, 65, 50),
    Case("bits", "dot", 9, 989, 128, 50),
    Case("float32", "dot", 1, 3000, 33, 64),
    Case("float32", "cosine", 3, 989, 50, 33, values="zeros", layout="odd base"),
    Case("float16", "l2", 2, 989, 76, 64, allow="some"),
    Case("float32", "cosine", 2, 333, 24, 20, values="huge"),
    nearly_equal(),
    Case("packed", "hamming", 2, 6000, 64, 1025, values="few", rank=True),
    Case("int8", "dot", 2, 6000, 16, 1500, allow="some"),
    Case("int8_vector", "cosine", 2, 111, 40, 30, candidates=90, allow="some", values="special"),
]


def faults(module):
    """What the revealing cases find: wrong results, and what the shim forbids."""
    for case in REVEALING:
        expected = case.topk(oracle)
        scored = case["candidates"] is not None
        for order in ORDERS:
            # one multiprocessor: many documents for every list
            host = Host(module, order, multiprocessors=1)
            try:
                check(case.topk(host), expected)
                if scored:
                    np.testing.assert_array_equal(case.score_rows(host), case.score_rows(oracle))
                check(merged(host, case, expected), expected)
            except (AssertionError, RuntimeError) as error:
                return f"{case}, order {order}: {error}"
    return None


def merged(host, case, expected):
    """The results dealt out to two lists, and merged."""
    scores, ids = expected
    parts = []
    for first in (0, 1):
        places = np.arange(first, case.k, 2)
        parts.append(tuple(np.ascontiguousarray(x[:, places]) for x in (scores, ids)))
    return host.merge(case.metric, *parts, case.k)


@pytest.mark.deep  # eighteen cases in four orders
def test_no_mutant_no_fault():
    assert faults(build.load("topk")) is None


@pytest.mark.deep
@pytest.mark.parametrize("mutation", build.some(MUTANTS), ids=lambda mutation: mutation.name)
def test_mutant_is_caught(mutation):
    assert faults(build.load("topk", mutation=mutation)) is not None
