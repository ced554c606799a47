import os
import subprocess
import sys
from pathlib import Path

import pytest

import simtile
from simtile import _core

X86_LEVELS = ["baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx"]
ARM_LEVELS = ["neon", "neon_dot", "neon_mm"]
CPUS = len(os.sched_getaffinity(0))


def run_python(code, **environment):
    """A fresh interpreter, whose thread and ISA settings are only those given."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("SIMTILE_ISA", "SIMTILE_NUM_THREADS", "OMP_NUM_THREADS")
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def threads_of(code="", **environment):
    result = run_python(
        f"import os, simtile\n{code}\n"
        "info = simtile.cpu_info(); print(info['threads'], info['threads_source'])",
        **environment,
    )
    assert result.returncode == 0, result.stderr
    threads, source = result.stdout.split()
    return int(threads), source


def error_of(code, **environment):
    result = run_python(code, **environment)
    assert result.returncode == 1, (result.returncode, result.stdout)
    return result.stderr.strip().splitlines()[-1]


def write_cgroup(root, lines, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(line + "\n" for line in lines))
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(root)


def test_levels_are_a_prefix_of_the_known_ones():
    info = simtile.cpu_info()
    known = X86_LEVELS if info["detected"][0] == "baseline" else ARM_LEVELS
    assert info["detected"] == known[: len(info["detected"])]
    assert info["level"] in info["detected"]
    assert isinstance(info["forced"], bool)


def test_levels_agree_with_what_the_kernel_lists():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), None)
    detected = simtile.cpu_info()["detected"]
    if flags is None:
        assert detected[0] == "neon"
        return
    needs = {
        "avx2": {"avx2", "fma", "f16c", "popcnt"},
        "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"},
        "avx512_vnni": {"avx512_vnni", "avx512_vpopcntdq", "avx512_bitalg"},
        "avx512_bf16": {"avx512_bf16"},
    }
    expected = ["baseline"]
    for level, features in needs.items():
        if not features <= flags:
            break
        expected.append(level)
    # AMX also needs the kernel's permission, which /proc/cpuinfo does not tell.
    assert [level for level in detected if level != "avx512_amx"] == expected
    if "avx512_amx" in detected:
        assert {"amx_tile", "amx_bf16", "amx_int8"} <= flags


def test_cache_sizes_are_plausible():
    info = simtile.cpu_info()
    for cache in ("l1d", "l2", "l3"):
        assert info[cache] is None or 4096 <= info[cache] <= 2**33


def test_a_copy_is_returned():
    simtile.cpu_info()["level"] = "changed"
    assert simtile.cpu_info()["level"] != "changed"


@pytest.mark.parametrize("level", _core.cpu_info()["detected"])
def test_every_detected_level_can_be_forced(level):
    code = "import simtile; info = simtile.cpu_info(); print(info['level'], info['forced'])"
    result = run_python(code, SIMTILE_ISA=level)
    assert result.stdout.split() == [level, "True"], result.stderr


def test_empty_isa_is_unset():
    code = "import simtile; info = simtile.cpu_info(); print(info['level'], info['forced'])"
    result = run_python(code, SIMTILE_ISA="")
    assert result.stdout.split() == [simtile.cpu_info()["detected"][-1], "False"]


def test_unknown_level_is_refused():
    message = error_of("import simtile; simtile.cpu_info()", SIMTILE_ISA="avx1024")
    assert message.startswith("ValueError: SIMTILE_ISA: 'avx1024' is not a level of this build")
    assert simtile.cpu_info()["detected"][0] in message


def test_import_works_with_an_unknown_level():
    assert run_python("import simtile", SIMTILE_ISA="avx1024").returncode == 0


def test_default_is_the_affinity_mask():
    threads, source = threads_of()
    assert source in ("affinity", "cgroup")
    assert threads <= CPUS
    assert threads_of("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})") == (1, "affinity")


def test_precedence():
    every = {"SIMTILE_NUM_THREADS": "5", "OMP_NUM_THREADS": "7"}
    assert threads_of("simtile.set_num_threads(3)", **every) == (3, "set_num_threads")
    assert threads_of(**every) == (5, "SIMTILE_NUM_THREADS")
    assert threads_of(OMP_NUM_THREADS="7") == (7, "OMP_NUM_THREADS")
    assert threads_of("simtile.set_num_threads(3); simtile.set_num_threads(None)", **every) == (
        5,
        "SIMTILE_NUM_THREADS",
    )


def test_environment_set_by_the_program_counts():
    assert threads_of("os.environ['SIMTILE_NUM_THREADS'] = '6'") == (6, "SIMTILE_NUM_THREADS")


def test_empty_environment_is_unset():
    assert threads_of(SIMTILE_NUM_THREADS="", OMP_NUM_THREADS="4") == (4, "OMP_NUM_THREADS")


def test_omp_lists_give_their_first_level():
    assert threads_of(OMP_NUM_THREADS="4,2,1") == (4, "OMP_NUM_THREADS")


@pytest.mark.parametrize("name", ["SIMTILE_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "2x", "1.5", "1025", "9" * 30])
def test_bad_environment_is_refused(name, value):
    message = error_of("import simtile; simtile.cpu_info()", **{name: value})
    assert message == (
        f"ValueError: {name}: '{value}' is not a number of threads; "
        "expected a whole number from 1 to 1024"
    )


@pytest.mark.parametrize("n", [0, -1, 1025, 2**40])
def test_set_num_threads_refuses_values(n):
    with pytest.raises(ValueError, match=rf"n: found {n}, expected 1 to 1024"):
        simtile.set_num_threads(n)


@pytest.mark.parametrize("n", [1.0, "2", True, [3]])
def test_set_num_threads_refuses_types(n):
    with pytest.raises(TypeError, match="expected an int or None"):
        simtile.set_num_threads(n)


def test_set_num_threads_takes_whole_numbers_of_numpy():
    found = threads_of("import numpy; simtile.set_num_threads(numpy.int64(3))")
    assert found == (3, "set_num_threads")


def test_no_cgroup_files_mean_no_limit(tmp_path):
    assert _core._cgroup_limit(str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("quota", "limit"),
    [
        ("max 100000", 0),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
    ],
)
def test_cgroup_v2(tmp_path, quota, limit):
    root = write_cgroup(tmp_path, ["0::/job"], {"job/cpu.max": quota})
    assert _core._cgroup_limit(root) == limit


def test_cgroup_v2_parents_count(tmp_path):
    root = write_cgroup(
        tmp_path,
        ["0::/slice/job"],
        {"slice/job/cpu.max": "800000 100000", "slice/cpu.max": "300000 100000"},
    )
    assert _core._cgroup_limit(root) == 3


def test_cgroup_v2_inside_a_container(tmp_path):
    root = write_cgroup(tmp_path, ["0::/"], {"cpu.max": "400000 100000"})
    assert _core._cgroup_limit(root) == 4


@pytest.mark.parametrize(("quota", "limit"), [("-1", 0), ("250000", 3)])
def test_cgroup_v1(tmp_path, quota, limit):
    root = write_cgroup(
        tmp_path,
        ["5:memory:/job", "4:cpu,cpuacct:/job", "1:name=systemd:/"],
        {
            "cpu,cpuacct/job/cpu.cfs_quota_us": quota,
            "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        },
    )
    assert _core._cgroup_limit(root) == limit


def test_cgroup_v1_where_the_hosts_path_is_not_mounted(tmp_path):
    root = write_cgroup(
        tmp_path,
        ["4:cpu,cpuacct:/docker/0123"],
        {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
    )
    assert _core._cgroup_limit(root) == 2


def test_other_v1_controllers_are_not_read(tmp_path):
    root = write_cgroup(
        tmp_path,
        ["4:cpuset:/job"],
        {"cpuset/job/cpu.cfs_quota_us": "100000", "cpuset/job/cpu.cfs_period_us": "100000"},
    )
    assert _core._cgroup_limit(root) == 0


def test_malformed_cgroup_files_are_no_limit(tmp_path):
    root = write_cgroup(tmp_path, ["nonsense", "0::/job"], {"job/cpu.max": "many 100000"})
    assert _core._cgroup_limit(root) == 0
