"""The best documents by MaxSim on a GPU: `kernels/maxsim/cuda_topk.cuh` through `_cuda`.

Scores are selected from where they are made; those of all documents are never stored. Nothing here
waits for the device or reads from it: a call can be captured in a CUDA graph unless offsets, ids or
`allow` have to be copied to the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simtile import _gpu
from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Options
from simtile.ops import maxsim_cuda
from simtile.ops.maxsim_cuda import Pairs


def search(
    queries: Given,
    documents: Given,
    candidates: Tensor | None,
    allowed: Tensor | None,
    options: Options,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The k best documents of every query, on the current stream of the queries' device.

    Shapes and devices have been checked.

    Parameters
    ----------
    queries, documents, options
        As `maxsim_cuda.forward` takes them.
    candidates : int64 Tensor [Q, C], optional
        The only documents that a query may find. One below 0 or not below N is none, and twice the
        same counts once.
    allowed : bool Tensor [N] or [Q, N], optional
        A document with False is not found.
    k : int
        From 1 to 65536.

    Returns
    -------
    scores : float32 [Q, k]
        Best first; -inf where there are no more. A NaN is not found.
    ids : int64 [Q, k]
        Of equal scores the lowest first; -1 where there are no more.

    Raises
    ------
    ValueError
        As `maxsim_cuda.forward`; k is too large.
    RuntimeError
        There is no CUDA module, driver or device, or CUDA reports an error.
    """
    return best(maxsim_cuda.pairs(queries, documents, options), candidates, allowed, k)


def best(
    own: Pairs, candidates: Tensor | None, allowed: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """`search`, of what the kernels take."""
    index, stream = maxsim_cuda.where(own)
    device = own.left.rows.device
    shape = (len(own.left.starts), k)
    scores = torch.empty(shape, dtype=torch.float32, device=device)
    ids = torch.empty(shape, dtype=torch.int64, device=device)
    count = len(own.right.starts) if candidates is None else int(candidates.shape[1])
    if count == 0:
        return scores.fill_(float("-inf")), ids.fill_(-1)
    if shape[0] == 0:
        return scores, ids
    if allowed is not None:
        allowed = allowed.to(device).contiguous()
    given = maxsim_cuda.arguments(own, candidates, count)
    given |= {"scores": None, "argmax": None, "token_scores": None, "rows_before": None}
    of_each = allowed is not None and allowed.ndim == 2
    more: dict[str, Any] = {"allow": allowed, "scores": scores, "ids": ids}
    cuda = _gpu.cuda_module()
    args = cuda.MaxsimTopkArgs(
        pairs=cuda.MaxsimArgs(**maxsim_cuda.addresses(given)),
        k=k,
        allow_stride=len(own.right.starts) if of_each else 0,
        **maxsim_cuda.addresses(more),
    )
    needed = cuda.maxsim_topk_workspace_bytes(args, device=index)
    workspace = torch.empty((needed,), dtype=torch.uint8, device=device)
    cuda.maxsim_topk(
        args,
        device=index,
        stream=stream,
        workspace=workspace.data_ptr(),
        workspace_bytes=needed,
    )
    return scores, ids
