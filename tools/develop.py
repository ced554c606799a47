"""Install simtile from this checkout into .venv, with what one of the make targets needs.

usage: python3 tools/develop.py demo|train|test|bench|docs

A second run finds what is up to date and does nothing. Everything pip and the compiler say goes to
build/install.log. An installed torch is kept, whatever its version.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = ROOT / "build" / "install.log"
CONSTRAINTS = ROOT / "constraints-dev.txt"

EXTRAS = {
    "demo": ["demo"],
    "train": ["demo", "train"],
    "test": ["demo", "dev"],
    "bench": ["demo", "bench"],
    "docs": ["docs"],
}
TORCH = {"train": ["torch"], "test": ["torch", "triton"], "bench": ["torch"]}
# The CUDA module for one architecture: its PTX runs on newer ones as well, and six take six times
# as long. SIMTILE_CUDA_ARCHITECTURES=all compiles for each of them, SIMTILE_CUDA=OFF none of it.
CUDA = {"SIMTILE_CUDA": "AUTO", "SIMTILE_CUDA_ARCHITECTURES": "80"}
PIP_PROGRESS = r"^(Collecting \S+|Processing \S+|Installing collected packages)"
SIZES = {
    "torch": "0.2 GB, or several GB where pip takes the build with the CUDA libraries",
    "triton": "0.2 GB",
}


def fail(message: str) -> None:
    sys.exit(f"simtile: {message}")


def say(message: str) -> None:
    print(message, flush=True)


def run(command: list[str], progress: str | None = None) -> None:
    """Run a command with its output in the log; lines that match `progress` are shown too."""
    started = time.monotonic()
    on_terminal = sys.stdout.isatty()
    with LOG.open("a") as log:
        print("$", *command, file=log, flush=True)
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout:
                log.write(line)
                if progress and (match := re.search(progress, line)):
                    text = f"  {match[0]}"[:76]
                    print(f"\r{text:<76}" if on_terminal else text, end="" if on_terminal else "\n")
                    sys.stdout.flush()
    if on_terminal and progress:
        print("\r" + " " * 76 + "\r", end="")
    if process.returncode != 0:
        tail = LOG.read_text().splitlines()[-40:]
        fail("\n".join([f"failed: {' '.join(command)}", *tail, f"the whole log: {LOG}"]))
    say(f"  done in {time.monotonic() - started:.0f} s")


def pip(*arguments: str, progress: str = PIP_PROGRESS) -> None:
    run([str(PYTHON), "-m", "pip", "install", *arguments], progress)


def digest(paths: list[Path], *more: str) -> str:
    whole = hashlib.sha256("\0".join(more).encode())
    for path in sorted(paths):
        whole.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()


def up_to_date(name: str, value: str) -> bool:
    stamp = VENV / f"simtile-{name}.stamp"
    return stamp.exists() and stamp.read_text() == value


def remember(name: str, value: str) -> None:
    (VENV / f"simtile-{name}.stamp").write_text(value)


def check_machine() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 - whatever python3 is, runs this
        fail(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}; set PYTHON=")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        fail(f"no C++ compiler: {compiler} not found (Debian, Ubuntu: apt install g++)")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        fail("Python.h is missing (Debian, Ubuntu: apt install python3-dev)")


def make_venv() -> None:
    if PYTHON.exists() and subprocess.run([PYTHON, "-c", ""], check=False).returncode == 0:
        return
    say(f"Making {VENV.relative_to(ROOT)} with Python {sys.version.split()[0]}")
    result = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], check=False, capture_output=True
    )
    if result.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        fail("python3 -m venv failed (Debian, Ubuntu: apt install python3-venv)")


def installed_version(package: str) -> str | None:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    command = [str(PYTHON), "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def constraints() -> Path:
    """The pinned versions, with the version of an installed torch in the place of its pin."""
    text = CONSTRAINTS.read_text()
    if torch := installed_version("torch"):
        text = re.sub(r"(?m)^torch==.*$", f"torch=={torch}", text)
    path = LOG.parent / CONSTRAINTS.name
    path.write_text(text)
    return path


def cmake_is_new_enough() -> bool:
    if shutil.which("cmake") is None:
        return False
    text = subprocess.run(["cmake", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)", text)
    return found is not None and (int(found[1]), int(found[2])) >= (3, 24)


def install_packages(target: str) -> None:
    torch = [name for name in TORCH.get(target, []) if installed_version(name) is None]
    wanted = digest([ROOT / "pyproject.toml", CONSTRAINTS], target)
    if up_to_date(target, wanted) and not torch:
        return
    if torch:
        say("Large downloads, once:")
        for name in torch:
            say(f"  {name}: {SIZES[name]}")
    requirements = requirements_of(EXTRAS[target]) + torch
    if target != "docs":
        requirements += ["scikit-build-core", "pybind11"]
        requirements += [] if cmake_is_new_enough() else ["cmake"]
        requirements += [] if shutil.which("ninja") else ["ninja"]
    if installed_version("torch") is not None:
        requirements = [r for r in requirements if not re.match(r"torch\b", r)]
    say(f"Installing {len(requirements)} packages and what they need")
    pip("--constraint", str(constraints()), *requirements)
    remember(target, wanted)


def requirements_of(extras: list[str]) -> list[str]:
    """The core's requirements and those of some extras, as pyproject.toml has them."""
    # tomllib is not in Python 3.10; the virtual environment's pip has a copy.
    code = (
        "import json, sys\n"
        "try: import tomllib\n"
        "except ImportError: from pip._vendor import tomli as tomllib\n"
        "print(json.dumps(tomllib.load(open('pyproject.toml', 'rb'))['project']))"
    )
    command = [str(PYTHON), "-c", code]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    project = json.loads(text)
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return list(dict.fromkeys(found))


def cuda_compilers() -> list[str]:
    """Where cmake/cuda.cmake looks: another compiler, or one at last, makes another build."""
    found = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    installed = [
        Path("/usr/local/cuda/bin/nvcc"),
        *VENV.glob("lib/*/site-packages/nvidia/*/bin/nvcc"),
    ]
    return [str(path) for path in found if path] + [str(p) for p in installed if p.exists()]


def build() -> None:
    native = [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml"]
    for pattern in ("cmake/*", "csrc/**/*", "kernels/**/*.hpp", "kernels/**/*.cuh"):
        native += [path for path in ROOT.glob(pattern) if path.is_file()]
    # An editable install knows the modules that existed when it was made.
    modules = [str(p.relative_to(ROOT)) for p in ROOT.glob("python/**/*.py")]
    modules += [str(p.relative_to(ROOT)) for p in ROOT.glob("kernels/**/*.py")]
    cuda = {name: os.environ.get(name, value) for name, value in CUDA.items()}
    wanted = digest(native, *sorted(modules), *cuda.values(), *cuda_compilers())
    if up_to_date("build", wanted):
        return
    say("Compiling simtile: one kernel library for each ISA level")
    pip(
        "--verbose",
        "--no-build-isolation",
        "--no-deps",
        "--config-settings=build-dir=build/editable",
        *(f"--config-settings=cmake.define.{name}={value}" for name, value in cuda.items()),
        "--editable",
        ".",
        progress=r"\[\d+/\d+\] .*",
    )
    remember("build", wanted)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in EXTRAS:
        fail(f"usage: python3 tools/develop.py {'|'.join(EXTRAS)}")
    # The documentation is made from sources: nothing is compiled or imported for it.
    compiled = sys.argv[1] != "docs"
    if compiled:
        check_machine()
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    make_venv()
    install_packages(sys.argv[1])
    if compiled:
        build()


if __name__ == "__main__":
    main()
