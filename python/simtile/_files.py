"""The file format of the indexes: checked when opened, mappable, replaced atomically.

`docs/file-format.md` describes it byte by byte. Everything in the table determines everything else
(each section starts at the next multiple of 4096 after the one before), so a table that lies is
found by recomputing it, before anything is allocated or mapped.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]
Verify = Literal["header", "full"]

MAGIC = b"\x89simtile"
VERSION = 1
ALIGNMENT = 4096  # a page: sections can be mapped, and the header fills the first one
BLOCK = 1 << 20  # bytes of a section under one checksum
MOST_SECTIONS = 256
MOST_AXES = 4
MOST_ATTRIBUTE_BYTES = 1 << 20

# magic, version, sections, kind, file bytes, table offset, table bytes, attribute bytes, table
# crc32; then zeros up to the header's own crc32 in its last four bytes.
_HEADER = struct.Struct("<8sII16sQQQII")
# name, dtype, axes, zero, shape, offset, bytes
_RECORD = struct.Struct("<32s16sII4QQQ")
_CRC = struct.Struct("<I")

# bfloat16 is a uint16 array in memory.
DTYPES = {
    "bfloat16": np.dtype("<u2"),
    **{
        name: np.dtype(name).newbyteorder("<")
        for name in (
            *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
            *("float16", "float32", "float64"),
        )
    },
}


class Section(NamedTuple):
    """An array to be written; its rows may come in parts, so that it need not exist as a whole."""

    name: str
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    parts: Iterable[Array]


class Contents(NamedTuple):
    """What a file holds. Mapped arrays are read-only and keep the file's memory alive."""

    attributes: dict[str, Any]
    arrays: dict[str, Array]


def section(name: str, array: Array, dtype: str | None = None) -> Section:
    """A whole array as a section."""
    return Section(name, dtype or array.dtype.name, array.shape, (array,))


def write(
    path: PathLike, kind: str, attributes: Mapping[str, Any], sections: Sequence[Section]
) -> None:
    """Write a file and let it take the place of `path` at once, or leave `path` as it was.

    The new file is complete and on disk before it gets its name, so that at any moment, also after
    a crash, `path` is the old file or the new one. Who has the old one mapped keeps it. A process
    that is killed may leave ``.NAME.*.tmp`` beside it.
    """
    with _replacing(path) as file:
        file.write(bytes(ALIGNMENT))
        offset, records, checksums = ALIGNMENT, [], bytearray()
        for part in sections:
            file.write(bytes(offset - file.tell()))
            size = _write_parts(file, part, checksums)
            shape = (*part.shape, *[0] * (MOST_AXES - len(part.shape)))
            records.append(
                _RECORD.pack(
                    part.name.encode("ascii"),
                    part.dtype.encode("ascii"),
                    len(part.shape),
                    0,
                    *shape,
                    offset,
                    size,
                )
            )
            offset = _align(offset + size)
        file.write(bytes(offset - file.tell()))
        described = json.dumps(dict(attributes), allow_nan=False, sort_keys=True).encode()
        table = b"".join(records) + described + checksums
        if len(records) > MOST_SECTIONS or len(described) > MOST_ATTRIBUTE_BYTES:
            raise ValueError(f"{len(records)} sections, {len(described)} bytes of attributes")
        file.write(table)
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            len(records),
            kind.encode("ascii"),
            offset + len(table),
            offset,
            len(table),
            len(described),
            zlib.crc32(table),
        ).ljust(ALIGNMENT - _CRC.size, b"\0")
        file.seek(0)
        file.write(header + _CRC.pack(zlib.crc32(header)))


def read(
    path: PathLike, kind: str, *, map_file: bool = False, verify: Verify | None = None
) -> Contents:
    """Read or map a file of one kind.

    Parameters
    ----------
    kind : str
        What the file must hold, as it was written.
    map_file : bool
        Map the arrays instead of reading them.
    verify : "header" or "full", optional
        "full" compares every block with its checksum, "header" only what tells where the arrays
        are; the default is "full" unless mapped.

    Raises
    ------
    ValueError
        The file is foreign, of a newer version, of another kind, cut off or damaged.
    OSError
        It cannot be opened or read.
    """
    if verify not in (None, "header", "full"):
        raise ValueError(f"verify: found {verify!r}, expected 'header' or 'full'")
    full = verify == "full" or (verify is None and not map_file)
    with Path(path).open("rb") as file:
        table = _Table(file, os.fspath(path), kind)
        if not map_file:
            return Contents(table.attributes, table.load(full))
        memory = mmap.mmap(file.fileno(), table.file_bytes, access=mmap.ACCESS_READ)
    return Contents(table.attributes, table.views(memory, full))


