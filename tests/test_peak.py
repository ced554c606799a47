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
COMPILER = shutil.which("c++") or shutil.which("g++")
SOURCE = """
#include "peak/cpu.hpp"
namespace simtile {
namespace SIMTILE_ISA {
const PeakLoops& peak_loops() { return peak::loops; }
}
}
"""
X86_LEVELS = ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx")


def level_flags() -> dict[str, list[str]]:
    """The compiler flags of every level, as cmake/levels.cmake gives them."""
    text = (ROOT / "cmake" / "levels.cmake").read_text()
    variables: dict[str, str] = {}
    levels = {}
    for kind, name, flags in re.findall(
        r"(set|simtile_add_level)\((\w+) ?(-[^)]*|\$[^)]*)?\)", text
    ):
        expanded = re.sub(r"\$\{(\w+)\}", lambda match: variables.get(match[1], ""), flags)
        if kind == "set":
            variables[name] = expanded
        else:
            levels[name] = expanded.split()
    kernel_flags = variables["kernel_flags"].split()
    return {level: [*kernel_flags, *flags] for level, flags in levels.items()}


def compile_loops(level: str, flags: list[str], folder: Path) -> Path:
    source, target = folder / "loops.cpp", folder / f"{level}.o"
    source.write_text(SOURCE)
    command = [COMPILER, "-std=c++17", "-I", ROOT / "kernels", f"-DSIMTILE_ISA={level}", *flags]
    subprocess.run([*command, "-c", source, "-o", target], check=True)
    return target


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKER), str(path)]
    return subprocess.run(command, capture_output=True, text=True)


needs_compiler = pytest.mark.skipif(
    COMPILER is None or shutil.which("objdump") is None or platform.machine() != "x86_64",
    reason="needs a compiler for x86-64 and objdump",
)


@needs_compiler
@pytest.mark.parametrize("level", X86_LEVELS)
def test_loops_have_independent_accumulators_and_no_memory_operands(
    level: str, tmp_path: Path
) -> None:
    result = check(compile_loops(level, level_flags()[level], tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    checked = set(re.findall(r": ([\w<>]+): ok", result.stdout))
    expected = {"fma<float>", "fma<double>", "popcount", "read"}
    if level in ("avx512_vnni", "avx512_bf16", "avx512_amx"):
        expected.add("dot_int8")
    if level in ("avx512_bf16", "avx512_amx"):
        expected.add("dot_bf16")
    if level == "avx512_amx":
        expected |= {"matrix_bf16", "matrix_int8"}
    assert checked == expected


@needs_compiler
def test_the_check_refuses_unoptimised_loops(tmp_path: Path) -> None:
    flags = [flag for flag in level_flags()["avx2"] if flag != "-O3"]
    result = check(compile_loops("avx2", [*flags, "-O0"], tmp_path))
    assert result.returncode == 1
    assert ": ok" not in result.stdout


@needs_compiler
def test_the_check_refuses_too_few_accumulators(tmp_path: Path) -> None:
    header = (ROOT / "kernels" / "peak" / "cpu.hpp").read_text()
    chained = header.replace("sum[i] += x * y", "sum[i % 4] += x * y")
    assert chained != header
    (tmp_path / "peak").mkdir()
    (tmp_path / "peak" / "cpu.hpp").write_text(chained)
    flags = ["-I", str(tmp_path), *level_flags()["avx2"]]
    source, target = tmp_path / "loops.cpp", tmp_path / "chained.o"
    source.write_text(SOURCE)
    command = [COMPILER, "-std=c++17", *flags, "-I", ROOT / "kernels", "-DSIMTILE_ISA=avx2"]
    subprocess.run([*command, "-c", source, "-o", target], check=True)
    result = check(target)
    assert result.returncode == 1
    assert "only 4 of 12 accumulators are distinct" in result.stdout


def test_kinds_follow_the_level() -> None:
    kinds = set(_core.peak_kinds())
    assert {"fma_f32", "fma_f64", "popcount", "read"} <= kinds
    level = simtile.cpu_info()["level"]
    if level in X86_LEVELS:
        at_least = X86_LEVELS.index(level)
        assert ("dot_int8" in kinds) == (at_least >= X86_LEVELS.index("avx512_vnni"))
        assert ("dot_bf16" in kinds) == (at_least >= X86_LEVELS.index("avx512_bf16"))
        assert ("matrix_bf16" in kinds) == (level == "avx512_amx")


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
