"""The benchmarks' own logic: turns, medians, gates, shares, targets, tables, README regions."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
MACHINE = {
    "cpu": "Test(R) CPU",
    "cpus": 2,
    "virtual_machine": True,
    "level": "avx2",
    "system": "Linux",
    "versions": {"simtile": "0"},
    "python": "3.12",
    "date": "today",
    "commit": None,
    "modified": True,
}


@pytest.fixture(scope="module", autouse=True)
def import_path() -> Iterator[None]:
    pytest.importorskip("rich")
    added = [str(ROOT / "bench"), str(ROOT / "tools")]
    sys.path[:0] = added
    yield
    for path in added:
        sys.path.remove(path)


@pytest.fixture
def common() -> ModuleType:
    return importlib.import_module("_common")


@pytest.fixture
def tables() -> ModuleType:
    return importlib.import_module("tables")


@pytest.fixture
def render_readme() -> ModuleType:
    return importlib.import_module("render_readme")


class FakeClock:
    """Time that passes only when a contender says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, seconds: Any) -> Any:
        def call() -> None:
            self.calls.append(name)
            self.now += next(seconds)

        return call


def test_contenders_take_turns_and_each_starts_a_round(common: ModuleType) -> None:
    clock = FakeClock()
    calls = {name: clock.contender(name, itertools.repeat(1.0)) for name in "abc"}
    times, peaks = common.interleave(calls, rounds=3, threads=1, clock=clock)
    # two calls each to get to know them, then an untimed one before each timed one
    assert "".join(clock.calls) == "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert {name: samples.values for name, samples in times.items()} == {
        name: [1.0] * 3 for name in "abc"
    }
    assert peaks == {}


def test_a_slow_call_is_not_warmed_up_and_a_fast_one_is_repeated(common: ModuleType) -> None:
    clock = FakeClock()
    calls = {
        "slow": clock.contender("slow", itertools.repeat(3.0)),
        "fast": clock.contender("fast", itertools.repeat(0.0015)),
    }
    times, _ = common.interleave(calls, rounds=1, threads=1, clock=clock)
    assert clock.calls.count("slow") == 2 + 1
    assert clock.calls.count("fast") == 2 + 1 + 14  # 14 x 1.5 ms are the first above 20 ms
    assert times["fast"].median == pytest.approx(0.0015)


def test_median_and_spread(common: ModuleType) -> None:
    samples = common.Samples([10.0, 1000.0, 11.0, 9.0, 10.0])
    assert samples.median == 10.0
    assert samples.spread == pytest.approx(0.05)  # quartiles 10 and 11: the outlier is not in it
    assert common.Samples([3.0]).spread == 0.0


def test_peaks_are_measured_in_every_round(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FakeCore:
        @staticmethod
        def peak(kind: str, threads: int, seconds: float) -> float:
            return threads * 1e9

    monkeypatch.setattr(common, "_core", FakeCore)
    clock = FakeClock()
    calls = {"a": clock.contender("a", itertools.repeat(1.0))}
    _, peaks = common.interleave(calls, rounds=4, threads=2, peak_kinds=["fma_f32"], clock=clock)
    assert peaks["fma_f32"].values == [2e9] * 4


def test_a_share_above_the_peak_is_refused(common: ModuleType) -> None:
    assert common.share_of_peak(5e9, 10e9, "x") == 0.5
    with pytest.raises(common.ShareAbovePeak, match=r"x: 11.0 G/s is 110% of a peak of 10.0 G/s"):
        common.share_of_peak(11e9, 10e9, "x")


@pytest.mark.parametrize(
    ("measured", "relation", "limit", "met"),
    [
        (2.5, "at least", 2.5, True),
        (2.49, "at least", 2.5, False),
        (110.0, "at most", 110.0, True),
        (110.1, "at most", 110.0, False),
        (float("nan"), "at least", 0.0, False),
        (float("nan"), "at most", 1.0, False),
    ],
)
def test_targets_are_computed(
    common: ModuleType, measured: float, relation: str, limit: float, met: bool
) -> None:
    target = common.Target("what", measured, relation, limit)
    assert target.met is met
    assert target.json()["met"] is met


def test_extra_memory_sees_a_peak_that_is_gone_again(common: ModuleType) -> None:
    def call() -> int:
        block = np.ones(64 << 20, np.uint8)
        return int(block[0])

    used, result = common.extra_memory(call)
    assert result == 1
    assert 60 << 20 < used < 90 << 20
    used, _ = common.extra_memory(lambda: None)  # the earlier peak is forgotten
    assert used < 10 << 20


def test_the_machine_is_described(common: ModuleType) -> None:
    facts = common.machine()
    assert facts["cpu"]
    assert facts["level"] in facts["levels"]
    assert facts["versions"]["numpy"] == np.__version__
    facts = {"cpu": "Intel(R) Xeon(R) Processor", "level": "avx512_amx", "cpus": 2}
    name = common.machine_name(facts)
    assert name == "intel-xeon-processor-avx512-amx-2cpu"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234, "1.23 s"),
        (0.0123456, "12.3 ms"),
        (0.25, "250 ms"),
        (98.7e-6, "98.7 µs"),
        (5e-7, "0.50 µs"),
    ],
)
def test_seconds_have_three_digits(tables: ModuleType, value: float, text: str) -> None:
    assert tables.seconds(value) == text


