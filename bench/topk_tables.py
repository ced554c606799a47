"""Markdown of the stored results of `topk.py`."""

from __future__ import annotations

from tables import Json, digits, machine, megabytes, seconds, table, targets, time

PEAKS = {
    "read": "memory read",
    "read_again": "read of as many bytes again and again",
    "popcount": "xor + popcount + add",
    "dot_int8": "int8 dot",
    "matrix_int8": "int8 matrix unit",
    "fma_f32": "float32 FMA",
    "matrix_bf16": "bf16 matrix unit",
}
KINDS = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "int8": "int8, float query",
    "int4": "int4, float query",
    "bits": "bits, float query",
    "packed": "bits, Hamming",
}
NOTES = {
    "NumKong": "NumKong (all scores, no best k)",
    "faiss": "faiss",
    "torch": "torch matmul + topk",
}


def queries(count: int | str) -> str:
    return f"{count} quer{'y' if int(count) == 1 else 'ies'}"


def shares(entry: Json) -> str:
    parts = [f"{value:.0%} of {PEAKS[kind]}" for kind, value in entry["share"].items()]
    return ", ".join(parts)


def speed(entry: Json) -> str:
    """One row for every contender, a pair of columns for every number of queries."""
    counts = entry["counts"]
    first = next(iter(counts.values()))
    names: list[str] = []
    for one in counts.values():
        names += [name for name in one["contenders"] if name not in names]
    rows = []
    for name in names:
        row = [f"**{name}**" if name == "simtile" else NOTES.get(name, name)]
        for one in counts.values():
            ours, value = one["contenders"]["simtile"], one["contenders"].get(name)
            if value is None:
                row += ["", ""]
            else:
                ratio = "" if name == "simtile" else f"{value['median'] / ours['median']:.2f}×"
                row += [time(value), ratio]
        rows.append(row)
    header = [f"k = {first['k']}"]
    for count in counts:
        header += [queries(count), "simtile is"]
    lines = [f"- {queries(count)}: {shares(one)}" for count, one in counts.items()]
    return (
        f"{KINDS[first['kind']]}, {first['n']:,} × {first['dim']}, {first['threads']} threads\n\n"
        + table(header, rows)
        + "\nsimtile's share of the peaks measured in the same rounds:\n\n"
        + "\n".join(lines)
        + "\n"
    )


def large_k(entry: Json) -> str:
    rows = []
    for count, times in entry["counts"].items():
        for name in ("simtile", "faiss"):
            few, many = times[f"{name}, k = 10"], times[f"{name}, k = 1000"]
            ratio = many["median"] / few["median"]
            rows.append([f"{name}, {queries(count)}", time(few), time(many), f"{ratio:.2f}"])
    header = ["", "k = 10", "k = 1000", "k = 1000 / k = 10"]
    return f"{KINDS['packed']}, {entry['n']:,} × {entry['dim']}\n\n" + table(header, rows)


def cascade(entry: Json) -> str:
    rows = []
    for count, times in entry["counts"].items():
        whole = times["cascade"]["median"]
        for name, value in times.items():
            ratio = "" if name == "cascade" else f"{whole / value['median']:.2f}"
            rows.append([f"{name}, {queries(count)}", time(value), ratio])
    caption = (
        f"{' → '.join(entry['stages'])}, {entry['n']:,} × {entry['dim']}, k = {entry['k']}, "
        f"oversample {', '.join(f'{value:g}' for value in entry['oversample'])}"
    )
    return f"{caption}\n\n" + table(["", "time", "cascade / this"], rows)


def odd(entry: Json) -> str:
    odd_dim, round_dim = (str(dim) for dim in entry["dims"])
    rows = []
    for kind, counts in entry["kinds"].items():
        row = [KINDS[kind]]
        for value in counts.values():
            times = value["times"]
            row += [seconds(times[odd_dim]["median"]), seconds(times[round_dim]["median"])]
            row.append(f"{value['ratio']:.2f}")
        rows.append(row)
    header = [f"N = {entry['n']:,}"]
    for count in next(iter(entry["kinds"].values())):
        header += [f"{queries(count)}, D = {odd_dim}", f"D = {round_dim}", "rate, round = 1"]
    return table(header, rows)


def memory(entry: Json) -> str:
    rows = [
        [
            f"{KINDS[case['kind']]}, {case['n']:,} × {case['dim']}",
            str(case["queries"]),
            str(case["k"]),
            f"{case['bytes'] / 1e6:.1f} MB",
            megabytes(4 * case["n"] * case["queries"]),
        ]
        for case in entry["cases"]
    ]
    header = ["peak memory of a search", "queries", "k", "beyond documents and results"]
    return table([*header, "all scores would be"], rows)


ENTRIES = {
    "binary": speed,
    "int8": speed,
    "float32": speed,
    "large_k": large_k,
    "cascade": cascade,
    "odd": odd,
    "memory": memory,
}


def topk(results: Json) -> str:
    """Every entry and every target of one run."""
    parts = [machine(results)]
    parts += [ENTRIES[name](entry) for name, entry in results["entries"].items()]
    parts.append(targets(results["targets"]))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def short(results: Json) -> str:
    """The table for the front page: a row for every kind and number of queries."""
    names = ["simtile", "faiss", "NumKong", "torch"]
    rows = []
    for entry in (results["entries"].get(name) for name in ("binary", "int8", "float32")):
        for count, one in (entry or {"counts": {}})["counts"].items():
            ours = one["contenders"]["simtile"]["median"]
            what = f"{KINDS[one['kind']]}, {one['n']:,} × {one['dim']}, {queries(count)}"
            row = [what, f"**{seconds(ours)}**"]
            for name in names[1:]:
                value = one["contenders"].get(name)
                row.append(
                    f"{seconds(value['median'])} ({digits(value['median'] / ours)}×)"
                    if value
                    else ""
                )
            rows.append(row)
    header = ["k = 10", "simtile", *(NOTES[name] for name in names[1:])]
    return table(header, rows) + "\n" + machine(results) + "\n"
