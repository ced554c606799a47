"""From the arguments of `simtile.maxsim` and its siblings to the functions that run them."""

from __future__ import annotations

from typing import Any

import numpy as np

from simtile import _allow, _inputs, _maxsim_codes, _maxsim_run, _maxsim_select, _tensors
from simtile._maxsim_codes import Coded
from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Found, Options


def each_its_own(left: Given, right: Given) -> Any:
    """int64 [B, 1] where the inputs are; on a GPU it is made there, which nothing waits for."""
    if not (left.of_tensors or right.of_tensors):
        return np.arange(left.batch, dtype=np.int64)[:, None]
    import torch

    side = left if left.of_tensors else right
    return torch.arange(side.batch, device=side.device)[:, None]


def search(
    left: Given,
    right: Given | Coded,
    candidates: Any,
    options: Options,
    allowed: Any,
    k: int,
    backend: str,
    threads: int | None,
) -> tuple[Any, Any]:
    """The k best: on the CPU and by CUDA without scores of all, which else are sorted.

    They are where codes on the CPU, float64, Triton or the definition in lists score.
    """
    of_arrays = not (left.of_tensors or right.of_tensors)
    if (
        isinstance(right, Given)
        and backend in ("auto", "cpu")
        and (of_arrays or _are_read_in_place(left.x, right.x))
    ):
        arrays = _maxsim_run.search(
            left,
            right,
            None if candidates is None else _tensors.as_array(candidates),
            options,
            allowed,
            k,
            _inputs.check_threads(threads),
        )
        if arrays is not None and of_arrays:
            return arrays
        if arrays is not None:
            return _tensors.as_tensor(arrays[0], "cpu"), _tensors.as_tensor(arrays[1], "cpu")
    best = None
    if isinstance(right, Coded):
        best = _maxsim_codes.search(left, right, candidates, options, allowed, k, backend)
    elif not of_arrays:
        from simtile.ops.maxsim_topk import search_tensors

        best = search_tensors(left, right, candidates, options, allowed, k, backend)
    if best is not None:
        return best
    found = run(left, right, candidates, options, False, False, backend, threads, grad=False)
    return _maxsim_select.best(found.scores, candidates, allowed, k)


def allowed_documents(allow: Any, left: Given, right: Given | Coded) -> Any:
    """`allow` as a mask: one on the GPU where documents are stays there, without a wait."""
    if right.of_tensors and right.x.is_cuda and _tensors.is_tensor(allow):
        is_mask = tuple(allow.shape) in ((right.batch,), (left.batch, right.batch))
        if is_mask and allow.device == right.x.device and _tensors.dtype_name(allow) == "bool":
            return allow
    return _allow.resolve(allow, left.batch, right.batch)


def _are_read_in_place(*inputs: Any) -> bool:
    from simtile.ops.maxsim import are_read_in_place

    return are_read_in_place(*inputs)


def read_options(
    normalize: bool,
    length_normalize: bool,
    empty_score: float,
    zero_rows: str,
    temperature: float | None,
) -> Options:
    _inputs.check_choice("zero_rows", zero_rows, ("score", "pad"))
    smooth = 0.0
    if temperature is not None:
        smooth = _inputs.check_temperature(temperature, "None is the maximum itself")
    return Options(
        _inputs.check_flag("normalize", normalize),
        zero_rows == "pad",
        _inputs.check_flag("length_normalize", length_normalize),
        _inputs.to_float("empty_score", empty_score),
        smooth,
    )


def check_ids(ids: Any, queries: int) -> Any:
    """int64 [Q, C]; whether they are below N is checked where they are used."""
    try:
        array: Any = ids if _tensors.is_tensor(ids) else _tensors.to_array("ids", ids)
    except ValueError:
        raise ValueError(
            f"ids: found rows of different lengths, expected [{queries}, C]; fill up with -1"
        ) from None
    kind = _tensors.dtype_name(array)
    if not kind.startswith(("int", "uint")):
        raise ValueError(f"ids: found {kind} {list(array.shape)}, expected integers [{queries}, C]")
    if len(array.shape) != 2 or array.shape[0] != queries:
        hint = "; the same for all queries are numpy.tile(ids, (Q, 1))" if array.ndim == 1 else ""
        raise ValueError(
            f"ids: found {kind} {list(array.shape)}, expected [{queries}, C], one row for each "
            f"query{hint}"
        )
    signed = (
        array.long() if _tensors.is_tensor(array) else np.require(array, np.int64, ["C", "ALIGNED"])
    )
    if kind == "uint64" and (signed < 0).any():
        q, c = np.argwhere(_tensors.as_array(signed) < 0)[0].tolist()
        raise ValueError(f"ids: found {int(array[q, c])} at [{q}, {c}], which is no document")
    return signed


def run(
    left: Given,
    right: Given | Coded,
    candidates: Any,
    options: Options,
    return_argmax: bool,
    return_token_scores: bool,
    backend: str,
    threads: int | None,
    *,
    grad: bool = True,
) -> Found:
    thread_count = _inputs.check_threads(threads)
    return_argmax = _inputs.check_flag("return_argmax", return_argmax)
    return_token_scores = _inputs.check_flag("return_token_scores", return_token_scores)
    if isinstance(right, Coded):
        return _maxsim_codes.run(
            left,
            right,
            candidates,
            options,
            argmax=return_argmax,
            token_scores=return_token_scores,
            backend=backend,
            threads=thread_count,
        )
    if left.of_tensors or right.of_tensors:
        from simtile.ops.maxsim import maxsim_tensors

        return maxsim_tensors(
            left,
            right,
            candidates,
            options,
            return_argmax,
            return_token_scores,
            backend,
            thread_count,
            grad=grad,
        )
    return _maxsim_run.forward(
        left,
        right,
        None if candidates is None else _tensors.as_array(candidates),
        options,
        argmax=return_argmax,
        token_scores=return_token_scores,
        backend=_inputs.check_array_backend(backend, "simtile.maxsim"),
        threads=thread_count,
    )


def results(queries: Given, found: Found, candidates: int) -> Any:
    """What a call returns: the scores, or a tuple of them and what else was asked for."""
    given = [x for x in (found.argmax, found.token_scores) if x is not None]
    details = [_maxsim_run.split(queries, candidates, x) for x in given]
    return (found.scores, *details) if details else found.scores


def as_list(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple) else [results]


def without_none(found: Found, candidates: Any) -> Found:
    """-inf where the candidate is none."""
    if candidates is None:
        return found
    none = candidates < 0
    if _tensors.is_tensor(found.scores):
        none = _tensors.as_tensor(none, found.scores.device)
        scores = found.scores.masked_fill(none, float("-inf"))
        return Found(scores, found.argmax, found.token_scores)
    found.scores[_tensors.as_array(none)] = -np.inf
    return found


def needs_grad(*sides: Given) -> bool:
    tensors = [side.x for side in sides if _tensors.is_tensor(side.x)]
    if not any(x.requires_grad for x in tensors):
        return False
    import torch

    return torch.is_grad_enabled()
