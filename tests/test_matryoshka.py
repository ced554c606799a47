"""info_nce on prefixes of the vectors: all widths in one run of the kernel, or one by one."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contrastive_cases import LEVELS, Case, option_tuples, pairwise
from contrastive_kernel import (
    CLOSE,
    NUMPY,
    check_case,
    contrast_of,
    rounded,
    run_kernel,
    run_oracle,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from info_nce_backends import cpu_level

import simtile
import simtile.ops.info_nce_run
from simtile import _core
from simtile._contrast import Contrast
from simtile._info_nce_run import run

DTYPES = ("float32", "float64", "float16", "bfloat16")
# What the kernel takes with all widths at once.
AT_ONCE = {
    **LEVELS,
    "matryoshka": ("dims", "dims and weights"),
    "bias": (0.0,),
    "guide": (None,),
    "false_negative_margin": (None,),
    "hardness": (None,),
    "negatives_scope": ("all", "queries"),
}
TUPLES = pairwise(AT_ONCE)
SPECIAL = ("duplicates", "zero rows")
ANY = {**LEVELS, "matryoshka": ("dims", "dims and weights"), "bias": (0.0,)}
QUERIES = [[1, 0, 0.9, 0.1, 0.5, 0.2], [0, 1, 0.1, 0.9, 0.2, 0.5]]
DOCUMENTS = [[0.95, 0.05, 0.85, 0.15, 0.45, 0.25], [0.05, 0.95, 0.15, 0.85, 0.25, 0.45]]


def with_widths(case, widths, seed=0):
    rng = np.random.default_rng(seed)
    case.arrays["dims"] = rng.permutation(widths)
    if case["weights"] is not None:
        case.arrays["weights"] = rng.uniform(0.1, 2.0, size=len(widths))
    return case


@st.composite
def prefix_cases(
    draw, levels, sizes=(1, 2, 7, 33, 111), dimensions=(1, 3, 7, 64, 111, 300), ties=True
):
    dtype = draw(st.sampled_from(DTYPES))
    case = Case(
        queries=draw(st.sampled_from(sizes)),
        dimensions=draw(st.sampled_from(dimensions)),
        guide_dimensions=5,
        drawn=draw(option_tuples(levels)),
        special=tuple(sorted(draw(st.sets(st.sampled_from(SPECIAL))))) if ties else (),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
    d = case.dimensions
    widths = draw(st.sets(st.integers(1, d) | st.just(d), min_size=1, max_size=5))
    with_widths(case, sorted(widths), case.seed)
    if ties and draw(st.booleans()):  # prefixes of zeros, in rows that are none
        for name in ("queries", "documents"):
            case.arrays[name][:: draw(st.integers(1, 5)), : draw(st.integers(0, d - 1))] = 0.0
    return rounded(case, dtype), dtype


def run_case(case, dtype, threads=1):
    """What `simtile.info_nce` runs: all widths at once or one by one."""

    def stored(x):
        x = np.ascontiguousarray(x.astype(NUMPY[dtype]))
        return x.view(np.uint16) if dtype == "bfloat16" else x

    return run(
        *(None if x is None else stored(x) for x in case.inputs),
        dtype,
        case["temperature"],
        case["normalize"],
        case["targets"],
        case["query_ids"],
        case["document_ids"],
        [stored(x) for x in case.guide or ()],
        contrast_of(case),
        1.0,
        case["row_weights"],
        (True, True, case["negatives"] is not None),
        False,
        "cpu",
        threads,
    )[:-1]


@given(prefix_cases(AT_ONCE))
def test_prefixes_are_the_oracle(drawn):
    case, dtype = drawn
    check_case(case, dtype, run_case(case, dtype))


@given(prefix_cases(ANY, sizes=(1, 2, 7), dimensions=(3, 7, 16), ties=False))
def test_prefixes_with_any_options(drawn):
    case, dtype = drawn
    # In one dimension all cosines are 1 or -1, and rounding decides which exceed a threshold.
    assume(case["false_negative_margin"] is None or case["dims"].min() > 1)
    truth = run_oracle(case)
    assume(truth.closest_call > CLOSE[dtype])
    check_case(case, dtype, run_case(case, dtype), truth)


@pytest.mark.parametrize("level", _core.cpu_info()["detected"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_level(level, dtype):
    with cpu_level(level):
        for i, drawn in enumerate(TUPLES):
            widths = [[3, 7, 111], [1, 111], [16, 32, 64, 111], [111]][i % 4]
            case = rounded(with_widths(Case(37, 111, 5, drawn, (), i), widths), dtype)
            check_case(case, dtype, run_case(case, dtype))


@pytest.mark.parametrize("need", [(True, True, True), (True, False, False), (False, True, False)])
def test_every_output_is_written(need):
    # On outputs full of NaN, and with a gradient for some of the inputs only.
    for directions in (("query_to_doc",), ("query_to_doc", "query_to_query", "doc_to_doc")):
        drawn = {
            "directions": directions,
            "negatives_per_query": 2,
            "matryoshka": "dims",
            "bank": 3,
        }
        case = rounded(with_widths(Case(70, 40, 5, drawn, ("duplicates",)), [5, 32, 40]), "float32")
        check_case(case, "float32", run_kernel(case, "float32", need))


@pytest.mark.parametrize("directions", [("query_to_doc",), ("query_to_doc", "doc_to_query")])
def test_many_rows_take_several_chunks(directions):
    drawn = {"directions": directions, "partition": "per_direction", "matryoshka": "dims"}
    case = rounded(with_widths(Case(700, 48, 5, drawn), [8, 16, 48]), "float32")
    results = [run_case(case, "float32", threads) for threads in (1, 3, 3)]
    truth = run_oracle(case)
    for result in results[:2]:
        check_case(case, "float32", result, truth)
    for one, other in zip(results[1], results[2], strict=True):
        assert one is other is None or np.array_equal(one, other)


def test_one_run_for_all_widths(monkeypatch):
    # That the kernel is asked once, and once a width only where it must be.
    asked = []

    def spy(*arguments):
        asked.append((arguments[0].shape[1], *arguments[17:19]))
        return _core.info_nce(*arguments)

    monkeypatch.setattr(
        sys.modules["simtile._info_nce_run"], "_core", SimpleNamespace(info_nce=spy)
    )
    q, d = np.random.default_rng(0).normal(size=(2, 5, 8))
    simtile.info_nce_grad(q, d, matryoshka_dims=(6, 2, 4), matryoshka_weights=(1, 2, 1))
    assert asked == [(6, (2, 4, 6), (0.5, 0.25, 0.25))]
    asked.clear()
    simtile.info_nce_grad(q, d, matryoshka_dims=(6, 2, 4), false_negative_margin=0.1)
    assert asked == [(2, (), ()), (4, (), ()), (6, (), ())]
    asked.clear()
    simtile.info_nce_grad(q, d, matryoshka_dims=(6, 2), matryoshka_weights=(1, 0))
    assert asked == [(6, (), ())]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_known_case(backend):
    q, d = (torch.tensor(x, dtype=torch.float64) for x in (QUERIES, DOCUMENTS))
    options = {"temperature": 0.2, "backend": backend}
    loss = simtile.info_nce(q, d, matryoshka_dims=(4, 2, 6), **options)
    assert f"{loss.item():.4f}" == "0.0153"
    alone = [simtile.info_nce(q[:, :w], d[:, :w], **options).item() for w in (2, 4, 6)]
    assert loss.item() == pytest.approx(np.mean(alone), rel=1e-12)
    weighted = simtile.info_nce(
        q, d, matryoshka_dims=(4, 2, 6), matryoshka_weights=(3, 0.5, 0.5), **options
    )
    expected = np.average(alone, weights=(0.5, 3, 0.5))
    assert weighted.item() == pytest.approx(expected, rel=1e-12)
    full = simtile.info_nce(q, d, matryoshka_dims=(6,), **options)
    assert full.item() == pytest.approx(alone[2], rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("widths", [(2, 5, 7), (3, 5), (4,)])
def test_gradcheck(reduction, widths):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(queries, documents, negatives, temperature):
        return simtile.info_nce(
            queries.T,  # not contiguous
            documents,
            negatives,
            temperature=temperature,
            matryoshka_dims=widths,
            matryoshka_weights=range(1, len(widths) + 1),
            reduction=reduction,
        )

    assert torch.autograd.gradcheck(
        loss, (random(7, 4), random(5, 7), random(4, 2, 7), temperature)
    )


def test_nan_stays_in_the_widths_that_see_it():
    q, d = (x.astype(np.float32) for x in np.random.default_rng(0).normal(size=(2, 5, 6)))
    q[1, 4] = np.nan
    losses, grad, _ = simtile.info_nce_grad(q, d, matryoshka_dims=(2, 6), reduction="none")
    assert np.isnan(losses[1])
    assert np.isfinite(np.delete(losses, 1)).all()
    assert np.isnan(grad[1]).any()
    assert np.isfinite(np.delete(grad, 1, axis=0)).all()
    narrow, *_ = simtile.info_nce_grad(q, d, matryoshka_dims=(2, 4), reduction="none")
    assert np.isfinite(narrow).all()


@pytest.mark.parametrize("scale", [1e-10, 1e30])
def test_huge_and_tiny_rows(scale):
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(2, 9, 20))
    q[3, :4] = 0.0  # also a prefix of zeros in such a row
    results = []
    for factor in (1.0, scale):
        scaled = (q * factor).astype(np.float32), d.astype(np.float32)
        results.append(simtile.info_nce_grad(*scaled, matryoshka_dims=(4, 8, 20)))
    (loss, grad_q, grad_d), (scaled_loss, scaled_q, scaled_d) = results
    assert scaled_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(scaled_d, grad_d, rtol=1e-4, atol=1e-6)
    assert np.isfinite(scaled_q).all()
    others = np.arange(9) != 3  # divided by the floor of the norm, whatever the scale
    np.testing.assert_allclose(
        scaled_q[others].astype(np.float64) * scale, grad_q[others], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_module_and_element_types(dtype):
    q, d = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    loss = simtile.nn.InfoNCE(matryoshka_dims=(8, 2, 4))(q.requires_grad_(), d)
    loss.backward()
    assert loss.dtype == torch.float32
    assert q.grad.dtype == dtype
    alone = [simtile.info_nce(q[:, :w], d[:, :w]).item() for w in (2, 4, 8)]
    assert loss.item() == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matryoshka_dims": (2, 7)}, "matryoshka_dims: found 7 for vectors of 6 dimensions"),
        ({"matryoshka_dims": ()}, "expected different widths"),
        ({"matryoshka_dims": (2, 2)}, "expected different widths"),
        ({"matryoshka_dims": (0, 6)}, "expected different widths"),
        ({"matryoshka_weights": (1.0,)}, "without matryoshka_dims"),
        ({"matryoshka_dims": (2, 4), "matryoshka_weights": (1.0,)}, "found 1 for 2 widths"),
        ({"matryoshka_dims": (2,), "matryoshka_weights": (0.0,)}, "and one above it"),
        ({"matryoshka_dims": (2, 4), "matryoshka_weights": (2.0, -1.0)}, "of at least 0"),
        ({"matryoshka_dims": (2,), "matryoshka_weights": (np.inf,)}, "a finite number"),
    ],
)
def test_what_is_refused(options, message):
    for function, kind in ((simtile.info_nce, torch.tensor), (simtile.info_nce_grad, np.array)):
        with pytest.raises(ValueError, match=message):
            function(kind(QUERIES), kind(DOCUMENTS), **options)
    with pytest.raises(TypeError, match="matryoshka_dims: found"):
        simtile.info_nce_grad(QUERIES, DOCUMENTS, matryoshka_dims=6)
    with pytest.raises(TypeError, match="expected integers"):
        simtile.info_nce_grad(QUERIES, DOCUMENTS, matryoshka_dims=(2.0, 6))


def test_a_gpu_adds_up_a_run_for_each_width(monkeypatch):
    # Its kernels are those of one width; here the CPU's stand in for them.
    operator = simtile.ops.info_nce_run
    widths = []

    def on_cpu(*arguments):
        *inputs, guide, normalize, contrast, dtype, need, _, precision, weight, rows, _ = arguments
        assert guide == []
        widths.append(inputs[0].shape[1])
        rest = (normalize, contrast.numbers(), dtype, need, "cpu", precision, 1, weight, rows)
        found = operator.run_tensors(*inputs, None, None, None, *rest, False)
        return found._replace(losses=torch.from_numpy(found.losses))

    monkeypatch.setattr(operator, "_run_on_gpu", on_cpu)
    generator = torch.Generator().manual_seed(0)
    q, d, x = (torch.randn(shape, generator=generator) for shape in ((5, 8), (6, 8), (5, 2, 8)))
    inputs = (q, d, x, torch.tensor(0.3), *[None] * 6)
    contrast = Contrast(widths=(2, 5), shares=(0.25, 0.75)).numbers()
    results = []
    for backend in ("triton", "cpu"):
        options = (True, contrast, torch.float32, [True] * 4, backend, "ieee", 1, 0.5, None, False)
        losses, grads, _ = operator.run_tensors(*inputs, *options)
        results.append([torch.as_tensor(losses), *grads])
    assert widths == [2, 5]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_on_a_gpu():
    generator = torch.Generator().manual_seed(0)
    results = []
    q, d = torch.randn(2, 70, 96, generator=generator)
    for device in ("cuda", "cpu"):
        inputs = [x.to(device).requires_grad_() for x in (q, d)]
        temperature = torch.tensor(0.3, device=device, requires_grad=True)
        loss = simtile.info_nce(*inputs, temperature=temperature, matryoshka_dims=(96, 20, 64))
        loss.backward()
        results.append([loss.detach().cpu(), *(x.grad.cpu() for x in (*inputs, temperature))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
