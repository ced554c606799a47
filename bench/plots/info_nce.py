"""The figure beside the InfoNCE table: `python -m plots.info_nce RESULTS.json` in bench/."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tables
from matplotlib.patches import Rectangle

import plots

COLOURS = {
    "simtile": plots.SIMTILE,
    "torch.compile": plots.COMPILED,
    "F.linear_cross_entropy": plots.CHUNKED,
    "torch eager": plots.EAGER,
    "NumPy": plots.OTHER,
}
SPEED_ENTRIES = ("float32", "small", "bfloat16")


def draw(results: dict[str, Any], path: Path) -> Path:
    plots.style()
    entries = results["entries"]
    figure, (time, memory) = plt.subplots(
        1, 2, figsize=(11, 4.6), width_ratios=(1.35, 1), layout="constrained"
    )
    draw_times(time, [entries[name] for name in SPEED_ENTRIES if name in entries])
    if "memory" in entries:
        draw_memory(memory, entries["memory"])
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    figure.legend(handles, COLOURS, loc="outside lower center", ncols=len(COLOURS), fontsize=9)
    facts = results["machine"]
    figure.suptitle(
        f"InfoNCE forward + backward, {results['threads']} threads of {tables.cpu(facts)} "
        f"(level {facts['level']}), medians of one run",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return plots.save(figure, path)


def draw_times(axes: Any, entries: list[dict[str, Any]]) -> None:
    """Bars as long as the time, simtile's = 1, labelled with the time itself."""
    position, ticks, labels = 0.0, [], []
    for entry in entries:
        ours = entry["contenders"]["simtile"]["median"]
        present = [name for name in COLOURS if name in entry["contenders"]]
        start = position
        for name in present:
            median = entry["contenders"][name]["median"]
            axes.barh(position, median / ours, height=0.82, color=COLOURS[name])
            text = tables.seconds(median)
            if name == "simtile":
                text += f"  ({share(entry)})"
            else:
                text += f"  {median / ours:.1f}×"
            axes.text(median / ours + 0.05, position, text, va="center", fontsize=8.5)
            position += 1
        ticks.append((start + position - 1) / 2)
        labels.append(f"{entry['dtype']}\nN = {entry['n']}\nD = {entry['dim']}")
        position += 0.8
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.28)
    axes.set_xlim(left=0)
    axes.axvline(1, color=plots.INK, linewidth=0.6, linestyle=":")
    axes.set_xlabel("time, simtile = 1")
    axes.set_title("Time")


def share(entry: dict[str, Any]) -> str:
    of = entry["share"]["of"]["fma_f32"]
    if of > 1:  # a matrix unit
        return f"{of:.2f} times the float32 FMA peak"
    return f"{of:.0%} of the float32 FMA peak"


def draw_memory(axes: Any, entry: dict[str, Any]) -> None:
    for kind, by_size in entry["extra"].items():
        if kind == "info_nce_grad":  # the same line as simtile's
            continue
        points = [(int(n), value["bytes"]) for n, value in by_size.items() if "bytes" in value]
        sizes, used = zip(*points, strict=True)
        axes.plot(
            sizes,
            [max(value, 1e6) / 1e6 for value in used],
            marker="o",
            markersize=4,
            linewidth=2.4 if kind == "simtile" else 1.6,
            color=COLOURS[kind],
        )
        axes.annotate(
            tables.megabytes(used[-1]),
            (sizes[-1], used[-1] / 1e6),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            fontsize=8.5,
            color=COLOURS[kind],
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [int(n) for n in next(iter(entry["extra"].values()))]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", linewidth=0.6)
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("N (queries and documents)")
    axes.set_ylabel("beyond inputs and gradients")
    axes.yaxis.set_major_formatter(lambda value, _: tables.megabytes(value * 1e6))
    axes.set_title(f"Peak extra memory, D = {entry['dim']}")


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
