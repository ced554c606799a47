"""Short runs of what `make stress` does for longer, and that each finds what it looks for."""

import gc
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import stress_interrupts
import stress_lives
import stress_memory
import stress_threads

HERE = Path(__file__).parent


def run(script, *arguments, timeout=300):
    """The output of a part, in a process of its own, which must succeed."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    return ran.stdout


# Threads and forks


@pytest.mark.slow  # a short time of many threads says nothing
def test_threads_and_a_fork():
    done = run("stress_threads.py", 6, 24)
    for what in ("kernel", "search", "search_own", "change", "fork"):
        assert f"'{what}'" in done


@pytest.mark.deep
def test_threads_and_forks_for_longer():
    run("stress_threads.py", 15, 64)


def test_threads_that_get_other_bits_are_found(tmp_path):
    stress = stress_threads.Stress(3, 0, tmp_path)
    made = itertools.count()
    stress.calls = {"planted": lambda: np.float32(next(made) > 20)}
    stress.expected = {"planted": np.float32(0)}
    stress.run(20, forks=0)
    assert "planted: other bits than alone" in stress.failures[0]


def test_forked_children_that_fail_are_found(tmp_path, capfd):
    stress = stress_threads.Stress(1, 0, tmp_path)
    stress.expected["pool mean"] = None
    stress.fork_once()
    assert "a forked child ended with 1" in stress.failures[0]
    assert "pool mean: other bits than alone" in capfd.readouterr().err


@pytest.mark.parametrize("name", stress_lives.NAMES)
def test_what_cannot_have_been_found_is_noticed(name):
    (shared,) = (x for x in stress_lives.shared_indexes(1) if x.name == name)
    ids = list(stress_lives.ids_of(0))
    shared.add(ids)
    shared.update(ids[:5])
    shared.remove(ids[5:9])
    shared.search(20)
    shared.search_own(ids, 5)
    gone = shared.lives[ids[5]]
    shared.lives[ids[5]] = []
    shared.search(20)  # it was not there anyway
    shared.lives[ids[5]] = gone
    shared.index.update(stress_lives.batch(name, [shared.documents[ids[0]][3]]), [ids[0]])
    with pytest.raises(AssertionError, match=f"id {ids[0]} scored"):
        shared.search(20)
    shared.index.remove([ids[0]])
    with pytest.raises(AssertionError, match=f"id {ids[0]} was not found"):
        shared.search(20)


# Ctrl-C

# One of each way through the code; the others are for make test-deep.
QUICK = (
    "siglip_loss",
    "maxsim",
    "maxsim_packed residual2",
    "topk float32",
    "topk binary",
    "pool",
    "FlatIndex.search",
    "FlatIndex.add",
)


@pytest.mark.parametrize("name", QUICK)
def test_ctrl_c(name):
    run("stress_interrupts.py", name)


@pytest.mark.deep
@pytest.mark.parametrize("name", [n for n in stress_interrupts.NAMES if n not in QUICK])
def test_ctrl_c_of_other_calls(name):
    run("stress_interrupts.py", name)


def test_calls_that_end_and_states_that_change_are_found():
    with pytest.raises(AssertionError, match="over before the signal"):
        stress_interrupts.interrupt(stress_interrupts.Long(lambda: None), 0.01)

    made = itertools.count()
    long = stress_interrupts.Long(signal.pause, lambda: (next(made),))
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        stress_interrupts.interrupt(long, 0.1)


# Memory


@pytest.fixture(scope="module")
def small_calls():
    calls = stress_memory.small_calls()
    gc.freeze()  # what all the other modules hold need not be looked through hundreds of times
    yield calls
    gc.unfreeze()


@pytest.mark.skipif(
    not hasattr(stress_memory.libc, "mallinfo2"), reason="glibc before 2.33 has no mallinfo2"
)
@pytest.mark.parametrize("name", sorted(stress_memory.small_calls()))
def test_calls_leave_nothing(small_calls, name):
    """Less than a block for each. Indexes are compacted now and then, in so many calls often."""
    times = 128 if name.endswith("changes") else 40
    left = []
    for _ in range(8):  # Python's own caches fill for some time
        left.append(stress_memory.left_by(small_calls[name], times))
        if left[-1][0] < 16 * times and left[-1][1] < times // 2:
            return
    raise AssertionError(f"{times} calls left bytes and blocks: {left}")


@pytest.mark.skipif(
    not hasattr(stress_memory.libc, "mallinfo2"), reason="glibc before 2.33 has no mallinfo2"
)
def test_what_is_left_is_seen():
    kept = []
    objects = stress_memory.left_by(lambda: kept.append(object()), 50)
    assert objects[1] >= 50
    libc = stress_memory.libc
    libc.malloc.restype = libc.free.argtypes = None
    size, _ = stress_memory.left_by(lambda: libc.malloc(32), 50)
    assert size >= 50 * 32


@pytest.mark.deep
def test_memory_is_flat():
    run("stress_memory.py", "flat", 100_000)


@pytest.mark.slow  # up to twenty limits for each call
def test_too_little_memory():
    run("stress_memory.py", "scarce", "few")


@pytest.mark.deep
def test_too_little_memory_for_all_calls():
    run("stress_memory.py", "scarce", "all")


def test_states_that_change_without_memory_are_found():
    count = itertools.count()

    def call():
        np.ones(1 << 28)
        raise MemoryError

    with pytest.raises(AssertionError, match="a call that failed changed something"):
        stress_memory.scarce(call, lambda: np.asarray(next(count)))


FULL_DISK = """
import resource, signal, sys
import numpy as np
import simtile

x = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
path = sys.argv[1]
index = {
    "FlatIndex": lambda: simtile.FlatIndex(64),
    "CascadeIndex": lambda: simtile.CascadeIndex(64),
    "MultiVectorIndex": lambda: simtile.MultiVectorIndex(64),
}[sys.argv[2]]()
documents = x.reshape(400, 5, 64) if sys.argv[2] == "MultiVectorIndex" else x
queries = x[None, :4] if sys.argv[2] == "MultiVectorIndex" else x[:4]
index.add(documents)
index.save(path)
expected = index.search(queries, 5)
index.add(documents)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    index.save(path)
except OSError as error:
    print(error.strerror)
assert len(index) == 2 * len(documents)
loaded = type(index).load(path, verify="full")
assert len(loaded) == len(documents)
for one, other in zip(loaded.search(queries, 5), expected):
    np.testing.assert_array_equal(one, other)
"""


@pytest.mark.parametrize("index", ["FlatIndex", "CascadeIndex", "MultiVectorIndex"])
def test_a_full_disk_leaves_the_old_file_and_the_index(tmp_path, index):
    """A limit on the size of files stands for it."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "saved"), index]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "File too large\n"), ran.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


# Limits on CPUs


THREADS = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
import simtile

x = np.ones((3000, 64), np.float32)
simtile.info_nce_grad(x, x, **eval(sys.argv[1]))
tasks = os.listdir("/proc/self/task")
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks]
print(names.count("simtile"))
"""


@pytest.mark.parametrize(("options", "workers"), [({}, 0), ({"threads": 3}, 2)])
def test_no_more_threads_than_the_process_may_use(options, workers):
    ran = subprocess.run(
        [sys.executable, "-c", THREADS, repr(options)],
        env={k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == f"{workers}\n", ran.stderr


# A mount namespace in which the files of cgroups, of both versions, say half a CPU.
QUOTA = """
mount -t tmpfs none /sys/fs/cgroup || exit 77
mkdir /sys/fs/cgroup/cpu
echo 50000 >/sys/fs/cgroup/cpu/cpu.cfs_quota_us
echo 100000 >/sys/fs/cgroup/cpu/cpu.cfs_period_us
echo 50000 100000 >/sys/fs/cgroup/cpu.max
exec "$@"
"""
THREADS_OF = """
import simtile

info = simtile.cpu_info()
print(info["threads"], info["threads_source"])
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU is the limit already")
def test_a_quota_of_the_cgroup_is_the_number_of_threads():
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", QUOTA, "sh"]
    ran = subprocess.run(
        [*command, sys.executable, "-c", THREADS_OF],
        env={k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if ran.returncode == 77 or ran.stderr.startswith("unshare: "):
        pytest.skip(f"no mount namespace can be made here: {ran.stderr.strip()}")
    assert ran.stdout == "1 cgroup\n", ran.stderr
