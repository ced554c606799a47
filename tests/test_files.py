"""The file format: what is written is read, and nothing else is believed."""

import json
import os
import struct
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from killed_saves import kill_while_saving

from simtile import _files

KIND = "FlatIndex"


def sample_arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "codes": rng.integers(0, 256, (7, 13), np.uint8),
        "norms": rng.random(7, np.float32),
        "ids": rng.integers(0, 1 << 60, 7, np.int64),
        "halves": rng.random((3, 2)).astype(np.float16),
        "nothing": np.empty((0, 5), np.float64),
    }


def save(path, arrays, attributes=None):
    sections = [_files.section(name, array) for name, array in arrays.items()]
    _files.write(path, KIND, {"dim": 13} if attributes is None else attributes, sections)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("map_file", [False, True])
@pytest.mark.parametrize("verify", [None, "header", "full"])
def test_reads_what_was_written(tmp_path, map_file, verify):
    attributes = {"dim": 13, "metric": "cosine", "scale": 0.1, "none": None, "text": "é"}
    save(tmp_path / "a", sample_arrays(), attributes)
    contents = _files.read(tmp_path / "a", KIND, map_file=map_file, verify=verify)
    assert contents.attributes == attributes
    assert_same(contents.arrays, sample_arrays())


def test_parts_make_one_section(tmp_path):
    """Also where parts end inside a block, and where they are not contiguous."""
    rng = np.random.default_rng(1)
    whole = rng.integers(0, 1 << 16, (70001, 19), np.uint16)
    bounds = [0, 1, 30000, 30000, 60001, 70001]
    parts = (np.asfortranarray(whole[a:b]) for a, b in pairwise(bounds))
    _files.write(tmp_path / "a", KIND, {}, [_files.Section("x", "bfloat16", whole.shape, parts)])
    found = _files.read(tmp_path / "a", KIND).arrays["x"]
    np.testing.assert_array_equal(found, whole, strict=True)


def test_layout_is_the_documented_one(tmp_path):
    """Read with nothing but struct and the numbers in docs/file-format.md."""
    codes = np.arange(3 << 20, dtype=np.uint8).reshape(3, -1)[:, : (1 << 20) - 1].copy()
    save(tmp_path / "a", {"codes": codes, "ids": np.arange(3)}, {"b": 1, "a": [2]})
    raw = (tmp_path / "a").read_bytes()
    magic, version, sections, kind, size, table, table_bytes, attribute_bytes, crc = struct.unpack(
        "<8sII16sQQQII", raw[:64]
    )
    assert (magic, version, sections, size) == (b"\x89simtile", 1, 2, len(raw))
    assert kind == b"FlatIndex" + bytes(7)
    assert zlib.crc32(raw[:4092]) == struct.unpack("<I", raw[4092:4096])[0]
    assert zlib.crc32(raw[table:]) == crc
    assert table + table_bytes == size
    name, dtype, axes, zero, *shape, offset, section_bytes = struct.unpack(
        "<32s16sII4QQQ", raw[table : table + 104]
    )
    assert (name.rstrip(b"\0"), dtype.rstrip(b"\0"), axes, zero) == (b"codes", b"uint8", 2, 0)
    assert (shape, offset, section_bytes) == ([3, (1 << 20) - 1, 0, 0], 4096, 3 * ((1 << 20) - 1))
    assert raw[offset : offset + section_bytes] == codes.tobytes()
    ids = struct.unpack("<32s16sII4QQQ", raw[table + 104 : table + 208])
    assert ids[-2:] == (4096 + (3 << 20), 24)
    attributes = raw[table + 208 : table + 208 + attribute_bytes]
    assert json.loads(attributes) == {"a": [2], "b": 1}
    checksums = struct.unpack("<4I", raw[table + 208 + attribute_bytes :])
    blocks = [codes.tobytes()[i << 20 : (i + 1) << 20] for i in range(3)]
    assert checksums == tuple(zlib.crc32(b) for b in (*blocks, np.arange(3).tobytes()))


