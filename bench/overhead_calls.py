"""Every public function called with so little that the call itself is what takes the time.

By name: what is called with NumPy's arrays, with torch's tensors, and, where it is differentiable,
forward and backward. Calls return what must be equal for arrays and tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import simtile
import simtile.nn

NUMPY, TORCH, BACKWARD = "simtile, NumPy", "simtile, torch", "simtile, forward + backward"

N, TOKENS, DIM, K = 4, 3, 8, 2

Call = Callable[[], Any]
Variants = dict[str, Call]


def public_functions() -> set[str]:
    """Names of `simtile.__all__` that are functions."""
    return {name for name in simtile.__all__ if inspect.isroutine(getattr(simtile, name))}


class Inputs:
    """The same numbers on every call."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> Any:
            return rng.standard_normal(shape, dtype=np.float32)

        self.x, self.y, self.z = (draw(N, DIM) for _ in range(3))
        self.tokens, self.more_tokens = (draw(N, TOKENS, DIM) for _ in range(2))
        self.rows = self.more_tokens.reshape(-1, DIM)
        self.offsets = np.arange(0, N * TOKENS + 1, TOKENS)
        self.labels = np.repeat(np.arange(N // 2), 2)
        self.mask = np.ones((N, TOKENS), bool)


def functions(threads: int) -> dict[str, Variants]:
    """Of `simtile.__all__`; NumPy's and torch's own cheapest calls are in `floor`."""
    given = Inputs()
    x, y, z = given.x, given.y, given.z
    sides = [simtile.topk(x, part, K) for part in (y, z)]

    def pool(tokens: Any, mask: Any) -> Any:
        return simtile.pool(tokens, mask, threads=threads)

    return {
        "alignment": both(simtile.alignment, [x, y]),
        "anisotropy": both(simtile.anisotropy, [x]),
        "audit_batch": plain(simtile.audit_batch, [given.labels]),
        "batch_hard_triplet_loss": both(simtile.batch_hard_triplet_loss, [x], [given.labels]),
        "cpu_info": {NUMPY: simtile.cpu_info},
        "info_nce": {
            name: call for name, call in both(simtile.info_nce, [x, y]).items() if name != NUMPY
        },
        "info_nce_grad": {NUMPY: lambda: simtile.info_nce_grad(x, y)},
        "maxsim": both(simtile.maxsim, [given.tokens, given.more_tokens]),
        "maxsim_packed": both(simtile.maxsim_packed, [given.tokens, given.rows], [given.offsets]),
        "maxsim_pairwise": both(simtile.maxsim_pairwise, [given.tokens, given.more_tokens]),
        "merge_topk": {
            NUMPY: lambda: simtile.merge_topk(sides),
            TORCH: plain_torch_merge(sides),
        },
        "mine_hard_negatives": plain(
            lambda *args: simtile.mine_hard_negatives(*args, k=1), [x, y, np.arange(N)]
        ),
        "pool": both(pool, [given.tokens], [given.mask]),
        "quantize": plain(lambda rows: simtile.quantize(rows, "int8_vector"), [x]),
        "range_search": plain(lambda *args: simtile.range_search(*args, 0.0), [x, y]),
        "set_num_threads": {NUMPY: lambda: simtile.set_num_threads(threads)},
        "siglip_loss": both(simtile.siglip_loss, [x, y]),
        "topk": plain(lambda *args: simtile.topk(*args, K), [x, y]),
        "triplet_loss": both(
            lambda *args: simtile.triplet_loss(*args, margin=20.0), [x, y, z]
        ),  # a margin at which every triplet has a gradient
        "uniformity": both(simtile.uniformity, [x]),
        "xtr_scores": both(
            lambda *args: simtile.xtr_scores(*args, top_k=5), [given.tokens, given.more_tokens]
        ),
    }


def objects(threads: int) -> dict[str, Variants]:
    """Methods of what is public, and modules of `simtile.nn`."""
    given = Inputs()
    x, y = given.x, given.y
    flat = simtile.FlatIndex(DIM)
    flat.add(y)
    changing = simtile.FlatIndex(DIM)
    changing.add(y, np.arange(N))
    cascade = simtile.CascadeIndex(DIM, ("binary", "float32"))
    cascade.add(y)
    multi = simtile.MultiVectorIndex(DIM)
    multi.add(list(given.more_tokens))
    some = np.array([1])

    def remove_and_add() -> None:
        changing.remove(some)
        changing.add(y[some], some)

    def search(index: Any) -> Callable[..., Any]:
        return lambda queries: index.search(queries, K)

    def module(made: Any) -> Variants:
        return {BACKWARD: backward(made, [x, y], ())}

    return {
        "FlatIndex.search": plain(search(flat), [x]),
        "FlatIndex.remove and add": {NUMPY: remove_and_add},
        "CascadeIndex.search": plain(search(cascade), [x]),
        "MultiVectorIndex.search": plain(search(multi), [given.tokens]),
        "nn.InfoNCE": module(simtile.nn.InfoNCE(threads=threads)),
        "nn.CLIPLoss": module(simtile.nn.CLIPLoss(threads=threads)),
        "nn.SigLIPLoss": module(simtile.nn.SigLIPLoss(threads=threads)),
    }


def floor() -> dict[str, Variants]:
    """What the cheapest call of the other libraries takes."""
    given = Inputs()
    x, y = given.x, given.y
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    return {
        "x + y": {
            "NumPy": lambda: x + y,
            "torch": lambda: a + b,
            "torch, forward + backward": backward(torch.add, [x, y], ()),
        }
    }


def plain(function: Callable[..., Any], arrays: Sequence[Any]) -> Variants:
    """Called with arrays and with tensors."""
    tensors = [torch.from_numpy(array) for array in arrays]
    return {NUMPY: lambda: function(*arrays), TORCH: lambda: function(*tensors)}


def both(function: Callable[..., Any], arrays: Sequence[Any], rest: Sequence[Any] = ()) -> Variants:
    """And with tensors that want a gradient, all but those of `rest`."""
    return {
        **plain(function, [*arrays, *rest]),
        BACKWARD: backward(function, arrays, [torch.from_numpy(array) for array in rest]),
    }


def backward(
    function: Callable[..., Any], arrays: Sequence[Any], rest: Sequence[Any]
) -> Callable[[], list[Any]]:
    """The result and the gradients of its sum."""
    leaves = [torch.from_numpy(array.copy()).requires_grad_() for array in arrays]

    def call() -> list[Any]:
        for leaf in leaves:
            leaf.grad = None
        result = function(*leaves, *rest)
        result.sum().backward()
        return [result, *(leaf.grad for leaf in leaves)]

    return call


def plain_torch_merge(sides: Sequence[Any]) -> Call:
    tensors = [tuple(torch.from_numpy(part) for part in side) for side in sides]
    return lambda: simtile.merge_topk(tensors)


def numbers(result: Any) -> list[Any]:
    """The arrays of a result in order, of every type that the calls above return."""
    if isinstance(result, torch.Tensor):
        return [result.detach().numpy()]
    if isinstance(result, simtile.Quantized):
        return numbers([result.codes, result.scale])
    if isinstance(result, (tuple, list)):
        return [array for part in result for array in numbers(part)]
    if hasattr(result, "pairs"):  # of an audit
        return [result.pairs]
    if isinstance(result, (np.ndarray, np.generic)):
        return [np.asarray(result)]
    return []
