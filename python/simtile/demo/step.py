"""One contrastive training step, fused or in plain NumPy, measured in a process of its own.

``python -m simtile.demo.step simtile --pairs 16384`` prints one JSON object. A process of its own
is what makes the peak memory that of the step alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

PAIRS = 16384
DIM = 384
TEMPERATURE = 0.05
SAMPLED_ROWS = 64  # gradient rows that two steps are compared on
TIMEOUT_S = 300
# what the BLAS behind NumPy may ask for its number of threads
BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class StepFailed(RuntimeError):
    """The measuring process did not answer; the message says why."""


@dataclass(frozen=True)
class StepResult:
    """What one step took and gave.

    ``memory`` is the peak beyond what the process held with its inputs, in bytes, gradients
    included; ``rows`` holds evenly spaced rows of both gradients, [2 · SAMPLED_ROWS, D].
    """

    seconds: float
    memory: int
    loss: float
    rows: FloatArray


def numpy_step(
    queries: FloatArray, documents: FloatArray, temperature: float
) -> tuple[float, FloatArray, FloatArray]:
    """Loss and gradients of InfoNCE on L2-normalised inputs, by the textbook formula on N×N logits.

    Written as NumPy is written with care: the one [N, N] array is updated in place throughout.
    """
    count = len(queries)
    query_length = np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    document_length = np.maximum(np.linalg.norm(documents, axis=1, keepdims=True), 1e-12)
    unit_queries = queries / query_length
    unit_documents = documents / document_length

    matrix = unit_queries @ unit_documents.T  # [N, N] cosines, then logits, then probabilities
    matrix /= temperature
    matrix -= matrix.max(axis=1, keepdims=True)
    positive = matrix.diagonal().copy()
    np.exp(matrix, out=matrix)
    total = matrix.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - positive))

    matrix /= total
    matrix.flat[:: count + 1] -= 1
    scale = 1 / (count * temperature)
    grad_queries = scale * (matrix @ unit_documents)
    grad_documents = scale * (matrix.T @ unit_queries)
    return (
        loss,
        _through_normalisation(grad_queries, unit_queries, query_length),
        _through_normalisation(grad_documents, unit_documents, document_length),
    )


def _through_normalisation(
    gradient: FloatArray, unit: FloatArray, length: FloatArray
) -> FloatArray:
    radial = (gradient * unit).sum(axis=1, keepdims=True)
    result: FloatArray = (gradient - radial * unit) / length
    return result


def numpy_step_bytes(pairs: int, dim: int) -> int:
    """Memory that :func:`numpy_step` needs: the [N, N] matrix and eight [N, D] arrays, float32."""
    return 4 * pairs * pairs + 8 * 4 * pairs * dim


def make_inputs(pairs: int, dim: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Random queries and documents near them, so that positives stand out as in training."""
    generator = np.random.default_rng(seed)
    queries = generator.standard_normal((pairs, dim), np.float32)
    documents = generator.standard_normal((pairs, dim), np.float32)
    documents *= 2
    documents += queries
    return queries, documents


def measure(method: str, pairs: int, dim: int, seed: int, threads: int) -> StepResult:
    """Run one step in this process: a small one first, so that loading code is not counted."""
    if method == "simtile":
        import simtile

        def run(queries: FloatArray, documents: FloatArray) -> tuple[float, FloatArray, FloatArray]:
            loss, grad_queries, grad_documents = simtile.info_nce_grad(
                queries, documents, temperature=TEMPERATURE, threads=threads
            )
            return float(loss), grad_queries, grad_documents
    else:

        def run(queries: FloatArray, documents: FloatArray) -> tuple[float, FloatArray, FloatArray]:
            return numpy_step(queries, documents, TEMPERATURE)

    queries, documents = make_inputs(pairs, dim, seed)
    run(queries[:512], documents[:512])
    held = _resident_bytes()
    start = time.perf_counter()
    loss, grad_queries, grad_documents = run(queries, documents)
    seconds = time.perf_counter() - start
    memory = max(0, _peak_bytes() - held)
    picked = np.linspace(0, pairs - 1, min(SAMPLED_ROWS, pairs)).astype(int)
    rows = np.concatenate([grad_queries[picked], grad_documents[picked]]).astype(np.float32)
    return StepResult(seconds, memory, loss, rows)


def run_step(method: str, *, pairs: int, dim: int, seed: int, threads: int) -> StepResult:
    """:func:`measure` in a new process that uses ``threads`` threads.

    Raises
    ------
    StepFailed
        The process was killed, failed, or took longer than ``TIMEOUT_S``.
    """
    command = [sys.executable, "-m", "simtile.demo.step", method]
    for name, value in (("pairs", pairs), ("dim", dim), ("seed", seed), ("threads", threads)):
        command += [f"--{name}", str(value)]
    environment = {**os.environ, **dict.fromkeys(BLAS_THREADS, str(threads))}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StepFailed(f"did not finish within {TIMEOUT_S} s") from error
    if done.returncode < 0:
        raise StepFailed(f"was ended by signal {-done.returncode} (9: out of memory, most likely)")
    if done.returncode > 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StepFailed(f"failed: {last}")
    answer = json.loads(done.stdout.splitlines()[-1])
    rows = np.asarray(answer.pop("rows"), np.float32)
    return StepResult(rows=rows, **answer)


def largest_difference(one: StepResult, other: StepResult) -> float:
    """Largest difference of the sampled gradient rows, as a share of the largest gradient value."""
    largest = float(np.abs(other.rows).max())
    return float(np.abs(one.rows - other.rows).max()) / max(largest, 1e-30)


def _resident_bytes() -> int:
    status = _status_kib()
    return 1024 * status["VmRSS"] if "VmRSS" in status else _peak_bytes()


def _peak_bytes() -> int:
    # ru_maxrss of a child starts at its parent's on Linux; VmHWM is the process's own
    status = _status_kib()
    if "VmHWM" in status:
        return 1024 * status["VmHWM"]
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _status_kib() -> dict[str, int]:
    path = Path("/proc/self/status")
    if not path.exists():
        return {}
    fields = (line.split() for line in path.read_text().splitlines())
    return {field[0].rstrip(":"): int(field[1]) for field in fields if field[-1] == "kB"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=("simtile", "numpy"))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    result = measure(options.method, options.pairs, options.dim, options.seed, options.threads)
    print(json.dumps({**vars(result), "rows": result.rows.tolist()}))


if __name__ == "__main__":
    main()
