"""Ctrl-C in the middle of a call: KeyboardInterrupt within a second, and everything as before.

`python stress_interrupts.py maxsim` makes a call of seconds in this process and interrupts it.
Inputs are long, not large: views that repeat a few rows. Calls use two threads, so that they take
seconds on larger machines too; one that is over before the signal comes is a failure.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import simtile

WITHIN = 1.0  # seconds
DIM = 128


class Long(NamedTuple):
    call: Callable[[], Any]
    # What an interrupted call must not change: the same before and after.
    state: Callable[[], Any] = lambda: None


def repeated(rows, count):
    """So many rows, of which no memory holds more than `rows`."""
    return np.broadcast_to(rows, (count, *rows.shape))


def losses(rng) -> dict[str, Callable[[], Long]]:
    def of(function, n, **options):
        x = rng.standard_normal((n, 256), dtype=np.float32)
        arguments = (x, x) if function in (simtile.info_nce_grad, simtile.siglip_loss) else (x,)
        return Long(lambda: function(*arguments, threads=2, **options))

    return {
        "info_nce_grad": lambda: of(simtile.info_nce_grad, 120_000),
        "siglip_loss": lambda: of(simtile.siglip_loss, 120_000),
        "uniformity": lambda: of(simtile.uniformity, 120_000),
        "batch_hard_triplet_loss": lambda: of(
            lambda x, threads: simtile.batch_hard_triplet_loss(
                x, np.arange(len(x)) % 999, threads=threads
            ),
            120_000,
        ),
    }


def scores(rng) -> dict[str, Callable[[], Long]]:
    queries = rng.standard_normal((512, 32, DIM), dtype=np.float32)
    one = rng.standard_normal((180, DIM), dtype=np.float32)
    tokens = np.tile(one, (2_000, 1))
    offsets = np.arange(0, len(tokens) + 1, 180)

    def packed(kind=None, **options):
        codes = tokens if kind is None else simtile.quantize(tokens, kind, threads=2)
        many = queries if kind is None else np.tile(queries, (4, 1, 1))
        return Long(lambda: simtile.maxsim_packed(many, codes, offsets, threads=2, **options))

    def residual():
        codec = simtile.ResidualCodec.train(one, centroids=8)
        codes = codec.encode(one)
        stored = simtile.ResidualTokens(
            codec,
            np.tile(codes.centroid_ids, 2_000),
            np.tile(codes.residuals, (2_000, 1)),
            np.tile(codes.inverse_norms, 2_000),
        )
        return Long(lambda: simtile.maxsim_packed(queries, stored, offsets, k=5, threads=2))

    return {
        "maxsim": lambda: Long(lambda: simtile.maxsim(queries, repeated(one, 6_000), threads=2)),
        "maxsim_pairwise": lambda: Long(
            lambda long=tokens[:3_600]: simtile.maxsim_pairwise(
                repeated(queries[0], 60_000), repeated(long, 60_000), threads=2
            )
        ),
        "maxsim_packed": lambda: packed(),
        "maxsim_packed k": lambda: packed(k=5),
        "maxsim_packed int8_vector": lambda: packed("int8_vector"),
        "maxsim_packed binary": lambda: packed("binary", k=5),
        "maxsim_packed residual2": residual,
        "xtr_scores": lambda: Long(
            lambda: simtile.xtr_scores(queries, tokens.reshape(2_000, 180, DIM), threads=2)
        ),
        "pool": lambda: Long(
            lambda: simtile.pool(repeated(tokens[:500], 100_000), None, threads=2)
        ),
        "ResidualCodec.train": lambda: Long(
            lambda: simtile.ResidualCodec.train(
                rng.standard_normal((200_000, DIM), dtype=np.float32), centroids=4096, threads=2
            )
        ),
    }


def searches(rng) -> dict[str, Callable[[], Long]]:
    documents = rng.standard_normal((200_000, DIM), dtype=np.float32)
    one = rng.standard_normal(DIM, dtype=np.float32)
    wide = documents[:20_000].astype(np.float64)

    def topk(kind=None, count=100_000, **options):
        found = documents if kind is None else simtile.quantize(documents, kind, threads=2)
        queries: Any = repeated(one, count)
        if options.get("metric") == "hamming":
            queries = simtile.quantize(queries, "binary", threads=2)
        return Long(lambda: simtile.topk(queries, found, 10, threads=2, **options))

    kinds = {"float32": None, "int8": "int8", "int4": "int4", "int8_vector": "int8_vector"}
    return {
        **{f"topk {name}": lambda kind=kind: topk(kind) for name, kind in kinds.items()},
        "topk float64": lambda: Long(
            lambda: simtile.topk(repeated(one, 100_000), wide, 10, threads=2)
        ),
        "topk binary": lambda: topk("binary"),
        "topk hamming": lambda: topk("binary", 2_000_000, metric="hamming"),
        "range_search": lambda: Long(
            lambda: simtile.range_search(repeated(one, 100_000), documents, 0.9, threads=2)
        ),
        "mine_hard_negatives": lambda: Long(
            lambda: simtile.mine_hard_negatives(
                repeated(one, 100_000), documents, np.zeros(100_000, np.int64), k=5, threads=2
            )
        ),
        "quantize": lambda: Long(
            lambda: simtile.quantize(repeated(documents[0].repeat(8), 4_000_000), "binary")
        ),
    }


def indexes(rng) -> dict[str, Callable[[], Long]]:
    x = rng.standard_normal((100_000, DIM), dtype=np.float32)
    many = repeated(x[0], 200_000)

    def filled(index, documents=x):
        index.add(documents)
        return index, lambda: (len(index), *index.search(documents[:1], 5, threads=2))

    def flat(**options):
        return filled(simtile.FlatIndex(DIM, **options))

    def search(made, **options):
        index, state = made
        return Long(lambda: index.search(many, 10, threads=2, **options), state)

    def range_search():
        index, state = flat()
        return Long(lambda: index.range_search(many, 0.9, threads=2), state)

    def add(made):
        index, state = made
        return Long(lambda: index.add(repeated(x[0], 3_000_000)), state)

    def remove():
        """Compacts what is left."""
        index = simtile.FlatIndex(DIM, "float32")
        index.add(repeated(x[0], 6_000_000), np.random.default_rng(1).permutation(6_000_000))
        gone = np.arange(3_100_000)
        kept = np.arange(3_100_000, 3_100_005)

        def state():
            return len(index), *index.search(x[:1], 5, threads=2), *index.score(x[:1], kept[None])

        return Long(lambda: index.remove(gone), state)

    def save():
        folder = tempfile.TemporaryDirectory()
        index, state = filled(simtile.FlatIndex(DIM, "float32"), repeated(x[0], 4_000_000))
        path = Path(folder.name) / "saved"
        simtile.FlatIndex(DIM).save(path)

        def whole():
            assert [p.name for p in path.parent.iterdir()] == ["saved"]
            return len(simtile.FlatIndex.load(path, verify="full"))

        return Long(lambda: index.save(path), lambda folder=folder: (whole(), *state()))

    def multi_vector():
        documents = list(x[:90_000].reshape(500, 180, DIM))
        index = simtile.MultiVectorIndex(DIM, "int8")
        index.add(documents * 4)
        queries = np.tile(x[:32], (3_000, 1, 1))
        return Long(
            lambda: index.search(queries, 5, threads=2),
            lambda: (len(index), *index.search(queries[:1], 5, threads=2)),
        )

    return {
        "FlatIndex.search": lambda: search(flat()),
        "FlatIndex.range_search": range_search,
        "CascadeIndex.search": lambda: search(
            filled(simtile.CascadeIndex(DIM, ("int8", "float32")))
        ),
        "MultiVectorIndex.search": multi_vector,
        "FlatIndex.add": lambda: add(flat(dtype="int8_vector")),
        "CascadeIndex.add": lambda: add(
            filled(simtile.CascadeIndex(DIM, ("binary", "int8_vector", "float32")))
        ),
        "FlatIndex.remove": remove,
        "FlatIndex.save": save,
    }


GROUPS = {
    losses: ("info_nce_grad", "siglip_loss", "uniformity", "batch_hard_triplet_loss"),
    scores: (
        "maxsim",
        "maxsim_pairwise",
        "maxsim_packed",
        "maxsim_packed k",
        "maxsim_packed int8_vector",
        "maxsim_packed binary",
        "maxsim_packed residual2",
        "xtr_scores",
        "pool",
        "ResidualCodec.train",
    ),
    searches: (
        "topk float32",
        "topk float64",
        "topk int8",
        "topk int4",
        "topk int8_vector",
        "topk binary",
        "topk hamming",
        "range_search",
        "mine_hard_negatives",
        "quantize",
    ),
    indexes: (
        "FlatIndex.search",
        "FlatIndex.range_search",
        "CascadeIndex.search",
        "MultiVectorIndex.search",
        "FlatIndex.add",
        "CascadeIndex.add",
        "FlatIndex.remove",
        "FlatIndex.save",
    ),
}
NAMES = [name for names in GROUPS.values() for name in names]


def long_call(name) -> Long:
    """Only its inputs are made."""
    (group,) = (group for group, names in GROUPS.items() if name in names)
    return group(np.random.default_rng(0))[name]()


class Over(AssertionError):
    """The call ended without KeyboardInterrupt."""


def interrupt(long, after):
    """Make the call and interrupt it; the seconds from the signal to the exception.

    They are of the caller's time or, where that is more, half of both threads': whatever else runs
    on the machine.
    """
    before = long.state()
    sent = ()
    caller = threading.get_ident()

    def now():
        own = time.clock_gettime(time.pthread_getcpuclockid(caller))
        return time.monotonic(), own, time.process_time()

    def send():
        nonlocal sent
        time.sleep(after)
        sent = now()
        os.kill(os.getpid(), signal.SIGINT)

    sender, over = threading.Thread(target=send), False
    try:
        sender.start()
        long.call()
        over = True
        time.sleep(after + 1)
    except KeyboardInterrupt:
        pass
    wall, own, both = (after - before for after, before in zip(now(), sent, strict=True))
    sender.join()
    if over:
        raise Over("the call was over before the signal, or did not notice it")
    again = long.state()
    if before is not None:
        for one, other in zip(again, before, strict=True):
            np.testing.assert_array_equal(one, other)
    return min(wall, max(own, both / 2))


def main(name, *after):
    long = long_call(name)
    took = None
    for seconds in after or (0.3, 0.1, 0.03):  # on fast machines the call may be over soon
        try:
            took = interrupt(long, seconds)
            break
        except Over as error:
            failure = error
    if took is None:
        raise failure
    print(f"{name}: {took:.3f} s", flush=True)
    assert took < WITHIN, f"{name}: {took:.2f} s from the signal to KeyboardInterrupt"


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
