"""Measured tile shapes, with times that are made up."""

import math

import pytest
import torch
import triton
from simtile.kernels.info_nce import triton_configs as configs

from simtile.ops import info_nce_autotune as autotune
from simtile.ops import info_nce_triton

PINNED = configs.config("sm90", "bfloat16", "ieee")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch):
    monkeypatch.setattr(autotune, "_found", {})


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("0", False), ("1", True)])
def test_off_unless_asked_for(monkeypatch, value, expected):
    monkeypatch.delenv("SIMTILE_AUTOTUNE", raising=False)
    if value is not None:
        monkeypatch.setenv("SIMTILE_AUTOTUNE", value)
    assert autotune.wanted() is expected


def test_another_value_is_an_error(monkeypatch):
    monkeypatch.setenv("SIMTILE_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match=r"SIMTILE_AUTOTUNE: found 'yes', expected '0' or '1'"):
        autotune.wanted()


def test_each_part_is_the_fastest():
    scores = configs.Tile(64, 128, 64, 4, 3)
    product = configs.Tile(256, 128, 64, 8, 4)

    def milliseconds(tiles):
        return 10.0 - 2.0 * (tiles.scores == scores) - 1.0 * (tiles.product == product)

    assert autotune.fastest(PINNED, milliseconds) == configs.Config(scores, product)


def test_pinned_stays_where_nothing_is_faster():
    assert autotune.fastest(PINNED, lambda tiles: 1.0) is PINNED
    assert autotune.fastest(PINNED, lambda tiles: 1.0 if tiles == PINNED else math.inf) is PINNED


def test_nothing_runs():
    with pytest.raises(RuntimeError, match="no tile shape ran"):
        autotune.fastest(PINNED, lambda tiles: math.inf)


def test_alternatives_divide_the_padding():
    for tile in configs.alternatives(PINNED.scores):
        assert configs.ROW_PADDING % tile.rows == configs.ROW_PADDING % tile.columns == 0
        assert configs.DIM_PADDING % tile.columns == configs.DIM_PADDING % tile.inner == 0
        assert tile != PINNED.scores


def test_measured_once_for_each_kind_of_call(monkeypatch):
    calls = []

    def do_bench(call, return_mode):
        call()
        return 1.0

    def timed(rows, tiles):
        calls.append((rows.shape, rows.dtype, tiles))
        if tiles != PINNED:
            raise triton.runtime.errors.OutOfResources(1, 2, "shared memory")

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(autotune, "BATCH", 4)
    for _ in range(2):
        assert autotune.tiles(CPU, torch.bfloat16, "ieee", 100, PINNED, timed) is PINNED
    assert calls[0] == ((4, 100), torch.bfloat16, PINNED)
    assert len(calls) == 1 + 2 * len(list(configs.alternatives(PINNED.scores)))
    autotune.tiles(CPU, torch.bfloat16, "ieee", 500, PINNED, timed)
    assert len(calls) == 2 * (1 + 2 * len(list(configs.alternatives(PINNED.scores))))


def test_pinned_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    device = torch.device("cuda")

    def timed(rows, tiles):
        raise AssertionError("measured during a capture")

    assert autotune.tiles(device, torch.bfloat16, "ieee", 100, PINNED, timed) is PINNED


@pytest.mark.parametrize("asked", [False, True])
def test_a_call_takes_what_was_measured(monkeypatch, asked):
    measured = configs.Config(configs.Tile(64, 64, 64, 4, 2), PINNED.product)
    seen = []

    def run(call, *arguments):
        seen.append(call.tiles)

    monkeypatch.setenv("SIMTILE_AUTOTUNE", str(int(asked)))
    monkeypatch.setattr(info_nce_triton, "family", lambda device: "sm90")
    monkeypatch.setattr(info_nce_triton, "_run", run)
    monkeypatch.setattr(autotune, "tiles", lambda *arguments: measured)
    rows = torch.zeros(3, 5, dtype=torch.bfloat16)
    info_nce_triton.run(rows, rows, None, dtype=torch.bfloat16, temperature=0.05)
    assert seen == [measured if asked else PINNED]
