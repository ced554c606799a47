"""Markdown from the stored results: what the benchmarks print and the READMEs show."""

from __future__ import annotations

import math
import re
from typing import Any

Json = dict[str, Any]

PEAKS = {
    "fma_f32": "float32 FMA",
    "fma_f64": "float64 FMA",
    "dot_bf16": "bf16 dot",
    "matrix_bf16": "bf16 matrix unit",
    "dot_int8": "int8 dot",
    "matrix_int8": "int8 matrix unit",
    "popcount": "xor + popcount + add",
    "read": "memory read",
}
ARITHMETIC = {
    "float32": "float32 FMA",
    "float64": "float64 FMA",
    "bf16": "bf16 dot",
    "amx_bf16": "AMX, bf16",
    "amx_bf16x3": "AMX, float32 split into 3 bf16: 6 products",
}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def seconds(value: float) -> str:
    """Three digits with a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1 or unit == "µs":
            return f"{digits(value * scale)} {unit}"
    raise AssertionError


def time(samples: Json) -> str:
    return f"{seconds(samples['median'])} ± {samples['spread']:.1%}"


def digits(value: float) -> str:
    """At least two significant digits, no exponent."""
    if 0 < abs(value) < 0.1:
        return f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB"


def cpu(facts: Json) -> str:
    """The CPU's name without its trademarks."""
    return re.sub(r"\((R|TM)\)", "", facts["cpu"], flags=re.IGNORECASE)


