"""MaxSim of tokens that are stored as codes: what is given, checked, and scored on the CPU.

Queries become whole numbers before (`_maxsim_fold`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs, _maxsim_inputs, _maxsim_run, _maxsim_sides, _tensors, _vectors
from simtile._maxsim_fold import (
    LARGEST_CODE,
    Codes,
    factors,
    fold,
    normalized,
    residual_kind,
    with_centroids,
    without_zeros,
)
from simtile._maxsim_inputs import Given, Int64s
from simtile._maxsim_run import Found, Options
from simtile.quantized import CODE_KINDS, Quantized
from simtile.residual import ResidualTokens

Array = npt.NDArray[Any]

# Products of centroids with the tokens of queries that are kept at a time.
_MOST_PRODUCTS = 1 << 26


class Coded(NamedTuple):
    """Documents whose tokens are codes, where functions of MaxSim have a `Given`."""

    tokens: Codes
    kind: str  # of Quantized, or "residual"
    offsets: Int64s  # [N + 1]
    mask: Array | None  # bool [T]
    query_steps: Array | None  # float32 [R], of queries that are codes themselves
    # Where documents start and end [N], on the CPU, if they are not one after the other.
    runs: tuple[Int64s, Int64s] | None = None

    @property
    def batch(self) -> int:
        return len(self.bounds[0])

    @property
    def bounds(self) -> tuple[Int64s, Int64s]:
        return (self.offsets[:-1], self.offsets[1:]) if self.runs is None else self.runs

    @property
    def x(self) -> Any:
        return _data_of(self.tokens)

    @property
    def of_tensors(self) -> bool:
        return _tensors.is_tensor(self.x)


def is_codes(tokens: object) -> bool:
    return isinstance(tokens, (Quantized, ResidualTokens))


def given(
    queries: Any, tokens: Codes, offsets: Any, query_mask: Any, document_mask: Any
) -> tuple[Given, Coded]:
    """Floats in every form that `simtile.maxsim` takes, or a list of int8_vector `Quantized`.

    Raises
    ------
    ValueError, TypeError
        Codes of a kind that is not scored, or not on the CPU; shapes do not fit; a gradient is
        wanted.
    """
    kind = _check_kind(tokens)
    bounds = _maxsim_inputs.check_offsets("offsets", offsets, len(tokens), "tokens")
    mask = None
    if document_mask is not None:
        stand_in = np.broadcast_to(np.float32(0), (len(tokens), tokens.dim))
        mask = _tensors.as_array(
            _maxsim_inputs.given_packed(
                "tokens", stand_in, bounds, document_mask, "document_mask"
            ).mask
        )
    steps = None
    if isinstance(queries, Quantized):
        raise ValueError(
            f"queries: found one {queries!r}, expected a list of them, one for each query"
        )
    if isinstance(queries, (list, tuple)) and any(is_codes(x) for x in queries):
        left, steps = _coded_queries(queries, query_mask)
    else:
        left = _maxsim_inputs.given("queries", queries, query_mask, "query_mask").together()
    if left.dim == 0:
        left = replace(left, x=left.x.reshape(0, tokens.dim))
    if left.dim != tokens.dim:
        raise ValueError(
            f"queries: found tokens of {left.dim} dimensions, expected {tokens.dim} as {tokens!r} "
            "has"
        )
    place = "cpu"
    if _vectors.gpu_of(_data_of(tokens)) is not None:
        place = _data_of(tokens).device
    for name, x in (("queries", left.x), ("tokens", _data_of(tokens))):
        if _tensors.is_tensor(x):
            _check_tensor(name, x, place)
    return left, Coded(tokens, kind, bounds, mask, steps)


def run(
    queries: Given,
    documents: Coded,
    candidates: Any,
    options: Options,
    *,
    argmax: bool,
    token_scores: bool,
    backend: str,
    threads: int,
) -> Found:
    """float32 scores [Q, C] and details; tensors if there are tensors among the inputs."""
    device = _check_where(documents, options, backend)
    if device is not None:
        from simtile.ops import _maxsim_codes_gpu

        return _maxsim_codes_gpu.forward(
            queries, documents, candidates, options, argmax=argmax, token_scores=token_scores
        )
    candidates = None if candidates is None else _tensors.as_array(candidates)
    count = _maxsim_run.check_candidates(candidates, documents.batch)
    shape = _maxsim_run.detail_shape(queries, count)
    found = Found(
        np.empty((queries.batch, count), np.float32),
        np.empty(shape, np.int32) if argmax else None,
        np.empty(shape, np.float32) if token_scores else None,
    )
    _forward(queries, documents, candidates, options, found, threads)
    if queries.of_tensors or documents.of_tensors:
        return Found(*(None if x is None else _tensors.as_tensor(x, "cpu") for x in found))
    return found


def search(
    queries: Given,
    documents: Coded,
    candidates: Any,
    options: Options,
    allowed: Any,
    k: int,
    backend: str,
) -> tuple[Any, Any] | None:
    """The k best of tokens on a GPU, scores and ids [Q, k]; None where they are on the CPU."""
    if _check_where(documents, options, backend) is None:
        return None
    from simtile.ops import _maxsim_codes_gpu

    return _maxsim_codes_gpu.search(queries, documents, candidates, options, allowed, k)


def _check_where(documents: Coded, options: Options, backend: str) -> Any:
    """The GPU that tokens are on, None for the CPU."""
    device = _vectors.gpu_of(documents.x)
    here = "cpu" if device is None else "cuda"
    _inputs.check_choice("backend", backend, _inputs.BACKENDS)
    if backend not in ("auto", here):
        raise ValueError(
            f"backend: found {backend!r} with tokens that are codes, expected 'auto' or {here!r}: "
            f"they are scored where they are, on {device or 'the CPU'}"
        )
    if options.temperature:
        raise ValueError(
            "temperature: found one with tokens that are codes, expected None: the smooth maximum "
            "is for training, on floats"
        )
    return device


def _forward(
    queries: Given,
    documents: Coded,
    candidates: Int64s | None,
    options: Options,
    found: Found,
    threads: int,
) -> None:
    tokens, kind = documents.tokens, documents.kind
    if isinstance(tokens, ResidualTokens):
        tokens = tokens.numpy()
    values, steps, starts, ends, query_mask = prepared(queries, documents, options)
    document_mask = documents.mask
    if options.pad_zero_rows:
        document_mask = without_zeros(tokens, document_mask)
    folded = fold(values, steps, tokens, kind, options.normalize)
    operands: list[Any] = [factors(tokens, options.normalize), None, None, None, None]
    block = max(len(starts), 1)
    name = "" if isinstance(tokens, ResidualTokens) else CODE_KINDS[tokens.kind]
    if isinstance(tokens, ResidualTokens):
        codec = tokens.codec
        name = residual_kind(tokens)
        folded, floats = with_centroids(folded, values, steps, tokens)
        operands[1:] = tokens.centroid_ids, codec.centroids, floats, codec.whole_weights
        each = min(len(tokens), len(codec.centroids)) * int((ends - starts).max(initial=0))
        block = max(_MOST_PRODUCTS // max(each, 1), 1)
    before = np.cumsum([0, *(ends - starts)])
    count = found.scores.shape[1]
    details = [None if x is None else x.reshape(-1) for x in found[1:]]
    for begin in range(0, len(starts), block):
        rows = slice(begin, min(begin + block, len(starts)))
        part = slice(count * before[rows.start], count * before[rows.stop])
        arguments: list[Any] = [
            name,
            folded.whole,
            starts[rows],
            ends[rows],
            query_mask,
            folded.units,
            folded.terms,
            _tensors.as_array(documents.x),
            tokens.dim,
            *(np.ascontiguousarray(x) for x in documents.bounds),
            document_mask,
            *operands,
            options.length_normalize,
            options.empty_score,
            None if candidates is None else candidates[rows],
            found.scores[rows],
            *(None if x is None else x[part] for x in details),
            threads,
        ]
        _core.maxsim_codes(*arguments)


def prepared(
    queries: Given, documents: Coded, options: Options, *, dense: bool = False
) -> tuple[Array, Array | None, Int64s, Int64s, Array | None]:
    """Rows of queries, their steps if they are codes, where each query's start and end, mask."""
    steps = documents.query_steps
    if steps is None:
        side = _maxsim_sides.side_of(queries, dense=dense)
        values = _maxsim_sides.widen(side.rows.array, side.rows.kind, "float64")
        starts, ends, mask = side.starts, side.ends, side.mask
    else:
        values, mask = queries.x, queries.mask
        starts, ends = queries.offsets[:-1].copy(), queries.offsets[1:].copy()
    if options.pad_zero_rows:
        there = (values != 0).any(axis=1)
        mask = there if mask is None else mask & there
    if options.normalize:
        values, steps = normalized(values, steps)
    return values, steps, starts, ends, mask


