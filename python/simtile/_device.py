"""Arrays in the memory of a CUDA device, whoever allocated them, as what kernels take.

Read are tensors of torch, objects with ``__cuda_array_interface__`` (CuPy, Numba, …; versions 2 and
3) and objects with ``__dlpack__``, in this order. Nothing is copied.

Streams
-------
A call runs on the stream of its first array, which `call_stream` says:

* torch: the current stream of the tensor's device;
* ``__cuda_array_interface__``: the stream it names (CuPy: the current one), else the default one;
* DLPack: the default stream.

"The default stream" is CUDA's legacy default stream, which waits for all blocking streams. An array
that is ready on another stream (`DeviceArray.stream`) is waited for on the device, and its stream
waits for the call: see `ordered`. DLPack's producers are told the call's stream and arrange the
first themselves; what follows the call has to be put on its stream, or to wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from simtile import _dlpack, _gpu

DEFAULT_STREAM = 1  # cudaStreamLegacy; as a handle 0 means the same

# Bytes of an element, by name. Not NumPy's own list: ml_dtypes, once imported, adds int4 to that,
# of which two lie in a byte.
ITEMSIZE = {
    "bool": 1,
    "bfloat16": 2,
    **{name: np.dtype(name).itemsize for name in ("float16", "float32", "float64")},
    **{f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class DeviceArray:
    """Memory of a device. `owner` keeps it as long as this lives, not until the device is done."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    dtype: str
    device: int
    stream: int | None  # where it is ready; None: now
    read_only: bool
    owner: object

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        expected = self.itemsize
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return prod(self.shape) == 0
            expected *= size
        return True

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}] on cuda:{self.device}"


def is_torch(x: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def call_stream(x: object) -> int:
    """The stream on which a call runs whose first array is `x`."""
    if is_torch(x):
        return _torch_stream(x)
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is None:
        return DEFAULT_STREAM
    return interface.get("stream") or DEFAULT_STREAM


def view(name: str, x: object, stream: int) -> DeviceArray:
    """`x` as memory of a device, for a call on a stream.

    Raises
    ------
    TypeError
        `x` is none of the three kinds of arrays.
    ValueError
        It is not in a CUDA device's memory, or of a kind that no kernel reads.
    """
    if is_torch(x):
        return _from_torch(name, x)
    if getattr(x, "__cuda_array_interface__", None) is not None:
        return _from_interface(name, x)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        return _from_dlpack(name, x, stream)
    raise TypeError(
        f"{name}: found {type(x).__name__}, expected an array on a CUDA device: a torch.Tensor, or "
        "an object with __cuda_array_interface__ or __dlpack__ (CuPy, Numba, JAX, ...)"
    )


def check_same_device(arrays: dict[str, DeviceArray]) -> int:
    """The index of the device that all arrays are on; the names are the arguments'."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        if array.device != reference.device:
            raise ValueError(
                f"{name}: found {array}, expected it on cuda:{reference.device} because {first} is "
                "there"
            )
    return reference.device


@contextmanager
def ordered(arrays: Iterable[DeviceArray], device: int, stream: int) -> Iterator[None]:
    """Around launches on `stream`: the arrays' own streams are waited for, and then wait.

    All of it happens on the device. Afterwards an output is ready on its own stream, and an input
    may be overwritten or freed there.
    """
    others = sorted({array.stream for array in arrays if array.stream is not None} - {stream})
    cuda = _gpu.cuda_module()
    for other in others:
        cuda.wait_for_stream(device, stream, other)
    yield
    for other in others:
        cuda.wait_for_stream(device, other, stream)


def allocator(like: Any) -> Callable[[tuple[int, ...], str], Any] | None:
    """What allocates on the device of `like`, in memory of its own library."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return lambda shape, dtype: torch.empty(
            shape, dtype=getattr(torch, dtype), device=like.device
        )
    if type(like).__module__.partition(".")[0] == "cupy":
        cupy = sys.modules["cupy"]

        def empty(shape: tuple[int, ...], dtype: str) -> Any:
            with like.device:
                return cupy.empty(shape, dtype)

        return empty
    return None


def _torch_stream(tensor: Any) -> int:
    torch = sys.modules["torch"]
    if not tensor.is_cuda:
        return DEFAULT_STREAM  # view says what is wrong
    return torch.cuda.current_stream(tensor.device).cuda_stream or DEFAULT_STREAM


