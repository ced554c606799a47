"""Late interaction: `python bench/maxsim.py [--quick] [--only NAME] [--output DIR]`.

simtile beside what people use today, in one run: one query and sixteen, ragged documents, smaller
tokens, training, fused top-k, odd sizes, memory, and what was promised. Every entry first checks
scores against the definition and the peers; if that fails nothing is timed and the exit code is 1,
as it is when a share of a peak exceeds 100 %. Results of a complete run go to
bench/results/<machine>/; of --quick and --only nowhere, unless --output says where. A complete run
takes about two minutes and 2 GB.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import maxsim_contenders as contenders
import maxsim_tables
import numpy as np
import plots.maxsim
import tables
from _common import GateFailed, Json, Run, Samples, Target, interleave, share_of_peak
from maxsim_contenders import (
    EINSUM,
    MAXSIM_CPU,
    NUMKONG,
    SENTENCE_TRANSFORMERS,
    SIMTILE,
    TOLERANCE,
    Scene,
)

import simtile
from simtile import _core

SCRIPT = Path(__file__).resolve()
Result = tuple[Json, list[Target]]
QUERY, DOCUMENT, DIM = 32, 180, 128  # ColBERT's
FMA, MATRIX = "fma_f32", "matrix_bf16"
K = 10

# NumKong's scores of float32 tokens are off by some percent of a token's similarity.
LOOSE = {NUMKONG: 0.05}
# Times our float32's speed that were promised.
SMALLER = {
    "bfloat16": 1.6,
    "int8": 2.8,
    "binary, int8 query": 3.0,
    "binary, float query": 1.5,
    "residual, 2 bits": 1.5,
}


def fixed(run: Run, queries: int) -> Scene:
    lengths = np.full(run.size(1000, 100), DOCUMENT)
    return Scene(queries, QUERY, lengths, DIM, run.threads)


def gate(name: str, scene: Scene, scores: Any, exact: Any, tolerance: float = TOLERANCE) -> float:
    """The largest error, refused above so much for each query token."""
    allowed = tolerance * scene.queries.shape[1]
    off = float(np.abs(np.asarray(scores, np.float64) - exact).max(initial=0))
    if not off <= allowed:
        raise GateFailed(f"{name}: a score is {off:.3g} off the definition, allowed {allowed:.3g}")
    return off


def measure(
    run: Run, scene: Scene, names: tuple[str, ...], rounds: int
) -> tuple[Json, dict[str, Samples]]:
    """Gate, then time everybody beside the peaks: the entry and the times."""
    exact = scene.oracle()
    calls = scene.calls(names)
    errors = {
        name: gate(name, scene, call(), exact, LOOSE.get(name, TOLERANCE))
        for name, call in calls.items()
    }
    kinds = [kind for kind in (FMA, MATRIX) if kind in _core.peak_kinds()]
    times, peaks = interleave(
        calls, rounds=run.rounds(rounds), threads=run.threads, peak_kinds=kinds
    )
    rate = 2 * scene.products / times[SIMTILE].median
    if not run.quick:
        fastest = max(max(peak.values) for peak in peaks.values())
        share_of_peak(rate, fastest, "maxsim float32")
    entry: Json = {
        **shape(scene),
        "contenders": {name: samples.json() for name, samples in times.items()},
        "errors": errors,
        "peaks": {kind: samples.json() for kind, samples in peaks.items()},
        "share": {kind: rate / peak.median for kind, peak in peaks.items()},
    }
    return entry, times


def shape(scene: Scene) -> Json:
    return {
        "queries": scene.queries.shape[0],
        "query_length": scene.queries.shape[1],
        "documents": len(scene.lengths),
        "tokens": len(scene.tokens),
        "dim": scene.dim,
        "threads": scene.threads,
    }


def faster(times: dict[str, Samples], where: str, limits: dict[str, float]) -> list[Target]:
    return [
        Target(
            f"{where}: times {other}'s speed",
            times[other].median / times[SIMTILE].median,
            "at least",
            limit,
            "x",
        )
        for other, limit in limits.items()
    ]


def one_query(run: Run) -> Result:
    scene = fixed(run, 1)
    names = (SIMTILE, MAXSIM_CPU, NUMKONG, EINSUM, SENTENCE_TRANSFORMERS)
    entry, times = measure(run, scene, names, 15)
    where = "float32, 1 query"
    targets = faster(times, where, {MAXSIM_CPU: 5, NUMKONG: 3})
    share = entry["share"][FMA]
    return entry, [*targets, Target(f"{where}: share of the FMA peak", share, "at least", 0.7)]


def sixteen(run: Run) -> Result:
    entry, _ = measure(run, fixed(run, 16), (SIMTILE, EINSUM), 7)
    share = entry["share"][FMA]
    what = "float32, 16 queries: share of the FMA peak"
    return entry, [Target(what, share, "at least", 0.8)]


def ragged(run: Run) -> Result:
    """60 to 300 tokens a document, 180 on average, beside 180 each."""
    same = fixed(run, 1)
    lengths = np.random.default_rng(2).integers(60, 301, len(same.lengths))
    scene = Scene(1, QUERY, lengths, DIM, run.threads)
    entry, times = measure(run, scene, (SIMTILE, MAXSIM_CPU, SENTENCE_TRANSFORMERS), 7)
    of_each, _ = interleave(
        {"ragged": scene.simtile, "fixed": same.simtile},
        rounds=run.rounds(21),
        threads=run.threads,
    )
    per_token = [
        of_each[name].median / len(one.tokens) for name, one in (("ragged", scene), ("fixed", same))
    ]
    entry["per_token"] = {"ragged": per_token[0], "fixed": per_token[1]}
    ratio = per_token[0] / per_token[1]
    where = "float32, ragged, 1 query"
    return entry, [
        *faster(times, where, {SENTENCE_TRANSFORMERS: 20}),
        Target(f"{where}: time per token, of fixed lengths = 1", ratio, "at most", 1.05),
    ]


def smaller(run: Run) -> Result:
    """The same documents in fewer bytes a token, beside our float32."""
    scene = fixed(run, 1)
    forms = of_bytes(scene)
    float32 = scene.simtile()
    calls: dict[str, Callable[[], Any]] = {"float32": scene.simtile}
    entry: Json = {**shape(scene), "forms": {}}
    for name, (tokens, queries) in forms.items():

        def call(tokens: Any = tokens, queries: Any = queries) -> Any:
            return scene.simtile(tokens, queries)

        scores = np.asarray(call())
        exact = decoded_scores(scene, tokens, queries)
        gate(name, scene, scores, exact, 1e-4 * float(np.abs(exact).max() / QUERY))
        calls[name] = call
        entry["forms"][name] = {
            "bytes": token_bytes(tokens) / len(scene.tokens),
            "order": float(np.corrcoef(scores.ravel(), np.asarray(float32).ravel())[0, 1]),
        }
    times, _ = interleave(calls, rounds=run.rounds(21), threads=run.threads)
    entry["times"] = {name: samples.json() for name, samples in times.items()}
    return entry, [
        Target(
            f"{name}: times our float32's speed",
            times["float32"].median / times[name].median,
            "at least",
            limit,
            "x",
        )
        for name, limit in SMALLER.items()
    ]


def of_bytes(scene: Scene) -> dict[str, tuple[Any, Any]]:
    """Tokens and queries of every codec: (tokens, queries or None for float32)."""
    int8 = simtile.quantize(scene.tokens, "int8_vector")
    binary = simtile.quantize(scene.tokens, "binary")
    flat = scene.queries.reshape(-1, scene.dim)
    int8_query = simtile.quantize(flat, "int8_vector")
    forms: dict[str, tuple[Any, Any]] = {
        "bfloat16": (contenders.bfloat16(scene.tokens), contenders.bfloat16(scene.queries)),
        "float16": (scene.tokens.astype(np.float16), None),
        "int8": (int8, None),
        "int8, int8 query": (int8, [int8_query]),
        "binary, float query": (binary, None),
        "binary, int8 query": (binary, [int8_query]),
    }
    for bits in (1, 2, 4):
        codec = simtile.ResidualCodec.train(scene.tokens, bits, centroids=1024)
        name = f"residual, {bits} bit{'s' * (bits > 1)}"
        forms[name] = (codec.encode(scene.tokens), None)
    return forms


def decoded_scores(scene: Scene, tokens: Any, queries: Any) -> Any:
    """The definition on what the codes stand for, in float64."""
    from simtile.reference import maxsim_numpy

    values = [widened(tokens), widened(scene.queries if queries is None else queries)]
    documents = np.split(values[0], scene.offsets[1:-1])
    return maxsim_numpy.maxsim(values[1].reshape(scene.queries.shape), documents).scores


def widened(x: Any) -> Any:
    if isinstance(x, list):
        return np.concatenate([widened(one) for one in x])
    if hasattr(x, "dequantize"):
        return np.asarray(x.dequantize(), np.float64)
    if hasattr(x, "decode"):
        return np.asarray(x.decode(), np.float64)
    return np.asarray(x.double() if hasattr(x, "double") else x, np.float64)


def token_bytes(tokens: Any) -> int:
    return int(tokens.nbytes)


def training(run: Run) -> Result:
    """All pairs of a batch, forward and backward, beside autograd on the einsum."""
    count = run.size(32, 8)
    task = {"count": count, "threads": run.threads}
    calls: dict[str, Callable[[], Any]] = {}
    grads = {}
    for name in (SIMTILE, EINSUM):
        queries, documents = contenders.training(count, QUERY, DOCUMENT, DIM)
        calls[name] = contenders.step(scorer(name, run.threads), queries, documents)
        calls[name]()
        grads[name] = [x.grad.double().numpy() for x in (queries, documents)]
    for ours, theirs in zip(grads[SIMTILE], grads[EINSUM], strict=True):
        off = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        if not off <= 1e-5:
            raise GateFailed(f"training: a gradient is {off:.3g} off autograd's")
    times, _ = interleave(calls, rounds=run.rounds(15), threads=run.threads)
    used = {}
    for name in (SIMTILE, EINSUM):
        result = _common.in_child(SCRIPT, {**task, "name": name})
        if "failed" in result:
            raise GateFailed(f"training, memory of {name}: {result['failed']}")
        used[name] = result["bytes"]
    entry: Json = {
        "count": count,
        "query_length": QUERY,
        "document_length": DOCUMENT,
        "dim": DIM,
        "threads": run.threads,
        "contenders": {name: samples.json() for name, samples in times.items()},
        "bytes": used,
    }
    where = f"training, {count} x {count} pairs"
    ratio = used[SIMTILE] / used[EINSUM]
    return entry, [
        *faster(times, where, {EINSUM: 4}),
        Target(f"{where}: peak memory, of {EINSUM} = 1", ratio, "at most", 0.1),
    ]


def scorer(name: str, threads: int) -> Callable[[Any, Any], Any]:
    if name == EINSUM:
        return contenders.einsum_scores
    return lambda queries, documents: simtile.maxsim(queries, documents, threads=threads)


def child(task: Json) -> Json:
    """Bytes by which a step grows the process; a small step before has what every step needs."""
    contenders.limit_threads(task["threads"])
    score = scorer(task["name"], task["threads"])
    contenders.step(score, *contenders.training(2, 4, 4, DIM))()
    queries, documents = contenders.training(task["count"], QUERY, DOCUMENT, DIM)
    used, _ = _common.extra_memory(contenders.step(score, queries, documents))
    return {"bytes": used}


def top_k(run: Run) -> Result:
    """The best 10 in the same pass, beside all scores."""
    scene = fixed(run, 1)
    scores = np.asarray(scene.simtile())
    found, ids = (np.asarray(x) for x in scene.simtile(k=K))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    if not (
        np.array_equal(ids, best) and np.array_equal(found, np.take_along_axis(scores, best, 1))
    ):
        raise GateFailed("top-k: not the best of all scores")
    calls: dict[str, Callable[[], Any]] = {
        "all scores": scene.simtile,
        f"k = {K}": lambda: scene.simtile(k=K),
    }
    times, _ = interleave(calls, rounds=run.rounds(21), threads=run.threads)
    return {**shape(scene), "times": {name: s.json() for name, s in times.items()}}, []


def odd(run: Run) -> Result:
    """Odd sizes beside the round ones next to them, per multiply-add."""
    count = run.size(1000, 100)
    scenes = {
        "1 query of 32, documents of 180, D = 128": Scene(
            1, 32, np.full(count, 180), 128, run.threads
        ),
        "1 query of 29, documents of 173, D = 111": Scene(
            1, 29, np.full(count, 173), 111, run.threads
        ),
        "7 queries of 9, documents of 1 to 60, D = 100": Scene(
            7, 9, np.random.default_rng(3).integers(1, 61, 4 * count), 100, run.threads
        ),
    }
    for name, scene in scenes.items():
        gate(name, scene, scene.simtile(), scene.oracle())
    calls = {name: scene.simtile for name, scene in scenes.items()}
    times, _ = interleave(calls, rounds=run.rounds(11), threads=run.threads)
    rates = {name: 2 * scenes[name].products / times[name].median for name in scenes}
    return {
        "times": {name: samples.json() for name, samples in times.items()},
        "rates": rates,
        "threads": run.threads,
    }, []


ENTRIES: dict[str, Callable[[Run], Result]] = {
    "one_query": one_query,
    "sixteen": sixteen,
    "ragged": ragged,
    "smaller": smaller,
    "training": training,
    "top_k": top_k,
    "odd": odd,
}


def main() -> int:
    arguments = _common.parser("Benchmark late interaction.", ENTRIES).parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return 0

    contenders.limit_threads(arguments.threads)
    _common.limit_blas(arguments.threads)
    machine = _common.machine()
    machine["versions"] |= contenders.versions()
    return _common.run_entries(
        "maxsim",
        ENTRIES,
        arguments,
        machine,
        lambda name, entry: maxsim_tables.ENTRIES[name](entry),
        tables.targets,
        plots.maxsim.draw,
    )


if __name__ == "__main__":
    sys.exit(main())
