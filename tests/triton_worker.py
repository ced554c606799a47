"""A process in which Triton's kernels run in its interpreter, on the CPU.

TRITON_INTERPRET must be set before Triton is imported, and then holds for the whole process; the
tests themselves need the compiler. `Interpreter` starts the process and hands it calls.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class Interpreter:
    """Calls `function(*arguments)` of this file in the worker, which is started when first used."""

    def __init__(self):
        self.process = None

    def __call__(self, function, *arguments):
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__],
                env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parent,
            )
            atexit.register(self.close)
        pickle.dump((function.__name__, arguments), self.process.stdin)
        self.process.stdin.flush()
        failure, result = pickle.load(self.process.stdout)
        if failure is not None:
            raise RuntimeError(f"in the process of the interpreter:\n{failure}")
        return result

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(20)
            self.process.stdout.close()
            self.process = None


@contextmanager
def poisoned_memory(small_tiles, chunk_bytes):
    """Outputs and workspaces of info_nce full of NaN; the tiles to run it with, None the pinned.

    `small_tiles`: several of the pinned ones a side would be slow in the interpreter.
    """
    import torch
    from simtile.kernels.info_nce import triton_configs as configs

    from simtile.ops import info_nce_triton_call

    def poisoned(*shape, **how):
        x = empty(*shape, **how)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    before = torch.empty, configs.ROW_PADDING, info_nce_triton_call.CHUNK_BYTES
    empty = torch.empty
    torch.empty = poisoned
    tiles = None
    if small_tiles:
        tile = configs.Tile(32, 32, 32, 1, 1)
        tiles, configs.ROW_PADDING = configs.Config(tile, tile), 32
    if chunk_bytes is not None:
        info_nce_triton_call.CHUNK_BYTES = chunk_bytes
    try:
        yield tiles
    finally:
        torch.empty, configs.ROW_PADDING, info_nce_triton_call.CHUNK_BYTES = before


def info_nce(
    arrays, dtype, options, need, small_tiles=False, chunk_bytes=None, *, device="cpu", tiles=None
):
    """`ops.info_nce_triton.run` on arrays, or with `contrast` among the options that of the whole
    family; outputs and workspaces are full of NaN before. The tally only if it is asked for."""
    import torch
    from info_nce_cases import as_tensor

    from simtile.ops import info_nce_triton, info_nce_triton_contrast

    def on_device(x):
        if isinstance(x, list):
            return [as_tensor(part, device) for part in x]
        return as_tensor(x, device) if isinstance(x, np.ndarray) else x

    host = info_nce_triton_contrast if "contrast" in options else info_nce_triton
    with poisoned_memory(small_tiles, chunk_bytes) as small:
        result = host.run(
            *map(on_device, arrays),
            dtype=getattr(torch, dtype),
            need_grad=need,
            tiles=small or tiles,
            **{name: on_device(x) for name, x in options.items()},
        )
    outputs = result if options.get("statistics") else result[:-1]
    return [None if x is None else x.numpy(force=True) for x in outputs]


def quantize(x, kind, options):
    """`simtile.quantize` by the Triton kernels; outputs are full of what they must overwrite.

    The arrays of the result, by name, and the messages of warnings.
    """
    import warnings

    import torch
    from info_nce_cases import as_tensor

    import simtile

    module = sys.modules["simtile.quantize"]
    before = torch.empty, module._is_gpu
    empty = torch.empty

    def poisoned(*shape, **how):
        x = empty(*shape, **how)
        return x.fill_(torch.nan if x.is_floating_point() else 0x55)

    torch.empty, module._is_gpu = poisoned, lambda _: True
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # by NumPy, of the interpreter of Triton 3.2
            warnings.simplefilter("ignore", DeprecationWarning)
            given = {n: as_tensor(v) if hasattr(v, "dtype") else v for n, v in options.items()}
            q = simtile.quantize(as_tensor(x), kind, **given)
    finally:
        torch.empty, module._is_gpu = before
    arrays = {name: getattr(q, name) for name in ("codes", "scale", "offset", "ranges")}
    return (
        {name: None if v is None else v.numpy(force=True) for name, v in arrays.items()},
        [str(warning.message) for warning in caught],
    )


def maxsim(inputs, candidates, options, grad_scores=None, *, device="cpu"):
    """`ops.maxsim_triton` on batches: scores, argmax, token scores, and with `grad_scores` both
    gradients; outputs and workspaces are full of NaN before.

    inputs: queries, documents, query_mask, document_mask. On the CPU tiles are small: several of
    the pinned ones a side would be slow in the interpreter.
    """
    import torch
    from info_nce_cases import as_tensor
    from simtile.kernels.maxsim import triton_configs as configs

    from simtile._maxsim_inputs import Given
    from simtile._maxsim_run import Options
    from simtile.ops import maxsim_triton

    def poisoned(*shape, **how):
        x = empty(*shape, **how)
        return x.fill_(torch.nan if x.is_floating_point() else 77)

    empty = torch.empty
    x = [None if x is None else as_tensor(x, device) for x in inputs]
    sides = [Given("queries", x[0], None, x[2]), Given("documents", x[1], None, x[3])]
    chosen = None if candidates is None else torch.from_numpy(candidates).to(device)
    tiles = None
    if device == "cpu":
        tiles = configs.Config(
            configs.Tile(16, 32, 32, 1, 1),
            configs.Tile(32, 64, 16, 1, 1),
            configs.Tile(16, 32, 32, 1, 1),
            configs.Tile(16, 16, 16, 1, 1),
            configs.Tile(16, 16, 16, 1, 1),
        )
    options = Options(**options)
    torch.empty = poisoned
    try:
        found = maxsim_triton.forward(
            *sides, chosen, options, argmax=True, token_scores=True, tiles=tiles
        )
        results = list(found)
        if grad_scores is not None:
            weights = torch.from_numpy(grad_scores).to(device, torch.float32)
            values = found.token_scores if options.temperature else None
            results += maxsim_triton.backward(
                *sides, chosen, options, weights, found.argmax, values, (True, True), tiles=tiles
            )
    finally:
        torch.empty = empty
    return [x.numpy(force=True) for x in results]


def pairwise(name, x, options, labels=None, *, device="cpu", small_tiles=True):
    """`ops.pairwise_triton`: hardest, batch_hard_triplet or uniformity; results are full of NaN (or
    77) before. In the interpreter tiles are small."""
    import torch
    from info_nce_cases import as_tensor
    from simtile.kernels.pairwise import triton_configs as configs

    from simtile.ops import pairwise_triton

    def poisoned(*shape, **how):
        x = empty(*shape, **how)
        return x.fill_(torch.nan if x.is_floating_point() else 77)

    empty = torch.empty
    given = [as_tensor(x, device)]
    if labels is not None:
        given.append(torch.from_numpy(labels).to(device))
    small = device == "cpu" and small_tiles
    tiles = configs.Tile(16, 32, 32, 16, 1, 1) if small else None
    torch.empty = poisoned
    try:
        results = getattr(pairwise_triton, name)(*given, **options, tiles=tiles)
    finally:
        torch.empty = empty
    return [x.numpy(force=True) for x in results]


def siglip(case, dtype, need, *, device="cpu", small_tiles=True, chunk_bytes=1):
    """`ops.siglip_triton` on a case of siglip_cases, as its run_kernel does: results are full of
    NaN before. In the interpreter tiles are small; a chunk has the rows of one."""
    import torch
    from info_nce_cases import as_tensor
    from siglip_cases import stored
    from simtile.kernels.siglip import triton_configs as configs

    from simtile.ops import siglip_triton

    def poisoned(*shape, **how):
        return empty(*shape, **how).fill_(torch.nan)

    empty = torch.empty
    inputs = [as_tensor(stored(x, dtype), device) for x in case.inputs[:2]]
    numbers = [torch.tensor(case[name], dtype=torch.float64) for name in ("temperature", "bias")]
    small = device == "cpu" and small_tiles
    tiles = configs.Tile(16, 32, 32, 1, 1) if small else None
    torch.empty = poisoned
    try:
        results = siglip_triton.run(
            *inputs, *numbers, case["normalize"], 1.0, need, tiles, chunk_bytes
        )
    finally:
        torch.empty = empty
    return [None if x is None else x.numpy(force=True) for x in results]


def pool(case, grad=None, device="cpu", widest=None, packed=False):
    """`ops.pool_triton` on a case of pool_cases: vectors, raw vectors, sums of weights, positions;
    with `grad` the gradients of tokens and weights instead. Results are full of NaN (or 77) before.
    `widest`: as if no program had more columns."""
    import torch
    from info_nce_cases import as_tensor
    from simtile.kernels.pool import triton_configs as configs

    from simtile.ops import _pool_gradients, pool_triton

    def poisoned(*shape, **how):
        x = empty(*shape, **how)
        return x.fill_(torch.nan if x.is_floating_point() else 77)

    empty, before = torch.empty, configs.WIDEST
    tokens, mask, weights = case.tokens(), case.mask_array(), case.weights()
    offsets = None
    if packed:
        counts = np.full(case.rows, case.length)
        offsets = torch.from_numpy(np.cumsum([0, *counts]))
        tokens = tokens.reshape(-1, case.width)
        mask = None if mask is None else mask.reshape(-1)
        weights = None if weights is None else weights.reshape(-1)
    x = as_tensor(tokens, device)
    mask = None if mask is None else torch.from_numpy(mask).to(device)
    weights = None if weights is None else torch.from_numpy(weights).to(device)
    torch.empty = poisoned
    configs.WIDEST = widest or before
    try:
        arguments = (x, weights, offsets, mask, case.how, case.dim, case.normalize, True)
        found = pool_triton.forward(*arguments)
        results = list(found)
        if grad is not None:
            call = _pool_gradients.Call(
                *(case.how, case.normalize, "triton", 0),
                *(x.shape, x.dtype, (True, weights is not None)),
            )
            with torch.no_grad():
                results = _pool_gradients.gradients(
                    as_tensor(grad, device),
                    (x, weights, offsets, mask, *found[1:]),
                    call,
                    _pool_gradients.spread_tokens,
                    _pool_gradients.token_dots,
                )
    finally:
        torch.empty, configs.WIDEST = empty, before
    return [None if x is None else x.float().numpy(force=True) for x in results]


def main():
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what is printed must not mix with the answers
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = None, globals()[name](*arguments)
        except Exception:
            import traceback

            answer = traceback.format_exc(), None
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
