"""One rank of tests/test_distributed_search.py: runs every job and writes down what came out.

python distributed_search_worker.py RANK RANKS DIRECTORY [dies | hangs | fails]
"""

import datetime
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import simtile
import simtile.distributed
from simtile import _distributed_search

DOCUMENTS, QUERIES, DIM, K = 1201, 9, 33, 12
METRICS = ("cosine", "dot", "l2")


def documents():
    x = np.random.default_rng(3).standard_normal((DOCUMENTS, DIM)).astype(np.float32)
    x[700:900] = x[:200]  # equal scores in different shards
    return x


def queries():
    return np.random.default_rng(4).standard_normal((QUERIES, DIM)).astype(np.float32)


def allowed():
    return np.random.default_rng(5).random(DOCUMENTS) < 0.1


def rows_of(rank, ranks):
    """Uneven: the first rank has half as many as the others, and the last but one of four none."""
    weights = np.ones(ranks)
    weights[0] = 0.5
    if ranks > 2:
        weights[-2] = 0
    ends = np.round(np.cumsum(weights) / weights.sum() * DOCUMENTS).astype(int)
    return slice(0 if rank == 0 else int(ends[rank - 1]), int(ends[rank]))


def asked_by(rank, ranks):
    """What a rank asks on its own: rank 1 nothing."""
    return slice(0, 0) if rank == 1 else slice(rank, 2 * rank + 2)


def ranges():
    x = documents()
    return np.stack([x.min(0), x.max(0)])


def index_of(dtype, metric, rows):
    made = simtile.FlatIndex(
        DIM, dtype, metric=metric, ranges=ranges() if dtype in ("int8", "int4") else None
    )
    made.add(documents()[rows], ids=np.arange(DOCUMENTS)[rows] * 3 + 5)
    return made


