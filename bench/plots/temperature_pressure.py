"""What the temperature does to the push on a false negative: kernels/info_nce/temperature.png.

    python -m plots.temperature_pressure        (in bench/; from `simtile.reference`, no torch)

One query with a positive at cosine 0.8, a batch of 1022 unrelated documents around 0.1, and one
document that is as relevant as the positive but counts as a negative because nobody labelled it.
InfoNCE pushes every negative j away with force p_j / temperature, its gradient with respect to the
similarity.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import matplotlib.pyplot as plt

import plots
from simtile.reference.info_nce import info_nce_grad

POSITIVE = 0.8
FALSE_NEGATIVES = {0.7: "#56B4E9", 0.8: plots.SIMTILE, 0.85: plots.EAGER}
UNRELATED = 1022
COMMON = (0.01, 0.05, 0.1, 1.0)
PATH = Path(__file__).resolve().parents[2] / "kernels" / "info_nce" / "temperature.png"


def pressures(false_negative: float, temperature: float) -> tuple[float, float]:
    """The push on the false negative, and its share of the push on all negatives."""
    spread = NormalDist(0.1, 0.1)
    unrelated = [spread.inv_cdf((i + 0.5) / UNRELATED) for i in range(UNRELATED)]
    # In one dimension, with the query at 1, a document is its similarity and so is its gradient.
    documents = [[s] for s in (POSITIVE, false_negative, *unrelated)]
    result = info_nce_grad([[1.0]], documents, temperature=temperature, normalize=False)
    _, push, *others = (gradient[0] for gradient in result.documents)
    return push, push / math.fsum([push, *others])


def draw(path: Path = PATH) -> Path:
    plots.style()
    temperatures = [10 ** (-2.3 + 2.6 * i / 90) for i in range(91)]
    figure, (share, force) = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    for similarity, colour in FALSE_NEGATIVES.items():
        values = [pressures(similarity, temperature) for temperature in temperatures]
        label = f"cosine {similarity:.2f}"
        share.plot(temperatures, [100 * s for _, s in values], color=colour, lw=2, label=label)
        force.plot(temperatures, [p for p, _ in values], color=colour, lw=2, label=label)
    for axes in (share, force):
        axes.set_xscale("log")
        axes.set_xticks(COMMON, [f"{t:g}" for t in COMMON])
        axes.minorticks_off()
        axes.grid(axis="both", linewidth=0.6)
        axes.set_xlabel("temperature τ")
        axes.set_xlim(temperatures[0], temperatures[-1])
    share.set_ylim(0, 104)
    share.set_yticks(range(0, 101, 25), [f"{p} %" for p in range(0, 101, 25)])
    share.set_title("Share of the whole push that hits the false negative")
    force.set_yscale("log")
    force.set_ylim(5e-4, 400)
    force.set_yticks([10.0**e for e in range(-3, 3)], ["0.001", "0.01", "0.1", "1", "10", "100"])
    force.minorticks_off()
    force.set_title("Push on it: |∂loss / ∂cosine| = p / τ")
    share.legend(loc="upper right", title="false negative at", bbox_to_anchor=(1.0, 0.95))
    uniform = 100 / (UNRELATED + 1)
    share.annotate(
        f"like any of the\n1023 negatives: {uniform:.1f} %",
        (1.3, uniform),
        xytext=(0.3, 10),
        fontsize=8.5,
        arrowprops={"arrowstyle": "-", "color": plots.INK, "linewidth": 0.6},
    )
    figure.suptitle(
        f"A positive at cosine {POSITIVE:.2f}, {UNRELATED} unrelated documents around 0.10 ± 0.10,"
        " and one relevant document taken for a negative",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return plots.save(figure, path)


if __name__ == "__main__":
    print(draw())
