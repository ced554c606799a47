"""Every public name has an example in its docstring, and it runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import simtile

MODULES = ("simtile.nn", "simtile.metrics", "simtile.distributed", "simtile.batches")


def public() -> dict[str, Any]:
    """What may be imported, by name."""
    found = {f"simtile.{name}": getattr(simtile, name) for name in simtile.__all__}
    for name in MODULES:
        module = importlib.import_module(name)
        found |= {f"{name}.{one}": getattr(module, one) for one in module.__all__}
    return {
        name: value
        for name, value in found.items()
        if not isinstance(value, ModuleType) and name != "simtile.__version__"
    }


@pytest.mark.parametrize("name", sorted(public()))
def test_docstring_has_an_example_that_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where examples write
    value = public()[name]
    # The methods' too. Nothing is imported for an example that it does not import itself.
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = finder.find(value, name, module=inspect.getmodule(value), globs={})
    assert any(test.name == name for test in tests), f"{name} has no example"
    for test in tests:
        doctest.DebugRunner().run(test)
