"""The file of MultiVectorIndex: what is saved is loaded, and nothing else is believed."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from killed_saves import kill_while_saving
from multi_vector_cases import DIM, assert_same, draw_documents, new_index

import simtile
from simtile import MultiVectorIndex, _files


def test_a_mapped_index_can_save_over_its_own_file(tmp_path):
    rng = np.random.default_rng(0)
    index = MultiVectorIndex(DIM, "float16", normalize=True)
    index.add(draw_documents(rng, 50), rng.permutation(50))
    index.save(tmp_path / "a")
    mapped = MultiVectorIndex.load(tmp_path / "a")
    assert mapped.normalize
    assert not mapped._state.tokens[0].columns["codes"].flags.writeable
    mapped.remove(mapped.ids[:10])
    mapped.add(draw_documents(rng, 5), np.arange(100, 105))
    mapped.update(draw_documents(rng, 2), [104, mapped.ids[3]])
    q = draw_documents(rng, 3)
    expected = mapped.search(q, 20)
    mapped.save(tmp_path / "a")
    assert_same(mapped.search(q, 20), expected)
    again = MultiVectorIndex.load(tmp_path / "a", mmap=False)
    assert_same(again.search(q, 20), expected)
    assert again.ids.tolist() == mapped.ids.tolist()
    assert again.lengths.tolist() == mapped.lengths.tolist()


def small_file(path, dtype="float32"):
    index = new_index(dtype)
    index.add(draw_documents(np.random.default_rng(0), 12), np.arange(12)[::-1] * 3)
    index.save(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda a, s: a.pop("dim"),
        lambda a, s: a.update(dim="11"),
        lambda a, s: a.update(dim=12),
        lambda a, s: a.update(dtype="float16"),
        lambda a, s: a.update(dtype=["float32"]),
        lambda a, s: a.update(normalize=1),
        lambda a, s: a.pop("normalize"),
        lambda a, s: a.update(documents=11),
        lambda a, s: a.update(documents=True),
        lambda a, s: a.update(automatic_ids=None),
        lambda a, s: a.update(automatic_ids=True, next_id=3),
        lambda a, s: a.pop("next_id"),
        lambda a, s: s.pop("codes"),
        lambda a, s: s.pop("pooled_codes"),
        lambda a, s: s.pop("offsets"),
        lambda a, s: s.update(more=np.zeros(3)),
        lambda a, s: s.update(codes=s["codes"][:-1]),
        lambda a, s: s.update(codes=s["codes"].astype(np.float64)),
        lambda a, s: s.update(pooled_codes=s["pooled_codes"][1:]),
        lambda a, s: s.update(offsets=s["offsets"] + 1),
        lambda a, s: s.update(offsets=s["offsets"] - 1),
        lambda a, s: s.update(offsets=s["offsets"][[0, 2, 1, *range(3, 13)]] * 2),
        lambda a, s: s["offsets"].__setitem__(3, 10**9),
        lambda a, s: s["offsets"].__setitem__(3, -1),
        lambda a, s: s.update(offsets=s["offsets"].astype(np.int32)),
        lambda a, s: s.update(ids=np.zeros(12, np.int64)),
        lambda a, s: s.update(ids=s["ids"] - 1),
    ],
)
@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, mmap):
    refuse_changed(tmp_path / "a", "float32", change, mmap)


@pytest.mark.parametrize(
    ("dtype", "change"),
    [
        ("int8", lambda a, s: s.pop("scales")),
        ("int8", lambda a, s: s.update(scales=-1 - s["scales"])),
        ("int8", lambda a, s: s.update(codes=s["codes"].view(np.uint8))),
        ("int8", lambda a, s: a.update(centroids=3)),
        ("binary", lambda a, s: a.update(dim=20)),
        ("binary", lambda a, s: s.update(centroids=np.ones((1, DIM), np.float32))),
        ("residual2", lambda a, s: a.update(dtype="residual1")),
        ("residual2", lambda a, s: a.update(centroids=3)),
        ("residual2", lambda a, s: s.pop("centroids")),
        ("residual2", lambda a, s: s.pop("bucket_weights")),
        ("residual2", lambda a, s: [s.pop(x) for x in ("bucket_weights", "bucket_cutoffs")]),
        ("residual2", lambda a, s: s.update(centroids=s["centroids"][:0])),
        ("residual2", lambda a, s: s.update(bucket_cutoffs=-s["bucket_cutoffs"])),
        ("residual2", lambda a, s: s.update(centroid_ids=s["centroid_ids"] + 7)),
        ("residual2", lambda a, s: s.update(centroid_ids=s["centroid_ids"] - 7)),
        ("residual2", lambda a, s: s.update(residuals=s["residuals"][:, 1:])),
        ("residual2", lambda a, s: s.update(inverse_norms=s["inverse_norms"][1:])),
    ],
)
def test_a_file_of_codes_that_contradicts_itself_is_refused(tmp_path, dtype, change):
    refuse_changed(tmp_path / "a", dtype, change, mmap=True)


def refuse_changed(path, dtype, change, mmap):
    small_file(path, dtype)
    rewrite(path, lambda a, s: None)
    MultiVectorIndex.load(path, mmap, verify="full")
    rewrite(path, change)
    with pytest.raises(ValueError, match=r"damaged|twice"):
        MultiVectorIndex.load(path, mmap, verify="full")


def rewrite(path, change):
    """Attributes and sections of a file changed, under checksums that are right."""
    contents = _files.read(path, "MultiVectorIndex")
    change(contents.attributes, contents.arrays)
    sections = [
        _files.section(name, array, "bfloat16" if name == "pooled_codes" else None)
        for name, array in contents.arrays.items()
    ]
    _files.write(path, "MultiVectorIndex", contents.attributes, sections)


@pytest.mark.parametrize("dtype", ["float32", "int8", "residual2"])
@pytest.mark.parametrize(
    "change",
    [
        lambda a, s: a.update(dim=2**31),
        lambda a, s: a.update(dim=2**62),
        lambda a, s: a.update(dim=2**100),
        lambda a, s: a.update(documents=2**62),
        lambda a, s: a.update(documents=10**30),
        lambda a, s: a.update(automatic_ids=True, next_id=10**30),
        lambda a, s: s["offsets"].__setitem__(-1, 2**62),
        lambda a, s: s["offsets"].__setitem__(-1, -1),
        lambda a, s: s["offsets"].__setitem__(5, 2**62),
        lambda a, s: s["offsets"].__setitem__(5, -(2**62)),
        lambda a, s: s.update(offsets=s["offsets"][::-1].copy()),
        lambda a, s: s.update(offsets=s["offsets"][:0]),
        lambda a, s: s.update(offsets=np.int64(0)),
    ],
)
def test_numbers_that_lie_are_refused_before_there_is_memory_for_them(tmp_path, dtype, change):
    """Whether or not everything is checked: sizes are never taken from what is only said."""
    path = tmp_path / "a"
    small_file(path, dtype)
    rewrite(path, change)
    for mmap in (False, True):
        for verify in ("header", "full"):
            tracemalloc.start()
            try:
                with pytest.raises(ValueError, match=r"a: the file is damaged: "):
                    MultiVectorIndex.load(path, mmap, verify=verify)
                assert tracemalloc.get_traced_memory()[1] < 1 << 20
            finally:
                tracemalloc.stop()


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "a"
    small_file(path, "residual2")
    raw = path.read_bytes()
    for length in (0, 7, 100, 4095, 4096, len(raw) // 2, len(raw) - 4097, len(raw) - 1):
        path.write_bytes(raw[:length])
        for mmap in (False, True):
            with pytest.raises(ValueError, match=r"cut off|not a simtile file"):
                MultiVectorIndex.load(path, mmap, verify="header")


@given(data=st.data(), mmap=st.booleans(), dtype=st.sampled_from(["float32", "int8", "residual2"]))
def test_a_changed_byte_never_crashes(tmp_path_factory, data, mmap, dtype):
    """With "full" it is found; with "header" a search ends with a result or an error."""
    path = tmp_path_factory.mktemp("index") / "a"
    small_file(path, dtype)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if bytes(raw) == path.read_bytes():
        return
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=str(path)):
        MultiVectorIndex.load(path, mmap, verify="full")
    try:
        loaded = MultiVectorIndex.load(path, mmap, verify="header")
        loaded.search(np.ones((2, DIM)), 5)
        loaded.search(np.ones((2, DIM)), 5, allow=[3], prefilter=5)
        loaded.add(np.ones((1, 2, DIM)), [1000])
        loaded.remove([3])
    except ValueError:
        pass


def test_a_failed_save_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a"
    small_file(path)
    before = path.read_bytes()
    index = MultiVectorIndex.load(path)
    index.add(np.ones((1, 2, DIM)), [1000])

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(_files, "_write_parts", fail)
    with pytest.raises(OSError, match="no space"):
        index.save(path)
    assert path.read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["a"]


def test_another_index_is_named(tmp_path):
    simtile.FlatIndex(DIM).save(tmp_path / "flat")
    with pytest.raises(ValueError, match=r"holds a FlatIndex, expected a MultiVectorIndex"):
        MultiVectorIndex.load(tmp_path / "flat")
    MultiVectorIndex(DIM).save(tmp_path / "multi")
    with pytest.raises(ValueError, match=r"use simtile.MultiVectorIndex.load"):
        simtile.FlatIndex.load(tmp_path / "multi")
    assert len(MultiVectorIndex.load(tmp_path / "multi")) == 0


# Changes and saves its documents for as long as it lives; of generation i all tokens are i, and how
# many a document has depends on it.
SAVER = """
import sys
import tracemalloc

