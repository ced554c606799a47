"""MaxSim with torch: autograd, the operators, compilation, autocast, every form of the inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maxsim_calls import FORMS, STORED, Form
from maxsim_cases import Case, cases

import simtile
from simtile.ops import maxsim as ops
from simtile.reference import maxsim_numpy as oracle

DTYPES = sorted(STORED)
BOTH = {"return_argmax": True, "return_token_scores": True}
BACKENDS = ["cpu", "reference"]
ORDINARY = ("random", "few", "zeros", "apart", "integers")
forms = st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS))


def as_tensors(x):
    """An array, or each of a list, as tensors that share its memory where they can."""
    if x is None or isinstance(x, torch.Tensor):
        return x
    if isinstance(x, list):
        return [as_tensors(own) for own in x]
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def leaves(x):
    """As tensors that require gradients, of the same strides."""
    if isinstance(x, list):
        return [leaves(own) for own in x]
    return as_tensors(x).requires_grad_()


def gradients(x):
    """Of the leaves, in float64, a list of [L, D]."""
    return [own.grad.double().numpy() for own in x] if isinstance(x, list) else x.grad


def assert_same(ours, theirs):
    """Of tensors and arrays, or lists of them: the same bits."""
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for x, y in zip(ours, theirs, strict=True):
            assert_same(x, y)
        return
    assert isinstance(ours, torch.Tensor)
    np.testing.assert_array_equal(ours.detach().numpy(), theirs)
    assert str(ours.dtype) == f"torch.{theirs.dtype}"


@given(
    case=cases(),
    forms=forms,
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    empty=st.sampled_from([0.0, -1e9]),
)
def test_results_are_those_of_arrays(case, forms, dtypes, empty):
    form = Form(case, *forms, dtypes)
    options = {**form.options, "empty_score": empty}
    expected = simtile.maxsim(*form.arguments, **options, **BOTH)
    if any(isinstance(x, np.ndarray) or x for x in form.arguments[:2]):  # else there is no tensor
        result = simtile.maxsim(*map(as_tensors, form.arguments), **options, **BOTH)
        assert_same(result, expected)


@pytest.mark.parametrize("forms", [("list", "list"), ("wider", "list"), ("list", "strided")])
@pytest.mark.parametrize("k", [None, 2])
def test_other_calls_are_those_of_arrays(forms, k):
    case = Case((3, 0, 5), (4, 7, 2), 6, masks=("holes", "prefix"), seed=3)
    form = Form(case, *forms)
    tensors = [as_tensors(x) for x in form.arguments]
    expected = simtile.maxsim_pairwise(*form.arguments, **BOTH)
    assert_same(simtile.maxsim_pairwise(*tensors, **BOTH), expected)
    tokens = np.concatenate(case["documents"]).astype(np.float32)
    offsets, mask = np.array([0, 4, 11, 13]), np.arange(13) % 3 > 0
    arguments = (form.queries, tokens, offsets, form.query_mask, mask)
    options = {"ids": np.array([[0, 2], [1, -1], [2, 2]]), "k": k, **BOTH}
    expected = simtile.maxsim_packed(*arguments, **options)
    options["ids"] = torch.from_numpy(options["ids"])
    assert_same(simtile.maxsim_packed(*map(as_tensors, arguments), **options), expected)


def weighted(form, weights, **options):
    """Leaves, and the gradients of Σ weights · scores."""
    inputs = [leaves(x) for x in form.arguments[:2]]
    masks = [as_tensors(x) for x in form.arguments[2:]]
    scores = simtile.maxsim(*inputs, *masks, **form.options, **options)
    (scores * torch.from_numpy(weights)).sum().backward()
    return inputs


def check_gradients(form, inputs, expected, weights):
    """Of leaves in the forms of a case, against the oracle's [L, D] of every matrix."""
    sides = (form.queries, form.documents)
    for leaf, grads, side, wide in zip(inputs, expected, sides, form.wide, strict=True):
        roundoff = np.finfo(np.float64 if form.compute == "float64" else np.float32).eps
        scale = max([np.abs(x).max(initial=0.0) for x in grads], default=0.0)
        for i, theirs in enumerate(grads):
            ours = leaf[i].grad if isinstance(leaf, list) else leaf.grad[i]
            assert ours.dtype == as_tensors(side[i]).dtype
            ours = ours.double().numpy()
            assert (ours[len(theirs) :] == 0).all()
            type_ = as_tensors(side[i]).dtype
            rounding = np.abs(theirs) * torch.finfo(type_).eps + torch.finfo(type_).tiny
            error = np.abs(ours[: len(theirs)] - theirs)
            terms = scale
            if form.options["normalize"]:  # of a difference that may be 0
                norms = np.linalg.norm(wide[i], axis=1, keepdims=True)
                terms = scale + np.abs(weights).sum() / np.maximum(norms, 1e-12)
            assert (error <= 64 * roundoff * terms + rounding).all()


