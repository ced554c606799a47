"""simtile.info_nce with torch: autograd, reductions, element types and layouts."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from info_nce_cases import DTYPES, Case, cases, run_kernel
from info_nce_tensors import REDUCTIONS, assert_same_bits, loss_of, op_arguments, tensors

import simtile
from simtile import _core


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
