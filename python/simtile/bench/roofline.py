"""Where stored calls lie under the roofs of the machine that ran them.

A call cannot do more operations a second than its unit (the roof), nor more than memory brings
operands for (the slope). Operations are the formula's; bytes are what must be read and written at
least once, so a call that finds its operands in a cache may lie above the slope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simtile.bench.groups import Group, groups

Json = dict[str, Any]

UNITS: Mapping[str, str] = {
    "fma_f32": "float32 FMA",
    "dot_bf16": "bf16 dot products",
    "dot_int8": "int8 dot products",
    "popcount": "xor + popcount, bytes",
}
# The unit that multiplies, or counts, elements of a type.
OF_TYPE: Mapping[str, str] = {
    "float32": "fma_f32",
    "bfloat16": "dot_bf16",
    "int8": "dot_int8",
    "packed": "popcount",
}
BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Point:
    """One call of simtile."""

    name: str
    unit: str
    operations: float
    bytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes

    @property
    def rate(self) -> float:
        return self.operations / self.seconds


@dataclass(frozen=True)
class Roofs:
    """Operations a second of each unit that was measured, and bytes a second of memory."""

    units: Mapping[str, float]
    memory: float

    def bound(self, point: Point) -> float:
        """Operations a second that the point's unit and memory allow."""
        return min(self.units[point.unit], point.intensity * self.memory)


def roofs(peak: Json, threads: int) -> Roofs | None:
    """From the results of bench/peak.py; None where that many threads were not measured."""
    measured = {
        kind: by_threads[str(threads)]["median"]
        for kind, by_threads in peak["peaks"].items()
        if str(threads) in by_threads
    }
    if "read" not in measured:
        return None
    return Roofs({kind: measured[kind] for kind in UNITS if kind in measured}, measured["read"])


def points(results: Json) -> list[Point]:
    """Of the calls of one benchmark whose operations and bytes are known."""
    found = []
    for group in groups(results):
        cost = _cost(results["bench"], group) if "simtile" in group.samples else None
        if cost is not None:
            seconds = group.samples["simtile"]["median"]
            name = f"{results['bench']}: {group.title}"
            found.append(Point(name, *cost, seconds))
    return found


def _cost(bench: str, group: Group) -> tuple[str, float, float] | None:
    """Unit, operations, bytes."""
    facts = group.facts
    if group.path[-1] not in ("contenders", "times") or group.path[0] == "levels":
        return None  # levels that were forced have other roofs
    if bench == "info_nce" and {"n", "dim", "dtype", "arithmetic"} <= facts.keys():
        n, dim, kind = facts["n"], facts["dim"], facts["dtype"]
        # both sides and both gradients
        return OF_TYPE[kind], 6.0 * n * n * dim, 4.0 * n * dim * BYTES[kind]
    if bench == "topk" and facts.get("kind") in OF_TYPE and "queries" in facts:
        done = float(facts["queries"] * facts["bytes"])  # bytes that meet
        if facts["metric"] != "hamming":
            done = 2.0 * facts["queries"] * facts["n"] * facts["dim"]
        return OF_TYPE[facts["kind"]], done, float(facts["bytes"])
    if bench == "maxsim" and {"tokens", "query_length", "queries"} <= facts.keys():
        elements = float(facts["tokens"] * facts["dim"])
        return "fma_f32", 2 * facts["queries"] * facts["query_length"] * elements, 4 * elements
    if bench == "pool" and "float32" in group.title:
        return "fma_f32", facts["bytes"] / 2, float(facts["bytes"])  # a multiply-add an element
    if bench == "quantize":
        moved = float(facts["bytes_read"] + facts["bytes_written"])
        return "fma_f32", facts["bytes_read"] / 2, moved
    return None