def has_one_answer(case, dtypes):
    if not case.options["normalize"]:
        return True
    # Parallel tokens tie but for rounding, and which one a gradient goes to with them.
    if case.values in ("integers", "few") and case.options["temperature"] is None:
        return False
    # Gradients that divide by lengths of about 0 leave the range of float16.
    return not (case.values == "zeros" and "float16" in dtypes)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    case=cases(values=ORDINARY, temperatures=(None, None, 0.3)),
    forms=forms,
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
)
def test_gradients_are_the_oracle(backend, case, forms, dtypes):
    if not case["queries"] or not case["documents"] or not has_one_answer(case, dtypes):
        return
    form = Form(case, *forms, dtypes)
    weights = case["grad_scores"]
    inputs = weighted(form, weights, backend=backend, threads=1)
    expected = oracle.maxsim_grad(*form.wide, weights, *case.mask_arrays, **form.options)
    check_gradients(form, inputs, expected, weights)


RAGGED = Case((3, 0, 5), (4, 7, 0, 2), 6, masks=("holes", "holes"), seed=3)
OPTIONS = [
    {},
    {"normalize": True},
    {"length_normalize": True, "zero_rows": "pad"},
    {"temperature": 0.5},
    {"temperature": 0.1, "normalize": True, "length_normalize": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", ["list", "wider"])
def test_gradcheck(form, options):
    form = Form(RAGGED, form, form, ("float64", "float64"))
    masks = [as_tensors(x) for x in form.arguments[2:]]
    sides = [x if isinstance(x, list) else [x] for x in form.arguments[:2]]
    # Numbers in the place of NaN: gradcheck moves every element.
    parts = [
        [
            torch.tensor(np.nan_to_num(x, nan=7.0).tolist(), dtype=torch.float64)
            .reshape(x.shape)
            .requires_grad_()
            for x in side
        ]
        for side in sides
    ]
    count = len(parts[0])

    def scores(*tensors):
        sides = [list(tensors[:count]), list(tensors[count:])]
        sides = [x[0] for x in sides] if form.padded else sides
        return simtile.maxsim(*sides, *masks, **options)

    assert torch.autograd.gradcheck(scores, (*parts[0], *parts[1]), fast_mode=True)


def leaf(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS)
class TestGradients:
    """Of the other calls, by those of `simtile.maxsim`."""

    def test_of_pairs(self, backend):
        q, d = leaf(4, 3, 5), leaf(4, 6, 5)
        simtile.maxsim_pairwise(q, d, backend=backend).square().sum().backward()
        grads = [q.grad, d.grad]
        q.grad = d.grad = None
        simtile.maxsim(q, d, backend=backend).diagonal().square().sum().backward()
        torch.testing.assert_close(grads, [q.grad, d.grad])

    @pytest.mark.parametrize("what", ["all", "ids", "k", "k of ids"])
    def test_of_packed_documents(self, backend, what):
        q, tokens = leaf(2, 3, 5), leaf(11, 5)
        offsets = torch.tensor([0, 4, 4, 9, 11])
        parts = list(tokens.split([4, 0, 5, 2]))
        ids = torch.tensor([[0, 3, -1], [3, 3, 2]])
        options = {"all": {}, "ids": {"ids": ids}, "k": {"k": 2}, "k of ids": {"ids": ids, "k": 4}}
        result = simtile.maxsim_packed(q, tokens, offsets, **options[what], backend=backend)
        scores, found = result if "k" in options[what] else (result, options[what].get("ids"))
        finite = scores.isfinite()
        scores[finite].exp().sum().backward()
        grads = [q.grad, tokens.grad]
        q.grad = tokens.grad = None
        expected = simtile.maxsim(q, parts, backend=backend)
        if found is not None:
            expected = expected.gather(1, found.clamp(min=0))
            assert torch.equal(finite, found >= 0)
        torch.testing.assert_close(scores[finite], expected[finite])
        expected[finite].exp().sum().backward()
        torch.testing.assert_close(grads, [q.grad, tokens.grad])

    def test_only_what_requires_one_has_one(self, backend):
        q, d = leaf(2, 3, 5), leaf(4, 6, 5)
        simtile.maxsim(q, d, backend=backend).sum().backward()
        expected = q.grad, d.grad
        for chosen in (0, 1):
            inputs = [q.detach(), d.detach()]
            inputs[chosen].requires_grad_()
            scores, argmax, values = simtile.maxsim(*inputs, backend=backend, **BOTH)
            assert scores.requires_grad
            assert not argmax.requires_grad
            assert not values.requires_grad
            scores.sum().backward()
            assert torch.equal(inputs[chosen].grad, expected[chosen])
            assert inputs[1 - chosen].grad is None

    def test_of_views_goes_where_it_belongs(self, backend):
        """Expanded, sliced and transposed inputs, read in place in the forward."""
        wide, narrow, turned = leaf(4, 9, 5), leaf(1, 6, 5), leaf(5, 6, 4)
        for x, view in (
            (wide, wide[:, 2:7]),
            (wide, wide[::2, ::3]),
            (narrow, narrow.expand(3, 6, 5)),
            (turned, turned.permute(2, 1, 0)),
        ):
            for q, d in ((view, leaf(2, 3, 5)), (leaf(2, 3, 5), view)):
                grads = []
                for pair in ((q, d), (q.contiguous(), d.contiguous())):
                    scores = simtile.maxsim(*pair, backend=backend)
                    (grad,) = torch.autograd.grad(scores.square().sum(), x, retain_graph=True)
                    grads.append(grad)
                assert torch.equal(*grads)

    def test_the_graph_can_be_kept(self, backend):
        q, d = leaf(2, 3, 5), leaf(4, 6, 5)
        total = simtile.maxsim(q, d, backend=backend).sum()
        first = torch.autograd.grad(total, (q, d), retain_graph=True)
        second = torch.autograd.grad(total, (q, d))
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_nothing_is_kept_for_a_gradient_that_nobody_wants(monkeypatch):
    calls = []

    def spy(*arguments):
        calls.append(arguments[-2:])
        return forward(*arguments)

    forward = ops.forward
    monkeypatch.setattr(ops, "forward", spy)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not simtile.maxsim(leaf(2, 3, 5), leaf(4, 6, 5)).requires_grad
    assert not simtile.maxsim(leaf(2, 3, 5).detach(), leaf(4, 6, 5).detach()).requires_grad
    assert calls == [(False, False)] * 3
    assert simtile.maxsim(leaf(2, 3, 5), leaf(4, 6, 5)).requires_grad
    assert calls[3:] == [(True, False)]


def test_a_gradient_is_not_differentiated_again():
    q, d = leaf(2, 3, 5), leaf(4, 6, 5)
    with pytest.raises(RuntimeError, match="its gradient cannot be differentiated again"):
        torch.autograd.grad(simtile.maxsim(q, d).sum(), q, create_graph=True)
    scores, *_ = torch.ops.simtile.maxsim.default(*operator_arguments(q, d))
    with pytest.raises(RuntimeError, match="its gradient cannot be differentiated again"):
        torch.autograd.grad(scores.sum(), q, create_graph=True)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev"])
def test_functional_transforms_raise(transform):
    q = torch.randn(3, 4, 5)
    with pytest.raises(RuntimeError, match=r"torch\.func transforms .* are not supported"):
        getattr(torch.func, transform)(lambda x: simtile.maxsim(x, q).sum())(
            q[None] if transform == "vmap" else q
        )


def test_arrays_beside_tensors():
    q = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(ml_dtypes.bfloat16)
    mask = np.array([[True, True, False]] * 2)
    d = leaf(4, 6, 5)
    expected = simtile.maxsim(as_tensors(q), d, torch.from_numpy(mask))
    for ours, masks in ((q, mask), (as_tensors(q), mask), (q, torch.from_numpy(mask))):
        scores = simtile.maxsim(ours, d, masks)
        assert torch.equal(scores, expected)
        assert scores.requires_grad


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool])
def test_masks_of_tokenizers(kind):
    q, d = leaf(2, 3, 5), leaf(4, 6, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    expected = simtile.maxsim(q, d, mask.bool())
    assert torch.equal(simtile.maxsim(q, d, mask.to(kind)), expected)


class TestAutocast:
    @pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
    def test_inputs_are_cast_as_for_a_matmul(self, lower):
        q, d = leaf(2, 3, 5), leaf(4, 6, 5)
        with torch.autocast("cpu", lower):
            scores = simtile.maxsim(q, d)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, simtile.maxsim(q.to(lower), d.to(lower)))

    def test_float64_stays(self):
        q, d = leaf(2, 3, 5, dtype=torch.float64), leaf(4, 6, 5)
        with torch.autocast("cpu", torch.bfloat16):
            scores = simtile.maxsim(q, d)
        assert scores.dtype == torch.float64
        assert torch.equal(scores, simtile.maxsim(q, d))


