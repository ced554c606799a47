"""ColBERT's residual codes: the bytes, the codec and its tokens."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from info_nce_backends import cpu_level

import simtile
from simtile import ResidualCodec, ResidualTokens, _kmeans

RNG = np.random.default_rng(0)
BITS = (1, 2, 4)


def codec_of(bits, dim=16, count=5):
    steps = 1 << bits
    return ResidualCodec(
        RNG.normal(size=(count, dim)),
        np.linspace(-1, 1, steps),
        np.linspace(-1, 1, steps + 1)[1:-1],
        bits,
    )


def test_bytes_of_two_bits_by_hand():
    # The lowest bit of a code comes first, and a byte begins with its highest bit:
    # codes 1, 2, 3, 0 are 10 01 11 00.
    codec = ResidualCodec(np.zeros((1, 4)), [-1.5, -0.5, 0.5, 1.5], [-1.0, 0.0, 1.0], 2)
    tokens = ResidualTokens(codec, [0], np.array([[0b10011100]], np.uint8))
    np.testing.assert_array_equal(tokens.codes(), [[1, 2, 3, 0]])
    x = np.array([-0.5, 0.5, 1.5, -1.5], np.float32)
    np.testing.assert_allclose(tokens.decode(), [x / np.linalg.norm(x)], rtol=1e-6)
    length = np.float32(1 / np.linalg.norm(x.astype(float)))
    np.testing.assert_array_equal(tokens.inverse_norms, [length])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [1, 7, 16, 111])
def test_encode_stores_the_nearest_centroid_and_the_bucket(bits, dim):
    codec = codec_of(bits, dim)
    tokens = RNG.normal(size=(37, dim)).astype(np.float32)
    stored = codec.encode(tokens)
    assert stored.residuals.shape == (37, (dim * bits + 7) // 8)
    unit = (tokens / np.linalg.norm(tokens.astype(float), axis=1)[:, None]).astype(np.float32)
    ids = (unit.astype(float) @ codec.centroids.T.astype(float)).argmax(1)
    np.testing.assert_array_equal(stored.centroid_ids, ids)
    rest = unit - codec.centroids[ids]
    # colbert-ai: torch.bucketize(residuals, cutoffs), a value at a cutoff is in the lower bucket
    buckets = (rest[:, :, None] > codec.bucket_cutoffs).sum(2)
    np.testing.assert_array_equal(stored.codes(), buckets)
    expected = codec.centroids[ids].astype(float) + codec.bucket_weights[buckets]
    expected /= np.linalg.norm(expected, axis=1)[:, None]
    np.testing.assert_allclose(stored.decode(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_training_approaches_the_tokens_with_more_bits(bits):
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(8, 32))
    tokens = centers[rng.integers(8, size=400)] + 0.3 * rng.normal(size=(400, 32))
    tokens /= np.linalg.norm(tokens, axis=1)[:, None]
    codec = ResidualCodec.train(tokens, bits, centroids=8, seed=3)
    again = ResidualCodec.train(tokens, bits, centroids=8, seed=3)
    np.testing.assert_array_equal(codec.centroids, again.centroids)
    cosine = (codec.encode(tokens).decode() * tokens).sum(1)
    assert cosine.mean() > {1: 0.93, 2: 0.96, 4: 0.98}[bits]


def draw_unit(rng, count, dim, centers=60):
    x = rng.normal(size=(centers, dim))[rng.integers(centers, size=count)]
    x += 0.6 * rng.normal(size=(count, dim))
    return (x / np.linalg.norm(x, axis=1)[:, None]).astype(np.float32)


def plain_kmeans(vectors, count, seed):
    """Lloyd's iterations in double precision, from the centroids that `_kmeans` begins with."""
    rng = np.random.default_rng(seed)
    wide = vectors.astype(np.float64)
    centroids = wide[np.sort(rng.choice(len(wide), count, replace=False))]
    for _ in range(_kmeans.ITERATIONS):
        products = wide @ centroids.T
        owner = products.argmax(1)
        sums = np.zeros_like(centroids)
        np.add.at(sums, owner, wide)
        lost = np.setdiff1d(np.arange(count), owner)
        sums[lost] = wide[np.argsort(products.max(1), kind="stable")[: len(lost)]]
        centroids = sums / np.linalg.norm(sums, axis=1)[:, None]
    return centroids.astype(np.float32)


