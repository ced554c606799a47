"""False negatives of a batch, and batches without any."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simtile
from simtile.batches import BatchAudit


def test_the_first_two_rows_share_a_policy():
    audit = simtile.audit_batch(["returns-30d", "returns-30d", "warranty"])
    assert list(audit) == [(0, 1)]
    assert len(audit) == 1
    assert audit.affected == 2
    assert audit.pairs.dtype == np.int64
    assert "row 0 ↔ row 1 (id 'returns-30d')" in str(audit)
    assert str(audit).startswith("2 of 3 rows")


@given(st.lists(st.integers(-3, 5), max_size=30))
def test_audit_finds_all_pairs(ids):
    right = [(i, j) for i in range(len(ids)) for j in range(i + 1, len(ids)) if ids[i] == ids[j]]
    for given_ids in (ids, np.array(ids, np.int64), tuple(map(str, ids))):
        audit = simtile.audit_batch(given_ids)
        assert list(audit) == right
        assert audit.pairs.shape == (len(right), 2)
        assert len(audit) == len(right)
        assert bool(audit) == bool(right)
        assert audit.affected == len({i for pair in right for i in pair})


def test_audit_of_tensors_and_in_words():
    torch = pytest.importorskip("torch")
    assert list(simtile.audit_batch(torch.tensor([4, 2, 4]))) == [(0, 2)]
    assert (
        str(simtile.audit_batch([1, 2])) == "none of 2 rows would be each other's false negatives"
    )
    long = str(simtile.audit_batch([0] * 12 + [x for x in range(1, 12) for _ in range(2)]))
    assert "row 9 and 2 more (id 0)" in long
    assert long.endswith("2 more ids")
    assert simtile.audit_batch([]) == BatchAudit(0, {})


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ("abc", TypeError, "ids: found str, expected a sequence"),
        (3, TypeError, "ids: found int, expected a sequence"),
        (np.ones((2, 2)), ValueError, r"ids: found float64 \[2, 2\], expected \[N\]"),
        ([1, [2]], TypeError, "ids: found list for row 1, expected a hashable"),
        ([1.0, float("nan")], ValueError, "ids: found NaN for row 1"),
    ],
)
def test_wrong_ids(ids, error, message):
    with pytest.raises(error, match=message):
        simtile.audit_batch(ids)
    with pytest.raises(error, match=message):
        simtile.DistinctIdsBatchSampler(ids, 2)


def test_wrong_sizes():
    for size, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="batch_size: found"):
            simtile.DistinctIdsBatchSampler([1, 2], size)
    with pytest.raises(TypeError, match="seed: found 'x', expected an int"):
        simtile.DistinctIdsBatchSampler([1, 2], 2, seed="x")


def fewest(ids, size):
    counts = np.unique(ids, return_counts=True)[1]
    return max(-(-len(ids) // size), counts.max(initial=0))


def check(ids, sampler, size):
    epoch = list(sampler)
    assert len(epoch) == len(sampler)
    for batch in epoch:
        assert 0 < len(batch) <= size
        assert not simtile.audit_batch([ids[row] for row in batch])
    return epoch


@given(
    st.lists(st.integers(0, 8), max_size=60),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(-1, 2),
)
def test_every_row_once_in_as_few_batches_as_can_be(ids, size, epoch, seed):
    sampler = simtile.DistinctIdsBatchSampler(ids, size, seed=seed)
    sampler.set_epoch(epoch)
    found = check(ids, sampler, size)
    assert sorted(row for batch in found for row in batch) == list(range(len(ids)))
    assert len(found) == fewest(ids, size)
    assert list(sampler) == found
    again = simtile.DistinctIdsBatchSampler(np.array(ids, np.int64), size, seed=seed)
    again.set_epoch(epoch)
    assert list(again) == found


@given(st.lists(st.integers(0, 8), max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_full_batches_alone(ids, size, epoch):
    sampler = simtile.DistinctIdsBatchSampler(ids, size, drop_last=True)
    sampler.set_epoch(epoch)
    found = check(ids, sampler, size)
    assert all(len(batch) == size for batch in found)
    rows = [row for batch in found for row in batch]
    assert len(set(rows)) == len(rows)
    counts = np.unique(ids, return_counts=True)[1]
    # One more would need more rows than there are, no id being in a batch twice.
    assert np.minimum(counts, len(found) + 1).sum() < (len(found) + 1) * size


def test_an_id_that_dominates():
    """Its rows are in every batch; the others fill the first ones. In time proportional to N."""
    ids = [0] * 2000 + list(range(1, 1001))
    sampler = simtile.DistinctIdsBatchSampler(ids, 64)
    sizes = [len(batch) for batch in check(ids, sampler, 64)]
    assert len(sizes) == 2000
    assert sizes[:16] == [64] * 15 + [56]  # 1000 = 63 · 15 + 55
    assert sizes[16:] == [1] * (2000 - 16)
    full = simtile.DistinctIdsBatchSampler(ids, 64, drop_last=True)
    assert len(full) == 15
    first = {row for batch in full for row in batch}
    full.set_epoch(1)
    assert {row for batch in full for row in batch} != first


def test_epochs_and_seeds_differ():
    ids = np.arange(40) // 2
    orders = []
    for seed in (0, 1):
        sampler = simtile.DistinctIdsBatchSampler(ids, 8, seed=seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders.append(str(list(sampler)))
    assert len(set(orders)) == 4


def test_loader_of_torch():
    data = pytest.importorskip("torch.utils.data")
    ids = np.arange(30) % 7
    sampler = simtile.DistinctIdsBatchSampler(ids, 6)
    loader = data.DataLoader(list(range(30)), batch_sampler=sampler)
    found = [batch.tolist() for batch in loader]
    assert found == list(sampler)
    assert len(loader) == len(sampler)
