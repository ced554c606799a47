"""The demo: its tokens, its measures, and whole runs at small sizes."""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import simtile
from simtile import cli
from simtile.demo import (
    adapter,
    corpus,
    jsonl,
    machine,
    rerank,
    retrieval,
    run,
    search,
    show,
    step,
    tokens,
)


@pytest.fixture(scope="module")
def shipped():
    return corpus.load_corpus()


@pytest.fixture
def folder(tmp_path):
    """A copy of the corpus to damage."""
    return Path(shutil.copytree(corpus.DATA, tmp_path / "data"))


class TestTokens:
    """The shipped token vectors, and what they are used for."""

    def test_contents(self, shipped):
        found = tokens.load_tokens(len(shipped.pairs))
        assert len(found.documents) == len(shipped.pairs)
        assert len(found.queries) == len(found.rows) == 400
        held_out = adapter.split(len(shipped.pairs), adapter.HELD_OUT, 0)[1]
        assert set(found.rows) <= set(held_out)  # what the tokens' head was trained on is not there
        for own in found.queries:
            np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, atol=0.02)

    def test_tokens_belong_to_their_texts(self, shipped):
        found = tokens.load_tokens(len(shipped.pairs))
        scores = found.documents.score(found.queries)
        best = scores.argmax(axis=1)
        assert (best == found.rows).mean() > 0.25
        assert (best == np.roll(found.rows, 1)).mean() < 0.05

    @pytest.mark.parametrize("name", [tokens.DOCUMENTS_FILE, tokens.QUERIES_FILE])
    def test_one_changed_byte_is_found(self, folder, name):
        path = folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(jsonl.CorpusError, match=f"{name} has another SHA-256"):
            tokens.load_tokens(2079, folder)

    def test_missing_file(self, folder):
        (folder / tokens.DOCUMENTS_FILE).unlink()
        with pytest.raises(jsonl.CorpusError, match="damaged, reinstall simtile"):
            tokens.load_tokens(2079, folder)

    def test_places(self):
        ids = np.array([[4, 2, 9], [1, 3, 0], [5, 6, 7]])
        np.testing.assert_array_equal(rerank.places(ids, np.array([9, 1, 8]), 50), [2, 0, 50])

    def test_reranking_is_the_order_of_all_scores(self):
        generator = np.random.default_rng(0)
        documents = generator.standard_normal((40, 8)).astype(np.float32)
        own = [generator.standard_normal((n, 6)).astype(np.float32) for n in (3, 5, 1)]
        index = simtile.MultiVectorIndex(6, "float32")
        index.add([generator.standard_normal((4, 6)).astype(np.float32) for _ in documents])
        targets = np.array([0, 1, 2])
        result = rerank.measure(documents[:3], own, targets, documents, index, threads=1)
        scores = index.score(own)
        wanted = (scores > scores[np.arange(3), targets][:, None]).sum(axis=1)
        np.testing.assert_array_equal(result.reranked, wanted)
        np.testing.assert_array_equal(result.everything, wanted)
        np.testing.assert_array_equal(result.searched, 0)  # the documents are the queries

    def test_a_wrong_order_is_found(self, capsys):
        places = np.zeros(3, np.int64)
        result = rerank.Reranked(places, places + 2, places + 1, 1.0, 1.0, 1.0)
        assert "stands behind" in rerank.report(show.make_console(), 4, result, "")
        assert rerank.report(show.make_console(), 4, result._replace(reranked=places), "") == ""


