"""Compiles the bindings of an operation's CUDA kernels, tests/cuda_host/<name>.cpp, for the CPU."""

import hashlib
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda_host"
SHIM = "tests/cuda_host"
INCLUDE = ("kernels", "csrc", SHIM)

# -ffp-contract=off: only what a kernel writes as fma is one. -fno-gnu-unique: mutants of one module
# are loaded side by side and share nothing. -g1: lines of code addresses, for messages.
FLAGS = [
    "-std=c++17",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-ffp-contract=off",
]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # nvcc's #pragma unroll
# Kernels report their loads and stores to shim/hooks.cpp; ThreadSanitizer itself is not linked.
HOOKS = ["-O1", "-fsanitize=thread"]
# The two instrumentations exclude one another.
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


@dataclass(frozen=True)
class Mutation:
    """A planted mistake: in `file`, relative to the repository, `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


def some(mutants: Sequence[Mutation]) -> Sequence[Mutation]:
    """An eighth of them, another one whenever their files change; all with SIMTILE_MUTANTS=all.

    Each takes a compilation: all of them are a quarter of an hour's work.
    """
    if os.environ.get("SIMTILE_MUTANTS") == "all":
        return mutants

    def draw(mutation: Mutation) -> int:
        text = mutation.name + (ROOT / mutation.file).read_text()
        return int(hashlib.sha256(text.encode()).hexdigest(), 16)

    return [mutation for mutation in mutants if draw(mutation) % 8 == 0]


def sanitized() -> bool:
    """Whether every module is built with AddressSanitizer and UBSan."""
    return os.environ.get("SIMTILE_CUDA_HOST_SANITIZE") == "1"


@cache
def load(name: str, *, mutation: Mutation | None = None, sanitize: bool = False) -> ModuleType:
    """Compile tests/cuda_host/`name`.cpp unless that was done before, and import it.

    The module is `simtile_cuda_host_<name>`. With `sanitize`, or SIMTILE_CUDA_HOST_SANITIZE=1 in
    the environment, the process must have been started with libasan in LD_PRELOAD.
    """
    library = compile_module(name, mutation, sanitize or sanitized())
    # pybind11 gives the module that it made before when it is asked for the same full name again:
    # a mutant would silently be the original.
    module_name = f"{library.stem}.simtile_cuda_host_{name}"
    loader = importlib.machinery.ExtensionFileLoader(module_name, str(library))
    spec = importlib.util.spec_from_file_location(module_name, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def compile_module(name: str, mutation: Mutation | None, sanitize: bool) -> Path:
    """Returns the shared library; its name has the hash of everything that it depends on."""
    main = f"{SHIM}/{name}.cpp"
    sources = closure([main, f"{SHIM}/cuda_on_host.hpp"])
    if mutation is not None:
        sources[mutation.file] = mutate(sources, mutation)
    shim = compile_shim(sanitize)
    mode = SANITIZE if sanitize else HOOKS
    # A mistake may well leave a name without use.
    warnings = WARNINGS if mutation is None else ["-w"]
    flags = [*FLAGS, *warnings, *mode, "-include", "cuda_on_host.hpp"]
    library = BUILD / f"{name}-{digest(sources, [*flags, shim.name])}.so"
    if library.exists():
        return library
    system = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        scratch = Path(folder)
        root = scratch if mutation is not None else ROOT
        if mutation is not None:
            for path, text in sources.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
        includes = [f"-I{root / path}" for path in INCLUDE] + [f"-isystem{path}" for path in system]
        run(
            [
                *flags,
                *map_paths(root),
                *includes,
                "-c",
                root / main,
                "-o",
                scratch / "o",
            ]
        )
        link = SANITIZE if sanitize else []
        run(["-shared", *link, scratch / "o", shim, "-o", scratch / "so"])
        (scratch / "so").replace(library)
    return library


def compile_shim(sanitize: bool) -> Path:
    """Returns the object with everything in shim/, which is compiled without hooks."""
    files = sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / SHIM / "shim").glob("*.cpp")
    )
    sources = closure(files)
    flags = [*FLAGS, *WARNINGS, *(SANITIZE if sanitize else ["-O2"])]
    shim = BUILD / f"shim-{digest(sources, flags)}.o"
    if not shim.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            scratch = Path(folder) / "shim.o"
            # -r: one object of all.
            run(
                [
                    *flags,
                    *map_paths(ROOT),
                    "-r",
                    *(ROOT / file for file in files),
                    "-o",
                    scratch,
                ]
            )
            scratch.replace(shim)
    return shim


def closure(files: Sequence[str]) -> dict[str, str]:
    """The text of `files` and of all that they include with quotes, by path in the repository."""
    sources: dict[str, str] = {}
    queue = list(files)
    while queue:
        file = queue.pop()
        if file in sources:
            continue
        sources[file] = (ROOT / file).read_text()
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', sources[file], flags=re.MULTILINE):
            for folder in (str(Path(file).parent), *INCLUDE):
                found = Path(os.path.normpath(ROOT / folder / name))
                if found.is_file():
                    queue.append(found.relative_to(ROOT).as_posix())
                    break
    return sources


def mutate(sources: dict[str, str], mutation: Mutation) -> str:
    """The text of the mutated file."""
    if mutation.file not in sources:
        raise ValueError(f"mutation {mutation.name}: {mutation.file} is not part of the module")
    count = sources[mutation.file].count(mutation.old)
    if count != 1:
        raise ValueError(
            f"mutation {mutation.name}: {mutation.old!r} occurs {count} times in {mutation.file}; "
            "expected exactly once"
        )
    return sources[mutation.file].replace(mutation.old, mutation.new)


def digest(sources: dict[str, str], flags: Sequence[str]) -> str:
    content = hashlib.sha256()
    for part in (compiler_version(), sys.version, pybind11.__version__, *flags):
        content.update(part.encode() + b"\0")
    for path in sorted(sources):
        content.update(path.encode() + b"\0" + sources[path].encode() + b"\0")
    return content.hexdigest()[:20]


def map_paths(root: Path) -> list[str]:
    """Flags for messages and debug information to name files as in the repository."""
    return [f"-fdebug-prefix-map={ROOT}=.", f"-ffile-prefix-map={root}/="]


def compiler() -> str:
    return os.environ.get("CXX", "g++")


@cache
def compiler_version() -> str:
    command = [compiler(), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run(arguments: Sequence[str | Path]) -> None:
    """Runs the compiler; what it says of an error becomes the exception's text."""
    command = [compiler(), *map(str, arguments)]
    # libasan of an LD_PRELOAD is for the tests, not for the compiler.
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
