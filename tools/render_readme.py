"""Fill in the measured numbers of the READMEs: `python tools/render_readme.py [--check] [FILE...]`.

A region of Markdown is made from the JSON files in bench/results and written between two comments,

    <!-- bench:begin NAME [MACHINE] -->
    <!-- bench:end -->

NAME is a key of REGIONS or FOLDER_REGIONS; MACHINE a folder of bench/results, needed when several
machines have the file. A region whose benchmark has no results at all says so. Counts of the PTX
interpreter are of no machine: they lie in bench/results/ptx. With --check nothing is written and
the exit code is 1 if a region is stale.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import cached_tables  # noqa: E402
import capacity_tables  # noqa: E402
import cascade_tables  # noqa: E402
import contrastive_tables  # noqa: E402
import dtypes_tables  # noqa: E402
import gpu_measured  # noqa: E402
import gpu_status  # noqa: E402
import gpu_tables  # noqa: E402
import maxsim_tables  # noqa: E402
import mining_tables  # noqa: E402
import overhead_tables  # noqa: E402
import overlap_tables  # noqa: E402
import pairwise_tables  # noqa: E402
import pool_tables  # noqa: E402
import quantize_tables  # noqa: E402
import scaling_tables  # noqa: E402
import stored_tables  # noqa: E402
import tables  # noqa: E402
import topk_tables  # noqa: E402

REGION = re.compile(
    r"(<!-- bench:begin (\S+)(?: (\S+))? -->\n)(.*?)(<!-- bench:end -->)", re.DOTALL
)
MARK = re.compile(r"<!-- bench:(begin|end)\b")

Json = dict[str, Any]


PTX_KERNELS = (
    "topk",
    "info_nce_triton",
    "info_nce_contrast",
    "info_nce_cuda",
    "quantize",
    "maxsim_triton",
    "maxsim_cuda",
    "pairwise_triton",
    "siglip_triton",
    "pool",
)

# Regions of several files: what makes markdown of the results' folder
FOLDER_REGIONS: dict[str, Callable[[Path], str]] = {
    "gpu_measured": gpu_measured.markdown,
    "gpu_status": gpu_status.markdown,
    "stored": stored_tables.markdown,
}

# name of the region: (results file, what makes markdown of it)
REGIONS: dict[str, tuple[str, Callable[[Json], str]]] = {
    "peak": ("peak", tables.peak),
    "topk": ("topk", topk_tables.topk),
    "topk_short": ("topk", topk_tables.short),
    **{name: ("topk", markdown) for name, markdown in capacity_tables.REGIONS.items()},
    "cascade_quality": ("cascade_quality", cascade_tables.markdown),
    "cascade_quality_short": ("cascade_quality", cascade_tables.short),
    "info_nce": ("info_nce", tables.info_nce),
    "info_nce_short": ("info_nce", tables.info_nce_short),
    "cached": ("cached", cached_tables.markdown),
    "contrastive": ("contrastive", contrastive_tables.contrastive),
    "dtypes": ("dtypes", dtypes_tables.dtypes),
    "maxsim": ("maxsim", maxsim_tables.maxsim),
    "maxsim_short": ("maxsim", maxsim_tables.short),
    "mining": ("mining", mining_tables.markdown),
    "overhead": ("overhead", overhead_tables.overhead),
    "pairwise": ("pairwise", pairwise_tables.markdown),
    "pool": ("pool", pool_tables.markdown),
    "quantize": ("quantize", quantize_tables.markdown),
    "scaling": ("scaling", scaling_tables.scaling),
    "quantized_overlap": ("quantized_overlap", overlap_tables.quantized_overlap),
    "quantized_overlap_short": ("quantized_overlap", overlap_tables.quantized_overlap_short),
    **{f"ptx_{name}": (f"ptx/{name}", gpu_tables.ptx) for name in PTX_KERNELS},
}


# Where a benchmark has been run on no machine yet.
PENDING = "*Not measured yet: `python bench/{}.py`.*\n"


class Problem(Exception):
    """A region that cannot be filled."""


def measured(bench: str, results: Path) -> dict[str, Path]:
    """The results files of a benchmark by the machine's name."""
    paths = sorted(results.glob(f"*/{bench}.json"))
    return {path.parent.name: path for path in paths if path.parent.name != "ptx"}


def load(bench: str, machine: str | None, results: Path) -> Json:
    """The stored results of a complete run."""
    folder, _, name = bench.rpartition("/")
    if folder:
        path = results / folder / f"{name}.json"
        found, machine = {folder: path} if path.exists() else {}, folder
    elif machine is None:
        found = measured(name, results)
        if len(found) != 1:
            names = ", ".join(found)
            raise Problem(f"name one of the machines with {bench}.json in {results}: {names}")
        machine = next(iter(found))
    else:
        found = measured(name, results)
    if machine not in found:
        raise Problem(f"no {name}.json for machine {machine!r} in {results}")
    loaded: Json = json.loads(found[machine].read_text())
    if loaded.get("quick") or not loaded.get("complete", True) or loaded.get("failures"):
        raise Problem(f"{found[machine]} is not a complete run without failures")
    return loaded


def render(text: str, results: Path) -> str:
    """The text with every region filled."""

    def fill(match: re.Match[str]) -> str:
        begin, name, machine, _, end = match.groups()
        if name in FOLDER_REGIONS:
            try:
                return begin + FOLDER_REGIONS[name](results) + end
            except FileNotFoundError as error:
                raise Problem(f"region {name!r}: no {error.filename}") from error
        if name not in REGIONS:
            known = ", ".join([*REGIONS, *FOLDER_REGIONS])
            raise Problem(f"unknown region {name!r}; there are: {known}")
        bench, markdown = REGIONS[name]
        if machine is None and "/" not in bench and not measured(bench, results):
            return begin + PENDING.format(bench) + end
        loaded = load(bench, machine, results)
        try:
            return begin + markdown(loaded) + end
        except KeyError as error:
            raise Problem(f"region {name!r}: the results have no {error}") from error

    filled, count = REGION.subn(fill, text)
    if len(MARK.findall(text)) != 2 * count:
        raise Problem("a bench:begin without its bench:end, or the reverse")
    return filled


def main() -> int:
    parser = argparse.ArgumentParser(description="Fill the measured numbers of the READMEs.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        help="default: README.md, bench/README.md, kernels/*/README.md, docs/*.md",
    )
    arguments = parser.parse_args()
    files = arguments.files or [
        ROOT / "README.md",
        ROOT / "bench" / "README.md",
        *sorted(ROOT.glob("kernels/*/README.md")),
        *sorted(ROOT.glob("docs/*.md")),
    ]
    bad = False
    for path in files:
        text = path.read_text()
        try:
            filled = render(text, arguments.results)
        except Problem as problem:
            print(f"{path}: {problem}", file=sys.stderr)
            bad = True
            continue
        if filled == text:
            continue
        if arguments.check:
            print(f"{path}: stale, run python tools/render_readme.py", file=sys.stderr)
            bad = True
        else:
            path.write_text(filled)
            print(f"{path}: filled")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
