from __future__ import annotations

import collections.abc
import typing

__all__: list[str] = [
    "InfoNceForwardArgs",
    "MaxsimArgs",
    "MaxsimTopkArgs",
    "TopkArgs",
    "architectures",
    "device_count",
    "device_info",
    "device_of",
    "driver_version",
    "info_nce_forward",
    "maxsim",
    "maxsim_topk",
    "maxsim_topk_workspace_bytes",
    "maxsim_workspace_bytes",
    "runtime_version",
    "topk",
    "topk_merge",
    "topk_workspace_bytes",
    "wait_for_stream",
]

class InfoNceForwardArgs:
    def __init__(
        self,
        *,
        rows: typing.SupportsInt | typing.SupportsIndex,
        documents: typing.SupportsInt | typing.SupportsIndex,
        negatives: typing.SupportsInt | typing.SupportsIndex,
        dimensions: typing.SupportsInt | typing.SupportsIndex,
        queries_data: typing.SupportsInt | typing.SupportsIndex,
        queries_stride: typing.SupportsInt | typing.SupportsIndex,
        documents_data: typing.SupportsInt | typing.SupportsIndex,
        documents_stride: typing.SupportsInt | typing.SupportsIndex,
        negatives_data: typing.SupportsInt | typing.SupportsIndex,
        negatives_stride: typing.SupportsInt | typing.SupportsIndex,
        temperature_data: typing.SupportsInt | typing.SupportsIndex,
        temperature: typing.SupportsFloat | typing.SupportsIndex,
        normalize: bool,
        own_negatives: bool,
        targets: typing.SupportsInt | typing.SupportsIndex,
        query_ids: typing.SupportsInt | typing.SupportsIndex,
        document_ids: typing.SupportsInt | typing.SupportsIndex,
        losses: typing.SupportsInt | typing.SupportsIndex,
        row_maxima: typing.SupportsInt | typing.SupportsIndex,
        row_log_sums: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

class MaxsimArgs:
    def __init__(
        self,
        *,
        queries_kind: str,
        queries_count: typing.SupportsInt | typing.SupportsIndex,
        queries_data: typing.SupportsInt | typing.SupportsIndex,
        queries_stride: typing.SupportsInt | typing.SupportsIndex,
        queries_starts: typing.SupportsInt | typing.SupportsIndex,
        queries_ends: typing.SupportsInt | typing.SupportsIndex,
        queries_mask: typing.SupportsInt | typing.SupportsIndex,
        documents_kind: str,
        documents_count: typing.SupportsInt | typing.SupportsIndex,
        documents_data: typing.SupportsInt | typing.SupportsIndex,
        documents_stride: typing.SupportsInt | typing.SupportsIndex,
        documents_starts: typing.SupportsInt | typing.SupportsIndex,
        documents_ends: typing.SupportsInt | typing.SupportsIndex,
        documents_mask: typing.SupportsInt | typing.SupportsIndex,
        dimensions: typing.SupportsInt | typing.SupportsIndex,
        longest_query: typing.SupportsInt | typing.SupportsIndex,
        units: typing.SupportsInt | typing.SupportsIndex,
        terms: typing.SupportsInt | typing.SupportsIndex,
        factors: typing.SupportsInt | typing.SupportsIndex,
        normalize: bool,
        pad_zero_rows: bool,
        length_normalize: bool,
        empty_score: typing.SupportsFloat | typing.SupportsIndex,
        candidates: typing.SupportsInt | typing.SupportsIndex,
        candidate_count: typing.SupportsInt | typing.SupportsIndex,
        scores: typing.SupportsInt | typing.SupportsIndex,
        argmax: typing.SupportsInt | typing.SupportsIndex,
        token_scores: typing.SupportsInt | typing.SupportsIndex,
        rows_before: typing.SupportsInt | typing.SupportsIndex,
        centroid_ids: typing.SupportsInt | typing.SupportsIndex = 0,
        centroid_count: typing.SupportsInt | typing.SupportsIndex = 0,
        centroids: typing.SupportsInt | typing.SupportsIndex = 0,
        query_values: typing.SupportsInt | typing.SupportsIndex = 0,
        weights: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ) -> None: ...

class MaxsimTopkArgs:
    def __init__(
        self,
        *,
        pairs: MaxsimArgs,
        k: typing.SupportsInt | typing.SupportsIndex,
        allow: typing.SupportsInt | typing.SupportsIndex,
        allow_stride: typing.SupportsInt | typing.SupportsIndex,
        scores: typing.SupportsInt | typing.SupportsIndex,
        ids: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

class TopkArgs:
    def __init__(
        self,
        *,
        kind: str,
        metric: str,
        queries: typing.SupportsInt | typing.SupportsIndex,
        documents: typing.SupportsInt | typing.SupportsIndex,
        dim: typing.SupportsInt | typing.SupportsIndex,
        queries_data: typing.SupportsInt | typing.SupportsIndex,
        queries_stride: typing.SupportsInt | typing.SupportsIndex,
        documents_data: typing.SupportsInt | typing.SupportsIndex,
        documents_stride: typing.SupportsInt | typing.SupportsIndex,
        scale: typing.SupportsInt | typing.SupportsIndex,
        offset: typing.SupportsInt | typing.SupportsIndex,
        factor: typing.SupportsInt | typing.SupportsIndex,
        addend: typing.SupportsInt | typing.SupportsIndex,
        query_scale: typing.SupportsInt | typing.SupportsIndex,
        allow: typing.SupportsInt | typing.SupportsIndex,
        allow_bits: typing.SupportsInt | typing.SupportsIndex,
        allow_stride: typing.SupportsInt | typing.SupportsIndex,
        rank: typing.SupportsInt | typing.SupportsIndex,
        candidates: typing.SupportsInt | typing.SupportsIndex,
        candidate_count: typing.SupportsInt | typing.SupportsIndex,
        k: typing.SupportsInt | typing.SupportsIndex,
        first_id: typing.SupportsInt | typing.SupportsIndex,
        scores: typing.SupportsInt | typing.SupportsIndex,
        ids: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

def architectures() -> list[str]: ...
def device_count() -> int: ...
def device_info(device: typing.SupportsInt | typing.SupportsIndex) -> dict[str, typing.Any]: ...
def device_of(pointer: typing.SupportsInt | typing.SupportsIndex) -> int: ...
def driver_version() -> int: ...
def info_nce_forward(
    args: InfoNceForwardArgs,
    device: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def maxsim(
    args: MaxsimArgs,
    device: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
    workspace: typing.SupportsInt | typing.SupportsIndex,
    workspace_bytes: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def maxsim_topk(
    args: MaxsimTopkArgs,
    device: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
    workspace: typing.SupportsInt | typing.SupportsIndex,
    workspace_bytes: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def maxsim_topk_workspace_bytes(
    args: MaxsimTopkArgs, device: typing.SupportsInt | typing.SupportsIndex
) -> int: ...
def maxsim_workspace_bytes(
    args: MaxsimArgs, device: typing.SupportsInt | typing.SupportsIndex
) -> int: ...
def runtime_version() -> int: ...
def topk(
    args: TopkArgs,
    device: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
    workspace: typing.SupportsInt | typing.SupportsIndex,
    workspace_bytes: typing.SupportsInt | typing.SupportsIndex,
    scores_only: bool,
) -> None: ...
def topk_merge(
    *,
    metric: str,
    queries: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    first_count: typing.SupportsInt | typing.SupportsIndex,
    first_scores: typing.SupportsInt | typing.SupportsIndex,
    first_ids: typing.SupportsInt | typing.SupportsIndex,
    second_count: typing.SupportsInt | typing.SupportsIndex,
    second_scores: typing.SupportsInt | typing.SupportsIndex,
    second_ids: typing.SupportsInt | typing.SupportsIndex,
    scores: typing.SupportsInt | typing.SupportsIndex,
    ids: typing.SupportsInt | typing.SupportsIndex,
    device: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def topk_workspace_bytes(
    args: TopkArgs, device: typing.SupportsInt | typing.SupportsIndex, scores_only: bool
) -> int: ...
def wait_for_stream(
    device: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
    other: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...

__version__: str
