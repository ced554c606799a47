r"""InfoNCE whose candidates travel around the ranks, block by block.

A rank's queries meet one block of candidates at a time, and of each block two things are needed:
its share of the log-sum-exp, and, once that is known for all blocks, its gradients. Both come from
`simtile.info_nce` itself, given a document more. With s_t the logit of a query's own document,

    Z_r = Σ_{j in block r} exp(s_j − s_t),    loss = log(1 + Σ_r Z_r)

and the operator's loss of a block and a *reference document* of logit ρ is

    ℓ_r = log(1 + Σ_{j in block r} exp(s_j − ρ)),    so that log Z_r = log(exp ℓ_r − 1) + (ρ − s_t).

Nothing is subtracted from a log-sum-exp, so a loss of 1e-7 keeps its digits, and none is below
zero. The block's gradients are the operator's with row weights w_r = exp(ℓ_r + ρ − s_t − loss),
because w_r exp(s_j − ρ) / (1 + Σ exp(s_k − ρ)) is the candidate's probability; no weight is above 1
by more than a rounding.

The reference must have a logit of its own for each query, near s_t, or exp(s_j − ρ) could leave the
range. So rows get a dimension more: b_i in a query, 0 in a candidate, γ in the reference, whose
other coordinates are 0. Its logit is ρ_i = b_i γ / τ, with γ a power of two about as large as a row
and b_i = q_i · d_t / γ, rounded to the element type: ρ − s_t is known exactly, and is not 0 in
bfloat16. What the reference takes away from the gradient of b is thrown away; what the own document
takes away from the queries' gradient is −Σ_r P_r d_t / τ, where P_r = Z_r / (1 + Σ Z).

In a rank's own block the own document is the reference itself, and the operator does all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

import simtile

_ROWS = 1024  # whose products are summed in float64 at a time


class Options(NamedTuple):
    """Arguments of `simtile.info_nce`, as they were given."""

    temperature: float | Tensor
    normalize: bool
    backend: str
    precision: str
    threads: int | None


class Layout(NamedTuple):
    """Who has how many candidates, documents first, then negatives that all queries see."""

    candidates: Sequence[int]
    documents: Sequence[int]
    group: dist.ProcessGroup | None


class _Ids(NamedTuple):
    queries: Tensor | None  # [N]
    documents: Tensor | None  # [M], of this rank


def ring_losses(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    layout: Layout,
    own_negatives: bool,
    options: Options,
) -> Tensor:
    """[N], the losses of this rank's queries against the candidates of all ranks."""
    if options.normalize:
        queries, documents = _unit(queries), _unit(documents)
        negatives = None if negatives is None else _unit(negatives)
    block = documents
    if negatives is not None and not own_negatives:
        block = torch.cat([documents, negatives.flatten(0, 1)])
        negatives = None
    if targets is None:
        targets = torch.arange(queries.shape[0], device=queries.device)
    temperature = torch.as_tensor(options.temperature, dtype=torch.float64)
    step = _Step(targets, _Ids(query_ids, document_ids), layout, options)
    losses: Tensor = _RingLosses.apply(queries, block, negatives, temperature, step)  # type: ignore[no-untyped-call]
    return losses


def _unit(x: Tensor) -> Tensor:
    """Rows over their norms, in float32 at least; norms in float64, where no square overflows."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True, dtype=torch.float64)
    unit: Tensor = (wide / norms.clamp_min(1e-12).to(wide.dtype)).to(x.dtype)
    return unit


class _Step:
    """What does not change while blocks go by."""

    def __init__(self, targets: Tensor, ids: _Ids, layout: Layout, options: Options) -> None:
        self.targets = targets
        self.ids = ids
        self.layout = layout
        self._options = options
        # Of a wrong target on a GPU, whose loss is NaN, the index must be in bounds all the same.
        self.rows = targets.clamp(0, layout.documents[dist.get_rank(layout.group)] - 1)

    def losses(
        self,
        queries: Tensor,
        documents: Tensor,
        negatives: Tensor | None,
        temperature: Tensor,
        targets: Tensor,
        document_ids: Tensor | None,
    ) -> Tensor:
        """The operator's; documents beyond the ids have none."""
        query_ids = self.ids.queries
        if query_ids is not None and document_ids is not None:
            others = documents.shape[0] - document_ids.shape[0]
            query_ids, document_ids = numbered_ids(query_ids, document_ids, others)
        return simtile.info_nce(
            queries,
            documents,
            negatives,
            temperature=temperature,
            normalize=False,
            targets=targets,
            negatives_scope="own",
            query_ids=query_ids,
            document_ids=document_ids,
            reduction="none",
            backend=self._options.backend,  # type: ignore[arg-type]
            precision=self._options.precision,  # type: ignore[arg-type]
            threads=self._options.threads,
        )


