"""Run clang-tidy over csrc and kernels with the editable build's own compile commands.

A level's kernels are seen through level.cpp, for two levels: one for each kind of code they take.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATABASE = ROOT / "build" / "editable" / "compile_commands.json"
LEVELS = ("avx2", "avx512", "avx512_amx", "neon", "neon_mm")  # avx512_amx takes some from avx512
GCC_ONLY = re.compile(
    r" -(flto\S*|fno-fat-lto-objects|fuse-linker-plugin|fvect-cost-model=\w+)(?= )"
)


def commands() -> list[dict[str, str]]:
    kept = []
    for entry in json.loads(DATABASE.read_text()):
        if entry["file"].endswith(".cu"):  # nvcc's commands; its warnings are errors
            continue
        level = re.search(r"SIMTILE_ISA=(\w+)", entry["command"])
        if level is None or level[1] in LEVELS:
            entry["command"] = GCC_ONLY.sub("", entry["command"])
            kept.append(entry)
    return kept


def run(entry: dict[str, str], folder: Path) -> tuple[str, int, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compile_commands.json").write_text(json.dumps([entry]))
    tidy = Path(sys.executable).with_name("clang-tidy")
    result = subprocess.run(
        [str(tidy), "--quiet", "-p", str(folder), entry["file"]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    return entry["file"], result.returncode, result.stdout


def main() -> int:
    if not DATABASE.exists():
        print(f"{DATABASE} is missing: build first (make test)")
        return 1
    entries = commands()
    folders = [ROOT / "build" / "tidy" / str(i) for i in range(len(entries))]
    failed = 0
    with ThreadPoolExecutor(cpu_count()) as pool:
        for file, status, output in pool.map(run, entries, folders):
            if status != 0:
                failed += 1
                print(f"{Path(file).relative_to(ROOT)}:\n{output}")
    print(f"clang-tidy: {len(entries)} translation units, {failed} with findings")
    return 1 if failed or not entries else 0


if __name__ == "__main__":
    sys.exit(main())
