"""simtile.integrations.sentence_transformers_multivector beside sentence-transformers itself.

sentence-transformers is a development requirement: without it this file fails, it is not skipped.
"""

import os
import warnings
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

from simtile.integrations import sentence_transformers_multivector as ours

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "builtin type .*[Ss]wig", DeprecationWarning)
    import sentence_transformers.util as peer_util
    from sentence_transformers.multi_vector_encoder import losses, scoring

seeds = st.integers(0, 2**32 - 1)
counts = st.sampled_from([1, 2, 3, 7])
lengths = st.sampled_from([1, 2, 7, 33])
dims = st.sampled_from([1, 7, 33])
masks = st.sampled_from(MASKS)
values = st.sampled_from(["random", "few", "apart"])
forms = st.sampled_from(["batch", "list", "lists with empty ones"])
PAIRS = {False: "maxsim", True: "maxsim_pairwise"}


def side(rng, form, count, length, dim, kind, masking, dtype):
    """Matrices and their mask."""
    if form == "batch":
        x = batch(rng, count, length, dim, dtype, kind)
        return x, mask(rng, masking, count, length)
    least = 0 if form == "lists with empty ones" else 1
    own = [int(n) for n in rng.integers(least, length + 1, count)]
    own[0] = length
    x = [batch(rng, 1, n, dim, dtype, kind)[0] for n in own]
    drawn = mask(rng, masking, count, length)
    if drawn is not None:
        for row, n in zip(drawn, own, strict=True):
            row[n:] = 0
    return x, drawn


@examples
@given(
    pairs=st.booleans(),
    count=counts,
    others=counts,
    length=lengths,
    other_length=lengths,
    dim=dims,
    forms=st.tuples(forms, forms),
    masking=st.tuples(masks, masks),
    kind=values,
    dtype=st.sampled_from(DTYPES),
    mean=st.booleans(),
    seed=seeds,
)
def test_maxsim(
    pairs, count, others, length, other_length, dim, forms, masking, kind, dtype, mean, seed
):
    rng = np.random.default_rng(seed)
    others = count if pairs else others
    if dtype in (torch.float16, torch.bfloat16):
        kind = "few"  # exact, so that the original rounds nothing
    queries, query_mask = side(rng, forms[0], count, length, dim, kind, masking[0], dtype)
    documents, document_mask = side(
        rng, forms[1], others, other_length, dim, kind, masking[1], dtype
    )
    if kind == "apart":
        documents = [-x for x in documents] if isinstance(documents, list) else -documents
    options = {"a_mask": query_mask, "b_mask": document_mask, "length_normalize": mean}
    own = partial(getattr(ours, PAIRS[pairs]), **options)

    def theirs(a, b):  # float32, as it is documented; without a mask, float64 stays
        return getattr(peer_util, PAIRS[pairs])(a, b, **options).float()

    with torch.no_grad():
        close(own(queries, documents), theirs(queries, documents))
    same_scores_and_gradients(own, theirs, (queries, documents), dtype)


@pytest.mark.parametrize(
    "name", ["maxsim", "maxsim_pairwise", "mean_maxsim", "mean_maxsim_pairwise"]
)
def test_forms_of_inputs(name):
    """Arrays, single matrices, integers, lists of masks, chunks on a device."""
    rng = np.random.default_rng(0)
    own, theirs = getattr(ours, name), getattr(peer_util, name)
    queries, documents = batch(rng, 3, 4, 8), batch(rng, 3, 9, 8)
    several = [tokens(rng, n, 8) for n in (5, 1, 9)]
    close(own(queries.numpy(), documents.numpy()), theirs(queries.numpy(), documents.numpy()))
    close(own(queries[0], documents[0]), theirs(queries[0], documents[0]))
    close(own(queries[0].numpy(), several[:1]), theirs(queries[0].numpy(), several[:1]))
    integers = (documents * 4).to(torch.int8)
    close(own(queries, integers), theirs(queries, integers))
    close(own(queries, [x.numpy() for x in several]), theirs(queries, [x.numpy() for x in several]))
    parts = [torch.tensor(rng.random(n) < 0.6) for n in (5, 1, 9)]
    close(own(queries, several, b_mask=parts), theirs(queries, several, b_mask=parts))
    close(own(several, documents, parts), theirs(several, documents, parts))
    close(
        own(queries[0], documents[0], torch.ones(4), torch.ones(9)),
        theirs(queries[0], documents[0], torch.ones(4), torch.ones(9)),
    )
    for elements in (1, 100, 10**9):
        for x in (documents, several):
            close(
                own(queries, x, chunk_elements=elements, device="cpu"),
                theirs(queries, x, chunk_elements=elements, device="cpu"),
            )
    close(own(queries[:0], documents[:0]), theirs(queries[:0], documents[:0]))
    close(own([], []), theirs([], []))


