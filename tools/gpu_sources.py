"""What of the GPU report must be compiled again: the same sources and compiler make the same code.

--check compiles everything that changed since the report was stored, and of the rest an eighth,
another one whenever something changes: all of it takes a quarter of an hour.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ahead_of_time
from gpu_jobs import ROOT, Job, Json

TOOLS = ("ahead_of_time.py", "gpu_code.py", "gpu_cuda.py", "gpu_jobs.py", "gpu_triton.py")


def included(file: Path, seen: set[Path]) -> Iterator[Path]:
    """A CUDA source and every file of the project that it includes."""
    if file in seen:
        return
    seen.add(file)
    yield file
    for name in re.findall(r'^\s*#include "(.+)"', file.read_text(), re.MULTILINE):
        for folder in (file.parent, *map(Path, ahead_of_time.INCLUDES)):
            if (folder / name).is_file():
                yield from included(folder / name, seen)
                break


def imported(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """The Triton modules of a folder of kernels/ and of all that they import from."""
    if folder in seen:
        return
    seen.add(folder)
    for file in folder.glob("triton*.py"):
        yield file
        for name in re.findall(r"^from simtile\.kernels\.(\w+)", file.read_text(), re.MULTILINE):
            yield from imported(folder.parent / name, seen)


def files(job: Job) -> list[Path]:
    """What a job's result is made from."""
    made_by = [ROOT / "tools" / name for name in TOOLS]
    if job.source == "triton":
        return [*made_by, Path(job.file), *imported(Path(job.file).parent, set())]
    return [*made_by, *included(Path(job.file), set())]


def digests(jobs: Sequence[Job]) -> dict[str, str]:
    """For each operation the digest of its sources."""
    found: dict[str, str] = {}
    for job in jobs:
        if job.operation not in found:
            whole = hashlib.sha256()
            for path in sorted({path.resolve() for path in files(job)}):
                whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
            found[job.operation] = whole.hexdigest()
    return found


def arch(job: Job) -> str:
    """As rows name it."""
    return re.sub(r"^sm(?=\d)", "sm_", job.arch)


def skipped(
    jobs: Sequence[Job],
    compiler: str,
    sources: Mapping[str, str],
    stored: Json,
    draw: bool = True,
) -> set[tuple[str, str]]:
    """Operations and architectures that are as they were stored; with `draw` not the eighth."""
    if stored.get("compiler") != compiler:
        return set()
    return {
        (job.operation, arch(job))
        for job in jobs
        if job.arch
        and stored.get("sources", {}).get(job.operation) == sources[job.operation]
        and not (draw and drawn(sources[job.operation], arch(job)))
    }


def drawn(*what: str) -> bool:
    return int(hashlib.sha256(" ".join(what).encode()).hexdigest(), 16) % 8 == 0
