"""What a DLPack capsule holds, read with ctypes: https://dmlc.github.io/dlpack/latest/c_api.html.

The capsule is not consumed (renamed to "used_dltensor"): its own destructor then calls the
producer's deleter, once, when the last reference to it goes.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

CUDA = 2
CUDA_MANAGED = 13
DEVICE_TYPES = {
    1: "CPU",
    CUDA: "CUDA",
    3: "CUDA host memory",
    4: "OpenCL",
    7: "Vulkan",
    8: "Metal",
    10: "ROCm",
    11: "ROCm host memory",
    CUDA_MANAGED: "CUDA managed memory",
    14: "oneAPI",
}
_MAJOR_VERSION = 1  # a later one may arrange everything after the version differently
_READ_ONLY = 1  # of the flags
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex"}
_BOOL = 6


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; null: C order
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _ManagedTensorVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class Contents(NamedTuple):
    """A tensor of a capsule; strides in elements, None for C order."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    device_type: int
    device: int
    read_only: bool


_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = (ctypes.py_object, ctypes.c_char_p)
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def export(x: Any, stream: int) -> object:
    """The capsule of `x`, whose memory is then ready on the CUDA stream."""
    try:
        return x.__dlpack__(stream=stream, max_version=(_MAJOR_VERSION, 0))
    except TypeError:  # a producer from before versions
        return x.__dlpack__(stream=stream)


def read(capsule: object) -> Contents:
    """What `capsule` holds, valid as long as the capsule lives.

    Raises
    ------
    ValueError
        It is no DLPack capsule, one that was consumed, or of another major version.
    """
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = _ManagedTensorVersioned.from_address(_get_pointer(capsule, b"dltensor_versioned"))
        if managed.major != _MAJOR_VERSION:
            raise ValueError(f"DLPack version {managed.major}.{managed.minor}")
        return _contents(managed.tensor, bool(managed.flags & _READ_ONLY))
    if _is_valid(capsule, b"dltensor"):
        return _contents(
            _ManagedTensor.from_address(_get_pointer(capsule, b"dltensor")).tensor, False
        )
    raise ValueError("no DLPack capsule, or one that was consumed before")


def _contents(tensor: _Tensor, read_only: bool) -> Contents:
    ndim = tensor.ndim
    dtype = tensor.dtype
    if dtype.code == _BOOL and dtype.bits == 8:
        name = "bool"
    else:
        name = f"{_KINDS.get(dtype.code, f'DLPack type {dtype.code}: ')}{dtype.bits}"
    if dtype.lanes != 1:
        name += f" in {dtype.lanes} lanes"
    return Contents(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[:ndim]),
        strides=tuple(tensor.strides[:ndim]) if ndim and tensor.strides else None,
        dtype=name,
        device_type=tensor.device.type,
        device=tensor.device.index,
        read_only=read_only,
    )
