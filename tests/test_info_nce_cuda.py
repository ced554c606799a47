"""info_nce on CUDA tensors, up to the kernel, which is the one compiled for the CPU: no GPU."""

import info_nce_cuda_host
import numpy as np
import pytest
import torch
from cuda_host import build
from device_fakes import CudaTensor, at, cuda_tensor, pretend_cuda
from hypothesis import given
from hypothesis import strategies as st
from info_nce_cases import Case, as_tensor, cases, check_case

from simtile import _gpu
from simtile._contrast import SCOPES, Contrast
from simtile.ops import info_nce_cuda, info_nce_run

STREAM = 77


class FakeCuda:
    """Stands for simtile._cuda: hands the kernel on the CPU what lies at the addresses."""

    def __init__(self):
        self.calls = []

    class InfoNceForwardArgs:
        def __init__(self, **arguments):
            self.__dict__.update(arguments)

    def info_nce_forward(self, args, device, stream):
        self.calls.append((args, device, stream))
        n, m, k, d = args.rows, args.documents, args.negatives, args.dimensions

        def rows(name, count):
            address, stride = getattr(args, f"{name}_data"), getattr(args, f"{name}_stride")
            return at(address, (count, d), (2 * stride, 2), np.uint16) if count else None

        def values(name, count, dtype):
            address = getattr(args, name)
            size = np.dtype(dtype).itemsize
            return at(address, (count,), (size,), dtype) if address else None

        build.load("info_nce").run(
            rows("queries", n),
            rows("documents", m),
            rows("negatives", n * k),
            k,
            values("temperature_data", 1, np.float32),
            np.nan if args.temperature_data else args.temperature,
            args.normalize,
            args.own_negatives,
            values("targets", n, np.int64),
            values("query_ids", n, np.int64),
            values("document_ids", m, np.int64),
            values("losses", n, np.float32),
            values("row_maxima", n, np.float32),
            values("row_log_sums", n, np.float32),
            3,
            info_nce_cuda_host.SHARED_BYTES,
            0,
        )


@pytest.fixture(scope="module", autouse=True)
def cuda():
    """For the module, because hypothesis wants no fixture that changes between its examples."""
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeCuda()
        patch.setattr(_gpu, "cuda_module", lambda: fake)
        pretend_cuda(patch, stream=STREAM)
        yield fake


def floats(x):
    if x is None:
        return None
    return cuda_tensor(as_tensor(x))


def integers(x):
    return None if x is None else cuda_tensor(x)


def losses_of(case, **changes):
    options = {
        "dtype": torch.bfloat16,
        "temperature": case.temperature,
        "normalize": case.normalize,
        "targets": integers(case["targets"]),
        "query_ids": integers(case["query_ids"]),
        "document_ids": integers(case["document_ids"]),
        "own_negatives": case.own,
        **changes,
    }
    losses = info_nce_cuda.info_nce_losses(*map(floats, case.inputs), **options)
    assert isinstance(losses, CudaTensor)
    assert losses.dtype == torch.float32
    return losses.as_subclass(torch.Tensor).numpy()


def check(case, losses):
    check_case(case, (losses, None, None, None, None))


@given(
    case=cases(st.sampled_from([1, 7, 33]), st.sampled_from([1, 7, 64]), dtypes=("bfloat16",)),
    temperature=st.sampled_from(["number", "float64 tensor", "float32 [1] of the CPU"]),
)
def test_every_argument_reaches_the_kernel(case, temperature):
    number = {
        "number": case.temperature,
        "float64 tensor": cuda_tensor(torch.tensor(case.temperature, dtype=torch.float64)),
        "float32 [1] of the CPU": torch.tensor([case.temperature]),
    }[temperature]
    check(case, losses_of(case, temperature=number))


def test_device_stream_and_sizes(cuda):
    case = Case(7, 9, 11, 2, "bfloat16")
    for name, gap in (("queries", 1), ("documents", 2), ("negatives", 3)):
        wide = np.pad(case[name], [(0, 0)] * (case[name].ndim - 1) + [(0, gap)])
        case.arrays[name] = wide[..., :11]
    check(case, losses_of(case))
    args, device, stream = cuda.calls[-1]
    assert (device, stream) == (0, STREAM)
    assert (args.rows, args.documents, args.negatives, args.dimensions) == (7, 9, 2, 11)
    # bfloat16 rows are read where they are.
    assert args.queries_data == case["queries"].ctypes.data
    assert (args.queries_stride, args.documents_stride, args.negatives_stride) == (12, 13, 14)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_inputs_become_bfloat16(dtype):
    # As autocast asks for it; the values are those that bfloat16 has as well.
    exact = Case(5, 6, 33, 1, "bfloat16")
    case = Case(5, 6, 33, 1, dtype)
    for name in ("queries", "documents", "negatives"):
        case[name][:] = exact[name].astype(dtype)
    np.testing.assert_array_equal(losses_of(case), losses_of(exact))


