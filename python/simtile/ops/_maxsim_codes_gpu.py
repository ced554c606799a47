"""MaxSim of codes that are tensors of a GPU: what `simtile._maxsim_codes` does on the CPU.

Queries become whole numbers on the host, as they do there, so that scores are the same: a call
waits for them where they are on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simtile import _maxsim_codes, _maxsim_run
from simtile._maxsim_codes import SMALLEST_NORM, Coded
from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Found, Options
from simtile.ops import maxsim_cuda
from simtile.quantized import CODE_KINDS, PER_VECTOR


def forward(
    queries: Given,
    documents: Coded,
    candidates: Any,
    options: Options,
    *,
    argmax: bool,
    token_scores: bool,
) -> Found:
    tokens: Any = documents.tokens
    device = tokens.codes.device
    values, steps, starts, ends, mask = _maxsim_codes.prepared(
        queries, documents, options, dense=True
    )
    folded = _maxsim_codes.fold(values, steps, tokens, documents.kind, options.normalize)

    def there(x: Any) -> Tensor | None:
        return None if x is None else torch.as_tensor(x).to(device)

    operands: list[Any] = [there(x) for x in (*folded, starts, ends, mask)]
    operands.append(int((ends - starts).max(initial=0)))
    whole = maxsim_cuda.WholeQueries(*operands)
    document_mask = there(documents.mask)
    if options.pad_zero_rows and tokens.kind != "binary":
        counted = tokens.inverse_norms != 0
        if tokens.kind in PER_VECTOR:
            counted = counted & (tokens.scale != 0)
        document_mask = counted if document_mask is None else document_mask & counted
    found = maxsim_cuda.forward_codes(
        whole,
        CODE_KINDS[tokens.kind],
        tokens.codes,
        tokens.dim,
        torch.from_numpy(documents.offsets),
        document_mask,
        _factors(tokens, options.normalize),
        there(candidates),
        length_normalize=options.length_normalize,
        empty_score=options.empty_score,
        argmax=argmax,
        token_scores=token_scores,
    )
    shape = _maxsim_run.detail_shape(queries, found.scores.shape[1])
    return Found(found.scores, *(None if x is None else x.view(shape) for x in found[1:]))


def _factors(tokens: Any, normalize: bool) -> Tensor | None:
    """`_maxsim_codes` has the reasons."""
    if tokens.kind == "binary":
        return None
    own: Tensor | None = tokens.scale if tokens.kind in PER_VECTOR else None
    if not normalize:
        return own
    longest = torch.tensor(1 / SMALLEST_NORM, dtype=torch.float32, device=tokens.codes.device)
    return torch.minimum(tokens.inverse_norms, longest if own is None else longest * own)
