"""``simtile demo``: real text trained on with NumPy alone, one large step, and search."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

from simtile.demo import adapter, machine, plots, rerank, search, show, step, tokens
from simtile.demo.corpus import Corpus, load_corpus
from simtile.demo.retrieval import ranks, recall_at

PLOT = "simtile-demo.png"
SEARCH_PLOT = "simtile-demo-search.png"
LOSS_TOLERANCE = 1e-4  # relative, between two float32 evaluations of the same step
GRADIENT_TOLERANCE = 1e-3  # of the largest gradient value


@dataclass(frozen=True)
class Options:
    """What the command line asked for; ``threads`` None is simtile's default."""

    output: Path | None = None
    threads: int | None = None
    seed: int = 0
    quick: bool = False


Ranks = npt.NDArray[np.int64]


def run_demo(options: Options, console: Console | None = None) -> int:
    """Run the demo; return 0 unless simtile's step failed or a result is not NumPy's."""
    started = time.perf_counter()
    console = console or show.make_console()
    folder, notice = show.output_folder(options.output)
    console.print(Text(machine.first_line(options.threads, "not used here"), style="bold"))
    if notice:
        console.print(notice, style="yellow")
    if options.quick:
        console.print("quick run: small sizes, so the numbers mean little", style="yellow")

    corpus = load_corpus()
    before, after = train(console, corpus, options)
    pairs = 1024 if options.quick else step.PAIRS
    plain, fused, problem = compare_steps(console, pairs, options)
    found, wrong = search.report(
        console, corpus.queries, corpus.documents, threads=options.threads, quick=options.quick
    )
    problem = problem or wrong
    reranked = ""
    if tokens.are_here():
        result, wrong = report_reranking(console, corpus, options)
        problem, reranked = problem or wrong, rerank.line(result)
    else:
        console.print("Late interaction: its token vectors are not part of a wheel; see a checkout")

    path = folder / PLOT
    draw(path, corpus, before, after, pairs, plain, fused, options.threads)
    draw_search(folder / SEARCH_PLOT, corpus, found, options.threads)
    for drawn in (path, folder / SEARCH_PLOT):
        console.print(Text(f"Plot: {drawn}"), soft_wrap=True)
    console.print()
    if problem:
        console.print(f"FAILED: {problem}", style="bold red")
        return 1
    console.print(
        result_line(before, after, pairs, plain, fused)
        + search_line(found)
        + reranked
        + f" ({time.perf_counter() - started:.0f} s in all)",
        style="bold green",
    )
    return 0


def train(console: Console, corpus: Corpus, options: Options) -> tuple[Ranks, Ranks]:
    """Fit the adapter, show recall, and return the held-out ranks before and after."""
    dim = corpus.queries.shape[1]
    training, held_out = adapter.split(len(corpus.pairs), adapter.HELD_OUT, options.seed)
    show.section(console, 1, "Train on real text")
    console.print(
        f"{len(corpus.pairs):,} docstrings of Python {corpus.manifest['python']}'s standard "
        "library: the first paragraph is the query, the rest the document to find. Embeddings: "
        f"MiniLM-L6-v2, {dim} dimensions. A {dim}×{dim} matrix on the queries learns from "
        f"{len(training):,} pairs with simtile.info_nce_grad and NumPy."
    )
    steps = 10 if options.quick else adapter.STEPS
    with show.progress(console, "training", steps) as advance:
        weight, _ = adapter.train_adapter(
            corpus.queries[training],
            corpus.documents[training],
            steps=steps,
            threads=options.threads,
            on_step=lambda _, loss: advance(1, f"loss {loss:.3f}"),
        )

    queries = corpus.queries[held_out]
    before = ranks(queries, corpus.documents, held_out)
    after = ranks(queries @ weight, corpus.documents, held_out)
    show.print_table(
        console,
        show.recall_table(before, after),
        f"{len(held_out)} held-out queries, each against all {len(corpus.pairs):,} documents. "
        "Before: MiniLM as it is. ±: one standard error of the paired difference. "
        f"{(after < before).sum()} queries found their document earlier than before, "
        f"{(after > before).sum()} later.",
    )
    show_example(console, corpus, held_out, before, after)
    return before, after


