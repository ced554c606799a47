"""examples/retrieval.py: its budget, its gate, its report; and, where MiniLM is, the whole."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import simtile
from simtile.demo import minilm

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import retrieval_pipeline as pipeline  # noqa: E402
import retrieval_report as report  # noqa: E402
from retrieval_encoders import E5, MINILM, instructor  # noqa: E402


def test_what_a_budget_has_time_for():
    assert pipeline.Budget().pairs() == 10
    assert pipeline.Budget(search=5.0).pairs() == 12
    assert round(pipeline.Budget().hours_for(2_000_000), 1) == 8.3
    assert pipeline.Budget(total=40.0).pairs() == 0


def test_prompts():
    assert E5.queries(["a"]) == ["query: a"]
    assert E5.documents(["b", ""]) == ["passage: b", "passage: "]
    assert MINILM.queries(["a"]) == ["a"]
    assert instructor("Represent it:", ["a", "b"]) == [
        ["Represent it:", "a"],
        ["Represent it:", "b"],
    ]


DOCUMENTS = np.eye(40, 64, dtype=np.float32) + 0.01
QUERY = {f"of {i}": DOCUMENTS[i : i + 1] for i in range(40)} | {"of none": -DOCUMENTS[:1]}


def make(**options):
    index = simtile.CascadeIndex(64, ("binary", "int8"), ranges=np.array([[-1.0] * 64, [1.0] * 64]))
    index.add(DOCUMENTS)
    return pipeline.Pipeline(lambda texts: QUERY[texts[0]], index, **options)


def test_only_what_is_approved_and_similar_is_served():
    approved = [i for i in range(40) if i != 7]
    gated, ungated = (make(least_similarity=0.8, approved=a) for a in (approved, None))
    assert ungated("of 7").ids == [7]
    assert gated("of 7").ids == gated("of 7").scores == []
    assert gated("of 8").ids == [8]
    assert gated("of none").ids == []
    cases = [pipeline.Case("of 8", "text 8"), pipeline.Case("of 7", None)]
    texts = [f"text {i}" for i in range(40)]
    assert pipeline.served_right(gated, cases, texts) == [True, True]
    assert pipeline.served_right(ungated, cases, texts) == [True, False]


def test_a_reranker_gets_what_the_budget_allows():
    asked = []

    def rerank(query, ids):
        asked.append((query, len(ids)))
        return -np.arange(len(ids), dtype=np.float32)[::-1]

    served = make(rerank=rerank, pairs=3, candidates=10)("of 5", k=10)
    assert asked == [("of 5", 3)]
    searched = make(candidates=10)("of 5", k=10)
    assert served.ids == searched.ids[:3][::-1] + searched.ids[3:]
    assert set(served.seconds) == {"encode", "search", "rerank"}


def test_the_report_is_one_file(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 20, 8)).astype(np.float32)
    sections = [
        report.Section("A <title>", "a & b", [(("x", "y"), [("1", "<2>")])]),
        report.Section("Plots", "", [], [report.geometry_plot({"one": x, "two": x[::-1]})]),
    ]
    report.write(tmp_path / "report.html", "T", "note", sections)
    page = (tmp_path / "report.html").read_text()
    for text in ("A &lt;title&gt;", "&lt;2&gt;", "a &amp; b"):
        assert text in page
    assert re.findall(r'(?:src|href)="([^"]{0,15})', page) == ["data:image/png;"]


@pytest.mark.deep
def test_the_whole(tmp_path):
    try:
        minilm.find_model()
    except minilm.MissingModel as error:
        pytest.skip(str(error))
    output = tmp_path / "report.html"
    command = [sys.executable, EXAMPLES / "retrieval.py", "--documents", "200", "--queries", "40"]
    result = subprocess.run(
        [*command, "--output", output], capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "6 of 6" in result.stdout
    assert "2 of 2" in result.stdout
    assert output.read_text().count("data:image/png") == 3
