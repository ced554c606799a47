"""What the files of bench/ptx share: the interpreter, PTX from the compilers, one run's counts."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

import ahead_of_time  # noqa: E402

Json = dict[str, Any]

# What a PTX interpreter must offer; bench/README.md says what each of them does.
INTERPRETER = ("Module", "launch_triton", "stats", "aligned")
SECTOR = 32  # bytes; what global memory moves at least

# The requirements. Bytes are those that the kernel's instructions ask for, or those of the sectors
# that they move where these are fewer: lanes that ask for the same bytes move them once. Sectors
# moved in vain are the load efficiency's business.
TRAFFIC_LIMIT = 1.15  # times the bytes of the kernel README's tile formula
LOAD_EFFICIENCY = 0.80  # bytes asked for / bytes of the sectors moved
FLOPS_LIMIT = 1.05  # times the algorithm's, its tiles padded


@dataclass(frozen=True)
class Run:
    """One launch, or the launches of one call, in the interpreter.

    `counters` are the interpreter's stats(), summed with `total` over several launches.
    `requirements` is False where a size is so small that the sector, not the kernel, decides the
    counts (one query, one document): such a run is there for its result only.
    """

    name: str
    kernel: str
    arch: int  # 80 or 120
    sizes: Mapping[str, int]
    order: int  # of the interpreter's scheduler: 0 forward, 1 reverse, 2 and up random
    ok: bool  # the result is the oracle's, to the operation's tolerance
    error: float  # largest distance from the oracle; 0 where results are integers and equal
    counters: Mapping[str, int]
    expected_global_bytes: int  # loads and stores by the README's formula
    expected_flops: int  # of matrix instructions, tiles padded; 0 for a kernel that has none
    requirements: bool = True

    @property
    def traffic(self) -> float:
        """Bytes of global loads and stores, relative to the formula's."""
        loads, stores = (
            min(self.counters[f"global_{of}_bytes"], SECTOR * self.counters[f"global_{of}_sectors"])
            for of in ("load", "store")
        )
        return (loads + stores) / self.expected_global_bytes

    @property
    def load_efficiency(self) -> float:
        moved = SECTOR * self.counters["global_load_sectors"]
        return self.counters["global_load_bytes"] / moved if moved else 1.0

    @property
    def flops(self) -> float:
        """Operations of matrix instructions, relative to the algorithm's."""
        done = self.counters["mma_flops"]
        if self.expected_flops == 0:
            return float("inf") if done else 1.0
        return done / self.expected_flops

    def broken(self) -> list[str]:
        """The requirements that this run does not hold, in words."""
        where = f"{self.name}, sm_{self.arch}, order {self.order}"
        found = []
        if not self.ok:
            found.append(f"{where}: the result differs from the oracle's by {self.error:.3g}")
        if self.requirements:
            # Negated, so that a NaN breaks them.
            if not self.traffic <= TRAFFIC_LIMIT:
                found.append(
                    f"{where}: {self.traffic:.3f} times the formula's bytes, "
                    f"at most {TRAFFIC_LIMIT} allowed"
                )
            if not self.load_efficiency >= LOAD_EFFICIENCY:
                found.append(
                    f"{where}: load efficiency {self.load_efficiency:.0%}, "
                    f"at least {LOAD_EFFICIENCY:.0%} asked"
                )
            if not self.flops <= FLOPS_LIMIT:
                found.append(
                    f"{where}: {self.flops:.3f} times the algorithm's matrix operations, "
                    f"at most {FLOPS_LIMIT} allowed"
                )
        return found

    def json(self) -> Json:
        return {
            **asdict(self),
            "sizes": dict(self.sizes),
            "counters": dict(self.counters),
            "traffic": self.traffic,
            "load_efficiency": self.load_efficiency,
            "flops": self.flops,
        }


def total(stats: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several launches' counters."""
    summed: dict[str, int] = {}
    for launch in stats:
        for name, count in launch.items():
            summed[name] = summed.get(name, 0) + count
    return summed


def cuda_ptx(source: str, arch: int, *options: str) -> str:
    """PTX of a CUDA translation unit; `#include "topk/cuda.cuh"` is found under kernels/.

    The unit instantiates what is to be run:
    `template __global__ void simtile::cuda::kernel<10, 4>(const uint64_t*, …);`
    """
    return ahead_of_time.compile_cuda(source, f"compute_{arch}", "ptx", *options).decode()


class NoInterpreter(Exception):
    """None was given, or not one."""


def interpreter(path: str | None) -> ModuleType:
    """The module in the file `path`, else in the one SIMTILE_PTX_INTERPRETER names."""
    path = path or os.environ.get("SIMTILE_PTX_INTERPRETER")
    if not path:
        raise NoInterpreter(
            "no PTX interpreter: give --interpreter FILE.py or set SIMTILE_PTX_INTERPRETER; "
            "it is not part of simtile, bench/README.md says what it must offer"
        )
    file = Path(path).resolve()
    spec = importlib.util.spec_from_file_location("ptx_interpreter", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise NoInterpreter(f"interpreter: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # before it runs: dataclasses and pickle look their module up
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    missing = [name for name in INTERPRETER if not hasattr(module, name)]
    if missing:
        raise NoInterpreter(f"interpreter: {path} has no {', '.join(missing)}")
    return module
