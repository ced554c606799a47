"""What a compiled GPU kernel takes and which instructions it has, read from the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

# Instructions that say what a kernel computes with, beside the matrix instructions; those are
# counted with their modifiers (sizes, element types).
ARITHMETIC = (
    "FFMA",
    "FFMA2",
    "DADD",
    "DFMA",
    "POPC",
    "IDP",
    "v_fma_f32",
    "v_fmac_f32",
    "v_pk_fma_f32",
)
# HFMA2.MMA is not one: a half-precision multiply-add that older assemblers use to make constants.
MATRIX = re.compile(r"(?:[A-Z0-9]*MMA|V_MFMA\w*)(?:\.|$)")

# cuobjdump -sass: the address, perhaps a predicate, the opcode with its modifiers
SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# From sm_90 on, cuobjdump counts what the driver keeps for itself in a block with shared memory.
RESERVED_SHARED = 1024  # bytes
LOCAL_WIDTH = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}


class Unreadable(Exception):
    """Machine code in a form that this file does not know."""


@dataclass(frozen=True)
class Code:
    """One kernel's machine code."""

    registers: int  # of a thread; on AMD vector registers, accumulation registers among them
    stack: int  # bytes of a thread
    # NVIDIA: bytes of a thread's local-memory instructions, which are register spills and arrays
    # that did not fit into registers; AMD: registers of each kind that were spilled
    spills: Mapping[str, int]
    shared_static: int  # bytes of a block
    instructions: Mapping[str, int]  # matrix instructions and those of ARITHMETIC

    def json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "spills": dict(self.spills),
            "instructions": dict(sorted(self.instructions.items())),
        }


def base(opcode: str) -> str:
    """HMMA of HMMA.16816.F32.BF16, MFMA of v_mfma_f32_32x32x8_bf16."""
    return opcode.upper().removeprefix("V_").replace("_", ".").split(".")[0]


def is_matrix(opcode: str) -> bool:
    return MATRIX.match(opcode.upper()) is not None


def problem(instructions: Mapping[str, int], expects: Iterable[str]) -> str | None:
    """Why these are not the instructions that were meant, in words; None when they are.

    Each of `expects` is an opcode, with modifiers or without, perhaps with wildcards: `HGMMA`,
    `UTC*MMA`, `HMMA.*BF16*`. All must be there, and no matrix instruction but these.
    """
    wanted = list(expects)
    for pattern in wanted:
        if not any(matches(opcode, pattern) for opcode in instructions):
            there = ", ".join(instructions) or "none"
            return f"no {pattern}; there are: {there}"
    for opcode in instructions:
        if is_matrix(opcode) and not any(matches(opcode, pattern) for pattern in wanted):
            return f"{opcode} is not among what is meant: {', '.join(wanted) or 'none'}"
    return None


def matches(opcode: str, pattern: str) -> bool:
    return fnmatchcase(base(opcode), pattern) or fnmatchcase(opcode, pattern)


def of_cubin(cubin: bytes, cuobjdump: Path) -> dict[str, Code]:
    """Every kernel of a cubin by its name in the file."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _dump(cuobjdump, "-res-usage", file.name)
        sass = _dump(cuobjdump, "-sass", file.name)
    arch = re.search(r"code for sm_(\d+)", sass)
    if arch is None:
        raise Unreadable("cuobjdump -sass does not name the architecture")
    reserved = RESERVED_SHARED if int(arch[1]) >= 90 else 0
    opcodes = _opcodes(sass)
    kernels = {}
    for name, registers, stack, shared, local in _usages(usage):
        if name not in opcodes:
            raise Unreadable(f"cuobjdump -sass has no function {name}")
        counted = opcodes[name]
        kernels[name] = Code(
            registers=registers,
            stack=stack,
            spills={
                "store_bytes": _local_bytes(counted, "STL"),
                "load_bytes": _local_bytes(counted, "LDL"),
                # static local memory beside the stack; current compilers have none
                **({"local_bytes": local} if local else {}),
            },
            shared_static=max(shared - reserved, 0),
            instructions=_characteristic(counted),
        )
    if not kernels:
        raise Unreadable(f"cuobjdump -res-usage names no function:\n{usage}")
    return kernels


def of_amdgcn(assembly: str) -> Code:
    """The one kernel of an AMD assembly file, from its metadata and its instructions."""

    def metadata(name: str) -> int:
        found = re.findall(rf"^\s+(?:- )?\.{name}:\s+(\d+)$", assembly, re.MULTILINE)
        if len(found) != 1:
            raise Unreadable(f"amdgcn: .{name} stands {len(found)} times, once expected")
        return int(found[0])

    counted = Counter(re.findall(r"^\s+([vs]_\w+)\b", assembly, re.MULTILINE))
    return Code(
        registers=metadata("vgpr_count"),
        stack=metadata("private_segment_fixed_size"),
        spills={
            "vector_registers": metadata("vgpr_spill_count"),
            "scalar_registers": metadata("sgpr_spill_count"),
        },
        shared_static=metadata("group_segment_fixed_size"),
        instructions=_characteristic(counted),
    )


def _usages(text: str) -> Iterable[tuple[str, int, int, int, int]]:
    name = None
    for line in text.splitlines():
        if match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif name and (match := USAGE.search(line)):
            registers, stack, shared, local = map(int, match.groups())
            yield name, registers, stack, shared, local
            name = None


def _opcodes(sass: str) -> dict[str, Counter[str]]:
    functions: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in sass.splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            current = functions.setdefault(match[1], Counter())
        elif match := SASS.match(line):
            current[match[1]] += 1
    return functions


def _characteristic(counted: Mapping[str, int]) -> dict[str, int]:
    kept: Counter[str] = Counter()
    for opcode, count in counted.items():
        if is_matrix(opcode):
            kept[opcode] += count
        elif (name := opcode if opcode.startswith("v_") else base(opcode)) in ARITHMETIC:
            kept[name] += count
    return dict(kept)


def _local_bytes(counted: Mapping[str, int], opcode: str) -> int:
    total = 0
    for full, count in counted.items():
        name, *modifiers = full.split(".")
        if name == opcode:
            total += count * next((LOCAL_WIDTH[m] for m in modifiers if m in LOCAL_WIDTH), 4)
    return total


def _dump(cuobjdump: Path, *arguments: str) -> str:
    done = subprocess.run([str(cuobjdump), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise Unreadable(f"cuobjdump {' '.join(arguments)}: {done.stderr}")
    return done.stdout
