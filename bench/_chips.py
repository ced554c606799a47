"""Published peaks of GPUs, and what others publish of their own libraries on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Published peaks, without sparsity."""

    name: str
    source: str
    family: str  # of triton_configs
    multiprocessors: int
    bf16: float  # operations/s of the matrix unit, as all below
    tf32: float
    int8: float
    bandwidth: float  # bytes/s of memory
    bf16_per_clock: int  # operations a clock and multiprocessor, which gives the clock of `bf16`
    mma_sync: float | None  # the share of bf16 that mma.sync reaches; None: no published figure

    def per_second(self, per_clock: int) -> float:
        """The whole chip's rate of an instruction, from results a clock and multiprocessor."""
        return per_clock * self.bf16 / self.bf16_per_clock


CHIPS = (
    Chip(
        "A100 80 GB SXM",
        "NVIDIA A100 80GB datasheet, 2021",
        "sm80",
        108,
        312e12,
        156e12,
        624e12,
        2.039e12,
        2048,
        1.0,  # it has no other matrix instruction
    ),
    Chip(
        "H100 SXM",
        "NVIDIA H100 datasheet, half of the figures with sparsity",
        "sm90",
        132,
        989.4e12,
        494.7e12,
        1979e12,
        3.35e12,
        4096,
        0.629,
    ),
    Chip(
        "H200",
        "NVIDIA H200 datasheet, half of the figures with sparsity",
        "sm90",
        132,
        989.4e12,
        494.7e12,
        1979e12,
        4.8e12,
        4096,
        0.629,
    ),
    Chip(
        "B200",
        "NVIDIA Blackwell datasheet, HGX B200, half of the figures with sparsity",
        "sm100",
        148,
        2250e12,
        1100e12,
        4500e12,
        7.7e12,
        8192,
        None,
    ),
)

# Results a clock and multiprocessor; CUDA C++ Programming Guide, "Arithmetic Instructions", the
# same for compute capability 8.0 and 9.0, and taken for 10.0.
EXP_PER_CLOCK = 16
POPC_PER_CLOCK = 16  # of 32 bits
DP4A_PER_CLOCK = 64  # of four products of bytes


@dataclass(frozen=True)
class Published:
    """A time that a library's authors publish for one GPU, forward and backward in bfloat16."""

    library: str
    loss: str
    gpu: str
    n: int
    d: int | None  # None: not said
    time: str
    memory: str


PUBLISHED = (
    Published("memeff 0.3.1, README", "InfoNCE, one direction", "A100", 65536, 384, "184 ms", "–"),
    Published("memeff 0.3.1, README", "CLIP, both directions", "A100", 65536, 512, "201 ms", "–"),
    Published(
        "siglip-kernel 0.1.1, README", "sigmoid", "H100 or GH200", 65536, None, "48.8 ms", "1.4 GB"
    ),
    Published("the same page, eager", "sigmoid", "H100 or GH200", 65536, None, "102 ms", "33 GB"),
)
BESIDE = {"A100": "A100 80 GB SXM", "H100 or GH200": "H100 SXM"}
