"""InfoNCE as torch operators, and the shorter way that plain eager calls take.

`simtile::info_nce` computes the loss and, for "mean" and "sum", the gradients with it; its backward
only scales them. For "none" the weights of the rows are not known before the backward, which then
calls `simtile::info_nce_backward`. Compilers, fake tensors and dispatch modes see these operators.
An eager call on plain tensors reaches the same functions through an `autograd.Function` instead:
the dispatcher's way through Python costs about 90 µs more, twice the kernel at N=64, D=384.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simtile import _inputs, _pairwise
from simtile._contrast import Contrast, check_guide_shapes, check_widths
from simtile._statistics import ContrastiveStatistics, Tally
from simtile.info_nce import reduce_losses, run
from simtile.ops._backends import check_available, choose
from simtile.ops._tensors import (
    DTYPE_NAMES,
    are_plain,
    as_integers,
    check_devices,
    check_floats,
    check_one_number,
)

_TENSORS = (
    "Tensor queries, Tensor documents, Tensor? negatives, Tensor temperature, "
    "Tensor? targets, Tensor? query_ids, Tensor? document_ids, "
    "Tensor? guide_queries, Tensor? guide_documents, Tensor? guide_negatives"
)
# contrast: simtile._contrast.Contrast as numbers. dtype: what the inputs are converted to.
# need_grad: of queries, documents, negatives and temperature; the implementation cannot read it off
# them, under no_grad they require it as well.
_OPTIONS = (
    "bool normalize, float[] contrast, ScalarType dtype, bool[] need_grad, "
    "str backend, str precision, int threads"
)
# Of the inputs' shapes, in float32 or float64; one that is not needed has no elements.
_GRADIENTS = (
    "Tensor grad_queries, Tensor grad_documents, Tensor grad_negatives, Tensor grad_temperature"
)
_library = torch.library.Library("simtile", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    f"info_nce({_TENSORS}, {_OPTIONS}, str reduction, bool statistics)"
    f" -> (Tensor loss, {_GRADIENTS}, Tensor tally)",
    f"info_nce_backward(Tensor grad_losses, {_TENSORS}, {_OPTIONS}) -> ({_GRADIENTS})",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]

_NO_GRAD = (False, False, False, False)

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Outputs(NamedTuple):
    """What a run gives, with None for what is not needed."""

    losses: npt.NDArray[np.float64] | Tensor
    grads: Gradients
    tally: Tensor | None  # float64 [7]: what ContrastiveStatistics adds up


def info_nce_tensors(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    targets: Tensor | Sequence[int] | None,
    query_ids: Tensor | Sequence[int] | None,
    document_ids: Tensor | Sequence[int] | None,
    guide: Sequence[Tensor],
    normalize: bool,
    contrast: Contrast,
    reduction: str,
    statistics: ContrastiveStatistics | None,
    backend: str,
    precision: str,
    threads: int,
) -> Tensor:
    """Check the tensors of `simtile.info_nce` and run it."""
    dtype = check_floats("queries", queries)
    dtypes = [dtype, check_floats("documents", documents)]
    if negatives is not None:
        dtypes.append(check_floats("negatives", negatives))
    dtypes += [check_floats("guide", x) for x in guide]
    if targets is not None:
        targets = as_integers("targets", targets)
    if query_ids is not None:
        query_ids = as_integers("query_ids", query_ids)
    if document_ids is not None:
        document_ids = as_integers("document_ids", document_ids)
    _inputs.check_shapes(
        queries.shape,
        documents.shape,
        None if negatives is None else negatives.shape,
        None if targets is None else targets.shape,
        None if query_ids is None else query_ids.shape,
        None if document_ids is None else document_ids.shape,
    )
    check_guide_shapes(
        guide, queries.shape, documents.shape, None if negatives is None else negatives.shape
    )
    check_widths(contrast, queries.shape[1])
    if isinstance(temperature, Tensor):
        check_one_number("temperature", temperature)
    else:
        temperature = _inputs.check_temperature(temperature)
    check_devices(
        queries,
        {"documents": documents, "negatives": negatives},
        {
            "temperature": temperature,
            "targets": targets,
            "query_ids": query_ids,
            "document_ids": document_ids,
        },
    )
    for x in guide:
        check_devices(queries, {"guide": x}, {})
    device_type = queries.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        lower = torch.get_autocast_dtype(device_type)
        dtypes = [dtype if dtype == torch.float64 else lower for dtype in dtypes]
        dtype = dtypes[0]
    for other in dtypes:
        if other != dtype:
            dtype = torch.promote_types(dtype, other)
    if backend == "cuda" and not (contrast.is_plain() and not guide and statistics is None):
        raise ValueError(
            "backend: found 'cuda' with options that its kernel does not have (directions other "
            "than query_to_doc, hardness, guide, false_negative_margin, negatives_scope 'queries' "
            "or statistics), expected 'triton' (or 'auto')"
        )
    backend = choose(backend, "queries", queries, dtype)
    need_grad = _NO_GRAD
    if torch.is_grad_enabled():
        need_grad = (
            queries.requires_grad,
            documents.requires_grad,
            negatives is not None and negatives.requires_grad,
            isinstance(temperature, Tensor) and temperature.requires_grad,
        )
    # in the order of the operator's arguments, of which the first four are differentiable
    others: tuple[Any, ...] = (
        targets,
        query_ids,
        document_ids,
        *guide,
        *[None] * (3 - len(guide)),
        normalize,
        contrast.numbers(),
        dtype,
        need_grad,
        backend,
        precision,
        threads,
        reduction,
        statistics is not None,
    )
    if not torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "simtile.info_nce: torch.func transforms (vmap, grad, jacrev, ...) are not "
                "supported; call it outside of them and use backward or torch.autograd.grad"
            )
        plain = are_plain(
            queries, documents, negatives, temperature, targets, query_ids, document_ids, *guide
        )
        if plain and not queries.is_meta:
            if True in need_grad:
                return _EagerInfoNCE.apply(  # type: ignore[no-any-return,no-untyped-call]
                    queries, documents, negatives, temperature, others, statistics
                )
            loss, _, tally = _forward(queries, documents, negatives, temperature, *others)
            if statistics is not None:
                statistics.add(tally)
            return loss
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(temperature, dtype=torch.float64, device="cpu")
    loss, *_, tally = torch.ops.simtile.info_nce.default(
        queries, documents, negatives, temperature, *others
    )
    if statistics is not None:
        statistics.add(tally)
    return loss  # type: ignore[no-any-return]


def check_bias(bias: object) -> None:
    """Raise unless `bias` is a finite number, or a tensor of one, whose value is not read."""
    if isinstance(bias, Tensor):
        check_one_number("bias", bias)
    else:
        _pairwise.check_number("bias", bias)


def with_bias(loss: Tensor, bias: float | Tensor) -> Tensor:
    """The loss, of which the bias has a gradient of exactly 0: softmax does not notice it."""
    if not (isinstance(bias, Tensor) and bias.requires_grad and torch.is_grad_enabled()):
        return loss
    nowhere = torch.zeros_like(bias, dtype=torch.bool)
    return loss + torch.where(nowhere, bias, 0.0).reshape(()).to(loss)


def _forward(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    targets: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    guide_queries: Tensor | None,
    guide_documents: Tensor | None,
    guide_negatives: Tensor | None,
    normalize: bool,
    contrast: Sequence[float],
    dtype: torch.dtype,
    need_grad: Sequence[bool],
    backend: str,
    precision: str,
    threads: int,
    reduction: str,
    statistics: bool,
) -> tuple[Tensor, Gradients, Tensor | None]:
    """simtile::info_nce, with None for what is not needed."""
    losses, grads, tally = _run(
        queries,
        documents,
        negatives,
        temperature,
        targets,
        query_ids,
        document_ids,
        guide_queries,
        guide_documents,
        guide_negatives,
        normalize,
        contrast,
        dtype,
        _NO_GRAD if reduction == "none" else need_grad,
        backend,
        precision,
        threads,
        1.0 / queries.shape[0] if reduction == "mean" else 1.0,
        None,
        statistics,
    )
    if isinstance(losses, Tensor):
        if reduction == "none":
            return losses, grads, tally
        total = losses.sum(dtype=torch.float64)
        return (total / losses.shape[0] if reduction == "mean" else total).float(), grads, tally
    if reduction != "none":
        losses = np.asarray(reduce_losses(losses, reduction))
    loss = losses.astype(np.float64 if dtype == torch.float64 else np.float32, copy=False)
    return torch.from_numpy(loss), grads, tally


def _backward(grad_losses: Tensor, *arguments: Any) -> Gradients:
    """simtile::info_nce_backward, with None for gradients that are not needed."""
    return _run(*arguments, 1.0, grad_losses, False).grads  # type: ignore[call-arg]


def _run(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    targets: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    guide_queries: Tensor | None,
    guide_documents: Tensor | None,
    guide_negatives: Tensor | None,
    normalize: bool,
    contrast: Sequence[float],
    dtype: torch.dtype,
    need_grad: Sequence[bool],
    backend: str,
    precision: str,
    threads: int,
    weight: float,
    row_weights: Tensor | None,
    statistics: bool,
) -> Outputs:
    """The losses [N], and the gradients of Σ_i weight · row_weights[i] · losses[i]."""
    guides = (guide_queries, guide_documents, guide_negatives)
    if backend in ("triton", "cuda"):
        options = Contrast.from_numbers(contrast)

        def run_prefixes(width: int, share: float, one: Contrast) -> Outputs:
            return _run_on_gpu(
                queries[:, :width],
                documents[:, :width],
                None if negatives is None else negatives[..., :width],
                temperature,
                targets,
                query_ids,
                document_ids,
                [x for x in guides if x is not None],
                normalize,
                one,
                dtype,
                need_grad,
                backend,
                precision,
                share * weight,
                row_weights,
                # with Matryoshka of the widest
                statistics and (not options.widths or width == options.widths[-1]),
            )

        if options.widths:
            return _sum_of_widths(run_prefixes, options, queries.shape[1])
        return run_prefixes(queries.shape[1], 1.0, options)
    tau = temperature.item() if isinstance(temperature, Tensor) else temperature
    result = run(
        _floats(queries, dtype),
        _floats(documents, dtype),
        None if negatives is None else _floats(negatives, dtype),
        DTYPE_NAMES[dtype],
        _inputs.check_temperature(tau),
        normalize,
        None if targets is None else _inputs.int_array("targets", targets),
        None if query_ids is None else _inputs.int_array("query_ids", query_ids),
        None if document_ids is None else _inputs.int_array("document_ids", document_ids),
        [_floats(x, dtype) for x in guides if x is not None],
        Contrast.from_numbers(contrast),
        weight,
        None
        if row_weights is None
        else np.ascontiguousarray(row_weights.numpy(force=True), np.float64),
        need_grad,
        statistics,
        backend,
        threads,
    )
    grad_temperature = None
    if need_grad[3] and isinstance(temperature, Tensor):
        number = np.full(tuple(temperature.shape), result.grad_temperature)
        grad_temperature = torch.from_numpy(number)
    arrays = (result.grad_queries, result.grad_documents, result.grad_negatives)
    first, second, third = (None if x is None else torch.from_numpy(x) for x in arrays)
    return Outputs(
        result.losses,
        (first, second, third, grad_temperature),
        torch.from_numpy(result.tally) if statistics else None,
    )


def _sum_of_widths(
    run_prefixes: Callable[[int, float, Contrast], Outputs], contrast: Contrast, dimensions: int
) -> Outputs:
    """The results of a run for each width, added up in the memory of the whole vectors."""
    total: Tensor | None = None
    sums: list[Tensor | None] = [None] * 4
    for width, share, one in contrast.apart():
        losses, grads, tally = run_prefixes(width, share, one)
        assert isinstance(losses, Tensor)
        total = share * losses if total is None else total + share * losses
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            if i < 3:
                grad = torch.nn.functional.pad(grad, (0, dimensions - width))
            before = sums[i]
            sums[i] = grad if before is None else before + grad
    assert total is not None
    return Outputs(total, (sums[0], sums[1], sums[2], sums[3]), tally)


def _run_on_gpu(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    targets: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    guide: Sequence[Tensor],
    normalize: bool,
    contrast: Contrast,
    dtype: torch.dtype,
    need_grad: Sequence[bool],
    backend: str,
    precision: str,
    weight: float,
    row_weights: Tensor | None,
    statistics: bool,
) -> Outputs:
    options: dict[str, Any] = {
        "dtype": dtype,
        "temperature": temperature,
        "normalize": normalize,
        "targets": targets,
        "query_ids": query_ids,
        "document_ids": document_ids,
    }
    is_plain = contrast.is_plain() and not guide and not statistics
    if is_plain:
        options["own_negatives"] = contrast.own_negatives
    else:
        options.update(contrast=contrast, guide=guide, statistics=statistics)
    check_available(backend)  # of a compiled call nobody has asked
    if backend == "cuda":
        if any(need_grad):
            raise RuntimeError(
                "backend: 'cuda' computes losses without gradients; use 'triton' (or 'auto'), or "
                "call it under torch.no_grad()"
            )
        from simtile.ops import info_nce_cuda

        losses = info_nce_cuda.info_nce_losses(queries, documents, negatives, **options)
        return Outputs(losses, (None, None, None, None), None)
    from simtile.ops import info_nce_triton, info_nce_triton_contrast

    run_on_triton = info_nce_triton.run if is_plain else info_nce_triton_contrast.run
    result = run_on_triton(
        queries,
        documents,
        negatives,
        **options,
        precision=precision,
        need_grad=need_grad,
        weight=weight,
        row_weights=row_weights,
    )
    grad_temperature = None
    if result.grad_temperature is not None and isinstance(temperature, Tensor):
        number = result.grad_temperature.reshape(temperature.shape)
        grad_temperature = number.to(temperature.device)
    grads = (result.grad_queries, result.grad_documents, result.grad_negatives)
    return Outputs(result.losses, (*grads, grad_temperature), result.tally)


def _floats(tensor: Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    """The elements as an array of the dtype; of bfloat16, which NumPy lacks, the bits."""
    if tensor.dtype != dtype:
        tensor = tensor.detach().to(dtype)
    if dtype == torch.bfloat16:
        tensor = tensor.detach().view(torch.uint16)
    array: npt.NDArray[Any] = tensor.numpy(force=True)
    return array


def _save(
    ctx: Any, inputs: Sequence[Any], others: Sequence[Any], grads: Sequence[Tensor | None]
) -> None:
    """Keep what the backward needs: the gradients, or for "none" the inputs."""
    if others[13] != "none":
        ctx.options = None
        ctx.save_for_backward(*grads)
    else:
        *tensors, temperature = inputs
        is_tensor = isinstance(temperature, Tensor)
        ctx.save_for_backward(*tensors, temperature if is_tensor else None, *others[:6])
        ctx.temperature = None if is_tensor else temperature
        ctx.options = others[6:13]


def _check_differentiated_once() -> None:
    if torch.is_grad_enabled():  # during a backward: create_graph=True
        raise RuntimeError(
            "simtile.info_nce: its gradient cannot be differentiated again; "
            "call backward or torch.autograd.grad without create_graph=True"
        )


class _EagerInfoNCE(torch.autograd.Function):
    """simtile::info_nce without the dispatcher."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        negatives: Tensor | None,
        temperature: float | Tensor,
        others: tuple[Any, ...],
        statistics: ContrastiveStatistics | None,
    ) -> Tensor:
        loss, grads, tally = _forward(queries, documents, negatives, temperature, *others)
        if statistics is not None:
            statistics.add(tally)
        inputs = (queries, documents, negatives, temperature)
        _save(ctx, inputs, others, grads)
        ctx.dtypes = [x.dtype if isinstance(x, Tensor) else None for x in inputs]
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # autograd itself converts what is returned to the element types of the inputs
        _check_differentiated_once()
        grads = ctx.saved_tensors
        if ctx.options is not None:
            inputs = list(grads)
            inputs[3] = ctx.temperature if inputs[3] is None else inputs[3]
            grads = _backward(grad_loss, *inputs, *ctx.options)
        # The saved tensors themselves are handed out where nobody can need them again: it saves a
        # pass over memory, and its allocation.
        # On a GPU nobody waits to read what they are multiplied by.
        elif (
            grad_loss.is_cuda
            or _graph_is_kept()
            or torch.compiler.is_compiling()
            or grad_loss.item() != 1.0
        ):
            # At once in the inputs' types: products in float32, of all gradients before autograd
            # converts the first, are the most memory that a step would need.
            grads = [
                None if grad is None else _scaled(grad, grad_loss, dtype)
                for grad, dtype in zip(grads, ctx.dtypes, strict=True)
            ]
        return *grads, None, None


