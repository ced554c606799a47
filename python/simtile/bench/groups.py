"""What was timed together, found in the stored results of any benchmark.

Scripts store what their own tables need, at different depths. They agree in this: repeated
measurements are a dictionary with "median" and "spread", those that took turns lie side by side
under the contenders' names, and what is known of them is beside or above.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

# Names that say nothing to a reader of a path.
SILENT = ("contenders", "times", "counts", "calls", "axes", "kinds")
# What is told of a group, and is none itself.
BESIDE = ("peaks", "errors", "memory", "share", "work", "base", "slowest", "beside")


@dataclass(frozen=True)
class Group:
    """Contenders of one call, in the order in which they were stored."""

    path: tuple[str, ...]
    samples: Mapping[str, Json]
    facts: Mapping[str, Any]  # numbers and words: sizes, element types
    errors: Mapping[str, float]
    memory: Mapping[str, float]  # bytes
    shares: Mapping[str, float]  # of a peak, by its kind

    @property
    def title(self) -> str:
        words = [
            f"{name} queries" if above == "counts" else name
            for above, name in zip(("", *self.path), self.path, strict=False)
            if name not in SILENT
        ]
        return ", ".join(words)

    @property
    def ours(self) -> str | None:
        """The contender that others are compared with."""
        names = [name for name in self.samples if name.startswith("simtile")]
        return "simtile" if "simtile" in names else next(iter(names), None)

    def ratio(self, name: str) -> float | None:
        """How often simtile's time; None of simtile itself, and where there is none."""
        if self.ours is None or name == self.ours:
            return None
        return float(self.samples[name]["median"] / self.samples[self.ours]["median"])


def is_samples(value: object) -> bool:
    return isinstance(value, dict) and {"median", "spread"} <= value.keys()


def groups(results: Json) -> list[Group]:
    """Of every entry; a benchmark without entries is one itself."""
    parts = results["entries"] if "entries" in results else {"": {"times": results.get("times")}}
    return list(_walk(parts, (), []))


def without_times(results: Json) -> Json:
    """Entries in which nothing was timed: memory, counts, shares that were found."""
    timed = {group.path[0] for group in groups(results)}
    return {name: value for name, value in results.get("entries", {}).items() if name not in timed}


def _walk(node: Json, path: tuple[str, ...], above: Sequence[Json]) -> Iterator[Group]:
    levels = [*above, node]
    samples = {
        name: value
        for name, value in node.items()
        if is_samples(value) and not name.endswith("_peak")
    }
    if samples:
        yield Group(
            path, samples, _facts(levels), _errors(levels), _memory(levels), _shares(levels)
        )
    for name, value in node.items():
        if isinstance(value, dict) and not is_samples(value) and name not in BESIDE:
            yield from _walk(value, (*path, name), levels)


def _facts(levels: Sequence[Json]) -> Json:
    return {
        name: value
        for level in levels
        for name, value in level.items()
        if isinstance(value, (str, int, float))
    }


def _nearest(levels: Sequence[Json], *names: str) -> Any:
    for level in reversed(levels):
        for name in names:
            if name in level and not is_samples(level[name]):
                return level[name]
    return None


def _errors(levels: Sequence[Json]) -> dict[str, float]:
    found = _nearest(levels, "errors", "error")
    if isinstance(found, float):
        return {"simtile": found}
    if not isinstance(found, dict):
        return {}
    # of loss and gradients the largest
    return {
        name: max(value.values()) if isinstance(value, dict) else value
        for name, value in found.items()
    }


def _memory(levels: Sequence[Json]) -> dict[str, float]:
    found = _nearest(levels, "memory", "bytes")
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def _shares(levels: Sequence[Json]) -> dict[str, float]:
    found = _nearest(levels, "share", "share_of_read_peak")
    if isinstance(found, float):
        return {"read": found} if any("share_of_read_peak" in level for level in levels) else {}
    if not isinstance(found, dict):
        return {}
    if "of" in found:  # a unit that multiplies more often than the formula
        unit, products = found["unit"], found["products"]
        return {unit: found["of"][unit] * products}
    return dict(found)
