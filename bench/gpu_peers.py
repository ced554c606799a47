"""simtile beside what else runs on a GPU: `python bench/gpu_peers.py [--quick] [--only NAME]`.

Losses beside torch, torch.compile and memeff; late interaction beside torch's einsum,
late-interaction-kernels and flash-maxsim; exact search beside torch, faiss on the GPU and cuVS;
each where it is installed. Times are those of the host, launches and waiting included. Everybody's
results are compared first: ours stop the run if they are wrong, another's are not timed. Results of
a complete run go to bench/results/<gpu>/.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import _beside
import _common
import tables
import torch
import torch.nn.functional as F
from _beside import SIMTILE
from _common import GateFailed, Json, Run, Target, interleave
from losses import step, worst
from torch import Tensor

import simtile

DEVICE = "cuda"
TEMPERATURE, K = 0.07, 10
CLOSE_LOSS = 3e-2  # of a loss and gradients of 16-bit rows, relative to the largest
CLOSE_TIES = 0.1  # of MaxSim's gradients: in 16 bits another token may be the nearest
CLOSE_SCORE = 1e-2  # of a score of 16-bit tokens, for each token of a query
CLOSE_SEARCH = 1e-5  # of the scores of what was found, relative to the largest

Result = tuple[Json, list[Target]]
Calls = dict[str, Callable[[], Any]]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.promote_types(dtype, torch.float32)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def installed(name: str) -> Any:
    """A package, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def beside(
    run: Run, calls: Calls, error_of: Callable[[Any], float], limit: float, **facts: Any
) -> Json:
    """Compare, then memory and times; `error_of` what a call returned."""
    errors, left_out = {}, []
    for who, call in list(calls.items()):
        try:
            errors[who] = error_of(call())
        except Exception as error:
            if who == SIMTILE:
                raise
            left_out.append(f"{who} ({type(error).__name__}: {str(error)[:100]})")
            del calls[who]
            continue
        if not errors[who] <= limit:
            if who == SIMTILE:
                raise GateFailed(f"simtile's error is {errors[who]:.2g}, allowed {limit:.2g}")
            left_out.append(f"{who} (its error is {errors.pop(who):.2g})")
            del calls[who]
    memory = {who: device_memory(call) for who, call in calls.items()}

    def waited(call: Callable[[], Any]) -> Callable[[], None]:
        def run_and_wait() -> None:
            call()
            wait()

        return run_and_wait

    waiting = {who: waited(call) for who, call in calls.items()}
    times, _ = interleave(waiting, rounds=run.rounds(11), threads=run.threads)
    return {
        **facts,
        **({"left out": "not timed: " + ", ".join(left_out)} if left_out else {}),
        "threads": run.threads,
        "errors": errors,
        "memory": memory,
        "times": {who: samples.json() for who, samples in times.items()},
    }


def device_memory(call: Callable[[], Any]) -> int:
    """Bytes that torch allocates at most during a call; 0 of what allocates elsewhere."""
    if DEVICE != "cuda":
        return 0
    wait()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    wait()
    return torch.cuda.max_memory_allocated() - before


# Losses


def one_direction(queries: Tensor, documents: Tensor) -> Tensor:
    logits = F.normalize(queries, dim=1) @ F.normalize(documents, dim=1).T / TEMPERATURE
    return F.cross_entropy(
        logits.to(wide(logits.dtype)), torch.arange(len(queries), device=queries.device)
    )


def both_directions(queries: Tensor, documents: Tensor) -> Tensor:
    return (one_direction(queries, documents) + one_direction(documents, queries)) / 2


def losses(
    run: Run, calls: Mapping[str, Callable[..., Tensor]], formula: Callable[..., Tensor]
) -> Json:
    """Loss and gradients of a batch; the formula in float64 says what is right."""
    n, dim = run.size(16_384, 65), 768
    rows = [normal(n, dim, dtype=torch.bfloat16, seed=seed) for seed in range(2)]
    exact = step(formula, [x.double() for x in rows])()
    steps = {who: step(loss, rows) for who, loss in calls.items()}
    what = "bfloat16, forward and backward"
    facts = {"what": what, "n": n, "dim": dim}
    return beside(run, steps, lambda found: worst(found, exact), CLOSE_LOSS, **facts)