def _scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """grad * factor, rounded once to `dtype`."""
    factor = factor.to(grad.device)  # a temperature may be on the CPU beside a GPU
    if torch.compiler.is_compiling():
        return (grad * factor).to(dtype)
    return torch.mul(grad, factor, out=torch.empty_like(grad, dtype=dtype))


# Whether the running backward leaves the graph usable for another one (retain_graph=True).
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _info_nce_op(*arguments: Any) -> tuple[Tensor, ...]:
    loss, grads, tally = _forward(*arguments)
    return loss, *_without_none((*grads, tally), loss)


def _info_nce_backward_op(*arguments: Any) -> tuple[Tensor, ...]:
    grad_losses, *rest = arguments
    return _without_none(_backward(grad_losses, *rest), grad_losses)


def _info_nce_fake(*arguments: Any) -> tuple[Tensor, ...]:
    queries, dtype, need_grad, reduction, statistics = (arguments[i] for i in (0, 12, 13, 17, 18))
    shape = queries.shape[:1] if reduction == "none" else ()
    loss = queries.new_empty(shape, dtype=_accumulator(dtype))
    tally = queries.new_empty(len(Tally._fields), dtype=torch.float64)
    grads = _empty_gradients(arguments[:4], dtype, _NO_GRAD if reduction == "none" else need_grad)
    return loss, *grads, tally if statistics else queries.new_empty(0, dtype=torch.float32)


