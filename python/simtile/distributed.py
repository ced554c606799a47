"""InfoNCE and search over the processes of torch.distributed, with every rank's documents.

`search` is in `simtile._distributed_search`. What follows is about `info_nce`.

Two ways to the same loss. "all_gather": every rank receives all candidates and computes the losses
of its own queries. "ring": the candidates of each rank travel around all ranks, so that a rank
holds those of three at a time: its own, one at work and one on its way (`simtile._ring`).

All collectives are called by all ranks or by none: what each rank was given is exchanged first, and
if it does not fit on one of them, all raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

import simtile
from simtile import _inputs
from simtile._distributed_search import search as search
from simtile._ring import Layout, Options, numbered_ids, ring_losses
from simtile.ops._tensors import as_integers, check_devices, check_floats, check_one_number

__all__ = ["info_nce", "search"]

MODES = ("all_gather", "ring")
GRADIENTS = ("averaged", "summed")
# Since torch 2.13 by new names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_VECTORS = ("queries", "documents", "negatives")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def info_nce(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    normalize: bool = True,
    targets: Tensor | Sequence[int] | None = None,
    negatives_scope: Literal["all", "own"] = "all",
    query_ids: Tensor | Sequence[int] | None = None,
    document_ids: Tensor | Sequence[int] | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    mode: Literal["all_gather", "ring"] = "all_gather",
    gradients: Literal["averaged", "summed"] = "averaged",
    group: dist.ProcessGroup | None = None,
    backend: Literal["auto", "cpu", "triton", "cuda", "reference"] = "auto",
    precision: Literal["ieee", "tf32", "tf32x3"] = "ieee",
    threads: int | None = None,
) -> Tensor:
    r""":func:`simtile.info_nce` of the batch that all ranks have together.

    Each rank passes what it has encoded itself. Loss and gradients are those of one process with
    the rows of all ranks, those of rank 0 first. All ranks must call it, and its backward.

    Parameters
    ----------
    queries, documents, negatives, targets, query_ids, document_ids
        This rank's part, as in :func:`simtile.info_nce`: document i belongs to query i of the same
        rank, targets count this rank's documents. Ids are compared across ranks. The number of
        rows may differ from rank to rank but must not be 0; dimensions, element types and which
        arguments are given must not differ.
    temperature, normalize, negatives_scope, backend, precision, threads
        As in :func:`simtile.info_nce`. The temperature is this rank's own, so one that is learnt
        must be kept equal: as a parameter inside of DistributedDataParallel.
    reduction : "mean", "sum" or "none"
        Over the losses of all ranks' queries: every rank returns the same number. "none" returns
        the losses of this rank's queries.
    mode : "all_gather" or "ring"
        Whether every rank holds all candidates at once, O(N D), or in turn, O(N D / ranks). The
        ring computes 10 N M D operations where the other needs 6, and moves the candidates twice
        and their gradients once.
    gradients : "averaged" or "summed"
        What is done with parameters' gradients of all ranks afterwards. DistributedDataParallel and
        FSDP average them: the loss's gradient is multiplied by the number of ranks, so that the
        average is the gradient of the returned number. "summed" is for who adds them up. With
        reduction "none" nothing is multiplied: gradients of the ranks' losses add up.
    group : ProcessGroup, optional
        The ranks that take part; all if not given.

    Returns
    -------
    Tensor, scalar or [N] for "none"

    Raises
    ------
    ValueError, TypeError
        As :func:`simtile.info_nce`, on the rank concerned; the ranks do not fit together, on all.
    RuntimeError
        torch.distributed is not initialised; another rank has refused its inputs.

    Notes
    -----
    Under autocast embeddings are cast before they travel. Ring, with ``normalize``: rows are
    divided by their norms in float32 at least and rounded to the element type before they travel,
    one rounding of bfloat16 and float16 more than the kernel makes.

    Examples
    --------
    >>> import tempfile, torch, simtile
    >>> store = f"file://{tempfile.mkdtemp()}/store"
    >>> torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    >>> model = torch.nn.Linear(8, 4)
    >>> queries, documents = torch.randn(6, 8), torch.randn(6, 8)  # of this rank
    >>> loss = simtile.distributed.info_nce(model(queries), model(documents), mode="ring")
    >>> loss.backward()
    >>> torch.distributed.destroy_process_group()
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "simtile.distributed: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first, or use simtile.info_nce"
        )
    _inputs.check_choice("reduction", reduction, _inputs.REDUCTIONS)
    _inputs.check_choice("negatives_scope", negatives_scope, ("all", "own"))
    _inputs.check_choice("mode", mode, MODES)
    _inputs.check_choice("gradients", gradients, GRADIENTS)
    own: _Own | None = None
    refused: Exception | None = None
    try:
        own = _checked(queries, documents, negatives, targets, query_ids, document_ids, temperature)
    except (TypeError, ValueError) as error:
        refused = error
    flags = [MODES.index(mode), int(normalize), int(negatives_scope == "own")]
    device = queries.device if isinstance(queries, Tensor) else torch.device("cpu")
    sizes = _exchange_sizes(own, flags, device, group, refused)
    assert own is not None
    options = Options(temperature, normalize, backend, precision, threads)
    if mode == "all_gather":
        losses = _gathered(own, sizes, negatives_scope == "own", options, reduction, group)
    else:
        blocks = [s.documents + (s.negatives if negatives_scope == "all" else 0) for s in sizes]
        losses = ring_losses(
            own.queries,
            own.documents,
            own.negatives,
            own.targets,
            own.query_ids,
            own.document_ids,
            Layout(blocks, [s.documents for s in sizes], group),
            negatives_scope == "own",
            options,
        )
    if reduction == "none":
        return losses
    total = losses if losses.ndim == 0 else losses.sum()
    share = 1.0 / sum(s.queries for s in sizes) if reduction == "mean" else 1.0
    ranks = len(sizes) if gradients == "averaged" else 1
    result: Tensor = _GlobalSum.apply(total, share, share * ranks, group)  # type: ignore[no-untyped-call]
    return result