class TestRetrieval:
    def test_ranks_and_recall(self):
        documents = np.array([[1, 0], [0, 1], [1, 1], [-1, 0]], np.float32)
        queries = np.array([[2, 0.1], [2, 0.1], [2, 0.1], [2, 0.1]], np.float32)
        found = retrieval.ranks(queries, documents, np.array([0, 1, 2, 3]))
        assert found.tolist() == [0, 2, 1, 3]
        assert retrieval.recall_at(1, found) == 0.25
        assert retrieval.recall_at(3, found) == 0.75

    def test_ties_go_to_the_lower_id(self):
        documents = np.ones((5, 3), np.float32)
        found = retrieval.ranks(np.ones((5, 3), np.float32), documents, np.arange(5))
        assert found.tolist() == [0, 1, 2, 3, 4]

    def test_nan_is_no_success(self):
        documents = np.eye(4, dtype=np.float32)
        queries = np.eye(4, dtype=np.float32)
        queries[2] = np.nan
        assert retrieval.ranks(queries, documents, np.arange(4)).tolist() == [0, 0, 3, 0]

    def test_blocks_agree(self):
        generator = np.random.default_rng(0)
        queries, documents = generator.standard_normal((2, 57, 5)).astype(np.float32)
        targets = generator.integers(0, 57, 57)
        whole = retrieval.ranks(queries, documents, targets)
        assert retrieval.ranks(queries, documents, targets, block=10).tolist() == whole.tolist()

    def test_paired_standard_error(self):
        before = np.array([0, 0, 1, 1], bool)
        after = np.array([1, 0, 1, 1], bool)
        # differences 1 0 0 0: standard deviation 0.5, over the root of 4
        assert retrieval.paired_standard_error(before, after) == pytest.approx(0.25)
        assert np.isnan(retrieval.paired_standard_error(before[:1], after[:1]))


class TestAdapter:
    def test_first_adam_step_is_the_learning_rate(self):
        parameter = np.zeros(3, np.float32)
        adapter.Adam(parameter, 0.1).step(np.array([5, -0.01, 0], np.float32))
        np.testing.assert_allclose(parameter, [-0.1, 0.1, 0], atol=1e-5)

    def test_adam_finds_a_minimum(self):
        parameter = np.array([3.0, -2.0], np.float32)
        optimizer = adapter.Adam(parameter, 0.05)
        for _ in range(500):
            optimizer.step(2 * (parameter - np.array([1, 1], np.float32)))
        np.testing.assert_allclose(parameter, 1, atol=1e-2)

    def test_split_is_a_partition(self):
        training, held_out = adapter.split(100, 30, seed=0)
        assert len(held_out) == 30
        assert sorted([*training, *held_out]) == list(range(100))
        assert adapter.split(100, 30, seed=0)[1].tolist() == held_out.tolist()
        assert adapter.split(100, 30, seed=1)[1].tolist() != held_out.tolist()

    def test_training_learns_a_rotation(self):
        generator = np.random.default_rng(0)
        documents = generator.standard_normal((200, 16)).astype(np.float32)
        rotation, _ = np.linalg.qr(generator.standard_normal((16, 16)))
        queries = (documents @ rotation).astype(np.float32)
        seen = []
        weight, losses = adapter.train_adapter(
            queries[:150],
            documents[:150],
            steps=200,
            learning_rate=2e-2,
            threads=1,
            on_step=lambda number, loss: seen.append((number, loss)),
        )
        assert seen == list(enumerate(losses, 1))
        assert losses[-1] < 0.1 * losses[0]
        targets = np.arange(150, 200)
        assert retrieval.recall_at(1, retrieval.ranks(queries[150:], documents, targets)) < 0.2
        assert (
            retrieval.recall_at(1, retrieval.ranks(queries[150:] @ weight, documents, targets))
            > 0.8
        )

    @pytest.mark.slow
    def test_demo_settings_improve_held_out_recall(self, shipped):
        training, held_out = adapter.split(len(shipped.pairs), adapter.HELD_OUT, seed=0)
        weight, _ = adapter.train_adapter(shipped.queries[training], shipped.documents[training])
        queries = shipped.queries[held_out]
        before = retrieval.ranks(queries, shipped.documents, held_out)
        after = retrieval.ranks(queries @ weight, shipped.documents, held_out)
        assert retrieval.recall_at(10, after) > retrieval.recall_at(10, before) + 0.02


