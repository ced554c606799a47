"""Rows that are added, replaced and removed, beside a dict; older snapshots stay as they were."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from simtile import _snapshot, _storage
from simtile._id_map import IdMap
from simtile._storage import Storage


def columns_of(values):
    values = np.asarray(values, np.int64)
    return {"codes": np.stack([values, -values], axis=1), "norms": values.astype(np.float32)}


def rows_in_order(snapshot):
    """Each id and its value, in the order of `ids`."""
    seen = []
    for part in snapshot.parts():
        np.testing.assert_array_equal(part.columns["codes"][:, 0], -part.columns["codes"][:, 1])
        np.testing.assert_array_equal(part.columns["codes"][:, 0], part.columns["norms"])
        seen += zip(part.ids.tolist(), part.columns["codes"][:, 0].tolist(), strict=True)
    return seen


def values_of(snapshot, ids):
    rows = snapshot.find(np.asarray(ids, np.int64))
    values = np.full(len(rows), -1)
    for segment in snapshot.segments:
        local = snapshot.local_rows(segment, rows)
        here = local >= 0
        values[here] = segment.columns["codes"][local[here], 0]
    return values.tolist()


class AgainstADict(RuleBasedStateMachine):
    """Python's dict keeps a replaced key's place and forgets a removed one's, as an index does."""

    automatic = st.booleans()

    @initialize(automatic=automatic, loaded=st.integers(0, 12), seed=st.integers(0, 2**32 - 1))
    def start(self, automatic, loaded, seed):
        self.rng = np.random.default_rng(seed)
        self.automatic = automatic
        self.next_value = 0
        self.model = {}
        self.next_id = 0
        self.older = []
        self.storage = Storage()
        if loaded:  # as from a file
            columns = columns_of(self.new_values(loaded))
            ids = None if automatic else self.rng.permutation(40)[:loaded]
            self.next_id = loaded if automatic else 0
            self.storage = Storage.of_file(columns, loaded, ids, automatic, self.next_id)
            names = range(loaded) if ids is None else ids.tolist()
            self.model = dict(zip(names, range(loaded), strict=True))
            for array in columns.values():
                array.flags.writeable = False

    def new_values(self, count):
        self.next_value += count
        return np.arange(self.next_value - count, self.next_value)

    @rule(count=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
    def add(self, count, seed):
        values = self.new_values(count)
        if self.automatic:
            ids = None
            names = range(self.next_id, self.next_id + count)
            self.next_id += count
        else:
            free = np.setdiff1d(np.arange(-20, 60), list(self.model))
            ids = np.random.default_rng(seed).permutation(free)[:count]
            values, names = values[: len(ids)], ids.tolist()
        assert self.storage.add(columns_of(values), ids).tolist() == list(names)
        self.model.update(zip(names, values.tolist(), strict=True))

    def some_ids(self, count, seed):
        known = list(self.model)
        return np.array(np.random.default_rng(seed).permutation(known)[:count], np.int64)

    @rule(count=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
    def update(self, count, seed):
        ids = self.some_ids(count, seed)
        values = self.new_values(len(ids))
        self.storage.update(columns_of(values), ids)
        self.model.update(zip(ids.tolist(), values.tolist(), strict=True))

    @rule(count=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
    def remove(self, count, seed):
        ids = self.some_ids(count, seed)
        self.storage.remove(ids)
        for i in ids.tolist():
            del self.model[i]

    @rule()
    def remember(self):
        self.older.append((self.storage.snapshot, dict(self.model)))

    @rule(seed=st.integers(0, 2**32 - 1))
    def wrong_calls_change_nothing(self, seed):
        before = self.storage.snapshot
        known = self.some_ids(2, seed)
        for ids in (np.array([1000]), np.append(known, 1000), np.array([*known[:1], *known[:1]])):
            if len(ids) in (1, 2, 3) and (1000 in ids or len(ids) == 2):
                with pytest.raises(ValueError, match="ids"):
                    self.storage.remove(ids)
                with pytest.raises(ValueError, match="ids"):
                    self.storage.update(columns_of(range(len(ids))), ids)
        for ids in (known[:1], np.array([70, 70])):
            if len(ids):
                with pytest.raises(ValueError, match="ids"):
                    self.storage.add(columns_of(range(len(ids))), ids)
        assert self.storage.snapshot is before

    @invariant()
    def is_the_dict(self):
        if not hasattr(self, "storage"):
            return
        check_snapshot(self.storage.snapshot, self.model)

    def teardown(self):
        for snapshot, model in getattr(self, "older", []):
            snapshot.__dict__.pop("ids", None)
            snapshot.__dict__.pop("ordered_rows", None)
            check_snapshot(snapshot, model)


def check_snapshot(snapshot, model):
    assert len(snapshot) == len(model)
    assert snapshot.ids.tolist() == list(model)
    assert not snapshot.ids.flags.writeable
    assert rows_in_order(snapshot) == list(model.items())
    assert values_of(snapshot, list(model)) == list(model.values())
    unknown = np.setdiff1d(np.arange(-25, 130), list(model))
    assert (snapshot.find(unknown) == -1).all()
    # A mask in the order of ids, as rows of segments: what it lets through has the right ids.
    for keep in ([i % 3 == 0 for i in range(len(model))], [True] * len(model)):
        mask = np.array(keep, bool)
        allowed, from_two = set(), set()
        for segment in snapshot.segments:
            rows = np.flatnonzero(snapshot.row_mask(segment, mask))
            allowed.update(np.asarray(segment.ids)[rows].tolist())
            two = snapshot.row_mask(segment, np.stack([mask, ~mask]))
            assert (two[0] != two[1]).sum() == (
                segment.length if segment.alive is None else segment.alive.sum()
            )
            from_two.update(np.asarray(segment.ids)[np.flatnonzero(two[0])].tolist())
        assert allowed == from_two == {i for i, k in zip(model, keep, strict=True) if k}
    for segment in snapshot.segments:
        ids = np.asarray(segment.ids)
        found = np.append(np.arange(segment.length), -1)
        if segment.tie_order is None:
            assert (np.diff(ids) > 0).all()
            assert segment.external_ids(found).tolist() == [*ids.tolist(), -1]
        else:
            rank = segment.tie_order[0]
            assert sorted(rank.tolist()) == list(range(segment.length))
            ranked = np.append(rank.astype(np.int64), -1)
            assert segment.external_ids(ranked).tolist() == [*ids.tolist(), -1]
            assert (np.diff(ids[np.argsort(rank)]) >= 0).all()


@pytest.mark.parametrize("copied_bytes", [0, 200, 1 << 26])
def test_storage_is_a_dict(monkeypatch, copied_bytes):
    """With segments that are never copied, sometimes and always; dead rows compacted early."""
    monkeypatch.setattr(_storage, "COPIED_BYTES", copied_bytes)
    monkeypatch.setattr(_storage, "COMPACTED_ROWS", 3)
    monkeypatch.setattr(_storage, "LEAST_ROOM", 2)
    monkeypatch.setattr(_snapshot, "PART_ROWS", 4)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(AgainstADict, settings=settings(stateful_step_count=20))


def test_ids_are_numbered_here_or_given_not_both():
    storage = Storage()
    storage.add(columns_of([1]), None)
    with pytest.raises(ValueError, match="ids: found ids, expected None because those before"):
        storage.add(columns_of([2]), np.array([5]))
    storage = Storage()
    storage.add(columns_of([1]), np.array([5]))
    with pytest.raises(ValueError, match="ids: found None, expected ids because those before"):
        storage.add(columns_of([2]), None)


def test_automatic_ids_are_not_given_twice():
    storage = Storage()
    storage.add(columns_of([1, 2]), None)
    storage.remove(np.array([1]))
    assert storage.add(columns_of([3]), None).tolist() == [2]


def test_automatic_ids_take_no_memory():
    storage = Storage()
    for _ in range(5):
        storage.add(columns_of(range(1000)), None)
    assert all(isinstance(segment.ids, range) for segment in storage.snapshot.segments)
    assert len(storage.snapshot.id_map._runs) == 1


def test_few_runs_however_ids_are_added():
    rng = np.random.default_rng(0)
    ids = rng.permutation(5000)
    id_map = IdMap()
    for row, i in enumerate(ids):
        id_map = id_map.add(np.array([i]), range(row, row + 1))
    assert len(id_map._runs) <= 13
    np.testing.assert_array_equal(id_map.find(ids), np.arange(5000))
    assert id_map.find(np.array([[5000, ids[7]]])).tolist() == [[-1, 7]]


def test_an_id_twice_in_a_file_is_found():
    columns = columns_of(range(3))
    storage = Storage.of_file(columns, 3, np.array([4, 1, 4]), False, 0)
    with pytest.raises(ValueError, match="the index has the id 4 twice"):
        storage.snapshot.find(np.array([1]))


def test_numbers_that_do_not_suffice_change_nothing():
    """A file may say that almost all of them are used up."""
    storage = Storage.of_file(columns_of([5]), 1, None, True, 2**63 - 3)
    with pytest.raises(ValueError, match="next id is 9223372036854775805"):
        storage.add(columns_of([6, 7, 8]), None)
    assert rows_in_order(storage.snapshot) == [(0, 5)]
    assert storage.add(columns_of([6, 7]), None).tolist() == [2**63 - 3, 2**63 - 2]
    with pytest.raises(ValueError, match="largest int64"):
        storage.add(columns_of([8]), None)
    assert len(storage.snapshot) == 3