def test_columns_apart_are_copied():
    case = Case(5, 6, 16, 2, "bfloat16")
    turned = [x.swapaxes(0, x.ndim - 1).copy().swapaxes(0, x.ndim - 1) for x in case.inputs]
    expected = losses_of(case)
    for name, x in zip(("queries", "documents", "negatives"), turned, strict=True):
        case.arrays[name] = x
        assert not x.flags.c_contiguous
    np.testing.assert_array_equal(losses_of(case), expected)


@pytest.mark.parametrize("given_ids", ["query_ids", "document_ids"])
@pytest.mark.parametrize("targets", [False, True])
def test_one_array_of_ids_serves_for_both(given_ids, targets):
    n = 7
    case = Case(n, n, 11, dtype="bfloat16", ids=True, targets=targets)
    target = case["targets"] if targets else np.arange(n)
    if given_ids == "query_ids":
        case.arrays["document_ids"] = case["query_ids"]
    else:
        case.arrays["query_ids"] = case["document_ids"][target]
    missing = {"query_ids", "document_ids"} - {given_ids}
    expected = losses_of(case)
    check(case, expected)
    np.testing.assert_array_equal(losses_of(case, **dict.fromkeys(missing)), expected)


def test_small_integers_become_int64():
    case = Case(7, 9, 11, dtype="bfloat16", ids=True, targets=True)
    names = ("targets", "query_ids", "document_ids")
    small = {name: cuda_tensor(case[name].astype(np.int8)) for name in names}
    np.testing.assert_array_equal(losses_of(case, **small), losses_of(case))


def test_a_target_that_is_no_document_makes_its_row_nan():
    case = Case(7, 9, 11, dtype="bfloat16", ids=True, targets=True)
    case["targets"][3] = 9
    losses = losses_of(case, query_ids=None)
    assert np.isnan(losses[3])
    assert np.isnan(losses).sum() == 1


def test_no_negatives_at_all(cuda):
    case = Case(5, 6, 8, 0, "bfloat16")
    check(case, losses_of(case))
    args, *_ = cuda.calls[-1]
    assert (args.negatives, args.negatives_data, args.negatives_stride) == (0, 0, 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_other_types_are_refused(cuda, dtype):
    before = len(cuda.calls)
    with pytest.raises(ValueError, match=rf"'cuda' found {dtype} inputs, expected bfloat16; use x"):
        losses_of(Case(3, 3, 4, dtype=dtype), dtype=getattr(torch, dtype))
    assert len(cuda.calls) == before


def test_a_tensor_of_the_cpu_is_refused(cuda):
    before = len(cuda.calls)
    queries = torch.ones(3, 4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"^queries: found a bfloat16 tensor \[3, 4\] on cpu"):
        info_nce_cuda.info_nce_losses(queries, queries, None, dtype=queries.dtype, temperature=1.0)
    assert len(cuda.calls) == before


@pytest.fixture
def available(monkeypatch):
    """The operator finds the backend, whose kernel is the one for the CPU."""
    monkeypatch.setattr(info_nce_run, "check_available", lambda backend: None)


@pytest.mark.usefixtures("available")
def test_gradients_are_refused():
    case = Case(3, 3, 4, dtype="bfloat16")
    with pytest.raises(RuntimeError, match=r"'cuda' computes losses without gradients; use 'tri"):
        run_operator(case, need_grad=(True, False, False, False))


@pytest.mark.usefixtures("available")
def test_the_operator_calls_it():
    case = Case(3, 4, 5, 1, "bfloat16", own=True, ids=True)
    losses, grads, _ = run_operator(case, need_grad=(False,) * 4)
    check(case, losses.as_subclass(torch.Tensor).numpy())
    assert grads == (None,) * 4


def run_operator(case, need_grad):
    return info_nce_run.run_tensors(
        *map(floats, case.inputs),
        case.temperature,
        integers(case["targets"]),
        integers(case["query_ids"]),
        integers(case["document_ids"]),
        *(None, None, None),
        case.normalize,
        Contrast(scope=SCOPES["own" if case.own else "all"]).numbers(),
        torch.bfloat16,
        need_grad,
        "cuda",
        "ieee",
        1,
        1.0,
        None,
        False,
    )