def operator_arguments(q, d, ragged=False, temperature=0.0, candidates=None):
    """Of simtile::maxsim."""
    offsets = [torch.tensor([0, 2, len(x)]) if ragged else None for x in (q, d)]
    generator = torch.Generator().manual_seed(1)
    masks = [torch.rand(x.shape[:-1], generator=generator) < 0.7 for x in (q, d)]
    options = (True, False, True, -1.0, temperature, None, "cpu", 1)
    return (q, d, *offsets, *masks, candidates, *options, True, temperature > 0)


@pytest.mark.parametrize(("ragged", "temperature"), [(False, 0.3), (True, 0.0)])
def test_opcheck(ragged, temperature):
    shape = ((7, 5), (9, 5)) if ragged else ((2, 3, 5), (2, 6, 5))
    candidates = torch.tensor([[0, 1, 1], [1, -1, 0]])
    dtype, chosen = (torch.float32, None) if ragged else (torch.float64, candidates)
    q, d = leaf(*shape[0], dtype=dtype), leaf(*shape[1], dtype=dtype)
    arguments = operator_arguments(q, d, ragged, temperature, chosen)
    torch.library.opcheck(torch.ops.simtile.maxsim.default, arguments)
    inputs = operator_arguments(q.detach(), d.detach(), ragged, temperature, chosen)[:-2]
    scores, argmax, values = torch.ops.simtile.maxsim.default(*inputs, True, True)
    torch.library.opcheck(
        torch.ops.simtile.maxsim_backward.default,
        (torch.randn_like(scores), argmax, values, *inputs, [True, False]),
    )


