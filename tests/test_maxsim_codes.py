"""MaxSim of codes: every level to the last bit of the definition, and near the decoded tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from info_nce_backends import cpu_level
from maxsim_codes import KINDS, Call, Case, cases, draw_tokens, similarities

import simtile
from simtile.reference import maxsim_codes as reference

LEVELS = simtile.cpu_info()["detected"]


def check(call, result, expected, documents):
    scores, argmax, values = result
    for q, row in enumerate(documents):
        for c, n in enumerate(row):
            if n < 0:
                assert scores[q, c] == -np.inf
                assert (argmax[q][c] == -1).all()
                continue
            score, places, similar = expected[q][n]
            np.testing.assert_array_equal(values[q][c], similar)
            np.testing.assert_array_equal(argmax[q][c], places)
            np.testing.assert_array_equal(scores[q, c], np.float32(score))


@pytest.mark.parametrize("level", LEVELS)
@given(case=cases, threads=st.sampled_from([1, 2]))
def test_all_pairs_are_the_definition(level, case, threads):
    call = Call(case)
    with cpu_level(level):
        result = call.run(return_argmax=True, return_token_scores=True, threads=threads)
        np.testing.assert_array_equal(call.run(threads=threads), result[0])
    everything = [range(len(case.document_lengths))] * len(case.query_lengths)
    check(call, result, call.expected(), everything)


@pytest.mark.parametrize("level", LEVELS)
@given(case=cases)
def test_candidates_are_the_definition(level, case):
    call = Call(case)
    rng = np.random.default_rng(case.seed)
    count = len(case.document_lengths)
    ids = rng.integers(-1, max(count, 1), (len(case.query_lengths), 3))
    if count == 0:
        ids[...] = -1
    with cpu_level(level):
        result = call.run(ids=ids, return_argmax=True, return_token_scores=True)
    check(call, result, call.expected(), ids)


@given(case=cases, k=st.integers(1, 5))
def test_the_best_are_those_of_all_scores(case, k):
    call = Call(case)
    scores = call.run()
    best, ids, argmax = call.run(k=k, return_argmax=True)
    whole = call.run(return_argmax=True)[1]
    for q, row in enumerate(scores):
        order = [n for n in np.argsort(-row, kind="stable") if not np.isnan(row[n])][:k]
        np.testing.assert_array_equal(ids[q], order + [-1] * (k - len(order)))
        np.testing.assert_array_equal(best[q, : len(order)], row[order])
        for c, n in enumerate(order):
            np.testing.assert_array_equal(argmax[q][c], whole[q][n])


@pytest.mark.parametrize("kind", KINDS)
def test_products_at_once_are_the_plain_definition(kind):
    rng = np.random.default_rng(3)
    tokens = draw_tokens(rng, kind, 7, 5, few=False)
    query = rng.normal(size=(3, 7)).astype(np.float32)
    table = similarities(query, None, tokens, normalize=False)[0]
    for i, row in enumerate(query.tolist()):
        for j in range(5):
            if kind.startswith("residual"):
                codec = tokens.codec
                plain = reference.residual_similarity(
                    row,
                    codec.centroids[tokens.centroid_ids[j]].tolist(),
                    tokens.codes()[j].tolist(),
                    codec.whole_weights.tolist(),
                    codec.weight_unit,
                    float(tokens.inverse_norms[j]),
                )
            elif kind == "binary":
                bits = np.unpackbits(tokens.codes[j], count=7).tolist()
                plain = reference.similarity(reference.fold_for_bits(row), bits)
            elif kind == "int8_vector":
                plain = reference.similarity(
                    reference.fold(row, 128), tokens.codes[j].tolist(), float(tokens.scale[j])
                )
            else:
                folded = reference.fold(
                    row,
                    255 if kind == "uint8" else 128,
                    scale=tokens.scale.tolist(),
                    offset=tokens.offset.tolist(),
                )
                plain = reference.similarity(folded, tokens.codes[j].tolist())
            assert table[i, j] == plain


@pytest.mark.parametrize("dim", [1, 7, 111, 128, 989])
@pytest.mark.parametrize("kind", KINDS)
def test_similarities_are_those_of_the_decoded_tokens(kind, dim):
    # Half a unit of the query's rounding a dimension, the same of a bucket's weight, and float32.
    rng = np.random.default_rng(dim)
    tokens = draw_tokens(rng, kind, dim, 40, few=False)
    decoded = (tokens.decode() if kind.startswith("residual") else tokens.dequantize()).astype(
        float
    )
    query = rng.normal(size=(1, 6, dim)).astype(np.float32)
    offsets = np.arange(41)
    values = simtile.maxsim_packed(query, tokens, offsets, return_token_scores=True)[1][0]
    exact = decoded @ query[0].astype(float).T
    scale = tokens.scale if kind in ("int8", "uint8") else np.ones(dim)
    largest = np.abs(query[0] * scale).max(1)
    sizes = np.abs(decoded / scale).sum(1)[:, None]
    if kind in ("int8", "uint8"):
        sizes = sizes + np.abs(tokens.offset / scale).sum()
    bound = largest * sizes / (2 * 32000)
    if kind.startswith("residual"):
        parts = np.abs(tokens.codec.bucket_weights).max() * tokens.inverse_norms[:, None]
        bound = parts * (largest * dim + np.abs(query[0]).sum(1)) / (2 * 32000)
    if dim > 64:
        most = (2**31 - 1) // (255 if kind == "uint8" else 1 if kind == "binary" else 128) // dim
        bound = bound * max(1, 32639 / most)
    bound = bound + 32 * 2**-24 * (np.abs(decoded) @ np.abs(query[0]).T + 1)
    if kind.startswith("residual"):
        bound = bound + 32 * 2**-24 * (np.abs(query[0]).sum(1) * 5) * tokens.inverse_norms[:, None]
    assert (np.abs(values - exact) <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_queries_in_every_form_score_the_same(kind):
    import torch

    rng = np.random.default_rng(5)
    tokens = draw_tokens(rng, kind, 33, 50, few=False)
    offsets = np.array([0, 20, 20, 50])
    queries = rng.normal(size=(3, 9, 33)).astype(np.float32)
    scores = simtile.maxsim_packed(queries, tokens, offsets)
    others = [list(queries), queries[:, ::-1][:, ::-1], np.asfortranarray(queries)]
    for other in others:
        np.testing.assert_array_equal(simtile.maxsim_packed(other, tokens, offsets), scores)
    ours, ids = simtile.maxsim_packed(torch.tensor(queries), tokens, offsets, k=2)
    assert isinstance(ours, torch.Tensor)
    assert isinstance(ids, torch.Tensor)
    np.testing.assert_array_equal(
        simtile.maxsim_packed(torch.tensor(queries), tokens, offsets).numpy(), scores
    )
    half = torch.tensor(queries).bfloat16()
    np.testing.assert_array_equal(
        simtile.maxsim_packed(half, tokens, offsets).numpy(),
        simtile.maxsim_packed(half.float(), tokens, offsets).numpy(),
    )


def test_many_centroids_in_blocks_of_queries(monkeypatch):
    from simtile import _maxsim_codes

    call = Call(Case("residual2", 16, (7, 0, 33, 2), (17, 33, 0, 7), masks=True))
    whole = call.run(return_argmax=True, return_token_scores=True)
    monkeypatch.setattr(_maxsim_codes, "_MOST_PRODUCTS", 1)
    parts = call.run(return_argmax=True, return_token_scores=True)
    np.testing.assert_array_equal(parts[0], whole[0])
    for a, b in zip(parts[1] + parts[2], whole[1] + whole[2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_refused():
    rng = np.random.default_rng(0)
    tokens = draw_tokens(rng, "int8_vector", 8, 6, few=False)
    offsets, query = np.array([0, 2, 6]), np.ones((1, 2, 8), np.float32)
    for arguments, options, message in [
        (
            (query[:, :, :7], tokens, offsets),
            {},
            r"queries: found tokens of 7 dimensions, expected 8",
        ),
        ((query, tokens, offsets[:2]), {}, r"offsets: found .* expected 0 to 6"),
        ((query, tokens, offsets), {"temperature": 0.1}, r"temperature: found one with tokens"),
        ((query, tokens, offsets), {"backend": "cuda"}, r"backend: found 'cuda' with tokens"),
        ((query, tokens, offsets), {"backend": "fast"}, r"backend: found 'fast'"),
        ((tokens, tokens, offsets), {}, r"queries: found one Quantized"),
        (([query[0], tokens], tokens, offsets), {}, r"queries\[0\]: found array"),
        ((query, tokens, offsets, None, np.ones(5, bool)), {}, r"document_mask: found bool \[5\]"),
        ((query, tokens, offsets), {"ids": [[2]]}, r"ids: found 2 at \[0, 0\]"),
        (
            (query, simtile.quantize(query[0], "int4_vector"), [0, 2]),
            {},
            r"tokens: found Quantized",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            simtile.maxsim_packed(*arguments, **options)


def test_gradients_are_refused():
    import torch

    tokens = draw_tokens(np.random.default_rng(0), "binary", 8, 6, few=False)
    queries = torch.ones(1, 2, 8, requires_grad=True)
    with pytest.raises(ValueError, match="requires grad with tokens that are codes"):
        simtile.maxsim_packed(queries, tokens, [0, 6])
    with torch.no_grad():
        assert simtile.maxsim_packed(queries, tokens, [0, 6]).shape == (1, 1)
