"""simtile.integrations.late_interaction_kernels beside late-interaction-kernels itself.

Its functions for a GPU are compared by what it computes on the CPU: its reference module, which
its own tests hold them to. It is a development requirement: without it this file fails.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from late_interaction_cases import batch, close, examples, mask, same_scores_and_gradients, tokens
from late_interaction_kernels import MaxSimScorer, maxsim_padded, reference, retrieve

from simtile.integrations import late_interaction_kernels as ours

seeds = st.integers(0, 2**32 - 1)
counts = st.sampled_from([1, 2, 3, 7])
lengths = st.sampled_from([1, 2, 7, 33])
dims = st.sampled_from([1, 7, 33])
masks = st.sampled_from(["absent", "bools", "integers", "nothing"])
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


@examples
@given(
    count=counts,
    others=counts,
    length=lengths,
    other_length=lengths,
    dim=dims,
    masking=st.tuples(masks, masks),
    normalize=st.booleans(),
    singles=st.tuples(st.booleans(), st.booleans()),
    dtype=dtypes,
    seed=seeds,
)
def test_maxsim(count, others, length, other_length, dim, masking, normalize, singles, dtype, seed):
    rng = np.random.default_rng(seed)
    zeros = not normalize  # of a row of zeros the original's gradient is not finite
    dim = max(dim, 7 if normalize else 1)  # of a unit vector of one number it is rounding alone
    queries = batch(rng, count, length, dim, dtype, zeros=zeros)
    documents = batch(rng, others, other_length, dim, dtype, zeros=zeros)
    query_mask = mask(rng, masking[0], count, length)
    document_mask = mask(rng, masking[1], others, other_length)
    if singles[0]:
        queries, query_mask = queries[0], None if query_mask is None else query_mask[0]
    if singles[1]:
        documents = documents[0]
        document_mask = None if document_mask is None else document_mask[0]

    def own(q, d):
        return ours.maxsim(q, d, query_mask, document_mask, normalize=normalize, backward="lowmem")

    def theirs(q, d):
        scores = reference.maxsim_reference(q, d, query_mask, document_mask, normalize=normalize)
        return scores.squeeze() if all(singles) else scores

    same_scores_and_gradients(own, theirs, (queries, documents), dtype)
    scorers = [module(normalize=normalize) for module in (ours.MaxSimScorer, MaxSimScorer)]
    close(*(scorer(queries, documents, query_mask, document_mask) for scorer in scorers), dtype)
    close(*(x.score(queries, documents, query_mask, document_mask) for x in scorers), dtype)


@examples
@given(
    count=st.sampled_from([1, 3]),
    group=st.sampled_from([1, 3]),
    length=lengths,
    other_length=lengths,
    dim=dims,
    seed=seeds,
)
def test_own_documents(count, group, length, other_length, dim, seed):
    """Documents [B, K, L, D], pairs and padded batches."""
    rng = np.random.default_rng(seed)
    queries = tokens(rng, count, length, dim)
    documents = tokens(rng, count, group, other_length, dim)
    query_lengths = torch.tensor(rng.integers(0, length + 1, count))
    document_lengths = torch.tensor(rng.integers(0, other_length + 1, (count, group)))
    query_mask = torch.arange(length) < query_lengths[:, None]
    document_mask = torch.arange(other_length) < document_lengths[..., None]

    def theirs(q, d):
        return maxsim_padded(q, d, query_lengths, document_lengths)

    for own in (
        lambda q, d: ours.maxsim_padded(q, d, query_lengths, document_lengths),
        lambda q, d: ours.maxsim(q, d, query_mask, document_mask),
        lambda q, d: torch.stack(
            [ours.maxsim_pairs(q, d[:, n], query_mask, document_mask[:, n]) for n in range(group)],
            dim=1,
        ),
    ):
        if (query_lengths[:, None] * document_lengths).any():
            same_scores_and_gradients(own, theirs, (queries, documents))
        else:  # the original's scores are constants then
            close(own(queries, documents), theirs(queries, documents))


@examples
@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 33]), min_size=1, max_size=4),
    other_sizes=st.lists(st.sampled_from([0, 1, 7, 33]), min_size=1, max_size=5),
    dim=dims,
    pairs=st.integers(0, 9),
    seed=seeds,
)
def test_packed(sizes, other_sizes, dim, pairs, seed):
    rng = np.random.default_rng(seed)
    queries, documents = tokens(rng, sum(sizes), dim), tokens(rng, sum(other_sizes), dim)
    offsets, others = (
        torch.tensor(np.cumsum([0, *own]), dtype=torch.int32) for own in (sizes, other_sizes)
    )
    close(
        ours.maxsim_varlen(queries, documents, offsets, others, max(sizes), max(other_sizes)),
        reference.maxsim_reference_varlen(queries, documents, offsets, others),
    )
    chosen = (
        torch.tensor(rng.integers(0, len(own), pairs), dtype=torch.int32)
        for own in (sizes, other_sizes)
    )
    arguments = (queries, documents, offsets, others, *chosen)
    close(ours.score_pairs_packed(*arguments), reference.maxsim_reference_scatter(*arguments))


@examples
@given(
    count=counts,
    others=st.sampled_from([1, 7, 33]),
    top_k=st.sampled_from([1, 3, 50]),
    chunk=st.sampled_from([None, 4]),
    normalize=st.booleans(),
    largest=st.booleans(),
    single=st.booleans(),
    masking=masks,
    seed=seeds,
)
def test_retrieve(count, others, top_k, chunk, normalize, largest, single, masking, seed):
    rng = np.random.default_rng(seed)
    queries, documents = tokens(rng, count, 5, 16), tokens(rng, others, 9, 16)
    if single:
        queries = queries[0]
    options = {
        "d_mask": mask(rng, masking, others, 9),
        "normalize": normalize,
        "chunk": chunk,
        "largest": largest,
    }
    own, theirs = (x(queries, documents, top_k, **options) for x in (ours.retrieve, retrieve))
    close(own[0], theirs[0])
    assert own[1].dtype == theirs[1].dtype
    if masking != "nothing":  # which of equal scores come first is open there
        assert torch.equal(own[1], theirs[1])
    del options["largest"], options["normalize"]
    scorer = ours.MaxSimScorer(normalize=normalize)
    if largest:
        close(scorer.retrieve(queries, documents, top_k, **options)[0], theirs[0])


def test_module_with_ids():
    rng = np.random.default_rng(0)
    queries, documents = tokens(rng, 2, 3, 4), tokens(rng, 3, 5, 4)
    ids = torch.tensor(rng.integers(0, 2, (2, 3))), torch.tensor(rng.integers(0, 2, (3, 5)))
    own, theirs = (x(mask_pad_token=0) for x in (ours.MaxSimScorer, MaxSimScorer))
    assert own.extra_repr() == theirs.extra_repr()
    close(
        own.forward_with_ids(queries, documents, *ids),
        theirs.forward_with_ids(queries, documents, *ids),
    )
    with pytest.raises(ValueError, match="mask_pad_token: found None"):
        ours.MaxSimScorer().forward_with_ids(queries, documents, *ids)


ONES = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.maxsim(ONES, ONES, backward="fast"), "backward: found 'fast'"),
        (lambda: ours.MaxSimScorer(backward="fast"), "backward: found 'fast'"),
        (lambda: ours.maxsim(ONES, torch.ones(3, 1, 3, 4)), r"D: found \[3, 1, 3, 4\]"),
        (lambda: ours.maxsim_pairs(ONES, ONES[0]), r"D: found float32 \[3, 4\], expected \[B"),
        (lambda: ours.maxsim(ONES, ONES, torch.ones(3, 3)), r"q_mask: found float32 \[3, 3\]"),
        (lambda: ours.retrieve(ONES, ONES, 0), "top_k: found 0"),
        (lambda: ours.maxsim_varlen(ONES[0], ONES[0], [0, 2], [0, 3]), "cu_seqlens_q: found"),
        (lambda: ours.maxsim_varlen(ONES[0], ONES[0], [0, 3], [0, 3], 2),
         "cu_seqlens_q: found a sequence of 3, expected no more than 2"),
        (lambda: ours.score_pairs_packed(ONES[0], ONES[0], [0, 3], [0, 3], [0, 1], [0, 0]),
         "pair_q_idx: found a number that is not from 0 to 0"),
        (lambda: ours.score_pairs_packed(ONES[0], ONES[0], [0, 3], [0, 3], [0, 0], [0]),
         r"pair_d_idx: found \[1\], expected \[2\]"),
        (lambda: ours.maxsim_padded(ONES, ONES[:, None], [3, 0], [[1], [1]], validate=True),
         "query_lengths: found a length that is not from 1 to 3"),
        (lambda: ours.maxsim_padded(ONES, ONES[:, None], [3], [[1], [1]]),
         r"query_lengths: found \[1\], expected \[2\]"),
    ],
)  # fmt: skip
def test_wrong_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()
