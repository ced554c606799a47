"""simtile beside its peers on one input, for operations with nothing special to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import _common
import tables
from _common import Json, Run, interleave

SIMTILE = "simtile"

Calls = Mapping[str, Callable[[], Any]]


def beside(run: Run, calls: Calls, rounds: int, errors: Mapping[str, float], **facts: Any) -> Json:
    """Memory of a call of each, then all in turn. The caller has compared their results."""
    for call in calls.values():  # code, threads and buffers that stay are there before
        call()
    memory = {who: _common.extra_memory(call)[0] for who, call in calls.items()}
    times, _ = interleave(calls, rounds=run.rounds(rounds), threads=run.threads)
    return {
        **facts,
        "threads": run.threads,
        "errors": dict(errors),
        "memory": memory,
        "times": {who: samples.json() for who, samples in times.items()},
    }


def markdown(name: str, entry: Json) -> str:
    """A row for each contender, the fastest first."""
    times = entry["times"]
    ours = times[SIMTILE]["median"]
    rows = []
    for who, samples in sorted(times.items(), key=lambda item: item[1]["median"]):
        error = entry["errors"].get(who)
        rows.append(
            [
                f"**{who}**" if who == SIMTILE else who,
                tables.time(samples),
                "" if who == SIMTILE else f"{samples['median'] / ours:.2f}×",
                tables.megabytes(entry["memory"][who]),
                "" if error is None else f"{error:.1e}",
            ]
        )
    header = [name.replace("_", " "), "time", "simtile is", "memory of a call", "error"]
    return f"{tables.table(header, rows)}\n{facts(entry)}\n"


def facts(entry: Json) -> str:
    """What was called, by its sizes and options."""
    parts = []
    for name, value in entry.items():
        if isinstance(value, str):
            parts.append(value)
        elif isinstance(value, (int, float)):
            parts.append(f"{name.replace('_', ' ')} = {value:,}")
    return ", ".join(parts)