def write_peaks(folder: Path, rate: float, **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    peaks = {"fma_f32": {"1": {"median": rate, "spread": 0.01, "samples": [rate]}}}
    results = {"bench": "peak", "machine": MACHINE, "peaks": peaks, "quick": False, **more}
    (folder / "peak.json").write_text(json.dumps(results))


def test_regions_are_filled_and_found_stale(render_readme: ModuleType, tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_peaks(results / "one", 123e9)
    text = "before\n<!-- bench:begin peak -->\nold\n<!-- bench:end -->\nafter\n"
    filled = render_readme.render(text, results)
    assert filled.startswith("before\n<!-- bench:begin peak -->\n| Peak")
    assert filled.endswith("<!-- bench:end -->\nafter\n")
    assert "123 G/s" in filled
    assert "old" not in filled
    assert "Test CPU, 2 CPUs" in filled
    assert render_readme.render(filled, results) == filled

    readme = tmp_path / "README.md"
    readme.write_text(text)
    command = [sys.executable, str(ROOT / "tools" / "render_readme.py"), "--results", str(results)]
    assert subprocess.run([*command, "--check", str(readme)], capture_output=True).returncode == 1
    assert readme.read_text() == text
    assert subprocess.run([*command, str(readme)], capture_output=True).returncode == 0
    assert readme.read_text() == filled
    assert subprocess.run([*command, "--check", str(readme)], capture_output=True).returncode == 0
    write_peaks(results / "one", 124e9)
    assert subprocess.run([*command, "--check", str(readme)], capture_output=True).returncode == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- bench:begin peeks -->\n<!-- bench:end -->\n", "unknown region 'peeks'"),
        ("<!-- bench:begin peak -->\n", "without its bench:end"),
        ("<!-- bench:end -->\n", "without its bench:end"),
        ("<!-- bench:begin info_nce one -->\n<!-- bench:end -->\n", "for machine 'one'"),
        ("<!-- bench:begin peak -->\n<!-- bench:end -->\n", "name one of the machines.*one, two"),
        ("<!-- bench:begin peak three -->\n<!-- bench:end -->\n", "for machine 'three'"),
        ("<!-- bench:begin peak two -->\n<!-- bench:end -->\n", "not a complete run"),
    ],
)
def test_regions_that_cannot_be_filled(
    render_readme: ModuleType, tmp_path: Path, text: str, message: str
) -> None:
    write_peaks(tmp_path / "one", 1e9)
    write_peaks(tmp_path / "two", 2e9, quick=True)
    with pytest.raises(render_readme.Problem, match=message):
        render_readme.render(text, tmp_path)
    assert "1.00 G/s" in render_readme.render(
        "<!-- bench:begin peak one -->\n<!-- bench:end -->\n", tmp_path
    )


def test_a_region_that_no_machine_has_measured_says_so(
    render_readme: ModuleType, tmp_path: Path
) -> None:
    write_peaks(tmp_path / "one", 1e9)
    text = "<!-- bench:begin topk_short -->\nold\n<!-- bench:end -->\n"
    filled = render_readme.render(text, tmp_path)
    assert "*Not measured yet: `python bench/topk.py`.*" in filled
    assert "old" not in filled
    # counts of the PTX interpreter are of another topk.json
    (tmp_path / "ptx").mkdir()
    (tmp_path / "ptx" / "topk.json").write_text("{}")
    assert render_readme.render(text, tmp_path) == filled


def test_what_is_stored_is_listed(render_readme: ModuleType, tmp_path: Path) -> None:
    facts = {**MACHINE, "date": "2026-01-02 03:04 UTC", "threads": 2}
    write_peaks(tmp_path / "one", 1e9, machine=facts)
    targets = [{"met": True}, {"met": False}]
    stored = {"bench": "topk", "machine": facts, "threads": 3, "targets": targets}
    (tmp_path / "one" / "topk.json").write_text(json.dumps({**stored, "failures": ["odd"]}))
    (tmp_path / "ptx").mkdir()
    (tmp_path / "ptx" / "topk.json").write_text("{}")  # of no run
    text = render_readme.render("<!-- bench:begin stored -->\n<!-- bench:end -->\n", tmp_path)
    assert text.count("\n| `") == 2
    assert "| `one` | `peak` | 2026-01-02 | 2 |  |" in text
    assert "| `one` | `topk` | 2026-01-02 | 3 | 1 of 2, **1 failed** |" in text


