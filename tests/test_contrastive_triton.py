"""The contrastive family by the Triton kernels, against the same oracle as on the CPU.

In Triton's interpreter, in a process of its own, and, marked gpu, on a device.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from contrastive_cases import LEVELS, pairwise
from contrastive_kernel import check_case, clear_case, run_oracle
from contrastive_triton import CLIP, EVERYTHING, OWN, run_interpreter, run_on_gpu
from simtile.kernels.info_nce import triton_configs as configs
from simtile.kernels.info_nce import triton_contrast
from tolerances import PRECISIONS, TRITON, TRITON_ON_GPU
from triton_hosts import intercepted

from simtile._contrast import DIRECTIONS, SCOPES, Contrast
from simtile.ops import info_nce_triton_contrast

TUPLES = pairwise({**LEVELS, "matryoshka": (None,), "bias": (0.0,)})


def assert_same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize(
    ("drawn", "dtype"), [(EVERYTHING, "bfloat16"), (OWN, "float32")], ids=["everything", "own"]
)
def test_kernels_are_the_oracle(drawn, dtype):
    case, truth = clear_case(drawn, dtype, queries=5)
    check_case(case, dtype, run_interpreter(case, dtype), truth, TRITON)


# All take the interpreter ten minutes: an eighth of them, another one when the kernels change.
KERNELS = Path(triton_contrast.__file__).read_bytes()
EIGHTH = int(hashlib.sha256(KERNELS).hexdigest(), 16) % 8
EVERY = "all" in os.environ.get("SIMTILE_MUTANTS", "")


@pytest.mark.deep
@pytest.mark.parametrize("place", [i for i in range(len(TUPLES)) if EVERY or i % 8 == EIGHTH])
def test_every_pair_of_options(place):
    drawn, dtype = TUPLES[place], ("float32", "bfloat16")[place % 2]
    case, truth = clear_case(drawn, dtype)
    check_case(case, dtype, run_interpreter(case, dtype), truth, TRITON)


@pytest.mark.gpu
@pytest.mark.parametrize("drawn", TUPLES, ids=range(len(TUPLES)))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_pair_of_options_on_a_gpu(drawn, dtype):
    case, truth = clear_case(drawn, dtype, queries=33)
    check_case(case, dtype, run_on_gpu(case, dtype), truth, TRITON_ON_GPU)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_on_a_gpu(precision):
    case, truth = clear_case({**CLIP, "hardness": None, "temperature": 0.3}, "float32", 200)
    result = run_on_gpu(case, "float32", precision=precision)
    check_case(case, "float32", result, truth, PRECISIONS[precision])


@pytest.mark.gpu
@pytest.mark.parametrize("drawn", [EVERYTHING, OWN, CLIP], ids=["everything", "own", "clip"])
def test_same_bits_again_on_a_gpu(drawn):
    case, _ = clear_case(drawn, "bfloat16", queries=300)
    assert_same_bits(run_on_gpu(case, "bfloat16"), run_on_gpu(case, "bfloat16"))


# Equal vectors are tied with the pair, whichever is the row: a margin of 0 leaves none of them out.
@pytest.mark.parametrize(
    "run", [run_interpreter, pytest.param(run_on_gpu, marks=pytest.mark.gpu)], ids=["cpu", "gpu"]
)
def test_ties_with_the_pair_are_kept(run):
    drawn = {**CLIP, "guide": ("absolute", 0.0), "false_negative_margin": 0.0}
    case, truth = clear_case(drawn, "float32", queries=4, special=("duplicates",))
    check_case(case, "float32", run(case, "float32"), truth, TRITON)


@pytest.mark.slow
def test_several_chunks_of_rows():
    drawn = {**EVERYTHING, "negatives_per_query": None, "guide": None, "bank": 1}
    case, truth = clear_case(drawn, "float32", queries=37)
    parts = run_interpreter(case, "float32", chunk_bytes=1)
    check_case(case, "float32", parts, truth, TRITON)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["documents", "negatives", "guide_documents"])
def test_nan_in_nan_out(where):
    drawn = {**EVERYTHING, "negatives_per_query": 1, "false_negative_margin": None}
    drawn["directions"] = ("doc_to_query", "doc_to_doc")
    drawn |= {"hardness": None, "negatives_scope": "queries"}
    case, _ = clear_case(drawn, "float32", queries=3)
    case[where][(2,) + (0,) * (case[where].ndim - 1)] = np.nan
    truth = run_oracle(case)
    losses, *grads, _ = run_interpreter(case, "float32")
    assert np.isnan(truth.losses).any() == (where != "negatives")  # which take no part here
    np.testing.assert_array_equal(np.isnan(losses), np.isnan(truth.losses))
    for ours, exact in zip(grads[:2], truth[1:3], strict=True):
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(exact))
    assert not grads[2].any()


@pytest.mark.slow
@pytest.mark.parametrize("need", ["queries", "negatives", "temperature"])
def test_only_the_gradients_that_are_wanted(need):
    case, truth = clear_case(EVERYTHING, "float32", queries=3)
    wanted = [name == need for name in ("queries", "documents", "negatives", "temperature")]
    result = run_interpreter(case, "float32", need=wanted)
    check_case(case, "float32", result, truth, TRITON)
    assert [x is not None for x in result[1:]] == wanted


def launches(dtype, record, n=70, m=75, *, guided, own=False, k=2, integers=True):
    """Hands `record` every launch of a call on zeros, as a GPU would get it."""

    def rows(*shape):
        return torch.zeros(shape, dtype=getattr(torch, dtype))

    contrast = Contrast(
        directions=DIRECTIONS["query_to_doc"] if own else 15,
        scope=SCOPES["own" if own else "all"],
        harden_others=1.0,
        harden_own=1.0,
        margin=0.1,
        guide_margin=0.1 if guided else 0.0,
    )
    ids = {"query_ids": torch.arange(n), "document_ids": torch.arange(m)} if integers else {}
    if integers and own:
        ids["targets"] = torch.zeros(n, dtype=torch.int64)
    with intercepted("info_nce", record):
        info_nce_triton_contrast.run(
            rows(n, 768),
            rows(m, 768),
            rows(n, k, 768) if k else None,
            dtype=getattr(torch, dtype),
            contrast=contrast,
            guide=[rows(n, 64), rows(m, 64), rows(n, k, 64)][: 2 + bool(k)] if guided else (),
            temperature=torch.tensor(0.05),
            need_grad=(True,) * 4,
            tiles=configs.config("sm80", dtype, "ieee"),
            **ids,
        )


def test_one_compilation_for_all_lengths_and_masks():
    compiled = {}

    def record(launch):
        compiled.setdefault(launch.name, set()).add(launch.key)

    for n in (1, 2, 16, 33, 989):
        for k, integers in ((1, True), (3, False), (0, False)):
            launches("bfloat16", record, n, n + n % 3, guided=False, k=k, integers=integers)
    assert {name: len(keys) for name, keys in compiled.items()} == {
        "prepare": 1,
        "pair_scores": 1,
        "block_scores": 1,
        "row_losses": 1,
        "coefficients": 1,
        "products": 1,
        "finish": 1,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_what_is_compiled_ahead_of_time_is_what_is_launched(dtype, guided, own):
    launched = {}

    def record(launch):
        names = list(launch.signature)
        compiled_in = {names[i]: value for (i,), value in launch.constexprs.items()}
        divisible = {names[i] for (i,), attributes in launch.attributes.items() if attributes}
        key = launch.name, launch.options["num_warps"]
        launched.setdefault(key, (launch.signature, compiled_in, divisible))

    launches(dtype, record, guided=guided, own=own)
    variants = [
        (v.kernel.__name__, v.num_warps, v.signature, v.constexprs, set(v.divisible))
        for v in configs.family_variants("sm80", dtype, 768)
    ]
    names = {"pair_scores", "block_scores", "products"} | ({"own_block_scores"} if own else set())
    for (name, warps), found in launched.items():
        if name in names:
            assert (name, warps, *found) in variants
    assert names <= {name for name, _ in launched}
    for name in ("row_losses",) if not own else ():
        assert (name, 1, *launched[name, 1]) in variants
