"""simtile.integrations.info_nce_pytorch beside info-nce-pytorch itself."""

import info_nce as peer
import pytest
import torch
from contrastive_cases import option_tuples, pairwise
from drop_ins import check_equal, rows
from hypothesis import given
from hypothesis import strategies as st

from simtile.integrations import info_nce_pytorch as ours

LEVELS = {
    "negative_mode": ("unpaired", "paired"),
    "negative_keys": (None, 0, 1, 5),  # M
    "temperature": (0.1, 0.02, 2.0),
    "reduction": ("mean", "sum", "none"),
    "as_module": (False, True),
}
COVERING = pairwise(LEVELS, lambda drawn: True, ())


def check(drawn, n, d, seed):
    m = drawn["negative_keys"]
    shape = (n, m, d) if drawn["negative_mode"] == "paired" else (m, d)
    inputs = [rows(seed, n, d), rows(seed + 1, n, d) + rows(seed, n, d)]
    inputs += [] if m is None else [rows(seed + 2, *shape)]
    options = {name: drawn[name] for name in ("negative_mode", "temperature", "reduction")}

    def loss(library, *tensors):
        if drawn["as_module"]:
            return library.InfoNCE(**options)(*tensors)
        return library.info_nce(*tensors, **options)

    check_equal(loss, peer, ours, inputs)


@pytest.mark.parametrize("number", range(len(COVERING)))
def test_info_nce(number):
    check(COVERING[number], 4, 6, number)


@given(
    option_tuples(LEVELS, lambda drawn: True),
    st.sampled_from([1, 2, 7, 64, 65, 130]),
    st.sampled_from([1, 2, 17]),
    st.integers(0, 2**31),
)
def test_info_nce_of_any_size(drawn, n, d, seed):
    check(drawn, n, d, seed)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (([3], [3]), {}, r"query: found shape \[3\], expected \[N, D\]"),
        (([3, 2], [4, 2]), {}, r"positive_key: found \[4, 2\], expected \[3, 2\] as query"),
        (([3, 2], [3, 2], [3, 1, 2]), {}, r"negative_keys: found shape .*, expected \[M, D\]"),
        (([3, 2], [3, 2], [5, 3]), {}, r"negative_keys: found \[5, 3\] with query \[3, 2\]"),
        (
            ([3, 2], [3, 2], [2, 1, 2]),
            {"negative_mode": "paired"},
            r"negative_keys: found \[2, 1, 2\] with query \[3, 2\], expected \[N, M, D\]",
        ),
        (([3, 2], [3, 2]), {"negative_mode": "all"}, "negative_mode: found 'all', expected one of"),
        (([3, 2], [3, 2]), {"reduction": "max"}, "reduction: found 'max', expected one of"),
    ],
)
def test_errors(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        ours.info_nce(*(torch.ones(shape) for shape in shapes), **options)