def test_mapped_arrays_are_read_only_and_outlive_the_file(tmp_path):
    """Overwriting, or removing, the file of mapped arrays leaves them as they were."""
    expected = sample_arrays()
    save(tmp_path / "a", expected)
    mapped = _files.read(tmp_path / "a", KIND, map_file=True).arrays
    assert not mapped["codes"].flags.writeable
    save(tmp_path / "a", sample_arrays(seed=2))
    assert_same(mapped, expected)
    assert_same(_files.read(tmp_path / "a", KIND).arrays, sample_arrays(seed=2))
    (tmp_path / "a").unlink()
    assert_same(mapped, expected)


@given(data=st.data(), map_file=st.booleans(), full=st.booleans())
def test_a_changed_byte_is_found(tmp_path_factory, data, map_file, full):
    """Any byte with "full"; with "header" any outside of the sections, and no harm from others."""
    path = tmp_path_factory.mktemp("files") / "a"
    expected = sample_arrays()
    save(path, expected)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    table = struct.unpack("<Q", raw[40:48])[0]
    if full or not 4096 <= place < table:
        with pytest.raises(ValueError, match=r"damaged|not a simtile file|version"):
            _files.read(path, KIND, map_file=map_file, verify="full" if full else "header")
    else:
        contents = _files.read(path, KIND, map_file=map_file, verify="header")
        assert contents.attributes == {"dim": 13}
        assert {n: a.shape for n, a in contents.arrays.items()} == {
            n: a.shape for n, a in expected.items()
        }


@given(length=st.floats(0, 1), more=st.binary(max_size=3), map_file=st.booleans())
def test_another_length_is_found(tmp_path_factory, length, more, map_file):
    path = tmp_path_factory.mktemp("files") / "a"
    save(path, sample_arrays())
    raw = path.read_bytes()
    changed = raw[: int(length * len(raw))] + more
    path.write_bytes(changed)
    if changed == raw:
        return
    with pytest.raises(ValueError, match=r"cut off|appended|not a simtile file|damaged"):
        _files.read(path, KIND, map_file=map_file, verify="header")


def test_every_short_file_is_refused(tmp_path):
    save(tmp_path / "a", {"x": np.arange(3)})
    raw = (tmp_path / "a").read_bytes()
    for length in [*range(66), 4000, 4095, 4096, 4097, 8192, *range(len(raw) - 40, len(raw))]:
        (tmp_path / "a").write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"cut off|not a simtile file"):
            _files.read(tmp_path / "a", KIND)


def forge(path, edit_header=None, edit_record=None, attributes=None, count=1):
    """A file whose checksums are right and whose contents are not."""
    header = [b"\x89simtile", 1, count, b"FlatIndex", 0, 8192, 0, 0, 0]
    record = [b"x", b"int64", 1, 0, 3, 0, 0, 0, 4096, 24]
    if edit_record:
        edit_record(record)
    attributes = b"{}" if attributes is None else attributes
    table = struct.pack("<32s16sII4QQQ", *record) * count + attributes
    table += struct.pack("<I", zlib.crc32(np.arange(3).tobytes())) * count
    header[4], header[6] = 8192 + len(table), len(table)
    header[7], header[8] = len(attributes), zlib.crc32(table)
    if edit_header:
        edit_header(header)
    packed = struct.pack("<8sII16sQQQII", *header).ljust(4092, b"\0")
    data = np.arange(3).tobytes().ljust(4096, b"\0")
    path.write_bytes(packed + struct.pack("<I", zlib.crc32(packed)) + data + table)


def put(place, value):
    def edit(fields):
        fields[place] = value

    return edit


