"""The CPU checks at other ISA levels, each in a process of its own.

``SIMTILE_ISA=avx2 python -m simtile.doctor.levels`` prints the results of one level as JSON. A
process of its own because a level is chosen once, and because an illegal instruction ends it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from simtile.doctor import cpu
from simtile.doctor.report import CheckResult, LevelResult
from simtile.doctor.results import failed_part, run_check

TIMEOUT = 600  # seconds


def run_level(level: str, threads: int, *, quick: bool) -> LevelResult:
    """The checks of one level; a process that ends otherwise is one failed check."""
    command = [sys.executable, "-m", "simtile.doctor.levels", str(threads), str(int(quick))]
    environment = {**os.environ, "SIMTILE_ISA": level}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        if done.returncode == 0:
            checks: list[CheckResult] = json.loads(done.stdout.splitlines()[-1])
            return {"level": level, "checks": checks}
        message = _ended(done.returncode, done.stderr)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        message = f"{type(error).__name__}: {error}"
    failed = failed_part("cpu", "a process of this level", message)
    return {"level": level, "checks": [failed]}


def _ended(code: int, errors: str) -> str:
    last = (errors.strip().splitlines() or ["no message"])[-1]
    if code >= 0:
        return f"exit status {code}: {last}"
    try:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"ended by signal {-code}"


def main() -> None:
    threads, quick = int(sys.argv[1]), sys.argv[2] == "1"
    print(json.dumps([run_check(check) for check in cpu.checks(threads, quick=quick)]))


if __name__ == "__main__":
    main()
