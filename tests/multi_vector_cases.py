"""Documents and indexes of token vectors, small and of every element type."""

import ml_dtypes
import numpy as np

import simtile
from simtile import MultiVectorIndex

DIM = 11
CODES = ("int8", "binary", "residual1", "residual2", "residual4")
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LENGTHS = (0, 0, 1, 2, 7, 30)


def draw_documents(rng, count, dim=DIM):
    """Whole numbers: their scores are exact in every type, and many tie."""
    return [
        rng.integers(-2, 3, (rng.choice(LENGTHS), dim)).astype(np.float32) for _ in range(count)
    ]


def codec(bits, dim=DIM):
    rng = np.random.default_rng(bits)
    return simtile.ResidualCodec.train(rng.normal(size=(300, dim)), bits, centroids=7)


def new_index(dtype, **options):
    if dtype.startswith("residual"):
        options["codec"] = codec(int(dtype[-1]))
    return MultiVectorIndex(DIM, dtype, **options)


def assert_same(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y, strict=True)
