"""simtile.pool beside sentence-transformers' Pooling and Normalize."""

import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from info_nce_cases import as_tensor
from pool_cases import DTYPES, MASKS, Case
from tolerances import ROUNDOFF

import simtile

# Nothing is asked of the network by what imports transformers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its dependencies deprecate
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

MODES = {"mean": "mean", "cls": "cls", "max": "max", "last": "lasttoken"}


def theirs(tokens, mask, mode, normalize, **features):
    """`Pooling`, and `Normalize` after it."""
    features |= {"token_embeddings": tokens}
    if mask is not None:
        features["attention_mask"] = mask.long()
    result = Pooling(tokens.shape[-1], mode)(features)
    if normalize:
        result = Normalize()(result)
    return result["sentence_embedding"]


def inputs(case, keep_one=True):
    """Tokens, whose padding is any numbers, and a mask that leaves each row a token."""
    tokens = as_tensor(np.nan_to_num(case.tokens().astype(np.float32), nan=3.5))
    tokens = tokens.to(getattr(torch, case.dtype))
    mask = case.mask_array()
    if mask is None:
        return tokens, None
    if keep_one:
        mask[:, 0 if case.mask == "right" else -1] |= ~mask.any(axis=1)
    return tokens, torch.from_numpy(mask)


@given(
    rows=st.sampled_from([1, 2, 7]),
    length=st.sampled_from([1, 2, 7, 40]),
    width=st.sampled_from([1, 7, 65]),
    dtype=st.sampled_from(list(DTYPES)),
    how=st.sampled_from(list(MODES)),
    mask=st.sampled_from(MASKS),
    normalize=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_vectors_and_gradients(rows, length, width, dtype, how, mask, normalize, seed):
    case = Case(rows, length, width, width, dtype, how, mask, values="ties", seed=seed)
    tokens, kept = inputs(case)
    ours, other = (tokens.clone().requires_grad_() for _ in "ab")
    found = simtile.pool(ours, kept, how, normalize=normalize)
    expected = theirs(other, kept, MODES[how], normalize)
    assert found.dtype == expected.dtype
    if dtype == "float16":  # whose smallest divisor, 1e-12, float16 does not have
        expected = torch.where(expected.isnan(), 0.0, expected)
    # The original rounds to the element type before it normalises, and in between.
    tolerance = 16 * ROUNDOFF[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    grad = as_tensor(case.grad())
    found.backward(grad)
    expected.backward(grad)
    norm = found.new_ones(rows)
    if normalize:
        norm = simtile.pool(tokens, kept, how, normalize=False).float().norm(dim=1)
    # Where nothing is left of a sum, rounding has the direction.
    clear = norm > 0.1
    ours.grad[~clear] = other.grad[~clear] = 0
    size = (grad.double().norm() / norm[clear].min() if clear.any() else 1.0) + 1
    torch.testing.assert_close(ours.grad, other.grad, rtol=0, atol=float(4 * size * tolerance))


@pytest.mark.parametrize("mask", MASKS)
def test_weights_of_positions(mask):
    case = Case(7, 12, 9, 9, "float32", "mean", mask, seed=2)
    tokens, kept = inputs(case)
    weights = torch.arange(1.0, 13.0).expand(7, 12)
    if kept is not None:  # theirs count from the first token
        weights = weights - kept.int().argmax(1, keepdim=True)
    found = simtile.pool(tokens, kept, weights=weights)
    torch.testing.assert_close(found, theirs(tokens, kept, "weightedmean", True))


@pytest.mark.parametrize("how", list(MODES))
def test_tokens_without_padding(how):
    tokens, lengths = torch.randn(20, 6), torch.tensor([3, 1, 9, 7])
    offsets = torch.cumsum(torch.tensor([0, *lengths]), 0)
    found = simtile.pool(tokens, None, how, offsets=offsets)
    expected = theirs(tokens[None], None, MODES[how], True, cu_seq_lens_q=offsets)
    torch.testing.assert_close(found, expected)


def test_rows_without_tokens():
    """Where the two differ: the first padding, infinities, and NaN in padding."""
    tokens = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    for how, mode in MODES.items():
        found = simtile.pool(tokens, mask, how, normalize=False)
        expected = theirs(tokens, mask, mode, False)
        torch.testing.assert_close(found[0], expected[0])
        assert (found[1] == 0).all()
        same = {"mean": 0.0, "last": 0.0, "max": -torch.inf}
        torch.testing.assert_close(expected[1], torch.full((4,), same[how]) if how in same else tokens[1, 0])  # fmt: skip
    tokens[0, 2] = torch.nan
    assert theirs(tokens, mask, "mean", False)[0].isnan().all()
    assert simtile.pool(tokens, mask)[0].isfinite().all()
