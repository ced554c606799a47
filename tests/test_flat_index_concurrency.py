"""Searches while other threads add, update and remove: each sees one state."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import simtile
from simtile import CascadeIndex, FlatIndex, _lazy, _storage

DIM = 8
BATCH = 64


def run_threads(*targets):
    """Run them at once; whatever one raises is raised here."""
    errors = []

    def guarded(target):
        try:
            target()
        except BaseException as error:
            errors.append(error)
            stop.set()

    stop = threading.Event()
    threads = [threading.Thread(target=guarded, args=(lambda t=t: t(stop),)) for t in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def batch(i):
    """Documents that say which batch they are of: all of a batch have its score."""
    return np.full((BATCH, DIM), i, np.float32)


@pytest.mark.parametrize("copied_bytes", [0, 1 << 26])
@pytest.mark.parametrize("explicit", [False, True])
def test_adds_are_seen_as_a_whole(monkeypatch, copied_bytes, explicit):
    """And in order: with batch i there are all before it."""
    monkeypatch.setattr(_storage, "COPIED_BYTES", copied_bytes)
    index = FlatIndex(DIM, metric="dot")
    q = np.ones((1, DIM), np.float32)
    rounds = 60

    def add(stop):
        rng = np.random.default_rng(0)
        for i in range(1, rounds + 1):
            ids = rng.permutation(BATCH) * rounds + i if explicit else None
            index.add(batch(i), ids)
            time.sleep(0.001)
            if stop.is_set():
                return

    def search(stop):
        last = 0
        while last < rounds and not stop.is_set():
            offsets, scores, ids = index.range_search(q, 0.0)
            count = offsets[1]
            assert count % BATCH == 0
            newest = count // BATCH
            assert newest >= last  # time does not go back
            last = newest
            expected = np.repeat(np.arange(newest, 0, -1), BATCH) * DIM
            np.testing.assert_array_equal(scores, expected)
            assert len(np.unique(ids)) == count
            if explicit:
                np.testing.assert_array_equal((ids - 1) % rounds + 1, expected // DIM)
            assert len(index) >= count

    run_threads(add, search, search)
    assert len(index) == rounds * BATCH


def test_updates_and_removals_are_seen_as_a_whole(monkeypatch):
    """All documents have one generation; half of them come and go together."""
    monkeypatch.setattr(_storage, "COMPACTED_ROWS", 100)
    index = FlatIndex(DIM, metric="dot")
    rng = np.random.default_rng(0)
    fixed, moving = rng.permutation(1000)[: 2 * BATCH].reshape(2, BATCH)
    index.add(batch(1), fixed)
    rounds = 150
    q = np.ones((1, DIM), np.float32)
    finished = threading.Event()

    def write(stop):
        for i in range(rounds):
            index.update(batch(i + 1), rng.permutation(fixed))
            index.add(batch(-1), moving)
            index.remove(rng.permutation(moving))
            if stop.is_set():
                return
        index.update(batch(rounds + 1), fixed)
        finished.set()

    def search(stop):
        generation = 0
        while generation < rounds + 1 and not stop.is_set():
            scores, ids = index.search(q, 2 * BATCH)
            found = ids[0, ids[0] >= 0]
            there = np.isin(moving, found).sum()
            assert there in (0, BATCH)
            np.testing.assert_array_equal(found[:BATCH], np.sort(fixed))
            np.testing.assert_array_equal(found[BATCH:], np.sort(moving)[:there])
            seen = np.unique(scores[0, :BATCH])
            assert len(seen) == 1
            assert seen[0] // DIM >= generation
            generation = int(seen[0] // DIM)

    def look(stop):
        """By ids, and by a mask in the order of ids."""
        while not finished.is_set() and not stop.is_set():
            scores = index.score(q, fixed[None])
            assert len(np.unique(scores)) == 1
            _, ids = index.search(q, 3, allow=fixed[:3])
            assert sorted(ids[0].tolist()) == sorted(fixed[:3].tolist())

    run_threads(write, search, search, look)


def test_a_cascade_sees_one_state_in_all_its_stages(monkeypatch):
    """What a search hands from stage to stage is of one moment, with certificates too."""
    monkeypatch.setattr(_storage, "COMPACTED_ROWS", 100)
    index = CascadeIndex(DIM, ("binary", "int8_vector", "float32"), metric="dot", oversample=(3, 2))
    rng = np.random.default_rng(0)
    fixed, moving = rng.permutation(1000)[: 2 * BATCH].reshape(2, BATCH)
    index.add(batch(1), fixed)
    rounds = 80
    q = np.ones((2, DIM), np.float32)

    def write(stop):
        for i in range(rounds):
            index.update(batch(i + 1), rng.permutation(fixed))
            index.add(batch(-1), moving)
            index.remove(rng.permutation(moving))
            if stop.is_set():
                return
        index.update(batch(rounds + 1), fixed)

    def search(stop, certify):
        generation = 0
        while generation < rounds + 1 and not stop.is_set():
            scores, ids = index.search(q, 2 * BATCH, certify=certify)[:2]
            found = ids[0, ids[0] >= 0]
            there = len(found) - BATCH
            assert there in (0, BATCH)
            np.testing.assert_array_equal(found[:BATCH], np.sort(fixed))
            np.testing.assert_array_equal(found[BATCH:], np.sort(moving)[:there])
            seen = np.unique(scores[:, :BATCH])
            assert len(seen) == 1
            assert seen[0] // DIM >= generation
            generation = int(seen[0] // DIM)

    run_threads(write, lambda stop: search(stop, False), lambda stop: search(stop, True))


def test_one_id_is_added_by_one_of_many_threads():
    index = FlatIndex(DIM)
    added = []

    def add(stop):
        for i in range(50):
            try:
                index.add(np.ones((3, DIM)), [i, 1000 + i, 2000 + i])
                added.append(i)
            except ValueError as error:
                assert "in the index already" in str(error)  # noqa: PT017

    run_threads(*[add] * 4)
    assert sorted(added) == list(range(50))
    assert len(index) == 150


def test_a_file_saved_meanwhile_is_one_state(tmp_path):
    index = FlatIndex(DIM, metric="dot")
    done = threading.Event()

    def add(stop):
        for i in range(1, 40):
            index.add(batch(i))
        done.set()

    def save(stop):
        while not done.is_set() and not stop.is_set():
            index.save(tmp_path / "a")
            scores, _ = FlatIndex.load(tmp_path / "a", verify="full").search(
                np.ones((1, DIM)), 5000
            )
            found = scores[0, np.isfinite(scores[0])]
            newest = len(found) // BATCH
            np.testing.assert_array_equal(found, np.repeat(np.arange(newest, 0, -1), BATCH) * DIM)

    run_threads(add, save)


def test_an_interrupted_add_changes_nothing(monkeypatch):
    """Whatever is raised between the first and the last row."""
    index = FlatIndex(DIM, metric="dot")
    index.add(batch(1), np.arange(BATCH))
    index.add(batch(2)[:5], np.arange(BATCH, BATCH + 5))
    before = index.search(np.ones((1, DIM)), 100)

    def fail(*_):
        raise MemoryError("no memory")

    for name in ("_extended", "_with_room", "IdMap.add"):
        with monkeypatch.context() as patch:
            owner, _, method = name.rpartition(".")
            patch.setattr(getattr(_storage, owner) if owner else _storage, method or name, fail)
            with pytest.raises(MemoryError):
                index.add(np.full((3000, DIM), 9.0), np.arange(1000, 4000))
        found = index.search(np.ones((1, DIM)), 100)
        np.testing.assert_array_equal(found[0], before[0])
        np.testing.assert_array_equal(found[1], before[1])
    index.add(np.full((3000, DIM), 9.0), np.arange(1000, 4000))
    assert len(index) == BATCH + 3005


def test_ranges_are_there_for_whoever_sees_documents():
    x = np.random.default_rng(0).standard_normal((100, DIM)).astype(np.float32)
    expected = simtile.topk(x[:1], simtile.quantize(x, "int8"), 3)
    for _ in range(20):
        index = FlatIndex(DIM, "int8")

        def search(stop, index=index):
            while not stop.is_set():
                scores, ids = index.search(x[:1], 3)
                if ids[0, 0] >= 0:
                    np.testing.assert_array_equal(scores, expected[0])
                    return

        run_threads(search, lambda stop, index=index: index.add(x))


def test_a_child_can_change_an_index_that_was_being_changed():
    """Forked while another thread, which does not exist in the child, holds its lock."""
    code = """
