import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from simtile import _core

CPUS = len(os.sched_getaffinity(0))


def spin(seconds, tasks=1, runs=1, threads=0):
    return _core._spin(seconds, tasks, runs, threads)


def run_python(code, timeout=60):
    return subprocess.run(
        [sys.executable, "-c", "from simtile import _core\nimport os, sys, time\n" + code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def busy_process():
    """Another process that never stops using a CPU."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        yield
        process.kill()


@pytest.mark.parametrize("threads", [-1, 1025, 2**40])
def test_bad_number_of_threads(threads):
    with pytest.raises(ValueError, match=f"threads: {threads} is not a number of threads"):
        spin(0.0, threads=threads)


def test_workers_do_a_part_of_the_work():
    process, caller = time.process_time(), time.thread_time()
    spin(5e-3, tasks=60, threads=2)
    process, caller = time.process_time() - process, time.thread_time() - caller
    assert process - caller > 0.1 * process


def test_short_runs_are_cheap():
    # Two tasks that do nothing: about 1 us on an idle machine.
    assert min(spin(0.0, tasks=2, runs=2000, threads=2) / 2000 for _ in range(20)) < 20e-6


def test_a_busy_process_does_not_stop_short_runs(busy_process):
    assert min(spin(20e-6, tasks=2, runs=500, threads=2) / 500 for _ in range(20)) < 200e-6


def test_more_threads_than_cpus():
    assert spin(1e-4, tasks=200, runs=5, threads=4 * CPUS) < 30


def test_the_gil_is_released():
    ticks = 0
    done = threading.Event()

    def tick():
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.005)

    other = threading.Thread(target=tick)
    other.start()
    spin(0.01, tasks=40, threads=1)
    done.set()
    other.join()
    assert ticks > 5


def test_callers_in_several_python_threads():
    errors = []

    def call():
        try:
            for _ in range(50):
                spin(1e-6, tasks=20, runs=5, threads=2)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert not errors


@pytest.mark.parametrize("threads", [1, 2])
def test_interrupt_is_honoured_within_a_second(threads):
    code = f"""
try:
    print("ready", flush=True)
    _core._spin(0.01, 10**6, 1, {threads})
except KeyboardInterrupt:
    _core._spin(1e-4, 100, 1, {threads})  # still usable
    print("interrupted", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", "from simtile import _core\n" + code],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=30)[0] == "interrupted\n"
        finally:
            process.kill()
        assert time.monotonic() - start < 1.0
        assert process.returncode == 0


def test_other_signal_handlers_run_and_the_call_goes_on():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(time.monotonic()))
    try:
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        timer.start()
        spin(0.01, tasks=50, threads=1)
        end = time.monotonic()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(seen) == 1
    assert seen[0] < end - 0.1


def test_an_exception_in_a_signal_handler_stops_the_call():
    def refuse(*_):
        raise LookupError("from the handler")

    before = signal.signal(signal.SIGUSR1, refuse)
    try:
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(LookupError, match="from the handler"):
            spin(0.01, tasks=10**6, threads=2)
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


FORK = """
_core._spin(1e-4, 100, 3, 2)
child = os.fork()
_core._spin(1e-4, 100, 3, 2)
if child == 0:
    grandchild = os.fork()
    _core._spin(1e-4, 100, 3, 2)
    if grandchild == 0:
        os._exit(0)
    os._exit(os.waitpid(grandchild, 0)[1])
print("child", os.waitpid(child, 0)[1])
"""


def test_fork_while_a_pool_exists():
    result = run_python(FORK)
    assert result.stdout == "child 0\n", result.stderr


def test_child_of_a_fork_uses_several_threads():
    code = """
_core._spin(1e-4, 100, 3, 3)
child = os.fork()
if child == 0:
    _core._spin(1e-4, 100, 3, 3)
    os._exit(len(os.listdir("/proc/self/task")))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = run_python(code)
    assert result.stdout == "3\n", result.stderr


def test_fork_inside_a_call_is_an_error_in_the_child():
    code = """
import signal
child = None
def fork(*_):
    global child
    child = os.fork()
    signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    _core._spin(0.02, 50, 1, 2)
    error = None
except RuntimeError as e:
    error = str(e)
if child == 0:
    _core._spin(1e-4, 100, 3, 2)
    os._exit(7 if error and "forked inside a simtile call" in error else 1)
print(error, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = run_python(code)
    assert result.stdout == "None 7\n", result.stderr


@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "os.fork() or _core._spin(1e-4, 9, 1, 2)"])
def test_exit_does_not_hang(ending):
    for _ in range(5):
        result = run_python("_core._spin(1e-4, 100, 3, 3)\n" + ending, timeout=20)
        assert result.returncode == 0, result.stderr


def test_exit_while_a_daemon_thread_is_in_a_call():
    code = """
import threading
threading.Thread(target=_core._spin, args=(0.01, 10**6, 1, 2), daemon=True).start()
time.sleep(0.2)
"""
    start = time.monotonic()
    result = run_python(code, timeout=20)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - start < 10


def test_workers_do_not_take_the_programs_signals():
    code = """
import signal, threading
_core._spin(1e-4, 100, 3, 3)
blocked = []
for task in os.listdir("/proc/self/task"):
    with open(f"/proc/self/task/{task}/status") as file:
        status = {name: value.strip() for name, value in (line.split(":", 1) for line in file)}
    if status["Name"] == "simtile":
        blocked.append(int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1)
print(blocked)
"""
    result = run_python(code)
    assert result.stdout == "[1, 1]\n", result.stderr
