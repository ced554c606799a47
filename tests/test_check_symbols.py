import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKER = Path(__file__).parent.parent / "tools" / "check_symbols.py"
ENTRY = "namespace simtile { namespace avx2 { const int& kernel_table() { return table; } } }\n"
CLEAN = "namespace { const int table = 1; }\n" + ENTRY
PLANTED = {
    "weak symbol: int helper<int>(int)": (
        "template <typename T> T helper(T x) { return x; }\n"
        "namespace { const int table = helper(1); }\n"
        "namespace simtile { int use(int x); }\n" + ENTRY
    ),
    "weak symbol: int const& std::min<int>(int const&, int const&)": (
        "#include <algorithm>\n"
        "namespace { int table = 0; void work(int a) { table = std::min(a, table); } }\n"
        "namespace simtile { namespace avx2 { const int& kernel_table()"
        " { work(2); return table; } } }\n"
    ),
    "weak symbol: shared": "inline int shared = 1;\nnamespace { int& table = shared; }\n" + ENTRY,
    "global symbol: leaked(int)": "int leaked(int x) { return x; }\n" + CLEAN,
    "dynamic initialiser: section .init_array": (
        "int outside();\nnamespace { const int table = outside(); }\n" + ENTRY
    ),
    "0 table functions, expected 1": "namespace { int unused() { return 0; } }\n",
}
compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("c++") is None, reason="needs c++ and GNU nm"
)


def check(tmp_path, source):
    file = tmp_path / "level.cpp"
    file.write_text(source)
    command = ["c++", "-std=c++17", "-O0", "-c", str(file), "-o", str(tmp_path / "level.o")]
    subprocess.run(command, check=True, capture_output=True)
    return subprocess.run(
        [sys.executable, str(CHECKER), str(tmp_path / "level.o")],
        capture_output=True,
        text=True,
        check=False,
    )


@compiler
def test_a_clean_object_passes(tmp_path):
    result = check(tmp_path, CLEAN)
    assert result.returncode == 0, result.stdout
    assert result.stdout == "symbols of 1 objects: 1 clean, 0 not\n"


@compiler
@pytest.mark.parametrize("problem", PLANTED)
def test_what_is_planted_is_found(tmp_path, problem):
    result = check(tmp_path, PLANTED[problem])
    assert result.returncode == 1
    assert problem in result.stdout


def test_a_build_without_levels_fails(tmp_path):
    result = subprocess.run(
        [sys.executable, str(CHECKER), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "no object of an ISA level" in result.stdout