class TestCompile:
    """No graph breaks: fullgraph=True raises at the first one."""

    def setup_method(self):
        torch._dynamo.reset()

    @pytest.mark.parametrize(
        ("form", "temperature"),
        [("batch", None), ("batch", 0.3), ("list", None), ("pairs", 0.3), ("ids", None)],
    )
    def test_gradients(self, form, temperature):
        options = {"normalize": True, "temperature": temperature}
        mask = torch.tensor([[True, True, False], [False, True, True], [True] * 3])
        offsets = torch.tensor([0, 2, 5])
        ids = torch.tensor([[0, 1], [1, -1], [-1, 0]])

        def step(q, d):
            if form == "batch":
                scores = simtile.maxsim(q.sin(), d, mask, **options)
            elif form == "list":
                scores = simtile.maxsim(list(q.sin()), [d[0], d[1, :2]], **options)
            elif form == "pairs":
                scores = simtile.maxsim_pairwise(q.sin(), d, mask, **options)
            else:
                tokens = d.flatten(0, 1)[:5]
                scores = simtile.maxsim_packed(q.sin(), tokens, offsets, ids=ids, **options)
            return scores.clamp(min=-9).square().sum()

        results = []
        for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            q, d = leaf(3, 3, 5), leaf(3, 4, 5)
            total = run(q, d)
            total.backward()
            results.append([total.detach(), q.grad, d.grad])
        torch.testing.assert_close(*results)

    def test_any_batch_with_one_graph(self):
        graphs = []

        def count(graph, example_inputs):
            graphs.append(graph)
            return graph

        compiled = torch.compile(
            lambda q, d: simtile.maxsim(q, d), fullgraph=True, dynamic=True, backend=count
        )
        for n in (5, 8, 31):
            q, d = leaf(n, 3, 16).detach(), leaf(n + 2, n + 1, 16).detach()
            assert torch.equal(compiled(q, d), simtile.maxsim(q, d))
        assert len(graphs) == 1

    def test_autocast(self):
        compiled = torch.compile(
            lambda q, d: simtile.maxsim(q, d), fullgraph=True, backend="aot_eager"
        )
        q, d = leaf(2, 3, 5).detach(), leaf(4, 6, 5).detach()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(q, d), simtile.maxsim(q, d))
