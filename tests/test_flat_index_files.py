"""Files of FlatIndex: saved over, numbered on, contradictory, damaged, mapped."""

import numpy as np
import pytest
from flat_index_cases import DIM, assert_same, new_index, small_vectors
from hypothesis import given
from hypothesis import strategies as st

from simtile import FlatIndex, _files


def test_a_mapped_index_can_save_over_its_own_file(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, DIM)).astype(np.float32)
    index = FlatIndex(DIM, "float16")
    index.add(x, rng.permutation(50))
    index.save(tmp_path / "a")
    mapped = FlatIndex.load(tmp_path / "a")
    mapped.remove(mapped.ids[:10])
    mapped.add(x[:5], np.arange(100, 105))
    mapped.update(x[:2], [104, mapped.ids[3]])
    expected = mapped.search(x, 20)
    mapped.save(tmp_path / "a")
    assert_same(mapped.search(x, 20), expected)
    again = FlatIndex.load(tmp_path / "a", mmap=False)
    assert_same(again.search(x, 20), expected)
    assert again.ids.tolist() == mapped.ids.tolist()


def test_numbering_goes_on_after_loading(tmp_path):
    index = FlatIndex(DIM)
    index.add(np.eye(4, DIM))
    index.remove([3])
    index.save(tmp_path / "a")
    index = FlatIndex.load(tmp_path / "a")
    assert index.add(np.eye(1, DIM)).tolist() == [4]
    index.remove(index.ids)
    index.save(tmp_path / "a")
    index = FlatIndex.load(tmp_path / "a")
    assert len(index) == 0
    with pytest.raises(ValueError, match="expected None because those before were numbered"):
        index.add(np.eye(1, DIM), [9])
    assert index.add(np.eye(1, DIM)).tolist() == [5]


def write_changed(path, change):
    """A valid file with other contents."""
    contents = _files.read(path, "FlatIndex")
    attributes, arrays = contents.attributes, contents.arrays
    change(attributes, arrays)
    sections = [_files.section(name, array) for name, array in arrays.items()]
    _files.write(path, "FlatIndex", attributes, sections)


@pytest.mark.parametrize(
    "change",
    [
        lambda a, s: a.pop("dim"),
        lambda a, s: a.update(dim="11"),
        lambda a, s: a.update(dim=12),
        lambda a, s: a.update(dim=10**7),
        lambda a, s: a.update(dim=10**30),
        lambda a, s: a.update(dtype="float32"),
        lambda a, s: a.update(dtype=["int8"]),
        lambda a, s: a.update(metric="dot"),
        lambda a, s: a.update(metric=None),
        lambda a, s: a.update(documents=4),
        lambda a, s: a.update(documents=True),
        lambda a, s: a.update(documents=-1),
        lambda a, s: a.update(automatic_ids=1),
        lambda a, s: a.update(automatic_ids=None),
        lambda a, s: a.update(automatic_ids=True, next_id=3),
        lambda a, s: a.update(automatic_ids=True, next_id=2**63),
        lambda a, s: a.pop("next_id"),
        lambda a, s: s.pop("codes"),
        lambda a, s: s.pop("norms"),
        lambda a, s: s.pop("ranges"),
        lambda a, s: s.update(more=np.zeros(3)),
        lambda a, s: s.update(codes=s["codes"].astype(np.int16)),
        lambda a, s: s.update(codes=s["codes"][:2]),
        lambda a, s: s.update(codes=s["codes"].reshape(-1)),
        lambda a, s: s.update(norms=s["norms"].astype(np.float64)),
        lambda a, s: s.update(ids=s["ids"].astype(np.int32)),
        lambda a, s: s.update(ids=s["ids"][:2]),
        lambda a, s: s.update(ids=np.array([1, 7, 1])),
        lambda a, s: s.update(ids=np.array([1, -7, 2])),
        lambda a, s: s.update(ranges=-s["ranges"]),
        lambda a, s: s.update(ranges=s["ranges"] * np.nan),
        lambda a, s: s.update(ranges=s["ranges"][:1]),
        lambda a, s: s.update(ranges=s["ranges"].astype(np.float64)),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change):
    index = new_index("int8", "cosine")
    index.add(np.ones((3, DIM)), [4, 9, 2])
    index.save(tmp_path / "a")
    write_changed(tmp_path / "a", lambda a, s: None)
    FlatIndex.load(tmp_path / "a", verify="full")
    write_changed(tmp_path / "a", change)
    with pytest.raises(ValueError, match=r"damaged|twice"):
        FlatIndex.load(tmp_path / "a", verify="full")


@given(data=st.data(), mmap=st.booleans())
def test_a_changed_byte_never_crashes(tmp_path_factory, data, mmap):
    """With "full" it is found; with "header" a search ends with a result or an error."""
    path = tmp_path_factory.mktemp("index") / "a"
    index = new_index("int8", "l2")
    index.add(small_vectors(np.random.default_rng(0), 20), np.arange(20)[::-1] * 3)
    index.save(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if bytes(raw) == path.read_bytes():
        return
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=str(path)):
        FlatIndex.load(path, mmap, verify="full")
    try:
        loaded = FlatIndex.load(path, mmap, verify="header")
        loaded.search(np.ones((2, DIM)), 5)
        loaded.search(np.ones((2, DIM)), 5, allow=[3])
        loaded.add(np.ones((1, DIM)), [1000])
        loaded.remove([3])
    except ValueError:
        pass


def test_a_large_index_is_mapped_in_milliseconds(tmp_path):
    """Automatic ids take no section: nothing of the size of the index is read or made."""
    import time

    rows, dim = 2_000_000, 256

    def zeros():
        block = np.zeros((100_000, dim // 8), np.uint8)
        for _ in range(rows // len(block)):
            yield block

    attributes = {"dim": dim, "dtype": "binary", "metric": "hamming"}
    attributes |= {"documents": rows, "automatic_ids": True, "next_id": rows}
    codes = _files.Section("codes", "uint8", (rows, dim // 8), zeros())
    _files.write(tmp_path / "a", "FlatIndex", attributes, [codes])
    elapsed = []
    for _ in range(5):
        begin = time.perf_counter()
        index = FlatIndex.load(tmp_path / "a")
        elapsed.append(time.perf_counter() - begin)
    assert min(elapsed) < 0.05
    assert index.search(np.zeros((1, dim)), 2)[1].tolist() == [[0, 1]]
    assert rows - 1 in index
