"""One compilation of the GPU report, and where its parts are found."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ahead_of_time

ROOT = Path(__file__).resolve().parent.parent
Json = dict[str, Any]

# Shared memory that one block can have, bytes: CUDA C++ Programming Guide, technical specifications
# per compute capability; AMD CDNA 3 ISA reference, LDS.
SHARED_LIMIT = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}


@dataclass(frozen=True)
class Job:
    """Small, because it is sent to another process."""

    source: str  # triton, cuda, or launches: what a CUDA dispatch launches
    operation: str
    file: str  # a Triton module's file, or a .cu file
    arch: str = ""  # a Triton family (sm80), or an architecture (sm_80)
    index: int = 0  # of the family's variants

    def __str__(self) -> str:
        return " ".join(part for part in (self.source, self.operation, self.arch) if part)


def cuobjdump() -> Path:
    """The toolkit's, or the one in Triton's wheel."""
    try:
        beside = ahead_of_time.nvcc().with_name("cuobjdump")
        if beside.is_file():
            return beside
    except ahead_of_time.CompilerMissing:
        pass
    found = shutil.which("cuobjdump")
    return Path(found) if found else ahead_of_time.triton_tool("cuobjdump")
