"""Check that nothing but its entry point leaves an object compiled for one ISA level.

The linker keeps one definition of a weak symbol. If that comes from an object built for AVX-512,
every level runs it, and a CPU without AVX-512 dies; a dynamic initialiser runs when the module is
loaded, whatever the CPU.

usage: check_symbols.py [--prefix aarch64-linux-gnu-] BUILD_DIRECTORY | OBJECT...
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ENTRY_POINT = re.compile(r"simtile::\w+::\w+_table\(\)")
# The compiler's own pointer to the unwinder's personality routine: data, the same at every level.
HARMLESS = re.compile(r"DW\.ref\.__gxx_personality_v0")
INITIALISERS = re.compile(r"\s(\.init_array\S*|\.ctors\S*|\.preinit_array\S*)\s")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def problems(obj: Path, prefix: str = "") -> list[str]:
    """What leaves the object and should not, in words."""
    found = []
    entry_points = 0
    for line in run(f"{prefix}nm", "--defined-only", "--demangle", str(obj)).splitlines():
        _, kind, name = line.split(" ", 2)
        if kind in "wWvVu" and not HARMLESS.fullmatch(name):
            found.append(f"weak symbol: {name}")
        elif ENTRY_POINT.fullmatch(name) and kind == "T":
            entry_points += 1
        elif kind.isupper() and kind not in "WV":
            found.append(f"global symbol: {name}")
    if entry_points != 1:
        found.append(f"{entry_points} table functions, expected 1")
    for match in INITIALISERS.finditer(run(f"{prefix}objdump", "-h", str(obj))):
        found.append(f"dynamic initialiser: section {match[1]}")
    return found


def level_objects(build: Path) -> list[Path]:
    return sorted(build.glob("CMakeFiles/simtile_*.dir/csrc/level*.cpp.o"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefix", default="", help="of nm and objdump, for a cross build")
    parser.add_argument("paths", nargs="+", type=Path)
    arguments = parser.parse_args()

    objects = []
    for path in arguments.paths:
        here = level_objects(path) if path.is_dir() else [path]
        if not here:
            print(f"{path}: no object of an ISA level in it")
            return 1
        objects += here
    failed = 0
    for obj in objects:
        found = problems(obj, arguments.prefix)
        failed += bool(found)
        for problem in found:
            print(f"{obj}: {problem}")
    print(f"symbols of {len(objects)} objects: {len(objects) - failed} clean, {failed} not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