class TestStep:
    def test_numpy_step_is_the_same_loss(self):
        queries, documents = step.make_inputs(37, 11, seed=1)
        loss, *gradients = step.numpy_step(queries, documents, 0.05)
        expected, *expected_gradients = simtile.info_nce_grad(
            queries.astype(np.float64), documents.astype(np.float64), temperature=0.05
        )
        assert loss == pytest.approx(expected, rel=1e-5)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(gradient, wanted, atol=2e-5 * np.abs(wanted).max())

    def test_processes_agree_and_only_one_needs_the_matrix(self):
        pairs = 4096
        options = {"pairs": pairs, "dim": 64, "seed": 0, "threads": 2}
        plain = step.run_step("numpy", **options)
        fused = step.run_step("simtile", **options)
        assert fused.loss == pytest.approx(plain.loss, rel=1e-5)
        assert fused.rows.shape == (2 * step.SAMPLED_ROWS, 64)
        assert step.largest_difference(fused, plain) < 1e-4
        matrix = 4 * pairs * pairs
        assert matrix < plain.memory < step.numpy_step_bytes(pairs, 64) + 20e6
        assert fused.memory < matrix / 2

    def test_difference_sees_a_wrong_gradient(self):
        rows = np.ones((4, 3), np.float32)
        right = step.StepResult(1, 1, 1, rows)
        wrong = step.StepResult(1, 1, 1, rows * np.float32(1.01))
        assert step.largest_difference(right, right) == 0
        assert step.largest_difference(wrong, right) == pytest.approx(0.01, rel=1e-3)

    def test_failures_say_why(self, monkeypatch):
        options = {"dim": 8, "seed": 0, "threads": 1}
        with pytest.raises(step.StepFailed, match="invalid choice: 'torch'"):
            step.run_step("torch", pairs=8, **options)
        monkeypatch.setattr(step, "TIMEOUT_S", 0.01)
        with pytest.raises(step.StepFailed, match="did not finish"):
            step.run_step("numpy", pairs=8, **options)

    def test_killed_process(self, monkeypatch):
        command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
        run = subprocess.run
        monkeypatch.setattr(step.subprocess, "run", lambda _, **options: run(command, **options))
        with pytest.raises(step.StepFailed, match="ended by signal 9"):
            step.run_step("numpy", pairs=8, dim=8, seed=0, threads=1)


class TestSearch:
    def test_exact_ids(self):
        documents = np.array([[1, 0], [0, 2], [1, 1], [3, 0]], np.float32)
        found = search.exact_ids(np.array([[5, 0.1]], np.float32), documents, 3)
        assert found.tolist() == [[0, 3, 2]]

    def test_overlap(self):
        exact = np.array([[1, 2], [3, 4]])
        assert search.overlap(exact, exact[:, ::-1]) == 1
        assert search.overlap(exact, np.array([[1, 9], [8, 9]])) == 0.25

    def test_forms_of_real_text(self, shipped):
        seen = []
        found = search.measure(
            shipped.queries[:200],
            shipped.documents,
            threads=2,
            copies=1,
            on_form=lambda _, name: seen.append(name),
        )
        by_name = {one.name: one for one in found}
        assert seen == list(by_name)
        assert by_name["float32"].overlap == 1
        assert by_name["float32"].bytes == 4 * 384
        assert 383 < by_name["int8"].bytes < 400
        assert by_name["int8"].overlap > 0.98
        assert by_name["int4"].overlap > 0.9
        cascade = by_name[search.cascade_name()]
        assert by_name["binary, Hamming"].overlap < 0.8 < 0.98 < cascade.overlap
        assert all(one.seconds > 0 for one in found)


class TestMemory:
    @pytest.fixture
    def cgroup(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            machine, "CGROUP_FILES", ((tmp_path, "memory.max", "memory.current", "inactive_file"),)
        )
        (tmp_path / "memory.current").write_text("900000\n")
        (tmp_path / "memory.stat").write_text("anon 700000\ninactive_file 200000\n")
        return tmp_path

    def test_cgroup_limit_without_its_file_cache(self, cgroup):
        (cgroup / "memory.max").write_text("1000000\n")
        assert machine.available_memory() == 300_000

    def test_no_cgroup_limit(self, cgroup):
        (cgroup / "memory.max").write_text("max\n")
        available = machine.available_memory()
        assert available is None or available > 10_000_000

    def test_the_plain_step_is_not_tried_where_it_cannot_fit(self, monkeypatch):
        monkeypatch.setattr(machine, "available_memory", lambda: 1_000_000_000)
        reason = run.does_not_fit(step.PAIRS)
        assert reason == "needs 1.3 GB; this machine has 1.0 GB free; not run"
        monkeypatch.setattr(machine, "available_memory", lambda: 10_000_000_000)
        assert run.does_not_fit(step.PAIRS) == ""
        monkeypatch.setattr(machine, "available_memory", lambda: None)
        assert run.does_not_fit(step.PAIRS) == ""