def report_reranking(
    console: Console, corpus: Corpus, options: Options
) -> tuple[rerank.Reranked, str]:
    """Late interaction over the shipped token vectors; what was found, and what is wrong."""
    shipped = tokens.load_tokens(len(corpus.pairs))
    count = 40 if options.quick else len(shipped.rows)
    rows = shipped.rows[:count]
    with console.status("reranking…"):
        result = rerank.measure(
            corpus.queries[rows],
            shipped.queries[:count],
            rows,
            corpus.documents,
            shipped.documents,
            threads=options.threads,
        )
    index = shipped.documents
    note = (
        f"{count:,} queries that nothing was trained on, {len(index):,} documents. Tokens: the "
        f"first 40 of each text by MiniLM, {shipped.dim} dimensions, residuals of 2 bits: "
        f"{index.nbytes / len(index):,.0f} bytes a document. ±: {rerank.error(result):.3f}, one "
        "standard error of the change in recall@1."
    )
    return result, rerank.report(console, 4, result, note)


def show_example(
    console: Console, corpus: Corpus, held_out: Ranks, before: Ranks, after: Ranks
) -> None:
    """The held-out query that climbed furthest to the first place."""
    climbed = np.where(after == 0, before, 0)
    best = int(climbed.argmax())
    if climbed[best] == 0:
        return
    pair = corpus.pairs[int(held_out[best])]
    console.print(f"The furthest climb: from place {before[best] + 1} to place 1 ({pair.source})")
    for name, text in (("query", pair.query), ("document", pair.document)):
        line = Text(f"  {name:<9} {text}", style="dim")
        console.print(line, no_wrap=True, overflow="ellipsis")


def compare_steps(
    console: Console, pairs: int, options: Options
) -> tuple[step.StepResult | None, step.StepResult | None, str]:
    """One step in plain NumPy, one with simtile (None where it did not run), and what is wrong."""
    import simtile

    threads = options.threads or int(simtile.cpu_info()["threads"])
    show.section(console, 2, f"One training step over {pairs:,} pairs")
    results: dict[str, step.StepResult | None] = {"numpy": None, "simtile": None}
    failures = {}
    for method, name in (("numpy", "plain NumPy"), ("simtile", "simtile")):
        reason = does_not_fit(pairs) if method == "numpy" else ""
        if not reason:
            try:
                with console.status(f"{name}: forward and backward over {pairs:,} pairs…"):
                    results[method] = step.run_step(
                        method, pairs=pairs, dim=step.DIM, seed=options.seed, threads=threads
                    )
            except step.StepFailed as error:
                reason = str(error)
        if reason:
            failures[method] = reason
            console.print(f"{name}: {reason}", style="yellow")

    plain, fused = results["numpy"], results["simtile"]
    rows = [
        (
            "time",
            *(show.seconds(result.seconds) if result else "not run" for result in (plain, fused)),
        ),
        (
            "peak memory",
            *(show.megabytes(result.memory) if result else "not run" for result in (plain, fused)),
        ),
    ]
    columns = ["", "plain NumPy", "simtile"]
    if plain and fused:
        columns.append("simtile is")
        rows[0] += (show.compared(plain.seconds, fused.seconds, "faster", "slower"),)
        rows[1] += (show.compared(plain.memory, fused.memory, "smaller", "larger"),)
    inputs = 2 * 4 * pairs * step.DIM
    show.print_table(
        console,
        show.table("InfoNCE: the loss and both gradients", columns, rows),
        f"{pairs:,} random pairs, {step.DIM} dimensions, float32, normalised; "
        f"{show.counted(threads, 'thread')} each, each in a process of its own, one run. Memory: "
        f"beyond the inputs ({show.megabytes(inputs)}), gradients included. NumPy keeps the "
        f"{pairs:,}×{pairs:,} matrix ({show.megabytes(4 * pairs * pairs)}), simtile tiles of it.",
    )
    if fused is None:
        return plain, fused, f"the step with simtile {failures['simtile']}"
    return plain, fused, agreement(console, plain, fused)


