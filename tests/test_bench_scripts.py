"""The smaller benchmarks: what they compare, that a wrong result is not timed, which is where."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import simtile
from simtile.bench import runner

ROOT = Path(__file__).resolve().parent.parent

for package in ("rich", "torch", "faiss", "sentence_transformers", "datasets"):
    pytest.importorskip(package)


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    common = importlib.import_module("_common")
    # here nobody looks at the times
    monkeypatch.setattr(common, "SHORTEST_SAMPLE", 0.0)
    monkeypatch.setattr(common.gc, "collect", lambda: 0)
    yield
    simtile.set_num_threads(None)


def entries(script: str) -> Iterator[str]:
    """Without importing it: the keys of its ENTRIES."""
    text = (ROOT / "bench" / f"{script}.py").read_text()
    return iter(re.findall(r'^    "(\w+)": \w+,$', text.partition("\nENTRIES = {")[2], re.M))


SCRIPTS = ("losses", "late_interaction", "indexes", "gpu_peers")
ALL = [(script, name) for script in SCRIPTS for name in entries(script)]


def run(script: str, name: str) -> Any:
    module = importlib.import_module(script)
    assert set(module.ENTRIES) == set(entries(script))
    if script == "gpu_peers":  # on tensors of the CPU, without the peers that have no CPU
        vars(module)["DEVICE"] = "cpu"
    entry, targets = module.ENTRIES[name](module.Run(1, True))
    assert targets == []
    return entry


@pytest.mark.parametrize(("script", "name"), ALL)
def test_an_entry_compares_measures_and_is_shown(script: str, name: str) -> None:
    entry = run(script, name)
    assert entry["times"].keys() == entry["memory"].keys()
    assert len(entry["times"]) > 1
    text = importlib.import_module("_beside").markdown(name, entry)
    assert "| **simtile** |" in text
    assert text.count("×") == len(entry["times"]) - 1


def doubled(result: Any) -> Any:
    return result * 2


def first_changed(result: Any) -> Any:
    """Of a tuple or a list the first array is another one."""
    first, *rest = result
    return [first + 1, *rest]


def other_ids(result: Any) -> Any:
    offsets, scores, ids = result
    return offsets, scores, ids[::-1]


def other_centroids(result: Any) -> Any:
    return SimpleNamespace(centroid_ids=result.centroid_ids + 1, codes=result.codes)


def worst_ids(result: Any) -> Any:
    scores, ids = result
    return scores, ids * 0


def one_pair_lost(result: Any) -> Any:
    return SimpleNamespace(pairs=result.pairs[1:])


def twice_in_a_batch(result: Any) -> Any:
    first, *rest = result
    return iter([first + rest[-1], *rest[:-1]])


# entry: what is replaced, and what is made of its results
MISTAKES: dict[tuple[str, str], tuple[Any, str, Callable[[Any], Any]]] = {
    ("losses", "siglip"): (simtile, "siglip_loss", doubled),
    ("losses", "triplet"): (simtile, "triplet_loss", doubled),
    ("losses", "alignment"): (simtile, "alignment", doubled),
    ("losses", "anisotropy"): (simtile, "anisotropy", doubled),
    ("losses", "audit_batch"): (simtile, "audit_batch", one_pair_lost),
    ("losses", "distinct_ids"): (simtile.DistinctIdsBatchSampler, "__iter__", twice_in_a_batch),
    ("late_interaction", "padded"): (simtile, "maxsim", doubled),
    ("late_interaction", "pairs"): (simtile, "maxsim_pairwise", doubled),
    ("late_interaction", "xtr"): (simtile, "xtr_scores", doubled),
    ("late_interaction", "residual"): (simtile.ResidualCodec, "encode", other_centroids),
    ("late_interaction", "index_add"): (simtile.MultiVectorIndex, "score", doubled),
    ("late_interaction", "index_search"): (simtile.MultiVectorIndex, "search", first_changed),
    ("indexes", "range_search"): (simtile, "range_search", other_ids),
    ("indexes", "flat_search"): (simtile.FlatIndex, "search", first_changed),
    ("indexes", "flat_add"): (simtile.FlatIndex, "search", first_changed),
    ("indexes", "flat_change"): (simtile.FlatIndex, "search", first_changed),
    ("indexes", "flat_score"): (simtile.FlatIndex, "score", doubled),
    ("indexes", "cascade_add"): (simtile.CascadeIndex, "search", first_changed),
    ("indexes", "merge"): (simtile, "merge_topk", first_changed),
    ("gpu_peers", "info_nce"): (simtile, "info_nce", doubled),
    ("gpu_peers", "clip"): (simtile, "info_nce", doubled),
    ("gpu_peers", "maxsim"): (simtile, "maxsim", doubled),
    ("gpu_peers", "maxsim_training"): (simtile, "maxsim", doubled),
    ("gpu_peers", "bits_1"): (simtile, "topk", worst_ids),
    ("gpu_peers", "bits_100"): (simtile, "topk", worst_ids),
    ("gpu_peers", "floats"): (simtile, "topk", worst_ids),
}


@pytest.mark.parametrize(("script", "name"), ALL)
def test_a_wrong_result_is_not_timed(
    script: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, function, change = MISTAKES[script, name]
    right = getattr(owner, function)
    monkeypatch.setattr(owner, function, lambda *args, **options: change(right(*args, **options)))
    with pytest.raises(importlib.import_module("_common").GateFailed):
        run(script, name)


def table() -> dict[str, set[str]]:
    """By script what bench/README.md says that it times."""
    text = (ROOT / "bench" / "README.md").read_text()
    part = text.partition("## Which script times what")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)\.py` \| ([^|]*) \|", part, re.MULTILINE)
    return {script: set(re.findall(r"`([\w.]+)`", what)) for script, what in rows}


def not_timed() -> set[str]:
    text = (ROOT / "bench" / "README.md").read_text()
    return set(re.findall(r"`([\w.]+)`", text.partition("\nNot timed:")[2].partition("\n\n")[0]))


def public() -> set[str]:
    """What `simtile` has that could take time."""
    return {
        name
        for name in simtile.__all__
        if inspect.isroutine(getattr(simtile, name)) or inspect.isclass(getattr(simtile, name))
    }


def sources(path: Path, seen: set[Path]) -> Iterator[str]:
    """The text of a script and of what it imports from its folder."""
    if path in seen or not path.exists():
        return
    seen.add(path)
    text = path.read_text()
    yield text
    for name in re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE):
        yield from sources(path.with_name(f"{name}.py"), seen)


def test_every_public_operation_is_timed_where_the_readme_says() -> None:
    named = set().union(*table().values())
    assert public() - named == not_timed() & public()
    for script, functions in table().items():
        source = "".join(sources(ROOT / "bench" / f"{script}.py", set()))
        for name in functions:
            assert re.search(rf"simtile\.{name}\b", source) or re.search(
                rf"import .*\b{name}\b", source
            ), f"{script}.py does not call {name}"


def test_a_public_operation_that_is_added_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simtile, "added", lambda: None, raising=False)
    monkeypatch.setattr(simtile, "__all__", [*simtile.__all__, "added"])
    with pytest.raises(AssertionError, match="added"):
        test_every_public_operation_is_timed_where_the_readme_says()


def test_simtile_bench_runs_what_is_named() -> None:
    assert table().keys() == set(runner.MINUTES) - {"peak"}
