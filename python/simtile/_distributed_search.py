"""Search over the ranks of torch.distributed, each of which holds documents of a range of ids.

Every rank searches its own documents; what it found travels to the ranks that asked, which merge
it. All collectives are called by all ranks or by none: what each was given is exchanged first, and
whether its search succeeded travels with what it found, so that all raise where one cannot answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from simtile import _inputs, _search_call, _search_operands, _tensors, _vectors
from simtile._distributed_wire import (
    TRAVEL,
    Wire,
    check_timeout,
    device_of,
    digest_of,
    message,
    message_size,
    read_message,
    travelling,
)
from simtile.cascade_index import CascadeIndex
from simtile.flat_index import FlatIndex
from simtile.quantized import PER_DIMENSION, Quantized
from simtile.search import Metric, merge_topk, topk

Array = npt.NDArray[Any]

SHARES = ("same", "each", "first")
_NAME = "simtile.distributed.search"


def search(
    queries: Any,
    documents: Any,
    k: int,
    *,
    metric: Metric | None = None,
    share: Literal["same", "each", "first"] = "same",
    allow: Any = None,
    nan: Literal["raise", "ignore"] = "raise",
    group: dist.ProcessGroup | None = None,
    timeout: float | None = None,
    threads: int | None = None,
) -> tuple[Any, Any]:
    """The best k of the documents of all ranks, the bits of one search over all of them.

    Parameters
    ----------
    queries : floats [Q, D], or uint8 [Q, W] for "hamming"; array or Tensor
        By ``share``; with "same" also a Quantized.
    documents : array or Tensor [N, D], Quantized, FlatIndex or CascadeIndex
        This rank's. Arrays are numbered by rank: the ids of rank 1 follow those of rank 0. An index
        brings its ids; the ranges from its lowest to its highest must not overlap with another
        rank's. A rank may have no documents. Element types, dimensions and calibration (the ranges
        of codes) must be the same on all: pass the same ``ranges`` to every index.
    k : int
    metric : "cosine", "dot", "l2" or "hamming", optional
        "cosine" if not given; an index has its own.
    share : "same", "each" or "first"
        Who asks. "same": all ranks pass the same queries and all get the answer. "each": every rank
        passes its own, any number of them, and gets its own answer. "first": rank 0 passes
        queries, the others None; all get the answer.
    allow : optional
        As in :func:`simtile.topk` or the index's ``search``: a mask of this rank's documents, or
        ids (of arrays rows) of this rank's. For all queries that are asked, so with "each" or
        "first" no mask per query. On all ranks or on none: one that is left out would allow all.
    nan : "raise" or "ignore"
    group : ProcessGroup, optional
        The ranks that take part; all if not given.
    timeout : float, optional
        Seconds to wait for the slowest rank's part; the group's own time limit if not given.
    threads : int, optional

    Returns
    -------
    scores, ids : [Q, k]
        Of this rank's queries with "each", of all otherwise; as :func:`simtile.topk`'s, and of the
        type of the queries. With `CascadeIndex` every rank's last stage sees k times oversample
        candidates, so more is found than by one cascade.

    Raises
    ------
    ValueError, TypeError
        As :func:`simtile.topk`, on the rank concerned; the ranks do not fit together, on all.
    RuntimeError
        torch.distributed is not initialised; another rank has refused its inputs, its search has
        failed, it died, or did not answer in time: there is no result without its documents. After
        the last two the process group cannot be used any more.

    Examples
    --------
    >>> import numpy as np, simtile, tempfile, torch.distributed as dist
    >>> store = f"file://{tempfile.mkdtemp()}/store"
    >>> dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    >>> shard = np.eye(3, dtype=np.float32)  # of this rank
    >>> simtile.distributed.search(shard[1:2], shard, 2)[1]
    array([[1, 0]])
    >>> dist.destroy_process_group()
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"{_NAME}: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first, or use simtile.topk"
        )
    own: _Own | None = None
    limit: float | None = None
    refused: Exception | None = None
    try:
        limit = check_timeout(timeout)
        own = _checked(queries, documents, k, metric, share, allow, dist.get_rank(group))
        _inputs.check_choice("nan", nan, ("raise", "ignore"))
        _inputs.check_threads(threads)
    except Exception as error:  # whatever it is, the others must not wait
        own, refused = None, error
    wire = Wire(_NAME, group, device_of(group, queries, documents), limit)
    table = wire.gather_integers(_row(own, share))
    if refused is not None:
        raise refused
    assert own is not None
    headers = [_Header(*row) for row in table]
    _check_headers(headers)
    return _answer(own, headers, share, nan, wire, threads)


class _Own(NamedTuple):
    """This rank's checked inputs."""

    asked: Any  # queries as they were given
    packed: Array | None  # [Q, D] to be sent, where queries are shared
    documents: Any
    shape: tuple[int, int]  # of the queries that were given
    k: int
    metric: str
    allow: Any
    rows: int  # documents
    ends: tuple[int, int]  # the lowest and the highest id of an index
    form: int  # of the documents: equal where they can be merged
    digest: int  # of the queries where all ranks pass the same


