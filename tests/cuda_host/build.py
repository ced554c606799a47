"""Compiles the bindings of one operation's CUDA kernels, tests/cuda_host/<name>.cpp, for the CPU."""

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda_host"
SHIM = ROOT / "tests" / "cuda_host"
SOURCES = ("kernels", "csrc", "tests/cuda_host")  # also the include path, in this order
SUFFIXES = {".cpp", ".hpp", ".cuh", ".h"}

# -ffp-contract=off: only what a kernel writes as fma is one. -fno-gnu-unique: mutants of one module
# are loaded side by side and share nothing.
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-gnu-unique"]
FLAGS += ["-ffp-contract=off"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]  # nvcc's #pragma unroll
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


@dataclass(frozen=True)
class Mutation:
    """A planted mistake: in `file`, relative to the repository, `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


def sanitized() -> bool:
    """Whether every module is built with AddressSanitizer and UBSan."""
    return os.environ.get("SIMTILE_CUDA_HOST_SANITIZE") == "1"


@cache
def load(name: str, *, mutation: Mutation | None = None, sanitize: bool = False) -> ModuleType:
    """Compile tests/cuda_host/`name`.cpp unless that was done before, and import it."""
    sanitize = sanitize or sanitized()
    sources = read_sources()
    if mutation is not None:
        sources[mutation.file] = mutate(sources, mutation)
    flags = [*FLAGS, *WARNINGS, *(SANITIZE if sanitize else [])]
    library = compile_module(name, sources, flags, mutated=mutation is not None)
    module_name = f"simtile_cuda_host_{name}"
    loader = importlib.machinery.ExtensionFileLoader(module_name, str(library))
    spec = importlib.util.spec_from_file_location(module_name, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def read_sources() -> dict[str, str]:
    """Every source that a module may include, by its path in the repository."""
    files = (
        path
        for folder in SOURCES
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in SUFFIXES
    )
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in files
}

def mutate(sources: dict[str, str], mutation: Mutation) -> str:
    text = sources.get(mutation.file)
    if text is None:
        raise ValueError(f"mutation {mutation.name}: no source {mutation.file}")
    count = text.count(mutation.old)
    if count != 1:
        raise ValueError(
            f"mutation {mutation.name}: {mutation.old!r} occurs {count} times in {mutation.file}; "
            "expected exactly once"
        )
    return text.replace(mutation.old, mutation.new)


def compile_module(name: str, sources: dict[str, str], flags: list[str], *, mutated: bool) -> Path:
    """The shared library; its name has the hash of everything that it depends on."""
    main = f"tests/cuda_host/{name}.cpp"
    if main not in sources:
        raise ValueError(f"no {main}")
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    content = hashlib.sha256()
    for part in (version.stdout, sys.version, pybind11.__version__, *flags, main):
        content.update(part.encode() + b"\0")
    others = {f"tests/cuda_host/{path.name}" for path in SHIM.glob("*.cpp")} - {
  main
}
    for path, text in sources.items():
        if path not in others:
            content.update(path.encode() + b"\0" + text.encode() + b"\0")
    library = BUILD / f"{name}-{content.hexdigest()[:20]}.so"
    if library.exists():
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        root = ROOT
        if mutated:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=BUILD)))
            for path, text in sources.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
        includes = [f"-I{root / folder}" for folder in SOURCES]
        system = [pybind11.get_include(), sysconfig.get_paths()["include"]]
        scratch = BUILD / f".{library.name}.{os.getpid()}"
        command = [
            compiler,
            *flags,
            f"-ffile-prefix-map={root}/=",
            *includes,
            *(f"-isystem{path}" for path in system),
        ]
        command += ["-include", "cuda_on_host.hpp", str(root / main), "-o", str(scratch)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
        scratch.replace(library)
    return library
