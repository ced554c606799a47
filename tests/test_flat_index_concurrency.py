"""Searches while other threads add, update and remove: each sees one state."""

import threading
import time

import numpy as np
import pytest

import simtile
from simtile import CascadeIndex, FlatIndex, _storage

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
