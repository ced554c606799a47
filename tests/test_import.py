"""`import simtile`: NumPy only, quickly."""

import subprocess
import sys

import pytest


def run_python(code):
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


# Importing any of these fails, as if it were not installed.
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "ml_dtypes", "rich", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_without_torch():
    out = run_python(
        BLOCK
        + """
import numpy as np
import simtile
ones = np.ones((2, 4), np.float32)
loss, *_ = simtile.info_nce_grad(ones, ones)
assert abs(loss - np.log(2)) < 1e-6
loss, *_ = simtile.info_nce_grad(ones, ones, backend="reference")
assert abs(loss - np.log(2)) < 1e-6
try:
    simtile.info_nce(ones, ones)
except ModuleNotFoundError as error:
    print(error)
try:
    simtile.nn
except ModuleNotFoundError as error:
    print(error)
"""
    )
    first, second = out.splitlines()
    assert "torch is not installed" in first
    assert "simtile.info_nce_grad" in first
    assert "torch is not installed" in second


def test_torch_is_not_imported_before_it_is_needed():
    run_python(
        """
import sys
import numpy as np
import simtile
from simtile import *
ones = np.ones((2, 4), np.float32)
info_nce_grad(ones, ones)
assert "torch" not in sys.modules
import torch
q = torch.ones(2, 4, requires_grad=True)
simtile.info_nce(q, q).backward()
simtile.nn.InfoNCE()(q, q)
"""
    )


def test_first_call_inside_a_compiled_function():
    # The operators are registered while torch.compile is looking.
    run_python(
        """
import torch
import simtile
q = torch.randn(5, 4)
compiled = torch.compile(lambda x: simtile.info_nce(x, x), fullgraph=True, backend="eager")
assert torch.equal(compiled(q), simtile.info_nce(q, q))
"""
    )


@pytest.mark.parametrize("modules", ["simtile.nn", "simtile.ops.info_nce", "simtile.info_nce"])
def test_modules_can_be_imported_directly(modules):
    run_python(f"import importlib; importlib.import_module({modules!r})")


def test_unknown_names():
    import simtile

    with pytest.raises(AttributeError, match="module 'simtile' has no attribute 'nothing'"):
        simtile.nothing  # noqa: B018


def test_import_adds_little_to_numpy():
    # The least of a few, because other programs run beside the tests, and the first may compile
    # what an installed package has compiled.
    code = """
import sys
import time
sys.dont_write_bytecode = False
import numpy
start = time.perf_counter()
import simtile
print(time.perf_counter() - start)
"""
    assert min(float(run_python(code)) for _ in range(5)) < 0.2
