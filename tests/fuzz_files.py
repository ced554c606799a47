"""Index files that are damaged or lie are opened and used, in a process with little memory.

`python fuzz_files.py FlatIndex --seconds 600`. Allowed is what the documentation of `load` says: an
index, or ValueError or OSError. A crash, ten seconds of work, a MemoryError or any other exception
is a failure, and its file is kept in fuzz_corpus/, whose files are used first the next time.
"""

import argparse
import faulthandler
import hashlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

import simtile
from simtile import _files

CORPUS = Path(__file__).with_name("fuzz_corpus")
DIM = 21
MEMORY = 256 << 20  # bytes that files of 50 kB may ask for beyond what the process has
MOST_WORK = 10  # seconds of all threads' time, whatever else the machine does
SLOWEST = 60  # seconds until threads must be waiting for each other
ALLOWED = (ValueError, OSError)

HEADER, RECORD = "<8sII16sQQQII", "<32s16sII4QQQ"
NUMBERS = [0, 1, 2, 3, 7, 20, 255, 4096, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40]
NUMBERS += [2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 2**12, 2**64 - 1]
VALUES = [*NUMBERS, -1, -(2**63), 10**30, 0.5, 1e300, None, True, False, "", "x", "dot", "hamming"]
VALUES += ["float32", "int8", "binary", "residual4", [], [1], ["binary"], ["binary", "int8"], {}]
DTYPES = [name.encode() for name in _files.DTYPES] + [b"", b"object", b"O", b"\xff"]


# What is damaged


