"""Every kernel on numbers at the ends of float32, NaN, infinities, equal vectors and zeros, from 1
to 16,384 dimensions: what float64 gives, or, where float32 cannot hold a term of a sum, no finite
number.
"""

import maxsim_codes
import numpy as np
import pytest
from info_nce_backends import cpu_level
from tolerances import ROUNDOFF, ROUNDOFFS

import simtile
from simtile.reference import info_nce_numpy, maxsim_numpy, pool_numpy, quantize_numpy
from simtile.reference import maxsim_codes as codes
from simtile.reference import pairwise_numpy as pairwise
from simtile.reference import triplet as lists

DIMS = (1, 7, 111, 989, 4096, 16384)
LEVELS = simtile.cpu_info()["detected"]
# The best level in the quick tier.
AT_LEVELS = [*(pytest.param(x, marks=pytest.mark.deep) for x in LEVELS[:-1]), LEVELS[-1]]
LARGEST = float(np.finfo(np.float32).max)
EPS = ROUNDOFF["float32"]


def with_value(*values):
    def change(x, rng):
        for row, value in enumerate(values):
            x[(2 * row + 1) % len(x), rng.integers(x.shape[1])] = value
        return x

    return change


def scaled(x, power):
    """So that the largest elements are as large as that."""
    return x / np.abs(x).max(axis=1, keepdims=True) * 10.0**power


VALUES = {
    "subnormal": lambda x, rng: x * 1e-41,
    "subnormal rows": lambda x, rng: x * np.where(np.arange(len(x)) % 2, 1e-41, 1)[:, None],
    "1e38": lambda x, rng: scaled(x, 38),
    "1e-38": lambda x, rng: x * 1e-38,
    "of all sizes": lambda x, rng: x * 10.0 ** (np.arange(len(x)) % 5 * 18 - 36)[:, None],
    "infinite": with_value(np.inf, -np.inf),
    "NaN": with_value(np.nan),
    "NaN and infinite": with_value(np.nan, np.inf, -np.inf),
    "all equal": lambda x, rng: np.repeat(x[:1], len(x), axis=0),
    "a few zero": lambda x, rng: x * (np.arange(len(x)) % 3 != 1)[:, None],
    "all zero": lambda x, rng: x * 0,
}


def hostile(values, rows, dim, seed=0, dtype=np.float32):
    rng = np.random.default_rng([seed, dim])
    x = rng.standard_normal((rows, dim)) / np.sqrt(dim)
    with np.errstate(over="ignore", invalid="ignore"):
        return VALUES[values](x, rng).astype(dtype)


def agree(found, expected, size, roundoffs):
    """`size` is that of the terms that were added up: what roundings are relative to."""
    found, expected, size = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (found, expected, size))
    )
    within = np.abs(expected) < LARGEST
    within &= size < LARGEST
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(found - expected) <= roundoffs * EPS * size + 1e-37
    near |= found == expected
    near |= np.isnan(found) & np.isnan(expected)
    # Out of its range float32 may give an infinity or NaN, but nothing that looks like a result.
    other_sign = np.isinf(found) & np.isinf(expected)
    right = near | (~within & ~np.isfinite(found) & ~other_sign)
    assert right.all(), (found[~right], expected[~right], size[~right])


def table(test):
    """With all values, dimensions and levels."""
    test = pytest.mark.parametrize("values", VALUES)(test)
    test = pytest.mark.parametrize("dim", DIMS)(test)
    return pytest.mark.parametrize("level", AT_LEVELS)(test)


@table
@pytest.mark.parametrize("normalize", [True, False])
def test_info_nce(level, dim, values, normalize):
    x, y, z = (hostile(values, n, dim, seed) for seed, n in enumerate((7, 9, 14)))
    z = z.reshape(7, 2, dim)
    with cpu_level(level):
        loss, *grads = simtile.info_nce_grad(
            x, y, z, temperature=0.5, normalize=normalize, reduction="none"
        )
    truth = info_nce_numpy.info_nce_grad(
        *(a.astype(np.float64) for a in (x, y, z)), temperature=0.5, normalize=normalize
    )
    condition = 2 * (1 + truth.logit_scale)
    # A similarity that float32 cannot hold.
    beyond = np.inf if not truth.logit_scale < LARGEST else 0.0
    agree(loss, truth.losses, condition + beyond, ROUNDOFFS["info_nce.losses"])
    for name, grad in zip(("queries", "documents", "negatives"), grads, strict=True):
        scale = {
            "queries": truth.query_scale,
            "documents": truth.document_scale,
            "negatives": truth.negative_scale,
        }[name]
        size = scale[..., None] * condition + beyond
        agree(grad, getattr(truth, name), size, ROUNDOFFS[f"info_nce.grad_{name}"])


