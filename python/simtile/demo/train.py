"""``simtile demo --train``: embed real text, train a head with the torch op, time the loss."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

import simtile
from simtile.demo import cache, machine, minilm, plots, rerank, show, step
from simtile.demo.retrieval import recall_at
from simtile.demo.run import GRADIENT_TOLERANCE, Options, Ranks
from simtile.demo.texts import MINIMUM_DOCUMENTS, Texts, read_texts, shortened, split

if TYPE_CHECKING:
    from torch import Tensor

    from simtile.demo import head

PLOT = "simtile-demo-train.png"
LARGE_BATCH = 8192
DOCUMENT_TOKENS, QUERY_TOKENS = 64, 32

FloatArray = npt.NDArray[np.float32]


def run_training(options: Options, corpus: Path | None, console: Console | None = None) -> int:
    """Run the demo; return 0 if the fused loss gave the gradients that eager PyTorch gives.

    Raises
    ------
    MissingModel, CorpusError, OutputError
        Something to work with is missing or unusable; the message says what to do.
    """
    started = time.perf_counter()
    console = console or show.make_console()
    if importlib.util.find_spec("torch") is None:
        raise minilm.MissingModel(f"torch is not installed; {minilm.INSTALL}")
    model_folder = minilm.find_model()
    folder, notice = show.output_folder(options.output)
    console.print(Text(machine.first_line(options.threads, "used here"), style="bold"))
    if notice:
        console.print(notice, style="yellow")
    if options.quick:
        console.print("quick run: few pairs and steps, so the numbers mean little", style="yellow")
    import torch

    threads = options.threads or int(simtile.cpu_info()["threads"])
    torch.set_num_threads(threads)

    show.section(console, 1, "Texts and their embeddings")
    texts = read_texts(console, corpus)
    if options.quick:
        texts = shortened(texts, 2 * MINIMUM_DOCUMENTS)
    queries, documents = embeddings(console, texts, model_folder)
    problem, line = train_and_time(
        console, options, threads, texts, queries, documents, folder / PLOT
    )
    wrong, reranked = report_reranking(
        console, options, threads, texts, queries, documents, model_folder
    )
    problem, line = problem or wrong, line + reranked
    console.print()
    if problem:
        console.print(f"FAILED: {problem}", style="bold red")
        return 1
    console.print(f"{line} ({time.perf_counter() - started:.0f} s in all)", style="bold green")
    return 0


def embeddings(console: Console, texts: Texts, model_folder: Path) -> tuple[FloatArray, FloatArray]:
    """Embeddings of queries and documents from the cache, or from the model and into the cache."""
    key = cache.cache_key(minilm.weights_digest(model_folder), texts.queries, texts.documents)
    path = cache.cache_folder() / f"{texts.label}-{key[:16]}.npz"
    try:
        found = cache.load(path, key, len(texts.queries), len(texts.documents))
    except cache.BadCache as error:
        console.print(Text(f"{path}: {error}; making it again", style="yellow"), soft_wrap=True)
        found = None
    if found is not None:
        console.print(Text(f"embeddings from {path}"), soft_wrap=True)
        return found

    with console.status("loading MiniLM…"):
        model = minilm.load_model(model_folder)
    both = texts.queries + texts.documents
    with show.progress(console, "embedding with MiniLM", len(both)) as advance:
        vectors = minilm.embed(model, both, lambda count: advance(count, ""))
    queries, documents = vectors[: len(texts.queries)], vectors[len(texts.queries) :]
    try:
        cache.save(path, key, queries, documents)
        console.print(Text(f"kept for the next run in {path}"), soft_wrap=True)
    except OSError as error:
        console.print(
            Text(f"not kept for the next run: {path}: {error.strerror or error}", style="yellow"),
            soft_wrap=True,
        )
    return queries, documents


def report_reranking(
    console: Console,
    options: Options,
    threads: int,
    texts: Texts,
    queries: FloatArray,
    documents: FloatArray,
    model_folder: Path,
) -> tuple[str, str]:
    """Late interaction over the model's own token vectors; what is wrong ("") and the result."""
    rows = split(texts, options.seed)[2]
    model = minilm.load_model(model_folder)
    with show.progress(console, "embedding tokens", len(texts.documents) + len(rows)) as advance:

        def on_done(count: int) -> None:
            advance(count, "")

        tokens = minilm.token_vectors(model, texts.documents, DOCUMENT_TOKENS, on_done)
        own = minilm.token_vectors(model, [texts.queries[i] for i in rows], QUERY_TOKENS, on_done)
    index = simtile.MultiVectorIndex(tokens[0].shape[1], "int8")
    index.add(tokens)
    with console.status("reranking…"):
        result = rerank.measure(
            queries[rows], own, texts.targets[rows], documents, index, threads=threads
        )
    note = (
        f"{len(rows):,} held-out queries, {len(index):,} documents, MiniLM as it is: its vector of "
        f"a text, and the vectors of its first {DOCUMENT_TOKENS} tokens as int8, "
        f"{index.nbytes / len(index):,.0f} bytes a document. ±: {rerank.error(result):.3f}, one "
        "standard error of the change in recall@1."
    )
    return rerank.report(console, 4, result, note), rerank.line(result)


