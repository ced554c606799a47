"""simtile.info_nce with torch.compile, autocast, transforms and dispatch modes: the operators."""

from dataclasses import replace

import pytest
import torch
from info_nce_cases import Case
from info_nce_tensors import (
    REDUCTIONS,
    assert_same_bits,
    loss_of,
    op_arguments,
    tensor_options,
    tensors,
)

import simtile
import simtile.ops.info_nce  # registers the operators, whichever test runs first


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev"])
def test_functional_transforms_raise(transform):
    q = torch.randn(3, 4, 5)
    with pytest.raises(RuntimeError, match=r"torch\.func transforms .* are not supported"):
        getattr(torch.func, transform)(lambda x: simtile.info_nce(x, q[0]))(
            q if transform == "vmap" else q[0]
        )


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
