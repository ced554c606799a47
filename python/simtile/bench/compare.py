"""Two stored runs of the benchmarks: what became slower by more than the noise.

Only simtile's own times can be regressions. Those of its peers and the measured peaks, taken in
turn with them, say how the machine was; their ratios are shown beside.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

# A median of some seven samples strays by half of its run's spread: this is three of its standard
# deviations, of both runs together.
SPREADS = 2.0
# What stays of a difference where the spreads happen to be tiny: another start, another placement.
FLOOR = 0.05
# of results that differ in one of these a ratio of times would say nothing
SIZES = ("quick", "shape", "batch", "micro_batch", "tokens")


class CannotCompare(RuntimeError):
    """Two runs that have nothing in common, or none that can be read."""


@dataclass(frozen=True)
class Ratio:
    """One quantity in both runs."""

    name: str
    kind: str  # "simtile", "peer" or "peak"
    slower: float  # 2: twice the time, or half the rate
    noise: float  # relative, of the ratio

    @property
    def regressed(self) -> bool:
        return self.kind == "simtile" and self.slower > 1 + self.noise

    @property
    def improved(self) -> bool:
        return self.kind == "simtile" and 1 / self.slower > 1 + self.noise


def run(before: Path, after: Path) -> int:
    """Show the ratios of `after` to `before`; 1 if something regressed or failed.

    Raises
    ------
    CannotCompare
        A file cannot be read, or the two have no benchmark in common.
    """
    old, new = load(before), load(after)
    common = [bench for bench in old if bench in new]
    if not common:
        raise CannotCompare(
            f"{before} has {_listed(old)}, {after} has {_listed(new)}: no benchmark in common"
        )
    bad = []
    for bench in common:
        different = differences(old[bench], new[bench])
        print(f"\n{bench}")
        for line in different:
            print(f"  WARNING: {line}")
        found = ratios(bench, old[bench], new[bench])
        for ratio in found:
            print(f"  {_line(ratio)}")
        _print_missing(bench, old[bench], new[bench])
        _print_machine(found)
        bad += [f"{r.name}: {r.slower:.2f} times the time" for r in found if r.regressed]
        bad += [f"{bench} failed: {failure}" for failure in new[bench].get("failures", [])]
    for where, only in ((before, old.keys() - new), (after, new.keys() - old)):
        if only:
            print(f"\nonly in {where}: {_listed(only)}")
    print(f"\n{len(bad)} regressions or failures")
    for line in bad:
        print(f"  {line}")
    return 1 if bad else 0


def load(path: Path) -> dict[str, Json]:
    """Results by benchmark, of a file or of those in a folder."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    results = {}
    for file in files:
        try:
            result = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise CannotCompare(f"{file}: cannot be read as results ({error})") from error
        if isinstance(result, dict) and {"bench", "machine"} <= result.keys():
            results[result["bench"]] = result
    if not results:
        raise CannotCompare(f"{path}: no results of `simtile bench` there")
    return results


def differences(old: Json, new: Json) -> list[str]:
    """In what the two runs differ besides simtile, so that a ratio may not be simtile's doing.

    Raises
    ------
    CannotCompare
        The sizes differ.
    """
    for name in SIZES:
        if old.get(name) != new.get(name):
            raise CannotCompare(
                f"{old['bench']}: {name} is {old.get(name)} in the one and {new.get(name)} in the "
                "other; times of different sizes cannot be compared"
            )
    first, second = _conditions(old), _conditions(new)
    return [
        f"different {name}: {first.get(name)} and {second.get(name)}"
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    ]


def _conditions(results: Json) -> Json:
    machine = results["machine"]
    names = ("cpu", "cpus", "level", "system", "python")
    packages = {k: v for k, v in machine.get("versions", {}).items() if k != "simtile"}
    threads = results.get("threads", machine.get("threads"))
    return {**{name: machine.get(name) for name in names}, "threads": threads, **packages}


def ratios(bench: str, old: Json, new: Json) -> list[Ratio]:
    """Of everything that both runs measured."""
    first, second = _measured(old), _measured(new)
    found = []
    for path in first:
        if path not in second:
            continue
        kind, a = first[path]
        b = second[path][1]
        slower = a["median"] / b["median"] if kind == "peak" else b["median"] / a["median"]
        noise = max(FLOOR, SPREADS * math.hypot(a["spread"], b["spread"]))
        found.append(Ratio("/".join((bench, *path)), kind, slower, noise))
    return found


Measured = dict[tuple[str, ...], tuple[str, Json]]


def _measured(results: Json) -> Measured:
    parts: Json = {name: results[name] for name in ("entries", "times", "peaks") if name in results}
    return dict(_samples(parts, ()))


def _samples(
    node: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, Json]]]:
    beside = any(name.startswith("simtile") for name in node)
    for name, value in node.items():
        if not isinstance(value, dict):
            continue
        here = (*path, name)
        if not {"median", "spread"} <= value.keys():
            yield from _samples(value, here)
        elif "peaks" in here or name.endswith("_peak"):
            yield here, ("peak", value)
        elif "peers" in here:
            yield here, ("peer", value)
        else:
            yield here, ("peer" if beside and not name.startswith("simtile") else "simtile", value)


def _line(ratio: Ratio) -> str:
    verdict = "REGRESSED" if ratio.regressed else "improved" if ratio.improved else ""
    what = "rate" if ratio.kind == "peak" else "time"
    value = 1 / ratio.slower if ratio.kind == "peak" else ratio.slower
    return f"{value:6.3f} x the {what} (noise {ratio.noise:.1%})  {ratio.name}  {verdict}".rstrip()


def _print_missing(bench: str, old: Json, new: Json) -> None:
    first, second = _measured(old), _measured(new)
    for where, only in (("first", first.keys() - second), ("second", second.keys() - first)):
        for path in sorted(only):
            print(f"  only in the {where}: {'/'.join((bench, *path))}")


def _print_machine(found: list[Ratio]) -> None:
    for kind, plural in (("peer", "peers"), ("peak", "measured peaks")):
        values = [ratio.slower for ratio in found if ratio.kind == kind]
        if values:
            print(f"  the machine: {plural} took {statistics.median(values):.3f} x the time")


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