class _Table:
    """The header and the section table of an open file, all of it checked."""

    def __init__(self, file: BinaryIO, path: str, kind: str) -> None:
        self.file, self.path = file, path
        self.file_bytes = os.fstat(file.fileno()).st_size
        header = file.read(ALIGNMENT)
        if header[: len(MAGIC)] != MAGIC:
            raise self._error("it is not a simtile file: it does not begin with its eight bytes")
        if len(header) < ALIGNMENT:
            raise self._error(f"it is cut off after {len(header)} bytes, in its header")
        _, version, count, found_kind, size, start, table_bytes, attribute_bytes, crc = (
            _HEADER.unpack_from(header)
        )
        if version != VERSION:
            raise self._error(
                f"it is of version {version} of the format, this simtile reads version {VERSION}; "
                + ("use a newer simtile" if version > VERSION else "no such version was published")
            )
        if _CRC.unpack(header[-_CRC.size :])[0] != zlib.crc32(header[: -_CRC.size]):
            raise self._damaged("the header's checksum differs")
        if header[_HEADER.size : -_CRC.size].strip(b"\0"):
            raise self._damaged("the header's unused bytes are not zero")
        self._check_kind(_text(found_kind), kind)
        if size != self.file_bytes:
            raise self._error(
                f"it has {self.file_bytes} bytes, its header says {size}: it "
                + ("is cut off" if size > self.file_bytes else "was appended to")
            )
        if count > MOST_SECTIONS or attribute_bytes > MOST_ATTRIBUTE_BYTES:
            raise self._damaged(f"{count} sections and {attribute_bytes} bytes of attributes")
        most_blocks = size // BLOCK + count
        if (
            start + table_bytes != size
            or table_bytes > count * _RECORD.size + attribute_bytes + most_blocks * _CRC.size
        ):
            raise self._damaged("the table is not where the header says")
        file.seek(start)
        table = file.read(table_bytes)
        if zlib.crc32(table) != crc:
            raise self._damaged("the section table's checksum differs")
        self.sections = self._read_records(table, count, start)
        begin = count * _RECORD.size
        self.attributes = self._read_attributes(table[begin : begin + attribute_bytes])
        checksums = table[begin + attribute_bytes :]
        if len(checksums) != _CRC.size * sum(_blocks(s.size) for s in self.sections):
            raise self._damaged("the number of checksums is not the number of blocks")
        self.checksums = np.frombuffer(checksums, "<u4")
        self.start = start

    def _check_kind(self, found: str | None, kind: str) -> None:
        if found is None:
            raise self._damaged("its kind is not a name")
        if found != kind:
            raise self._error(f"it holds a {found}, expected a {kind}; use simtile.{found}.load")

    def _read_records(self, table: bytes, count: int, table_offset: int) -> list[_Found]:
        sections: list[_Found] = []
        if len(table) < count * _RECORD.size:
            raise self._damaged("the section table is cut off")
        end = ALIGNMENT
        for i in range(count):
            raw_name, raw_dtype, axes, zero, *numbers = _RECORD.unpack_from(table, i * _RECORD.size)
            name, dtype = _text(raw_name), _text(raw_dtype)
            if name is None or any(name == other.name for other in sections):
                raise self._damaged(f"section {i} has no name of its own: {raw_name!r}")
            if dtype not in DTYPES:
                raise self._damaged(f"section {name!r} has elements of type {raw_dtype!r}")
            *sizes, offset, size = numbers
            if zero or axes > MOST_AXES or any(sizes[axes:]):
                raise self._damaged(f"section {name!r} has a shape that is none")
            shape = tuple(sizes[:axes])
            # NumPy multiplies the axes of an empty array too, except those of 0.
            if prod(axis or 1 for axis in shape) * DTYPES[dtype].itemsize >= 2**62:
                raise self._damaged(f"section {name!r} is of shape {list(shape)}")
            if size != prod(shape) * DTYPES[dtype].itemsize:
                raise self._damaged(f"section {name!r}: {dtype} {list(shape)} in {size} bytes")
            if offset != end or offset + size > table_offset:
                raise self._damaged(f"section {name!r} is at {offset}, expected at {end}")
            sections.append(_Found(name, dtype, shape, offset, size))
            end = _align(offset + size)
        if table_offset != end:
            raise self._damaged(f"the section table is at {table_offset}, expected at {end}")
        return sections

    def _read_attributes(self, described: bytes) -> dict[str, Any]:
        try:
            attributes = json.loads(described)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"the attributes are not JSON ({error})") from None
        if not isinstance(attributes, dict):
            raise self._damaged("the attributes are not a JSON object")
        return attributes

    def load(self, full: bool) -> dict[str, Array]:
        """Read all arrays."""
        arrays, first = {}, 0
        for found in self.sections:
            array = np.empty(found.shape, DTYPES[found.dtype])
            self.file.seek(found.offset)
            memory = array.reshape(-1).view(np.uint8).data
            for i in range(0, found.size, BLOCK):
                block = memory[i : i + BLOCK]
                if self.file.readinto(block) != len(block):  # type: ignore[attr-defined]
                    raise self._error("it was cut off while it was read")
            if full:
                self._check_blocks(found, memory, first)
                self._check_padding(found, self.file.read(_align(found.size) - found.size))
            first += _blocks(found.size)
            arrays[found.name] = _native(array)
        return arrays

    def views(self, memory: mmap.mmap, full: bool) -> dict[str, Array]:
        """All arrays as views of the mapped file."""
        arrays, first = {}, 0
        whole = memoryview(memory)
        for found in self.sections:
            end = found.offset + found.size
            if full:
                self._check_blocks(found, whole[found.offset : end], first)
                self._check_padding(found, whole[end : _align(end)])
            first += _blocks(found.size)
            dtype = DTYPES[found.dtype]
            array: Array = np.frombuffer(memory, dtype, prod(found.shape), found.offset)
            arrays[found.name] = _native(array.reshape(found.shape))
        return arrays

    def _check_blocks(self, found: _Found, data: memoryview, first: int) -> None:
        for i in range(_blocks(found.size)):
            if zlib.crc32(data[i * BLOCK : (i + 1) * BLOCK]) != self.checksums[first + i]:
                raise self._damaged(
                    f"block {i} of section {found.name!r}, at byte {found.offset + i * BLOCK}, "
                    "differs from its checksum"
                )

    def _check_padding(self, found: _Found, padding: bytes | memoryview) -> None:
        if any(padding):
            raise self._damaged(f"the bytes after section {found.name!r} are not zero")

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: {what}")

    def _damaged(self, what: str) -> ValueError:
        return self._error(f"the file is damaged: {what}")


