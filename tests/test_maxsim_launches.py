"""What the host code of MaxSim's Triton kernels launches, without a GPU."""

from __future__ import annotations

import pytest
import torch
import triton_hosts
from simtile.kernels.maxsim import triton_configs as configs

from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Options
from simtile.ops import maxsim_triton


def launch_all(do, dtype, sizes, dim=128, *, chosen=False, masked=False, options=None):
    """Forward and backward of zeros; `do` sees each launch."""
    queries, length, documents, others = sizes
    options = options or Options()
    x = [torch.zeros(queries, length, dim, dtype=dtype), torch.zeros(documents, others, dim)]
    masks = [torch.ones(x[0].shape[:2], dtype=torch.bool), torch.ones(x[1].shape[:2]) > 0]
    sides = [
        Given(name, own.to(dtype), None, mask if masked else None)
        for name, own, mask in zip(("queries", "documents"), x, masks, strict=True)
    ]
    candidates = torch.zeros(queries, 3, dtype=torch.int64) if chosen else None
    name = str(dtype).removeprefix("torch.")
    tiles = configs.config("sm80", name)
    count = 3 if chosen else documents
    with triton_hosts.intercepted("maxsim", do):
        maxsim_triton.forward(*sides, candidates, options, tiles=tiles)
        maxsim_triton.backward(
            *sides,
            candidates,
            options,
            torch.zeros(queries, count),
            torch.zeros(queries, count, length, dtype=torch.int32),
            torch.zeros(queries, count, length) if options.temperature else None,
            (True, True),
            tiles=tiles,
        )


EVERY = (
    Options(),
    Options(normalize=True, pad_zero_rows=True),
    Options(length_normalize=True, empty_score=-1.0, temperature=0.3),
    Options(normalize=True, temperature=1.0),
)


@pytest.mark.parametrize("dtype", configs.DTYPES)
def test_what_is_compiled_ahead_of_time_is_what_is_launched(dtype):
    """For all lengths, counts, masks and candidates."""
    launched = {}

    def record(launch):
        names = list(launch.signature)
        compiled_in = {names[i]: value for (i,), value in launch.constexprs.items()}
        divisible = {names[i] for (i,), attributes in launch.attributes.items() if attributes}
        key = launch.name, frozenset(compiled_in.items())
        found = (launch.signature, divisible, launch.options["num_warps"])
        assert launched.setdefault(key, found) == found

    for options in EVERY:
        for sizes in ((1, 1, 1, 1), (2, 7, 5, 33), (16, 32, 3, 180), (3, 111, 1, 16)):
            for chosen in (False, True):
                launch_all(
                    record,
                    getattr(torch, dtype),
                    sizes,
                    chosen=chosen,
                    masked=sizes[0] > 1,
                    options=options,
                )
    ahead = {}
    for variant in configs.variants("sm80"):
        if variant.dtype == dtype or variant.kernel.__name__ == "sum_tokens":
            key = variant.kernel.__name__, frozenset(variant.constexprs.items())
            ahead[key] = variant.signature, set(variant.divisible), variant.num_warps
    ours = {key: found for key, found in launched.items() if key[0] not in ("prepare", "finish")}
    assert ours == ahead


def test_nothing_is_launched_for_nothing():
    launches = []
    for sizes in ((0, 3, 2, 5), (2, 3, 0, 5), (0, 0, 0, 0)):
        launch_all(launches.append, torch.float32, sizes, 8)
    assert {launch.name for launch in launches} <= {"query_gradients", "document_gradients"}
    launches.clear()
    launch_all(launches.append, torch.float32, (2, 0, 3, 0), 8)
    assert [launch.name for launch in launches] == ["sum_tokens"]
