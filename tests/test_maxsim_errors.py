"""What MaxSim refuses: each error names the argument, what was found, what was expected."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import simtile

Q = np.ones((2, 3, 4), np.float32)
D = np.ones((5, 6, 4), np.float32)
T = np.ones((9, 4), np.float32)
OFFSETS = np.array([0, 4, 4, 9])

SHAPES = {
    "a matrix": ({"queries": Q[0]}, r"queries: found float32 \[3, 4\], .*one matrix .* x\[None\]"),
    "a vector": ({"documents": Q[0, 0]}, r"documents: found float32 \[4\], expected \[B, L, D\]"),
    "dimensions": ({"documents": D[..., :3]}, r"documents: .*\[5, 6, 3\], expected 4 dimensions"),
    "none": ({"queries": Q[..., :0]}, r"queries: found .*\[2, 3, 0\], expected at least one"),
    "in a list": ({"queries": [Q[0], Q[0, 0]]}, r"queries\[1\]: found float32 \[4\].*\[L, 4\]"),
    "a batch in a list": ({"queries": [Q]}, r"queries\[0\]: found float32 \[2, 3, 4\].*\[L, D\]"),
    "lists that differ": (
        {"documents": [T, T[:, :2]]},
        r"documents\[1\]: found float32 \[9, 2\], expected \[L, 4\]",
    ),
    "mask": ({"query_mask": np.ones((2, 4), bool)}, r"query_mask: found bool \[2, 4\].*\[2, 3\]"),
    "mask of a vector": ({"document_mask": np.ones(6, bool)}, r"document_mask: .*\[5, 6\]"),
    "mask of floats": (
        {"document_mask": np.ones((5, 6), np.float32)},
        r"document_mask: found float32 \[5, 6\], expected bool, or integers that are 0",
    ),
    "masks of different lengths": (
        {"query_mask": [np.ones(3, bool), np.ones(2, bool)]},
        r"query_mask: found masks of different lengths, expected \[2, 3\]",
    ),
    "masks for a list": (
        {"queries": [T, T], "query_mask": [np.ones(9, bool)]},
        r"query_mask: found 1 masks, expected 2",
    ),
    "a mask for a list": (
        {"queries": [T, T], "query_mask": [np.ones(9, bool), np.ones(8, bool)]},
        r"query_mask\[1\]: found bool \[8\], expected \[9\]: queries\[1\] has 9 rows",
    ),
    "one mask for a list": (
        {"queries": [T, T], "query_mask": np.ones((2, 9), bool)},
        r"query_mask: found ndarray, expected a list of \[L\] because queries are a list",
    ),
    "integers": ({"queries": Q.astype(int)}, r"queries: found int64 .*x\.astype\(np\.float32\)"),
    "uint16": (
        {"documents": D.astype(np.uint16)},
        r"documents: found uint16 .*uint16 is never read as bfloat16",
    ),
}

OPTIONS = {
    "zero_rows": ({"zero_rows": "ignore"}, r"zero_rows: found 'ignore', expected one of 'score'"),
    "empty_score": ({"empty_score": None}, r"empty_score: found None, expected a number"),
    "temperature": ({"temperature": 0.0}, r"temperature: found 0\.0, .*above 0"),
    "NaN": ({"temperature": float("nan")}, r"temperature: found nan"),
    "threads": ({"threads": 0}, r"threads: found 0, expected 1 to"),
    "backend": ({"backend": "gpu"}, r"backend: found 'gpu', expected one of 'auto'"),
    "triton": ({"backend": "triton"}, r"backend: 'triton' |queries: found a tensor on the CPU"),
    "cuda": ({"backend": "cuda"}, r"backend: 'cuda' |queries: found a tensor on the CPU"),
}


def as_tensor(x):
    if isinstance(x, list):
        return [as_tensor(own) for own in x]
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("convert", [lambda x: x, as_tensor], ids=["arrays", "tensors"])
def test_shapes(convert, name):
    changed, message = SHAPES[name]
    given = {"queries": Q, "documents": D, **changed}
    message = message.replace("ndarray", "(ndarray|Tensor)")
    if convert is as_tensor and name in ("integers", "uint16"):
        message = r"(queries|documents): found torch\.(int64|uint16), expected float32"
    given = {key: convert(x) for key, x in given.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        simtile.maxsim(**given)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("convert", [lambda x: x, as_tensor], ids=["arrays", "tensors"])
def test_options(convert, name):
    changed, message = OPTIONS[name]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        simtile.maxsim(convert(Q), convert(D), **changed)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        simtile.maxsim_pairwise(convert(Q), convert(D[:2]), **changed)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        simtile.maxsim_packed(convert(Q), convert(T), OFFSETS, **changed)


def test_pairs_have_as_many():
    with pytest.raises(ValueError, match=r"documents: found 5 for 2 queries, expected 2"):
        simtile.maxsim_pairwise(Q, D)


PACKED = {
    "a batch": ({"tokens": D}, r"tokens: found float32 \[5, 6, 4\], expected the tokens of all"),
    "lengths": ({"offsets": [4, 0, 5]}, r"offsets: .*from 4 to 5, expected 0 to 9 .*cumsum"),
    "starts": ({"offsets": [0, 4, 4]}, r"offsets: .*from 0 to 4, expected 0 to 9"),
    "falling": (
        {"offsets": [0, 5, 3, 9]},
        r"offsets: .*ascending ones, and \[1\] is 5,",
    ),
    "none": ({"offsets": []}, r"offsets: found float64 \[0\], expected integers"),
    "floats": ({"offsets": [0.0, 9.0]}, r"offsets: found float64 \[2\], expected integers"),
    "a matrix": ({"offsets": [[0, 9]]}, r"offsets: found int64 \[1, 2\], expected integers"),
    "mask": ({"document_mask": np.ones(8, bool)}, r"document_mask: found bool \[8\].*\[9\]"),
    "ids": ({"ids": [[0], [3]]}, r"ids: found 3 at \[1, 0\], expected -1 to 2 because there are 3"),
    "ids below": ({"ids": [[0], [-2]]}, r"ids: found -2 at \[1, 0\], expected -1 to 2"),
    "ids of 64 bits": (
        {"ids": np.array([[0], [2**64 - 1]], np.uint64)},  # which is -1 as int64
        rf"ids: found {2**64 - 1} at \[1, 0\], which is no document",
    ),
    "ids of two lengths": ({"ids": [[0], [1, 2]]}, r"ids: found rows of different lengths"),
    "ids of one": ({"ids": [0, 1]}, r"ids: found int64 \[2\], expected \[2, C\].*numpy\.tile"),
    "ids of three": (
        {"ids": np.zeros((3, 1), int)},
        r"ids: found int64 \[3, 1\], expected \[2,",
    ),
    "ids in floats": ({"ids": [[0.0], [1.0]]}, r"ids: found float64 \[2, 1\], expected integers"),
    "k": ({"k": 0}, r"k: found 0, expected at least 1"),
    "a huge k": ({"k": 10**12}, r"k: found 1000000000000, expected at most 2147483647"),
    "k beyond 64 bits": ({"k": 2**70}, r"k: found 1180591620717411303424, expected at most"),
    "k in floats": ({"k": 1.5}, r"k: found 1\.5, expected an int"),
    "allow without k": ({"allow": [1]}, r"allow: found one without k, expected k as well"),
    "allow": ({"allow": [3], "k": 1}, r"allow: found the unknown id 3"),
    "allow as a mask": ({"allow": np.ones(2, bool), "k": 1}, r"allow: found a mask \[2\]"),
    "codes": ({"tokens": T.astype(np.int8)}, r"tokens: found int8"),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed(name):
    changed, message = PACKED[name]
    given = {"queries": Q, "tokens": T, "offsets": OFFSETS, **changed}
    with pytest.raises((ValueError, TypeError), match=message):
        simtile.maxsim_packed(**given)


def test_offsets_of_a_compiled_call_are_checked_when_it_runs():
    torch._dynamo.reset()
    compiled = torch.compile(simtile.maxsim_packed, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"offsets: .*from 0 to 8, expected 0 to 9"):
        compiled(torch.from_numpy(Q), torch.from_numpy(T), torch.tensor([0, 8]))


def test_tensors_and_arrays_in_one_list():
    with pytest.raises(TypeError, match=r"queries\[1\]: found ndarray, expected Tensor because"):
        simtile.maxsim([torch.ones(3, 4), Q[0]], D)


def test_tensors_of_other_places():
    q, d = torch.from_numpy(Q), torch.empty(5, 6, 4, device="meta")
    with pytest.raises(ValueError, match=r"documents: found a tensor on meta, expected cpu"):
        simtile.maxsim(q, d)
    with pytest.raises(ValueError, match=r"queries\[1\]: found a tensor on meta, expected cpu"):
        simtile.maxsim([q[0], d[0]], q)


def test_a_sparse_tensor():
    with pytest.raises(ValueError, match=r"queries: found layout torch\.sparse_coo"):
        simtile.maxsim(torch.from_numpy(Q).to_sparse(), torch.from_numpy(D))


def test_empty_inputs():
    nothing = np.zeros((0, 3, 4), np.float32)
    assert simtile.maxsim(nothing, D).shape == (0, 5)
    assert simtile.maxsim(Q, nothing).shape == (2, 0)
    assert simtile.maxsim([], D).shape == (0, 5)
    assert simtile.maxsim(Q, []).shape == (2, 0)
    assert simtile.maxsim([], []).shape == (0, 0)
    assert simtile.maxsim_pairwise([], []).shape == (0,)
    assert (simtile.maxsim(Q, np.zeros((2, 0, 4)), empty_score=-1) == -1).all()
    assert (simtile.maxsim(np.zeros((2, 0, 4)), D) == 0).all()
    scores, ids = simtile.maxsim_packed(Q, T[:0], [0], k=2)
    assert (scores == -np.inf).all()
    assert (ids == -1).all()
    assert simtile.maxsim(torch.from_numpy(Q), []).shape == (2, 0)
    assert simtile.maxsim([], torch.from_numpy(D).to(torch.bfloat16)).dtype == torch.float32


def test_bfloat16_arrays_of_ml_dtypes():
    q, d = Q.astype(ml_dtypes.bfloat16), D.astype(ml_dtypes.bfloat16)
    assert (simtile.maxsim(q, d) == 12).all()
