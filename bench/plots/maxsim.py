"""The figure of late interaction: `python -m plots.maxsim RESULTS.json` in bench/."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import maxsim_tables
import tables

import plots

COLOURS = {
    "simtile": plots.SIMTILE,
    "maxsim-cpu": plots.EAGER,
    "NumKong": plots.COMPILED,
    "torch einsum": plots.CHUNKED,
    "sentence-transformers": plots.OTHER,
}


def draw(results: dict[str, Any], path: Path) -> Path:
    """A panel for every entry with contenders; bars as long as the time, labelled with it."""
    plots.style()
    entries = results["entries"]
    present = [
        (text, entries[name]) for name, text in maxsim_tables.SHORT.items() if name in entries
    ]
    figure, panels = plt.subplots(
        1, len(present), figsize=(3.4 * len(present), 2.8), layout="constrained", squeeze=False
    )
    for axes, (text, entry) in zip(panels[0], present, strict=True):
        ours = entry["contenders"]["simtile"]["median"]
        shown = [name for name in COLOURS if name in entry["contenders"]]
        for position, name in enumerate(shown):
            median = entry["contenders"][name]["median"]
            axes.barh(position, median / ours, height=0.82, color=COLOURS[name])
            label = tables.seconds(median)
            if name != "simtile":
                label += f"  {median / ours:.1f}×"
            axes.text(median / ours * 1.05, position, label, va="center", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(0.5, axes.get_xlim()[1] * 5)
        axes.set_yticks([])
        axes.invert_yaxis()
        axes.axvline(1, color=plots.INK, linewidth=0.6, linestyle=":")
        axes.set_title(text.replace(", ", ",\n", 1), fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    figure.legend(handles, COLOURS, loc="outside lower center", ncols=len(COLOURS), fontsize=9)
    facts = results["machine"]
    figure.suptitle(
        f"MaxSim, float32, D = 128, {results['threads']} threads of {tables.cpu(facts)} "
        f"(level {facts['level']}), medians of one run; time, simtile = 1",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return plots.save(figure, path)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