def _info_nce_backward_fake(grad_losses: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _empty_gradients(arguments[:4], arguments[12], arguments[13])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *grads, tally = output
    _save(ctx, inputs[:4], inputs[4:], grads)
    ctx.need_grad = inputs[13]
    ctx.mark_non_differentiable(*grads, tally)


def _dispatched_backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    _check_differentiated_once()
    if ctx.options is None:
        grads = [grad * grad_loss.to(grad.device) for grad in ctx.saved_tensors]
    else:
        grads = torch.ops.simtile.info_nce_backward.default(
            grad_loss, *ctx.saved_tensors, *ctx.options
        )
    needed = (grad if need else None for grad, need in zip(grads, ctx.need_grad, strict=True))
    return *needed, *[None] * 15


def _without_none(grads: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0, dtype=torch.float32) if grad is None else grad for grad in grads)


def _empty_gradients(
    inputs: Sequence[Tensor | None], dtype: torch.dtype, need_grad: Sequence[bool]
) -> tuple[Tensor, ...]:
    queries = inputs[0]
    assert queries is not None
    dtypes = (*[_accumulator(dtype)] * 3, torch.float64)
    return tuple(
        x.new_empty(x.shape, dtype=grad_dtype)
        if needed and x is not None
        else queries.new_empty(0, dtype=torch.float32)
        for x, grad_dtype, needed in zip(inputs, dtypes, need_grad, strict=True)
    )


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


for _name, _implementation in (
    ("info_nce", _info_nce_op),
    ("info_nce_backward", _info_nce_backward_op),
):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _implementation, _key)  # type: ignore[no-untyped-call]
torch.library.register_fake("simtile::info_nce", _info_nce_fake, lib=_library)
torch.library.register_fake("simtile::info_nce_backward", _info_nce_backward_fake, lib=_library)
torch.library.register_autograd(
    "simtile::info_nce", _dispatched_backward, setup_context=_setup_context, lib=_library
)
