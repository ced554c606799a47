"""Check that an sdist and wheels have what they should, and nothing else.

An sdist has what git tracks: no caches, nothing that was built. A wheel has the package with its
stubs, the Python half of the kernels, the licences and the extension modules: no source that was
compiled, no documentation, no library of others.

usage: check_packages.py ARCHIVE...   (in a git checkout of what they were made from)
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {".gz": 8_000_000, ".whl": 8_000_000}  # bytes
NOT_IN_WHEELS = (".cuh", ".hpp", ".md", ".png", ".svg")
TOKENS = ("document_tokens.simtile", "query_tokens.npz", "tokens.json")
LICENSES = ("LICENSE", "python/simtile/demo/data/LICENSE-PSF.txt")
DIST_INFO = ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
MODULE = re.compile(r"simtile/(_core|_cuda)\.[\w.-]+\.so")


def tracked() -> list[str]:
    command = ["git", "ls-files", "-z"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return [name for name in text.split("\0") if name]


def differences(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    found, expected = set(found), set(expected)
    missing = [f"missing: {name}" for name in sorted(expected - found)]
    return missing + [f"unexpected: {name}" for name in sorted(found - expected)]


def sdist_problems(names: list[str], files: list[str]) -> list[str]:
    """`names` of the archive's files, `files` that git tracks."""
    folder = names[0].split("/")[0] if names else ""
    return differences(names, [f"{folder}/{name}" for name in [*files, "PKG-INFO"]])


def wheel_problems(names: list[str], files: list[str]) -> list[str]:
    expected = []
    for name in files:
        if name.endswith(TOKENS):
            continue
        if name.startswith("python/simtile/"):
            expected.append(name.removeprefix("python/"))
        elif name.startswith("kernels/") and not name.endswith(NOT_IN_WHEELS):
            expected.append(f"simtile/{name}")
    info = next((name.split("/")[0] for name in names if ".dist-info/" in name), "dist-info")
    expected += [f"{info}/{name}" for name in DIST_INFO]
    expected += [f"{info}/licenses/{name}" for name in LICENSES]
    modules = [match[1] for name in names if (match := MODULE.fullmatch(name))]
    problems = differences((name for name in names if not MODULE.fullmatch(name)), expected)
    if modules.count("_core") != 1:
        problems.append(f"{modules.count('_core')} modules simtile._core, expected 1")
    for module in dict.fromkeys(modules):
        if f"simtile/{module}.pyi" not in names:
            problems.append(f"no stub of simtile.{module}")
    return problems


def problems_of(archive: Path, files: list[str], limit: int | None = None) -> list[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            names = [name for name in zipped.namelist() if not name.endswith("/")]
        problems = wheel_problems(names, files)
    else:
        with tarfile.open(archive) as tar:
            names = [member.name for member in tar if not member.isdir()]
        problems = sdist_problems(names, files)
    size = archive.stat().st_size
    limit = limit or LIMITS[archive.suffix]
    if size >= limit:
        problems.append(f"{size} bytes, expected fewer than {limit}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", nargs="+", type=Path)
    arguments = parser.parse_args()
    files = tracked()
    failed = 0
    for archive in arguments.archives:
        problems = problems_of(archive, files)
        failed += bool(problems)
        for problem in problems:
            print(f"{archive.name}: {problem}")
        print(f"{archive.name}: {archive.stat().st_size / 1e6:.2f} MB, {len(problems)} problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
