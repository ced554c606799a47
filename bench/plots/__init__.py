"""Figures of the READMEs, drawn from stored results or from the reference implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's palette, which colour-blind readers can tell apart; simtile is always the first.
SIMTILE, EAGER, COMPILED, CHUNKED, OTHER = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#8c8c8c"
INK, FAINT = "#24292f", "#d0d7de"


def style() -> None:
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": FAINT,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": FAINT,
            "legend.frameon": False,
        }
    )


def save(figure: Any, path: Path) -> Path:
    # No date and no version inside, so that the same data gives the same bytes.
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return path
