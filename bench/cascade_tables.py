"""Markdown of the stored results of `cascade_quality.py`."""

from __future__ import annotations

from tables import Json, machine, table


def least(cascade: Json, wanted: float) -> str:
    """The smallest oversample of the first stage that gives what is wanted."""
    for oversample, value in cascade["overlap"].items():
        if value >= wanted:
            return f"×{oversample}"
    return "none"


def single(entry: Json) -> str:
    rows = [
        [
            f"{value['dtype']}, {value['metric']}",
            f"{value['bytes']:.0f}",
            f"{value['overlap']:.3f}",
        ]
        for value in entry["single"]
    ]
    return table(["one form", "bytes a vector", f"overlap@{entry['k']}"], rows)


def cascades(entry: Json) -> str:
    shown = ["4", "10", "20", "40", "80"]
    rows = []
    for value in entry["cascades"]:
        default = f"{value['default'][0]:g}"
        rows.append(
            [
                " → ".join(value["stages"]),
                f"{value['bytes']:.0f}",
                *[f"{value['overlap'][oversample]:.3f}" for oversample in shown],
                f"×{default}: **{value['overlap'][default]:.3f}**",
                least(value, entry["wanted"]),
                f"{value['most']:.3f}",
            ]
        )
    header = ["stages", "bytes a vector", *[f"×{value}" for value in shown]]
    return table([*header, "default", f"≥ {entry['wanted']} from", "last stage alone"], rows)


def caption(entry: Json) -> str:
    return (
        f"{entry['documents']:,} real texts, {entry['queries']:,} queries, MiniLM-L6-v2, "
        f"{entry['dim']} dimensions; ×: candidates of the first stage for each of the "
        f"{entry['k']}."
    )


def largest(results: Json) -> list[Json]:
    """Entries, the one of the most documents first."""
    return sorted(results["entries"].values(), key=lambda entry: -int(entry["documents"]))


def short(results: Json) -> str:
    """Cascades and single forms among the most documents, in one small table."""
    entry = largest(results)[0]
    rows = [
        [
            " → ".join(value["stages"]) + f", ×{value['default'][0]:g}",
            f"{value['bytes']:.0f}",
            f"{value['overlap'][format(value['default'][0], 'g')]:.3f}",
        ]
        for value in entry["cascades"]
        if value["stages"] in (["binary", "int8"], ["binary", "float32"])
    ]
    rows += [
        [f"{value['dtype']}, {value['metric']}", f"{value['bytes']:.0f}", f"{value['overlap']:.3f}"]
        for value in entry["single"]
        if value["dtype"] in ("float32", "bfloat16", "int8", "int4", "binary")
    ]
    header = ["stored", "bytes a vector", f"overlap@{entry['k']} with exact float search"]
    return table(header, rows) + f"\n{caption(entry)}\n"


def markdown(results: Json) -> str:
    """What every corpus gave, the largest first."""
    parts = []
    for entry in largest(results):
        parts += [caption(entry), cascades(entry), single(entry)]
    parts.append(machine(results))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
