"""What ContrastiveStatistics gathers of info_nce, against the oracle on every backend here."""

import math

import numpy as np
import pytest
import torch
from contrastive_cases import Case, pairwise
from contrastive_kernel import CLOSE, check_case, clear_case, rounded, run_kernel, run_oracle
from contrastive_tally import check_tally, means
from contrastive_triton import tally_of
from hypothesis import assume, given
from hypothesis import strategies as st
from test_contrastive import KERNEL_LEVELS, has_no_ties, kernel_cases
from tolerances import TRITON, TRITON_ON_GPU

import simtile
from simtile._statistics import Tally
from simtile.reference import contrastive_numpy

TUPLES = pairwise(KERNEL_LEVELS)
EVERYTHING = {
    "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
    "negatives_per_query": 2,
    "bank": 1,
    "ids": True,
    "guide": ("absolute", 0.3),
    "false_negative_margin": -0.3,
    "hardness": "all_negatives",
}
OWN = {
    "negatives_per_query": 3,
    "negatives_scope": "own",
    "targets": True,
    "bank": 2,
    "guide": ("relative", 0.2),
    "false_negative_margin": 0.05,
}
CLIP = {
    "directions": ("query_to_doc", "doc_to_query"),
    "partition": "per_direction",
    "negatives_per_query": 2,
    "bank": 3,
    "ids": True,
}


def check_kernel(case, dtype, truth, threads=1):
    tally = np.full(len(Tally._fields), np.nan)
    result = run_kernel(case, dtype, threads=threads, tally=tally)
    check_case(case, dtype, result, truth)
    check_tally(case, dtype, tally, truth)
    for ours, without in zip(result, run_kernel(case, dtype, threads=threads), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(without).tobytes()


@given(kernel_cases(), st.sampled_from([1, 2]))
def test_kernel_is_the_oracle(drawn, threads):
    case, dtype = drawn
    truth = run_oracle(case)
    assume(truth.closest_call > CLOSE[dtype])
    check_kernel(case, dtype, truth, threads)


@pytest.mark.parametrize("drawn", TUPLES, ids=range(len(TUPLES)))
def test_every_pair_of_options(drawn):
    for seed in range(20):
        case = rounded(Case(19, 12, 5, drawn, ("duplicates",), seed), "float32")
        if not has_no_ties(case, "float32"):
            case = rounded(Case(19, 12, 5, drawn, (), seed), "float32")
        truth = run_oracle(case)
        if truth.closest_call > CLOSE["float32"]:
            break
    else:
        raise AssertionError("every seed has a similarity next to its threshold")
    check_kernel(case, "float32", truth)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("drawn", [{}, CLIP, {**CLIP, "partition": "joint"}, OWN])
def test_a_tie_is_a_miss(drawn, dtype):
    """A second document equal to the pair's: its similarity has the same bits."""
    plain = {k: v for k, v in drawn.items() if k not in ("ids", "guide", "false_negative_margin")}
    case = rounded(Case(40, 33, drawn=plain), dtype)
    own = case["own"]
    for name in ("queries", "documents"):
        case.arrays[name][:] /= 30.0
    case.arrays["documents"][own] = case["queries"] * 4.0
    tally = np.full(len(Tally._fields), np.nan)
    run_kernel(case, dtype, tally=tally)
    expected = contrastive_numpy.statistics(*case.inputs, case.options).accuracy
    assert means(tally)[2] == pytest.approx(expected, abs=1e-12)
    if plain.get("targets"):
        return
    # pairs 2i and 2i + 1 are the same twice
    for name in ("queries", "documents"):
        case.arrays[name][1:40:2] = case.arrays[name][0:40:2]
    run_kernel(case, dtype, tally=tally)
    assert means(tally)[2] == 0.0


def test_tiles_and_threads_do_not_matter():
    case = rounded(Case(989, 24, 5, EVERYTHING, (), 3), "float32")
    tallies = []
    for threads in (1, 2, 3):
        tally = np.full(len(Tally._fields), np.nan)
        run_kernel(case, "float32", threads=threads, tally=tally)
        tallies.append(tally)
    for name, *values in zip(Tally._fields, *tallies, strict=True):
        assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-6), name


def test_not_a_number_is_seen():
    q, d = np.eye(5, 8), np.eye(5, 8)
    q[2] = np.nan
    seen = simtile.ContrastiveStatistics()
    simtile.info_nce_grad(q, d, statistics=seen)
    assert math.isnan(seen.positive_similarity)
    assert math.isnan(seen.negative_similarity)
    assert seen.accuracy == 4 / 5
    assert seen.masked == 0.0


