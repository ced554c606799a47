"""One rank of tests/test_distributed.py: runs every job and writes down what came out.

python distributed_worker.py RANK RANKS DIRECTORY
"""

import datetime
import functools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import simtile
import simtile.distributed

MODES = ("all_gather", "ring")


def encoder(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Dropout(dropout), nn.Linear(9, 6))


def texts(ranks, rows=6):
    """Inputs of the encoders for all ranks together: queries, documents, negatives (2 each)."""
    generator = torch.Generator().manual_seed(7)
    return tuple(torch.randn(ranks * n, 5, generator=generator) for n in (rows, rows, 2 * rows))


def mine(x, rank, ranks):
    return x.chunk(ranks)[rank]


def run_case(case, rank, mode):
    """Losses and gradients of one rank's part of a case; see test_distributed.split."""
    vectors = [None if x is None else x.clone().requires_grad_() for x in case["vectors"][rank]]
    temperature = torch.tensor(case["temperature"], dtype=torch.float64, requires_grad=True)
    losses = simtile.distributed.info_nce(
        *vectors,
        temperature=temperature,
        mode=mode,
        reduction="none",
        threads=1,
        **case["integers"][rank],
        **case["options"],
    )
    losses.backward(case["row_weights"][rank].to(losses.dtype))
    return losses.detach(), *(None if x is None else x.grad for x in vectors), temperature.grad


def run_reductions(rank, ranks, mode):
    x, y, _ = texts(ranks)
    results = {}
    for reduction in ("mean", "sum"):
        for gradients in ("averaged", "summed"):
            # Rank 0 has fewer rows.
            rows = slice(2, None) if rank == 0 else slice(None)
            q, d = (mine(v, rank, ranks)[rows].clone().requires_grad_() for v in (x, y))
            loss = simtile.distributed.info_nce(
                q, d, mode=mode, reduction=reduction, gradients=gradients, threads=1
            )
            loss.backward()
            with torch.no_grad():
                again = simtile.distributed.info_nce(q, d, mode=mode, reduction=reduction)
            results[reduction, gradients] = (loss.detach(), q.grad, d.grad, again)
    return results


class Model(nn.Module):
    """Encoder and loss with a learnable temperature, as DistributedDataParallel wraps them."""

    def __init__(self, mode):
        super().__init__()
        self.encoder = encoder()
        self.log_temperature = nn.Parameter(torch.tensor(-1.0))
        self.mode = mode

    def forward(self, queries, documents, negatives, ids):
        q, d, x = map(self.encoder, (queries, documents, negatives))
        return simtile.distributed.info_nce(
            q,
            d,
            x.reshape(len(q), 2, -1),
            temperature=self.log_temperature.exp(),
            query_ids=ids,
            mode=self.mode,
            threads=1,
        )


def run_model(rank, ranks, mode):
    model = Model(mode)
    wrapped = DistributedDataParallel(model)
    inputs = [mine(x, rank, ranks) for x in texts(ranks)]
    loss = wrapped(*inputs, ids=mine(torch.arange(ranks * 6) % 5, rank, ranks))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def run_cached(rank, ranks, mode, outside):
    """CachedLoss in DistributedDataParallel, or around it."""
    inner = encoder()
    loss = functools.partial(simtile.distributed.info_nce, mode=mode, threads=1)
    if outside:
        cached = simtile.nn.CachedLoss(DistributedDataParallel(inner), loss, mini_batch_size=4)
    else:
        cached = DistributedDataParallel(simtile.nn.CachedLoss(inner, loss, mini_batch_size=4))
    for _ in range(2):  # DistributedDataParallel rebuilds its buckets after the first
        inner.zero_grad()
        result = cached(*(mine(x, rank, ranks) for x in texts(ranks)))
        result.backward()
    return result.detach(), {name: p.grad for name, p in inner.named_parameters()}


def run_autocast(rank, ranks, mode):
    x, y, _ = (mine(v, rank, ranks).requires_grad_() for v in texts(ranks))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = simtile.distributed.info_nce(x, y, temperature=0.3, mode=mode, threads=1)
    loss.backward()
    return loss.detach(), x.grad, y.grad


def run_errors(rank, ranks):
    """What is raised where, and that the ranks still understand each other afterwards."""
    x = torch.randn(3, 4)
    one = rank == ranks - 1
    calls = {
        "shape": lambda: (x, x[:, :3] if one else x),
        "empty": lambda: (x[:0] if one else x, x),
        "dimensions": lambda: (x[:, :3], x[:, :3]) if one else (x, x),
        "dtype": lambda: (x.double(), x.double()) if one else (x, x),
        "negatives": lambda: (x, x, x[:, None] if one else None),
        "gradients": lambda: (x, x.clone().requires_grad_(one)),
        "ids": lambda: (x, x),
        "mode": lambda: (x, x),
    }
    raised = {}
    for name, call in calls.items():
        options = {}
        if name == "ids" and one:
            options["query_ids"] = torch.arange(3)
        if name == "mode":
            options["mode"] = MODES[one]
        try:
            simtile.distributed.info_nce(*call(), **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raised[name] = f"{type(error).__name__}: {error}"
    after = simtile.distributed.info_nce(x, x)
    return raised, bool(torch.isfinite(after))


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most elements that one new tensor had."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.most = max(self.most, x.untyped_storage().nbytes())
        return result


def run_memory(rank, ranks, mode):
    """Bytes of the largest tensor of a step."""
    q, d = (torch.randn(64, 96).requires_grad_() for _ in range(2))
    with Largest() as largest:
        simtile.distributed.info_nce(q, d, mode=mode, threads=1).backward()
    return largest.most


def main(rank, ranks, directory):
    torch.set_num_threads(1)
    directory = Path(directory)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=300),
    )
    cases = torch.load(directory / "cases.pt", weights_only=False)
    results = {}
    for mode in MODES:
        for name, case in cases.items():
            results[name, mode] = run_case(case, rank, mode)
        results["reductions", mode] = run_reductions(rank, ranks, mode)
        results["model", mode] = run_model(rank, ranks, mode)
        for outside in (False, True):
            results["cached", mode, outside] = run_cached(rank, ranks, mode, outside)
        results["autocast", mode] = run_autocast(rank, ranks, mode)
        results["memory", mode] = run_memory(rank, ranks, mode)
    results["errors"] = run_errors(rank, ranks)
    half = dist.new_group([0, 1])  # of part of the ranks
    if rank < 2:
        x, y, _ = texts(2)
        results["group"] = [
            simtile.distributed.info_nce(
                mine(x, rank, 2), mine(y, rank, 2), mode=mode, group=half, threads=1
            )
            for mode in MODES
        ]
    torch.save(results, directory / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
