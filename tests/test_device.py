"""Reading arrays of a device through torch, __cuda_array_interface__ and DLPack; none is needed."""

import gc
import sys

import ml_dtypes  # noqa: F401  adds types to NumPy, such as int4, that are refused all the same
import numpy as np
import pytest
import torch
from device_fakes import (
    CUDA_DEVICE,
    MAKES_VERSIONED,
    CudaTensor,
    DlpackArray,
    FakeCuda,
    InterfaceArray,
    cuda_tensor,
    pretend_cuda,
)
from hypothesis import given
from hypothesis import strategies as st

from simtile import _device, _dlpack, _gpu

STREAM = 77


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(_gpu, "cuda_module", lambda: cuda)
    pretend_cuda(monkeypatch, stream=STREAM)
    return cuda


def same_memory(found, array):
    assert found.pointer == array.ctypes.data
    assert found.shape == array.shape
    for size, stride, expected in zip(array.shape, found.strides, array.strides, strict=True):
        assert size == 1 or stride == expected
    assert found.dtype == array.dtype.name
    assert found.device == 0
    assert found.nbytes == array.nbytes
    assert found.is_contiguous == array.flags.c_contiguous


PRODUCERS = {
    "torch": cuda_tensor,
    "interface": InterfaceArray,
    "dlpack": DlpackArray,
    "dlpack_unversioned": lambda array: DlpackArray(array, versioned=False),
}
DTYPES = ["int8", "uint8", "int32", "int64", "float32", "float64", "float16", "bool"]


@pytest.mark.parametrize("producer", PRODUCERS)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(0, 4),
    columns=st.integers(0, 5),
    step=st.integers(1, 3),
    start=st.integers(0, 2),
)
def test_pointer_shape_strides_and_dtype(producer, dtype, rows, columns, step, start):
    whole = np.zeros((3 * rows + 2, columns + 2), dtype)
    array = whole[start : start + rows * step : step, 1 : columns + 1]
    assert array.shape == (rows, columns)
    found = _device.view("x", PRODUCERS[producer](array), STREAM)
    if array.size:
        same_memory(found, array)
    else:
        assert (found.shape, found.nbytes, found.is_contiguous) == (array.shape, 0, True)


@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (1, 7), (7, 1)])
def test_any_number_of_axes(producer, shape):
    array = np.zeros(shape, np.float32)
    found = _device.view("x", PRODUCERS[producer](array), STREAM)
    assert (found.shape, found.is_contiguous, found.pointer) == (shape, True, array.ctypes.data)
    transposed = _device.view("x", PRODUCERS[producer](array.T), STREAM)
    assert transposed.is_contiguous == array.T.flags.c_contiguous


def test_strides_that_dlpack_leaves_out():
    def without_strides(managed):
        managed.tensor.strides = None

    array = np.zeros((3, 4, 5), np.float32)
    same_memory(_device.view("x", DlpackArray(array, edit=without_strides), STREAM), array)


def test_offset_of_dlpack():
    def shift(managed):
        managed.tensor.data -= 12
        managed.tensor.byte_offset = 12

    array = np.zeros((3, 4), np.float32)
    same_memory(_device.view("x", DlpackArray(array, edit=shift), STREAM), array)


def test_bfloat16():
    def as_bfloat16(managed):
        managed.tensor.dtype.code = 4

    found = _device.view("x", DlpackArray(np.zeros((3, 4), np.uint16), edit=as_bfloat16), STREAM)
    assert (found.dtype, found.itemsize, found.strides) == ("bfloat16", 2, (8, 2))
    tensor = cuda_tensor(torch.zeros(3, 4, dtype=torch.bfloat16)[:, 1:])
    found = _device.view("x", tensor, STREAM)
    assert (found.dtype, found.strides, found.pointer) == ("bfloat16", (8, 2), tensor.data_ptr())


