from __future__ import annotations

import typing

import numpy

__all__: list[str] = [
    "code_norms",
    "cpu_info",
    "info_nce",
    "info_nce_arithmetic",
    "maxsim",
    "maxsim_backward",
    "maxsim_codes",
    "num_threads",
    "peak",
    "peak_kinds",
    "quantize",
    "range_search",
    "score_rows",
    "set_num_threads",
    "topk",
    "value_ranges",
]

def _cgroup_limit(root: str) -> int: ...
def _spin(
    seconds: typing.SupportsFloat | typing.SupportsIndex,
    tasks: typing.SupportsInt | typing.SupportsIndex,
    runs: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> float: ...
def _use_level(level: str | None) -> None: ...
def code_norms(
    kind: str,
    documents: numpy.ndarray,
    dim: typing.SupportsInt | typing.SupportsIndex,
    scale: numpy.ndarray | None,
    offset: numpy.ndarray | None,
    inverse: bool,
    threads: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.ndarray,
) -> None: ...
def cpu_info() -> dict[str, typing.Any]: ...
def info_nce(
    queries: numpy.ndarray,
    documents: numpy.ndarray,
    negatives: numpy.ndarray | None,
    dtype: str,
    temperature: typing.SupportsFloat | typing.SupportsIndex,
    normalize: bool,
    targets: numpy.ndarray | None,
    query_ids: numpy.ndarray | None,
    document_ids: numpy.ndarray | None,
    own_negatives: bool,
    weight: typing.SupportsFloat | typing.SupportsIndex,
    row_weights: numpy.ndarray | None,
    losses: numpy.ndarray | None,
    grad_queries: numpy.ndarray | None,
    grad_documents: numpy.ndarray | None,
    grad_negatives: numpy.ndarray | None,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> float: ...
def info_nce_arithmetic(dtype: str) -> str: ...
def maxsim(
    dtype: str,
    queries: numpy.ndarray,
    query_starts: numpy.ndarray,
    query_ends: numpy.ndarray,
    query_mask: numpy.ndarray | None,
    documents: typing.Any,
    document_starts: numpy.ndarray,
    document_ends: numpy.ndarray,
    document_mask: numpy.ndarray | None,
    normalize: bool,
    pad_zero_rows: bool,
    length_normalize: bool,
    empty_score: typing.SupportsFloat | typing.SupportsIndex,
    temperature: typing.SupportsFloat | typing.SupportsIndex,
    candidates: numpy.ndarray | None,
    scores: numpy.ndarray,
    argmax: numpy.ndarray | None,
    token_scores: numpy.ndarray | None,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def maxsim_backward(
    dtype: str,
    queries: numpy.ndarray,
    query_starts: numpy.ndarray,
    query_ends: numpy.ndarray,
    query_mask: numpy.ndarray | None,
    documents: numpy.ndarray,
    document_starts: numpy.ndarray,
    document_ends: numpy.ndarray,
    document_mask: numpy.ndarray | None,
    normalize: bool,
    pad_zero_rows: bool,
    length_normalize: bool,
    temperature: typing.SupportsFloat | typing.SupportsIndex,
    candidates: numpy.ndarray | None,
    grad_scores: numpy.ndarray,
    argmax: numpy.ndarray,
    token_scores: numpy.ndarray | None,
    grad_queries: numpy.ndarray | None,
    grad_documents: numpy.ndarray | None,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def maxsim_codes(
    kind: str,
    queries: numpy.ndarray,
    query_starts: numpy.ndarray,
    query_ends: numpy.ndarray,
    query_mask: numpy.ndarray | None,
    units: numpy.ndarray,
    terms: numpy.ndarray | None,
    documents: numpy.ndarray,
    dimensions: typing.SupportsInt | typing.SupportsIndex,
    document_starts: numpy.ndarray,
    document_ends: numpy.ndarray,
    document_mask: numpy.ndarray | None,
    factors: numpy.ndarray | None,
    centroids: numpy.ndarray | None,
    centroid_rows: numpy.ndarray | None,
    query_values: numpy.ndarray | None,
    weights: numpy.ndarray | None,
    length_normalize: bool,
    empty_score: typing.SupportsFloat | typing.SupportsIndex,
    candidates: numpy.ndarray | None,
    scores: numpy.ndarray,
    argmax: numpy.ndarray | None,
    token_scores: numpy.ndarray | None,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def num_threads() -> int: ...
def peak(
    kind: str,
    threads: typing.SupportsInt | typing.SupportsIndex,
    seconds: typing.SupportsFloat | typing.SupportsIndex,
    buffer_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
) -> float: ...
def peak_kinds() -> list[str]: ...
def quantize(
    x: numpy.ndarray,
    dtype: str,
    kind: str,
    starts: numpy.ndarray | None,
    steps: numpy.ndarray | None,
    codes: numpy.ndarray,
    scales: numpy.ndarray | None,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def range_search(
    kind: str,
    metric: str,
    queries: numpy.ndarray,
    documents: numpy.ndarray,
    dim: typing.SupportsInt | typing.SupportsIndex,
    scale: numpy.ndarray | None,
    offset: numpy.ndarray | None,
    factor: numpy.ndarray | None,
    addend: numpy.ndarray | None,
    query_scale: numpy.ndarray | None,
    threshold: typing.SupportsFloat | typing.SupportsIndex,
    allow: numpy.ndarray | None,
    rank: numpy.ndarray | None,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]: ...
def score_rows(
    kind: str,
    metric: str,
    queries: numpy.ndarray,
    documents: numpy.ndarray,
    dim: typing.SupportsInt | typing.SupportsIndex,
    scale: numpy.ndarray | None,
    offset: numpy.ndarray | None,
    factor: numpy.ndarray | None,
    addend: numpy.ndarray | None,
    query_scale: numpy.ndarray | None,
    candidates: numpy.ndarray,
    threads: typing.SupportsInt | typing.SupportsIndex,
    scores: numpy.ndarray,
) -> None: ...
def set_num_threads(threads: typing.SupportsInt | typing.SupportsIndex | None) -> None: ...
def topk(
    kind: str,
    metric: str,
    queries: numpy.ndarray,
    documents: numpy.ndarray,
    dim: typing.SupportsInt | typing.SupportsIndex,
    scale: numpy.ndarray | None,
    offset: numpy.ndarray | None,
    factor: numpy.ndarray | None,
    addend: numpy.ndarray | None,
    query_scale: numpy.ndarray | None,
    k: typing.SupportsInt | typing.SupportsIndex,
    allow: numpy.ndarray | None,
    rank: numpy.ndarray | None,
    candidates: numpy.ndarray | None,
    threads: typing.SupportsInt | typing.SupportsIndex,
    scores: numpy.ndarray,
    ids: numpy.ndarray,
) -> None: ...
def value_ranges(
    x: numpy.ndarray,
    dtype: str,
    ends: numpy.ndarray,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...

__version__: str
