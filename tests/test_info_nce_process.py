"""What happens to the process around a call of info_nce: Ctrl-C, no memory, fork, other threads."""

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import simtile

# A small call whose answer is log 2, to show that the process is still usable.
SMALL_CALL = """
def small_call(threads=None):
    ones = np.ones((2, 8), np.float32)
    loss, *_ = simtile.info_nce_grad(ones, ones, threads=threads)
    assert abs(loss - np.log(2.0)) < 1e-6, loss
"""


def run_python(code, timeout=120):
    code = "import os, signal, sys, threading, time\nimport numpy as np\nimport simtile\n" + (
        SMALL_CALL + textwrap.dedent(code)
    )
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_is_honoured_within_a_second(dtype, threads):
    # Half a minute and more of work; the signal comes after a second of it.
    n = 120_000 if dtype == "float32" else 40_000
    process = run_python(
        f"""
        x = np.random.default_rng(0).normal(size=({n}, 256)).astype(np.{dtype})
        def interrupt():
            global sent
            time.sleep(1.0)
            sent = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try:
            simtile.info_nce_grad(x, x, threads={threads})
        except KeyboardInterrupt:
            print(time.monotonic() - sent)
        small_call({threads})
        """
    )
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 1.0


def test_no_memory_for_the_workspace():
    process = run_python(
        """
        import resource
        small_call(2)
        # Enough work for two threads, so that they exist before the limit; and inputs for later.
        x = np.random.default_rng(0).normal(size=(30_000, 8)).astype(np.float32)
        expected = simtile.info_nce_grad(x[:2000], x[:2000], threads=2)[0]
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        # The gradients fit, 2 MB; the panel of scores, dozens of MB, does not.
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + (12 << 20), hard))
        for _ in range(3):
            try:
                simtile.info_nce_grad(x, x, threads=2)
            except MemoryError:
                print("MemoryError")
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        assert simtile.info_nce_grad(x[:2000], x[:2000], threads=2)[0] == expected
        small_call()
        """
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["MemoryError"] * 3


def test_fork():
    process = run_python(
        """
        x = np.random.default_rng(0).normal(size=(1500, 64)).astype(np.float32)
        expected = simtile.info_nce_grad(x, x, threads=2)
        child = os.fork()
        again = simtile.info_nce_grad(x, x, threads=2)
        same = all(np.array_equal(a, b) for a, b in zip(again, expected))
        if child == 0:
            os._exit(0 if same else 1)
        assert same
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        """
    )
    assert process.returncode == 0, process.stderr


def test_calls_from_many_threads():
    # The pool serves one call at a time; all of them get their own answer.
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(300 + 50 * i, 48)).astype(np.float32) for i in range(4)]
    expected = [simtile.info_nce_grad(x, x, threads=2) for x in inputs]
    wrong = []

    def work(i):
        for _ in range(5):
            result = simtile.info_nce_grad(inputs[i], inputs[i], threads=2)
            if any(not np.array_equal(a, b) for a, b in zip(result, expected[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_other_python_threads_run_meanwhile():
    x = np.random.default_rng(0).normal(size=(4000, 256)).astype(np.float32)
    counted = 0
    done = threading.Event()

    def count():
        nonlocal counted
        while not done.is_set():
            counted += 1
            done.wait(1e-4)

    thread = threading.Thread(target=count)
    thread.start()
    before = counted
    simtile.info_nce_grad(x, x, threads=1)
    during = counted - before
    done.set()
    thread.join()
    assert during > 2  # 0 or 1 if the interpreter were locked