def agreement(console: Console, plain: step.StepResult | None, fused: step.StepResult) -> str:
    """Print how closely the two steps agree; return what is wrong, "" if nothing is."""
    if not np.isfinite(fused.loss):
        return f"the loss of the step is {fused.loss}"
    if plain is None:
        return ""
    loss = abs(fused.loss - plain.loss) / max(abs(plain.loss), 1e-30)
    gradient = step.largest_difference(fused, plain)
    console.print(
        f"Same result: the losses agree to {max(loss, 1e-7):.0e} of their value, the gradients to "
        f"{max(gradient, 1e-7):.0e} of the largest ({len(plain.rows)} rows compared).",
        style="dim",
    )
    if not (loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE):
        return "the two steps do not agree"
    return ""


def does_not_fit(pairs: int) -> str:
    """Why the plain NumPy step would not fit in memory; "" if it does or nothing is known."""
    needed, available = step.numpy_step_bytes(pairs, step.DIM), machine.available_memory()
    if available is None or needed < 0.9 * available:
        return ""
    return f"needs {needed / 1e9:.1f} GB; this machine has {available / 1e9:.1f} GB free; not run"


def result_line(
    before: Ranks,
    after: Ranks,
    pairs: int,
    plain: step.StepResult | None,
    fused: step.StepResult | None,
) -> str:
    """One sentence with the numbers that matter."""
    line = f"Done: held-out recall@10 {recall_at(10, before):.3f} → {recall_at(10, after):.3f}"
    if fused and plain:
        line += (
            f"; a step over {pairs:,} pairs takes {show.seconds(fused.seconds)} and "
            f"{show.megabytes(fused.memory)}, plain NumPy {show.seconds(plain.seconds)} and "
            f"{show.megabytes(plain.memory)}"
        )
    elif fused:
        line += (
            f"; a step over {pairs:,} pairs takes {show.seconds(fused.seconds)} and "
            f"{show.megabytes(fused.memory)}, plain NumPy did not run"
        )
    return line


def search_line(found: list[search.Found]) -> str:
    """The cascade beside the floats."""
    floats, cascade = found[0], found[-1]
    return (
        f"; a search in {cascade.bytes:,.0f} bytes a vector instead of {floats.bytes:,.0f} finds "
        f"{cascade.overlap:.1%} of the nearest"
    )


def draw_search(path: Path, corpus: Corpus, found: list[search.Found], threads: int | None) -> None:
    figure = plots.new_figure(7.5, 4.6, "simtile demo: search", machine.plot_facts(threads))
    plots.quality_and_bytes(
        figure.subplots(),
        [(one.name, one.bytes, one.overlap) for one in found],
        search.K,
        f"{len(corpus.queries):,} queries against {len(corpus.documents):,} documents",
    )
    plots.save(figure, path)


def draw(
    path: Path,
    corpus: Corpus,
    before: Ranks,
    after: Ranks,
    pairs: int,
    plain: step.StepResult | None,
    fused: step.StepResult | None,
    threads: int | None,
) -> None:
    figure = plots.new_figure(11, 3.9, "simtile demo", machine.plot_facts(threads))
    recall, duration, memory = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    plots.recall_bars(
        recall,
        [recall_at(k, before) for k in (1, 10)],
        [recall_at(k, after) for k in (1, 10)],
        f"{len(before)} queries against all {len(corpus.pairs):,} documents",
    )
    names = ("plain NumPy", "simtile")
    results = (plain, fused)
    note = f"{pairs:,} pairs × {step.DIM}, forward + backward"
    plots.comparison_bars(
        duration,
        "Time of one step",
        note,
        names,
        [result.seconds if result else None for result in results],
        "s",
    )
    plots.comparison_bars(
        memory,
        "Peak memory of one step",
        "beyond the inputs, gradients included",
        names,
        [result.memory / 1e6 if result else None for result in results],
        "MB",
    )
    plots.save(figure, path)
