"""Many threads, mixed operations, and forks in the middle.

Kernels must give the bits that they give alone; searches of indexes that all threads change must be
explained by what was in them (`stress_lives`); a child forked while threads are inside calls uses
simtile and changes the indexes it has inherited.
"""

import faulthandler
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import stress_calls
import stress_lives

CHILD_SECONDS = 60  # for what takes a child less than one
LAST_CALLS = 120  # seconds that the threads have for their last calls


class Stress:
    """Runs threads until the time is over or something is wrong."""

    def __init__(self, threads, seed, folder):
        self.calls = stress_calls.calls()
        self.expected = {name: call() for name, call in self.calls.items()}
        # The last owner is a forked child.
        self.shared = stress_lives.shared_indexes(threads + 1)
        self.threads, self.seed, self.folder = threads, seed, Path(folder)
        self.stop = threading.Event()
        self.failures = []
        self.done = Counter()
        self.at_work = {}

    def kernel(self, rng, owner):
        name = rng.choice(sorted(self.calls))
        found = self.calls[name]()
        assert stress_calls.same(found, self.expected[name]), f"{name}: other bits than alone"

    def search(self, rng, owner):
        rng.choice(self.shared).search(rng.choice((1, 5, 40)), threads=rng.choice((None, 1, 3)))

    def search_own(self, rng, owner):
        rng.choice(self.shared).search_own(stress_lives.ids_of(owner), 5)

    def change(self, rng, owner):
        shared, ids = rng.choice(self.shared), stress_lives.ids_of(owner)
        alive = shared.alive(ids)
        others = [i for i in ids if i not in alive]
        some = rng.sample(alive, rng.randint(0, len(alive)))
        what = rng.choice(("add", "add", "update", "remove"))
        if what == "add":
            shared.add(rng.sample(others, rng.randint(0, len(others))))
        elif some:
            getattr(shared, what)(some)

    def save(self, rng, owner):
        """What is saved is of one moment."""
        shared, path = rng.choice(self.shared), self.folder / f"{owner}"
        begin = time.monotonic()
        shared.index.save(path)
        end = time.monotonic()
        loaded = type(shared.index).load(path, mmap=rng.random() < 0.5, verify="full")
        shared.search(40, loaded, begin, end)
        path.unlink()

    # Writing a file waits for the disk, and is what a thread does least often.
    OPERATIONS = (*("kernel",) * 20, *("search",) * 10, *("search_own",) * 5, *("change",) * 10)
    OPERATIONS += ("save",)

    def work(self, owner):
        rng = random.Random(f"{self.seed} {owner}")
        try:
            while not self.stop.is_set():
                name = rng.choice(self.OPERATIONS)
                self.at_work[owner] = name
                getattr(self, name)(rng, owner)
                self.done[name] += 1
        except BaseException:
            self.failures.append(traceback.format_exc())
            self.stop.set()
        finally:
            self.at_work.pop(owner, None)

    def in_child(self):
        """All kernels, and all operations on the indexes."""
        rng = random.Random(self.seed)
        for name, call in self.calls.items():
            assert stress_calls.same(call(), self.expected[name]), f"{name}: other bits than alone"
        owner = self.threads
        for shared in self.shared:
            for _ in range(3):
                shared.search(40)
                shared.add([i for i in stress_lives.ids_of(owner) if i not in shared.alive([i])])
                shared.search_own(stress_lives.ids_of(owner), 5)
                shared.update(rng.sample(stress_lives.ids_of(owner), 5))
                shared.search_own(stress_lives.ids_of(owner), 5)
                shared.remove(stress_lives.ids_of(owner)[:8])
                shared.search(40)

    def fork(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(CHILD_SECONDS, exit=True)
            try:
                self.in_child()
                os._exit(0)
            except BaseException:
                # Not by sys.stderr, whose lock another thread may have held.
                os.write(2, traceback.format_exc().encode())
            os._exit(1)
        end = time.monotonic() + 2 * CHILD_SECONDS
        while time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                assert code == 0, f"a forked child ended with {code}: stderr says why"
                return
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError("a forked child does not end")

    def run(self, seconds, forks):
        end = time.monotonic() + seconds
        workers = [
            threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(self.threads)
        ]
        for worker in workers:
            worker.start()
        for i in range(forks):
            if self.stop.wait(max(0.0, end - time.monotonic()) / (forks - i + 1)):
                break
            self.fork_once()
        self.stop.wait(max(0.0, end - time.monotonic()))
        self.stop.set()
        end = time.monotonic() + LAST_CALLS
        for worker in workers:
            worker.join(max(0.0, end - time.monotonic()))
        if hanging := dict(self.at_work):
            faulthandler.dump_traceback(all_threads=True)
            self.failures.append(f"threads hang in {hanging}")

    def fork_once(self):
        try:
            self.fork()
            self.done["fork"] += 1
        except BaseException:
            self.failures.append(traceback.format_exc())
            self.stop.set()


def run(seconds, threads, seed=0, forks=None):
    """How many of each operation were done, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(threads, seed, folder)
        stress.run(seconds, max(1, int(seconds // 10)) if forks is None else forks)
    return dict(stress.done), stress.failures


if __name__ == "__main__":
    done, failures = run(float(sys.argv[1]), int(sys.argv[2]))
    print(done, *failures, sep="\n")
    sys.exit(bool(failures))