class _Header(NamedTuple):
    """What every rank says of itself before the search; integers."""

    accepted: int
    queries: int
    width: int
    dtype: int  # place in TRAVEL
    is_tensor: int
    k: int
    metric: int
    share: int
    allow_given: int
    rows: int
    lowest: int
    highest: int
    is_index: int
    form: int
    digest: int


# What must be the same on all ranks, by the argument that it comes from.
_SAME = {
    "k": "k",
    "metric": "metric",
    "share": "share",
    "allow_given": "allow given",
    "is_index": "documents: an index (1) or vectors (0)",
}


def _checked(
    queries: Any, documents: Any, k: Any, metric: Any, share: str, allow: Any, rank: int
) -> _Own:
    _inputs.check_choice("share", share, SHARES)
    count = _search_call.check_k(k)
    form, chosen = _form(documents, metric)
    packed, shape, digest = None, (0, 0), 0
    if share == "first" and rank > 0:
        if queries is not None:
            raise ValueError(
                f"queries: found {type(queries).__name__} on rank {rank}, expected None: share is "
                "'first', and rank 0 passes queries for all"
            )
    elif isinstance(queries, Quantized):
        if share != "same":
            raise TypeError(
                f"queries: found a Quantized with share {share!r}, expected floats or packed bits; "
                "queries.dequantize() makes floats"
            )
        shape = (len(queries), queries.dim)
        digest = digest_of(queries.kind, queries.codes, queries.scale, queries.offset)
    else:
        packed = travelling(queries)
        shape = (packed.shape[0], packed.shape[1])
        digest = digest_of(packed) if share == "same" else 0
    if allow is not None and share != "same" and np.ndim(allow) == 2:
        raise ValueError(
            f"allow: found a mask for each query with share {share!r}, expected one for all: "
            "queries of other ranks are searched too"
        )
    is_index = isinstance(documents, (FlatIndex, CascadeIndex))
    ends = _ends(documents) if is_index else (0, -1)
    return _Own(
        queries, packed, documents, shape, count, chosen, allow, len(documents), ends, form, digest
    )


def _form(documents: Any, metric: Any) -> tuple[int, str]:
    """A number for all that scores depend on beside the documents themselves, and the metric."""
    if isinstance(documents, (FlatIndex, CascadeIndex)):
        if metric is not None and metric != documents.metric:
            raise ValueError(
                f"metric: found {metric!r} for an index of {documents.metric!r}, expected None"
            )
        facts = [(e.dtype, e.dim, e.metric, e.ranges) for e in documents._encodings]
        more = documents.oversample if isinstance(documents, CascadeIndex) else ()
        return digest_of(*(fact for encoding in facts for fact in encoding), more), documents.metric
    chosen = "cosine" if metric is None else metric
    _inputs.check_choice("metric", chosen, _search_operands.METRICS)
    if isinstance(documents, Quantized):
        shared = documents.kind in PER_DIMENSION
        scale = (documents.scale, documents.offset) if shared else ()
        return digest_of(documents.kind, documents.dim, *scale), chosen
    rows = _vectors.read("documents", documents)
    return digest_of(rows.kind, rows.array.shape[1]), chosen


def _ends(index: FlatIndex | CascadeIndex) -> tuple[int, int]:
    """The lowest and the highest id; (0, -1) without documents."""
    segments = [s for s in index._storage.snapshot.segments if s.length]
    if not segments:
        return 0, -1
    ends = [segment.id_ends for segment in segments]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _row(own: _Own | None, share: str) -> list[int]:
    if own is None:
        return [0] * len(_Header._fields)
    packed = own.packed
    return list(
        _Header(
            accepted=1,
            queries=own.shape[0],
            width=own.shape[1],
            dtype=TRAVEL.index(str(packed.dtype)) if packed is not None else -1,
            is_tensor=int(_tensors.is_tensor(own.asked)),
            k=own.k,
            metric=_search_operands.METRICS.index(own.metric),
            share=SHARES.index(share),
            allow_given=int(own.allow is not None),
            rows=own.rows,
            lowest=own.ends[0],
            highest=own.ends[1],
            is_index=int(isinstance(own.documents, (FlatIndex, CascadeIndex))),
            form=own.form,
            digest=own.digest,
        )
    )


