"""Long runs beside the tests: `python stress.py --seconds 300 --threads 64`.

Threads and forks for that long, every long call interrupted, a million small calls, and calls
without enough memory; each in a process of its own. `make stress` runs it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
HANGING = 600  # seconds beyond what a part is given


def parts(seconds, threads, calls):
    """Scripts and their arguments, with the seconds that each may take."""
    yield ("stress_threads.py", str(seconds), str(threads)), seconds
    from stress_interrupts import NAMES

    for name in NAMES:
        yield ("stress_interrupts.py", name), 0
    yield ("stress_memory.py", "scarce", "all"), 0
    yield ("stress_memory.py", "flat", str(calls)), calls * 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--calls", type=int, default=1_000_000)
    given = parser.parse_args()
    failed = []
    for (script, *arguments), seconds in parts(given.seconds, given.threads, given.calls):
        command = [sys.executable, str(HERE / script), *arguments]
        try:
            status = subprocess.run(command, timeout=seconds + HANGING).returncode
        except subprocess.TimeoutExpired:
            status = "no end"
        if status != 0:
            failed.append(f"{script} {' '.join(arguments)}: {status}")
    print(*failed, f"{len(failed)} failures", sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