def machine(results: Json) -> str:
    """One line on what the numbers were measured on and with."""
    facts = results["machine"]
    changes = " with changes" if facts["modified"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    virtual = ", a virtual machine" if facts["virtual_machine"] else ""
    return (
        f"{cpu(facts)}, {facts['cpus']} CPUs{virtual}, level `{facts['level']}`, "
        f"{facts['system']}; {versions}, Python {facts['python']}; {facts['date']}, "
        f"commit {(facts['commit'] or 'unknown')[:10]}{changes}"
    )


def peak(results: Json) -> str:
    counts = list(next(iter(results["peaks"].values())))
    header = ["Peak", *[f"{count} thread{'s' if count != '1' else ''}" for count in counts]]
    rows = []
    for kind, by_threads in results["peaks"].items():
        unit = "GB/s" if kind in ("popcount", "read") else "G/s"
        rows.append(
            [f"{PEAKS[kind]} (`{kind}`)"]
            + [
                f"{digits(by_threads[count]['median'] / 1e9)} {unit} "
                f"± {by_threads[count]['spread']:.1%}"
                for count in counts
            ]
        )
    return table(header, rows) + "\n" + machine(results) + "\n"


def share(entry: Json) -> str:
    """The share of the peaks that bound this arithmetic, in words."""
    unit, products = entry["share"]["unit"], entry["share"]["products"]
    of = entry["share"]["of"]
    parts = [f"{of['fma_f32']:.0%} of the float32 FMA peak"]
    if unit != "fma_f32":
        parts.append(
            f"{of[unit] * products:.0%} of the {PEAKS[unit]}'s peak"
            + (f" at {products} products a multiply-add" if products > 1 else "")
        )
    return ", ".join(parts)


def contenders(entry: Json) -> str:
    ours = entry["contenders"]["simtile"]["median"]
    flop = 6.0 * entry["n"] ** 2 * entry["dim"]
    rows = []
    for name, value in sorted(entry["contenders"].items(), key=lambda item: item[1]["median"]):
        median = value["median"]
        error = entry["errors"].get(name)
        rows.append(
            [
                f"**{name}**" if name == "simtile" else name,
                time(value),
                digits(flop / median / 1e9),
                "" if name == "simtile" else f"{median / ours:.2f}×",
                f"{value['cores']:.2f}" if "cores" in value else "",
                f"{max(error.values()):.1e}" if error else "",
            ]
        )
    header = ["forward + backward", "time", "GFLOP/s at 6N²D", "simtile is", "cores", "error"]
    missing = f"\nNot on this machine: {', '.join(entry['missing'])}\n" if entry["missing"] else ""
    return table(header, rows) + missing


def title(entry: Json) -> str:
    return f"{entry['dtype']}, N = {entry['n']}, D = {entry['dim']}, {entry['threads']} threads"


def speed(entry: Json) -> str:
    return (
        f"{title(entry)} ({ARITHMETIC[entry['arithmetic']]}): {share(entry)}\n\n{contenders(entry)}"
    )


def odd(entry: Json) -> str:
    rates = ", ".join(f"{name}: {digits(rate)} GFLOP/s" for name, rate in entry["rates"].items())
    return f"{speed(entry)}\n{rates}\n"


def bfloat16(entry: Json) -> str:
    by_dtype = entry["by_dtype"]
    gain = by_dtype["float32"]["median"] / by_dtype["bfloat16"]["median"]
    return (
        f"{speed(entry)}\nfloat32 inputs in turn with these: "
        f"{seconds(by_dtype['float32']['median'])}, {gain:.2f} times as long\n"
    )


def threads(entry: Json) -> str:
    one = entry["times"]["1"]["median"]
    rows = [
        [
            count,
            time(value),
            f"{one / value['median']:.2f}×",
        ]
        for count, value in entry["times"].items()
    ]
    caption = f"{entry['dtype']}, N = {entry['n']}, D = {entry['dim']}"
    return f"{caption}\n\n" + table(["threads", "time", "gain"], rows)


def large(entry: Json) -> str:
    rows = [[size, time(value)] for size, value in entry["times"].items()]
    return (
        f"{entry['dtype']}, D = {entry['dim']}: N = {entry['n']} takes {entry['scaling']:.3f} "
        f"times what N² makes of the smaller\n\n" + table(["N", "time"], rows)
    )


def memory(entry: Json) -> str:
    sizes = list(next(iter(entry["extra"].values())))
    rows = []
    for kind, by_size in entry["extra"].items():
        cells = [
            megabytes(value["bytes"]) if "bytes" in value else "–" for value in by_size.values()
        ]
        rows.append([MEMORY_NAMES.get(kind, kind), *cells])
    header = ["extra memory", *[f"N = {size}" for size in sizes]]
    return (
        f"{entry['dtype']}, D = {entry['dim']}: peak beyond inputs and returned gradients\n\n"
        + table(header, rows)
    )


MEMORY_NAMES = {"simtile": "**simtile** `info_nce`", "info_nce_grad": "**simtile** `info_nce_grad`"}


def levels(entry: Json) -> str:
    rows = []
    for level, by_dtype in entry["levels"].items():
        row = [f"`{level}`"]
        for value in by_dtype.values():
            unit = value["share"]["unit"]
            used = value["share"]["of"][unit] * value["share"]["products"]
            row += [
                f"{seconds(value['contenders']['simtile']['median'])}",
                f"{ARITHMETIC[value['arithmetic']]}, {used:.0%}",
                f"{value['error_ratio']:.2f}",
            ]
        rows.append(row)
    header = ["level"]
    for dtype in next(iter(entry["levels"].values())):
        header += [dtype, "unit, share of its peak", "error / eager's"]
    return f"N = {entry['n']}, D = {entry['dim']}, `SIMTILE_ISA` forced\n\n" + table(header, rows)


ENTRIES = {
    "float32": speed,
    "small": speed,
    "odd": odd,
    "overhead": speed,
    "bfloat16": bfloat16,
    "threads": threads,
    "levels": levels,
    "large": large,
    "memory": memory,
}


def info_nce_entry(name: str, entry: Json) -> str:
    return ENTRIES[name](entry)


def targets(values: list[Json]) -> str:
    rows = []
    for value in values:
        unit = f" {value['unit']}" if value["unit"] not in ("", "x") else ""
        percent = "share" in value["what"]
        measured, limit = (
            f"{number:.0%}" if percent else f"{digits(number)}{unit}"
            for number in (value["measured"], value["limit"])
        )
        met = "met" if value["met"] else "**not met**"
        rows.append([value["what"], measured, f"{value['relation']} {limit}", met])
    return table(["target", "measured", "asked", ""], rows)


def info_nce(results: Json) -> str:
    """Every entry and every target of one run."""
    parts = [machine(results)]
    parts += [info_nce_entry(name, entry) for name, entry in results["entries"].items()]
    parts.append(targets(results["targets"]))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def info_nce_short(results: Json) -> str:
    """The table for the front page: one row for every shape, simtile beside the others."""
    names = ["simtile", "torch eager", "torch.compile", "F.linear_cross_entropy", "NumPy"]
    rows = []
    for name in ("float32", "small", "odd", "bfloat16"):
        entry = results["entries"].get(name)
        if entry is None:
            continue
        ours = entry["contenders"]["simtile"]["median"]
        row = [f"{entry['dtype']}, {entry['n']} × {entry['dim']}"]
        for contender in names:
            value = entry["contenders"].get(contender)
            if value is None:
                row.append("")
            elif contender == "simtile":
                row.append(f"**{seconds(ours)}**")
            else:
                row.append(f"{seconds(value['median'])} ({value['median'] / ours:.1f}×)")
        rows.append(row)
    return table(["forward + backward", *names], rows) + "\n" + machine(results) + "\n"
