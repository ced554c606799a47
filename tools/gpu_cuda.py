"""CUDA kernels of the GPU report: what a dispatch instantiates, compiled, and how it is launched.

tools/gpu_launches/<operation>.cu runs the operation's dispatch with arguments of all kinds. It is
compiled twice: for each architecture, for the machine code of all kernels; and for the host, where
it prints the launches, which need no device, because none takes place.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ahead_of_time
import gpu_code
from gpu_jobs import ROOT, SHARED_LIMIT, Job, Json, kernels_of

ARCHES = ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
LAUNCHES = ROOT / "tools" / "gpu_launches"


@dataclass(frozen=True)
class Expected:
    """What the kernels of an operation compute with, if `name` begins their demangled name."""

    operation: str
    name: str
    dtype: str
    instructions: tuple[str, ...]


# Without a matrix unit for bits the assembler makes products of bytes of them. Whether
# population counts would be faster there, nothing has measured.
EMULATED = {("BMMA", "sm_100"): "IMMA", ("BMMA", "sm_120"): "IMMA"}

# The first that fits. mma.sync on sm_90 and sm_100 is HMMA and IMMA as on sm_80: not the faster
# instructions of those architectures, which work on tiles in shared memory.
EXPECTS = (
    Expected("topk", "topk::topk_scan<simtile::cuda::topk::Packed", "bits", ("POPC",)),
    Expected("topk", "topk::topk_scan<", "codes", ("IDP",)),
    Expected("topk", "topk::topk_scan_mma<simtile::cuda::topk::Packed", "bits", ("BMMA",)),
    Expected("topk", "topk::topk_scan_mma", "codes", ("IMMA",)),
    Expected("topk", "topk::topk_rows<simtile::cuda::topk::Packed", "bits", ("POPC",)),
    Expected("topk", "topk::topk_rows<", "codes", ("IDP",)),
    Expected("topk", "topk::topk_scan_float<", "floats", ("FFMA", "DADD")),
    Expected("topk", "topk::topk_rows_float<", "floats", ("DADD",)),
    Expected("topk", "topk::topk_fold", "float64", ("DADD",)),
    Expected("topk", "topk::topk_norms", "float64", ("DADD",)),
    Expected("topk", "topk::topk_", "keys", ()),
    Expected("maxsim", "maxsim::maxsim_scan<simtile::cuda::maxsim::Bytes", "codes", ("IMMA",)),
    Expected("maxsim", "maxsim::maxsim_scan<simtile::cuda::maxsim::Bits", "codes", ("IMMA",)),
    Expected("maxsim", "maxsim::maxsim_scan<simtile::cuda::maxsim::Residual", "codes", ("IMMA",)),
    Expected("maxsim", "maxsim::maxsim_centroids<", "floats", ()),
    Expected("maxsim", "maxsim::maxsim_scan<", "floats", ("HMMA.*.BF16",)),
    Expected("maxsim", "maxsim::maxsim_sum", "float64", ("DADD",)),
    Expected("maxsim", "maxsim::maxsim_", "", ()),
    Expected("maxsim", "topk::topk_", "keys", ()),
    Expected("info_nce", "", "bfloat16", ("HMMA.*.BF16",)),
)


def jobs(files: Mapping[str, Path] | None = None) -> list[Job]:
    """For each file its launches, and its machine code for each architecture."""
    if files is None:
        files = {path.stem: path for path in sorted(LAUNCHES.glob("*.cu"))}
    return [
        Job(source, operation, str(path), arch)
        for operation, path in files.items()
        for source, arch in (*[("cuda", arch) for arch in ARCHES], ("launches", ""))
    ]


def rows(job: Job, expects: Iterable[Expected] = EXPECTS) -> list[Json]:
    """A row for each kernel of one architecture, without what its launches tell."""
    cubin = ahead_of_time.compile_cuda(Path(job.file).read_text(), job.arch, "cubin")
    kernels = kernels_of(cubin)
    made = []
    for name, code in zip(demangle(kernels), kernels.values(), strict=True):
        expected = _expected(job.operation, name, expects)
        made.append(
            {
                "source": "cuda",
                "operation": job.operation,
                "kernel": re.sub(r"<.*", "", name).split("::")[-1],
                "variant": re.sub(r"(\w+::)+", "", name),
                "dtype": expected.dtype,
                "arch": job.arch,
                "expects": [
                    EMULATED.get((opcode, job.arch), opcode) for opcode in expected.instructions
                ],
                **code.json(),
                "shared_limit": SHARED_LIMIT[job.arch],
            }
        )
    return made


def launches(job: Job) -> list[Json]:
    """The most threads and dynamic shared memory that each kernel is launched with."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "launches"
        # compute: no machine code is made; no-pie: addresses are those of the symbol table
        options = ["-code=compute_80", "-Xcompiler", "-no-pie", "-cudart", "static"]
        ahead_of_time.link_cuda(Path(job.file).read_text(), "compute_80", program, *options)
        printed = _run(str(program))
        symbols = _run("nm", str(program))
    names = {}
    for line in symbols.splitlines():
        if match := re.match(r"([0-9a-f]+) [tTwW] (\w+)$", line):
            names[int(match[1], 16)] = match[2]
    most: dict[tuple[str, str], tuple[int, int]] = {}
    for line in printed.splitlines():
        arch, address, threads, shared = line.split()
        key = arch, names[int(address, 16)]
        before = most.get(key, (0, 0))
        most[key] = max(before[0], int(threads)), max(before[1], int(shared))
    demangled = demangle(name for _, name in most)
    return [
        {
            "source": "launches",
            "operation": job.operation,
            "arch": arch,
            "variant": re.sub(r"(\w+::)+", "", name),
            "threads": threads,
            "shared_dynamic": shared,
        }
        for (arch, _), name, (threads, shared) in zip(most, demangled, most.values(), strict=True)
    ]


def merge(made: Iterable[Json]) -> list[Json]:
    """The rows with their launches' threads and shared memory."""
    by_source: dict[bool, list[Json]] = {True: [], False: []}
    for row in made:
        by_source[row["source"] == "launches"].append(row)
    launched = {(row["operation"], row["arch"], row["variant"]): row for row in by_source[True]}
    for row in by_source[False]:
        if row["source"] == "cuda":
            launch = launched.get((row["operation"], row["arch"], row["variant"]))
            row["threads"] = launch and launch["threads"]
            row["shared_dynamic"] = launch and launch["shared_dynamic"]
    return by_source[False]


def demangle(names: Iterable[str]) -> list[str]:
    """`topk::topk_scan<…>` of mangled names: without return type, parameters and our namespace."""
    done = _run("c++filt", "-p", *names)
    return [
        re.sub(r"^void |\(anonymous namespace\)::|^simtile::cuda::", "", re.sub("^void ", "", line))
        for line in done.splitlines()
    ]


def _expected(operation: str, name: str, expects: Iterable[Expected]) -> Expected:
    for expected in expects:
        if expected.operation == operation and name.startswith(expected.name):
            return expected
    raise gpu_code.Unreadable(
        f"{operation}: nothing says what {name} should compute with; add it to EXPECTS in "
        "tools/gpu_cuda.py"
    )


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise gpu_code.Unreadable(f"{' '.join(command)[:200]}: {done.stderr}")
    return done.stdout