def _check_headers(headers: Sequence[_Header]) -> None:
    """Raise, on every rank the same, unless the ranks fit together."""
    for rank, header in enumerate(headers):
        if not header.accepted:
            raise RuntimeError(
                f"{_NAME}: rank {rank} has refused its inputs; its own error says why"
            )
    for field, name in _SAME.items():
        values = [getattr(header, field) for header in headers]
        if len(set(values)) > 1:
            if field in ("metric", "share"):
                names = _search_operands.METRICS if field == "metric" else SHARES
                values = [names[value] for value in values]
            raise ValueError(f"{name}: found {values} on the ranks, expected the same on all")
    holders = [(rank, header) for rank, header in enumerate(headers) if header.rows]
    if len({header.form for _, header in holders}) > 1:
        raise ValueError(
            "documents: found different element types, dimensions, or ranges of codes on ranks "
            f"{[rank for rank, _ in holders]}, expected the same on all; indexes take ranges="
        )
    ordered = sorted(holders, key=lambda holder: holder[1].lowest)
    for (rank, a), (other, b) in pairwise(ordered):
        if a.is_index and a.highest >= b.lowest:
            raise ValueError(
                f"documents: found ids {a.lowest} to {a.highest} on rank {rank} and {b.lowest} to "
                f"{b.highest} on rank {other}, expected ranges that do not overlap"
            )
    if headers[0].share == SHARES.index("same") and len({h.digest for h in headers}) > 1:
        raise ValueError(
            "queries: found different ones on the ranks, expected the same on all; with "
            "share='each' every rank asks its own"
        )
    asking = [header for header in headers if header.queries]
    if len({(header.width, header.dtype) for header in asking}) > 1:
        found = [f"{TRAVEL[h.dtype]} [{h.queries}, {h.width}]" for h in asking]
        raise ValueError(f"queries: found {', '.join(found)}, expected one type and width")


def _answer(
    own: _Own, headers: list[_Header], share: str, nan: Any, wire: Wire, threads: int | None
) -> tuple[Any, Any]:
    """Search the documents here for all who ask, and merge what all found for this rank."""
    rank, ranks = wire.rank, wire.ranks
    asked = own.asked if share == "same" else _collected(own, headers, wire)
    # Which of the queries that are searched here each rank wants: [begin, end).
    counts = [header.queries for header in headers]
    if share == "each":
        stops = np.cumsum(counts).tolist()
        wanted = [(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]
    else:
        wanted = [(0, counts[0])] * ranks
    failed: Exception | None = None
    try:
        first = sum(header.rows for header in headers[:rank])
        scores, ids = _local(own, asked, first, nan, threads)
        parts = [message(scores[a:b], ids[a:b]) for a, b in wanted]
    except Exception as error:  # whatever it is, the others must not wait
        failed = error
        parts = [np.zeros(message_size(b - a, own.k), np.uint8) for a, b in wanted]
    mine = wanted[rank][1] - wanted[rank][0]
    received = wire.exchange(parts, [message_size(mine, own.k)] * ranks)
    if failed is not None:
        raise failed
    without = [r for r, sent in enumerate(received) if not sent[0]]
    if without:
        raise RuntimeError(
            f"{_NAME}: the search of rank {', '.join(map(str, without))} of {ranks} has failed, "
            "and its own error says why; nothing is returned, because its documents would be "
            "missing"
        )
    dtype = _search_operands.WORST[own.metric].dtype
    merged = merge_topk(
        [read_message(sent, mine, own.k, dtype) for sent in received],
        metric=own.metric,  # type: ignore[arg-type]
        k=own.k,
    )
    device = None
    if own.asked is None and headers[0].is_tensor:  # as those of rank 0
        device = wire.device
    elif own.asked is not None:
        rows = _rows_of(own.asked)
        device = rows.device if _tensors.is_tensor(rows) else None
    return _vectors.result(device, merged[0]), _vectors.result(device, merged[1])


def _collected(own: _Own, headers: list[_Header], wire: Wire) -> Array:
    """The queries of all ranks that ask, those of rank 0 first."""
    asking = [header for header in headers if header.queries]
    dtype = np.dtype(TRAVEL[asking[0].dtype] if asking else "float32")
    width = asking[0].width if asking else max(1, own.shape[1])
    mine = np.zeros(0, np.uint8) if own.packed is None else own.packed.reshape(-1).view(np.uint8)
    sizes = [header.queries * width * dtype.itemsize for header in headers]
    received = wire.exchange([mine] * wire.ranks, sizes)
    return np.concatenate(received).view(dtype).reshape(-1, width)


def _local(own: _Own, asked: Any, first: int, nan: Any, threads: int | None) -> tuple[Array, Array]:
    """What the documents of this rank have to offer, under ids of all ranks."""
    documents = own.documents
    if isinstance(documents, (FlatIndex, CascadeIndex)):
        found = documents.search(asked, own.k, allow=own.allow, nan=nan, threads=threads)
        scores, ids = map(_tensors.as_array, found[:2])
        return scores, ids
    gpu = _vectors.gpu_of(_rows_of(documents))
    if gpu is not None and isinstance(asked, np.ndarray):
        asked = _tensors.as_tensor(asked, gpu)
    found = topk(
        asked,
        documents,
        own.k,
        metric=own.metric,  # type: ignore[arg-type]
        allow=own.allow,
        nan=nan,
        threads=threads,
    )
    scores, ids = map(_tensors.as_array, found)
    return scores, np.where(ids < 0, -1, ids + first)


def _rows_of(x: Any) -> Any:
    return x.codes if isinstance(x, Quantized) else x
