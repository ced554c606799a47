"""Runs the CUDA forward of info_nce on the CPU: a Case of info_nce_cases as its module takes it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from cuda_host import build
from info_nce_cases import Case, check_case, compared, wide
from tolerances import CPU, allowed_error

from simtile.reference.info_nce_numpy import unit

SHARED_BYTES = 99 * 1024  # a block may have on the smallest of the GPUs
GUARD = 8  # elements before and behind an output


class Rows(NamedTuple):
    """Losses [N] and the two parts of the rows' log-sum-exp."""

    losses: Any
    maxima: Any
    log_sums: Any


def inputs(case):
    """Queries, documents, negatives as [N * K, D] or None, bfloat16 as uint16; then K."""
    queries, documents, negatives = (x if x is None else x.view(np.uint16) for x in case.inputs)
    k = case.negatives or 0
    if not k:
        negatives = None
    elif negatives.ndim == 3:  # reshape copies where one stride between rows does not do
        negatives = negatives.reshape(case.queries * k, case.dimensions)
    return queries, documents, negatives, k


def plan(case, *, multiprocessors=3, shared_bytes=SHARED_BYTES):
    """Which instance the dispatch chooses, and how it launches it."""
    module = build.load("info_nce")
    return module.plan(*inputs(case), case.normalize, case.own, multiprocessors, shared_bytes)


def guarded(count):
    """Room for an output full of NaN, and the bits around it that a kernel must leave."""
    whole = np.full(count + 2 * GUARD, np.nan, np.float32)
    whole[:GUARD] = whole[-GUARD:] = -1234.5
    return whole[GUARD:-GUARD], whole


def run(
    case,
    *,
    order=0,
    multiprocessors=3,
    shared_bytes=SHARED_BYTES,
    temperature_on_device=False,
    module=None,
):
    module = build.load("info_nce") if module is None else module
    outputs, wholes = zip(*(guarded(case.queries) for _ in Rows._fields), strict=True)
    temperature = np.float32([case.temperature]) if temperature_on_device else None
    queries, documents, negatives, k = inputs(case)
    module.run(
        queries,
        documents,
        negatives,
        k,
        temperature,
        np.nan if temperature_on_device else case.temperature,
        case.normalize,
        case.own,
        case["targets"],
        case["query_ids"],
        case["document_ids"],
        *outputs,
        multiprocessors,
        shared_bytes,
        order,
    )
    for whole in wholes:
        edges = np.concatenate([whole[:GUARD], whole[-GUARD:]])
        assert (edges == np.float32(-1234.5)).all(), "written outside of an output"
    return Rows(*outputs)


def bf16_case(*sizes, **options):
    return Case(*sizes, dtype="bfloat16", **options)


def check(case, rows):
    """Losses against the oracle, and the two parts of the log-sum-exp."""
    check_case(case, (rows.losses, None, None, None, None))
    assert (rows.losses >= 0).all()
    logits = oracle_logits(case)
    maxima = logits.max(axis=1)
    log_sums = np.log(np.exp(logits - maxima[:, None]).sum(axis=1))
    condition = next(compared(case, (rows.losses, None, None, None, None)))[-1]
    allowed = allowed_error("info_nce.losses", "bfloat16", condition, CPU)
    np.testing.assert_allclose(rows.maxima, maxima, rtol=0, atol=allowed)
    np.testing.assert_allclose(rows.log_sums, log_sums, rtol=0, atol=allowed)


def oracle_logits(case):
    """[N, M + N K], -inf where a row does not see a candidate."""
    n, m, k = case.queries, case.documents, case.negatives or 0
    queries, documents, negatives = map(wide, case.inputs)
    candidates = documents
    if k:
        candidates = np.concatenate([documents, negatives.reshape(n * k, case.dimensions)])
    if case.normalize:
        queries, candidates = unit(queries), unit(candidates)
    logits = queries @ candidates.T / case.temperature
    targets = np.arange(n) if case["targets"] is None else case["targets"]
    if case.ids:
        duplicates = case["query_ids"][:, None] == case["document_ids"]
        duplicates[np.arange(n), targets] = False
        logits[:, :m][duplicates] = -np.inf
    if case.own and k:
        logits[:, m:][~np.repeat(np.eye(n, dtype=bool), k, axis=1)] = -np.inf
    return logits