def test_readmes_show_the_stored_numbers() -> None:
    if not list(RESULTS.glob("*/*.json")):
        pytest.skip("no results are stored")
    command = [sys.executable, str(ROOT / "tools" / "render_readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_bench(*arguments: str, environment: dict[str, str] | None = None) -> Any:
    command = [sys.executable, str(ROOT / "bench" / "info_nce.py"), *arguments]
    env = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture
def info_nce(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch")
    # the package info-nce-pytorch, which other tests import, has the same name
    monkeypatch.delitem(sys.modules, "info_nce", raising=False)
    module = importlib.import_module("info_nce")
    assert Path(str(module.__file__)).parent == ROOT / "bench"
    return module


@pytest.mark.slow
def test_a_quick_run_stores_what_the_tables_need(
    info_nce: ModuleType, tables: ModuleType, tmp_path: Path
) -> None:
    arguments = ["--quick", "--only", "overhead", "--only", "small", "--output", str(tmp_path)]
    done = run_bench(*arguments, environment={"OPENBLAS_CORETYPE": "Prescott"})
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "info_nce.json").read_text())
    assert results["machine"]["OPENBLAS_CORETYPE_removed"] == "Prescott"
    assert results["complete"] is False
    assert results["failures"] == []
    assert set(results["entries"]) == {"overhead", "small"}
    small = results["entries"]["small"]
    assert {"simtile", "torch eager", "NumPy"} <= set(small["contenders"])
    assert 0 < small["share"]["of"][small["share"]["unit"]] * small["share"]["products"] <= 1
    text = tables.info_nce(results)
    assert "**simtile**" in text
    assert "one call" in text


def test_contenders_agree_with_the_oracle(info_nce: ModuleType) -> None:
    contenders = info_nce.contenders
    queries, documents = contenders.embeddings(40, 24, seed=3)
    exact = contenders.oracle(queries, documents)
    wanted = (contenders.SIMTILE, contenders.EAGER, contenders.CHUNKED)
    for name, loss in contenders.losses(2, wanted).items():
        value = contenders.step(loss, queries, documents)()
        assert float(value.detach()) == pytest.approx(exact.losses.mean(), rel=1e-5), name
        assert contenders.relative_error(queries.grad.numpy(), exact.queries) < 1e-5, name
        assert contenders.relative_error(documents.grad.numpy(), exact.documents) < 1e-5, name
    arrays = [x.detach().double().numpy() for x in (queries, documents)]
    value, grad_queries, grad_documents = contenders.numpy_step(*arrays)
    assert value == pytest.approx(exact.losses.mean(), rel=1e-12)
    assert contenders.relative_error(grad_queries, exact.queries) < 1e-12
    assert contenders.relative_error(grad_documents, exact.documents) < 1e-12


def test_the_gate_stops_a_wrong_result(info_nce: ModuleType) -> None:
    compare = importlib.import_module("info_nce_compare")
    errors = info_nce.contenders.Errors
    eager = errors(1e-6, 1e-6, 1e-6)
    assert compare.gate(errors(2e-6, 1e-6, 5e-7), eager) == pytest.approx(2.0)
    for wrong in (errors(3e-6, 0, 0), errors(0, float("nan"), 0), errors(0, 0, 1.0)):
        with pytest.raises(compare.GateFailed):
            compare.gate(wrong, eager)


def test_a_sample_of_a_large_result_is_checked(info_nce: ModuleType) -> None:
    contenders = info_nce.contenders
    queries, documents = contenders.embeddings(300, 40)
    contenders.step(contenders.simtile_loss(2), queries, documents)()
    assert contenders.sampled_error(queries, documents, 2, count=20) < 1e-5
    documents.grad[299] *= 1.01
    assert contenders.sampled_error(queries, documents, 2, count=20) > 1e-3


def test_a_failed_gate_is_not_timed_and_fails_the_run(
    info_nce: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(name: str, *_: object) -> Any:
        return info_nce.contenders.Errors(*[1e-6 if name == info_nce.EAGER else 1.0] * 3)

    def timed(*_: object, **__: object) -> Any:
        raise AssertionError("a wrong result was timed")

    monkeypatch.setattr(info_nce.contenders, "torch_errors", wrong)
    monkeypatch.setattr("info_nce_compare.interleave", timed)
    arguments = ["info_nce.py", "--quick", "--only", "overhead", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert info_nce.main() == 1
    results = json.loads((tmp_path / "info_nce.json").read_text())
    assert results["entries"] == {}
    assert "grad" in results["failures"][0] or "losses" in results["failures"][0]


def made_up_results() -> dict[str, Any]:
    """A complete run of info_nce in which simtile takes 100 ms and the others take longer."""

    def samples(median: float) -> dict[str, Any]:
        return {"median": median, "spread": 0.02, "samples": [median], "cores": 1.9}

    def speed(dtype: str = "float32", **more: Any) -> dict[str, Any]:
        errors = {"losses": 1e-7, "grad_queries": 2e-7, "grad_documents": 3e-7}
        return {
            "n": 4096,
            "dim": 768,
            "dtype": dtype,
            "threads": 2,
            "arithmetic": "amx_bf16x3",
            "missing": ["torch.compile"],
            "contenders": {"simtile": samples(0.1), "torch eager": samples(0.25)},
            "share": {
                "unit": "matrix_bf16",
                "products": 6,
                "of": {"fma_f32": 1.5, "matrix_bf16": 0.1},
            },
            "errors": {"simtile": errors, "torch eager": errors},
            "error_ratio": 1.0,
            **more,
        }

    shape = {"n": 4096, "dim": 768, "dtype": "float32"}
    times = {"1": samples(0.2), "2": samples(0.1)}
    by_size = {"2048": {"bytes": 1e7}, "4096": {"bytes": 2e7}}
    torch_by_size = {"2048": {"bytes": 1e8}, "4096": {"failed": "no memory"}}
    write = {"measured": 0.5, "relation": "at least", "unit": ""}
    return {
        "machine": MACHINE,
        "quick": False,
        "complete": True,
        "failures": [],
        "threads": 2,
        "entries": {
            "float32": speed(),
            "small": speed(),
            "odd": speed(rates={"3001 x 515": 300.0}),
            "overhead": speed(),
            "bfloat16": speed(
                "bfloat16", by_dtype={"float32": samples(0.3), "bfloat16": samples(0.1)}
            ),
            "threads": {**shape, "times": times},
            "levels": {**shape, "levels": {"avx2": {"float32": speed()}}},
            "large": {**shape, "times": times, "scaling": 1.01},
            "memory": {**shape, "extra": {"simtile": by_size, "torch eager": torch_by_size}},
        },
        "targets": [
            {"what": "share of something", "limit": 0.4, "met": True, **write},
            {"what": "times something", "limit": 2.5, "met": False, **write},
        ],
    }


def test_every_entry_has_a_table(
    info_nce: ModuleType, tables: ModuleType, render_readme: ModuleType, tmp_path: Path
) -> None:
    results = made_up_results()
    assert set(results["entries"]) == set(info_nce.ENTRIES) == set(tables.ENTRIES)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "info_nce.json").write_text(json.dumps(results))
    rendered = {
        name: render_readme.render(f"<!-- bench:begin {name} -->\n<!-- bench:end -->\n", tmp_path)
        for name, (bench, _) in render_readme.REGIONS.items()
        if bench == "info_nce"
    }
    whole = rendered["info_nce"]
    assert "Test CPU, 2 CPUs, a virtual machine" in whole
    assert "commit unknown with changes" in whole
    assert "| torch eager | 250 ms ± 2.0% | 309 | 2.50× | 1.90 | 3.0e-07 |" in whole
    assert "150% of the float32 FMA peak, 60% of the bf16 matrix unit's peak at 6 products" in whole
    assert "Not on this machine: torch.compile" in whole
    assert "| 2 | 100 ms ± 2.0% | 2.00× |" in whole
    assert "| torch eager | 100 MB | – |" in whole
    assert "| share of something | 50% | at least 40% | met |" in whole
    assert "| times something | 0.50 | at least 2.50 | **not met** |" in whole
    assert "| bfloat16, 4096 × 768 | **100 ms** | 250 ms (2.5×) |" in rendered["info_nce_short"]


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = importlib.import_module("plots.info_nce")
    path = figure.draw(made_up_results(), tmp_path / "info_nce.png")
    assert path.stat().st_size > 10_000


def test_the_plot_of_the_temperature_shows_what_is_said(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = importlib.import_module("plots.temperature_pressure")
    weak, weak_share = plots.pressures(0.8, 1.0)
    strong, strong_share = plots.pressures(0.8, 0.05)
    assert weak < 0.01 < 1 < strong
    assert weak_share < 0.01 < 0.9 < strong_share
    assert plots.draw(tmp_path / "temperature.png").stat().st_size > 10_000