import os, sys, threading
import numpy as np
import simtile

x = np.eye(8, dtype=np.float32)
index, tokens = simtile.FlatIndex(8), simtile.MultiVectorIndex(8)
index.add(x)
tokens.add(x[:, None])
held, done = threading.Event(), threading.Event()

def hold():
    with index._storage.lock, tokens._storage.lock:
        held.set()
        done.wait()

holder = threading.Thread(target=hold)
holder.start()
held.wait()
child = os.fork()
if child == 0:
    import faulthandler
    faulthandler.dump_traceback_later(20, exit=True)
    index.add(x)
    tokens.add(x[:, None])
    index.remove([0])
    os._exit(42 if len(index) == 15 and len(tokens) == 16 else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
done.set()
holder.join()
index.add(x)
assert len(index) == 16
sys.exit(status)
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 42, ran.stderr


def test_a_child_has_nothing_of_a_change_that_ended_in_its_parent():
    """Forked after the documents of another thread have a codec, or a place, and before both."""
    code = """
import os, sys, threading
import numpy as np
import simtile
from simtile import _storage

x = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
flat, tokens = simtile.FlatIndex(8, "int8"), simtile.MultiVectorIndex(8, "residual2", centroids=4)
inside, done = threading.Semaphore(0), threading.Event()
add = _storage.Storage.add

def slow_add(self, columns, ids):
    found = add(self, columns, ids) if "starts" in columns else None
    inside.release()
    done.wait()
    return found if found is not None else add(self, columns, ids)

_storage.Storage.add = slow_add
adders = [
    threading.Thread(target=flat.add, args=(9 * x[:200],)),
    threading.Thread(target=tokens.add, args=(9 * x[:200, None],)),
]
for adder in adders:
    adder.start()
    inside.acquire()
assert flat.ranges is not None and tokens.codec is not None
child = os.fork()
if child == 0:
    import faulthandler
    faulthandler.dump_traceback_later(20, exit=True)
    _storage.Storage.add = add
    assert flat.ranges is None and tokens.codec is None
    flat.add(x)
    tokens.add(x[:, None])
    assert np.array_equal(flat.ranges, [x.min(0), x.max(0)])
    assert (flat.search(x[:5], 1)[1][:, 0] == range(5)).all()
    assert len(tokens) == 400 and tokens.search(x[:3, None], 400)[1].min() == 0
    os._exit(42)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
done.set()
for adder in adders:
    adder.join()
assert len(flat) == len(tokens) == 200
sys.exit(status)
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 42, ran.stderr


def test_what_is_computed_once_does_not_wait_for_others():
    """As functools.cached_property does before Python 3.12: in a forked child for ever."""

    class Slow:
        def __init__(self, ready):
            self.ready = ready

        @_lazy.cached_property
        def value(self):
            self.ready.wait(60)
            return object()

    never, now = Slow(threading.Event()), Slow(threading.Event())
    other = threading.Thread(target=lambda: never.value)
    other.start()
    now.ready.set()
    started = time.monotonic()
    assert now.value is now.value
    assert time.monotonic() - started < 30
    never.ready.set()
    other.join()
