"""Memory that does not grow from call to call, and calls for which there is not enough.

`python stress_memory.py flat 1000000` makes so many small calls and looks at the process's memory;
`python stress_memory.py scarce all` makes larger ones under limits that let them begin but not end.
"""

import ctypes
import gc
import itertools
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import stress_calls

import simtile
from simtile import _token_storage

WARM = 10_000  # calls
GROWTH = 4 << 20  # bytes that a million calls may leave: 4 each, less than any forgotten object
DIM = 128


# Memory in use


class Mallinfo(ctypes.Structure):
    """mallinfo2 of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


M_MMAP_THRESHOLD = -3  # of mallopt

libc = ctypes.CDLL(None)
if hasattr(libc, "mallinfo2"):
    libc.mallinfo2.restype = Mallinfo


def resident():
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def in_use():
    """Bytes that malloc has given out, and blocks of Python's own allocator: to the last one."""
    gc.collect()
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd, sys.getallocatedblocks()


def left_by(call, times):
    """Bytes and blocks that so many calls leave."""
    for _ in range(times):  # caches are filled
        call()
    before = in_use()
    for _ in range(times):
        call()
    after = in_use()
    return after[0] - before[0], after[1] - before[1]


def changing_indexes():
    """Calls that add to an index, search it and remove again, by name."""
    _token_storage.COMPACTED_TOKENS = 256  # so that all have been compacted before it is measured
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 32)).astype(np.float32)
    ids = itertools.count()
    made = {
        "FlatIndex": (simtile.FlatIndex(32), x, x[:1]),
        "CascadeIndex": (simtile.CascadeIndex(32, ("binary", "int8_vector")), x, x[:1]),
        "MultiVectorIndex": (simtile.MultiVectorIndex(32), x.reshape(16, 1, 32), x[None, :4]),
    }

    def change(index, documents, queries):
        own = np.array([next(ids) for _ in range(16)])
        index.add(documents, own)
        index.search(queries, 5)
        index.update(documents[::-1], own)
        index.remove(own)

    return {f"{name} changes": lambda own=own: change(*own) for name, own in made.items()}


def small_calls():
    return {**stress_calls.calls(n=8, d=16, threads=1), **changing_indexes()}


def flat(times):
    """Raise if memory grows while all small calls are made in turn, so many together."""
    every = itertools.cycle(small_calls().values())
    for call in itertools.islice(every, WARM):
        call()
    before = resident()
    for call in itertools.islice(every, times):
        call()
    grown = resident() - before
    print(f"{times} calls: {grown / 2**20:+.1f} MiB", flush=True)
    assert grown <= GROWTH * max(times / 1e6, 0.25), f"{grown} bytes after {times} calls"


# Memory that is not there


def used():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


class Limit:
    """So many more bytes of address space than now."""

    def __init__(self, more):
        self.more = more

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used() + self.more, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_AS, self.before)


