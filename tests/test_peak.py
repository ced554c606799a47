"""The peak loops: what they promise in the disassembly, and what `_core.peak` accepts."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import simtile
from simtile import _core

ROOT = Path(__file__).resolve().parent.parent
CHECKER = ROOT / "tools" / "check_peak_loops.py"
SOURCE = """
#include "peak/cpu.hpp"
namespace simtile {
namespace SIMTILE_ISA {
const PeakLoops& peak_loops() { return peak::loops; }
}
}
"""
# The loops that a level has beside those that all have.
LEVELS: dict[str, set[str]] = {
    "baseline": set(),
    "avx2": set(),
    "avx512": set(),
    "avx512_vnni": {"dot_int8"},
    "avx512_bf16": {"dot_int8", "dot_bf16"},
    "avx512_amx": {"dot_int8", "dot_bf16", "matrix_bf16", "matrix_int8"},
    "neon": set(),
    "neon_dot": {"dot_int8"},
    "neon_mm": {"dot_int8", "dot_bf16", "matrix_bf16", "matrix_int8"},
}


def level_flags() -> dict[str, list[str]]:
    """The compiler flags of every level, as cmake/levels.cmake gives them."""
    text = (ROOT / "cmake" / "levels.cmake").read_text()
    variables: dict[str, str] = {}
    levels = {}
    call = r"(set|simtile_add_level)\((\w+) ?(?:LIKE [\w ]+)?(?:\s*FLAGS )?(-[^)]*|\$[^)]*)?\)"
    for kind, name, flags in re.findall(call, text):
        expanded = re.sub(r"\$\{(\w+)\}", lambda match: variables.get(match[1], ""), flags)
        if kind == "set":
            variables[name] = expanded
        else:
            levels[name] = expanded.split()
    kernel_flags = [*variables["kernel_flags"].split(), "-O3"]  # of level.cpp, which has them
    return {level: [*kernel_flags, *flags] for level, flags in levels.items()}


def compile_loops(level: str, flags: list[str], folder: Path) -> Path:
    source, target = folder / "loops.cpp", folder / f"{level}.o"
    source.write_text(SOURCE)
    compiler = tool(level, "g++")
    command = [compiler, "-std=c++17", f"-DSIMTILE_ISA={level}", *flags, "-I", ROOT / "kernels"]
    subprocess.run([*command, "-c", source, "-o", target], check=True)
    return target


def tool(level: str, name: str) -> str:
    """g++ or objdump for the level's architecture; the test is skipped where there is none."""
    architecture = "aarch64" if level.startswith("neon") else "x86_64"
    prefix = "" if platform.machine() == architecture else f"{architecture}-linux-gnu-"
    found = shutil.which(prefix + name)
    if found is None:
        pytest.skip(f"{prefix}{name} is not installed")
    return found


def check(path: Path, level: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CHECKER, "--objdump", tool(level, "objdump"), path]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("level", LEVELS)
def test_loops_have_independent_accumulators_and_no_memory_operands(
    level: str, tmp_path: Path
) -> None:
    result = check(compile_loops(level, level_flags()[level], tmp_path), level)
    assert result.returncode == 0, result.stdout + result.stderr
    checked = set(re.findall(r": ([\w<>]+): ok", result.stdout))
    assert checked == {"fma<float>", "fma<double>", "popcount", "read", *LEVELS[level]}


def test_the_check_refuses_unoptimised_loops(tmp_path: Path) -> None:
    flags = [flag for flag in level_flags()["avx2"] if flag != "-O3"]
    result = check(compile_loops("avx2", [*flags, "-O0"], tmp_path), "avx2")
    assert result.returncode == 1
    assert ": ok" not in result.stdout


def test_the_check_refuses_too_few_accumulators(tmp_path: Path) -> None:
    header = (ROOT / "kernels" / "peak" / "cpu.hpp").read_text()
    chained = header.replace("sum[i] += x * y", "sum[i % 4] += x * y")
    assert chained != header
    (tmp_path / "peak").mkdir()
    (tmp_path / "peak" / "cpu.hpp").write_text(chained)
    flags = ["-I", str(tmp_path), *level_flags()["avx2"]]
    result = check(compile_loops("avx2", flags, tmp_path), "avx2")
    assert result.returncode == 1
    assert "only 4 of 12 accumulators are distinct" in result.stdout


def test_kinds_follow_the_level() -> None:
    level = simtile.cpu_info()["level"]
    assert set(_core.peak_kinds()) == {"fma_f32", "fma_f64", "popcount", "read", *LEVELS[level]}


@pytest.mark.parametrize("kind", _core.peak_kinds())
@pytest.mark.parametrize("threads", [1, 3])
def test_every_kind_gives_a_rate(kind: str, threads: int) -> None:
    # 3 threads also on fewer CPUs: they must not wait for each other for ever
    rate = _core.peak(kind, threads, 0.01, buffer_bytes=8 << 20)
    assert 1e7 < rate < 1e15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("fma_f16", 1, 0.01),
            r"kind: 'fma_f16' is not measured at level \w+; expected one of: fma",
        ),
        (("fma_f32", -1, 0.01), "threads: -1"),
        (("fma_f32", 1, 0.0), "seconds: 0.0+ is out of range"),
        (("fma_f32", 1, float("nan")), "seconds: -?nan is out of range"),
        (("fma_f32", 1, 61.0), "seconds: 61.0+ is out of range"),
        (("read", 1, 0.01, -1), "buffer_bytes: -1 is negative"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.peak(*arguments)


def test_a_buffer_that_does_not_fit_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        _core.peak("read", 1, 0.01, buffer_bytes=1 << 60)
