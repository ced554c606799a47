"""What tools/check_packages.py finds in archives that are made up."""

from __future__ import annotations

import importlib
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    ".gitignore",
    "LICENSE",
    "csrc/isa.cpp",
    "kernels/topk/README.md",
    "kernels/topk/cpu.hpp",
    "kernels/topk/cuda.cuh",
    "kernels/topk/triton.py",
    "python/simtile/__init__.py",
    "python/simtile/_core.pyi",
    "python/simtile/_cuda.pyi",
    "python/simtile/demo/data/LICENSE-PSF.txt",
    "python/simtile/demo/data/tokens.json",
    "python/simtile/py.typed",
]
INFO = "simtile-0.1.0.dist-info/"
CORE = "simtile/_core.cpython-311-x86_64-linux-gnu.so"
CUDA = "simtile/_cuda.cpython-311-x86_64-linux-gnu.so"
WHEEL = {
    "simtile/__init__.py",
    "simtile/_core.pyi",
    "simtile/_cuda.pyi",
    "simtile/demo/data/LICENSE-PSF.txt",
    "simtile/kernels/topk/triton.py",
    "simtile/py.typed",
    CORE,
    *(INFO + name for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")),
    *(
        INFO + "licenses/" + name
        for name in ("LICENSE", "python/simtile/demo/data/LICENSE-PSF.txt")
    ),
}
# What is added to a wheel or taken from it, and what is said of it.
PLANTED = [
    ({"simtile/kernels/topk/cpu.hpp"}, set(), "unexpected: simtile/kernels/topk/cpu.hpp"),
    ({"simtile/kernels/topk/cuda.cuh"}, set(), "unexpected: simtile/kernels/topk/cuda.cuh"),
    ({"simtile/kernels/topk/README.md"}, set(), "unexpected: simtile/kernels/topk/README.md"),
    ({"simtile/__pycache__/a.pyc"}, set(), "unexpected: simtile/__pycache__/a.pyc"),
    ({"simtile.libs/libgomp.so.1"}, set(), "unexpected: simtile.libs/libgomp.so.1"),
    ({"simtile/libcudart.so.13"}, set(), "unexpected: simtile/libcudart.so.13"),
    ({"tests/smoke.py"}, set(), "unexpected: tests/smoke.py"),
    ({"simtile/demo/data/tokens.json"}, set(), "unexpected: simtile/demo/data/tokens.json"),
    (set(), {"simtile/py.typed"}, "missing: simtile/py.typed"),
    (set(), {"simtile/kernels/topk/triton.py"}, "missing: simtile/kernels/topk/triton.py"),
    (set(), {INFO + "licenses/LICENSE"}, f"missing: {INFO}licenses/LICENSE"),
    (set(), {"simtile/_core.pyi"}, "no stub of simtile._core"),
    ({CUDA}, {"simtile/_cuda.pyi"}, "no stub of simtile._cuda"),
    (set(), {CORE}, "0 modules simtile._core, expected 1"),
    ({CORE.replace("311", "310")}, set(), "2 modules simtile._core, expected 1"),
]


@pytest.fixture(scope="module")
def checker() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("check_packages")
    sys.path.remove(str(ROOT / "tools"))


def wheel(folder: Path, names: set[str]) -> Path:
    path = folder / "simtile-0.1.0-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def sdist(folder: Path, names: set[str]) -> Path:
    path = folder / "simtile-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"simtile-0.1.0/{name}"), BytesIO())
    return path


@pytest.mark.parametrize("names", [WHEEL, WHEEL | {CUDA}], ids=["core", "core and cuda"])
def test_a_clean_wheel_passes(checker: ModuleType, tmp_path: Path, names: set[str]) -> None:
    assert checker.problems_of(wheel(tmp_path, names), FILES) == []


@pytest.mark.parametrize(("added", "taken", "problem"), PLANTED)
def test_what_is_planted_in_a_wheel_is_found(
    checker: ModuleType, tmp_path: Path, added: set[str], taken: set[str], problem: str
) -> None:
    assert problem in checker.problems_of(wheel(tmp_path, (WHEEL | added) - taken), FILES)


def test_a_clean_sdist_passes(checker: ModuleType, tmp_path: Path) -> None:
    assert checker.problems_of(sdist(tmp_path, {*FILES, "PKG-INFO"}), FILES) == []


@pytest.mark.parametrize(
    ("added", "taken", "problem"),
    [
        ("tests/__pycache__/a.pyc", "", "unexpected: simtile-0.1.0/tests/__pycache__/a.pyc"),
        ("build/deep/a.o", "", "unexpected: simtile-0.1.0/build/deep/a.o"),
        ("", "csrc/isa.cpp", "missing: simtile-0.1.0/csrc/isa.cpp"),
        ("", "PKG-INFO", "missing: simtile-0.1.0/PKG-INFO"),
    ],
)
def test_what_is_planted_in_an_sdist_is_found(
    checker: ModuleType, tmp_path: Path, added: str, taken: str, problem: str
) -> None:
    names = ({*FILES, "PKG-INFO", added}) - {taken, ""}
    assert checker.problems_of(sdist(tmp_path, names), FILES) == [problem]


def test_too_many_bytes_are_found(checker: ModuleType, tmp_path: Path) -> None:
    path = sdist(tmp_path, {*FILES, "PKG-INFO"})
    size = path.stat().st_size
    assert checker.problems_of(path, FILES, limit=size + 1) == []
    assert checker.problems_of(path, FILES, limit=size) == [
        f"{size} bytes, expected fewer than {size}"
    ]


def test_the_tracked_files_are_those_of_the_checkout(checker: ModuleType) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert {"LICENSE", "csrc/isa.cpp", "python/simtile/py.typed"} <= set(checker.tracked())
