"""examples/ray_search.py with local processes, one of them killed while it searches."""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import simtile

pytestmark = pytest.mark.deep  # Ray and its processes take seconds to start

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "ray_search.py"


@pytest.fixture(scope="module")
def example():
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    pytest.importorskip("ray", reason="ray is not installed")
    spec = importlib.util.spec_from_file_location("ray_search", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ray_search"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cluster(example):
    """Ray on this machine alone, with two CPUs."""
    ray = sys.modules["ray"]
    ray.cloudpickle.register_pickle_by_value(example)  # actors cannot import it by its name
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.2",  # 127.0.0.1 would be replaced by the address of the network
    )
    yield ray
    ray.shutdown()


DOCUMENTS, DIM, K = 3001, 32, 10


def data():
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((DOCUMENTS, DIM)).astype(np.float32)
    documents[2000:2500] = documents[:500]  # equal scores in different shards
    queries = documents[:20] + 0.3 * rng.standard_normal((20, DIM)).astype(np.float32)
    return documents, queries


def check(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def test_shards_on_actors(example, cluster, tmp_path):
    documents, queries = data()
    files = example.write_shards(documents, 3, tmp_path, "int8")
    (whole,) = example.write_shards(documents, 1, tmp_path, "int8")
    expected = simtile.FlatIndex.load(whole).search(queries, K)
    search = example.ShardedSearch(files, timeout=300)
    assert len(search) == DOCUMENTS
    assert len({os.getpid(), *search.pids}) == 4
    check(search.search(queries, K), expected)

    # Killed with the query on its way: another actor takes its shard from the file.
    before = list(search.pids)
    check(example.kill_while_searching(search, 1, queries, K), expected)
    assert [a == b for a, b in zip(before, search.pids, strict=True)] == [True, False, True]
    check(search.search(queries, K), expected)

    # An error of the query's own is no lost shard.
    with pytest.raises(ValueError, match="expected"):
        search.search(queries[:, :5], K)
    assert before[0] == search.pids[0]

    # Without its file the shard is lost, and nothing is returned.
    files[2].rename(tmp_path / "away")
    with pytest.raises(example.LostShards) as raised:
        example.kill_while_searching(search, 2, queries, K)
    assert "1000 of 3001 documents cannot be searched" in str(raised.value)
    assert "ids 2001 to 3000" in str(raised.value)

    # A file that holds other documents than before is no replacement.
    fewer = simtile.FlatIndex.load(tmp_path / "away")
    fewer.remove([2001])
    fewer.save(files[2])
    with pytest.raises(example.LostShards, match="holds Range"):
        search.search(queries, K)
    (tmp_path / "away").rename(files[2])  # and what was in its place is not asked again
    check(search.search(queries, K), expected)

    # An actor that does not answer in time is lost as well.
    search.reloads, search.timeout = 0, 2
    os.kill(search.pids[0], signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(example.LostShards, match="1001 of 3001 documents"):
            search.search(queries, K)
    finally:
        os.kill(search.pids[0], signal.SIGCONT)
    assert time.monotonic() - started < 60


def test_shards_that_overlap(example, tmp_path):
    documents, _ = data()
    files = example.write_shards(documents, 2, tmp_path, "float32")
    with pytest.raises(ValueError, match="ids overlap"):
        example.ShardedSearch([files[0], files[0]])
