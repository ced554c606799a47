"""`simtile doctor`: its arithmetic, its report, and that nothing broken makes it crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tolerances
from doctor_reports import check_of, conforms, run_cli

import simtile
from simtile import cli
from simtile.doctor import cpu, found, info_nce, levels, limits, report
from simtile.doctor.results import Comparison, run_check

TINY = info_nce.Case(5, 6, 7, 1, ids=True)


@pytest.fixture
def small(monkeypatch):
    """Sizes and samples so small that a whole run takes no time."""
    monkeypatch.setattr(info_nce, "SMALL", (TINY,))
    monkeypatch.setattr(cpu, "SMALL", (TINY, info_nce.Case(1, 1, 1)))
    for name in ("LARGE", "REPEATED", "STANDARD", "STANDARD_QUICK", "SMALL_STEP"):
        monkeypatch.setattr(cpu, name, info_nce.Case(9, 11, 8))
    monkeypatch.setattr(cpu, "PEAK_SAMPLE", 1e-3)
    monkeypatch.setattr(cpu, "SHORTEST_SAMPLE", 1e-4)
    monkeypatch.setattr(cpu, "TIMED", 1e-3)
    # without "read", which fills memory larger than the caches
    monkeypatch.setattr(simtile._core, "peak_kinds", lambda: ["fma_f32"])


# -- the whole command --


def test_a_whole_run(small, tmp_path, capsys):
    status, shown, stored = run_cli(tmp_path, capsys)
    assert status == 0
    assert stored["complete"]
    assert stored["failures"] == []
    assert stored["cpu"]["device"] == simtile.cpu_info()["level"]
    assert {check["dtype"] for check in stored["cpu"]["checks"]} == set(limits.CPU)
    whats = {check["what"] for check in stored["cpu"]["checks"]}
    assert {"values", "same bits, 1 thread", "same bits, 2 threads"} <= whats
    assert "beside the float64 kernel" in whats
    assert len(stored["cpu"]["timings"]) == 3
    assert all(timing["shares"][0]["share"] > 0 for timing in stored["cpu"]["timings"])
    assert "checks passed" in shown
    assert "info_nce  bfloat16" in shown
    assert "fma_f32" in shown


def test_one_wrong_result_fails(small, tmp_path, capsys, monkeypatch):
    right = info_nce.run_cpu

    def wrong(case, inputs, dtype, threads=0):
        outputs = right(case, inputs, dtype, threads)
        if dtype == "float16":
            outputs["grad_documents"][1, 2] += 1e-3 * np.abs(outputs["grad_documents"]).max()
        return outputs

    monkeypatch.setattr(cpu, "run_cpu", wrong)
    monkeypatch.setattr(cpu, "SMALL", (TINY,))
    status, shown, stored = run_cli(tmp_path, capsys, "--quick")
    assert status == 1
    assert len(stored["failures"]) == 1
    assert "info_nce cpu float16" in stored["failures"][0]
    assert "grad_documents: error" in stored["failures"][0]
    assert "FAILED info_nce cpu float16" in shown
    assert f"of {len(stored['cpu']['checks'])} checks passed" in shown


def test_results_that_change_between_calls_fail(small, tmp_path, capsys, monkeypatch):
    right = info_nce.run_cpu
    calls = iter(range(10**6))

    def restless(case, inputs, dtype, threads=0):
        outputs = right(case, inputs, dtype, threads)
        outputs["losses"][0] += next(calls) * 2.0**-60
        return outputs

    monkeypatch.setattr(cpu, "run_cpu", restless)
    status, _, stored = run_cli(tmp_path, capsys, "--quick")
    assert status == 1
    assert all("same bits" in failure for failure in stored["failures"])


def test_a_part_that_cannot_run_is_a_failure(small, tmp_path, capsys, monkeypatch):
    def broken(threads, *, quick):
        raise MemoryError("no memory at all")

    monkeypatch.setattr(cpu, "checks", broken)
    status, shown, stored = run_cli(tmp_path, capsys, "--quick")
    assert status == 1
    assert "MemoryError: no memory at all" in stored["failures"][0]
    assert "0 of 1 checks passed" in shown


def test_a_time_that_cannot_be_taken_is_no_failure(small, tmp_path, capsys, monkeypatch):
    def broken(kind, threads, seconds):
        raise MemoryError("the buffer")

    monkeypatch.setattr(simtile._core, "peak", broken)
    status, shown, stored = run_cli(tmp_path, capsys, "--quick")
    assert status == 0
    assert stored["cpu"]["timings"] == []
    assert sum("MemoryError: the buffer" in item["why"] for item in stored["not_checked"]) == 4
    assert "time of what this CPU reaches: MemoryError" in shown


def test_interrupted_it_keeps_what_it_has(small, tmp_path, capsys, monkeypatch):
    def interrupted(timing, threads, *, quick):
        raise KeyboardInterrupt

    monkeypatch.setattr(cpu, "measure", interrupted)
    status, _, stored = run_cli(tmp_path, capsys, "--quick")
    assert status == 130
    assert not stored["complete"]
    assert len(stored["cpu"]["checks"]) > 4


def test_without_output_nothing_is_written(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--quick"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_ends_it_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(found, "facts", lambda: pytest.fail("it began to work"))
    for path in (tmp_path / "no such folder" / "report.json", tmp_path):
        assert cli.main(["doctor", "--output", str(path)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"simtile: error: --output {path}: cannot write there (")


def test_threads_reach_the_kernels(small, capsys, monkeypatch):
    seen = set()
    right = info_nce.run_cpu

    def counting(case, inputs, dtype, threads=0):
        seen.add(threads)
        return right(case, inputs, dtype, threads)

    monkeypatch.setattr(cpu, "run_cpu", counting)
    assert cli.main(["doctor", "--quick", "--threads", "3"]) == 0
    assert seen == {1, 2, 3}


HALF_BROKEN = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first in ("rich", "ml_dtypes", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if first in ("torch", "triton"):
            raise BROKEN
sys.meta_path.insert(0, Blocked())
from simtile import _core, cli
from simtile.doctor import cpu, info_nce
cpu.SMALL = (info_nce.Case(5, 6, 7),)
cpu.REPEATED = cpu.STANDARD_QUICK = cpu.SMALL_STEP = info_nce.Case(9, 11, 8)
cpu.PEAK_SAMPLE = 1e-3
_core.peak_kinds = lambda: ["fma_f32"]
sys.exit(cli.main(["doctor", "--quick"]))
"""


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("ModuleNotFoundError(f'No module named {name!r}', name=name)", "not installed"),
        ("OSError('libcudart.so.13: cannot open')", "failed: OSError: libcudart.so.13"),
    ],
)
def test_numpy_is_enough(broken, said):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HALF_BROKEN.replace("BROKEN", broken)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"  torch        {said}" in done.stdout
    assert "backend 'triton':" in done.stdout


