"""simtile.integrations.pylate and .colpali beside what the libraries compute.

Always beside their formulas in `late_interaction_peers.py`; beside the libraries themselves where
they are installed, which they are not by the development requirements.
"""

import importlib.util
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from late_interaction_cases import (
    DTYPES,
    MASKS,
    batch,
    close,
    examples,
    mask,
    same_scores_and_gradients,
    tokens,
)
from late_interaction_peers import (
    PylateXTR,
    PylateXTRKD,
    colpali_scores,
    pylate_kd_scores,
    pylate_pairwise,
    pylate_scores,
)

from simtile.integrations import colpali, pylate

seeds = st.integers(0, 2**32 - 1)
counts = st.sampled_from([1, 2, 3, 7])
lengths = st.sampled_from([1, 2, 7, 33])
dims = st.sampled_from([1, 7, 33])
masks = st.sampled_from(MASKS)
values = st.sampled_from(["random", "few", "apart"])
dtypes = st.sampled_from(DTYPES)

PYLATE = {
    "colbert_scores": [pylate_scores],
    "colbert_kd_scores": [pylate_kd_scores],
    "colbert_scores_pairwise": [pylate_pairwise],
}
COLPALI = [colpali_scores]
XTR = (PylateXTR, PylateXTRKD)
if importlib.util.find_spec("pylate") is not None:
    XTR = tuple(
        getattr(importlib.import_module("pylate.scores"), x) for x in ("XTRScores", "XTRKDScores")
    )
    for name, peers in PYLATE.items():
        peers.append(getattr(importlib.import_module("pylate.scores"), name))
if importlib.util.find_spec("colpali_engine") is not None:
    processing = importlib.import_module("colpali_engine.utils.processing_utils")
    original = processing.BaseVisualRetrieverProcessor.score_multi_vector
    COLPALI.append(partial(original, device="cpu"))


def exact(kind, dtype):
    """Small types need values whose sums the originals do not round."""
    return "few" if dtype in (torch.float16, torch.bfloat16) else kind


@examples
@given(
    name=st.sampled_from(["colbert_scores", "colbert_kd_scores"]),
    count=counts,
    others=counts,
    length=lengths,
    other_length=lengths,
    dim=dims,
    masking=st.tuples(masks, masks),
    kind=values,
    dtype=dtypes,
    seed=seeds,
)
def test_pylate(name, count, others, length, other_length, dim, masking, kind, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = (others, other_length) if name == "colbert_scores" else (count, others, other_length)
    kind = exact(kind, dtype)
    queries = batch(rng, count, length, dim, dtype, kind)
    documents = -tokens(rng, *shape, dim, dtype=dtype, values=kind)
    query_mask, document_mask = mask(rng, masking[0], count, length), mask(rng, masking[1], *shape)
    own = partial(getattr(pylate, name), queries_mask=query_mask, documents_mask=document_mask)
    for peer in PYLATE[name]:

        def theirs(q, d, peer=peer):
            scores = peer(q, d, query_mask, document_mask)
            # Masks of float32 widen scores of small types there.
            return scores.to(queries.dtype)

        same_scores_and_gradients(own, theirs, (queries, documents), dtype)


@examples
@given(
    own_documents=st.booleans(),
    count=counts,
    group=st.sampled_from([1, 3]),
    length=lengths,
    other_length=lengths,
    dim=dims,
    masking=st.tuples(masks, masks),
    kind=st.sampled_from(["random", "apart"]),
    share=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    seed=seeds,
)
def test_pylate_xtr(
    own_documents, count, group, length, other_length, dim, masking, kind, share, seed
):
    rng = np.random.default_rng(seed)
    queries = tokens(rng, count, length, dim, values=kind)
    documents = -tokens(rng, count, group, other_length, dim, values=kind)
    query_mask = mask(rng, masking[0], count, length)
    document_mask = mask(rng, masking[1], count, group, other_length)
    # With more places than tokens it is open there which masked ones are found.
    most = documents[..., 0].numel() if document_mask is None else int(document_mask.sum())
    k = max(1, int(share * most))
    own, theirs = pylate.XTRScores(k, 5), XTR[0](k, 5)
    if own_documents:
        own, theirs = pylate.XTRKDScores(k), XTR[1](k)
    own.compile()
    masks = {"queries_mask": query_mask, "documents_mask": document_mask}
    if not most:
        assert (own(queries, documents, **masks) == 0).all()
        return
    # Sums without a positive term are divided by 1e-3, and their rounding with them.
    size = 1e3 if (theirs(queries, documents, **masks) < 0).any() else 1.0
    same_scores_and_gradients(
        partial(own, **masks), partial(theirs, **masks), (queries, documents), size=size
    )


@examples
@given(
    sizes=st.lists(st.tuples(lengths, lengths), min_size=1, max_size=5),
    dim=dims,
    padded=st.booleans(),
    kind=values,
    dtype=dtypes,
    seed=seeds,
)
def test_pylate_pairwise(sizes, dim, padded, kind, dtype, seed):
    rng = np.random.default_rng(seed)
    kind = exact(kind, dtype)
    sides = [
        [tokens(rng, own[side], dim, dtype=dtype, values=kind) for own in sizes]
        for side in range(2)
    ]
    if padded:
        sides = [torch.nn.utils.rnn.pad_sequence(side, batch_first=True) for side in sides]
    for peer in PYLATE["colbert_scores_pairwise"]:
        same_scores_and_gradients(pylate.colbert_scores_pairwise, peer, sides, dtype)


def test_pylate_inputs():
    """Arrays, lists, weights in masks, groups."""
    rng = np.random.default_rng(0)
    queries, documents = tokens(rng, 3, 4, 8), tokens(rng, 2, 9, 8)
    expected = pylate_scores(queries, documents)
    for convert in (
        torch.Tensor.numpy,
        list,
        lambda x: [y.double().numpy() for y in x],
        torch.Tensor.tolist,
    ):
        close(pylate.colbert_scores(convert(queries), convert(documents)), expected)
    weights = torch.tensor(rng.normal(size=(3, 4)), dtype=torch.float32)
    others = torch.tensor(rng.normal(size=(2, 9)), dtype=torch.float32)
    close(
        pylate.colbert_scores(queries, documents, weights, others),
        pylate_scores(queries, documents, weights, others),
    )
    groups, there = tokens(rng, 3, 2, 9, 8), mask(rng, "bools", 3, 2, 9)
    close(
        pylate.ColBERTScores()(queries, groups, weights, there),
        pylate_scores(queries, groups.flatten(0, 1), weights, there.flatten(0, 1)),
    )
    nothing = torch.zeros(2, 9)
    assert (pylate.colbert_scores(queries, documents, None, nothing) == 0).all()


@examples
@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 33]), min_size=1, max_size=4),
    other_sizes=st.lists(st.sampled_from([0, 1, 7, 33]), min_size=1, max_size=9),
    dim=dims,
    batch_size=st.sampled_from([1, 2, 3, 128]),
    kind=st.sampled_from(["random", "apart"]),
    dtype=dtypes,
    seed=seeds,
)
def test_colpali_lists(sizes, other_sizes, dim, batch_size, kind, dtype, seed):
    rng = np.random.default_rng(seed)
    batches = [other_sizes[i : i + batch_size] for i in range(0, len(other_sizes), batch_size)]
    kind = exact(kind, dtype)
    queries = [tokens(rng, n, dim, dtype=dtype, values=kind) for n in sizes]
    passages = [-tokens(rng, n, dim, dtype=dtype, values=kind) for n in other_sizes]
    own = colpali.score_multi_vector(queries, passages, batch_size, "cpu")
    if not all(any(own) for own in batches):
        assert own.shape == (len(sizes), len(other_sizes))  # the originals raise
        return
    for peer in COLPALI:
        close(own, peer(queries, passages, batch_size=batch_size), dtype)
    if kind != "few":  # of equal similarities the originals share the gradient
        same_scores_and_gradients(
            partial(colpali.score_multi_vector, batch_size=batch_size, device="cpu"),
            partial(colpali_scores, batch_size=batch_size),
            (queries, passages),
            dtype,
        )


