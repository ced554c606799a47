"""The report of `simtile doctor`: its file, its numbers, and how it is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
from doctor_reports import check_of, conforms

from simtile import doctor
from simtile.doctor import report, show
from simtile.doctor.results import Comparison, Timing, run_check, timing_result


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("before")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(report.OutputError, match="No space left"):
        report.write(path, doctor._empty(doctor.Options()))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path):
    empty = doctor._empty(doctor.Options())
    empty["cpu"]["checks"].append(run_check(check_of(lambda: [Comparison("a", np.nan, np.inf)])))
    report.write(tmp_path / "report.json", empty)
    text = (tmp_path / "report.json").read_text()
    stored = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    conforms(stored, report.Report)
    assert stored["cpu"]["checks"][0]["comparisons"][0] == {
        "output": "a",
        "error": "nan",
        "allowed": "inf",
    }


def test_a_timing_has_its_rates():
    timing = Timing("k", "cpu", "float32", "7", "forward", lambda: lambda: None, 12.0, 6.0)
    result = timing_result(timing, [3.0, 1.0, 2.0, 2.0, 2.0], [])
    assert (result["median"], result["spread"]) == (2.0, 0.0)
    assert (result["operations_per_second"], result["bytes_per_second"]) == (6.0, 3.0)
    assert timing_result(timing, [1.0], [])["spread"] == 0.0


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0 B/s"), (999.4, "999 B/s"), (1234.0, "1.23 kB/s"), (4e12, "4 TB/s")]
)
def test_quantities(value, text):
    assert show.quantity(value, "B/s") == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 us")]
)
def test_durations(value, text):
    assert show.duration(value) == text


def test_a_share_above_the_peak_is_explained(capsys):
    timing = Timing("k", "cpu", "float32", "7", "forward", lambda: lambda: None, 12.0, 6.0)
    shares = [{"of": "fma_f32", "products": 6, "share": 1.1}]
    half = {
        "device": "x",
        "checks": [],
        "peaks": [],
        "timings": [timing_result(timing, [1], shares)],
    }
    show.speed(show.Plain(), half)
    shown = capsys.readouterr().out
    assert "fma_f32 110% at 6 products" in shown
    assert "something else ran" in shown


def test_rich_says_the_same(capsys):
    console = pytest.importorskip("rich.console")
    to = show.Rich(console.Console(width=20, highlight=False))
    with to.busy("working"):
        to.line("  [a] line that is longer than the console is wide", "failed")
    assert "  [a] line that is longer than the console is wide\n" in capsys.readouterr().out
