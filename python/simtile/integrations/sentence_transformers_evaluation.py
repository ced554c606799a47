"""sentence-transformers' evaluators of retrieval over simtile: same arguments, files and results.

``from simtile.integrations.sentence_transformers_evaluation import InformationRetrievalEvaluator``
in place of the import from ``sentence_transformers.sentence_transformer.evaluation``. The class is
a subclass of the original, whose metrics it calls; only the search is simtile's, which never stores
the matrix of scores. ``docs/sentence-transformers.md`` has every difference.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers.sentence_transformer import evaluation as original
from tqdm import trange  # type: ignore[import-untyped]

from simtile import _tensors
from simtile.integrations._embeddings import common, dense
from simtile.search import Metric, merge_topk, topk

__all__ = ["InformationRetrievalEvaluator", "NanoBEIREvaluator"]

Array = npt.NDArray[Any]
Found = tuple[Array, Array]  # scores [Q, k], places in the order of the corpus' ids [Q, k]

logger = logging.getLogger(__name__)

FUNCTIONS: dict[str, Metric] = {
    "cos_sim": "cosine",
    "pytorch_cos_sim": "cosine",
    "dot_score": "dot",
    "euclidean_sim": "l2",
}
# of a model's similarity_fn_name
NAMES: dict[str, Metric] = {"cosine": "cosine", "dot": "dot", "euclidean": "l2"}


class InformationRetrievalEvaluator(original.InformationRetrievalEvaluator):
    """``sentence_transformers.sentence_transformer.evaluation.InformationRetrievalEvaluator``.

    Equal scores come lowest corpus id first, as in the original. Embeddings on a CUDA device are
    searched there, others on the CPU.

    Raises
    ------
    ValueError
        When called: no query has a relevant document; a score function is none of ``util.cos_sim``,
        ``util.dot_score`` and ``util.euclidean_sim``, and no model's ``similarity`` that is one of
        them; a query's embedding has NaN.

    Examples
    --------
    >>> evaluator = InformationRetrievalEvaluator(
    ...     queries={"q": "a question"},
    ...     corpus={"a": "its answer", "b": "something else"},
    ...     relevant_docs={"q": {"a"}},
    ...     name="mine",
    ... )
    >>> evaluator(model)["mine_cosine_accuracy@1"]
    1.0
    """

    def compute_all_metrics(
        self,
        model: Any,
        corpus_model: Any = None,
        corpus_embeddings: Any = None,
        output_path: str | None = None,
    ) -> dict[str, Any]:
        functions = self.score_functions or {}
        metrics = {name: _metric_of(name, function) for name, function in functions.items()}
        if not self.queries:
            raise ValueError("queries: found none with a relevant document, expected at least one")
        found = self._search(model, corpus_model or model, corpus_embeddings, metrics)
        hits = {name: self._hits(*found[name], metric) for name, metric in metrics.items()}
        if self.write_predictions and output_path is not None:
            self._write_predictions(hits, Path(output_path))
        logger.info("Queries: %d", len(self.queries))
        logger.info("Corpus: %d\n", len(self.corpus))
        scores: dict[str, Any] = {
            name: self.compute_metrics(of_name) for name, of_name in hits.items()
        }
        for name in self.score_function_names:
            logger.info("Score-Function: %s", name)
            self.output_scores(scores[name])  # type: ignore[no-untyped-call]
        return scores

    # What older callers call it.
    compute_metrices = compute_all_metrics

    def _search(
        self, model: Any, corpus_model: Any, corpus_embeddings: Any, metrics: dict[str, Metric]
    ) -> dict[str, Found]:
        """The best of the corpus by every score function, a chunk of it encoded at a time."""
        k = max(
            *self.mrr_at_k,
            *self.ndcg_at_k,
            *self.accuracy_at_k,
            *self.precision_recall_at_k,
            *self.map_at_k,
        )
        queries = self.embed_inputs(
            model,
            self.queries,
            encode_fn_name="query",
            prompt_name=self.query_prompt_name,
            prompt=self.query_prompt,
        )
        ranks = self.get_corpus_id_ranks().numpy()
        found: dict[str, Found] = {}
        step = self.corpus_chunk_size
        for begin in trange(
            0, len(self.corpus), step, desc="Corpus Chunks", disable=not self.show_progress_bar
        ):
            if corpus_embeddings is None:
                chunk = self.embed_inputs(
                    corpus_model,
                    self.corpus[begin : begin + step],
                    encode_fn_name="document",
                    prompt_name=self.corpus_prompt_name,
                    prompt=self.corpus_prompt,
                )
            else:
                chunk = _rows(corpus_embeddings, begin, min(begin + step, len(self.corpus)))
            of_chunk = ranks[begin : begin + step]
            for name, metric in metrics.items():
                best = _best(queries, chunk, of_chunk, k, metric)
                if name in found:
                    best = merge_topk([found[name], best], metric=metric, k=k)
                found[name] = best
        return found

    def _hits(self, scores: Array, places: Array, metric: Metric) -> list[Any]:
        """For each query a list of what was found, as the original's metrics expect it."""
        ids = sorted(self.corpus_ids)
        if metric == "l2":
            scores = -np.sqrt(scores.astype(np.float64))
        return [
            [
                {"corpus_id": ids[place], "score": score}
                for place, score in zip(of_query, its_scores, strict=True)
                if place >= 0
            ]
            for of_query, its_scores in zip(places.tolist(), scores.tolist(), strict=True)
        ]

    def _write_predictions(self, hits: dict[str, list[Any]], folder: Path) -> None:
        """A file of lines for every score function, with what was found for each query."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, of_name in hits.items():
            path = folder / self.predictions_file.replace(".jsonl", f"_{name}.jsonl")
            with path.open("w", encoding="utf-8") as lines:
                for id, query, results in zip(self.queries_ids, self.queries, of_name, strict=True):
                    line = {"query_id": id, "query": query, "results": results}
                    lines.write(json.dumps(line) + "\n")


class NanoBEIREvaluator(original.NanoBEIREvaluator):
    """``sentence_transformers.sentence_transformer.evaluation.NanoBEIREvaluator``.

    Each of its datasets is evaluated by this module's `InformationRetrievalEvaluator`.
    """

    information_retrieval_class = InformationRetrievalEvaluator


def _metric_of(name: str, function: Callable[..., Any]) -> Metric:
    owner = getattr(function, "__self__", None)
    found = None
    if owner is not None and getattr(function, "__name__", "") == "similarity":
        found = NAMES.get(str(getattr(owner, "similarity_fn_name", "")))
    elif str(getattr(function, "__module__", "")).startswith("sentence_transformers."):
        found = FUNCTIONS.get(getattr(function, "__name__", ""))
    if found is None:
        raise ValueError(
            f"score_functions[{name!r}]: found {function!r}, expected cos_sim, dot_score or "
            "euclidean_sim of sentence_transformers.util, or the similarity of a model that has "
            "one of them: other functions would need every score, which sentence-transformers' own "
            "evaluator computes"
        )
    return found


def _rows(embeddings: Any, begin: int, end: int) -> Any:
    if _tensors.is_tensor(embeddings):
        embeddings = dense("corpus_embeddings", embeddings)
    if len(embeddings) < end:
        raise ValueError(
            f"corpus_embeddings: found {len(embeddings)} rows, expected one for each document of "
            f"the corpus, of which document {end - 1} has none"
        )
    return embeddings[begin:end]


def _best(queries: Any, chunk: Any, ranks: Array, k: int, metric: Metric) -> Found:
    """The best of a chunk; documents in the order of their ids, so that this decides ties."""
    if _tensors.is_tensor(chunk) and chunk.device.type not in ("cpu", "cuda"):
        chunk = chunk.cpu()
    queries, documents = common(queries, chunk)
    order = np.argsort(ranks)
    if (order[1:] > order[:-1]).all():
        ordered = documents
    elif _tensors.is_tensor(documents):
        ordered = documents[_tensors.as_tensor(order, documents.device)]
    else:
        ordered = documents[order]
    scores, rows = map(_tensors.as_array, topk(queries, ordered, k, metric=metric))
    return scores, np.where(rows < 0, -1, ranks[order][rows])
