"""Processes that are killed while they save a file, again and again."""

import signal
import subprocess
import sys
import time


def kill_while_saving(script, path, kills, generation_of, reset):
    """Kill a process that saves newer and newer generations of a file; which ones were left.

    `script` is Python that prints "ready" and then saves to sys.argv[1] for as long as it lives.
    `generation_of(path)` checks that the file is whole; `reset()` writes that of generation 0.
    """
    seen = set()
    reset()
    for i in range(kills):
        command = [sys.executable, "-c", script, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as saver:
            assert saver.stdout.readline() == b"ready\n"
            time.sleep((i * 0.00037) % 0.04)  # from the first bytes to several saves later
            saver.send_signal(signal.SIGKILL)
        generation = generation_of(path)
        seen.add(generation)
        for left in path.parent.glob(".*.tmp"):
            left.unlink()
        if generation != 0:
            reset()
    return seen
