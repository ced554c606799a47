"""Arrays of more than 2^31 elements, the best behind the 2^31st: no index is one of 32 bits.

The arrays are zeros that nobody has written to, of which a system keeps one page; what is written
are a few rows. Where it keeps all of them a test needs up to 10 GB.
"""

from pathlib import Path

import numpy as np
import pytest

import simtile

pytestmark = pytest.mark.deep

BEYOND = 2**31


def available():
    """Bytes that can be had."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(line.split()[1]) << 10


def zeros(shape, dtype):
    """Rows of zeros, more than 2^31 elements in all."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    assert np.prod(shape, dtype=np.int64) > BEYOND
    if available() < 1.2 * size:
        pytest.skip(f"{1.2 * size / 1e9:.1f} GB are needed, {available() / 1e9:.1f} GB available")
    return np.zeros(shape, dtype)


def rows_of(dim):
    return BEYOND // dim + 1000


def planted(dim, dtype, near, nearest):
    """Rows with `near` early and `nearest` last, the answer being the latter."""
    x = zeros((rows_of(dim), dim), dtype)
    x[17], x[-1] = near, nearest
    return x


def queries_of(dim):
    return np.random.default_rng(0).standard_normal((2, dim)).astype(np.float32)


def check(found, few, rows):
    """As a search of a few documents, which are those rows."""
    np.testing.assert_array_equal(found[1], np.array(rows)[few[1]])
    np.testing.assert_array_equal(found[0], few[0])


def test_topk_of_codes():
    dim = 1024
    queries = queries_of(dim)
    few = simtile.quantize(np.stack([queries[0] + 1, queries[0]]), "int8_vector")
    codes = planted(dim, np.int8, *few.codes)
    scale = np.full(len(codes), few.scale[0])
    scale[-1] = few.scale[1]
    documents = simtile.Quantized(codes, scale, None, dim, "int8_vector")
    expected = simtile.topk(queries[:1], few, 2)
    check(simtile.topk(queries[:1], documents, 2), expected, [17, len(codes) - 1])
    assert expected[1][0, 0] == 1


def test_topk_of_bits():
    """More than 2^31 bytes of them."""
    width = 128
    queries = simtile.quantize(queries_of(8 * width), "binary").codes
    codes = planted(width, np.uint8, queries[0] ^ 1, queries[0])
    few = simtile.topk(queries[:1], codes[[17, -1]], 2, metric="hamming")
    found = simtile.topk(queries[:1], codes, 2, metric="hamming")
    check(found, few, [17, len(codes) - 1])
    assert few[0].tolist() == [[0, width]]


@pytest.mark.parametrize("count", [1, 40])
def test_topk_of_floats(count):
    """Many queries screen documents in small integers first."""
    dim = 1024
    queries = np.repeat(queries_of(dim)[:1], count, axis=0)
    documents = planted(dim, np.float16, queries[0] + 1, queries[0])
    few = simtile.topk(queries, documents[[17, -1]], 2)
    check(simtile.topk(queries, documents, 2), few, [17, len(documents) - 1])
    assert few[1][0, 0] == 1


def test_range_search():
    dim = 1024
    queries = queries_of(dim)[:1]
    documents = planted(dim, np.float16, queries[0] + 1, queries[0])
    offsets, _, ids = simtile.range_search(queries, documents, 0.99)
    assert (offsets.tolist(), ids.tolist()) == ([0, 1], [len(documents) - 1])


def test_maxsim():
    dim = 128
    queries = queries_of(dim)[None]
    tokens = planted(dim, np.float16, queries[0, 0] + 1, queries[0, 0])
    offsets = np.array([0, 10, 20, len(tokens) - 5, len(tokens)])
    found = simtile.maxsim_packed(queries, tokens, offsets)
    few = [tokens[:10], tokens[10:20], tokens[20:21], tokens[-5:]]
    np.testing.assert_array_equal(found, simtile.maxsim(queries, few))
    assert found[0, 3] > 0


def test_pool_and_quantize():
    dim = 1024
    tokens = planted(dim, np.float16, 1, np.arange(dim) % 7)
    offsets = np.array([0, 100, len(tokens) - 3, len(tokens)])
    found = simtile.pool(tokens, None, "max", offsets=offsets)
    np.testing.assert_array_equal(found[2], simtile.pool(tokens[None, -3:], None, "max")[0])
    np.testing.assert_array_equal(found[1], 0)
    codes = simtile.quantize(tokens, "binary").codes
    np.testing.assert_array_equal(codes[[17, -1]], np.packbits(tokens[[17, -1]] > 0, axis=1))
    assert not codes[18:-1].any()


def test_more_pairs_than_that():
    n, dim = 47_000, 4
    assert n * n > BEYOND
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, dim)).astype(np.float32) for _ in range(2))
    options = {"temperature": 1.0, "normalize": False, "reduction": "none"}
    loss, grad, _ = simtile.info_nce_grad(x, y, **options)
    for row in (0, n // 2, n - 1):
        logits = y.astype(np.float64) @ x[row]
        shares = np.exp(logits - logits.max())
        assert loss[row] == pytest.approx(
            np.log(shares.sum()) + logits.max() - logits[row], abs=1e-5
        )
        expected = (shares / shares.sum()) @ y - y[row]
        np.testing.assert_allclose(grad[row], expected, atol=1e-4)
