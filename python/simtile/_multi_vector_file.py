"""The file of an index of token vectors; `docs/file-format.md` describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _documents, _files, _token_encoding
from simtile._documents import damaged
from simtile._encoding import Encoding
from simtile._storage import Storage
from simtile._token_encoding import TokenEncoding
from simtile._token_storage import State, Tokens
from simtile.residual import ResidualCodec

Array = npt.NDArray[Any]

_RUNS = ("starts", "ends")


def write(path: _files.PathLike, kind: str, state: State, pooled: Encoding) -> None:
    """Write the documents of one moment."""
    snapshot, encoding = state.snapshot, state.encoding
    lengths = [part.columns["ends"] - part.columns["starts"] for part in snapshot.parts(_RUNS)]
    offsets = np.zeros(len(snapshot) + 1, np.int64)
    if lengths:
        np.cumsum(np.concatenate(lengths), out=offsets[1:])
    total = int(offsets[-1])
    sections = [
        _files.Section(name, dtype, (total, *shape), state.stored(name))
        for name, (dtype, shape) in encoding.columns().items()
    ]
    sections.append(_files.section("offsets", offsets))
    sections += [_files.section(name, array) for name, array in encoding.shared.items()]
    for name, (dtype, shape) in pooled.columns().items():
        parts = (part.columns[name] for part in snapshot.parts([name]))
        sections.append(_files.Section(name, dtype, (len(snapshot), *shape), parts))
    sections += _documents.id_sections(snapshot)
    attributes = {
        "dim": encoding.dim,
        "dtype": encoding.dtype,
        "normalize": encoding.normalize,
        "centroids": encoding.centroids if isinstance(encoding.centroids, int) else None,
        **_documents.counters(snapshot),
    }
    _files.write(path, kind, attributes, sections)


def constructor(attributes: Mapping[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
    """The arguments of the index that a file holds; takes those of them that are arrays."""
    normalize, centroids = attributes.get("normalize"), attributes.get("centroids")
    if type(normalize) is not bool:
        raise ValueError(f"normalize: {normalize!r}")
    shared: list[Any] = [arrays.pop(name) for name in _token_encoding.CODEC if name in arrays]
    if centroids is not None and (shared or type(centroids) is not int):
        raise ValueError(f"centroids: {centroids!r}")
    options = {"dim": attributes.get("dim"), "dtype": attributes.get("dtype")}
    if len(shared) > 1:
        bits = _token_encoding.RESIDUALS.get(str(options["dtype"]), 0)
        make: Any = ResidualCodec
        return {**options, "normalize": normalize, "codec": make(*shared, bits=bits)}
    return {**options, "normalize": normalize, "centroids": shared[0] if shared else centroids}


def restored(
    path: _files.PathLike,
    attributes: Mapping[str, Any],
    arrays: Mapping[str, Array],
    encoding: TokenEncoding,
    pooled: Encoding,
    whole: bool,
) -> tuple[Storage, State]:
    """The documents of a file. `whole`: whether to check also what must be read in full for it."""
    count = _documents.count_of(path, attributes)
    offsets = arrays.get("offsets")
    if offsets is None or offsets.dtype != np.int64 or offsets.shape != (count + 1,):
        raise damaged(path, "offsets are missing, or of another type or shape")
    total = int(offsets[-1])
    expected = {"offsets": (np.dtype(np.int64), (count + 1,))}
    for name, array in encoding.empty().items():
        expected[name] = (array.dtype, (total, *array.shape[1:]))
    for name, array in pooled.empty().items():
        expected[name] = (array.dtype, (count, *array.shape[1:]))
    if "ids" in arrays:
        expected["ids"] = (np.dtype(np.int64), (count,))
    _documents.check_sections(path, arrays, expected)
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise damaged(path, "offsets do not ascend from 0")
    if total and encoding.dtype in _token_encoding.RESIDUALS and encoding.codec is None:
        raise damaged(path, f"no codec of {encoding.dtype!r}")
    columns = {"starts": offsets[:-1], "ends": offsets[1:]}
    columns |= {name: arrays[name] for name in pooled.columns()}
    storage = _documents.stored(path, columns, arrays.get("ids"), attributes, whole)
    room = {name: arrays[name] for name in encoding.columns()}
    tokens = (Tokens(0, total, room, fixed=True),) if total else ()
    if whole and tokens:
        try:
            tokens[0].operand(encoding)
        except ValueError as error:
            raise damaged(path, str(error)) from None
    return storage, State(storage.snapshot, tokens, encoding)
