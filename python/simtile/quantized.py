"""Vectors as codes, with what turns them back into numbers.

`quantize` makes them and every search takes them; arrays that come from elsewhere are wrapped by
hand. The layout of codes is told in `kernels/quantize/README.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs, _tensors

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Kind = Literal["int8", "uint8", "int4", "binary", "int8_vector", "int4_vector"]

KINDS = ("int8", "uint8", "int4", "binary", "int8_vector", "int4_vector")
PER_DIMENSION = ("int8", "uint8", "int4")
PER_VECTOR = ("int8_vector", "int4_vector")

# What `_core` calls the codes of a kind.
CODE_KINDS = {
    "int8": "int8",
    "uint8": "uint8",
    "int4": "int4",
    "binary": "bits",
    "int8_vector": "int8",
    "int4_vector": "int4",
}

# Elements that are widened to double at a time.
_BLOCK = 1 << 20


def code_dtype(kind: str) -> str:
    return "int8" if kind in ("int8", "int8_vector") else "uint8"


def code_width(kind: str, dim: int) -> int:
    """Bytes of a row of codes."""
    if kind == "binary":
        return (dim + 7) // 8
    return (dim + 1) // 2 if kind in ("int4", "int4_vector") else dim


class Quantized:
    """N vectors of D dimensions as codes: x̂ = code · scale + offset.

    Parameters
    ----------
    codes : array or torch.Tensor [N, W]
        int8 [N, D] for "int8" and "int8_vector"; uint8 [N, D] for "uint8"; uint8 [N, ⌈D/2⌉] for
        "int4" and "int4_vector": two's complement, -8 to 7, element 2i in the low half of byte i
        and 2i + 1 in the high one; uint8 [N, ⌈D/8⌉] for "binary": bits, the highest of a byte
        first, as ``numpy.packbits`` makes them. What is left over in a row's last byte is 0. Rows
        may have any stride that is not negative.
    scale : float or float32 [D], [N]
        One for each dimension for "int8", "uint8" and "int4", one for each vector for
        "int8_vector" and "int4_vector". A number stands for all of them: ``Quantized(codes, 1, 0,
        dim, "int8")`` is searched by plain integer dot products. None for "binary".
    offset : float or float32 [D]
        For "int8", "uint8" and "int4"; None for the others.
    dim : int
        D.
    kind : str
        One of these six. "binary" means x̂ = 1 where the bit is 1, and -1 where it is 0.
    ranges : float32 [2, D], optional
        The ends of the ranges that the codes divide; `quantize` takes them for further vectors.

    Attributes
    ----------
    codes, scale, offset, dim, kind, ranges
        As given; scale and offset are float32 arrays of full size in the library and on the device
        of the codes, or None. Nothing may write to any of them afterwards: norms are kept.

    Raises
    ------
    ValueError, TypeError
        The arguments do not fit each other.

    Notes
    -----
    Two meanings of int8 are kept apart. "int8" and "uint8" are calibrated for each dimension and
    are the bytes that sentence-transformers makes; "int8_vector" is symmetric, with one scale for
    each vector.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> bits = np.packbits(np.array([[1, 0, 0, 1, 1, 0, 1, 0]], bool), axis=-1)  # from elsewhere
    >>> simtile.Quantized(bits, None, None, 8, "binary").dequantize()
    array([[ 1., -1., -1.,  1.,  1., -1.,  1., -1.]], dtype=float32)
    """

    codes: Any
    scale: Any
    offset: Any
    dim: int
    kind: Kind
    ranges: Any

    def __init__(
        self,
        codes: Array | torch.Tensor,
        scale: float | Array | torch.Tensor | None,
        offset: float | Array | torch.Tensor | None,
        dim: int,
        kind: Kind,
        *,
        ranges: Array | torch.Tensor | None = None,
    ) -> None:
        _inputs.check_choice("kind", kind, KINDS)
        dim = _inputs.to_int("dim", dim)
        if dim < 1:
            raise ValueError(f"dim: found {dim}, expected at least 1")
        self.codes = _check_codes(codes, kind, dim)
        self.dim = dim
        self.kind = kind
        rows = self.codes.shape[0]
        if kind == "binary":
            for name, value in (("scale", scale), ("offset", offset)):
                if value is not None:
                    raise ValueError(
                        f"{name}: found {_found(value)}, expected None: bits have none"
                    )
            self.scale = self.offset = None
        elif kind in PER_VECTOR:
            if offset is not None:
                raise ValueError(
                    f"offset: found {_found(offset)}, expected None: {kind!r} is symmetric"
                )
            self.scale = _full("scale", scale, rows, f"one per vector of {kind!r}", self.codes)
            self.offset = None
            if bool((self.scale < 0).any()):
                raise ValueError("scale: found one below 0, expected none")
        else:
            self.scale = _full("scale", scale, dim, f"one per dimension of {kind!r}", self.codes)
            self.offset = _full("offset", offset, dim, f"one per dimension of {kind!r}", self.codes)
        self.ranges = None if ranges is None else _check_ranges(ranges, kind, dim)
        self._norms: dict[bool, Any] = {}

    def __len__(self) -> int:
        return int(self.codes.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D), of the vectors, not of the codes."""
        return len(self), self.dim

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scale and offset."""
        arrays = (self.codes, self.scale, self.offset)
        return sum(int(np.prod(x.shape)) * x.itemsize for x in arrays if x is not None)

    def __repr__(self) -> str:
        where = f", device={str(self.codes.device)!r}" if _tensors.is_tensor(self.codes) else ""
        return f"Quantized({self.kind!r} [{len(self)}, {self.dim}]{where})"

    __iter__ = None  # else it would be a sequence, and np.asarray would try to make an array of it

    def __array__(self, *_: object, **__: object) -> Array:
        raise TypeError(f"{self!r} is no array: .codes are the codes, .dequantize() the numbers")

    def __getitem__(self, rows: slice) -> Quantized:
        """Some of the rows, without a copy of their codes."""
        if not isinstance(rows, slice):
            raise TypeError(
                f"rows: found {_found(rows)}, expected a slice; Quantized(q.codes[rows], …) "
                "selects others"
            )
        if rows.step is not None and rows.step < 1:
            raise ValueError(f"rows: found the step {rows.step}, expected one above 0")
        part = Quantized.__new__(Quantized)
        part.codes, part.dim, part.kind = self.codes[rows], self.dim, self.kind
        part.scale = _beside(self.scale[rows]) if self.kind in PER_VECTOR else self.scale
        part.offset, part.ranges = self.offset, self.ranges
        part._norms = {inverse: _beside(norms[rows]) for inverse, norms in self._norms.items()}
        return part

    def numpy(self) -> Quantized:
        """The same in NumPy arrays; only what lies on a GPU is copied."""
        return self._convert(_tensors.as_array) if _tensors.is_tensor(self.codes) else self

    def to(self, device: Any) -> Quantized:
        """The same in torch tensors on a device; on the CPU they share the memory of the arrays."""
        return self._convert(lambda x: _tensors.as_tensor(x, device))

    def _convert(self, convert: Any) -> Quantized:
        other = Quantized.__new__(Quantized)
        other.dim, other.kind = self.dim, self.kind
        for name in ("codes", "scale", "offset", "ranges"):
            value = getattr(self, name)
            setattr(other, name, None if value is None else convert(value))
        other._norms = {inverse: convert(norms) for inverse, norms in self._norms.items()}
        return other

    def signed_bits(self) -> Any:
        """Of "binary": the bytes with 128 subtracted, int8 [N, ⌈D/8⌉].

        sentence-transformers calls these "binary", and `codes` "ubinary".
        """
        if self.kind != "binary":
            raise ValueError(f"signed_bits: found {self.kind!r}, expected 'binary'")
        flipped = self.codes ^ 0x80
        if _tensors.is_tensor(flipped):
            import torch

            return flipped.view(torch.int8)
        return flipped.view(np.int8)

    def dequantize(self) -> Any:
        """x̂, float32 [N, D]: rounded once from the double-precision value."""
        if _tensors.is_tensor(self.codes):
            parts = self.numpy().dequantize()
            return _tensors.as_tensor(parts, self.codes.device)
        out = np.empty(self.shape, np.float32)
        for begin in range(0, len(self), max(1, _BLOCK // self.dim)):
            block = slice(begin, begin + max(1, _BLOCK // self.dim))
            x = unpack(self.codes[block], self.kind, self.dim).astype(np.float64)
            if self.kind == "binary":
                x = 2.0 * x - 1.0
            elif self.kind in PER_VECTOR:
                x *= self.scale[block, None].astype(np.float64)
            else:
                x = x * self.scale.astype(np.float64) + self.offset.astype(np.float64)
            with np.errstate(over="ignore"):
                out[block] = x
        return out

    @property
    def inverse_norms(self) -> Any:
        """1/‖x̂‖, float32 [N], 0 for a zero vector; 1/‖code‖ where each vector has a scale.

        A cosine does not depend on a vector's own scale, so both are what scores are multiplied by.
        """
        return self._cached_norms(True)

    @property
    def squared_norms(self) -> Any:
        """‖x̂‖², float32 [N]."""
        return self._cached_norms(False)

    def _cached_norms(self, inverse: bool) -> Any:
        if inverse not in self._norms:
            norms = _compute_norms(self.numpy(), inverse)
            if _tensors.is_tensor(self.codes):
                norms = _tensors.as_tensor(norms, self.codes.device)
            self._norms[inverse] = norms
        return self._norms[inverse]


def unpack(codes: Array, kind: str, dim: int) -> Array:
    """Codes one by one, [N, D]; of "binary" 0 and 1."""
    if kind == "binary":
        bits: Array = np.unpackbits(codes, axis=1, count=dim)
        return bits
    if kind not in ("int4", "int4_vector"):
        return codes
    halves = np.empty((len(codes), 2 * codes.shape[1]), np.int8)
    halves[:, ::2] = codes << 4
    halves[:, 1::2] = codes & 0xF0
    halves >>= 4
    one_by_one: Array = halves[:, :dim]
    return one_by_one


def _compute_norms(q: Quantized, inverse: bool) -> Array:
    norms = np.empty(len(q), np.float32)
    scale = q.scale if q.kind in PER_DIMENSION else None
    _core.code_norms(CODE_KINDS[q.kind], q.codes, q.dim, scale, q.offset, inverse, 0, norms)
    if q.kind in PER_VECTOR and not inverse:
        with np.errstate(over="ignore"):
            norms = (norms * q.scale.astype(np.float64) ** 2).astype(np.float32)
    return norms


def _found(value: object) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return f"{value!r}"
    return f"{_tensors.dtype_name(value)} {list(shape)}"


def _check_codes(codes: Any, kind: str, dim: int) -> Any:
    if not _tensors.is_tensor(codes) and not isinstance(codes, np.ndarray):
        raise TypeError(
            f"codes: found {type(codes).__name__}, expected an array or a tensor of "
            f"{code_dtype(kind)}"
        )
    expected, width = code_dtype(kind), code_width(kind, dim)
    if _tensors.dtype_name(codes) != expected:
        hint = ""
        if kind == "binary" and _tensors.dtype_name(codes) == "int8":
            hint = "; sentence-transformers' 'binary' is x.view(np.uint8) ^ 0x80"
        elif _tensors.dtype_name(codes).startswith(("float", "bfloat")):
            hint = "; simtile.quantize makes codes of floats"
        raise ValueError(f"codes: found {_found(codes)}, expected {expected} for {kind!r}{hint}")
    if len(codes.shape) != 2 or codes.shape[1] != width:
        raise ValueError(
            f"codes: found {_found(codes)}, expected [N, {width}] for {kind!r} with dim={dim}"
        )
    if _tensors.is_tensor(codes):
        codes = codes.detach()
        beside = codes.shape[1] <= 1 or codes.stride(1) == 1
        return codes if beside else codes.contiguous()
    beside = codes.shape[1] <= 1 or codes.strides[1] == 1
    forward = codes.shape[0] <= 1 or codes.strides[0] >= 0
    return codes if beside and forward else np.ascontiguousarray(codes)


def _full(name: str, value: Any, size: int, what: str, codes: Any) -> Any:
    """A number or an array as float32 [size], where the codes are."""
    if value is None:
        raise ValueError(f"{name}: found None, expected a number or float32 [{size}], {what}")
    if not _tensors.is_tensor(value):
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            raise ValueError(
                f"{name}: found {_found(value)}, expected a number or float32 [{size}]"
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if array.ndim == 0:
            array = np.full(size, array)
        value = array if array.ndim != 1 else np.ascontiguousarray(array)
    if tuple(value.shape) != (size,):
        raise ValueError(f"{name}: found {_found(value)}, expected float32 [{size}], {what}")
    if _tensors.is_tensor(codes):
        return _tensors.as_tensor(value, codes.device).float().contiguous()
    return np.ascontiguousarray(_tensors.as_array(value), dtype=np.float32)


def _check_ranges(ranges: Any, kind: str, dim: int) -> Any:
    if kind not in PER_DIMENSION:
        raise ValueError(f"ranges: found {_found(ranges)}, expected None for {kind!r}")
    if tuple(getattr(ranges, "shape", ())) != (2, dim):
        raise ValueError(f"ranges: found {_found(ranges)}, expected float32 [2, {dim}]")
    return ranges


def _beside(numbers: Any) -> Any:
    """One number for each row, side by side as kernels read them."""
    return numbers.contiguous() if _tensors.is_tensor(numbers) else np.ascontiguousarray(numbers)