@pytest.mark.parametrize("margin", [None, 0.1])
def test_matryoshka_tells_of_the_widest(margin):
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(2, 30, 24))
    d[:, :16] += q[:, :16]
    one, another = simtile.ContrastiveStatistics(), simtile.ContrastiveStatistics()
    options = {"false_negative_margin": margin, "document_ids": np.arange(30) // 2}
    simtile.info_nce_grad(q, d, matryoshka_dims=(16, 4, 7), statistics=one, **options)
    simtile.info_nce_grad(q[:, :16], d[:, :16], statistics=another, **options)
    assert one.as_dict() == pytest.approx(another.as_dict(), rel=1e-12)
    assert one.masked > 0.0


def test_tensors_arrays_and_lists_agree():
    case = rounded(Case(6, 9, 5, {**EVERYTHING, "guide": None}, (), 0), "float64")
    options = {
        "directions": case["directions"],
        "query_ids": case["query_ids"],
        "document_ids": case["document_ids"],
        "false_negative_margin": case["false_negative_margin"],
    }
    found = []
    for backend in ("cpu", "reference"):
        seen = simtile.ContrastiveStatistics()
        simtile.info_nce_grad(*case.inputs, backend=backend, statistics=seen, **options)
        found.append(seen.as_dict())
    tensors = [torch.from_numpy(x).requires_grad_() for x in case.inputs]
    for name in ("query_ids", "document_ids"):
        options[name] = torch.from_numpy(options[name])
    for reduction in ("mean", "none"):
        seen = simtile.ContrastiveStatistics()
        simtile.info_nce(*tensors, statistics=seen, reduction=reduction, **options).sum().backward()
        found.append(seen.as_dict())
        with torch.no_grad():
            simtile.info_nce(*tensors, statistics=seen, reduction=reduction, **options)
        assert seen.tally.pairs == 12
        assert seen.as_dict() == pytest.approx(found[-1], rel=1e-12)
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-12)


def test_batches_add_up_until_reset():
    rng = np.random.default_rng(1)
    seen = simtile.ContrastiveStatistics()
    assert math.isnan(seen.accuracy)
    loss = simtile.nn.InfoNCE(statistics=seen)
    seen.reset()
    batches = [torch.from_numpy(rng.normal(size=(2, n, 5))) for n in (3, 7)]
    apart = []
    for q, d in batches:
        loss(q, d)
        one = simtile.ContrastiveStatistics()
        simtile.info_nce(q, d, statistics=one)
        apart.append(one.tally)
    sums = Tally(*(a + b for a, b in zip(*apart, strict=True)))
    assert seen.tally == pytest.approx(sums, rel=1e-12)
    assert seen.positive_similarity == pytest.approx(sums.positive_similarity / 10)
    # of arrays and of tensors
    simtile.info_nce_grad(*batches[0].numpy(), statistics=seen)
    assert seen.tally.pairs == 13
    assert "accuracy=" in repr(seen)
    seen.reset()
    assert seen.tally.pairs == 0


def test_under_compile():
    seen = simtile.ContrastiveStatistics()
    compiled = torch.compile(
        lambda q, d: simtile.info_nce(q, d, statistics=seen), fullgraph=True, backend="aot_eager"
    )
    q, d = torch.randn(2, 6, 4)
    compiled(q.requires_grad_(), d).backward()
    compiled(q, d)
    other = simtile.ContrastiveStatistics()
    simtile.info_nce(q, d, statistics=other)
    assert seen.tally.pairs == 12
    assert seen.as_dict() == pytest.approx(other.as_dict())


@pytest.mark.parametrize("call", [simtile.info_nce_grad, simtile.info_nce])
def test_what_is_no_statistics_is_refused(call):
    x = np.eye(3) if call is simtile.info_nce_grad else torch.eye(3)
    with pytest.raises(TypeError, match=r"statistics: found bool, expected simtile\.Contrast"):
        call(x, x, statistics=True)


@pytest.mark.parametrize("drawn", [EVERYTHING, OWN, CLIP], ids=["everything", "own", "clip"])
def test_triton_is_the_oracle(drawn):
    case, truth = clear_case(drawn, "float32", 7)
    result, tally = tally_of(case, "float32")
    check_case(case, "float32", result, truth, TRITON)
    check_tally(case, "float32", tally, truth, TRITON)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("drawn", [EVERYTHING, OWN, CLIP], ids=["everything", "own", "clip"])
def test_on_a_gpu(drawn, dtype):
    case, truth = clear_case(drawn, dtype, 389)
    result, tally = tally_of(case, dtype, device="cuda")
    check_case(case, dtype, result, truth, TRITON_ON_GPU)
    check_tally(case, dtype, tally, truth, TRITON_ON_GPU)
