"""simtile.quantize by the Triton kernels: the same bits as on the CPU.

In Triton's interpreter, in a process of its own, and, marked gpu, on a device.
"""

import ml_dtypes
import numpy as np
import pytest
import torch
import triton_launches
from hypothesis import given, settings
from hypothesis import strategies as st
from info_nce_cases import as_tensor
from simtile.kernels.quantize import triton_configs as configs
from test_quantize import DTYPES, call, strided, vectors
from triton_worker import Interpreter
from triton_worker import quantize as in_interpreter

from simtile.ops import quantize_triton
from simtile.quantized import KINDS, PER_DIMENSION, PER_VECTOR

interpreter = Interpreter()
SIZES = (1, 2, 7, 31, 111)
DIMENSIONS = (1, 2, 7, 8, 33, 111, 384, 515)


def by_interpreter(x, kind, **options):
    return interpreter(in_interpreter, x, kind, options)[0]


def by_device(x, kind, **options):
    q = call(as_tensor(x, "cuda"), kind, **options)
    assert q.codes.is_cuda
    arrays = {name: getattr(q, name) for name in ("codes", "scale", "offset", "ranges")}
    return {name: None if v is None else v.numpy(force=True) for name, v in arrays.items()}


BACKENDS = [by_interpreter, pytest.param(by_device, marks=pytest.mark.gpu)]


def check(found, x, kind, **options):
    expected = call(x, kind, **options)
    for name, array in found.items():
        if array is None:
            assert getattr(expected, name) is None
        else:
            np.testing.assert_array_equal(array, getattr(expected, name), strict=True)


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_codes(run, kind):
    @settings(max_examples=max(4, settings.default.max_examples // 4))
    @given(
        rows=st.sampled_from(SIZES),
        dim=st.sampled_from(DIMENSIONS),
        dtype=st.sampled_from(list(DTYPES)),
        layout=st.sampled_from(["plain", "rows apart", "columns"]),
        from_ranges=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def test(rows, dim, dtype, layout, from_ranges, seed):
        x = strided(vectors(rows, dim, DTYPES[dtype], seed), layout)
        options = {}
        if kind in PER_DIMENSION and (from_ranges or rows < 2):
            ranges = np.random.default_rng(seed).standard_normal((2, dim))
            options["ranges"] = np.sort(ranges, axis=0).astype(np.float32)
        check(run(x, kind, **options), x, kind, **options)

    test()


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("kind", PER_DIMENSION)
def test_calibration_and_quantiles(run, kind):
    x, other = vectors(9, 33, np.float32, 1), vectors(40, 33, np.float64, 2)
    check(run(x, kind, calibration=other), x, kind, calibration=other)
    check(run(x, kind, quantiles=(0.1, 0.9)), x, kind, quantiles=(0.1, 0.9))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_no_numbers(kind, dtype):
    x = vectors(120, 17, dtype, 3, ordinary=True)
    x[7, 3], x[9, 5], x[11, 2], x[50, :4] = np.nan, np.inf, -np.inf, np.nan
    if kind in PER_VECTOR:
        with pytest.raises(RuntimeError, match="in row 7, expected finite"):
            interpreter(in_interpreter, x, kind, {})
        return
    ranges = np.stack([np.full(17, -2, np.float32), np.full(17, 2, np.float32)])
    for options in ({}, {"ranges": ranges}) if kind in PER_DIMENSION else ({},):
        found, messages = interpreter(in_interpreter, x, kind, options)
        with np.errstate(all="ignore"):
            if kind in PER_DIMENSION:
                row = 7 if options else 0
                assert messages[-1].startswith(f"x: found a NaN or an infinity in row {row}")
                with pytest.warns(RuntimeWarning, match=f"in row {row}"):
                    check(found, x, kind, **options)
            else:
                assert messages == []
                check(found, x, kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_many_rows(kind):
    x = vectors(20_011, 385, np.float32, 4)
    check(by_device(x, kind), x, kind)


def recorded(do):
    """The launches of a function on tensors of the CPU."""
    launches = []
    with triton_launches.intercepted(quantize_triton, launches.append):
        do()
    return launches


def launch_all(x):
    quantize_triton.ranges(x)
    for kind in KINDS:
        ends = torch.zeros((2, x.shape[1]))
        starts, steps, _ = quantize_triton.grid(ends, 256, 0)
        quantize_triton.codes(
            x, kind, *((starts, steps) if kind in PER_DIMENSION else (None, None))
        )


@pytest.mark.parametrize("dtype", configs.DTYPES)
def test_what_is_compiled_ahead_of_time_is_what_is_launched(dtype):
    launches = {}
    for rows in (1, 2, 7, 16, 111, 2048):
        x = torch.zeros((rows, 768), dtype=getattr(torch, dtype))
        for launch in recorded(lambda x=x: launch_all(x)):
            launches[launch.key] = launch
    variants = list(configs.variants("sm90"))
    ahead = {}
    for variant in variants:
        if variant.dtype == dtype:
            names = frozenset(variant.constexprs.items())
            ahead[variant.kernel.__name__, names] = variant
    assert len(launches) == len(ahead)  # for all numbers of rows
    for launch in launches.values():
        names = list(launch.signature)
        compiled_in = {names[i]: value for (i,), value in launch.constexprs.items()}
        variant = ahead[launch.name, frozenset(compiled_in.items())]
        assert launch.signature == variant.signature
        assert launch.options["num_warps"] == variant.num_warps
        found = {names[i] for (i,), attributes in launch.attributes.items() if attributes}
        assert found == set(variant.divisible)