def larger_calls():
    """Calls that need some ten or hundred MB, by name, with inputs that are there."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30_000, DIM)).astype(np.float32)
    many = np.broadcast_to(x[0], (400_000, DIM))
    tokens = np.broadcast_to(x[:20], (200_000, 20, DIM))
    codes = {kind: simtile.quantize(x, kind) for kind in ("int8", "binary")}
    narrow = np.ascontiguousarray(x[:, :8])
    offsets = np.arange(0, len(x) + 1, 10)
    queries = np.broadcast_to(x[:1], (2_000, 1, DIM))
    calls = {
        "info_nce_grad": lambda: simtile.info_nce_grad(narrow, narrow, threads=2),
        "siglip_loss": lambda: simtile.siglip_loss(narrow, narrow, threads=2),
        "uniformity": lambda: simtile.uniformity(narrow, threads=2),
        "topk": lambda: simtile.topk(x[:200], x, 30_000, threads=2),
        "topk of a few": lambda: simtile.topk(many, x[:100], 10, threads=2),
        "range_search": lambda: simtile.range_search(x[:100], x, -1.0, threads=2),
        "maxsim": lambda: simtile.maxsim(x[None, :100], tokens[:2_000], return_argmax=True),
        "maxsim_packed": lambda: simtile.maxsim_packed(queries, x, offsets, threads=2),
        "pool": lambda: simtile.pool(tokens, None, threads=2),
        "mine_hard_negatives": lambda: simtile.mine_hard_negatives(many[:50_000], x[:500], k=30),
        "xtr_scores": lambda: simtile.xtr_scores(x[None, :500], tokens[:1_000], top_k=9_000),
    }
    for kind in ("int8_vector", "binary", "int4"):
        calls[f"quantize {kind}"] = lambda kind=kind: stress_calls.arrays_of(
            simtile.quantize(many, kind, ranges=None if kind != "int4" else x[:2] * 0 + [[-9], [9]])
        )
    for kind, own in codes.items():
        calls[f"topk {kind}"] = lambda own=own: simtile.topk(x[:200], own, 30_000, threads=2)
    return calls


FEW = {"topk", "pool", "quantize int4"}
STEPS = [0, *(1 << i for i in range(14, 33))]


def scarce(call, state=lambda: None, same=stress_calls.same):
    """Make a call with more and more memory until there is enough; how often there was not.

    `state` is what a call that fails must leave as it was.
    """
    before, failed = state(), 0
    libc.malloc_trim(0)
    for more in STEPS:
        try:
            with Limit(more):
                call()
        except MemoryError:
            failed += 1
            assert same(state(), before), f"with {more} bytes: a call that failed changed something"
        else:
            return failed
    raise AssertionError("there is never enough memory")


def scarce_calls(names):
    """Calls, or those of some names, fail at first, and then give what they do without a limit."""
    calls = {n: call for n, call in larger_calls().items() if names is None or n in names}
    never = []
    for name, call in calls.items():
        expected = call()
        found = []
        failed = scarce(lambda call=call, found=found: found.append(call()))
        print(f"{name}: {failed} failed", flush=True)
        never += [name] * (not failed)
        assert stress_calls.same(found[-1], expected), f"{name}: another result"
        del expected, found
    # Some find all they need in what the process keeps: which, is up to the system.
    assert len(never) <= len(calls) // 2, f"{never} need no memory"


def indexes():
    """Of each kind: the index, documents to add, queries."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2_000, DIM)).astype(np.float32)
    for dtype in ("float32", "int8", "int8_vector"):  # the second one is that of a few
        yield simtile.FlatIndex(DIM, dtype), x, x[:2]
    yield simtile.CascadeIndex(DIM, ("binary", "int8", "float32")), x, x[:2]
    for dtype in ("float32", "int8", "residual2"):
        options = {"centroids": 8} if dtype == "residual2" else {}
        tokens = x.reshape(400, 5, DIM)
        yield simtile.MultiVectorIndex(DIM, dtype, **options), tokens, x[None, :3]


def scarce_index(index, documents, queries, path):
    """Adding, updating, removing, saving, loading and searching: all or nothing."""
    shape = (20, *documents.shape)
    many = np.broadcast_to(documents, shape).reshape(-1, *documents.shape[1:])

    def state():
        found = index.search(queries, 9) if len(index) else ()
        return (*map(np.asarray, found), np.asarray(len(index)), index.ids)

    failed = {"first add": scarce(lambda: index.add(many), state)}
    failed["add"] = scarce(lambda: index.add(many), state)
    ids = index.ids
    failed["update"] = scarce(lambda: index.update(many[::-1], ids[: len(many)]), state)
    failed["search"] = scarce(lambda: index.search(queries, len(index)), state)
    failed["save"] = scarce(lambda: index.save(path), state)
    failed["load"] = scarce(lambda: type(index).load(path, mmap=False), state)
    failed["remove"] = scarce(lambda: index.remove(ids[: len(many) + 9]), state)
    print(f"{index!r}: {failed}", flush=True)
    assert failed["first add"]
    assert failed["add"]


def main(what, how_many):
    if what == "flat":
        flat(int(how_many))
    elif what == "scarce":
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 17)  # what is freed is not kept for the next call
        few = how_many == "few"
        scarce_calls(FEW if few else None)
        with tempfile.TemporaryDirectory() as folder:
            for made in itertools.islice(indexes(), *((1, 2) if few else (None,))):
                scarce_index(*made, Path(folder) / "saved")
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