@pytest.mark.parametrize("versioned", [True, False])
def test_a_capsule_lives_as_long_as_the_view_and_is_deleted_once(versioned):
    array = np.zeros((3, 4), np.float32)
    producer = DlpackArray(array, versioned=versioned)
    before = sys.getrefcount(array)
    found = _device.view("x", producer, STREAM)
    gc.collect()
    assert sys.getrefcount(array) == before + 1  # NumPy's capsule holds it
    assert producer.deleted == 0
    del found
    gc.collect()
    assert producer.deleted == 1
    assert sys.getrefcount(array) == before


def test_a_capsule_is_deleted_once_when_it_is_refused():
    def complex_numbers(managed):
        managed.tensor.dtype.code = 3

    producer = DlpackArray(np.zeros(4, np.float32), edit=complex_numbers)
    with pytest.raises(ValueError, match="found elements of type DLPack type 3: 32"):
        _device.view("x", producer, STREAM)
    gc.collect()
    assert producer.deleted == 1


def test_the_producer_is_told_the_stream():
    producer = DlpackArray(np.zeros(3))
    assert _device.view("x", producer, 5).stream is None
    assert producer.streams == [5]


def test_the_interface_keeps_its_array():
    producer = InterfaceArray(np.zeros(3))
    assert _device.view("x", producer, STREAM).owner is producer


def test_streams_of_calls():
    array = np.zeros(3)
    assert _device.call_stream(cuda_tensor(array)) == STREAM
    assert _device.call_stream(DlpackArray(array)) == 1
    assert _device.call_stream(InterfaceArray(array, stream=9)) == 9
    assert _device.call_stream(InterfaceArray(array)) == 1
    assert _device.call_stream(InterfaceArray(array, version=2)) == 1


def test_torchs_default_stream_is_the_legacy_one(monkeypatch):
    monkeypatch.undo()
    pretend_cuda(monkeypatch, stream=0)
    assert _device.call_stream(cuda_tensor(np.zeros(3))) == 1


def test_streams_of_arrays():
    array = np.zeros(3)
    assert _device.view("x", InterfaceArray(array, stream=9), STREAM).stream == 9
    assert _device.view("x", InterfaceArray(array), STREAM).stream is None
    assert _device.view("x", InterfaceArray(array, version=2), STREAM).stream == 1
    assert _device.view("x", cuda_tensor(array), 5).stream == STREAM


def test_other_streams_are_waited_for_and_then_wait(fake):
    arrays = [
        _device.view("x", x, 5)
        for x in (
            InterfaceArray(np.zeros(3), stream=5),
            InterfaceArray(np.zeros(3), stream=9),
            InterfaceArray(np.zeros(3), stream=9),
            cuda_tensor(np.zeros(3)),
            DlpackArray(np.zeros(3)),
        )
    ]
    with _device.ordered(arrays, 0, 5):
        fake.log.append("launch")
    assert fake.log == [
        ("wait", 5, 9),
        ("wait", 5, STREAM),
        "launch",
        ("wait", 9, 5),
        ("wait", STREAM, 5),
    ]


def skip_without_versions():
    if not MAKES_VERSIONED:
        pytest.skip("NumPy 2.1 is the first whose DLPack capsules have a version")


def test_read_only():
    def flag(managed):
        skip_without_versions()
        managed.flags |= 1

    array = np.zeros(3)
    assert _device.view("x", DlpackArray(array, edit=flag), STREAM).read_only
    assert not _device.view("x", DlpackArray(array), STREAM).read_only
    assert _device.view(
        "x", InterfaceArray(array, data=(array.ctypes.data, True)), STREAM
    ).read_only


def later_version(managed):
    skip_without_versions()
    managed.major = 2


def of_dtype(code, bits=32, lanes=1):
    def edit(managed):
        managed.tensor.dtype.code, managed.tensor.dtype.bits = code, bits
        managed.tensor.dtype.lanes = lanes

    return edit