def info_nce(run: Run) -> Result:
    """Queries against documents."""

    def ours(queries: Tensor, documents: Tensor) -> Tensor:
        return simtile.info_nce(queries, documents, temperature=TEMPERATURE)

    calls: dict[str, Callable[..., Tensor]] = {SIMTILE: ours, "torch eager": one_direction}
    if not run.quick:
        calls["torch.compile"] = torch.compile(one_direction)
    return losses(run, calls, one_direction), []


def clip(run: Run) -> Result:
    """Both directions, as CLIP has them."""

    def ours(queries: Tensor, documents: Tensor) -> Tensor:
        directions = ("query_to_doc", "doc_to_query")
        return simtile.info_nce(
            queries,
            documents,
            temperature=TEMPERATURE,
            directions=directions,
            partition="per_direction",
        )

    calls: dict[str, Callable[..., Tensor]] = {SIMTILE: ours, "torch eager": both_directions}
    if not run.quick:
        calls["torch.compile"] = torch.compile(both_directions)
    if memeff := installed("memeff"):
        calls["memeff"] = memeff.MemoryEfficientCLIPLoss(temperature=TEMPERATURE)
    return losses(run, calls, both_directions), []


# Late interaction


def einsum(queries: Tensor, documents: Tensor) -> Tensor:
    products = torch.einsum("qid,njd->qnij", queries, documents)
    return products.amax(dim=3).sum(dim=2, dtype=wide(products.dtype))


