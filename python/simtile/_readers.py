"""Documents of other libraries' exact indexes: what `FlatIndex.from_faiss` and `from_usearch` read.

Nothing is imported: who has such an index has its library.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _encoding, _vectors
from simtile.quantized import Quantized

Array = npt.NDArray[Any]


class Found(NamedTuple):
    """An index of another library: the arguments of a FlatIndex and of its `add`."""

    dim: int
    dtype: str
    metric: str
    ranges: Array | None
    codes: Array  # floats, or codes of `dtype`; bfloat16 as uint16
    ids: Array | None

    def documents(self, encoding: _encoding.Encoding) -> Any:
        """The codes as `Encoding.check_documents` returns them."""
        if self.dtype in _encoding.FLOATS:
            rows = _vectors.Rows(self.codes, self.dtype, None)
            _encoding.check_finite("index", rows)
            return rows
        scale = 1 if self.dtype == "int8_vector" else encoding.scale
        kind: Any = self.dtype
        codes = Quantized(
            self.codes, scale, encoding.offset, self.dim, kind, ranges=encoding.ranges
        )
        return encoding.check_documents(codes, "index")


def read_faiss(index: Any) -> Found:
    """Documents and ids of a flat or scalar-quantizer index of faiss."""
    faiss = _library("faiss", index)
    ids = None
    index = _downcast(faiss, index)
    if hasattr(index, "id_map"):
        ids = faiss.vector_to_array(index.id_map)
        index = _downcast(faiss, index.index)
    name, dim, count = type(index).__name__, int(index.d), int(index.ntotal)
    if name == "IndexBinaryFlat":
        packed = faiss.vector_to_array(index.xb).reshape(count, (dim + 7) // 8)
        return Found(dim, "binary", "hamming", None, packed, ids)
    metrics = {faiss.METRIC_INNER_PRODUCT: "dot", faiss.METRIC_L2: "l2"}
    metric = metrics.get(getattr(index, "metric_type", None))
    if name not in ("IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexScalarQuantizer"):
        raise TypeError(
            f"index: found a faiss.{name}, expected an IndexFlat, IndexFlatIP, IndexFlatL2, "
            "IndexScalarQuantizer or IndexBinaryFlat, or an IndexIDMap of one: other indexes do "
            "not look at every document"
        )
    if metric is None:
        raise ValueError(
            f"index: found a faiss.{name} with metric_type {index.metric_type}, expected the "
            "inner product or L2"
        )
    codes = faiss.vector_to_array(index.codes)
    if name != "IndexScalarQuantizer":
        return Found(dim, "float32", metric, None, codes.view(np.float32).reshape(count, dim), ids)
    return _scalar_quantizer(faiss, index, codes.reshape(count, index.sq.code_size), metric, ids)


def _scalar_quantizer(
    faiss: Any, index: Any, codes: Array, metric: str, ids: Array | None
) -> Found:
    dim, kinds, kind = int(index.d), faiss.ScalarQuantizer, index.sq.qtype
    if kind in (kinds.QT_fp16, kinds.QT_bf16):
        dtype = "float16" if kind == kinds.QT_fp16 else "bfloat16"
        floats = codes.view(np.float16 if kind == kinds.QT_fp16 else np.uint16)
        return Found(dim, dtype, metric, None, floats, ids)
    # Level c of a range stands for its middle in both libraries; 0 to 255 themselves are the
    # middles of 256 levels from -1/2 on.
    starts = {kinds.QT_8bit_direct: -0.5, kinds.QT_8bit_direct_signed: -128.5}
    if kind in starts:
        ends = np.array([starts[kind], starts[kind] + 255], np.float32)
    elif kind in (kinds.QT_8bit, kinds.QT_8bit_uniform, kinds.QT_4bit, kinds.QT_4bit_uniform):
        smallest, width = faiss.vector_to_array(index.sq.trained).reshape(2, -1)
        ends = np.stack([smallest, smallest + width])
    else:
        raise ValueError(
            f"index: found a faiss.IndexScalarQuantizer of qtype {kind}, expected one of 8 bits, "
            "4 bits, fp16 or bf16"
        )
    ranges = np.ascontiguousarray(np.broadcast_to(ends.reshape(2, -1), (2, dim)))
    if kind in (kinds.QT_4bit, kinds.QT_4bit_uniform):
        signed = codes ^ 0x88  # 0 to 15 as -8 to 7, in the same halves
        if dim % 2:
            signed[:, -1] &= 0x0F
        return Found(dim, "int4", metric, ranges, signed, ids)
    return Found(dim, "uint8", metric, ranges, codes, ids)


def read_usearch(index: Any) -> Found:
    """Documents and keys of an index of usearch, in the order of keys."""
    _library("usearch", index)
    name = type(index).__name__
    if name != "Index":
        raise TypeError(f"index: found a usearch {name}, expected a usearch.index.Index")
    if index.multi:
        raise ValueError("index: found one with multi=True, expected one vector for each key")
    dim, dtype = int(index.ndim), index.dtype.name
    metrics = {"Cos": "cosine", "IP": "dot", "L2sq": "l2", "Hamming": "hamming"}
    metric = metrics.get(index.metric_kind.name)
    kinds = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    kinds |= {"I8": "int8_vector", "B1": "binary"}
    if metric is None or dtype not in kinds or (metric == "hamming") != (dtype == "B1"):
        raise ValueError(
            f"index: found dtype {dtype} and metric {index.metric_kind.name}, expected F64, F32, "
            "F16, BF16 or I8 with Cos, IP or L2sq, or B1 with Hamming"
        )
    keys = np.sort(np.asarray(index.keys))
    width = (dim + 7) // 8 if dtype == "B1" else dim
    vectors = np.asarray(index.get(keys)).reshape(len(keys), width)
    if kinds[dtype] in _encoding.FLOATS:
        vectors = _encoding.as_floats(
            _vectors.Rows(vectors, vectors.dtype.name, None), kinds[dtype]
        )
    elif not len(keys):
        vectors = vectors.astype(np.int8 if dtype == "I8" else np.uint8)
    return Found(dim, kinds[dtype], metric, None, vectors, keys)


def _downcast(faiss: Any, index: Any) -> Any:
    """An index as its own class: a wrapper's member is given as the base class."""
    if isinstance(index, faiss.IndexBinary):
        return faiss.downcast_IndexBinary(index)
    return faiss.downcast_index(index)


def _library(name: str, index: Any) -> Any:
    """The library that an index is of."""
    if type(index).__module__.partition(".")[0] != name:
        raise TypeError(f"index: found {type(index).__name__}, expected an index of {name}")
    return sys.modules[name]