@pytest.mark.parametrize(("count", "dim", "centroids"), [(4000, 48, 128), (989, 111, 7)])
def test_codes_in_training_cost_no_precision(count, dim, centroids):
    """What is stored is as near to the tokens as with centroids of exact assignments."""
    tokens = draw_unit(np.random.default_rng(2), count, dim)
    found = ResidualCodec.train(tokens, 2, centroids=centroids, seed=5)
    exact = ResidualCodec.train(tokens, 2, centroids=plain_kmeans(tokens, centroids, 5))

    def error(codec):
        return np.square(codec.encode(tokens).decode() - tokens).sum(1).mean()

    assert error(found) < 1.01 * error(exact)


def test_centroids_are_the_same_on_every_computer():
    tokens = draw_unit(np.random.default_rng(3), 1500, 70)
    expected = _kmeans.train(tokens, 40, threads=1)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-6)
    for level in simtile.cpu_info()["detected"]:
        with cpu_level(level):
            for threads in (1, 3):
                np.testing.assert_array_equal(_kmeans.train(tokens, 40, threads=threads), expected)


def test_centroids_that_lose_their_vectors():
    """Of equal vectors only one centroid is the nearest; zeros are no direction at all."""
    few = draw_unit(np.random.default_rng(4), 6, 9)
    tokens = np.concatenate([np.repeat(few, 30, axis=0), np.zeros((5, 9), np.float32)])
    centroids = _kmeans.train(tokens, 20)
    for vector in few:
        np.testing.assert_allclose((centroids @ vector).max(), 1, rtol=1e-6)
    assert np.isfinite(centroids).all()


def test_buckets_are_learnt_from_some_of_many_tokens(monkeypatch):
    tokens = draw_unit(np.random.default_rng(6), 5000, 20)
    all_of_them = ResidualCodec.train(tokens, 2, centroids=tokens[:64])
    monkeypatch.setattr("simtile.residual._BUCKET_SAMPLE", 999)
    some = ResidualCodec.train(tokens, 2, centroids=tokens[:64])
    for name in ("bucket_weights", "bucket_cutoffs"):
        difference = getattr(some, name) - getattr(all_of_them, name)
        assert 0 < np.abs(difference).max() < 0.05 * np.ptp(all_of_them.bucket_weights)


def test_given_centroids_are_kept_and_the_default_number_is_colberts():
    tokens = RNG.normal(size=(300, 8))
    own = RNG.normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_array_equal(ResidualCodec.train(tokens, 1, centroids=own).centroids, own)
    assert len(ResidualCodec.train(tokens, 1).centroids) == 256  # 2^⌊log2(16 √300)⌋


def test_slices_share_memory_and_score_the_same():
    codec = codec_of(4)
    stored = codec.encode(RNG.normal(size=(20, 16)))
    part = stored[5:15]
    assert len(part) == 10
    assert np.shares_memory(part.residuals, stored.residuals)
    queries = RNG.normal(size=(1, 3, 16)).astype(np.float32)
    np.testing.assert_array_equal(
        simtile.maxsim_packed(queries, part, [0, 10])[0, 0],
        simtile.maxsim_packed(queries, stored, [0, 5, 15, 20])[0, 1],
    )
    assert stored.nbytes == 20 * (4 + 4 + 8)


