"""Write python/simtile/_core.pyi from the compiled module; with --check only compare.

usage: python tools/stubs.py [--check]
"""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).resolve().parent.parent / "python" / "simtile" / "_core.pyi"


def generate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pybind11_stubgen", "simtile._core", "--output-dir", folder,
             "--exit-code", "--numpy-array-remove-parameters"],
            check=True,
            capture_output=True,
            text=True,
        )  # fmt: skip
        made = Path(folder, "simtile", "_core.pyi")
        for command in (["check", "--fix-only"], ["format"]):
            options = ["--quiet", "--config", str(STUB.parents[2] / "pyproject.toml"), str(made)]
            subprocess.run([sys.executable, "-m", "ruff", *command, *options], check=True)
        # Without its value, which is the build's: a release must not make the stub stale.
        return re.sub(r"^(__version__: str) = .*", r"\1", made.read_text(), flags=re.MULTILINE)


def main() -> int:
    try:
        text = generate()
    except subprocess.CalledProcessError as error:
        print(f"{error}\n{error.stdout}{error.stderr}")
        return 1
    if "--check" not in sys.argv:
        STUB.write_text(text)
        return 0
    found = STUB.read_text() if STUB.exists() else ""
    if found == text:
        print("stubs: up to date")
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(
            found.splitlines(True), text.splitlines(True), str(STUB), "the compiled module"
        )
    )
    print("stubs: stale; run make stubs")
    return 1


if __name__ == "__main__":
    sys.exit(main())
