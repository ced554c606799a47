"""How long the GPU kernels should take by arithmetic alone: `python bench/roofline.py [--check]`.

Writes docs/roofline.md from the published peaks of four chips and from what the kernels multiply
and move (_roofline.py); beside it stands what bench/results/doctor has. --check writes nothing and
fails when the page is stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import gpu_measured
import tables
from _chips import (
    BESIDE,
    CHIPS,
    DP4A_PER_CLOCK,
    EXP_PER_CLOCK,
    POPC_PER_CLOCK,
    PUBLISHED,
    Chip,
)
from _roofline import (
    CHUNK_BYTES,
    SEARCHES,
    Search,
    buffers,
    chunk_rows,
    info_nce,
    recompute,
    seconds,
)

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "roofline.md"
RESULTS = ROOT / "bench" / "results"

# How the doctor names, and named, what is searched there.
SEARCHED = {
    ("topk", "packed"): POPC_PER_CLOCK,
    ("topk", "int8"): DP4A_PER_CLOCK,
    ("hamming_topk", "bits"): POPC_PER_CLOCK,
    ("int8_topk", "int8"): DP4A_PER_CLOCK,
}

N, D = 65536, 768


HEAD = """# What the GPU kernels could reach

**Predicted, not measured**, but for the section [Measured](#measured). Written by
`python bench/roofline.py` from published peaks and from what the kernels multiply and move; a real
kernel is slower than this, and only a measurement says by how much. 100 % is every peak at once,
50 % half of each.

## Chips

Without sparsity. Triton's kernels use `wgmma` on sm_90 and `tcgen05` on sm_100; the CUDA kernels
are written with `mma.sync`, whose ceiling on these chips is lower: on sm_90 about 63 % of the peak
on average (Luo et al. 2024, arXiv:2402.13499); for sm_100 no figure is published that we know."""

INFO_NCE = f"""## info_nce in Triton, bfloat16, N = M = {N}, D = {D}, forward and backward

6 N² D operations: scores once, two gradient products; the coefficients of a chunk of rows go
through memory between them (`bench/_roofline.py` has each kernel's bytes, as code; what tiles that
run side by side share is taken to come from L2). A kernel takes as long as the slower of its
arithmetic and its bytes, and one kernel runs after the other. `scores` takes N² exponentials at
{EXP_PER_CLOCK} a clock and multiprocessor while its matrix unit waits, because one block fills a
multiprocessor. **m**: memory bounds it. A percentage: the share of the multiprocessors' time in
which they have a block, where it is below 80 %."""

TOTALS = """The same beside its bare 6 N² D, and beside the other way to need no N² memory: each
gradient's owner multiplies the scores again, 10 N² D and 3 N² exponentials, here with no cost for
memory and no idle multiprocessor."""

CHUNKS = """A larger buffer of coefficients costs memory, gives `products` more long blocks, those
of the queries' gradient, and passes less often over the documents' gradient. Predicted at 100 %, in
bold the size that simtile has:"""

FORWARD = """The forward alone in CUDA, one launch of `mma.sync`, 2 N² D operations:"""

MEASURED = """## Measured

By `simtile doctor`, which checks the results first; calls find nothing in the caches. Shares are of
what torch's own kernels reached on the same device, operations counted at 6 N M D forward and
backward, 2 N M D forward and 2 Q N D of a search."""

BESIDE_PREDICTED = """Beside what is predicted above at 100 %, from published peaks:"""

PEERS = """## Published by others

Their authors' figures, on their machines, beside what is predicted here for the same N and D, or
D = 768 where none is said. Other losses do other work: both directions need a second softmax, the
sigmoid loss none."""

TOPK = """## Top-k, one query

Every document's code is read once; the lists of k = 10 candidates that the parts of the corpus
leave are under a thousandth of it. Latencies of the two launches are not in it. The last column:
how many queries at a time read the documents once until the population counts, or the products of
four bytes, take longer than the memory."""


def page() -> str:
    parts = [
        HEAD,
        chips(),
        INFO_NCE,
        kernels(),
        TOTALS,
        totals(),
        CHUNKS,
        chunks(),
        FORWARD,
        forward(),
    ]
    parts += [PEERS, published(), TOPK, searches()]
    parts += [MEASURED, gpu_measured.markdown(RESULTS, short=False)]
    parts += [BESIDE_PREDICTED, measured()]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def chips() -> str:
    rows = [
        [
            chip.name,
            *(f"{tables.digits(rate / 1e12)}" for rate in (chip.bf16, chip.tf32, chip.int8)),
            "not known"
            if chip.mma_sync is None
            else tables.digits(chip.bf16 * chip.mma_sync / 1e12),
            f"{chip.bandwidth / 1e12:.2f}",
            str(chip.multiprocessors),
            chip.source,
        ]
        for chip in CHIPS
    ]
    header = ["chip", "bf16, T/s", "tf32, T/s", "int8, T/s", "bf16 by mma.sync, T/s"]
    return tables.table([*header, "memory, TB/s", "multiprocessors", "source"], rows)


def kernels() -> str:
    rows = []
    by_chip = [info_nce(N, D, chip.family) for chip in CHIPS]
    for steps in zip(*by_chip, strict=True):
        first = steps[0]
        row = [
            f"`{first.kernel}`",
            f"{first.operations / N / N / D:.0f} N² D" * bool(first.operations),
        ]
        row.append(f"{first.bytes / 1e9:.1f} GB")
        if len({step.bytes for step in steps}) > 1:
            raise AssertionError("bytes depend on the chip: show them by chip")
        for chip, step in zip(CHIPS, steps, strict=True):
            busy = f" ({step.busy(chip):.0%})" * (step.busy(chip) < 0.8)
            bound = " **m**" * step.memory_bound(chip)
            row.append(_ms(step.seconds(chip)) + busy + bound)
        rows.append(row)
    return tables.table(["100 %", "operations", "memory", *(chip.name for chip in CHIPS)], rows)


def totals() -> str:
    def row(title: str, of: Callable[[Chip], str]) -> list[str]:
        return [title, *(of(chip) for chip in CHIPS)]

    def ours(chip: Chip) -> float:
        return seconds(info_nce(N, D, chip.family), chip)

    def again(chip: Chip) -> float:
        return seconds(recompute(N, D), chip)

    rows = [
        row("6 N² D at the bf16 peak", lambda chip: _ms(6.0 * N * N * D / chip.bf16)),
        row("**simtile, 100 %**", lambda chip: f"**{_ms(ours(chip))}**"),
        row("**simtile, 50 %**", lambda chip: f"**{_ms(2 * ours(chip))}**"),
        row("recompute, 100 %", lambda chip: _ms(again(chip))),
        row("recompute, 50 %", lambda chip: _ms(2 * again(chip))),
    ]
    return tables.table(["predicted", *(chip.name for chip in CHIPS)], rows)


def chunks() -> str:
    rows = []
    for chunk_bytes in sorted({size << 20 for size in (160, 256, 384, 512)} | {CHUNK_BYTES}):
        bold = "**" * (chunk_bytes == CHUNK_BYTES)
        row = [f"{bold}{chunk_bytes / 2**20:.0f} MiB{bold}"]
        row.append(str(chunk_rows(N, CHIPS[0].family, chunk_bytes)))
        row.append(f"{buffers(N, D, CHIPS[0].family, chunk_bytes) / 1e9:.2f} GB")
        for chip in CHIPS:
            row.append(_ms(seconds(info_nce(N, D, chip.family, chunk_bytes), chip)))
        rows.append(row)
    names = [chip.name for chip in CHIPS]
    return tables.table(["buffer", "rows", "memory beyond the inputs", *names], rows)


def forward() -> str:
    rows = []
    for share in (1, 2):
        row = [f"{100 // share} %"]
        for chip in CHIPS:
            ceiling = chip.mma_sync and 2.0 * N * N * D / (chip.bf16 * chip.mma_sync) * share
            row.append(_ms(ceiling) if ceiling else "not known")
        rows.append(row)
    return tables.table(["of the mma.sync ceiling", *(chip.name for chip in CHIPS)], rows)


def published() -> str:
    rows = []
    for entry in PUBLISHED:
        chip = next(chip for chip in CHIPS if chip.name == BESIDE[entry.gpu])
        d = entry.d or D
        full = seconds(info_nce(entry.n, d, chip.family), chip)
        rows.append(
            [
                entry.library,
                entry.loss,
                entry.gpu,
                str(entry.n),
                "not said" if entry.d is None else str(entry.d),
                entry.time,
                entry.memory,
                f"{_ms(full)} … {_ms(2 * full)}",
                f"{chip.name}, D = {d}",
                f"{buffers(entry.n, d, chip.family) / 1e9:.2f} GB",
            ]
        )
    header = ["published", "loss", "GPU", "N", "D", "time", "memory"]
    ours = ["simtile's info_nce, 100 % … 50 %, predicted", "for", "memory"]
    return tables.table([*header, *ours], rows)


def searches() -> str:
    rows = []
    for search in SEARCHES:
        row = [search.what, f"{search.bytes / 1e9:.3g} GB"]
        for chip in CHIPS:
            full = search.seconds(chip)
            row.append(f"{tables.seconds(full)} … {tables.seconds(2 * full)}")
        ratios = [search.bytes / chip.bandwidth / search.arithmetic_seconds(chip) for chip in CHIPS]
        row.append(f"{min(ratios):.1f} … {max(ratios):.1f}")
        rows.append(row)
    names = [chip.name for chip in CHIPS]
    return tables.table(["100 % … 50 %, predicted", "memory", *names, "queries"], rows)


def measured() -> str:
    rows = []
    for report in gpu_measured.load(RESULTS):
        device = gpu_measured.device(report)
        chip = next((chip for chip in CHIPS if chip.name.split()[0] in device), None)
        for timing in report["gpu"]["timings"] if chip else ():
            full = predicted(timing, chip)
            if full is not None:
                name, dtype, sizes, time, *_ = gpu_measured.row(timing)
                share = f"{full / timing['median']:.0%}"
                row = [f"{name}, {dtype}, {sizes}", device, time, tables.seconds(full), share]
                rows.append(row)
    return tables.table(["call", "GPU", "measured", "predicted", "predicted / measured"], rows)


def predicted(timing: gpu_measured.Json, chip: Chip) -> float | None:
    """Seconds of a call that the tables above are about; None for others."""
    sizes = [int(size) for size in timing["sizes"].partition(",")[0].split(" x ")]
    if timing["dtype"] == "bfloat16" and timing["backend"] == "triton":
        n, m, d = sizes
        return seconds(info_nce(n, d, chip.family), chip) if n == m >= 4096 else None
    per_clock = SEARCHED.get((timing["kernel"], timing["dtype"]))
    if per_clock is not None and sizes[0] == 1:
        row_bytes = timing["bytes_per_second"] * timing["median"] / sizes[1]
        return Search("", sizes[1], round(row_bytes), per_clock).seconds(chip)
    return None


def _ms(value: float) -> str:
    return f"{value * 1e3:.1f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description="Predict the GPU kernels' times from peaks.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    made = page()
    if parser.parse_args().check:
        if not PAGE.is_file() or PAGE.read_text() != made:
            print(f"{PAGE}: stale, run python bench/roofline.py", file=sys.stderr)
            return 1
        return 0
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(made)
    print(f"stored in {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
