"""Check in the disassembly that the peak loops do what they are counted for.

    python tools/check_peak_loops.py OBJECT...

Each OBJECT is an object file that contains kernels/peak/cpu.hpp compiled for one ISA level. In the
loop of every function found there: as many instructions of the expected kind as are counted, each
into a register of its own (so that no one waits for another), and no operand in memory.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FUNCTION = re.compile(r"^[0-9a-f]+ <.*::peak::([\w<>]+)\(.*>:$")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*([^#<]*?)\s*(?:(?:#|//|<).*)?$")
BRANCH = re.compile(r"j\w+|b|b\.\w+|cbn?z")


@dataclass(frozen=True)
class Rule:
    """`accumulate` occurs `count` times with distinct destinations; `others` occur as often as
    given; `memory` says whether operands may be in memory."""

    accumulate: str
    count: int
    others: tuple[tuple[str, int], ...] = ()
    memory: bool = False


# For every function the first rule whose accumulating instruction occurs is the one to obey.
RULES: dict[str, tuple[Rule, ...]] = {
    "fma<float>": (
        Rule(r"vfmadd\d+ps zmm", 24),
        Rule(r"vfmadd\d+ps ymm", 12),
        Rule(r"addps xmm", 12, (("mulps xmm", 12),)),
        Rule(r"fmla v\d+\.4s", 24),
    ),
    "fma<double>": (
        Rule(r"vfmadd\d+pd zmm", 24),
        Rule(r"vfmadd\d+pd ymm", 12),
        Rule(r"addpd xmm", 12, (("mulpd xmm", 12),)),
        Rule(r"fmla v\d+\.2d", 24),
    ),
    "dot_bf16": (Rule(r"vdpbf16ps zmm", 24), Rule(r"bfdot v", 24)),
    "matrix_bf16": (Rule(r"tdpbf16ps tmm", 6), Rule(r"bfmmla v", 24)),
    "dot_int8": (Rule(r"vpdpbusd zmm", 24), Rule(r"sdot v", 24)),
    "matrix_int8": (Rule(r"tdpbssd tmm", 6), Rule(r"smmla v", 24)),
    "popcount": (
        # 16 vectors make one sum of bytes, which is widened once
        Rule(r"vpsadbw [yz]mm", 1, ((r"vpshufb [yz]mm", 32),)),
        Rule(r"psadbw xmm", 1, ((r"psrlw xmm", 48),)),
        Rule(r"uaddlp v\d+\.8h", 1, ((r"cnt v", 16),)),
        Rule(r"vpaddq zmm", 24, ((r"vpopcntq zmm", 24), (r"vpxor[dq]? zmm", 24))),
    ),
    "read": (
        Rule(r"v?p?xor(?:ps|[dq])? [xyz]mm", 0, ((r"prefetcht0", 2),), memory=True),
        Rule(r"eor v", 0, ((r"prfm", 2),), memory=True),
    ),
}
BYTES_READ_PER_ROUND = 128
REGISTER = re.compile(r"\b([xyzt])mm\d|\b([qv])\d")
VECTOR_BYTES = {"x": 16, "y": 32, "z": 64, "v": 16, "q": 16}


def functions(disassembly: str) -> dict[str, list[tuple[int, str, str]]]:
    """Instructions (address, mnemonic, operands) of every function in namespace peak."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    body: list[tuple[int, str, str]] | None = None
    for line in disassembly.splitlines():
        if line.endswith(">:"):
            match = FUNCTION.match(line)
            body = found.setdefault(match[1], []) if match else None
        elif body is not None and (match := INSTRUCTION.match(line)):
            body.append((int(match[1], 16), match[2], match[3]))
    return found


def loops(body: list[tuple[int, str, str]]) -> list[list[str]]:
    """Every backward branch's loop, as "mnemonic operands" strings."""
    start = body[0][0]
    result = []
    for address, mnemonic, operands in body:
        if not BRANCH.fullmatch(mnemonic):
            continue
        target = re.search(r"\b([0-9a-f]+)$", operands)
        if target and start <= int(target[1], 16) < address:
            inside = [(m, o) for a, m, o in body if int(target[1], 16) <= a <= address]
            result.append([f"{m} {o}" for m, o in inside])
    return result


def faults(name: str, body: list[tuple[int, str, str]]) -> list[str]:
    """What is wrong with the loop of function `name`; empty if nothing is."""
    for loop in sorted(loops(body), key=len):
        for rule in RULES[name]:
            sums = [text for text in loop if re.match(rule.accumulate, text)]
            if sums:
                return check(rule, loop, sums)
    return ["no loop with the expected instruction"]


def check(rule: Rule, loop: list[str], sums: list[str]) -> list[str]:
    wrong = []
    in_memory = [text for text in loop if "[" in text and REGISTER.search(text)]
    if rule.memory:
        read = sum(bytes_loaded(text) for text in in_memory)
        if read != BYTES_READ_PER_ROUND:
            wrong.append(f"{read} bytes are read where {BYTES_READ_PER_ROUND} are counted")
    else:
        if len(sums) != rule.count:
            wrong.append(f"{len(sums)} times {rule.accumulate!r} where {rule.count} are counted")
        destinations = {text.split(",")[0] for text in sums}
        if len(destinations) != len(sums):
            wrong.append(f"only {len(destinations)} of {len(sums)} accumulators are distinct")
        wrong += [f"operand in memory: {text}" for text in in_memory]
    for pattern, count in rule.others:
        found = len([text for text in loop if re.match(pattern, text)])
        if found != count:
            wrong.append(f"{found} times {pattern!r} where {count} are counted")
    return wrong


def bytes_loaded(instruction: str) -> int:
    register = REGISTER.search(instruction)
    assert register is not None
    return VECTOR_BYTES[register[0][0]] * (2 if instruction.startswith("ldp ") else 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("objects", nargs="+", type=Path, metavar="OBJECT")
    parser.add_argument("--objdump", default="objdump")
    arguments = parser.parse_args()
    bad = False
    for path in arguments.objects:
        command = [arguments.objdump, "-dCw", "--no-show-raw-insn", str(path)]
        if (
            "x86-64"
            in subprocess.run(
                [arguments.objdump, "-f", str(path)], capture_output=True, text=True, check=True
            ).stdout
        ):
            command += ["-M", "intel"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = functions(text)
        missing = {"fma<float>", "fma<double>", "popcount", "read"} - set(found)
        for name in sorted(missing):
            print(f"{path}: {name}: not in this object")
        bad |= bool(missing)
        for name, body in found.items():
            wrong = faults(name, body) if name in RULES else ["no rule for this function"]
            print(f"{path}: {name}: {'; '.join(wrong[:3]) if wrong else 'ok'}")
            bad |= bool(wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
