"""What the GPU kernels multiply and move, and how long that takes at a chip's published peaks."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from _chips import DP4A_PER_CLOCK, EXP_PER_CLOCK, POPC_PER_CLOCK, Chip
from simtile.kernels.info_nce import triton_configs as configs

from simtile.ops.info_nce_triton_call import CHUNK_BYTES

SIZE = 2  # bytes of an element

# Blocks of `scores` and `products` on one multiprocessor: docs/gpu-report.md, registers x threads.
# Nothing else runs while a block of `scores` takes exponentials.
BLOCKS = 1


@dataclass(frozen=True)
class Step:
    """All launches of one kernel in one call."""

    kernel: str
    operations: float  # of the matrix unit
    bytes: float  # between memory and L2
    exponentials: float = 0
    # Of a launch, in the order in which they begin: how many, and how long one takes of them.
    # Empty where they are many and short.
    blocks: tuple[tuple[int, float], ...] = ()

    def busy(self, chip: Chip) -> float:
        """The share of the multiprocessors' time in which they have a block, to a launch's end."""
        if not self.blocks:
            return 1.0
        ends = [0.0] * (chip.multiprocessors * BLOCKS)
        for count, length in self.blocks:
            for _ in range(count):
                heapq.heapreplace(ends, ends[0] + length)
        work = sum(count * length for count, length in self.blocks)
        return work / (len(ends) * max(ends))

    def seconds(self, chip: Chip) -> float:
        matrix = self.operations / chip.bf16 / self.busy(chip)
        exponentials = self.exponentials / chip.per_second(EXP_PER_CLOCK)
        return max(matrix + exponentials, self.bytes / chip.bandwidth)

    def memory_bound(self, chip: Chip) -> bool:
        return self.seconds(chip) == self.bytes / chip.bandwidth


def chunk_rows(n: int, family: str, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Rows of queries whose coefficients are in memory at once, as the launches choose them."""
    columns = configs.config(family, "bfloat16", "ieee").scores.columns
    row_bytes = configs.padded_rows(n) * SIZE + 12 * -(-n // columns)
    rows = chunk_bytes // row_bytes // configs.ROW_PADDING * configs.ROW_PADDING
    return int(min(configs.padded_rows(n), max(rows, configs.ROW_PADDING)))


def info_nce(n: int, d: int, family: str, chunk_bytes: int = CHUNK_BYTES) -> list[Step]:
    """Forward and backward of N queries and N documents in 16 bits, kernel by kernel.

    Memory moves what is larger than L2: the buffer of coefficients, which is read and written
    whole; operands once for every group of tiles of rows that passes over them. Tiles that run
    side by side share the rest in L2.
    """
    scores, product = configs.config(family, "bfloat16", "ieee")
    stride = configs.operand_stride(d)
    rows = chunk_rows(n, family, chunk_bytes)
    chunks = -(-n // rows)
    tiles = -(-n // scores.columns)
    groups = chunks * -(-rows // (scores.rows * configs.GROUP))
    pairs = n * configs.padded_rows(n)
    operand = n * stride * SIZE
    gradient = n * stride * 4
    across = -(-d // product.columns)
    flops = 2.0 * n * n * d
    return [
        # inputs read, operands written, of both sides
        Step("prepare", 0, 2 * (n * d * SIZE + operand)),
        # exponentials written; documents by group, queries once; three facts of a row and tile
        Step(
            "scores",
            flops,
            pairs * SIZE + groups * operand + operand + 12 * n * tiles,
            n * n,
            ((-(-rows // scores.rows) * tiles, 1),),
        ),
        # those facts read, a factor written
        Step("row_losses", 0, 16 * n * tiles),
        # exponentials to coefficients in place
        Step("coefficients", 0, 2 * pairs * SIZE + 4 * n * tiles),
        # Queries' gradient: coefficients read, documents once a chunk, the gradient written.
        # Documents': coefficients and queries read; the gradient written, from the second chunk on
        # read too. The tiles of the first add up N products, those of the second a chunk's rows.
        Step(
            "products",
            2 * flops,
            2 * pairs * SIZE + (chunks + 1) * operand + 2 * chunks * gradient,
            blocks=(
                (-(-rows // product.rows) * across, n),
                (-(-n // product.rows) * across, rows),
            ),
        ),
        # gradients read and written, operands read, of both sides
        Step("finish", 0, 2 * (2 * gradient + operand)),
    ]


def recompute(n: int, d: int) -> list[Step]:
    """Without a buffer: each side's owner multiplies the scores again, 10 N² D.

    Operands from L2 and multiprocessors never idle, which is more than such a kernel gets.
    """
    return [Step("recompute", 10.0 * n * n * d, 0, 3 * n * n)]


def seconds(steps: list[Step], chip: Chip) -> float:
    return sum(step.seconds(chip) for step in steps)


def buffers(n: int, d: int, family: str, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Bytes beyond the inputs: operands, one chunk's coefficients and facts, float32 gradients."""
    stride, rows = configs.operand_stride(d), chunk_rows(n, family, chunk_bytes)
    tiles = -(-n // configs.config(family, "bfloat16", "ieee").scores.columns)
    return 2 * n * stride * (SIZE + 4) + rows * (configs.padded_rows(n) * SIZE + 12 * tiles)


@dataclass(frozen=True)
class Search:
    """One query against all documents."""

    what: str
    documents: int
    row_bytes: int
    per_clock: int  # of the instruction that takes 4 bytes of a row

    @property
    def bytes(self) -> int:
        return self.documents * self.row_bytes

    def arithmetic_seconds(self, chip: Chip) -> float:
        return self.bytes / 4 / chip.per_second(self.per_clock)

    def seconds(self, chip: Chip) -> float:
        return max(self.bytes / chip.bandwidth, self.arithmetic_seconds(chip))


SEARCHES = (
    Search("Hamming, 1M × 1024 bits", 10**6, 128, POPC_PER_CLOCK),
    Search("Hamming, 100M × 768 bits", 10**8, 96, POPC_PER_CLOCK),
    Search("int8, 1M × 768", 10**6, 768, DP4A_PER_CLOCK),
    Search("int8, 10M × 768", 10**7, 768, DP4A_PER_CLOCK),
)
