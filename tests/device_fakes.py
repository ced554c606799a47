"""Arrays of the CPU that say they are on a CUDA device, and a CUDA module for them."""

import ctypes
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch

from simtile import _dlpack

CUDA_DEVICE = (_dlpack.CUDA, 0)
MAKES_VERSIONED = np.lib.NumpyVersion(np.__version__) >= "2.1.0"
_deleters = []  # which capsules call, maybe after their producers are gone


class InterfaceArray:
    """A NumPy array behind __cuda_array_interface__; `changes` replace entries."""

    def __init__(self, array, version=3, **changes):
        self.array = array
        described = array.__array_interface__
        self.__cuda_array_interface__ = {
            "shape": described["shape"],
            "typestr": described["typestr"],
            "data": (array.ctypes.data, False),
            "version": version,
            "strides": None if array.flags.c_contiguous else array.strides,
            **({"stream": None} if version >= 3 else {}),
            **changes,
        }


class DlpackArray:
    """A NumPy array behind DLPack: NumPy's own capsule, told to be of another device.

    `edit` changes what the capsule holds. `deleted` counts the calls of its deleter, which still
    frees what NumPy holds. An older NumPy makes unversioned capsules only.
    """

    def __init__(self, array, device=CUDA_DEVICE, versioned=True, edit=lambda managed: None):
        self.array = array
        self.device = device
        self.versioned = versioned and MAKES_VERSIONED
        self.edit = edit
        self.streams = []
        self.deleted = 0

    def __dlpack_device__(self):
        return self.device

    # The producers of unversioned capsules do not know max_version.
    @property
    def __dlpack__(self):
        return self._new if self.versioned else self._old

    def _new(self, *, stream, max_version):
        assert max_version == (1, 0)
        return self._export(stream, b"dltensor_versioned", _dlpack._ManagedTensorVersioned)

    def _old(self, *, stream):
        return self._export(stream, b"dltensor", _dlpack._ManagedTensor)

    def _export(self, stream, name, structure):
        self.streams.append(stream)
        capsule = self.array.__dlpack__(**({"max_version": (1, 0)} if self.versioned else {}))
        managed = structure.from_address(_dlpack._get_pointer(capsule, name))
        managed.tensor.device.type, managed.tensor.device.index = self.device
        free = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)

        def count(address):
            self.deleted += 1
            free(address)

        callback = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(count)
        _deleters.append(callback)
        managed.deleter = ctypes.cast(callback, ctypes.c_void_p).value
        self.edit(managed)
        return capsule


class CudaTensor(torch.Tensor):
    """A tensor of the CPU that says it is on cuda:0; see `pretend_cuda`."""

    is_cuda = True
    device = torch.device("cuda", 0)


def cuda_tensor(array):
    """A NumPy array, or a torch tensor, as a CudaTensor of the same memory."""
    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    return tensor.as_subclass(CudaTensor)


def pretend_cuda(monkeypatch, stream=0):
    """Let torch allocate CudaTensors, move tensors there, and name a current stream."""
    empty, to = torch.empty, torch.Tensor.to

    def empty_on_device(shape, dtype, device):
        assert device == CudaTensor.device
        return cuda_tensor(aligned(shape, empty((), dtype=dtype).numpy().dtype))

    def to_device(tensor, *arguments):
        rest = [x for x in arguments if x != CudaTensor.device]
        moved = to(tensor, *rest) if rest else tensor
        return moved if len(rest) == len(arguments) else moved.as_subclass(CudaTensor)

    monkeypatch.setattr(torch, "empty", empty_on_device)
    monkeypatch.setattr(torch.Tensor, "to", to_device)
    current = type("Stream", (), {"cuda_stream": stream})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)


def aligned(shape, dtype, alignment=256):
    """An array aligned as a device's allocator aligns it, and not of zeros."""
    size = prod(shape) * np.dtype(dtype).itemsize
    raw = np.full(size + alignment, 0xA5, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)


def at(address, shape, strides, dtype):
    """The memory at an address as an array."""
    if prod(shape) == 0:
        return np.empty(shape, dtype)
    span = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_uint8 * (span + np.dtype(dtype).itemsize)).from_address(address)
    return np.ndarray(shape, dtype, memory, strides=strides)


@dataclass
class FakeCuda:
    """Stands for simtile._cuda."""

    device: int = 0  # where every pointer is
    log: list = field(default_factory=list)

    def device_of(self, pointer):
        return self.device

    def wait_for_stream(self, device, stream, other):
        self.log.append(("wait", stream, other))