class _Own(NamedTuple):
    """This rank's inputs in one element type, with ids and targets filled in."""

    queries: Tensor  # [N, D]
    documents: Tensor  # [M, D]
    negatives: Tensor | None  # [N, K, D]
    targets: Tensor | None  # [N]
    query_ids: Tensor | None  # [N]
    document_ids: Tensor | None  # [M]


class _Sizes(NamedTuple):
    """The rows of a rank."""

    queries: int
    documents: int
    negatives: int  # N K


def _checked(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    targets: Tensor | Sequence[int] | None,
    query_ids: Tensor | Sequence[int] | None,
    document_ids: Tensor | Sequence[int] | None,
    temperature: float | Tensor,
) -> _Own:
    dtypes = [check_floats("queries", queries), check_floats("documents", documents)]
    if negatives is not None:
        dtypes.append(check_floats("negatives", negatives))
    integers = {"targets": targets, "query_ids": query_ids, "document_ids": document_ids}
    given = {k: as_integers(k, v) for k, v in integers.items() if v is not None}
    shapes = [x.shape if x is not None else None for x in (queries, documents, negatives)]
    _inputs.check_shapes(*shapes, *(given[k].shape if k in given else None for k in integers))  # type: ignore[arg-type]
    if isinstance(temperature, Tensor):
        check_one_number("temperature", temperature)
    else:
        _inputs.check_temperature(temperature)
    check_devices(queries, {"documents": documents, "negatives": negatives}, dict(given))
    device = queries.device
    if torch.is_autocast_enabled(device.type):
        lower = torch.get_autocast_dtype(device.type)
        dtypes = [dtype if dtype == torch.float64 else lower for dtype in dtypes]
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    t, q, d = (given[k].to(device, torch.int64) if k in given else None for k in integers)
    m = documents.shape[0]
    if t is not None and device.type == "cpu":
        _inputs.check_targets(t.numpy(), m)
    elif t is not None:  # nobody waits for a GPU: a wrong one makes its row's loss NaN
        t = t.masked_fill((t < 0) | (t >= m), -1)
    if q is None and d is not None:
        q = d[: queries.shape[0]] if t is None else d[t.clamp(0, m - 1)]
    if d is None:
        d = q
    return _Own(queries.to(dtype), documents.to(dtype), _cast(negatives, dtype), t, q, d)


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