@table
def test_siglip(level, dim, values):
    x, y = hostile(values, 7, dim), hostile(values, 9, dim, 1)
    with cpu_level(level):
        found = simtile.siglip_loss(x, y)
    expected = simtile.siglip_loss(x.astype(np.float64), y.astype(np.float64), backend="reference")
    agree(found, expected, 11 * np.abs(expected), 2 * ROUNDOFFS["siglip.losses"])


@table
def test_uniformity(level, dim, values):
    x = hostile(values, 9, dim)
    with cpu_level(level):
        found = simtile.uniformity(x)
    with np.errstate(all="ignore"):
        expected = pairwise.uniformity(x.astype(np.float64)).value
    agree(found, expected, 8.0, ROUNDOFFS["pairwise.uniformity"])


@table
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_batch_hard_triplet(level, dim, values, metric):
    x = hostile(values, 9, dim)
    labels = np.arange(9) // 3
    with cpu_level(level):
        found = simtile.batch_hard_triplet_loss(x, labels, metric=metric)
    options = {"margin": 1.0, "metric": metric, "normalize": False}
    if np.isfinite(x).all():
        expected = lists.batch_hard_triplet_loss(
            x.astype(np.float64).tolist(), labels.tolist(), **options
        ).loss
    else:
        expected = np.nan
    # Which of almost equal ones is the hardest is decided in the arithmetic of a matrix product.
    norms = 1.0 if metric == "cosine" else np.linalg.norm(x.astype(np.float64), axis=1).max()
    agree(found, expected, 1 + 2 * norms, 2**12)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dim", DIMS)
def test_losses_of_single_rows(dim, values):
    """In NumPy, at no level."""
    x, y, z = (hostile(values, 9, dim, seed) for seed in range(3))
    a, b, c = (v.astype(np.float64) for v in (x, y, z))
    finite = np.isfinite(np.concatenate([x, y, z], axis=1)).all(1)
    for metric in ("euclidean", "squared_euclidean", "cosine", "manhattan"):
        found = simtile.triplet_loss(x, y, z, metric=metric, reduction="none")
        expected = np.full(9, np.nan)
        wide = (v[finite].tolist() for v in (a, b, c))
        expected[finite] = lists.triplet_losses(*wide, metric=metric)
        with np.errstate(all="ignore"):
            size = 1 + sum((np.square(a - v) + np.abs(a - v)).sum(1) for v in (b, c))
        agree(found[finite], expected[finite], size[finite], 4)
        assert not np.isfinite(found[~finite]).any() or metric != "cosine"
        assert np.isnan(found[np.isnan(x).any(1)]).all()
    with np.errstate(all="ignore"):
        expected = pairwise.alignment(a, b), pairwise.anisotropy(a)
    agree((simtile.alignment(x, y), simtile.anisotropy(x)), expected, 4.0, 4)


@table
@pytest.mark.parametrize("normalize", [True, False])
def test_maxsim(level, dim, values, normalize):
    queries = hostile(values, 6, dim).reshape(2, 3, dim)
    documents = hostile(values, 21, dim, 1).reshape(3, 7, dim)
    with cpu_level(level):
        found = simtile.maxsim(queries, documents, normalize=normalize)
    truth = maxsim_numpy.maxsim(queries, documents, normalize=normalize)
    # A sum that overflows may be -inf, which is no maximum.
    held = truth.scale < LARGEST
    held |= ~np.isfinite(truth.scale)
    agree(found[held], truth.scores[held], truth.scale[held], ROUNDOFFS["maxsim.scores"])


