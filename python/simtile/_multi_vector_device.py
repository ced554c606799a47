"""MaxSim of an index's tokens on a CUDA device, which has copies of them.

Tokens stay in the host's memory or in the mapped file. They are kept on the device if they fit;
else those of the documents that are scored are copied there, a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _index_device, _maxsim_codes, _tensors
from simtile._encoding import FLOATS
from simtile._index_device import DeviceSearch
from simtile._maxsim_codes import Coded
from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Options
from simtile._multi_vector_inputs import Queries
from simtile._token_encoding import TokenEncoding
from simtile._token_storage import Tokens
from simtile.quantized import Quantized

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Tensors = Mapping[str, Any]


class TokenDevice:
    """The device's side of an index of token vectors."""

    def __init__(self, device: Any) -> None:
        self._search = DeviceSearch(device)

    def score(
        self,
        segments: Sequence[Tokens],
        segment: Tokens,
        encoding: TokenEncoding,
        queries: Queries,
        runs: tuple[Int64s, Int64s],
        candidates: Int64s | None,
        options: Options,
    ) -> Floats:
        """Scores of documents [N], runs of a segment's rows, one of them not empty.

        [Q, N], or with candidates, places among the documents [Q, C], of these [Q, C]; anything
        where they are -1. `segments` are those that should fit on the device together.
        """
        starts, ends = runs
        if self._search.fits(segments, encoding):
            columns = self._search.mirrored(segment, encoding)
            first, last = int(starts[starts < ends].min()), int(ends[starts < ends].max())
            block = {name: column[first:last] for name, column in columns.items()}
            offsets, places = _as_offsets(starts - first, ends - first, last - first)
            return self._run(block, encoding, queries, offsets, places, candidates, options)
        row_bytes = max(1, encoding.token_bytes)
        count = len(starts) if candidates is None else candidates.shape[1]
        scores = np.empty((len(queries), count), np.float32)
        for part in _parts(ends - starts, max(1, _index_device.BLOCK_BYTES // row_bytes)):
            spans = list(zip(starts[part].tolist(), ends[part].tolist(), strict=True))
            block = {
                name: self._search.upload(np.concatenate([column[a:b] for a, b in spans]))
                for name, column in segment.columns.items()
            }
            offsets = np.cumsum([0, *(ends[part] - starts[part])])
            places = np.arange(len(spans))
            if candidates is None:
                scores[:, part] = self._run(
                    block, encoding, queries, offsets, places, None, options
                )
                continue
            here = (candidates >= part.start) & (candidates < part.stop)
            if here.any():
                local = np.where(here, candidates - part.start, -1)
                own = self._run(block, encoding, queries, offsets, places, local, options)
                scores[here] = own[here]
        return scores

    def _run(
        self,
        columns: Tensors,
        encoding: TokenEncoding,
        queries: Queries,
        offsets: Int64s,
        places: Int64s,
        candidates: Int64s | None,
        options: Options,
    ) -> Floats:
        """Of documents that stand at `places` among those that `offsets` [N + 1] divide."""
        chosen = None
        if candidates is not None:
            chosen = self._search.upload(np.where(candidates < 0, -1, places[candidates]))
        if encoding.dtype in FLOATS:
            found: Any = self._floats(columns, encoding, queries, offsets, chosen, options)
        else:
            tokens: Any = encoding.operand(columns)
            kind = tokens.kind if isinstance(tokens, Quantized) else "residual"
            found = _maxsim_codes.run(
                queries.given,
                Coded(tokens, kind, offsets, None, None),
                chosen,
                options,
                argmax=False,
                token_scores=False,
                backend="auto",
                threads=1,
            ).scores
        scores: Floats = _tensors.as_array(found)
        return scores if candidates is not None else scores[:, places]

    def _floats(
        self,
        columns: Tensors,
        encoding: TokenEncoding,
        queries: Queries,
        offsets: Int64s,
        candidates: Any,
        options: Options,
    ) -> Any:
        import torch

        from simtile.ops import maxsim_cuda

        rows = columns["codes"]
        if encoding.dtype == "bfloat16":
            rows = rows.view(torch.bfloat16)
        given = queries.given
        mask = None if given.mask is None else self._search.upload(given.mask)
        left = replace(given, x=self._search.upload(given.x), mask=mask)
        right = Given("tokens", rows, offsets, None)
        return maxsim_cuda.forward(left, right, candidates, options).scores


def _as_offsets(starts: Int64s, ends: Int64s, rows: int) -> tuple[Int64s, Int64s]:
    """Runs as some of the documents that offsets divide all rows into, and their places.

    What lies between the runs become documents too, and the last of all is an empty one.
    """
    full = starts < ends
    bounds = np.unique(np.concatenate([[0, rows], starts[full], ends[full]]))
    places = np.where(full, np.searchsorted(bounds, starts), len(bounds) - 1)
    return np.append(bounds, rows), places


def _parts(lengths: Int64s, rows: int) -> Iterator[slice]:
    """Consecutive documents that have so many rows together; a longer one alone."""
    before = np.concatenate([[0], np.cumsum(lengths)])
    begin = 0
    while begin < len(lengths):
        end = int(np.searchsorted(before, before[begin] + rows, side="right")) - 1
        end = max(end, begin + 1)
        yield slice(begin, end)
        begin = end
