"""The CUDA forward of info_nce (kernels/info_nce/cuda.cuh), run on the CPU."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from cuda_host import build
from hypothesis import given, settings
from hypothesis import strategies as st
from info_nce_cases import cases, compared, run_oracle, wide
from info_nce_cuda_host import SHARED_BYTES, bf16_case, check, inputs, plan, run
from tolerances import CPU, allowed_error

ORDERS = (0, 1, 5)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

orders = st.one_of(st.sampled_from((0, 1)), st.integers(2, 2**32))
# 3: blocks of 32 rows already for 65 rows. 8192 bytes: slices of 160 dimensions.
devices = st.sampled_from([(132, SHARED_BYTES), (3, SHARED_BYTES), (3, 8192)])
sizes = st.sampled_from([1, 7, 16, 33, 66, 111])
dimensions = st.sampled_from([1, 3, 7, 8, 32, 64, 111, 160, 515, 989])


# Three times the profile's examples, for there are many options, and one takes a few milliseconds.
@settings(max_examples=3 * settings.default.max_examples)
@given(
    case=cases(sizes, dimensions, dtypes=("bfloat16",)),
    order=orders,
    device=devices,
    temperature_on_device=st.booleans(),
)
def test_kernel_is_the_oracle(case, order, device, temperature_on_device):
    multiprocessors, shared_bytes = device
    options = {"multiprocessors": multiprocessors, "shared_bytes": shared_bytes}
    check(case, run(case, order=order, temperature_on_device=temperature_on_device, **options))


# Every instance that the dispatch can choose, by the name of its parameters, and in slices.
INSTANCES = {
    "1 row tile, 4 column tiles, aligned": (bf16_case(33, 100, 384, 2, own=True), SHARED_BYTES),
    "2 row tiles, 4 column tiles, aligned": (bf16_case(70, 100, 64, 1, ids=True), SHARED_BYTES),
    "1 row tile, 1 column tile, aligned": (bf16_case(33, 60, 384, ids=True), SHARED_BYTES),
    "1 row tile, 2 column tiles": (bf16_case(33, 60, 111, 1, ids=True), SHARED_BYTES),
    "1 row tile, 4 column tiles, aligned, slices": (bf16_case(20, 300, 384), 8192),
    "1 row tile, 1 column tile, aligned, slices": (bf16_case(20, 60, 1000, targets=True), 8192),
    "1 row tile, 2 column tiles, slices": (bf16_case(20, 300, 515, targets=True), 8192),
}


def plural(count, what):
    return f"{count} {what}{'s' * (count != 1)}"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", INSTANCES)
def test_instance(name, normalize):
    case, shared_bytes = INSTANCES[name]
    case = replace(case, normalize=normalize)
    chosen = plan(case, shared_bytes=shared_bytes)
    tiles = [plural(chosen[f"{what}_tiles"], f"{what} tile") for what in ("row", "column")]
    features = ["aligned"] * chosen["aligned"]
    features += ["slices"] * (chosen["slice"] < case.dimensions)
    assert ", ".join(tiles + features) == name
    assert chosen["shared_bytes"] <= shared_bytes
    first = run(case, shared_bytes=shared_bytes)
    check(case, first)
    for order in ORDERS:
        again = run(case, order=order, shared_bytes=shared_bytes)
        for ours, theirs in zip(again, first, strict=True):
            assert ours.tobytes() == theirs.tobytes()


def moved(x, offset, gap):
    """The same rows `offset` elements past 64 aligned bytes, `gap` elements of NaN between them."""
    rows, width = x.shape
    size = (rows - 1) * (width + gap) + width
    raw = np.full(size + offset + 64, np.nan, BFLOAT16)
    start = -raw.ctypes.data % 64 // 2 + offset
    strides = ((width + gap) * 2, 2)
    block = np.lib.stride_tricks.as_strided(raw[start:], (rows, width), strides)
    block[...] = x
    return block


@pytest.mark.parametrize("width", [1, 33, 64])
def test_any_alignment_and_pitch(width):
    case = bf16_case(5, 9, width, seed=3)
    first = run(case)
    check(case, first)
    for offset in range(16):
        for gap in (0, 1, 8, 30):
            for name in ("queries", "documents"):
                case.arrays[name] = moved(np.ascontiguousarray(case[name]), offset, gap)
            check(case, run(case))


def test_rows_further_apart_than_32_bits_count(tmp_path):
    """In a file of which only the pages with a row take space."""
    case = bf16_case(3, 3, 40, seed=1)
    pitch = 2**31 + 24  # elements
    file = np.memmap(tmp_path / "rows", np.uint16, "w+", shape=2 * pitch + 40)
    rows = np.lib.stride_tricks.as_strided(file, (3, 40), (2 * pitch, 2)).view(BFLOAT16)
    rows[...] = case["documents"]
    case.arrays["documents"] = rows
    check(case, run(case))


@given(
    case=cases(
        st.sampled_from([1, 7, 33]),
        st.sampled_from([1, 7, 32, 111]),
        dtypes=("bfloat16",),
        negatives=(None, 2),
        special=(),
    ),
    values=st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 3e38]), min_size=1, max_size=3),
    order=orders,
    seed=st.integers(0, 2**32 - 1),
)
def test_not_finite(case, values, order, seed):
    """A row is NaN or infinite where the oracle's is; the others are what they were."""
    condition = next(compared(case, (run_oracle(case).losses, None, None, None, None)))[-1]
    rng = np.random.default_rng(seed)
    for value in values:
        x = [x for x in case.inputs if x is not None][
            rng.integers(2 + (case.negatives is not None))
        ]
        if value != 3e38 or case.normalize:  # its products would overflow as they should
            x[tuple(rng.integers(x.shape))] = value
    with np.errstate(all="ignore"):
        expected = run_oracle(case).losses
    losses = run(case, order=order).losses
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(losses[~finite], expected[~finite])
    allowed = allowed_error("info_nce.losses", "bfloat16", condition, CPU)
    np.testing.assert_allclose(losses[finite], expected[finite], rtol=0, atol=allowed)