class TestWholeRun:
    """`simtile demo` at small settings, with torch hidden."""

    def demo(self, *arguments, monkeypatch=None, capsys=None):
        monkeypatch.setitem(sys.modules, "torch", None)
        status = cli.main(["demo", "--quick", *map(str, arguments)])
        return status, capsys.readouterr().out

    def test_everything_is_shown(self, tmp_path, monkeypatch, capsys):
        status, shown = self.demo(
            "--output", tmp_path / "new", "--threads", 2, monkeypatch=monkeypatch, capsys=capsys
        )
        assert status == 0
        words = " ".join(shown.split())  # lines end where the name of the level has them end
        assert words.startswith(f"simtile {simtile.__version__} · {simtile.cpu_info()['level']}")
        assert "2 threads (from --threads) · no torch found" in words
        for text in ("quick run", "recall@1 ", "recall@10", "plain NumPy", "Same result", "Done:"):
            assert text in shown
        for name in (*[form[0] for form in search.FORMS], search.cascade_name(), "overlap@10"):
            assert name in shown
        for plot in (run.PLOT, run.SEARCH_PLOT):
            image = (tmp_path / "new" / plot).read_bytes()
            assert image.startswith(b"\x89PNG")
            assert len(image) > 10_000

    def test_a_wheel_has_no_token_vectors(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(tokens, "MANIFEST_FILE", "not there")
        status, shown = self.demo("--output", tmp_path, monkeypatch=monkeypatch, capsys=capsys)
        assert status == 0
        assert "token vectors are not part of a wheel" in " ".join(shown.split())
        assert "reranked by MaxSim" not in shown

    def test_without_room_for_the_plain_step(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(machine, "available_memory", lambda: 1_000_000)
        status, shown = self.demo("--output", tmp_path, monkeypatch=monkeypatch, capsys=capsys)
        assert status == 0
        assert "plain NumPy: needs 0.0 GB; this machine has 0.0 GB free" in shown
        assert "plain NumPy did not run" in " ".join(shown.split())
        assert (tmp_path / run.PLOT).exists()

    def test_disagreement_fails(self, tmp_path, monkeypatch, capsys):
        measured = step.run_step

        def wrong(method, **options):
            result = measured(method, **options)
            scale = np.float32(1.01 if method == "simtile" else 1)
            return dataclasses.replace(result, rows=scale * result.rows)

        monkeypatch.setattr(step, "run_step", wrong)
        status, shown = self.demo("--output", tmp_path, monkeypatch=monkeypatch, capsys=capsys)
        assert status == 1
        assert "FAILED: the two steps do not agree" in shown
        assert "Done" not in shown

    def test_wrong_search_fails(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(search, "overlap", lambda exact, found: 0.99)
        status, shown = self.demo("--output", tmp_path, monkeypatch=monkeypatch, capsys=capsys)
        assert status == 1
        assert "FAILED: float32 search finds 0.990 of the nearest documents" in shown

    def test_failing_step_fails(self, tmp_path, monkeypatch, capsys):
        def fail(method, **options):
            raise step.StepFailed("was ended by signal 9")

        monkeypatch.setattr(step, "run_step", fail)
        status, shown = self.demo("--output", tmp_path, monkeypatch=monkeypatch, capsys=capsys)
        assert status == 1
        assert "FAILED: the step with simtile was ended by signal 9" in shown

    def test_folder_that_cannot_be_written(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir("/proc")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        status, shown = self.demo(monkeypatch=monkeypatch, capsys=capsys)
        assert status == 0
        assert "/proc is not writable: the plot goes to" in shown
        assert len(list(tmp_path.glob(f"simtile-*/{run.PLOT}"))) == 1

    @pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
    def test_narrow_windows_and_plain_encodings(self, tmp_path, encoding):
        done = subprocess.run(
            [sys.executable, "-m", "simtile.cli", "demo", "--quick", "--output", str(tmp_path)],
            env={**os.environ, "COLUMNS": "40", "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=True,
        )
        lines = done.stdout.decode(encoding).splitlines()
        assert lines[-1].strip()
        # the plot's path is kept whole, so that it can be copied
        assert max(len(line) for line in lines if not line.startswith("Plot: ")) <= 40
        assert done.stderr == b""
