"""simtile.info_nce with torch: autograd, the operators, compilation, autocast, the module."""

import copy
import math
import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from info_nce_cases import DTYPES, Case, as_tensor, cases, run_kernel

import simtile
from simtile import _core
from simtile._contrast import SCOPES, Contrast

REDUCTIONS = ["mean", "sum", "none"]
OPTIONS = ("normalize", "negatives_scope", "targets", "query_ids", "document_ids")


def tensors(case, *, requires_grad=True):
    """queries, documents and negatives."""
    inputs = [as_tensor(x) for x in case.inputs]
    for x in inputs:
        if x is not None and requires_grad:
            x.requires_grad_()
    return inputs


def tensor_options(case):
    """The keyword arguments of info_nce without the temperature."""
    values = {name: case.options[name] for name in OPTIONS}
    arrays = {k: as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return {**arrays, "threads": 1}


def loss_of(case, inputs, temperature=None, **more):
    temperature = case.temperature if temperature is None else temperature
    return simtile.info_nce(*inputs, temperature=temperature, **tensor_options(case), **more)


def assert_same_bits(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            x, y = torch.as_tensor(x), torch.as_tensor(y)
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


@given(cases(st.sampled_from([1, 7, 40]), st.sampled_from([1, 7, 33]), special=()))
def test_gradients_are_those_of_the_kernel(case):
    inputs = tensors(case)
    temperature = torch.tensor(case.temperature, dtype=torch.float64, requires_grad=True)
    weights = case["row_weights"]
    if weights is None:
        losses = loss_of(case, inputs, temperature, reduction="sum")
        total = losses
    else:
        losses = loss_of(case, inputs, temperature, reduction="none")
        total = losses.double() @ torch.from_numpy(weights)
    total.backward()
    expected, *grads, grad_temperature = run_kernel(
        case
        if weights is None
        # what autograd hands on: the weights in the element type of the losses
        else weighted(case, torch.from_numpy(weights).to(losses.dtype).double().numpy())
    )
    number = torch.float64 if case.dtype == "float64" else torch.float32
    assert losses.dtype == number
    expected = expected if weights is not None else expected.sum()
    torch.testing.assert_close(
        losses.detach().double(), torch.as_tensor(expected), rtol=1e-6, atol=1e-37
    )
    for x, grad in zip(inputs, grads, strict=True):
        if x is not None:
            assert x.grad.dtype == x.dtype
            assert x.grad.is_contiguous()
            assert torch.equal(x.grad, torch.from_numpy(grad).to(x.dtype))
    assert temperature.grad == grad_temperature


def weighted(case, weights):
    case = replace(case)
    case.arrays["row_weights"] = weights
    return case


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("own", [False, True])
def test_gradcheck(reduction, own, normalize):
    case = Case(3, 4, 5, 2, "float64", normalize=normalize, own=own, ids=True, seed=6)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, d, x, t: loss_of(case, (q, d, x), t, reduction=reduction),
        (*tensors(case), temperature),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_is_that_of_info_nce_grad(dtype, reduction):
    case = Case(17, 20, 12, 2, dtype, targets=True, ids=True)
    loss = loss_of(case, tensors(case), reduction=reduction)
    same = {**case.options, "threads": 1, "reduction": reduction}
    expected, *_ = simtile.info_nce_grad(*case.inputs, **same)
    assert loss.shape == expected.shape
    torch.testing.assert_close(loss.detach(), torch.as_tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reference_backend(reduction):
    case = Case(5, 6, 4, 2, ids=True)
    results = []
    for backend in ("cpu", "reference"):
        inputs = tensors(case)
        temperature = torch.tensor(0.3, requires_grad=True)
        loss = loss_of(case, inputs, temperature, reduction=reduction, backend=backend)
        loss.sum().backward()
        results.append([loss.detach(), *(x.grad.clone() for x in (*inputs, temperature))])
        for x in inputs:
            x.grad = None
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_only_the_gradients_that_are_needed(reduction, monkeypatch):
    wanted = []

    def spy(*arguments):
        wanted.append(tuple(grad is not None for grad in arguments[-5:-2]))
        return _core.info_nce(*arguments)

    monkeypatch.setattr(
        sys.modules["simtile._info_nce_run"], "_core", SimpleNamespace(info_nce=spy)
    )
    case = Case(6, 7, 5, 2, temperature=0.3)
    full = run_kernel(case)[1:]
    for need in np.ndindex(2, 2, 2, 2):
        *inputs, temperature = [*tensors(case, requires_grad=False), torch.tensor(0.3)]
        for x, needed in zip([*inputs, temperature], need, strict=True):
            x.requires_grad_(bool(needed))
        wanted.clear()
        loss = loss_of(case, inputs, temperature, reduction=reduction)
        assert loss.requires_grad == any(need)
        none = (False, False, False)
        forward = none if reduction == "none" else tuple(map(bool, need[:3]))
        assert wanted == [forward]
        if not any(need):
            continue
        loss.sum().backward()
        backward = [tuple(map(bool, need[:3]))] if reduction == "none" else []
        assert wanted == [forward, *backward]
        share = 1 / 6 if reduction == "mean" else 1.0
        for x, needed, expected in zip([*inputs, temperature], need, full, strict=True):
            assert (x.grad is not None) == bool(needed)
            if needed:
                torch.testing.assert_close(
                    x.grad, torch.as_tensor(expected * share, dtype=x.dtype), rtol=1e-4, atol=1e-6
                )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_gradient_is_computed_under_no_grad(reduction, monkeypatch):
    wanted = []

    def spy(*arguments):
        wanted.append(arguments[-5:-2])
        return _core.info_nce(*arguments)

    monkeypatch.setattr(
        sys.modules["simtile._info_nce_run"], "_core", SimpleNamespace(info_nce=spy)
    )
    case = Case(6, 6, 5)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            loss = loss_of(case, tensors(case, requires_grad=False), reduction=reduction)
            inputs = [x if x is None else x.clone().requires_grad_() for x in tensors(case)]
            assert not loss_of(case, inputs, reduction=reduction).requires_grad
        assert not loss.requires_grad
    assert wanted == [(None, None, None)] * 4


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_of_the_temperature_has_its_shape_and_type(shape, dtype):
    case = Case(9, 9, 5, dtype="float32")
    temperature = torch.full(shape, 0.25, dtype=dtype, requires_grad=True)
    loss_of(case, tensors(case), temperature, reduction="sum").backward()
    assert temperature.grad.shape == shape
    assert temperature.grad.dtype == dtype
    expected = run_kernel(replace(case, temperature=0.25))[-1]
    torch.testing.assert_close(
        temperature.grad.double().reshape(()),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-2 if dtype == torch.bfloat16 else 1e-6,
        atol=0,
    )


def test_loss_scales_as_a_gradient_scaler_needs():
    case = Case(12, 12, 7, dtype="float16")
    inputs = tensors(case)
    loss = loss_of(case, inputs)
    plain = torch.autograd.grad(loss, inputs[0], retain_graph=True)[0]
    scaled = torch.autograd.grad(loss * 1024.0, inputs[0])[0]
    assert scaled.dtype == torch.float16
    # Scaled in float32: small gradients gain bits that the plain one has lost.
    exact = torch.from_numpy(run_kernel(case)[1]) / 12
    error = (scaled.float() / 1024 - exact).abs().max()
    assert error <= (plain.float() - exact).abs().max()
    torch.testing.assert_close(scaled.float() / 1024, exact, rtol=2e-3, atol=1e-6)


class TestSavedGradients:
    """They are handed out once at most, and never written to."""

    case = Case(8, 8, 5, temperature=0.3)

    def test_twice_through_a_graph_that_is_kept(self):
        q, d, _ = tensors(self.case)
        loss = loss_of(self.case, (q, d))
        first = torch.autograd.grad(loss, (q, d), retain_graph=True)
        copies = [x.clone() for x in first]
        for x in first:
            x.zero_()
        assert_same_bits(torch.autograd.grad(loss, (q, d)), copies)

    def test_accumulation_into_grad(self):
        q, d, _ = tensors(self.case)
        loss = loss_of(self.case, (q, d))
        loss.backward(retain_graph=True)
        once = q.grad.clone()
        loss.backward()
        assert torch.equal(q.grad, 2 * once)
        q.grad = None

    def test_the_graph_is_freed(self):
        q, d, _ = tensors(self.case)
        loss = loss_of(self.case, (q, d))
        torch.autograd.grad(loss, (q, d))
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(loss, (q, d))

    def test_no_copy_of_gradients_that_are_not_scaled(self):
        q, d, _ = tensors(self.case)
        saved = []

        def pack(x):
            saved.append(x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = loss_of(self.case, (q, d))
        (gradient,) = torch.autograd.grad(loss, q)
        assert gradient.data_ptr() in [x.data_ptr() for x in saved]

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_memory_grows_with_n_plus_m(self, reduction):
        case = Case(300, 400, 8, 1)
        elements = []

        def pack(x):
            elements.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss_of(case, tensors(case), reduction=reduction)
        assert 0 < sum(elements) <= (300 + 400 + 300) * 8

    def test_inputs_may_change_after_the_forward(self):
        # The gradients are there already; an optimiser may have moved its weights.
        inputs = [x.clone() for x in tensors(self.case, requires_grad=False)[:2]]
        q, d = (x.requires_grad_() for x in inputs)
        expected = torch.autograd.grad(loss_of(self.case, (q, d)), q)
        loss = loss_of(self.case, (q, d))
        with torch.no_grad():
            q.add_(1.0)
        assert_same_bits(torch.autograd.grad(loss, q), expected)

    def test_changed_inputs_are_noticed_where_they_are_needed(self):
        q = tensors(self.case, requires_grad=False)[0].clone().requires_grad_()
        loss = loss_of(self.case, (q, q.detach().clone()), reduction="none")
        with torch.no_grad():
            q.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_differentiating_twice_raises(reduction):
    case = Case(5, 5, 4)
    q, d, _ = tensors(case)
    loss = loss_of(case, (q, d), reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="its gradient cannot be differentiated again"):
        torch.autograd.grad(loss, q, create_graph=True)
    arguments = op_arguments(case, reduction)
    loss, *_ = torch.ops.simtile.info_nce.default(*arguments)
    with pytest.raises(RuntimeError, match="its gradient cannot be differentiated again"):
        torch.autograd.grad(loss.sum(), arguments[0], create_graph=True)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev"])
def test_functional_transforms_raise(transform):
    q = torch.randn(3, 4, 5)
    with pytest.raises(RuntimeError, match=r"torch\.func transforms .* are not supported"):
        getattr(torch.func, transform)(lambda x: simtile.info_nce(x, q[0]))(
            q if transform == "vmap" else q[0]
        )


def op_arguments(case, reduction, need=(True, True, True, True)):
    """The arguments of the operator simtile::info_nce."""
    temperature = torch.tensor(case.temperature, dtype=torch.float64)
    inputs = [*tensors(case, requires_grad=False), temperature]
    inputs = [
        x if x is None else x.clone().requires_grad_(n) for x, n in zip(inputs, need, strict=True)
    ]
    need = [x is not None and n for x, n in zip(inputs, need, strict=True)]
    indices = [as_tensor(case[name]) for name in ("targets", "query_ids", "document_ids")]
    dtype = getattr(torch, case.dtype)
    contrast = Contrast(scope=SCOPES["own" if case.own else "all"]).numbers()
    options = (case.normalize, contrast, dtype, need, "cpu", "ieee", 1, reduction, False)
    return (*inputs, *indices, None, None, None, *options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("negatives", [None, 2])
def test_the_operator_is_the_eager_way(dtype, reduction, negatives):
    case = Case(7, 9, 5, negatives, dtype, ids=True)
    arguments = op_arguments(case, reduction)
    loss, *_ = torch.ops.simtile.info_nce.default(*arguments)
    loss.sum().backward()
    inputs = tensors(case)
    temperature = torch.tensor(case.temperature, dtype=torch.float64, requires_grad=True)
    eager = loss_of(case, inputs, temperature, reduction=reduction)
    eager.sum().backward()
    assert torch.equal(loss, eager)
    assert_same_bits(
        [x if x is None else x.grad for x in arguments[:4]],
        [x if x is None else x.grad for x in (*inputs, temperature)],
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("need", [(True, True, True, True), (False, True, False, False)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_opcheck(reduction, need, dtype):
    for case in (
        Case(5, 6, 4, 2, dtype, ids=True, targets=True),
        Case(5, 6, 4, None, dtype, normalize=False),
    ):
        arguments = op_arguments(case, reduction, need)
        torch.library.opcheck(torch.ops.simtile.info_nce.default, arguments)
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments[:-2]]
    torch.library.opcheck(torch.ops.simtile.info_nce_backward.default, (torch.randn(5), *detached))


class TestCompile:
    """No graph breaks: fullgraph=True raises at the first one."""

    def setup_method(self):
        torch._dynamo.reset()

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("learn_temperature", [False, True])
    def test_gradients(self, reduction, learn_temperature):
        case = Case(9, 11, 6, 2, temperature=0.3, ids=True, targets=True)

        indices = {k: v for k, v in tensor_options(case).items() if isinstance(v, torch.Tensor)}

        def step(q, d, x, t, weights):
            loss = simtile.info_nce(q * 2, d, x, temperature=t, reduction=reduction, **indices)
            return (loss * weights).sum()

        weights = torch.randn(9, generator=torch.manual_seed(0))
        results = []
        for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            inputs = tensors(case)
            temperature = torch.tensor(0.3, requires_grad=True) if learn_temperature else 0.3
            total = run(*inputs, temperature, weights)
            total.backward()
            leaves = [*inputs, temperature] if learn_temperature else inputs
            results.append([total.detach(), *(x.grad.clone() for x in leaves)])
            for x in inputs:
                x.grad = None
        torch.testing.assert_close(*results)

    @pytest.mark.slow  # runs a C++ compiler
    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
    def test_inductor(self):
        loss_fn = simtile.nn.InfoNCE(0.1, learnable_temperature=True)
        case = Case(9, 9, 6)
        q, d, _ = tensors(case)
        compiled = torch.compile(lambda q, d: loss_fn(q.sin(), d) * 2, fullgraph=True)
        compiled(q, d).backward()
        ours = [x.grad.clone() for x in (q, d, loss_fn.log_temperature)]
        for x in (q, d, loss_fn.log_temperature):
            x.grad = None
        (loss_fn(q.sin(), d) * 2).backward()
        torch.testing.assert_close(ours, [x.grad for x in (q, d, loss_fn.log_temperature)])

    def test_any_batch_with_one_graph(self):
        graphs = []

        def count(graph, example_inputs):
            graphs.append(graph)
            return graph

        compiled = torch.compile(
            lambda q, d: simtile.info_nce(q, d), fullgraph=True, dynamic=True, backend=count
        )
        for n in (5, 8, 31):
            case = Case(n, n + 2, 6)
            q, d, _ = tensors(case, requires_grad=False)
            assert torch.equal(compiled(q, d), simtile.info_nce(q, d))
        assert len(graphs) == 1

    def test_a_temperature_that_changes(self):
        compiled = torch.compile(
            lambda q, t: simtile.info_nce(q, q, temperature=t), fullgraph=True, backend="aot_eager"
        )
        q = torch.randn(6, 4)
        for temperature in (0.05, 0.1, 0.2):
            assert torch.equal(
                compiled(q, temperature), simtile.info_nce(q, q, temperature=temperature)
            )

    def test_autocast(self):
        compiled = torch.compile(
            lambda q, d: simtile.info_nce(q, d), fullgraph=True, backend="aot_eager"
        )
        case = Case(9, 9, 6)
        q, d, _ = tensors(case)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(q, d), simtile.info_nce(q, d))

    def test_for_a_gpu_that_is_not_here(self):
        """Whether the backend is there is not asked while compiling, but when the call runs."""
        compiled = torch.compile(
            lambda q: simtile.info_nce(q, q, backend="triton"), fullgraph=True, backend="aot_eager"
        )
        q = torch.empty(6, 4, device="meta", requires_grad=True)
        compiled(q).backward()
        assert q.grad.shape == (6, 4)
        arguments = list(op_arguments(Case(3, 4, 5), "mean"))
        arguments[arguments.index("cpu")] = "cuda"
        with pytest.raises(RuntimeError, match="backend: 'cuda' is not available"):
            torch.ops.simtile.info_nce.default(*arguments)

    def test_bad_values_raise_when_it_runs(self):
        compiled = torch.compile(
            lambda q, t: simtile.info_nce(q, q, temperature=t), fullgraph=True, backend="aot_eager"
        )
        with pytest.raises(ValueError, match=r"temperature: found -1\.0"):
            compiled(torch.randn(3, 4), torch.tensor(-1.0))


class TestAutocast:
    case = Case(11, 13, 6, 2)

    @pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
    def test_inputs_are_cast_as_for_a_matmul(self, lower):
        inputs = tensors(self.case)
        with torch.autocast("cpu", lower):
            loss = loss_of(self.case, inputs)
            assert (inputs[0] @ inputs[0].T).dtype == lower
        cast = [x.detach().to(lower).requires_grad_() for x in inputs]
        expected = loss_of(self.case, cast)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)
        loss.backward()
        expected.backward()
        for x, y in zip(inputs, cast, strict=True):
            assert x.grad.dtype == torch.float32  # of the input, and not rounded on the way
            assert torch.equal(x.grad.to(lower), y.grad)
            x.grad = None

    def test_float64_stays(self):
        case = replace(self.case, dtype="float64")
        inputs = tensors(case, requires_grad=False)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(case, inputs)
        assert loss.dtype == torch.float64
        assert torch.equal(loss, loss_of(case, inputs))

    def test_disabled(self):
        inputs = tensors(self.case, requires_grad=False)
        with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
            assert torch.equal(loss_of(self.case, inputs), loss_of(self.case, inputs))


def test_element_types_promote():
    case = Case(8, 8, 5, 1, "float16")
    inputs = [x.detach() for x in tensors(case)]
    inputs = [inputs[0].bfloat16(), inputs[1].float(), inputs[2]]
    wide = [x.float().requires_grad_() for x in inputs]
    narrow = [x.requires_grad_() for x in inputs]
    expected, loss = loss_of(case, wide), loss_of(case, narrow)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for x, y in zip(narrow, wide, strict=True):
        assert torch.equal(x.grad, y.grad.to(x.dtype))
    with_double = [narrow[0].detach(), narrow[1].detach().double()]
    assert simtile.info_nce(*with_double).dtype == torch.float64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strides(dtype):
    case = Case(9, 9, 6, 3, dtype)
    plain = tensors(case)
    expected = torch.autograd.grad(loss_of(case, plain), plain)
    base = [x.detach() for x in plain]
    for inputs in (
        [x.mT.contiguous().mT for x in base],
        [torch.nn.functional.pad(x, (0, 3))[..., :-3] for x in base],
        [x.repeat_interleave(2, dim=0)[::2] for x in base],
        [x.repeat_interleave(2, dim=-1)[..., ::2] for x in base],
    ):
        assert not any(x.is_contiguous() for x in inputs)
        inputs = [x.requires_grad_() for x in inputs]
        assert_same_bits(torch.autograd.grad(loss_of(case, inputs), inputs), expected)


def test_one_tensor_for_both():
    # In-batch negatives of views of one batch, and of the batch itself.
    x = torch.randn(10, 6, generator=torch.manual_seed(1)).requires_grad_()
    simtile.info_nce(x[0::2], x[1::2], temperature=0.3).backward()
    q, d = (x.detach()[k::2].clone().requires_grad_() for k in (0, 1))
    simtile.info_nce(q, d, temperature=0.3).backward()
    torch.testing.assert_close(x.grad[0::2], q.grad)
    torch.testing.assert_close(x.grad[1::2], d.grad)
    x.grad = None
    simtile.info_nce(x, x, temperature=0.3).backward()
    q, d = (x.detach().clone().requires_grad_() for _ in range(2))
    simtile.info_nce(q, d, temperature=0.3).backward()
    torch.testing.assert_close(x.grad, q.grad + d.grad)


def test_negated_views():
    # A negative bit that is not in memory: torch's own lazy operation
    x = torch.randn(5, 4, dtype=torch.complex64, generator=torch.manual_seed(2)).conj().imag
    assert x.is_neg()
    assert torch.equal(simtile.info_nce(x, x), simtile.info_nce(x.clone(), x.clone()))


def test_indices_may_be_lists():
    case = Case(5, 5, 4)
    q, d, _ = tensors(case, requires_grad=False)
    ids, targets = [1, 1, 2, 3, 3], [1, 0, 2, 3, 4]
    as_lists = simtile.info_nce(q, d, targets=targets, document_ids=ids)
    as_tensors = simtile.info_nce(
        q, d, targets=torch.tensor(targets), document_ids=torch.tensor(ids, dtype=torch.int32)
    )
    assert torch.equal(as_lists, as_tensors)


def test_shapes_without_elements_in_memory():
    from torch._subclasses.fake_tensor import FakeTensorMode

    meta = torch.empty(6, 4, device="meta", requires_grad=True)
    assert simtile.info_nce(meta, meta, reduction="none").shape == (6,)
    with FakeTensorMode():
        q = torch.empty(6, 4, dtype=torch.bfloat16, requires_grad=True)
        loss = simtile.info_nce(q, torch.empty(9, 4, dtype=torch.bfloat16))
        assert (loss.shape, loss.dtype) == ((), torch.float32)
        loss.backward()
        assert (q.grad.shape, q.grad.dtype) == ((6, 4), torch.bfloat16)


def test_dispatch_modes_see_the_operators():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen.append(str(function))
            return function(*arguments, **(options or {}))

    q = torch.randn(5, 4, requires_grad=True)
    with Watch():
        simtile.info_nce(q, q.detach(), reduction="none").sum().backward()
    assert "simtile.info_nce.default" in seen
    assert "simtile.info_nce_backward.default" in seen


def test_checkpointing():
    from torch.utils.checkpoint import checkpoint

    case = Case(7, 7, 5)
    q, d, _ = tensors(case)
    expected = torch.autograd.grad(loss_of(case, (q, d)), (q, d))
    for reentrant in (False, True):
        loss = checkpoint(lambda *x: loss_of(case, x), q, d, use_reentrant=reentrant)
        loss.backward()
        assert_same_bits([q.grad, d.grad], expected)
        q.grad = d.grad = None


def test_default_device_does_not_matter():
    q = torch.randn(5, 4, requires_grad=True)
    expected = simtile.info_nce(q, q)
    with torch.device("meta"):
        loss = simtile.info_nce(q, q, targets=[0, 1, 2, 3, 4])
        loss.backward()
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [-10.0, math.inf])
def test_a_bias_changes_nothing(reduction, dtype, bias):
    def gradients(**options):
        loss = simtile.info_nce(*leaves, reduction=reduction, **options)
        loss.sum().backward()
        grads = [x.grad.clone() for x in leaves]
        for x in leaves:
            x.grad = None
        return loss, grads

    leaves = [x.to(dtype).detach().requires_grad_() for x in tensors(Case(5, 7, 6))[:2]]
    loss, grads = gradients()
    learned = torch.tensor([bias], dtype=torch.float64, requires_grad=True)
    for value in (learned, learned.detach(), -10.0):
        same, same_grads = gradients(bias=value)
        assert torch.equal(same, loss)
        assert same.dtype == dtype
        assert all(map(torch.equal, same_grads, grads))
    assert torch.equal(learned.grad, torch.zeros(1, dtype=torch.float64))
    with torch.no_grad():
        assert torch.equal(simtile.info_nce(*leaves, reduction=reduction, bias=learned), loss)


class TestModule:
    case = Case(9, 11, 6, 2)

    def test_is_the_function(self):
        inputs = tensors(self.case, requires_grad=False)
        module = simtile.nn.InfoNCE(0.2, normalize=False, negatives_scope="own", reduction="none")
        expected = simtile.info_nce(
            *inputs, temperature=0.2, normalize=False, negatives_scope="own", reduction="none"
        )
        assert torch.equal(module(*inputs), expected)
        assert list(module.parameters()) == []
        assert module.temperature == 0.2

    def test_what_belongs_to_a_batch(self):
        q, d, x = tensors(self.case, requires_grad=False)
        batch = {"targets": torch.arange(9).flip(0), "document_ids": torch.arange(11) % 4}
        assert torch.equal(
            simtile.nn.InfoNCE()(q, d, x, **batch), simtile.info_nce(q, d, x, **batch)
        )

    def test_default_temperature(self):
        q, d, _ = tensors(self.case, requires_grad=False)
        assert torch.equal(simtile.nn.InfoNCE()(q, d), simtile.info_nce(q, d))

    def test_learns_the_temperature(self):
        module = simtile.nn.InfoNCE(0.5, learnable_temperature=True)
        assert [name for name, _ in module.named_parameters()] == ["log_temperature"]
        assert module.temperature.item() == pytest.approx(0.5)
        q, d, _ = tensors(self.case, requires_grad=False)
        q = d[:9] + 0.1 * q  # aligned: colder is better
        optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
        losses = []
        for _ in range(10):
            loss = module(q, d)
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert losses == sorted(losses, reverse=True)
        assert 0.0 < module.temperature.item() < 0.5

    def test_gradient_of_the_logarithm(self):
        module = simtile.nn.InfoNCE(0.5, learnable_temperature=True)
        q, d, _ = tensors(self.case, requires_grad=False)
        module(q, d).backward()
        temperature = torch.tensor(0.5, requires_grad=True)
        simtile.info_nce(q, d, temperature=temperature).backward()
        torch.testing.assert_close(module.log_temperature.grad, temperature.grad * 0.5)

    def test_copies_and_state(self):
        module = simtile.nn.InfoNCE(0.2, learnable_temperature=True, reduction="sum")
        other = simtile.nn.InfoNCE(0.9, learnable_temperature=True, reduction="sum")
        other.load_state_dict(module.state_dict())
        q, d, _ = tensors(self.case, requires_grad=False)
        for twin in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(q, d), module(q, d))

    def test_says_what_it_is(self):
        assert repr(simtile.nn.InfoNCE(0.1, reduction="sum")) == (
            "InfoNCE(temperature=0.1, reduction='sum')"
        )
        assert "temperature=0.05, learnable" in repr(simtile.nn.InfoNCE(learnable_temperature=True))

    def test_refuses_when_it_is_made(self):
        for options, message in (
            ({"temperature": 0.0}, r"temperature: found 0\.0"),
            ({"reduction": "avg"}, "reduction: found 'avg'"),
            ({"bias": math.nan}, "bias: found nan, expected a finite number"),
            ({"threads": 0}, "threads: found 0"),
        ):
            with pytest.raises(ValueError, match=message):
                simtile.nn.InfoNCE(**options)
        with pytest.raises(TypeError, match="targets: belongs to a batch"):
            simtile.nn.InfoNCE(targets=None)
        with pytest.raises(TypeError, match=r"scale: not an option of simtile\.info_nce"):
            simtile.nn.InfoNCE(scale=20.0)
        if not torch.cuda.is_available():
            with pytest.raises(RuntimeError, match="backend: 'triton' is not available"):
                simtile.nn.InfoNCE(backend="triton")