def _from_torch(name: str, tensor: Any) -> DeviceArray:
    torch = sys.modules["torch"]
    dtype = str(tensor.dtype).removeprefix("torch.")
    found = f"a {dtype} tensor {list(tensor.shape)} on {tensor.device}"
    if not tensor.is_cuda:
        raise ValueError(f"{name}: found {found}, expected a CUDA device; pass x.cuda()")
    if torch.version.hip is not None:
        raise ValueError(
            f"{name}: found {found} of a torch for ROCm, expected one for CUDA: these kernels are "
            "for NVIDIA devices"
        )
    if tensor.layout != torch.strided:
        raise ValueError(
            f"{name}: found layout {tensor.layout}, expected a dense (strided) tensor; "
            "pass x.to_dense()"
        )
    itemsize = tensor.element_size()
    return DeviceArray(
        pointer=tensor.data_ptr(),
        shape=tuple(tensor.shape),
        strides=tuple(stride * itemsize for stride in tensor.stride()),
        dtype=dtype,
        device=tensor.device.index,
        stream=_torch_stream(tensor),
        read_only=False,
        owner=tensor,
    )


def _from_interface(name: str, x: Any) -> DeviceArray:
    interface = x.__cuda_array_interface__
    shape = tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    found = f"{dtype.name} {list(shape)}"
    version = interface.get("version", 0)
    if version < 2:
        raise ValueError(
            f"{name}: found version {version} of __cuda_array_interface__, expected 2 or newer"
        )
    if interface.get("mask") is not None:
        raise ValueError(f"{name}: found {found} with a mask, expected an array without one")
    if dtype.name not in ITEMSIZE or not dtype.isnative:
        raise ValueError(
            f"{name}: found typestr {interface['typestr']!r}, expected numbers in the byte order "
            "of this machine"
        )
    pointer, read_only = interface["data"]
    strides = interface.get("strides")
    # Version 2 says nothing about streams, version 3 that None needs no waiting.
    stream = interface.get("stream") if version >= 3 else DEFAULT_STREAM
    if stream == 0:
        raise ValueError(
            f"{name}: found stream 0 in __cuda_array_interface__, expected 1 for the legacy "
            "default stream, 2 for the per-thread one, or a stream's handle: 0 could be either"
        )
    device = _gpu.cuda_module().device_of(pointer or 0)
    if device < 0:
        raise ValueError(
            f"{name}: found {found} in the memory of the CPU behind __cuda_array_interface__, "
            "expected a CUDA device's"
        )
    return DeviceArray(
        pointer=pointer or 0,
        shape=shape,
        strides=_c_strides(shape, dtype.itemsize) if strides is None else tuple(strides),
        dtype=dtype.name,
        device=device,
        stream=stream,
        read_only=bool(read_only),
        owner=x,
    )


def _from_dlpack(name: str, x: Any, stream: int) -> DeviceArray:
    kind, _ = x.__dlpack_device__()
    if kind not in (_dlpack.CUDA, _dlpack.CUDA_MANAGED):
        where = _dlpack.DEVICE_TYPES.get(kind, f"a device of DLPack type {int(kind)}")
        raise ValueError(
            f"{name}: found {type(x).__name__} {list(getattr(x, 'shape', ()))} in the memory of "
            f"{where}, expected a CUDA device; move it there first (torch: x.cuda(), CuPy: "
            "cupy.asarray(x))"
        )
    capsule = _dlpack.export(x, stream)
    try:
        found = _dlpack.read(capsule)
    except ValueError as error:
        raise ValueError(
            f"{name}: found {error} from {type(x).__name__}.__dlpack__, expected a new capsule of "
            "DLPack before 2.0"
        ) from None
    itemsize = ITEMSIZE.get(found.dtype)
    if itemsize is None:
        raise ValueError(
            f"{name}: found elements of type {found.dtype}, expected whole numbers, floating-point "
            "numbers or bool"
        )
    strides = found.strides
    return DeviceArray(
        pointer=found.pointer,
        shape=found.shape,
        strides=_c_strides(found.shape, itemsize)
        if strides is None
        else tuple(stride * itemsize for stride in strides),
        dtype=found.dtype,
        device=found.device,
        stream=None,  # the producer was asked to have it ready on the call's
        read_only=found.read_only,
        owner=capsule,
    )


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = []
    for size in reversed(shape):
        strides.append(itemsize)
        itemsize *= size
    return tuple(reversed(strides))