@examples
@given(count=counts, others=counts, length=lengths, dim=dims, dtype=dtypes, seed=seeds)
def test_colpali_batches(count, others, length, dim, dtype, seed):
    rng = np.random.default_rng(seed)
    kind = exact("random", dtype)
    queries = tokens(rng, count, 5, dim, dtype=dtype, values=kind)
    passages = batch(rng, others, length, dim, dtype, kind)
    for peer in COLPALI:
        close(colpali.score_multi_vector(queries, passages, device="cpu"), peer(queries, passages))
    own = colpali.maxsim_inbatch(queries, passages)
    close(own, pylate_scores(queries, passages), dtype)
    groups = tokens(rng, count, others, length, dim, dtype=dtype, values=kind)
    close(colpali.maxsim_kd(queries, groups), pylate_kd_scores(queries, groups), dtype)


ONES = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pylate.colbert_scores(ONES, ONES[:, :0]), r"\[2, 0, 4\], which have no rows"),
        (lambda: pylate.colbert_scores(ONES[0], ONES), r"queries_embeddings: found float32 \[3, 4"),
        (lambda: pylate.colbert_scores(ONES, ONES, backend="torch"), "backend: found 'torch'"),
        (lambda: pylate.colbert_scores(ONES, ONES, torch.ones(2, 4)), "queries_mask: found"),
        (lambda: pylate.colbert_kd_scores(ONES, torch.ones(3, 1, 3, 4)), r"found \[3, 1, 3, 4\]"),
        (lambda: pylate.colbert_scores_pairwise(ONES, ONES[:1]), "documents_embeddings: found 1"),
        (lambda: pylate.colbert_scores_pairwise([], []), "queries_embeddings: found none"),
        (lambda: pylate.colbert_scores_pairwise(list(ONES), [ONES[0], ONES[0, :0]]),
         r"documents_embeddings\[1\]: found no rows"),
        (lambda: colpali.score_multi_vector([], ONES), "qs: found no queries"),
        (lambda: colpali.score_multi_vector(ONES, []), "ps: found no passages"),
        (lambda: colpali.score_multi_vector(ONES, ONES, 0), "batch_size: found 0"),
        (lambda: colpali.maxsim_kd(ONES, ONES), r"doc: found float32 \[2, 3, 4\]"),
    ],
)  # fmt: skip
def test_wrong_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()
