"""The capacity page: its tables are those of the stored results, and the arithmetic by hand."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    for folder in ("bench", "tools"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


def stored():
    """Of the machine that the page names."""
    text = (ROOT / "docs" / "capacity.md").read_text()
    (machine,) = set(re.findall(r"bench:begin capacity\w* (\S+) -->", text))
    return json.loads((RESULTS / machine / "topk.json").read_text())


def test_the_page_is_current():
    render_readme = importlib.import_module("render_readme")
    text = (ROOT / "docs" / "capacity.md").read_text()
    assert "bench:begin capacity_rates " in text
    assert "bench:begin capacity " in text
    filled = render_readme.render(text, RESULTS)
    assert filled == text, "stale: run python tools/render_readme.py"


def test_rates_are_those_measured():
    tables = importlib.import_module("capacity_tables")
    results = stored()
    forms = {form.name: form for form in tables.forms(results)}
    assert list(forms) == [
        "float32, 768",
        "int8, 768",
        "binary, Hamming, 1024",
        "binary → int8, 768",
    ]
    one = results["entries"]["int8"]["counts"]["1"]
    seconds = one["contenders"]["simtile"]["median"]
    assert forms["int8, 768"].stored == 768
    assert forms["int8, 768"].rate == pytest.approx(one["n"] * 768 / seconds / one["threads"])
    # Nothing reads faster than memory did.
    read = max(
        value["peaks"]["read"]["median"]
        for value in results["entries"]["float32"]["counts"].values()
        if "read" in value["peaks"]
    )
    assert all(form.rate <= read / one["threads"] for form in forms.values())
    cached = json.loads(json.dumps(results))
    for value in cached["entries"]["binary"]["counts"].values():
        value["contenders"]["simtile"]["median"] /= 100
    fast = {form.name: form for form in tables.forms(cached)}["binary, Hamming, 1024"]
    assert fast.rate == read / one["threads"]


def test_a_plan_by_hand():
    tables = importlib.import_module("capacity_tables")
    # 1 kB a document, 100 MB/s a core: 10 million take 100 s of one core, 1000 cores for 100 ms.
    form = tables.Form("form", 1000, 1000, 100e6, 0.0, 1e6, 0.0)
    plan = tables.plan(form, 10_000_000)
    assert plan.bytes == 10e9
    assert plan.cores == 1000
    assert plan.machines == 63  # of 16 cores
    assert plan.latency == pytest.approx(100 / (63 * 16))
    # Each machine's 158,730 documents are 0.159 s of a core for a query in a batch.
    assert plan.throughput == pytest.approx(16 / (10_000_000 / 63 / 1e6))
    # By memory: 96 GB do not fit into two times 48 GB with a byte more.
    form = tables.Form("form", 9.6000001, 1, 1e12, 0.0, 1e6, 0.0)
    assert tables.plan(form, 10_000_000_000).machines == 3
    # What a cascade does after its first stage takes the time from the budget.
    form = tables.Form("form", 1, 1000, 100e6, 0.05, 1e6, 0.0)
    assert tables.plan(form, 10_000_000).cores == 2000


def test_without_results_the_page_says_so(tmp_path):
    render_readme = importlib.import_module("render_readme")
    text = "<!-- bench:begin capacity -->\n<!-- bench:end -->\n"
    assert "Not measured yet" in render_readme.render(text, tmp_path)
