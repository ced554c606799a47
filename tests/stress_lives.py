"""Indexes that many threads change and search at once, and whether what a search found can be.

Every document has generations, whose scores are computed before, one after the other. Of each it
is written down when its life began and ended, so that every result can be explained: a document
that is found lived at some time of the search, with this score; one that lived all the time and is
better than the worst that was found was found as well.
"""

import time

import numpy as np

import simtile

IDS = 16  # of each thread, which alone changes them
GENERATIONS = 4
DIM = 32
QUERIES = 3
MOST_WORK = 60.0  # seconds until a search counts as hanging; older lives are forgotten


class Life:
    """One generation of a document. Times are those around the calls, None: not yet."""

    __slots__ = ("added", "adding", "generation", "removed", "removing")

    def __init__(self, generation, adding):
        self.generation, self.adding = generation, adding
        self.added = self.removing = self.removed = None


class Shared:
    """An index, documents [id][generation], their scores, and their lives."""

    def __init__(self, name, documents, queries):
        self.name, self.index = name, make(name)
        self.documents, self.queries = documents, queries
        ids = len(documents)
        self.lives = [[] for _ in range(ids)]
        serial = make(name)
        flat = [x for own in documents for x in own]
        serial.add(batch(name, flat), np.arange(len(flat)))
        every = np.tile(np.arange(len(flat)), (QUERIES, 1))
        self.truth = np.asarray(serial.score(queries, every)).reshape(QUERIES, ids, GENERATIONS)

    def alive(self, ids):
        """Of the caller's own ids those that are in the index."""
        return [i for i in ids if self.lives[i] and self.lives[i][-1].removing is None]

    def generation(self, i):
        return (self.lives[i][-1].generation + 1) % GENERATIONS if self.lives[i] else 0

    def begin(self, ids):
        """The next generation of each is about to be added: their lives and vectors."""
        now, found = time.monotonic(), []
        for i in ids:
            life = Life(self.generation(i), now)
            recent = [x for x in self.lives[i] if (x.removed or now) >= now - MOST_WORK]
            self.lives[i] = [*recent, life]
            found.append(life)
        return found, [self.documents[i][x.generation] for i, x in zip(ids, found, strict=True)]

    def add(self, ids):
        lives, vectors = self.begin(ids)
        self.index.add(batch(self.name, vectors), np.array(ids))
        for life in lives:
            life.added = time.monotonic()

    def update(self, ids):
        before = [self.lives[i][-1] for i in ids]
        for life in before:
            life.removing = time.monotonic()
        lives, vectors = self.begin(ids)
        self.index.update(batch(self.name, vectors), np.array(ids))
        for old, new in zip(before, lives, strict=True):
            old.removed = new.added = time.monotonic()

    def remove(self, ids):
        lives = [self.lives[i][-1] for i in ids]
        for life in lives:
            life.removing = time.monotonic()
        self.index.remove(np.array(ids))
        for life in lives:
            life.removed = time.monotonic()

    def search(self, k, index=None, begin=None, end=None, **options):
        """Of the index; or of another one, whose documents are those of some time in between."""
        begin = begin or time.monotonic()
        scores, ids = (index or self.index).search(self.queries, k, **options)[:2]
        end = end or time.monotonic()
        assert end - begin < MOST_WORK, f"a search took {end - begin:.0f} s"
        for q in range(QUERIES):
            self.explain(q, scores[q], ids[q], begin, end)

    def explain(self, q, scores, ids, begin, end):
        found = set()
        for i, score in zip(ids.tolist(), scores, strict=True):
            if i < 0:
                assert score == -np.inf, f"{self.name}: id -1 with score {score}"
                continue
            assert i not in found, f"{self.name}: id {i} twice"
            found.add(i)
            possible = [
                self.truth[q, i, x.generation]
                for x in self.lives[i]
                if x.adding <= end and (x.removed is None or x.removed >= begin)
            ]
            assert score in possible, f"{self.name}: id {i} scored {score}, possible: {possible}"
        worst = scores[-1]
        for i, lives in enumerate(self.lives):
            for x in lives:
                throughout = x.added is not None and x.added <= begin
                throughout &= x.removing is None or x.removing >= end
                missed = throughout and i not in found and self.truth[q, i, x.generation] > worst
                assert not missed, f"{self.name}: id {i} was not found"

    def search_own(self, ids, k):
        """Of documents that nobody else changes the result is known."""
        alive = self.alive(ids)
        scores, found = self.index.search(self.queries, k, allow=np.array(alive, np.int64))[:2]
        own = [self.lives[i][-1].generation for i in alive]
        for q in range(QUERIES):
            expected = np.sort(self.truth[q, alive, own])[::-1][:k]
            count = len(expected)
            assert (np.sort(found[q, :count]) == np.sort(found[q, found[q] >= 0])).all()
            assert set(found[q, :count].tolist()) <= set(alive)
            assert (scores[q, :count] == expected).all(), f"{self.name}: {scores[q]}, {expected}"
            assert (found[q, count:] == -1).all()


def ids_of(owner):
    return range((owner + 1) * IDS, (owner + 2) * IDS)


def make(name):
    kind, _, dtype = name.partition(" ")
    if kind == "CascadeIndex":
        # So many candidates that nothing is lost before the last stage.
        return simtile.CascadeIndex(DIM, ("binary", dtype), metric="dot", oversample=(1e6,))
    if kind == "MultiVectorIndex":
        return simtile.MultiVectorIndex(DIM, dtype)
    return simtile.FlatIndex(DIM, dtype, metric="dot")


def batch(name, documents):
    if name.startswith("MultiVectorIndex"):
        return documents
    return np.array(documents, np.float32).reshape(-1, DIM)


NAMES = [
    "FlatIndex float32",
    "FlatIndex int8_vector",
    "CascadeIndex int8_vector",
    "MultiVectorIndex int8",
]


def shared_indexes(owners):
    """One of each, with ids for so many threads; 0 and 1 are nobody's, which could be a mask."""
    rng = np.random.default_rng(1)
    found = []
    for name in NAMES:
        tokens = name.startswith("MultiVectorIndex")
        shape = (QUERIES, 4, DIM) if tokens else (QUERIES, DIM)
        queries = rng.standard_normal(shape).astype(np.float32)
        documents = [
            [
                rng.standard_normal((1 + i % 5, DIM) if tokens else DIM).astype(np.float32)
                for _ in range(GENERATIONS)
            ]
            for i in range((owners + 1) * IDS)
        ]
        found.append(Shared(name, documents, queries))
    return found
