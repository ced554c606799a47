"""Hard negatives: for every query documents that are near to it and do not answer it.

The definition is `reference/mining.py`. It is sentence-transformers' `mine_hard_negatives`, on
embeddings; with its datasets it is in `integrations/sentence_transformers_mining.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import (
    _inputs,
    _mining,
    _mining_inputs,
    _mining_sources,
    _tensors,
    _vectors,
)
from simtile._mining_inputs import Ragged
from simtile._mining_sources import Source
from simtile._progress import reporter
from simtile.flat_index import FlatIndex
from simtile.quantized import Quantized

if TYPE_CHECKING:
    from simtile.search import Vectors

Filter = Callable[[int, npt.NDArray[np.int64]], Any]


class HardNegatives(NamedTuple):
    """What `mine_hard_negatives` returns: arrays, or tensors where queries are."""

    indices: Any
    """int64 [N, k]: rows of documents, or ids of the index, hardest first; -1 for none."""
    scores: Any
    """float32 [N, k]: their scores, -inf for none."""


def mine_hard_negatives(
    queries: Vectors,
    documents: Vectors | FlatIndex,
    positives: Any = None,
    *,
    k: int,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    sampling: Literal["top", "random"] = "top",
    ids: npt.ArrayLike | None = None,
    distinct: bool = True,
    allow: Any = None,
    candidates: Any = None,
    filter: Filter | None = None,
    metric: Literal["cosine", "dot", "l2"] | None = None,
    seed: int = 0,
    nan: Literal["raise", "ignore"] = "raise",
    block_size: int | None = None,
    progress: bool | Callable[[int, int], object] | None = None,
    threads: int | None = None,
) -> HardNegatives:
    """Hard negatives of every query: the nearest documents that are not its positives.

    The ``range_max + P`` nearest documents of a query are its candidates, P being the largest
    number of positives of any query. Its positives are taken out, then what the limits or `filter`
    refuse; of what remains the ranks from `range_min` to ``range_max - 1``, counted from 0, are
    left, and k of these are taken. This is what sentence-transformers 6.2 computes.

    Parameters
    ----------
    queries : array or Tensor [N, D], or Quantized
        As in :func:`simtile.topk`. They are searched in blocks, so a ``numpy.memmap`` is never
        read as a whole.
    documents : array or Tensor [M, D], Quantized, or FlatIndex
        As in :func:`simtile.topk`; a ``numpy.memmap`` or the mapped file of an index is read where
        it lies. An index is searched as it is when the call begins.
    positives : optional
        The documents that answer a query, rows or, of an index, ids: int [N], one for each query;
        int [N, P], -1 for none; a list of N lists; or a tuple (offsets [N + 1], rows), query i
        having ``rows[offsets[i]:offsets[i + 1]]``. None: there are none to take out.
    k : int
        Negatives of a query, at least 1.
    range_min, range_max : int
        The first rank to be taken, and the one after the last. By default `range_max` is
        ``range_min + k + P``, with `max_score`, a margin or a filter ``range_min + 10 k + P``, and
        with `candidates` all of them.
    max_score, min_score : float, optional
        Candidates beyond are refused.
    absolute_margin : float, optional
        Refused is a candidate with score + absolute_margin > p, where p is the least score of the
        query's positives, of which there must be one.
    relative_margin : float, optional
        Refused is a candidate with score > p - |p| relative_margin. 0.05 is the setting of
        NV-Retriever (Moreira et al. 2024, arXiv:2407.15831).
    sampling : "top" or "random"
        The k first of the ranks that are left, or k of them by chance, hardest first.
    ids : int [M], optional
        Equal for documents that are the same, such as copies of a text; of an index in the order
        of ``index.ids``. A document with the id of a positive is taken out as well. Of documents
        with equal ids only the nearest is a candidate.
    distinct : bool
        With False, ids that no positive of the query has do not matter: a query may get several
        documents of one id. For ids of groups, such as all passages of a page.
    allow : bool [M] or [N, M], or int [A], optional
        Which documents may be found at all, as in :func:`simtile.topk`.
    candidates : optional
        Documents that a query may get, in the forms of `positives`: they are scored here. Or
        (scores [N, C], rows [N, C]) as :func:`simtile.topk` returns them, -1 for none: candidates
        of another search, BM25 for one, which keep their scores; of queries and documents only the
        number is used then, so they may be lists of texts.
    filter : callable, optional
        ``filter(query, rows)`` is called for each query with its number and the rows (ids of an
        index) of its candidates, int64 [C] best first, positives taken out. It returns bools [C],
        which to keep, or floats [C], a cross-encoder's scores for one, which replace the others:
        candidates are ranked by them, and limits and margins apply to them. For a margin it is then
        also called with the positives.
    metric : "cosine", "dot" or "l2", optional
        "cosine" by default, or that of the index. Scores of "l2" are distances below 0, so that
        larger is nearer here too.
    seed : int
        For "random". The draws are those of sentence-transformers after ``random.seed(seed)``.
    nan : "raise" or "ignore"
        Whether NaN in a query, or in the positive that a margin needs, is an error, or such a
        query gets no negatives. A document with NaN is never found.
    block_size : int, optional
        Queries that are searched at a time; memory is O(block_size · range_max), whatever N and M.
        Nothing else depends on it.
    progress : bool or callable, optional
        ``progress(done, total)`` is called after every block with numbers of queries. True shows a
        bar and needs rich.
    threads : int, optional
        Threads of the search on the CPU; see :func:`simtile.set_num_threads` for the default.

    Returns
    -------
    HardNegatives
        indices : int64 [N, k], scores : float32 [N, k]
            Hardest first, of equal scores the lowest row (or id) first; -1 and -inf where a query
            has fewer. Arrays, or tensors on the device of `queries`.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value; a positive or candidate is
        unknown; a query has NaN; the filter returns something else.

    Notes
    -----
    Scores are those of :func:`simtile.topk`, to the last bit; limits are compared in float32.
    sentence-transformers counts a text once: number the texts and pass the numbers as `ids`.

    Examples
    --------
    >>> import numpy as np
    >>> import simtile
    >>> documents = np.array([[1.0, 0.0], [0.9, 0.1], [0.6, 0.8], [0.0, 1.0]], np.float32)
    >>> queries = np.array([[1.0, 0.05]], np.float32)
    >>> simtile.mine_hard_negatives(queries, documents, [0], k=2).indices.tolist()
    [[1, 2]]

    Document 1 is too near to be trusted as a negative:

    >>> simtile.mine_hard_negatives(
    ...     queries, documents, [0], k=2, relative_margin=0.05
    ... ).indices.tolist()
    [[2, 3]]
    """
    _inputs.check_choice("nan", nan, ("raise", "ignore"))
    source, listed = _source(
        queries, documents, allow, candidates, metric, nan, _inputs.check_threads(threads)
    )
    given = _mining_inputs.read_lists("positives", positives, source.queries)
    own = _mining_inputs.check_known("positives", given, source.places(given.rows), source.known)
    if filter is not None and not callable(filter):
        raise TypeError(
            f"filter: found {type(filter).__name__}, expected a function of (query, rows)"
        )
    options = _mining_inputs.check_options(
        k,
        range_min,
        range_max,
        max_score,
        min_score,
        absolute_margin,
        relative_margin,
        sampling,
        longest=own.longest,
        listed=listed,
        filtered=filter is not None,
    )
    groups = _mining_inputs.read_groups(ids, source.documents)
    chance = _random(seed)
    miner = _mining.Miner(
        source,
        own,
        options,
        groups,
        _inputs.check_flag("distinct", distinct),
        filter,
        chance.sample if sampling == "random" else None,
        nan,
    )
    with reporter(progress, "mining hard negatives") as report:
        mined = miner.run(_mining.block_of(block_size, options.window), report)
    rows: Any = queries.codes if isinstance(queries, Quantized) else queries
    device = rows.device if _tensors.is_tensor(rows) else None
    return HardNegatives(
        _vectors.result(device, mined.indices), _vectors.result(device, mined.scores)
    )


def _source(
    queries: Any,
    documents: Any,
    allow: Any,
    candidates: Any,
    metric: str | None,
    nan: str,
    threads: int,
) -> tuple[Source, int | None]:
    """Where to search, and how many candidates a query has at most if they are given."""
    if isinstance(candidates, tuple) and _are_scored(candidates):
        if isinstance(documents, FlatIndex):
            raise TypeError(
                "candidates: found scores with a FlatIndex, expected the ids of candidates alone, "
                "which the index scores"
            )
        for name, counted in (("queries", queries), ("documents", documents)):
            if not hasattr(counted, "__len__"):
                raise TypeError(
                    f"{name}: found {type(counted).__name__}, expected something that has a length"
                )
        scored = _mining_inputs.read_scored(candidates, len(queries))
        lists = _mining_sources.Lists(queries, documents, scored, allow)
        return lists, scored.rows.shape[1]
    own_metric = _mining_sources.check_metric(metric, documents)
    sized = hasattr(queries, "__len__") and getattr(queries, "shape", None) != ()
    count = len(queries) if sized else 0
    listed: Ragged | None = None
    if candidates is not None:
        listed = _mining_inputs.read_lists("candidates", candidates, count)
    longest = None if listed is None else listed.longest
    if isinstance(documents, FlatIndex):
        return _mining_sources.Index(queries, documents, allow, listed, nan, threads), longest
    rows = _mining_sources.Rows(queries, documents, own_metric, allow, listed, nan, threads)
    return rows, longest


def _are_scored(candidates: tuple[Any, ...]) -> bool:
    """Whether these are scores and rows, not offsets and rows."""
    return len(candidates) != 2 or np.ndim(_tensors.as_array(candidates[0])) != 1


def _random(seed: object) -> random.Random:
    return random.Random(_inputs.to_int("seed", seed))
