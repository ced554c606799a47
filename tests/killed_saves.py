"""Processes that are killed while they save a file, again and again."""

import os
import signal
import subprocess
import sys
import time

# Forks a process for every line it reads, which runs the script: imports are not repeated.
NURSERY = """
import os, sys
import simtile

script, sys.argv = sys.argv[1], sys.argv[1:]
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        exec(script, {"__name__": "__main__"})
        os._exit(1)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def kill_while_saving(script, path, kills, generation_of, reset):
    """Kill a process that saves newer and newer generations of a file; which ones were left.

    `script` is Python that prints "ready" and then saves to sys.argv[1] for as long as it lives.
    `generation_of(path)` checks that the file is whole; `reset()` writes that of generation 0.
    """
    seen = set()
    reset()
    command = [sys.executable, "-c", NURSERY, script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as nursery:
        for i in range(kills):
            nursery.stdin.write(b"\n")
            nursery.stdin.flush()
            saver = int(nursery.stdout.readline())
            assert nursery.stdout.readline() == b"ready\n"
            time.sleep((i * 0.00037) % 0.04)  # from the first bytes to several saves later
            os.kill(saver, signal.SIGKILL)
            assert nursery.stdout.readline() == b"gone\n"
            generation = generation_of(path)
            seen.add(generation)
            for left in path.parent.glob(".*.tmp"):
                left.unlink()
            if generation != 0:
                reset()
        nursery.stdin.close()
    assert nursery.returncode == 0
    return seen
