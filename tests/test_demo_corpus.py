"""The demo's corpus: the shipped one, one from docstrings, and files of JSON lines."""

import hashlib
import json
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest

from simtile.demo import (
    corpus,
    docstrings,
    jsonl,
    retrieval,
)


@pytest.fixture(scope="module")
def shipped():
    return corpus.load_corpus()


@pytest.fixture
def folder(tmp_path):
    """A copy of the corpus to damage."""
    return Path(shutil.copytree(corpus.DATA, tmp_path / "data"))


def sign(folder, name):
    """Make the manifest accept a file's present content."""
    path = folder / corpus.MANIFEST_FILE
    manifest = json.loads(path.read_text())
    manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


class TestCorpus:
    def test_size_and_licence(self):
        assert sum(file.stat().st_size for file in corpus.DATA.iterdir()) < 5_500_000
        licence = (corpus.DATA / corpus.LICENCE_FILE).read_text()
        assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in licence
        assert "PSF License Agreement" in (corpus.DATA / "README.md").read_text()

    def test_contents(self, shipped):
        assert 1900 <= len(shipped.pairs) <= 2200
        assert shipped.queries.shape == shipped.documents.shape == (len(shipped.pairs), 384)
        assert shipped.queries.dtype == shipped.documents.dtype == np.float32
        for side in (shipped.queries, shipped.documents):
            np.testing.assert_allclose(np.linalg.norm(side, axis=1), 1, atol=1e-6)
        assert len({pair.document for pair in shipped.pairs}) == len(shipped.pairs)

    def test_embeddings_belong_to_their_texts(self, shipped):
        targets = np.arange(len(shipped.pairs))
        found = retrieval.ranks(shipped.queries, shipped.documents, targets)
        assert retrieval.recall_at(10, found) > 0.6
        shifted = retrieval.ranks(shipped.queries, np.roll(shipped.documents, 1000, 0), targets)
        assert retrieval.recall_at(10, shifted) < 0.1

    def test_texts_keep_the_rules(self, shipped):
        # clean() drops nothing of what clean() made
        assert docstrings.clean(shipped.pairs, document_words=12) == shipped.pairs

    @pytest.mark.parametrize(
        "name", [corpus.PAIRS_FILE, corpus.EMBEDDINGS_FILE, corpus.LICENCE_FILE]
    )
    def test_one_changed_byte_is_found(self, folder, name):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(corpus.CorpusError, match=rf"{name}: SHA-256 .*reinstall simtile"):
            corpus.load_corpus(folder)

    @pytest.mark.parametrize("name", [corpus.MANIFEST_FILE, corpus.PAIRS_FILE])
    def test_missing_file(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(corpus.CorpusError, match=f"{name}: cannot be read"):
            corpus.load_corpus(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "pairs": "x"}'])
    def test_bad_manifest(self, folder, text):
        (folder / corpus.MANIFEST_FILE).write_text(text)
        with pytest.raises(corpus.CorpusError, match="not a corpus manifest"):
            corpus.load_corpus(folder)

    def test_unknown_format(self, folder):
        path = folder / corpus.MANIFEST_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
        with pytest.raises(corpus.CorpusError, match="format 2, expected 1"):
            corpus.load_corpus(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"query_codes": np.zeros((3, 384), np.int8)}, r"query_codes is int8 \[3, 384\]"),
            ({"document_codes": np.zeros((2079, 384), np.int16)}, "document_codes is int16"),
            ({"query_scales": np.zeros(2079, np.float32)}, "query_scales are not all positive"),
            ({"query_scales": np.full(2079, np.nan, np.float32)}, "query_scales are not all"),
            ({"query_scales": None}, "the array query_scales is missing"),
        ],
    )
    def test_wrong_arrays(self, folder, change, message):
        path = folder / corpus.EMBEDDINGS_FILE
        with np.load(path) as archive:
            arrays = {**archive, **change}
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        sign(folder, path.name)
        with pytest.raises(corpus.CorpusError, match=message):
            corpus.load_corpus(folder)

    def test_no_pickle(self, folder):
        path = folder / corpus.EMBEDDINGS_FILE
        np.savez(path, query_codes=np.array([{}], dtype=object))
        sign(folder, path.name)
        with pytest.raises(corpus.CorpusError, match=r"not a readable \.npz file"):
            corpus.load_corpus(folder)

    def test_int8_round_trip(self):
        x = np.random.default_rng(0).standard_normal((50, 33)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        x[3] = 0
        codes, scales = corpus.encode_int8(x)
        assert codes.dtype == np.int8
        assert np.abs(codes[:3]).max(axis=1).tolist() == [127] * 3
        # half a step each way, and what the length of the rounded vector is off by
        np.testing.assert_allclose(corpus.decode_int8(codes, scales), x, atol=scales.max())


class TestDocstrings:
    def write(self, tmp_path):
        (tmp_path / "b.py").write_text(
            textwrap.dedent(
                '''
                """Only one paragraph in this docstring."""
                class Thing:
                    """Hold a   thing
                    of some kind.

                    The thing is held until
                    it is let go of, and not a moment longer.

                    Second paragraph.
                    """
                async def wait(): "Wait for a thing.\\n\\nNobody knows for how long, but some."
                '''
            )
        )
        (tmp_path / "a.py").write_text("def broken(:")
        (tmp_path / "test").mkdir()
        (tmp_path / "test" / "c.py").write_text('"""Not for us.\n\nThis is a test."""')
        return list(docstrings.docstring_pairs(tmp_path))

    def test_extraction(self, tmp_path):
        assert self.write(tmp_path) == [
            docstrings.Pair(
                "Hold a thing of some kind.",
                "The thing is held until it is let go of, and not a moment longer. "
                "Second paragraph.",
                "b.py:Thing",
            ),
            docstrings.Pair(
                "Wait for a thing.", "Nobody knows for how long, but some.", "b.py:wait"
            ),
        ]

    def test_progress_counts_every_file(self, tmp_path):
        self.write(tmp_path)
        calls = []
        list(docstrings.docstring_pairs(tmp_path, lambda done, total: calls.append((done, total))))
        assert calls == [(1, 2), (2, 2)]

    def test_clean(self):
        good = docstrings.Pair("Open the file at a path.", "It is opened for reading, as text " * 2)
        document = "A different document about closing files, and what then happens."
        dropped = [
            docstrings.Pair("Short one", document),
            docstrings.Pair("x" * 301 + " and two words", document),
            docstrings.Pair("OPEN the file at a path!", document),  # the query again
            docstrings.Pair(
                "Open another file there.", good.document.upper()
            ),  # the document again
            docstrings.Pair("Close the file at a path.", "Too short."),
            docstrings.Pair("Close the file at a path.", ">>> close(file) or do_something_else()"),
        ]
        assert docstrings.clean([good, *dropped]) == [good]

    def test_long_documents_end_at_a_word(self):
        pair = docstrings.Pair("A query of some words.", "word " * 400)
        (kept,) = docstrings.clean([pair])
        assert len(kept.document) <= docstrings.DOCUMENT_CUT
        assert kept.document.endswith("word")

    def test_near_duplicates(self):
        words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        first = docstrings.Pair("what is first", " ".join(words))
        near = docstrings.Pair("something else entirely", " ".join([*words, "eleven"]))  # 10 / 11
        far = docstrings.Pair("yet another question", " ".join([*words[:7], "a", "b", "c"]))  # 7/13
        assert docstrings.drop_near_duplicates([first, near, far]) == [first, far]


GOOD = b'{"query": "q", "document": "d"}\n'


class TestJsonLines:
    def read(self, tmp_path, content):
        path = tmp_path / "pairs.jsonl"
        path.write_bytes(content)
        return path, jsonl.read_pairs(path)

    def test_good(self, tmp_path):
        lines = (
            '\ufeff{"query": "q\u00e9", "document": "d", "more": 1}\r\n\n'.encode() + GOOD.strip()
        )
        _, pairs = self.read(tmp_path, lines)
        assert pairs == [jsonl.Pair("q\u00e9", "d"), jsonl.Pair("q", "d")]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"query: q", r"not JSON \(Expecting value, column 1\)"),
            (b'{"query": "q", "document": "d"', "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b'["q", "d"]', "found a JSON array, expected an object"),
            (b"null", "found a JSON null"),
            (b'{"query": "q"}', r'the key "document" is missing \(found: query\)'),
            (b"{}", r'"query" is missing \(found: no keys\)'),
            (b'{"query": 3, "document": "d"}', '"query" is a JSON number, expected a string'),
            (b'{"query": true, "document": "d"}', '"query" is a JSON boolean'),
            (b'{"query": "q", "document": ["d"]}', '"document" is a JSON array'),
            (b'{"query": "q", "document": " \\n "}', '"document" is empty'),
            (b'{"query": "q", "document": "\xff"}', "byte 29 of the line is not UTF-8"),
            (b'{"query": "q", "document": "\\ud800"}', "lone surrogate"),
        ],
    )
    def test_bad_line(self, tmp_path, line, message):
        with pytest.raises(jsonl.CorpusError, match=message) as caught:
            self.read(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD)
        assert str(caught.value).startswith(f"{tmp_path / 'pairs.jsonl'}:3: ")

    def test_no_file(self, tmp_path):
        with pytest.raises(jsonl.CorpusError, match=r"none\.jsonl: cannot be read \(No such file"):
            jsonl.read_pairs(tmp_path / "none.jsonl")