def coded(x, kind):
    """Codes of what is finite: others are refused."""
    with np.errstate(all="ignore"):
        x = np.nan_to_num(x, nan=0.0, posinf=LARGEST, neginf=-LARGEST)
    ranges = None
    if kind in ("int8", "uint8", "int4"):
        ranges = np.stack([x.min(axis=0), x.max(axis=0)])
        if np.abs(ranges).max() > LARGEST / 2:
            ranges /= 2
    with np.errstate(all="ignore"):
        return simtile.quantize(x, kind, ranges=ranges)


@table
@pytest.mark.filterwarnings("ignore:x has NaN")
def test_maxsim_of_codes(level, dim, values):
    queries = hostile(values, 6, dim).reshape(2, 3, dim)
    for kind in ("int8", "uint8", "int8_vector", "binary"):
        tokens = coded(hostile(values, 9, dim, 1), kind)
        offsets = [0, 1, 1, 9]
        with cpu_level(level):
            found = simtile.maxsim_packed(queries, tokens, offsets)
        for query, scores in zip(queries, found, strict=True):
            table, units = maxsim_codes.similarities(query, None, tokens, False)
            parts = [table[:, :1], table[:, 1:]]
            one, other = (codes.pair(x.tolist(), units.tolist()).score for x in parts)
            np.testing.assert_array_equal(scores, np.float32([one, 0, other]))


@table
def test_topk(level, dim, values):
    """To the last bit: few queries, and so many that documents are screened in small integers."""
    few, many = hostile(values, 4, dim), hostile(values, 40 if dim < 4096 else 4, dim)
    documents = [hostile(values, 13, dim, 1, t) for t in (np.float32, np.float16, np.float64)]
    kinds = ("int8", "uint8", "int4", "int8_vector", "int4_vector", "binary")
    documents += [coded(documents[0], kind) for kind in kinds]
    for queries in (few, many):
        for x in documents:
            for metric in ("cosine", "dot", "l2"):
                options = {"metric": metric, "nan": "ignore"}
                with cpu_level(level):
                    found = simtile.topk(queries, x, 15, **options)
                with np.errstate(all="ignore"):
                    expected = simtile.topk(queries, x, 15, backend="reference", **options)
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(one, other, err_msg=f"{x} {metric}")


@table
@pytest.mark.filterwarnings("ignore:x.*NaN:RuntimeWarning")
def test_quantize(level, dim, values):
    """To the last bit."""
    for dtype in (np.float32, np.float64, np.float16):
        x = hostile(values, 120, dim, dtype=dtype)
        for kind in ("int8", "uint8", "int4", "int8_vector", "int4_vector", "binary"):
            try:
                codes, scale, offset = quantize_numpy.quantize(x, kind)
            except ValueError:
                with cpu_level(level), pytest.raises(ValueError, match=r"^x: "):
                    simtile.quantize(x, kind)
                continue
            with cpu_level(level):
                found = simtile.quantize(x, kind)
            np.testing.assert_array_equal(found.codes, quantize_numpy.pack(codes, kind))
            for own, other in ((found.scale, scale), (found.offset, offset)):
                if other is not None:
                    np.testing.assert_array_equal(own, other)


@table
@pytest.mark.parametrize("how", ["mean", "cls", "max", "last"])
def test_pool(level, dim, values, how):
    tokens = hostile(values, 15, dim).reshape(3, 5, dim)
    mask = np.ones((3, 5), bool)
    mask[1, 3:] = False
    for normalize in (True, False):
        with cpu_level(level):
            found = simtile.pool(tokens, mask, how, normalize=normalize)
        truth = pool_numpy.pool(tokens, mask, how, normalize=normalize)
        agree(found, truth.vectors, truth.size, ROUNDOFFS["pool.vectors"])


def test_what_is_wrong_is_found():
    good = np.array([1.0, np.nan, np.inf])
    agree(good, good, 1.0, 1)
    agree(np.nan, 1e39, 1e39, 1)
    for found, expected, size in (
        (1.1, 1.0, 1.0),
        (np.nan, 1.0, 1.0),
        (1.0, np.nan, np.nan),
        (1.0, 1e39, 1e39),
        (np.inf, -np.inf, 1.0),
    ):
        with pytest.raises(AssertionError):
            agree(found, expected, size, 1)