def originals(target, folder):
    """Small files of every dtype."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((120, DIM)).astype(np.float32)
    ids = rng.permutation(1000)[: len(vectors)]
    cls = getattr(simtile, target)
    if target == "FlatIndex":
        for dtype in ("float32", "bfloat16", "int8", "int4", "binary", "int8_vector"):
            yield cls(DIM, dtype), vectors, ids
        yield cls(DIM, "float16", metric="l2"), vectors, None
    elif target == "CascadeIndex":
        yield cls(DIM), vectors, ids
        yield cls(DIM, ("binary", "int4", "float32")), vectors, None
    else:
        documents = [vectors[i : i + i % 5] for i in range(0, 116, 2)]
        for dtype in ("float32", "bfloat16", "int8", "binary"):
            yield cls(DIM, dtype), documents, ids[: len(documents)]
        yield cls(DIM, "residual2", centroids=4), documents, None


def files_of(target, folder):
    raw = []
    for i, (index, documents, ids) in enumerate(originals(target, folder)):
        index.add(documents, ids)
        index.save(folder / f"original{i}")
        raw.append((folder / f"original{i}").read_bytes())
    return raw


# How


class Parts:
    """A file taken apart, to be put together again under checksums that are right."""

    def __init__(self, raw):
        self.header = list(struct.unpack_from(HEADER, raw))
        count, start, attributes = self.header[2], self.header[5], self.header[7]
        size = struct.calcsize(RECORD)
        self.records = [
            list(struct.unpack_from(RECORD, raw, start + i * size)) for i in range(count)
        ]
        begin = start + count * size
        self.attributes = json.loads(raw[begin : begin + attributes])
        self.checksums = raw[begin + attributes :]
        self.data = bytearray(raw[:start])

    def joined(self):
        block = _files.BLOCK
        sums = bytearray()
        for record in self.records:
            offset, size = record[-2:]
            within = size <= len(self.data)  # a size that lies has no sums
            for at in range(offset, offset + size if within else offset, block):
                sums += struct.pack(
                    "<I", zlib.crc32(self.data[at : min(at + block, offset + size)])
                )
        described = json.dumps(self.attributes).encode()
        table = b"".join(struct.pack(RECORD, *record) for record in self.records)
        table += described + sums
        self.header[4] = len(self.data) + len(table)
        self.header[5:9] = len(self.data), len(table), len(described), zlib.crc32(table)
        return sealed(self.header, bytes(self.data[_files.ALIGNMENT :]) + table)


def sealed(header, rest):
    first = struct.pack(HEADER, *header).ljust(_files.ALIGNMENT - 4, b"\0")
    return first + struct.pack("<I", zlib.crc32(first)) + rest


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def flipped(rng, raw):
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 9)):
        raw[rng.integers(len(raw))] = rng.integers(256)
    return bytes(raw)


def cut(rng, raw):
    length = int(rng.integers(len(raw) + 1))
    return raw[:length] + bytes(int(rng.integers(5)) * 1000)


def lying_header(rng, raw):
    header = list(struct.unpack_from(HEADER, raw))
    field = pick(rng, [1, 2, 4, 5, 6, 7])
    most = 2**32 - 1 if field in (1, 2, 7) else 2**64 - 1
    header[field] = min(pick(rng, NUMBERS), most)
    return sealed(header, raw[_files.ALIGNMENT :])


def lying_records(rng, raw):
    """Of shapes, types, places; the size in bytes often agrees with the shape."""
    parts = Parts(raw)
    record = pick(rng, parts.records)
    field = int(rng.integers(1, 10))
    if field == 1:
        record[1] = pick(rng, DTYPES)
    else:
        record[field] = pick(rng, NUMBERS)
        if field in (2, 3):
            record[field] %= 2**32
    if rng.random() < 0.5:
        name = record[1].rstrip(b"\0").decode("latin1")
        shape = record[4 : 4 + min(record[2], 4)]
        itemsize = _files.DTYPES[name].itemsize if name in _files.DTYPES else 1
        record[-1] = int(np.prod(np.array(shape, object), initial=1)) * itemsize % 2**64
    if rng.random() < 0.1:
        parts.records.remove(record)
        parts.header[2] -= 1
    return parts.joined()


def lying_attributes(rng, raw):
    parts = Parts(raw)
    name = pick(rng, sorted(parts.attributes))
    if rng.random() < 0.15:
        del parts.attributes[name]
    elif isinstance(parts.attributes[name], list) and rng.random() < 0.7:
        parts.attributes[name] = [*parts.attributes[name], pick(rng, VALUES)][-2:]
    else:
        parts.attributes[name] = pick(rng, VALUES)
    return parts.joined()


def lying_arrays(rng, raw):
    """Ids, offsets, codes, scales: whole numbers of them are replaced."""
    parts = Parts(raw)
    for _ in range(rng.integers(1, 4)):
        record = pick(rng, parts.records)
        width = _files.DTYPES[record[1].rstrip(b"\0").decode()].itemsize
        offset, size = record[-2:]
        if not size:
            continue
        place = offset + int(rng.integers(size // width)) * width
        number = pick(rng, NUMBERS) if rng.random() < 0.5 else int(rng.integers(2**63))
        if rng.random() < 0.2:  # the last: how many tokens there are
            place = offset + size - width
        parts.data[place : place + width] = struct.pack("<Q", number)[:width]
    return parts.joined()


DAMAGES = [flipped, cut, lying_header, lying_records, lying_attributes, lying_arrays]
DAMAGES += DAMAGES[3:]  # which get further


def damaged(target_files, seed, number):
    """The file of this number: the same every time."""
    rng = np.random.default_rng([seed, number])
    raw = pick(rng, target_files)
    for _ in range(1 if rng.random() < 0.7 else 2):
        # What the first damage left can perhaps not be taken apart for a second.
        with suppress(
            struct.error, ValueError, LookupError, AttributeError, TypeError, OverflowError
        ):
            raw = pick(rng, DAMAGES)(rng, raw)
    return raw


# What is done with it


def use(target, path, allowed):
    """Open a file in every way, and call what reads and changes an index."""
    for mmap in (False, True):
        for verify in ("header", "full"):
            try:
                index = getattr(simtile, target).load(path, mmap, verify=verify)
            except allowed:
                continue
            for step in STEPS:
                with suppress(*allowed):
                    step(index, path, target == "MultiVectorIndex")


def vectors_for(index, tokens):
    return np.ones((2, 3, index.dim) if tokens else (2, index.dim), np.float32)


def search(index, path, tokens):
    index.search(vectors_for(index, tokens), 5)


def search_allowed(index, path, tokens):
    index.search(vectors_for(index, tokens), 5, allow=index.ids[:3])


def search_further(index, path, tokens):
    if tokens:
        index.search(vectors_for(index, tokens), 5, prefilter=5)
    else:
        index.range_search(vectors_for(index, tokens), 0.1)


def score(index, path, tokens):
    ids = np.tile(index.ids[:2], (2, 1))
    index.score(vectors_for(index, tokens), ids)


def change(index, path, tokens):
    index.add(
        vectors_for(index, tokens), [5000, 5001] if index.ids[-1:] != len(index) - 1 else None
    )
    index.remove(index.ids[:1])
    index.update(vectors_for(index, tokens)[:1], index.ids[-1:])


def save(index, path, tokens):
    index.save(f"{path}.again")
    type(index).load(f"{path}.again", verify="full")


STEPS = [search, search_allowed, search_further, score, change, search, save]


def child(target, folder, seed, first, last, seconds):
    """Use files until the time is over; the one in use is `folder / "current"`."""
    warnings.simplefilter("ignore")  # of numbers that overflow
    _files.os.fsync = lambda _: None  # many files, of which nobody needs one
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    faulthandler.register(signal.SIGPROF, chain=True)  # says where, and ends the process
    current, files, corpus = folder / "current", files_of(target, folder), kept_files(target)
    for raw in files:
        current.write_bytes(raw)
        use(target, current, ())  # starts threads, loads what is loaded late
        current.unlink()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    number, end = first, time.monotonic() + seconds
    while number < last and time.monotonic() < end:
        # Those that were kept have numbers below 0.
        raw = damaged(files, seed, number) if number >= 0 else corpus[number].read_bytes()
        (folder / "number").write_text(str(number))
        current.write_bytes(raw)
        signal.setitimer(signal.ITIMER_PROF, MOST_WORK)
        faulthandler.dump_traceback_later(SLOWEST, exit=True)
        use(target, current, ALLOWED)
        faulthandler.cancel_dump_traceback_later()
        # Not written over: arrays of an index that is alive may be mapped from it.
        current.unlink()
        number += 1
    print(number)


def kept_files(target):
    return sorted(CORPUS.glob(f"{target}-*"))


def run_child(target, folder, *rest):
    command = [sys.executable, __file__, target, "--child", str(folder), *map(str, rest)]
    environment = {**os.environ, "SIMTILE_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def fuzz(target, seconds, seed=0, files=2**40, keep=CORPUS):
    """How many files were used, and of each failure what was printed."""
    end, failures = time.monotonic() + seconds, []
    first = number = -len(kept_files(target))
    while number < files and (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory() as name:
            current = Path(name) / "current"
            numbers = "--seed", seed, "--first", number, "--last", files, "--seconds", left
            ran = run_child(target, name, *numbers)
            if ran.returncode == 0:
                return int(ran.stdout) - first, failures
            if not current.exists() or not current.with_name("number").exists():
                raise RuntimeError(f"{target}: not of a damaged file: {ran.stderr}")
            number = int(current.with_name("number").read_text())
            digest = hashlib.sha256(current.read_bytes()).hexdigest()
            kept = keep / f"{target}-{digest[:8]}"
            keep.mkdir(exist_ok=True)
            shutil.copy(current, kept)
            failures.append(f"{kept} ({number} of seed {seed}): {ran.returncode}\n{ran.stderr}")
            number += 1
    return number - first, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=["FlatIndex", "CascadeIndex", "MultiVectorIndex"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    for hidden, kind in {"--first": int, "--last": int, "--child": Path}.items():
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    found = parser.parse_args()
    if found.child:
        child(found.target, found.child, found.seed, found.first, found.last, found.seconds)
        return
    number, failures = fuzz(found.target, found.seconds, found.seed)
    print(*failures, f"{found.target}: {number} files, {len(failures)} failures", sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
