"""ColBERT's compression of tokens: a centroid, and 1, 2 or 4 bits for each dimension of the rest.

Santhanam et al. 2022, "ColBERTv2: Effective and Efficient Retrieval via Lightweight Late
Interaction", arXiv:2112.01488, section 3.3. The bytes are those of colbert-ai: the lowest bit of a
code first, eight bits a byte with the first one highest.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _kmeans, _tensors, _vectors
from simtile.search import topk

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

BITS = (1, 2, 4)
# As int16, of which both bytes are int8.
LARGEST_WEIGHT = 32639
_BLOCK = 1 << 12  # tokens that are widened at a time: 4 MiB of 128 doubles
# Tokens that buckets are learnt from, at most: of 128 dimensions four million values, whose
# quantiles are right to about a thousandth of a bucket's share.
_BUCKET_SAMPLE = 1 << 15


class ResidualCodec:
    """What turns tokens into residual codes and back.

    A token x of length 1 is stored as the number of its nearest centroid c (by dot product) and for
    each dimension the bucket that x - c lies in; x̂ = (c + weight of the bucket) / ‖…‖.

    Parameters
    ----------
    centroids : float32 [K, D]
    bucket_weights : float32 [2^bits]
        What a bucket stands for; ascending.
    bucket_cutoffs : float32 [2^bits - 1]
        Where one bucket ends and the next begins, ascending. A value at a cutoff is in the lower.
    bits : 1, 2 or 4

    Raises
    ------
    ValueError, TypeError
        Shapes do not fit each other, or values are not finite.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> rng = np.random.default_rng(0)
    >>> tokens = rng.standard_normal((400, 16)).astype(np.float32)
    >>> tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    >>> codec = simtile.ResidualCodec.train(tokens, bits=2, centroids=8)
    >>> stored = codec.encode(tokens)
    >>> offsets = np.arange(0, 401, 20)  # 20 documents of 20 tokens
    >>> simtile.maxsim_packed(tokens[None, :20], stored, offsets, k=1)[1]
    array([[0]])

    Parts of one of colbert-ai's indexes are given as they are:

    >>> same = simtile.ResidualCodec(
    ...     codec.centroids, codec.bucket_weights, codec.bucket_cutoffs, bits=2
    ... )
    >>> stored = simtile.ResidualTokens(same, stored.centroid_ids, stored.residuals)
    """

    def __init__(self, centroids: Any, bucket_weights: Any, bucket_cutoffs: Any, bits: int) -> None:
        self.bits = _check_bits(bits)
        self.centroids = _floats("centroids", centroids, 2)
        self.bucket_weights = _floats("bucket_weights", bucket_weights, 1)
        self.bucket_cutoffs = _floats("bucket_cutoffs", bucket_cutoffs, 1)
        for name, array, size in (
            ("bucket_weights", self.bucket_weights, 1 << self.bits),
            ("bucket_cutoffs", self.bucket_cutoffs, (1 << self.bits) - 1),
        ):
            if len(array) != size:
                raise ValueError(
                    f"{name}: found float32 [{len(array)}], expected [{size}] for {self.bits} bits"
                )
        if (np.diff(self.bucket_cutoffs) < 0).any():
            raise ValueError("bucket_cutoffs: found descending ones, expected ascending ones")
        _check_some("centroids", self.centroids, "[K, D]")
        largest = float(np.abs(self.bucket_weights).max())
        # A weight is weight_unit · whole_weights, to within half a unit.
        self.weight_unit = largest / LARGEST_WEIGHT if largest > 0 else 1.0
        in_units = self.bucket_weights.astype(np.float64) / self.weight_unit
        self.whole_weights = np.rint(in_units).astype(np.int16)
        self._moved: dict[str, Any] = {}

    def centroids_on(self, device: Any) -> Any:
        """The centroids as a tensor on a torch device, copied there once."""
        name = str(device)
        if name not in self._moved:
            self._moved[name] = _tensors.as_tensor(self.centroids, device)
        return self._moved[name]

    @property
    def dim(self) -> int:
        """D."""
        return int(self.centroids.shape[1])

    @property
    def width(self) -> int:
        """Bytes of a token's residual."""
        return (self.dim * self.bits + 7) // 8

    def __repr__(self) -> str:
        return f"ResidualCodec({len(self.centroids)} centroids, dim={self.dim}, bits={self.bits})"

    @classmethod
    def train(
        cls,
        tokens: Any,
        bits: int = 2,
        *,
        centroids: int | Any = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> ResidualCodec:
        """Centroids by k-means and buckets by quantiles, as ColBERTv2 finds them.

        Parameters
        ----------
        tokens : float [T, D]
            A sample of tokens; they are divided by their lengths.
        bits : 1, 2 or 4
        centroids : int or float32 [K, D], optional
            How many, or which. Without it the power of two at or below 16 √T.
        seed : int
            Of the tokens that k-means begins with, and of those that are sampled.
        threads : int, optional

        Raises
        ------
        ValueError, TypeError
            An argument has another type, shape or value; a token that is not finite.
        """
        steps = 1 << _check_bits(bits)
        if not hasattr(seed, "__index__") or operator.index(seed) < 0:
            raise ValueError(f"seed: found {seed!r}, expected an int of at least 0")
        unit = unit_rows(_floats("tokens", tokens, 2))
        _check_some("tokens", unit, "[T, D]")
        if centroids is None:
            centroids = _kmeans.default_count(len(unit))
        if isinstance(centroids, (int, np.integer)):
            if centroids < 1:
                raise ValueError(f"centroids: found {centroids}, expected at least 1")
            centroids = _kmeans.train(unit, int(centroids), seed=seed, threads=threads)
        chosen = _floats("centroids", centroids, 2)
        _check_some("centroids", chosen, "[K, D]")
        if chosen.shape[1] != unit.shape[1]:
            raise ValueError(
                f"centroids: found float32 {list(chosen.shape)}, expected [K, {unit.shape[1]}] as "
                f"tokens are {list(unit.shape)}"
            )
        sample = unit
        if len(unit) > _BUCKET_SAMPLE:
            rng: Any = np.random.default_rng((seed, 1))  # other numbers than k-means draws
            sample = unit[np.sort(rng.choice(len(unit), _BUCKET_SAMPLE, replace=False))]
        nearest = topk(sample, chosen, 1, metric="dot", threads=threads)[1][:, 0]
        residuals = sample - chosen[nearest]
        cutoffs = np.quantile(residuals, np.arange(1, steps) / steps).astype(np.float32)
        weights = np.quantile(residuals, (np.arange(steps) + 0.5) / steps).astype(np.float32)
        return cls(chosen, weights, cutoffs, bits)

    def encode(self, tokens: Any, *, threads: int | None = None) -> ResidualTokens:
        """Store tokens, float [T, D], each divided by its length.

        Raises
        ------
        ValueError
            Another number of dimensions than the centroids'; a token that is not finite.
        """
        unit = unit_rows(_floats("tokens", tokens, 2))
        if unit.shape[1] != self.dim:
            raise ValueError(
                f"tokens: found float32 {list(unit.shape)}, expected [T, {self.dim}] as the "
                "centroids have"
            )
        ids = np.empty(len(unit), np.int32)
        residuals = np.empty((len(unit), self.width), np.uint8)
        for begin in range(0, len(unit), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            block = unit[rows]
            ids[rows] = topk(block, self.centroids, 1, metric="dot", threads=threads)[1][:, 0]
            rest = block - self.centroids[ids[rows]]
            codes = np.zeros(rest.shape, np.uint8)
            for cutoff in self.bucket_cutoffs:  # at most 15: sooner compared than searched
                codes += rest > cutoff
            residuals[rows] = _packed(codes, self.bits)
        return ResidualTokens(self, ids, residuals)


class ResidualTokens:
    """T tokens as a `ResidualCodec` stores them.

    Parameters
    ----------
    codec : ResidualCodec
    centroid_ids : int32 [T]
    residuals : uint8 [T, ⌈D · bits / 8⌉]
    inverse_norms : float32 [T], optional
        1 / ‖centroid + weights‖; computed where they are not given, on the CPU.

    Attributes
    ----------
    codec, centroid_ids, residuals, inverse_norms
        As given; arrays, or tensors of the GPU that the residuals are on, whose ids are looked at
        once. `to` moves them.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> codec = simtile.ResidualCodec(
    ...     np.eye(8, dtype=np.float32), np.array([-0.1, 0.1]), np.array([0.0]), bits=1
    ... )
    >>> stored = codec.encode(np.eye(8, dtype=np.float32)[:3])
    >>> stored.centroid_ids, stored.residuals.shape
    (array([0, 1, 2], dtype=int32), (3, 1))
    """

    centroid_ids: Any
    residuals: Any
    inverse_norms: Any

    def __init__(
        self,
        codec: ResidualCodec,
        centroid_ids: Any,
        residuals: Any,
        inverse_norms: Any = None,
    ) -> None:
        if not isinstance(codec, ResidualCodec):
            raise TypeError(f"codec: found {type(codec).__name__}, expected a ResidualCodec")
        device = _vectors.gpu_of(residuals)

        def read(x: Any) -> Any:
            return _tensors.as_array(x) if device is None else _tensors.as_tensor(x, device)

        ids, bytes_ = read(centroid_ids), read(residuals)
        if len(ids.shape) != 1 or not _tensors.dtype_name(ids).startswith(("int", "uint")):
            raise ValueError(
                f"centroid_ids: found {_tensors.dtype_name(ids)} {list(ids.shape)}, expected "
                "integers [T]"
            )
        count = len(codec.centroids)
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < count):
            raise ValueError(
                f"centroid_ids: found {int(ids.min())} to {int(ids.max())}, expected 0 to "
                f"{count - 1}"
            )
        if _tensors.dtype_name(bytes_) != "uint8" or bytes_.shape != (len(ids), codec.width):
            raise ValueError(
                f"residuals: found {_tensors.dtype_name(bytes_)} {list(bytes_.shape)}, expected "
                f"uint8 [{len(ids)}, {codec.width}] for {codec.dim} dimensions of {codec.bits} bits"
            )
        self.codec = codec
        if device is None:
            self.centroid_ids = np.ascontiguousarray(ids, np.int32)
            forward = bytes_.strides[1:] == (1,) and bytes_.strides[0] >= 0
            self.residuals = bytes_ if forward else np.ascontiguousarray(bytes_)
        else:
            self.centroid_ids = ids.int().contiguous()
            self.residuals = bytes_ if bytes_.stride(1) == 1 else bytes_.contiguous()
        if inverse_norms is None:
            inverse_norms = self._compute_norms()
        norms = read(inverse_norms)
        if _tensors.dtype_name(norms) != "float32" or norms.shape != ids.shape:
            raise ValueError(
                f"inverse_norms: found {_tensors.dtype_name(norms)} {list(norms.shape)}, expected "
                f"float32 [{len(ids)}]"
            )
        self.inverse_norms = np.ascontiguousarray(norms) if device is None else norms.contiguous()

    def __len__(self) -> int:
        return len(self.centroid_ids)

    @property
    def dim(self) -> int:
        return self.codec.dim

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.dim

    @property
    def nbytes(self) -> int:
        """Of the tokens, without the codec."""
        parts = (self.centroid_ids, self.residuals, self.inverse_norms)
        return sum(int(x.nbytes) for x in parts)

    def __repr__(self) -> str:
        where = f", device={str(self.residuals.device)!r}" if self._of_tensors else ""
        return f"ResidualTokens({len(self)} tokens, dim={self.dim}, bits={self.codec.bits}{where})"

    def __getitem__(self, rows: slice) -> ResidualTokens:
        if not isinstance(rows, slice):
            raise TypeError(f"rows: found {type(rows).__name__}, expected a slice of tokens")
        if self._of_tensors:  # which have been checked: nothing waits for them again
            return self._convert(lambda x: x[rows])
        return ResidualTokens(
            self.codec, self.centroid_ids[rows], self.residuals[rows], self.inverse_norms[rows]
        )

    @property
    def _of_tensors(self) -> bool:
        return _tensors.is_tensor(self.residuals)

    def numpy(self) -> ResidualTokens:
        """The same in NumPy arrays; only what lies on a GPU is copied."""
        return self._convert(_tensors.as_array) if self._of_tensors else self

    def to(self, device: Any) -> ResidualTokens:
        """The same in torch tensors on a device; on the CPU they share the memory of the arrays."""
        return self._convert(lambda x: _tensors.as_tensor(x, device))

    def _convert(self, convert: Any) -> ResidualTokens:
        other = ResidualTokens.__new__(ResidualTokens)
        other.codec = self.codec
        for name in ("centroid_ids", "residuals", "inverse_norms"):
            setattr(other, name, convert(getattr(self, name)))
        return other

    def decode(self) -> Any:
        """The tokens that are scored, float32 [T, D]: centroid and weights, of length 1."""
        out = np.empty(self.shape, np.float32)
        for begin in range(0, len(self), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            factors = _tensors.as_array(self.inverse_norms[rows]).astype(np.float64)
            out[rows] = self._sums(rows) * factors[:, None]
        return self._beside(out)

    def codes(self) -> Any:
        """The bucket of each dimension, uint8 [T, D]."""
        return self._beside(np.ascontiguousarray(self._codes(slice(None))))

    def _beside(self, array: Array) -> Any:
        return _tensors.as_tensor(array, self.residuals.device) if self._of_tensors else array

    def _codes(self, rows: slice) -> npt.NDArray[np.uint8]:
        bytes_ = _tensors.as_array(self.residuals[rows])
        codes: npt.NDArray[np.uint8] = _codes_of_bytes(self.codec.bits)[bytes_].view(np.uint8)
        return codes.reshape(len(bytes_), 8 // self.codec.bits * self.codec.width)[:, : self.dim]

    def _sums(self, rows: slice) -> npt.NDArray[np.float64]:
        weights = self.codec.bucket_weights.astype(np.float64)
        ids = _tensors.as_array(self.centroid_ids[rows])
        sums: npt.NDArray[np.float64] = self.codec.centroids[ids] + weights[self._codes(rows)]
        return sums

    def _compute_norms(self) -> FloatArray:
        out = np.empty(len(self), np.float32)
        for begin in range(0, len(self), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            norms = np.linalg.norm(self._sums(rows), axis=1)
            out[rows] = 1 / np.maximum(norms, 1e-12)
        return out


@functools.cache
def _codes_of_bytes(bits: int) -> Array:
    """For every byte the codes in it, a byte each, as one number [256]."""
    stored = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    powers = (1 << np.arange(bits)).astype(np.uint8)
    codes = (stored.reshape(256, 8 // bits, bits) * powers).sum(2, dtype=np.uint8)
    table: Array = codes.view(f"u{8 // bits}")[:, 0]
    return table


def _packed(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes [T, D] as bytes [T, ⌈D · bits / 8⌉]."""
    count = 8 // bits
    steps = np.arange(1 << bits, dtype=np.uint8)
    backwards = np.packbits(steps[:, None] >> np.arange(bits, dtype=np.uint8) & 1, axis=1)[:, 0]
    packed = np.zeros((len(codes), -(-codes.shape[1] // count)), np.uint8)
    for i in range(count):
        of_each = codes[:, i::count]
        packed[:, : of_each.shape[1]] |= (backwards >> np.uint8(i * bits))[of_each]
    return packed


def unit_rows(x: FloatArray) -> FloatArray:
    """Rows divided by their lengths, or by 1e-12 where they are shorter."""
    unit = np.empty(x.shape, np.float32)
    for begin in range(0, len(x), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        wide = x[rows].astype(np.float64)
        wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
        unit[rows] = wide
    return unit


def _check_bits(bits: Any) -> int:
    if not hasattr(bits, "__index__"):
        raise TypeError(f"bits: found {bits!r}, expected 1, 2 or 4")
    if operator.index(bits) not in BITS:
        raise ValueError(f"bits: found {bits!r}, expected 1, 2 or 4")
    return operator.index(bits)


def _check_some(name: str, array: FloatArray, shape: str) -> None:
    if 0 in array.shape:
        raise ValueError(
            f"{name}: found float32 {list(array.shape)}, expected {shape} with at least one of each"
        )


def _floats(name: str, x: Any, ndim: int) -> FloatArray:
    if _tensors.is_tensor(x) and x.is_floating_point():
        x = x.float()  # also of bfloat16, which NumPy does not have
    array = _tensors.as_array(x)
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if array.ndim != ndim or not is_float:
        shape = "[T, D]" if ndim == 2 else "[N]"
        raise ValueError(
            f"{name}: found {array.dtype} {list(array.shape)}, expected floats {shape}"
        )
    with np.errstate(over="ignore"):  # refused below
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: found values that are not finite, expected finite ones")
    return array