def test_a_forged_file_without_lies_is_read(tmp_path):
    forge(tmp_path / "a")
    assert_same(_files.read(tmp_path / "a", KIND).arrays, {"x": np.arange(3)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(0, b"PK\x03\x04...."), "not a simtile file"),
        (put(1, 2), "version 2 of the format, this simtile reads version 1; use a newer simtile"),
        (put(1, 0), "version 0"),
        (put(2, 0), "damaged"),
        (put(2, 2), "damaged"),
        (put(2, 2**32 - 1), "4294967295 sections"),
        (put(3, b"CascadeIndex"), "holds a CascadeIndex, expected a FlatIndex"),
        (put(3, b""), "kind is not a name"),
        (put(3, b"a\0b"), "kind is not a name"),
        (put(3, b"\xff"), "kind is not a name"),
        (put(4, 2**63), "cut off"),
        (put(4, 4096), "appended to"),
        (put(5, 4096), "table is not where"),
        (put(5, 2**64 - 1), "table is not where"),
        (put(6, 2**64 - 1), "table is not where"),
        (put(6, 0), "table is not where"),
        (put(7, 2**32 - 1), "bytes of attributes"),
        (put(7, 0), "damaged"),
        (put(7, 3), "damaged"),
        (put(8, 0), "section table's checksum"),
    ],
)
@pytest.mark.parametrize("map_file", [False, True])
def test_a_lying_header_is_refused(tmp_path, edit, message, map_file):
    forge(tmp_path / "a", edit_header=edit)
    with pytest.raises(ValueError, match=message):
        _files.read(tmp_path / "a", KIND, map_file=map_file, verify="header")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(0, b""), "no name of its own"),
        (put(0, b"a\0b"), "no name of its own"),
        (put(0, b"../x"), "no name of its own"),
        (put(0, b"\xc3\xa9"), "no name of its own"),
        (put(1, b"object"), "elements of type"),
        (put(1, b"O"), "elements of type"),
        (put(1, b"bool"), "elements of type"),
        (put(1, b">i8"), "elements of type"),
        (put(1, b"int32"), "in 24 bytes"),
        (put(2, 5), "shape that is none"),
        (put(2, 2**32 - 1), "shape that is none"),
        (put(2, 0), "shape that is none"),
        (put(2, 2), "in 24 bytes"),
        (put(3, 1), "shape that is none"),
        (put(4, 2**64 - 1), "is of shape"),  # -1
        (put(4, 4), "in 24 bytes"),
        (put(5, 1), "shape that is none"),
        (put(8, 0), "is at 0, expected at 4096"),
        (put(8, 4097), "expected at 4096"),
        (put(8, 2**64 - 8), "expected at 4096"),
        (put(9, 2**64 - 1), "in 18446744073709551615 bytes"),
        (put(9, 0), "in 0 bytes"),
    ],
)
@pytest.mark.parametrize("map_file", [False, True])
def test_a_lying_record_is_refused(tmp_path, edit, message, map_file):
    forge(tmp_path / "a", edit_record=edit)
    with pytest.raises(ValueError, match=message):
        _files.read(tmp_path / "a", KIND, map_file=map_file, verify="header")


def test_huge_and_overlapping_sections_are_refused(tmp_path):
    def huge(record):
        record[4], record[9] = 2**58, 2**61

    def huge_and_empty(record):
        record[2:8] = 3, 0, 0, 2**40, 2**40, 0
        record[9] = 0

    for edit in (huge, huge_and_empty):
        forge(tmp_path / "a", edit_record=edit)
        with pytest.raises(ValueError, match="damaged"):
            _files.read(tmp_path / "a", KIND)
    forge(tmp_path / "a", count=2)  # the same section twice
    with pytest.raises(ValueError, match="no name of its own"):
        _files.read(tmp_path / "a", KIND)


@pytest.mark.parametrize(
    "attributes", [b"", b"[]", b"{", b"\xff", b"1", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_attributes_that_are_no_object_are_refused(tmp_path, attributes):
    forge(tmp_path / "a", attributes=attributes)
    with pytest.raises(ValueError, match="attributes are not"):
        _files.read(tmp_path / "a", KIND)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"x" * 10000, bytes(10000)])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="not a simtile file"):
        _files.read(tmp_path / "a", KIND, map_file=True)