def _check_kind(tokens: Codes) -> str:
    if isinstance(tokens, ResidualTokens):
        return "residual"
    if tokens.kind not in LARGEST_CODE:
        raise ValueError(
            f"tokens: found {tokens!r}, expected a Quantized of int8, uint8, int8_vector or "
            "binary, or ResidualTokens"
        )
    return tokens.kind


def _data_of(tokens: Codes) -> Any:
    return tokens.codes if isinstance(tokens, Quantized) else tokens.residuals


def _check_tensor(name: str, x: Any, place: Any) -> None:
    import torch

    found = f"{name}: found {_tensors.dtype_name(x)} {list(x.shape)}"
    if x.device != torch.device(place):
        where = "the CPU" if place == "cpu" else f"{place}, where tokens are"
        raise ValueError(
            f"{found} on {x.device} with tokens that are codes, expected {where}; x.cpu() moves it "
            "(and .numpy() codes)"
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{found} that requires grad with tokens that are codes, expected one that does not: "
            "rounding has no gradient; detach it or use torch.no_grad()"
        )


def _coded_queries(queries: Any, query_mask: Any) -> tuple[Given, Array]:
    dim = getattr(queries[0], "dim", "D")
    for i, x in enumerate(queries):
        if not isinstance(x, Quantized) or x.kind != "int8_vector" or x.dim != dim:
            raise ValueError(
                f"queries[{i}]: found {x!r:.80}, expected a Quantized of kind 'int8_vector' "
                f"[L, {dim}] like the others"
            )
    stand_ins = [np.zeros((len(x), 1), np.float32) for x in queries]
    left = _maxsim_inputs.given("queries", stand_ins, query_mask, "query_mask").together()
    codes = np.concatenate([_tensors.as_array(x.codes) for x in queries])
    steps = np.concatenate([_tensors.as_array(x.scale) for x in queries])
    return replace(left, x=codes), steps
