"""simtile.maxsim_packed of codes on a GPU: what reaches the CUDA kernels, without a GPU.

Tensors of the CPU pass for those of a GPU here, and the CPU's kernel for the GPU's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import simtile
from simtile import _core, _maxsim_select, _tensors, _vectors
from simtile.ops import maxsim_cuda, maxsim_cuda_topk

KINDS = ("int8", "uint8", "int8_vector", "binary", "residual1", "residual2", "residual4")
BOTH = {"return_argmax": True, "return_token_scores": True}


def forward_codes(
    queries,
    kind,
    codes,
    dim,
    offsets,
    document_mask,
    factors,
    candidates,
    *,
    residuals=None,
    length_normalize,
    empty_score,
    argmax,
    token_scores,
):
    """`_core.maxsim_codes` of the same tensors."""
    given = (*queries[:6], codes, offsets, document_mask, factors, candidates)
    assert all(x is None or isinstance(x, torch.Tensor) for x in given)
    whole, units, terms, starts, ends, mask, codes, offsets, document_mask, factors, candidates = (
        None if x is None else x.numpy() for x in given
    )
    more = [None] * 4
    if residuals is not None:
        assert all(isinstance(x, torch.Tensor) for x in residuals[:3])
        more = [x.numpy() for x in residuals[:3]] + [np.array(residuals.weights, np.int16)]
    assert queries.longest == max(ends - starts, default=0)
    count = len(offsets) - 1 if candidates is None else candidates.shape[1]
    scores = np.full((len(starts), count), 7, np.float32)
    rows = len(whole) * count
    matched = np.full(rows, 7, np.int32) if argmax else None
    values = np.full(rows, 7, np.float32) if token_scores else None
    bounds = (offsets[:-1].copy(), offsets[1:].copy())
    _core.maxsim_codes(
        kind,
        whole,
        starts,
        ends,
        mask,
        units,
        terms,
        codes,
        dim,
        *bounds,
        document_mask,
        factors,
        *more,
        length_normalize,
        empty_score,
        candidates,
        scores,
        matched,
        values,
        1,
    )
    found = (scores, matched, values)
    return maxsim_cuda.Found(*(None if x is None else torch.from_numpy(x) for x in found))


def best(own, candidates, allowed, k):
    """`maxsim_cuda_topk.best`, by sorting."""
    operands, more = own
    found = forward_codes(*operands, candidates, **more, argmax=False, token_scores=False)
    mask = None if allowed is None else allowed.numpy()
    return _maxsim_select.best(found.scores, candidates, mask, k)


@pytest.fixture
def gpu_that_is_none(monkeypatch):
    monkeypatch.setattr(_vectors, "gpu_of", lambda x: x.device if _tensors.is_tensor(x) else None)
    monkeypatch.setattr(maxsim_cuda, "forward_codes", forward_codes)
    monkeypatch.setattr(maxsim_cuda, "pairs_of_codes", lambda *own, **more: (own, more))
    monkeypatch.setattr(maxsim_cuda_topk, "best", best)


def call(kind, options, form, convert):
    """The arguments of one call; `convert` makes tensors of arrays, or leaves them."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(23, 20)).astype(np.float32)
    tokens[5] = 0
    ranges = np.tile([[-3.0], [3.0]], 20) if kind in ("int8", "uint8") else None
    if kind.startswith("residual"):
        bits = int(kind[-1])
        steps = np.linspace(-1, 1, (1 << bits) + 1)
        codec = simtile.ResidualCodec(rng.normal(size=(5, 20)), steps[1:], steps[1:-1], bits)
        codes = codec.encode(tokens)
    else:
        codes = simtile.quantize(tokens, kind, ranges=ranges)
    codes = codes.to("cpu") if convert is torch.from_numpy else codes
    batch = rng.normal(size=(3, 9, 20)).astype(np.float32)[:, :4]
    batch[1, 2] = 0
    queries = [convert(x.copy()) for x in batch] if form == "list" else convert(batch)
    mask = rng.random((3, 4)) < 0.7
    masks = [convert(x) for x in mask] if form == "list" else convert(mask)
    offsets = np.array([0, 6, 6, 14, 23])
    document_mask = convert(rng.random(23) < 0.8) if options.get("zero_rows") == "pad" else None
    return (queries, codes, offsets, masks, document_mask), {**options, "empty_score": -2.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["batch", "list"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": True, "length_normalize": True},
        {"zero_rows": "pad", "normalize": True},
        {"ids": np.array([[0, -1], [3, 1], [2, 2]])},
        {"k": 3, "allow": [0, 2, 3]},
    ],
    ids=str,
)
def test_results_are_those_of_the_cpu(kind, form, options, request):
    arguments, given = call(kind, options, form, lambda x: x)
    expected = simtile.maxsim_packed(*arguments, **given, **BOTH)
    request.getfixturevalue("gpu_that_is_none")
    arguments, given = call(kind, options, form, torch.from_numpy)
    for backend in ("auto", "cuda"):
        found = simtile.maxsim_packed(*arguments, **given, **BOTH, backend=backend)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert isinstance(ours, list) == isinstance(theirs, list)
            for x, y in zip(ours, theirs, strict=True):
                assert isinstance(x, torch.Tensor)
                np.testing.assert_array_equal(x.numpy(), y)


@pytest.mark.usefixtures("gpu_that_is_none")
def test_what_is_refused():
    arguments, _ = call("int8", {}, "batch", torch.from_numpy)
    with pytest.raises(ValueError, match=r"backend: found 'cpu' with tokens that are codes"):
        simtile.maxsim_packed(*arguments, backend="cpu")
    with pytest.raises(ValueError, match=r"temperature: found one with tokens that are codes"):
        simtile.maxsim_packed(*arguments, temperature=0.5)
    elsewhere = arguments[0].to("meta")
    with pytest.raises(ValueError, match=r"queries: found .* on meta .* expected cpu, where"):
        simtile.maxsim_packed(elsewhere, *arguments[1:])
