"""Batches larger than an encoder's memory: `simtile.nn.CachedLoss`.

The method is GradCache, Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup", 2021, arXiv:2101.06983. The embeddings of the whole batch come out of
one `autograd.Function`: its forward encodes micro-batch by micro-batch without a graph, the loss
is an ordinary graph behind it, and its backward, given the gradients of the embeddings, encodes
each micro-batch again, with the same random numbers and with a graph, and goes back through it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simtile._micro_batches import (
    AutocastState,
    RandomState,
    count_rows,
    cut,
    devices_in_use,
    module_of,
    tensors_of,
)

Encoder = Callable[[Any], Any]


class CachedLoss(torch.nn.Module):
    r"""A loss over a batch whose encoding does not fit into memory at once.

    Encodes in micro-batches without a graph, computes the loss of the whole batch, and in the
    backward encodes each micro-batch a second time (GradCache, Gao et al. 2021, arXiv:2101.06983).
    Loss and gradients are those of the whole batch at once. Memory is that of one micro-batch's
    activations, the embeddings and their gradients; time is one more forward pass of the encoder.

    Parameters
    ----------
    encoder : callable or sequence of callables
        Takes one batch and returns embeddings [rows, D], or a dict with "sentence_embedding"; a
        batch is a tensor [rows, ...], a dict of them, an EmbeddingBag's flat ``input_ids`` and
        ``offsets``, or a list, of strings for example. One for all inputs, or one for each; the
        last of a sequence serves the inputs that remain.

        A ``torch.nn.Module``, or a method of one, receives its gradients once a backward, as
        without caching, so DistributedDataParallel around it, accelerate and hooks on parameters
        keep working. The parameters behind any other callable are not known: a micro-batch's
        gradients are accumulated in their ``.grad``, one after the other.
    loss : callable, optional
        Takes the embeddings of all inputs and returns one number; ``simtile.nn.InfoNCE()`` if not
        given. Its parameters, a learnable temperature for example, are trained as ever.
    mini_batch_size : int
        Rows that are encoded at once.
    show_progress_bar : bool
        One bar for either pass over the batch; needs tqdm.

    Raises
    ------
    TypeError, ValueError
        An argument or input of a wrong kind; inputs that require a gradient, which would be lost;
        embeddings whose rows are not the input's.
    ModuleNotFoundError
        A progress bar without tqdm.

    Notes
    -----
    Dropout draws the same masks in both passes, and an input that is passed twice draws two, as
    SimCSE wants: the random state of torch on the CPU and the devices in use is restored for each
    micro-batch. Random numbers from elsewhere (``random``, NumPy) are not; an encoder that uses
    them gets wrong gradients. Batch normalisation sees micro-batches, and each of them twice.

    Without gradients (``torch.no_grad()``) it is the loss alone. The backward can be run once
    unless ``retain_graph=True``, and cannot be differentiated again. Reentrant activation
    checkpointing inside an encoder is refused by torch; use ``use_reentrant=False``.

    Examples
    --------
    >>> import torch, simtile
    >>> encoder = torch.nn.Linear(8, 4)
    >>> queries, documents = torch.randn(100, 8), torch.randn(100, 8)
    >>> loss_fn = simtile.nn.CachedLoss(encoder, simtile.nn.InfoNCE(0.05), mini_batch_size=16)
    >>> loss_fn(queries, documents).backward()  # all 100 are each other's negatives
    >>> encoder.weight.grad.shape
    torch.Size([4, 8])
    """

    def __init__(
        self,
        encoder: Encoder | Sequence[Encoder],
        loss: Callable[..., Tensor] | None = None,
        *,
        mini_batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(mini_batch_size, bool) or not isinstance(mini_batch_size, int):
            raise TypeError(f"mini_batch_size: found {mini_batch_size!r}, expected an int")
        if mini_batch_size < 1:
            raise ValueError(f"mini_batch_size: found {mini_batch_size}, expected at least 1")
        if loss is None:
            from simtile.nn import InfoNCE

            loss = InfoNCE()
        encoders = (encoder,) if callable(encoder) else tuple(encoder)
        for name, function in (*(("encoder", x) for x in encoders or (None,)), ("loss", loss)):
            if not callable(function):
                raise TypeError(f"{name}: found {function!r}, expected a callable")
        self.mini_batch_size = mini_batch_size
        self.show_progress_bar = show_progress_bar
        if show_progress_bar:
            _tqdm()
        self.loss = loss
        self._encoders = encoders
        # Registered for parameters(), train() and to(); called through the tuple.
        modules = {id(x): x for x in map(module_of, encoders) if x is not None}
        self.encoders = torch.nn.ModuleList(modules.values())

    def forward(self, *inputs: Any, **loss_arguments: Any) -> Tensor:
        """The loss of a batch.

        Parameters
        ----------
        *inputs
            Batches for the encoders; their embeddings are the loss's positional arguments. If the
            loss's third parameter is called ``negatives``, the third input has K rows for every
            row of the first, those of one query one after the other, and is passed as [N, K, D];
            or every further input is one column of negatives, with a row for every query.
        **loss_arguments
            What else the loss takes: ``query_ids=``, ``targets=``, …

        Returns
        -------
        Tensor, scalar
        """
        if len(inputs) < max(1, len(self._encoders)):
            raise ValueError(
                f"inputs: found {len(inputs)}, expected at least {max(1, len(self._encoders))}, "
                "one for each encoder"
            )
        jobs = []
        for i, batch in enumerate(inputs):
            encoder = self._encoders[min(i, len(self._encoders) - 1)]
            jobs.append(_Job(f"inputs[{i}]", encoder, batch))
        embeddings = _embed(jobs, self.mini_batch_size, self.show_progress_bar)
        loss = self.loss(*self._arranged(embeddings), **loss_arguments)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(
                f'loss: found {found}, expected one number; reduction="none" is not supported'
            )
        return loss

    def extra_repr(self) -> str:
        return f"mini_batch_size={self.mini_batch_size}"

    def _arranged(self, embeddings: Sequence[Tensor]) -> Sequence[Tensor]:
        """The embeddings as the loss takes them: [N, D], [M, D] and [N, K, D]."""
        if len(embeddings) < 3 or not _takes_negatives(self.loss):
            return embeddings
        queries, documents, *columns = embeddings
        n = queries.shape[0]
        for i, column in enumerate(columns):
            rows = column.shape[0]
            if n == 0 or rows % n or (len(columns) > 1 and rows != n):
                expected = f"{n}" if len(columns) > 1 else f"a multiple of {n}"
                raise ValueError(
                    f"inputs[{i + 2}]: found {rows} rows of negatives for {n} queries, expected "
                    f"{expected}"
                )
        if len(columns) > 1:
            negatives = torch.stack(columns, dim=1)
        else:
            negatives = columns[0].reshape(n, -1, columns[0].shape[-1])
        return queries, documents, negatives


def _takes_negatives(loss: Callable[..., Tensor]) -> bool:
    function = loss.forward if isinstance(loss, torch.nn.Module) else loss
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # not every callable of C says
        return False
    return names[2:3] == ["negatives"]


class _Job:
    """One input and its encoder."""

    def __init__(self, name: str, encoder: Encoder, batch: Any) -> None:
        self.name = name
        self.encoder = encoder
        self.batch = batch
        self.rows = count_rows(name, batch)
        if self.rows == 0:
            raise ValueError(f"{name}: found no rows, expected at least one")
        module = module_of(encoder)
        self.known = module is not None
        self.parameters = [] if module is None else list(module.parameters())
        self.trained = [p for p in self.parameters if p.requires_grad]
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors_of(batch)):
            raise ValueError(
                f"{name}: found a tensor that requires a gradient, which would be lost; detach it, "
                "or make what computed it part of the encoder"
            )

    @property
    def replayed(self) -> bool:
        """Whether there may be something to train."""
        return bool(self.trained) or not self.known


class _Part(NamedTuple):
    """A micro-batch."""

    job: int
    begin: int
    end: int
    state: RandomState | None  # when it was encoded; None if it will not be again


class _Replay(NamedTuple):
    """What a second pass needs to know of the first."""

    jobs: Sequence[_Job]
    parts: Sequence[_Part]
    autocast: AutocastState
    trained: Sequence[Tensor]
    show_progress_bar: bool


def _embed(jobs: Sequence[_Job], mini_batch_size: int, show_progress_bar: bool) -> list[Tensor]:
    """The embeddings of every job, differentiable by encoding them again."""
    known = [x for job in jobs for x in (*job.parameters, *tensors_of(job.batch))]
    devices = devices_in_use(known, unknown=not all(job.known for job in jobs))
    autocast = AutocastState(devices)
    keep = torch.is_grad_enabled()
    spans = [
        (i, begin, min(begin + mini_batch_size, job.rows))
        for i, job in enumerate(jobs)
        for begin in range(0, job.rows, mini_batch_size)
    ]
    parts: list[_Part] = []
    pieces: list[list[Tensor]] = [[] for _ in jobs]
    with torch.no_grad():
        for i, begin, end in _progress(spans, "Embedding", show_progress_bar):
            job = jobs[i]
            state = RandomState(devices) if keep and job.replayed else None
            parts.append(_Part(i, begin, end, state))
            with autocast.restored():
                pieces[i].append(_encode(job, begin, end))
    embeddings = [torch.cat(x) for x in pieces]
    if not keep or not any(job.replayed for job in jobs):
        return embeddings
    trained = list({id(p): p for job in jobs for p in job.trained}.values())
    # Parameters that nobody told us of make the embeddings differentiable too.
    leaf = None if all(job.known for job in jobs) else torch.zeros((), requires_grad=True)
    replay = _Replay(jobs, parts, autocast, trained, show_progress_bar)
    return list(_Embeddings.apply(replay, embeddings, leaf, *trained))  # type: ignore[no-untyped-call]


def _encode(job: _Job, begin: int, end: int) -> Tensor:
    output = job.encoder(cut(job.batch, begin, end))
    if isinstance(output, Mapping):
        if "sentence_embedding" not in output:
            raise ValueError(
                f"{job.name}: found a dict of {sorted(output)} from the encoder, expected "
                "'sentence_embedding' in it, or a tensor"
            )
        output = output["sentence_embedding"]
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{job.name}: found {type(output).__name__} from the encoder, expected a tensor or a "
            "dict with 'sentence_embedding'"
        )
    if output.ndim < 2 or output.shape[0] != end - begin or not output.is_floating_point():
        raise ValueError(
            f"{job.name}: found {output.dtype} {list(output.shape)} from the encoder for "
            f"{end - begin} rows, expected floats [{end - begin}, D]"
        )
    return output


class _Embeddings(torch.autograd.Function):
    """The embeddings that were computed without a graph; the backward computes them again."""

    @staticmethod
    def forward(
        ctx: Any, replay: _Replay, embeddings: Sequence[Tensor], leaf: Tensor | None, *_: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.replay = replay
        ctx.set_materialize_grads(False)
        # Nothing that can be large is kept, but torch refuses a second backward by what was saved.
        ctx.save_for_backward(embeddings[0].new_empty(0))
        frozen = (x for x, job in zip(embeddings, replay.jobs, strict=True) if not job.replayed)
        ctx.mark_non_differentiable(*frozen)  # so that the loss need not compute its gradient
        return tuple(embeddings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        replay: _Replay = ctx.replay
        totals = _Totals(replay.trained)
        parts = [p for p in replay.parts if p.state is not None and grads[p.job] is not None]
        last = {id(replay.jobs[part.job].encoder): k for k, part in enumerate(parts)}
        for k, part in enumerate(_progress(parts, "Backward", replay.show_progress_bar)):
            job, grad = replay.jobs[part.job], grads[part.job]
            assert part.state is not None
            assert grad is not None
            synchronised = last[id(job.encoder)] == k
            with part.state.restored(), torch.enable_grad(), _gradients_wait(job, synchronised):
                with replay.autocast.restored():
                    embeddings = _encode(job, part.begin, part.end)
                if not embeddings.requires_grad:
                    continue
                grad = grad[part.begin : part.end]
                if job.known:
                    totals.add(
                        job.trained,
                        torch.autograd.grad(embeddings, job.trained, grad, allow_unused=True),
                    )
                else:
                    torch.autograd.backward(embeddings, grad)
        return None, None, None, *totals.grads


class _Totals:
    """Sums of gradients over micro-batches. The first is autograd's own and is not written to."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._index = {id(p): i for i, p in enumerate(parameters)}
        self._own = [False] * len(parameters)
        self.grads: list[Tensor | None] = [None] * len(parameters)

    def add(self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is None:
                continue
            i = self._index[id(parameter)]
            total = self.grads[i]
            if total is None:
                self.grads[i] = grad
            elif self._own[i] and not total.is_sparse:
                total.add_(grad)
            else:
                self.grads[i] = grad + total if total.is_sparse else total + grad
                self._own[i] = True


def _gradients_wait(job: _Job, synchronised: bool) -> AbstractContextManager[None]:
    """Gradients leave a DistributedDataParallel encoder once, after its last micro-batch."""
    module = module_of(job.encoder)
    if synchronised or not isinstance(module, torch.nn.parallel.DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def _progress(values: Sequence[Any], what: str, show: bool) -> Iterable[Any]:
    return _tqdm()(values, desc=what, unit="micro-batch") if show else values


def _tqdm() -> Callable[..., Iterator[Any]]:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "show_progress_bar: found True, but tqdm is not installed: pip install tqdm, or "
            "show_progress_bar=False",
            name="tqdm",
        ) from None
    return tqdm  # type: ignore[no-any-return]