def test_a_refused_level_is_reported(tmp_path):
    path = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "simtile.cli", "doctor", "--quick", "--output", str(path)],
        env={**os.environ, "SIMTILE_ISA": "avx9000"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    stored = json.loads(path.read_text())
    assert "avx9000" in stored["failures"][0]
    assert stored["environment"]["SIMTILE_ISA"] == "avx9000"


@pytest.mark.deep
def test_the_real_thing(tmp_path):
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "simtile.cli", "doctor", "--all-levels", "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = json.loads(path.read_text())
    conforms(stored, report.Report)
    names = {level["level"] for level in stored["levels"]} | {stored["cpu"]["device"]}
    assert names == set(simtile.cpu_info()["detected"])


# -- levels --


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 4)", "ended by signal 4 (SIGILL)"),
        ("raise SystemExit('no such level')", "exit status 1: no such level"),
        ("print('{')", "JSONDecodeError"),
        ("pass", "IndexError"),
    ],
)
def test_a_level_whose_process_ends_is_one_failed_check(program, message, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{program}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(levels.sys, "executable", str(python))
    result = levels.run_level("avx2", 0, quick=True)
    assert result["level"] == "avx2"
    assert [check["status"] for check in result["checks"]] == ["failed"]
    assert message in result["checks"][0]["message"]
    conforms(result, report.LevelResult)


def test_failures_of_a_level_count(small, tmp_path, capsys, monkeypatch):
    detected = [simtile.cpu_info()["level"], "other"]
    info = {**simtile.cpu_info(), "detected": detected}
    monkeypatch.setattr(simtile, "cpu_info", lambda: info)
    asked = []

    def run_level(level, threads, *, quick):
        asked.append(level)
        failed = run_check(check_of(lambda: [Comparison("losses", 2.0, 1.0)]))
        return {"level": level, "checks": [failed]}

    monkeypatch.setattr(levels, "run_level", run_level)
    status, shown, stored = run_cli(tmp_path, capsys, "--quick", "--all-levels")
    assert status == 1
    assert asked == ["other"]
    assert stored["failures"] == [
        "level other, kernel cpu float32 7, values: losses: error 2, allowed 1"
    ]
    assert "CPU, level other" in shown


# -- a check --


@pytest.mark.parametrize(
    ("error", "passes"), [(0.0, True), (1.0, True), (1.1, False), (np.nan, False), (np.inf, False)]
)
def test_a_check_passes_up_to_what_is_allowed(error, passes):
    result = run_check(check_of(lambda: [Comparison("a", 0.0, 0.0), Comparison("b", error, 1.0)]))
    assert (result["status"] == "passed") == passes
    assert ("b: error" in result["message"]) != passes
    conforms(json.loads(json.dumps(report._plain(result))), report.CheckResult)


def test_a_check_that_raises_or_compares_nothing_fails():
    def raising():
        yield Comparison("a", 0.0, 0.0)
        raise ValueError("two\nlines")

    result = run_check(check_of(raising))
    assert result["status"] == "failed"
    assert result["message"].startswith("ValueError: two lines (test_doctor.py:")
    assert "compared nothing" in run_check(check_of(list))["message"]


def test_the_limits_are_those_of_the_tests():
    assert limits.ROUNDOFF == tolerances.ROUNDOFF
    for output, count in limits.ROUNDOFFS.items():
        assert count == tolerances.ROUNDOFFS[f"info_nce.{output}"]
    rows = [(dtype, dtype, limits.CPU[dtype], tolerances.CPU) for dtype in limits.CPU]
    for precision, label in (("ieee", "float32"), ("tf32x3", "float32 (tf32x3)")):
        ours, theirs = limits.GPU[label], tolerances.PRECISIONS[precision]
        rows.append((label, "float32", ours, theirs))
    for dtype in ("bfloat16", "float16"):
        rows.append((dtype, dtype, limits.GPU[dtype], tolerances.TRITON_ON_GPU))
    for output in limits.ROUNDOFFS:
        for label, dtype, ours, theirs in rows:
            expected = tolerances.allowed_error(f"info_nce.{output}", dtype, 3.0, theirs, 768)
            assert limits.allowed(output, ours, 3.0, 768) == pytest.approx(expected), label
            assert ours.smallest == theirs.smallest.get(dtype, 0.0), label


def test_long_sums_of_a_matrix_unit_that_cuts_off():
    """As an H200 gave it: the part of every sum that float32 cannot hold is lost, 16 at a time."""
    case = info_nce.Case(300, 700, 768, seed=1)
    inputs = info_nce.make_inputs(case, "float16")
    exact = info_nce.exact_by_cpu(case, inputs)
    queries, documents = inputs.values["queries"], inputs.values["documents"]
    sums = np.zeros((300, 700))
    for first in range(0, 768, 16):
        sums += queries[:, first : first + 16] @ documents[:, first : first + 16].T
        bits = sums.astype(np.float32)
        larger = np.abs(bits) > np.abs(sums)
        sums = np.where(larger, np.nextafter(bits, np.float32(0)), bits).astype(np.float64)
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(documents, axis=1)
    logits = sums / norms / case.temperature
    positive = np.diagonal(logits)[:, None]
    p = np.exp(logits - positive)
    p /= p.sum(1, keepdims=True)
    gradient = -(p * (logits - positive)).sum() / 300 / case.temperature
    (cut,) = info_nce.compare({"grad_temperature": gradient}, exact, limits.GPU["float16"])
    assert 0.1 < cut.error / cut.allowed < 0.5
    (wrong,) = info_nce.compare(
        {"grad_temperature": 1.001 * gradient}, exact, limits.GPU["float16"]
    )
    assert not wrong.ok


def test_units_are_those_of_the_benchmarks(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "bench"))
    monkeypatch.setenv("OPENBLAS_CORETYPE", "")  # which the benchmarks remove
    import info_nce_compare

    assert info_nce_compare.UNITS == cpu.UNITS


