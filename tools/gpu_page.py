"""docs/gpu-report.md of the stored report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gpu_code

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import tables

Json = dict[str, Any]

COMPILERS = {"triton": "Triton", "cuda": "nvcc"}
LANGUAGES = {"triton": "Triton", "cuda": "CUDA"}

HEAD = """# What the GPU kernels' machine code takes

Written by `make gpu-report`, which compiles every kernel at its pinned configuration. That needs no
GPU: nothing here was run on one, and nothing here is a speed. A spill, more shared memory than a
block can have, or an instruction that is not the one meant is an error; `--check`, a part of
`make test-deep`, also fails when a kernel takes more than stands here.

Registers are a thread's, on gfx942 vector and accumulation registers together; the stack is a
thread's, shared memory a block's. Threads and shared memory of CUDA kernels are the most that any
arguments in `tools/gpu_launches` lead to. Instructions are counted as they stand in the code, those
of a loop once."""

COLUMNS = [
    "kernel",
    "elements",
    "architecture",
    "threads",
    "registers",
    "stack",
    "spills",
    "shared memory",
    "instructions",
]


def page(report: Json) -> str:
    """A table for each operation and language."""
    parts = [HEAD]
    for half, made in report.items():
        for operation in sorted({row["operation"] for row in made["kernels"]}):
            rows = [row for row in made["kernels"] if row["operation"] == operation]
            compiler = f"{COMPILERS[half]} {made['compiler']}"
            parts.append(f"## {operation}, {LANGUAGES[half]} ({compiler})")
            parts.append(tables.table(COLUMNS, [_cells(row) for row in rows]))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _cells(row: Json) -> list[str]:
    spilled = [f"{what} {count}" for what, count in row["spills"].items() if count]
    return [
        f"`{row['variant']}`",
        row["dtype"],
        row["arch"],
        str(row["threads"]),
        str(row["registers"]),
        f"{row['stack']} B",
        f"**{', '.join(spilled)}**" if spilled else "none",
        f"{_kibibytes(row['shared_static'] + (row['shared_dynamic'] or 0))} of "
        f"{_kibibytes(row['shared_limit'])}",
        _instructions(row),
    ]


def _kibibytes(value: int) -> str:
    return f"{value / 1024:.3g} KiB" if value else "0"


def _instructions(row: Json) -> str:
    meant = [
        f"{opcode} ×{count}"
        for opcode, count in row["instructions"].items()
        if any(gpu_code.matches(opcode, pattern) for pattern in row["expects"])
    ]
    why = gpu_code.problem(row["instructions"], row["expects"])
    return ", ".join(meant) + (f" **not meant: {why}**" if why else "") or "–"