def cascade_of(rows):
    """Its last stage sees every document, so that shards can give what one index does."""
    made = simtile.CascadeIndex(DIM, ("binary", "float32"), oversample=(DOCUMENTS // K + 1,))
    made.add(documents()[rows], ids=np.arange(DOCUMENTS)[rows] * 3 + 5)
    return made


def jobs(rank, ranks):
    """Name and what the call returns; the test computes the same in one process."""
    search = simtile.distributed.search
    mine, q = rows_of(rank, ranks), queries()
    shard = documents()[mine]
    for metric in METRICS:
        yield metric, search(q, shard, K, metric=metric)
    for kind in ("float16", "float64"):
        yield kind, search(q, shard.astype(kind), K)
    for kind in ("int8", "int4", "binary", "int8_vector"):
        codes = simtile.quantize(shard, kind, ranges=ranges() if kind in ("int8", "int4") else None)
        yield kind, search(q, codes, K)
    bits = simtile.quantize(shard, "binary").codes
    yield "hamming", search(simtile.quantize(q, "binary").codes, bits, K, metric="hamming")
    yield "quantized queries", search(simtile.quantize(q, "int8_vector"), shard, K)
    for dtype, metric in (("float32", "l2"), ("int8", "cosine"), ("binary", "hamming")):
        yield f"index {dtype}", search(q, index_of(dtype, metric, mine), K)
    yield "cascade", search(q, cascade_of(mine), K)
    yield "more than there are", search(q[:2], shard, DOCUMENTS + 3)
    yield "allow mask", search(q, shard, K, allow=allowed()[mine])
    yield "allow ids", search(q, shard, K, allow=np.flatnonzero(allowed()[mine]))
    yield "allow nothing", search(q, shard, K, allow=[])
    # Of float16 queries of one rank the float32 ones would not be the same type.
    yield "each", search(q[asked_by(rank, ranks)], shard, K, share="each", metric="dot")
    yield "first", search(q if rank == 0 else None, shard, K, share="first")
    half = torch.from_numpy(q).bfloat16()
    yield "first bfloat16 tensor", search(half if rank == 0 else None, shard, K, share="first")
    yield "tensors", search(torch.from_numpy(q), torch.from_numpy(shard), K)
    yield "nobody asks", search(q[:0], shard, K, share="each")
    yield "with a limit", search(q, shard, K, timeout=60)


def errors(rank, ranks):
    """Name and what is raised, on this rank; the group works afterwards."""
    search = simtile.distributed.search
    last = rank == ranks - 1
    q, shard = queries(), documents()[rows_of(rank, ranks)]
    nan = q.copy()
    nan[3] = np.nan
    index = index_of("float32", "dot", slice(0, 9))
    own = index_of("int8", "dot", rows_of(rank, ranks))
    other = simtile.FlatIndex(DIM, "int8", metric="dot")
    other.add(2 * documents(), ids=np.arange(10**6, 10**6 + DOCUMENTS))
    cases = {
        "shape": lambda: search(q[0] if last else q, shard, K),
        "k": lambda: search(q, shard, 0 if last else K),
        "other k": lambda: search(q, shard, K + last),
        "metric": lambda: search(q, shard, K, metric="dot" if last else "l2"),
        "unknown metric": lambda: search(q, shard, K, metric="taxi" if last else "l2"),
        "share": lambda: search(q, shard, K, share="each" if last else "same"),
        "unknown share": lambda: search(q, shard, K, share="both" if last else "same"),
        "timeout": lambda: search(q, shard, K, timeout=-1 if last else 30),
        "queries": lambda: search(q + last, shard, K),
        "nan": lambda: search(nan, shard, K),
        "dimensions": lambda: search(q, shard[:, : DIM - last], K),
        "dtype": lambda: search(q, shard.astype("float16" if last else "float32"), K),
        "overlap": lambda: search(q, index, K),
        "calibration": lambda: search(q, other if last else own, K),
        "index metric": lambda: search(q, own, K, metric="l2"),
        "index and array": lambda: search(q, shard if last else own, K, metric="dot"),
        "allow on one": lambda: search(q, shard, K, allow=[0] if last else None),
        "allow unknown": lambda: search(q, shard, K, allow=[10**6] if last else [0][: len(shard)]),
        "allow per query": lambda: search(
            q, shard, K, share="each", allow=np.ones((QUERIES, len(shard)), bool)
        ),
        "first passes": lambda: search(q, shard, K, share="first"),
        "types": lambda: search(q.astype("float64" if last else "float32"), shard, K, share="each"),
        "search fails": lambda: failing(search, q, shard, last),
    }
    raised = {}
    for name, call in cases.items():
        try:
            call()
            raised[name] = "nothing"
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:
            raised[name] = f"{type(error).__name__}: {error}"
    works = search(q, shard, K)
    return raised, works


def failing(search, q, shard, here):
    """A search that runs out of memory on one rank."""
    plain = _distributed_search.topk

    def fails(*_, **__):
        raise MemoryError("no memory for this rank")

    if here:
        _distributed_search.topk = fails
    try:
        search(q, shard, K)
    finally:
        _distributed_search.topk = plain


def lost(rank, ranks, how):
    """The last rank dies or hangs during a search; what the others raise, and after how long."""
    q, shard = queries(), documents()[rows_of(rank, ranks)]
    plain = _distributed_search.topk

    def never(*_, **__):
        if how == "dies":
            os._exit(3)
        time.sleep(600)

    if rank == ranks - 1:
        _distributed_search.topk = never
    started = time.monotonic()
    try:
        simtile.distributed.search(q, shard, K, timeout=None if how == "dies" else 2)
    except RuntimeError as error:
        return str(error), time.monotonic() - started
    finally:
        _distributed_search.topk = plain
    return "nothing", 0.0


def main():
    rank, ranks, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    simtile.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory / 'store'}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=120),
    )
    if len(sys.argv) > 4:
        results = lost(rank, ranks, sys.argv[4])
    else:
        results = {"jobs": dict(jobs(rank, ranks)), "errors": errors(rank, ranks)}
        group = dist.new_group([0, 1])
        if rank < 2:
            q, shard = queries(), documents()[rows_of(rank, 2)]
            results["group"] = simtile.distributed.search(q, shard, K, group=group)
    (directory / f"rank{rank}.pickle").write_bytes(pickle.dumps(results))
    if len(sys.argv) > 4:
        os._exit(0)  # the group is broken and would be waited for
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
