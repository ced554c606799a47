"""Write python/simtile/_core.pyi and _cuda.pyi from the compiled modules; --check only compares.

usage: python tools/stubs.py [--check]

Where the CUDA module is not built its stub is left alone, and said to be; SIMTILE_EXPECT_CUDA=1
makes that a failure.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "simtile"
MODULES = ("_core", "_cuda")


def generate(module: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pybind11_stubgen", f"simtile.{module}", "--output-dir", folder,
             "--exit-code", "--numpy-array-remove-parameters"],
            check=True,
            capture_output=True,
            text=True,
        )  # fmt: skip
        made = Path(folder, "simtile", f"{module}.pyi")
        for command in (["check", "--fix-only"], ["format"]):
            options = ["--quiet", "--config", str(ROOT / "pyproject.toml"), str(made)]
            subprocess.run([sys.executable, "-m", "ruff", *command, *options], check=True)
        # Without its value, which is the build's: a release must not make the stub stale.
        return re.sub(r"^(__version__: str) = .*", r"\1", made.read_text(), flags=re.MULTILINE)


def is_missing(module: str) -> bool:
    return module == "_cuda" and importlib.util.find_spec(f"simtile.{module}") is None


def update(module: str, only_check: bool) -> bool:
    """Whether the stub is right in the end."""
    if is_missing(module):
        expected = os.environ.get("SIMTILE_EXPECT_CUDA") == "1"
        print(f"stubs: simtile.{module} is not built: its stub was not compared")
        return not expected
    stub = PACKAGE / f"{module}.pyi"
    try:
        text = generate(module)
    except subprocess.CalledProcessError as error:
        print(f"{error}\n{error.stdout}{error.stderr}")
        return False
    if not only_check:
        stub.write_text(text)
        return True
    found = stub.read_text() if stub.exists() else ""
    if found == text:
        print(f"stubs: {module}.pyi is up to date")
        return True
    sys.stdout.writelines(
        difflib.unified_diff(
            found.splitlines(True), text.splitlines(True), str(stub), "the compiled module"
        )
    )
    print(f"stubs: {module}.pyi is stale; run make stubs")
    return False


def main() -> int:
    only_check = "--check" in sys.argv
    right = [update(module, only_check) for module in MODULES]
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
