"""`simtile bench`: what it runs and how it fails; two stored runs compared."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import simtile
from simtile import cli
from simtile.bench import runner

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose scripts say what they were called with; quantize's is broken."""
    (tmp_path / "python" / "simtile").mkdir(parents=True)
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "_common.py").write_text("")
    talk = "import os, sys\nprint('{}', sys.argv[1:], os.environ.get('SIMTILE_NUM_THREADS'))\n"
    for name in runner.MINUTES:
        (bench / f"{name}.py").write_text(talk.format(name))
    (bench / "quantize.py").write_text("raise RuntimeError('planted')\n")
    monkeypatch.delenv("SIMTILE_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "_has_gpu", lambda: True)
    inside = tmp_path / "bench" / "results"
    inside.mkdir()
    monkeypatch.chdir(inside)
    # what a mistake finds instead must not be the real benchmarks, which take minutes
    monkeypatch.setattr(simtile, "__file__", str(tmp_path / "no" / "python" / "simtile" / "x.py"))
    return tmp_path


def test_every_benchmark_that_is_run_exists_and_is_said_before(checkout, capfd):
    for name in runner.MINUTES:
        assert (ROOT / "bench" / f"{name}.py").is_file()
    assert cli.main(["bench", "--only", "pool", "--only", "peak"]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown[0] == "to run, about 3 min on two idle cores: peak (1 min), pool (2 min)"
    assert [line for line in shown if line.endswith("[] None")] == ["peak [] None", "pool [] None"]
    assert "2 of 2 benchmarks succeeded" in shown


def test_options_reach_the_scripts(checkout, capfd):
    arguments = ["bench", "--only", "topk", "--quick", "--output", "there", "--threads", "3"]
    assert cli.main(arguments) == 0
    assert "topk ['--quick', '--output', 'there'] 3" in capfd.readouterr().out.splitlines()


def test_a_broken_script_fails_the_run_and_the_others_still_run(checkout, capfd):
    assert cli.main(["bench"]) == 1
    shown, errors = capfd.readouterr()
    assert "RuntimeError: planted" in errors
    assert "quantize: FAILED (exit status 1)" in shown
    assert "cached [] None" in shown.splitlines()  # which comes after it
    assert f"{len(runner.MINUTES) - 1} of {len(runner.MINUTES)} benchmarks succeeded" in shown
    assert "failed: quantize;" in shown


def test_what_needs_a_gpu_is_run_where_there_is_one_and_where_it_is_asked_for(
    checkout, capfd, monkeypatch
):
    monkeypatch.setattr(runner, "_has_gpu", lambda: False)
    cli.main(["bench"])
    shown = capfd.readouterr().out.splitlines()
    assert "no GPU: without gpu_peers" in shown
    assert "gpu_peers [] None" not in shown
    assert cli.main(["bench", "--only", "gpu_peers"]) == 0
    assert "gpu_peers [] None" in capfd.readouterr().out.splitlines()


def test_outside_a_checkout_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simtile, "__file__", str(tmp_path / "a" / "b" / "simtile" / "__init__.py"))
    assert cli.main(["bench"]) == 1
    error = capsys.readouterr().err
    assert "not part of the installed package; run `simtile bench` in a checkout" in error


def test_the_scripts_start_from_the_threads_that_simtile_uses():
    pytest.importorskip("rich")
    code = "import _common; print(_common.parser('', {}).parse_args([]).threads)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "bench",
        env={**os.environ, "SIMTILE_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n"


def samples(median, spread=0.01):
    return {"median": median, "spread": spread, "samples": [median]}


RESULTS = {
    "bench": "topk",
    "machine": {"cpu": "a", "cpus": 2, "level": "avx2", "versions": {"numpy": "2", "simtile": "1"}},
    "quick": False,
    "threads": 2,
    "failures": [],
    "entries": {
        "int8": {
            "contenders": {"simtile": samples(1.0), "faiss": samples(3.0)},
            "peaks": {"read": samples(1e9)},
        },
        "noisy": {"times": {"1": samples(1.0, spread=0.2)}},
        "floor": {"peers": {"NumPy": samples(1.0)}},
    },
}


def stored(folder, change=lambda results: None):
    results = copy.deepcopy(RESULTS)
    change(results)
    folder.mkdir()
    (folder / "topk.json").write_text(json.dumps(results))
    (folder / "something_else.json").write_text("{}")
    return folder


def compared(tmp_path, capsys, change):
    """Exit status, output and errors of comparing RESULTS with what `change` makes of them."""
    before, after = stored(tmp_path / "a"), stored(tmp_path / "b", change)
    status = cli.main(["bench", "--compare", str(before), str(after / "topk.json")])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def change_median(entry, group, name, factor):
    def change(results):
        results["entries"][entry][group][name]["median"] *= factor

    return change


def test_equal_runs_have_no_regression(tmp_path, capsys):
    status, shown, _ = compared(tmp_path, capsys, lambda results: None)
    assert status == 0
    assert "1.000 x the time (noise 5.0%)  topk/entries/int8/contenders/simtile\n" in shown
    assert "0 regressions or failures" in shown
    assert "WARNING" not in shown


def test_a_planted_regression_is_named(tmp_path, capsys):
    change = change_median("int8", "contenders", "simtile", 1.06)
    status, shown, _ = compared(tmp_path, capsys, change)
    assert status == 1
    assert "1 regressions or failures\n  topk/entries/int8/contenders/simtile: 1.06 times" in shown


@pytest.mark.parametrize(
    ("entry", "group", "name", "factor", "line"),
    [
        ("int8", "contenders", "simtile", 1.04, "1.040 x the time"),  # below the floor
        ("noisy", "times", "1", 1.5, "1.500 x the time (noise 56.6%)"),  # within both spreads
        ("int8", "contenders", "simtile", 0.5, "simtile  improved"),
        ("int8", "contenders", "faiss", 2, "the machine: peers took 1.500 x the time"),  # NumPy: 1
        ("floor", "peers", "NumPy", 2, "the machine: peers took 1.500 x the time"),  # faiss: 1
        ("int8", "peaks", "read", 0.5, "the machine: measured peaks took 2.000 x the time"),
    ],
)
def test_what_is_no_regression(entry, group, name, factor, line, tmp_path, capsys):
    status, shown, _ = compared(tmp_path, capsys, change_median(entry, group, name, factor))
    assert status == 0
    assert line in shown


def test_what_exceeds_the_noise_of_a_noisy_entry(tmp_path, capsys):
    assert compared(tmp_path, capsys, change_median("noisy", "times", "1", 1.6))[0] == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda r: r["machine"].update(cpu="b"), "WARNING: different cpu: a and b"),
        (lambda r: r["machine"].update(level="avx512"), "different level: avx2 and avx512"),
        (lambda r: r.update(threads=4), "WARNING: different threads: 2 and 4"),
        (lambda r: r["machine"]["versions"].update(numpy="3"), "different numpy: 2 and 3"),
        (lambda r: r["entries"].pop("noisy"), "only in the first: topk/entries/noisy/times/1"),
    ],
)
def test_what_differs_besides_is_said(change, line, tmp_path, capsys):
    status, shown, _ = compared(tmp_path, capsys, change)
    assert status == 0
    assert line in shown


def test_an_entry_that_failed_its_gate_fails_the_comparison(tmp_path, capsys):
    change = {"failures": ["int8: other scores"]}
    status, shown, _ = compared(tmp_path, capsys, lambda results: results.update(change))
    assert status == 1
    assert "topk failed: int8: other scores" in shown


def test_other_sizes_are_not_compared(tmp_path, capsys):
    status, _, error = compared(tmp_path, capsys, lambda results: results.update(quick=True))
    assert status == 1
    assert "topk: quick is False in the one and True in the other" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as results"),
        ("{", "cannot be read as results"),
        ("{}", "no results of `simtile bench` there"),
        ('{"bench": "pool", "machine": {}}', "no benchmark in common"),
    ],
)
def test_what_cannot_be_compared(text, message, tmp_path, capsys):
    file = tmp_path / "other.json"
    if text is not None:
        file.write_text(text)
    assert cli.main(["bench", "--compare", str(stored(tmp_path / "a")), str(file)]) == 1
    assert message in capsys.readouterr().err


def test_comparing_runs_nothing(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--compare", "a", "b", "--quick"])
    assert stopped.value.code == 2
    assert "--compare: runs nothing" in capsys.readouterr().err
