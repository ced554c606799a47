"""The shim that runs CUDA kernels on the CPU: what it computes, and that it sees each mistake."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from cuda_host import build
from hypothesis import given
from hypothesis import strategies as st

ORDERS = (0, 1, 2, 3)
ROOT = build.ROOT
SELFTEST = "tests/cuda_host/selftest.cuh"

seeds = st.integers(0, 2**32 - 1)
orders = st.sampled_from(ORDERS)
masks = st.one_of(st.just(0xFFFFFFFF), st.integers(1, 0xFFFFFFFF))


@pytest.fixture(scope="module")
def selftest():
    return build.load("selftest")


def lanes_of(mask):
    return [lane for lane in range(32) if mask >> lane & 1]


def aligned(count, dtype):
    """Zeros at an address divisible by 16."""
    raw = np.zeros(count * np.dtype(dtype).itemsize + 16, np.uint8)
    start = -raw.ctypes.data % 16
    return raw[start : start + count * np.dtype(dtype).itemsize].view(dtype)


# What it computes


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_block_sums(selftest, threads, order):
    values = np.arange(5 * threads, dtype=np.float32)
    sums = np.full(5, np.nan, np.float32)
    selftest.block_sums(values, sums, threads, order)
    np.testing.assert_array_equal(sums, values.reshape(5, threads).sum(1, dtype=np.float64))


@given(
    dtype=st.sampled_from([np.uint32, np.float32, np.uint64, np.float64]),
    width=st.sampled_from([1, 2, 4, 8, 16, 32]),
    distance=st.integers(0, 31),
    order=orders,
    seed=seeds,
)
def test_shuffles(selftest, dtype, width, distance, order, seed):
    rng = np.random.default_rng(seed)
    values = (rng.random(32) * 2**31).astype(dtype)
    sources = rng.integers(-40, 70, 32, dtype=np.int32)
    out = np.full((4, 32), 99, dtype)
    selftest.shuffles(0xFFFFFFFF, width, distance, values, sources, out, order)
    for lane in range(32):
        first = lane // width * width
        up, down, other = lane - distance, lane + distance, lane ^ distance
        read = [
            first + sources[lane] % width,
            up if up >= first else lane,
            down if down < first + width else lane,
            other if other < first + width else lane,
        ]
        np.testing.assert_array_equal(out[:, lane], values[read])


@given(mask=masks, order=orders, seed=seeds)
def test_shuffle_within_a_mask(selftest, mask, order, seed):
    rng = np.random.default_rng(seed)
    lanes = lanes_of(mask)
    values = rng.integers(0, 2**32, 32, dtype=np.uint32)
    sources = rng.choice(lanes, 32).astype(np.int32)
    out = np.full((4, 32), 99, np.uint32)
    selftest.shuffles(mask, 32, -1, values, sources, out, order)
    expected = np.full((4, 32), 99, np.uint32)
    expected[0, lanes] = values[sources[lanes]]
    np.testing.assert_array_equal(out, expected)


@given(mask=masks, order=orders, odd=st.sampled_from(["all", "none", "some"]), seed=seeds)
def test_votes_and_reductions(selftest, mask, order, odd, seed):
    rng = np.random.default_rng(seed)
    lanes = lanes_of(mask)
    values = rng.integers(-(2**31), 2**31, 32, dtype=np.int32)
    if odd != "some":
        values = values // 2 * 2 + (odd == "all")
        values = values.astype(np.int32)
    out = np.full((9, 32), 99, np.int32)
    selftest.reductions(mask, values, out, order)
    mine = [int(value) for value in values[lanes]]
    unsigned = [value % 2**32 for value in mine]
    bitwise_or = 0
    for value in unsigned:
        bitwise_or |= value
    results = [
        sum(1 << lane for lane, value in zip(lanes, mine, strict=True) if value % 2),
        int(any(value % 2 for value in mine)),
        int(all(value % 2 for value in mine)),
        sum(mine) % 2**32,
        bitwise_or,
        min(mine) % 2**32,
        max(mine) % 2**32,
        min(unsigned),
        max(unsigned),
    ]
    expected = np.full((9, 32), 99, np.uint32)
    expected[:, lanes] = np.array(results, np.uint32)[:, None]
    np.testing.assert_array_equal(out.view(np.uint32), expected)


def test_bit_intrinsics(selftest):
    rng = np.random.default_rng(1)
    special = [0, 1, 2**31, 2**32 - 1, 0x80808080, 0x7F7F7F7F]
    a = np.array(
        [x for x in special for _ in special] + list(rng.integers(0, 2**32, 200)), np.uint32
    )
    b = np.array(special * len(special) + list(rng.integers(0, 2**32, 200)), np.uint32)
    out = np.full((len(a), 8), 99, np.int32)
    selftest.bit_intrinsics(a, b, out)
    for x, y, row in zip(a.tolist(), b.tolist(), out.tolist(), strict=True):
        both = x << 32 | y
        dot = sum(p * q for p, q in zip(signed_bytes(x), signed_bytes(y), strict=True))
        assert row == [
            x.bit_count(),
            both.bit_count(),
            32 - x.bit_length(),
            64 - both.bit_length(),
            (x & -x).bit_length(),
            (both & -both).bit_length(),
            signed(x + dot),
            signed(y),
        ]


def signed(value):
    return (value + 2**31) % 2**32 - 2**31


def signed_bytes(word):
    return np.frombuffer(word.to_bytes(4, "little"), np.int8).tolist()


def test_bfloat16(selftest):
    rng = np.random.default_rng(2)
    bits = np.concatenate(
        [rng.integers(0, 2**32, 4000), np.arange(2**16) << 16, (np.arange(2**16) << 16) + 2**15]
    )
    values = bits.astype(np.uint32).view(np.float32)
    rounded = np.full(len(values), 99, np.uint16)
    widened = np.full(len(values), 99, np.float32)
    selftest.to_bfloat16(values, rounded, widened)
    nan = np.isnan(values)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(rounded[~nan], expected.view(np.uint16)[~nan])
    np.testing.assert_array_equal(rounded[nan], 0x7FFF)
    np.testing.assert_array_equal(widened, (rounded.astype(np.uint32) << 16).view(np.float32))


@given(order=orders, seed=seeds)
def test_mma_bf16(selftest, order, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((16, 16)).astype(ml_dtypes.bfloat16)
    b = rng.standard_normal((8, 16)).astype(ml_dtypes.bfloat16)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    d = c.copy()
    selftest.mma_bf16(a.view(np.uint16), b.view(np.uint16), d, order)
    exact = a.astype(np.float64) @ b.astype(np.float64).T + c
    size = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)).T + np.abs(c)
    assert (np.abs(d - exact) <= 17 * 2.0**-24 * size).all()


@given(order=orders, extremes=st.booleans(), seed=seeds)
def test_mma_s8(selftest, order, extremes, seed):
    rng = np.random.default_rng(seed)
    draw = (
        (lambda shape: rng.choice(np.array([-128, 127], np.int8), shape))
        if extremes
        else (lambda shape: rng.integers(-128, 128, shape, dtype=np.int8))
    )
    a, b = draw((16, 32)), draw((8, 32))
    c = rng.integers(-(2**31), 2**31, (16, 8), dtype=np.int32)
    d = c.copy()
    selftest.mma_s8(a, b, d, order)
    wide = a.astype(np.int64) @ b.astype(np.int64).T + c
    np.testing.assert_array_equal(d, wide.astype(np.int32))  # wraps


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("last_bytes", [0, 1, 15, 16])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_async_copies(selftest, steps, last_bytes, order):
    threads = 64
    source = aligned(steps * threads * 4, np.uint32)
    source[:] = np.arange(1, len(source) + 1)
    target = aligned(len(source), np.uint32)
    target[:] = 99
    selftest.async_pipeline(source, target, threads, steps, last_bytes, order)
    expected = source.copy().view(np.uint8).reshape(steps, threads, 16)
    expected[-1, :, last_bytes:] = 0
    expected = np.roll(expected, -1, axis=1)
    np.testing.assert_array_equal(target, expected.reshape(-1).view(np.uint32))


# The order of execution


def log(selftest, order, blocks=3, threads=96, steps=4):
    entries = np.full((blocks * threads * steps, 3), -1, np.int32)
    assert selftest.log_steps(entries, blocks, threads, steps, order) == len(entries)
    return entries.tolist()


def test_order_forward_and_reverse(selftest):
    # The lanes of a warp go from __syncwarp to __syncwarp one after the other.
    forward = [
        [block, 32 * warp + lane, step]
        for block in range(3)
        for warp in range(3)
        for step in range(4)
        for lane in range(32)
    ]
    backward = [
        [block, 32 * warp + lane, step]
        for block in reversed(range(3))
        for warp in reversed(range(3))
        for step in range(4)
        for lane in reversed(range(32))
    ]
    assert log(selftest, 0) == forward
    assert log(selftest, 1) == backward


def test_random_orders(selftest):
    first, again, other = log(selftest, 2), log(selftest, 2), log(selftest, 3)
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == sorted(log(selftest, 0))
    # Warps get ahead of one another, and come back.
    warps = [entry[1] // 32 for entry in first]
    assert sum(a != b for a, b in itertools.pairwise(warps)) > 10


@pytest.mark.skipif(
    build.sanitized(), reason="the mutant is caught by the hooks, or by other orders"
)
def test_missing_barrier_is_a_race_in_every_order(selftest):
    mutant = build.load("selftest", mutation=MISSING_BARRIER)
    values = np.arange(96, dtype=np.float32)
    for order in ORDERS:
        with pytest.raises(
            RuntimeError, match=r"race in shared memory|no thread of the block has written"
        ):
            mutant.block_sums(values, np.zeros(1, np.float32), 96, order)


MISSING_BARRIER = build.Mutation(
    "missing barrier",
    SELFTEST,
    "blockDim.x + threadIdx.x];\n  __syncthreads();",
    "blockDim.x + threadIdx.x];",
)
