"""docs/roofline.md: up to date, and the arithmetic behind it by hand."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
REGISTERS = 65536  # of a multiprocessor

pytest.importorskip("triton")
pytest.importorskip("torch")


@pytest.fixture(scope="module")
def roofline() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("roofline")
    sys.path.remove(str(ROOT / "bench"))


@pytest.fixture(scope="module")
def model(roofline: ModuleType) -> ModuleType:
    return importlib.import_module("_roofline")


def test_the_page_is_up_to_date(roofline: ModuleType) -> None:
    assert roofline.PAGE.read_text() == roofline.page(), "run python bench/roofline.py"


def test_a_stale_page_is_found(
    roofline: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "ROOT", tmp_path)
    monkeypatch.setattr(roofline, "PAGE", tmp_path / "docs" / "page.md")
    monkeypatch.setattr(sys, "argv", ["roofline.py", "--check"])
    assert roofline.main() == 1
    monkeypatch.setattr(sys, "argv", ["roofline.py"])
    assert roofline.main() == 0
    monkeypatch.setattr(sys, "argv", ["roofline.py", "--check"])
    assert roofline.main() == 0
    roofline.PAGE.write_text(roofline.PAGE.read_text() + "\n")
    assert roofline.main() == 1


def test_operations_and_bytes_by_hand(model: ModuleType) -> None:
    n, d = 1024, 128
    steps = {step.kernel: step for step in model.info_nce(n, d, "sm80")}
    assert sum(step.operations for step in steps.values()) == 6 * n * n * d
    # one chunk of 1024 rows, one group of 8 tiles of 128 rows, 8 tiles in a row
    operand, facts = n * d * 2, n * 8 * 4
    assert steps["prepare"].bytes == 2 * 2 * operand
    assert steps["scores"].bytes == 2 * n * n + 2 * operand + 3 * facts
    assert steps["row_losses"].bytes == 4 * facts
    assert steps["coefficients"].bytes == 4 * n * n + facts
    gradient = 2 * operand
    assert steps["products"].bytes == 2 * (2 * n * n + operand + gradient)
    assert steps["scores"].blocks == ((64, 1),)
    assert steps["products"].blocks == ((8, 1024), (8, 1024))
    assert model.buffers(n, d, "sm80") == 2 * 3 * operand + n * n * 2 + 3 * facts


def test_more_chunks_pass_over_the_documents_again(model: ModuleType) -> None:
    n, d = 65536, 768
    rows = model.chunk_rows(n, "sm90", 2**28)
    # 256 MiB of 16-bit coefficients and three facts of each of 512 tiles, a multiple of 256
    assert rows == 2**28 // (2 * n + 3 * 512 * 4) // 256 * 256 == 1792
    steps = {step.kernel: step for step in model.info_nce(n, d, "sm90", 2**28)}
    chunks = 37
    operand, gradient = n * d * 2, n * d * 4
    queries = 2 * n * n + chunks * operand + gradient
    documents = 2 * n * n + operand + (2 * chunks - 1) * gradient
    assert steps["products"].bytes == queries + documents
    assert steps["products"].blocks == ((14 * 6, n), (512 * 6, rows))


@pytest.mark.parametrize("n", [1, 1000, 4096, 65536, 10**6])
def test_chunks_are_those_of_the_launches(model: ModuleType, n: int) -> None:
    from simtile.ops import info_nce_triton_call as host

    for family in ("sm80", "sm90", "sm100"):
        tiles = model.configs.config(family, "bfloat16", "ieee")
        row_bytes = 2 * model.configs.padded_rows(n)
        launched = host.chunk_rows(n, row_bytes, -(-n // tiles.scores.columns), True)
        assert model.chunk_rows(n, family) == launched


def test_the_slower_of_arithmetic_and_memory(roofline: ModuleType, model: ModuleType) -> None:
    chip = roofline.CHIPS[0]  # 108 multiprocessors
    assert model.Step("", chip.bf16, 0, blocks=((108, 1),)).seconds(chip) == pytest.approx(1)
    assert model.Step("", chip.bf16, 0, blocks=((109, 1),)).seconds(chip) == pytest.approx(
        216 / 109
    )
    # 54 long blocks, and 54 multiprocessors for short ones meanwhile
    mixed = model.Step("", chip.bf16, 0, blocks=((54, 4.0), (216, 1.0)))
    assert mixed.seconds(chip) == pytest.approx(1)
    moving = model.Step("", chip.bf16, 3 * chip.bandwidth)
    assert moving.seconds(chip) == pytest.approx(3)
    assert moving.memory_bound(chip)
    # an exponential is a sixteenth of a clock, a multiply-add of the matrix unit a 1024th
    waiting = model.Step("", 0, 0, exponentials=chip.bf16 / 2 / 64)
    assert waiting.seconds(chip) == pytest.approx(1)
    assert not waiting.memory_bound(chip)


def test_clocks_are_plausible(roofline: ModuleType) -> None:
    for chip in roofline.CHIPS:
        assert 1.3e9 < chip.per_second(1) / chip.multiprocessors < 2.0e9, chip.name


def test_one_block_fills_a_multiprocessor(roofline: ModuleType, model: ModuleType) -> None:
    report = json.loads((ROOT / "bench" / "results" / "gpu_report.json").read_text())
    families = {chip.family.replace("sm", "sm_") for chip in roofline.CHIPS}
    seen = set()
    for row in report["triton"]["kernels"]:
        kernel = row["kernel"], row["arch"]
        if (
            row["operation"] == "info_nce"
            and row["dtype"] == "bfloat16"
            and kernel[0] in ("scores", "products")
            and kernel[1] in families
        ):
            seen.add(kernel)
            assert REGISTERS // (row["registers"] * row["threads"]) == model.BLOCKS
    assert len(seen) == 2 * len(families)
