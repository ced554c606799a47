"""simtile.distributed.search on 2 and 4 gloo processes: the bits of one search of all documents."""

import doctest
import pickle
import subprocess
import sys
from pathlib import Path

import distributed_search_worker as worker
import numpy as np
import pytest
import torch

import simtile
import simtile.distributed
from simtile import _distributed_search

# 4 processes on 2 cores take a while to start.
RANKS = [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.deep)]
K = worker.K


def run_ranks(ranks, directory, *more):
    """Run the worker as every rank; exit codes and errors. Of ranks that hang only the first's."""
    command = [sys.executable, str(Path(worker.__file__))]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(directory), *more],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        waited = processes[:1] if "hangs" in more else processes
        done = [process.communicate(timeout=300)[1] for process in waited]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()
    return [(process.returncode, error) for process, error in zip(waited, done, strict=True)]


def read(directory, rank):
    return pickle.loads((directory / f"rank{rank}.pickle").read_bytes())


@pytest.fixture(scope="module", params=RANKS)
def ranks(request):
    return request.param


@pytest.fixture(scope="module")
def results(ranks, tmp_path_factory):
    """What every rank found."""
    directory = tmp_path_factory.mktemp(f"search{ranks}")
    for code, error in run_ranks(ranks, directory):
        assert code == 0, error
    return [read(directory, rank) for rank in range(ranks)]


def expected(name):
    """What one process finds among all documents."""
    q, x = worker.queries(), worker.documents()
    if name in worker.METRICS:
        return simtile.topk(q, x, K, metric=name)
    if name in ("float16", "float64"):
        return simtile.topk(q, x.astype(name), K)
    if name in ("int8", "int4", "binary", "int8_vector"):
        shared = {"ranges": worker.ranges()} if name in ("int8", "int4") else {}
        return simtile.topk(q, simtile.quantize(x, name, **shared), K)
    if name == "hamming":
        bits = [simtile.quantize(v, "binary").codes for v in (q, x)]
        return simtile.topk(*bits, K, metric="hamming")
    if name == "quantized queries":
        return simtile.topk(simtile.quantize(q, "int8_vector"), x, K)
    if name.startswith("index "):
        dtype = name.split()[1]
        metric = {"float32": "l2", "int8": "cosine", "binary": "hamming"}[dtype]
        return worker.index_of(dtype, metric, slice(None)).search(q, K)
    if name == "cascade":
        return worker.cascade_of(slice(None)).search(q, K)
    if name == "more than there are":
        return simtile.topk(q[:2], x, worker.DOCUMENTS + 3)
    if name.startswith("allow"):
        allow = [] if name == "allow nothing" else worker.allowed()
        return simtile.topk(q, x, K, allow=allow)
    if name == "each":
        return simtile.topk(q, x, K, metric="dot")
    if name == "nobody asks":
        return simtile.topk(q[:0], x, K)
    if name == "first bfloat16 tensor":
        return simtile.topk(torch.from_numpy(q).bfloat16(), x, K)
    if name == "tensors":
        return simtile.topk(torch.from_numpy(q), torch.from_numpy(x), K)
    assert name in ("first", "with a limit"), name
    return simtile.topk(q, x, K)


def test_equals_one_process_bit_for_bit(results, ranks):
    names = list(results[0]["jobs"])
    assert len(names) > 20
    for name in names:
        whole = expected(name)
        for rank, result in enumerate(results):
            found = result["jobs"][name]
            rows = worker.asked_by(rank, ranks) if name == "each" else slice(None)
            for a, b in zip(found, whole, strict=True):
                assert type(a) is type(b), name
                assert a.dtype == b.dtype, name
                assert np.asarray(a).tobytes() == np.asarray(b[rows]).tobytes(), (name, rank)


def test_a_group_of_some_ranks(results):
    whole = expected("cosine")
    for result in results[:2]:
        for a, b in zip(result["group"], whole, strict=True):
            np.testing.assert_array_equal(a, b)


ALL = {
    "other k": "ValueError: k: found [12",
    "metric": "ValueError: metric: found ['l2'",
    "share": "ValueError: share: found ['same'",
    "queries": "ValueError: queries: found different ones",
    "nan": "ValueError: queries",
    "dimensions": "ValueError: documents: found different element types",
    "dtype": "ValueError: documents: found different element types",
    "overlap": "ValueError: documents: found ids 5 to 29 on rank 0 and 5 to 29 on rank 1",
    "calibration": "ValueError: documents: found different element types, dimensions, or ranges",
    "index metric": "ValueError: metric: found 'l2' for an index of 'dot'",
    "index and array": "ValueError: documents: an index (1) or vectors (0): found [1",
    "allow on one": "ValueError: allow given: found [0",
    "allow per query": "ValueError: allow: found a mask for each query",
    "types": "ValueError: queries: found float32",
}
LAST = {  # which refuses, or fails, and tells the others
    "shape": "ValueError: queries: found float32 [33], expected [Q, D]",
    "k": "ValueError: k",
    "unknown metric": "ValueError: metric: found 'taxi'",
    "unknown share": "ValueError: share: found 'both'",
    "timeout": "ValueError: timeout: found -1",
    "allow unknown": "ValueError: allow",
    "search fails": "MemoryError: no memory for this rank",
}


def test_errors_are_raised_on_every_rank(results, ranks):
    whole = expected("cosine")
    last = ranks - 1
    for rank, result in enumerate(results):
        raised, works_afterwards = result["errors"]
        for a, b in zip(works_afterwards, whole, strict=True):
            np.testing.assert_array_equal(a, b)
        for name, message in ALL.items():
            assert message in raised.pop(name), name
        first = raised.pop("first passes")
        assert ("rank 1 has refused" if rank == 0 else f"on rank {rank}, expected None") in first
        for name, message in LAST.items():
            found = raised.pop(name)
            if rank == last:
                assert message in found
            elif name in ("allow unknown", "search fails"):
                assert f"the search of rank {last} of {ranks} has failed" in found
                assert "its documents would be missing" in found
            else:
                assert f"rank {last} has refused its inputs" in found
        assert raised == {}


@pytest.mark.parametrize(
    "how",
    [pytest.param("dies", marks=pytest.mark.slow), pytest.param("hangs", marks=pytest.mark.deep)],
)
def test_a_lost_rank_is_an_error_and_no_shorter_result(how, tmp_path):
    ranks = 2
    codes = run_ranks(ranks, tmp_path, how)
    assert codes[0][0] == 0, codes[0][1]
    message, seconds = read(tmp_path, 0)
    assert f"one of {ranks} ranks has died or did not answer within" in message
    assert "nothing is returned, because its documents would be missing" in message
    assert seconds < 30
    if how == "dies":
        assert codes[1][0] == 3
    else:
        assert "within 2 s" in message


def test_without_a_process_group():
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(RuntimeError, match="not initialised"):
        simtile.distributed.search(x, x, 1)


def test_example(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # torch puts its own there
    runner = doctest.DocTestRunner()
    names = {"np": np, "simtile": simtile}
    for test in doctest.DocTestFinder().find(_distributed_search.search, globs=names):
        runner.run(test)
    done = runner.summarize()
    assert done.attempted > 0
    assert done.failed == 0