def test_weights_of_queries():
    """What a mask of floats has besides 0 and 1 multiplies."""
    rng = np.random.default_rng(1)
    queries, documents = batch(rng, 3, 5, 8), batch(rng, 3, 9, 8)
    weights = torch.tensor(rng.choice([0, 0.5, 1, 2.25], (3, 5)), dtype=torch.float32)
    for name in ("maxsim", "maxsim_pairwise", "mean_maxsim"):
        own, theirs = (partial(getattr(x, name), a_mask=weights) for x in (ours, peer_util))
        same_scores_and_gradients(own, theirs, (queries, documents))
    with pytest.raises(ValueError, match=r"a_mask: found a negative weight in \[3, 5\]"):
        ours.maxsim(queries, documents, -weights)


@pytest.mark.parametrize("documents", [[torch.zeros(0, 4)], torch.ones(2, 0, 4)])
def test_documents_without_rows(documents):
    queries = torch.ones(2, 3, 4)
    close(ours.maxsim(queries, documents), peer_util.maxsim(queries, documents))
    close(ours.mean_maxsim(queries, documents), peer_util.mean_maxsim(queries, documents))


SCORES = [name for name in scoring.__all__ if not name.startswith(("XTR", "xtr"))]


@examples
@given(
    name=st.sampled_from(SCORES),
    count=counts,
    group=st.sampled_from([1, 2, 3]),
    length=lengths,
    other_length=lengths,
    dim=dims,
    masking=st.tuples(masks, masks),
    kind=values,
    arrays=st.booleans(),
    seed=seeds,
)
def test_scores_for_losses(
    name, count, group, length, other_length, dim, masking, kind, arrays, seed
):
    rng = np.random.default_rng(seed)
    queries = batch(rng, count, length, dim, values=kind)
    shape = (count, other_length) if name.endswith("pairwise") else (count, group, other_length)
    documents = batch(rng, count * group, other_length, dim, values=kind)[: np.prod(shape[:-1])]
    documents = documents.reshape(*shape, dim)
    options = {
        "queries_mask": mask(rng, masking[0], count, length),
        "documents_mask": mask(rng, masking[1], *shape),
    }
    own, theirs = (partial(getattr(module, name), **options) for module in (ours, scoring))
    if arrays:
        close(own(queries.numpy(), documents.numpy()), theirs(queries.numpy(), documents.numpy()))
    same_scores_and_gradients(own, theirs, (queries, documents))


XTR = ["xtr_scores", "xtr_kd_scores", "xtr_scores_pairwise", "XTRScores", "XTRKDScores"]


@examples
@given(
    name=st.sampled_from(XTR),
    count=counts,
    group=st.sampled_from([1, 2, 3]),
    length=lengths,
    other_length=lengths,
    dim=dims,
    masking=st.tuples(masks, masks),
    weights=st.booleans(),
    kind=st.sampled_from(["random", "apart"]),
    top_k=st.sampled_from([1, 3, 20, 10**4]),
    seed=seeds,
)
def test_xtr(name, count, group, length, other_length, dim, masking, weights, kind, top_k, seed):
    rng = np.random.default_rng(seed)
    zeros = [kind == "absent" for kind in masking]  # of those that are tokens, any may be found
    queries = batch(rng, count, length, dim, values=kind, zeros=zeros[0])
    shape = (count, other_length) if name.endswith("pairwise") else (count, group, other_length)
    rows = int(np.prod(shape[:-1]))
    documents = -batch(rng, rows, other_length, dim, values=kind, zeros=zeros[1])
    documents = documents.reshape(*shape, dim)
    query_mask = mask(rng, masking[0], count, length)
    if weights and query_mask is not None:
        query_mask = query_mask * 1.5
    options = {"queries_mask": query_mask, "documents_mask": mask(rng, masking[1], *shape)}
    if name in XTR[:3]:
        options["top_k"] = top_k
        own, theirs = (partial(getattr(module, name), **options) for module in (ours, scoring))
    else:
        made = [getattr(module, name)(top_k, chunk_elements=9) for module in (ours, scoring)]
        assert made[0].get_config_dict() == made[1].get_config_dict()
        own, theirs = (partial(function, **options) for function in made)
    same_scores_and_gradients(own, theirs, (queries, documents))