class _Found(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes


@contextmanager
def _replacing(path: PathLike) -> Iterator[BinaryIO]:
    """A new file that replaces `path` when the block ends, unless it raises."""
    # A link stays a link: the file it names is replaced.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:32]}.{os.urandom(8).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:  # the file that was asked for is named
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            with suppress(FileNotFoundError):
                os.fchmod(descriptor, target.stat().st_mode & 0o7777)
            yield file
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The name is in the directory, which has to reach the disk too.
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _write_parts(file: BinaryIO, part: Section, checksums: bytearray) -> int:
    """Write a section's bytes and append the checksums of its blocks; how many bytes it has."""
    dtype = DTYPES[part.dtype]
    size, crc = 0, 0
    for array in part.parts:
        stored = np.ascontiguousarray(array)
        if stored.dtype.itemsize != dtype.itemsize:
            raise ValueError(f"section {part.name!r}: found {stored.dtype}, expected {dtype}")
        if sys.byteorder == "big":
            stored = stored.byteswap()
        memory = stored.reshape(-1).view(np.uint8).data
        while len(memory):
            block = memory[: BLOCK - size % BLOCK]
            file.write(block)
            crc = zlib.crc32(block, crc)
            size += len(block)
            memory = memory[len(block) :]
            if size % BLOCK == 0:
                checksums += _CRC.pack(crc)
                crc = 0
    if size % BLOCK:
        checksums += _CRC.pack(crc)
    if size != prod(part.shape) * dtype.itemsize:
        raise ValueError(f"section {part.name!r}: found {size} bytes for {list(part.shape)}")
    return size


def _native(array: Array) -> Array:
    """The array in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("=")) if sys.byteorder == "big" else array


def _text(raw: bytes) -> str | None:
    """The name in a field that NULs fill, or None if it is not letters, digits and _ . - only."""
    name = raw.rstrip(b"\0")
    if not name or not name.isascii():
        return None
    text = name.decode("ascii")
    return text if all(c.isalnum() or c in "_.-" for c in text) else None


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _blocks(size: int) -> int:
    return -(-size // BLOCK)
