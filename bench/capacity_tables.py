"""Markdown of what 10 million and a billion documents take, from the stored results of `topk.py`.

Nothing is measured here. A rate is what `topk.py` measured divided by the threads that it had; what
a machine has, and the latency asked for, are the constants below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from tables import Json, digits, machine, seconds, table

COUNTS = {"10 million": 10_000_000, "1 billion": 1_000_000_000}
# Of a machine: cores, memory, and the share of it that documents may take.
CORES = 16
MEMORY = 64e9
USED = 0.75
LATENCY = 0.1  # seconds for one query alone
BATCH = "100"  # queries searched together


class Form(NamedTuple):
    """What a core does with documents of one form."""

    name: str
    stored: float  # bytes of a document
    scanned: float  # bytes of a document that every query reads
    rate: float  # of those, bytes a second and core, for one query
    fixed: float  # seconds a query beyond reading, however many documents
    batched: float  # documents a second, core and query, in batches
    batched_fixed: float  # seconds of a core a query beyond that


def forms(results: Json) -> list[Form]:
    """The measured forms, from the largest to the smallest that is read."""
    entries = results["entries"]
    read = max(
        one["peaks"]["read"]["median"] for one in entries["float32"]["counts"].values()
        if "read" in one["peaks"]
    )  # fmt: skip
    names = {"float32": "float32", "int8": "int8", "binary": "binary, Hamming"}
    found = []
    for name, title in names.items():
        one, many = (entries[name]["counts"][count] for count in ("1", BATCH))
        size = one["bytes"] / one["n"]
        # What fits into a cache may be read faster than memory ever will.
        rate = min(one["bytes"] / _median(one), read) / one["threads"]
        batched = int(BATCH) * many["n"] / _median(many) / many["threads"]
        found.append(Form(f"{title}, {one['dim']}", size, size, rate, 0.0, batched, 0.0))
    cascade, threads = entries["cascade"], entries["binary"]["counts"]["1"]["threads"]
    first = f"first stage, k = {cascade['handed_on']}"
    n, scanned = cascade["n"], cascade["dim"] / 8
    one, many = (
        {key: value["median"] for key, value in cascade["counts"][count].items()}
        for count in ("1", BATCH)
    )
    found.append(
        Form(
            f"{' → '.join(cascade['stages'])}, {cascade['dim']}",
            cascade["bytes"],
            scanned,
            min(n * scanned / one[first], read) / threads,
            max(0.0, one["cascade"] - one[first]),
            int(BATCH) * n / many[first] / threads,
            max(0.0, many["cascade"] - many[first]) * threads / int(BATCH),
        )
    )
    return found


class Plan(NamedTuple):
    """What a number of documents in one form takes."""

    bytes: float
    machines: int
    cores: int  # that one query alone needs for the latency
    latency: float  # of one query alone, on all of the machines' cores
    throughput: float  # queries a second in batches, on all of them


def plan(form: Form, documents: int) -> Plan:
    """How many machines, and what they do: as many as memory and latency ask for."""
    stored = documents * form.stored
    cores = math.ceil(documents * form.scanned / form.rate / (LATENCY - form.fixed))
    machines = max(math.ceil(stored / (MEMORY * USED)), math.ceil(cores / CORES))
    shard = documents / machines
    latency = shard * form.scanned / (form.rate * CORES) + form.fixed
    # Every shard works for every query.
    work = shard / form.batched + form.batched_fixed
    return Plan(stored, machines, cores, latency, CORES / work)


def rates(results: Json) -> str:
    """What is measured: a row for every form."""
    rows = [
        [
            form.name,
            f"{form.stored:,.0f}",
            f"{form.scanned:,.0f}",
            f"{digits(form.rate / 1e9)} GB/s",
            f"{CORES * form.rate / 1e9:,.0f} GB/s",
            f"{form.rate / form.scanned / 1e6:,.1f} M/s",
            f"{form.batched / 1e6:,.0f} M/s",
        ]
        for form in forms(results)
    ]
    header = ["a core, measured", "bytes a document", "of them read by a query"]
    header += [
        "reads, one query",
        f"{CORES} such cores",
        "documents, one query",
        f"documents a query, {BATCH} together",
    ]
    return table(header, rows) + "\n" + machine(results) + "\n"


def plans(results: Json) -> str:
    """What is derived: a table for every number of documents."""
    parts = []
    for title, documents in COUNTS.items():
        rows = []
        for form in forms(results):
            found = plan(form, documents)
            rows.append(
                [
                    form.name,
                    _gigabytes(found.bytes),
                    f"{found.cores:,}",
                    f"{found.machines:,}",
                    seconds(found.latency),
                    f"{found.throughput:,.0f}",
                ]
            )
        header = [f"{title} documents", "bytes", f"cores for {seconds(LATENCY)}", "shards"]
        header += ["one query takes", "queries/s, in batches"]
        parts.append(table(header, rows))
    facts = (
        f"A shard is a machine of {CORES} cores and {MEMORY / 1e9:.0f} GB, of which documents take "
        f"at most {USED:.0%}. Shards: as many as hold the documents and answer one query alone "
        f"within {seconds(LATENCY)}; the last two columns are for all of them together, k = 10."
    )
    return "\n".join([*parts, facts]) + "\n"


REGIONS: dict[str, Callable[[Json], str]] = {"capacity_rates": rates, "capacity": plans}


def _median(one: Json) -> float:
    value: float = one["contenders"]["simtile"]["median"]
    return value


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.0f} GB" if value >= 9.95e9 else f"{value / 1e9:.1f} GB"