class SparseTensor(CudaTensor):
    layout = torch.sparse_coo


META = torch.zeros(3, device="meta")


class Consumed(DlpackArray):
    def _export(self, *arguments):
        return self.array  # no capsule at all


REFUSED = [
    (lambda a: a, "in the memory of CPU, expected a CUDA device; move it there first"),
    (lambda a: [1, 2], "found list, expected an array on a CUDA device: a torch.Tensor, or"),
    (lambda a: None, "found NoneType"),
    (lambda a: torch.zeros(3, 2), r"found a float32 tensor \[3, 2\] on cpu, .* pass x.cuda\(\)"),
    (lambda a: META, "on meta, expected a CUDA device"),
    (lambda a: cuda_tensor(a).as_subclass(SparseTensor), "layout torch.sparse_coo, .*to_dense"),
    (lambda a: DlpackArray(a, device=(10, 0)), "in the memory of ROCm"),
    (lambda a: DlpackArray(a, device=(3, 0)), "in the memory of CUDA host memory"),
    (lambda a: DlpackArray(a, device=(99, 0)), "in the memory of a device of DLPack type 99"),
    (lambda a: DlpackArray(a, edit=later_version), r"DLPack version 2.\d+ from DlpackArray.__dlp"),
    (lambda a: DlpackArray(a, edit=of_dtype(2, lanes=4)), "type float32 in 4 lanes"),
    (lambda a: DlpackArray(a, edit=of_dtype(0, bits=4)), "type int4,"),
    (lambda a: DlpackArray(a, edit=of_dtype(8, bits=8)), "type DLPack type 8: 8,"),
    (Consumed, "no DLPack capsule, or one that was consumed before"),
    (lambda a: InterfaceArray(a, version=1), "version 1 of __cuda_array_interface__"),
    (lambda a: InterfaceArray(a, mask=InterfaceArray(a)), "with a mask"),
    (lambda a: InterfaceArray(a, typestr=">f4"), "found typestr '>f4', .* byte order"),
    (lambda a: InterfaceArray(a, typestr="<U4"), "found typestr '<U4'"),
    (lambda a: InterfaceArray(a, typestr="<c8"), "found typestr '<c8'"),
    (lambda a: InterfaceArray(a, stream=0), "found stream 0 in __cuda_array_interface__"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=f"^documents: .*{message}"):
        _device.view("documents", make(np.zeros((3, 2), np.float32)), STREAM)


def test_memory_of_the_host_behind_the_interface(fake):
    fake.device = -1
    with pytest.raises(ValueError, match=r"x: found float64 \[3\] in the memory of the CPU behind"):
        _device.view("x", InterfaceArray(np.zeros(3)), STREAM)


def test_rocm(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(ValueError, match="of a torch for ROCm, expected one for CUDA"):
        _device.view("x", cuda_tensor(np.zeros(3)), STREAM)


def test_devices_must_agree():
    arrays = {
        "queries": _device.view("queries", DlpackArray(np.zeros(3)), STREAM),
        "documents": _device.view("documents", DlpackArray(np.zeros(3), (2, 1)), STREAM),
    }
    with pytest.raises(
        ValueError, match=r"documents: found float64 \[3\] on cuda:1, expected it on cuda:0 because"
    ):
        _device.check_same_device(arrays)
    assert _device.check_same_device({"queries": arrays["queries"]}) == 0


def test_managed_memory():
    producer = DlpackArray(np.zeros(3), device=(_dlpack.CUDA_MANAGED, 0))
    assert _device.view("x", producer, STREAM).shape == (3,)
    assert CUDA_DEVICE == (_dlpack.CUDA, 0)


def test_allocators():
    assert _device.allocator(DlpackArray(np.zeros(3))) is None
    made = _device.allocator(cuda_tensor(np.zeros(3)))((2, 5), "int64")
    assert (made.is_cuda, made.shape, made.dtype) == (True, (2, 5), torch.int64)