@pytest.mark.parametrize("dtype", limits.CPU)
def test_wrong_outputs_are_seen(dtype):
    inputs = info_nce.make_inputs(TINY, dtype)
    for reference in (info_nce.exact, info_nce.exact_by_cpu):
        expected = reference(TINY, inputs)
        outputs = info_nce.run_cpu(TINY, inputs, dtype)
        assert set(outputs) == set(expected.values) == set(expected.scales)
        assert all(c.ok for c in info_nce.compare(outputs, expected, limits.CPU[dtype]))
        for name, value in outputs.items():
            for bad in (np.nan, 1.05 * value + 0.05):
                changed = {**outputs, name: np.broadcast_to(bad, value.shape)}
                compared = info_nce.compare(changed, expected, limits.CPU[dtype])
                assert [c.output for c in compared if not c.ok] == [name]
        with pytest.raises(RuntimeError, match=r"losses: shape \(4,\), expected \(5,\)"):
            list(info_nce.compare({"losses": np.zeros(4)}, expected, limits.CPU[dtype]))


def test_bfloat16_is_rounded_to_nearest_even():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(0).standard_normal(1000, np.float32)
    x[:2] = [1 + 2.0**-8, 1 + 3 * 2.0**-8]  # ties
    stored = info_nce._store(x, "bfloat16")
    np.testing.assert_array_equal(stored.view(ml_dtypes.bfloat16), x.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(
        info_nce.widen(stored), x.astype(ml_dtypes.bfloat16).astype(float)
    )