def train_and_time(
    console: Console,
    options: Options,
    threads: int,
    texts: Texts,
    queries: FloatArray,
    documents: FloatArray,
    plot: Path,
) -> tuple[str, str]:
    """Train the head, time its loss, draw the plot; return what is wrong ("") and the result."""
    import torch

    from simtile.demo import head

    q, d = torch.from_numpy(queries), torch.from_numpy(documents)
    training, validation, held_out = split(texts, options.seed)
    show.section(console, 2, "Train a head with simtile.info_nce")
    steps = 20 if options.quick else head.STEPS
    with show.progress(console, "training", steps) as advance:
        trained = head.train_head(
            q,
            d,
            texts.targets,
            training,
            validation,
            steps=steps,
            seed=options.seed,
            threads=threads,
            on_step=lambda loss: advance(1, f"loss {loss:.3f}"),
        )
    console.print(Text(f"loss  {show.sparkline(trained.losses, console)}"))
    targets = texts.targets[held_out]
    before = head.Head(q.shape[1]).ranks(q[held_out], d, targets)
    after = trained.head.ranks(q[held_out], d, targets)
    show.print_table(
        console,
        show.recall_table(before, after),
        f"{len(held_out):,} held-out queries, each against all {len(texts.documents):,} documents. "
        "Before: MiniLM as it is. After: a matrix on each side and the temperature, trained on "
        f"{len(training):,} pairs; step {trained.step} of {steps} was the best on "
        f"{len(validation):,} further pairs. ±: one standard error of the paired difference.",
    )
    show_widths(console, trained.head, q[held_out], d, targets)

    show.section(console, 3, "The same loss beside eager PyTorch")
    with console.status("timing both losses…"):
        query_rows, document_rows, places = head.batch_of(training[: head.BATCH], texts.targets)
        timings = {
            f"this batch, {len(query_rows):,} × {len(document_rows):,}": head.time_losses(
                q[query_rows], d[document_rows], places, threads=threads
            )
        }
        if not options.quick:
            random_queries, random_documents = step.make_inputs(
                LARGE_BATCH, q.shape[1], options.seed
            )
            timings[f"random, {LARGE_BATCH:,} × {LARGE_BATCH:,}"] = head.time_losses(
                torch.from_numpy(random_queries),
                torch.from_numpy(random_documents),
                torch.arange(LARGE_BATCH),
                threads=threads,
            )
    show_timings(console, timings, q.shape[1], threads)
    own = next(iter(timings.values()))
    draw(plot, trained.losses, trained.step, len(training), before, after, len(d), own, threads)
    console.print(Text(f"Plot: {plot}"), soft_wrap=True)

    worst = max(timing.difference for timing in timings.values())
    problem = "" if worst <= GRADIENT_TOLERANCE else "the gradients differ from eager PyTorch's"
    return problem, (
        f"Done: held-out recall@10 {recall_at(10, before):.3f} → {recall_at(10, after):.3f}; "
        f"the loss takes {show.seconds(own.fused)}, eager PyTorch {show.seconds(own.eager)}"
    )


def show_widths(
    console: Console,
    trained: head.Head,
    queries: Tensor,
    documents: Tensor,
    targets: npt.NDArray[np.int64],
) -> None:
    """Recall by the first numbers of every vector, for the widths of the loss and half the
    narrowest of them."""
    from simtile.demo import head

    untrained = head.Head(queries.shape[1])
    narrow = max(1, trained.widths[-1] // 2)
    rows = []
    for width in (*trained.widths, narrow):
        before = recall_at(10, untrained.ranks(queries, documents, targets, width))
        after = recall_at(10, trained.ranks(queries, documents, targets, width))
        is_trained = width in trained.widths
        rows.append(
            (
                f"{width}" if is_trained else f"{width} (not trained)",
                f"{before:.3f}",
                f"{after:.3f}",
                f"{4 * width:,}",
            )
        )
    show.print_table(
        console,
        show.table("recall@10 by width", ("width", "before", "after", "bytes a vector"), rows),
        "Matryoshka: the loss is the mean over the widths, so that the first numbers of a vector "
        "are an embedding of their own.",
    )
    console.print(
        f"warning: width {narrow} is not among the trained widths; nothing holds its recall up",
        style="yellow",
    )


def show_timings(console: Console, timings: dict[str, head.Timing], dim: int, threads: int) -> None:
    rows = [
        (
            name,
            show.seconds(timing.eager),
            show.seconds(timing.fused),
            show.compared(timing.eager, timing.fused, "faster", "slower"),
        )
        for name, timing in timings.items()
    ]
    columns = ("queries × documents", "eager PyTorch", "simtile", "simtile is")
    rounds = " and ".join(str(timing.rounds) for timing in timings.values())
    worst = max(timing.difference for timing in timings.values())
    show.print_table(
        console,
        show.table("Loss, forward and backward", columns, rows),
        f"{dim} dimensions, float32, {show.counted(threads, 'thread')} each, in turns; medians of "
        f"{rounds} rounds. Eager: F.normalize, matmul, F.cross_entropy. The gradients agree to "
        f"{max(worst, 1e-7):.0e} of the largest.",
    )


def draw(
    path: Path,
    losses: list[float],
    kept_step: int,
    pairs: int,
    before: Ranks,
    after: Ranks,
    documents: int,
    timing: head.Timing,
    threads: int,
) -> None:
    figure = plots.new_figure(11, 3.9, "simtile demo --train", machine.plot_facts(threads))
    loss_axes, recall_axes, time_axes = figure.subplots(1, 3, width_ratios=(1.1, 1.2, 1))
    plots.loss_curve(loss_axes, losses, kept_step, f"InfoNCE over {pairs:,} pairs")
    plots.recall_bars(
        recall_axes,
        [recall_at(k, before) for k in (1, 10)],
        [recall_at(k, after) for k in (1, 10)],
        f"{len(before):,} queries against all {documents:,} documents",
    )
    plots.comparison_bars(
        time_axes,
        "Time of the loss of one step",
        "forward + backward, median",
        ("eager PyTorch", "simtile"),
        (1e3 * timing.eager, 1e3 * timing.fused),
        "ms",
    )
    plots.save(figure, path)
