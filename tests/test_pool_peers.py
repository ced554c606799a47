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

    from simtile.integrations import sentence_transformers_pooling as fused

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
        other = torch.full((4,), same[how]) if how in same else tokens[1, 0]
        torch.testing.assert_close(expected[1], other)
    tokens[0, 2] = torch.nan
    assert theirs(tokens, mask, "mean", False)[0].isnan().all()
    assert simtile.pool(tokens, mask)[0].isfinite().all()


def features_of(form, rng):
    """Tokens of three rows and what their pooling is told: padded, or one after the other."""
    lengths = [5, 9, 3]
    if form == "flat":
        tokens = torch.from_numpy(rng.standard_normal((1, sum(lengths), 6)).astype(np.float32))
        offsets = torch.tensor([0, *lengths]).cumsum(0).int()
        return {"token_embeddings": tokens, "cu_seq_lens_q": offsets}
    tokens = torch.from_numpy(rng.standard_normal((3, 9, 6)).astype(np.float32))
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    if form == "left":
        mask = mask.flip(1)
    return {"token_embeddings": tokens, "attention_mask": mask.long()}


@pytest.mark.parametrize("form", ["right", "left", "flat"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("prompt", [0, 2])
def test_the_module_is_the_original(form, normalize, prompt, monkeypatch):
    called = []
    monkeypatch.setattr(fused, "pool", lambda *a, **k: called.append(a) or simtile.pool(*a, **k))
    for mode in (*Pooling.POOLING_MODES, ("mean", "max"), ("weightedmean", "lasttoken", "cls")):
        features = features_of(form, np.random.default_rng(1))
        if prompt:
            features["prompt_length"] = prompt
        module = fused.Pooling(6, mode, not prompt, normalize)
        original = Pooling(6, mode, not prompt)
        expected = original(dict(features))
        if normalize:
            expected = Normalize()(expected)
        called.clear()
        found = module(dict(features))
        assert len(called) == (1 if isinstance(mode, str) else len(mode))
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found["sentence_embedding"], expected["sentence_embedding"])
        assert module.get_embedding_dimension() == original.get_embedding_dimension()


def test_what_other_modules_know_is_pooled_by_the_original():
    features = features_of("right", np.random.default_rng(2))
    features["token_weights_sum"] = torch.tensor([2.0, 3.0, 4.0])
    expected = Normalize()(Pooling(6, "mean")(dict(features)))
    found = fused.Pooling(6, "mean", normalize=True)(dict(features))
    torch.testing.assert_close(found["sentence_embedding"], expected["sentence_embedding"])


def test_the_configuration_is_saved(tmp_path):
    fused.Pooling(6, ("mean", "max"), normalize=True).save(str(tmp_path))
    loaded = fused.Pooling.load(str(tmp_path))
    assert loaded.normalize
    config = {"embedding_dimension": 6, "pooling_mode": ("mean", "max"), "include_prompt": True}
    assert loaded.get_config_dict() == {**config, "normalize": True}


def test_a_model_is_fused():
    class Tokens(torch.nn.Module):
        def forward(self, features):
            return features_of("left", np.random.default_rng(3))

    model = torch.nn.Sequential(Tokens(), Pooling(6, "mean"), Normalize())
    expected = model({})["sentence_embedding"]
    assert fused.fuse_pooling(model) is model
    assert [type(module) for module in model] == [Tokens, fused.Pooling]
    torch.testing.assert_close(model({})["sentence_embedding"], expected)
    with pytest.raises(ValueError, match="model: found the modules Tokens, Pooling, expected"):
        fused.fuse_pooling(model)
    of_tokens = Normalize("token_embeddings")
    model = fused.fuse_pooling(torch.nn.Sequential(Tokens(), Pooling(6), of_tokens))
    assert model[2] is of_tokens
    assert not model[1].normalize