def _exchange_sizes(
    own: _Own | None,
    flags: list[int],
    device: torch.device,
    group: dist.ProcessGroup | None,
    refused: Exception | None,
) -> list[_Sizes]:
    """Every rank's number of rows; raises on all ranks if one has refused or they do not fit."""
    names = ["mode", "normalize", "negatives_scope", "element type", "dimensions"]
    names += ["negatives given", "ids given", *(f"gradients of {x}" for x in _VECTORS)]
    row = [0] * (len(names) + 4)
    if own is not None:
        negatives = 0 if own.negatives is None else own.negatives.shape[0] * own.negatives.shape[1]
        row = [1, own.queries.shape[0], own.documents.shape[0], negatives, *flags]
        row += [_DTYPES.index(own.queries.dtype), own.queries.shape[1]]
        row += [int(own.negatives is not None), int(own.query_ids is not None)]
        # Whoever needs no gradient would not take part in the backward.
        vectors = own.queries, own.documents, own.negatives
        row += [int(torch.is_grad_enabled() and x is not None and x.requires_grad) for x in vectors]
    mine = torch.tensor(row, dtype=torch.int64, device=device)
    ranks = dist.get_world_size(group)
    table = torch.empty(ranks * len(row), dtype=torch.int64, device=device)
    _all_gather(table, mine, group=group)
    rows = table.reshape(ranks, -1).tolist()
    if refused is not None:
        raise refused
    for rank, other in enumerate(rows):
        if not other[0]:
            raise RuntimeError(
                f"simtile.distributed.info_nce: rank {rank} has refused its inputs; its own error "
                "says why"
            )
    for column, name in enumerate(names, 4):
        values = [other[column] for other in rows]
        if len(set(values)) > 1:
            if name == "element type":
                values = [str(_DTYPES[value]) for value in values]
            raise ValueError(f"{name}: found {values} on the ranks, expected the same on all")
    return [_Sizes(*other[1:4]) for other in rows]


def _gathered(
    own: _Own,
    sizes: Sequence[_Sizes],
    own_negatives: bool,
    options: Options,
    reduction: str,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """The losses of this rank's queries against all candidates, or their sum."""
    rank = dist.get_rank(group)
    documents = _gather(own.documents, [s.documents for s in sizes], group)
    first = sum(s.documents for s in sizes[:rank])
    n = own.queries.shape[0]
    targets = own.targets
    if targets is None:
        targets = torch.arange(n, device=own.queries.device)
    document_ids = None
    query_ids = own.query_ids
    if own.document_ids is not None:
        document_ids = _gather(own.document_ids, [s.documents for s in sizes], group)
    negatives = own.negatives
    if negatives is not None and not own_negatives:
        # All ranks' negatives are candidates of all queries: documents that nobody's ids exclude.
        flat = _gather(negatives.flatten(0, 1), [s.negatives for s in sizes], group)
        if query_ids is not None and document_ids is not None:
            query_ids, document_ids = numbered_ids(query_ids, document_ids, flat.shape[0])
        documents = torch.cat([documents, flat])
        negatives = None
    return simtile.info_nce(
        own.queries,
        documents,
        negatives,
        temperature=options.temperature,
        normalize=options.normalize,
        targets=torch.where(targets < 0, targets, targets + first),
        negatives_scope="own" if own_negatives else "all",
        query_ids=query_ids,
        document_ids=document_ids,
        reduction="none" if reduction == "none" else "sum",
        backend=options.backend,  # type: ignore[arg-type]
        precision=options.precision,  # type: ignore[arg-type]
        threads=options.threads,
    )


def _gather(x: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    result: Tensor = _Gather.apply(x, counts, group)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    """The rows of all ranks, rank 0's first; the backward adds up what all ranks return for them.

    Ranks with fewer rows are padded on the way.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.counts, ctx.group = counts, group
        most = max(counts)
        if most == 0:
            return x.view_as(x)
        padded = x.contiguous()
        if x.shape[0] < most:
            padded = torch.cat([x, x.new_zeros(most - x.shape[0], *x.shape[1:])])
        table = x.new_empty(len(counts) * most, *x.shape[1:])
        _all_gather(table, padded, group=group)
        if min(counts) == most:
            return table
        return torch.cat([table[i * most :][:count] for i, count in enumerate(counts)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        counts, most = ctx.counts, max(ctx.counts)
        if most == 0:
            return grad, None, None
        # Sums over ranks are not rounded to 16 bits on the way.
        dtype = torch.promote_types(grad.dtype, torch.float32)
        table = torch.zeros(len(counts), most, *grad.shape[1:], dtype=dtype, device=grad.device)
        begin = 0
        for rows, count in zip(table, counts, strict=True):
            rows[:count] = grad[begin : begin + count]
            begin += count
        total = torch.empty_like(table[0])
        _reduce_scatter(total, table.flatten(0, 1), group=ctx.group)
        return total[: counts[dist.get_rank(ctx.group)]].to(grad.dtype), None, None


class _GlobalSum(torch.autograd.Function):
    """The sum over ranks times `share`; its gradient is `weight` for this rank's number."""

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, share: float, weight: float, group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.weight = weight
        wide = total.detach().to(torch.float64, copy=True)
        dist.all_reduce(wide, group=group)
        return (wide * share).to(total.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.weight, None, None, None