import numpy as np
from simtile import MultiVectorIndex


def generation(i):
    lengths = np.random.default_rng(i).integers(0, 60, 500)
    tokens = np.full((lengths.sum(), 40), i, np.float32)
    return tokens, np.cumsum([0, *lengths])


if __name__ == "__main__":
    index = MultiVectorIndex.load(sys.argv[1])
    i = 1
    index.update(generation(i), index.ids)
    print("ready", flush=True)
    while True:
        index.save(sys.argv[1])
        i += 1
        index.update(generation(i), index.ids)
"""


def kill_savers(path, kills):
    """`SAVER` killed while it saves; the file is always whole: the old one or a newer one."""
    names = {"__name__": "parent"}
    exec(SAVER, names)
    generation = names["generation"]

    def reset():
        index = MultiVectorIndex(40)
        index.add(generation(0), np.random.default_rng(9).permutation(500))
        index.save(path)

    def generation_of(path):
        index = MultiVectorIndex.load(path, verify="full")
        found = index._state.tokens[0].columns["codes"]
        expected, offsets = generation(int(found[0, 0]))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(index.lengths, np.diff(offsets))
        assert sorted(index.ids.tolist()) == list(range(500))
        return int(found[0, 0])

    return kill_while_saving(SAVER, path, kills, generation_of, reset)


def test_killed_while_saving(tmp_path):
    kill_savers(tmp_path / "a", 20)


@pytest.mark.deep  # hundreds of processes
def test_killed_hundreds_of_times_while_saving(tmp_path):
    seen = kill_savers(tmp_path / "a", 300)
    assert len(seen) > 1  # some kills came late enough for a save to end
