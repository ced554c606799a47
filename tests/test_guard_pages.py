"""No kernel touches a byte before or behind its arrays, at any level of the machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import simtile

LEVELS = simtile.cpu_info()["detected"]


def run(what, level):
    """How the process ended, and the last call that it named."""
    script = Path(__file__).with_name("guard_pages.py")
    ran = subprocess.run(
        [sys.executable, str(script), what],
        env={**os.environ, "SIMTILE_ISA": level},
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = ran.stdout.splitlines()[-1] if ran.stdout else "nothing was called"
    return ran.returncode, last, ran.stderr


def check(what, level):
    status, last, errors = run(what, level)
    assert (status, last) == (0, "done"), errors[-2000:]


@pytest.mark.parametrize("level", LEVELS)
def test_calls_stay_within_their_arrays(level):
    check("quick", level)


@pytest.mark.deep
@pytest.mark.parametrize("level", LEVELS)
def test_calls_stay_within_their_arrays_at_more_sizes(level):
    check("deep", level)


def test_one_row_too_many_is_found_and_named():
    status, last, _ = run("planted", LEVELS[-1])
    assert status in (-signal.SIGSEGV, -signal.SIGBUS)
    assert last == "a planted row too many"
