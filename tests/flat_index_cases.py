"""Small indexes and vectors for the tests of FlatIndex."""

import ml_dtypes
import numpy as np

from simtile import FlatIndex

DIM = 11
RANGES = np.array([[-3.0] * DIM, [3.0] * DIM], np.float32)
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CODES = ("int8", "uint8", "int4", "binary", "int8_vector", "int4_vector")


def small_vectors(rng, count, dim=DIM):
    """Many of them equal, some zero: scores tie."""
    return rng.integers(-2, 3, (count, dim)).astype(np.float32) * (rng.random((count, 1)) < 0.9)


def new_index(dtype, metric, dim=DIM):
    ranges = RANGES if dtype in ("int8", "uint8", "int4") else None
    return FlatIndex(dim, dtype, metric=metric, ranges=ranges)


def assert_same(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y, strict=True)
