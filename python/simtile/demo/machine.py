"""What the demo runs on, in one line, and how much memory is left."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import simtile

# cgroup versions 2 and 1: folder, limit, use, and the part of the use that is inactive file cache
CGROUP_FILES = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def first_line(threads: int | None, torch_use: str) -> str:
    """Version, ISA level, threads and why, and whether torch and a GPU were found.

    ``threads`` is what the caller asked for, None for the default; ``torch_use`` follows torch's
    version.
    """
    info = simtile.cpu_info()
    level = info["level"] + (" (forced by SIMTILE_ISA)" if info["forced"] else "")
    count, reason = (
        (info["threads"], info["threads_source"]) if threads is None else (threads, "--threads")
    )
    torch = torch_version()
    gpu = gpu_name()
    return " · ".join(
        (
            f"simtile {simtile.__version__}",
            f"{level} kernels",
            f"{count} thread{'s' if count != 1 else ''} (from {reason})",
            f"torch {torch} found, {torch_use}" if torch else "no torch found",
            f"GPU found: {gpu}, not used" if gpu else "no GPU found",
        )
    )


def plot_facts(threads: int | None) -> str:
    """Version, processor, ISA level and threads, for the corner of a plot."""
    info = simtile.cpu_info()
    count = info["threads"] if threads is None else threads
    return " · ".join(
        (
            f"simtile {simtile.__version__}",
            info["brand"] or "unknown processor",
            info["level"],
            f"{count} thread{'s' if count != 1 else ''}",
        )
    )


def torch_version() -> str | None:
    """Version of the installed torch, which is not imported; None if there is none."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        return version("torch")
    except PackageNotFoundError:
        return "(unknown version)"


def gpu_name() -> str | None:
    """Name of the first GPU that a driver on this machine reports; None if there is none."""
    query = shutil.which("nvidia-smi")
    if query is not None:
        try:
            answer = subprocess.run(
                [query, "--query-gpu=name", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            pass
        else:
            names = answer.stdout.strip().splitlines()
            if names:
                return names[0].strip()
    if Path("/dev/kfd").exists():
        return "AMD"
    return None


def available_memory() -> int | None:
    """Bytes still to be had here: free memory, or what the cgroup leaves; None if unknown."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    for folder, limit, used, cache in CGROUP_FILES:
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            limits.append(
                int((folder / limit).read_text())
                - int((folder / used).read_text())
                + int(stat.get(cache, 0))  # file cache, given back when asked for
            )
        except (OSError, ValueError):  # no such cgroup version, or no limit ("max")
            continue
    return max(0, min(limits)) if limits else None
