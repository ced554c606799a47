"""MultiVectorIndex while several threads use it."""

import threading

import numpy as np
from multi_vector_cases import DIM

from simtile import (
    MultiVectorIndex,
    _storage,
    _token_storage,
)


def test_searches_see_one_state_while_others_write(monkeypatch, tmp_path):
    """All documents have one generation, in memory and in a file that is saved meanwhile."""
    monkeypatch.setattr(_storage, "COMPACTED_ROWS", 30)
    monkeypatch.setattr(_token_storage, "COMPACTED_TOKENS", 100)
    index = MultiVectorIndex(DIM)
    rng = np.random.default_rng(0)
    fixed, moving = rng.permutation(1000)[:40].reshape(2, 20)
    q = np.ones((2, DIM), np.float32)
    errors, done = [], threading.Event()

    def generation(i):
        return [np.full((1 + n % 5, DIM), i, np.float32) for n in range(20)]

    index.add(generation(1), fixed)

    def write():
        for i in range(2, 60):
            index.update(generation(i), rng.permutation(fixed))
            index.add(generation(-1), moving)
            index.remove(rng.permutation(moving))

    def check(found):
        scores, ids = found
        there = int((ids[0] >= 0).sum())
        assert there in (20, 40)
        np.testing.assert_array_equal(ids[0, :20], np.sort(fixed))
        assert len(np.unique(scores[0, :20])) == 1

    def search():
        while not done.is_set():
            check(index.search(q, 41))
            check(index.search(q, 41, prefilter=1000))

    def save():
        while not done.is_set():
            index.save(tmp_path / "a")
            check(MultiVectorIndex.load(tmp_path / "a", verify="full").search(q, 41))

    def guarded(target):
        try:
            target()
        except BaseException as error:
            errors.append(error)
        finally:
            if target is write:
                done.set()

    threads = [threading.Thread(target=guarded, args=(t,)) for t in (write, search, save)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
