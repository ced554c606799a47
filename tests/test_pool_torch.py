"""simtile.pool of tensors: gradients against the oracle, the operators, and compilers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from info_nce_cases import as_tensor
from pool_cases import DTYPES, TENSOR_LAYOUTS, Case, cases, check, oracle, oracle_grad, poisoned
from torch._subclasses.fake_tensor import FakeTensorMode

import simtile
import simtile.ops.pool  # registers the operators, whichever test runs first
from simtile import _pool

SIZES = st.sampled_from([1, 2, 7])
LENGTHS = st.sampled_from([1, 7, 33, 111])
WIDTHS = st.sampled_from([1, 3, 16, 65, 111])


def leaves(case):
    """Tokens and weights that want a gradient, and a mask."""
    mask, weights = case.mask_array(), case.weights()
    return (
        as_tensor(case.tokens()).requires_grad_(),
        None if weights is None else torch.from_numpy(weights).requires_grad_(),
        None if mask is None else torch.from_numpy(mask),
    )


def call(case, tokens, weights, mask, **options):
    return simtile.pool(
        tokens, mask, case.how, weights=weights, dim=case.dim, normalize=case.normalize, **options
    )


def numbers(tensor):
    return tensor.detach().double().numpy()


def check_gradients(case, tokens, weights):
    truth = oracle_grad(case)
    assert tokens.grad.dtype == tokens.dtype
    check("pool.grad_tokens", numbers(tokens.grad), truth.tokens, truth.token_size, case.dtype)
    if weights is not None:  # float32, whatever the tokens are
        found = numbers(weights.grad)
        check("pool.grad_weights", found, truth.weights, truth.weight_size, "float32")


# Of tiny vectors a gradient is of 1e30 and more.
drawn = cases(
    SIZES, LENGTHS, WIDTHS, tuple(DTYPES), TENSOR_LAYOUTS, ("ordinary", "ties", "huge", "zeros")
)


@given(drawn, st.sampled_from(["cpu", "reference"]), st.integers(1, 3))
def test_gradients_are_the_oracles(case, backend, threads):
    if case.rows * case.length * case.width > 2000:
        backend = "cpu"
    tokens, weights, mask = leaves(case)
    with poisoned():
        vectors = call(case, tokens, weights, mask, backend=backend, threads=threads)
        truth = oracle(case)
        check("pool.vectors", numbers(vectors), truth.vectors, truth.size, case.dtype)
        assert vectors.dtype == tokens.dtype
        vectors.backward(as_tensor(case.grad()))
    check_gradients(case, tokens, weights)


@pytest.mark.parametrize("how", _pool.HOW)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("form", ["list", "offsets"])
def test_gradients_of_lists_and_offsets(how, dtype, form):
    case = Case(5, 9, 17, 12, dtype, how, "right", how == "mean", seed=3)
    padded, own, mask = leaves(case)
    lengths = mask.sum(1).tolist()
    parts = [x[:n] for x, n in zip(padded, lengths, strict=True)]
    weights = None
    if own is not None:
        weights = [w[:n] for w, n in zip(own, lengths, strict=True)]
    for backend in ("cpu", "reference"):
        padded.grad = None
        options = {"backend": backend}
        if form == "offsets":
            options["offsets"] = torch.tensor([0, *lengths]).cumsum(0)
        with poisoned():
            found = call(
                case,
                torch.cat(parts) if form == "offsets" else parts,
                torch.cat(weights) if weights and form == "offsets" else weights,
                None,
                **options,
            )
            found.backward(as_tensor(case.grad()), retain_graph=backend == "cpu")
        if own is not None:
            own_grad, own.grad = own.grad, None
            check_gradients(case, padded, own_grad_of(own_grad))
        else:
            check_gradients(case, padded, None)


def own_grad_of(grad):
    """A leaf with this gradient."""
    leaf = torch.zeros_like(grad, requires_grad=True)
    leaf.grad = grad
    return leaf


@pytest.mark.parametrize("how", _pool.HOW)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("form", ["padded", "offsets"])
def test_gradcheck(how, normalize, form):
    case = Case(3, 4, 5, 3, "float64", how, "none", seed=7)
    tokens = torch.from_numpy(case.tokens()).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0]])
    options, inputs = {"dim": 3, "normalize": normalize}, [tokens]
    if form == "offsets":
        options["offsets"] = [0, 4, 9, 12]
        mask = mask.reshape(-1)
        inputs = [torch.from_numpy(case.tokens().reshape(12, 5)).requires_grad_()]
    if how == "mean":
        inputs.append((torch.rand(mask.shape, dtype=torch.float64) + 0.5).requires_grad_())

    def value(x, w=None):
        return simtile.pool(x, mask, how, weights=w, **options)

    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("how", _pool.HOW)
@given(seed=st.integers(0, 2**32 - 1))
def test_is_the_plain_formula(how, seed):
    case = Case(3, 7, 9, 9, "float32", how, "holes", values="ties", seed=seed)
    ours, _, mask = leaves(case)
    mask = mask | (torch.arange(7) == 3)
    ours = torch.nan_to_num(ours.detach()).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    found = simtile.pool(ours, mask, how)
    rows = torch.arange(3)
    if how == "mean":
        plain = (theirs * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    elif how == "max":
        plain = theirs.masked_fill(~mask[..., None], -torch.inf).max(1).values
    elif how == "cls":
        plain = theirs[rows, mask.int().argmax(1)]
    else:
        plain = theirs[rows, 6 - mask.flip(1).int().argmax(1)]
    expected = F.normalize(plain, dim=-1)
    torch.testing.assert_close(found, expected)
    grad = as_tensor(case.grad())
    found.backward(grad)
    expected.backward(grad)
    # Of ties the first, as torch.max chooses; a vector of zeros is divided by 1e-12.
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def operator_inputs(how="mean", form="padded"):
    mask = torch.tensor([[True, True, False], [False, True, True]])
    tokens, offsets = torch.randn(2, 3, 4, requires_grad=True), None
    weights = (torch.rand(2, 3) + 0.5).requires_grad_() if how == "mean" else None
    if form == "offsets":
        tokens = torch.randn(6, 4, requires_grad=True)
        offsets, mask = torch.tensor([0, 2, 6]), mask.reshape(-1)
        weights = None if weights is None else torch.rand(6, requires_grad=True)
    return tokens, weights, offsets, mask


QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(("how", "form"), [("mean", "padded"), ("max", "offsets")])
@pytest.mark.parametrize(
    "checks",
    [QUICK_CHECKS, pytest.param(("test_aot_dispatch_dynamic",), marks=pytest.mark.deep)],
    ids=["quick", "traced"],
)
def test_operators(how, form, checks):
    inputs = operator_inputs(how, form)
    operators = torch.ops.simtile

    def opcheck(operator, arguments):
        torch.library.opcheck(operator, arguments, test_utils=checks)

    opcheck(operators.pool.default, (*inputs, how, 3, True, True, "cpu", 1))
    tokens, _, offsets, mask = (None if x is None else x.detach() for x in inputs)
    some = (tokens, None, offsets, mask, how, 3, True, False, "cpu", 1)
    opcheck(operators.pool.default, some)
    grad, shape = torch.randn(2, 3), list(tokens.shape)
    positions = torch.zeros(2, 3, dtype=torch.int32) if how == "max" else None
    shares = None if how == "max" else torch.rand(mask.shape)
    spread = (grad, offsets, shares, positions, shape, torch.bfloat16, "cpu", 1)
    opcheck(operators.pool_spread.default, spread)
    opcheck(operators.pool_dots.default, (tokens, offsets, mask, grad, "cpu", 1))


@pytest.mark.parametrize(
    ("how", "form"),
    [("mean", "padded"), ("mean", "offsets"), ("max", "padded"), ("cls", "offsets")],
)
def test_compiled_without_breaks(how, form):
    tokens, weights, offsets, mask = operator_inputs(how, form)
    inputs = [x for x in (tokens, weights) if x is not None]

    def step(x, w=None):
        vectors = simtile.pool(x.sin(), mask, how, offsets=offsets, weights=w, dim=3)
        return (vectors * torch.arange(6.0).reshape(2, 3)).sum()

    step(*inputs).backward()
    expected = [x.grad.clone() for x in inputs]
    for x in inputs:
        x.grad = None
    torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs).backward()
    for x, grad in zip(inputs, expected, strict=True):
        torch.testing.assert_close(x.grad, grad)


def test_fake_tensors():
    with FakeTensorMode():
        vectors = simtile.pool(torch.empty(2, 3, 4, dtype=torch.bfloat16), None, "max", dim=3)
        assert vectors.shape == (2, 3)
        assert vectors.dtype == torch.bfloat16


def test_arrays_tensors_and_mixed_arguments_agree():
    case = Case(6, 9, 12, 7, "bfloat16", "mean", "holes", True, seed=9)
    expected = simtile.pool(case.tokens(), case.mask_array(), **case.options())
    tokens, weights, mask = leaves(case)
    for w in (weights, case.weights(), weights.double()):
        for m in (mask, case.mask_array(), mask.long()):
            found = simtile.pool(tokens, m, weights=w, dim=7)
            assert torch.equal(found, as_tensor(expected))
    of_array = simtile.pool(case.tokens(), mask, weights=weights, dim=7)
    np.testing.assert_array_equal(of_array, expected)


def test_quantized_tensors_have_no_gradient():
    tokens = torch.randn(4, 5, 6, requires_grad=True)
    found = simtile.pool(tokens, None, kind="int8_vector")
    expected = simtile.quantize(simtile.pool(tokens, None), "int8_vector")
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)
    assert not found.scale.requires_grad


def test_nothing_is_kept_where_no_gradient_is_wanted():
    tokens = torch.randn(4, 5, 6, requires_grad=True)
    with torch.no_grad():
        assert not simtile.pool(tokens, None).requires_grad
    frozen = tokens.detach()
    assert not simtile.pool(frozen, None).requires_grad
    weights = torch.ones(4, 5, requires_grad=True)
    simtile.pool(frozen, None, weights=weights).sum().backward()
    assert weights.grad.shape == (4, 5)
    # Tokens are kept for the gradient of weights alone.
    vectors = simtile.pool(tokens, None)
    assert vectors.grad_fn.saved_tensors[0] is None


def test_half_precision_weights_and_gradients():
    tokens = torch.randn(4, 5, 6, dtype=torch.float16, requires_grad=True)
    weights = torch.rand(4, 5).half().requires_grad_()
    simtile.pool(tokens, None, weights=weights).sum().backward()
    assert tokens.grad.dtype == weights.grad.dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert simtile.pool(torch.randn(4, 5, 6), None).dtype == torch.float32


def test_differentiated_once_and_scaled():
    tokens = torch.randn(3, 4, 5, requires_grad=True)
    weight = torch.randn(3, 5)
    value = (simtile.pool(tokens, None) * weight).sum()
    (grad,) = torch.autograd.grad(value, tokens, retain_graph=True)
    (scaled,) = torch.autograd.grad(3 * value, tokens, retain_graph=True)
    torch.testing.assert_close(scaled, 3 * grad)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(value, tokens, create_graph=True)
    with pytest.raises(RuntimeError, match=r"torch.func transforms .* are not supported"):
        torch.func.grad(lambda x: simtile.pool(x, None).sum())(tokens.detach())


def test_errors_of_tensors():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"token_embeddings: found torch.int64, expected float"):
        simtile.pool(x.long(), None)
    with pytest.raises(ValueError, match=r"layout torch.sparse_coo, expected a dense"):
        simtile.pool(x.to_sparse(), None)
    with pytest.raises(ValueError, match="mask: found a tensor on meta, expected cpu"):
        simtile.pool(x, torch.ones(2, 3, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match="weights: found a tensor on meta, expected cpu"):
        simtile.pool(x, None, weights=torch.ones(2, 3, device="meta"))
    with pytest.raises((RuntimeError, ValueError), match=r"backend: 'triton'|the CPU"):
        simtile.pool(x, None, backend="triton")
    with pytest.raises(RuntimeError, match="backend: 'cuda'"):
        simtile.pool(x, None, backend="cuda")