def scorers(flash: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Who scores all pairs; `flash` is the function of flash-maxsim."""
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        SIMTILE: simtile.maxsim,
        "torch einsum": einsum,
    }
    if kernels := installed("late_interaction_kernels"):
        found["late-interaction-kernels"] = kernels.maxsim
    if module := installed("flash_maxsim"):
        found["flash-maxsim"] = getattr(module, flash)
    return found


def tokens(queries: int, documents: int) -> tuple[Tensor, Tensor]:
    """Unit vectors of ColBERT's shapes, float16."""
    sides = (
        normal(queries, 32, 128, dtype=torch.float32),
        normal(documents, 180, 128, dtype=torch.float32, seed=1),
    )
    left, right = (F.normalize(x, dim=2).half() for x in sides)
    return left, right


def maxsim(run: Run) -> Result:
    """Scores of all pairs."""
    left, right = tokens(run.size(16, 3), run.size(4_096, 40))
    some = slice(0, 40)
    exact = einsum(left.double(), right[some].double()).double()

    def error_of(scores: Tensor) -> float:
        return float((scores[:, some].double() - exact).abs().max())

    calls: Calls = {
        who: (lambda score=score: score(left, right))
        for who, score in scorers("flash_maxsim_batched").items()
    }
    facts = {"queries": len(left), "documents": len(right), "dim": 128}
    limit = CLOSE_SCORE * left.shape[1]
    return beside(run, calls, error_of, limit, what="float16, forward", **facts), []


def maxsim_training(run: Run) -> Result:
    """Scores of all pairs of a batch, and gradients of their weighted sum."""
    left, right = tokens(run.size(32, 3), run.size(32, 5))
    weights = normal(len(left), len(right), dtype=torch.float32, seed=2)

    def weighted(score: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda *sides: (score(*sides) * weights).sum()

    _, *exact = step(weighted(einsum), [left.double(), right.double()])()

    def error_of(found: list[Tensor]) -> float:
        return max(
            float((a.double() - b).norm() / b.norm()) for a, b in zip(found[1:], exact, strict=True)
        )

    names = scorers("flash_maxsim_batched_train")
    calls: Calls = {who: step(weighted(score), [left, right]) for who, score in names.items()}
    facts = {"queries": len(left), "documents": len(right), "dim": 128}
    what = "float16, forward and backward"
    return beside(run, calls, error_of, CLOSE_TIES, what=what, **facts), []


# Search


def bits(run: Run, queries: int) -> Result:
    """The nearest by Hamming distance."""
    dim = 1024
    x = normal(run.size(1_000_000, 3_001), dim, dtype=torch.float16)
    q = normal(queries, dim, dtype=torch.float16, seed=1)
    documents, asked = (simtile.quantize(rows, "binary") for rows in (x, q))
    x, q = (torch.where(rows > 0, 1, -1).half() for rows in (x, q))
    exact = (q.float() @ x.T.float()).topk(K).values  # whole numbers

    def error_of(ids: Any) -> float:
        found = torch.einsum("qd,qkd->qk", q.float(), x[torch.as_tensor(ids).to(x.device)].float())
        return float((found - exact).abs().max())

    calls: Calls = {
        SIMTILE: lambda: simtile.topk(asked, documents, K, metric="hamming")[1],
        "torch matmul + topk": lambda: (q @ x.T).topk(K).indices,
    }
    faiss = installed("faiss")
    if DEVICE == "cuda" and hasattr(faiss, "GpuIndexBinaryFlat"):
        index = faiss.GpuIndexBinaryFlat(faiss.StandardGpuResources(), dim)
        index.add(documents.codes.cpu().numpy())
        codes = asked.codes.cpu().numpy()
        calls["faiss"] = lambda: index.search(codes, K)[1]
    facts = {"n": len(x), "dim": dim, "queries": queries, "k": K}
    return beside(run, calls, error_of, 0, what="bits, Hamming", **facts), []


def bits_1(run: Run) -> Result:
    return bits(run, 1)


def bits_100(run: Run) -> Result:
    return bits(run, 100)


def floats(run: Run) -> Result:
    """The largest inner products of float32."""
    dim, queries = 384, 10
    x = normal(run.size(1_000_000, 3_001), dim, dtype=torch.float32)
    q = normal(queries, dim, dtype=torch.float32, seed=1)
    exact = torch.cat([(row.double() @ x.T.double()).topk(K).values[None] for row in q])

    def error_of(ids: Any) -> float:
        rows = x[torch.as_tensor(ids).to(x.device)].double()
        found = torch.einsum("qd,qkd->qk", q.double(), rows)
        return float((found - exact).abs().max() / exact.abs().max())

    calls: Calls = {
        SIMTILE: lambda: simtile.topk(q, x, K, metric="dot")[1],
        "torch matmul + topk": lambda: (q @ x.T).topk(K).indices,
    }
    faiss = installed("faiss")
    if DEVICE == "cuda" and hasattr(faiss, "GpuIndexFlatIP"):
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim)
        index.add(x.cpu().numpy())
        asked = q.cpu().numpy()
        calls["faiss"] = lambda: index.search(asked, K)[1]
    if DEVICE == "cuda" and (cuvs := installed("cuvs.neighbors.brute_force")):
        built = cuvs.build(x, metric="inner_product")
        calls["cuVS"] = lambda: torch.as_tensor(cuvs.search(built, q, K)[1], device=DEVICE)
    facts = {"n": len(x), "dim": dim, "queries": queries, "k": K}
    return beside(run, calls, error_of, CLOSE_SEARCH, what="float32, dot product", **facts), []


ENTRIES = {
    "info_nce": info_nce,
    "clip": clip,
    "maxsim": maxsim,
    "maxsim_training": maxsim_training,
    "bits_1": bits_1,
    "bits_100": bits_100,
    "floats": floats,
}


def main() -> int:
    arguments = _common.parser("Benchmark a GPU's backends.", ENTRIES).parse_args()
    if not torch.cuda.is_available():
        print("no GPU that torch can use: nothing to run")
        return 1
    facts = _common.machine()
    facts["gpu"] = torch.cuda.get_device_name()
    if not (arguments.quick or arguments.only or arguments.output):
        name = re.sub(r"[^a-z0-9]+", "-", facts["gpu"].lower()).strip("-")
        arguments.output = _common.RESULTS / name
    return _common.run_entries(
        "gpu_peers", ENTRIES, arguments, facts, _beside.markdown, tables.targets
    )


if __name__ == "__main__":
    sys.exit(main())
