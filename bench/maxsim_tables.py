"""Markdown of the stored results of `maxsim.py`."""

from __future__ import annotations

from tables import PEAKS, Json, digits, machine, megabytes, seconds, table, targets, time


def title(entry: Json) -> str:
    many = "query" if entry["queries"] == 1 else "queries"
    mean = entry["tokens"] / entry["documents"]
    return (
        f"float32, {entry['queries']} {many} of {entry['query_length']} tokens, "
        f"{entry['documents']:,} documents of {mean:.0f} tokens, D = {entry['dim']}, "
        f"{entry['threads']} threads"
    )


def shares(entry: Json) -> str:
    return ", ".join(f"{value:.0%} of {PEAKS[kind]}" for kind, value in entry["share"].items())


def speed(entry: Json) -> str:
    ours = entry["contenders"]["simtile"]["median"]
    rows = [
        [
            f"**{name}**" if name == "simtile" else name,
            time(value),
            "" if name == "simtile" else f"{value['median'] / ours:.2f}×",
            f"{entry['errors'][name]:.0e}",
        ]
        for name, value in sorted(entry["contenders"].items(), key=lambda item: item[1]["median"])
    ]
    return f"{title(entry)}: {shares(entry)}\n\n" + table(
        ["all scores", "time", "simtile is", "largest error"], rows
    )


def ragged(entry: Json) -> str:
    per_token = entry["per_token"]
    ratio = per_token["ragged"] / per_token["fixed"]
    return (
        f"{speed(entry)}\n60 to 300 tokens a document: {ratio:.3f} of the time per token that "
        "documents of 180 take\n"
    )


def smaller(entry: Json) -> str:
    times = entry["times"]
    float32 = times["float32"]["median"]
    rows = [["float32", f"{4 * entry['dim']}", time(times["float32"]), "", "1"]]
    for name, form in entry["forms"].items():
        ratio = float32 / times[name]["median"]
        correlation = f"{form['order']:.4f}"
        rows.append([name, f"{form['bytes']:.0f}", time(times[name]), f"{ratio:.2f}×", correlation])
    header = ["tokens", "bytes a token", "time", "speed, float32 = 1", "correlation with float32"]
    return f"{title(entry)}\n\n" + table(header, rows)


def training(entry: Json) -> str:
    ours = entry["contenders"]["simtile"]["median"]
    rows = []
    for name, value in entry["contenders"].items():
        mine = name == "simtile"
        rows.append(
            [
                f"**{name}**" if mine else name,
                time(value),
                "" if mine else f"{value['median'] / ours:.2f}×",
                megabytes(entry["bytes"][name]),
            ]
        )
    caption = (
        f"{entry['count']} × {entry['count']} pairs of {entry['query_length']} and "
        f"{entry['document_length']} tokens, D = {entry['dim']}, forward, loss and backward, "
        f"{entry['threads']} threads"
    )
    return f"{caption}\n\n" + table(["", "time", "simtile is", "peak memory of a step"], rows)


def top_k(entry: Json) -> str:
    rows = [[name, time(value)] for name, value in entry["times"].items()]
    return f"{title(entry)}\n\n" + table(["", "time"], rows)


def odd(entry: Json) -> str:
    rows = [
        [name, time(value), f"{digits(entry['rates'][name] / 1e9)} GFLOP/s"]
        for name, value in entry["times"].items()
    ]
    return table([f"float32, {entry['threads']} threads", "time", "rate"], rows)


SHORT = {
    "one_query": "1 query of 32 tokens, 1,000 documents of 180",
    "ragged": "the same, 60 to 300 tokens each",
    "sixteen": "16 queries of 32, 1,000 documents of 180",
    "training": "32 × 32 pairs, forward and backward",
}

ENTRIES = {
    "one_query": speed,
    "sixteen": speed,
    "ragged": ragged,
    "smaller": smaller,
    "training": training,
    "top_k": top_k,
    "odd": odd,
}


def maxsim(results: Json) -> str:
    """Every entry and every target of one run."""
    parts = [machine(results)]
    parts += [ENTRIES[name](entry) for name, entry in results["entries"].items()]
    parts.append(targets(results["targets"]))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def short(results: Json) -> str:
    """The table for the front page: one query, ragged documents, training."""
    names = ["simtile", "maxsim-cpu", "NumKong", "torch einsum", "sentence-transformers"]
    rows = []
    for entry_name, text in SHORT.items():
        entry = results["entries"].get(entry_name)
        if entry is None:
            continue
        ours = entry["contenders"]["simtile"]["median"]
        row = [text, f"**{seconds(ours)}**"]
        for name in names[1:]:
            value = entry["contenders"].get(name)
            row.append(
                f"{seconds(value['median'])} ({value['median'] / ours:.1f}×)" if value else ""
            )
        rows.append(row)
    return table(["float32, D = 128", *names], rows) + "\n" + machine(results) + "\n"
