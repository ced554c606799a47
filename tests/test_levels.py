"""A level takes a kernel from a lower one only where its own flags would not change the source."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILERS = {"release": "c++", "aarch64": "aarch64-linux-gnu-g++"}
SHARED = {
    "release": {"avx512_vnni", "avx512_bf16", "avx512_amx"},
    "aarch64": {"neon_dot", "neon_mm"},
}
# Of what the higher levels have more, all that a kernel can ask for.
PLANTED = {
    "avx512_vnni": ["__AVX512VNNI__", "__AVX512VPOPCNTDQ__", "__AVX512BITALG__"],
    "avx512_bf16": ["__AVX512BF16__"],
    "avx512_amx": ["__AMX_TILE__", "__AMX_BF16__", "__AMX_INT8__"],
    "neon_dot": ["__ARM_FEATURE_DOTPROD", "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC"],
    "neon_mm": ["__ARM_FEATURE_MATMUL_INT8", "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC"],
}


class Levels:
    """What CMake configures for each level."""

    def __init__(self, folder: Path, preset: str) -> None:
        command = ["cmake", "--preset", preset, "-B", str(folder), "-G", "Ninja"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        self.flags: dict[str, list[str]] = {}
        self.kernels: dict[tuple[str, str], list[str]] = {}  # taken from a level, by a level
        for entry in json.loads((folder / "compile_commands.json").read_text()):
            if not entry["file"].endswith("/csrc/level.cpp"):
                continue
            words = shlex.split(entry["command"])
            level = next(w.split("=")[1] for w in words if w.startswith("-DSIMTILE_ISA="))
            self.compiler = words[0] if preset == "aarch64" else "c++"
            self.flags[level] = [word for word in words if word.startswith("-m")]
            for word in words:
                match = re.fullmatch(r"-DSIMTILE_FROM_(\w+)=(\w+)", word)
                if match and match[2] != level:
                    self.kernels.setdefault((match[2], level), []).append(match[1])

    def seen(self, level: str, source: str) -> list[str]:
        """The lines of this project's files that the compiler sees with a level's flags."""
        options = [
            "-std=c++17",
            "-O3",
            "-Ikernels",
            "-Icsrc",
            "-DSIMTILE_ISA=a",
            *self.flags[level],
        ]
        command = [self.compiler, *options, "-E", "-x", "c++", "-"]
        done = subprocess.run(
            command, input=source, cwd=ROOT, check=True, capture_output=True, text=True
        )
        lines, own = [], True
        for line in done.stdout.splitlines():
            if marker := re.match(r'# \d+ "([^"]*)"', line):
                own = marker[1].startswith(("kernels/", "csrc/", "<stdin>"))
            elif own and line.strip():
                lines.append(line)
        return lines


@pytest.fixture(scope="module", params=COMPILERS)
def levels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Levels:
    for tool in ("cmake", "ninja", COMPILERS[request.param]):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    found = Levels(tmp_path_factory.mktemp(request.param), request.param)
    if request.param == "aarch64" or "baseline" in found.flags:
        assert {level for _, level in found.kernels} == SHARED[request.param]
    return found


@pytest.mark.slow  # each of four pairs of levels is preprocessed twice
def test_a_kernel_that_is_taken_is_the_same_source(levels: Levels) -> None:
    for (lower, level), kernels in levels.kernels.items():
        source = "".join(f'#include "level_{kernel}.cpp"\n' for kernel in kernels)
        lines = levels.seen(lower, source)
        assert len(lines) > 500
        assert lines == levels.seen(level, source), (lower, level, kernels)


def test_what_a_level_has_more_is_seen(levels: Levels) -> None:
    lowers = {level: lower for lower, level in levels.kernels}
    for level, features in PLANTED.items():
        for feature in features if level in lowers else []:
            source = f"#ifdef {feature}\nint more;\n#endif\nint x;\n"
            assert levels.seen(level, source) == ["int more;", "int x;"], feature
            assert levels.seen(lowers[level], source) == ["int x;"], feature