def test_ten_gigabytes_are_mapped_in_milliseconds(tmp_path):
    """A sparse file: only the table is read."""
    rows, width = 10_000_000, 1000
    table = struct.pack("<32s16sII4QQQ", b"x", b"int8", 2, 0, rows, width, 0, 0, 4096, rows * width)
    table += b"{}" + bytes(4 * -(-rows * width // (1 << 20)))
    start = -(-(4096 + rows * width) // 4096) * 4096
    header = struct.pack(
        "<8sII16sQQQII",
        *(b"\x89simtile", 1, 1, b"FlatIndex", start + len(table), start, len(table), 2),
        zlib.crc32(table),
    ).ljust(4092, b"\0")
    with (tmp_path / "a").open("wb") as file:
        file.write(header + struct.pack("<I", zlib.crc32(header)))
        file.seek(start)
        file.write(table)
    elapsed = []
    for _ in range(5):
        begin = time.perf_counter()
        arrays = _files.read(tmp_path / "a", KIND, map_file=True).arrays
        elapsed.append(time.perf_counter() - begin)
    assert arrays["x"].shape == (rows, width)
    assert arrays["x"][rows - 1, width - 1] == 0
    assert min(elapsed) < 0.05  # about 1 ms; reading 10 GB takes seconds


def test_a_failed_write_leaves_everything_as_it_was(tmp_path):
    expected = sample_arrays()
    save(tmp_path / "a", expected)

    def parts():
        yield np.zeros((2, 3))
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        _files.write(tmp_path / "a", KIND, {}, [_files.Section("x", "float64", (4, 3), parts())])
    section = _files.Section("x", "float64", (4, 3), [np.zeros((2, 3))])
    with pytest.raises(ValueError, match="found 48 bytes"):
        _files.write(tmp_path / "a", KIND, {}, [section])
    with pytest.raises(ValueError, match="Out of range float"):
        _files.write(tmp_path / "a", KIND, {"nan": float("nan")}, [])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert_same(_files.read(tmp_path / "a", KIND).arrays, expected)


def test_it_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    log = []
    fsync, replace = os.fsync, Path.replace

    def logged_fsync(descriptor):
        link = Path(f"/proc/self/fd/{descriptor}")
        log.append((str(link.readlink()), os.fstat(descriptor).st_size))
        fsync(descriptor)

    def logged_replace(old, new):
        log.append((str(old), str(new)))
        return replace(old, new)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    save(tmp_path / "a", sample_arrays())
    (temporary, size), renamed, (directory, _) = log
    assert size == (tmp_path / "a").stat().st_size
    assert renamed == (temporary, str(tmp_path / "a"))
    assert directory == str(tmp_path)


def test_a_disk_that_is_full(tmp_path):
    """A limit on the size of files stands for it."""
    save(tmp_path / "a", sample_arrays())
    code = """
import resource, signal, sys
import numpy as np
from simtile import _files

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    _files.write(sys.argv[1], "FlatIndex", {}, [_files.section("x", np.zeros(100_000))])
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert_same(_files.read(tmp_path / "a", KIND).arrays, sample_arrays())


def test_links_and_modes_are_kept(tmp_path):
    save(tmp_path / "a", sample_arrays())
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask
    (tmp_path / "a").chmod(0o640)
    (tmp_path / "link").symlink_to("a")
    save(tmp_path / "link", sample_arrays(seed=3))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert_same(_files.read(tmp_path / "a", KIND).arrays, sample_arrays(seed=3))


def test_errors_of_the_operating_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        _files.read(tmp_path / "missing", KIND)
    with pytest.raises(FileNotFoundError) as raised:
        save(tmp_path / "missing" / "a", sample_arrays())
    assert raised.value.filename == str(tmp_path / "missing" / "a")
    with pytest.raises(IsADirectoryError):
        save(tmp_path, sample_arrays())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="verify: found 'fast', expected 'header' or 'full'"):
        _files.read(tmp_path / "missing", KIND, verify="fast")


# Saves files of two kinds of content in turn for as long as it lives.
SAVER = """
import sys
import numpy as np
from simtile import _files

print("ready", flush=True)
i = 0
while True:
    i += 1
    x = np.full((300_000, 2), i)
    _files.write(sys.argv[1], "FlatIndex", {"i": i}, [_files.section("x", x)])
"""


def kill_savers(path, kills):
    def save(i):
        x = np.full((300_000, 2), i)
        _files.write(path, KIND, {"i": i}, [_files.section("x", x)])

    def generation(path):
        contents = _files.read(path, KIND, verify="full")
        value = contents.attributes["i"]
        np.testing.assert_array_equal(contents.arrays["x"], np.full((300_000, 2), value))
        return value

    return kill_while_saving(SAVER, path, kills, generation, lambda: save(0))


def test_killed_while_saving(tmp_path):
    """The file is always there, whole: the old one or a newer one."""
    kill_savers(tmp_path / "a", 30)


@pytest.mark.deep  # a thousand processes
def test_killed_a_thousand_times_while_saving(tmp_path):
    seen = kill_savers(tmp_path / "a", 1000)
    assert len(seen) > 1  # some kills came late enough for a save to end
