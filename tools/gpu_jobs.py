"""One compilation of the GPU report, and where its parts are found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ahead_of_time
import gpu_code

ROOT = Path(__file__).resolve().parent.parent
READ = ROOT / "build" / "gpu_report"  # what was read of a cubin: cuobjdump takes most of the time
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


def kernels_of(cubin: bytes) -> dict[str, gpu_code.Code]:
    """Every kernel of a cubin by its name in the file."""
    tool = cuobjdump()
    key = hashlib.sha256(cubin)
    key.update(Path(gpu_code.__file__).read_bytes())
    key.update(f"{tool} {tool.stat().st_size} {tool.stat().st_mtime_ns}".encode())
    path = READ / f"{key.hexdigest()}.json"
    if path.is_file():
        return {name: gpu_code.Code(**code) for name, code in json.loads(path.read_text()).items()}
    kernels = gpu_code.of_cubin(cubin, tool)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({name: code.json() for name, code in kernels.items()}))
    part.replace(path)
    return kernels
