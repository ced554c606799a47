"""The scripts of a checkout's bench/, each in a process of its own.

They stay out of the wheel: their peers are many packages that nobody needs for anything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import simtile

# Minutes of a complete run on two cores, gates and memory included. It is said before the run, not
# relied on. In order: the peaks are what shares of the others are read beside.
MINUTES: Mapping[str, int] = MappingProxyType(
    {
        "peak": 1,
        "info_nce": 6,
        "contrastive": 15,
        "topk": 5,
        "maxsim": 2,
        "pairwise": 4,
        "pool": 2,
        "quantize": 3,
        "mining": 4,
        "cached": 5,
        "overhead": 2,
        "losses": 3,
        "late_interaction": 2,
        "indexes": 2,
        "scaling": 6,
        "dtypes": 3,
        "gpu_peers": 5,
    }
)
ON_GPU = ("gpu_peers",)  # run where torch finds one, and where they are asked for
QUICK_MINUTES = 1  # of each


class NoCheckout(RuntimeError):
    """There is nothing to run here."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    only: Sequence[str] = ()
    quick: bool = False
    output: Path | None = None
    threads: int | None = None


def run(options: Options) -> int:
    """Run the scripts that were asked for; 1 if one of them failed.

    Raises
    ------
    NoCheckout
        Neither the current folder nor this installation belongs to a checkout of simtile.
    """
    folder = find_scripts()
    names = [name for name in MINUTES if name in options.only or not options.only]
    if not options.only and not _has_gpu():
        names = [name for name in names if name not in ON_GPU]
        _say(f"no GPU: without {', '.join(ON_GPU)}")
    _say(_plan(names, options.quick))
    if options.quick and options.output is None:
        _say("small sizes, few rounds: nothing is stored without --output")
    failed = []
    for i, name in enumerate(names):
        _say(f"\n[{i + 1} of {len(names)}] {name}")
        start = time.perf_counter()
        status = subprocess.run(
            _command(folder / f"{name}.py", options), env=_environment(options)
        ).returncode
        _say(f"{name}: {_ended(status)} after {time.perf_counter() - start:.0f} s")
        if status != 0:
            failed.append(name)
    _say(f"\n{len(names) - len(failed)} of {len(names)} benchmarks succeeded")
    if failed:
        _say(f"failed: {', '.join(failed)}; each said why above")
    return 1 if failed else 0


def find_scripts() -> Path:
    """The folder bench/ of the checkout around the current folder, or of the installed one."""
    for root in _roots():
        if (root / "bench" / "_common.py").is_file() and (root / "python" / "simtile").is_dir():
            return root / "bench"
    raise NoCheckout(
        "the benchmarks are not part of the installed package; run `simtile bench` in a checkout "
        "of simtile's repository, installed with `make bench` or `pip install -e '.[bench]' torch`"
    )


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _roots() -> Iterator[Path]:
    here = Path.cwd()
    yield from (here, *here.parents)
    yield Path(simtile.__file__).resolve().parents[2]  # python/simtile/ of an editable install


def _plan(names: Sequence[str], quick: bool) -> str:
    if quick:
        parts, total = list(names), len(names) * QUICK_MINUTES
    else:
        parts = [f"{name} ({MINUTES[name]} min)" for name in names]
        total = sum(MINUTES[name] for name in names)
    return f"to run, about {total} min on two idle cores: {', '.join(parts)}"


def _command(script: Path, options: Options) -> list[str]:
    command = [sys.executable, str(script)]
    if options.quick:
        command.append("--quick")
    if options.output is not None:
        command += ["--output", str(options.output)]
    return command


def _environment(options: Options) -> dict[str, str]:
    # all scripts start from simtile's own number, peak.py has no other way to be told
    threads = {} if options.threads is None else {"SIMTILE_NUM_THREADS": str(options.threads)}
    return {**os.environ, **threads}


def _ended(status: int) -> str:
    if status == 0:
        return "done"
    return f"FAILED (signal {-status})" if status < 0 else f"FAILED (exit status {status})"


def _say(text: str) -> None:
    print(text, flush=True)  # in order with what the scripts print