@pytest.mark.parametrize("target", [-1, 9, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("width", [64, 33])
def test_target_out_of_range(width, target):
    case = bf16_case(20, 9, width, 2, targets=True)
    others = run(case)
    bad = np.arange(20) % 3 == 1
    case["targets"][bad] = target
    rows = run(case)
    assert np.isnan(rows.losses[bad]).all()
    np.testing.assert_array_equal(rows.losses[~bad], others.losses[~bad])


def test_fewer_documents_than_rows_without_targets():
    case = bf16_case(9, 9, 64)
    case.arrays["documents"] = case["documents"][:7]
    assert np.isnan(run(case).losses).tolist() == [False] * 7 + [True] * 2


def test_nothing_but_the_positive():
    one = run(bf16_case(1, 1, 33))
    assert one.losses.tolist() == one.log_sums.tolist() == [0.0]
    case = bf16_case(20, 20, 64, ids=True)
    case["query_ids"][...] = case["document_ids"][...] = -5
    assert run(case).losses.tolist() == [0.0] * 20


@pytest.mark.parametrize("width", [64, 33])
def test_small_losses_keep_their_digits(width):
    case = bf16_case(20, 200, width, normalize=False, temperature=1.0)
    case["queries"][...] = case["documents"][...] = 0
    case["queries"][:, 0] = 1
    case["documents"][:, 0] = -(np.arange(200) % 7)
    case["documents"][3, 0] = 22
    case.arrays["targets"] = np.full(20, 3)
    expected = run_oracle(case).losses
    assert 1e-9 < expected.max() < 1e-5
    np.testing.assert_allclose(run(case).losses, expected, rtol=1e-5)


@pytest.mark.parametrize("width", [32, 33])
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-12, 1.0, 1e18, 1e30, 3e37])
def test_scale_of_rows(width, scale):
    """Normalised, a scale above the floor shows nowhere; at any, the result is the oracle's."""
    case = bf16_case(7, 9, width, 1)
    for x in case.inputs:
        x[...] = (wide(x) * scale).astype(BFLOAT16)
    check(case, run(case))
    case["documents"][...] = (wide(case["documents"]) / scale).astype(BFLOAT16)
    check(case, run(case))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queries": np.zeros((0, 8), np.uint16)}, "rows = 0; expected 1 to"),
        ({"documents": np.zeros((0, 8), np.uint16)}, "documents = 0; expected 1 to"),
        ({"queries": np.zeros((7, 0), np.uint16)}, "dimensions = 0; expected 1 to"),
        ({"queries": np.zeros((7, 8), np.uint16)[::-1]}, "queries_stride = -8; expected 0 to"),
        ({"shared_bytes": 2048}, "2048 bytes of shared memory a block; expected at least 8192"),
    ],
)
def test_dispatch_refuses(changed, message):
    queries, documents, _, _ = inputs(bf16_case(7, 7, 8))
    given = {"queries": queries, "documents": documents, "shared_bytes": SHARED_BYTES, **changed}
    with pytest.raises(ValueError, match=message):
        build.load("info_nce").plan(
            given["queries"], given["documents"], None, 0, True, False, 3, given["shared_bytes"]
        )


def test_ids_come_together():
    case = bf16_case(7, 7, 8, ids=True)
    case.arrays["document_ids"] = None
    with pytest.raises(ValueError, match="only one of query_ids and document_ids"):
        run(case)


def test_grid_of_the_most_rows():
    """No count in the launch has wrapped."""
    row = np.zeros((1, 8), np.uint16)
    rows = np.broadcast_to(row, (2**34, 8))
    launched = build.load("info_nce").plan(rows, row, None, 0, True, False, 132, SHARED_BYTES)
    assert launched["blocks"] == 2**30
