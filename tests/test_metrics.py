"""simtile.metrics against numbers computed by hand; tests/test_sentence_transformers_evaluation.py
compares them with sentence-transformers' evaluators."""

import doctest
import importlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import simtile
from simtile import metrics
from simtile.demo.corpus import load_corpus

MODULES = ("_ranking", "_pairs", "_quality", "_geometry", "_tables", "_plots")


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    names = {"np": np, "simtile": simtile}
    found = doctest.testmod(
        importlib.import_module(f"simtile.metrics.{module}"), globs=names, raise_on_error=False
    )
    assert found.attempted > 0
    assert found.failed == 0


# One query: at rank 2 a document of grade 3, at rank 4 one of grade 1; one of grade 2 is not found.
FOUND = np.array([[11, 2, 13, 4, 15]])
GRADES = [{2: 3, 4: 1, 9: 2, 11: 0}]
BY_HAND = {
    "recall@1": 0,
    "recall@2": 1 / 3,
    "recall@5": 2 / 3,
    "precision@1": 0,
    "precision@2": 1 / 2,
    "precision@5": 2 / 5,
    "mrr@1": 0,
    "mrr@2": 1 / 2,
    "mrr@5": 1 / 2,
    "map@2": (1 / 2) / 3,
    "map@5": (1 / 2 + 2 / 4) / 3,
    "ndcg@1": 0,
    "ndcg@2": (3 / math.log2(3)) / (3 + 2 / math.log2(3)),
    "ndcg@5": (3 / math.log2(3) + 1 / math.log2(5)) / (3 + 2 / math.log2(3) + 1 / math.log2(4)),
    "hit@1": 0,
    "hit@2": 1,
    "accuracy@2": 1,
}


def test_ranking_by_hand():
    assert metrics.evaluate(FOUND, GRADES, list(BY_HAND)) == pytest.approx(BY_HAND)


def test_two_queries_are_averaged_and_one_without_relevant_documents_is_not():
    found = np.array([[1, 2], [3, 4], [5, 6]])
    relevant = [[1], [], [6, 7]]
    names = ["recall@2", "mrr@2"]
    assert metrics.evaluate(found, relevant, names) == {"recall@2": 0.75, "mrr@2": 0.75}
    each = metrics.evaluate(found, relevant, names, per_query=True)
    np.testing.assert_equal(each["recall@2"], [1, np.nan, 0.5])
    np.testing.assert_equal(each["mrr@2"], [1, np.nan, 0.5])


def test_nothing_found_keeps_its_rank():
    relevant = [[7]]
    assert metrics.evaluate(np.array([[-1, -1, 7]]), relevant, ["mrr@3"])["mrr@3"] == 1 / 3
    assert metrics.evaluate(np.array([[-1, -1, -1]]), relevant, ["recall@3", "ndcg@3"]) == {
        "recall@3": 0,
        "ndcg@3": 0,
    }


def test_forms_of_relevant_documents():
    found = np.array([[1, 2, 3], [4, 5, 6]])
    forms = [
        [[2], [6]],
        [{2}, {6}],
        [{2: 1}, {6: 1}],
        [2, 6],
        np.array([2, 6]),
        np.array([[2, -1], [-1, 6]]),
        torch.tensor([2, 6]),
    ]
    for form in forms:
        values = metrics.evaluate(torch.from_numpy(found), form, ["mrr@3", "ndcg@3"])
        expected = {"mrr@3": (1 / 2 + 1 / 3) / 2, "ndcg@3": (1 / math.log2(3) + 1 / 2) / 2}
        assert values == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ids", "relevant", "names", "message"),
    [
        (np.zeros((2, 3)), [[1], [2]], ["mrr@1"], r"ids: found float64 \[2, 3\]"),
        (np.zeros(3, int), [[1]], ["mrr@1"], r"ids: found shape \[3\]"),
        (np.zeros((0, 3), int), [], ["mrr@1"], "at least one query"),
        (np.array([[4, 5, 4]]), [[1]], ["mrr@1"], "found 4 more than once in row 0"),
        (np.array([[4, 5]]), [[1], [2]], ["mrr@1"], "relevant: found 2 queries, expected 1"),
        (np.array([[4, 5]]), [["a"]], ["mrr@1"], r"relevant\[0\]: found id 'a'"),
        (np.array([[4, 5]]), [{1: 0.5}], ["mrr@1"], "with grade 0.5"),
        (np.array([[4, 5]]), [{1: -1}], ["mrr@1"], "with grade -1"),
        (np.array([[4, 5]]), [None], ["mrr@1"], r"relevant\[0\]: found NoneType"),
        (np.array([[4, 5]]), {0: [4]}, ["mrr@1"], "relevant: found dict"),
        (np.array([[4, 5]]), np.zeros((2, 2), int), ["mrr@1"], r"int64 \[2, 2\]"),
        (np.array([[4, 5]]), [[]], ["mrr@1"], "no relevant document for any of 1 queries"),
        (np.array([[4, 5]]), [{4: 0}], ["mrr@1"], "no relevant document"),
        (np.array([[4, 5]]), [[4]], ["mrr@3"], r"'mrr@3' for ids \[N, 2\]"),
        (np.array([[4, 5]]), [[4]], ["mrr"], "measures: found 'mrr'"),
        (np.array([[4, 5]]), [[4]], ["mrr@0"], "measures: found 'mrr@0'"),
        (np.array([[4, 5]]), [[4]], [], "measures: found none"),
    ],
)
def test_wrong_rankings(ids, relevant, names, message):
    with pytest.raises((TypeError, ValueError), match=message):
        metrics.evaluate(ids, relevant, names)