def numbered_ids(query_ids: Tensor, document_ids: Tensor, others: int) -> tuple[Tensor, Tensor]:
    """The same pairs of equal ids in numbers from 0 to N, and `others` that equal no query's.

    A document that no query shares its id with gets N.
    """
    n = query_ids.shape[0]
    ordered = query_ids.sort().values
    place = torch.searchsorted(ordered, document_ids).clamp_max(n - 1)
    numbers = torch.where(ordered[place] == document_ids, place, n)
    nobody = numbers.new_full((others,), n)
    return torch.searchsorted(ordered, query_ids), torch.cat([numbers, nobody])


class _Reference:
    """The reference document of other ranks' blocks."""

    def __init__(self, queries: Tensor, positives: Tensor, temperature: Tensor) -> None:
        norms = torch.linalg.vector_norm(positives, dim=-1, dtype=torch.float64)
        largest = torch.where(norms.isfinite(), norms, 0.0).max()
        exponent = torch.frexp(largest).exponent.to(torch.float64)  # 0 for a norm of 0
        if queries.dtype == torch.float16:
            exponent = exponent.clamp(-14, 15)
        size = torch.exp2(exponent)
        parts = [slice(i, i + _ROWS) for i in range(0, queries.shape[0], _ROWS)]
        similarities = torch.cat(
            [(queries[part].double() * positives[part].double()).sum(1) for part in parts]
        )
        coordinates = (similarities / size).to(queries.dtype)  # b [N]
        self.queries = torch.cat([queries, coordinates[:, None]], dim=1)  # [N, D + 1]
        self._row = torch.zeros_like(self.queries[:1])
        self._row[0, -1] = size.to(queries.dtype)
        # ρ − s_t [N]
        self.offset = (coordinates.double() * size - similarities) / temperature

    def join(self, block: Tensor) -> Tensor:
        """[B, D] -> [B + 1, D + 1], the reference last."""
        return torch.cat([torch.nn.functional.pad(block, (0, 1)), self._row])


