"""From raw text to served evidence: `python examples/retrieval.py`.

Docstrings of Python's standard library are encoded by MiniLM (a pass for all: token vectors, pooled
vectors), an adapter is trained on some pairs, the others are searched: a binary, then int8 cascade,
reranked by late interaction or a joint encoder within a latency budget, behind a gate that serves
approved documents only. Ends in report.html, which has everything measured, with plots. Under three
minutes on two cores. Needs `pip install 'simtile[train,metrics]'`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import retrieval_encoders as encoders
import retrieval_report as report
from retrieval_pipeline import (
    APPROVED,
    ATTACKS,
    GOOD_CASES,
    UNAPPROVED,
    Budget,
    Pipeline,
    served_right,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import simtile
from simtile import metrics
from simtile.demo import docstrings, minilm

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Row = Sequence[str]

TOKENS = 64  # of a text
OVERSAMPLE = 4.0  # of the binary stage
CANDIDATES = 100  # of the search
JOINT_QUERIES = 30  # that the joint encoder is tried on
JOINT_PAIRS = 150  # that its head is trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=1200, help="pairs of texts")
    parser.add_argument("--queries", type=int, default=200, help="of these held out from training")
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    arguments = parser.parse_args()
    console = Console()
    began = time.perf_counter()
    try:
        model = minilm.load_model(minilm.find_model())
    except minilm.MissingModel as error:
        sys.exit(f"{error}")
    model.max_seq_length = TOKENS

    pairs = docstrings.clean(docstrings.docstring_pairs(docstrings.standard_library()))
    chosen = np.random.default_rng(0).permutation(len(pairs))[: arguments.documents]
    queries = encoders.MINILM.queries([pairs[i].query for i in chosen])
    # The notes of the gate are documents among the others.
    texts = encoders.MINILM.documents([pairs[i].document for i in chosen])
    texts += [*APPROVED, *UNAPPROVED]
    held_out = np.arange(min(arguments.queries, len(queries) // 2))
    training = np.arange(len(held_out), len(queries))

    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console,
    ) as progress:  # fmt: skip
        found = []
        for name, some in (("encoding documents", texts), ("encoding queries", queries)):
            task = progress.add_task(name, total=len(some))
            found.append(encoders.encode(model, some, partial(progress.advance, task)))
        of_texts, of_queries = found

        weights, sets = train(of_queries, of_texts, training, held_out)
        weight = weights["mean"]
        vectors = encoders.unit(of_texts.mean @ weight)
        query_vectors = encoders.unit(of_queries.mean[held_out] @ weight)

        tokens_of: dict[str, Floats] = {}  # of the last query: encoded once for both stages

        def encode(some: Sequence[str]) -> Floats:
            encoded = encoders.encode(model, some)
            tokens_of.clear()
            tokens_of.update(zip(some, encoded.tokens, strict=True))
            return encoders.unit(encoded.mean @ weight)

        index = simtile.CascadeIndex(vectors.shape[1], ("binary", "int8"), oversample=(OVERSAMPLE,))
        index.add(vectors)
        late = simtile.MultiVectorIndex(vectors.shape[1], "int8", normalize=True)
        late.add(of_texts.tokens)

        def late_interaction(query: str, ids: Int64s) -> Floats:
            scores: Floats = late.score([tokens_of[query]], ids=ids[None])[0]
            return scores

        task = progress.add_task("training the joint encoder", total=None)
        joint = encoders.JointEncoder(model)
        learned = training[:JOINT_PAIRS]
        joint.fit([queries[i] for i in learned], [texts[i] for i in learned])
        pair_ms = milliseconds_of_a_pair(joint, queries, texts)
        budget = Budget(pair=pair_ms)
        progress.update(task, total=1, completed=1)

        def joint_encoder(query: str, ids: Int64s) -> Floats:
            return joint(query, [texts[i] for i in ids])

        pipelines = {
            "bi-encoder": Pipeline(encode, index),
            "late interaction": Pipeline(encode, index, late_interaction),
            "joint encoder": Pipeline(encode, index, joint_encoder, pairs=budget.pairs()),
        }
        runs: dict[str, list[list[int]]] = {}
        for name, pipeline in pipelines.items():
            asked = held_out[:JOINT_QUERIES] if name == "joint encoder" else held_out
            task = progress.add_task(f"searching: {name}", total=len(asked))
            runs[name] = []
            for i in asked:
                runs[name].append(pipeline(queries[i], CANDIDATES).ids)
                progress.advance(task)

    stored = {
        "bi-encoder": index.nbytes / len(texts),
        "late interaction": (index.nbytes + late.nbytes) / len(texts),
        "joint encoder": index.nbytes / len(texts) + np.mean([len(t.encode()) for t in texts]),
    }
    sections = [
        prompts_section(queries[0], texts[0]),
        geometry_section(sets),
        bytes_section(query_vectors, vectors, held_out),
        stages_section(query_vectors, vectors, index, late, of_queries, held_out, pipelines),
        comparison_section(runs, pipelines, stored, held_out),
        budget_section(budget),
        gate_section(encode, index, texts),
    ]
    for section in sections:
        console.rule(section.title)
        console.print(section.text)
        for header, rows in section.tables:
            show(console, header, rows)
    took = time.perf_counter() - began
    note = (
        f"{len(texts)} documents, {len(held_out)} held-out queries, "
        f"{simtile.cpu_info()['threads']} threads, {took:.0f} s in all. "
        f"MiniLM reads {TOKENS} tokens."
    )
    report.write(arguments.output, "Retrieval with simtile", note, sections)
    console.print(f"{note} The report: {arguments.output}")


def train(
    of_queries: encoders.Encoded,
    of_texts: encoders.Encoded,
    training: Int64s,
    held_out: Int64s,
) -> tuple[dict[str, Floats], dict[str, tuple[Floats, Floats]]]:
    """An adapter for either pooling, and the held-out pairs before and after."""
    weights: dict[str, Floats] = {}
    sets: dict[str, tuple[Floats, Floats]] = {}
    for how in ("cls", "mean"):
        q, d = getattr(of_queries, how), getattr(of_texts, how)
        weights[how], _ = encoders.train_adapter(q[training], d[training])
        sets[f"{how}, as it is"] = q[held_out], d[held_out]
        w = weights[how]
        sets[f"{how}, trained"] = encoders.unit(q[held_out] @ w), encoders.unit(d[held_out] @ w)
    return weights, sets


def prompts_section(query: str, document: str) -> report.Section:
    instruction = "Represent the question for retrieving supporting documents: "
    rows = [
        ("MiniLM", *encoders.MINILM.queries([query]), *encoders.MINILM.documents([document])),
        ("E5", *encoders.E5.queries([query]), *encoders.E5.documents([document])),
        (
            "INSTRUCTOR",
            str(encoders.instructor(instruction, [query])[0]),
            str(encoders.instructor("Represent the document for retrieval: ", [document])[0]),
        ),
    ]
    short = [[text if len(text) < 120 else text[:117] + "…" for text in row] for row in rows]
    return report.Section(
        "What is encoded",
        "Models want texts as they were trained. This report's is MiniLM, which has no prompt.",
        [(("model", "query", "document"), short)],
    )


def geometry_section(sets: dict[str, tuple[Floats, Floats]]) -> report.Section:
    rows = []
    for row in metrics.geometry(sets):
        q, d = sets[row.name]
        ids = simtile.topk(q, d, 10)[1]
        recall = metrics.evaluate(ids, np.arange(len(q)), ["recall@1", "recall@10"])
        rows.append((row.name, *(f"{x:.3f}" for x in (*row[1:], *recall.values()))))
    header = ("pooling", "alignment", "uniformity", "anisotropy", "recall@1", "recall@10")
    return report.Section(
        "What pooling and training do to the geometry",
        "MiniLM was trained with the mean of its tokens; its first token ([CLS]) was not, as in a "
        "model that nobody tuned: all texts point in one direction (anisotropy is their mean "
        "cosine), and what is near is near to everything. A linear adapter trained by InfoNCE "
        "spreads them out. Recall is among the held-out documents alone.",
        [(header, rows)],
        [report.geometry_plot(sets)],
    )


def bytes_section(queries: Floats, vectors: Floats, relevant: Int64s) -> report.Section:
    rows = metrics.quality_by_bytes(
        queries, vectors, relevant=relevant, measures=("recall@10", "ndcg@10")
    )
    return report.Section(
        "Quality against bytes",
        "The same vectors stored in fewer bytes; overlap is with the ten best of exact search.",
        [report.rows_of(rows)],
        [metrics.plot_quality(rows, measure="recall@10")],
    )


def stages_section(
    queries: Floats,
    vectors: Floats,
    index: simtile.CascadeIndex,
    late: simtile.MultiVectorIndex,
    of_queries: encoders.Encoded,
    relevant: Int64s,
    pipelines: dict[str, Pipeline],
) -> report.Section:
    """Who has lost the right document when: what one stage misses no later one can find."""
    handed = min(int(OVERSAMPLE * CANDIDATES), len(vectors))
    bits = simtile.FlatIndex(vectors.shape[1], "binary")
    bits.add(vectors)
    first = bits.search(queries, handed)[1]
    kept = index.search(queries, min(CANDIDATES, len(vectors)))[1]
    scores = late.score([of_queries.tokens[i] for i in relevant], ids=kept)
    served = np.take_along_axis(kept, np.argsort(-scores, axis=1, kind="stable"), axis=1)[:, :10]
    ms = pipelines["late interaction"].median_ms()
    rows = []
    for name, ids, time_ms in (
        (f"bits, best {first.shape[1]}", first, None),
        (f"int8, best {kept.shape[1]}", kept, ms["search"]),
        ("late interaction, best 10", served, ms["rerank"]),
    ):
        cutoff = f"recall@{ids.shape[1]}"
        recall = metrics.evaluate(ids, relevant, [cutoff])[cutoff]
        rows.append((name, f"{recall:.3f}", "" if time_ms is None else f"{time_ms:.2f} ms"))
    return report.Section(
        "Recall and time by stage",
        "The share of queries whose document is still there. A reranker only puts what it is given "
        "in a new order: where the search has lost the document, give it more candidates or better "
        "vectors, not a better reranker. The time of int8 is that of both search stages.",
        [(("stage", "recall", "time a query"), rows)],
    )


def comparison_section(
    runs: dict[str, list[list[int]]],
    pipelines: dict[str, Pipeline],
    stored: dict[str, Any],
    relevant: Int64s,
) -> report.Section:
    rows, times = [], {}
    for name, lists in runs.items():
        times[name] = pipelines[name].median_ms()
        wanted = ["recall@1", "recall@10", "mrr@10", "ndcg@10"]
        found = metrics.evaluate(np.array(lists), relevant[: len(lists)], wanted)
        total = sum(times[name].values())
        rows.append(
            (name, f"{total:.1f} ms", *(f"{x:.3f}" for x in found.values()),
             f"{stored[name]:,.0f}", str(len(lists)))
        )  # fmt: skip
    header = ("", "time a query", "recall@1", "recall@10", "mrr@10", "ndcg@10", "bytes a document",
              "queries")  # fmt: skip
    return report.Section(
        "Bi-encoder, late interaction, joint encoder",
        "One query at a time, encoding included. A bi-encoder stores one vector, late interaction "
        "one for each token, a joint encoder (cross-encoder) the text. The joint encoder's head "
        f"was trained here on {JOINT_PAIRS} pairs: its time is that of a real one of this size, "
        "its quality is not.",
        [(header, rows)],
        [report.time_plot(times)],
    )


def budget_section(budget: Budget) -> report.Section:
    rows = []
    for name, one in (
        ("40 ms for search and overhead", Budget()),
        ("5 ms for search and overhead", Budget(search=5.0)),
        ("the joint encoder measured here", budget),
    ):
        hours = one.hours_for(2_000_000)
        rows.append((name, f"{one.pair:.1f} ms", str(one.pairs()), f"{hours:.1f} hours"))
    return report.Section(
        "How many pairs a budget has time for",
        "Of 200 ms 10 are for encoding the query. What the search does not take, the reranker may.",
        [(("", "a pair", "pairs", "2M documents instead"), rows)],
    )


def gate_section(encode: Any, index: simtile.CascadeIndex, texts: Sequence[str]) -> report.Section:
    refused = {texts.index(note) for note in UNAPPROVED}
    approved = [i for i in range(len(texts)) if i not in refused]
    least = 0.5
    gated = Pipeline(encode, index, least_similarity=least, approved=approved)
    open_ = Pipeline(encode, index, least_similarity=least)
    good = served_right(gated, GOOD_CASES, texts)
    attacks = served_right(gated, ATTACKS, texts)
    without = served_right(open_, ATTACKS, texts)
    rows = [
        ("answered from an approved note", f"{sum(good)} of {len(good)}"),
        ("attack, gate closed: nothing served", f"{sum(attacks)} of {len(attacks)}"),
        ("attack, no gate: nothing served", f"{sum(without)} of {len(without)}"),
    ]
    if not all(good) or not all(attacks):
        sys.exit(f"the gate failed: {rows}")
    return report.Section(
        "Approved evidence only",
        "Two notes were planted that nobody approved. `allow` keeps them out of every stage of the "
        f"search, and below a cosine of {least} nothing is served: a question that only a planted "
        "note answers gets no answer.",
        [(("case", "as it should be"), rows)],
    )


def milliseconds_of_a_pair(
    joint: encoders.JointEncoder, queries: Sequence[str], texts: Sequence[str]
) -> float:
    times = []
    for i in range(5):
        start = time.perf_counter()
        joint(queries[i], texts[:10])
        times.append((time.perf_counter() - start) / 10)
    return 1e3 * float(np.median(times))


def show(console: Console, header: Row, rows: Sequence[Row]) -> None:
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
