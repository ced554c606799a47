"""The figure of search beside its peers: `python -m plots.topk RESULTS.json` in bench/."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tables
import topk_tables

import plots

COLOURS = {
    "simtile": plots.SIMTILE,
    "faiss": plots.EAGER,
    "NumKong": plots.COMPILED,
    "torch": plots.CHUNKED,
    "usearch": plots.OTHER,
}
NAMES = {**dict.fromkeys(COLOURS), "NumKong": "NumKong, no top-k", "torch": "torch matmul + topk"}


def draw(results: dict[str, Any], path: Path) -> Path:
    """A panel for every kind; bars as long as the time, labelled with it."""
    plots.style()
    entries = [(name, results["entries"].get(name)) for name in ("binary", "int8", "float32")]
    present = [(name, entry) for name, entry in entries if entry]
    figure, panels = plt.subplots(
        1, len(present), figsize=(4.4 * len(present), 4.2), layout="constrained", squeeze=False
    )
    for axes, (_, entry) in zip(panels[0], present, strict=True):
        draw_kind(axes, entry)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    labels = [NAMES[name] or name for name in COLOURS]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(COLOURS), fontsize=9)
    facts = results["machine"]
    figure.suptitle(
        f"Exact search, k = 10, {results['threads']} threads of {tables.cpu(facts)} "
        f"(level {facts['level']}), medians of one run; time, simtile = 1",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return plots.save(figure, path)


def draw_kind(axes: Any, entry: dict[str, Any]) -> None:
    position, ticks, labels = 0.0, [], []
    for count, one in entry["counts"].items():
        ours = one["contenders"]["simtile"]["median"]
        start = position
        for name, colour in COLOURS.items():
            if name not in one["contenders"]:
                continue
            median = one["contenders"][name]["median"]
            axes.barh(position, median / ours, height=0.82, color=colour)
            text = tables.seconds(median)
            if name != "simtile":
                text += f"  {median / ours:.1f}×"
            axes.text(median / ours * 1.05, position, text, va="center", fontsize=8)
            position += 1
        ticks.append((start + position - 1) / 2)
        labels.append(topk_tables.queries(count).replace(" ", "\n"))
        position += 0.8
    axes.set_xscale("log")
    axes.set_xlim(0.25, axes.get_xlim()[1] * 4)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.axvline(1, color=plots.INK, linewidth=0.6, linestyle=":")
    axes.set_title(f"{topk_tables.KINDS[one['kind']]}\n{one['n']:,} × {one['dim']}")


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