class _RingLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        block: Tensor,
        negatives: Tensor | None,
        temperature: Tensor,
        step: _Step,
    ) -> Tensor:
        tau = temperature.to(queries.device)
        ring = _Ring(step.layout)
        incoming = ring.blocks(block, step.ids.documents)
        _, ids = next(incoming)
        first = step.losses(queries, block, negatives, temperature, step.targets, ids)
        losses = [first.double()]
        logs = [_log_expm1(losses[0])]  # log Z_r
        reference = None
        for other, ids in incoming:
            if reference is None:
                reference = _Reference(queries, block[step.rows], tau)
            losses.append(_other(step, reference, other, ids, temperature).double())
            logs.append(_log_expm1(losses[-1]) + reference.offset)
        total = logs[0]
        for log in logs[1:]:
            total = torch.logaddexp(total, log)
        loss = torch.logaddexp(total, torch.zeros_like(total))
        ctx.step = step
        ctx.save_for_backward(
            queries, block, negatives, temperature, loss, torch.stack(losses), torch.stack(logs)
        )
        return loss.to(torch.promote_types(queries.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, block, negatives, temperature, loss, losses, logs = ctx.saved_tensors
        step: _Step = ctx.step
        need = ctx.needs_input_grad
        wide = torch.promote_types(queries.dtype, torch.float32)
        tau = temperature.to(queries.device)
        weight = grad.double()
        ring = _Ring(step.layout)
        incoming = ring.blocks(block, step.ids.documents)
        _, ids = next(incoming)
        grad_queries, home, grad_negatives, grad_tau = _gradients(
            step,
            (queries, block, negatives),
            temperature,
            step.targets,
            ids,
            weight * torch.exp(losses[0] - loss),
            need,
        )
        shares = weight * torch.exp(logs - loss)  # P_r, [ranks, N]
        returning = None
        reference = None
        for r, (other, ids) in enumerate(incoming, 1):
            if reference is None:
                reference = _Reference(queries, block[step.rows], tau)
            joined = reference.join(other)
            last = joined.new_full((queries.shape[0],), joined.shape[0] - 1, dtype=torch.int64)
            row_weights = weight * torch.exp(losses[r] + reference.offset - loss)
            to_queries, to_block, _, to_tau = _gradients(
                step, (reference.queries, joined, None), temperature, last, ids, row_weights, need
            )
            if to_queries is not None:
                grad_queries += to_queries[:, :-1]
            if to_tau is not None:
                correction = (shares[r] * reference.offset).sum() / tau
                grad_tau += to_tau - correction.to(to_tau.device)
            if to_block is not None:
                carried = to_block[:-1, :-1].contiguous()
                if returning is not None:
                    carried += ring.finish(returning)
                # What the rank before has just added up for the block that comes here next, or
                # for this rank's own.
                returning = ring.start_one(carried, ring.rank - 1 - r)
        if returning is not None:
            home += ring.finish(returning)
        if reference is not None:
            pull = -shares[1:].sum(0) / tau  # of the own document
            if need[0]:
                grad_queries += pull[:, None].to(wide) * block[step.rows]
            if need[1]:
                _add_rows(home, step.rows, pull[:, None].to(wide) * queries)
        return (
            None if grad_queries is None else grad_queries.to(queries.dtype),
            None if home is None else home.to(block.dtype),
            grad_negatives,
            grad_tau,
            None,
        )


def _log_expm1(x: Tensor) -> Tensor:
    """log(exp x − 1) of x ≥ 0 without overflow, and with all digits near 0."""
    return x + torch.log(-torch.expm1(-x))


def _other(
    step: _Step, reference: _Reference, block: Tensor, ids: Tensor | None, temperature: Tensor
) -> Tensor:
    joined = reference.join(block)
    n = reference.queries.shape[0]
    last = joined.new_full((n,), block.shape[0], dtype=torch.int64)
    return step.losses(reference.queries, joined, None, temperature, last, ids)


def _gradients(
    step: _Step,
    vectors: tuple[Tensor, Tensor, Tensor | None],
    temperature: Tensor,
    targets: Tensor,
    ids: Tensor | None,
    row_weights: Tensor,
    need: Sequence[bool],
) -> Any:
    """Of Σ_i row_weights[i] · losses[i]: of queries, documents, negatives and the temperature."""
    leaves = [
        x if x is None else x.detach().requires_grad_(needed)
        for x, needed in zip((*vectors, temperature), need, strict=False)
    ]
    with torch.enable_grad(), torch.autocast(vectors[0].device.type, enabled=False):
        losses = step.losses(*leaves, targets, ids)  # type: ignore[arg-type, call-arg]
        wanted = [x for x in leaves if x is not None and x.requires_grad]
        found = iter(torch.autograd.grad(losses, wanted, row_weights.to(losses.dtype)))
    grads = [next(found) if x is not None and x.requires_grad else None for x in leaves]
    # Sums over blocks are not rounded to 16 bits on the way.
    wide = torch.promote_types(vectors[0].dtype, torch.float32)
    return *(None if x is None else x.to(wide) for x in grads[:3]), grads[3]


def _add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """total[rows] += values, rows being repeated; the same bits every time."""
    if total.device.type == "cpu":
        total.index_add_(0, rows, values)
    else:  # where index_add_ uses atomics, and this sorts
        total.index_put_((rows,), values, accumulate=True)


class _Ring:
    """This rank's neighbours: what is sent goes to the next rank."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        group = layout.group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        everyone = dist.get_process_group_ranks(group or dist.group.WORLD)
        self._next = everyone[(self.rank + 1) % self.ranks]
        self._previous = everyone[(self.rank - 1) % self.ranks]

    def blocks(self, block: Tensor, ids: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """This rank's block, then that of the rank before it, and so on; one ahead on its way."""
        block = block.contiguous()
        for step in range(self.ranks):
            owner = (self.rank - step - 1) % self.ranks
            started = None
            if step < self.ranks - 1:
                coming = block.new_empty(self._layout.candidates[owner], block.shape[1])
                coming_ids = None
                pairs = [(block, coming)]
                if ids is not None:
                    coming_ids = ids.new_empty(self._layout.documents[owner])
                    pairs.append((ids.contiguous(), coming_ids))
                started = self._start(pairs, 0)
            yield block, ids
            if started is not None:
                for work in started:
                    work.wait()
                block, ids = coming, coming_ids

    def start_one(self, sent: Tensor, owner: int) -> tuple[Any, Tensor, Tensor]:
        """Send a block's gradients on, and begin to receive those of `owner`'s block."""
        rows = self._layout.candidates[owner % self.ranks]
        coming = sent.new_empty(rows, sent.shape[1])
        return self._start([(sent, coming)], 2), sent, coming

    def finish(self, started: tuple[Any, Tensor, Tensor]) -> Tensor:
        works, _, coming = started
        for work in works:
            work.wait()
        return coming

    def _start(self, pairs: Sequence[tuple[Tensor, Tensor]], tag: int) -> Any:
        group = self._layout.group
        operations = []
        for i, (sent, coming) in enumerate(pairs):
            for call, tensor, peer in (
                (dist.isend, sent, self._next),
                (dist.irecv, coming, self._previous),
            ):
                operations.append(dist.P2POp(call, tensor, peer, group, tag + i))
        return dist.batch_isend_irecv(operations)