def test_correlation_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 (1 + 1 + 1 + 1) / (4 (16 - 1)) = 0.6
    found = metrics.correlation([0.1, 0.2, 0.3, 0.4], [2, 1, 4, 3])
    assert found == pytest.approx((0.6, 0.6))
    assert metrics.correlation([1, 2, 3], [1, 4, 9]).spearman == pytest.approx(1)
    assert metrics.correlation([1, 2, 3], [1, 4, 9]).pearson == pytest.approx(
        8 / math.sqrt(2 * 98 / 3)
    )


def test_wrong_pairs():
    x = np.eye(3)
    for call, message in (
        (lambda: metrics.correlation([1, 2], [1, 2, 3]), r"gold: found \[3\], expected \[2\]"),
        (lambda: metrics.correlation([1, 1], [1, 2]), "scores: found 1 2 times"),
        (lambda: metrics.correlation([1, np.nan], [1, 2]), "scores: found NaN"),
        (lambda: metrics.correlation([1], [1]), r"scores: found int64 \[1\]"),
        (lambda: metrics.similarity_correlation(x, x[:2], [1, 2, 3]), r"y: found shape \[2, 3\]"),
        (lambda: metrics.similarity_correlation(x, x[0], [1, 2, 3]), r"y: found shape \[3\]"),
        (lambda: metrics.similarity_correlation(x, x, [1, 2, 3], metric="hamming"), "metric"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_overlap_by_hand():
    exact = np.array([[1, 2, 3], [4, -1, -1]])
    assert metrics.overlap(exact, exact) == 1
    assert metrics.overlap(exact, np.array([[9, 3, 1], [5, -1, -1]])) == 2 / 4
    assert metrics.overlap(exact, np.array([[1], [4]])) == 2 / 4
    with pytest.raises(ValueError, match=r"found: found ids \[1, 3\], expected \[2, m\]"):
        metrics.overlap(exact, exact[:1])
    with pytest.raises(ValueError, match="exact: found float64"):
        metrics.overlap(exact.astype(float), exact)
    with pytest.raises(ValueError, match="exact: found no id"):
        metrics.overlap(np.full((1, 2), -1), exact[:1])


def test_quality_by_bytes_is_what_the_indexes_find():
    corpus = load_corpus()
    queries, documents = corpus.queries[:200], corpus.documents
    relevant = np.arange(200)
    rows = metrics.quality_by_bytes(
        queries, documents, relevant=relevant, measures=("recall@20", "mrr@10")
    )
    assert [row.name for row in rows] == ["float32", "int8", "int4", "binary", "binary → int8"]
    exact = simtile.topk(queries, documents, 10)[1]
    for row, dtype in zip(rows, ("float32", "int8", "int4", "binary"), strict=False):
        index = simtile.FlatIndex(384, dtype)
        index.add(documents)
        ids = index.search(queries, 20)[1]
        assert row.overlap == metrics.overlap(exact, ids[:, :10])
        assert row.measures == metrics.evaluate(ids, relevant, ("recall@20", "mrr@10"))
        assert row.bytes == index.nbytes / len(index)
    by_name = {row.name: row for row in rows}
    assert by_name["float32"].overlap == 1
    assert by_name["float32"].bytes == 4 * 384
    assert by_name["binary"].bytes == 48
    assert by_name["binary → int8"].overlap > 0.98 > 0.8 > by_name["binary"].overlap


def test_quality_by_width():
    corpus = load_corpus()
    queries, documents = corpus.queries[:100], corpus.documents
    rows = metrics.quality_by_width(queries, documents, (48, 192, 384), k=5)
    assert [row.width for row in rows] == [48, 192, 384]
    assert [row.bytes for row in rows] == [4 * 48, 4 * 192, 4 * 384]
    exact = simtile.topk(queries, documents, 5)[1]
    found = simtile.topk(queries[:, :192], documents[:, :192], 5)[1]
    assert rows[1].overlap == metrics.overlap(exact, found)
    assert rows[0].overlap < rows[1].overlap < rows[2].overlap == 1
    assert rows[0].measures == {}
    (bits,) = metrics.quality_by_width(queries, documents, [192], "binary", k=5)
    assert bits.bytes == 24
    with pytest.raises(ValueError, match="widths: found 385, expected integers from 1 to 384"):
        metrics.quality_by_width(queries, documents, [385])


def test_geometry_by_hand():
    # Two pairs of orthogonal directions, aligned exactly: distances 0, of the others sqrt(2).
    x = np.eye(2)
    (row,) = metrics.geometry({"now": (x, x)})
    assert row.name == "now"
    assert (row.alignment, row.uniformity, row.anisotropy) == pytest.approx((0, -4, 0))
    y = x[::-1].copy()
    after, same = metrics.geometry({"swapped": (x, y), "one": (torch.from_numpy(x),) * 2})
    assert after.alignment == pytest.approx(2)
    assert same.alignment == pytest.approx(0)
    with pytest.raises(TypeError, match=r"sets\['a'\]: found ndarray"):
        metrics.geometry({"a": x})
    with pytest.raises(TypeError, match="sets: found tuple"):
        metrics.geometry((x, x))


ROWS = [
    metrics.Quality("float32", 384, 1536.0, 1.0, {"ndcg@10": 0.75}),
    metrics.Quality("binary → int8", 384, 436.25, 0.9935, {"ndcg@10": 0.7}),
]


def test_tables():
    assert metrics.markdown(ROWS) == (
        "| name          | width | bytes | overlap | ndcg@10 |\n"
        "| ------------- | ----: | ----: | ------: | ------: |\n"
        "| float32       |   384 | 1,536 |   1.000 |   0.750 |\n"
        "| binary → int8 |   384 |   436 |   0.994 |   0.700 |\n"
    )
    table = metrics.rich_table(ROWS, "quality")
    assert [column.header for column in table.columns][3:] == ["overlap", "ndcg@10"]
    assert list(table.columns[3].cells) == ["1.000", "0.994"]
    for rows in ([], [1], [ROWS[0], metrics.Geometry("a", 1.0, 1.0, 1.0)]):
        with pytest.raises((TypeError, ValueError), match="rows: found"):
            metrics.markdown(rows)


def test_plots(tmp_path):
    figure = metrics.plot_quality(ROWS)
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[1536, 1], [436.25, 0.9935]])
    assert [text.get_text() for text in axes.texts] == ["binary → int8", "float32"]
    figure.savefig(tmp_path / "bytes.png")
    widths = [row._replace(name=str(w), width=w) for row, w in zip(ROWS, (384, 96), strict=True)]
    figure = metrics.plot_quality(widths, against="width", measure="ndcg@10")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[384, 0.75], [96, 0.7]])
    figure.savefig(tmp_path / "width.png")
    rows = [metrics.Geometry("before", 1.0, -0.1, 0.9), metrics.Geometry("after", 0.5, -3.0, 0.1)]
    figure = metrics.plot_geometry(rows)
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert heights == [[1.0, 0.5], [-0.1, -3.0], [0.9, 0.1]]
    figure.savefig(tmp_path / "geometry.png")
    assert metrics.plot_geometry(rows, axes=figure.axes) is figure
    with pytest.raises(ValueError, match=r"measure: found 'mrr@10', expected one of rows\[0\]"):
        metrics.plot_quality(ROWS, measure="mrr@10")
    with pytest.raises(TypeError, match="rows: found"):
        metrics.plot_geometry(ROWS)


def test_missing_libraries_say_what_to_install():
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ir_measures", "scipy", "rich", "matplotlib", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Blocked())
import numpy as np
import simtile
row = simtile.metrics.Geometry("a", 1.0, 1.0, 1.0)
ids = np.array([[0, 1]])
assert simtile.metrics.overlap(ids, ids) == 1
simtile.metrics.markdown([row])
simtile.metrics.geometry({"a": (np.eye(2), np.eye(2))})
for call in (
    lambda: simtile.metrics.evaluate(ids, [[0]], ["mrr@1"]),
    lambda: simtile.metrics.correlation([1, 2], [1, 2]),
    lambda: simtile.metrics.rich_table([row]),
    lambda: simtile.metrics.plot_geometry([row]),
):
    try:
        call()
    except ModuleNotFoundError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(", ")[0] for line in lines] == [
        "simtile.metrics.evaluate needs ir-measures",
        "simtile.metrics.correlation needs scipy",
        "simtile.metrics.rich_table needs rich",
        "simtile.metrics.plot_geometry needs matplotlib",
    ]
    assert all("pip install 'simtile[metrics]'" in line for line in lines)
