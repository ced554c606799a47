"""MaxSim of codes that are tensors of a GPU: what `simtile._maxsim_codes` does on the CPU.

Queries become whole numbers on the host, as they do there, so that scores are the same: a call
waits for them where they are on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simtile import _maxsim_codes, _maxsim_fold, _maxsim_run, _tensors
from simtile._maxsim_codes import Coded
from simtile._maxsim_fold import SMALLEST_NORM
from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Found, Options
from simtile.ops import maxsim_cuda, maxsim_cuda_topk
from simtile.quantized import CODE_KINDS, PER_VECTOR
from simtile.residual import ResidualTokens


def forward(
    queries: Given,
    documents: Coded,
    candidates: Any,
    options: Options,
    *,
    argmax: bool,
    token_scores: bool,
) -> Found:
    operands, more = _operands(queries, documents, options)
    arguments: list[Any] = [*operands, _there(candidates, documents)]
    found = maxsim_cuda.forward_codes(*arguments, **more, argmax=argmax, token_scores=token_scores)
    shape = _maxsim_run.detail_shape(queries, found.scores.shape[1])
    return Found(found.scores, *(None if x is None else x.view(shape) for x in found[1:]))


def search(
    queries: Given, documents: Coded, candidates: Any, options: Options, allowed: Any, k: int
) -> tuple[Tensor, Tensor]:
    """The k best, scores and ids [Q, k]."""
    operands, more = _operands(queries, documents, options)
    own = maxsim_cuda.pairs_of_codes(*operands, **more)
    chosen, mask = (_there(x, documents) for x in (candidates, allowed))
    return maxsim_cuda_topk.best(own, chosen, mask, k)


def _operands(
    queries: Given, documents: Coded, options: Options
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of `maxsim_cuda.pairs_of_codes`."""
    tokens: Any = documents.tokens
    values, steps, starts, ends, mask = _maxsim_codes.prepared(
        queries, documents, options, dense=True
    )
    folded = _maxsim_fold.fold(values, steps, tokens, documents.kind, options.normalize)

    more: dict[str, Any] = {
        "length_normalize": options.length_normalize,
        "empty_score": options.empty_score,
    }
    if isinstance(tokens, ResidualTokens):
        kind = _maxsim_fold.residual_kind(tokens)
        folded, floats = _maxsim_fold.with_centroids(folded, values, steps, tokens)
        device = documents.x.device
        more["residuals"] = maxsim_cuda.Residuals(
            tokens.centroid_ids,
            tokens.codec.centroids_on(device),
            _tensors.as_tensor(floats, device),
            tokens.codec.whole_weights.tolist(),
        )
    else:
        kind = CODE_KINDS[tokens.kind]
    operands: list[Any] = [_there(x, documents) for x in (*folded, starts, ends, mask)]
    operands.append(int((ends - starts).max(initial=0)))
    whole = maxsim_cuda.WholeQueries(*operands)
    document_mask = _there(documents.mask, documents)
    # Bits and residuals are never zeros.
    if options.pad_zero_rows and documents.kind not in ("binary", "residual"):
        counted = tokens.inverse_norms != 0
        if tokens.kind in PER_VECTOR:
            counted = counted & (tokens.scale != 0)
        document_mask = counted if document_mask is None else document_mask & counted
    return [
        whole,
        kind,
        documents.x,
        tokens.dim,
        torch.from_numpy(documents.offsets),
        document_mask,
        _factors(tokens, options.normalize),
    ], more


def _there(x: Any, documents: Coded) -> Tensor | None:
    """On the device of the tokens."""
    return None if x is None else _tensors.as_tensor(x, documents.x.device)


def _factors(tokens: Any, normalize: bool) -> Tensor | None:
    """`_maxsim_fold` has the reasons."""
    if isinstance(tokens, ResidualTokens):
        return tokens.inverse_norms  # type: ignore[no-any-return]
    if tokens.kind == "binary":
        return None
    own: Tensor | None = tokens.scale if tokens.kind in PER_VECTOR else None
    if not normalize:
        return own
    longest = torch.tensor(1 / SMALLEST_NORM, dtype=torch.float32, device=tokens.codes.device)
    return torch.minimum(tokens.inverse_norms, longest if own is None else longest * own)