def test_every_function_is_there():
    functions = set(scoring.__all__)
    functions |= {name for name in peer_util.__all__ if "maxsim" in name}
    assert functions == set(ours.__all__)


class Encoder(torch.nn.Module):
    """As much of a multi-vector model as a loss calls."""

    def __init__(self, vocabulary=50, dim=16):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, dim)

    def forward(self, features, task=None):
        x = torch.nn.functional.normalize(self.embedding(features["input_ids"]), dim=-1)
        return {**features, "token_embeddings": x}


def columns(rng, count=4):
    found = []
    for length in (5, 11, 7):
        there = torch.ones(count, length, dtype=torch.long)
        there[1, length // 2 :] = 0
        there[2, 1] = 0
        ids = torch.tensor(rng.integers(0, 50, (count, length)))
        found.append({"input_ids": ids, "attention_mask": there})
    return found


LOSSES = {
    "MultiVectorMultipleNegativesRankingLoss": (
        "colbert_scores",
        "mean_colbert_scores",
        "xtr_scores",
    ),
    "MultiVectorMarginMSELoss": (
        "colbert_scores_pairwise",
        "mean_colbert_scores_pairwise",
        "xtr_scores_pairwise",
    ),
    "MultiVectorDistillKLDivLoss": ("colbert_kd_scores", "mean_colbert_kd_scores", "xtr_kd_scores"),
}


@pytest.mark.parametrize(
    ("loss", "name"), [(loss, name) for loss, names in LOSSES.items() for name in names]
)
def test_similarity_fct_of_losses(loss, name):
    rng = np.random.default_rng(2)
    torch.manual_seed(3)
    model, features = Encoder(), columns(rng)
    labels = torch.randn(4, 2) if "KLDiv" in loss else torch.randn(4)
    found = []
    for module in (ours, scoring):
        model.zero_grad()
        criterion = getattr(losses, loss)(model, similarity_fct=getattr(module, name))
        assert name in criterion.get_config_dict()["similarity_fct"]
        value = criterion(features, labels)
        value.backward()
        found.append((value.detach(), model.embedding.weight.grad.clone()))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.maxsim(torch.ones(2, 3, 4), torch.ones(2, 3, 4), b_mask="no"), TypeError,
         "b_mask: found str"),
        (lambda: ours.maxsim(torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(2, 5)),
         ValueError, r"a_mask: found float32 \[2, 5\], expected \[2, 3\]"),
        (lambda: ours.maxsim_pairwise(torch.ones(2, 3, 4), torch.ones(3, 3, 4)), ValueError,
         "b: found 3 documents, expected one for each of the 2"),
        (lambda: ours.maxsim([torch.ones(4)], torch.ones(3, 3, 4)), ValueError,
         r"a\[0\]: found float32 \[4\], expected \[L, D\]"),
        (lambda: ours.maxsim(torch.ones(1, 2, 4), [torch.ones(1, 4), torch.ones(2, 4)],
                             b_mask=torch.ones(2, 2)), ValueError,
         "b_mask: found tokens of document 0 beyond its 1"),
        (lambda: ours.colbert_scores(torch.ones(2, 3, 4), torch.ones(2, 3, 4)), ValueError,
         r"documents_embeddings: found float32 \[2, 3, 4\], expected \[B, N, L, D\]"),
        (lambda: ours.colbert_kd_scores(torch.ones(2, 3, 4), torch.ones(3, 1, 3, 4)), ValueError,
         r"documents_embeddings: found \[3, 1, 3, 4\], expected a group"),
        (lambda: ours.colbert_scores_pairwise(torch.ones(2, 3, 4), torch.ones(3, 3, 4)),
         ValueError, "documents_embeddings: found 3"),
        (lambda: ours.maxsim(torch.ones(2, 3, 4).to_sparse(), torch.ones(2, 3, 4)), TypeError,
         "a: found a torch.sparse_coo tensor"),
        (lambda: ours.xtr_scores(torch.ones(2, 3, 4), torch.ones(2, 1, 3, 4), top_k=0),
         ValueError, "top_k: found 0"),
        (lambda: ours.xtr_kd_scores(torch.ones(2, 3, 4), torch.ones(3, 1, 3, 4)), ValueError,
         r"documents_embeddings: found \[3, 1, 3, 4\]"),
    ],
)  # fmt: skip
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()