def test_every_type_of_floats():
    """bfloat16 of NumPy as of torch, other strides, other byte orders, tensors with gradients."""
    codec = codec_of(2)
    x = RNG.integers(-4, 5, (20, 16)).astype(np.float32)
    expected = codec.encode(x)
    for same in (
        x.astype(np.float64),
        x.astype(">f4"),
        x.astype(ml_dtypes.bfloat16),
        np.asfortranarray(x),
        np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        torch.from_numpy(x).bfloat16(),
        torch.from_numpy(x).clone().requires_grad_(),
    ):
        found = codec.encode(same)
        np.testing.assert_array_equal(found.centroid_ids, expected.centroid_ids)
        np.testing.assert_array_equal(found.residuals, expected.residuals)


def test_weights_at_the_end_of_the_range():
    """The smallest and largest floats; a unit of the smallest is not a float32."""
    tiny = np.float32(1e-45)
    for largest in (tiny, np.float32(3.4e38)):
        codec = ResidualCodec(np.zeros((1, 2)), [-largest, largest], [0.0], 1)
        np.testing.assert_array_equal(codec.whole_weights, [-32639, 32639])


def test_what_is_refused():
    codec, train = codec_of(2), ResidualCodec.train
    x = RNG.normal(size=(5, 7))
    good = np.zeros((3, 4), np.uint8)
    for call, message in [
        (lambda: ResidualCodec(np.zeros((2, 4)), [0.0] * 4, [0.0] * 3, 3), "bits: found 3"),
        (
            lambda: ResidualCodec(np.zeros((2, 4)), [0.0] * 3, [0.0] * 3, 2),
            r"bucket_weights: .* \[4\]",
        ),
        (lambda: ResidualCodec(np.zeros((2, 4)), [0.0] * 4, [1.0, 0.0, 2.0], 2), "descending"),
        (lambda: ResidualCodec(np.full((2, 4), np.nan), [0.0] * 4, [0.0] * 3, 2), "not finite"),
        (lambda: ResidualTokens(codec, [0, 1, 5], good), "centroid_ids: found 0 to 5"),
        (lambda: ResidualTokens(codec, [0.0, 1, 2], good), "centroid_ids: found float64"),
        (lambda: ResidualTokens(codec, [0, 1, 2], good[:, :3]), r"residuals: found uint8 \[3, 3\]"),
        (lambda: ResidualTokens(codec, [0, 1, 2], good, np.ones(2, np.float32)), "inverse_norms"),
        (lambda: codec.encode(np.ones((2, 7))), r"tokens: found float32 \[2, 7\]"),
        (lambda: train(np.ones((0, 7))), r"tokens: found float32 \[0, 7\], expected \[T, D\] with"),
        (lambda: train(np.ones((5, 0))), r"tokens: found float32 \[5, 0\], expected \[T, D\] with"),
        (lambda: train(np.ones((5, 7), int)), r"tokens: found int64 \[5, 7\], expected floats"),
        (lambda: train(torch.ones((5, 7), dtype=int)), r"tokens: found int64 \[5, 7\], expected"),
        (lambda: train(np.full((5, 7), 1e300)), "tokens: found values that are not finite"),
        (
            lambda: codec.encode(np.full((5, 16), -1e300)),
            "tokens: found values that are not finite",
        ),
        (lambda: train(x, bits=40), "bits: found 40, expected 1, 2 or 4"),  # not of 2^40 buckets
        (lambda: train(x, bits=-1), "bits: found -1"),
        (lambda: train(x, seed=-1), "seed: found -1, expected an int of at least 0"),
        (lambda: train(x, seed=0.5), r"seed: found 0\.5"),
        (lambda: train(x, centroids=0), "centroids: found 0, expected at least 1"),
        (
            lambda: train(x, centroids=x[:0]),
            r"centroids: found float32 \[0, 7\], expected \[K, D\]",
        ),
        (
            lambda: train(x, centroids=x[:, 1:]),
            r"centroids: .*\[5, 6\], expected \[K, 7\] as tokens",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"bits: found 2\.0"):
        train(x, bits=2.0)
    with pytest.raises(TypeError, match="codec: found int"):
        ResidualTokens(1, [0], good)
